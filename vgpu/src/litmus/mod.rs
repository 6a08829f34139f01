//! Litmus tests of the PTX memory model: reads the usual notation, runs a test over seeds, and says which states were seen.
//!
//! A test's threads run on the same [`Model`](crate::track::model::Model) as kernels do in tracked mode, with an interpreter of
//! their own: one agent per thread, in a seeded order.

mod condition;
mod parse;
mod run;

pub use condition::{Condition, Term};
pub use parse::{Instr, LitmusError, Operand, Question, Test, Thread, parse};
pub use run::{Outcome, run};

//! Collectives.
pub mod algorithms;
mod dtype;
mod op;
pub mod plan;

pub use dtype::{DataType, Element, UnknownType};
pub use op::{ReduceOp, Scalar};

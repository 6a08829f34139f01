//! The host device: ranks are processes or threads, those of one machine share memory, workers run
//! on the calling thread.
//!
//! It is what every machine has, what CPU-only jobs use, and what every plan is tested on.

mod away;
mod executor;
pub(crate) mod fold;
mod mail;
mod packets;
mod prepare;
mod tiles;

pub(crate) use executor::{Executor, Job, Spans};
pub(crate) use mail::{AT_OTHER, AT_RECEIVE, AT_SEND, Away, Direction, Letter, Mail};
pub(crate) use prepare::{Prepared, Region};

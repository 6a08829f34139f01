//! Collectives.
mod dtype;
mod op;

pub use dtype::{DataType, Element, UnknownType};
pub use op::{ReduceOp, Scalar};

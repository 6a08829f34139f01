//! From opcodes and operands to decoded instructions.

pub mod decode;
mod lower;
pub mod operand;
pub mod select;
pub mod spec;

pub use decode::{Kernel, Symbols, decode_kernel};
pub use spec::{Spec, W};

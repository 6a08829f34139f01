//! From opcodes and operands to decoded instructions.

pub mod decode;
mod lower;
mod lower_call;
mod lower_mem;
pub mod operand;
pub mod select;
mod slots;
pub mod spec;
pub mod special;

pub use decode::{Kernel, Symbols, decode_kernel};
pub use spec::{Spec, W};

//! Kernels without a GPU: their text, for tests and tables.
#![forbid(unsafe_code)]

use super::emit::{self, EmitError, Kernel};
use crate::algorithms::Algorithm;
use crate::dtype::DataType;
use crate::op::ReduceOp;
use crate::plan::Shape;

/// The kernel of one rank of a built-in plan, for root 0, as a communicator compiles it.
pub(crate) fn kernel(
    algorithm: &Algorithm,
    rank: usize,
    world: usize,
    dtype: DataType,
    op: ReduceOp,
) -> Result<Kernel, EmitError> {
    let (shape, program) = (algorithm.shape(world, 0), algorithm.program(rank, world, 0));
    // Ranks play at most two different parts: the root's and the others'.
    let reaches = |rank| Shape::reaches_user_memory(&algorithm.program(rank, world, 0), rank);
    let announces = reaches(0) || reaches(1 % world);
    emit::emit(&shape, &program, &algorithm.claims, announces, rank, dtype, op.kind())
}

/// CUDA C++ and entry point of one rank's kernel of a built-in plan, for root 0.
///
/// # Errors
/// The program has something that kernels do not have.
#[doc(hidden)]
pub fn source(
    algorithm: &Algorithm,
    rank: usize,
    world: usize,
    dtype: DataType,
    op: ReduceOp,
) -> Result<(String, String), EmitError> {
    kernel(algorithm, rank, world, dtype, op).map(|kernel| (kernel.source, kernel.name))
}

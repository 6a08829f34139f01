//! The host's data movers: folds of several operands into several places, and copies.
//!
//! A [`Fold`] is what the host runs for a reducing move of a plan. It is looked up once, for an
//! element type and an operator, and compiled for the best instruction set of the machine.
//!
//! The bits of a result depend on the operands' values and on their order, and on nothing else: not
//! on where an element lies in the buffers, on their alignment, or on the instruction set.

mod copy;
mod isa;
mod kernel;
mod numeric;
#[cfg(test)]
mod tests;
mod wire;

use std::marker::PhantomData;

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

pub(crate) use self::copy::copy;
#[cfg(target_arch = "x86_64")]
use self::isa::{Avx2, Avx512};
use self::isa::{Baseline, Isa, Level};
use self::kernel::FoldKernel;
use self::numeric::{Add, Combine, Greatest, Least, Multiply};
use self::wire::Wire;
use crate::dtype::DataType;
use crate::op::OpKind;

/// An operand to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Its first element; may be at any address.
    pub(crate) at: *const u8,
    /// Whether its elements are of the accumulation type: a partial sum, taken as it is. Else they
    /// are a rank's contribution.
    pub(crate) partial: bool,
    /// What `PreMulSum` multiplies a contribution by, which is each rank's own: the bits of an
    /// element, little endian. Other operators do not look.
    pub(crate) scale: u64,
}

/// A place to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dest {
    /// Its first element; may be at any address.
    pub(crate) at: *mut u8,
    /// Whether it takes the accumulator as it is. Else the result is finished (averaged, rounded).
    pub(crate) partial: bool,
}

/// What operators need besides the operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoldArgs {
    /// What `Avg` divides by; at least 1.
    pub(crate) world: u32,
}

/// Folds: `to[*][i] = finish(from[0][i] op from[1][i] op ...)` for each `i` below the count.
///
/// Operands are combined from left to right in the accumulation type: f32 for f16, bf16 and the
/// 8-bit floats, else the element type. Contributions are widened and, for `PreMulSum`, multiplied
/// by their rank's factor (rounded before the sum). Results for destinations that are not partial are
/// finished: `Avg` divides by the world (integers towards zero), then they are rounded to the
/// element type, to nearest even. Arithmetic whose result is NaN gives the type's canonical quiet
/// one.
///
/// During the call the destinations' contents are unspecified: the first may hold partial results.
///
/// The last argument asks for *streaming*: stores that bypass the cache, for results larger than
/// it. They are ordered before any store that follows the call, so the caller may publish with a
/// release store.
///
/// # Safety
/// - There is at least one source and one destination; all destinations have the same `partial`.
/// - As many elements, of the type that `partial` says, are readable or writable at each of them
///   for the whole call, and no one else writes to sources or touches destinations meanwhile.
/// - A destination overlaps a source only if both start at the same address and have elements of
///   the same size. No two destinations overlap. Memory that is mapped twice overlaps itself: it
///   has to be named by one of its addresses.
/// - The world is at least 1 for `Avg`.
pub(crate) type Fold =
    unsafe fn(to: &[Dest], from: &[Source], count: usize, args: &FoldArgs, streaming: bool);

/// The fold of a type by an operator, for the best instruction set of this machine.
pub(crate) fn fold_for(dtype: DataType, op: OpKind) -> Fold {
    fold_at(Level::best(), dtype, op)
}

/// The fold for a certain level. It must be one of [`Level::here`] to be called.
fn fold_at(level: Level, dtype: DataType, op: OpKind) -> Fold {
    match level {
        Level::Baseline => of_type::<Baseline>(dtype, op),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => of_type::<Avx2>(dtype, op),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => of_type::<Avx512>(dtype, op),
    }
}

fn of_type<I: Isa>(dtype: DataType, op: OpKind) -> Fold {
    match dtype {
        DataType::I8 => of_op::<I, i8>(op),
        DataType::U8 => of_op::<I, u8>(op),
        DataType::I32 => of_op::<I, i32>(op),
        DataType::U32 => of_op::<I, u32>(op),
        DataType::I64 => of_op::<I, i64>(op),
        DataType::U64 => of_op::<I, u64>(op),
        DataType::F16 => of_op::<I, f16>(op),
        DataType::F32 => of_op::<I, f32>(op),
        DataType::F64 => of_op::<I, f64>(op),
        DataType::Bf16 => of_op::<I, bf16>(op),
        DataType::F8E4M3 => of_op::<I, F8E4M3>(op),
        DataType::F8E5M2 => of_op::<I, F8E5M2>(op),
    }
}

fn of_op<I: Isa, E: Wire>(op: OpKind) -> Fold {
    match op {
        OpKind::Sum => fold::<I, E, Add, PLAIN>,
        OpKind::Prod => fold::<I, E, Multiply, PLAIN>,
        OpKind::Max => fold::<I, E, Greatest, PLAIN>,
        OpKind::Min => fold::<I, E, Least, PLAIN>,
        OpKind::Avg => fold::<I, E, Add, AVERAGE>,
        OpKind::PreMulSum => fold::<I, E, Add, SCALED>,
    }
}

// What is done besides combining. Three thin functions that share one kernel: the kernel asks once
// a block, which costs nothing, where one kernel each would cost half as much code again.
const PLAIN: u8 = 0;
const AVERAGE: u8 = 1;
const SCALED: u8 = 2;

/// A [`Fold`]; its conditions apply, and the machine has `I`.
unsafe fn fold<I: Isa, E: Wire, C: Combine, const MODE: u8>(
    to: &[Dest],
    from: &[Source],
    count: usize,
    args: &FoldArgs,
    streaming: bool,
) {
    debug_assert!(!to.is_empty() && to.iter().all(|dest| dest.partial == to[0].partial));
    debug_assert!(!from.is_empty() && (MODE != AVERAGE || args.world > 0));
    let kernel = FoldKernel::<E, C> {
        to,
        from,
        count,
        scaled: MODE == SCALED,
        divisor: (MODE == AVERAGE).then_some(args.world),
        streaming,
        combine: PhantomData,
    };
    // SAFETY: the caller's.
    unsafe { I::enter(&kernel) }
}

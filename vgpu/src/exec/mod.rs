//! The interpreter: warps of 32 lanes over arrays.

// `for l in 0..LANES` over arrays is what the vectoriser understands best, and what a lane is.
#![allow(
    clippy::needless_range_loop,
    reason = "lanes are numbers; several arrays are indexed by them"
)]

pub mod alu;
pub mod bits;
pub mod block;
pub mod compare;
pub mod control;
pub mod convert;
pub mod copy;
pub mod ldst;
pub mod multimem;
pub mod sync;
pub mod warp;

use warp::{Inst, Warp};

/// What the run loop does after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ctl {
    /// Go on with the next instruction.
    Next,
    /// The handler has set the path's pc, or there is another current path.
    Jump,
    /// Go on, but let others run first: this warp polls.
    Yield,
    /// The current path waits at this instruction; the handler has said for what.
    Park,
    /// `warp.fault` says what went wrong.
    Fault,
}

/// Executes one instruction for the lanes in `warp.exec`.
pub type Handler = unsafe fn(&mut Warp, &Inst) -> Ctl;

/// A handler's body; compiled for several instruction sets by [`pick`].
pub trait Exec {
    /// Executes one instruction.
    ///
    /// # Safety
    /// The instruction must have been decoded for the warp's kernel, so that its register offsets are inside the
    /// warp's register file and aligned for the types that the handler reads them as.
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl;
}

/// A handler for the best instruction set of this machine.
pub fn pick<E: Exec>() -> Handler {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return avx512::<E>;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return avx2::<E>;
        }
    }
    plain::<E>
}

/// A handler for which vector width does not matter.
pub fn plain_handler<E: Exec>() -> Handler {
    plain::<E>
}

unsafe fn plain<E: Exec>(w: &mut Warp, i: &Inst) -> Ctl {
    // SAFETY: the caller's promise is that of `Exec::run`.
    unsafe { E::run(w, i) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn avx2<E: Exec>(w: &mut Warp, i: &Inst) -> Ctl {
    // SAFETY: the caller's promise is that of `Exec::run`.
    unsafe { E::run(w, i) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn avx512<E: Exec>(w: &mut Warp, i: &Inst) -> Ctl {
    // SAFETY: the caller's promise is that of `Exec::run`.
    unsafe { E::run(w, i) }
}

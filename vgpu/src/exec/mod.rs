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
pub mod lanes;
pub mod ldst;
pub mod multimem;
pub mod sync;
pub mod tracked;
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

/// A handler's body; compiled for two instruction sets by [`pick`].
pub trait Exec {
    /// Executes one instruction.
    ///
    /// # Safety
    /// The instruction must have been decoded for the warp's kernel, so that its register offsets are inside the
    /// warp's register file and aligned for the types that the handler reads them as.
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl;
}

/// True if this machine has what handlers need at least: 16-byte accesses are single-copy atomic only with AVX, and
/// handlers are compiled for AVX2 and for AVX-512 ([`pick`]).
pub fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("lzcnt");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// A handler for the best instruction set of this machine.
#[cfg(target_arch = "x86_64")]
pub fn pick<E: Exec>() -> Handler {
    let wide = is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if wide { avx512::<E> } else { avx2::<E> }
}

/// A handler for the best instruction set of this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn pick<E: Exec>() -> Handler {
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

//! The CUDA device library of warpmesh, and what compiles its kernels and keeps them.
//!
//! The headers in `device/` are for anybody's kernels; `device/README.md` describes them. They need NVRTC or
//! nvcc and no other header. [`cache::kernel`] compiles a text that includes them, or finds it compiled.

pub mod cache;
mod compile;

pub use compile::{CompileError, Compiled, compile};

/// NVRTC's version, as drivers have theirs: 13050 for 13.5.
///
/// # Errors
/// There is none.
pub fn nvrtc_version() -> Result<i32, CompileError> {
    compile::version().map(|(major, minor)| 1000 * major + 10 * minor)
}

/// The headers of the device library: name as in `#include "warpmesh/NAME"`, and text.
///
/// They include each other by `NAME` alone, so NVRTC needs each under both names. (Include guards keep them apart, not
/// `#pragma once`, for which two names are two files.)
pub const HEADERS: [(&str, &str); 16] = [
    ("base.cuh", include_str!("../device/base.cuh")),
    ("board.cuh", include_str!("../device/board.cuh")),
    ("channel.cuh", include_str!("../device/channel.cuh")),
    ("element.cuh", include_str!("../device/element.cuh")),
    ("mail.cuh", include_str!("../device/mail.cuh")),
    ("move.cuh", include_str!("../device/move.cuh")),
    ("multicast.cuh", include_str!("../device/multicast.cuh")),
    ("order.cuh", include_str!("../device/order.cuh")),
    ("packet.cuh", include_str!("../device/packet.cuh")),
    ("plan.cuh", include_str!("../device/plan.cuh")),
    ("port.cuh", include_str!("../device/port.cuh")),
    ("far.cuh", include_str!("../device/far.cuh")),
    ("semaphore.cuh", include_str!("../device/semaphore.cuh")),
    ("switch.cuh", include_str!("../device/switch.cuh")),
    ("sync.cuh", include_str!("../device/sync.cuh")),
    ("wait.cuh", include_str!("../device/wait.cuh")),
];

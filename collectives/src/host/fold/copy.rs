//! Copies from one place to several.

use super::isa::{Isa, Kernel, Level, REG};

/// Bytes that are copied to all destinations before the next ones: they stay in the first-level
/// cache.
const TILE: usize = 8192;

/// Copies `bytes` bytes to each of `to`, reading the source once. A destination that is `from`
/// itself is skipped. With `streaming`, stores bypass the cache but for lines that are not whole,
/// and are ordered before what the caller stores next.
///
/// # Safety
/// `bytes` bytes at `from` are readable and at each of `to` writable, for the whole call; a
/// destination is `from` or does not overlap it, and no two destinations overlap.
pub(crate) unsafe fn copy(to: &[*mut u8], from: *const u8, bytes: usize, streaming: bool) {
    match *to {
        [only] if !streaming => {
            if only.cast_const() != from {
                // SAFETY: they do not overlap, says the caller.
                unsafe { only.copy_from_nonoverlapping(from, bytes) };
            }
        }
        // SAFETY: this machine has its best level; the rest is the caller's.
        _ => unsafe { Level::best().enter(&CopyKernel { to, from, bytes, streaming }) },
    }
}

struct CopyKernel<'a> {
    to: &'a [*mut u8],
    from: *const u8,
    bytes: usize,
    streaming: bool,
}

impl Kernel for CopyKernel<'_> {
    #[inline(always)]
    unsafe fn run<I: Isa>(&self) {
        let mut at = 0;
        while at < self.bytes {
            let bytes = TILE.min(self.bytes - at);
            for to in self.to.iter().filter(|to| to.cast_const() != self.from) {
                // SAFETY: the tile lies within `bytes`, which the caller vouches for.
                unsafe { put::<I>(to.add(at), self.from.add(at), bytes, self.streaming) };
            }
            at += bytes;
        }
        if self.streaming {
            I::fence();
        }
    }
}

/// Copies `bytes` bytes, or does nothing if they are there already. Streamed lines are to be
/// fenced.
///
/// # Safety
/// They are readable and writable; they are the same, or do not overlap; the machine has `I`.
#[inline(always)]
pub(super) unsafe fn put<I: Isa>(to: *mut u8, from: *const u8, bytes: usize, streaming: bool) {
    if to.cast_const() == from {
        return;
    }
    // SAFETY: what is touched lies within `bytes`, which the caller vouches for.
    unsafe {
        let mut at = 0;
        if streaming {
            at = (to.addr().wrapping_neg() % REG).min(bytes);
            I::store_some(to, I::load_some(from, at), at);
            while bytes - at >= REG {
                I::stream(to.add(at), I::load(from.add(at)));
                at += REG;
            }
        } else {
            while bytes - at >= REG {
                I::store(to.add(at), I::load(from.add(at)));
                at += REG;
            }
        }
        I::store_some(to.add(at), I::load_some(from.add(at), bytes - at), bytes - at);
    }
}

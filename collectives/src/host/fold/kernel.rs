//! The loop that folds.
//!
//! Elements are taken a tile at a time. A tile's accumulators stay in the first-level cache from
//! the first source's load to the last destination's store, so each operand in memory is touched
//! once. They lie in the first destination where that can hold them, else on the stack: the sum of
//! two f32 buffers is then one loop, and nothing is moved twice. A destination may be a source:
//! nothing is stored over elements that are still to be read.
//!
//! ```text
//!   from[0] from[1] ... from[n-1]     one tile of each
//!      |       |           |
//!    widen   widen       widen        (and times the factor) contributions only
//!      |       |           |
//!      +--op---+----op-----+          in this order, into the accumulators
//!                          |
//!                 divide, round once  if what is asked for is elements
//!                          |
//!               to[0] .. to[m-1]
//! ```
//!
//! Every arrow is one plain loop over the tile.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::copy::put;
use super::isa::{Isa, Kernel};
use super::numeric::{Combine, Number};
use super::wire::Wire;
use super::{Dest, Source};

/// Bytes of a tile's accumulators. Small, because three such tiles and a line of each operand have
/// to stay in a first-level cache of 32 KiB; measured to be the best of 1, 2, 4 and 8 KiB.
const TILE: usize = 2048;

/// A tile of accumulators or elements.
#[repr(C, align(64))]
struct Tile(MaybeUninit<[u8; TILE]>);

impl Tile {
    #[inline(always)]
    fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    fn at<T>(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// A fold of elements `E` by `C`.
pub(super) struct FoldKernel<'a, E: Wire, C> {
    pub(super) to: &'a [Dest],
    pub(super) from: &'a [Source],
    pub(super) count: usize,
    /// Whether contributions are multiplied by their factors.
    pub(super) scaled: bool,
    /// What the result is divided by, if it is to be elements.
    pub(super) divisor: Option<u32>,
    pub(super) streaming: bool,
    pub(super) combine: PhantomData<(E, C)>,
}

/// Elements `at .. at + count`, no more than fit in a tile.
#[derive(Clone, Copy)]
struct Span {
    at: usize,
    count: usize,
}

impl<E: Wire, C: Combine> Kernel for FoldKernel<'_, E, C> {
    #[inline(always)]
    unsafe fn run<I: Isa>(&self) {
        let most = TILE / size_of::<E::Acc>();
        let mut at = 0;
        while at < self.count {
            let span = Span { at, count: most.min(self.count - at) };
            // SAFETY: the span lies within `count`, whose elements the caller vouches for.
            unsafe { self.tile::<I>(span) };
            at += span.count;
        }
        if self.streaming {
            I::fence();
        }
    }
}

impl<E: Wire, C: Combine> FoldKernel<'_, E, C> {
    #[inline(always)]
    unsafe fn tile<I: Isa>(&self, span: Span) {
        let (mut sums, mut left, mut right) = (Tile::new(), Tile::new(), Tile::new());
        // SAFETY: the span's elements are readable and writable, says the caller, and fit in tiles.
        unsafe {
            let acc = if self.sums_in_place() { self.first_dest(span) } else { sums.at() };
            let mut result = self.read::<I>(&self.from[0], span, &mut left);
            for source in &self.from[1..] {
                let next = self.read::<I>(source, span, &mut right);
                update(span.count, acc, result, |number, k| C::combine(number, at(next, k)));
                result = acc;
            }
            if self.to[0].partial {
                return self.store::<I, E::Acc>(result, span);
            }
            if let Some(divisor) = self.divisor {
                update(span.count, acc, result, |number, _| number.over(divisor));
                result = acc;
            }
            if E::EXACT {
                return self.store::<I, E::Acc>(result, span);
            }
            // No source is read any more, so `right` is free; the result may still lie in `left`.
            let elements = if self.streaming { right.at() } else { self.first_dest(span) };
            self.narrow::<I>(result, elements, span.count);
            self.store::<I, E>(elements, span);
        }
    }

    /// Whether the first destination can hold the accumulators: it takes their type, is not to be
    /// kept out of the cache, and is not a source that is still to be read.
    #[inline(always)]
    fn sums_in_place(&self) -> bool {
        let to = self.to[0];
        let is_read_later = || self.from[1..].iter().any(|source| source.at == to.at);
        !self.streaming && (E::EXACT || to.partial) && !is_read_later()
    }

    #[inline(always)]
    unsafe fn first_dest<T>(&self, span: Span) -> *mut T {
        // SAFETY: the span lies within the destination, says the caller.
        unsafe { self.to[0].at.cast::<T>().add(span.at) }
    }

    /// Whether results come from arithmetic, so that the only NaN among them is the canonical one.
    #[inline(always)]
    fn computes(&self) -> bool {
        self.from.len() > 1 || (self.scaled && !self.from[0].partial)
    }

    /// Where the source's accumulators are: in place, or else in `room`.
    #[inline(always)]
    unsafe fn read<I: Isa>(&self, source: &Source, span: Span, room: &mut Tile) -> *const E::Acc {
        let room = room.at::<E::Acc>();
        // SAFETY: the source has such elements, says the caller.
        unsafe {
            if source.partial || (E::EXACT && !self.scaled) {
                return source.at.cast::<E::Acc>().add(span.at);
            }
            let from = source.at.cast::<E>().add(span.at);
            if self.computes() {
                E::widen_operands::<I>(from, room, span.count);
            } else {
                E::widen_all::<I>(from, room, span.count);
            }
            if self.scaled {
                let scale = source.scale.to_le_bytes();
                // Elements have at most 8 bytes, and any bits are one.
                let factor = scale.as_ptr().cast::<E>().read_unaligned().widen();
                update(span.count, room, room, |number, _| number.times(factor));
            }
        }
        room
    }

    #[inline(always)]
    unsafe fn narrow<I: Isa>(&self, from: *const E::Acc, to: *mut E, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            if self.computes() {
                E::narrow_results::<I>(from, to, count);
            } else {
                E::narrow_all::<I>(from, to, count);
            }
        }
    }

    #[inline(always)]
    unsafe fn store<I: Isa, T>(&self, from: *const T, span: Span) {
        let bytes = span.count * size_of::<T>();
        for dest in self.to {
            // SAFETY: the span is writable there, says the caller.
            unsafe {
                let to = dest.at.cast::<T>().add(span.at);
                put::<I>(to.cast(), from.cast(), bytes, self.streaming);
            }
        }
    }
}

/// Number `k`, at any alignment.
#[inline(always)]
unsafe fn at<A: Number>(numbers: *const A, k: usize) -> A {
    // SAFETY: it is readable, says the caller.
    unsafe { numbers.add(k).read_unaligned() }
}

/// `to[k] = f(from[k], k)`; `from` may be `to`.
///
/// Two loops, because the compiler makes a vector loop of each, and none of one that might be
/// either: it checks whether `to` and `from` overlap, and where they do goes one by one.
#[inline(always)]
unsafe fn update<A: Number>(count: usize, to: *mut A, from: *const A, f: impl Fn(A, usize) -> A) {
    // SAFETY: `count` numbers are readable and writable, says the caller.
    unsafe {
        if from == to {
            for k in 0..count {
                to.add(k).write_unaligned(f(at(to, k), k));
            }
        } else {
            for k in 0..count {
                to.add(k).write_unaligned(f(at(from, k), k));
            }
        }
    }
}

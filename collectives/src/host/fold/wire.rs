//! The twelve element types: how each becomes a number of its accumulation type, and back.
//!
//! Conversions are bit for bit those of the crates `half` and `float8`, NaN payloads included, but
//! are made of arithmetic without branches or tables, so that loops over them become vector code.
//!
//! What the 8-bit floats do with numbers too large for them is `float8`'s (and CUDA's `SATFINITE`)
//! rule: they *saturate*. An f32 above the largest finite number, infinity too, becomes the largest
//! finite number (448 or 57344) of its sign. So an infinity of E5M2 is read as one, and is never
//! written.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use super::isa::{F16_LANES, Isa};
use super::numeric::Number;

/// An element type as it lies in buffers.
pub(super) trait Wire: Copy {
    /// What it is accumulated in.
    type Acc: Number;

    /// Whether elements *are* accumulators: conversions do nothing.
    const EXACT: bool = false;

    /// The accumulator with this value.
    fn widen(self) -> Self::Acc;

    /// The nearest element, ties to even.
    fn narrow(number: Self::Acc) -> Self;

    /// Widens `count` elements.
    ///
    /// # Safety
    /// They are readable at `from` and writable at `to`, which do not overlap; the machine has `I`.
    #[inline(always)]
    unsafe fn widen_all<I: Isa>(from: *const Self, to: *mut Self::Acc, count: usize) {
        for k in 0..count {
            // SAFETY: element k is one of them.
            unsafe { to.add(k).write_unaligned(from.add(k).read_unaligned().widen()) }
        }
    }

    /// Narrows `count` accumulators.
    ///
    /// # Safety
    /// They are readable at `from` and writable at `to`, which do not overlap; the machine has `I`.
    #[inline(always)]
    unsafe fn narrow_all<I: Isa>(from: *const Self::Acc, to: *mut Self, count: usize) {
        for k in 0..count {
            // SAFETY: element k is one of them.
            unsafe { to.add(k).write_unaligned(Self::narrow(from.add(k).read_unaligned())) }
        }
    }

    /// As [`Wire::widen_all`], for arithmetic: since that makes a NaN the canonical one, which NaN
    /// goes in does not matter.
    ///
    /// # Safety
    /// The same.
    #[inline(always)]
    unsafe fn widen_operands<I: Isa>(from: *const Self, to: *mut Self::Acc, count: usize) {
        // SAFETY: the caller's.
        unsafe { Self::widen_all::<I>(from, to, count) }
    }

    /// As [`Wire::narrow_all`], of what arithmetic gave: the only NaN is the canonical one.
    ///
    /// # Safety
    /// The same.
    #[inline(always)]
    unsafe fn narrow_results<I: Isa>(from: *const Self::Acc, to: *mut Self, count: usize) {
        // SAFETY: the caller's.
        unsafe { Self::narrow_all::<I>(from, to, count) }
    }
}

macro_rules! exact {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            type Acc = Self;
            const EXACT: bool = true;

            #[inline(always)]
            fn widen(self) -> Self {
                self
            }

            #[inline(always)]
            fn narrow(number: Self) -> Self {
                number
            }
        }
    )*};
}

exact!(i8, u8, i32, u32, i64, u64, f32, f64);

const INFINITY: u32 = 0x7F80_0000;
const QUIET: u32 = 0x0040_0000;
const SIGN: u32 = 0x8000_0000;

impl Wire for bf16 {
    type Acc = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits()) << 16;
        let nan = bits & !SIGN > INFINITY;
        f32::from_bits(bits | if nan { QUIET } else { 0 })
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        let bits = number.to_bits();
        let rounded = round_off(bits, 16);
        let quiet = (bits | QUIET) >> 16;
        let nan = bits & !SIGN > INFINITY;
        Self::from_bits(if nan { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    unsafe fn widen_operands<I: Isa>(from: *const Self, to: *mut f32, count: usize) {
        for k in 0..count {
            // SAFETY: element k is readable and writable, says the caller.
            unsafe {
                let bits = u32::from(from.add(k).read_unaligned().to_bits());
                to.add(k).write_unaligned(f32::from_bits(bits << 16));
            }
        }
    }

    #[inline(always)]
    unsafe fn narrow_results<I: Isa>(from: *const f32, to: *mut Self, count: usize) {
        for k in 0..count {
            // SAFETY: element k is readable and writable, says the caller.
            unsafe {
                // The canonical NaN is rounded to the canonical NaN, like any number.
                let rounded = round_off(from.add(k).read_unaligned().to_bits(), 16);
                to.add(k).write_unaligned(Self::from_bits(rounded as u16));
            }
        }
    }
}

/// `bits / 2^shift`, to nearest even. On a float's bits, a carry goes into the exponent, as it
/// should.
#[inline(always)]
fn round_off(bits: u32, shift: u32) -> u32 {
    let half = (1 << (shift - 1)) - 1;
    bits.wrapping_add(half + (bits >> shift & 1)) >> shift
}

/// A float of less range than f32: how many bits its fraction has, and its exponent's bias.
#[derive(Clone, Copy)]
struct Layout {
    fraction: u32,
    bias: u32,
}

impl Layout {
    const F16: Self = Self { fraction: 10, bias: 15 };
    const E4M3: Self = Self { fraction: 3, bias: 7 };
    const E5M2: Self = Self { fraction: 2, bias: 15 };

    /// 2^power, for a normal f32.
    #[inline(always)]
    fn power_of_two(power: i32) -> f32 {
        f32::from_bits(((127 + power) as u32) << 23)
    }

    /// The power of two that the last bit of a subnormal stands for.
    #[inline(always)]
    fn least(self) -> i32 {
        1 - self.bias as i32 - self.fraction as i32
    }

    /// The f32 bits of a finite magnitude.
    #[inline(always)]
    fn widen(self, magnitude: u32) -> u32 {
        let normal = (magnitude << (23 - self.fraction)) + ((127 - self.bias) << 23);
        // A multiplication of small whole numbers: no subnormal f32 comes in, so neither the
        // machine's assist for them, nor a thread's flush-to-zero mode.
        let subnormal = magnitude as i32 as f32 * Self::power_of_two(self.least());
        if magnitude >> self.fraction == 0 { subnormal.to_bits() } else { normal }
    }

    /// The nearest magnitude to a positive f32; what is beyond the range goes on counting.
    #[inline(always)]
    fn narrow(self, bits: u32) -> u32 {
        let normal =
            round_off(bits, 23 - self.fraction).wrapping_sub((127 - self.bias) << self.fraction);
        // A number whose last bit is worth what a subnormal's is makes the addition round there.
        let unit = Self::power_of_two(self.least() + 23);
        let subnormal = (f32::from_bits(bits) + unit).to_bits().wrapping_sub(unit.to_bits());
        if bits < (128 - self.bias) << 23 { subnormal } else { normal }
    }
}

impl Wire for f16 {
    type Acc = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7FFF;
        let quiet = if magnitude > 0x7C00 { QUIET } else { 0 };
        let special = INFINITY | magnitude << 13 | quiet;
        let finite = Layout::F16.widen(magnitude);
        let wide = if magnitude < 0x7C00 { finite } else { special };
        f32::from_bits(wide | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        let bits = number.to_bits();
        let magnitude = bits & !SIGN;
        let rounded = Layout::F16.narrow(magnitude).min(0x7C00);
        let nan = 0x7E00 | (magnitude >> 13 & 0x3FF);
        let narrow = if magnitude > INFINITY { nan } else { rounded };
        Self::from_bits((narrow | (bits & SIGN) >> 16) as u16)
    }

    #[inline(always)]
    unsafe fn widen_all<I: Isa>(from: *const Self, to: *mut f32, count: usize) {
        let mut done = 0;
        // SAFETY: elements `done..count` are readable and writable, says the caller.
        unsafe {
            while I::HAS_F16 && count - done >= F16_LANES {
                I::store(to.add(done).cast(), I::widen_f16(from.add(done).cast()));
                done += F16_LANES;
            }
            for k in done..count {
                to.add(k).write_unaligned(from.add(k).read_unaligned().widen());
            }
        }
    }

    #[inline(always)]
    unsafe fn narrow_all<I: Isa>(from: *const f32, to: *mut Self, count: usize) {
        let mut done = 0;
        // SAFETY: elements `done..count` are readable and writable, says the caller.
        unsafe {
            while I::HAS_F16 && count - done >= F16_LANES {
                I::narrow_f16(I::load(from.add(done).cast()), to.add(done).cast());
                done += F16_LANES;
            }
            for k in done..count {
                to.add(k).write_unaligned(Self::narrow(from.add(k).read_unaligned()));
            }
        }
    }
}

/// What `float8` widens every NaN to, of either sign.
const F8_NAN: u32 = 0x7FFF_E000;

impl Wire for F8E4M3 {
    type Acc = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7F;
        let number = Layout::E4M3.widen(magnitude) | (bits & 0x80) << 24;
        f32::from_bits(if magnitude == 0x7F { F8_NAN } else { number })
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        let bits = number.to_bits();
        let magnitude = bits & !SIGN;
        let rounded = Layout::E4M3.narrow(magnitude).min(0x7E);
        let narrow = if magnitude > INFINITY { 0x7F } else { rounded };
        Self::from_bits((narrow | (bits & SIGN) >> 24) as u8)
    }
}

impl Wire for F8E5M2 {
    type Acc = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7F;
        let finite = Layout::E5M2.widen(magnitude);
        let number = if magnitude < 0x7C { finite } else { INFINITY } | (bits & 0x80) << 24;
        f32::from_bits(if magnitude > 0x7C { F8_NAN } else { number })
    }

    #[inline(always)]
    fn narrow(number: f32) -> Self {
        let bits = number.to_bits();
        let magnitude = bits & !SIGN;
        let rounded = Layout::E5M2.narrow(magnitude).min(0x7B);
        let nan = 0x7E | (magnitude >> 21 & 3);
        let narrow = if magnitude > INFINITY { nan } else { rounded };
        Self::from_bits((narrow | (bits & SIGN) >> 24) as u8)
    }
}

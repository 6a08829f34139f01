//! Small floating-point formats by integer arithmetic: f16, bf16, e4m3, e5m2.
//!
//! Everything is correctly rounded, once. Two facts carry the f16 arithmetic: rounding twice is harmless when the wider
//! format has at least 2p+2 bits (f32 for the sum or product of two f16), and a result *rounded to odd* in a wider
//! format can be rounded again without harm (Boldo and Melquiond). NaN results are NVIDIA's canonical 0x7fff.

/// Converts f16 bits to f32; exact.
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let em = u32::from(h & 0x7fff);
    let normal = (em << 13).wrapping_add(112 << 23);
    let special = 0x7f80_0000 | (em << 13);
    let tiny = f32::from_bits((em << 13) + (113 << 23)) - f32::from_bits(113 << 23);
    let magnitude = if em > 0x7c00 {
        0x7fff_ffff
    } else if em == 0x7c00 {
        special
    } else if em < 0x400 {
        tiny.to_bits()
    } else {
        normal
    };
    // A NaN loses its sign and payload, as on the device.
    f32::from_bits(if em > 0x7c00 { magnitude } else { sign | magnitude })
}

/// Rounds f32 to f16, ties to even.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let m = bits & 0x7fff_ffff;
    let tiny = (f32::from_bits(m) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = (m.wrapping_add(0xc800_0fff).wrapping_add((m >> 13) & 1)) >> 13;
    let r = if m >= 0x4780_0000 {
        0x7c00
    } else if m < 0x3880_0000 {
        tiny
    } else {
        normal
    };
    if m > 0x7f80_0000 { 0x7fff } else { sign | r as u16 }
}

/// Rounds f32 to f16 towards zero.
#[inline(always)]
pub fn f32_to_f16_rz(x: f32) -> u16 {
    let r = f32_to_f16(x);
    let back = f16_to_f32(r);
    // One step back towards zero where rounding to nearest went away from it. Infinity steps to the largest finite.
    if back.abs() > x.abs() { r - 1 } else { r }
}

/// Converts bf16 bits to f32; exact.
#[inline(always)]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// Rounds f32 to bf16, ties to even.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let r = (bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1) >> 16) as u16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { r }
}

/// Rounds f32 to bf16 towards zero.
#[inline(always)]
pub fn f32_to_bf16_rz(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { (x.to_bits() >> 16) as u16 }
}

/// Rounds f64 to f32 "to odd": towards zero, then the last bit is set if anything was lost.
#[inline(always)]
pub fn f64_to_f32_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return near;
    }
    let bits = near.to_bits();
    let down = if back.abs() > x.abs() { bits - 1 } else { bits };
    f32::from_bits(down | 1)
}

/// Rounds f64 to f16, once.
#[inline(always)]
pub fn f64_to_f16(x: f64) -> u16 {
    f32_to_f16(f64_to_f32_odd(x))
}

/// Rounds f64 to bf16, once.
#[inline(always)]
pub fn f64_to_bf16(x: f64) -> u16 {
    f32_to_bf16(f64_to_f32_odd(x))
}

/// The sum of two f64, rounded to odd.
#[inline(always)]
fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let bb = s - a;
    let err = (a - (s - bb)) + (b - bb);
    if err == 0.0 || !s.is_finite() || s.to_bits() & 1 == 1 {
        return s;
    }
    let away = (err > 0.0) == (s > 0.0);
    f64::from_bits(if away { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// Converts an integer to f64, rounded to odd, so that a second rounding is harmless.
#[inline(always)]
pub fn i128_to_f64_odd(x: i128) -> f64 {
    let near = x as f64;
    if near as i128 == x {
        return near;
    }
    let bits = near.to_bits();
    let down = if (near as i128).unsigned_abs() > x.unsigned_abs() { bits - 1 } else { bits };
    f64::from_bits(down | 1)
}

macro_rules! half_arithmetic {
    ($add:ident, $sub:ident, $mul:ident, $fma:ident, $min:ident, $max:ident, $wide:ident, $narrow:ident, $narrow64:ident) => {
        /// Sum, rounded once.
        #[inline(always)]
        pub fn $add(a: u16, b: u16) -> u16 {
            $narrow($wide(a) + $wide(b))
        }
        /// Difference, rounded once.
        #[inline(always)]
        pub fn $sub(a: u16, b: u16) -> u16 {
            $narrow($wide(a) - $wide(b))
        }
        /// Product, rounded once.
        #[inline(always)]
        pub fn $mul(a: u16, b: u16) -> u16 {
            $narrow64(f64::from($wide(a)) * f64::from($wide(b)))
        }
        /// a * b + c, rounded once.
        #[inline(always)]
        pub fn $fma(a: u16, b: u16, c: u16) -> u16 {
            $narrow64(add_odd(f64::from($wide(a)) * f64::from($wide(b)), f64::from($wide(c))))
        }
        /// The smaller one; a number wins over NaN, -0 is below +0.
        #[inline(always)]
        pub fn $min(a: u16, b: u16) -> u16 {
            half_min(a, b, $wide(a).is_nan(), $wide(b).is_nan())
        }
        /// The larger one; a number wins over NaN, +0 is above -0.
        #[inline(always)]
        pub fn $max(a: u16, b: u16) -> u16 {
            half_max(a, b, $wide(a).is_nan(), $wide(b).is_nan())
        }
    };
}
half_arithmetic!(
    f16_add, f16_sub, f16_mul, f16_fma, f16_min, f16_max, f16_to_f32, f32_to_f16, f64_to_f16
);
half_arithmetic!(
    bf16_add,
    bf16_sub,
    bf16_mul,
    bf16_fma,
    bf16_min,
    bf16_max,
    bf16_to_f32,
    f32_to_bf16,
    f64_to_bf16
);

/// Maps sign-magnitude bits to an integer of the same order.
#[inline(always)]
fn ordered(h: u16) -> i16 {
    let h = h as i16;
    h ^ (((h >> 15) as u16) >> 1) as i16
}

#[inline(always)]
fn half_min(a: u16, b: u16, a_nan: bool, b_nan: bool) -> u16 {
    let r = if ordered(a) < ordered(b) { a } else { b };
    pick_number(r, a, b, a_nan, b_nan)
}

#[inline(always)]
fn half_max(a: u16, b: u16, a_nan: bool, b_nan: bool) -> u16 {
    let r = if ordered(a) > ordered(b) { a } else { b };
    pick_number(r, a, b, a_nan, b_nan)
}

#[inline(always)]
fn pick_number(r: u16, a: u16, b: u16, a_nan: bool, b_nan: bool) -> u16 {
    match (a_nan, b_nan) {
        (false, false) => r,
        (true, false) => b,
        (false, true) => a,
        (true, true) => 0x7fff,
    }
}

/// PTX `min.f32`: a number wins over NaN, -0 is below +0.
#[inline(always)]
pub fn min_f32(a: f32, b: f32) -> f32 {
    let (x, y) = (ordered32(a), ordered32(b));
    let r = if x < y { a } else { b };
    if a.is_nan() {
        canon32(b)
    } else if b.is_nan() {
        a
    } else {
        r
    }
}

/// PTX `max.f32`: a number wins over NaN, +0 is above -0.
#[inline(always)]
pub fn max_f32(a: f32, b: f32) -> f32 {
    let (x, y) = (ordered32(a), ordered32(b));
    let r = if x > y { a } else { b };
    if a.is_nan() {
        canon32(b)
    } else if b.is_nan() {
        a
    } else {
        r
    }
}

#[inline(always)]
fn ordered32(x: f32) -> i32 {
    let b = x.to_bits() as i32;
    b ^ (((b >> 31) as u32) >> 1) as i32
}

/// f64 forms of the two above.
#[inline(always)]
pub fn min_f64(a: f64, b: f64) -> f64 {
    if a == b { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

/// The larger f64; a number wins over NaN.
#[inline(always)]
pub fn max_f64(a: f64, b: f64) -> f64 {
    if a == b { if a.is_sign_negative() { b } else { a } } else { a.max(b) }
}

/// The NaN that the device's f32 arithmetic produces.
#[inline(always)]
pub fn canon32(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

/// An 8-bit format: bits of exponent and mantissa, and what the top codes mean.
#[derive(Clone, Copy)]
pub struct Fp8 {
    mantissa: u32,
    bias: i32,
    /// The code of the largest finite value.
    max: u8,
    infinities: bool,
}

/// e4m3: no infinities, one NaN, largest value 448.
pub const E4M3: Fp8 = Fp8 { mantissa: 3, bias: 7, max: 0x7e, infinities: false };
/// e5m2: infinities and NaNs, largest value 57344.
pub const E5M2: Fp8 = Fp8 { mantissa: 2, bias: 15, max: 0x7b, infinities: true };

impl Fp8 {
    /// The exact value of a code, as f16 bits (every fp8 value is an f16 value).
    pub fn to_f16(self, code: u8) -> u16 {
        let sign = u16::from(code & 0x80) << 8;
        let m = code & 0x7f;
        if !self.infinities && m == 0x7f || self.infinities && m > 0x7c {
            return 0x7fff;
        }
        if self.infinities {
            return sign | u16::from(m) << 8;
        }
        let (e, frac) = (m >> 3, f64::from(m & 7));
        let value = if e == 0 {
            frac / 512.0
        } else {
            (1.0 + frac / 8.0) * f64::from(i32::from(e) - 7).exp2()
        };
        sign | f64_to_f16(value)
    }

    /// Rounds to nearest even; what is too large becomes the largest finite value (`satfinite`).
    pub fn from_f64_satfinite(self, x: f64) -> u8 {
        if x.is_nan() {
            return 0x7f;
        }
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let a = x.abs();
        if a == 0.0 {
            return sign;
        }
        let exponent = ((a.to_bits() >> 52) as i32 - 1023).max(1 - self.bias);
        let ulp = f64::from(exponent - self.mantissa as i32).exp2();
        let steps = (a / ulp).round_ties_even();
        if steps > 1e6 {
            return sign | self.max;
        }
        // In units of the last place, codes of one binade follow those of the one below.
        let code = i64::from(exponent - (1 - self.bias)) * (1 << self.mantissa) + steps as i64;
        sign | code.min(i64::from(self.max)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_agree_with_the_half_crate() {
        for h in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(h), half::f16::from_bits(h).to_f32());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{h:#x}");
            if !ours.is_nan() {
                assert_eq!(f32_to_f16(ours), h);
                assert_eq!(
                    f32_to_bf16(bf16_to_f32(h)),
                    if bf16_to_f32(h).is_nan() { 0x7fff } else { h }
                );
            }
        }
        let mut bits = 0u32;
        while let Some(next) = bits.checked_add(0x1373) {
            bits = next;
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert_eq!((f32_to_f16(x), f32_to_bf16(x)), (0x7fff, 0x7fff));
            } else {
                assert_eq!(f32_to_f16(x), half::f16::from_f32(x).to_bits(), "{bits:#x}");
                assert_eq!(f32_to_bf16(x), half::bf16::from_f32(x).to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn fp8_agrees_with_the_float8_crate() {
        for code in 0..=255u8 {
            let ours = f16_to_f32(E4M3.to_f16(code));
            let theirs = float8::F8E4M3::from_bits(code).to_f32();
            assert!(
                ours == theirs || ours.is_nan() && theirs.is_nan(),
                "e4m3 {code:#x}: {ours} {theirs}"
            );
            let ours = f16_to_f32(E5M2.to_f16(code));
            let theirs = float8::F8E5M2::from_bits(code).to_f32();
            assert!(
                ours == theirs || ours.is_nan() && theirs.is_nan(),
                "e5m2 {code:#x}: {ours} {theirs}"
            );
        }
        assert_eq!(E4M3.from_f64_satfinite(1e9), 0x7e);
        assert_eq!(E5M2.from_f64_satfinite(f64::NEG_INFINITY), 0xfb);
        assert_eq!(E4M3.from_f64_satfinite(464.0), 0x7e); // the tie above 448 would be NaN's code
    }

    #[test]
    fn fma_rounds_once() {
        // 1.5 * 1.0078125 = 1.51171875 is a tie between the bf16 values 1.5078125 and 1.515625 (even);
        // an addend far below f64's precision decides it.
        let (tie, ulp, tiny) = (f32_to_bf16(1.5), f32_to_bf16(1.0078125), f32_to_bf16(1e-30));
        assert_eq!(bf16_to_f32(bf16_fma(tie, ulp, 0)), 1.515625);
        assert_eq!(bf16_to_f32(bf16_fma(tie, ulp, tiny)), 1.515625);
        assert_eq!(bf16_to_f32(bf16_fma(tie, ulp, tiny | 0x8000)), 1.5078125);
    }
}

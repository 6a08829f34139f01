//! `cvt`: one table from (destination, source, rounding) to a function of lanes.

use std::marker::PhantomData;

use super::alu::{F1, F2, Lane, Map1, Map2, Sel, h1, h2, towards};
use super::warp::{Inst, LANES, Warp};
use super::{Ctl, Exec, pick};
use crate::isa::{Spec, W};
use crate::num::*;
use crate::ptx::Ty;

/// A lane that holds an integer of some type in its low bits.
pub trait Word: Lane {
    /// The bits, zero-extended.
    fn bits(self) -> u64;
    /// The low bits of `x`.
    fn from_bits(x: u64) -> Self;
}
macro_rules! words { ($($t:ty)*) => { $(impl Word for $t {
    #[inline(always)]
    fn bits(self) -> u64 { self.into() }
    #[inline(always)]
    fn from_bits(x: u64) -> Self { x as $t }
})* } }
words!(u16 u32 u64);

/// Sign- or zero-extends the low bits (64 - shift of them).
#[inline(always)]
fn extend(x: u64, shift: u32, signed: bool) -> u64 {
    if signed { ((x << shift) as i64 >> shift) as u64 } else { x << shift >> shift }
}

/// Integer to integer: `imm` holds the shift of the source type, `aux` that of the destination; bit 8 says signed, bit 9
/// saturating.
struct Resize<S, D>(PhantomData<(S, D)>);
impl<S: Word, D: Word> Exec for Resize<S, D> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        let a = unsafe { w.get::<S>(i.a) };
        let (from, to) = (i.imm as u32, i.aux);
        let (sf, st) = (from & 63, to & 63);
        let (from_signed, to_signed, saturate) = (from & 256 != 0, to & 256 != 0, to & 512 != 0);
        let mut r = [D::default(); LANES];
        for l in 0..LANES {
            let mut x = extend(a[l].bits(), sf, from_signed);
            if saturate {
                x = clamp(x, from_signed, st, to_signed);
            }
            r[l] = D::from_bits(extend(x, st, to_signed));
        }
        // SAFETY: as above.
        unsafe { w.put(i.d, r) };
        Ctl::Next
    }
}

fn clamp(x: u64, x_signed: bool, shift: u32, signed: bool) -> u64 {
    let bits = 64 - shift;
    let x = if x_signed { i128::from(x as i64) } else { i128::from(x) };
    let (lo, hi) = if signed {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    x.clamp(lo, hi) as u64
}

/// A conversion and the constants that its handler wants in `imm` and `aux`.
pub struct Conversion {
    /// Handler and classes.
    pub sel: Sel,
    /// For [`Inst::imm`].
    pub imm: i64,
    /// For [`Inst::aux`].
    pub aux: u32,
}

impl From<Sel> for Conversion {
    fn from(sel: Sel) -> Self {
        Conversion { sel, imm: 0, aux: 0 }
    }
}

fn is_int(t: Ty) -> bool {
    matches!(t, Ty::U8 | Ty::U16 | Ty::U32 | Ty::U64 | Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
}

/// Finds the handler of a `cvt`. Registers may be wider than their type: `d` and `s` are their real classes.
pub fn select(spec: &Spec<'_>, d: Option<W>, s: Option<W>) -> Result<Option<Conversion>, String> {
    let (Some(to), Some(from)) = (spec.ty(0), spec.ty(1)) else {
        return Ok(None);
    };
    spec.only("rn rz rm rp rni rzi rmi rpi ftz sat satfinite relu")?;
    let natural = |t| W::of(t).ok_or("no conversion of this width");
    let (wd, ws) = (d.unwrap_or(natural(to)?), s.unwrap_or(natural(from)?));
    if is_int(to) && is_int(from) {
        return Ok(Some(resize(spec, to, from, wd, ws)?));
    }
    if is_int(from) && ws != natural(from)? || is_int(to) && wd != natural(to)? {
        return Err("register wider than its type".into());
    }
    let sel = match (is_int(to), is_int(from)) {
        (false, true) => from_int(spec, to, from)?,
        (true, false) => to_int(spec, to, from)?,
        _ => between_floats(spec, to, from)?,
    };
    Ok(sel.map(Into::into))
}

fn resize(spec: &Spec<'_>, to: Ty, from: Ty, wd: W, ws: W) -> Result<Conversion, String> {
    spec.only("sat")?;
    let run = match (ws, wd) {
        (W::H, W::H) => pick::<Resize<u16, u16>>(),
        (W::H, W::S) => pick::<Resize<u16, u32>>(),
        (W::H, W::D) => pick::<Resize<u16, u64>>(),
        (W::S, W::H) => pick::<Resize<u32, u16>>(),
        (W::S, W::S) => pick::<Resize<u32, u32>>(),
        (W::S, W::D) => pick::<Resize<u32, u64>>(),
        (W::D, W::H) => pick::<Resize<u64, u16>>(),
        (W::D, W::S) => pick::<Resize<u64, u32>>(),
        (W::D, W::D) => pick::<Resize<u64, u64>>(),
        _ => return Err("a predicate is no operand of cvt".into()),
    };
    let code = |t: Ty| (64 - t.bytes() * 8) | if t.is_signed() { 256 } else { 0 };
    let aux = code(to) | if spec.has("sat") { 512 } else { 0 };
    Ok(Conversion { sel: Sel { run, d: wd, s: vec![ws] }, imm: code(from).into(), aux })
}

/// One arm per source type; `$x` is the value as i128.
macro_rules! from_ints {
    ($from:expr, $r:ty, |$x:ident| $e:expr) => {
        match $from {
            Ty::U8 => h1!(u16 => $r, |a| { let $x = i128::from(a as u8); $e }),
            Ty::S8 => h1!(u16 => $r, |a| { let $x = i128::from(a as i8); $e }),
            Ty::U16 => h1!(u16 => $r, |a| { let $x = i128::from(a); $e }),
            Ty::S16 => h1!(i16 => $r, |a| { let $x = i128::from(a); $e }),
            Ty::U32 => h1!(u32 => $r, |a| { let $x = i128::from(a); $e }),
            Ty::S32 => h1!(i32 => $r, |a| { let $x = i128::from(a); $e }),
            Ty::U64 => h1!(u64 => $r, |a| { let $x = i128::from(a); $e }),
            Ty::S64 => h1!(i64 => $r, |a| { let $x = i128::from(a); $e }),
            _ => return Ok(None),
        }
    };
}

fn from_int(spec: &Spec<'_>, to: Ty, from: Ty) -> Result<Option<Sel>, String> {
    spec.only("rn rz rm rp")?;
    Ok(Some(match (to, spec.mods.first().copied()) {
        (Ty::F32, Some("rn")) => match from {
            Ty::S32 => h1!(i32 => f32, |a| a as f32),
            Ty::U32 => h1!(u32 => f32, |a| a as f32),
            Ty::S64 => h1!(i64 => f32, |a| a as f32),
            Ty::U64 => h1!(u64 => f32, |a| a as f32),
            _ => from_ints!(from, f32, |x| x as f32),
        },
        (Ty::F32, Some("rz")) => from_ints!(from, f32, |x| towards(0, i128_to_f64_odd(x))),
        (Ty::F32, Some("rm")) => from_ints!(from, f32, |x| towards(-1, i128_to_f64_odd(x))),
        (Ty::F32, Some("rp")) => from_ints!(from, f32, |x| towards(1, i128_to_f64_odd(x))),
        (Ty::F64, Some("rn")) => from_ints!(from, f64, |x| x as f64),
        (Ty::F16, Some("rn")) => from_ints!(from, u16, |x| f64_to_f16(i128_to_f64_odd(x))),
        (Ty::BF16, Some("rn")) => from_ints!(from, u16, |x| f64_to_bf16(i128_to_f64_odd(x))),
        _ => return Err("this rounding to this type is not supported".into()),
    }))
}

/// Float to integer: out of range saturates, NaN is 0.
macro_rules! to_ints {
    ($to:expr, $a:ty, $v:expr, $round:expr) => {
        match $to {
            Ty::S8 => h1!($a => u16, |x| ($round($v(x)) as i8) as u16),
            Ty::U8 => h1!($a => u16, |x| ($round($v(x)) as u8) as u16),
            Ty::S16 => h1!($a => i16, |x| $round($v(x)) as i16),
            Ty::U16 => h1!($a => u16, |x| $round($v(x)) as u16),
            Ty::S32 => h1!($a => i32, |x| $round($v(x)) as i32),
            Ty::U32 => h1!($a => u32, |x| $round($v(x)) as u32),
            Ty::S64 => h1!($a => i64, |x| $round($v(x)) as i64),
            Ty::U64 => h1!($a => u64, |x| $round($v(x)) as u64),
            _ => return Ok(None),
        }
    };
}
macro_rules! to_ints_rounded {
    ($spec:expr, $to:expr, $a:ty, $v:expr) => {
        match $spec.mods.first().copied() {
            Some("rzi") => to_ints!($to, $a, $v, |x| x),
            Some("rni") => to_ints!($to, $a, $v, f64::round_ties_even),
            Some("rmi") => to_ints!($to, $a, $v, f64::floor),
            Some("rpi") => to_ints!($to, $a, $v, f64::ceil),
            _ => return Err("float to integer needs .rni, .rzi, .rmi or .rpi".into()),
        }
    };
}

fn to_int(spec: &Spec<'_>, to: Ty, from: Ty) -> Result<Option<Sel>, String> {
    spec.only("rni rzi rmi rpi ftz sat")?;
    // .ftz changes nothing here except the sign of a denormal for .rmi and .rpi.
    if spec.has("ftz") && (spec.has("rmi") || spec.has("rpi")) {
        return Err(".ftz with this rounding is not supported".into());
    }
    Ok(Some(match from {
        Ty::F32 => to_ints_rounded!(spec, to, f32, |x: f32| f64::from(x)),
        Ty::F64 => to_ints_rounded!(spec, to, f64, |x: f64| x),
        Ty::F16 => to_ints_rounded!(spec, to, u16, |x: u16| f64::from(f16_to_f32(x))),
        Ty::BF16 => to_ints_rounded!(spec, to, u16, |x: u16| f64::from(bf16_to_f32(x))),
        _ => return Ok(None),
    }))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}
#[inline(always)]
fn two(hi: u16, lo: u16) -> u32 {
    u32::from(hi) << 16 | u32::from(lo)
}
#[inline(always)]
fn two8(f: Fp8, hi: f64, lo: f64) -> u16 {
    u16::from(f.from_f64_satfinite(hi)) << 8 | u16::from(f.from_f64_satfinite(lo))
}
#[inline(always)]
fn halves8(f: Fp8, x: u32) -> u16 {
    two8(f, f16_to_f32((x >> 16) as u16).into(), f16_to_f32(x as u16).into())
}
#[inline(always)]
fn widen8(f: Fp8, x: u16) -> u32 {
    two(f.to_f16((x >> 8) as u8), f.to_f16(x as u8))
}

fn between_floats(spec: &Spec<'_>, to: Ty, from: Ty) -> Result<Option<Sel>, String> {
    use Ty::*;
    // The modifiers in one word, in the order PTX wants them.
    let how = spec.mods.join(".");
    let sel = match (to, from, how.as_str()) {
        (F32, F16, "" | "ftz") => h1!(u16 => f32, |a| f16_to_f32(a)),
        (F32, BF16, "" | "ftz") => h1!(u16 => f32, |a| canon32(bf16_to_f32(a))),
        (F64, F32, "" | "ftz") => h1!(f32 => f64, |a| f64::from(a)),
        (F64, F16, "") => h1!(u16 => f64, |a| f64::from(f16_to_f32(a))),
        (F64, BF16, "") => h1!(u16 => f64, |a| f64::from(bf16_to_f32(a))),
        (F32, F64, "rn") => h1!(f64 => f32, |a| canon32(a as f32)),
        (F32, F64, "rz") => h1!(f64 => f32, |a| towards(0, a)),
        (F32, F64, "rm") => h1!(f64 => f32, |a| towards(-1, a)),
        (F32, F64, "rp") => h1!(f64 => f32, |a| towards(1, a)),
        (F16, F32, "rn") => h1!(f32 => u16, |a| f32_to_f16(a)),
        (F16, F32, "rz") => h1!(f32 => u16, |a| f32_to_f16_rz(a)),
        (F16, F32, "rn.relu") => h1!(f32 => u16, |a| f32_to_f16(relu(a))),
        (BF16, F32, "rn") => h1!(f32 => u16, |a| f32_to_bf16(a)),
        (BF16, F32, "rz") => h1!(f32 => u16, |a| f32_to_bf16_rz(a)),
        (BF16, F32, "rn.relu") => h1!(f32 => u16, |a| f32_to_bf16(relu(a))),
        (F16, F64, "rn") => h1!(f64 => u16, |a| f64_to_f16(a)),
        (BF16, F64, "rn") => h1!(f64 => u16, |a| f64_to_bf16(a)),
        (BF16, F16, "rn") => h1!(u16 => u16, |a| f32_to_bf16(f16_to_f32(a))),
        (F16, BF16, "rn") => h1!(u16 => u16, |a| f32_to_f16(bf16_to_f32(a))),
        (F32, F32, "rni") => h1!(f32 => f32, |a| canon32(a.round_ties_even())),
        (F32, F32, "rzi") => h1!(f32 => f32, |a| canon32(a.trunc())),
        (F32, F32, "rmi") => h1!(f32 => f32, |a| canon32(a.floor())),
        (F32, F32, "rpi") => h1!(f32 => f32, |a| canon32(a.ceil())),
        (F32, F32, "sat") => {
            h1!(f32 => f32, |a| if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) + 0.0 })
        }
        (F64, F64, "rni") => h1!(f64 => f64, |a| a.round_ties_even()),
        (F64, F64, "rzi") => h1!(f64 => f64, |a| a.trunc()),
        (F64, F64, "rmi") => h1!(f64 => f64, |a| a.floor()),
        (F64, F64, "rpi") => h1!(f64 => f64, |a| a.ceil()),
        (F16x2, F32, "rn") => h2!(f32, f32 => u32, |a, b| two(f32_to_f16(a), f32_to_f16(b))),
        (F16x2, F32, "rz") => h2!(f32, f32 => u32, |a, b| two(f32_to_f16_rz(a), f32_to_f16_rz(b))),
        (F16x2, F32, "rn.relu") => {
            h2!(f32, f32 => u32, |a, b| two(f32_to_f16(relu(a)), f32_to_f16(relu(b))))
        }
        (BF16x2, F32, "rn") => h2!(f32, f32 => u32, |a, b| two(f32_to_bf16(a), f32_to_bf16(b))),
        (BF16x2, F32, "rz") => {
            h2!(f32, f32 => u32, |a, b| two(f32_to_bf16_rz(a), f32_to_bf16_rz(b)))
        }
        (BF16x2, F32, "rn.relu") => {
            h2!(f32, f32 => u32, |a, b| two(f32_to_bf16(relu(a)), f32_to_bf16(relu(b))))
        }
        (E4M3x2, F32, "rn.satfinite") => {
            h2!(f32, f32 => u16, |a, b| two8(crate::num::E4M3, a.into(), b.into()))
        }
        (E5M2x2, F32, "rn.satfinite") => {
            h2!(f32, f32 => u16, |a, b| two8(crate::num::E5M2, a.into(), b.into()))
        }
        (E4M3x2, F16x2, "rn.satfinite") => h1!(u32 => u16, |a| halves8(crate::num::E4M3, a)),
        (E5M2x2, F16x2, "rn.satfinite") => h1!(u32 => u16, |a| halves8(crate::num::E5M2, a)),
        (F16x2, E4M3x2, "rn") => h1!(u16 => u32, |a| widen8(crate::num::E4M3, a)),
        (F16x2, E5M2x2, "rn") => h1!(u16 => u32, |a| widen8(crate::num::E5M2, a)),
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

//! Arithmetic, logic, comparison: one table from (operation, type, modifiers) to a function of lanes.

use std::marker::PhantomData;

use super::warp::{Inst, LANES, Warp};
use super::{Ctl, Exec, Handler, bits, compare, pick};
use crate::isa::{Spec, W};
use crate::num::*;
use crate::ptx::Ty;

/// A handler and the register classes of its operands.
pub struct Sel {
    /// What executes it.
    pub run: Handler,
    /// Class of the destination.
    pub d: W,
    /// Classes of the sources, in order.
    pub s: Vec<W>,
}

/// The class of a lane type.
pub trait Lane: Copy + Default + 'static {
    /// Its register class.
    const W: W;
}
macro_rules! lanes { ($($t:ty: $w:ident)*) => { $(impl Lane for $t { const W: W = W::$w; })* } }
lanes!(u16: H i16: H u32: S i32: S f32: S u64: D i64: D f64: D);

/// A function of one, two or three lanes.
pub trait F1<A, R> {
    /// Computes a lane.
    fn f(a: A) -> R;
}
/// See [`F1`].
pub trait F2<A, B, R> {
    /// Computes a lane.
    fn f(a: A, b: B) -> R;
}
/// See [`F1`].
pub trait F3<A, B, C, R> {
    /// Computes a lane.
    fn f(a: A, b: B, c: C) -> R;
}

/// Applies an [`F1`] to all lanes.
pub struct Map1<F, A, R>(PhantomData<(F, A, R)>);
/// Applies an [`F2`] to all lanes.
pub struct Map2<F, A, B, R>(PhantomData<(F, A, B, R)>);
/// Applies an [`F3`] to all lanes.
pub struct Map3<F, A, B, C, R>(PhantomData<(F, A, B, C, R)>);

impl<F: F1<A, R>, A: Lane, R: Lane> Exec for Map1<F, A, R> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        let a = unsafe { w.get::<A>(i.a) };
        let mut r = [R::default(); LANES];
        for l in 0..LANES {
            r[l] = F::f(a[l]);
        }
        // SAFETY: as above.
        unsafe { w.put(i.d, r) };
        Ctl::Next
    }
}
impl<F: F2<A, B, R>, A: Lane, B: Lane, R: Lane> Exec for Map2<F, A, B, R> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        let (a, b) = unsafe { (w.get::<A>(i.a), w.get::<B>(i.b)) };
        let mut r = [R::default(); LANES];
        for l in 0..LANES {
            r[l] = F::f(a[l], b[l]);
        }
        // SAFETY: as above.
        unsafe { w.put(i.d, r) };
        Ctl::Next
    }
}
impl<F: F3<A, B, C, R>, A: Lane, B: Lane, C: Lane, R: Lane> Exec for Map3<F, A, B, C, R> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        let (a, b, c) = unsafe { (w.get::<A>(i.a), w.get::<B>(i.b), w.get::<C>(i.c)) };
        let mut r = [R::default(); LANES];
        for l in 0..LANES {
            r[l] = F::f(a[l], b[l], c[l]);
        }
        // SAFETY: as above.
        unsafe { w.put(i.d, r) };
        Ctl::Next
    }
}
/// `Inst::e` or `Inst::c` when there is no such operand.
pub const NONE: u32 = u32::MAX;

macro_rules! h1 {
    ($a:ty => $r:ty, |$x:ident| $e:expr) => {{
        struct F;
        impl F1<$a, $r> for F {
            #[inline(always)]
            fn f($x: $a) -> $r {
                $e
            }
        }
        Sel { run: pick::<Map1<F, $a, $r>>(), d: <$r>::W, s: vec![<$a>::W] }
    }};
}
macro_rules! h2 {
    ($a:ty, $b:ty => $r:ty, |$x:ident, $y:ident| $e:expr) => {{
        struct F;
        impl F2<$a, $b, $r> for F {
            #[inline(always)]
            fn f($x: $a, $y: $b) -> $r { $e }
        }
        Sel { run: pick::<Map2<F, $a, $b, $r>>(), d: <$r>::W, s: vec![<$a>::W, <$b>::W] }
    }};
    ($t:ty, |$x:ident, $y:ident| $e:expr) => { h2!($t, $t => $t, |$x, $y| $e) };
}
macro_rules! h3 {
    ($a:ty, $b:ty, $c:ty => $r:ty, |$x:ident, $y:ident, $z:ident| $e:expr) => {{
        struct F;
        impl F3<$a, $b, $c, $r> for F {
            #[inline(always)]
            fn f($x: $a, $y: $b, $z: $c) -> $r { $e }
        }
        Sel { run: pick::<Map3<F, $a, $b, $c, $r>>(), d: <$r>::W, s: vec![<$a>::W, <$b>::W, <$c>::W] }
    }};
    ($t:ty, |$x:ident, $y:ident, $z:ident| $e:expr) => { h3!($t, $t, $t => $t, |$x, $y, $z| $e) };
}
/// One entry for all integer types of the same behaviour: `ints!(ty; signed, |a, b| ..)` picks i16/i32/i64 or u16/u32/u64.
macro_rules! by_width {
    ($ty:expr; |$($x:ident),+| $e:expr; $h:ident $s:ident $d:ident $m:ident) => {
        match W::of($ty) {
            Some(W::H) => $m!($h, |$($x),+| $e),
            Some(W::S) => $m!($s, |$($x),+| $e),
            Some(W::D) => $m!($d, |$($x),+| $e),
            _ => return Ok(None),
        }
    };
}
macro_rules! unsigned2 { ($ty:expr, |$x:ident, $y:ident| $e:expr) => { by_width!($ty; |$x, $y| $e; u16 u32 u64 h2) }; }
macro_rules! signed2 { ($ty:expr, |$x:ident, $y:ident| $e:expr) => { by_width!($ty; |$x, $y| $e; i16 i32 i64 h2) }; }
macro_rules! either2 {
    ($ty:expr, |$x:ident, $y:ident| $e:expr) => {
        if $ty.is_signed() { signed2!($ty, |$x, $y| $e) } else { unsigned2!($ty, |$x, $y| $e) }
    };
}
macro_rules! same1 { ($t:ident, |$x:ident| $e:expr) => { h1!($t => $t, |$x| $e) }; }
macro_rules! signed1 { ($ty:expr, |$x:ident| $e:expr) => { by_width!($ty; |$x| $e; i16 i32 i64 same1) }; }
macro_rules! unsigned1 { ($ty:expr, |$x:ident| $e:expr) => { by_width!($ty; |$x| $e; u16 u32 u64 same1) }; }

pub(super) use {by_width, h1, h2, h3, same1, unsigned1, unsigned2};

/// Both halves of a packed pair.
#[inline(always)]
fn pair2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}
#[inline(always)]
fn pair3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let hi = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(f(a as u16, b as u16, c as u16)) | u32::from(hi) << 16
}
/// Denormals become zero of the same sign.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}
#[inline(always)]
fn sat(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 }
}

/// f32 arithmetic in its variants: plain, `.ftz`, `.sat`, both, and directed rounding through f64 rounded to odd.
macro_rules! f32_2 {
    ($s:expr, |$x:ident, $y:ident| $e:expr, $wide:expr) => {
        match ($s.has("ftz"), $s.has("sat"), directed($s)) {
            (false, false, None) => h2!(f32, |$x, $y| canon32($e)),
            (true, false, None) => h2!(f32, |a, b| {
                let ($x, $y) = (flush(a), flush(b));
                flush(canon32($e))
            }),
            (false, true, None) => h2!(f32, |$x, $y| sat($e)),
            (true, true, None) => h2!(f32, |a, b| {
                let ($x, $y) = (flush(a), flush(b));
                sat(flush($e))
            }),
            (false, false, Some("rz")) => {
                h2!(f32, |a, b| towards(0, $wide(f64::from(a), f64::from(b))))
            }
            (false, false, Some("rm")) => {
                h2!(f32, |a, b| towards(-1, $wide(f64::from(a), f64::from(b))))
            }
            (false, false, Some("rp")) => {
                h2!(f32, |a, b| towards(1, $wide(f64::from(a), f64::from(b))))
            }
            _ => return Err("this rounding with .ftz or .sat is not supported".into()),
        }
    };
}

fn directed<'a>(s: &Spec<'a>) -> Option<&'a str> {
    s.mods.iter().copied().find(|m| matches!(*m, "rz" | "rm" | "rp"))
}

/// Rounds an f64 that is exact or rounded to odd to f32 in the given direction (0: towards zero).
pub(super) fn towards(dir: i32, x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return canon32(near);
    }
    let up = dir > 0 || dir == 0 && x < 0.0;
    match (up, back > x) {
        (true, true) | (false, false) => near,
        (true, false) => near.next_up(),
        (false, true) => near.next_down(),
    }
}

/// The sum of two f32 in f64, rounded to odd where it is not exact.
fn sum_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let bb = s - a;
    let err = (a - (s - bb)) + (b - bb);
    if err == 0.0 || !s.is_finite() || s.to_bits() & 1 == 1 {
        s
    } else if (err > 0.0) == (s > 0.0) {
        f64::from_bits(s.to_bits() + 1)
    } else {
        f64::from_bits(s.to_bits() - 1)
    }
}

/// `min.NaN` and `max.NaN`: one operand that is NaN makes the result NaN.
fn nan_wins(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    use Ty::*;
    let flushed = s.has("ftz") && ty == F32;
    if s.has("ftz") && !flushed {
        return Err("this modifier is not supported for this type".into());
    }
    let sel = match (s.base, ty) {
        ("min", F32) if flushed => h2!(f32, |a, b| nan32(flush(a), flush(b), min_f32)),
        ("max", F32) if flushed => h2!(f32, |a, b| nan32(flush(a), flush(b), max_f32)),
        ("min", F32) => h2!(f32, |a, b| nan32(a, b, min_f32)),
        ("max", F32) => h2!(f32, |a, b| nan32(a, b, max_f32)),
        ("min", F16) => h2!(u16, |a, b| nan16(a, b, F16_INF, f16_min)),
        ("max", F16) => h2!(u16, |a, b| nan16(a, b, F16_INF, f16_max)),
        ("min", BF16) => h2!(u16, |a, b| nan16(a, b, BF16_INF, bf16_min)),
        ("max", BF16) => h2!(u16, |a, b| nan16(a, b, BF16_INF, bf16_max)),
        ("min", F16x2) => {
            h2!(u32, |a, b| pair2(a, b, |a, b| nan16(a, b, F16_INF, f16_min)))
        }
        ("max", F16x2) => {
            h2!(u32, |a, b| pair2(a, b, |a, b| nan16(a, b, F16_INF, f16_max)))
        }
        ("min", BF16x2) => {
            h2!(u32, |a, b| pair2(a, b, |a, b| nan16(a, b, BF16_INF, bf16_min)))
        }
        ("max", BF16x2) => {
            h2!(u32, |a, b| pair2(a, b, |a, b| nan16(a, b, BF16_INF, bf16_max)))
        }
        _ => return Err("this modifier is not supported for this type".into()),
    };
    Ok(Some(sel))
}

const F16_INF: u16 = 0x7c00;
const BF16_INF: u16 = 0x7f80;

#[inline(always)]
fn nan32(a: f32, b: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    if a.is_nan() || b.is_nan() { canon32(f32::NAN) } else { f(a, b) }
}

/// Of 16-bit floats whose infinity has these bits. The NaN is 0x7fff for both.
#[inline(always)]
fn nan16(a: u16, b: u16, infinity: u16, f: impl Fn(u16, u16) -> u16) -> u16 {
    let nan = |x: u16| x & 0x7fff > infinity;
    if nan(a) || nan(b) { 0x7fff } else { f(a, b) }
}

/// Finds the handler of an arithmetic, logic or comparison opcode. `Ok(None)`: no such opcode.
pub fn select(s: &Spec<'_>) -> Result<Option<Sel>, String> {
    let Some(ty) = s.ty(0) else { return Ok(None) };
    let table = match s.base {
        "add" | "sub" | "mul" | "min" | "max" | "div" | "rem" => binary(s, ty)?,
        "mad" | "fma" | "sad" | "mad24" | "mul24" => multiply_add(s, ty)?,
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" => {
            bits::logic(s, ty)?
        }
        "bfe" | "bfi" | "bfind" | "brev" | "clz" | "popc" | "bmsk" => bits::bits(s, ty)?,
        "neg" | "abs" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh"
        | "copysign" => unary(s, ty)?,
        "setp" => compare::compare(s, ty)?,
        _ => None,
    };
    Ok(table)
}

fn binary(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    use Ty::*;
    let float = matches!(ty, F32 | F64 | F16 | F16x2 | BF16 | BF16x2);
    match (s.base, float) {
        ("add" | "sub" | "mul", true) => s.only("rn rz rm rp ftz sat")?,
        ("min" | "max", true) => s.only("ftz NaN")?,
        ("div", true) => s.only("rn ftz approx full")?,
        ("mul", false) => s.only("lo hi wide")?,
        ("add" | "sub", false) => s.only("sat")?,
        _ => s.only("")?,
    }
    if s.has("NaN") {
        return nan_wins(s, ty);
    }
    if matches!(ty, F16 | F16x2 | BF16 | BF16x2)
        && (s.has("sat") || s.has("ftz") || directed(s).is_some())
    {
        return Err("this modifier is not supported for this type".into());
    }
    if ty == F64 && directed(s).is_some() {
        return Err("f64 arithmetic is rounded to nearest only".into());
    }
    let sel = match (s.base, ty) {
        ("add", F32) => f32_2!(s, |a, b| a + b, sum_odd),
        ("sub", F32) => f32_2!(s, |a, b| a - b, |a: f64, b: f64| sum_odd(a, -b)),
        ("mul", F32) => f32_2!(s, |a, b| a * b, |a: f64, b: f64| a * b),
        ("div", F32) => f32_2!(s, |a, b| a / b, |a: f64, b: f64| a / b),
        ("min", F32) if s.has("ftz") => h2!(f32, |a, b| min_f32(flush(a), flush(b))),
        ("max", F32) if s.has("ftz") => h2!(f32, |a, b| max_f32(flush(a), flush(b))),
        ("min", F32) => h2!(f32, |a, b| min_f32(a, b)),
        ("max", F32) => h2!(f32, |a, b| max_f32(a, b)),
        ("add", F64) => h2!(f64, |a, b| a + b),
        ("sub", F64) => h2!(f64, |a, b| a - b),
        ("mul", F64) => h2!(f64, |a, b| a * b),
        ("div", F64) => h2!(f64, |a, b| a / b),
        ("min", F64) => h2!(f64, |a, b| min_f64(a, b)),
        ("max", F64) => h2!(f64, |a, b| max_f64(a, b)),
        ("add", F16) => h2!(u16, |a, b| f16_add(a, b)),
        ("sub", F16) => h2!(u16, |a, b| f16_sub(a, b)),
        ("mul", F16) => h2!(u16, |a, b| f16_mul(a, b)),
        ("min", F16) => h2!(u16, |a, b| f16_min(a, b)),
        ("max", F16) => h2!(u16, |a, b| f16_max(a, b)),
        ("add", BF16) => h2!(u16, |a, b| bf16_add(a, b)),
        ("sub", BF16) => h2!(u16, |a, b| bf16_sub(a, b)),
        ("mul", BF16) => h2!(u16, |a, b| bf16_mul(a, b)),
        ("min", BF16) => h2!(u16, |a, b| bf16_min(a, b)),
        ("max", BF16) => h2!(u16, |a, b| bf16_max(a, b)),
        ("add", F16x2) => h2!(u32, |a, b| pair2(a, b, f16_add)),
        ("sub", F16x2) => h2!(u32, |a, b| pair2(a, b, f16_sub)),
        ("mul", F16x2) => h2!(u32, |a, b| pair2(a, b, f16_mul)),
        ("min", F16x2) => h2!(u32, |a, b| pair2(a, b, f16_min)),
        ("max", F16x2) => h2!(u32, |a, b| pair2(a, b, f16_max)),
        ("add", BF16x2) => h2!(u32, |a, b| pair2(a, b, bf16_add)),
        ("sub", BF16x2) => h2!(u32, |a, b| pair2(a, b, bf16_sub)),
        ("mul", BF16x2) => h2!(u32, |a, b| pair2(a, b, bf16_mul)),
        ("min", BF16x2) => h2!(u32, |a, b| pair2(a, b, bf16_min)),
        ("max", BF16x2) => h2!(u32, |a, b| pair2(a, b, bf16_max)),
        ("add", U16x2 | S16x2) => h2!(u32, |a, b| pair2(a, b, u16::wrapping_add)),
        ("min", U16x2) => h2!(u32, |a, b| pair2(a, b, u16::min)),
        ("max", U16x2) => h2!(u32, |a, b| pair2(a, b, u16::max)),
        ("min", S16x2) => h2!(u32, |a, b| pair2(a, b, |x, y| (x as i16).min(y as i16) as u16)),
        ("max", S16x2) => h2!(u32, |a, b| pair2(a, b, |x, y| (x as i16).max(y as i16) as u16)),
        ("add", S32) if s.has("sat") => h2!(i32, |a, b| a.saturating_add(b)),
        ("sub", S32) if s.has("sat") => h2!(i32, |a, b| a.saturating_sub(b)),
        (_, U8 | S8 | B8 | B16 | B32 | B64 | B128 | Pred) => return Ok(None),
        (_, _) if s.has("sat") => return Err(".sat is for .s32".into()),
        ("add", _) => unsigned2!(ty, |a, b| a.wrapping_add(b)),
        ("sub", _) => unsigned2!(ty, |a, b| a.wrapping_sub(b)),
        ("mul", _) => multiply(s, ty)?,
        ("min", _) => either2!(ty, |a, b| a.min(b)),
        ("max", _) => either2!(ty, |a, b| a.max(b)),
        // Division by zero is unspecified in PTX; all ones is what current devices give.
        ("div", _) => either2!(ty, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }),
        ("rem", _) => either2!(ty, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

fn multiply(s: &Spec<'_>, ty: Ty) -> Result<Sel, String> {
    Ok(match (s.mods.first().copied(), ty) {
        (Some("lo"), Ty::U16 | Ty::S16) => h2!(u16, |a, b| a.wrapping_mul(b)),
        (Some("lo"), Ty::U32 | Ty::S32) => h2!(u32, |a, b| a.wrapping_mul(b)),
        (Some("lo"), Ty::U64 | Ty::S64) => h2!(u64, |a, b| a.wrapping_mul(b)),
        (Some("hi"), Ty::U16) => h2!(u16, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        (Some("hi"), Ty::S16) => h2!(i16, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        (Some("hi"), Ty::U32) => h2!(u32, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        (Some("hi"), Ty::S32) => h2!(i32, |a, b| ((i64::from(a) * i64::from(b)) >> 32) as i32),
        (Some("hi"), Ty::U64) => h2!(u64, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        (Some("hi"), Ty::S64) => h2!(i64, |a, b| ((i128::from(a) * i128::from(b)) >> 64) as i64),
        (Some("wide"), Ty::U16) => h2!(u16, u16 => u32, |a, b| u32::from(a) * u32::from(b)),
        (Some("wide"), Ty::S16) => h2!(i16, i16 => i32, |a, b| i32::from(a) * i32::from(b)),
        (Some("wide"), Ty::U32) => h2!(u32, u32 => u64, |a, b| u64::from(a) * u64::from(b)),
        (Some("wide"), Ty::S32) => h2!(i32, i32 => i64, |a, b| i64::from(a) * i64::from(b)),
        _ => return Err("integer mul needs .lo, .hi or .wide".into()),
    })
}

fn multiply_add(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    use Ty::*;
    s.only("rn rz rm rp ftz sat lo hi wide relu")?;
    let part = s.mods.iter().copied().find(|m| matches!(*m, "lo" | "hi" | "wide"));
    let fused = matches!(s.base, "fma" | "mad");
    if fused && (directed(s).is_some() || s.has("relu"))
        || ty != F32 && (s.has("sat") || s.has("ftz"))
    {
        return Err("this modifier is not supported here".into());
    }
    let sel = match (s.base, part, ty) {
        ("fma" | "mad", None, F32) => match (s.has("ftz"), s.has("sat")) {
            (false, false) => h3!(f32, |a, b, c| canon32(a.mul_add(b, c))),
            (true, false) => {
                h3!(f32, |a, b, c| flush(canon32(flush(a).mul_add(flush(b), flush(c)))))
            }
            (false, true) => h3!(f32, |a, b, c| sat(a.mul_add(b, c))),
            (true, true) => h3!(f32, |a, b, c| sat(flush(flush(a).mul_add(flush(b), flush(c))))),
        },
        ("fma" | "mad", None, F64) => h3!(f64, |a, b, c| a.mul_add(b, c)),
        ("fma", None, F16) => h3!(u16, |a, b, c| f16_fma(a, b, c)),
        ("fma", None, BF16) => h3!(u16, |a, b, c| bf16_fma(a, b, c)),
        ("fma", None, F16x2) => h3!(u32, |a, b, c| pair3(a, b, c, f16_fma)),
        ("fma", None, BF16x2) => h3!(u32, |a, b, c| pair3(a, b, c, bf16_fma)),
        ("mad", Some("lo"), U16 | S16) => h3!(u16, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", Some("lo"), U32 | S32) => h3!(u32, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", Some("lo"), U64 | S64) => h3!(u64, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad", Some("hi"), U32) => {
            h3!(u32, |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
        }
        ("mad", Some("hi"), S32) => {
            h3!(i32, |a, b, c| (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c))
        }
        ("mad", Some("wide"), U16) => {
            h3!(u16, u16, u32 => u32, |a, b, c| (u32::from(a) * u32::from(b)).wrapping_add(c))
        }
        ("mad", Some("wide"), S16) => {
            h3!(i16, i16, i32 => i32, |a, b, c| (i32::from(a) * i32::from(b)).wrapping_add(c))
        }
        ("mad", Some("wide"), U32) => {
            h3!(u32, u32, u64 => u64, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c))
        }
        ("mad", Some("wide"), S32) => {
            h3!(i32, i32, i64 => i64, |a, b, c| (i64::from(a) * i64::from(b)).wrapping_add(c))
        }
        ("sad", None, U32) => h3!(u32, |a, b, c| a.abs_diff(b).wrapping_add(c)),
        ("sad", None, S32) => h3!(i32, i32, u32 => u32, |a, b, c| a.abs_diff(b).wrapping_add(c)),
        ("mul24", Some("lo"), U32) => h2!(u32, |a, b| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
        ("mad24", Some("lo"), U32) => {
            h3!(u32, |a, b, c| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c))
        }
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

fn unary(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    use Ty::*;
    s.only("rn approx ftz full")?;
    if s.has("ftz") && ty != F32 {
        return Err(".ftz is for .f32 here".into());
    }
    let sel = match (s.base, ty) {
        ("neg", F32) => h1!(f32 => f32, |a| -a),
        ("neg", F64) => h1!(f64 => f64, |a| -a),
        ("neg", F16 | BF16) => h1!(u16 => u16, |a| a ^ 0x8000),
        ("neg", F16x2 | BF16x2) => h1!(u32 => u32, |a| a ^ 0x8000_8000),
        ("abs", F32) => h1!(f32 => f32, |a| a.abs()),
        ("abs", F64) => h1!(f64 => f64, |a| a.abs()),
        ("abs", F16 | BF16) => h1!(u16 => u16, |a| a & 0x7fff),
        ("abs", F16x2 | BF16x2) => h1!(u32 => u32, |a| a & 0x7fff_7fff),
        ("neg", S16 | S32 | S64) => signed1!(ty, |a| a.wrapping_neg()),
        ("abs", S16 | S32 | S64) => signed1!(ty, |a| a.wrapping_abs()),
        ("rcp", F32) if s.has("ftz") => h1!(f32 => f32, |a| flush(canon32(1.0 / flush(a)))),
        ("sqrt", F32) if s.has("ftz") => h1!(f32 => f32, |a| flush(canon32(flush(a).sqrt()))),
        ("rcp", F32) => h1!(f32 => f32, |a| canon32(1.0 / a)),
        ("sqrt", F32) => h1!(f32 => f32, |a| canon32(a.sqrt())),
        ("rcp", F64) => h1!(f64 => f64, |a| 1.0 / a),
        ("sqrt", F64) => h1!(f64 => f64, |a| a.sqrt()),
        // Approximations: the device's are within a few units of the last place of these.
        ("rsqrt", F32) if s.has("approx") => {
            h1!(f32 => f32, |a| canon32((1.0 / f64::from(a).sqrt()) as f32))
        }
        ("rsqrt", F64) if s.has("approx") => h1!(f64 => f64, |a| 1.0 / a.sqrt()),
        ("ex2", F32) if s.has("approx") => h1!(f32 => f32, |a| canon32(f64::from(a).exp2() as f32)),
        ("lg2", F32) if s.has("approx") => h1!(f32 => f32, |a| canon32(f64::from(a).log2() as f32)),
        ("sin", F32) if s.has("approx") => h1!(f32 => f32, |a| canon32(f64::from(a).sin() as f32)),
        ("cos", F32) if s.has("approx") => h1!(f32 => f32, |a| canon32(f64::from(a).cos() as f32)),
        ("tanh", F32) if s.has("approx") => {
            h1!(f32 => f32, |a| canon32(f64::from(a).tanh() as f32))
        }
        ("copysign", F32) => h2!(f32, |a, b| b.copysign(a)),
        ("copysign", F64) => h2!(f64, |a, b| b.copysign(a)),
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

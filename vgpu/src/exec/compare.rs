//! `setp`.

use std::marker::PhantomData;

use super::alu::{F2, Lane, NONE, Sel, by_width, flush};
use super::lanes::mask_where;
use super::warp::{Inst, Warp};
use super::{Ctl, Exec, pick};
use crate::isa::{Spec, W};
use crate::num::{bf16_to_f32, f16_to_f32};
use crate::ptx::Ty;

/// How `setp` combines its result with a predicate, in `Inst::aux`.
pub const COMBINE: [&str; 4] = ["", "and", "or", "xor"];

macro_rules! hp {
    ($t:ty, |$x:ident, $y:ident| $e:expr) => {{
        struct F;
        impl F2<$t, $t, bool> for F {
            #[inline(always)]
            fn f($x: $t, $y: $t) -> bool {
                $e
            }
        }
        Sel { run: pick::<Compare<F, $t>>(), d: W::P, s: vec![<$t>::W, <$t>::W] }
    }};
}

macro_rules! unsigned_p { ($ty:expr, |$x:ident, $y:ident| $e:expr) => { by_width!($ty; |$x, $y| $e; u16 u32 u64 hp) }; }

macro_rules! signed_p { ($ty:expr, |$x:ident, $y:ident| $e:expr) => { by_width!($ty; |$x, $y| $e; i16 i32 i64 hp) }; }

macro_rules! either_p {
    ($ty:expr, |$x:ident, $y:ident| $e:expr) => {
        if $ty.is_signed() { signed_p!($ty, |$x, $y| $e) } else { unsigned_p!($ty, |$x, $y| $e) }
    };
}

/// The fourteen comparisons of floats; `$v` turns a lane into an f32 or f64. Unordered ones are true for NaN.
macro_rules! float_p {
    ($cmp:expr, $t:ty, $v:expr) => {
        match $cmp {
            "eq" => hp!($t, |a, b| $v(a) == $v(b)),
            "ne" => hp!($t, |a, b| $v(a) < $v(b) || $v(a) > $v(b)),
            "lt" => hp!($t, |a, b| $v(a) < $v(b)),
            "le" => hp!($t, |a, b| $v(a) <= $v(b)),
            "gt" => hp!($t, |a, b| $v(a) > $v(b)),
            "ge" => hp!($t, |a, b| $v(a) >= $v(b)),
            "equ" => hp!($t, |a, b| !($v(a) < $v(b) || $v(a) > $v(b))),
            "neu" => hp!($t, |a, b| $v(a) != $v(b)),
            "ltu" => hp!($t, |a, b| !($v(a) >= $v(b))),
            "leu" => hp!($t, |a, b| !($v(a) > $v(b))),
            "gtu" => hp!($t, |a, b| !($v(a) <= $v(b))),
            "geu" => hp!($t, |a, b| !($v(a) < $v(b))),
            "num" => hp!($t, |a, b| !$v(a).is_nan() && !$v(b).is_nan()),
            "nan" => hp!($t, |a, b| $v(a).is_nan() || $v(b).is_nan()),
            _ => return Err(format!("comparison `.{}`", $cmp)),
        }
    };
}

#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "the unordered comparisons are just that")]
pub(super) fn compare(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    use Ty::*;
    let Some(cmp) = s.mods.first().copied() else {
        return Ok(None);
    };
    if s.mods[1..].iter().any(|m| !matches!(*m, "and" | "or" | "xor" | "ftz"))
        || ty != F32 && s.has("ftz")
    {
        return Err("only .and, .or, .xor and .ftz (with .f32) can follow the comparison".into());
    }
    if s.ty(1).is_some() {
        return Err("packed comparisons are not supported".into());
    }
    let sel = match (cmp, ty) {
        (_, F32) if s.has("ftz") => float_p!(cmp, f32, flush),
        (_, F32) => float_p!(cmp, f32, |x: f32| x),
        (_, F64) => float_p!(cmp, f64, |x: f64| x),
        (_, F16) => float_p!(cmp, u16, f16_to_f32),
        (_, BF16) => float_p!(cmp, u16, bf16_to_f32),
        ("eq", _) => unsigned_p!(ty, |a, b| a == b),
        ("ne", _) => unsigned_p!(ty, |a, b| a != b),
        ("lt", _) => either_p!(ty, |a, b| a < b),
        ("le", _) => either_p!(ty, |a, b| a <= b),
        ("gt", _) => either_p!(ty, |a, b| a > b),
        ("ge", _) => either_p!(ty, |a, b| a >= b),
        ("lo", _) => unsigned_p!(ty, |a, b| a < b),
        ("ls", _) => unsigned_p!(ty, |a, b| a <= b),
        ("hi", _) => unsigned_p!(ty, |a, b| a > b),
        ("hs", _) => unsigned_p!(ty, |a, b| a >= b),
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

/// Compares lanes; optionally combines with a predicate.
pub struct Compare<F, A>(PhantomData<(F, A)>);

impl<F: F2<A, A, bool>, A: Lane> Exec for Compare<F, A> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        let (a, b) = unsafe { (w.get::<A>(i.a), w.get::<A>(i.b)) };
        let m = mask_where(|l| F::f(a[l], b[l]));
        // SAFETY: `c` and `e` are predicates where they are not NONE.
        unsafe {
            let (mut p, mut q) = (m, !m);
            if i.aux & 3 != 0 {
                let c = w.pred(i.c) ^ if i.aux & 4 != 0 { !0 } else { 0 };
                let f = |x: u32| match i.aux & 3 {
                    1 => x & c,
                    2 => x | c,
                    _ => x ^ c,
                };
                (p, q) = (f(m), f(!m));
            }
            if i.d != NONE {
                w.put_pred(i.d, p);
            }
            if i.e != NONE {
                w.put_pred(i.e, q);
            }
        }
        Ctl::Next
    }
}

//! Logic, shifts and bit fields.

use std::marker::PhantomData;

use super::alu::{
    F1, F2, F3, Lane, Map1, Map2, Map3, Sel, by_width, h1, h2, h3, same1, unsigned1, unsigned2,
};
use super::warp::{Inst, LANES, Warp};
use super::{Ctl, Exec, pick};
use crate::isa::{Spec, W};
use crate::ptx::Ty;

pub(super) fn logic(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    s.only("l r wrap clamp f4e b4e rc8 ecl ecr rc16")?;
    let modes = s.mods.first().copied();
    let sel = match (s.base, modes, ty) {
        (_, _, Ty::Pred) => return Ok(None), // masks: see `sync`
        ("and", None, _) => unsigned2!(ty, |a, b| a & b),
        ("or", None, _) => unsigned2!(ty, |a, b| a | b),
        ("xor", None, _) => unsigned2!(ty, |a, b| a ^ b),
        ("not", None, _) => unsigned1!(ty, |a| !a),
        ("cnot", None, _) => unsigned1!(ty, |a| u8::from(a == 0).into()),
        ("shl", None, Ty::B16) => h2!(u16, u32 => u16, |a, n| if n < 16 { a << n } else { 0 }),
        ("shl", None, Ty::B32) => h2!(u32, u32 => u32, |a, n| if n < 32 { a << n } else { 0 }),
        ("shl", None, Ty::B64) => h2!(u64, u32 => u64, |a, n| if n < 64 { a << n } else { 0 }),
        ("shr", None, Ty::U16 | Ty::B16) => {
            h2!(u16, u32 => u16, |a, n| if n < 16 { a >> n } else { 0 })
        }
        ("shr", None, Ty::U32 | Ty::B32) => {
            h2!(u32, u32 => u32, |a, n| if n < 32 { a >> n } else { 0 })
        }
        ("shr", None, Ty::U64 | Ty::B64) => {
            h2!(u64, u32 => u64, |a, n| if n < 64 { a >> n } else { 0 })
        }
        ("shr", None, Ty::S16) => h2!(i16, u32 => i16, |a, n| a >> n.min(15)),
        ("shr", None, Ty::S32) => h2!(i32, u32 => i32, |a, n| a >> n.min(31)),
        ("shr", None, Ty::S64) => h2!(i64, u32 => i64, |a, n| a >> n.min(63)),
        ("shf", Some("l"), Ty::B32) if s.has("wrap") => {
            h3!(u32, |lo, hi, n| funnel(lo, hi, 32 - (n & 31)))
        }
        ("shf", Some("l"), Ty::B32) if s.has("clamp") => {
            h3!(u32, |lo, hi, n| funnel(lo, hi, 32 - n.min(32)))
        }
        ("shf", Some("r"), Ty::B32) if s.has("wrap") => {
            h3!(u32, |lo, hi, n| funnel(lo, hi, n & 31))
        }
        ("shf", Some("r"), Ty::B32) if s.has("clamp") => {
            h3!(u32, |lo, hi, n| funnel(lo, hi, n.min(32)))
        }
        ("prmt", None, Ty::B32) => h3!(u32, |a, b, c| permute(a, b, c)),
        ("prmt", Some("f4e"), Ty::B32) => {
            h3!(u32, |a, b, c| permute(a, b, 0x3210 + 0x1111 * (c & 3)))
        }
        ("prmt", Some("b4e"), Ty::B32) => h3!(u32, |a, b, c| permute(a, b, B4E[(c & 3) as usize])),
        ("prmt", Some("rc8"), Ty::B32) => h3!(u32, |a, b, c| permute(a, b, 0x1111 * (c & 3))),
        ("prmt", Some("rc16"), Ty::B32) => {
            h3!(u32, |a, b, c| permute(a, b, if c & 1 == 0 { 0x1010 } else { 0x3232 }))
        }
        ("prmt", Some("ecl"), Ty::B32) => h3!(u32, |a, b, c| permute(a, b, ECL[(c & 3) as usize])),
        ("prmt", Some("ecr"), Ty::B32) => h3!(u32, |a, b, c| permute(a, b, ECR[(c & 3) as usize])),
        ("lop3", None, Ty::B32) => {
            Sel { run: pick::<Lop3>(), d: W::S, s: vec![W::S, W::S, W::S, W::S] }
        }
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

const B4E: [u32; 4] = [0x5670, 0x6701, 0x7012, 0x0123];
const ECL: [u32; 4] = [0x3210, 0x3211, 0x3222, 0x3333];
const ECR: [u32; 4] = [0x0000, 0x1110, 0x2210, 0x3210];

/// Bits `n..n+32` of hi:lo, n up to 32.
#[inline(always)]
fn funnel(lo: u32, hi: u32, n: u32) -> u32 {
    ((u64::from(hi) << 32 | u64::from(lo)) >> n) as u32
}

#[inline(always)]
fn permute(a: u32, b: u32, sel: u32) -> u32 {
    let all = u64::from(b) << 32 | u64::from(a);
    let mut r = 0;
    for n in 0..4 {
        let s = sel >> (4 * n);
        let mut byte = (all >> ((s & 7) * 8)) as u8;
        if s & 8 != 0 {
            byte = ((byte as i8) >> 7) as u8;
        }
        r |= u32::from(byte) << (8 * n);
    }
    r
}

/// `lop3`: the table is a constant, kept in `imm`.
pub struct Lop3;

impl Exec for Lop3 {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises four 32-bit registers.
        let (a, b, c) = unsafe { (w.get::<u32>(i.a), w.get::<u32>(i.b), w.get::<u32>(i.c)) };
        // SAFETY: `e` is the register that the table's constant is in.
        let t = unsafe { w.lane::<u32>(i.e, 0) };
        let m: [u32; 8] = std::array::from_fn(|n| if t >> n & 1 == 1 { !0 } else { 0 });
        let mut r = [0u32; LANES];
        for l in 0..LANES {
            let (x, y, z) = (a[l], b[l], c[l]);
            r[l] = m[0] & !x & !y & !z
                | m[1] & !x & !y & z
                | m[2] & !x & y & !z
                | m[3] & !x & y & z
                | m[4] & x & !y & !z
                | m[5] & x & !y & z
                | m[6] & x & y & !z
                | m[7] & x & y & z;
        }
        // SAFETY: as above.
        unsafe { w.put(i.d, r) };
        Ctl::Next
    }
}

pub(super) fn bits(s: &Spec<'_>, ty: Ty) -> Result<Option<Sel>, String> {
    s.only("shiftamt")?;
    let sel = match (s.base, ty) {
        ("clz", Ty::B32) => h1!(u32 => u32, |a| a.leading_zeros()),
        ("clz", Ty::B64) => h1!(u64 => u32, |a| a.leading_zeros()),
        ("popc", Ty::B32) => h1!(u32 => u32, |a| a.count_ones()),
        ("popc", Ty::B64) => h1!(u64 => u32, |a| a.count_ones()),
        ("brev", Ty::B32) => h1!(u32 => u32, |a| a.reverse_bits()),
        ("brev", Ty::B64) => h1!(u64 => u64, |a| a.reverse_bits()),
        ("bfind", Ty::U32) if s.mods.is_empty() => {
            h1!(u32 => u32, |a| 31u32.wrapping_sub(a.leading_zeros()))
        }
        ("bfind", Ty::U64) if s.mods.is_empty() => {
            h1!(u64 => u32, |a| 63u32.wrapping_sub(a.leading_zeros()))
        }
        ("bfind", Ty::S32) if s.mods.is_empty() => {
            h1!(i32 => u32, |a| 31u32.wrapping_sub((a ^ (a >> 31)).leading_zeros()))
        }
        ("bfind", Ty::U32) => h1!(u32 => u32, |a| if a == 0 { !0 } else { a.leading_zeros() }),
        ("bfe", Ty::U32) => h3!(u32, |a, p, n| extract(a.into(), p, n, 32, false) as u32),
        ("bfe", Ty::S32) => h3!(u32, |a, p, n| extract(a.into(), p, n, 32, true) as u32),
        ("bfe", Ty::U64) => h3!(u64, u32, u32 => u64, |a, p, n| extract(a, p, n, 64, false)),
        ("bfe", Ty::S64) => h3!(u64, u32, u32 => u64, |a, p, n| extract(a, p, n, 64, true)),
        ("bfi", Ty::B32) => {
            Sel { run: pick::<Bfi<u32>>(), d: W::S, s: vec![W::S, W::S, W::S, W::S] }
        }
        ("bfi", Ty::B64) => {
            Sel { run: pick::<Bfi<u64>>(), d: W::D, s: vec![W::D, W::D, W::S, W::S] }
        }
        _ => return Ok(None),
    };
    Ok(Some(sel))
}

/// `n` bits of `a` from bit `p`; bits beyond the top are zero, or the top bit if signed.
#[inline(always)]
fn extract(a: u64, p: u32, n: u32, width: u32, signed: bool) -> u64 {
    let (p, n) = (p & 255, n & 255);
    if n == 0 {
        return 0;
    }
    let top = (p + n - 1).min(width - 1);
    let negative = signed && a >> top & 1 == 1;
    let mut r = if p < width { a >> p } else { 0 };
    let have = width.saturating_sub(p).min(n);
    if have < 64 {
        r &= (1u64 << have) - 1;
        if negative {
            r |= !0 << have;
        }
    }
    r
}

/// `bfi`: `a` into `b` at bit `c`, `e` bits.
pub struct Bfi<T>(PhantomData<T>);

macro_rules! bfi {
    ($t:ty) => {
        impl Exec for Bfi<$t> {
            #[inline(always)]
            unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
                // SAFETY: the caller promises registers of these types.
                let (a, b, p, n) = unsafe {
                    (w.get::<$t>(i.a), w.get::<$t>(i.b), w.get::<u32>(i.c), w.get::<u32>(i.e))
                };
                let mut r = b;
                for l in 0..LANES {
                    let (p, n) = (p[l] & 255, n[l] & 255);
                    if p < <$t>::BITS && n > 0 {
                        let field = if n >= <$t>::BITS { !0 } else { (1 << n) - 1 };
                        r[l] = b[l] & !(field << p) | (a[l] & field) << p;
                    }
                }
                // SAFETY: as above.
                unsafe { w.put(i.d, r) };
                Ctl::Next
            }
        }
    };
}

bfi!(u32);
bfi!(u64);

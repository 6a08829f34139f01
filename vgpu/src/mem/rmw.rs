//! Read-modify-write: the function of each operation, and how it is done atomically on host memory.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::num;
use crate::ptx::Ty;

/// What an `atom`, `red` or multimem reduction computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs, reason = "each variant is the PTX operation of the same name")]
pub enum RmwOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

impl RmwOp {
    /// Reads a suffix without its dot.
    pub fn parse(s: &str) -> Option<RmwOp> {
        Some(match s {
            "add" => RmwOp::Add,
            "min" => RmwOp::Min,
            "max" => RmwOp::Max,
            "inc" => RmwOp::Inc,
            "dec" => RmwOp::Dec,
            "and" => RmwOp::And,
            "or" => RmwOp::Or,
            "xor" => RmwOp::Xor,
            "exch" => RmwOp::Exch,
            "cas" => RmwOp::Cas,
            _ => return None,
        })
    }

    /// True if the operation exists for the type.
    pub fn takes(self, ty: Ty) -> bool {
        use RmwOp::*;
        let integer = matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64);
        let half = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2);
        match self {
            Add => integer || half || matches!(ty, Ty::F32 | Ty::F64),
            Min | Max => integer || half,
            Inc | Dec => ty == Ty::U32,
            And | Or | Xor => matches!(ty, Ty::B32 | Ty::B64),
            Exch => {
                matches!(ty, Ty::B32 | Ty::B64 | Ty::U32 | Ty::U64 | Ty::S32 | Ty::S64 | Ty::F32)
            }
            Cas => {
                matches!(ty, Ty::B16 | Ty::B32 | Ty::B64 | Ty::U32 | Ty::U64 | Ty::S32 | Ty::S64)
            }
        }
    }
}

fn pair(old: u64, val: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    let lo = f(old as u16, val as u16);
    let hi = f((old >> 16) as u16, (val >> 16) as u16);
    u64::from(lo) | u64::from(hi) << 16
}

/// The new value. `cmp` is used by `cas` alone (`val` is stored when the old value equals it).
pub fn combine(op: RmwOp, ty: Ty, old: u64, val: u64, cmp: u64) -> u64 {
    use RmwOp::*;
    let mask = if ty.bytes() >= 8 { u64::MAX } else { (1 << (ty.bytes() * 8)) - 1 };
    let f = |b: u64| f32::from_bits(b as u32);
    let new = match (op, ty) {
        (Exch, _) => val,
        (Cas, _) => {
            if old & mask == cmp & mask {
                val
            } else {
                old
            }
        }
        (Add, Ty::F32) => u64::from(num::canon32(f(old) + f(val)).to_bits()),
        (Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(val)).to_bits(),
        (Min, Ty::F32) => u64::from(num::min_f32(f(old), f(val)).to_bits()),
        (Max, Ty::F32) => u64::from(num::max_f32(f(old), f(val)).to_bits()),
        (Add, Ty::F16) => u64::from(num::f16_add(old as u16, val as u16)),
        (Min, Ty::F16) => u64::from(num::f16_min(old as u16, val as u16)),
        (Max, Ty::F16) => u64::from(num::f16_max(old as u16, val as u16)),
        (Add, Ty::BF16) => u64::from(num::bf16_add(old as u16, val as u16)),
        (Min, Ty::BF16) => u64::from(num::bf16_min(old as u16, val as u16)),
        (Max, Ty::BF16) => u64::from(num::bf16_max(old as u16, val as u16)),
        (Add, Ty::F16x2) => pair(old, val, num::f16_add),
        (Min, Ty::F16x2) => pair(old, val, num::f16_min),
        (Max, Ty::F16x2) => pair(old, val, num::f16_max),
        (Add, Ty::BF16x2) => pair(old, val, num::bf16_add),
        (Min, Ty::BF16x2) => pair(old, val, num::bf16_min),
        (Max, Ty::BF16x2) => pair(old, val, num::bf16_max),
        (Add, _) => old.wrapping_add(val),
        (And, _) => old & val,
        (Or, _) => old | val,
        (Xor, _) => old ^ val,
        (Inc, _) => {
            if (old as u32) >= val as u32 {
                0
            } else {
                old + 1
            }
        }
        (Dec, _) => {
            if old as u32 == 0 || old as u32 > val as u32 {
                val
            } else {
                old - 1
            }
        }
        (Min, Ty::S32) => (old as i32).min(val as i32) as u64,
        (Max, Ty::S32) => (old as i32).max(val as i32) as u64,
        (Min, Ty::S64) => (old as i64).min(val as i64) as u64,
        (Max, Ty::S64) => (old as i64).max(val as i64) as u64,
        (Min, _) => (old & mask).min(val & mask),
        (Max, _) => (old & mask).max(val & mask),
    };
    new & mask
}

/// Does the operation atomically and returns the old value.
///
/// # Safety
/// `p` must be readable, writable and aligned for the type, and touched by atomic or volatile accesses alone.
pub unsafe fn rmw(p: *mut u8, op: RmwOp, ty: Ty, val: u64, cmp: u64) -> u64 {
    // Sequentially consistent: at least as strong as any order that PTX can ask for.
    const SC: Ordering = Ordering::SeqCst;
    // SAFETY: the caller gives a pointer that is good for the type's size.
    unsafe {
        match (op, ty.bytes()) {
            (RmwOp::Add, 4) if !matches!(ty, Ty::F32 | Ty::F16x2 | Ty::BF16x2) => {
                u64::from((*p.cast::<AtomicU32>()).fetch_add(val as u32, SC))
            }
            (RmwOp::Add, 8) if ty != Ty::F64 => (*p.cast::<AtomicU64>()).fetch_add(val, SC),
            (RmwOp::Exch, 4) => u64::from((*p.cast::<AtomicU32>()).swap(val as u32, SC)),
            (RmwOp::Exch, 8) => (*p.cast::<AtomicU64>()).swap(val, SC),
            (_, 1) => {
                let r = (*p.cast::<AtomicU8>())
                    .fetch_update(SC, SC, |old| Some(combine(op, ty, old.into(), val, cmp) as u8));
                u64::from(r.unwrap_or_else(|old| old))
            }
            (_, 2) => {
                let r = (*p.cast::<AtomicU16>())
                    .fetch_update(SC, SC, |old| Some(combine(op, ty, old.into(), val, cmp) as u16));
                u64::from(r.unwrap_or_else(|old| old))
            }
            (_, 4) => {
                let r = (*p.cast::<AtomicU32>())
                    .fetch_update(SC, SC, |old| Some(combine(op, ty, old.into(), val, cmp) as u32));
                u64::from(r.unwrap_or_else(|old| old))
            }
            _ => {
                let r = (*p.cast::<AtomicU64>())
                    .fetch_update(SC, SC, |old| Some(combine(op, ty, old, val, cmp)));
                r.unwrap_or_else(|old| old)
            }
        }
    }
}

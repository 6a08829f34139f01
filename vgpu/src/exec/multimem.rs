//! `multimem.*`: operations on all members of a multicast address.

use super::warp::{Inst, LANES, Trouble, Warp};
use super::{Ctl, Exec};
use crate::mem::access::{load_unit, store_unit};
use crate::mem::counters::Target;
use crate::mem::rmw::{self, RmwOp};
use crate::num::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::ptx::Ty;

/// What a multimem instruction does; in `Inst::aux`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "each variant is the PTX operation of the same name")]
pub enum Kind {
    LdReduce,
    St,
    Red,
}

/// Most members of a multicast object.
const MAX_MEMBERS: usize = 64;

/// `multimem.ld_reduce`, `.st` and `.red`: elements in `v`, their number in `imm2` (`c`), address `a` + `imm`.
pub struct Multimem<const T: bool>;

impl<const T: bool> Exec for Multimem<T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller's promise.
        match unsafe { multimem::<T>(w, i) } {
            Ok(()) => Ctl::Next,
            Err(t) => w.fail(t),
        }
    }
}

unsafe fn multimem<const T: bool>(w: &mut Warp, i: &Inst) -> Result<(), Trouble> {
    let size = i.mem.ty.bytes() as usize;
    let elements = i.c as usize;
    let bytes = size * elements;
    // SAFETY: the caller promises an instruction of this warp; member addresses are checked before use.
    unsafe {
        let addr = w.addresses(i);
        let lanes = w.exec;
        for l in (0..LANES).filter(|l| lanes >> l & 1 == 1) {
            let mut members = [0u64; MAX_MEMBERS];
            let n = w.members(addr[l], bytes, i.aux, &mut members)?;
            for k in 0..elements {
                let off = (k * size) as u64;
                match i.aux {
                    x if x == Kind::St as u32 => {}
                    x if x == Kind::Red as u32 => {
                        let val = w.value(i.v[k], l, size);
                        for &m in &members[..n] {
                            w.counters.atomics += 1;
                            w.note_write(i, m + off);
                            if T {
                                crate::track::hooks::atomic_at(w, i, m + off, l, val, 0);
                            } else {
                                rmw::rmw((m + off) as *mut u8, i.mem.op, i.mem.ty, val, 0);
                            }
                        }
                    }
                    _ => {
                        let mut parts = [0u64; MAX_MEMBERS];
                        for (part, &m) in parts.iter_mut().zip(&members[..n]) {
                            *part = read::<T>(w, i, m + off, l, size);
                        }
                        let sum = reduce(i.mem.op, i.mem.ty, &parts[..n]);
                        w.set_value(i.v[k], l, size, sum);
                    }
                }
            }
            if i.aux == Kind::St as u32 {
                let mut unit = [0u8; 16];
                for k in 0..elements {
                    unit[k * size..][..size]
                        .copy_from_slice(&w.value(i.v[k], l, size).to_le_bytes()[..size]);
                }
                for &m in &members[..n] {
                    w.note_write(i, m);
                    write::<T>(w, i, m, l, &unit[..bytes]);
                }
            }
        }
    }
    Ok(())
}

/// Reduces in member order. Half types are summed in f32 and rounded once, as `.acc::f32` does; without it the
/// order and precision inside the switch are unspecified, so programs cannot depend on more.
fn reduce(op: RmwOp, ty: Ty, parts: &[u64]) -> u64 {
    let half = |f: fn(u16) -> f32, g: fn(f32) -> u16, shift: u32| {
        u64::from(g(parts.iter().map(|&p| f((p >> shift) as u16)).sum::<f32>())) << shift
    };
    match (op, ty) {
        (RmwOp::Add, Ty::F16) => half(f16_to_f32, f32_to_f16, 0),
        (RmwOp::Add, Ty::BF16) => half(bf16_to_f32, f32_to_bf16, 0),
        (RmwOp::Add, Ty::F16x2) => {
            half(f16_to_f32, f32_to_f16, 0) | half(f16_to_f32, f32_to_f16, 16)
        }
        (RmwOp::Add, Ty::BF16x2) => {
            half(bf16_to_f32, f32_to_bf16, 0) | half(bf16_to_f32, f32_to_bf16, 16)
        }
        _ => parts.iter().copied().reduce(|x, y| rmw::combine(op, ty, x, y, 0)).unwrap_or(0),
    }
}

unsafe fn read<const T: bool>(w: &mut Warp, i: &Inst, addr: u64, lane: usize, size: usize) -> u64 {
    let mut b = [0u8; 8];
    // SAFETY: the address was checked by `members`.
    unsafe {
        match size {
            _ if T => crate::track::hooks::load_at(w, i, addr, lane, &mut b[..size]),
            2 => b[..2].copy_from_slice(&load_unit::<2>(addr as *const u8)),
            4 => b[..4].copy_from_slice(&load_unit::<4>(addr as *const u8)),
            _ => b = load_unit::<8>(addr as *const u8),
        }
    }
    u64::from_le_bytes(b)
}

unsafe fn write<const T: bool>(w: &mut Warp, i: &Inst, addr: u64, lane: usize, unit: &[u8]) {
    let p = addr as *mut u8;
    let mut b = [0u8; 16];
    b[..unit.len()].copy_from_slice(unit);
    // SAFETY: the address was checked by `members`; the array is as long as the arm's size.
    unsafe {
        match unit.len() {
            _ if T => crate::track::hooks::store_at(w, i, addr, lane, unit),
            2 => store_unit::<2>(p, &[b[0], b[1]]),
            4 => store_unit::<4>(p, b.as_ptr().cast::<[u8; 4]>().as_ref().unwrap_unchecked()),
            8 => store_unit::<8>(p, b.as_ptr().cast::<[u8; 8]>().as_ref().unwrap_unchecked()),
            _ => store_unit::<16>(p, &b),
        }
    }
}

impl Warp {
    /// The members' addresses behind a multicast address.
    fn members(
        &mut self,
        addr: u64,
        bytes: usize,
        kind: u32,
        out: &mut [u64; MAX_MEMBERS],
    ) -> Result<usize, Trouble> {
        if !addr.is_multiple_of(bytes as u64) {
            return Err(Trouble::Misaligned(addr, bytes as u32));
        }
        let write = kind != Kind::LdReduce as u32;
        // SAFETY: the space outlives all warps.
        let region = unsafe { (*self.space).access(addr, bytes as u64, self.device, write) }
            .ok_or(Trouble::Illegal(addr, bytes as u32))?;
        let Some(team) = &region.team else {
            return Err(Trouble::Trap(format!(
                "multimem on {addr:#x}, which is no multicast address"
            )));
        };
        let n = team.members(addr - region.base, bytes as u64, out).map_err(Trouble::Trap)?;
        self.counters.access(kind == Kind::St as u32, Target::Multicast, 0, bytes, 1);
        Ok(n)
    }

    /// One lane of a register of 2, 4 or 8 bytes per lane.
    ///
    /// # Safety
    /// `reg` must be a register of this kernel of that width.
    pub unsafe fn value(&self, reg: u32, lane: usize, size: usize) -> u64 {
        // SAFETY: the caller gives a register of that width.
        unsafe {
            match size {
                2 => self.lane::<u16>(reg, lane).into(),
                4 => self.lane::<u32>(reg, lane).into(),
                _ => self.lane::<u64>(reg, lane),
            }
        }
    }

    /// Writes one lane of such a register.
    ///
    /// # Safety
    /// As for [`Warp::value`].
    pub unsafe fn set_value(&mut self, reg: u32, lane: usize, size: usize, x: u64) {
        // SAFETY: the caller gives a register of that width.
        unsafe {
            match size {
                2 => self.set_lane(reg, lane, x as u16),
                4 => self.set_lane(reg, lane, x as u32),
                _ => self.set_lane(reg, lane, x),
            }
        }
    }
}

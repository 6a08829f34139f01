//! `ld` and `st` of tracked mode.
//!
//! One handler for all types and vector lengths: beside what the model does, sizes known only at run time cost nothing.

use super::ldst::{Spot, UNIFORM};
use super::warp::{Inst, Sem, Trouble, Warp, lanes};
use super::{Ctl, Exec};
use crate::ptx::Space;
use crate::track::hooks;

/// Bytes of one lane's access.
fn unit_bytes(i: &Inst) -> usize {
    i.mem.ty.bytes() as usize * i.b as usize
}

/// Loads `b` elements of type `mem.ty` into the registers `v`, which have `c` bytes per lane.
pub struct Load;

impl Exec for Load {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller's promise.
        match unsafe { load(w, i) } {
            Ok(true) => Ctl::Yield,
            Ok(false) => Ctl::Next,
            Err(t) => w.fail(t),
        }
    }
}

unsafe fn load(w: &mut Warp, i: &Inst) -> Result<bool, Trouble> {
    let n = unit_bytes(i);
    // SAFETY: the caller promises an instruction of this warp; addresses are checked before use.
    unsafe {
        let addr = w.addresses(i);
        let first = w.exec.trailing_zeros() as usize;
        let mut polled = [0u8; 32];
        for l in lanes(w.exec) {
            let at =
                if i.mem.space == Space::Param && i.aux == UNIFORM { addr[0] } else { addr[l] };
            let spot = w.resolve(i.mem.space, at, n, l, false)?;
            let mut unit = [0u8; 32];
            match spot {
                Spot::Private(p) => p.copy_to_nonoverlapping(unit.as_mut_ptr(), n),
                spot => hooks::load(w, i, &spot, l, &mut unit[..n]),
            }
            if l == first {
                polled = unit;
            }
            w.set_elements(i, l, &unit);
        }
        Ok(i.mem.sem != Sem::Weak
            && w.polls(i, addr[first], &polled[..n])
            && w.poll.spins & 15 == 0)
    }
}

/// Stores `b` elements of type `mem.ty` from the registers `v`, which have `c` bytes per lane.
pub struct Store;

impl Exec for Store {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller's promise.
        match unsafe { store(w, i) } {
            Ok(()) => Ctl::Next,
            Err(t) => w.fail(t),
        }
    }
}

unsafe fn store(w: &mut Warp, i: &Inst) -> Result<(), Trouble> {
    let (n, size) = (unit_bytes(i), i.mem.ty.bytes() as usize);
    // SAFETY: the caller promises an instruction of this warp; addresses are checked before use.
    unsafe {
        let addr = w.addresses(i);
        for l in lanes(w.exec) {
            let mut unit = [0u8; 32];
            for k in 0..i.b as usize {
                let x = w.value(i.v[k], l, i.c as usize);
                unit[k * size..][..size].copy_from_slice(&x.to_le_bytes()[..size]);
            }
            let spot = w.resolve(i.mem.space, addr[l], n, l, true)?;
            w.note_write(i, addr[l]);
            match spot {
                Spot::Private(p) => p.copy_from_nonoverlapping(unit.as_ptr(), n),
                spot => hooks::store(w, i, &spot, l, &unit[..n]),
            }
        }
    }
    Ok(())
}

impl Warp {
    /// Writes one lane of a load's registers.
    unsafe fn set_elements(&mut self, i: &Inst, lane: usize, unit: &[u8; 32]) {
        let size = i.mem.ty.bytes() as usize;
        let shift = 64 - 8 * size as u32;
        for k in 0..i.b as usize {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&unit[k * size..][..size]);
            let x = u64::from_le_bytes(bytes);
            let x = if i.mem.ty.is_signed() { ((x << shift) as i64 >> shift) as u64 } else { x };
            // SAFETY: the decoder gives registers of `c` bytes per lane.
            unsafe { self.set_value(i.v[k], lane, i.c as usize, x) };
        }
    }
}

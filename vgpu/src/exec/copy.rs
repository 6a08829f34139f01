//! `cp.async.bulk` and `cp.reduce.async.bulk`: done when they are issued, which is one of the allowed times.

use super::alu::NONE;
use super::ldst::Spot;
use super::sync::Mbar;
use super::warp::{Inst, Trouble, Warp};
use super::{Ctl, Exec};
use crate::mem::rmw;
use crate::ptx::Space;
use crate::track::hooks;

/// Copies or reduces `c` bytes from `[b]` to `[a]`; space of the destination in `mem.space`, of the source in `aux` (0
/// global, 1 shared); `e` is the address of an mbarrier or NONE; `imm` is 1 for a reduction by `mem.op`.
pub struct Bulk<const T: bool>;

impl<const T: bool> Exec for Bulk<T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller's promise.
        match unsafe { bulk::<T>(w, i) } {
            Ok(()) => Ctl::Next,
            Err(t) => w.fail(t),
        }
    }
}

unsafe fn bulk<const T: bool>(w: &mut Warp, i: &Inst) -> Result<(), Trouble> {
    // SAFETY: the caller promises an instruction of this warp; every address is checked before use.
    unsafe {
        let lanes = w.exec;
        for l in (0..32).filter(|l| lanes >> l & 1 == 1) {
            let (dst, src) = (w.address(i.a, l, i.v[0]), w.address(i.b, l, i.v[1]));
            let bytes: u32 = w.lane(i.c, l);
            if (u64::from(bytes) | dst | src) & 15 != 0 {
                return Err(Trouble::Trap(format!(
                    "bulk copy of {bytes} bytes from {src:#x} to {dst:#x}: not multiples of 16"
                )));
            }
            let from = if i.aux == 1 { Space::Shared } else { Space::Global };
            let size = if i.imm == 1 { i.mem.ty.bytes() as usize } else { 16 };
            for off in (0..u64::from(bytes)).step_by(size) {
                let s = w.resolve(from, src + off, size, l, false)?;
                let d = w.resolve(i.mem.space, dst + off, size, l, true)?;
                one::<T>(w, i, l, &s, &d, size);
            }
            if i.e != NONE {
                let addr = w.address(i.e, l, i.v[2]);
                let Spot::Shared(p, _) = w.resolve(Space::Shared, addr, 8, l, true)? else {
                    return Err(Trouble::Trap("an mbarrier lives in shared memory".into()));
                };
                let old = Mbar::unpack(p.cast::<u64>().read());
                let mut bar = old;
                bar.transfer(-(bytes as i32));
                p.cast::<u64>().write(bar.pack());
                let arrives = hooks::Mbar::Arrive { turned: bar.is_turned(old) };
                hooks::mbarrier(w, &Spot::Shared(p, addr), l, arrives);
            }
        }
    }
    Ok(())
}

/// One unit of a bulk operation.
unsafe fn one<const T: bool>(w: &mut Warp, i: &Inst, l: usize, s: &Spot, d: &Spot, size: usize) {
    let mut unit = [0u8; 16];
    // SAFETY: both spots were checked for `size` bytes.
    unsafe {
        if T {
            hooks::load(w, i, s, l, &mut unit[..size]);
        } else {
            match size {
                16 => unit = crate::mem::access::load_unit::<16>(s.ptr()),
                _ => s.ptr().copy_to_nonoverlapping(unit.as_mut_ptr(), size),
            }
        }
        if i.imm == 1 {
            let mut b = [0u8; 8];
            b[..size].copy_from_slice(&unit[..size]);
            let val = u64::from_le_bytes(b);
            if T {
                hooks::atomic(w, i, d, l, val, 0, 0);
            } else {
                rmw::rmw(d.ptr(), i.mem.op, i.mem.ty, val, 0);
            }
        } else if T {
            hooks::store(w, i, d, l, &unit[..size]);
        } else {
            crate::mem::access::store_unit::<16>(d.ptr(), &unit);
        }
    }
}

impl Warp {
    /// One lane's address plus a constant; `v` is 1 for a 32-bit register.
    unsafe fn address(&self, reg: u32, lane: usize, narrow: u32) -> u64 {
        // SAFETY: the caller gives a register of that width.
        unsafe {
            if narrow == 1 { self.lane::<u32>(reg, lane).into() } else { self.lane(reg, lane) }
        }
    }
}

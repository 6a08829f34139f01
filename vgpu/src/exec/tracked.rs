//! `ld` and `st` of tracked mode.
//!
//! In weak mode some loads are *late* (none of a whole warp at once): their registers get their values when an instruction uses them, or at the thread's end.
//! So a load may see a store that the same thread's later store has brought about, but never one that depends on it.
//!
//! One handler for all types and vector lengths: beside what the model does, sizes known only at run time cost nothing.

use super::lanes::lanes;
use super::ldst::{Spot, UNIFORM, WINDOW, consecutive, whole};
use super::warp::{Inst, LANES, Sem, Trouble, Warp};
use super::{Ctl, Exec};
use crate::ptx::Space;
use crate::track::hooks;

/// A load of one lane whose registers have no value yet.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    ticket: u64,
    /// The load.
    pc: u32,
    lane: usize,
    /// Its place in its 16 bytes.
    from: usize,
}

/// The most late loads of a warp.
const MOST_LATE: usize = 64;

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
        if let Some(spot) = w.whole_spot(i, &addr, n, false) {
            w.load_whole(i, &spot, n);
            return Ok(false);
        }
        let first = w.exec.trailing_zeros() as usize;
        let mut polled = Some([0u8; 32]);
        let late = n <= 16 && w.late.len() < MOST_LATE && hooks::may_be_late(w, i);
        for l in lanes(w.exec) {
            let at =
                if i.mem.space == Space::Param && i.aux == UNIFORM { addr[0] } else { addr[l] };
            let spot = w.resolve(i.mem.space, at, n, l, false)?;
            let mut unit = [0u8; 32];
            match spot {
                Spot::Private(p) => p.copy_to_nonoverlapping(unit.as_mut_ptr(), n),
                spot if late => {
                    if let Some(ticket) = hooks::load_late(w, i, &spot, l, &mut unit[..n]) {
                        let from = (at & 15) as usize;
                        w.late.push(Late { ticket, pc: w.pc, lane: l, from });
                        polled = polled.filter(|_| l != first);
                        continue;
                    }
                }
                spot => hooks::load(w, i, &spot, l, &mut unit[..n]),
            }
            if l == first {
                polled = Some(unit);
            }
            w.set_elements(i, l, &unit);
        }
        // What a late load sees is not known yet.
        let Some(polled) = polled.filter(|_| i.mem.sem != Sem::Weak) else {
            return Ok(false);
        };
        Ok(w.polls(i, addr[first], &polled[..n]) && w.poll.spins & 15 == 0)
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
    let n = unit_bytes(i);
    // SAFETY: the caller promises an instruction of this warp; addresses are checked before use.
    unsafe {
        let addr = w.addresses(i);
        if let Some(spot) = w.whole_spot(i, &addr, n, true) {
            w.store_whole(i, &spot, n);
            return Ok(());
        }
        for l in lanes(w.exec) {
            let mut unit = [0u8; 32];
            w.elements(i, l, &mut unit);
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
    /// Performs late loads of the executing lanes whose registers this instruction reads or writes.
    ///
    /// # Safety
    /// `pc` must be an instruction of this warp's kernel.
    #[cold]
    pub unsafe fn force_used(&mut self, pc: u32) {
        // SAFETY: the block outlives its warps and runs on this thread.
        let kernel = unsafe { &*std::ptr::from_ref(&*(*self.block).kernel) };
        let uses = &kernel.uses[pc as usize];
        self.force_where(|late| {
            let load = &kernel.code[late.pc as usize];
            load.v[..load.b as usize].iter().any(|r| uses.contains(r))
        });
    }

    /// Performs late loads of the executing lanes.
    pub fn force_where(&mut self, which: impl Fn(&Late) -> bool) {
        // SAFETY: as above; the kernel is never changed.
        let kernel = unsafe { &*std::ptr::from_ref(&*(*self.block).kernel) };
        let exec = self.exec;
        let due = |late: &Late| exec >> late.lane & 1 == 1 && which(late);
        while let Some(n) = self.late.iter().position(due) {
            let Late { ticket, pc, lane, from } = self.late.remove(n);
            let load = &kernel.code[pc as usize];
            let mut unit = [0; 32];
            hooks::force(self, ticket, from, &mut unit[..unit_bytes(load)]);
            // SAFETY: the instruction is a load of this warp's kernel.
            unsafe { self.set_elements(load, lane, &unit) };
        }
    }

    /// Where a full warp's weak access to consecutive granules leads, `n` bytes per lane.
    fn whole_spot(&mut self, i: &Inst, addr: &[u64; LANES], n: usize, store: bool) -> Option<Spot> {
        if !hooks::is_whole(i, addr[0]) || !consecutive(self.exec, addr, n) {
            return None;
        }
        match i.mem.space {
            Space::Shared => {
                let off = addr[0] & (WINDOW - 1);
                // SAFETY: the block outlives its warps and runs on this thread.
                let shared = unsafe { &(*self.block).shared };
                (off + (n * LANES) as u64 <= shared.len() as u64)
                    .then(|| Spot::Shared(shared.at(off), off))
            }
            Space::Global | Space::Generic => {
                whole(self, addr[0], n, store).then_some(Spot::Global(addr[0] as *mut u8))
            }
            _ => None,
        }
    }

    /// A load of all lanes from [`Warp::whole_spot`].
    unsafe fn load_whole(&mut self, i: &Inst, spot: &Spot, n: usize) {
        let mut units = [[0; 16]; hooks::MOST];
        // SAFETY: the spot has as many readable bytes; the decoder gives registers of `c` bytes per lane.
        unsafe {
            hooks::load_whole(self, i, spot, &mut units[..n * LANES / 16]);
            for (l, unit) in units.as_flattened().chunks_exact(n).take(LANES).enumerate() {
                self.set_elements(i, l, unit);
            }
        }
    }

    /// A store of all lanes to [`Warp::whole_spot`].
    unsafe fn store_whole(&mut self, i: &Inst, spot: &Spot, n: usize) {
        let mut units = [[0; 16]; hooks::MOST];
        for (l, unit) in units.as_flattened_mut().chunks_exact_mut(n).take(LANES).enumerate() {
            // SAFETY: the decoder gives registers of `c` bytes per lane.
            unsafe { self.elements(i, l, unit) };
        }
        if let Spot::Global(p) = spot {
            self.note_plain(i, *p as u64, (n * LANES) as u64);
        }
        // SAFETY: the spot has as many writable bytes.
        unsafe { hooks::store_whole(self, i, spot, &units[..n * LANES / 16]) };
    }

    /// Reads one lane of a store's registers.
    unsafe fn elements(&self, i: &Inst, lane: usize, unit: &mut [u8]) {
        let size = i.mem.ty.bytes() as usize;
        for k in 0..i.b as usize {
            // SAFETY: the decoder gives registers of `c` bytes per lane.
            let x = unsafe { self.value(i.v[k], lane, i.c as usize) };
            unit[k * size..][..size].copy_from_slice(&x.to_le_bytes()[..size]);
        }
    }

    /// Writes one lane of a load's registers.
    unsafe fn set_elements(&mut self, i: &Inst, lane: usize, unit: &[u8]) {
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

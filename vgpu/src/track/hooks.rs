//! What the memory handlers of tracked mode call.
//!
//! Host memory always holds the newest bytes in coherence order, so that copies by the host and other modes see them. If it
//! holds something else than the model thinks, the host has written: the model takes that over.

use super::clock::Thread;
use super::model::Access;
use super::proxy::Told;
use super::whole::Whole;
use super::{Inner, Party, Tracked, shared_at};
use crate::exec::ldst::Spot;
use crate::exec::warp::{Inst, LANES, Sem, Warp};
use crate::mem::access::{load16, store16};
use crate::mem::rmw;

fn tracked(w: &Warp) -> Option<&Tracked> {
    // SAFETY: the block outlives its warps and runs on this thread.
    unsafe { (*w.block).tracked.as_deref() }
}

fn thread(w: &Warp, lane: usize) -> Thread {
    Thread { warp: w.agent, lane: lane as u8 }
}

/// The identity of a byte: its place in the file that backs it, so that all mappings of it are the same bytes.
fn identity(w: &Warp, addr: u64) -> u64 {
    // SAFETY: the space outlives all warps.
    let region = unsafe { (*w.space).find(addr, 1) };
    region.map_or(addr, |r| r.identity + (addr - r.base))
}

/// The identity of the byte at a spot.
fn place(w: &Warp, spot: &Spot) -> u64 {
    match spot {
        // SAFETY: as above.
        Spot::Shared(_, off) => shared_at(unsafe { (*w.block).uid }, off & 0xff_ffff),
        spot => identity(w, spot.ptr() as u64),
    }
}

/// The 16 bytes around a pointer as they are in host memory.
fn host(p: *mut u8, at: u64) -> [u8; 16] {
    // SAFETY: regions and shared memory begin at multiples of 16 and are mapped in whole pages or allocated in whole
    // multiples of 64, so the granule of an accessible byte is readable.
    unsafe { load16(p.wrapping_sub((at & 15) as usize)) }
}

fn sync(t: &mut Inner, p: *mut u8, at: u64) -> [u8; 16] {
    let bytes = host(p, at);
    if t.model.newest(at >> 4).is_some_and(|n| n != bytes) {
        t.model.external(at >> 4);
    }
    bytes
}

/// Writes the newest bytes back to host memory.
fn write_back(t: &mut Inner, p: *mut u8, at: u64) {
    if let Some(bytes) = t.model.newest(at >> 4) {
        // SAFETY: as in `host`; tracked mode has one thread, and the granule's other bytes are unchanged.
        unsafe { store16(p.wrapping_sub((at & 15) as usize), bytes) };
    }
}

fn access(i: &Inst, at: u64, bytes: usize) -> Access {
    let mask = (((1u32 << bytes) - 1) << (at & 15)) as u16;
    let element = i.mem.ty.bytes() as u8;
    let (sem, scope) = (i.mem.sem, i.mem.scope);
    Access { granule: at >> 4, mask, element, sem, scope, line: i.line, slot: 0 }
}

fn halves(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    // An access of 32 bytes is two of 16.
    (0..len).step_by(16).map(move |off| (at + off as u64, off, (len - off).min(16)))
}

/// A lane's load.
pub fn load(w: &mut Warp, i: &Inst, spot: &Spot, lane: usize, out: &mut [u8]) {
    let (p, at) = (spot.ptr(), place(w, spot));
    load_place(w, i, p, at, lane, out);
}

/// A lane's load that may be performed later: then a ticket for [`force`] instead of the bytes.
pub fn load_late(w: &mut Warp, i: &Inst, spot: &Spot, lane: usize, out: &mut [u8]) -> Option<u64> {
    let (p, at) = (spot.ptr(), place(w, spot));
    let t = tracked(w)?;
    t.with(|t| {
        let initial = sync(t, p, at);
        let seen = t.model.load(thread(w, lane), access(i, at, out.len()), &initial, true);
        seen.map(|b| out.copy_from_slice(&b[(at & 15) as usize..][..out.len()])).err()
    })
}

/// The bytes of a load that was late; `at` is where they lie in their 16 bytes.
pub fn force(w: &Warp, ticket: u64, at: usize, out: &mut [u8]) {
    if let Some(t) = tracked(w) {
        let bytes = t.with(|t| t.model.force(ticket));
        out.copy_from_slice(&bytes[at..][..out.len()]);
    }
}

/// Whether a load may be late: strong ones are few and are what tests are about, plain ones would cost too much.
pub fn may_be_late(w: &Warp, i: &Inst) -> bool {
    let Some(t) = tracked(w) else { return false };
    t.with(|t| {
        t.model.config.weak
            && !i.mem.sem.acquires()
            && (i.mem.sem != Sem::Weak || t.model.random(32) == 0)
    })
}

/// A load from an address in device memory.
pub fn load_at(w: &mut Warp, i: &Inst, addr: u64, lane: usize, out: &mut [u8]) {
    load_place(w, i, addr as *mut u8, identity(w, addr), lane, out);
}

fn load_place(w: &Warp, i: &Inst, p: *mut u8, at: u64, lane: usize, out: &mut [u8]) {
    let Some(t) = tracked(w) else { return };
    t.with(|t| {
        for (at, off, n) in halves(at, out.len()) {
            load_part(t, thread(w, lane), i, p.wrapping_add(off), at, &mut out[off..off + n]);
        }
    });
}

/// A load within one granule.
fn load_part(t: &mut Inner, who: Thread, i: &Inst, p: *mut u8, at: u64, out: &mut [u8]) {
    let initial = sync(t, p, at);
    let bytes = match t.model.load(who, access(i, at, out.len()), &initial, false) {
        Ok(b) => b,
        Err(ticket) => t.model.force(ticket),
    };
    out.copy_from_slice(&bytes[(at & 15) as usize..][..out.len()]);
}

/// A lane's store.
pub fn store(w: &mut Warp, i: &Inst, spot: &Spot, lane: usize, data: &[u8]) {
    let (p, at) = (spot.ptr(), place(w, spot));
    store_place(w, i, p, at, lane, data);
}

/// A store to an address in device memory.
pub fn store_at(w: &mut Warp, i: &Inst, addr: u64, lane: usize, data: &[u8]) {
    store_place(w, i, addr as *mut u8, identity(w, addr), lane, data);
}

fn store_place(w: &Warp, i: &Inst, p: *mut u8, at: u64, lane: usize, data: &[u8]) {
    let Some(t) = tracked(w) else { return };
    t.with(|t| {
        for (at, off, n) in halves(at, data.len()) {
            store_part(t, thread(w, lane), i, p.wrapping_add(off), at, &data[off..off + n]);
        }
    });
}

/// A store within one granule.
fn store_part(t: &mut Inner, who: Thread, i: &Inst, p: *mut u8, at: u64, data: &[u8]) {
    let initial = sync(t, p, at);
    let mut bytes = [0; 16];
    bytes[(at & 15) as usize..][..data.len()].copy_from_slice(data);
    t.model.store(who, access(i, at, data.len()), bytes, &initial);
    write_back(t, p, at);
}

/// The most granules that one instruction of a warp touches in a row.
pub const MOST: usize = LANES * 2;

/// True if [`load_whole`] and [`store_whole`] can do it: whole granules, a weak access.
pub fn is_whole(i: &Inst, addr: u64) -> bool {
    addr & 15 == 0 && i.mem.sem == Sem::Weak
}

fn whole(w: &Warp, i: &Inst, at: u64, granules: usize) -> Whole {
    let shift = (granules * 16 / LANES).trailing_zeros();
    Whole { warp: w.agent, line: i.line, shift, granule: at >> 4 }
}

/// A weak load by all lanes from consecutive addresses, beginning at the spot; the bytes follow each other in `out`.
///
/// # Safety
/// As many bytes as `out` has must be readable at the spot, and [`is_whole`] true.
pub unsafe fn load_whole(w: &mut Warp, i: &Inst, spot: &Spot, out: &mut [[u8; 16]]) {
    let Some(t) = tracked(w) else { return };
    let (p, at) = (spot.ptr(), place(w, spot));
    let i_whole = whole(w, i, at, out.len());
    for (n, o) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *o = unsafe { load16(p.add(n * 16)) };
    }
    t.with(|t| {
        let mut slow = t.model.load_whole(i_whole, out);
        while slow != 0 {
            let n = slow.trailing_zeros() as usize;
            slow &= slow - 1;
            for (who, off, len) in i_whole.lanes(n) {
                let from = n * 16 + off;
                let out = &mut out[n][off..off + len];
                load_part(t, who, i, p.wrapping_add(from), at + from as u64, out);
            }
        }
    });
}

/// A weak store by all lanes to consecutive addresses, beginning at the spot.
///
/// # Safety
/// As many bytes as `data` has must be writable at the spot, and [`is_whole`] true.
pub unsafe fn store_whole(w: &mut Warp, i: &Inst, spot: &Spot, data: &[[u8; 16]]) {
    let Some(t) = tracked(w) else { return };
    let (p, at) = (spot.ptr(), place(w, spot));
    let i_whole = whole(w, i, at, data.len());
    let mut old = [[0; 16]; MOST];
    for (n, o) in old.iter_mut().enumerate().take(data.len()) {
        // SAFETY: the caller's promise.
        *o = unsafe { load16(p.add(n * 16)) };
    }
    t.with(|t| {
        let slow = t.model.store_whole(i_whole, &old[..data.len()], data);
        for (n, d) in data.iter().enumerate() {
            if slow >> n & 1 == 0 {
                // SAFETY: the caller's promise.
                unsafe { store16(p.add(n * 16), *d) };
                continue;
            }
            for (who, off, len) in i_whole.lanes(n) {
                let to = n * 16 + off;
                store_part(t, who, i, p.wrapping_add(to), at + to as u64, &d[off..off + len]);
            }
        }
    });
}

/// A lane's atomic; element `k` of a vector.
pub fn atomic(
    w: &mut Warp,
    i: &Inst,
    spot: &Spot,
    lane: usize,
    val: u64,
    cmp: u64,
    _k: usize,
) -> u64 {
    let (p, at) = (spot.ptr(), place(w, spot));
    atomic_place(w, i, p, at, lane, val, cmp)
}

/// An atomic at an address in device memory.
pub fn atomic_at(w: &mut Warp, i: &Inst, addr: u64, lane: usize, val: u64, cmp: u64) -> u64 {
    atomic_place(w, i, addr as *mut u8, identity(w, addr), lane, val, cmp)
}

fn atomic_place(w: &Warp, i: &Inst, p: *mut u8, at: u64, lane: usize, val: u64, cmp: u64) -> u64 {
    let Some(t) = tracked(w) else { return 0 };
    let (op, ty) = (i.mem.op, i.mem.ty);
    let n = ty.bytes() as usize;
    let from = (at & 15) as usize;
    let word = move |b: &[u8; 16]| {
        let mut x = [0; 8];
        x[..n].copy_from_slice(&b[from..from + n]);
        u64::from_le_bytes(x)
    };
    t.with(|t| {
        let initial = sync(t, p, at);
        let mut access = access(i, at, n);
        if access.sem == Sem::Weak {
            access.sem = Sem::Relaxed;
        }
        let update = move |old: &[u8; 16]| {
            let mut new = *old;
            new[from..from + n]
                .copy_from_slice(&rmw::combine(op, ty, word(old), val, cmp).to_le_bytes()[..n]);
            new
        };
        let who = thread(w, lane);
        let old = match t.model.atomic(who, access, &initial, false, Box::new(update)) {
            Ok(b) => b,
            Err(ticket) => t.model.force(ticket),
        };
        write_back(t, p, at);
        word(&old)
    })
}

/// A fence of the executing lanes.
pub fn fence(w: &mut Warp, i: &Inst) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.fence(w.agent, w.exec, i.mem.sem, i.mem.scope));
    }
}

/// `bar.warp.sync` is complete for these lanes.
pub fn warp_barrier(w: &Warp, lanes: u32) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.warp_barrier(Party { warp: w.agent, lanes, live: w.live }));
    }
}

/// What a lane did to an mbarrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mbar {
    /// It made a new one of it.
    Init,
    /// It arrived, which may have completed the phase.
    Arrive {
        /// It did.
        turned: bool,
    },
    /// It saw that a phase is complete.
    Pass,
}

/// A lane made an mbarrier, arrived at it, or saw it complete.
pub fn mbarrier(w: &Warp, spot: &Spot, lane: usize, what: Mbar) {
    let Some(t) = tracked(w) else { return };
    let (name, who) = ((place(w, spot), 0), thread(w, lane));
    t.with(|t| match what {
        Mbar::Init => t.model.forget_barriers(name.0..name.0 + 1),
        Mbar::Pass => t.model.pass(name, who),
        Mbar::Arrive { turned } => {
            t.model.arrive(name, who.warp, who.bit());
            if turned {
                t.model.turn(name);
            }
        }
    });
}

/// `fence.proxy.async` of the executing lanes.
pub fn proxy_fence(w: &mut Warp) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.proxy_fence(w.agent, w.exec));
    }
}

/// A lane issues a bulk copy: the warp of the model that will do it. One that has done a copy which the lane has waited for,
/// or a new one.
pub fn issue(w: &mut Warp, lane: usize) -> Option<u32> {
    let (t, issuer) = (tracked(w)?, thread(w, lane));
    // SAFETY: the block outlives its warps and runs on this thread.
    let known = unsafe { &(*w.block).known };
    let waited = |&copy: &u32| t.with(|t| t.model.is_over(copy, issuer));
    let old = w.copies.free.iter().position(waited);
    let copy = old.map_or_else(|| t.proxy_warp(w.agent, known), |n| w.copies.free[n]);
    t.with(|t| t.model.issue(issuer, copy));
    match old {
        Some(n) => drop(w.copies.free.swap_remove(n)),
        None => w.copies.agents.push(copy),
    }
    Some(copy)
}

/// What the copy that the warp stands for has done, for those who wait for it.
pub fn tell(w: &Warp) -> Option<Told> {
    tracked(w).map(|t| t.with(|t| t.model.tell(w.agent)))
}

/// A lane has waited for a step of a copy.
pub fn hear(w: &Warp, lane: usize, told: &Told) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.hear(thread(w, lane), told));
    }
}

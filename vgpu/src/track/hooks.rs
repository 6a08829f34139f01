//! What the memory handlers of tracked mode call.
//!
//! Host memory always holds the newest bytes in coherence order, so that copies by the host and other modes see them. If it
//! holds something else than the model thinks, the host has written: the model takes that over.

use super::clock::Vc;
use super::{Inner, Tracked};
use crate::exec::ldst::Spot;
use crate::exec::warp::{Inst, Sem, Warp};
use crate::mem::access::load16;
use crate::mem::rmw;

fn tracked(w: &Warp) -> Option<&Tracked> {
    // SAFETY: the block outlives its warps and runs on this thread.
    unsafe { (*w.block).tracked.as_deref() }
}

/// The model's address of a spot: shared memory of a block is a range of its own, outside host addresses.
fn place(w: &Warp, spot: &Spot) -> u64 {
    match spot {
        // SAFETY: as above.
        Spot::Shared(_, off) => 1 << 60 | unsafe { (*w.block).uid } << 24 | off & 0xff_ffff,
        spot => spot.ptr() as u64,
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
        t.model.external(at >> 4, &bytes);
    }
    bytes
}

/// Writes the newest bytes back to host memory.
fn write_back(t: &Inner, p: *mut u8, at: u64) {
    if let Some(bytes) = t.model.newest(at >> 4) {
        // SAFETY: as in `host`; tracked mode has one thread, and the granule's other bytes are unchanged.
        unsafe { crate::mem::access::store16(p.wrapping_sub((at & 15) as usize), bytes) };
    }
}

fn halves(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    // An access of 32 bytes is two of 16.
    (0..len).step_by(16).map(move |off| (at + off as u64, off, (len - off).min(16)))
}

/// A lane's load.
pub fn load(w: &mut Warp, i: &Inst, spot: &Spot, _lane: usize, out: &mut [u8]) {
    let (p, at) = (spot.ptr(), place(w, spot));
    load_place(w, i, p, at, out);
}

/// A lane's load that may be performed later: then a ticket for [`force`] instead of the bytes.
pub fn load_late(w: &mut Warp, i: &Inst, spot: &Spot, out: &mut [u8]) -> Option<u64> {
    let (p, at) = (spot.ptr(), place(w, spot));
    let t = tracked(w)?;
    t.with(|t| {
        let initial = sync(t, p, at);
        let access = t.access(w, i, at, out.len());
        let seen = t.model.load(w.agent, access, &initial, true);
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
pub fn load_at(w: &mut Warp, i: &Inst, addr: u64, _lane: usize, out: &mut [u8]) {
    load_place(w, i, addr as *mut u8, addr, out);
}

fn load_place(w: &Warp, i: &Inst, p: *mut u8, at: u64, out: &mut [u8]) {
    let Some(t) = tracked(w) else { return };
    t.with(|t| {
        for (at, off, n) in halves(at, out.len()) {
            let initial = sync(t, p.wrapping_add(off), at);
            let access = t.access(w, i, at, n);
            let bytes = match t.model.load(w.agent, access, &initial, false) {
                Ok(b) => b,
                Err(ticket) => t.model.force(ticket),
            };
            out[off..off + n].copy_from_slice(&bytes[(at & 15) as usize..][..n]);
        }
    });
}

/// A lane's store.
pub fn store(w: &mut Warp, i: &Inst, spot: &Spot, _lane: usize, data: &[u8]) {
    let (p, at) = (spot.ptr(), place(w, spot));
    store_place(w, i, p, at, data);
}

/// A store to an address in device memory.
pub fn store_at(w: &mut Warp, i: &Inst, addr: u64, _lane: usize, data: &[u8]) {
    store_place(w, i, addr as *mut u8, addr, data);
}

fn store_place(w: &Warp, i: &Inst, p: *mut u8, at: u64, data: &[u8]) {
    let Some(t) = tracked(w) else { return };
    t.with(|t| {
        for (at, off, n) in halves(at, data.len()) {
            let initial = sync(t, p.wrapping_add(off), at);
            let access = t.access(w, i, at, n);
            let mut bytes = [0; 16];
            bytes[(at & 15) as usize..][..n].copy_from_slice(&data[off..off + n]);
            t.model.store(w.agent, access, bytes, &initial);
            write_back(t, p.wrapping_add(off), at);
        }
    });
}

/// A lane's atomic; element `k` of a vector.
pub fn atomic(
    w: &mut Warp,
    i: &Inst,
    spot: &Spot,
    _lane: usize,
    val: u64,
    cmp: u64,
    _k: usize,
) -> u64 {
    let (p, at) = (spot.ptr(), place(w, spot));
    atomic_place(w, i, p, at, val, cmp)
}

/// An atomic at an address in device memory.
pub fn atomic_at(w: &mut Warp, i: &Inst, addr: u64, _lane: usize, val: u64, cmp: u64) -> u64 {
    atomic_place(w, i, addr as *mut u8, addr, val, cmp)
}

fn atomic_place(w: &Warp, i: &Inst, p: *mut u8, at: u64, val: u64, cmp: u64) -> u64 {
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
        let mut access = t.access(w, i, at, n);
        if access.sem == Sem::Weak {
            access.sem = Sem::Relaxed;
        }
        let update = move |old: &[u8; 16]| {
            let mut new = *old;
            new[from..from + n]
                .copy_from_slice(&rmw::combine(op, ty, word(old), val, cmp).to_le_bytes()[..n]);
            new
        };
        let old = match t.model.atomic(w.agent, access, &initial, false, Box::new(update)) {
            Ok(b) => b,
            Err(ticket) => t.model.force(ticket),
        };
        write_back(t, p, at);
        word(&old)
    })
}

/// A fence.
pub fn fence(w: &mut Warp, i: &Inst) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.fence(w.agent, i.mem.sem, i.mem.scope));
    }
}

/// An mbarrier was arrived at, or waited for (`done`: with success).
pub fn mbarrier(w: &mut Warp, spot: &Spot, waits: bool, done: bool) {
    let Some(t) = tracked(w) else { return };
    let at = place(w, spot);
    t.with(|t| match (waits, done) {
        (false, _) => t.model.arrive((at, u32::MAX), w.agent),
        (true, true) => t.model.leave((at, u32::MAX), &[w.agent], true),
        (true, false) => {}
    });
}

/// `fence.proxy.async`.
pub fn proxy_fence(w: &mut Warp) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.proxy_fence(w.agent));
    }
}

/// The warp issues a bulk copy: the agent that will do it. One that has done a copy which the warp has waited for, or a new one.
pub fn proxy_issue(w: &mut Warp) -> Option<u32> {
    let t = tracked(w)?;
    // SAFETY: the block outlives its warps and runs on this thread.
    let known = unsafe { &(*w.block).known };
    let waited = |&a: &u32| t.with(|t| t.model.is_known(a, w.agent));
    let old = w.copies.free.iter().position(waited);
    let copy = old.map_or_else(|| t.proxy_agent(w.agent, known), |n| w.copies.free[n]);
    t.with(|t| t.model.proxy_issue(w.agent, copy));
    match old {
        Some(n) => drop(w.copies.free.swap_remove(n)),
        None => w.copies.agents.push(copy),
    }
    Some(copy)
}

/// What the warp's agent knows now.
pub fn proxy_clock(w: &Warp) -> Vc {
    tracked(w).map_or_else(Vc::new, |t| t.with(|t| t.model.clock_of(w.agent)))
}

/// The warp has waited for something that knew this.
pub fn learn(w: &Warp, vc: &Vc) {
    if let Some(t) = tracked(w) {
        t.with(|t| t.model.learn(w.agent, vc));
    }
}

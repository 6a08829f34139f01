//! Predicates, selection, warp-wide exchange, barriers, fences, mbarriers.

use std::marker::PhantomData;

use super::alu::{Lane, NONE};
use super::control::exec;
use super::convert::Word;
use super::warp::{Inst, LANES, Sem, Trouble, WARP_BARRIER, Wait, Warp};
use super::{Ctl, Exec};
use crate::track::hooks;

exec!(
    /// `and`, `or`, `xor` of predicates (`aux` 0, 1, 2); `imm` bits 0 and 1 negate the sources.
    PredLogic, |w, i| {
        let a = w.pred(i.a) ^ if i.imm & 1 != 0 { !0 } else { 0 };
        let b = w.pred(i.b) ^ if i.imm & 2 != 0 { !0 } else { 0 };
        w.put_pred(i.d, match i.aux { 0 => a & b, 1 => a | b, _ => a ^ b });
        Ctl::Next
    }
);
exec!(
    /// `mov.pred` and, with `imm` 1, `not.pred`.
    PredMove, |w, i| {
        w.put_pred(i.d, w.pred(i.a) ^ if i.imm & 1 != 0 { !0 } else { 0 });
        Ctl::Next
    }
);

/// `mov` of a register.
pub struct Move<T>(PhantomData<T>);
impl<T: Lane> Exec for Move<T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of this type.
        unsafe { w.put(i.d, w.get::<T>(i.a)) };
        Ctl::Next
    }
}

/// `selp`: `c` is the predicate, negated if `imm` is 1.
pub struct Select<T>(PhantomData<T>);
impl<T: Lane> Exec for Select<T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of this type and a predicate.
        unsafe {
            let (a, b) = (w.get::<T>(i.a), w.get::<T>(i.b));
            let p = w.pred(i.c) ^ if i.imm & 1 != 0 { !0 } else { 0 };
            let mut r = b;
            for l in 0..LANES {
                r[l] = if p >> l & 1 == 1 { a[l] } else { b[l] };
            }
            w.put(i.d, r);
        }
        Ctl::Next
    }
}

/// `mov` from a vector of `aux` parts (`v`) to one register: packs.
pub struct Pack<P, T>(PhantomData<(P, T)>);
impl<P: Word, T: Word> Exec for Pack<P, T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        let mut r = [T::default(); LANES];
        // SAFETY: the caller promises registers of these types.
        unsafe {
            for n in 0..size_of::<T>() / size_of::<P>() {
                let part = w.get::<P>(i.v[n]);
                for l in 0..LANES {
                    r[l] = T::from_bits(r[l].bits() | part[l].bits() << (n * size_of::<P>() * 8));
                }
            }
            w.put(i.d, r);
        }
        Ctl::Next
    }
}

/// `mov` from one register to a vector: unpacks. Parts that nobody wants are NONE.
pub struct Unpack<P, T>(PhantomData<(P, T)>);
impl<P: Word, T: Word> Exec for Unpack<P, T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        unsafe {
            let a = w.get::<T>(i.a);
            for n in 0..size_of::<T>() / size_of::<P>() {
                if i.v[n] == NONE {
                    continue;
                }
                let mut r = [P::default(); LANES];
                for l in 0..LANES {
                    r[l] = P::from_bits(a[l].bits() >> (n * size_of::<P>() * 8));
                }
                w.put(i.v[n], r);
            }
        }
        Ctl::Next
    }
}

/// True if all named lanes that still live are here; otherwise the path is to park.
fn converged(w: &mut Warp, members: u32) -> bool {
    w.parking = Wait::Lanes;
    members & w.live & !w.exec == 0
}

/// The member mask: a register, the same for all lanes.
unsafe fn members(w: &Warp, reg: u32) -> u32 {
    // SAFETY: the caller gives a 32-bit register.
    unsafe { w.lane(reg, w.exec.trailing_zeros() as usize & 31) }
}

exec!(
    /// `shfl.sync`: `aux` 0 up, 1 down, 2 bfly, 3 idx; value `a`, lane `b`, clamp `c`, members `v[0]`, predicate `e`.
    Shuffle, |w, i| {
        let m = members(w, i.v[0]);
        if !converged(w, m) {
            return Ctl::Park;
        }
        let (a, b, c) = (w.get::<u32>(i.a), w.get::<u32>(i.b), w.get::<u32>(i.c));
        let (mut r, mut p) = (a, 0);
        for l in 0..LANES {
            let (lane, b, c) = (l as u32, b[l] & 31, c[l]);
            let segment = c >> 8 & 31;
            let max = lane & segment | c & 31 & !segment;
            let min = lane & segment;
            let (from, inside) = match i.aux {
                0 => (lane.wrapping_sub(b), lane as i32 - b as i32 >= max as i32),
                1 => (lane + b, lane + b <= max),
                2 => (lane ^ b, lane ^ b <= max),
                _ => (min | b & !segment, min | b & !segment <= max),
            };
            if inside {
                r[l] = a[from as usize & 31];
                p |= 1 << l;
            }
        }
        w.put(i.d, r);
        if i.e != NONE {
            w.put_pred(i.e, p);
        }
        Ctl::Next
    }
);
exec!(
    /// `vote.sync`: `aux` 0 all, 1 any, 2 uni, 3 ballot; predicate `a` (negated if `imm`), members `b`.
    Vote, |w, i| {
        let m = members(w, i.b);
        if !converged(w, m) {
            return Ctl::Park;
        }
        let p = (w.pred(i.a) ^ if i.imm & 1 != 0 { !0 } else { 0 }) & w.exec & m;
        let all = w.exec & m;
        let yes = match i.aux { 0 => p == all, 1 => p != 0, _ => p == all || p == 0 };
        if i.aux == 3 { w.put(i.d, [p; LANES]) } else { w.put_pred(i.d, if yes { !0 } else { 0 }) }
        Ctl::Next
    }
);
exec!(
    /// `elect.sync`: the lowest member leads; its number to `d`, the predicate to `e`.
    Elect, |w, i| {
        let m = members(w, i.a);
        if !converged(w, m) {
            return Ctl::Park;
        }
        let leader = (w.exec & m).trailing_zeros();
        if i.d != NONE {
            w.put(i.d, [leader; LANES]);
        }
        if i.e != NONE {
            w.put_pred(i.e, 1 << (leader & 31));
        }
        Ctl::Next
    }
);

/// `match.sync`: `aux` 0 any, 1 all; value `a`, members `b`, predicate `e` (of `all`).
pub struct Match<T>(PhantomData<T>);
impl<T: Word> Exec for Match<T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises registers of these types.
        unsafe {
            let m = members(w, i.b);
            if !converged(w, m) {
                return Ctl::Park;
            }
            let a = w.get::<T>(i.a);
            let all = w.exec & m;
            let mut r = [0u32; LANES];
            for l in 0..LANES {
                for k in 0..LANES {
                    r[l] |= u32::from(all >> k & 1 == 1 && a[k].bits() == a[l].bits()) << k;
                }
            }
            if i.aux == 1 {
                let same = r[w.exec.trailing_zeros() as usize & 31] == all;
                r = [if same { all } else { 0 }; LANES];
                if i.e != NONE {
                    w.put_pred(i.e, if same { !0 } else { 0 });
                }
            }
            w.put(i.d, r);
        }
        Ctl::Next
    }
}

exec!(
    /// `redux.sync` on 32-bit integers: the operation is in `mem`, members in `b`.
    Redux, |w, i| {
        let m = members(w, i.b);
        if !converged(w, m) {
            return Ctl::Park;
        }
        let a = w.get::<u32>(i.a);
        let lanes = (0..LANES).filter(|&l| (w.exec & m) >> l & 1 == 1);
        let r = lanes.map(|l| u64::from(a[l])).reduce(|x, y| crate::mem::rmw::combine(i.mem.op, i.mem.ty, x, y, 0));
        w.put(i.d, [r.unwrap_or(0) as u32; LANES]);
        Ctl::Next
    }
);
exec!(
    /// `bar.warp.sync`: lanes may arrive at different places of the code.
    WarpBarrier, |w, i| {
        if w.resumed.take().is_some() {
            return Ctl::Next;
        }
        let m = members(w, i.a);
        w.warp_barrier = (w.warp_barrier.0 | w.exec, m);
        if w.finish_warp_barrier() {
            return Ctl::Next;
        }
        w.parking = Wait::Barrier(WARP_BARRIER);
        Ctl::Park
    }
);
exec!(
    /// `bar.sync`, `bar.arrive`, `bar.red` and the `barrier` spellings: `aux` 0 sync, 1 arrive, 2 popc, 3 and, 4 or;
    /// barrier `a`, threads `b` (or NONE), predicate `c` (negated if `imm`).
    Barrier, |w, i| {
        if let Some(r) = w.resumed.take() {
            match i.aux {
                2 => w.put(i.d, [r; LANES]),
                3 | 4 => w.put_pred(i.d, if r != 0 { !0 } else { 0 }),
                _ => {}
            }
            return Ctl::Next;
        }
        let first = w.exec.trailing_zeros() as usize;
        let id: u32 = w.lane(i.a, first);
        let threads = if i.b == NONE { 0 } else { w.lane::<u32>(i.b, first) };
        if id >= 16 {
            return w.fail(Trouble::Trap(format!("barrier {id}: a block has barriers 0 to 15")));
        }
        if threads % 32 != 0 {
            return w.fail(Trouble::Trap(format!("barrier for {threads} threads: must be a multiple of 32")));
        }
        let votes = if i.aux >= 2 { (w.pred(i.c) ^ if i.imm & 1 != 0 { !0 } else { 0 }) & w.exec } else { 0 };
        w.counters.barriers += u64::from(w.exec.count_ones());
        (*w.block).arrive(id, threads, w.exec, votes, i.aux, w.agent);
        if i.aux == 1 {
            return Ctl::Next;
        }
        w.parking = Wait::Barrier(id);
        Ctl::Park
    }
);
exec!(
    /// `fence` and `membar`.
    Fence, |w, i| {
        if i.mem.sem == Sem::Sc {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        } else {
            std::sync::atomic::fence(std::sync::atomic::Ordering::AcqRel);
        }
        hooks::fence(w, i);
        Ctl::Next
    }
);

exec!(
    /// `fence.proxy.async`.
    ProxyFence, |w, _i| {
        crate::track::hooks::proxy_fence(w);
        Ctl::Next
    }
);

/// What an `mbarrier` instruction does; in `Inst::aux`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "each variant is the PTX operation of the same name")]
pub enum MbarOp {
    Init,
    Inval,
    Arrive,
    ArriveDrop,
    ArriveExpectTx,
    ExpectTx,
    CompleteTx,
    Wait,
    WaitParity,
    PendingCount,
}

/// The 64-bit state of an mbarrier: expected arrivals, pending ones, bytes in flight, phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbar {
    expected: u32,
    pending: u32,
    tx: i32,
    phase: bool,
}

impl Mbar {
    /// A fresh barrier for `count` arrivals.
    pub fn new(count: u32) -> Self {
        Mbar { expected: count, pending: count, tx: 0, phase: false }
    }
    /// Reads the state.
    pub fn unpack(x: u64) -> Self {
        Mbar {
            expected: x as u32 & 0xf_ffff,
            pending: (x >> 20) as u32 & 0xf_ffff,
            tx: ((x << 3) as i64 >> 43) as i32,
            phase: x >> 63 == 1,
        }
    }
    /// The state as it lies in memory.
    pub fn pack(self) -> u64 {
        u64::from(self.expected)
            | u64::from(self.pending) << 20
            | (self.tx as u64 & 0x1f_ffff) << 40
            | u64::from(self.phase) << 63
    }
    /// Counts arrivals.
    pub fn arrive(&mut self, n: u32) {
        self.pending = self.pending.saturating_sub(n);
        self.settle();
    }
    /// Adds to the bytes in flight; negative when they have come.
    pub fn transfer(&mut self, bytes: i32) {
        self.tx += bytes;
        self.settle();
    }
    fn settle(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase = !self.phase;
            self.pending = self.expected;
        }
    }
    /// True if it is in another phase than before.
    pub fn is_turned(self, before: Mbar) -> bool {
        self.phase != before.phase
    }
    /// True once the phase with this parity is complete.
    pub fn passed(self, parity: bool) -> bool {
        self.phase != parity
    }
}

exec!(
    /// `mbarrier.*`: barrier at address `a` + `imm`, operand `b` (count, bytes, token, parity), results `d` and `e`.
    Mbarrier, |w, i| {
        let addr = w.addresses(i);
        let mut waits = false;
        let mut done = 0u32;
        for l in 0..LANES {
            if w.exec >> l & 1 == 0 {
                continue;
            }
            let spot = match w.resolve(i.mem.space, addr[l], 8, l, true) {
                Ok(s @ super::ldst::Spot::Shared(..)) => s,
                Ok(_) => return w.fail(Trouble::Trap("an mbarrier lives in shared memory".into())),
                Err(t) => return w.fail(t),
            };
            let p = spot.ptr().cast::<u64>();
            let old = p.read();
            let mut bar = Mbar::unpack(old);
            if bar.expected == 0 && i.aux != MbarOp::Init as u32 {
                let what = format!("mbarrier at {:#x} is used before its init is seen", addr[l]);
                return w.fail(Trouble::Trap(what));
            }
            let operand = |default: u32| if i.b == NONE { default } else { w.lane::<u32>(i.b, l) };
            match i.aux {
                x if x == MbarOp::Init as u32 => bar = Mbar::new(operand(1)),
                x if x == MbarOp::Inval as u32 => bar = Mbar::new(0),
                x if x == MbarOp::Arrive as u32 => bar.arrive(operand(1)),
                x if x == MbarOp::ArriveDrop as u32 => {
                    bar.expected -= operand(1).min(bar.expected);
                    bar.arrive(operand(1));
                }
                x if x == MbarOp::ArriveExpectTx as u32 => {
                    bar.tx += operand(0) as i32;
                    bar.arrive(1);
                }
                x if x == MbarOp::ExpectTx as u32 => bar.tx += operand(0) as i32,
                x if x == MbarOp::CompleteTx as u32 => bar.transfer(-(operand(0) as i32)),
                x if x == MbarOp::WaitParity as u32 => done |= u32::from(bar.passed(operand(0) & 1 == 1)) << l,
                x if x == MbarOp::Wait as u32 => done |= u32::from(bar.passed(w.lane::<u64>(i.b, l) >> 63 == 1)) << l,
                other => return w.fail(Trouble::Trap(format!("mbarrier operation {other}"))),
            }
            if bar.pack() != old {
                p.write(bar.pack());
            }
            let waiting = i.aux == MbarOp::Wait as u32 || i.aux == MbarOp::WaitParity as u32;
            let arrives = [MbarOp::Arrive, MbarOp::ArriveDrop, MbarOp::ArriveExpectTx, MbarOp::CompleteTx];
            let what = match () {
                () if waiting && done >> l & 1 == 1 => Some(hooks::Mbar::Pass),
                () if i.aux == MbarOp::Init as u32 => Some(hooks::Mbar::Init),
                () if arrives.iter().any(|a| *a as u32 == i.aux) => {
                    Some(hooks::Mbar::Arrive { turned: bar.is_turned(Mbar::unpack(old)) })
                }
                () => None,
            };
            if let Some(what) = what {
                hooks::mbarrier(w, &spot, l, what);
            }
            if !waiting && i.d != NONE {
                w.set_lane(i.d, l, old);
            }
            waits |= waiting;
        }
        if !waits {
            return Ctl::Next;
        }
        w.put_pred(i.e, done);
        // Nothing to see here until somebody arrives.
        let first = w.exec.trailing_zeros() as usize;
        if done != w.exec && w.polls(i, addr[first], &[0]) { Ctl::Yield } else { Ctl::Next }
    }
);

exec!(
    /// `mbarrier.pending_count` of a state in `b`.
    PendingCount, |w, i| {
        w.put(i.d, w.get::<u64>(i.b).map(|state| Mbar::unpack(state).pending));
        Ctl::Next
    }
);

#[cfg(test)]
mod tests {
    use super::Mbar;

    #[test]
    fn mbarrier_phases() {
        let mut b = Mbar::new(2);
        b.arrive(1);
        b.transfer(64);
        assert_eq!(Mbar::unpack(b.pack()), b);
        b.arrive(1);
        assert!(!b.passed(false), "bytes are still in flight");
        b.transfer(-64);
        assert!(b.passed(false) && !b.passed(true));
        assert_eq!(Mbar::unpack(b.pack()), b);
        b.transfer(-16); // bytes may come before they are announced
        assert_eq!(Mbar::unpack(b.pack()), b);
        b.transfer(16);
        b.arrive(2);
        assert!(b.passed(true));
    }
}

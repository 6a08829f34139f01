//! Litmus tests of single threads of warps, with and without `bar.warp.sync`, of bulk copies, and of what is forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::clock::{Know, Thread};
use super::model::{Access, Config, Model, Position};
use super::sync::Party;
use super::whole::Whole;
use crate::exec::warp::{Scope, Sem};

const SEEDS: u64 = 200;
const FLAG: u64 = 1000;

/// A model with warps of 32 lanes, each in a block of its own.
struct World {
    model: Model,
    warps: Vec<u32>,
    line: u32,
}

impl World {
    fn new(seed: u64, warps: u64) -> World {
        let mut model = Model::new(Config { weak: true, race: true, seed });
        let at = |cta| Position { cta, gpu: 0, lanes: !0, kernel: 0 };
        let warps = (0..warps).map(|cta| model.warp(at(cta), &Default::default())).collect();
        World { model, warps, line: 0 }
    }

    fn thread(&self, (warp, lane): (usize, u8)) -> Thread {
        Thread { warp: self.warps[warp], lane }
    }

    fn access(&mut self, granule: u64, sem: Sem) -> Access {
        self.line += 1;
        let (scope, line) = (Scope::Gpu, self.line);
        Access { granule, mask: 0xf, element: 4, sem, scope, line, slot: 0 }
    }

    fn store(&mut self, who: (usize, u8), granule: u64, sem: Sem, value: u8) {
        let (t, a) = (self.thread(who), self.access(granule, sem));
        self.model.store(t, a, [value; 16], &[0; 16]);
    }

    fn load(&mut self, who: (usize, u8), granule: u64, sem: Sem) -> u8 {
        let (t, a) = (self.thread(who), self.access(granule, sem));
        self.model.load(t, a, &[0; 16], false).unwrap()[0]
    }

    fn sync(&mut self, warp: usize, lanes: u32) {
        self.model.warp_barrier(Party { warp: self.warps[warp], lanes, live: !0 });
    }

    /// A warp for a copy that a thread issues.
    fn issue(&mut self, who: (usize, u8)) -> usize {
        let copy = self.model.proxy_warp(self.warps[who.0], &Default::default());
        self.warps.push(copy);
        self.model.issue(self.thread(who), copy);
        self.warps.len() - 1
    }

    /// Reads a flag until it is set.
    fn acquire(&mut self, who: (usize, u8), flag: u64, value: u8) {
        while self.load(who, flag, Sem::Acquire) != value {}
    }
}

/// What a scenario returned over all seeds, and how many pairs of instructions raced.
fn outcomes(warps: u64, f: impl Fn(&mut World) -> u8) -> (BTreeSet<u8>, usize) {
    let (mut seen, mut races) = (BTreeSet::new(), 0);
    for seed in 0..SEEDS {
        let mut w = World::new(seed, warps);
        seen.insert(f(&mut w));
        races = races.max(w.model.take_races().len());
    }
    (seen, races)
}

/// Ordered: the new value alone, without a race. Otherwise both values are seen, and a race.
fn judge(ordered: bool, warps: u64, f: impl Fn(&mut World) -> u8) {
    let expected = if ordered { (BTreeSet::from([1]), 0) } else { (BTreeSet::from([0, 1]), 1) };
    assert_eq!(outcomes(warps, f), expected, "ordered: {ordered}");
}

const LOW: u32 = 0xffff;

#[test]
fn strong_vectors_and_scalars_of_their_elements_do_not_race() {
    for (element, mask, races) in [(8, 0xff, 0), (8, 0xff00, 0), (4, 0xff, 1), (4, 0xf, 1)] {
        let mut w = World::new(1, 2);
        let vector = Access { mask: 0xffff, element: 8, ..w.access(1, Sem::Relaxed) };
        let scalar = Access { mask, element, ..w.access(1, Sem::Relaxed) };
        w.model.store(w.thread((0, 0)), scalar, [1; 16], &[0; 16]);
        let _ = w.model.load(w.thread((1, 0)), vector, &[0; 16], false);
        assert_eq!(w.model.take_races().len(), races, "{element} bytes, {mask:x}");
    }
}

#[test]
fn a_warp_sends_through_its_lane_0_only_after_bar_warp_sync() {
    for (lanes, ordered) in
        [(None, false), (Some(!0), true), (Some(LOW), true), (Some(!LOW | 1), false)]
    {
        judge(ordered, 2, |w| {
            w.store((0, 7), 1, Sem::Weak, 1);
            if let Some(lanes) = lanes {
                w.sync(0, lanes);
            }
            w.store((0, 0), FLAG, Sem::Release, 1);
            w.acquire((1, 0), FLAG, 1);
            w.load((1, 0), 1, Sem::Weak)
        });
    }
}

#[test]
fn a_warp_receives_through_its_lane_0_only_before_bar_warp_sync() {
    for (lanes, ordered) in
        [(None, false), (Some(!0), true), (Some(LOW), true), (Some(!LOW | 1), false)]
    {
        judge(ordered, 2, |w| {
            w.store((0, 0), 1, Sem::Weak, 1);
            w.store((0, 0), FLAG, Sem::Release, 1);
            w.acquire((1, 0), FLAG, 1);
            if let Some(lanes) = lanes {
                w.sync(1, lanes);
            }
            w.load((1, 7), 1, Sem::Weak)
        });
    }
}

#[test]
fn lanes_of_a_warp_hand_over_by_flags_and_barriers_alone() {
    let within = |sem: (Sem, Sem)| {
        move |w: &mut World| {
            w.store((0, 3), 1, Sem::Weak, 1);
            w.store((0, 3), FLAG, sem.0, 1);
            while w.load((0, 4), FLAG, sem.1) != 1 {}
            w.load((0, 4), 1, Sem::Weak)
        }
    };
    judge(true, 1, within((Sem::Release, Sem::Acquire)));
    judge(false, 1, within((Sem::Relaxed, Sem::Acquire)));
    judge(false, 1, within((Sem::Release, Sem::Relaxed)));
    // A fence is one of the lanes that execute it.
    let fenced = |sender: u32, receiver: u32| {
        move |w: &mut World| {
            w.store((0, 3), 1, Sem::Weak, 1);
            w.model.fence(w.warps[0], sender, Sem::AcqRel, Scope::Cta);
            w.store((0, 3), FLAG, Sem::Relaxed, 1);
            while w.load((0, 4), FLAG, Sem::Relaxed) != 1 {}
            w.model.fence(w.warps[0], receiver, Sem::AcqRel, Scope::Cta);
            w.load((0, 4), 1, Sem::Weak)
        }
    };
    judge(true, 1, fenced(1 << 3, 1 << 4));
    judge(true, 1, fenced(!0, !0));
    judge(false, 1, fenced(!(1 << 3), !0));
    judge(false, 1, fenced(!0, !(1 << 4)));
}

#[test]
fn diverged_halves_meet_in_the_lanes_that_they_share() {
    // Each half syncs by itself: nothing orders lane 2 and lane 20. A third barrier with a lane of both does.
    for (bridge, ordered) in [(0, false), (1 << 20 | 1 << 30, false), (1 << 5 | 1 << 20, true)] {
        judge(ordered, 1, |w| {
            w.store((0, 2), 1, Sem::Weak, 1);
            w.sync(0, LOW);
            w.sync(0, !LOW);
            if bridge != 0 {
                w.sync(0, bridge);
            }
            w.load((0, 20), 1, Sem::Weak)
        });
    }
}

#[test]
fn knowledge_goes_on_through_other_warps() {
    for (sync, ordered) in [(true, true), (false, false)] {
        judge(ordered, 3, |w| {
            w.store((0, 31), 1, Sem::Weak, 1);
            w.sync(0, !0);
            w.store((0, 0), FLAG, Sem::Release, 1);
            w.acquire((1, 3), FLAG, 1);
            if sync {
                w.sync(1, 1 << 3 | 1 << 9);
            }
            w.store((1, 9), FLAG + 1, Sem::Release, 1);
            w.acquire((2, 9), FLAG + 1, 1);
            w.load((2, 9), 1, Sem::Weak)
        });
    }
}

#[test]
fn a_block_barrier_orders_the_lanes_that_are_there() {
    let meet = |first: u32, second: u32| {
        move |w: &mut World| {
            w.store((0, 7), 1, Sem::Weak, 1);
            let warps = [(w.warps[0], first), (w.warps[1], second)];
            for (warp, lanes) in warps {
                w.model.arrive((9, 0), warp, lanes);
            }
            let parties = warps.map(|(warp, lanes)| Party { warp, lanes, live: !0 });
            w.model.complete((9, 0), &parties);
            w.load((1, 8), 1, Sem::Weak)
        }
    };
    judge(true, 2, meet(!0, !0));
    judge(true, 2, meet(1 << 7, 1 << 8));
    judge(false, 2, meet(!(1 << 7), !0));
    judge(false, 2, meet(!0, !(1 << 8)));
}

#[test]
fn idle_lanes_do_not_stand_in_for_what_they_do_later() {
    // The release counts lane 5 in since it has done nothing yet. What it does after that is not part of it.
    judge(false, 2, |w| {
        w.store((0, 0), FLAG, Sem::Release, 1);
        w.store((0, 5), 1, Sem::Weak, 1);
        w.acquire((1, 0), FLAG, 1);
        w.load((1, 0), 1, Sem::Weak)
    });
}

fn whole_store(w: &mut World, warp: usize, shift: u32, granule: u64, value: u8) {
    let n = 2usize << shift;
    w.line += 1;
    let i = Whole { warp: w.warps[warp], line: w.line, shift, granule };
    let host: Vec<_> =
        (0..n as u64).map(|k| w.model.newest(granule + k).unwrap_or_default()).collect();
    let slow = w.model.store_whole(i, &host, &vec![[value; 16]; n]);
    for k in (0..n).filter(|k| slow >> k & 1 == 1) {
        for (t, off, len) in i.lanes(k) {
            let a = part(i, k, off, len);
            w.model.store(t, a, [value; 16], &host[k]);
        }
    }
}

fn whole_load(w: &mut World, warp: usize, shift: u32, granule: u64) -> Vec<u8> {
    let n = 2usize << shift;
    w.line += 1;
    let i = Whole { warp: w.warps[warp], line: w.line, shift, granule };
    let mut host: Vec<_> =
        (0..n as u64).map(|k| w.model.newest(granule + k).unwrap_or_default()).collect();
    let slow = w.model.load_whole(i, &host);
    for k in (0..n).filter(|k| slow >> k & 1 == 1) {
        for (t, off, len) in i.lanes(k) {
            let bytes = w.model.load(t, part(i, k, off, len), &host[k].clone(), false).unwrap();
            host[k][off..off + len].copy_from_slice(&bytes[off..off + len]);
        }
    }
    host.concat()
}

fn part(i: Whole, n: usize, off: usize, len: usize) -> Access {
    let mask = (((1u32 << len) - 1) << off) as u16;
    Access {
        granule: i.granule + n as u64,
        mask,
        element: 4,
        sem: Sem::Weak,
        scope: Scope::Cta,
        line: i.line,
        slot: 0,
    }
}

#[test]
fn accesses_of_whole_warps_are_those_of_their_lanes() {
    for shift in 0..=5 {
        let relay = |send: bool, receive: bool| {
            move |w: &mut World| {
                whole_store(w, 0, shift, 0, 1);
                if send {
                    w.sync(0, !0);
                }
                w.store((0, 0), FLAG, Sem::Release, 1);
                w.acquire((1, 0), FLAG, 1);
                if receive {
                    w.sync(1, !0);
                }
                *whole_load(w, 1, shift, 0).last().unwrap()
            }
        };
        judge(true, 2, relay(true, true));
        judge(false, 2, relay(false, true));
        judge(false, 2, relay(true, false));
    }
}

#[test]
fn a_lane_races_with_another_lanes_part_of_a_whole_store() {
    // Lane 1 wrote bytes 4 to 7 of granule 0; lane 0, whose access this is, bytes 0 to 3.
    for (mask, races) in [(0xf, 0), (0xf0, 1)] {
        let mut w = World::new(0, 1);
        whole_store(&mut w, 0, 2, 0, 1);
        let t = w.thread((0, 0));
        let a = Access { mask, ..w.access(0, Sem::Weak) };
        let _ = w.model.load(t, a, &[0; 16], false);
        let found = w.model.take_races();
        assert_eq!(found.len(), races);
        assert!(found.iter().all(|r| (r.first.who.lane, r.mask) == (1, 0xf0)));
    }
}

/// The same random accesses by the whole-warp path and lane by lane: the same values, races on the same granules.
#[test]
fn the_compact_path_finds_the_same_races() {
    let run = |seed: u64, compact: bool| {
        let mut w = World::new(seed, 3);
        w.model.config.weak = false;
        let mut values = Vec::new();
        for n in 0..60 {
            let warp = w.model.random(3) as usize;
            let (shift, granule) = (w.model.random(6) as u32, w.model.random(4));
            if !compact {
                // A history is what the compact cell gives way to.
                for g in 0..80 {
                    w.model.shadow.slot(g, &[0; 16], &mut 0);
                }
            }
            match w.model.random(4) {
                0 => whole_store(&mut w, warp, shift, granule, n),
                1 => values.extend(whole_load(&mut w, warp, shift, granule)),
                2 => w.sync(warp, !0),
                _ => {
                    w.store((warp, 0), FLAG, Sem::Release, n);
                    let _ = w.load(((warp + 1) % 3, 0), FLAG, Sem::Acquire);
                }
            }
        }
        (values, w.model.racy)
    };
    let mut clean = 0;
    for seed in 0..100 {
        let (a, b) = (run(seed, true), run(seed, false));
        assert!(a.0 == b.0, "other values, seed {seed}");
        assert_eq!(a.1, b.1, "seed {seed}");
        clean += usize::from(b.1.len() < 60);
    }
    assert!(clean > 10, "all granules race in nearly all seeds: the test shows nothing");
}

#[test]
fn a_flag_that_is_written_often_still_releases() {
    // The reader looks rarely, so it may see a write that is close to being forgotten.
    for seed in 0..SEEDS {
        let (mut w, mut last) = (World::new(seed, 2), 0);
        for n in 1..=60 {
            w.store((0, 0), 1 + u64::from(n), Sem::Weak, 1);
            w.store((0, 0), FLAG, Sem::Release, n);
            if n % 15 < 4 {
                for _ in 0..4 {
                    let flag = w.load((1, 0), FLAG, Sem::Acquire);
                    assert!(flag >= last, "seed {seed}: {flag} after {last}");
                    last = flag;
                    if flag > 0 {
                        assert_eq!(
                            w.load((1, 0), 1 + u64::from(flag), Sem::Weak),
                            1,
                            "seed {seed}"
                        );
                    }
                }
            }
        }
        assert!(w.model.take_races().is_empty(), "seed {seed}");
    }
}

/// A bulk copy of a lane reads what another lane of its warp wrote.
fn copied(w: &mut World, sync: bool, fencing: u32) -> u8 {
    w.store((0, 7), 1, Sem::Weak, 1);
    if fencing != 0 {
        w.model.proxy_fence(w.warps[0], fencing);
    }
    if sync {
        w.sync(0, !0);
    }
    let copy = w.issue((0, 0));
    w.load((copy, 0), 1, Sem::Weak)
}

#[test]
fn a_copy_knows_what_proxy_fences_knew_that_its_lane_knows_of() {
    for (sync, fencing, ordered) in [
        (true, 1 << 7, true),
        (true, !0, true),
        // No fence, or one of a lane that does not know the write yet.
        (true, 0, false),
        (true, 1 << 6, false),
        // A fence that the issuing lane does not know of, or only its own.
        (false, 1 << 7, false),
        (false, 1 | 1 << 7, false),
    ] {
        judge(ordered, 1, |w| copied(w, sync, fencing));
    }
    // A fence by the issuing lane after the barrier does it, too.
    judge(true, 1, |w| {
        w.store((0, 7), 1, Sem::Weak, 1);
        w.sync(0, !0);
        w.model.proxy_fence(w.warps[0], 1);
        let copy = w.issue((0, 0));
        w.load((copy, 0), 1, Sem::Weak)
    });
}

#[test]
fn the_lane_that_waits_for_a_copy_knows_what_it_did() {
    for (lane, sync, ordered) in [(0, false, true), (5, false, false), (5, true, true)] {
        judge(ordered, 1, |w| {
            let copy = w.issue((0, 0));
            w.store((copy, 0), 1, Sem::Weak, 1);
            let told = w.model.tell(w.warps[copy]);
            w.model.hear(w.thread((0, 0)), &told);
            if sync {
                w.sync(0, !0);
            }
            w.load((0, lane), 1, Sem::Weak)
        });
    }
    // Who waits until it has read does not know what it writes then.
    judge(false, 1, |w| {
        let copy = w.issue((0, 0));
        let told = w.model.tell(w.warps[copy]);
        w.store((copy, 0), 1, Sem::Weak, 1);
        w.model.hear(w.thread((0, 0)), &told);
        w.load((0, 0), 1, Sem::Weak)
    });
}

#[test]
fn copies_know_of_copies_without_a_proxy_fence() {
    for (waits, ordered) in [(true, true), (false, false)] {
        judge(ordered, 1, |w| {
            let first = w.issue((0, 0));
            w.store((first, 0), 1, Sem::Weak, 1);
            let told = w.model.tell(w.warps[first]);
            if waits {
                w.model.hear(w.thread((0, 0)), &told);
            }
            assert_eq!(w.model.is_over(w.warps[first], w.thread((0, 0))), waits);
            let second = w.issue((0, 0));
            w.load((second, 0), 1, Sem::Weak)
        });
    }
}

#[test]
fn reads_are_over_for_a_copy_without_a_proxy_fence() {
    for (sync, races) in [(true, 0), (false, 1)] {
        let mut w = World::new(0, 1);
        let _ = w.load((0, 7), 1, Sem::Weak);
        if sync {
            w.sync(0, !0);
        }
        let copy = w.issue((0, 0));
        w.store((copy, 0), 1, Sem::Weak, 1);
        assert_eq!(w.model.take_races().len(), races, "{sync}");
    }
}

#[test]
fn proxy_fences_are_forgotten_one_lane_at_a_time() {
    let mut w = World::new(0, 1);
    w.model.config.weak = false;
    for n in 0..20 {
        w.store((0, 7), n, Sem::Weak, 1);
        w.model.proxy_fence(w.warps[0], if n == 0 { 1 << 7 } else { 1 << 9 });
    }
    w.sync(0, !0);
    let copy = w.issue((0, 0));
    let _ = w.load((copy, 0), 0, Sem::Weak);
    assert_eq!(w.model.take_races(), []);
    let _ = w.load((copy, 0), 1, Sem::Weak);
    assert_eq!(w.model.take_races().len(), 1);
}

#[test]
fn numbers_of_ended_warps_are_used_again() {
    [4, 40].into_iter().for_each(numbers_are_used_again);
}

/// Some warps, a sixteenth, are forgotten together.
fn numbers_are_used_again(ended_limit: usize) {
    let forgotten = ended_limit + 2;
    let mut w = World::new(1, 1);
    w.model.ended_limit = ended_limit;
    let at = Position { cta: 7, gpu: 0, lanes: !0, kernel: 0 };
    for n in 0..200u8 {
        let warp = w.model.warp(at, &Default::default());
        w.warps.push(warp);
        let me = w.warps.len() - 1;
        // Of what is forgotten, nothing races, and nothing but its value is seen.
        if let Some(old) = n.checked_sub(forgotten as u8) {
            assert_eq!(w.load((me, 0), u64::from(old), Sem::Weak), old);
        }
        assert!(w.model.take_races().is_empty(), "warp {n}");
        w.store((me, 1), u64::from(n), Sem::Weak, n);
        w.model.finish(warp, &mut Know::default());
    }
    assert!(w.model.warps.len() <= forgotten + 1, "{}", w.model.warps.len());
    // The last one is not forgotten.
    let _ = w.load((0, 0), 199, Sem::Weak);
    assert_eq!(w.model.take_races().len(), 1);
    assert!(w.model.know(w.thread((0, 0))).size() <= forgotten + 1);
    // What the warps of a launch begin with is large: they share it.
    let know = Arc::default();
    let begun =
        [(); 2].map(|()| w.model.warp(at, &know)).map(|n| w.model.warps[n as usize].common.clone());
    assert!(Arc::ptr_eq(&begun[0], &begun[1]) && begun[0].size() > 0);
}

#[test]
fn what_is_gone_takes_no_memory() {
    let mut w = World::new(1, 1);
    for round in 0..50u64 {
        let at = Position { cta: 100 + round, gpu: 0, lanes: !0, kernel: 0 };
        w.warps[0] = w.model.warp(at, &Default::default());
        let shared = 1 << 40 | round << 12;
        for n in 0..40 {
            w.store((0, 0), shared + n, Sem::Release, n as u8);
        }
        w.model.fence(w.warps[0], 1, Sem::Sc, Scope::Gpu);
        w.model.arrive((at.cta, 0), w.warps[0], 1);
        w.model.finish(w.warps[0], &mut Know::default());
        w.model.forget_granules(shared..shared + (1 << 12));
        w.model.forget_barriers(at.cta..at.cta + 1);
        w.model.forget_block(at.cta, 0);
    }
    assert_eq!(w.model.barriers.len(), 0);
    assert_eq!(w.model.sc.len(), 1);
    assert_eq!(w.model.shadow.size(), (0, 40));
}

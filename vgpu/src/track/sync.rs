//! Fences and barriers of the memory model.

use std::sync::Arc;

use super::clock::{Claim, Know, Thread};
use super::model::{FenceOf, Model};
use crate::exec::warp::{Scope, Sem};

/// The threads of some lanes of a warp.
pub(super) fn threads(warp: u32, lanes: u32) -> impl Iterator<Item = Thread> {
    (0..32u8).filter(move |l| lanes >> l & 1 == 1).map(move |lane| Thread { warp, lane })
}

/// Lanes of a warp at a barrier.
#[derive(Clone, Copy, Debug)]
pub struct Party {
    /// The warp.
    pub warp: u32,
    /// Those of its lanes that are there.
    pub lanes: u32,
    /// Those that have not exited.
    pub live: u32,
}

impl Model {
    /// A fence by each of these lanes.
    pub fn fence(&mut self, warp: u32, lanes: u32, sem: Sem, scope: Scope) {
        for t in threads(warp, lanes) {
            // A strong read that is still to come could be the one that this fence acquires by, unless nobody else is in its scope.
            let strong = |d: &super::deferred::Deferred| d.who == t && d.access.strong().is_some();
            if self.deferred.iter().any(strong) && !self.is_alone(t, scope) {
                self.flush(strong);
            }
            if sem.acquires() {
                self.acquire_seen(t, scope, |_| true);
            }
        }
        if sem == Sem::Sc {
            self.fence_sc(warp, lanes, scope);
        }
        if sem.releases() {
            self.release_fence(warp, lanes, scope);
        }
    }

    /// Each lane's fence comes after all earlier ones that are morally strong to it; those of a warp in any order.
    fn fence_sc(&mut self, warp: u32, lanes: u32, scope: Scope) {
        let at = self.warps[warp as usize].at;
        let mutual = |&(s, cta, gpu): &(Scope, u64, u32)| {
            let within = |s| s == Scope::Sys || gpu == at.gpu && (s == Scope::Gpu || cta == at.cta);
            within(scope) && within(s)
        };
        let first = self.random(32) as u32;
        let turn = |n: u32| (n + first) % 32;
        for lane in (0..32).map(turn).filter(|l| lanes >> l & 1 == 1) {
            let t = Thread { warp, lane: lane as u8 };
            let earlier: Vec<Know> =
                self.sc.iter().filter(|(k, _)| mutual(k)).map(|(_, know)| know.clone()).collect();
            for know in earlier {
                self.learn(t, &know, None);
            }
            let (claim, know) = (self.claim(warp, t.bit()), self.know(t));
            let sc = self.sc.entry((scope, at.cta, at.gpu)).or_default();
            sc.join(&know);
            sc.add(claim);
        }
    }

    fn release_fence(&mut self, warp: u32, lanes: u32, scope: Scope) {
        let Claim { lanes: claimed, clock, .. } = self.claim(warp, lanes);
        let w = &mut self.warps[warp as usize];
        for f in w.fences.iter_mut().filter(|f| f.scope <= scope) {
            f.lanes &= !lanes;
        }
        w.fences.retain(|f| f.lanes != 0);
        let idle = claimed & !lanes;
        // Lanes that know the same share an entry.
        for (lanes, know) in w.alike(lanes) {
            w.fences.push(FenceOf { lanes, clock, idle, scope, know });
        }
    }

    /// What some lanes of a warp know and have done: the knowledge that they bring to a barrier.
    fn bring(&mut self, into: &mut Know, warp: u32, lanes: u32) {
        self.flush(|d| {
            d.who.warp == warp && lanes & d.who.bit() != 0 && d.access.strong().is_some()
        });
        let claim = self.claim(warp, lanes);
        let w = &self.warps[warp as usize];
        let mut last: Option<&Arc<Know>> = None;
        for t in threads(warp, lanes) {
            let know = w.know(t.lane);
            if !last.is_some_and(|l| Arc::ptr_eq(l, know)) {
                into.join(know);
            }
            last = Some(know);
        }
        into.add(claim);
    }

    /// Lanes arrive at a barrier: those who leave it know what they know.
    pub fn arrive(&mut self, barrier: (u64, u32), warp: u32, lanes: u32) {
        let mut know = std::mem::take(&mut self.barriers.entry(barrier).or_default().arrived);
        self.bring(&mut know, warp, lanes);
        self.barriers.entry(barrier).or_default().arrived = know;
    }

    /// All have arrived, and leave.
    pub fn complete(&mut self, barrier: (u64, u32), parties: &[Party]) {
        if let Some(b) = self.barriers.remove(&barrier) {
            self.adopt(parties, Arc::new(b.arrived));
        }
    }

    /// All have arrived; who looks later learns it with [`Model::pass`].
    pub fn turn(&mut self, barrier: (u64, u32)) {
        let b = self.barriers.entry(barrier).or_default();
        let arrived = std::mem::take(&mut b.arrived);
        Arc::make_mut(&mut b.passed).join(&arrived);
    }

    /// A thread has seen that a barrier has turned.
    pub fn pass(&mut self, barrier: (u64, u32), t: Thread) {
        if let Some(passed) = self.barriers.get(&barrier).map(|b| b.passed.clone()) {
            self.learn(t, &passed, None);
        }
    }

    /// A barrier among lanes of a warp.
    pub fn warp_barrier(&mut self, party: Party) {
        let mut know = Know::default();
        self.bring(&mut know, party.warp, party.lanes);
        self.adopt(&[party], Arc::new(know));
    }

    /// All lanes at a barrier now know the same, which contains what each of them knew.
    fn adopt(&mut self, parties: &[Party], know: Arc<Know>) {
        self.flush(|d| know.knows(d.who, d.clock));
        for p in parties {
            let w = &mut self.warps[p.warp as usize];
            if p.live & !p.lanes == 0 {
                w.common = know.clone();
                w.apart = 0;
                w.own = Default::default();
                continue;
            }
            w.apart |= p.lanes;
            for t in threads(p.warp, p.lanes) {
                w.own[t.lane as usize] = Some(know.clone());
            }
        }
    }
}

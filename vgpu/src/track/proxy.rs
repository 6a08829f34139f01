//! The async proxy: a bulk copy is a warp of its own.
//!
//! A copy knows of the generic proxy's *writes* what a `fence.proxy.async` knew that the issuing lane knows of, and of the async
//! proxy's own accesses all that the issuing lane knows. Generic *reads* need no proxy fence to be over before a copy
//! writes: pipelines hand buffers back to the copy engine by a barrier alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clock::{Claim, Know, Thread};
use super::model::Model;
use super::sync::threads;

/// A proxy fence by lanes of a warp that knew the same.
#[derive(Debug)]
struct ProxyFence {
    lanes: u32,
    clock: u32,
    know: Arc<Know>,
}

/// Proxy fences that are remembered of each lane. With fewer, a copy would know less than it may: a false report.
const FENCES: usize = 8;

/// The proxy fences so far.
#[derive(Debug, Default)]
pub(super) struct ProxyFences {
    /// By warp, the oldest first.
    all: BTreeMap<u32, Vec<ProxyFence>>,
    /// What those of warps knew whose numbers are in use again: every copy knows it.
    retired: Know,
}

impl ProxyFences {
    fn add(&mut self, warp: u32, fence: ProxyFence) {
        let mine = self.all.entry(warp).or_default();
        mine.push(fence);
        let mut seen = [0; 32];
        for f in mine.iter_mut().rev() {
            for t in threads(warp, f.lanes) {
                let n = &mut seen[usize::from(t.lane)];
                *n += 1;
                f.lanes &= if *n > FENCES { !t.bit() } else { !0 };
            }
        }
        mine.retain(|f| f.lanes != 0);
    }

    /// What the fences knew that are known.
    fn known_by(&self, know: &Know) -> Know {
        let mut known = self.retired.clone();
        for (&warp, fences) in &self.all {
            for f in fences {
                let lanes = f.lanes & know.lanes_of(warp, f.clock);
                if lanes != 0 {
                    known.join(&f.know);
                    known.add(Claim { warp, lanes, clock: f.clock });
                }
            }
        }
        known
    }

    /// The fences of these warps are known to all from now on, and all know what `tell` adds.
    pub fn retire(&mut self, warps: &[u32], mut tell: impl FnMut(&mut Arc<Know>)) {
        for f in warps.iter().flat_map(|warp| self.all.remove(warp)).flatten() {
            self.retired.join(&f.know);
        }
        self.all.values_mut().flatten().for_each(|f| tell(&mut f.know));
    }
}

/// What a copy did and knew at one of its steps: those who wait for that learn it.
#[derive(Clone, Debug)]
pub struct Told {
    know: Arc<Know>,
    claim: Claim,
}

impl Model {
    /// `fence.proxy.async` of some lanes.
    pub fn proxy_fence(&mut self, warp: u32, lanes: u32) {
        // A lane that has done nothing else may bring a barrier's knowledge to the fence: it is not idle.
        self.warps[warp as usize].acted |= lanes;
        let clock = self.claim(warp, lanes).clock;
        for (lanes, know) in self.warps[warp as usize].alike(lanes) {
            self.proxy_fences.add(warp, ProxyFence { lanes, clock, know });
        }
    }

    /// A warp for copies of another one, which knows what is known to all.
    pub fn proxy_warp(&mut self, issuer: u32, known: &Arc<Know>) -> u32 {
        let at = self.warps[issuer as usize].at;
        let copy = self.warp(at, known);
        self.warps[copy as usize].is_proxy = true;
        copy
    }

    /// True if a thread knows all that a warp of copies has done.
    pub fn is_over(&self, copy: u32, by: Thread) -> bool {
        let lanes = self.warps[copy as usize].acted;
        let clock = self.warps[copy as usize].clock - 1;
        self.know(by).knows_lanes(Claim { warp: copy, lanes, clock })
    }

    /// A lane issues a copy that this warp will do.
    pub fn issue(&mut self, issuer: Thread, copy: u32) {
        let claim = self.claim(issuer.warp, issuer.bit());
        let mut over = (*self.know(issuer)).clone();
        over.add(claim);
        // What the copy takes for over is over.
        self.flush(|d| over.knows(d.who, d.clock));
        let mut known = self.proxy_fences.known_by(&over);
        known.join(&over.about(|w| self.warps[w as usize].is_proxy));
        known.join(&self.retired);
        let w = &mut self.warps[copy as usize];
        Arc::make_mut(&mut w.common).join(&known);
        w.over = Arc::new(over);
    }

    /// What a copy's warp has done and knows now.
    pub fn tell(&mut self, copy: u32) -> Told {
        let claim = self.claim(copy, !0);
        Told { know: self.warps[copy as usize].common.clone(), claim }
    }

    /// A thread has waited for a step of a copy.
    pub fn hear(&mut self, t: Thread, told: &Told) {
        self.learn(t, &told.know, Some(told.claim));
    }
}

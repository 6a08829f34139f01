//! Beginning and end of warps in the model, and how their numbers are used again.

use std::collections::HashMap;
use std::sync::Arc;

use super::clock::{Claim, Know};
use super::model::{Model, Position, Warp};
use crate::exec::warp::Scope;

/// Ended warps that the model tells apart. Of those that ended before, everything counts as known to all: that hides races with
/// them, and keeps clocks from growing when launches overlap for ever.
pub(super) const ENDED: usize = 1 << 14;

/// Stands for blocks that have ended.
const NO_BLOCK: u64 = u64::MAX;

impl Model {
    /// A new warp whose lanes know what `know` knows.
    pub fn warp(&mut self, at: Position, know: &Arc<Know>) -> u32 {
        debug_assert!(
            know.first_beyond(|w| self.warps.get(w as usize).map_or(0, |w| w.clock)).is_none(),
            "knowledge from before the model was reset"
        );
        if self.free.is_empty() && self.ended.len() > self.ended_limit {
            self.retire(1 + self.ended_limit / 16);
        }
        let mut w = Warp { at, clock: 1, common: self.with_retired(know), ..Warp::default() };
        let Some(n) = self.free.pop() else {
            self.warps.push(w);
            return self.warps.len() as u32 - 1;
        };
        w.clock += self.warps[n as usize].clock;
        self.warps[n as usize] = w;
        n
    }

    /// Knowledge, and what counts as known to all. The warps of a launch begin with the same, and share it.
    fn with_retired(&mut self, know: &Arc<Know>) -> Arc<Know> {
        if self.retired == Know::default() {
            return know.clone();
        }
        match &self.begun {
            Some((begun, with)) if Arc::ptr_eq(begun, know) => with.clone(),
            _ => {
                let mut with = know.clone();
                Arc::make_mut(&mut with).join(&self.retired);
                self.begun = Some((know.clone(), with.clone()));
                with
            }
        }
    }

    /// Makes what the warps did that ended first known to all; their numbers can be used again. Many at once, since knowledge is large.
    fn retire(&mut self, count: usize) {
        let mut gone = Know::default();
        for n in self.ended.drain(..count) {
            gone.add(Claim { warp: n, lanes: !0, clock: self.warps[n as usize].clock });
            self.free.push(n);
        }
        // Who shared knowledge goes on sharing it.
        let mut told: HashMap<*const Know, (Arc<Know>, Arc<Know>)> = HashMap::new();
        let mut tell = |know: &mut Arc<Know>| {
            let (_, more) = told.entry(Arc::as_ptr(know)).or_insert_with(|| {
                let mut more = know.clone();
                Arc::make_mut(&mut more).join(&gone);
                (know.clone(), more)
            });
            *know = more.clone();
        };
        for w in self.warps.iter_mut().filter(|w| !w.ended) {
            tell(&mut w.common);
            w.own.iter_mut().flatten().for_each(&mut tell);
            tell(&mut w.over);
        }
        self.proxy_fences.retire(&self.free, &mut tell);
        for b in self.barriers.values_mut() {
            b.arrived.join(&gone);
            tell(&mut b.passed);
        }
        for know in self.sc.values_mut() {
            know.join(&gone);
        }
        self.retired.join(&gone);
        self.begun = None;
    }

    /// A warp has ended: adds what its lanes knew and did to `into`. Everything it deferred is performed.
    pub fn finish(&mut self, warp: u32, into: &mut Know) {
        self.flush(|d| d.who.warp == warp);
        let claim = self.claim(warp, !0);
        let w = &mut self.warps[warp as usize];
        into.join(&w.common);
        w.own.iter().flatten().for_each(|know| into.join(know));
        into.add(claim);
        let Warp { at, clock, is_proxy, .. } = *w;
        *w = Warp { at, clock, is_proxy, ended: true, ..Warp::default() };
        self.ended.push_back(warp);
    }

    /// Forgets granules that nobody will touch again: shared memory of an ended block, freed memory.
    pub fn forget_granules(&mut self, granules: std::ops::Range<u64>) {
        self.shadow.remove(granules);
    }

    /// Merges the `fence.sc` of an ended block with those of others: only a scope of that block would tell them apart.
    pub fn forget_block(&mut self, cta: u64, gpu: u32) {
        for scope in [Scope::Cta, Scope::Gpu, Scope::Sys] {
            if let Some(know) = self.sc.remove(&(scope, cta, gpu))
                && scope != Scope::Cta
            {
                self.sc.entry((scope, NO_BLOCK, gpu)).or_default().join(&know);
            }
        }
    }

    /// Forgets barriers that nobody will use again, by the first part of their names.
    pub fn forget_barriers(&mut self, names: std::ops::Range<u64>) {
        let range = (names.start, 0)..(names.end, 0);
        let gone: Vec<_> = self.barriers.range(range).map(|b| *b.0).collect();
        for key in gone {
            self.barriers.remove(&key);
        }
    }
}

//! Loads, stores and atomics of single threads.

use super::clock::{Claim, Know, NOBODY, Thread};
use super::deferred::Update;
use super::history::{Extra, Release, Write};
use super::model::{Access, Model, Seen};
use crate::exec::warp::Scope;

impl Model {
    /// Loads; `initial` is what the granule holds if it was never touched. An error is a ticket: the load is deferred.
    pub fn load(
        &mut self,
        t: Thread,
        mut a: Access,
        initial: &[u8; 16],
        may_defer: bool,
    ) -> Result<[u8; 16], u64> {
        let clock = self.before(t, &mut a, initial);
        if may_defer && self.config.weak && !a.sem.acquires() && self.random(3) == 0 {
            return Err(self.defer(t, clock, a, None));
        }
        let know = self.know(t);
        let data = self.read(t, clock, &know, &a);
        self.acquire_after(t, &a);
        Ok(data)
    }

    pub(super) fn read(&mut self, t: Thread, clock: u32, know: &Know, a: &Access) -> [u8; 16] {
        self.check(t, clock, know, a, false);
        let h = self.history(a);
        let (floor, last) = (h.floor(a.mask, t, know), h.writes.len() - 1);
        if self.config.weak {
            let open = h.unordered(a.mask, t, know, floor);
            if !open.is_empty() && self.random(2) == 0 {
                let at = open[self.random(open.len() as u64) as usize];
                self.observe(t, clock, know, a, at);
                return self.history(a).writes[at].data;
            }
        }
        let at = self.pick(floor, last);
        self.observe(t, clock, know, a, at);
        self.history(a).at(at)
    }

    /// Notes that a strong read saw the writes up to `at`, and what they release.
    fn observe(&mut self, t: Thread, clock: u32, know: &Know, a: &Access, at: usize) {
        if a.strong().is_none() {
            return;
        }
        let writes = &self.history(a).writes;
        let seen = (0..=at).rev().find(|&n| writes[n].mask & a.mask != 0).unwrap_or(0);
        if !self.fits(t, a, &writes[seen]) {
            return;
        }
        let unknown = |r: &&Release| r.who != t && !know.knows(r.who, r.claim.clock);
        let releases: Vec<Release> =
            writes[seen].releases().iter().filter(unknown).cloned().collect();
        self.history_mut(a).writes[seen].read_by(t, clock);
        let place = (a.granule, a.mask);
        let all = &mut self.warps[t.warp as usize].seen;
        for r in releases {
            // A thread's later release at the same place holds all that an earlier one with no wider scope does.
            all.retain(|s| {
                let same = s.lane == t.lane && s.place == place && s.release.who == r.who;
                !same || s.release.scope > r.scope || s.release.claim.clock > r.claim.clock
            });
            all.push(Seen { lane: t.lane, place, release: r });
        }
    }

    /// The acquire side of a load or atomic: all that was seen at this location.
    fn acquire_after(&mut self, t: Thread, a: &Access) {
        if a.sem.acquires() {
            self.acquire_seen(t, a.scope, |s| s.place == (a.granule, a.mask));
        }
    }

    /// Acquires some of what a thread's strong reads saw, and drops what is known from the list.
    pub(super) fn acquire_seen(&mut self, t: Thread, scope: Scope, which: impl Fn(&Seen) -> bool) {
        let w = &self.warps[t.warp as usize];
        if w.seen.is_empty() {
            return;
        }
        let mine = |s: &&Seen| s.lane == t.lane && which(s);
        let seen: Vec<Release> = w.seen.iter().filter(mine).map(|s| s.release.clone()).collect();
        self.acquire(t, scope, &seen);
        let w = &mut self.warps[t.warp as usize];
        let know = w.know(t.lane).clone();
        w.seen.retain(|s| s.lane != t.lane || !know.knows(s.release.who, s.release.claim.clock));
    }

    /// Stores.
    pub fn store(&mut self, t: Thread, mut a: Access, data: [u8; 16], initial: &[u8; 16]) {
        let clock = self.before(t, &mut a, initial);
        let know = self.know(t);
        self.check(t, clock, &know, &a, true);
        let h = self.history(&a);
        let (floor, last) = (h.floor(a.mask, t, &know), h.writes.len() - 1);
        let mut at = self.pick(floor, last) + 1;
        // Not between an atomic and what it read.
        let writes = &self.history(&a).writes;
        while let Some(n) = (at..writes.len()).find(|&n| writes[n].mask & a.mask != 0) {
            let next = &writes[n];
            let strong = a.strong();
            // A weak store beside an atomic is a race; keep it out of the chain all the same.
            if !next.atomic
                || strong.is_some() && !self.morally_strong(t, strong, next.who, next.strong)
            {
                break;
            }
            at = n + 1;
        }
        let releases = self.releases(t, &a);
        self.insert(t, clock, &a, data, at, releases, false);
    }

    /// What a strong write of this thread releases.
    fn releases(&mut self, t: Thread, a: &Access) -> Vec<Release> {
        if a.strong().is_none() {
            return Vec::new();
        }
        let here = (t.lane, a.granule, a.mask);
        if a.sem.releases() {
            let claim = self.claim(t.warp, t.bit());
            let r = Release { who: t, claim, scope: a.scope, know: self.know(t) };
            let at = self.warps[t.warp as usize].stores.entry(here).or_default();
            at.retain(|x| x.scope > r.scope);
            at.push(r);
        }
        let me = &self.warps[t.warp as usize];
        let mut all = me.stores.get(&here).cloned().unwrap_or_default();
        all.extend(me.fences.iter().filter(|f| f.lanes & t.bit() != 0).map(|f| Release {
            who: t,
            claim: Claim { warp: t.warp, lanes: t.bit() | f.idle, clock: f.clock },
            scope: f.scope,
            know: f.know.clone(),
        }));
        all
    }

    #[allow(clippy::too_many_arguments, reason = "a write has that many properties")]
    fn insert(
        &mut self,
        t: Thread,
        clock: u32,
        a: &Access,
        data: [u8; 16],
        at: usize,
        releases: Vec<Release>,
        atomic: bool,
    ) {
        self.ids += 1;
        let id = self.ids;
        let after = if self.config.weak { self.place(t, a, at, id) } else { Vec::new() };
        let extra = (!releases.is_empty() || !after.is_empty())
            .then(|| Box::new(Extra { releases, after, ..Extra::default() }));
        let (strong, element) = (a.strong(), a.element);
        let plain = Write::plain(a.mask, data, t, clock, a.line);
        self.history_mut(a).insert(at, Write { strong, element, atomic, id, extra, ..plain });
    }

    /// Where a new write stands in the order that the model demands: returns what is before it, tells who is behind it.
    fn place(&mut self, t: Thread, a: &Access, at: usize, id: u64) -> Vec<u64> {
        let know = self.know(t);
        let writes = &self.history(a).writes;
        let fits = |w: &Write| self.fits(t, a, w);
        let mut before: Vec<u64> = Vec::new();
        // The first write of a granule is before all others anyway.
        for w in writes[..at].iter().filter(|w| w.mask & a.mask != 0 && w.who.warp != NOBODY) {
            if w.is_known(t, &know) || fits(w) {
                before.push(w.id);
                before.extend(w.after());
            }
        }
        before.sort_unstable();
        before.dedup();
        if at == writes.len() {
            return before;
        }
        let mut behind: Vec<u64> = writes[at..].iter().filter(|w| fits(w)).map(|w| w.id).collect();
        let follows = |w: &&Write| w.after().iter().any(|x| behind.contains(x));
        let more: Vec<u64> = writes[at..].iter().filter(follows).map(|w| w.id).collect();
        behind.extend(more);
        let h = self.history_mut(a);
        for w in h.writes[at..].iter_mut().filter(|w| behind.contains(&w.id)) {
            w.extra().after.push(id);
            w.extra().after.extend(&before);
        }
        before
    }

    /// An atomic: reads, and writes what `f` makes of it, with nothing in between.
    pub fn atomic(
        &mut self,
        t: Thread,
        mut a: Access,
        initial: &[u8; 16],
        may_defer: bool,
        f: Update,
    ) -> Result<[u8; 16], u64> {
        let clock = self.before(t, &mut a, initial);
        if may_defer
            && self.config.weak
            && !a.sem.acquires()
            && !a.sem.releases()
            && self.random(4) == 0
        {
            return Err(self.defer(t, clock, a, Some(f)));
        }
        let know = self.know(t);
        let data = self.modify(t, clock, &know, &a, &*f);
        self.acquire_after(t, &a);
        Ok(data)
    }

    pub(super) fn modify(
        &mut self,
        t: Thread,
        clock: u32,
        know: &Know,
        a: &Access,
        f: &dyn Fn(&[u8; 16]) -> [u8; 16],
    ) -> [u8; 16] {
        self.check(t, clock, know, a, true);
        let places = self.free_places(t, know, a);
        let at = places[self.pick(0, places.len() - 1)];
        self.observe(t, clock, know, a, at);
        let h = self.history(a);
        let old = h.at(at);
        let read = (0..=at).rev().find(|&n| h.writes[n].mask & a.mask != 0).unwrap_or(0);
        let source = &h.writes[read];
        let inherited =
            if self.fits(t, a, source) { source.releases().to_vec() } else { Vec::new() };
        // An acquire-release atomic releases what it has just acquired.
        self.acquire_after(t, a);
        let mut releases = self.releases(t, a);
        for r in inherited {
            if !releases.iter().any(|x| x.who == r.who && x.claim.clock == r.claim.clock) {
                releases.push(r);
            }
        }
        self.insert(t, clock, a, f(&old), at + 1, releases, true);
        old
    }

    /// Writes that an atomic may read and directly follow: nothing morally strong has already done so.
    fn free_places(&self, t: Thread, know: &Know, a: &Access) -> Vec<usize> {
        let h = self.history(a);
        let free = |at: &usize| {
            let next = (at + 1..h.writes.len()).find(|&n| h.writes[n].mask & a.mask != 0);
            next.is_none_or(|n| {
                let w = &h.writes[n];
                !w.atomic || !self.morally_strong(t, Some(a.scope), w.who, w.strong)
            })
        };
        (h.floor(a.mask, t, know)..h.writes.len()).filter(free).collect()
    }
}

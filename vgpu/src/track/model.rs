//! The PTX memory model, operationally: its state, and what threads know.
//!
//! See ARCHITECTURE.md for the rules. Nothing here knows of kernels or host memory: a *thread* is a lane of a warp, a *granule*
//! is 16 bytes, and the model returns the bytes that a load sees.
//!
//! Invariants of knowledge:
//! * a thread knows its own operations without saying so; [`Know`] is about the others'.
//! * `Warp::common` is known to every lane of the warp; a lane in `apart` has its own knowledge, which contains `common`.
//! * who takes over a claim about a thread up to a clock also takes over what that thread knew then, so knowledge is closed.
//! * the clock of a warp goes on after each claim about one of its lanes. So a claim may include lanes that have not done
//!   anything yet: what they do later has a later clock. That keeps claims of warps whose other lanes are idle in one number.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::clock::{Claim, FastMap, Know, NOBODY, Thread};
use super::deferred::Deferred;
use super::history::{History, Release, Write};
use super::proxy::ProxyFences;
use super::race::{InstPair, Race};
use super::shadow::{Mode, Shadow};
use crate::exec::warp::{Scope, Sem};

/// What the model is to do beyond sequential consistency.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Stale loads, late stores, deferred loads.
    pub weak: bool,
    /// Report races.
    pub race: bool,
    /// Seed of every choice.
    pub seed: u64,
}

/// An access as the model sees it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Granule number (identity of the bytes / 16, or anything unique).
    pub granule: u64,
    /// Bytes of the granule.
    pub mask: u16,
    /// Bytes of an element: a vector is so many accesses to the model.
    pub element: u8,
    /// Order.
    pub sem: Sem,
    /// Scope.
    pub scope: Scope,
    /// PTX line, for reports.
    pub line: u32,
    /// The model's own note of where the granule's history is; any value will do.
    pub slot: u32,
}

impl Access {
    /// The scope if it is strong.
    pub(super) fn strong(&self) -> Option<Scope> {
        (self.sem != Sem::Weak).then_some(self.scope)
    }
}

/// Where a warp is and what it is called in reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Position {
    /// Block, unique among all.
    pub cta: u64,
    /// Device.
    pub gpu: u32,
    /// Lanes that exist.
    pub lanes: u32,
    /// Kernel: a race is reported once for each two lines of kernels.
    pub kernel: u32,
}

/// A release by a lane that a strong read of this lane saw.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) lane: u8,
    pub(super) place: (u64, u16),
    pub(super) release: Release,
}

/// A release fence: later strong stores of these lanes release.
#[derive(Debug)]
pub(super) struct FenceOf {
    pub(super) lanes: u32,
    /// What each of the lanes did, and those that had done nothing.
    pub(super) clock: u32,
    pub(super) idle: u32,
    pub(super) scope: Scope,
    pub(super) know: Arc<Know>,
}

/// A warp.
#[derive(Debug, Default)]
pub(super) struct Warp {
    pub(super) at: Position,
    pub(super) clock: u32,
    /// Lanes that have done anything.
    pub(super) acted: u32,
    pub(super) common: Arc<Know>,
    /// Lanes that know more than `common`, and what.
    pub(super) apart: u32,
    pub(super) own: [Option<Arc<Know>>; 32],
    /// What strong reads saw released: for acquire patterns.
    pub(super) seen: Vec<Seen>,
    /// The last release fences of each lane, one per scope.
    pub(super) fences: Vec<FenceOf>,
    /// Release stores by lane and location: later strong stores there continue the pattern.
    pub(super) stores: FastMap<(u8, u64, u16), Vec<Release>>,
    /// Its block has ended.
    pub(super) ended: bool,
    /// True if it does bulk copies.
    pub(super) is_proxy: bool,
    /// Of copies: the reads that are over, beyond what its lanes know.
    pub(super) over: Arc<Know>,
}

impl Warp {
    pub(super) fn know(&self, lane: u8) -> &Arc<Know> {
        self.own[lane as usize].as_ref().unwrap_or(&self.common)
    }

    /// Some lanes, grouped by what they know.
    pub(super) fn alike(&self, lanes: u32) -> Vec<(u32, Arc<Know>)> {
        let (mut groups, mut left) = (Vec::new(), lanes);
        while left != 0 {
            let know = self.know(left.trailing_zeros() as u8);
            let same = |l: &u32| left >> l & 1 == 1 && Arc::ptr_eq(self.know(*l as u8), know);
            let group = (0..32).filter(same).fold(0, |m, l| m | 1 << l);
            left &= !group;
            groups.push((group, know.clone()));
        }
        groups
    }

    /// Something that every lane knows: mostly all that any of them does.
    pub(super) fn shared(&self) -> &Arc<Know> {
        let first = self.know(0);
        let same = |lane| Arc::ptr_eq(self.know(lane), first);
        if self.apart == !0 && (1..32).all(same) { first } else { &self.common }
    }
}

/// What has arrived at a barrier, and what those who leave it learn.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    pub(super) arrived: Know,
    pub(super) passed: Arc<Know>,
}

/// What the last acquire made of what it knew.
#[derive(Debug)]
pub(super) struct Acquired {
    before: Arc<Know>,
    from: Arc<Know>,
    claim: Claim,
    after: Arc<Know>,
}

/// The model's state.
pub struct Model {
    /// What it does.
    pub config: Config,
    rng: u64,
    pub(super) warps: Vec<Warp>,
    /// Ended warps, oldest first, that are told apart.
    pub(super) ended: VecDeque<u32>,
    /// How many of those there may be.
    pub(super) ended_limit: usize,
    /// Numbers of ended warps that can be used again: what these did is known to all.
    pub(super) free: Vec<u32>,
    /// What counts as known to all, since it was done by warps that are not told apart any more.
    pub(super) retired: Know,
    /// What the last warp was begun with, and that with `retired`.
    pub(super) begun: Option<(Arc<Know>, Arc<Know>)>,
    pub(super) shadow: Shadow,
    /// What earlier `fence.sc` knew, by scope and place.
    pub(super) sc: BTreeMap<(Scope, u64, u32), Know>,
    pub(super) deferred: Vec<Deferred>,
    pub(super) ids: u64,
    pub(super) results: HashMap<u64, [u8; 16]>,
    pub(super) barriers: BTreeMap<(u64, u32), Barrier>,
    pub(super) proxy_fences: ProxyFences,
    acquired: Option<Acquired>,
    /// Races found since they were last taken.
    pub(super) races: Vec<Race>,
    /// Granules on which anything raced.
    #[cfg(test)]
    pub(super) racy: std::collections::BTreeSet<u64>,
    /// How often each pair of instructions raced.
    pub(super) counts: HashMap<InstPair, u64>,
}

impl Model {
    /// A model in which nothing has happened.
    pub fn new(config: Config) -> Self {
        Model {
            config,
            rng: config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
            warps: Vec::new(),
            ended: VecDeque::new(),
            ended_limit: super::warps::ENDED,
            free: Vec::new(),
            retired: Know::default(),
            begun: None,
            shadow: Shadow::new(),
            sc: BTreeMap::new(),
            deferred: Vec::new(),
            ids: 0,
            results: HashMap::new(),
            barriers: BTreeMap::new(),
            proxy_fences: ProxyFences::default(),
            acquired: None,
            races: Vec::new(),
            counts: HashMap::new(),
            #[cfg(test)]
            racy: Default::default(),
        }
    }

    /// A number below `n`, from the seed.
    pub fn random(&mut self, n: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n.max(1)
    }

    /// Forgets everything but races: no warp is left and what happened is known to all.
    pub fn reset(&mut self) {
        self.warps.clear();
        self.ended.clear();
        self.free.clear();
        self.retired = Know::default();
        self.begun = None;
        self.shadow.reset();
        self.sc.clear();
        self.deferred.clear();
        self.results.clear();
        self.barriers.clear();
        self.proxy_fences = ProxyFences::default();
        self.acquired = None;
    }

    pub(super) fn mode(&self) -> Mode {
        Mode { weak: self.config.weak, race: self.config.race }
    }

    pub(super) fn history(&self, a: &Access) -> &History {
        &self.shadow.histories[a.slot as usize]
    }

    pub(super) fn history_mut(&mut self, a: &Access) -> &mut History {
        &mut self.shadow.histories[a.slot as usize]
    }

    /// What a thread knows.
    pub(super) fn know(&self, t: Thread) -> Arc<Know> {
        self.warps[t.warp as usize].know(t.lane).clone()
    }

    /// A claim about what some lanes of a warp have done so far. The warp's clock goes on.
    pub(super) fn claim(&mut self, warp: u32, lanes: u32) -> Claim {
        let w = &mut self.warps[warp as usize];
        w.clock += 1;
        Claim { warp, lanes: lanes | !w.acted, clock: w.clock - 1 }
    }

    fn in_scope(&self, scope: Scope, of: u32, other: u32) -> bool {
        let (a, b) = (&self.warps[of as usize].at, &self.warps[other as usize].at);
        match scope {
            Scope::Sys => true,
            Scope::Gpu => a.gpu == b.gpu,
            Scope::Cta => a.cta == b.cta && a.gpu == b.gpu,
        }
    }

    /// True if no other thread is in the scope of an operation of `t`.
    pub(super) fn is_alone(&self, t: Thread, scope: Scope) -> bool {
        let others = |w: u32| if w == t.warp { !t.bit() } else { !0 };
        let lives = |w: &u32| self.warps[*w as usize].at.lanes & others(*w) != 0;
        (0..self.warps.len() as u32).filter(lives).all(|w| !self.in_scope(scope, t.warp, w))
    }

    /// True if two strong operations include each other in their scopes.
    fn mutual(&self, a: Thread, sa: Scope, b: Thread, sb: Scope) -> bool {
        a == b || self.in_scope(sa, a.warp, b.warp) && self.in_scope(sb, b.warp, a.warp)
    }

    pub(super) fn morally_strong(
        &self,
        a: Thread,
        sa: Option<Scope>,
        b: Thread,
        sb: Option<Scope>,
    ) -> bool {
        a.warp != NOBODY
            && b.warp != NOBODY
            && matches!((sa, sb), (Some(x), Some(y)) if self.mutual(a, x, b, y))
    }

    /// Raises a thread's knowledge; whatever that knowledge contains is performed first.
    pub(super) fn learn(&mut self, t: Thread, know: &Know, claim: Option<Claim>) {
        let told = |d: &Deferred| {
            let claimed =
                |c: Claim| c.warp == d.who.warp && c.lanes & d.who.bit() != 0 && c.clock >= d.clock;
            d.who != t && (know.knows(d.who, d.clock) || claim.is_some_and(claimed))
        };
        self.flush(told);
        let w = &mut self.warps[t.warp as usize];
        w.apart |= t.bit();
        let common = &w.common;
        let mine = Arc::make_mut(w.own[t.lane as usize].get_or_insert_with(|| common.clone()));
        mine.join(know);
        if let Some(c) = claim {
            mine.add(c);
        }
    }

    /// Joins releases that are morally strong to an acquire.
    pub(super) fn acquire(&mut self, t: Thread, scope: Scope, releases: &[Release]) {
        for r in releases {
            let before = self.know(t);
            if before.knows(r.who, r.claim.clock) || !self.mutual(t, scope, r.who, r.scope) {
                continue;
            }
            // Lanes that poll together learn the same, and then share it.
            if let Some(a) = &self.acquired
                && self.deferred.is_empty()
                && (Arc::ptr_eq(&a.before, &before) && Arc::ptr_eq(&a.from, &r.know))
                && a.claim == r.claim
            {
                let w = &mut self.warps[t.warp as usize];
                w.apart |= t.bit();
                w.own[t.lane as usize] = Some(a.after.clone());
                continue;
            }
            self.learn(t, &r.know, Some(r.claim));
            let (from, after) = (r.know.clone(), self.know(t));
            self.acquired = Some(Acquired { before, from, claim: r.claim, after });
        }
    }

    /// The newest bytes of a granule, if the model knows it.
    pub fn newest(&mut self, granule: u64) -> Option<[u8; 16]> {
        self.shadow.newest(granule)
    }

    /// The host wrote: everybody knows it from now on.
    pub fn external(&mut self, granule: u64) {
        self.flush(|d| d.access.granule == granule);
        self.shadow.clear(granule);
    }

    /// What comes before every access: same-granule order, the granule's history.
    pub(super) fn before(&mut self, t: Thread, a: &mut Access, initial: &[u8; 16]) -> u32 {
        let granule = a.granule;
        a.slot = self.shadow.slot(granule, initial, &mut self.ids);
        self.flush(|d| d.who == t && d.access.granule == granule);
        let w = &mut self.warps[t.warp as usize];
        w.acted |= t.bit();
        w.clock
    }

    /// A place between `low` and `high`, the newest half of the time.
    pub(super) fn pick(&mut self, low: usize, high: usize) -> usize {
        if !self.config.weak || low >= high || self.random(2) == 0 {
            return high;
        }
        low + self.random((high - low + 1) as u64) as usize
    }

    /// True if a write covers the same bytes as an access and both are strong to each other.
    pub(super) fn fits(&self, t: Thread, a: &Access, w: &Write) -> bool {
        w.mask == a.mask && self.morally_strong(t, a.strong(), w.who, w.strong)
    }
}

//! The PTX memory model, operationally: histories of writes, vector clocks, deferred reads, races.
//!
//! See ARCHITECTURE.md for the rules. Nothing here knows of warps or host memory: an *agent* is anything with a program
//! order, a *granule* is 16 bytes, and the model returns the bytes that a load sees.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::clock::{FastMap, NOBODY, Slots, Vc, join, knows};
use super::history::{Cell, Extra, HISTORY, Release, Write};
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

/// Who did an access, in reports: a number that the user of the model understands.
pub type Site = u32;

/// An access as the model sees it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Granule number (address / 16, or anything unique).
    pub granule: u64,
    /// Bytes of the granule.
    pub mask: u16,
    /// Order.
    pub sem: Sem,
    /// Scope.
    pub scope: Scope,
    /// For reports.
    pub site: Site,
    /// The model's own note of where the granule's cell is; any value will do.
    pub slot: u32,
}

/// An agent.
#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) cta: u64,
    pub(super) gpu: u32,
    pub(super) vc: Vc,
    /// Of copies: the reads that are over, beyond what `vc` knows.
    pub(super) reads_known: Vc,
    /// True if it does bulk copies.
    pub(super) is_proxy: bool,
    /// What strong reads saw released, by granule and mask: for acquire patterns.
    pub(super) seen: Vec<((u64, u16), Release)>,
    /// Its last release fences, one per scope.
    pub(super) fences: Vec<Release>,
    /// Its release stores by location: later strong stores there continue the pattern.
    pub(super) stores: FastMap<(u64, u16), Vec<Release>>,
}

/// A read-modify-write: the new bytes for the old ones; none if the atomic stores nothing new but still writes.
pub type Update = Box<dyn Fn(&[u8; 16]) -> [u8; 16] + Send>;

pub(super) struct Deferred {
    ticket: u64,
    pub(super) agent: u32,
    pub(super) clock: u32,
    vc: Vc,
    pub(super) access: Access,
    update: Option<Update>,
}

/// Two accesses that nothing orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Race {
    /// The earlier one, and whether it wrote.
    pub first: (Site, bool),
    /// The later one, and whether it wrote.
    pub second: (Site, bool),
    /// The granule.
    pub granule: u64,
    /// The bytes that both touched.
    pub mask: u16,
    /// True if both are strong and their scopes or sizes do not fit.
    pub both_strong: bool,
}

/// The model's state.
pub struct Model {
    /// What it does.
    pub config: Config,
    pub(super) rng: u64,
    pub(super) agents: Vec<Agent>,
    /// Where a granule's cell is in `cells`.
    pub(super) slots: Slots,
    pub(super) cells: Vec<Cell>,
    /// What earlier `fence.sc` knew, by scope and place.
    pub(super) sc: BTreeMap<(Scope, u64, u32), Vc>,
    pub(super) deferred: Vec<Deferred>,
    pub(super) tickets: u64,
    pub(super) results: HashMap<u64, [u8; 16]>,
    pub(super) barriers: HashMap<(u64, u32), Vc>,
    pub(super) proxy_fences: BTreeMap<u32, Vec<super::proxy::ProxyFence>>,
    /// Races found so far.
    pub races: Vec<Race>,
}

impl Model {
    /// A model in which nothing has happened.
    pub fn new(config: Config) -> Self {
        Model {
            config,
            rng: config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
            agents: Vec::new(),
            slots: Slots::default(),
            cells: Vec::new(),
            sc: BTreeMap::new(),
            deferred: Vec::new(),
            tickets: 0,
            results: HashMap::new(),
            barriers: HashMap::new(),
            proxy_fences: BTreeMap::new(),
            races: Vec::new(),
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

    /// A new agent that knows what `vc` knows.
    pub fn agent(&mut self, cta: u64, gpu: u32, vc: &[u32]) -> u32 {
        self.agents.push(Agent { cta, gpu, vc: vc.to_vec(), ..Agent::default() });
        self.agents.len() as u32 - 1
    }

    /// What an agent knows, itself included; everything it deferred is performed.
    pub fn finish(&mut self, agent: u32) -> Vc {
        self.flush(|d| d.agent == agent);
        self.agents[agent as usize].vc.clone()
    }

    /// Forgets everything: no agent is left and what happened is known to all.
    pub fn reset(&mut self) {
        let races = std::mem::take(&mut self.races);
        let rng = self.rng;
        *self = Model { races, rng, ..Model::new(self.config) };
    }

    pub(super) fn tick(&mut self, agent: u32) -> u32 {
        let vc = &mut self.agents[agent as usize].vc;
        if vc.len() <= agent as usize {
            vc.resize(agent as usize + 1, 0);
        }
        vc[agent as usize] += 1;
        vc[agent as usize]
    }

    pub(super) fn in_scope(&self, scope: Scope, of: u32, other: u32) -> bool {
        let (a, b) = (&self.agents[of as usize], &self.agents[other as usize]);
        match scope {
            Scope::Sys => true,
            Scope::Gpu => a.gpu == b.gpu,
            Scope::Cta => a.cta == b.cta && a.gpu == b.gpu,
        }
    }

    /// True if two strong operations include each other in their scopes.
    fn mutual(&self, a: u32, sa: Scope, b: u32, sb: Scope) -> bool {
        a == b || self.in_scope(sa, a, b) && self.in_scope(sb, b, a)
    }

    pub(super) fn morally_strong(
        &self,
        a: u32,
        sa: Option<Scope>,
        b: u32,
        sb: Option<Scope>,
    ) -> bool {
        a != NOBODY
            && b != NOBODY
            && matches!((sa, sb), (Some(x), Some(y)) if self.mutual(a, x, b, y))
    }

    /// Raises an agent's knowledge; whatever that knowledge contains is performed first.
    pub(super) fn learn(&mut self, agent: u32, vc: &[u32]) {
        self.flush(|d| d.agent != agent && knows(vc, d.agent, d.clock));
        join(&mut self.agents[agent as usize].vc, vc);
    }

    pub(super) fn acquire(&mut self, agent: u32, scope: Scope, releases: &[Release]) {
        for r in releases {
            if self.mutual(agent, scope, r.agent, r.scope) {
                self.learn(agent, &r.vc.clone());
            }
        }
    }

    /// The cell of a granule, which holds `initial` if it is new.
    fn slot(&mut self, granule: u64, initial: &[u8; 16]) -> u32 {
        let next = self.cells.len() as u32;
        let slot = self.slots.get_or_insert(granule, next);
        if slot == next {
            self.cells.push(Cell::new(*initial));
        }
        slot
    }

    /// The newest bytes of a granule, if the model knows it.
    pub fn newest(&self, granule: u64) -> Option<[u8; 16]> {
        let cell = &self.cells[self.slots.get(granule)? as usize];
        Some(cell.at(cell.writes.len() - 1))
    }

    /// The host wrote: what everybody knows from now on.
    pub fn external(&mut self, granule: u64, bytes: &[u8; 16]) {
        self.flush(|d| d.access.granule == granule);
        let slot = self.slot(granule, bytes);
        self.cells[slot as usize] = Cell::new(*bytes);
    }

    /// Index of the oldest write that a load with this knowledge may still see.
    fn floor(cell: &Cell, mask: u16, vc: &[u32]) -> usize {
        let known = |w: &Write| w.is_known(vc);
        cell.writes.iter().rposition(|w| w.mask & mask != 0 && known(w)).unwrap_or(0)
    }

    /// Loads; `initial` is what the granule holds if it was never touched. `None` with a ticket: the load is deferred.
    pub fn load(
        &mut self,
        agent: u32,
        mut a: Access,
        initial: &[u8; 16],
        may_defer: bool,
    ) -> Result<[u8; 16], u64> {
        let clock = self.before(agent, &mut a, initial);
        if may_defer && self.config.weak && !a.sem.acquires() && self.random(3) == 0 {
            return Err(self.defer(agent, clock, a, None));
        }
        let vc = std::mem::take(&mut self.agents[agent as usize].vc);
        let data = self.read(agent, clock, &vc, &a);
        self.agents[agent as usize].vc = vc;
        self.acquire_after(agent, &a);
        Ok(data)
    }

    /// What comes before every access: same-granule order, a clock tick, the cell.
    fn before(&mut self, agent: u32, a: &mut Access, initial: &[u8; 16]) -> u32 {
        let granule = a.granule;
        a.slot = self.slot(granule, initial);
        self.flush(|d| d.agent == agent && d.access.granule == granule);
        self.tick(agent)
    }

    fn defer(&mut self, agent: u32, clock: u32, access: Access, update: Option<Update>) -> u64 {
        self.tickets += 1;
        let vc = self.agents[agent as usize].vc.clone();
        self.deferred.push(Deferred { ticket: self.tickets, agent, clock, vc, access, update });
        self.tickets
    }

    /// The bytes of a deferred load or atomic, which is performed now if it was not before.
    pub fn force(&mut self, ticket: u64) -> [u8; 16] {
        self.flush(|d| d.ticket == ticket);
        self.results.remove(&ticket).unwrap_or_default()
    }

    pub(super) fn flush(&mut self, which: impl Fn(&Deferred) -> bool) {
        while let Some(n) = self.deferred.iter().position(&which) {
            let d = self.deferred.remove(n);
            let data = match d.update {
                None => self.read(d.agent, d.clock, &d.vc, &d.access),
                Some(f) => self.modify(d.agent, d.clock, &d.vc, &d.access, &*f),
            };
            self.results.insert(d.ticket, data);
        }
    }

    /// Performs some deferred operation, so that none waits for ever.
    pub fn nudge(&mut self) {
        if !self.deferred.is_empty() {
            let n = self.random(self.deferred.len() as u64) as usize;
            let ticket = self.deferred[n].ticket;
            self.flush(|d| d.ticket == ticket);
        }
    }

    fn read(&mut self, agent: u32, clock: u32, vc: &[u32], a: &Access) -> [u8; 16] {
        self.check(agent, clock, vc, a, false);
        let cell = &self.cells[a.slot as usize];
        let floor = Self::floor(cell, a.mask, vc);
        let last = cell.writes.len() - 1;
        let unordered = Self::unordered(cell, a.mask, vc, floor);
        if self.config.weak && !unordered.is_empty() && self.random(2) == 0 {
            let at = unordered[self.random(unordered.len() as u64) as usize];
            self.observe(agent, clock, vc, a, at);
            return self.cells[a.slot as usize].writes[at].data;
        }
        let at = self.pick(floor, last);
        self.observe(agent, clock, vc, a, at);
        self.cells[a.slot as usize].at(at)
    }

    /// Writes before the floor that nothing known follows: coherence order between them and the floor is open.
    fn unordered(cell: &Cell, mask: u16, vc: &[u32], floor: usize) -> Vec<usize> {
        let known = |w: &&Write| w.is_known(vc);
        let hidden = |n: usize| {
            let id = cell.writes[n].id;
            n == 0
                || cell.writes[n + 1..]
                    .iter()
                    .filter(known)
                    .any(|w| w.mask & mask != 0 && w.after().contains(&id))
        };
        (1..floor).filter(|&n| cell.writes[n].mask & mask == mask && !hidden(n)).collect()
    }

    /// A place between `low` and `high`, the newest half of the time.
    fn pick(&mut self, low: usize, high: usize) -> usize {
        if !self.config.weak || low >= high || self.random(2) == 0 {
            return high;
        }
        low + self.random((high - low + 1) as u64) as usize
    }

    /// Notes that a strong read saw the writes up to `at`, and what they release.
    fn observe(&mut self, agent: u32, clock: u32, vc: &[u32], a: &Access, at: usize) {
        if a.sem == Sem::Weak {
            return;
        }
        let cell = &self.cells[a.slot as usize];
        let seen = (0..=at).rev().find(|&n| cell.writes[n].mask & a.mask != 0).unwrap_or(0);
        let w = &cell.writes[seen];
        if w.mask != a.mask || !self.morally_strong(agent, Some(a.scope), w.agent, w.strong) {
            return;
        }
        let releases = w.releases().to_vec();
        let w = &mut self.cells[a.slot as usize].writes[seen];
        if !w.readers().iter().any(|r| r.0 == agent) {
            w.extra().readers.push((agent, clock));
        }
        let me = &mut self.agents[agent as usize];
        for r in releases {
            if r.agent != agent
                && !knows(vc, r.agent, r.clock)
                && !me.seen.iter().any(|s| Arc::ptr_eq(&s.1.vc, &r.vc))
            {
                me.seen.push(((a.granule, a.mask), r));
            }
        }
    }

    /// The acquire side of a load or atomic: all that was seen at this location.
    fn acquire_after(&mut self, agent: u32, a: &Access) {
        if !a.sem.acquires() {
            return;
        }
        let here = (a.granule, a.mask);
        let seen: Vec<Release> = self.agents[agent as usize]
            .seen
            .iter()
            .filter(|s| s.0 == here)
            .map(|s| s.1.clone())
            .collect();
        self.acquire(agent, a.scope, &seen);
        self.forget(agent);
    }

    /// Drops what is known from the list of what was seen.
    pub(super) fn forget(&mut self, agent: u32) {
        let me = &mut self.agents[agent as usize];
        let vc = &me.vc;
        me.seen.retain(|s| !knows(vc, s.1.agent, s.1.clock));
    }

    /// Stores.
    pub fn store(&mut self, agent: u32, mut a: Access, data: [u8; 16], initial: &[u8; 16]) {
        let clock = self.before(agent, &mut a, initial);
        let vc = std::mem::take(&mut self.agents[agent as usize].vc);
        self.check(agent, clock, &vc, &a, true);
        let cell = &self.cells[a.slot as usize];
        let floor = Self::floor(cell, a.mask, &vc);
        let last = cell.writes.len() - 1;
        self.agents[agent as usize].vc = vc;
        let mut at = self.pick(floor, last) + 1;
        // Not between an atomic and what it read.
        let cell = &self.cells[a.slot as usize];
        while let Some(n) = (at..cell.writes.len()).find(|&n| cell.writes[n].mask & a.mask != 0) {
            let next = &cell.writes[n];
            let strong = (a.sem != Sem::Weak).then_some(a.scope);
            // A weak store beside an atomic is a race; keep it out of the chain all the same.
            if !next.atomic
                || strong.is_some() && !self.morally_strong(agent, strong, next.agent, next.strong)
            {
                break;
            }
            at = n + 1;
        }
        let releases = self.releases(agent, clock, &a);
        self.insert(agent, clock, &a, data, at, releases, false);
    }

    /// What a strong write of this agent releases.
    fn releases(&mut self, agent: u32, clock: u32, a: &Access) -> Vec<Release> {
        if a.sem == Sem::Weak {
            return Vec::new();
        }
        let me = &mut self.agents[agent as usize];
        let here = (a.granule, a.mask);
        if a.sem.releases() {
            let r = Release { agent, clock, scope: a.scope, vc: Arc::new(me.vc.clone()) };
            let at = me.stores.entry(here).or_default();
            at.retain(|x| x.scope > r.scope);
            at.push(r);
        }
        let mut all = me.stores.get(&here).cloned().unwrap_or_default();
        all.extend(me.fences.iter().cloned());
        all
    }

    #[allow(clippy::too_many_arguments, reason = "a write has that many properties")]
    fn insert(
        &mut self,
        agent: u32,
        clock: u32,
        a: &Access,
        data: [u8; 16],
        at: usize,
        releases: Vec<Release>,
        atomic: bool,
    ) {
        let strong = (a.sem != Sem::Weak).then_some(a.scope);
        self.tickets += 1;
        let id = self.tickets;
        let after =
            if self.config.weak { self.place(agent, a, at, id, strong) } else { Vec::new() };
        let extra = (!releases.is_empty() || !after.is_empty())
            .then(|| Box::new(Extra { releases, after, ..Extra::default() }));
        let write =
            Write { mask: a.mask, data, agent, clock, strong, atomic, site: a.site, id, extra };
        let cell = &mut self.cells[a.slot as usize];
        cell.writes.insert(at, write);
        if cell.writes.len() > HISTORY {
            let granule = a.granule;
            self.flush(|d| d.access.granule == granule);
            self.cells[a.slot as usize].trim();
        }
    }

    /// Where a new write stands in the order that the model demands: returns what is before it, tells who is behind it.
    fn place(
        &mut self,
        agent: u32,
        a: &Access,
        at: usize,
        id: u64,
        strong: Option<Scope>,
    ) -> Vec<u64> {
        let vc = &self.agents[agent as usize].vc;
        let writes = &self.cells[a.slot as usize].writes;
        let fits =
            |w: &Write| w.mask == a.mask && self.morally_strong(agent, strong, w.agent, w.strong);
        let mut before: Vec<u64> = Vec::new();
        // The first write of a granule is before all others anyway.
        for w in writes[..at].iter().filter(|w| w.mask & a.mask != 0 && w.agent != NOBODY) {
            if w.is_known(vc) || fits(w) {
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
        behind.extend(
            writes[at..]
                .iter()
                .filter(|w| w.after().iter().any(|x| behind.contains(x)))
                .map(|w| w.id)
                .collect::<Vec<_>>(),
        );
        {
            let cell = &mut self.cells[a.slot as usize];
            for w in cell.writes[at..].iter_mut().filter(|w| behind.contains(&w.id)) {
                w.extra().after.push(id);
                w.extra().after.extend(&before);
            }
        }
        before
    }

    /// An atomic: reads, and writes what `f` makes of it, with nothing in between.
    pub fn atomic(
        &mut self,
        agent: u32,
        mut a: Access,
        initial: &[u8; 16],
        may_defer: bool,
        f: Update,
    ) -> Result<[u8; 16], u64> {
        let clock = self.before(agent, &mut a, initial);
        if may_defer
            && self.config.weak
            && !a.sem.acquires()
            && !a.sem.releases()
            && self.random(4) == 0
        {
            return Err(self.defer(agent, clock, a, Some(f)));
        }
        let vc = self.agents[agent as usize].vc.clone();
        let data = self.modify(agent, clock, &vc, &a, &*f);
        self.acquire_after(agent, &a);
        Ok(data)
    }

    fn modify(
        &mut self,
        agent: u32,
        clock: u32,
        vc: &[u32],
        a: &Access,
        f: &dyn Fn(&[u8; 16]) -> [u8; 16],
    ) -> [u8; 16] {
        self.check(agent, clock, vc, a, true);
        let cell = &self.cells[a.slot as usize];
        let last = cell.writes.len() - 1;
        // Places where nothing morally strong has already read and written.
        let free = |at: usize| {
            let next = (at + 1..cell.writes.len()).find(|&n| cell.writes[n].mask & a.mask != 0);
            next.is_none_or(|n| {
                let w = &cell.writes[n];
                !w.atomic || !self.morally_strong(agent, Some(a.scope), w.agent, w.strong)
            })
        };
        let places: Vec<usize> =
            (Self::floor(cell, a.mask, vc)..=last).filter(|&n| free(n)).collect();
        let at = places[self.pick(0, places.len() - 1)];
        self.observe(agent, clock, vc, a, at);
        let cell = &self.cells[a.slot as usize];
        let old = cell.at(at);
        let read = (0..=at).rev().find(|&n| cell.writes[n].mask & a.mask != 0).unwrap_or(0);
        let source = &cell.writes[read];
        let continues = source.mask == a.mask
            && self.morally_strong(agent, Some(a.scope), source.agent, source.strong);
        let inherited = if continues { source.releases().to_vec() } else { Vec::new() };
        // An acquire-release atomic releases what it has just acquired.
        self.acquire_after(agent, a);
        let mut releases = self.releases(agent, clock, a);
        for r in inherited {
            if !releases.iter().any(|x| x.agent == r.agent && x.clock == r.clock) {
                releases.push(r);
            }
        }
        self.insert(agent, clock, a, f(&old), at + 1, releases, true);
        old
    }
}

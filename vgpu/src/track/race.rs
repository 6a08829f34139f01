//! The race detector.

use super::clock::{Claim, Know, Thread};
use super::history::Read;
use super::model::{Access, Model};
use crate::exec::warp::Scope;

/// One side of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Side {
    /// Who.
    pub who: Thread,
    /// PTX line.
    pub line: u32,
    /// True for a store or atomic.
    pub wrote: bool,
}

/// Two instructions: kernel, line and whether it writes, of each.
pub type InstPair = [(u32, u32, bool); 2];

/// Two accesses that nothing orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Race {
    /// The earlier one.
    pub first: Side,
    /// The later one.
    pub second: Side,
    /// The bytes of the granule that both touched.
    pub mask: u16,
    /// True if both are strong and their scopes or sizes do not fit.
    pub both_strong: bool,
    /// The instructions.
    pub pair: InstPair,
    /// The granule.
    pub granule: u64,
}

/// Reads of a granule after which those that are known are dropped.
const MANY_READS: usize = 8;

impl Model {
    /// The races of pairs of instructions that were not found before, since the last call.
    pub fn take_races(&mut self) -> Vec<Race> {
        std::mem::take(&mut self.races)
    }

    /// How often a pair of instructions raced.
    pub fn times(&self, pair: &InstPair) -> u64 {
        self.counts.get(pair).copied().unwrap_or(0)
    }

    /// Looks for races of an access with those before it, and remembers it.
    pub(super) fn check(&mut self, t: Thread, clock: u32, know: &Know, a: &Access, writes: bool) {
        if !self.config.race {
            return;
        }
        let strong = a.strong();
        let history = self.history(a);
        let apart = |(mask, element): (u16, u8), who: Thread, when: u32, s: Option<Scope>| {
            let ordered = || who == t || know.knows(who, when);
            // Elements of one size overlap wholly or not at all.
            let whole = mask == a.mask || element == a.element;
            let fits = || whole && self.morally_strong(t, strong, who, s);
            mask & a.mask != 0 && !ordered() && !fits()
        };
        let mut found = Vec::new();
        let mut race = |who, line, wrote, mask, s: Option<Scope>| {
            let first = Side { who, line, wrote };
            found.push((first, mask & a.mask, s.is_some() && strong.is_some()));
        };
        for w in
            history.writes.iter().filter(|w| apart((w.mask, w.element), w.who, w.clock, w.strong))
        {
            race(w.who, w.line, true, w.mask, w.strong);
        }
        let over = &self.warps[t.warp as usize].over;
        for r in history.reads.iter().filter(|_| writes) {
            let Claim { warp, lanes, clock } = r.claim;
            let mut threads =
                (0..32).filter(|l| lanes >> l & 1 == 1).map(|lane| Thread { warp, lane });
            let open = |&who: &Thread| {
                apart((r.mask, r.element), who, clock, r.strong) && !over.knows(who, clock)
            };
            if let Some(who) = threads.find(open) {
                race(who, r.line, false, r.mask, r.strong);
            }
        }
        let second = Side { who: t, line: a.line, wrote: writes };
        for (first, mask, both_strong) in found {
            self.found(first, second, (a.granule, mask), both_strong);
        }
        if writes {
            let reads = &mut self.history_mut(a).reads;
            reads.retain(|r| !Self::supersedes(t, know, a, r));
        } else {
            self.note_read(t, clock, know, a);
        }
    }

    fn found(&mut self, first: Side, second: Side, at: (u64, u16), both_strong: bool) {
        let inst = |s: Side| (self.warps[s.who.warp as usize].at.kernel, s.line, s.wrote);
        let pair = [inst(first), inst(second)];
        #[cfg(test)]
        self.racy.insert(at.0);
        let count = self.counts.entry(pair).or_default();
        *count += 1;
        if *count == 1 {
            let (granule, mask) = at;
            self.races.push(Race { first, second, mask, both_strong, pair, granule });
        }
    }

    /// True if an access supersedes a read that it comes after: whatever races with the read then races with the access, too.
    fn supersedes(t: Thread, know: &Know, a: &Access, r: &Read) -> bool {
        let mine = if r.claim.warp == t.warp { t.bit() } else { 0 };
        // What is morally strong to the access must be so to the read.
        let alike = a.strong().is_none() || r.strong == a.strong() && r.mask == a.mask;
        r.mask & !a.mask == 0
            && alike
            && know.knows_lanes(Claim { lanes: r.claim.lanes & !mine, ..r.claim })
    }

    fn note_read(&mut self, t: Thread, clock: u32, know: &Know, a: &Access) {
        let strong = a.strong();
        let reads = &mut self.history_mut(a).reads;
        let mut same = None;
        // This thread's last such read is forgotten; a read of other lanes with the same instruction is shared.
        for (n, r) in reads.iter_mut().enumerate() {
            let alike = strong.is_none() || r.element == a.element;
            if r.claim.warp == t.warp && r.mask == a.mask && r.strong == strong && alike {
                r.claim.lanes &= !t.bit();
                if r.claim.clock == clock && r.line == a.line {
                    same = Some(n);
                }
            }
        }
        match same {
            Some(n) => reads[n].claim.lanes |= t.bit(),
            None => {
                let claim = Claim { warp: t.warp, lanes: t.bit(), clock };
                let (mask, element) = (a.mask, a.element);
                reads.push(Read { mask, element, claim, strong, line: a.line });
            }
        }
        reads.retain(|r| r.claim.lanes != 0);
        if reads.len() > MANY_READS {
            let last = |r: &Read| r.claim.warp == t.warp && r.claim.lanes & t.bit() != 0;
            reads.retain(|r| last(r) || !Self::supersedes(t, know, a, r));
        }
    }
}

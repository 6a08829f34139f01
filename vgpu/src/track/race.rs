//! The race detector.

use super::clock::knows;
use super::history::Read;
use super::model::{Access, Model, Race};
use crate::exec::warp::{Scope, Sem};

impl Model {
    /// Looks for races of an access with those before it, and remembers it.
    pub(super) fn check(&mut self, agent: u32, clock: u32, vc: &[u32], a: &Access, writes: bool) {
        if !self.config.race {
            return;
        }
        let strong = (a.sem != Sem::Weak).then_some(a.scope);
        let cell = &self.cells[a.slot as usize];
        let apart = |mask: u16, who: u32, when: u32, s: Option<Scope>| {
            let ordered = who == agent || knows(vc, who, when);
            let fits = mask == a.mask && self.morally_strong(agent, strong, who, s);
            mask & a.mask != 0 && !ordered && !fits
        };
        let mut found = Vec::new();
        let mut race = |site, wrote, mask, s: Option<Scope>| {
            let both_strong = s.is_some() && strong.is_some();
            found.push(Race {
                first: (site, wrote),
                second: (a.site, writes),
                granule: a.granule,
                mask,
                both_strong,
            });
        };
        for w in cell.writes.iter().filter(|w| apart(w.mask, w.agent, w.clock, w.strong)) {
            race(w.site, true, w.mask & a.mask, w.strong);
        }
        if writes {
            let over = &self.agents[agent as usize].reads_known;
            let open = cell.reads.iter().filter(|r| !knows(over, r.agent, r.clock));
            for r in open.filter(|r| apart(r.mask, r.agent, r.clock, r.strong)) {
                race(r.site, false, r.mask & a.mask, r.strong);
            }
        }
        for f in found {
            if !self.races.iter().any(|r| r.first == f.first && r.second == f.second) {
                self.races.push(f);
            }
        }
        let cell = &mut self.cells[a.slot as usize];
        if writes {
            cell.reads.retain(|r| {
                !(r.agent == agent || knows(vc, r.agent, r.clock)) || r.mask & !a.mask != 0
            });
        } else {
            let read = Read { mask: a.mask, agent, clock, strong, site: a.site };
            match cell
                .reads
                .iter_mut()
                .find(|r| r.agent == agent && r.mask == a.mask && r.strong == strong)
            {
                Some(r) => *r = read,
                None => cell.reads.push(read),
            }
        }
    }
}

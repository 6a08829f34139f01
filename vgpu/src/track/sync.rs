//! Fences and barriers of the memory model.

use std::sync::Arc;

use super::clock::{Vc, join};
use super::history::Release;
use super::model::Model;
use crate::exec::warp::{Scope, Sem};

impl Model {
    /// A fence.
    pub fn fence(&mut self, agent: u32, sem: Sem, scope: Scope) {
        // A strong read that is still to come could be the one that this fence acquires by, unless nobody else is in its scope.
        let alone =
            (0..self.agents.len() as u32).all(|o| o == agent || !self.in_scope(scope, agent, o));
        if !alone {
            self.flush(|d| d.agent == agent && d.access.sem != Sem::Weak);
        }
        let clock = self.tick(agent);
        if sem.acquires() {
            let seen: Vec<Release> =
                self.agents[agent as usize].seen.iter().map(|s| s.1.clone()).collect();
            self.acquire(agent, scope, &seen);
            self.forget(agent);
        }
        let (cta, gpu) = (self.agents[agent as usize].cta, self.agents[agent as usize].gpu);
        if sem == Sem::Sc {
            let mutual = |(s, c, g): &(Scope, u64, u32)| {
                let mine = scope == Scope::Sys || *g == gpu && (scope == Scope::Gpu || *c == cta);
                mine && (*s == Scope::Sys || *g == gpu && (*s == Scope::Gpu || *c == cta))
            };
            let known: Vec<Vc> =
                self.sc.iter().filter(|(k, _)| mutual(k)).map(|(_, vc)| vc.clone()).collect();
            for vc in known {
                self.learn(agent, &vc);
            }
            let vc = self.agents[agent as usize].vc.clone();
            join(self.sc.entry((scope, cta, gpu)).or_default(), &vc);
        }
        if sem.releases() {
            let me = &mut self.agents[agent as usize];
            let r = Release { agent, clock, scope, vc: Arc::new(me.vc.clone()) };
            me.fences.retain(|x| x.scope > scope);
            me.fences.push(r);
        }
    }

    /// An agent arrives at a barrier: those who leave it know what it knows.
    pub fn arrive(&mut self, barrier: (u64, u32), agent: u32) {
        self.flush(|d| d.agent == agent && d.access.sem != Sem::Weak);
        self.tick(agent);
        let vc = self.agents[agent as usize].vc.clone();
        join(self.barriers.entry(barrier).or_default(), &vc);
    }

    /// Agents leave a barrier that is complete; `keep` if it stays as it is (an mbarrier).
    pub fn leave(&mut self, barrier: (u64, u32), agents: &[u32], keep: bool) {
        let vc = if keep {
            self.barriers.get(&barrier).cloned()
        } else {
            self.barriers.remove(&barrier)
        };
        for &a in agents {
            self.learn(a, vc.as_deref().unwrap_or(&[]));
        }
    }
}

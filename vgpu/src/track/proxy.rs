//! The async proxy: bulk copies are agents of their own.
//!
//! A copy knows of the generic proxy's *writes* what a `fence.proxy.async` knew that the issuing warp knows of, and of the async
//! proxy's own accesses all that the issuing warp knows. Generic *reads* need no proxy fence to be over before a copy
//! writes: pipelines hand buffers back to the copy engine by a barrier alone.

use std::sync::Arc;

use super::clock::{Vc, join, knows};
use super::model::Model;

/// A proxy fence: who, at which of its operations, and what it knew.
#[derive(Clone, Debug)]
pub(super) struct ProxyFence {
    agent: u32,
    clock: u32,
    vc: Arc<Vc>,
}

/// Proxy fences that are remembered of each agent. With fewer, a copy would know less than it may: a false report.
const FENCES: usize = 8;

impl Model {
    /// `fence.proxy.async` of an agent.
    pub fn proxy_fence(&mut self, agent: u32) {
        let clock = self.tick(agent);
        let vc = Arc::new(self.agents[agent as usize].vc.clone());
        let mine = self.proxy_fences.entry(agent).or_default();
        if mine.len() == FENCES {
            mine.remove(0);
        }
        mine.push(ProxyFence { agent, clock, vc });
    }

    /// An agent for copies of the same block, which knows what is known to all.
    pub fn proxy_agent(&mut self, issuer: u32, known: &[u32]) -> u32 {
        let me = &self.agents[issuer as usize];
        let (cta, gpu) = (me.cta, me.gpu);
        let copy = self.agent(cta, gpu, known);
        self.agents[copy as usize].is_proxy = true;
        copy
    }

    /// True if an agent knows all that another one has done.
    pub fn is_known(&self, agent: u32, by: u32) -> bool {
        let clock = self.agents[agent as usize].vc.get(agent as usize).copied().unwrap_or(0);
        knows(&self.agents[by as usize].vc, agent, clock)
    }

    /// A warp issues a copy that this agent will do.
    pub fn proxy_issue(&mut self, issuer: u32, copy: u32) {
        self.tick(issuer);
        let vc = self.agents[issuer as usize].vc.clone();
        // What the copy takes for over is over.
        self.flush(|d| knows(&vc, d.agent, d.clock));
        let mut known = Vc::new();
        for f in self.proxy_fences.values().flatten().filter(|f| knows(&vc, f.agent, f.clock)) {
            join(&mut known, &f.vc);
        }
        known.resize(known.len().max(vc.len()), 0);
        for (n, k) in known.iter_mut().enumerate().take(vc.len()) {
            if self.agents[n].is_proxy {
                *k = (*k).max(vc[n]);
            }
        }
        self.learn(copy, &known);
        self.agents[copy as usize].reads_known = vc;
    }

    /// What an agent knows, its last operation included.
    pub fn clock_of(&self, agent: u32) -> Vc {
        self.agents[agent as usize].vc.clone()
    }
}

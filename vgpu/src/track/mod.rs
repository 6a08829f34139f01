//! Tracked mode: weak memory and race detection for the blocks of one process.
//!
//! [`model`] is the memory model, [`hooks`] is what the interpreter's memory handlers call.

pub mod clock;
mod history;
pub mod hooks;
pub mod model;
pub mod proxy;
mod race;
mod sync;

use std::sync::Mutex;

use crate::exec::warp::{Inst, Warp};
use crate::machine::Launch;
use clock::{Vc, join};
use model::{Access, Config, Model, Race};

/// Where an access stands in a program, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SiteInfo {
    /// Kernel.
    pub kernel: String,
    /// Device.
    pub device: u32,
    /// Block of the grid.
    pub block: u64,
    /// Warp of the block.
    pub warp: u32,
    /// PTX line.
    pub line: u32,
}

/// The model with what it needs to know of the interpreter.
pub struct Tracked {
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub model: Model,
    /// By agent.
    agents: Vec<SiteInfo>,
    sites: Vec<SiteInfo>,
    known: clock::FastMap<(u32, u32), u32>,
    /// The last one asked for: lanes of a warp ask in a row.
    last: ((u32, u32), u32),
    /// What is known by all who start now: all launches that have ended.
    ended: Vc,
    /// Races of earlier epochs, with words.
    reports: Vec<RaceReport>,
}

/// A race, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaceReport {
    /// The earlier access and whether it wrote.
    pub first: (SiteInfo, bool),
    /// The later access and whether it wrote.
    pub second: (SiteInfo, bool),
    /// Address of the first byte that both touched.
    pub address: u64,
    /// How many bytes both touched.
    pub bytes: u32,
    /// True if both are strong, but with scopes or sizes that do not fit.
    pub both_strong: bool,
}

impl std::fmt::Display for RaceReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let say = |(s, wrote): &(SiteInfo, bool)| {
            let verb = if *wrote { "write" } else { "read" };
            format!(
                "{verb} by `{}` on device {}, block {}, warp {}, PTX line {}",
                s.kernel, s.device, s.block, s.warp, s.line
            )
        };
        let why = if self.both_strong {
            "their scopes or sizes do not fit"
        } else {
            "nothing orders them"
        };
        write!(
            f,
            "race on {} bytes at {:#x}: {} and {}; {why}",
            self.bytes,
            self.address,
            say(&self.first),
            say(&self.second)
        )
    }
}

impl Tracked {
    /// A model for a machine.
    pub fn new(config: Config) -> Self {
        Tracked {
            inner: Mutex::new(Inner {
                model: Model::new(config),
                agents: Vec::new(),
                sites: Vec::new(),
                known: Default::default(),
                last: ((u32::MAX, 0), 0),
                ended: Vc::new(),
                reports: Vec::new(),
            }),
        }
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().unwrap())
    }

    /// An agent for a warp of a block.
    pub fn new_agent(
        &self,
        device: u32,
        block_uid: u64,
        launch: &Launch,
        block: u64,
        warp: u32,
    ) -> u32 {
        self.with(|t| {
            let info =
                SiteInfo { kernel: launch.kernel.name.clone(), device, block, warp, line: 0 };
            t.agents.push(info);
            t.model.agent(block_uid, device, &launch.known)
        })
    }

    /// An agent for bulk copies of a warp's block.
    pub fn proxy_agent(&self, issuer: u32, known: &[u32]) -> u32 {
        self.with(|t| {
            let info = t.agents[issuer as usize].clone();
            t.agents.push(info);
            t.model.proxy_agent(issuer, known)
        })
    }

    /// What all launches that have ended did.
    pub fn ended(&self) -> Vc {
        self.with(|t| t.ended.clone())
    }

    /// The agents of a block have ended.
    pub fn block_ended(&self, agents: impl Iterator<Item = u32>, launch: &Launch) {
        self.with(|t| {
            for a in agents {
                let vc = t.model.finish(a);
                join(&mut launch.clock.lock().unwrap(), &vc);
            }
        });
    }

    /// A launch has ended: what starts later knows what it did.
    pub fn launch_ended(&self, launch: &Launch) {
        self.with(|t| join(&mut t.ended, &launch.clock.lock().unwrap()));
    }

    /// No launch is left: forget histories, keep the races.
    pub fn quiesce(&self) {
        self.with(|t| {
            t.collect();
            t.model.reset();
            t.agents.clear();
            t.known.clear();
            t.last = ((u32::MAX, 0), 0);
            t.sites.clear();
            t.ended.clear();
        });
    }

    /// The races so far.
    pub fn races(&self) -> Vec<RaceReport> {
        self.with(|t| {
            t.collect();
            t.reports.clone()
        })
    }

    /// A number below `n`, from the seed.
    pub fn random(&self, n: u64) -> u64 {
        self.with(|t| t.model.random(n))
    }

    /// Warps arrive at a barrier of a block.
    pub fn barrier_arrive(&self, block: u64, id: u32, agent: u32) {
        self.with(|t| t.model.arrive((block, id), agent));
    }

    /// A barrier is complete.
    pub fn barrier_complete(&self, block: u64, id: u32, agents: &[u32]) {
        self.with(|t| t.model.leave((block, id), agents, false));
    }
}

impl Inner {
    fn collect(&mut self) {
        for r in std::mem::take(&mut self.model.races) {
            let Race { first, second, granule, mask, both_strong } = r;
            let (a, b) = (&self.sites[first.0 as usize], &self.sites[second.0 as usize]);
            let address = granule * 16 + u64::from(mask.trailing_zeros());
            let report = RaceReport {
                first: (a.clone(), first.1),
                second: (b.clone(), second.1),
                address,
                bytes: mask.count_ones(),
                both_strong,
            };
            let same = |x: &RaceReport| {
                (&x.first.0.kernel, x.first.0.line, &x.second.0.kernel, x.second.0.line)
                    == (&a.kernel, a.line, &b.kernel, b.line)
            };
            if !self.reports.iter().any(same) {
                self.reports.push(report);
            }
        }
    }

    pub(crate) fn site(&mut self, w: &Warp, i: &Inst) -> u32 {
        if self.last.0 == (w.agent, i.line) {
            return self.last.1;
        }
        if let Some(s) = self.known.get(&(w.agent, i.line)) {
            self.last = ((w.agent, i.line), *s);
            return *s;
        }
        let mut info = self.agents[w.agent as usize].clone();
        info.line = i.line;
        self.sites.push(info);
        let n = self.sites.len() as u32 - 1;
        self.known.insert((w.agent, i.line), n);
        n
    }

    pub(crate) fn access(&mut self, w: &Warp, i: &Inst, at: u64, bytes: usize) -> Access {
        let site = self.site(w, i);
        let mask = (((1u32 << bytes) - 1) << (at & 15)) as u16;
        Access { granule: at >> 4, mask, sem: i.mem.sem, scope: i.mem.scope, site, slot: 0 }
    }
}

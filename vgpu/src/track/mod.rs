//! Tracked mode: weak memory and race detection for the blocks of one process.
//!
//! [`model`] is the memory model, [`hooks`] is what the interpreter's memory handlers call. Of the model, [`clock`] is what
//! threads know of each other, `shadow` and `history` what granules remember, `access` and `whole` what loads and stores do,
//! `sync` fences and barriers, `proxy` bulk copies, `race` the detector, `warps` the life of warps.

mod access;
pub mod clock;
mod deferred;
mod history;
pub mod hooks;
pub mod model;
pub mod proxy;
mod race;
mod report;
mod shadow;
mod sync;
#[cfg(test)]
mod tests;
mod warps;
mod whole;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::isa::decode::Kernel;
use crate::launch::Launch;
use crate::machine::BLOCK_SHARED;
use crate::mem::space::AddressSpace;
use clock::Know;
pub use deferred::Update;
use model::{Config, Model, Position};
pub use race::{InstPair, Race, Side};
pub use report::{Bytes, RaceReport, SiteInfo};
pub use sync::Party;
pub use whole::Whole;

/// Identities of shared memory begin here.
const SHARED: u64 = 1 << 63;

/// The identity of a byte of a block's shared memory.
fn shared_at(block: u64, offset: u64) -> u64 {
    SHARED | block << 24 | offset
}

/// The model with what it needs to know of the interpreter.
pub struct Tracked {
    inner: Mutex<Inner>,
    space: Arc<AddressSpace>,
}

pub(crate) struct Inner {
    pub model: Model,
    /// By warp of the model.
    names: Vec<report::Name>,
    /// Numbers of kernels, by name and length of their module's text.
    kernels: HashMap<(String, usize), u32>,
    /// The last one that was asked for.
    last: Option<(Arc<Kernel>, u32)>,
    /// What is known by all who start now: all launches that have ended.
    ended: Arc<Know>,
    reports: Vec<(InstPair, RaceReport)>,
}

impl Tracked {
    /// A model for a machine.
    pub fn new(config: Config, space: Arc<AddressSpace>) -> Self {
        let inner = Inner {
            model: Model::new(config),
            names: Vec::new(),
            kernels: HashMap::new(),
            last: None,
            ended: Arc::default(),
            reports: Vec::new(),
        };
        space.remember_freed();
        Tracked { inner: Mutex::new(inner), space }
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().unwrap())
    }

    /// The model's number for a warp of a block; `lanes` exist.
    pub fn new_warp(&self, launch: &Launch, uid: u64, block: u64, warp: u32, lanes: u32) -> u32 {
        let (device, kernel) = (launch.device, launch.kernel.clone());
        self.with(|t| {
            let tag = t.number_of(&kernel);
            for bytes in self.space.take_freed() {
                t.model.forget_granules(bytes.start / 16..bytes.end / 16);
            }
            let at = Position { cta: uid, gpu: device, lanes, kernel: tag };
            let name = report::Name { kernel, device, block, warp };
            self.add(t, name, |model| model.warp(at, &launch.known))
        })
    }

    /// The model's number for a warp that does copies for this one.
    pub fn proxy_warp(&self, issuer: u32, known: &Arc<Know>) -> u32 {
        self.with(|t| {
            let name = t.names[issuer as usize].clone();
            self.add(t, name, |model| model.proxy_warp(issuer, known))
        })
    }

    fn add(&self, t: &mut Inner, name: report::Name, f: impl FnOnce(&mut Model) -> u32) -> u32 {
        // Before a number is used again: reports need the old name.
        t.collect(&self.space);
        let n = f(&mut t.model);
        match t.names.get_mut(n as usize) {
            Some(old) => *old = name,
            None => t.names.push(name),
        }
        n
    }

    /// What all launches that have ended did.
    pub fn ended(&self) -> Arc<Know> {
        self.with(|t| t.ended.clone())
    }

    /// A block has ended.
    pub fn block_ended(&self, uid: u64, warps: impl Iterator<Item = u32>, launch: &Launch) {
        let mut into = launch.clock.lock().unwrap();
        self.with(|t| {
            for w in warps {
                t.model.finish(w, &mut into);
            }
            t.model.forget_block(uid, launch.device);
            let shared = shared_at(uid, 0)..shared_at(uid, BLOCK_SHARED.into());
            t.model.forget_granules(shared.start / 16..shared.end / 16);
            t.model.forget_barriers(shared);
            t.model.forget_barriers(uid..uid + 1);
        });
    }

    /// A launch has ended: what starts later knows what it did.
    pub fn launch_ended(&self, launch: &Launch) {
        self.with(|t| {
            Arc::make_mut(&mut t.ended).join(&launch.clock.lock().unwrap());
            t.collect(&self.space);
        });
    }

    /// No launch is left: forget histories, keep the races.
    pub fn quiesce(&self) {
        self.with(|t| {
            t.collect(&self.space);
            t.model.reset();
            t.names.clear();
            t.last = None;
            t.ended = Arc::default();
        });
    }

    /// The races so far.
    pub fn races(&self) -> Vec<RaceReport> {
        self.with(|t| {
            t.collect(&self.space);
            let with_count = |(pair, r): &(InstPair, RaceReport)| RaceReport {
                count: t.model.times(pair),
                ..r.clone()
            };
            t.reports.iter().map(with_count).collect()
        })
    }

    /// A number below `n`, from the seed.
    pub fn random(&self, n: u64) -> u64 {
        self.with(|t| t.model.random(n))
    }

    /// Lanes of a warp arrive at a barrier of a block.
    pub fn barrier_arrive(&self, block: u64, id: u32, warp: u32, lanes: u32) {
        self.with(|t| t.model.arrive((block, id), warp, lanes));
    }

    /// A barrier is complete.
    pub fn barrier_complete(&self, block: u64, id: u32, parties: &[Party]) {
        self.with(|t| t.model.complete((block, id), parties));
    }
}

impl Inner {
    fn number_of(&mut self, kernel: &Arc<Kernel>) -> u32 {
        if let Some((k, n)) = &self.last
            && Arc::ptr_eq(k, kernel)
        {
            return *n;
        }
        let next = self.kernels.len() as u32;
        let n = *self.kernels.entry((kernel.name.clone(), kernel.text.len())).or_insert(next);
        self.last = Some((kernel.clone(), n));
        n
    }

    /// Puts the races that were found since the last time into words.
    fn collect(&mut self, space: &AddressSpace) {
        for r in self.model.take_races() {
            let Race { first, second, mask, both_strong, pair, granule } = r;
            let site =
                |s: race::Side| (self.names[s.who.warp as usize].site(s.who, s.line), s.wrote);
            let byte = granule * 16 + u64::from(mask.trailing_zeros());
            let at = match space.locate(byte) {
                _ if byte & SHARED != 0 => Bytes::Shared(byte & 0xff_ffff),
                Some((base, offset, device)) => Bytes::Allocation { base, offset, device },
                None => Bytes::Freed,
            };
            let bytes = mask.count_ones();
            let (first, second) = (site(first), site(second));
            let report = RaceReport { first, second, at, bytes, both_strong, count: 1 };
            self.reports.push((pair, report));
        }
    }
}

//! What a granule remembers: writes in coherence order, and reads for the race detector.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::clock::{NOBODY, Vc, knows};
use super::model::Site;
use crate::exec::warp::Scope;

/// The most writes that a granule remembers.
pub(super) const HISTORY: usize = 12;

/// What a write releases: who, at which of its operations, with which scope, and what it knew.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) agent: u32,
    pub(super) clock: u32,
    pub(super) scope: Scope,
    pub(super) vc: Arc<Vc>,
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) mask: u16,
    pub(super) data: [u8; 16],
    pub(super) agent: u32,
    pub(super) clock: u32,
    /// Scope if it is strong.
    pub(super) strong: Option<Scope>,
    /// True for the write of an atomic, which directly follows what it read.
    pub(super) atomic: bool,
    pub(super) site: Site,
    pub(super) id: u64,
    /// Nothing for most writes, which are weak and alone.
    pub(super) extra: Option<Box<Extra>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    pub(super) releases: Vec<Release>,
    /// Morally strong reads of it: agent and its first such operation.
    pub(super) readers: Vec<(u32, u32)>,
    /// Writes that the model puts before this one: by causality, or because both are morally strong. The order of the list
    /// between other writes is a choice that no reader may rely on.
    pub(super) after: Vec<u64>,
}

impl Write {
    pub(super) fn releases(&self) -> &[Release] {
        self.extra.as_ref().map_or(&[], |e| &e.releases)
    }
    pub(super) fn readers(&self) -> &[(u32, u32)] {
        self.extra.as_ref().map_or(&[], |e| &e.readers)
    }
    pub(super) fn after(&self) -> &[u64] {
        self.extra.as_ref().map_or(&[], |e| &e.after)
    }
    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
    /// True if this agent's knowledge contains the write, or a morally strong read of it.
    pub(super) fn is_known(&self, vc: &[u32]) -> bool {
        knows(vc, self.agent, self.clock) || self.readers().iter().any(|&(a, c)| knows(vc, a, c))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) mask: u16,
    pub(super) agent: u32,
    pub(super) clock: u32,
    pub(super) strong: Option<Scope>,
    pub(super) site: Site,
}

#[derive(Debug)]
pub(super) struct Cell {
    /// Coherence order; the first covers the whole granule.
    pub(super) writes: SmallVec<[Write; 2]>,
    pub(super) reads: SmallVec<[Read; 2]>,
}

impl Cell {
    pub(super) fn new(data: [u8; 16]) -> Self {
        let first = Write {
            mask: !0,
            data,
            agent: NOBODY,
            clock: 0,
            strong: None,
            atomic: false,
            site: 0,
            id: 0,
            extra: None,
        };
        Cell { writes: smallvec![first], reads: SmallVec::new() }
    }

    /// The bytes as of write number `at`.
    pub(super) fn at(&self, at: usize) -> [u8; 16] {
        let (mut out, mut missing) = ([0; 16], !0u16);
        for w in self.writes[..=at].iter().rev() {
            let take = w.mask & missing;
            for (n, b) in out.iter_mut().enumerate() {
                if take >> n & 1 == 1 {
                    *b = w.data[n];
                }
            }
            missing &= !take;
            if missing == 0 {
                break;
            }
        }
        out
    }

    /// Folds the oldest writes into the first.
    pub(super) fn trim(&mut self) {
        let drop = self.writes.len() - HISTORY;
        let data = self.at(drop);
        let last = self.writes.drain(..drop).count();
        debug_assert_eq!(last, drop);
        let base = &mut self.writes[0];
        *base = Write {
            mask: !0,
            data,
            agent: NOBODY,
            clock: 0,
            strong: None,
            extra: None,
            ..base.clone()
        };
    }
}

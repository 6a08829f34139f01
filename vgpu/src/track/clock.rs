//! Vector clocks, and the map that granules are kept in.

use std::collections::HashMap;

/// A hash that keeps order: granule numbers need no defence against anybody, but their cells are touched in a row.
#[derive(Default, Clone, Copy)]
pub struct FastHash(u64);

impl std::hash::Hasher for FastHash {
    fn finish(&self) -> u64 {
        // Neighbours stay neighbours in the table; the seven top bits tell those apart that share a bucket.
        let top = !0 << 57;
        self.0 & !top | self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) & top
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64((*b).into());
        }
    }
    fn write_u16(&mut self, x: u16) {
        self.write_u64(x.into());
    }
    fn write_u32(&mut self, x: u32) {
        self.write_u64(x.into());
    }
    fn write_u64(&mut self, x: u64) {
        self.0 = self.0.rotate_left(23) ^ x;
    }
}

/// A map with that hash.
pub type FastMap<K, V> = HashMap<K, V, std::hash::BuildHasherDefault<FastHash>>;

/// A vector clock: for each agent, up to which of its operations is known.
pub type Vc = Vec<u32>;

/// Raises `into` to `from`.
pub fn join(into: &mut Vc, from: &[u32]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

pub(super) fn knows(vc: &[u32], agent: u32, clock: u32) -> bool {
    agent == NOBODY || vc.get(agent as usize).copied().unwrap_or(0) >= clock
}

/// The agent of initial values and of the host between launches: everybody knows what it did.
pub const NOBODY: u32 = u32::MAX;

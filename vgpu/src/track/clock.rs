//! Vector clocks, and the map that granules are kept in.

use std::collections::HashMap;

/// A multiplicative hash: granule numbers need no defence against anybody.
#[derive(Default, Clone, Copy)]
pub struct FastHash(u64);

impl std::hash::Hasher for FastHash {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
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
        self.0 = (self.0.rotate_left(5) ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15);
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

const PAGE: usize = 1024;

/// Numbers of granules' cells, in pages: granules are touched in a row, and a hash of each would scatter them.
#[derive(Default)]
pub struct Slots {
    pages: FastMap<u64, u32>,
    tables: Vec<Box<[u32; PAGE]>>,
}

impl Slots {
    /// The number of a granule, if it has one.
    pub fn get(&self, granule: u64) -> Option<u32> {
        let page = *self.pages.get(&(granule / PAGE as u64))?;
        self.tables[page as usize][granule as usize % PAGE].checked_sub(1)
    }

    /// The number of a granule; `next` becomes its number if it has none.
    pub fn get_or_insert(&mut self, granule: u64, next: u32) -> u32 {
        let new = self.tables.len() as u32;
        let page = *self.pages.entry(granule / PAGE as u64).or_insert(new);
        if page == new {
            self.tables.push(Box::new([0; PAGE]));
        }
        // Zero says that there is none.
        let at = &mut self.tables[page as usize][granule as usize % PAGE];
        if *at == 0 {
            *at = next + 1;
        }
        *at - 1
    }
}

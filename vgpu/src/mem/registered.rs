//! Host memory that a program registers, so that devices see it at its own address.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::identity;
use super::region::{Kind, Region, new_id, rights};

/// Registered memory by address.
#[derive(Default)]
pub struct Registered {
    all: RwLock<BTreeMap<u64, Box<Region>>>,
    /// How many there are: none, mostly.
    count: AtomicUsize,
}

impl Registered {
    #[cold]
    pub(super) fn find(&self, addr: u64, len: u64) -> Option<&Region> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let all = self.all.read().unwrap();
        let region: *const Region = &**all.range(..=addr).next_back()?.1;
        // SAFETY: the box stays where it is until it is removed, which callers do not do while a kernel uses the memory.
        let region = unsafe { &*region };
        let end = (addr - region.base).checked_add(len);
        end.is_some_and(|end| end <= region.len).then_some(region)
    }

    /// Lets devices see memory; false if some of it is registered already.
    pub fn add(&self, base: u64, len: u64) -> bool {
        let mut all = self.all.write().unwrap();
        if all.range(..base + len).next_back().is_some_and(|(_, r)| r.base + r.len > base) {
            return false;
        }
        let region = Region {
            base,
            len,
            device: 0,
            kind: Kind::Host,
            backing: None,
            is_allocation: false,
            identity: identity::of_registered(base),
            team: None,
            id: new_id(),
            rights: rights(u64::MAX),
            follows: false,
        };
        all.insert(base, Box::new(region));
        self.count.fetch_add(1, Ordering::Release);
        true
    }

    /// Takes back [`Registered::add`], by the same address. No kernel may still use the memory.
    pub fn remove(&self, base: u64) -> Option<Box<Region>> {
        let gone = self.all.write().unwrap().remove(&base);
        self.count.fetch_sub(usize::from(gone.is_some()), Ordering::Release);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_until_it_is_removed() {
        let all = Registered::default();
        assert!(all.find(1000, 1).is_none() && all.add(1000, 100));
        assert!(!all.add(1099, 1) && !all.add(999, 2) && all.add(1100, 4));
        assert_eq!(all.find(1096, 4).unwrap().kind, Kind::Host);
        assert!(all.find(1097, 4).is_none() && all.remove(1001).is_none());
        assert!(all.remove(1000).is_some());
        assert!(all.find(1000, 1).is_none() && all.find(1100, 4).is_some());
    }
}

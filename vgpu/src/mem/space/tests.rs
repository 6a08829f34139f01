//! Regions are found, bounded, shared, freed.

use super::*;

#[test]
fn regions_are_found_bounded_shared_and_freed() {
    let space = AddressSpace::new().unwrap();
    let a = space.alloc(0, Kind::Device, 100).unwrap();
    let b = space.alloc(1, Kind::Device, 1 << 20).unwrap();
    assert_eq!(space.find(a + 96, 4).unwrap().base, a);
    assert!(space.find(a + 97, 4).is_none() && space.find(a - 1, 1).is_none());
    assert_eq!(space.find(b + (1 << 20) - 1, 1).unwrap().device, 1);
    let (fd, offset) = space.find(b, 1).unwrap().backing.clone().unwrap();
    let again = space.map(1, Kind::Device, fd, offset, 1 << 20).unwrap();
    // SAFETY: both are live mappings of at least four bytes.
    unsafe {
        (b as *mut u32).write_volatile(7);
        assert_eq!((again as *const u32).read_volatile(), 7);
    }
    let identity = |at: u64| space.find(at, 1).map(|r| r.identity + (at - r.base)).unwrap();
    assert_eq!(identity(b + 5), identity(again + 5));
    assert_ne!(identity(a), identity(b));
    assert_eq!(space.locate(identity(again) + 5), Some((b.min(again), 5, 1)));
    space.remember_freed();
    assert!(space.free(b) && !space.free(b) && space.find(b, 1).is_none());
    // The other mapping keeps the bytes.
    assert!(space.take_freed().is_empty());
    // SAFETY: a live mapping.
    assert_eq!(unsafe { (again as *const u32).read_volatile() }, 7);
    let gone = identity(again)..identity(again) + (1 << 20);
    assert!(space.free(again));
    assert_eq!(space.take_freed(), [gone]);
}

/// The system aligns mappings to its own pages alone: a page of the table must not begin in the middle of a region's.
#[test]
fn the_arena_begins_at_a_page_of_its_own() {
    let mut kept = Vec::new();
    for k in 1..20 {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, which stays.
        let odd = unsafe {
            rustix::mm::mmap_anonymous(null_mut(), 4096 * k, ProtFlags::empty(), flags).unwrap()
        };
        let space = AddressSpace::new().unwrap();
        let at = space.alloc(0, Kind::Device, 2 << 20).unwrap();
        assert!(space.base.is_multiple_of(PAGE), "{:#x} behind {odd:?}", space.base);
        assert!((0..32).all(|page| space.find(at + page * PAGE + PAGE - 1, 1).is_some()));
        kept.push(space);
    }
}

#[test]
fn mappings_of_one_file_are_the_same_bytes_until_the_last_is_gone() {
    let space = AddressSpace::new().unwrap();
    space.remember_freed();
    let file = rustix::fs::memfd_create("vgpu", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 2 * PAGE).unwrap();
    let file = Arc::new(file);
    let map = || {
        let at = space.reserve(2 * PAGE, PAGE).unwrap();
        let backing = Some((file.clone(), 0));
        let mapping = Mapping { device: 3, kind: Kind::Device, backing, team: None };
        space.map_at(at, 2 * PAGE, mapping).unwrap();
        at
    };
    let (home, seen) = (map(), map());
    space.find(seen, 1).unwrap().allow(3, true, true);
    let identity = space.find(home, 1).unwrap().identity;
    assert_eq!(space.find(seen, 1).unwrap().identity, identity);
    // A report names the mapping that a device may access.
    assert_eq!(space.locate(identity + 9), Some((seen, 9, 3)));
    assert!(!space.free(seen) && space.find(seen, 1).is_some());
    space.unmap_at(seen, 2 * PAGE);
    assert!(space.take_freed().is_empty());
    assert_eq!(space.locate(identity + 9), Some((home, 9, 3)));
    space.unmap_at(home, 2 * PAGE);
    let gone = identity..identity + 2 * PAGE;
    assert_eq!(space.take_freed(), [gone]);
}

#[test]
fn registered_memory_has_identities_of_its_own() {
    let space = AddressSpace::new().unwrap();
    space.remember_freed();
    let (at, len) = (0x7000_1230, 0x3000);
    assert!(space.register(at, len) && !space.register(at + 1, 1));
    let identity = space.find(at, 1).unwrap().identity;
    assert_eq!((identity & 0xffff, space.locate(identity + 5)), (0x1230, Some((at, 5, 0))));
    assert!(space.unregister(at) && !space.unregister(at));
    assert!(space.locate(identity + 5).is_none());
    // Of the pages at both ends others may have bytes.
    let base = identity - 0x230;
    let gone = base + 0x1000..base + 0x3000;
    assert_eq!(space.take_freed(), [gone]);
}

#[test]
fn rights_follow_the_peers_and_freed_ranges_grow_together() {
    let space = AddressSpace::new().unwrap();
    space.restrict_to_owners();
    let a = space.alloc(0, Kind::Device, 100).unwrap();
    assert!(space.access(a, 4, 0, true).is_some() && space.access(a, 4, 1, false).is_none());
    space.set_peer(0, 1, true);
    let later = space.alloc(0, Kind::Device, 100).unwrap();
    assert!(space.access(a, 4, 1, true).is_some() && space.access(later, 4, 1, true).is_some());
    space.set_peer(0, 1, false);
    assert!(space.access(later, 4, 1, false).is_none());
    assert!(space.free(a) && space.free(later));
    assert_eq!(space.state.lock().unwrap().free.len(), 1);
    let aligned = space.reserve(1, 1 << 21).unwrap();
    assert_eq!(aligned % (1 << 21), 0);
    space.release(aligned, 1);
    assert_eq!(space.state.lock().unwrap().free.len(), 1);
}

//! The address space: which addresses are device memory, whose, and backed by which file.
//!
//! One range of host addresses is reserved for all devices. A page table of one word per 64 KiB names the region of an
//! address, so a check is two loads. Regions are separated by a page that is never mapped, so that running over the
//! end is an error, as under a memory checker. A region's bytes come from a memfd, which other processes can map.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use rustix::mm::{MapFlags, ProtFlags};

use super::counters::Target;

const PAGE_BITS: u32 = 16;
const PAGE: u64 = 1 << PAGE_BITS;
const ARENA: u64 = 1 << 40;
const MAX_REGIONS: usize = 1 << 16;
/// No file gets longer, although the bytes of a freed allocation are not used again.
const FILE_BITS: u32 = 44;

/// What a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Memory of a device.
    Device,
    /// Host memory that devices see.
    Host,
    /// A multicast object: no bytes of its own.
    Multicast,
}

/// One allocation or mapping.
#[derive(Debug)]
pub struct Region {
    /// First address.
    pub base: u64,
    /// Length as asked for, in bytes.
    pub len: u64,
    /// Device that owns the bytes (of a multicast region: that mapped it).
    pub device: u32,
    /// What it is.
    pub kind: Kind,
    /// File and offset of the bytes; none for multicast.
    pub backing: Option<(Arc<OwnedFd>, u64)>,
    /// Number of the first byte among the bytes of all files: two mappings of the same byte have the same.
    pub identity: u64,
    /// Addresses of the members' bytes, for multicast.
    pub members: RwLock<Vec<u64>>,
}

impl Region {
    /// Where an access from `device` goes.
    #[inline(always)]
    pub fn target(&self, device: u32) -> Target {
        match self.kind {
            Kind::Device if self.device == device => Target::Own,
            Kind::Device => Target::Peer,
            Kind::Host => Target::Host,
            Kind::Multicast => Target::Multicast,
        }
    }
}

/// The address space of a process.
pub struct AddressSpace {
    base: u64,
    pages: *mut AtomicU32,
    table: Box<[AtomicPtr<Region>]>,
    state: Mutex<State>,
}

// SAFETY: `pages` is a private mapping of atomics; everything else is Sync by itself.
unsafe impl Send for AddressSpace {}
// SAFETY: as above.
unsafe impl Sync for AddressSpace {}

struct State {
    /// Free ranges of pages: start to length.
    free: BTreeMap<u64, u64>,
    free_ids: Vec<u32>,
    next_id: u32,
    files: BTreeMap<(u32, bool), (Arc<OwnedFd>, u64)>,
    /// Numbers of files, by device and inode.
    numbers: BTreeMap<(u64, u64), u64>,
    /// Identities of bytes that no region holds any more; none unless somebody wants to know.
    freed: Option<Vec<Range<u64>>>,
}

impl AddressSpace {
    /// Reserves the range. Nothing is committed.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: new anonymous mappings, chosen by the kernel, replace nothing.
        let (base, pages) = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            let base =
                rustix::mm::mmap_anonymous(null_mut(), ARENA as usize, ProtFlags::empty(), flags)?;
            let table = (ARENA >> PAGE_BITS) as usize * 4;
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            (base as u64, rustix::mm::mmap_anonymous(null_mut(), table, rw, flags)?.cast())
        };
        let free =
            BTreeMap::from([(base.next_multiple_of(PAGE) >> PAGE_BITS, (ARENA >> PAGE_BITS) - 1)]);
        Ok(AddressSpace {
            base,
            pages,
            table: (0..MAX_REGIONS).map(|_| AtomicPtr::new(null_mut())).collect(),
            state: Mutex::new(State {
                free,
                free_ids: Vec::new(),
                next_id: 1,
                files: BTreeMap::new(),
                numbers: BTreeMap::new(),
                freed: None,
            }),
        })
    }

    /// The region that contains `len` bytes at `addr`.
    #[inline(always)]
    pub fn find(&self, addr: u64, len: u64) -> Option<&Region> {
        let page = addr.wrapping_sub(self.base) >> PAGE_BITS;
        if page >= ARENA >> PAGE_BITS {
            return None;
        }
        // SAFETY: `page` is inside the page table; ids index the region table; a region that the page table names
        // is alive, since `free` clears the pages first and callers free no memory that a kernel still uses.
        unsafe {
            let id = (*self.pages.add(page as usize)).load(Ordering::Relaxed);
            let region = self.table.get_unchecked(id as usize).load(Ordering::Acquire).as_ref()?;
            (addr - region.base + len <= region.len).then_some(region)
        }
    }

    /// Allocates zeroed memory of a device, or host memory.
    pub fn alloc(&self, device: u32, kind: Kind, len: u64) -> std::io::Result<u64> {
        let span = len.max(1).next_multiple_of(PAGE);
        let (fd, offset) = {
            let mut st = self.state.lock().unwrap();
            let entry = match st.files.entry((device, kind == Kind::Host)) {
                std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
                std::collections::btree_map::Entry::Vacant(v) => {
                    let fd = rustix::fs::memfd_create("vgpu", rustix::fs::MemfdFlags::CLOEXEC)?;
                    v.insert((Arc::new(fd), 0))
                }
            };
            let offset = entry.1;
            entry.1 += span;
            rustix::fs::ftruncate(&entry.0, entry.1)?;
            (entry.0.clone(), offset)
        };
        self.map(device, kind, fd, offset, len)
    }

    /// Maps part of a file as a region: an allocation of this process or of another one.
    pub fn map(
        &self,
        device: u32,
        kind: Kind,
        fd: Arc<OwnedFd>,
        offset: u64,
        len: u64,
    ) -> std::io::Result<u64> {
        let base = self.reserve(len)?;
        let span = len.max(1).next_multiple_of(PAGE);
        // SAFETY: the range was taken from the reserved arena and belongs to no region.
        unsafe {
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            rustix::mm::mmap(base as *mut _, span as usize, rw, flags, fd.as_fd(), offset)?;
        }
        let identity = self.file_number(&fd)? << FILE_BITS | offset;
        self.publish(Region {
            base,
            len,
            device,
            kind,
            identity,
            backing: Some((fd, offset)),
            members: RwLock::default(),
        })?;
        Ok(base)
    }

    /// A number for a file, the same for all descriptors of it.
    fn file_number(&self, fd: &OwnedFd) -> std::io::Result<u64> {
        let stat = rustix::fs::fstat(fd)?;
        let mut st = self.state.lock().unwrap();
        let next = st.numbers.len() as u64 + 1;
        Ok(*st.numbers.entry((stat.st_dev, stat.st_ino)).or_insert(next))
    }

    /// The region that holds a byte with this identity (the oldest, if it is mapped several times): its base, the byte's offset, its
    /// device.
    pub fn locate(&self, identity: u64) -> Option<(u64, u64, u32)> {
        self.regions(&self.state.lock().unwrap()).find_map(|r| {
            let offset = identity.checked_sub(r.identity).filter(|o| *o < r.len)?;
            Some((r.base, offset, r.device))
        })
    }

    /// All regions with bytes. Under the lock none is freed.
    fn regions<'a>(&'a self, st: &'a State) -> impl Iterator<Item = &'a Region> {
        // SAFETY: a pointer in the table leads to a region until `free` takes it out, under the lock.
        let region = |p: &'a AtomicPtr<Region>| unsafe { p.load(Ordering::Acquire).as_ref() };
        let ids = (st.next_id as usize).min(MAX_REGIONS);
        self.table[..ids].iter().filter_map(region).filter(|r| r.backing.is_some())
    }

    /// From now on, notes which bytes vanish.
    pub fn remember_freed(&self) {
        self.state.lock().unwrap().freed.get_or_insert_default();
    }

    /// Identities of the bytes that vanished since the last call.
    pub fn take_freed(&self) -> Vec<Range<u64>> {
        self.state.lock().unwrap().freed.as_mut().map_or_else(Vec::new, std::mem::take)
    }

    /// Makes a multicast region: an access reaches the bytes at the same offset of every member.
    pub fn multicast(&self, device: u32, members: Vec<u64>, len: u64) -> std::io::Result<u64> {
        let base = self.reserve(len)?;
        let members = RwLock::new(members);
        self.publish(Region {
            base,
            len,
            device,
            kind: Kind::Multicast,
            identity: 0,
            backing: None,
            members,
        })?;
        Ok(base)
    }

    fn reserve(&self, len: u64) -> std::io::Result<u64> {
        let pages = (len.max(1).next_multiple_of(PAGE) >> PAGE_BITS) + 1; // and a guard page
        let mut st = self.state.lock().unwrap();
        let found = st.free.iter().find(|&(_, &n)| n >= pages).map(|(&s, &n)| (s, n));
        let (start, n) = found.ok_or(std::io::ErrorKind::OutOfMemory)?;
        st.free.remove(&start);
        if n > pages {
            st.free.insert(start + pages, n - pages);
        }
        Ok(start << PAGE_BITS)
    }

    fn publish(&self, region: Region) -> std::io::Result<()> {
        let id = {
            let mut st = self.state.lock().unwrap();
            st.free_ids.pop().unwrap_or_else(|| {
                st.next_id += 1;
                st.next_id - 1
            })
        };
        if id as usize >= MAX_REGIONS {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let (base, len) = (region.base, region.len);
        // Publishes the region's fields to `find`, which loads the pointer with acquire.
        self.table[id as usize].store(Box::into_raw(Box::new(region)), Ordering::Release);
        self.set_pages(base, len, id);
        Ok(())
    }

    fn set_pages(&self, base: u64, len: u64, id: u32) {
        let first = (base - self.base) >> PAGE_BITS;
        for p in first..first + (len.max(1).next_multiple_of(PAGE) >> PAGE_BITS) {
            // SAFETY: `p` is a page of a region inside the arena. Relaxed: a kernel learns of an address only by a
            // launch that comes after this.
            unsafe { (*self.pages.add(p as usize)).store(id, Ordering::Relaxed) };
        }
    }

    /// Frees a region by its first address. No kernel may still use it.
    pub fn free(&self, base: u64) -> bool {
        let Some(region) = self.find(base, 0).filter(|r| r.base == base) else {
            return false;
        };
        let (len, identity, backing) = (region.len, region.identity, region.backing.clone());
        // SAFETY: as in `find`.
        let id = unsafe {
            (*self.pages.add(((base - self.base) >> PAGE_BITS) as usize)).load(Ordering::Relaxed)
        };
        self.set_pages(base, len, 0);
        let last = {
            let mut st = self.state.lock().unwrap(); // `regions` needs it
            let old = self.table[id as usize].swap(null_mut(), Ordering::AcqRel);
            let gone = identity..identity + len.max(1).next_multiple_of(PAGE);
            let shared = |r: &Region| r.identity < gone.end && gone.start < r.identity + r.len;
            // SAFETY: the pointer came from `Box::into_raw` in `publish`, and no page names it any more.
            drop(unsafe { Box::from_raw(old) });
            let last = backing.is_some() && !self.regions(&st).any(shared);
            if let Some(freed) = st.freed.as_mut().filter(|_| last) {
                freed.push(gone);
            }
            last
        };
        let span = len.max(1).next_multiple_of(PAGE);
        // SAFETY: the range belongs to this region alone; it goes back to being reserved.
        unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            let _ = rustix::mm::mmap_anonymous(
                base as *mut _,
                span as usize,
                ProtFlags::empty(),
                flags,
            );
        }
        if let Some((fd, offset)) = backing {
            let mode =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            // Only the owner's file is punched, when its last mapping goes; an importer holds another reference to the same memory.
            if last && self.owns(&fd) {
                let _ = rustix::fs::fallocate(&fd, mode, offset, span);
            }
        }
        let mut st = self.state.lock().unwrap();
        st.free_ids.push(id);
        st.free.insert(base >> PAGE_BITS, (span >> PAGE_BITS) + 1);
        true
    }

    fn owns(&self, fd: &Arc<OwnedFd>) -> bool {
        self.state.lock().unwrap().files.values().any(|(f, _)| Arc::ptr_eq(f, fd))
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        for slot in &self.table {
            let p = slot.swap(null_mut(), Ordering::AcqRel);
            if !p.is_null() {
                // SAFETY: made by `Box::into_raw` in `publish`; nothing uses a space that is dropped.
                drop(unsafe { Box::from_raw(p) });
            }
        }
        // SAFETY: both mappings were made in `new` and nothing points into them any more.
        unsafe {
            let _ = rustix::mm::munmap(self.base as *mut _, ARENA as usize);
            let _ = rustix::mm::munmap(self.pages.cast(), (ARENA >> PAGE_BITS) as usize * 4);
        }
    }
}

#[cfg(test)]
mod tests {
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
}

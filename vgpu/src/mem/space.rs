//! The address space: which addresses are device memory, whose, and backed by which file.
//!
//! One range of host addresses is reserved for all devices. A page table of one word per 64 KiB names the region of an
//! address, so a check is two loads. Regions are separated by a page that is never mapped, so that running over the
//! end is an error, as under a memory checker. A region's bytes come from a memfd, which other processes can map.
//!
//! A region says which devices may access it. Host memory that a program registers lies outside the range; it is found by
//! a slower way, that is taken only by addresses outside.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::mm::{MapFlags, ProtFlags};

use super::identity::{self, Identities};
use super::region::{Backing, Fixed, new_id, rights};
pub use super::region::{Kind, Mapping, PIECE, Pieces, Region, Snapshot, Team};
use super::registered::Registered;

const PAGE_BITS: u32 = 16;
const PAGE: u64 = 1 << PAGE_BITS;
/// Bytes of addresses of one process.
pub const ARENA: u64 = 1 << 40;
const MAX_REGIONS: usize = 1 << 16;
/// The most devices: rights are masks of 64 bits.
pub const MAX_DEVICES: usize = 64;

/// The address space of a process.
pub struct AddressSpace {
    base: u64,
    /// Bytes of addresses.
    size: u64,
    pages: *mut AtomicU32,
    table: Box<[AtomicPtr<Region>]>,
    state: Mutex<State>,
    registered: Registered,
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
    /// Who may access a device's ordinary memory: a bit for each device.
    peers: [u64; MAX_DEVICES],
    identities: Identities,
}

impl AddressSpace {
    /// Reserves a range that the system chooses. Nothing is committed.
    pub fn new() -> std::io::Result<Self> {
        AddressSpace::reserved(None, ARENA, 0..ARENA)
    }

    /// Reserves this range, in which only `own`, counted from its beginning, is allocated from: in the rest others place regions.
    pub fn at(base: u64, size: u64, own: Range<u64>) -> std::io::Result<Self> {
        AddressSpace::reserved(Some(base), size, own)
    }

    fn reserved(at: Option<u64>, size: u64, own: Range<u64>) -> std::io::Result<Self> {
        let wanted = at.map_or(null_mut(), |at| at as *mut _);
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if at.is_some() {
            flags |= MapFlags::FIXED_NOREPLACE;
        }
        // The system chooses multiples of its own pages: a page of this table may begin behind. What is too much goes back.
        let spare = if at.is_some() { 0 } else { PAGE };
        let all = (size + spare) as usize;
        // SAFETY: new anonymous mappings, which replace nothing; and what is unmapped is of the first.
        let (base, pages) = unsafe {
            let found = rustix::mm::mmap_anonymous(wanted, all, ProtFlags::empty(), flags)? as u64;
            let base = if at.is_some() { found } else { found.next_multiple_of(PAGE) };
            for (from, to) in [(found, base), (base + size, found + all as u64)] {
                if from < to {
                    rustix::mm::munmap(from as *mut _, (to - from) as usize)?;
                }
            }
            let table = (size >> PAGE_BITS) as usize * 4;
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            (base, rustix::mm::mmap_anonymous(null_mut(), table, rw, flags)?.cast())
        };
        let first = (base + own.start).next_multiple_of(PAGE) >> PAGE_BITS;
        let free = BTreeMap::from([(first, ((base + own.end) >> PAGE_BITS) - first)]);
        Ok(AddressSpace {
            base,
            size,
            pages,
            table: (0..MAX_REGIONS).map(|_| AtomicPtr::new(null_mut())).collect(),
            state: Mutex::new(State {
                free,
                free_ids: Vec::new(),
                next_id: 1,
                files: BTreeMap::new(),
                peers: [u64::MAX; MAX_DEVICES],
                identities: Identities::default(),
            }),
            registered: Registered::default(),
        })
    }

    /// The region that contains `len` bytes at `addr`.
    #[inline(always)]
    pub fn find(&self, addr: u64, len: u64) -> Option<&Region> {
        let page = addr.wrapping_sub(self.base) >> PAGE_BITS;
        if page >= self.size >> PAGE_BITS {
            return self.registered.find(addr, len);
        }
        // SAFETY: `page` is inside the page table; ids index the region table; a region that the page table names
        // is alive, since `free` clears the pages first and callers free no memory that a kernel still uses.
        unsafe {
            let id = (*self.pages.add(page as usize)).load(Ordering::Relaxed);
            let region = self.table.get_unchecked(id as usize).load(Ordering::Acquire).as_ref()?;
            (addr - region.base + len <= region.len).then_some(region)
        }
    }

    /// The region of an access that a device is allowed to make.
    #[inline(always)]
    pub fn access(&self, addr: u64, len: u64, device: u32, store: bool) -> Option<&Region> {
        self.find(addr, len).filter(|r| r.allows(device, store))
    }

    /// Lets devices see host memory of the program; false if some of it is registered already.
    pub fn register(&self, base: u64, len: u64) -> bool {
        self.registered.add(base, len)
    }

    /// Takes back [`AddressSpace::register`], by the same address. No kernel may still use the memory.
    pub fn unregister(&self, base: u64) -> bool {
        let Some(region) = self.registered.remove(base) else {
            return false;
        };
        // Whole pages of the memory model: the others hold granules of neighbours, too.
        let end = (region.identity + region.len) & !0xfff;
        let start = region.identity.next_multiple_of(0x1000);
        if start < end {
            self.state.lock().unwrap().identities.free(start..end);
        }
        true
    }

    /// True if the address is in the reserved range: no host memory of the program is there.
    pub fn contains(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.base) < self.size
    }

    /// Ordinary memory of a device is from now on its own only; peers are let in by [`AddressSpace::set_peer`].
    pub fn restrict_to_owners(&self) {
        let mut st = self.state.lock().unwrap();
        st.peers = std::array::from_fn(|device| 1 << device);
    }

    /// Whether `device` may access the ordinary memory of `owner`, what is there and what will be.
    pub fn set_peer(&self, owner: u32, device: u32, on: bool) {
        let mut st = self.state.lock().unwrap();
        let mask = &mut st.peers[owner as usize];
        if on {
            *mask |= 1 << device
        } else {
            *mask &= !(1 << device)
        }
        for slot in &self.table[..st.next_id as usize] {
            // SAFETY: regions are freed under the lock that is held here.
            if let Some(r) = unsafe { slot.load(Ordering::Acquire).as_ref() }
                && r.follows
                && r.device == owner
            {
                r.allow(device, on, on);
            }
        }
    }

    /// Allocates zeroed memory of a device, or host memory.
    pub fn alloc(&self, device: u32, kind: Kind, len: u64) -> std::io::Result<u64> {
        let (fd, offset) = self.file(device, kind, len)?;
        self.map(device, kind, fd, offset, len)
    }

    /// Allocates memory that only its device may access, whatever its peers are.
    pub fn alloc_private(&self, device: u32, len: u64) -> std::io::Result<u64> {
        let (fd, offset) = self.file(device, Kind::Device, len)?;
        self.map_private(device, fd, offset, len)
    }

    /// A part of the device's file that was not used before.
    fn file(&self, device: u32, kind: Kind, len: u64) -> std::io::Result<(Arc<OwnedFd>, u64)> {
        let span =
            len.max(1).checked_next_multiple_of(PAGE).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut st = self.state.lock().unwrap();
        let entry = match st.files.entry((device, kind == Kind::Host)) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(v) => {
                let fd = rustix::fs::memfd_create("vgpu", rustix::fs::MemfdFlags::CLOEXEC)?;
                v.insert((Arc::new(fd), 0))
            }
        };
        let offset = entry.1;
        let end = offset.checked_add(span).ok_or(std::io::ErrorKind::OutOfMemory)?;
        rustix::fs::ftruncate(&entry.0, end)?;
        entry.1 = end;
        Ok((entry.0.clone(), offset))
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
        let host = kind == Kind::Host;
        self.map_with(device, kind, (fd, offset), len, u64::MAX, !host)
    }

    /// As [`AddressSpace::map`]; only the device itself, and whom [`Region::allow`] lets, may access it.
    pub fn map_private(
        &self,
        device: u32,
        fd: Arc<OwnedFd>,
        offset: u64,
        len: u64,
    ) -> std::io::Result<u64> {
        self.map_with(device, Kind::Device, (fd, offset), len, 1 << device, false)
    }

    fn map_with(
        &self,
        device: u32,
        kind: Kind,
        backing: Backing,
        len: u64,
        mask: u64,
        follows: bool,
    ) -> std::io::Result<u64> {
        let base = self.reserve(len, PAGE)?;
        let placed = self.place(Region {
            base,
            len,
            device,
            kind,
            backing: Some(backing),
            is_allocation: true,
            identity: 0,
            team: None,
            id: new_id(),
            rights: rights(mask),
            follows,
        });
        if let Err(e) = placed {
            self.release(base, len);
            return Err(e);
        }
        Ok(base)
    }

    /// Makes a region at a range that [`AddressSpace::reserve`] gave; no device may access it before [`Region::allow`].
    pub fn map_at(&self, base: u64, len: u64, mapping: Mapping) -> std::io::Result<()> {
        let Mapping { device, kind, backing, team } = mapping;
        self.place(Region {
            base,
            len,
            device,
            kind,
            backing,
            is_allocation: false,
            identity: 0,
            team,
            id: new_id(),
            rights: rights(0),
            follows: false,
        })
    }

    /// Puts a region and its bytes at a reserved range.
    fn place(&self, region: Region) -> std::io::Result<()> {
        let (base, len) = (region.base, region.len);
        let mapped = match &region.backing {
            Some((fd, offset)) => self.map_file(base, len, fd, *offset),
            None => Ok(()),
        };
        let placed = mapped.and_then(|()| self.publish(region));
        if placed.is_err() {
            self.clear(base, len);
        }
        placed
    }

    fn map_file(&self, base: u64, len: u64, fd: &OwnedFd, offset: u64) -> std::io::Result<()> {
        let span = len.max(1).next_multiple_of(PAGE);
        // SAFETY: the range was taken from the reserved arena and belongs to no region.
        unsafe {
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            rustix::mm::mmap(base as *mut _, span as usize, rw, flags, fd.as_fd(), offset)?;
        }
        Ok(())
    }

    /// Takes back [`AddressSpace::map_at`]: the range is reserved as before. No kernel may still use it.
    pub fn unmap_at(&self, base: u64, len: u64) {
        self.withdraw(base);
        self.clear(base, len);
    }

    /// The region that holds a byte with this identity: its base, the byte's offset, its device. If there are several, one that
    /// devices may access.
    pub fn locate(&self, identity: u64) -> Option<(u64, u64, u32)> {
        if let Some(addr) = identity::registered(identity) {
            return self.registered.find(addr, 1).map(|r| (r.base, addr - r.base, r.device));
        }
        let st = self.state.lock().unwrap();
        let offset = |r: &Region| identity.checked_sub(r.identity).filter(|o| *o < r.len);
        let found = self.regions(&st).filter_map(|r| Some((r, offset(r)?)));
        let (r, offset) = found.min_by_key(|(r, _)| !r.is_accessible())?;
        Some((r.base, offset, r.device))
    }

    /// All regions with bytes. Under the lock none is freed.
    fn regions<'a>(&'a self, st: &'a State) -> impl Iterator<Item = &'a Region> {
        // SAFETY: a pointer in the table leads to a region until `withdraw` takes it out, under the lock.
        let region = |p: &'a AtomicPtr<Region>| unsafe { p.load(Ordering::Acquire).as_ref() };
        let ids = (st.next_id as usize).min(MAX_REGIONS);
        self.table[..ids].iter().filter_map(region).filter(|r| r.backing.is_some())
    }

    /// All regions as they are now, with where the members of multicast regions are.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        // Asking a team for its members may map them, which takes the lock.
        let all = |st: &State| {
            let ids = (st.next_id as usize).min(MAX_REGIONS);
            let region = |p: &AtomicPtr<Region>| {
                // SAFETY: a pointer in the table leads to a region until `withdraw` takes it out, under the lock.
                let region = unsafe { p.load(Ordering::Acquire).as_ref() };
                region.map(Region::snapshot)
            };
            self.table[..ids].iter().filter_map(region).collect::<Vec<_>>()
        };
        let teams = all(&self.state.lock().unwrap());
        let members: BTreeMap<_, _> =
            teams.iter().filter_map(|r| Some((r.id, r.members()?))).collect();
        let mut regions = all(&self.state.lock().unwrap());
        for r in &mut regions {
            r.pieces = members.get(&r.id).cloned();
        }
        regions
    }

    /// From now on, notes which bytes vanish.
    pub fn remember_freed(&self) {
        self.state.lock().unwrap().identities.remember_freed();
    }

    /// Identities of the bytes that vanished since the last call.
    pub fn take_freed(&self) -> Vec<Range<u64>> {
        self.state.lock().unwrap().identities.take_freed()
    }

    /// Makes a multicast region: an access reaches the bytes at the same offset of every member.
    pub fn multicast(&self, device: u32, members: Vec<u64>, len: u64) -> std::io::Result<u64> {
        let base = self.reserve(len, PAGE)?;
        let team: Option<Arc<dyn Team>> = Some(Arc::new(Fixed(members)));
        self.map_at(base, len, Mapping { device, kind: Kind::Multicast, backing: None, team })?;
        if let Some(r) = self.find(base, 1) {
            (0..MAX_DEVICES as u32).for_each(|d| r.allow(d, true, true));
        }
        Ok(base)
    }

    /// Takes a range of addresses, with a page after it that stays unmapped.
    pub fn reserve(&self, len: u64, align: u64) -> std::io::Result<u64> {
        let pages = (len.max(1).next_multiple_of(PAGE) >> PAGE_BITS) + 1;
        let align = align.max(PAGE) >> PAGE_BITS;
        let mut st = self.state.lock().unwrap();
        let fits = |(&s, &n): (&u64, &u64)| {
            let start = s.next_multiple_of(align);
            (start + pages <= s + n).then_some((s, n, start))
        };
        let (s, n, start) = st.free.iter().find_map(fits).ok_or(std::io::ErrorKind::OutOfMemory)?;
        st.free.remove(&s);
        if start > s {
            st.free.insert(s, start - s);
        }
        if start + pages < s + n {
            st.free.insert(start + pages, s + n - start - pages);
        }
        Ok(start << PAGE_BITS)
    }

    /// Gives back a range of [`AddressSpace::reserve`].
    pub fn release(&self, base: u64, len: u64) {
        let mut start = base >> PAGE_BITS;
        let mut n = (len.max(1).next_multiple_of(PAGE) >> PAGE_BITS) + 1;
        let mut st = self.state.lock().unwrap();
        if let Some(after) = st.free.remove(&(start + n)) {
            n += after;
        }
        if let Some((&s, &before)) =
            st.free.range(..start).next_back().filter(|(s, n)| **s + **n == start)
        {
            start = s;
            n += before;
        }
        st.free.insert(start, n);
    }

    /// Unmaps whatever bytes are at a reserved range.
    pub fn clear(&self, base: u64, len: u64) {
        let span = len.max(1).next_multiple_of(PAGE) as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range belongs to its caller alone; it goes back to being reserved.
        unsafe {
            let _ = rustix::mm::mmap_anonymous(base as *mut _, span, ProtFlags::empty(), flags);
        }
    }

    fn publish(&self, mut region: Region) -> std::io::Result<()> {
        let mut st = self.state.lock().unwrap();
        if region.follows {
            region.rights = rights(st.peers[region.device as usize]);
        }
        let id = st.free_ids.pop().unwrap_or_else(|| {
            st.next_id += 1;
            st.next_id - 1
        });
        if id as usize >= MAX_REGIONS {
            st.next_id -= 1;
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        if let Some((fd, offset)) = &region.backing {
            match st.identities.enter(fd, *offset) {
                Ok(identity) => region.identity = identity,
                Err(e) => {
                    st.free_ids.push(id);
                    return Err(e);
                }
            }
        }
        let (base, len) = (region.base, region.len);
        // Publishes the region's fields to `find`, which loads the pointer with acquire.
        self.table[id as usize].store(Box::into_raw(Box::new(region)), Ordering::Release);
        self.set_pages(base, len, id);
        Ok(())
    }

    /// Takes a region out of the tables; true with it if its bytes vanish with it.
    fn withdraw(&self, base: u64) -> Option<(Box<Region>, bool)> {
        let mut st = self.state.lock().unwrap();
        let len = self.find(base, 0).filter(|r| r.base == base)?.len;
        // SAFETY: as in `find`.
        let id = unsafe {
            (*self.pages.add(((base - self.base) >> PAGE_BITS) as usize)).load(Ordering::Relaxed)
        };
        self.set_pages(base, len, 0);
        let old = self.table[id as usize].swap(null_mut(), Ordering::AcqRel);
        st.free_ids.push(id);
        // SAFETY: the pointer came from `Box::into_raw` in `publish`, and no page names it any more.
        let region = unsafe { Box::from_raw(old) };
        let bytes = region.identity..region.identity + len.max(1).next_multiple_of(PAGE);
        let shared = |r: &Region| r.identity < bytes.end && bytes.start < r.identity + r.len;
        let last = region.backing.is_some() && !self.regions(&st).any(shared);
        if region.backing.is_some() {
            st.identities.leave(bytes.start);
        }
        if last {
            st.identities.free(bytes);
        }
        Some((region, last))
    }

    fn set_pages(&self, base: u64, len: u64, id: u32) {
        let first = (base - self.base) >> PAGE_BITS;
        for p in first..first + (len.max(1).next_multiple_of(PAGE) >> PAGE_BITS) {
            // SAFETY: `p` is a page of a region inside the arena. Relaxed: a kernel learns of an address only by a
            // launch that comes after this.
            unsafe { (*self.pages.add(p as usize)).store(id, Ordering::Relaxed) };
        }
    }

    /// Frees a region of [`AddressSpace::map`] or [`AddressSpace::alloc`] by its first address. No kernel may still use it.
    pub fn free(&self, base: u64) -> bool {
        if !self.contains(base) || self.find(base, 0).is_none_or(|r| !r.is_allocation) {
            return false;
        }
        let Some((region, last)) = self.withdraw(base) else {
            return false;
        };
        self.clear(base, region.len);
        if let Some((fd, offset)) = &region.backing
            // Only the owner's file is punched, when its last mapping goes; an importer holds another reference to the same memory.
            && last
            && self.owns(fd)
        {
            let mode =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            let span = region.len.max(1).next_multiple_of(PAGE);
            let _ = rustix::fs::fallocate(fd, mode, *offset, span);
        }
        self.release(base, region.len);
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
            let _ = rustix::mm::munmap(self.base as *mut _, self.size as usize);
            let _ = rustix::mm::munmap(self.pages.cast(), (self.size >> PAGE_BITS) as usize * 4);
        }
    }
}

#[cfg(test)]
mod tests;

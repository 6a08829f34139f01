//! What lies at an address: whose memory, and who may access it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::Target;

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

/// Where the bytes behind a multicast region are.
pub trait Team: Send + Sync + std::fmt::Debug {
    /// Writes the address of each member's bytes at an offset of the region, and says how many there are. An error names
    /// the member that has none there.
    fn members(&self, offset: u64, len: u64, out: &mut [u64]) -> Result<usize, String>;
}

/// A team whose members do not change: first addresses of ranges that are as long as the region.
#[derive(Debug)]
pub(super) struct Fixed(pub Vec<u64>);

impl Team for Fixed {
    fn members(&self, offset: u64, _len: u64, out: &mut [u64]) -> Result<usize, String> {
        for (to, base) in out.iter_mut().zip(&self.0) {
            *to = base + offset;
        }
        Ok(self.0.len().min(out.len()))
    }
}

/// A file, and a place in it.
pub type Backing = (Arc<OwnedFd>, u64);

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
    /// File and offset of the bytes; none for multicast and registered host memory.
    pub backing: Option<Backing>,
    /// True for what [`AddressSpace::alloc`] and [`AddressSpace::map`] made.
    ///
    /// [`AddressSpace::alloc`]: super::space::AddressSpace::alloc
    /// [`AddressSpace::map`]: super::space::AddressSpace::map
    pub is_allocation: bool,
    /// Number of the first byte among all bytes: two mappings of the same byte have the same.
    pub identity: u64,
    /// The members, for multicast.
    pub team: Option<Arc<dyn Team>>,
    /// A number that no other region has or had.
    pub id: u64,
    /// Which devices may load, and which may store: a bit each.
    pub(super) rights: [AtomicU64; 2],
    /// True if the rights are those of the owner's peers.
    pub(super) follows: bool,
}

/// What `AddressSpace::map_at` makes a region of.
pub struct Mapping {
    /// Device that owns the bytes.
    pub device: u32,
    /// What it is.
    pub kind: Kind,
    /// File and offset of the bytes; none for multicast.
    pub backing: Option<Backing>,
    /// The members, for multicast.
    pub team: Option<Arc<dyn Team>>,
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

    /// True if a device may load, or store.
    #[inline(always)]
    pub fn allows(&self, device: u32, store: bool) -> bool {
        // Relaxed: a kernel learns of its rights by a launch that comes after they were given.
        self.rights[usize::from(store)].load(Ordering::Relaxed) >> device & 1 == 1
    }

    /// Lets a device load and store, or takes that from it.
    pub fn allow(&self, device: u32, load: bool, store: bool) {
        for (right, on) in self.rights.iter().zip([load, store]) {
            if on {
                right.fetch_or(1 << device, Ordering::Relaxed);
            } else {
                right.fetch_and(!(1 << device), Ordering::Relaxed);
            }
        }
    }

    /// True if any device may access it.
    pub fn is_accessible(&self) -> bool {
        self.rights[0].load(Ordering::Relaxed) != 0
    }
}

pub(super) fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(super) fn rights(mask: u64) -> [AtomicU64; 2] {
    [AtomicU64::new(mask), AtomicU64::new(mask)]
}

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

/// Members are bound to multicast objects in multiples of so many bytes.
pub const PIECE: u64 = 2 << 20;

/// A team as it was at a moment: for each piece of the region the addresses of the members' bytes, or what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces(pub Vec<Result<Vec<u64>, String>>);

impl Team for Pieces {
    fn members(&self, offset: u64, _len: u64, out: &mut [u64]) -> Result<usize, String> {
        let piece =
            self.0.get((offset / PIECE) as usize).ok_or("outside of the multicast object")?;
        let members = piece.as_ref().map_err(String::clone)?;
        for (to, at) in out.iter_mut().zip(members) {
            *to = at + offset % PIECE;
        }
        Ok(members.len().min(out.len()))
    }
}

/// A region as it was at a moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// As in [`Region`].
    pub id: u64,
    /// As in [`Region`].
    pub base: u64,
    /// As in [`Region`].
    pub len: u64,
    /// As in [`Region`].
    pub device: u32,
    /// As in [`Region`].
    pub kind: Kind,
    /// As in [`Region`].
    pub backing: Option<Backing>,
    /// Which devices may load, and which may store.
    pub rights: [u64; 2],
    /// Of a multicast region.
    pub pieces: Option<Pieces>,
    team: Option<Arc<dyn Team>>,
}

impl Snapshot {
    /// Where the team's members are, if it has one.
    pub(super) fn members(&self) -> Option<Pieces> {
        let team = self.team.as_ref()?;
        let piece = |n: u64| {
            let mut out = [0; super::space::MAX_DEVICES];
            let len = PIECE.min(self.len - n * PIECE);
            team.members(n * PIECE, len, &mut out).map(|count| out[..count].to_vec())
        };
        Some(Pieces((0..self.len.div_ceil(PIECE)).map(piece).collect()))
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
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            id: self.id,
            base: self.base,
            len: self.len,
            device: self.device,
            kind: self.kind,
            backing: self.backing.clone(),
            rights: std::array::from_fn(|n| self.rights[n].load(Ordering::Relaxed)),
            pieces: None,
            team: self.team.clone(),
        }
    }

    /// Sets which devices may load and which may store.
    pub fn set_rights(&self, rights: [u64; 2]) {
        for (right, mask) in self.rights.iter().zip(rights) {
            right.store(mask, Ordering::Relaxed);
        }
    }

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

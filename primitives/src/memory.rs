//! Memory that all ranks of a host see.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::Error;
use crate::sys::Mapping;

/// One range on every rank of a host, each reachable by all of them: made by [`crate::node::Node::share`]. Cheap to
/// clone; shared memory lives until its last user drops it, also after its owner died.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    rank: usize,
    /// By rank; None for ranks of other hosts.
    ranges: Arc<[Option<Range>]>,
    /// What keeps the ranges valid; empty where their owners have promised to.
    mappings: Arc<[Option<Arc<Mapping>>]>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a range is memory without thread affinity; `SharedMemory` hands out only raw pointers,
// and who may follow them when is the business of the protocols on top.
unsafe impl Send for Range {}
// SAFETY: as above.
unsafe impl Sync for Range {}

impl SharedMemory {
    /// Over mappings, of which this rank asked for `len` bytes of its own.
    pub(crate) fn new(rank: usize, len: usize, mappings: Vec<Option<Arc<Mapping>>>) -> Self {
        let range = |(owner, mapping): (usize, &Option<Arc<Mapping>>)| {
            let mapping = mapping.as_ref()?;
            let base = NonNull::new(mapping.base()).expect("a mapping is not at address 0");
            Some(Range { base, len: if owner == rank { len } else { mapping.len() } })
        };
        let ranges = mappings.iter().enumerate().map(range).collect();
        Self { rank, ranges, mappings: mappings.into() }
    }

    /// Over memory that is somebody else's: address and length of every rank's, all of them valid
    /// in this process.
    ///
    /// # Safety
    /// The ranges stay valid for reading and writing until the last clone is dropped, on every
    /// rank.
    pub unsafe fn of_this_process(rank: usize, all: &[(NonNull<u8>, usize)]) -> Self {
        let ranges = all.iter().map(|&(base, len)| Some(Range { base, len })).collect();
        Self { rank, ranges, mappings: Arc::new([]) }
    }

    fn own(&self) -> Range {
        self.ranges[self.rank].expect("a rank has its own part")
    }

    /// What transfers can read and write: this rank's mapping, if a node made it.
    pub(crate) fn mapping(&self) -> Option<Arc<Mapping>> {
        self.mappings.get(self.rank)?.clone()
    }

    /// Bytes that this rank asked for.
    pub fn len(&self) -> usize {
        self.own().len
    }

    /// Whether this rank asked for none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This rank's part, good for [`SharedMemory::len`] bytes while `self` or a clone lives. Page
    /// aligned if a node made it.
    pub fn local(&self) -> *mut u8 {
        self.own().base.as_ptr()
    }

    /// Where `len` bytes at `offset` of `rank`'s part lie in this process. An error for a rank of another host.
    pub fn range(&self, rank: usize, offset: usize, len: usize) -> Result<*mut u8, Error> {
        let argument = Error::Argument { argument: "rank", problem: "there is no such rank" };
        let elsewhere = Error::OtherHost { rank: self.rank, peer: rank };
        let Range { base, len: size } =
            (*self.ranges.get(rank).ok_or(argument)?).ok_or(elsewhere)?;
        match offset.checked_add(len) {
            // SAFETY: the end lies in the range.
            Some(end) if end <= size => Ok(unsafe { base.as_ptr().add(offset) }),
            _ => Err(Error::OutOfRange { what: "shared memory", offset, len, size }),
        }
    }

    /// Whether `address` lies in this rank's part; if so, at which offset.
    #[inline]
    pub fn offset_of(&self, address: *const u8) -> Option<usize> {
        let offset = (address as usize).checked_sub(self.local() as usize)?;
        (offset < self.len()).then_some(offset)
    }
}

//! Memory that all ranks of a node see.

use std::sync::Arc;

use crate::error::Error;
use crate::sys::Mapping;

/// One allocation on every rank, each mapped by all: made by [`crate::node::Node::share`]. Cheap to
/// clone; the memory lives until its last user drops it, also after its owner died.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    rank: usize,
    len: usize,
    all: Arc<[Arc<Mapping>]>,
}

impl SharedMemory {
    pub(crate) fn new(rank: usize, len: usize, all: Vec<Arc<Mapping>>) -> Self {
        Self {
            rank,
            len,
            all: all.into(),
        }
    }

    /// Bytes that this rank asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether this rank asked for none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// This rank's part: page aligned, good for [`SharedMemory::len`] bytes while `self` or a clone
    /// lives.
    pub fn local(&self) -> *mut u8 {
        self.all[self.rank].base()
    }

    /// Bytes of `rank`'s part, rounded up to whole pages.
    pub fn len_of(&self, rank: usize) -> usize {
        self.all[rank].len()
    }

    /// Where `len` bytes at `offset` of `rank`'s part lie in this process.
    pub fn range(&self, rank: usize, offset: usize, len: usize) -> Result<*mut u8, Error> {
        let argument = Error::Argument {
            argument: "rank",
            problem: "there is no such rank",
        };
        let mapping = self.all.get(rank).ok_or(argument)?;
        let size = mapping.len();
        match offset.checked_add(len) {
            // SAFETY: the range lies in the mapping.
            Some(end) if end <= size => Ok(unsafe { mapping.base().add(offset) }),
            _ => Err(Error::OutOfRange {
                what: "shared memory",
                offset,
                len,
                size,
            }),
        }
    }

    /// Whether `address` lies in this rank's part; if so, at which offset.
    #[inline]
    pub fn offset_of(&self, address: *const u8) -> Option<usize> {
        let offset = (address as usize).checked_sub(self.local() as usize)?;
        (offset < self.all[self.rank].len()).then_some(offset)
    }
}

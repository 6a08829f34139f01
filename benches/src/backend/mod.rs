//! What is measured: this library, and others beside it.

#[cfg(feature = "mpi")]
pub mod mpi;
pub mod warpmesh;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;

use ::warpmesh::{DataType, ReduceOp};
use anyhow::Result;

use crate::layout::{Place, Test};

/// The libraries that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// This library.
    Warpmesh,
    /// An MPI, through the mpi crate; needs a build with `--features mpi`.
    Mpi,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Warpmesh => "warpmesh",
            Self::Mpi => "mpi",
        })
    }
}

/// One call of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What is called.
    pub test: Test,
    /// The elements' type.
    pub dtype: DataType,
    /// The reduction, with this rank's factor; ignored by what does not reduce.
    pub op: ReduceOp,
    /// The root, where there is one.
    pub root: usize,
    /// Elements per block.
    pub count: usize,
    /// The send buffer.
    pub input: *const u8,
    /// The receive buffer.
    pub output: *mut u8,
}

/// The error of a call that a library cannot do; every rank gets it, and nothing has moved.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// A communication library, seen from one rank.
pub trait Backend {
    /// Which one.
    fn kind(&self) -> Kind;

    /// Its name and version, for the header.
    fn version(&self) -> String;

    /// Why it cannot do this at all, if it can tell without trying; see [`Refused`] for the rest.
    fn refuses(&self, test: Test, dtype: DataType, op: ReduceOp, place: Place) -> Option<String>;

    /// What it would do instead of what was asked for by name, if so.
    fn substitutes(&mut self, _: &Call, _: Place, _registered: bool) -> Option<String> {
        None
    }

    /// Whether it says that all ranks of an all-reduce end with the same bits.
    fn promises_same_bits(&self) -> bool {
        false
    }

    /// Memory that it can reach from other ranks, or None if it has no such thing. Every rank
    /// calls it.
    fn alloc(&mut self, bytes: usize) -> Result<Option<Buffer>>;

    /// Runs a call to its end. Every rank calls it.
    ///
    /// # Safety
    /// The buffers are good for the blocks of the call, aligned for the type, and nobody else
    /// touches them meanwhile.
    unsafe fn run(&mut self, call: &Call) -> Result<()>;

    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<()>;

    /// What it would do for a call, if it can say so.
    fn explain(&mut self, call: &Call, registered: bool) -> Option<String>;

    /// Bytes of memory that it holds on this rank, if it knows.
    fn held_bytes(&self) -> Option<usize>;
}

/// Memory that is measured on.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// What frees it.
    _owner: Box<dyn Any>,
}

impl Buffer {
    /// Memory that belongs to a library.
    ///
    /// # Safety
    /// `start` is good for `len` bytes, initialised, while `owner` lives, and nobody else makes
    /// references into it.
    pub unsafe fn from_owner(start: NonNull<u8>, len: usize, owner: impl Any) -> Self {
        Self { start, len, _owner: Box::new(owner) }
    }

    /// Memory that no library knows of, page aligned.
    pub fn plain(len: usize) -> Self {
        let pages = Pages::new(len);
        // SAFETY: just allocated with this length, zeroed, and owned by `pages` alone.
        unsafe { Self::from_owner(pages.start, len, pages) }
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, while no call is under way.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: good for `len` initialised bytes; borrowed mutably, and other ranks write only
        // during calls, which return before this rank gets here.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), 4096).expect("a size in memory");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_memory_is_aligned_and_zeroed() {
        let mut buffer = Buffer::plain(10_000);
        assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        assert!(buffer.bytes().iter().all(|byte| *byte == 0));
        assert_eq!(Buffer::plain(0).len(), 0);
    }
}

//! What is measured: this library, and others beside it; on the host, or on GPUs.

mod buffer;
pub mod clock;
pub mod cuda;
#[cfg(feature = "gloo")]
pub mod gloo;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod warpmesh;

use std::fmt;

use ::warpmesh::{DataType, ReduceOp};
use anyhow::{Result, bail};

pub use self::buffer::{Buffer, DeviceMemory};
use self::clock::{Clock, HostClock};
use crate::layout::{Place, Test};

/// The libraries that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// This library.
    Warpmesh,
    /// An MPI, through the mpi crate, on the host; needs a build with `--features mpi`.
    Mpi,
    /// Gloo over TCP, on the host; needs a build with `--features gloo`.
    Gloo,
    /// NVIDIA's NCCL, on GPUs; libnccl.so.2 is looked for when the program runs.
    Nccl,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Warpmesh => "warpmesh",
            Self::Mpi => "mpi",
            Self::Gloo => "gloo",
            Self::Nccl => "nccl",
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
    /// The send buffer; on GPUs a device address.
    pub input: *const u8,
    /// The receive buffer; on GPUs a device address.
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

    /// Makes memory known to it that it has not allocated itself: `how` is the `-R` flag. Every
    /// rank calls it, and the buffer outlives the backend.
    fn register(&mut self, _: &Buffer, _how: u8) -> Result<()> {
        Ok(())
    }

    /// Runs a call to its end, or on a GPU puts it on the rank's stream: see
    /// [`finish`](Self::finish). Every rank calls it.
    ///
    /// # Safety
    /// The buffers are good for the blocks of the call, aligned for the type, and nobody else
    /// touches them meanwhile.
    unsafe fn run(&mut self, call: &Call) -> Result<()>;

    /// Waits until all that was run is done.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Finishes, and returns when every rank has called it. On a GPU all ranks' streams have met
    /// before what is put on them next.
    fn barrier(&mut self) -> Result<()>;

    /// What times calls; room for so many marks.
    fn clock(&self, marks: usize) -> Result<Box<dyn Clock>> {
        Ok(Box::new(HostClock::new(marks)))
    }

    /// From here on calls are recorded and not run.
    fn begin_capture(&mut self) -> Result<()> {
        bail!("{} records no graphs", self.kind())
    }

    /// What was recorded.
    fn end_capture(&mut self) -> Result<Box<dyn Graph>> {
        bail!("{} records no graphs", self.kind())
    }

    /// What it would do for a call, if it can say so.
    fn explain(&mut self, call: &Call, registered: bool) -> Option<String>;

    /// Bytes of memory that it holds on this rank, if it knows.
    fn held_bytes(&self) -> Option<usize>;
}

/// Recorded calls.
pub trait Graph {
    /// Runs them, as [`Backend::run`] does.
    ///
    /// # Safety
    /// The buffers of all the calls are as [`Backend::run`] asks.
    unsafe fn launch(&mut self) -> Result<()>;
}

//! What can go wrong below the collectives.

use std::time::Duration;

use rustix::io::Errno;

use crate::bootstrap::BootstrapError;
use crate::failure::Failure;
use crate::gpu::CudaError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Ranks could not find each other.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),

    /// A system call failed.
    #[error("{what}: {errno}")]
    System {
        /// What was tried, and on what.
        what: &'static str,
        /// The system's answer.
        errno: Errno,
    },

    /// Memory of a rank of another host was asked for.
    #[error(
        "rank {peer} runs on another host than rank {rank}; only ranks of one host share memory"
    )]
    OtherHost {
        /// This rank.
        rank: usize,
        /// The one that is elsewhere.
        peer: usize,
    },

    /// A local peer did not connect, or what it sent was not the protocol.
    #[error("connecting to rank {peer} on this host: {what}")]
    Connect {
        /// The peer.
        peer: usize,
        /// What went wrong.
        what: &'static str,
    },

    /// Local peers that did not come in time.
    #[error("ranks {missing:?} did not connect on this host within {timeout:?}")]
    Missing {
        /// Who is missing.
        missing: Vec<usize>,
        /// How long it took.
        timeout: Duration,
    },

    /// A range that does not lie in its memory.
    #[error("{what}: bytes {offset}..{offset}+{len} are outside of the {size} bytes of the memory")]
    OutOfRange {
        /// The argument's name.
        what: &'static str,
        /// First byte.
        offset: usize,
        /// Bytes asked for.
        len: usize,
        /// Bytes that there are.
        size: usize,
    },

    /// An argument that cannot be.
    #[error("{argument}: {problem}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// What is wrong with it, and what would be right.
        problem: &'static str,
    },

    /// The CUDA driver refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),

    /// A transfer to another host could not be done.
    #[error(transparent)]
    Net(#[from] crate::net::NetError),

    /// A wait ended without what it waited for.
    #[error("{0}")]
    Failed(Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

pub(crate) fn system(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::System { what, errno }
}

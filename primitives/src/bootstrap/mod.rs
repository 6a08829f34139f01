//! How the ranks of a job find each other, before any fast transport exists.
//!
//! ```text
//!   rank 0 (root)                 rank r                      stranger
//!   TcpRoot::bind ── UniqueId ──► TcpBootstrap::join             │
//!        │      (any channel)          │                         │
//!        │◄──────── hello ─────────────┤                         │
//!        ├───────── challenge ────────►│                         │
//!        │◄──────── proof ─────────────┤                 anything else: dropped,
//!        ├───────── verdict + proof ──►│                 logged, the job goes on
//!        ├───────── place in a tree ──►│ where more than 17 ranks make one: the same
//!        │                             │ handshake with the rank above it
//!        ├───────── start, when every rank is in its place ──►│
//!        │◄──────── parts, up the tree ┤  all_gather
//!        ├── all parts, down the tree ►│
//! ```
//!
//! Invariants:
//!
//! - Both ends of a connection prove that they know the secret of the [`UniqueId`] before anything of
//!   variable length is read. Messages are authenticated by that proof at the start, not encrypted: do not
//!   send through a bootstrap what must not be seen on the network.
//! - Every wait has a deadline. An error names the ranks that are missing or the rank whose connection
//!   closed, on every rank that still listens, not only on the root.
//! - After an error a bootstrap is out of step and stays failed: every later call returns the same finding.
//!   Make a new one.
//!
//! [`TcpBootstrap`] is for ranks that are processes, [`LocalBootstrap`] for ranks that are threads, and
//! [`Launch`] reads what torchrun, `mpirun`, `srun` or our own launcher say about this process.

#![forbid(unsafe_code)]

pub(crate) mod auth;
mod descriptors;
mod env;
mod error;
mod fault;
mod local;
mod tcp;
mod unique_id;
pub(crate) mod wire;

use std::net::SocketAddr;

pub use auth::Secret;
pub use env::{Launch, Launcher, Rendezvous};
pub use error::BootstrapError;
pub use local::LocalBootstrap;
pub use tcp::{TcpBootstrap, TcpRoot};
pub use unique_id::UniqueId;

/// The most bytes that one rank may contribute to one [`Bootstrap::all_gather`]: 16 MiB.
pub const MAX_CONTRIBUTION: usize = 16 << 20;

/// The most bytes that all ranks together may contribute to one [`Bootstrap::all_gather`]: 1 GiB. Every rank gets all
/// of them, and holds them twice while they arrive.
pub const MAX_GATHERED: usize = 1 << 30;

/// The most ranks that a bootstrap accepts.
///
/// It bounds what a rank field may claim; it is above what a single root can register in good time.
pub const MAX_WORLD: usize = 1 << 16;

/// The out-of-band exchange of small messages between all ranks of a job.
///
/// Calls are collective: every rank makes the same calls in the same order.
pub trait Bootstrap: Send {
    /// This rank, in `0..world()`.
    fn rank(&self) -> usize;

    /// The number of ranks, at least 1.
    fn world(&self) -> usize;

    /// Gives `mine` to every rank and returns what every rank gave, in rank order.
    ///
    /// `mine` may have any length up to [`MAX_CONTRIBUTION`] bytes, and the lengths may differ by rank. The
    /// result has `world()` entries and entry `rank()` equals `mine`.
    ///
    /// Blocks until every rank has called it or the timeout of the bootstrap has passed. A rank other than
    /// the root of a [`TcpBootstrap`] waits up to a quarter of the timeout (at most 1 s) longer, since the root
    /// alone knows who is missing and its verdict has to arrive; and where a rank between it and the root has
    /// called later, it waits as long as that one.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::TooLarge`] before anything is sent; the bootstrap stays usable.
    /// [`BootstrapError::TotalTooLarge`] on all ranks where the contributions together are more than
    /// [`MAX_GATHERED`].
    /// [`BootstrapError::Missing`] names the ranks that did not come in time (in a job of more than 17 ranks without
    /// those that could only be heard through one of them),
    /// [`BootstrapError::PeerClosed`] the rank that went away, [`BootstrapError::Malformed`] the one that
    /// speaks something else. After these four every later call fails in the same way.
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, BootstrapError>;

    /// Blocks until every rank has called it: an [`all_gather`](Self::all_gather) of nothing, with its
    /// timeout and its errors.
    fn barrier(&mut self) -> Result<(), BootstrapError> {
        self.all_gather(&[]).map(drop)
    }

    /// A secret that the ranks of this job know and nobody else, who may read what a bootstrap sends included. None
    /// where the bootstrap has none: then what it carries has to be secret.
    fn secret(&self) -> Option<Secret> {
        None
    }

    /// This host's address by which it reaches the other ranks, as far as the bootstrap knows one. The port means
    /// nothing.
    fn address(&self) -> Option<SocketAddr> {
        None
    }
}

/// Refuses a contribution that no rank would accept, while it can still be refused alone.
fn check_contribution(mine: &[u8]) -> Result<(), BootstrapError> {
    if mine.len() > MAX_CONTRIBUTION {
        return Err(BootstrapError::TooLarge { bytes: mine.len(), max: MAX_CONTRIBUTION });
    }
    Ok(())
}

fn check_world(world: usize) -> Result<(), BootstrapError> {
    if world == 0 || world > MAX_WORLD {
        return Err(BootstrapError::WorldOutOfRange { world, max: MAX_WORLD });
    }
    Ok(())
}

//! Transfers to ranks of other hosts, and between the GPUs of one.
//!
//! ```text
//!   executor, on the calling thread ──┐                ┌──► tcp   a socket for each pair of ranks
//!                                     ├─► dyn Transport ──► rdma  a queue pair for each pair of ranks and NIC
//!   kernels ─► fifo ─► proxy thread ──┘                └──► copy  a stream of the copy engine for each peer of this node
//! ```
//!
//! A [`Transport`] is one rank's side. It belongs to one thread, which posts [`Transfer`]s and calls
//! [`Transport::progress`] again and again while it waits for anything; nothing happens in the background but
//! what the hardware does. Memory has numbers that are the same on all ranks; a transfer says "these bytes of
//! mine, number m, go there in the peer's number n, and then count up its semaphore".
//!
//! Shared words:
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | [`Signals`] | the transport: its thread (TCP, RDMA by immediate data), the NIC (RDMA by fetch-add) or a peer's stream (copy) | whoever waits, on any thread or in a kernel | Release, or the NIC's order of writes behind each other on one connection, or the stream's / Acquire |
//! | registered memory | the transport's thread, the NIC, or a copy engine | who has seen the signal behind the transfer | plain; by the signal |

mod choice;
mod copies;
pub mod copy;
mod error;
pub mod fifo;
pub mod link;
pub mod proxy;
pub mod rdma;
mod signals;
pub mod tcp;
mod wait;
mod words;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub(crate) use self::choice::open;
pub use self::choice::{NetOptions, TransportChoice};
pub use self::error::{NetError, NetFault};
pub use self::signals::Signals;

/// Memory that transfers may read and that peers' transfers may write.
///
/// # Safety
/// The bytes are valid for reading and writing as long as the value lives, and nobody forms references to
/// them: peers write them at any time.
pub unsafe trait Region: Send + Sync + fmt::Debug {
    /// Where it is in this process.
    fn address(&self) -> *mut u8;

    /// Bytes.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is a device's, so that the processor cannot read it at its address.
    fn is_on_device(&self) -> bool {
        self.dma_buf().is_some()
    }

    /// A dma-buf of the memory and where it begins in it, if it is a device's.
    fn dma_buf(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

/// A range of registered memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Which memory; the number is the same on all ranks.
    pub memory: u32,
    /// First byte.
    pub offset: u64,
}

/// Bytes that go to a peer, and what it is told then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Of this rank's memory.
    pub from: Span,
    /// Of the peer's.
    pub to: Span,
    /// How many; 0 for a signal alone.
    pub bytes: u64,
    /// The semaphore of the peer that counts up by one when the data is there, and all transfers before it on this
    /// connection.
    pub signal: Option<u32>,
}

/// One rank's side of the transfers to and from peers. See the [module](self).
pub trait Transport: Send + fmt::Debug {
    /// Its name in reports: `tcp`, `rdma`, `copy`.
    fn name(&self) -> &'static str;

    /// Makes memory reachable, under a number that is not in use. What is returned goes to all peers that may write it,
    /// by [`Transport::learn`].
    ///
    /// # Errors
    /// The system or the NIC refuses it: the error says which limit, and what to do.
    fn register(
        &mut self,
        number: u32,
        region: std::sync::Arc<dyn Region>,
    ) -> Result<Vec<u8>, NetError>;

    /// Takes back [`Transport::register`]. Peers' transfers to it fail from now on, as if it had never been there.
    fn forget(&mut self, number: u32);

    /// Takes what `peer` got for its memory of this number.
    ///
    /// # Errors
    /// The description is none of this transport's.
    fn learn(&mut self, peer: usize, number: u32, description: &[u8]) -> Result<(), NetError>;

    /// Connects to each of these peers, each of which connects to this rank at the same time. Those that are connected
    /// stay so. Blocks until all are there, at most for `timeout`.
    ///
    /// # Errors
    /// Names the peers that did not come, or what refused. After [`NetError::Missing`] those that came stay connected,
    /// and another call goes on where this one stopped.
    fn connect(&mut self, peers: &[usize], timeout: Duration) -> Result<(), NetError>;

    /// Hands over a transfer. Never blocks: what cannot go now goes in [`Transport::progress`]. Transfers to one peer
    /// take effect in order as far as their signals tell.
    ///
    /// # Errors
    /// Nothing is posted: a range is outside of its memory (of the peer's too, as far as it is known here), there is no
    /// connection, or the connection has failed.
    fn post(&mut self, peer: usize, transfer: &Transfer) -> Result<(), NetError>;

    /// Transfers to this peer, of all that were posted, that have left their source: it may be written again.
    fn sent(&self, peer: usize) -> u64;

    /// How long nothing was heard of a peer, though what was sent to it is not acknowledged, and through what. None if all is,
    /// or if the transport does not say: then it ends such a connection by itself.
    fn silence(&self, _peer: usize) -> Option<(Duration, String)> {
        None
    }

    /// Sends and receives what can be, without blocking; whether anything was. To be called in every wait.
    ///
    /// # Errors
    /// A connection has broken, each once; other connections go on.
    fn progress(&mut self) -> Result<bool, NetFault>;

    /// Sleeps until [`Transport::progress`] has something to do or `bell` can be read, at most so long; returns at once
    /// if the transport cannot say. May also return early.
    fn doze(&mut self, longest: Duration, bell: Option<BorrowedFd<'_>>);

    /// What peers' transfers count up here.
    fn signals(&self) -> &Signals;
}

// SAFETY: a mapping is valid for reading and writing until it is dropped, and hands out only raw pointers.
unsafe impl Region for crate::sys::Mapping {
    fn address(&self) -> *mut u8 {
        self.base()
    }

    fn len(&self) -> usize {
        self.len()
    }
}

//! Memory of a device that NICs do not reach: its bytes go through rings in pinned memory of the host.
//!
//! ```text
//!   sender                                                            receiver
//!   device ──copy──► ring of the lane ══ write ══► ring of the lane ──copy──► device
//!                      (outlet.rs)     with immediate     (inlet.rs)             └─► then the signals behind it
//!                           ◄═════════ credit: how much of the ring is free again ═══════
//! ```
//!
//! Each half is used without the other: from a device into memory that the peer's NIC reaches, data is written where it belongs; from
//! memory that the own NIC reaches, it is written into the peer's ring at once.
//!
//! # Records
//!
//! What is written into a ring is a *record*: a head ([`Head`]: to which memory and where, how many bytes) and the data behind it. Records of
//! a lane follow each other at multiples of [`GRAIN`], none goes around the ring's end, and the last write of each carries the
//! immediate number [`RECORD`], which takes a receive of the owner's. The owner takes a head as little for granted as a frame of TCP:
//! nothing is copied to where no registered memory is.
//!
//! # Order
//!
//! A peer with rings is signalled by immediate data, on every lane behind all records. Its transport counts a signal when the copies that
//! were queued before have landed. So what [the module](super#signals) says of a semaphore's words stays true: where the k-th signal
//! of a lane is counted, all data before it on that lane is in place. Whatever is posted while something else still waits for
//! a copy or for room waits behind it, transfers between memories that NICs reach as well.
//!
//! # Flow
//!
//! A sender never writes more into a ring than is free there. The receiver tells by a write of its own, of eight bytes, up to where
//! records have landed, each time it is a [`CREDIT`]th of the ring or more. Credits go straight to the lane's queue, which waits for nothing
//! but the NIC, so neither direction waits for the other. [`Transport::sent`](crate::net::Transport::sent) counts a transfer when the
//! writes of all its records are acknowledged. A sender that waits for credits alone writes its own once more now and then, since a
//! NIC notices that a peer has gone only when it sends.
//!
//! # Words that are shared
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | a ring's bytes | the peer's NIC | this rank's copy engine; heads by its thread | behind the completion of the receive |
//! | a credit | the peer's NIC | this rank's thread | it says only which bytes nobody reads any more / Acquire |
//! | what a credit is written from | this rank's thread | this rank's NIC, when it sends | never falls, so a later value is as good |
//!
//! Nothing here waits for a kernel: copies are on streams of the connection's own, and all memory is allocated when ranks connect.

mod credits;
mod inlet;
mod making;
mod outlet;
mod serve;

pub(super) use self::credits::Credits;
pub(super) use self::inlet::Inlet;
pub(super) use self::making::{Rings, Staging};
pub(super) use self::outlet::{OutLane, Outlet, Source, Target, Task};

/// Records begin at multiples of so many bytes.
pub(super) const GRAIN: u64 = 64;
/// Bytes of a ring at least.
pub(super) const LEAST_RING: u64 = 1 << 10;
/// The immediate number of a record: no semaphore's.
pub(super) const RECORD: u32 = u32::MAX;

/// Of a ring, the part that is a piece at most, so that copies and writes overlap.
const PIECE: u64 = 4;
/// Of a ring, the part that is worth telling that it is free.
const CREDIT: u64 = 4;

/// A ring of one lane, in memory of this rank that the lane's NIC knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    /// Where it is for the processor and the NIC, and for the device.
    pub host: u64,
    pub device: u64,
    pub bytes: u64,
    /// The NIC's key.
    pub key: u32,
}

impl Ring {
    /// Bytes from a position to the ring's end.
    fn row(bytes: u64, position: u64) -> u64 {
        bytes - position % bytes
    }
}

/// Before the data of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// The record's number on its lane.
    number: u64,
    memory: u32,
    bytes: u32,
    offset: u64,
}

impl Head {
    /// Bytes of it: the rest are zeros.
    const BYTES: u64 = 32;

    fn to_bytes(self) -> [u8; Self::BYTES as usize] {
        let mut out = [0; Self::BYTES as usize];
        out[..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..12].copy_from_slice(&self.memory.to_le_bytes());
        out[12..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    fn read(bytes: &[u8; Self::BYTES as usize]) -> Self {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self { number: long(0), memory: word(8), bytes: word(12), offset: long(16) }
    }

    /// Bytes of a ring that a record with so much data takes.
    fn record(data: u64) -> u64 {
        (Self::BYTES + data).next_multiple_of(GRAIN)
    }
}

#[cfg(test)]
mod tests;

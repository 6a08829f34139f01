//! What a connection needs to stage, made when ranks connect: later nothing is allocated.

use std::time::Instant;

use super::{GRAIN, Inlet, OutLane, Outlet, Ring};
use crate::gpu::{CopyQueue, Gpu};
use crate::net::NetError;
use crate::net::rdma::faults::refused;
use crate::net::rdma::nic::Nic;
use crate::net::rdma::wire::{End, RingEnd};
use crate::net::words::HostWords;
use crate::sys::verbs::RegisteredMemory;

/// Bytes of the rings of all lanes, for each direction.
const RING: u64 = 1 << 20;
/// Of a lane's ring that holds heads alone.
const HEADS: u64 = 16 << 10;

/// Memory for rings, which each lane's NIC knows.
#[derive(Debug)]
struct Memory {
    // Before what is registered.
    registered: Vec<RegisteredMemory>,
    words: HostWords,
    /// Of a ring.
    bytes: u64,
}

impl Memory {
    fn new(nics: &[Nic], words: HostWords, bytes: u64) -> Result<Self, NetError> {
        let register = |nic: &Nic| {
            // SAFETY: the words live longer than what is registered; nobody has references to them, and what peers write is checked.
            let registered = unsafe { nic.domain.register(words.base(), words.len(), false) };
            registered.map_err(|error| {
                refused(&nic.via, "rings in memory of the host", words.len(), &error)
            })
        };
        let registered = nics.iter().map(register).collect::<Result<_, _>>()?;
        Ok(Self { registered, words, bytes })
    }

    /// The ring that begins behind so many others, for the NIC of a lane.
    fn ring(&self, place: usize, lane: usize) -> Ring {
        let at = place as u64 * self.bytes;
        Ring {
            host: self.words.base() as u64 + at,
            device: self.words.device().unwrap_or(0) + at,
            bytes: self.bytes,
            key: self.registered[lane].local_key(),
        }
    }
}

/// A rank's own rings: for each of its NICs one into which the peer writes, and one from which it writes itself.
#[derive(Debug)]
pub(in crate::net::rdma) struct Rings {
    memory: Memory,
    copies: [CopyQueue; 2],
}

impl Rings {
    /// May wait for kernels that run, since it allocates.
    pub(in crate::net::rdma) fn new(gpu: &Gpu, nics: &[Nic]) -> Result<Self, NetError> {
        let bytes = RING / nics.len() as u64 / GRAIN * GRAIN;
        let failed = |cause: String| NetError::System {
            what: "pinned memory and streams for a connection".to_owned(),
            cause,
        };
        let words = HostWords::pinned(gpu, 2 * nics.len() * bytes as usize);
        let memory = Memory::new(nics, words.map_err(|error| failed(error.to_string()))?, bytes)?;
        let queue = || CopyQueue::new(gpu).map_err(|error| failed(error.to_string()));
        Ok(Self { memory, copies: [queue()?, queue()?] })
    }

    /// What the peer is told of the ring of a lane.
    pub(in crate::net::rdma) fn end(&self, lane: usize) -> RingEnd {
        let Ring { host: address, bytes, .. } = self.memory.ring(lane, lane);
        RingEnd { address, bytes: bytes as u32, key: self.memory.registered[lane].remote_key() }
    }
}

/// Both directions of a connection that stages.
#[derive(Debug)]
pub(in crate::net::rdma) struct Staging {
    // Their copies end before the memory goes.
    pub(in crate::net::rdma) outlet: Outlet,
    pub(in crate::net::rdma) inlet: Option<Inlet>,
    /// Since when it waits for nothing but credits.
    pub(in crate::net::rdma) waits: Option<Instant>,
    _memory: Memory,
}

impl Staging {
    /// With this rank's rings and those that the peer offers; None if there are none at either end.
    pub(in crate::net::rdma) fn new(
        rings: Option<Rings>,
        nics: &[Nic],
        ends: &[End],
    ) -> Result<Option<Self>, NetError> {
        let lanes = nics.len().min(ends.len());
        if rings.is_none() && ends[..lanes].iter().all(|end| end.ring.is_none()) {
            return Ok(None);
        }
        let (memory, copies, first) = match rings {
            Some(Rings { memory, copies }) => (memory, Some(copies), nics.len()),
            None => {
                let bytes = lanes * HEADS as usize;
                let words = HostWords::new(bytes, "memory for heads").map_err(|error| {
                    let what = "memory for heads of records".to_owned();
                    NetError::System { what, cause: error.to_string() }
                })?;
                (Memory::new(nics, words, HEADS)?, None, 0)
            }
        };
        let out = |lane| OutLane::new(memory.ring(first + lane, lane), ends[lane].ring);
        let out = (0..lanes).map(out).collect();
        let (in_, copier) = match copies {
            Some([in_, out]) => (Some(in_), Some(out)),
            None => (None, None),
        };
        let inlet = in_.map(|in_| Inlet::new(in_, (0..lanes).map(|lane| memory.ring(lane, lane))));
        Ok(Some(Self { outlet: Outlet::new(copier, out), inlet, waits: None, _memory: memory }))
    }

    /// Whether something is underway that nothing tells of.
    pub(in crate::net::rdma) fn is_busy(&self) -> bool {
        !self.outlet.is_empty() || self.inlet.as_ref().is_some_and(Inlet::is_copying)
    }
}

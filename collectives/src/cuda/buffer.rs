//! GPU memory that peers reach, so that calls on it stage nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use warpmesh_primitives::gpu::{Exported, Import, PeerMemory, PointerInfo};

use super::windows::Keep;
use super::{CudaCommunicator, driver_error};
use crate::error::{Error, argument};

/// GPU memory that peers reach, so that calls on it stage nothing: made by [`CudaCommunicator::alloc_bytes`] or
/// [`CudaCommunicator::alloc_symmetric_bytes`].
#[derive(Debug)]
pub struct CudaBytes {
    memory: PeerMemory,
    rank: usize,
    _alive: Arc<()>,
}

impl CudaBytes {
    /// The device address.
    pub fn address(&self) -> u64 {
        self.memory.address(self.rank)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }
}

/// Memory of another allocator that was registered: made by [`CudaCommunicator::register`]. Dropping it ends the registration;
/// peers let go of the memory when the next one is made, or with the communicator.
#[derive(Debug)]
pub struct CudaRegistration {
    _alive: Arc<()>,
}

/// A range that is registered, as the peers are told.
struct Offer {
    exported: Result<(Exported, Option<OwnedFd>), Error>,
    /// The window that it is already, if any.
    known: Option<(usize, Arc<()>)>,
}

const NOT_KNOWN: u64 = u64::MAX;

impl Offer {
    /// Bytes for the wire: whether it can be, the window that it is already, and how peers map it, or why not.
    fn to_bytes(&self) -> Vec<u8> {
        let known = self.known.as_ref().map_or(NOT_KNOWN, |(number, _)| *number as u64);
        let (fine, rest) = match &self.exported {
            Ok((range, _)) => (1_u64, bytemuck::bytes_of(range).to_vec()),
            Err(error) => (0, error.to_string().into_bytes()),
        };
        [&fine.to_le_bytes()[..], &known.to_le_bytes(), &rest].concat()
    }
}

/// A peer's offer: the window that the range is already, and how to map it.
fn read_offer(rank: usize, bytes: &[u8]) -> Result<(u64, Exported), Error> {
    let word = |at: usize| {
        bytes.get(at..at + 8).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)))
    };
    let rest = bytes.get(16..).unwrap_or_default();
    match (word(0), word(8)) {
        (Some(1), Some(known)) => match Exported::read(rest) {
            Some(range) => Ok((known, range)),
            None => Err(argument("register", "peer", format!("rank {rank} sent no range"))),
        },
        _ => Err(refused(rank, rest)),
    }
}

fn refused(rank: usize, why: &[u8]) -> Error {
    let why = String::from_utf8_lossy(why);
    argument("register", "memory", format!("of rank {rank} cannot be registered: {why}"))
}

impl CudaCommunicator {
    /// Allocates `len` bytes of GPU memory that all ranks reach, all zero. A collective call, with the same length on all
    /// ranks. Blocks until all have come.
    ///
    /// # Errors
    /// The driver refuses, or a peer is gone.
    pub fn alloc_bytes(&mut self, len: usize) -> Result<CudaBytes, Error> {
        self.windows.tidy(&self.gpu);
        let memory = self.gpu.share(self.host.node(), len)?;
        self.add_own(memory)
    }

    /// As [`alloc_bytes`](Self::alloc_bytes), for buffers that lie at the same offset in it on all ranks: the ranks promise to pass
    /// the same offsets to a call. Then a switch between the GPUs, where there is one, reduces and multiplies them where they are;
    /// elsewhere the memory is as any. (In place, an all-gather's input and a reduce-scatter's output lie where the other buffer
    /// has the rank's block: only that one counts.)
    ///
    /// # Errors
    /// As [`alloc_bytes`](Self::alloc_bytes). A promise that is broken is a mismatch of the call, which names the rank that differs.
    pub fn alloc_symmetric_bytes(&mut self, len: usize) -> Result<CudaBytes, Error> {
        self.windows.tidy(&self.gpu);
        let memory = self.gpu.share_multicast(self.host.node(), len)?;
        self.add_own(memory)
    }

    fn add_own(&mut self, memory: PeerMemory) -> Result<CudaBytes, Error> {
        // Kernels do not reach into memory of other hosts.
        let start = |rank| if memory.is_mapped(rank) { memory.address(rank) } else { 0 };
        let starts: Vec<u64> = (0..self.world()).map(start).collect();
        let (rank, range) = (self.rank(), (starts.as_slice(), memory.len() as u64));
        let keep = Keep::Own(memory.clone());
        let (_, alive) = self.windows.add(&self.gpu, &self.regions, rank, range, keep)?;
        Ok(CudaBytes { memory, rank, _alive: alive })
    }

    /// Makes memory that another allocator made known to all ranks of the host (between hosts what is sent is staged), `len` bytes from
    /// `address`. A collective call: every rank
    /// makes it, for memory of its own, of the same or another length. Blocks until all have come. The range may be a part of an
    /// allocation, several ranges of one may be registered, and a range that all ranks have registered before costs one exchange.
    ///
    /// When the memory is freed the registration is void; what is allocated there later has to be registered anew.
    ///
    /// # Errors
    /// On all ranks, if the memory of one cannot be shared: it is not device memory of that rank's GPU, or comes from an allocator
    /// (such as `cuMemAllocAsync`) whose memory other processes cannot map.
    ///
    /// # Safety
    /// The memory must not be freed before all ranks' streams have passed their last call on it.
    pub unsafe fn register(&mut self, address: u64, len: usize) -> Result<CudaRegistration, Error> {
        self.windows.tidy(&self.gpu);
        let offer = self.offer(address, len as u64);
        let all = self.host.bootstrap_mut().all_gather(&offer.to_bytes())?;
        let (own, file) = offer.exported?;
        let read = |(rank, bytes): (usize, &Vec<u8>)| read_offer(rank, bytes);
        let peers = all.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        if let Some((number, alive)) = offer.known
            && peers.iter().all(|(known, _)| *known == number as u64)
        {
            return Ok(CudaRegistration { _alive: alive });
        }
        let needs_files = peers.iter().any(|(_, range)| range.needs_file());
        let files = match needs_files {
            true => self.exchange_files(file)?,
            false => peers.iter().map(|_| None).collect(),
        };
        let imported = self.import(&peers, &files);
        let verdict = imported.as_ref().map_or_else(|error| error.to_string(), |_| String::new());
        let verdicts = self.host.bootstrap_mut().all_gather(verdict.as_bytes())?;
        let imports = imported?;
        if let Some(rank) = verdicts.iter().position(|verdict| !verdict.is_empty()) {
            return Err(refused(rank, &verdicts[rank]));
        }
        let start = |(rank, import): (usize, &Option<Import>)| match import {
            Some(import) => import.address(),
            None if rank == self.rank() => address,
            None => 0,
        };
        let starts: Vec<u64> = imports.iter().enumerate().map(start).collect();
        let id = PointerInfo::of(address).map_err(driver_error)?.id;
        let keep = Keep::Foreign { _peers: imports.into_iter().flatten().collect(), id };
        let (rank, len) = (self.rank(), own.len());
        let (_, alive) = self.windows.add(&self.gpu, &self.regions, rank, (&starts, len), keep)?;
        Ok(CudaRegistration { _alive: alive })
    }

    fn offer(&self, address: u64, len: u64) -> Offer {
        let exported = self.gpu.export(address, len).map(|export| (export.range, export.file));
        let info = PointerInfo::of(address).ok();
        let known = info.and_then(|info| self.windows.exact(address, len, &info));
        Offer { exported: exported.map_err(Error::from), known }
    }

    /// Ranks without a file give another one, that nobody looks at.
    fn exchange_files(&self, file: Option<OwnedFd>) -> Result<Vec<Option<OwnedFd>>, Error> {
        let file = match file {
            Some(file) => file,
            None => std::fs::File::open("/dev/null")
                .map_err(|e| argument("register", "/dev/null", e.to_string()))?
                .into(),
        };
        Ok(self.host.node().exchange(&file)?)
    }

    /// Maps the peers' ranges; none for this rank and those of other hosts.
    fn import(
        &self,
        peers: &[(u64, Exported)],
        files: &[Option<OwnedFd>],
    ) -> Result<Vec<Option<Import>>, Error> {
        let map = |(rank, ((_, range), file)): (usize, (&(u64, Exported), &Option<OwnedFd>))| {
            if rank == self.rank() || !self.host.node().is_near(rank) {
                return Ok(None);
            }
            Ok(Some(self.gpu.import(range, file.as_ref())?))
        };
        peers.iter().zip(files).enumerate().map(map).collect()
    }
}

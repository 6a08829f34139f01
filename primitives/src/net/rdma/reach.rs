//! How NICs get at registered memory, which is chosen for each memory when it is registered.
//!
//! | memory | the NIC reads it | peers write it |
//! |---|---|---|
//! | the host's | by its address | the same |
//! | a GPU's, by dma-buf or `nvidia-peermem` | directly | directly; staged for kernels before sm_90 that wait for signals |
//! | a GPU's that all NICs refuse | staged | staged |
//!
//! Kernels may wait for a semaphore in memory of the host. From compute capability 9.0 on they see what NICs wrote into the GPU's memory
//! before what these wrote into the host's. Older GPUs may show the semaphore first: there data is staged, since then this rank's
//! processor counts the semaphore, after it has seen that the copy engine is done. What NICs read is not concerned.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::options::GpuMemory;
use super::staged::{Source, Target, Task};
use super::wire::Description;
use super::{Exchange, Half, Peer, RdmaOptions, RdmaTransport};
use crate::gpu::Gpu;
use crate::net::rdma::connection::Job;
use crate::net::rdma::nic::Way;
use crate::net::{NetError, Region, Signals, Span, Transfer};
use crate::sys::verbs::RegisteredMemory;

/// The first architecture whose kernels see what NICs wrote into its memory before what these wrote into the host's.
const ORDERED: u32 = 90;

/// Bytes of memory by which it is found out whether NICs reach the GPU's.
const PROBE: usize = 64 << 10;

/// Memory of this rank.
#[derive(Debug)]
pub(super) struct Registered {
    /// One for each NIC; dropped before the region. None if it is staged both ways.
    _memories: Vec<RegisteredMemory>,
    local_keys: Vec<u32>,
    pub(super) region: Arc<dyn Region>,
    on_device: bool,
}

/// How it is reached, and what is said of that.
struct Reach {
    memories: Vec<RegisteredMemory>,
    /// Whether peers write it directly.
    written: bool,
    why: String,
}

impl RdmaTransport {
    /// As [`RdmaTransport::new`], with semaphores for which kernels of a GPU can wait, in pinned memory of the host, and for memory of
    /// that GPU also where NICs do not reach it: then it is staged, through 2 MiB of pinned memory for each connection and the GPU's copy
    /// engines. Whether that will be so is tried here; what is registered before ranks connect counts, too. That the
    /// driver allocates may take as long as kernels run, so peers are to be connected before kernels are launched that wait for them.
    ///
    /// Data that NICs write into memory of the GPU is seen by a kernel behind such a semaphore from compute capability 9.0 on. Older
    /// GPUs may show the semaphore first, so what peers send them is staged.
    ///
    /// # Errors
    /// As [`RdmaTransport::new`]; the driver refuses; the GPU's memory cannot be reached as [`RdmaOptions::gpu_memory`] wants it.
    pub fn on_gpu(
        gpu: &Gpu,
        (rank, world): (usize, usize),
        semaphores: usize,
        options: RdmaOptions,
        exchange: Box<dyn Exchange>,
    ) -> Result<Self, NetError> {
        let signals = |lanes| Signals::on_gpu(gpu, semaphores, lanes);
        let mut transport = Self::with(rank, world, &signals, options, exchange)?;
        transport.gpu = Some(gpu.clone());
        let failed = |cause: String| {
            let what = "finding out whether NICs reach the GPU's memory".to_owned();
            NetError::System { what, cause }
        };
        let memory = gpu.device_memory(PROBE).map_err(|error| failed(error.to_string()))?;
        let region = gpu.region_of(&Arc::new(memory)).map_err(|error| failed(error.to_string()))?;
        transport.stages = !transport.reach(&region)?.written;
        Ok(transport)
    }

    /// Whether memory of the GPU that peers write is staged, as far as it is known: connections have rings for it, and signals go
    /// by immediate data.
    pub fn stages(&self) -> bool {
        self.stages
    }

    pub(super) fn register_memory(
        &mut self,
        number: u32,
        region: Arc<dyn Region>,
    ) -> Result<Vec<u8>, NetError> {
        let on_device = region.is_on_device();
        let Reach { memories, written, why } = self.reach(&*region)?;
        if on_device {
            let (rank, bytes) = (self.rank, region.len());
            tracing::info!("rank {rank}: memory {number} of a GPU, {bytes} bytes: {why}");
        }
        if !written {
            self.has_rings(number, &why)?;
            self.stages = true;
        }
        let keys = memories.iter().map(RegisteredMemory::remote_key);
        let (address, bytes) = (region.address() as u64, region.len() as u64);
        let description = if written {
            Description { address, bytes, keys: keys.collect() }
        } else {
            Description { address: 0, bytes, keys: Vec::new() }
        };
        let local_keys = memories.iter().map(RegisteredMemory::local_key).collect();
        let registered = Registered { _memories: memories, local_keys, region, on_device };
        self.memories.insert(number, registered);
        Ok(description.to_bytes())
    }

    /// Connections that are made have rings for memory that is staged, or it is too late.
    fn has_rings(&self, number: u32, why: &str) -> Result<(), NetError> {
        let without = |peer: &Peer| peer.staging.as_ref().is_none_or(|s| s.inlet.is_none());
        let mut halves = self.halves.iter().filter(|(_, half)| match half {
            Half::Offered { rings, .. } => rings.is_none(),
            Half::Ready(peer) => without(peer),
        });
        let peers = self.peers.iter().find(|(_, peer)| without(peer)).map(|(peer, _)| *peer);
        match peers.or_else(|| halves.next().map(|(peer, _)| *peer)) {
            None => Ok(()),
            Some(peer) => Err(NetError::System {
                what: format!("registering memory {number}, which is a device's"),
                cause: format!(
                    "it is {why}, and the connection to rank {peer} was made without rings for that; register it before ranks connect, \
                     or set WARPMESH_IB_GPU_MEMORY=staged"
                ),
            }),
        }
    }

    /// Finds out how memory is reached.
    fn reach(&self, region: &dyn Region) -> Result<Reach, NetError> {
        let on_all = |way: Way| -> Result<Vec<RegisteredMemory>, NetError> {
            self.nics.iter().map(|nic| nic.register(region, way)).collect()
        };
        if !region.is_on_device() {
            let memories = on_all(Way::Address)?;
            return Ok(Reach { memories, written: true, why: String::new() });
        }
        let wanted = self.options.gpu_memory;
        let mut reasons = Vec::new();
        for (choice, way) in [(GpuMemory::DmaBuf, Way::DmaBuf), (GpuMemory::Peermem, Way::Address)]
        {
            if wanted != choice && wanted != GpuMemory::Auto {
                continue;
            }
            match on_all(way) {
                Ok(memories) => return Ok(self.direct(memories, choice, &reasons)),
                // By dma-buf the reason is better known; but that there is none says nothing.
                Err(error)
                    if self.gpu.is_none() && wanted == GpuMemory::Auto && way == Way::Address =>
                {
                    return Err(hint(error, &reasons));
                }
                Err(error) if wanted == choice => return Err(error),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        if self.gpu.is_none() {
            let what = "staging memory of a device".to_owned();
            let cause = "this transport knows no GPU; make it by RdmaTransport::on_gpu".to_owned();
            return Err(NetError::System { what, cause });
        }
        let why = match wanted {
            GpuMemory::Staged => "WARPMESH_IB_GPU_MEMORY wants that".to_owned(),
            _ => format!("no NIC reaches it ({})", reasons.join("; ")),
        };
        let why = format!("staged through memory of the host, since {why}");
        Ok(Reach { memories: Vec::new(), written: false, why })
    }

    /// NICs reach it; but kernels may see signals before what peers write.
    fn direct(
        &self,
        memories: Vec<RegisteredMemory>,
        choice: GpuMemory,
        reasons: &[String],
    ) -> Reach {
        let old = self.gpu.as_ref().map(Gpu::architecture).filter(|&arch| arch < ORDERED);
        let mut why = format!("direct, by {}", choice.name());
        if !reasons.is_empty() {
            why += &format!(", since {}", reasons.join("; "));
        }
        if let Some(arch) = old {
            why += &format!(
                "; what peers send is staged, since kernels of sm_{arch} may see signals before what NICs write"
            );
        }
        Reach { memories, written: old.is_none(), why }
    }
}

/// Memory that there is, of this rank and as far as it is known of a peer.
pub(super) struct Known<'a> {
    pub own: &'a BTreeMap<u32, Registered>,
    pub theirs: &'a BTreeMap<(usize, u32), Description>,
    pub peer: usize,
}

/// The two ends of a transfer, of which all lies where it may.
pub(super) struct Ends<'a> {
    own: &'a Registered,
    theirs: &'a Description,
    transfer: Transfer,
}

impl<'a> Known<'a> {
    /// Looks up and checks the ends of a transfer; None if it is a signal alone.
    pub(super) fn ends(
        &self,
        lanes: usize,
        transfer: &Transfer,
    ) -> Result<Option<Ends<'a>>, NetError> {
        let Transfer { from, to, bytes, .. } = *transfer;
        if bytes == 0 {
            return Ok(None);
        }
        let (own, theirs) = (self.own.get(&from.memory), self.theirs.get(&(self.peer, to.memory)));
        let size = own.map_or(0, |own| own.region.len() as u64);
        let their_size = theirs.map_or(0, |theirs| theirs.bytes);
        let (Some(own), true) = (own, inside(from, bytes, size)) else {
            return Err(outside("the source of a transfer", from, bytes, size));
        };
        let (Some(theirs), true) = (theirs, inside(to, bytes, their_size)) else {
            return Err(outside("the target of a transfer", to, bytes, their_size));
        };
        let keys = theirs.keys.len();
        if keys > 0 && keys < lanes {
            let what = format!("memory {} has {keys} keys for {lanes} lanes", to.memory);
            return Err(NetError::Protocol { peer: self.peer, what });
        }
        Ok(Some(Ends { own, theirs, transfer: *transfer }))
    }
}

impl<'a> Ends<'a> {
    /// With addresses and keys for numbers; None if it has to be staged.
    pub(super) fn job(&self) -> Option<Job<'a>> {
        let (Self { own, theirs, .. }, Transfer { from, to, bytes, signal }) =
            (self, self.transfer);
        let direct = !own.is_staged() && !theirs.is_staged();
        direct.then(|| Job {
            from: own.region.address() as u64 + from.offset,
            from_keys: &own.local_keys,
            to: theirs.address + to.offset,
            to_keys: &theirs.keys,
            bytes,
            signal,
            on_host: !own.on_device,
        })
    }

    /// The same, as what may wait.
    pub(super) fn task(&self) -> Task {
        let (Self { own, theirs, .. }, Transfer { from, to, bytes, signal }) =
            (self, self.transfer);
        let from = if own.is_staged() {
            let region = own.region.clone();
            Source::Staged { number: from.memory, region, offset: from.offset }
        } else {
            let address = own.region.address() as u64 + from.offset;
            Source::Direct { address, keys: own.local_keys.clone(), on_host: !own.on_device }
        };
        let to = if theirs.is_staged() {
            Target::Staged { memory: to.memory, offset: to.offset }
        } else {
            Target::Direct { address: theirs.address + to.offset, keys: theirs.keys.clone() }
        };
        Task { from, to, bytes, signal }
    }
}

impl Description {
    fn is_staged(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Registered {
    fn is_staged(&self) -> bool {
        self.local_keys.is_empty()
    }
}

/// An error of registering by address, with what stood in the way before.
fn hint(error: NetError, reasons: &[String]) -> NetError {
    match error {
        NetError::System { what, cause } if !reasons.is_empty() => {
            NetError::System { what, cause: format!("{cause}; before: {}", reasons.join("; ")) }
        }
        other => other,
    }
}

fn inside(span: Span, bytes: u64, size: u64) -> bool {
    span.offset.checked_add(bytes).is_some_and(|end| end <= size)
}

fn outside(what: &'static str, span: Span, len: u64, size: u64) -> NetError {
    let Span { memory, offset } = span;
    NetError::OutOfRange { what, memory, offset, len, size }
}

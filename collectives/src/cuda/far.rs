//! Ranks of other hosts, as kernels reach them: ports, whose proxy carries out what kernels put, and counters of what the peers signal.
//! The device's side is kernels/device/far.cuh.
//!
//! It is a transport of its own, beside the node's: that one belongs to the host's threads, and what they tell each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::{self, CUstream};
use warpmesh_primitives::bootstrap::Bootstrap;
use warpmesh_primitives::gpu::{CudaError, DeviceMemory, Gpu, HostMemory, PeerMemory};
use warpmesh_primitives::net::fifo::Bell;
use warpmesh_primitives::net::proxy::device::FifoHandle;
use warpmesh_primitives::net::proxy::{DevicePorts, Port, Proxy, ProxyOptions};
use warpmesh_primitives::net::{NetError, Region, Signals, Span, Transport};
use warpmesh_primitives::node::{AT_REACH, Node};
use warpmesh_primitives::patience::WaitingFor;
use warpmesh_primitives::topology::{Topology, TopologyError};

use super::driver_error;
use super::emit::{GUARD, Word, Words};
use crate::algorithms::NODE_SEMAPHORES;
use crate::communicator::Communicator;
use crate::error::{Error, argument};

/// The most thread blocks of a kernel that reaches other hosts: each has semaphores of its own.
pub(super) const MAX_BLOCKS: usize = 8;

/// Those of messages: a slot is filled, and emptied. They have a word for each channel, in place of blocks.
pub(super) const FILLED: usize = GUARD + 1;
pub(super) const EMPTIED: usize = GUARD + 2;

/// Semaphores to a rank of another host: the plans', the guard's, and those of messages.
const SEMAPHORES: usize = NODE_SEMAPHORES + 3;

/// Triggers that the FIFO holds: those of some moves of all blocks.
const TRIGGERS: usize = 1 << 10;

/// Numbers of memory: scratch, where ranks tell each other what they call, and that of messages.
const SCRATCH: u32 = 0;
const GREETINGS: u32 = 1;
const MAIL: u32 = 2;

/// `Far` of far.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Handle {
    fifo: FifoHandle,
    lanes: u32,
    reserved: u32,
    said: u64,
    heard: u64,
}

const _: () = assert!(size_of::<Handle>() == 72);

/// How this rank's kernels reach other hosts.
pub(crate) struct Far {
    node: Arc<Node>,
    gpu: Gpu,
    signals: Signals,
    handle: DeviceMemory,
    /// Before the memory that it works with: it ends first.
    proxy: Arc<Proxy>,
    ports: DevicePorts,
    _memory: [PeerMemory; 2],
    _greetings: Arc<HostMemory>,
}

impl Far {
    /// Opens the transport, if there are other hosts. Every rank calls it; blocks until all have.
    pub(super) fn new(
        host: &mut Communicator,
        gpu: &Gpu,
        (scratch, mail): (&PeerMemory, &PeerMemory),
    ) -> Result<Option<Self>, Error> {
        let node = host.node().clone();
        if !node.spans_hosts() {
            return Ok(None);
        }
        let (rank, world) = (node.rank(), node.world());
        let topology = Topology::of_this_machine().map_err(unreadable)?;
        let semaphores = SEMAPHORES * MAX_BLOCKS * world;
        let bootstrap = host.bootstrap_mut();
        let mut transport = node.open_for_gpu(bootstrap, gpu, &topology, semaphores)?;
        for (number, memory) in [(SCRATCH, scratch), (MAIL, mail)] {
            let region = Arc::new(gpu.region_of_shared(rank, memory)?);
            publish(bootstrap, transport.as_mut(), number, region)?;
        }
        // A word of this rank's in both halves, then one of each rank.
        let words = (2 + 2 * world) * size_of::<u64>();
        let greetings = Arc::new(gpu.host_memory(words).map_err(driver_error)?);
        publish(bootstrap, transport.as_mut(), GREETINGS, greetings.clone())?;
        let signals = transport.signals().clone();
        let bell = Bell::new()?;
        let ports = DevicePorts::new(gpu, TRIGGERS, 1, bell.clone())?;
        let said = greetings.device();
        let handle = Handle {
            fifo: ports.handle(),
            lanes: signals.lanes() as u32,
            reserved: 0,
            said,
            heard: said + 2 * size_of::<u64>() as u64,
        };
        let memory = gpu.device_memory(size_of::<Handle>()).map_err(driver_error)?;
        // SAFETY: as many bytes were allocated just now, and no kernel knows them.
        let code = unsafe {
            let from = std::ptr::from_ref(&handle).cast();
            sys::cuMemcpyHtoD_v2(memory.address(), from, size_of::<Handle>())
        };
        CudaError::check(code, "cuMemcpyHtoD").map_err(driver_error)?;
        let cpus = gpu.bus().map(|bus| topology.cpus_near(bus)).unwrap_or_default();
        let options = ProxyOptions {
            device_producers: true,
            cpus: cpus.iter().map(|cpu| cpu as usize).collect(),
            name: format!("warpmesh-net-{rank}"),
            ..ProxyOptions::default()
        };
        let table = table(rank, world);
        let fifos = vec![ports.fifo().clone()];
        let proxy = Arc::new(Proxy::start(transport, table, fifos, bell, &options).map_err(net)?);
        Ok(Some(Self {
            node,
            gpu: gpu.clone(),
            signals,
            handle: memory,
            proxy,
            ports,
            _memory: [scratch.clone(), mail.clone()],
            _greetings: greetings,
        }))
    }

    /// What carries out what kernels put.
    pub(super) fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// The device address of what kernels know of it.
    pub(super) fn address(&self) -> u64 {
        self.handle.address()
    }

    /// To be called before a kernel is launched that pushes: kernels cannot wake the proxy.
    pub(super) fn launching(&self) {
        self.ports.fifo().bell().ring();
    }

    /// What a kernel's table has for a word of these.
    pub(super) fn word(&self, word: &Word) -> u64 {
        let world = self.node.world();
        match word.what {
            Words::Counters => self.counters(word.number, word.peer),
            Words::Port => self.port(word.number, word.peer),
            Words::Greeting => (world * SEMAPHORES * MAX_BLOCKS + word.peer) as u64,
            Words::SilentPort => SILENT | port_number(0, word.peer) as u64,
            _ => 0,
        }
    }

    /// The device address of what a peer's signals of a semaphore count up, for block 0.
    pub(super) fn counters(&self, semaphore: usize, peer: usize) -> u64 {
        let number = semaphore_number(self.node.world(), semaphore, peer, 0);
        // There is one: `new` asked for as many, in memory of the GPU's.
        self.signals.device_words(number).unwrap_or_default()
    }

    /// Words that each of those has.
    pub(super) fn lanes(&self) -> u8 {
        self.signals.lanes() as u8
    }

    /// The port of a semaphore of a peer's, for block 0.
    pub(super) fn port(&self, semaphore: usize, peer: usize) -> u64 {
        port_number(semaphore, peer) as u64
    }

    /// Connects to these ranks, which do so at the same time, for kernels and for what hosts tell each other. The first time it
    /// waits until this rank's kernels are done: memory is allocated, for which the driver may wait for them. Blocks until all
    /// have come, looking around meanwhile as in any other wait. `stream` is that of the call.
    pub(super) fn reach(
        &self,
        peers: &[usize],
        sequence: u64,
        stream: CUstream,
    ) -> Result<(), Error> {
        if is_captured(stream)? {
            return Err(captured());
        }
        let failed = |failure| Error::from(warpmesh_primitives::Error::from(failure));
        self.node.reach(peers, sequence).map_err(failed)?;
        self.quiesce()?;
        let since = Instant::now();
        loop {
            let wanted = peers.to_vec();
            let connect = move |transport: &mut dyn Transport| {
                let connected = transport.connect(&wanted, Duration::ZERO);
                let _ = transport.progress();
                connected
            };
            let connected = self.proxy.with_transport(self.node.policy().timeout, connect);
            let missing = match connected.map_err(net)? {
                Ok(()) => return Ok(()),
                Err(NetError::Missing { missing, .. }) => missing[0],
                Err(error) => return Err(failed(self.node.disconnected(peers[0], error))),
            };
            self.node.progress();
            let on = WaitingFor { peer: missing, place: AT_REACH, expected: 1, sequence };
            if let Some(failure) = self.node.look_around(on, 0, since.elapsed()) {
                return Err(failed(self.node.post(failure)));
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }
}

impl Far {
    /// A capture, of whatever stream, is invalid after this.
    fn quiesce(&self) -> Result<(), Error> {
        let error = match self.gpu.context().synchronize() {
            Ok(()) => return Ok(()),
            Err(error) => CudaError::new("cuCtxSynchronize", error.0),
        };
        let is_captured = error.is(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        Err(if is_captured { captured() } else { driver_error(error) })
    }
}

fn is_captured(stream: CUstream) -> Result<bool, Error> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: `status` is a local; the stream is that of a call, whose caller promises that it exists.
    let code = unsafe { sys::cuStreamIsCapturing(stream, &mut status) };
    CudaError::check(code, "cuStreamIsCapturing").map_err(driver_error)?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

#[cold]
fn captured() -> Error {
    let problem = "is captured, and the call is the first of its kind, which connects ranks of several hosts: make one before";
    argument("call", "stream", problem)
}

fn unreadable(error: TopologyError) -> Error {
    argument("on_gpu", "WARPMESH_TOPO_FILE", format!("is wrong: {error}"))
}

fn net(error: NetError) -> Error {
    warpmesh_primitives::Error::from(error).into()
}

/// Between two looks for peers that connect.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// `SILENT` of far.cuh.
const SILENT: u64 = 1 << 32;

/// The counter of a semaphore of a peer's block, as the transport numbers them.
fn semaphore_number(world: usize, semaphore: usize, peer: usize, block: usize) -> u32 {
    ((row(semaphore) * world + peer) * MAX_BLOCKS + block) as u32
}

/// The port of block 0.
fn port_number(semaphore: usize, peer: usize) -> usize {
    (peer * SEMAPHORES + row(semaphore)) * MAX_BLOCKS
}

fn row(semaphore: usize) -> usize {
    if semaphore < GUARD { semaphore } else { NODE_SEMAPHORES + semaphore - GUARD }
}

/// All ports, those of no use too: a rank of this host has them like any other. First those of slots, then a greeting's for each peer.
fn table(rank: usize, world: usize) -> Vec<Port> {
    let all =
        |peer| (0..SEMAPHORES * MAX_BLOCKS).map(move |n| (peer, n / MAX_BLOCKS, n % MAX_BLOCKS));
    let port = |(peer, row, block): (usize, usize, usize)| {
        let number = if row < self::row(FILLED) { SCRATCH } else { MAIL };
        let memory = Span { memory: number, offset: 0 };
        let semaphore = ((row * world + rank) * MAX_BLOCKS + block) as u32;
        Port { peer, from: memory, to: memory, semaphore }
    };
    let memory = Span { memory: GREETINGS, offset: 0 };
    let greeting = |peer| Port { peer, from: memory, to: memory, semaphore: 0 };
    (0..world).flat_map(all).map(port).chain((0..world).map(greeting)).collect()
}

/// Registers a rank's memory, and learns of that of all others.
fn publish(
    bootstrap: &mut dyn Bootstrap,
    transport: &mut dyn Transport,
    number: u32,
    region: Arc<dyn Region>,
) -> Result<(), Error> {
    let mine = transport.register(number, region);
    // All ranks hear of it if one of them cannot.
    let (fine, said) = match &mine {
        Ok(described) => (1, described.clone()),
        Err(error) => (0, error.to_string().into_bytes()),
    };
    let all = bootstrap.all_gather(&[&[fine], &said[..]].concat())?;
    mine.map_err(net)?;
    for (peer, theirs) in all.iter().enumerate() {
        match theirs.split_first() {
            Some((1, described)) => {
                transport.learn(peer, number, described).map_err(net)?;
            }
            refused => {
                let why = String::from_utf8_lossy(refused.map_or(&[], |(_, why)| why));
                let problem = format!("of rank {peer} cannot be registered for transfers: {why}");
                return Err(argument("on_gpu", "memory", problem));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each port counts up the counter that its peer waits for, and no other does.
    #[test]
    fn ports_and_counters_are_those_of_one_semaphore_and_block() {
        let world = 3;
        let tables: Vec<_> = (0..world).map(|rank| table(rank, world)).collect();
        let mut seen = std::collections::HashSet::new();
        for (rank, table) in tables.iter().enumerate() {
            for peer in 0..world {
                for semaphore in (0..NODE_SEMAPHORES).chain([GUARD, FILLED, EMPTIED]) {
                    for block in 0..MAX_BLOCKS {
                        let port = table[port_number(semaphore, peer) + block];
                        let counter = semaphore_number(world, semaphore, rank, block);
                        assert_eq!((port.peer, port.semaphore), (peer, counter));
                        assert!(seen.insert((peer, counter)));
                    }
                }
            }
        }
        assert!(
            tables[0].len() * super::super::setup::MAX_RANKS / world < 1 << 16,
            "a trigger's port has 16 bits"
        );
    }
}

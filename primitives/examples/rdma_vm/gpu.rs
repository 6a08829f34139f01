//! Tests of memory of GPUs, on virtual ones. Their memory is memory of the process, so that a NIC takes it by its address, as it does
//! on machines with `nvidia-peermem`; what it does not reach there is forced to be staged.
//!
//! Devices 0 and 1 are of sm_90, device 2 is of sm_80.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use warpmesh_primitives::gpu::DeviceMemory;
use warpmesh_primitives::net::rdma::{GpuMemory, RdmaOptions, RdmaTransport, SignalMode};
use warpmesh_primitives::net::{Region, Span, Transfer, Transport};

use super::device::Device;
use super::ensure;
use super::harness::{Outcome, lose, lose_no_more};
use super::job::{Job, LIMIT, MEMORY, Pair, SEMAPHORES};
use super::memory::{Memory, pattern};

/// Memory of the GPU; [`MEMORY`] is the host's.
const DEVICE: u32 = 8;
const BYTES: usize = 8 << 20;
const HALF: u64 = BYTES as u64 / 2;
const OLD: usize = 2;

/// A connected transport, with memory of the host and of a GPU that the peer may write: half is sent, half is got.
pub struct GpuPair {
    pair: Pair,
    device: Device,
    memory: Arc<DeviceMemory>,
    /// Signals of each semaphore that have come.
    seen: [u64; SEMAPHORES],
}

impl GpuPair {
    fn new(job: &mut Job, device: Device, options: RdmaOptions) -> Outcome<Self> {
        Listener::listen();
        let exchange = job.exchange()?;
        let ranks = (job.rank, 2);
        let transport = RdmaTransport::on_gpu(&device.gpu, ranks, SEMAPHORES, options, exchange)?;
        let (host, memory) = (Arc::new(Memory::new(BYTES)), device.memory(BYTES));
        let region = Arc::new(device.gpu.region_of(&memory)?);
        let pair = Pair { peer: job.peer, transport, memory: host.clone(), posted: 0 };
        let mut own = Self { pair, device, memory, seen: [0; SEMAPHORES] };
        own.share(job, MEMORY, host)?;
        own.share(job, DEVICE, region)?;
        own.pair.transport.connect(&[job.peer], LIMIT)?;
        Ok(own)
    }

    /// Ranks with these ways of reaching their GPUs' memory.
    fn by(job: &mut Job, ways: [GpuMemory; 2], cables: usize) -> Outcome<Self> {
        let options = RdmaOptions { gpu_memory: ways[job.rank], ..job.options(cables) };
        let own = Self::new(job, Device::new(job.rank), options)?;
        let staged = ways[job.rank] == GpuMemory::Staged;
        ensure!(own.pair.transport.stages() == staged, "not {ways:?}");
        Ok(own)
    }

    fn share(&mut self, job: &mut Job, number: u32, region: Arc<dyn Region>) -> Outcome {
        let mine = self.pair.transport.register(number, region)?;
        let all = job.gather(&mine)?;
        Ok(self.pair.transport.learn(job.peer, number, &all[job.peer])?)
    }

    fn fill(&self, number: u32, at: u64, bytes: &[u8]) {
        match number {
            MEMORY => self.pair.memory.write(at, bytes),
            _ => self.device.upload(self.memory.address() + at, bytes),
        }
    }

    fn read(&self, number: u32, at: u64, len: u64) -> Vec<u8> {
        match number {
            MEMORY => self.pair.memory.read(at, len),
            _ => self.device.download(self.memory.address() + at, len as usize),
        }
    }

    fn put(
        &mut self,
        (from, at): (u32, u64),
        (to, there): (u32, u64),
        bytes: u64,
        signal: Option<u32>,
    ) -> Outcome {
        let span = |memory, offset| Span { memory, offset };
        let (from, to) = (span(from, at), span(to, HALF + there));
        self.pair.transport.post(self.pair.peer, &Transfer { from, to, bytes, signal })?;
        self.pair.posted += 1;
        Ok(())
    }

    /// The next signal of a semaphore.
    fn wait(&mut self, semaphore: u32) -> Outcome {
        self.seen[semaphore as usize] += 1;
        self.pair.wait(semaphore, self.seen[semaphore as usize])
    }
}

/// Between the ends that a transfer may have, of which one at least is a GPU's.
const ENDS: [(u32, u32); 3] = [(DEVICE, DEVICE), (MEMORY, DEVICE), (DEVICE, MEMORY)];

/// Both ranks send at a time, each length, from and to odd places; the bytes beside stay as they were.
fn sizes(own: &mut GpuPair, job: &mut Job, lengths: &[u64]) -> Outcome {
    for (i, len) in lengths.iter().copied().enumerate() {
        for (from, to) in ENDS {
            let seed = |rank| (i * 2 + rank) as u64 + u64::from(from) * 64;
            let (shift, there) = (i as u64 % 3, 64 + i as u64 % 5);
            own.fill(from, shift, &pattern(len, seed(job.rank)));
            own.fill(to, HALF, &vec![0; 64 + len as usize + 128]);
            job.barrier()?;
            own.put((from, shift), (to, there), len, Some(1))?;
            own.wait(1)?;
            let got = own.read(to, HALF, 64 + len + 128);
            let (before, rest) = got.split_at(there as usize);
            let (data, behind) = rest.split_at(len as usize);
            ensure!(data == pattern(len, seed(job.peer)), "{len} bytes, {from} to {to}: wrong");
            let beside = before.iter().chain(behind).all(|byte| *byte == 0);
            ensure!(beside, "{len} bytes, {from} to {to}: more was written");
            own.pair.flush()?;
            job.barrier()?;
        }
    }
    Ok(())
}

/// From nothing to more than the rings hold.
const LENGTHS: [u64; 7] = [0, 1, 33, 4097, 262_147, 1 << 20, (3 << 20) + 77];

pub fn staged_sizes_in_both_directions(job: &mut Job) -> Outcome {
    let mut own = GpuPair::by(job, [GpuMemory::Staged; 2], 1)?;
    ensure!(
        own.pair.transport.signal_mode(job.peer) == Some(SignalMode::Immediate),
        "not as it was to be"
    );
    sizes(&mut own, job, &LENGTHS)?;
    said(job, "staged through memory of the host, since WARPMESH_IB_GPU_MEMORY wants that")
}

pub fn direct_sizes_in_both_directions(job: &mut Job) -> Outcome {
    let mut own = GpuPair::by(job, [GpuMemory::Auto; 2], 1)?;
    ensure!(
        own.pair.transport.signal_mode(job.peer) == Some(SignalMode::FetchAdd),
        "not as it was to be"
    );
    sizes(&mut own, job, &[1, 4097, (1 << 20) + 77])?;
    said(job, "direct, by peermem, since rxe")
}

/// What one rank has, the other has not.
pub fn staged_at_one_end_and_two_nics_to_one(job: &mut Job) -> Outcome {
    let ways = [GpuMemory::Staged, GpuMemory::Peermem];
    let mut own = GpuPair::by(job, ways, 2 - job.rank)?;
    sizes(&mut own, job, &[1, 100_001, (1 << 20) + 3])
}

pub fn staged_over_two_nics(job: &mut Job) -> Outcome {
    let mut own = GpuPair::by(job, [GpuMemory::Staged; 2], 2)?;
    sizes(&mut own, job, &[65, (2 << 20) + 77])?;
    many(&mut own, job, 300)
}

pub fn staged_many_in_flight(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let options = RdmaOptions { depth: 16, gpu_memory: GpuMemory::Staged, ..options };
    let mut own = GpuPair::new(job, Device::new(job.rank), options)?;
    many(&mut own, job, 900)
}

/// Both ranks post everything before they look, from and to all kinds of memory, over all semaphores: when a signal is seen all is there
/// that was posted before it, also what did not go through the GPU.
fn many(own: &mut GpuPair, job: &mut Job, count: u64) -> Outcome {
    let size = 2048;
    let all = [(MEMORY, MEMORY), ENDS[0], ENDS[1], ENDS[2]];
    let data = |rank| (0..count).flat_map(move |i| pattern(size, i + 7 * rank as u64));
    for number in [MEMORY, DEVICE] {
        own.fill(number, 0, &data(job.rank).collect::<Vec<_>>());
        own.fill(number, HALF, &vec![0; (size * count) as usize]);
    }
    job.barrier()?;
    for i in 0..count {
        let (from, to) = all[i as usize % 4];
        let signal = (i % 3 == 2 || i + 1 == count).then_some((i % 5) as u32);
        own.put((from, i * size), (to, i * size), size - i % 7, signal)?;
    }
    let wanted: Vec<u8> = data(job.peer).collect();
    let mut checked = 0;
    for last in (0..count).filter(|i| i % 3 == 2 || i + 1 == count) {
        own.wait((last % 5) as u32)?;
        // Not after each: reading is slow here.
        if last % 50 > 2 && last + 1 < count {
            continue;
        }
        let got = [MEMORY, DEVICE].map(|n| own.read(n, HALF, size * count));
        for i in checked..=last {
            let range = (i * size) as usize..(i * size + size - i % 7) as usize;
            let got = &got[usize::from(all[i as usize % 4].1 == DEVICE)][range.clone()];
            ensure!(*got == wanted[range], "transfer {i} is wrong when {last} is signalled");
        }
        checked = last + 1;
    }
    own.pair.flush()?;
    job.barrier()
}

pub fn staged_with_loss_of_2_percent(job: &mut Job) -> Outcome {
    if job.rank == 0 {
        lose()?;
    }
    job.barrier()?;
    job.loses = true;
    let result = under_loss(job).and_then(|()| job.barrier());
    // In any case, since other tests come.
    let lost = if job.rank == 0 { lose_no_more() } else { Ok(()) };
    result.and(lost)
}

fn under_loss(job: &mut Job) -> Outcome {
    let mut own = GpuPair::by(job, [GpuMemory::Staged; 2], 2)?;
    sizes(&mut own, job, &[1, (3 << 20) + 77])?;
    many(&mut own, job, 100)
}

/// A GPU whose kernels may see signals first: what it is sent is staged, what it sends is not.
pub fn a_gpu_before_sm_90_is_staged(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut own = GpuPair::new(job, Device::new(OLD), options)?;
    ensure!(
        own.device.gpu.architecture() == 80 && own.pair.transport.stages(),
        "not as it was to be"
    );
    sizes(&mut own, job, &[8, 300_001])?;
    said(job, "what peers send is staged, since kernels of sm_80 may see signals before")
}

/// One is killed while it is sent to: the other is told who and through what, soon, and what it has goes without a hang.
pub fn a_peer_that_is_killed_amid_staged_data_is_named(job: &mut Job) -> Outcome {
    let options = RdmaOptions { gpu_memory: GpuMemory::Staged, timeout: 15, ..job.options(2) };
    let mut own = GpuPair::new(job, Device::new(job.rank), options)?;
    job.barrier()?;
    if job.rank == 1 {
        own.wait(1)?;
        std::process::abort();
    }
    let start = Instant::now();
    let fault = own.pair.fault(Duration::from_secs(8), |pair| {
        let span = |memory, offset| Span { memory, offset };
        let (from, to, bytes) = (span(DEVICE, 0), span(DEVICE, HALF), 1 << 20);
        let transfer = Transfer { from, to, bytes, signal: Some(1) };
        if pair.posted < 8 {
            pair.posted += 1;
            pair.transport.post(1, &transfer).or(Ok::<_, String>(()))?;
        }
        Ok(())
    })?;
    println!("    after {:?}: {fault}", start.elapsed());
    ensure!(fault.peer == 1 && fault.via.starts_with("rxe"), "{fault}");
    let again = own.put((DEVICE, 0), (DEVICE, 0), 8, None).unwrap_err().to_string();
    ensure!(again == fault.to_string(), "later transfers say {again}");
    if let Some(mut child) = job.child.take() {
        ensure!(!child.wait()?.success(), "rank 1 was to be killed");
    }
    drop(own);
    ensure!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
    Ok(())
}

/// Rank 1 takes back the memory that rank 0 sends to: nothing is written there any more, and both are told.
pub fn staged_memory_that_was_forgotten_is_refused(job: &mut Job) -> Outcome {
    let mut own = GpuPair::by(job, [GpuMemory::Staged; 2], 1)?;
    if job.rank == 1 {
        own.pair.transport.forget(DEVICE);
    }
    job.barrier()?;
    if job.rank == 0 {
        own.fill(DEVICE, 0, &pattern(64, 1));
        own.put((DEVICE, 0), (DEVICE, 0), 64, Some(0))?;
    }
    // The refusing end stops, so that requests of the other fail.
    let fault = own.pair.fault(Duration::from_secs(8), |pair| match pair.peer {
        1 => pair.signal(2).or(Ok(())),
        _ => Ok(()),
    })?;
    println!("    {fault}");
    ensure!(fault.peer == job.peer && fault.via == job.via(), "{fault}");
    ensure!(job.rank == 0 || fault.cause.contains("memory 8, which is not registered"), "{fault}");
    ensure!(own.read(DEVICE, HALF, 64) == [0; 64], "it was written");
    ensure!(own.pair.transport.signals().seen(0) == 0, "it was signalled");
    job.barrier()
}

pub fn ways_that_cannot_be_are_refused(job: &mut Job) -> Outcome {
    let options = RdmaOptions { gpu_memory: GpuMemory::DmaBuf, ..job.options(1) };
    let device = Device::new(job.rank);
    let exchange = job.exchange()?;
    let made = RdmaTransport::on_gpu(&device.gpu, (job.rank, 2), SEMAPHORES, options, exchange);
    let error = made.err().ok_or("there are no dma-bufs here")?.to_string();
    println!("    {error}");
    ensure!(error.contains(job.via()) && error.contains("as a dma-buf"), "{error}");
    // A transport that knows no GPU takes what the NIC takes, and says what else there is.
    let region = Arc::new(device.gpu.region_of(&device.memory(4096))?);
    let options = RdmaOptions { gpu_memory: GpuMemory::Staged, ..job.options(1) };
    let error = job.transport(options)?.register(DEVICE, region).err().ok_or("it is staged")?;
    ensure!(error.to_string().contains("RdmaTransport::on_gpu"), "{error}");
    job.barrier()
}

/// What is said of memory when it is registered.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether that was said of memory of the GPU.
fn said(job: &Job, words: &str) -> Outcome {
    let said = SAID.lock().map_err(|error| error.to_string())?;
    let start = format!("rank {}: memory {DEVICE} of a GPU, {BYTES} bytes: ", job.rank);
    let line = said.iter().find(|line| line.starts_with(&start)).ok_or("nothing was said")?;
    println!("    {line}");
    ensure!(line.contains(words), "{line}");
    Ok(())
}

/// Keeps what the transport says at the level of information.
struct Listener;

impl Listener {
    fn listen() {
        let _ = tracing::subscriber::set_global_default(Self);
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{value:?}");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        if let Ok(mut said) = SAID.lock() {
            said.push(text.0);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

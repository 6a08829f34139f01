//! The CUDA device: collectives on GPU memory, by plans compiled to kernels.
//!
//! A call is put on the caller's stream and returns at once: it fills a kernel's parameter and launches it, no more. Ranks
//! need not come at the same time; kernels wait for each other, each wait is bounded. What goes wrong on the device is
//! returned by the next call or by [`CudaCommunicator::synchronize`].

mod arrange;
mod choose;
pub(crate) mod emit;
mod geometry;
mod kernel;
pub(crate) mod params;
mod regions;
mod source;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUresult, CUstream};
use warpmesh_kernels::cache;
use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::gpu::{CudaError, Gpu, PeerMemory};

use self::choose::Candidate;
pub use self::emit::EmitError;
use self::geometry::Geometry;
use self::kernel::{Buffers, Loaded};
use self::params::{Board, Call};
use self::regions::{MAX_BLOCKS, Regions};
#[doc(hidden)]
pub use self::source::source;
use crate::communicator::plans::Query;
use crate::communicator::{Communicator, RawCall};
use crate::dtype::DataType;
use crate::error::{Error, argument};
use crate::op::{OpKind, ReduceOp};

/// Bytes of a rank's scratch and packet memory on its GPU.
const SCRATCH: usize = 16 << 20;
const PACKETS: usize = 8 << 20;

/// A group of ranks whose buffers lie on GPUs: made of a [`Communicator`] by [`Communicator::on_gpu`].
pub struct CudaCommunicator {
    host: Communicator,
    gpu: Gpu,
    regions: Regions,
    candidates: Vec<Candidate>,
    kernels: HashMap<Key, Loaded>,
    windows: Vec<Window>,
    sequence: u64,
    /// Thread blocks of a kernel, at most.
    most_blocks: usize,
}

/// What a kernel is compiled for, besides the rank.
type Key = (usize, usize, DataType, OpKind);

impl std::fmt::Debug for CudaCommunicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, world) = (self.rank(), self.world());
        write!(f, "CudaCommunicator(rank {rank} of {world}, call {})", self.sequence)
    }
}

/// Memory that all ranks have mapped, in which buffers of calls may lie.
struct Window {
    /// The same on all ranks.
    number: usize,
    memory: PeerMemory,
    alive: Weak<()>,
}

/// GPU memory that peers reach, so that calls on it stage nothing: made by [`CudaCommunicator::alloc_bytes`].
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

impl Communicator {
    /// Makes a communicator for buffers on the GPU of `context`. A collective call: every rank makes it, each with the GPU that it
    /// works on; several ranks may share one. Blocks until all have.
    ///
    /// # Errors
    /// The driver lacks something, GPUs of the ranks are of different architectures, or a peer is gone.
    pub fn on_gpu(mut self, context: Arc<CudaContext>) -> Result<CudaCommunicator, Error> {
        let gpu = Gpu::new(context)?;
        let most_blocks = agree(&mut self, &gpu)?;
        let regions = Regions::new(&gpu, self.node(), SCRATCH, PACKETS)?;
        Ok(CudaCommunicator {
            candidates: choose::candidates(self.world()),
            host: self,
            gpu,
            regions,
            kernels: HashMap::new(),
            windows: Vec::new(),
            sequence: 0,
            most_blocks,
        })
    }
}

/// Compares the GPUs of all ranks; how many thread blocks a kernel may have, so that those of all ranks on a GPU fit at once.
fn agree(host: &mut Communicator, gpu: &Gpu) -> Result<usize, Error> {
    let uuid = gpu.context().uuid().map_err(|error| {
        warpmesh_primitives::Error::from(CudaError::new("cuDeviceGetUuid", error.0))
    })?;
    let mut mine = [0; 24];
    mine[..4].copy_from_slice(&gpu.architecture().to_le_bytes());
    mine[4..8].copy_from_slice(&gpu.multiprocessors().to_le_bytes());
    mine[8..].copy_from_slice(&uuid.bytes.map(|byte| byte as u8));
    let all = host.bootstrap_mut().all_gather(&mine)?;
    let mut fewest = usize::MAX;
    for (peer, theirs) in all.iter().enumerate() {
        let word = |at: usize| theirs.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
        let word = |at| word(at).map(u32::from_le_bytes);
        let (Some(architecture), Some(multiprocessors)) = (word(0), word(4)) else {
            return Err(argument("on_gpu", "peer", format!("rank {peer} sent no description")));
        };
        if architecture != gpu.architecture() {
            let problem = format!(
                "of rank {peer} is sm_{architecture}, this rank's is sm_{}",
                gpu.architecture()
            );
            return Err(argument("on_gpu", "GPU", problem));
        }
        let sharing = all.iter().filter(|other| other.get(8..) == theirs.get(8..)).count();
        // Kernels are compiled so that two blocks fit a multiprocessor; one leaves room for others' kernels.
        fewest = fewest.min(multiprocessors as usize / sharing);
    }
    Ok(fewest.clamp(1, MAX_BLOCKS / 2))
}

impl CudaCommunicator {
    /// This rank.
    pub fn rank(&self) -> usize {
        self.host.rank()
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.host.world()
    }

    /// Bytes of GPU memory that this rank holds for the communicator, registered buffers included.
    pub fn held_bytes(&self) -> usize {
        self.regions.bytes() + self.windows.iter().map(|window| window.memory.len()).sum::<usize>()
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Allocates `len` bytes of GPU memory that all ranks reach, all zero. A collective call, with the same length on all
    /// ranks. Blocks until all have come.
    ///
    /// # Errors
    /// The driver refuses, or a peer is gone.
    pub fn alloc_bytes(&mut self, len: usize) -> Result<CudaBytes, Error> {
        let memory = self.gpu.share(self.host.node(), len)?;
        self.windows.retain(|window| window.alive.strong_count() > 0);
        let alive = Arc::new(());
        let number = self.host.next_number();
        let window = Window { number, memory: memory.clone(), alive: Arc::downgrade(&alive) };
        self.windows.push(window);
        Ok(CudaBytes { memory, rank: self.rank(), _alive: alive })
    }

    /// Puts a collective on a stream. Input and output are device addresses. Returns when it is queued.
    ///
    /// # Errors
    /// An argument is wrong, no plan can do it, a kernel cannot be compiled or launched, or an earlier call has failed.
    ///
    /// # Safety
    /// Input and output are memory of this rank's GPU, good for as many elements as the collective's blocks have, until the
    /// stream has passed the call; the stream belongs to this communicator's context.
    pub unsafe fn call(&mut self, call: &RawCall, stream: CUstream) -> Result<(), Error> {
        let checked = call.check(self.rank(), self.world())?;
        if call.count == 0 {
            return Ok(());
        }
        self.check_alive()?;
        let input = self.window(call.input as u64, checked.input_bytes);
        let output = self.window(call.output as u64, checked.output_bytes);
        let op = if call.collective.reduces() { call.op.kind() } else { OpKind::Sum };
        let query = Query {
            collective: call.collective,
            registered: input.is_some() && output.is_some(),
            in_place: checked.in_place,
            dtype: call.dtype,
            op,
            uneven: false,
        };
        let number = self.choose(&query, call)?;
        let key = (number, call.root, call.dtype, op);
        if !self.kernels.contains_key(&key) {
            let loaded = self.load(key)?;
            self.kernels.insert(key, loaded);
        }
        self.sequence += 1;
        let (input, output) = (input.unwrap_or_default(), output.unwrap_or_default());
        let digest = self.digest(call, number, input.number, output.number);
        let header = self.header(call, op, digest, (input, output));
        // SAFETY: the caller's.
        unsafe { self.launch(key, call, header, (input, output), stream) }
    }

    /// Waits until everything on a stream is done, looking meanwhile whether peers are still there.
    ///
    /// # Errors
    /// A collective has failed.
    ///
    /// # Safety
    /// The stream belongs to this communicator's context.
    pub unsafe fn synchronize(&mut self, stream: CUstream) -> Result<(), Error> {
        let since = Instant::now();
        loop {
            // SAFETY: the caller's.
            match unsafe { sys::cuStreamQuery(stream) } {
                CUresult::CUDA_SUCCESS => return self.check_alive(),
                CUresult::CUDA_ERROR_NOT_READY => self.look_around(since),
                code => return Err(setup(CudaError::new("cuStreamQuery", code))),
            }
        }
    }

    /// Makes kernels end that wait for a peer which is gone.
    fn look_around(&self, since: Instant) {
        if self.host.node().failure().is_some() {
            self.abort_word().store(1, Ordering::Release);
        }
        // Short waits spin, long ones leave the core to others.
        if since.elapsed().as_micros() > 50 {
            std::thread::yield_now();
        }
    }

    fn control_word(&self, n: usize) -> &AtomicU32 {
        let word = self.regions.control.host().cast::<AtomicU32>();
        // SAFETY: pinned memory that lives as long as `self`, longer than two words, 4-byte aligned; the device accesses these
        // words atomically too.
        unsafe { &*word.add(n) }
    }

    /// Written here, read by kernels: every wait ends.
    fn abort_word(&self) -> &AtomicU32 {
        self.control_word(0)
    }

    /// Written by kernels, read here: a wait has ended in vain.
    fn failed_word(&self) -> &AtomicU32 {
        self.control_word(1)
    }

    fn check_alive(&self) -> Result<(), Error> {
        let node = self.host.node();
        if let Some(failure) = node.failure() {
            self.abort_word().store(1, Ordering::Release);
            return Err(self.host.failed(failure));
        }
        if self.failed_word().load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let failure = Failure { kind: FailureKind::TimedOut, by: self.rank(), culprit: None };
        Err(self.host.failed(node.post(failure)))
    }

    /// The window that a range lies in; for no bytes, any.
    fn window(&self, address: u64, bytes: usize) -> Option<Place> {
        if bytes == 0 {
            return Some(Place::default());
        }
        let rank = self.rank();
        self.windows.iter().enumerate().find_map(|(index, window)| {
            let offset = address.checked_sub(window.memory.address(rank))?;
            let fits = offset + bytes as u64 <= window.memory.len() as u64;
            (fits && window.alive.strong_count() > 0).then_some(Place {
                index: Some(index),
                number: window.number as u64,
                offset,
            })
        })
    }

    fn choose(&self, query: &Query, call: &RawCall) -> Result<usize, Error> {
        let (canonical, only) = self.host.preferences();
        let chosen = choose::choose(&self.candidates, query, call.count, canonical, only);
        chosen.ok_or_else(|| self.host.no_plan(query))
    }

    /// Compiles and loads a kernel. Takes up to half a second the first time on a machine.
    #[cold]
    fn load(&self, (number, root, dtype, op): Key) -> Result<Loaded, Error> {
        let (rank, world) = (self.rank(), self.world());
        let candidate = &self.candidates[number];
        let shape = candidate.algorithm.shape(world, root);
        let program = candidate.algorithm.program(rank, world, root);
        let claims = &candidate.algorithm.claims;
        let announces = candidate.registered;
        let kernel = emit::emit(&shape, &program, claims, announces, rank, dtype, op)?;
        let architecture = self.gpu.architecture();
        let folder = cache::folder();
        let compiled =
            cache::kernel(&kernel.source, &kernel.name, architecture, folder.as_deref())?;
        Loaded::new(self.gpu.context(), &kernel, &compiled, &shape, &self.regions, rank)
    }

    /// What has to be equal on all ranks.
    fn digest(&self, call: &RawCall, plan: usize, input: u64, output: u64) -> u64 {
        let words = [
            call.collective as u64 | (call.dtype as u64) << 8 | (call.root as u64) << 32,
            call.op.kind() as u64,
            call.count as u64,
            plan as u64,
            input,
            output,
        ];
        words.iter().fold(0x9e37_79b9_7f4a_7c15, |mixed: u64, word| {
            let mixed = (mixed ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed ^ mixed >> 29
        })
    }

    fn header(
        &self,
        call: &RawCall,
        op: OpKind,
        digest: u64,
        (input, output): (Place, Place),
    ) -> Call {
        let factor = match call.op {
            ReduceOp::PreMulSum(scalar) if op == OpKind::PreMulSum => scalar.bits(),
            _ => 0,
        };
        Call {
            count: call.count as u64,
            rank: self.rank() as u32,
            world: self.world() as u32,
            half_scratch: self.regions.scratch.len() as u64 / 2,
            half_packets: self.regions.packets.len() as u64 / 2,
            sequence: self.sequence,
            timeout: self.host.timeout().as_nanos() as u64,
            mine: Board { input: input.offset, output: output.offset, factor, digest },
            state: self.regions.state(),
            control: self.regions.control.device(),
            boards: self.regions.boards(),
            half_boards: self.regions.half_boards(),
            ..Call::default()
        }
    }

    /// # Safety
    /// As [`CudaCommunicator::call`].
    unsafe fn launch(
        &mut self,
        key: Key,
        call: &RawCall,
        mut header: Call,
        (input, output): (Place, Place),
        stream: CUstream,
    ) -> Result<(), Error> {
        let bounds = self.kernels[&key].bounds;
        let cut = Geometry::new(&bounds, call.dtype, call.count, self.most_blocks);
        let cut =
            cut.ok_or_else(|| argument("call", "ranks", "are too many for the scratch memory"))?;
        header.window = cut.window as u64;
        header.rounds = cut.rounds as u32;
        header.part = cut.part as u64;
        header.slice = cut.slice as u64;
        let windows = &self.windows;
        let base = |place: Place, rank: usize| {
            place.index.map_or(0, |index| windows[index].memory.address(rank))
        };
        let buffers = Buffers {
            input: call.input as u64,
            output: call.output as u64,
            block: (call.count * call.dtype.size()) as u64,
            input_window: &|rank| base(input, rank),
            output_window: &|rank| base(output, rank),
        };
        let Some(kernel) = self.kernels.get_mut(&key) else { return Ok(()) };
        // SAFETY: the caller's.
        unsafe { kernel.launch(&header, &buffers, cut.blocks, stream) }.map_err(setup)
    }
}

/// Where a buffer lies: in which window, and where in it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    index: Option<usize>,
    number: u64,
    offset: u64,
}

fn setup(error: CudaError) -> Error {
    warpmesh_primitives::Error::from(error).into()
}

impl Drop for CudaCommunicator {
    fn drop(&mut self) {
        // Kernels that still wait for a peer end now, and then memory may be unmapped.
        self.abort_word().store(1, Ordering::Release);
        let _ = self.gpu.context().synchronize();
    }
}

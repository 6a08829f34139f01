//! A call: from the caller's arguments to the kernel's launch.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult, CUstream};
use warpmesh_kernels::cache;
use warpmesh_primitives::gpu::{CudaError, PointerInfo};

use super::far;
use super::far::Far;
use super::geometry::Geometry;
use super::kernel::{Buffers, Loaded, Memory};
use super::params::{Board, Call};
use super::recent::{Asked, Way};
use super::switch::{AtHand, Needs};
use super::windows::Place;
use super::{CudaCommunicator, Key, choose, driver_error, emit};
use crate::communicator::RawCall;
use crate::communicator::call::{Address, Board as HostBoard, Checked};
use crate::communicator::plans::Query;
use crate::dtype::DataType;
use crate::error::{Error, argument};
use crate::op::{OpKind, ReduceOp};
use crate::plan::Collective;

/// By how much a kernel is more patient than its host, which knows better who is to blame.
const LONGER: Duration = Duration::from_secs(2);

/// How long a call waits for the watcher's word on what a kernel has given up on.
const VERDICT: Duration = Duration::from_secs(1);

/// A buffer of a call.
#[derive(Clone, Copy, Debug, Default)]
struct Buffer {
    /// Whether it has no bytes.
    absent: bool,
    place: Option<Place>,
}

impl Buffer {
    fn is_registered(&self) -> bool {
        self.absent || self.place.is_some()
    }

    /// As a kernel announces it.
    fn announced(&self) -> u64 {
        self.place.map_or(0, |place| Board::at(place.window, place.offset))
    }

    /// As the host announces it.
    fn address(&self) -> Option<Address> {
        self.place.map(|place| Address { id: place.window, offset: place.offset as usize })
    }

    /// Its multicast address on all ranks, if it has one.
    fn of_all(&self) -> Option<u64> {
        self.place?.of_all
    }
}

impl CudaCommunicator {
    /// Puts a collective on a stream. Input and output are device addresses. Returns when it is queued. The first call of a
    /// kind compiles its kernel, unless it is built in or lies in the cache on disk: up to a second.
    ///
    /// While the stream is captured into a CUDA graph the call becomes a part of the graph; registered memory of graphs
    /// must live as long as they do.
    ///
    /// # Errors
    /// An argument is wrong, no plan can do it, a kernel cannot be compiled or launched, or an earlier call has failed.
    ///
    /// # Safety
    /// Input and output are memory of this rank's GPU, good for as many elements as the collective's blocks have, until the
    /// stream has passed the call; the stream exists.
    pub unsafe fn call(&mut self, call: &RawCall, stream: CUstream) -> Result<(), Error> {
        let checked = call.check(self.rank(), self.world())?;
        if call.count == 0 {
            return Ok(());
        }
        self.check_alive()?;
        self.check_stream(call.collective.name(), stream)?;
        let (asked, buffers) = self.ask(call, &checked)?;
        let way = match self.recent.find(&asked) {
            Some(way) => way,
            None => self.find_way(asked, stream)?,
        };
        let digest = self.announce(call, asked.query.op, way, buffers)?;
        let header = self.header(call, asked.query.op, buffers, digest);
        // SAFETY: the caller's.
        unsafe { self.launch(call, header, way, buffers, stream) }
    }

    /// The name of the plan that a call takes.
    ///
    /// # Errors
    /// An argument is wrong, or no plan can do it.
    pub fn plan_of(&self, call: &RawCall) -> Result<&'static str, Error> {
        self.bind()?;
        let checked = call.check(self.rank(), self.world())?;
        let (Asked { query, at_hand, count, .. }, _) = self.ask(call, &checked)?;
        Ok(self.candidates[self.choose(&query, at_hand, count)?].algorithm.name())
    }

    /// What decides how a call is done, and its input and output.
    fn ask(&self, call: &RawCall, checked: &Checked) -> Result<(Asked, [Buffer; 2]), Error> {
        let input = self.buffer(call, "input", call.input as u64, checked.input_bytes)?;
        let output = self.buffer(call, "output", call.output as u64, checked.output_bytes)?;
        let registered = input.is_registered() && output.is_registered();
        let query = choose::query(call, registered, checked.in_place);
        let at_hand = AtHand {
            memory: self.regions.multicast(),
            input: input.of_all().is_some(),
            output: output.of_all().is_some(),
        };
        Ok((Asked { query, at_hand, root: call.root, count: call.count }, [input, output]))
    }

    /// Chooses a plan, and makes its kernel ready.
    #[cold]
    fn find_way(&mut self, asked: Asked, stream: CUstream) -> Result<Way, Error> {
        let Asked { query, at_hand, root, count } = asked;
        let plan = self.choose(&query, at_hand, count)?;
        let key = (plan, root, kernel_type(query.collective, query.dtype), query.op);
        let kernel = match self.kernels.iter().position(|(of, _)| *of == key) {
            Some(kernel) => kernel,
            None => {
                let loaded = self.load(key, stream)?;
                self.kernels.push((key, loaded));
                self.kernels.len() - 1
            }
        };
        let most = match self.far {
            Some(_) => self.most_blocks.min(far::MAX_BLOCKS),
            None => self.most_blocks,
        };
        let cut = Geometry::new(&self.kernels[kernel].1.bounds, query.dtype, count, most);
        let cut =
            cut.ok_or_else(|| argument("call", "ranks", "are too many for the scratch memory"))?;
        let way = Way { plan, kernel, cut };
        self.recent.keep(asked, way);
        Ok(way)
    }

    /// Waits until everything on a stream is done.
    ///
    /// # Errors
    /// A collective has failed.
    ///
    /// # Safety
    /// The stream exists.
    pub unsafe fn synchronize(&mut self, stream: CUstream) -> Result<(), Error> {
        self.bind()?;
        let since = Instant::now();
        loop {
            // SAFETY: the caller's.
            match unsafe { sys::cuStreamQuery(stream) } {
                CUresult::CUDA_SUCCESS => return self.check_alive(),
                // Short waits spin, long ones leave the core to others, and take a hundredth longer.
                CUresult::CUDA_ERROR_NOT_READY => match since.elapsed() {
                    waited if waited < Duration::from_micros(50) => std::hint::spin_loop(),
                    waited if waited < Duration::from_millis(10) => std::thread::yield_now(),
                    waited => std::thread::sleep(waited.min(Duration::from_millis(200)) / 100),
                },
                code => return Err(driver_error(CudaError::new("cuStreamQuery", code))),
            }
        }
    }

    fn bind(&self) -> Result<(), Error> {
        let bound = self.gpu.context().bind_to_thread();
        bound.map_err(|e| driver_error(CudaError::new("cuCtxSetCurrent", e.0)))
    }

    pub(super) fn check_alive(&self) -> Result<(), Error> {
        let Some(mut failure) = self.failure() else { return Ok(()) };
        // The watcher looks who is to blame.
        let since = Instant::now();
        while since.elapsed() < VERDICT {
            if let Some(posted) = self.host.node().failure() {
                failure = posted;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(self.host.failed(failure))
    }

    /// A stream of another context has another GPU's memory in mind.
    pub(super) fn check_stream(&self, call: &'static str, stream: CUstream) -> Result<(), Error> {
        self.bind()?;
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is a local; the caller's promise is that the stream exists.
        let code = unsafe { sys::cuStreamGetCtx(stream, &mut context) };
        CudaError::check(code, "cuStreamGetCtx").map_err(driver_error)?;
        if context != self.gpu.context().cu_ctx() {
            let device = self.gpu.context().ordinal();
            let problem = format!("is not of this communicator's context, on CUDA device {device}");
            return Err(argument(call, "stream", problem));
        }
        Ok(())
    }

    /// Looks what a buffer is.
    fn buffer(
        &self,
        call: &RawCall,
        what: &'static str,
        address: u64,
        bytes: usize,
    ) -> Result<Buffer, Error> {
        if bytes == 0 {
            return Ok(Buffer { absent: true, place: None });
        }
        let info = self.pointer(call.collective.name(), what, address)?;
        Ok(Buffer { absent: false, place: self.windows.find(address, bytes as u64, &info) })
    }

    /// What the driver says of an address, which must be memory of this rank's GPU.
    pub(super) fn pointer(
        &self,
        call: &'static str,
        what: &'static str,
        address: u64,
    ) -> Result<PointerInfo, Error> {
        let info = PointerInfo::of(address).map_err(driver_error)?;
        let device = self.gpu.context().ordinal();
        let problem = match info {
            PointerInfo { is_device: true, device: of, .. } if of == device as i32 => None,
            PointerInfo { is_device: true, device: of, .. } => {
                Some(format!("is memory of CUDA device {of}, this rank's is {device}"))
            }
            PointerInfo { is_host: true, .. } => Some("is host memory".to_owned()),
            _ => Some(format!("is not device memory: {address:#x} was freed or never allocated")),
        };
        problem.map_or(Ok(info), |problem| Err(argument(call, what, problem)))
    }

    /// Nanoseconds that a kernel waits.
    pub(super) fn kernel_timeout(&self) -> u64 {
        (self.host.timeout() + LONGER).as_nanos().min(u64::MAX.into()) as u64
    }

    pub(super) fn choose(
        &self,
        query: &Query,
        at_hand: AtHand,
        count: usize,
    ) -> Result<usize, Error> {
        let (canonical, only) = self.host.preferences();
        let chosen = choose::choose(&self.candidates, query, at_hand, count, canonical, only);
        chosen.ok_or_else(|| self.host.no_plan(query))
    }

    /// Tells the peers' hosts what this rank calls, and looks whether one of them calls something else; a digest of what must be
    /// equal on all ranks.
    fn announce(
        &mut self,
        call: &RawCall,
        op: OpKind,
        way: Way,
        [input, output]: [Buffer; 2],
    ) -> Result<u32, Error> {
        self.sequence += 1;
        let node = self.host.node();
        let board = HostBoard::of(call, op, way.plan, (input.address(), output.address()));
        let Needs { input, output, .. } = self.candidates[way.plan].switch;
        let board = HostBoard { same_place: [input, output], ..board };
        let (description, digest) = board.write(self.sequence);
        node.announce(&description);
        let (_, kernel) = &self.kernels[way.kernel];
        kernel.away.iter().for_each(|&peer| node.tell_call(peer, self.sequence));
        // Of two ranks that announce at the same time at least one sees the other's call.
        fence(Ordering::SeqCst);
        match node.mismatch(self.sequence) {
            None => Ok(digest),
            Some(failure) => Err(self.host.failed(node.post(failure))),
        }
    }

    /// Compiles and loads a kernel.
    #[cold]
    fn load(&self, (number, root, dtype, op): Key, stream: CUstream) -> Result<Loaded, Error> {
        let (rank, layout) = (self.rank(), &self.layout);
        let candidate = &self.candidates[number];
        let shape = candidate.algorithm.shape(layout, root);
        let program = candidate.algorithm.program(rank, layout, root);
        let claims = candidate.algorithm.claims();
        let (who, announces) = ((rank, layout), candidate.registered);
        let kernel = emit::emit(&shape, &program, claims, announces, who, dtype, op)?;
        let architecture = self.gpu.architecture();
        let folder = cache::folder();
        let compiled =
            cache::kernel(&kernel.source, &kernel.name, architecture, folder.as_deref())?;
        // Peers that have come wait for this rank: as late as it may be.
        let away = emit::away(&program, rank, layout);
        if let Some(far) = self.far.as_ref().filter(|_| !away.is_empty()) {
            far.reach(&away, self.sequence + 1, stream)?;
        }
        let _relaxed = Relaxed::new();
        let memory = Memory { regions: &self.regions, far: self.far.as_ref() };
        let shape = (&shape, candidate.partial);
        Loaded::new(self.gpu.context(), &kernel, &compiled, shape, &memory, (rank, away))
    }

    fn header(
        &self,
        call: &RawCall,
        op: OpKind,
        [input, output]: [Buffer; 2],
        digest: u32,
    ) -> Call {
        let factor = match call.op {
            ReduceOp::PreMulSum(scalar) if op == OpKind::PreMulSum => scalar.bits(),
            _ => 0,
        };
        let (input, output) = (input.announced(), output.announced());
        Call {
            count: call.count as u64,
            rank: self.rank() as u32,
            world: self.world() as u32,
            half_scratch: self.regions.scratch.len() as u64 / 2,
            half_packets: self.regions.packets.len() as u64 / 2,
            sequence: self.sequence,
            timeout: self.kernel_timeout(),
            mine: Board { input, output, factor, digest: digest.into() },
            state: self.regions.state(),
            control: self.watch.shared.memory.device(),
            boards: self.regions.boards(),
            half_boards: self.regions.half_boards(),
            windows: self.regions.windows(),
            far: self.far.as_ref().map_or(0, Far::address),
            ..Call::default()
        }
    }

    /// # Safety
    /// As [`CudaCommunicator::call`].
    unsafe fn launch(
        &mut self,
        call: &RawCall,
        mut header: Call,
        Way { kernel, cut, .. }: Way,
        [input, output]: [Buffer; 2],
        stream: CUstream,
    ) -> Result<(), Error> {
        header.window = cut.window as u64;
        header.rounds = cut.rounds as u32;
        header.part = cut.part as u64;
        header.slice = cut.slice as u64;
        let buffers = Buffers {
            input: call.input as u64,
            output: call.output as u64,
            input_of_all: input.of_all().unwrap_or(0),
            output_of_all: output.of_all().unwrap_or(0),
            block: (call.count * call.dtype.size()) as u64,
        };
        let (_, kernel) = &mut self.kernels[kernel];
        if let Some(far) = self.far.as_ref().filter(|_| !kernel.away.is_empty()) {
            far.launching();
        }
        // SAFETY: the caller's.
        unsafe { kernel.launch(&header, &buffers, cut.blocks, stream) }.map_err(driver_error)
    }
}

/// The type that a kernel is compiled for: collectives that only copy look at the size alone.
fn kernel_type(collective: Collective, dtype: DataType) -> DataType {
    match (collective.reduces(), dtype.size()) {
        (true, _) => dtype,
        (false, 1) => DataType::U8,
        (false, 2) => DataType::F16,
        (false, 4) => DataType::U32,
        (false, _) => DataType::U64,
    }
}

/// Lets this thread load modules while some stream is captured, for as long as it lives.
pub(super) struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    pub(super) fn new() -> Self {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: `mode` is a local, which gets the thread's mode from before.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Self(mode)
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

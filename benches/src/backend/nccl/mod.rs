//! NVIDIA's NCCL on the same GPUs, streams and buffers.

mod library;

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::warpmesh::bootstrap::Bootstrap;
use ::warpmesh::plan::Collective;
use ::warpmesh::{DataType, ReduceOp, Scalar};
use anyhow::{Context, Result, bail};

use self::library::{Comm, Nccl, UniqueId, version_text};
use super::clock::Clock;
use super::cuda::Device;
use super::{Backend, Buffer, Call, Graph, Kind};
use crate::layout::{Place, Test};
use crate::perf::Control;
use crate::perf::exit::{Exit, Failed};

/// A communicator of NCCL's as a backend.
pub struct NcclBackend {
    nccl: Arc<Nccl>,
    comm: Comm,
    rank: usize,
    world: usize,
    device: Device,
    control: Control,
    timeout: Duration,
    version: c_int,
    /// The smallest major compute capability of all ranks' GPUs.
    capability: u8,
    /// `ncclRedOp_t` of factors, by type and bits.
    factors: HashMap<(DataType, u64), c_int>,
    /// What was registered, by `-R`.
    registered: Vec<(u8, *mut c_void)>,
    /// A float for the barrier on the stream.
    meeting: Buffer,
    failed: bool,
}

/// `ncclScalarHostImmediate`: the factor is read during the call.
const ON_HOST: c_int = 1;
/// `NCCL_WIN_COLL_SYMMETRIC`.
const SYMMETRIC: c_int = 1;

impl NcclBackend {
    /// Makes a communicator with the other ranks. Every rank calls it.
    pub fn connect(control: &Control, device: &Device, timeout: Duration) -> Result<Self> {
        let nccl = Arc::new(Nccl::load()?);
        let version = nccl.version()?;
        let (rank, world) = (control.rank(), control.world());
        let (id, capability) = exchange_id(&nccl, control, device)?;
        let mut comm = std::ptr::null_mut();
        // SAFETY: all ranks call it with rank 0's id, each with its GPU's context on its own thread.
        let made = unsafe { (nccl.init_rank)(&mut comm, world as c_int, id, rank as c_int) };
        let shared = "several ranks on one GPU need NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1";
        nccl.check("ncclCommInitRank", made, None)
            .with_context(|| if device.count() < world { shared } else { "meeting" }.to_owned())?;
        Ok(Self {
            nccl,
            comm,
            rank,
            world,
            device: device.clone(),
            control: control.clone(),
            timeout,
            version,
            capability,
            factors: HashMap::new(),
            registered: vec![],
            meeting: device.plain(16)?,
            failed: false,
        })
    }

    fn check(&mut self, what: &str, result: c_int) -> Result<()> {
        let checked = self.nccl.check(what, result, Some(self.comm));
        self.failed |= checked.is_err();
        checked
    }

    /// The operation, made first if it has a factor.
    fn operation(&mut self, op: ReduceOp) -> Result<c_int> {
        let ReduceOp::PreMulSum(factor) = op else {
            return operation(op).with_context(|| format!("NCCL has no {}", op.name()));
        };
        let key = (factor.dtype(), factor.bits());
        if !self.factors.contains_key(&key) {
            let made = self.make_factor(factor)?;
            self.factors.insert(key, made);
        }
        Ok(self.factors[&key])
    }

    fn make_factor(&mut self, factor: Scalar) -> Result<c_int> {
        let (mut op, mut bits) = (0, factor.bits());
        let dtype = factor.dtype() as c_int;
        let at = (&raw mut bits).cast();
        // SAFETY: both are locals, and the factor is read before the call returns.
        let made = unsafe { (self.nccl.pre_mul_sum)(&mut op, at, dtype, ON_HOST, self.comm) };
        self.check("ncclRedOpCreatePreMulSum", made)?;
        Ok(op)
    }

    /// Runs sends and receives as one.
    fn group(&mut self, parts: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        // SAFETY: ended below, by the same thread.
        let began = unsafe { (self.nccl.group_start)() };
        self.check("ncclGroupStart", began)?;
        let done = parts(self);
        // SAFETY: as many ends as starts.
        let ended = unsafe { (self.nccl.group_end)() };
        done?;
        self.check("ncclGroupEnd", ended)
    }

    /// A block to a peer.
    ///
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn send(&mut self, call: &Call, block: usize, to: usize) -> Result<()> {
        let from = call.input.wrapping_add(block * call.count * call.dtype.size());
        let (dtype, stream) = (call.dtype as c_int, self.device.stream());
        // SAFETY: as promised by the caller.
        let sent = unsafe {
            (self.nccl.send)(from.cast(), call.count, dtype, to as c_int, self.comm, stream)
        };
        self.check("ncclSend", sent)
    }

    /// A block from a peer.
    ///
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn recv(&mut self, call: &Call, block: usize, from: usize) -> Result<()> {
        let to = call.output.wrapping_add(block * call.count * call.dtype.size());
        let (dtype, stream) = (call.dtype as c_int, self.device.stream());
        // SAFETY: as promised by the caller.
        let received = unsafe {
            (self.nccl.recv)(to.cast(), call.count, dtype, from as c_int, self.comm, stream)
        };
        self.check("ncclRecv", received)
    }

    /// All-to-all, gather, scatter and the exchange of `sendrecv`, of sends and receives: what they
    /// are in NCCL before 2.28.
    ///
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn of_parts(&mut self, call: &Call) -> Result<()> {
        let (sends, recvs) = parts(call.test, self.rank, self.world, call.root);
        self.group(|this| {
            for (block, peer) in sends {
                // SAFETY: the same contract.
                unsafe { this.send(call, block, peer) }?;
            }
            for (block, peer) in recvs {
                // SAFETY: the same contract.
                unsafe { this.recv(call, block, peer) }?;
            }
            Ok(())
        })
    }

    /// # Safety
    /// As [`Backend::run`].
    unsafe fn collective(&mut self, collective: Collective, call: &Call) -> Result<()> {
        use Collective::{
            AllGather, AllReduce, AllToAll, Broadcast, Gather, Reduce, ReduceScatter, Scatter,
        };
        let op = if collective.reduces() { self.operation(call.op)? } else { 0 };
        let (from, to) = (call.input.cast(), call.output.cast());
        let (count, dtype, root) = (call.count, call.dtype as c_int, call.root as c_int);
        let (comm, stream, nccl) = (self.comm, self.device.stream(), self.nccl.clone());
        // SAFETY: as promised by the caller; NCCL ignores a buffer that a rank has no part in.
        let result = unsafe {
            match (collective, nccl.all_to_all, nccl.gather, nccl.scatter) {
                (AllReduce, ..) => (nccl.all_reduce)(from, to, count, dtype, op, comm, stream),
                (Reduce, ..) => (nccl.reduce)(from, to, count, dtype, op, root, comm, stream),
                (ReduceScatter, ..) => {
                    (nccl.reduce_scatter)(from, to, count, dtype, op, comm, stream)
                }
                (AllGather, ..) => (nccl.all_gather)(from, to, count, dtype, comm, stream),
                (Broadcast, ..) => (nccl.broadcast)(from, to, count, dtype, root, comm, stream),
                (AllToAll, Some(all_to_all), ..) => {
                    all_to_all(from, to, count, dtype, comm, stream)
                }
                (Gather, _, Some(gather), _) => gather(from, to, count, dtype, root, comm, stream),
                (Scatter, .., Some(scatter)) => scatter(from, to, count, dtype, root, comm, stream),
                (AllToAll | Gather | Scatter, ..) => return self.of_parts(call),
                (other, ..) => bail!("NCCL has no {other}"),
            }
        };
        self.check(collective.name(), result)
    }

    /// Puts an all-reduce on the stream, which ends on no rank before it has begun on all.
    fn meet(&mut self) -> Result<()> {
        let at = self.meeting.as_ptr();
        let call = Call {
            test: Test::Collective(Collective::AllReduce),
            dtype: DataType::F32,
            op: ReduceOp::Sum,
            root: 0,
            count: 1,
            input: at,
            output: at.wrapping_add(8),
        };
        // SAFETY: this backend's memory, good for an element at each address.
        unsafe { self.collective(Collective::AllReduce, &call) }
    }

    fn async_error(&mut self) -> Result<()> {
        let mut result = 0;
        // SAFETY: the pointer is to a local.
        let asked = unsafe { (self.nccl.async_error)(self.comm, &mut result) };
        self.check("ncclCommGetAsyncError", asked)?;
        self.check("NCCL", result)
    }
}

/// The version of the NCCL that is found.
pub fn version() -> Result<String> {
    Ok(version_text(Nccl::load()?.version()?))
}

/// Rank 0's id, and the smallest major compute capability, over what the ranks have already.
fn exchange_id(nccl: &Nccl, control: &Control, device: &Device) -> Result<(UniqueId, u8)> {
    let mut id = UniqueId([0; 128]);
    if control.rank() == 0 {
        // SAFETY: the pointer is to a local.
        let made = unsafe { (nccl.unique_id)(&mut id) };
        nccl.check("ncclGetUniqueId", made, None)?;
    }
    let mine = [&id.0[..], &[device.capability()?]].concat();
    let all = control.clone().all_gather(&mine).context("exchanging NCCL's id")?;
    let least = all.iter().filter_map(|bytes| bytes.last()).min();
    let first = all.first().and_then(|bytes| bytes.first_chunk());
    let (id, least) = first.zip(least).context("rank 0 sent no id")?;
    Ok((UniqueId(*id), *least))
}

/// Which block goes to which peer, and which comes from which.
type Parts = Vec<(usize, usize)>;

fn parts(test: Test, rank: usize, world: usize, root: usize) -> (Parts, Parts) {
    let all = || (0..world).map(|peer| (peer, peer)).collect();
    let at_root = |parts: Parts| if rank == root { parts } else { vec![] };
    match test {
        Test::SendRecv => (vec![(0, (rank + 1) % world)], vec![(0, (rank + world - 1) % world)]),
        Test::Collective(Collective::Gather) => (vec![(0, root)], at_root(all())),
        Test::Collective(Collective::Scatter) => (at_root(all()), vec![(0, root)]),
        Test::Collective(_) => (all(), all()),
    }
}

/// `ncclRedOp_t`, of those without a factor.
fn operation(op: ReduceOp) -> Option<c_int> {
    match op {
        ReduceOp::Sum => Some(0),
        ReduceOp::Prod => Some(1),
        ReduceOp::Max => Some(2),
        ReduceOp::Min => Some(3),
        ReduceOp::Avg => Some(4),
        _ => None,
    }
}

/// What decides which calls NCCL can do.
#[derive(Clone, Copy)]
struct Limits {
    world: usize,
    /// As `ncclGetVersion` gives it.
    version: c_int,
    /// The smallest major compute capability.
    capability: u8,
}

impl Limits {
    /// Why NCCL would refuse, or its result would be another, if so.
    fn refusal(self, test: Test, dtype: DataType, op: ReduceOp, place: Place) -> Option<String> {
        if place == Place::In && test == Test::Collective(Collective::AllToAll) {
            return Some("it has no all_to_all in place".to_owned());
        }
        // Refused in the middle of a run otherwise. That copies need sm_90, too, depends on NCCL's version.
        let eight = matches!(dtype, DataType::F8E4M3 | DataType::F8E5M2);
        if eight && (self.version < FLOAT8 || self.capability < 9) {
            return Some("it has 8-bit floats since 2.24, and for GPUs since sm_90".to_owned());
        }
        let averages = test.reduces() && matches!(op, ReduceOp::Avg);
        (averages && self.rounds_averages(dtype)).then(|| {
            format!("its averages of {} ranks in {dtype} are rounded more than once", self.world)
        })
    }

    /// It multiplies by 1/n before it adds, and may add in the type itself.
    fn rounds_averages(self, dtype: DataType) -> bool {
        match dtype {
            DataType::F16 | DataType::Bf16 | DataType::F8E4M3 | DataType::F8E5M2 => self.world > 2,
            DataType::F32 | DataType::F64 => !self.world.is_power_of_two(),
            _ => false,
        }
    }
}

/// The version that brought 8-bit floats.
const FLOAT8: c_int = 22_400;

impl Backend for NcclBackend {
    fn kind(&self) -> Kind {
        Kind::Nccl
    }

    fn version(&self) -> String {
        let version = version_text(self.version);
        let plain = if self.nccl.register.is_none() { " (memory is not registered)" } else { "" };
        format!("NCCL {version}{plain}")
    }

    fn refuses(&self, test: Test, dtype: DataType, op: ReduceOp, place: Place) -> Option<String> {
        let Self { world, version, capability, .. } = *self;
        Limits { world, version, capability }.refusal(test, dtype, op, place)
    }

    fn alloc(&mut self, bytes: usize) -> Result<Option<Buffer>> {
        let (Some(allocate), Some(free)) = (self.nccl.allocate, self.nccl.free) else {
            return Ok(None);
        };
        let mut address = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let result = unsafe { allocate(&mut address, bytes) };
        self.check("ncclMemAlloc", result)?;
        let memory = Allocated { _nccl: self.nccl.clone(), address, free };
        // SAFETY: just allocated on this GPU, and freed with `memory`.
        Ok(Some(unsafe { self.device.owned(address as u64, bytes, memory) }?))
    }

    fn register(&mut self, buffer: &Buffer, how: u8) -> Result<()> {
        let mut handle = std::ptr::null_mut();
        let (at, len) = (buffer.as_ptr().cast(), buffer.len());
        let (old, new) = (self.nccl.register, self.nccl.register_window);
        // SAFETY: memory of this rank's GPU, which outlives this communicator.
        let (what, result) = unsafe {
            match (how, old, new) {
                // -R 1 is the default, also for versions before 2.19.
                (0, ..) | (1, None, _) => return Ok(()),
                (1, Some(register), _) => {
                    ("ncclCommRegister", register(self.comm, at, len, &mut handle))
                }
                (2, _, Some(register)) => {
                    ("ncclCommWindowRegister", register(self.comm, at, len, &mut handle, SYMMETRIC))
                }
                _ => {
                    let text = format!(
                        "-R {how}: {} has no symmetric windows, which came with NCCL 2.27; take -R 1",
                        self.version()
                    );
                    return Err(Failed::because(Exit::NotImplemented, text));
                }
            }
        };
        self.check(what, result)?;
        self.registered.push((how, handle));
        Ok(())
    }

    #[inline]
    unsafe fn run(&mut self, call: &Call) -> Result<()> {
        match call.test {
            // SAFETY: the same contract.
            Test::SendRecv => unsafe { self.of_parts(call) },
            // SAFETY: the same contract.
            Test::Collective(collective) => unsafe { self.collective(collective, call) },
        }
    }

    fn finish(&mut self) -> Result<()> {
        let since = Instant::now();
        while !self.device.is_idle()? {
            if since.elapsed() > Duration::from_micros(50) {
                self.async_error()?;
                std::thread::yield_now();
            }
            if since.elapsed() > self.timeout {
                self.failed = true;
                let text = format!("NCCL is not done after {} s", self.timeout.as_secs_f64());
                return Err(Failed::because(Exit::Timeout, text));
            }
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        self.finish()?;
        self.control.gather(&[])?;
        self.meet()
    }

    fn clock(&self, marks: usize) -> Result<Box<dyn Clock>> {
        self.device.clock(marks)
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.device.begin_capture()
    }

    fn end_capture(&mut self) -> Result<Box<dyn Graph>> {
        self.device.end_capture()
    }

    fn explain(&mut self, _: &Call, _: bool) -> Option<String> {
        None
    }

    fn held_bytes(&self) -> Option<usize> {
        None
    }
}

impl Drop for NcclBackend {
    fn drop(&mut self) {
        if self.failed {
            // Ends kernels that wait for ranks that will not come.
            // SAFETY: the communicator is not used after this.
            let _ = unsafe { (self.nccl.abort)(self.comm) };
            return;
        }
        for (how, handle) in self.registered.drain(..) {
            let deregister =
                if how == 1 { self.nccl.deregister } else { self.nccl.deregister_window };
            // SAFETY: registered with this communicator, once; nothing is under way.
            let _ = deregister.map(|deregister| unsafe { deregister(self.comm, handle) });
        }
        for op in self.factors.values() {
            // SAFETY: made with this communicator; no call uses it any more.
            let _ = unsafe { (self.nccl.drop_op)(*op, self.comm) };
        }
        // SAFETY: all ranks do this, and do not use the communicator after it.
        let _ = unsafe { (self.nccl.destroy)(self.comm) };
    }
}

/// Memory that NCCL allocated.
struct Allocated {
    _nccl: Arc<Nccl>,
    address: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void) -> c_int,
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: allocated by NCCL, freed once, and the library is still loaded.
        let _ = unsafe { (self.free)(self.address) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nccl.h: ncclInt8 = 0, ncclUint8, ncclInt32, ncclUint32, ncclInt64, ncclUint64, ncclFloat16,
    /// ncclFloat32, ncclFloat64, ncclBfloat16, ncclFloat8e4m3, ncclFloat8e5m2 = 11.
    #[test]
    fn types_have_nccls_numbers() {
        use DataType::{Bf16, F8E4M3, F8E5M2, F16, F32, F64, I8, I32, I64, U8, U32, U64};
        let in_order = [I8, U8, I32, U32, I64, U64, F16, F32, F64, Bf16, F8E4M3, F8E5M2];
        for (number, dtype) in in_order.into_iter().enumerate() {
            assert_eq!(dtype as usize, number, "{dtype}");
        }
        assert_eq!(in_order.len(), DataType::ALL.len());
    }

    /// nccl.h: ncclSum = 0, ncclProd, ncclMax, ncclMin, ncclAvg = 4.
    #[test]
    fn operations_have_nccls_numbers() {
        use ReduceOp::{Avg, Max, Min, Prod, Sum};
        let in_order = [Sum, Prod, Max, Min, Avg];
        assert_eq!(in_order.map(operation), [0, 1, 2, 3, 4].map(Some));
        assert_eq!(operation(ReduceOp::pre_mul_sum(2_f32)), None);
    }

    #[test]
    fn what_one_rank_sends_another_receives() {
        for test in [Test::SendRecv].into_iter().chain(
            [Collective::AllToAll, Collective::Gather, Collective::Scatter].map(Test::Collective),
        ) {
            for world in 1..5 {
                let of = |rank| parts(test, rank, world, world - 1);
                for rank in 0..world {
                    for (_, peer) in of(rank).0 {
                        let back = of(peer).1.iter().filter(|(_, from)| *from == rank).count();
                        let there = of(rank).0.iter().filter(|(_, to)| *to == peer).count();
                        assert_eq!(there, back, "{test}: {rank} to {peer} of {world}");
                    }
                }
            }
        }
        let (sends, recvs) = parts(Test::Collective(Collective::Scatter), 2, 4, 2);
        assert_eq!((sends.len(), recvs), (4, vec![(0, 2)]));
    }

    const ALL_REDUCE: Test = Test::Collective(Collective::AllReduce);

    #[test]
    fn averages_that_nccl_rounds_twice_are_left_out() {
        let of = |dtype, world| {
            let limits = Limits { world, version: 23_203, capability: 9 };
            limits.refusal(ALL_REDUCE, dtype, ReduceOp::Avg, Place::Out).is_some()
        };
        assert!(of(DataType::F32, 3) && !of(DataType::F32, 8) && !of(DataType::I32, 3));
        // Half of two numbers is added once; of four, what is added last was rounded before.
        assert!(of(DataType::Bf16, 4) && !of(DataType::F16, 2));
        let all_to_all = Test::Collective(Collective::AllToAll);
        let limits = Limits { world: 4, version: 23_203, capability: 9 };
        assert!(limits.refusal(all_to_all, DataType::F32, ReduceOp::Sum, Place::In).is_some());
    }

    #[test]
    fn eight_bit_floats_are_left_out_where_nccl_refuses_them() {
        let of = |version, capability| {
            let limits = Limits { world: 2, version, capability };
            limits.refusal(ALL_REDUCE, DataType::F8E4M3, ReduceOp::Sum, Place::Out).is_some()
        };
        assert_eq!([of(22_304, 9), of(22_403, 8), of(22_403, 9)], [true, true, false]);
    }
}

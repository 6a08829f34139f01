//! vgpu: plans that go through a switch, on GPUs with multicast memory: `vgpu run --devices 8 -- PROGRAM`.
//!
//! Inputs are small integers whose results are exact in any order, so there is one right answer, bit by bit, on every rank.
//! Where no driver is found, or too few devices, a test says that it was not run; with `WARPMESH_NEEDS_GPU` it fails.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cudarc::driver::sys::{self, CUstream};
use cudarc::driver::{CudaContext, DevicePtr};
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use warpmesh::plan::Collective::{self, AllGather, AllReduce, ReduceScatter};
use warpmesh::primitives::failure::FailureKind;
use warpmesh::primitives::gpu::Gpu;
use warpmesh::{Communicator, CudaCommunicator, DataType, Error, RawCall, ReduceOp};

/// The plans, and whether their buffers have to be symmetric.
const PLANS: [(Collective, &str, bool); 8] = [
    (AllReduce, "one_shot_multicast", false),
    (AllReduce, "nvls", true),
    (AllReduce, "nvls_staged", false),
    (AllGather, "packet_multicast", false),
    (AllGather, "nvls", true),
    (AllGather, "nvls_staged", false),
    (ReduceScatter, "nvls", true),
    (ReduceScatter, "nvls_staged", false),
];

const OPS: [ReduceOp; 5] =
    [ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Min, ReduceOp::Max, ReduceOp::Prod];

/// Whether the switch has a reduction. What it does not have goes by another plan.
fn switch_reduces(dtype: DataType, op: ReduceOp) -> bool {
    use DataType::*;
    let integer = [I32, U32, I64, U64].contains(&dtype);
    match op {
        ReduceOp::Sum => integer || [F16, Bf16, F32, F64].contains(&dtype),
        ReduceOp::Avg => integer || [F32, F64].contains(&dtype),
        ReduceOp::Min | ReduceOp::Max => integer,
        _ => false,
    }
}

/// One test at a time: they share the devices. None, loudly, if there are too few of them.
fn devices(world: usize) -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let there = match Gpu::driver_is_there() {
        true => CudaContext::device_count().unwrap_or(0) as usize,
        false => 0,
    };
    if there >= world {
        return Some(one);
    }
    println!("\n*** NOT RUN: {world} GPUs are needed, there are {there} ***\n");
    assert!(std::env::var_os("WARPMESH_NEEDS_GPU").is_none(), "a test that has to run could not");
    None
}

/// A rank of a test.
struct Rank {
    comm: CudaCommunicator,
    stream: std::sync::Arc<cudarc::driver::CudaStream>,
    memory: Vec<Memory>,
}

/// What keeps a test's buffers alive.
type Memory = Box<dyn std::any::Any>;

/// Runs a body on each of `world` ranks, rank r on device `device(r)`.
fn on_devices(
    world: usize,
    device: impl Fn(usize) -> usize + Sync,
    plan: Option<&str>,
    body: impl Fn(&mut Rank) + Sync,
) {
    let builder = Communicator::builder().timeout(Duration::from_secs(20));
    let builder = plan.iter().fold(builder, |builder, plan| builder.algorithm(plan));
    let all = builder.local(world).unwrap();
    let run = |comm: Communicator| {
        let context = CudaContext::new(device(comm.rank())).unwrap();
        let stream = context.new_stream().unwrap();
        let comm = comm.on_gpu(context).unwrap();
        body(&mut Rank { comm, stream, memory: Vec::new() });
    };
    let run = &run;
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.into_iter().map(|c| scope.spawn(move || run(c))).collect();
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        if let Some(panic) = ended.into_iter().find_map(Result::err) {
            std::panic::resume_unwind(panic);
        }
    });
}

fn on_ranks(world: usize, plan: Option<&str>, body: impl Fn(&mut Rank) + Sync) {
    on_devices(world, |rank| rank, plan, body);
}

impl Rank {
    fn stream(&self) -> CUstream {
        self.stream.cu_stream()
    }

    /// Room for a buffer; symmetric or not at all known to the peers.
    fn room(&mut self, symmetric: bool, bytes: usize) -> u64 {
        if symmetric {
            let memory = self.comm.alloc_symmetric_bytes(bytes).unwrap();
            let address = memory.address();
            self.memory.push(Box::new(memory));
            return address;
        }
        let memory = self.stream.alloc_zeros::<u8>(bytes).unwrap();
        // What is uploaded is not on this stream.
        self.stream.synchronize().unwrap();
        let address = memory.device_ptr(&self.stream).0;
        self.memory.push(Box::new(memory));
        address
    }

    fn registered(&mut self, bytes: usize) -> u64 {
        let memory = self.comm.alloc_bytes(bytes).unwrap();
        let address = memory.address();
        self.memory.push(Box::new(memory));
        address
    }

    fn call(&mut self, call: &RawCall) -> Result<(), Error> {
        let stream = self.stream();
        // SAFETY: the tests' buffers are as long as their calls say and live until the test's end; the stream is of the context.
        unsafe {
            self.comm.call(call, stream)?;
            self.comm.synchronize(stream)
        }
    }
}

fn upload(to: u64, bytes: &[u8]) {
    // SAFETY: the tests upload into rooms of this length at least.
    unsafe { sys::cuMemcpyHtoD_v2(to, bytes.as_ptr().cast::<c_void>(), bytes.len()) }
        .result()
        .unwrap();
}

fn download(from: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; len];
    // SAFETY: as above.
    unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast::<c_void>(), from, len) }
        .result()
        .unwrap();
    bytes
}

/// A number as an element.
fn element(dtype: DataType, x: i64) -> Vec<u8> {
    match dtype {
        DataType::I8 | DataType::U8 => (x as u8).to_le_bytes().to_vec(),
        DataType::I32 | DataType::U32 => (x as u32).to_le_bytes().to_vec(),
        DataType::I64 | DataType::U64 => x.to_le_bytes().to_vec(),
        DataType::F32 => (x as f32).to_le_bytes().to_vec(),
        DataType::F64 => (x as f64).to_le_bytes().to_vec(),
        DataType::F16 => f16::from_f64(x as f64).to_le_bytes().to_vec(),
        DataType::Bf16 => bf16::from_f64(x as f64).to_le_bytes().to_vec(),
        DataType::F8E4M3 => vec![F8E4M3::from_f64(x as f64).to_bits()],
        DataType::F8E5M2 => vec![F8E5M2::from_f64(x as f64).to_bits()],
        other => panic!("{other} is a new type"),
    }
}

/// A rank's contribution: results of up to eight of them are exact in every type, in any order.
fn input(op: ReduceOp, rank: usize, index: usize, world: usize) -> i64 {
    let hash = (rank * 31 + index * 7 + index / 3) as i64;
    match op {
        ReduceOp::Prod => 1 + i64::from(index % world == rank),
        // One rank contributes the world, once, twice or four times.
        ReduceOp::Avg => (1 << (index % 3)) * i64::from(index % world == rank) * world as i64,
        ReduceOp::Min | ReduceOp::Max => hash % 8,
        _ => hash % 2,
    }
}

fn reduced(op: ReduceOp, index: usize, world: usize) -> i64 {
    let values = (0..world).map(|rank| input(op, rank, index, world));
    match op {
        ReduceOp::Prod => values.product(),
        ReduceOp::Min => values.min().unwrap(),
        ReduceOp::Max => values.max().unwrap(),
        ReduceOp::Avg => values.sum::<i64>() / world as i64,
        _ => values.sum(),
    }
}

/// A call of a test.
#[derive(Clone, Copy, Debug)]
struct Case {
    collective: Collective,
    plan: &'static str,
    dtype: DataType,
    op: ReduceOp,
    count: usize,
    /// Elements by which input and output are away from an aligned address.
    offsets: (usize, usize),
    in_place: bool,
}

impl Case {
    fn new((collective, plan, _): (Collective, &'static str, bool)) -> Self {
        let (dtype, op) = (DataType::F16, ReduceOp::Sum);
        let (count, offsets, in_place) = (1, (0, 0), false);
        Self { collective, plan, dtype, op, count, offsets, in_place }
    }

    /// Blocks of the input and of the output.
    fn blocks(&self, world: usize) -> (usize, usize) {
        self.collective.blocks(world, 0, 0)
    }

    /// Elements of a rank's input, numbered through all of the collective's.
    fn inputs(&self, rank: usize, world: usize) -> Vec<u8> {
        let elements = 0..self.count * self.blocks(world).0;
        elements.flat_map(|k| element(self.dtype, input(self.op, rank, k, world))).collect()
    }

    fn outputs(&self, rank: usize, world: usize) -> Vec<u8> {
        let of = |k: usize| match self.collective {
            AllReduce => reduced(self.op, k, world),
            ReduceScatter => reduced(self.op, rank * self.count + k, world),
            _ => input(self.op, k / self.count, k % self.count, world),
        };
        let elements = 0..self.count * self.blocks(world).1;
        elements.flat_map(|k| element(self.dtype, of(k))).collect()
    }

    /// Runs it on this rank, and checks what it gave, and that nothing else was written.
    fn run(&self, rank: &mut Rank, (from, to): (u64, u64)) {
        const MARGIN: usize = 32;
        let (me, world) = (rank.comm.rank(), rank.comm.world());
        let (inputs, outputs) = (self.inputs(me, world), self.outputs(me, world));
        let size = self.dtype.size();
        // Where both begin in their rooms.
        let first = MARGIN + self.offsets.1 * size;
        let (mut at, mut input) = (first, from + (self.offsets.0 * size) as u64);
        let mut room = vec![0xA5; first + inputs.len().max(outputs.len()) + MARGIN];
        if self.in_place {
            let block = me * self.count * size;
            let start = first + if self.collective == AllGather { block } else { 0 };
            at += if self.collective == ReduceScatter { block } else { 0 };
            input = to + start as u64;
            room[start..][..inputs.len()].copy_from_slice(&inputs);
        }
        upload(to, &room);
        upload(input, &inputs);
        let call = self.call((input, to + at as u64));
        assert_eq!(rank.comm.plan_of(&call).unwrap(), self.plan, "{self:?}");
        rank.call(&call).unwrap_or_else(|error| panic!("{self:?} of {world}: {error}"));
        room[at..][..outputs.len()].copy_from_slice(&outputs);
        let got = download(to, room.len());
        if let Some(wrong) = (0..room.len()).find(|n| got[*n] != room[*n]) {
            let (is, must) = (got[wrong], room[wrong]);
            let element = (wrong as isize - at as isize).div_euclid(size as isize);
            panic!("{self:?} of {world}: rank {me} has {is:x} in {element}, not {must:x}");
        }
    }

    fn call(&self, (input, output): (u64, u64)) -> RawCall {
        let Self { collective, dtype, op, count, .. } = *self;
        let (input, output) = (input as *const u8, output as *mut u8);
        RawCall { collective, dtype, op, root: 0, count, input, output }
    }
}

/// Runs cases of one plan over a number of ranks.
fn run_all(world: usize, plan: (Collective, &'static str, bool), cases: &[Case]) {
    let bytes = |case: &Case| {
        let blocks = case.blocks(world);
        (case.count * blocks.0.max(blocks.1) + case.offsets.0.max(case.offsets.1))
            * case.dtype.size()
    };
    let room = cases.iter().map(bytes).max().unwrap_or(0) + 64;
    on_ranks(world, Some(plan.1), |rank| {
        let rooms = (rank.room(plan.2, room), rank.room(plan.2, room));
        cases.iter().for_each(|case| case.run(rank, rooms));
    });
}

#[test]
fn every_type_and_operator() {
    let Some(_one) = devices(2) else { return };
    for plan in PLANS {
        let mut cases = Vec::new();
        for (dtype, op) in DataType::ALL.into_iter().flat_map(|t| OPS.map(|op| (t, op))) {
            let by_switch = plan.1 != "one_shot_multicast" && plan.0.reduces();
            let copies = !plan.0.reduces() && op != ReduceOp::Sum;
            if copies || by_switch && !switch_reduces(dtype, op) {
                continue;
            }
            for count in [1, 7, 1000] {
                cases.push(Case { dtype, op, count, ..Case::new(plan) });
            }
        }
        run_all(2, plan, &cases);
    }
}

#[test]
fn every_number_of_ranks_and_count() {
    for world in [2, 3, 4, 8] {
        let Some(_one) = devices(world) else { return };
        for plan in PLANS {
            let new = |count| Case { count, ..Case::new(plan) };
            let mut cases = [1, 7, 64, 65, 1023, 1024, 1025, 20_011].map(new).to_vec();
            // In place, and at addresses that are no multiple of what the switch takes.
            cases.extend([
                Case { in_place: true, count: 1025, ..Case::new(plan) },
                Case { offsets: (1, 1), count: 1025, ..Case::new(plan) },
                Case { offsets: (8, 1), count: 333, ..Case::new(plan) },
                Case { offsets: (3, 0), count: 333, ..Case::new(plan) },
                Case { offsets: (3, 3), in_place: true, count: 77, ..Case::new(plan) },
            ]);
            run_all(world, plan, &cases);
        }
    }
}

#[test]
fn several_rounds() {
    let Some(_one) = devices(2) else { return };
    for plan in PLANS {
        // Just over what scratch memory takes at once, and in rounds of packets. (Symmetric memory has no rounds.)
        let count = match plan {
            (AllReduce, "nvls_staged", _) => (8 << 20) / 8 + 77,
            (_, "nvls_staged", _) => (4 << 20) / 8 + 77,
            _ => (2 << 20) / 8 + 77,
        };
        let case = Case { dtype: DataType::F64, count, ..Case::new(plan) };
        run_all(2, plan, &[case, Case { count: 1, ..case }, case]);
    }
}

/// A rank sends its input as packets, and then overwrites it with the result: no thread may do so while another still sends.
#[test]
fn packets_in_place() {
    for world in [2, 4] {
        let Some(_one) = devices(world) else { return };
        for plan in [(AllReduce, "one_shot_packet", false), PLANS[3], PLANS[0]] {
            let case = Case { in_place: true, ..Case::new(plan) };
            run_all(world, plan, &[1025, 4001, 1025].map(|count| Case { count, ..case }));
        }
    }
}

#[test]
fn small_calls_of_changing_plans() {
    let Some(_one) = devices(3) else { return };
    for plan in PLANS {
        let cases = [1, 7, 70, 200, 9, 131].map(|count| Case { count, ..Case::new(plan) });
        run_all(3, plan, &cases);
    }
}

/// Sums whose bits depend on the order: every rank has those that one rank, or the switch for it, made.
#[test]
fn all_ranks_have_the_same_bits() {
    let Some(_one) = devices(4) else { return };
    for plan in PLANS.into_iter().filter(|plan| plan.0 == AllReduce) {
        for (dtype, op) in [(DataType::F32, ReduceOp::Sum), (DataType::Bf16, ReduceOp::Sum)] {
            let count = 3001;
            let outputs = Mutex::new(vec![Vec::new(); 4]);
            on_ranks(4, Some(plan.1), |rank| {
                let me = rank.comm.rank();
                let bytes = count * dtype.size();
                let (from, to) = (rank.room(plan.2, bytes), rank.room(plan.2, bytes));
                // Numbers of all magnitudes, without Inf and NaN.
                let hash = |k: usize| (k as u32 + 77 * me as u32).wrapping_mul(0x9E37_79B1);
                let number = |k: usize| f32::from_bits(hash(k) & 0x8FFF_FFFF | 0x3800_0000);
                let contents: Vec<u8> = match dtype {
                    DataType::F32 => (0..count).flat_map(|k| number(k).to_le_bytes()).collect(),
                    _ => (0..count).flat_map(|k| bf16::from_f32(number(k)).to_le_bytes()).collect(),
                };
                upload(from, &contents);
                let call = Case { dtype, op, count, ..Case::new(plan) }.call((from, to));
                rank.call(&call).unwrap();
                outputs.lock().unwrap()[me] = download(to, bytes);
            });
            let outputs = outputs.into_inner().unwrap();
            assert!(outputs[1..].iter().all(|other| *other == outputs[0]), "{plan:?} {dtype}");
        }
    }
}

#[test]
fn what_the_switch_cannot_do_goes_by_another_plan() {
    let Some(_one) = devices(2) else { return };
    on_ranks(2, Some("nvls"), |rank| {
        let (a, b) = (rank.room(true, 4096), rank.room(true, 4096));
        let (c, d) = (rank.registered(4096), rank.room(false, 4096));
        let call = |buffers, dtype, op| {
            Case { dtype, op, count: 64, ..Case::new((AllReduce, "nvls", true)) }.call(buffers)
        };
        let takes = |buffers, dtype, op| rank.comm.plan_of(&call(buffers, dtype, op)).unwrap();
        for (dtype, op) in DataType::ALL.into_iter().flat_map(|t| OPS.map(|op| (t, op))) {
            let nvls = takes((a, b), dtype, op) == "nvls";
            assert_eq!(nvls, switch_reduces(dtype, op), "{dtype} {op:?}");
        }
        // Memory that is not symmetric.
        for buffers in [(a, c), (c, b), (a, d), (d, b), (c, c), (d, d)] {
            assert_ne!(takes(buffers, DataType::F32, ReduceOp::Sum), "nvls");
        }
    });
}

#[test]
fn ranks_that_share_a_gpu_have_no_multicast_and_need_none() {
    let Some(_one) = devices(2) else { return };
    on_devices(
        3,
        |rank| rank % 2,
        None,
        |rank| {
            let rooms = (rank.room(true, 8192), rank.room(true, 8192));
            let case = Case { count: 1000, ..Case::new((AllReduce, "", true)) };
            let plan = rank.comm.plan_of(&case.call(rooms)).unwrap();
            assert!(!PLANS.iter().any(|(_, name, _)| *name == plan), "{plan}");
            Case { plan, ..case }.run(rank, rooms);
        },
    );
}

#[test]
fn a_broken_promise_is_an_error_that_names_the_rank() {
    let Some(_one) = devices(3) else { return };
    on_ranks(3, Some("nvls"), |rank| {
        let (from, to) = (rank.room(true, 8192), rank.room(true, 8192));
        let me = rank.comm.rank();
        let case = Case { count: 1000, ..Case::new((AllReduce, "nvls", true)) };
        let call = case.call((from, to + 16 * u64::from(me == 2)));
        assert_eq!(rank.comm.plan_of(&call).unwrap(), "nvls");
        let Err(Error::Failed { failure, .. }) = rank.call(&call) else {
            panic!("rank {me} has noticed nothing");
        };
        assert_eq!(failure.kind, FailureKind::Mismatch, "{failure}");
        let named = [Some(failure.by), failure.culprit];
        assert!(named.contains(&Some(2)), "{failure}");
        // No wrong sum instead.
        assert!(download(to, 4096).iter().all(|byte| *byte == 0));
    });
}

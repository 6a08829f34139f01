//! Ranks on GPUs, and cases that they run.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use warpmesh::DataType;
use warpmesh::{
    Builder, Communicator, CudaBytes, CudaCommunicator, Element, Error, RawCall, ReduceOp,
    cuda_kernel_on,
};
use warpmesh_kernels::cache;
use warpmesh_primitives::gpu::Gpu;

use super::cases::{Case, Number, alias, by_type, reduce_op, result, value};

/// The number of GPUs. `None`: there is no driver, which is said loudly, and is a failure if WARPMESH_NEEDS_GPU is set.
pub fn count() -> Option<usize> {
    if Gpu::driver_is_there() {
        return Some(CudaContext::device_count().unwrap() as usize).filter(|count| *count > 0);
    }
    eprintln!("\n*** NOT RUN: no CUDA driver; `vgpu run -- cargo test` has a virtual one ***\n");
    assert!(std::env::var_os("WARPMESH_NEEDS_GPU").is_none(), "a GPU is needed");
    None
}

/// A rank of a world of threads, with a stream.
pub struct Rank {
    pub comm: CudaCommunicator,
    pub stream: Arc<CudaStream>,
}

/// Runs `work` as every rank of a world of threads, rank r on GPU r (or as many as there are), and returns what each returned.
pub fn ranks_with<R: Send>(
    builder: Builder,
    world: usize,
    work: impl Fn(Rank) -> R + Sync,
) -> Vec<R> {
    super::ranks_with(builder, world, |comm| work(rank(comm)))
}

/// The same on ranks of these hosts.
pub fn ranks_on<R: Send>(
    builder: &Builder,
    hosts: &[usize],
    work: impl Fn(Rank) -> R + Sync,
) -> Vec<R> {
    super::ranks_on_hosts(builder, hosts, |comm| work(rank(comm)))
}

/// A rank on GPU r, or as many as there are, with a stream.
pub fn rank(comm: Communicator) -> Rank {
    let device = comm.rank() % count().unwrap();
    rank_on(comm, device)
}

/// A rank on a GPU, with a stream.
pub fn rank_on(comm: Communicator, device: usize) -> Rank {
    let context = CudaContext::new(device).unwrap();
    let stream = context.new_stream().unwrap();
    Rank { comm: comm.on_gpu(context).unwrap(), stream }
}

impl Rank {
    pub fn upload<T: Element>(&self, to: u64, data: &[T]) {
        let bytes = size_of_val(data);
        // SAFETY: the tests' memory is as long as what is copied there.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, data.as_ptr().cast(), bytes, self.stream.cu_stream())
        };
        code.result().unwrap();
        self.stream.synchronize().unwrap();
    }

    pub fn download<T: Element>(&self, from: u64, count: usize) -> Vec<T> {
        let mut data = vec![T::zeroed(); count];
        let bytes = size_of_val(&data[..]);
        // SAFETY: as above.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                from,
                bytes,
                self.stream.cu_stream(),
            )
        };
        code.result().unwrap();
        self.stream.synchronize().unwrap();
        data
    }

    pub fn call(&mut self, call: &RawCall) -> Result<(), Error> {
        // SAFETY: the tests' buffers live until the stream has passed the call.
        unsafe { self.comm.call(call, self.stream.cu_stream()) }
    }

    pub fn synchronize(&mut self) -> Result<(), Error> {
        // SAFETY: the stream is of the communicator's context.
        unsafe { self.comm.synchronize(self.stream.cu_stream()) }
    }
}

/// Memory of a rank's GPU.
pub enum Memory {
    Registered(CudaBytes),
    Plain(CudaSlice<u8>, u64),
}

impl Memory {
    pub fn new(rank: &mut Rank, bytes: usize, registered: bool) -> Memory {
        if registered {
            return Memory::Registered(rank.comm.alloc_bytes(bytes).unwrap());
        }
        let slice = rank.stream.alloc_zeros::<u8>(bytes).unwrap();
        let address = slice.device_ptr(&rank.stream).0;
        Memory::Plain(slice, address)
    }

    pub fn of_case(rank: &mut Rank, bytes: usize, case: Case) -> Memory {
        match case.registered && case.symmetric {
            true => Memory::symmetric(rank, bytes),
            false => Memory::new(rank, bytes, case.registered),
        }
    }

    pub fn symmetric(rank: &mut Rank, bytes: usize) -> Memory {
        Memory::Registered(rank.comm.alloc_symmetric_bytes(bytes).unwrap())
    }

    pub fn address(&self) -> u64 {
        match self {
            Memory::Registered(bytes) => bytes.address(),
            Memory::Plain(_, address) => *address,
        }
    }
}

/// Runs cases of one world, algorithm and mode on one communicator.
pub fn check(cases: &[Case]) {
    check_with(cases, |_, _, _| ());
}

/// As [`check`], on ranks of these hosts.
pub fn check_on(hosts: &[usize], cases: &[Case]) {
    let Some(first) = cases.first() else { return };
    compile(hosts, cases);
    let run = |comm| run_all(rank(comm), cases, &|_, _, _| ());
    // Ranks that have their kernels wait for those that compile.
    let builder = settings_of(first).timeout(Duration::from_secs(120));
    judge(super::ranks_on_hosts(&builder, hosts, run));
}

/// As [`check`], and has a look at every call before it is made.
pub fn check_with(cases: &[Case], look: impl Fn(&Rank, Case, &RawCall) + Sync) {
    let Some(first) = cases.first() else { return };
    judge(ranks_with(settings_of(first), first.world, |rank| run_all(rank, cases, &look)));
}

/// Compiles kernels of all ranks before any rank waits for another: on a small machine that takes long while kernels run.
fn compile(hosts: &[usize], cases: &[Case]) {
    let context = CudaContext::new(0).unwrap();
    let (major, minor) = context.compute_capability().unwrap();
    let folder = cache::folder();
    for case in cases {
        let reduces = case.collective.reduces();
        let call = RawCall {
            collective: case.collective,
            dtype: if reduces { case.dtype } else { DataType::U32 },
            op: by_type!(case.dtype, op_of(case.op)),
            root: if case.collective.is_rooted() { case.root } else { 0 },
            count: case.count,
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
        };
        for rank in 0..hosts.len() {
            let kernel = cuda_kernel_on(&call, (rank, hosts), false, case.algorithm).unwrap();
            let arch = (10 * major + minor) as u32;
            cache::kernel(&kernel.source, &kernel.name, arch, folder.as_deref()).unwrap();
        }
    }
}

fn op_of<T: Number>(op: super::cases::Op) -> ReduceOp {
    reduce_op::<T>(op, 0)
}

fn settings_of(case: &Case) -> Builder {
    let builder = super::settings().canonical(case.canonical);
    match case.algorithm {
        Some(name) => builder.algorithm(name),
        None => builder,
    }
}

/// The first case that goes wrong on this rank, and how.
fn run_all(
    mut rank: Rank,
    cases: &[Case],
    look: &impl Fn(&Rank, Case, &RawCall),
) -> Option<(Case, String)> {
    let mut wrong = |case: &Case| by_type!(case.dtype, run(&mut rank, *case, look));
    cases.iter().find_map(|case| wrong(case).map(|problem| (*case, problem)))
}

fn judge(problems: Vec<Option<(Case, String)>>) {
    for (rank, problem) in problems.into_iter().enumerate() {
        assert!(problem.is_none(), "rank {rank}: {problem:?}");
    }
}

/// Runs a case three times on one rank, without a pause between; returns what is wrong.
fn run<T: Number>(
    rank: &mut Rank,
    case: Case,
    look: &impl Fn(&Rank, Case, &RawCall),
) -> Option<String> {
    let Case { world, collective, count, root, offsets, in_place, op, .. } = case;
    let me = rank.comm.rank();
    let (inputs, outputs) = collective.blocks(world, root, me);
    let space = offsets.0.max(offsets.1) + world * count + 8;
    let guard = vec![T::of(3); space];
    let input = Memory::of_case(rank, size_of_val(&guard[..]), case);
    let output = Memory::of_case(rank, size_of_val(&guard[..]), case);
    let place = if in_place { alias(collective, me, root, count) } else { None };
    let (start_in, start_out) =
        place.map_or(offsets, |(input, output)| (offsets.1 + input, offsets.1 + output));
    let mut from = guard.clone();
    for i in 0..inputs * count {
        from[start_in + i] = T::of(value(op, me, i / count, i % count, world));
    }
    let base = if place.is_some() { &output } else { &input };
    let call = RawCall {
        collective,
        dtype: T::DTYPE,
        op: reduce_op::<T>(op, me),
        root,
        count,
        input: (base.address() as usize + start_in * size_of::<T>()) as *const u8,
        output: (output.address() as usize + start_out * size_of::<T>()) as *mut u8,
    };
    look(rank, case, &call);
    let mut before = guard.clone();
    for _ in 0..3 {
        rank.upload(output.address(), &guard);
        rank.upload(base.address(), &from);
        before = if place.is_some() { from.clone() } else { guard.clone() };
        if let Err(error) = rank.call(&call) {
            return Some(error.to_string());
        }
    }
    if let Err(error) = rank.synchronize() {
        return Some(error.to_string());
    }
    let seen = rank.download::<T>(output.address(), space);
    for (i, (seen, before)) in seen.iter().zip(&before).enumerate() {
        let inside = i >= start_out && i < start_out + outputs * count;
        let want = match inside {
            true => result::<T>(case, me, (i - start_out) / count, (i - start_out) % count),
            false => *before,
        };
        if bytemuck::bytes_of(seen) != bytemuck::bytes_of(&want) {
            return Some(format!(
                "element {i} (output from {start_out}) is {seen:?}, not {want:?}"
            ));
        }
    }
    None
}

/// Set in a process that a test has started to run once more, with other settings of the virtual GPUs.
const AGAIN: &str = "WARPMESH_TEST_AGAIN";

/// Runs a test of this binary once more, and sees that it succeeds.
pub fn again<'a>(
    test: &str,
    setting: impl IntoIterator<Item = (&'a str, &'a str)> + Clone + std::fmt::Debug,
) {
    let binary = std::env::current_exe().unwrap();
    let arguments = [test, "--exact", "--nocapture", "--test-threads=1"];
    let run = Command::new(binary).args(arguments).env(AGAIN, "1").envs(setting.clone()).output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{setting:?}: {said}{}", String::from_utf8_lossy(&run.stdout));
}

/// Whether this is a process of the test's own; if not, such a process runs it. What captures a stream needs one, since what other tests
/// do invalidates captures, and a capture makes that fail.
pub fn is_alone(test: &str) -> bool {
    if !is_run_again() {
        again(test, None);
    }
    is_run_again()
}

pub fn is_run_again() -> bool {
    std::env::var_os(AGAIN).is_some()
}

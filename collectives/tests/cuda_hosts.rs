//! Collectives of GPUs on several hosts: threads that reach each other by TCP over loopback, as if they were on different hosts.
//! Needs a CUDA driver and NVRTC; `cargo xtask test` runs it on virtual GPUs.

mod common;

use std::time::{Duration, Instant};

use common::cases::{Case, Op, awkward};
use common::gpu::{self, Memory, Rank, check_on};
use common::processes::{Ranks, connect, me, report};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use warpmesh::algorithms::{NODES, NodeAlgorithm};
use warpmesh::plan::Collective;
use warpmesh::primitives::failure::FailureKind;
use warpmesh::{Builder, DataType, Element, RawCall, ReduceOp};

/// Hosts of ranks: one rank on each, uneven ones, and ranks of a host that do not follow each other.
const LAYOUTS: [&[usize]; 3] = [&[0, 1], &[0, 0, 1], &[0, 1, 0, 2]];

fn case(collective: Collective, world: usize, count: usize) -> Case {
    Case {
        world,
        collective,
        dtype: DataType::F32,
        op: Op::Sum,
        count,
        root: world - 1,
        offsets: (0, 0),
        registered: false,
        symmetric: false,
        in_place: false,
        canonical: false,
        algorithm: None,
    }
}

fn algorithms() -> impl Iterator<Item = &'static NodeAlgorithm> {
    NODES.iter().copied().filter(|a| a.collective != Collective::Barrier)
}

/// Sizes of one thread block and of several follow each other.
#[test]
fn every_algorithm_on_every_layout() {
    if gpu::count().is_none() {
        return;
    }
    for hosts in LAYOUTS {
        for algorithm in algorithms() {
            let of = |count| Case {
                algorithm: Some(algorithm.name),
                ..case(algorithm.collective, hosts.len(), count)
            };
            let cases = [1, 1000, 30_000, 77, 12_001].map(of);
            let in_place = Case { in_place: true, offsets: (1, 3), ..of(4099) };
            check_on(hosts, &[&cases[..], &[in_place]].concat());
        }
    }
}

/// Unfinished sums travel in f32, so these are rounded once, averages divided once, and factors applied once.
#[test]
fn types_and_operators() {
    use DataType::{Bf16, F8E4M3, F8E5M2, F16, F32, F64, I8, I64, U8};
    if gpu::count().is_none() {
        return;
    }
    let rails = [
        (F16, Op::Sum),
        (Bf16, Op::PreMulSum),
        (F8E4M3, Op::Avg),
        (I8, Op::Avg),
        (F64, Op::PreMulSum),
    ];
    let exchange = [(F16, Op::Sum), (F8E5M2, Op::Max), (Bf16, Op::Avg), (I64, Op::Sum)];
    let in_order = [(Bf16, Op::Sum), (F8E4M3, Op::PreMulSum), (F32, Op::Avg), (U8, Op::Prod)];
    for (name, list) in
        [("rails", &rails[..]), ("exchange", &exchange[..]), ("in_order", &in_order[..])]
    {
        // Aligned, so that whole units move; then not, so that elements do.
        let of = |(n, &(dtype, op)): (usize, &(DataType, Op))| {
            let plain = case(Collective::AllReduce, 3, 1001);
            let plain = Case { dtype, op, algorithm: Some(name), in_place: n % 2 == 0, ..plain };
            [plain, Case { offsets: (1, 3), ..plain }]
        };
        let cases: Vec<_> = list.iter().enumerate().flat_map(of).collect();
        check_on(&[0, 0, 1], &cases);
    }
}

fn settings(seconds: u64) -> Builder {
    common::settings().timeout(Duration::from_secs(seconds))
}

/// Numbers whose sum depends on the order and on where it is rounded, on the host and on GPUs.
fn canonical_bits<T: Element>(hosts: &[usize], of: fn(f32) -> T) {
    const COUNT: usize = 5003;
    let settings = settings(120).canonical(true);
    let mine = |rank| -> Vec<T> { (0..COUNT).map(|k| of(awkward(rank, k))).collect() };
    let host = common::ranks_on_hosts(&settings, hosts, |mut comm| {
        let mut data = mine(comm.rank());
        comm.all_reduce(&mut data, ReduceOp::Sum).unwrap();
        data
    });
    common::ranks_on_hosts(&settings, hosts, |comm| {
        let mut rank = gpu::rank(comm);
        let me = rank.comm.rank();
        let memory = Memory::new(&mut rank, COUNT * size_of::<T>(), false);
        let at = memory.address();
        rank.upload(at, &mine(me));
        rank.call(&RawCall { dtype: T::DTYPE, ..all_reduce(at, COUNT) }).unwrap();
        rank.synchronize().unwrap();
        let seen = rank.download::<T>(at, COUNT);
        assert!(bytemuck::cast_slice::<T, u8>(&seen) == bytemuck::cast_slice::<T, u8>(&host[me]));
    });
}

#[test]
fn canonical_bits_are_those_of_the_host_device() {
    if gpu::count().is_some() {
        canonical_bits::<f32>(&[0, 0, 1], |x| x);
        canonical_bits::<half::bf16>(&[0, 1, 0, 1], half::bf16::from_f32);
    }
}

/// In place.
fn all_reduce(at: u64, count: usize) -> RawCall {
    RawCall {
        collective: Collective::AllReduce,
        dtype: DataType::F32,
        op: ReduceOp::Sum,
        root: 0,
        count,
        input: at as *const u8,
        output: at as *mut u8,
    }
}

/// Memory of a rank after an all-reduce of it, which compiles the kernel and connects the ranks.
fn warmed_up(rank: &mut Rank, count: usize) -> Memory {
    let memory = Memory::new(rank, count * size_of::<f32>(), false);
    rank.call(&all_reduce(memory.address(), count)).unwrap();
    rank.synchronize().unwrap();
    memory
}

#[test]
fn graphs_are_replayed() {
    if gpu::count().is_none() || !gpu::is_alone("graphs_are_replayed") {
        return;
    }
    common::ranks_on_hosts(&settings(60), &[0, 1], |comm| {
        const COUNT: usize = 20_000;
        let mut rank = gpu::rank(comm);
        let memory = warmed_up(&mut rank, COUNT);
        let at = memory.address();
        rank.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .unwrap();
        rank.call(&all_reduce(at, COUNT)).unwrap();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = rank.stream.end_capture(flags).unwrap().unwrap();
        for round in 0..4 {
            rank.upload(at, &vec![(round + rank.comm.rank()) as f32; COUNT]);
            graph.launch().unwrap();
            rank.call(&all_reduce(at, COUNT)).unwrap();
            rank.synchronize().unwrap();
            let want = 2.0 * (2 * round + 1) as f32;
            assert!(rank.download::<f32>(at, COUNT).iter().all(|x| *x == want), "round {round}");
        }
        // Before any call of its kind there is nobody to put to.
        rank.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .unwrap();
        let call = RawCall { collective: Collective::Broadcast, ..all_reduce(at, COUNT) };
        let error = rank.call(&call).unwrap_err().to_string();
        assert!(error.contains("first of its kind"), "{error}");
        rank.stream.end_capture(flags).expect("the capture goes on");
    });
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    if gpu::count().is_none() {
        return;
    }
    for hosts in [[0, 0, 1], [0, 1, 1]] {
        // Longer than it takes to compile the kernel on a busy machine.
        common::ranks_on_hosts(&settings(12), &hosts, |comm| {
            let mut rank = gpu::rank(comm);
            let memory = warmed_up(&mut rank, 1000);
            rank.comm.host_barrier().unwrap();
            let call = all_reduce(memory.address(), 1000);
            if rank.comm.rank() == 1 {
                std::thread::sleep(Duration::from_secs(20));
                let error = rank.call(&call).unwrap_err();
                assert_eq!(error.failure().unwrap().culprit, Some(1), "{error}");
                return;
            }
            let since = Instant::now();
            let error = rank.call(&call).and_then(|()| rank.synchronize()).unwrap_err();
            let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
            assert_eq!(
                (failure.kind, failure.culprit),
                (FailureKind::TimedOut, Some(1)),
                "{error}"
            );
            assert!(since.elapsed() < Duration::from_secs(19), "{:?}", since.elapsed());
            rank.stream.synchronize().unwrap();
        });
    }
}

#[test]
fn ranks_that_call_different_things_are_told() {
    if gpu::count().is_none() {
        return;
    }
    common::ranks_on_hosts(&settings(60), &[0, 1], |comm| {
        let mut rank = gpu::rank(comm);
        let memory = warmed_up(&mut rank, 2000);
        let call = all_reduce(memory.address(), 1000 + rank.comm.rank());
        let error = rank.call(&call).and_then(|()| rank.synchronize()).unwrap_err();
        assert_eq!(error.failure().unwrap().kind, FailureKind::Mismatch, "{error}");
        for count in ["count 1000", "count 1001"] {
            assert!(error.to_string().contains(count), "{error}");
        }
        rank.stream.synchronize().unwrap();
    });
}

#[test]
fn an_abort_comes_to_other_hosts() {
    if gpu::count().is_none() {
        return;
    }
    common::ranks_on_hosts(&settings(60), &[0, 1], |comm| {
        let mut rank = gpu::rank(comm);
        let memory = warmed_up(&mut rank, 1000);
        rank.comm.host_barrier().unwrap();
        let since = Instant::now();
        if rank.comm.rank() == 0 {
            rank.comm.abort();
        }
        let call = all_reduce(memory.address(), 1000);
        let error = rank.call(&call).and_then(|()| rank.synchronize()).unwrap_err();
        assert_eq!(error.failure().unwrap().kind, FailureKind::Aborted, "{error}");
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
        rank.stream.synchronize().unwrap();
    });
}

/// A root need not wait for anyone: only the guard keeps it from writing what its peers still have to read.
#[test]
fn slots_are_not_written_again_before_they_were_read() {
    const COUNT: usize = 30_000;
    if gpu::count().is_none() {
        return;
    }
    for hosts in [&[0, 1][..], &[0, 0, 1, 1]] {
        common::ranks_on_hosts(&settings(60), hosts, |comm| {
            let mut rank = gpu::rank(comm);
            let me = rank.comm.rank();
            let call = |at| RawCall { collective: Collective::Broadcast, ..all_reduce(at, COUNT) };
            let bytes = COUNT * size_of::<f32>();
            let memory: Vec<_> = (0..7).map(|_| Memory::new(&mut rank, bytes, false)).collect();
            for (n, memory) in memory.iter().enumerate() {
                rank.upload(memory.address(), &vec![if me == 0 { n as f32 } else { -1.0 }; COUNT]);
            }
            rank.call(&call(memory[0].address())).unwrap();
            rank.synchronize().unwrap();
            rank.comm.host_barrier().unwrap();
            if me > 0 {
                std::thread::sleep(Duration::from_millis(500));
            }
            for memory in &memory {
                rank.call(&call(memory.address())).unwrap();
            }
            rank.synchronize().unwrap();
            for (n, memory) in memory.iter().enumerate() {
                let seen = rank.download::<f32>(memory.address(), COUNT);
                assert!(seen.iter().all(|x| *x == n as f32), "rank {me}, call {n}: {}", seen[0]);
            }
        });
    }
}

/// What a rank has sent before it leaves comes, and who needs more of it is told.
#[test]
fn a_rank_may_leave_after_its_last_call() {
    if gpu::count().is_none() {
        return;
    }
    common::ranks_on_hosts(&settings(60), &[0, 1], |comm| {
        let mut rank = gpu::rank(comm);
        let memory = warmed_up(&mut rank, 100_000);
        let call = all_reduce(memory.address(), 100_000);
        rank.upload(memory.address(), &vec![1_f32; 100_000]);
        rank.call(&call).unwrap();
        if rank.comm.rank() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(300));
        rank.synchronize().unwrap();
        assert_eq!(rank.download::<f32>(memory.address(), 1), [2.0]);
        let error = rank.call(&call).and_then(|()| rank.synchronize()).unwrap_err();
        let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
        assert_eq!((failure.kind, failure.culprit), (FailureKind::PeerLeft, Some(1)), "{error}");
    });
}

#[test]
fn a_topology_file_that_is_wrong_is_said() {
    const NAME: &str = "a_topology_file_that_is_wrong_is_said";
    const FILE: &str = "/dev/null";
    if gpu::is_run_again() {
        common::ranks_on_hosts(&settings(60), &[0, 1], |comm| {
            let context = CudaContext::new(0).unwrap();
            let error = comm.on_gpu(context).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("WARPMESH_TOPO_FILE") && error.contains(FILE), "{error}");
        });
    } else if gpu::count().is_some() {
        gpu::again(NAME, Some(("WARPMESH_TOPO_FILE", FILE)));
    }
}

#[test]
fn a_process_that_is_killed_is_named() {
    if me().is_some() {
        let mut rank = gpu::rank(connect(Duration::from_secs(20)));
        let memory = warmed_up(&mut rank, 10_000);
        println!("READY");
        let call = all_reduce(memory.address(), 10_000);
        let error = loop {
            if let Err(error) = rank.call(&call).and_then(|()| rank.synchronize()) {
                break error;
            }
        };
        rank.stream.synchronize().unwrap();
        report(&error);
        return;
    }
    if gpu::count().is_none() {
        return;
    }
    for moment in [200, 350] {
        let mut ranks = Ranks::start_on("a_process_that_is_killed_is_named", &[0, 0, 1], 0);
        ranks.ready(Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(moment));
        ranks.signal(2, rustix::process::Signal::KILL);
        for rank in [0, 1] {
            let said = ranks.report(rank, Duration::from_secs(15));
            assert!(said.starts_with("Disconnected culprit 2 "), "rank {rank}: {said}");
        }
    }
}

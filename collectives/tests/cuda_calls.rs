//! What surrounds collectives on GPUs: graphs, several communicators, memory of other allocators, wrong arguments, faults, several
//! processes. Needs a CUDA driver and NVRTC, as cuda.rs does.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::gpu::{self, Memory, Rank};
use common::processes::{Ranks, connect, me, report};
use cudarc::driver::sys::{self, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph};
use warpmesh::plan::Collective;
use warpmesh::primitives::failure::FailureKind;
use warpmesh::{DataType, Error, RawCall, ReduceOp};

const COUNT: usize = 3000;

fn all_reduce(input: u64, output: u64, count: usize) -> RawCall {
    RawCall {
        collective: Collective::AllReduce,
        dtype: DataType::F32,
        op: ReduceOp::Sum,
        root: 0,
        count,
        input: input as *const u8,
        output: output as *mut u8,
    }
}

/// A rank's input of a round, and what the sum of two ranks' is.
fn input(rank: usize, round: usize) -> Vec<f32> {
    (0..COUNT).map(|k| (k % 100 + 7 * rank + 3 * round) as f32).collect()
}

fn sum(world: usize, round: usize) -> Vec<f32> {
    let each = |k| (0..world).map(|rank| input(rank, round)[k]).sum();
    (0..COUNT).map(each).collect()
}

fn worlds(name: &str, world: usize, work: impl Fn(Rank) + Sync) {
    if gpu::count().is_some() {
        gpu::ranks_with(common::settings().algorithm(name), world, work);
    }
}

fn capture(rank: &mut Rank, calls: &[RawCall]) -> CudaGraph {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    rank.stream.begin_capture(mode).unwrap();
    calls.iter().for_each(|call| rank.call(call).unwrap());
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    rank.stream.end_capture(flags).unwrap().unwrap()
}

#[test]
fn graphs_are_replayed_and_mixed_with_calls() {
    if gpu::count().is_none() || !gpu::is_alone("graphs_are_replayed_and_mixed_with_calls") {
        return;
    }
    for (name, registered) in [("two_shot_packet", false), ("staged", false), ("direct", true)] {
        worlds(name, 2, |mut rank| {
            let bytes = COUNT * size_of::<f32>();
            let memory: Vec<Memory> =
                (0..3).map(|_| Memory::new(&mut rank, bytes, registered)).collect();
            let [a, b, c] = [0, 1, 2].map(|n| memory[n].address());
            // The sum of the sums: the graph holds two calls, the second on what the first gave. Nothing ran before.
            let graph = capture(&mut rank, &[all_reduce(a, b, COUNT), all_reduce(b, c, COUNT)]);
            let me = rank.comm.rank();
            for round in 0..5 {
                rank.upload(a, &input(me, round));
                graph.launch().unwrap();
                if round % 2 == 1 {
                    graph.launch().unwrap();
                }
                rank.synchronize().unwrap();
                let twice: Vec<f32> = sum(2, round).iter().map(|x| 2.0 * x).collect();
                assert!(rank.download::<f32>(c, COUNT) == twice, "{name}: replay {round}");
                rank.call(&all_reduce(a, c, COUNT)).unwrap();
                rank.synchronize().unwrap();
                assert!(rank.download::<f32>(c, COUNT) == sum(2, round), "{name}: call {round}");
            }
        });
    }
}

#[test]
fn two_communicators_work_at_once_with_different_numbers_of_calls() {
    if gpu::count().is_none() {
        return;
    }
    let one = common::settings().local(3).unwrap();
    let two = common::settings().local(3).unwrap();
    std::thread::scope(|scope| {
        for (one, two) in one.into_iter().zip(two) {
            scope.spawn(move || {
                let mut ranks = [one, two].map(gpu::rank);
                let me = ranks[0].comm.rank();
                let bytes = COUNT * size_of::<f32>();
                let memory = ranks.each_mut().map(|rank| {
                    [0, 1].map(|_| Memory::new(rank, bytes, false)).map(|m| (m.address(), m))
                });
                for round in 0..4 {
                    for (n, rank) in ranks.iter_mut().enumerate() {
                        let [(from, _), (to, _)] = &memory[n];
                        rank.upload(*from, &input(me, round + n));
                        // Both are busy at once, and the second is called three times as often.
                        for _ in 0..1 + 2 * n {
                            rank.call(&all_reduce(*from, *to, COUNT)).unwrap();
                        }
                    }
                    for (n, rank) in ranks.iter_mut().enumerate() {
                        rank.synchronize().unwrap();
                        let seen = rank.download::<f32>(memory[n][1].0, COUNT);
                        assert!(seen == sum(3, round + n), "communicator {n}, round {round}");
                    }
                }
            });
        }
    });
}

/// Memory of `cuMemAlloc`.
fn alloc(bytes: usize) -> u64 {
    let mut at = 0;
    // SAFETY: `at` is a local.
    unsafe { sys::cuMemAlloc_v2(&mut at, bytes) }.result().unwrap();
    at
}

fn free(at: u64) {
    // SAFETY: the tests free what they allocated, once, after all ranks are done.
    unsafe { sys::cuMemFree_v2(at) }.result().unwrap();
}

/// Two buffers at other offsets on every rank in one allocation; then the allocation is freed, and another one made.
fn registers(rank: &mut Rank) {
    let (me, world) = (rank.comm.rank(), rank.comm.world());
    let bytes = COUNT * size_of::<f32>();
    for round in 0..3 {
        let base = alloc(4 * bytes);
        let (from, to) = (base + 64 * me as u64, base + 2 * bytes as u64 + 16 * me as u64);
        // SAFETY: freed below, after all ranks' calls.
        let kept = unsafe {
            [rank.comm.register(from, bytes).unwrap(), rank.comm.register(to, bytes).unwrap()]
        };
        // SAFETY: as above.
        let again = unsafe { rank.comm.register(from, bytes).unwrap() };
        rank.upload(from, &input(me, round));
        rank.call(&all_reduce(from, to, COUNT)).unwrap();
        rank.synchronize().unwrap();
        let seen = rank.download::<f32>(to, COUNT);
        assert!(seen == sum(world, round), "rank {me}, round {round}");
        rank.comm.host_barrier().unwrap();
        drop((kept, again));
        free(base);
    }
}

#[test]
fn memory_of_other_allocators_is_registered() {
    worlds("direct", 3, |mut rank| registers(&mut rank));
}

#[test]
fn freed_memory_is_registered_no_more() {
    worlds("direct", 2, |mut rank| {
        let bytes = COUNT * size_of::<f32>();
        let base = alloc(2 * bytes);
        // SAFETY: freed below, without a call.
        let _kept = unsafe { rank.comm.register(base, 2 * bytes).unwrap() };
        rank.comm.host_barrier().unwrap();
        free(base);
        let problem = rank.call(&all_reduce(base, base, COUNT)).unwrap_err().to_string();
        assert!(problem.contains("is not device memory"), "{problem}");
        // What lies there now is other memory: the call must not take the old registration.
        let next = alloc(2 * bytes);
        rank.upload(next, &input(rank.comm.rank(), 1));
        rank.call(&all_reduce(next, next + bytes as u64, COUNT)).unwrap();
        rank.synchronize().unwrap();
        assert!(rank.download::<f32>(next + bytes as u64, COUNT) == sum(2, 1));
        free(next);
    });
}

#[test]
fn memory_that_cannot_be_registered_is_refused_on_all_ranks() {
    worlds("direct", 2, |mut rank| {
        let on_host = vec![0_f32; COUNT];
        let base = alloc(COUNT * size_of::<f32>());
        let (at, len) = match rank.comm.rank() {
            0 => (base, COUNT * size_of::<f32>()),
            _ => (on_host.as_ptr() as u64, 64),
        };
        // SAFETY: refused.
        let problem = unsafe { rank.comm.register(at, len) }.unwrap_err().to_string();
        assert!(problem.contains("is not memory of CUDA device"), "{problem}");
        // SAFETY: refused, too.
        let problem = unsafe { rank.comm.register(base, COUNT * 4 + 4096 * 64) }.unwrap_err();
        assert!(problem.to_string().contains("bytes outside its allocation"), "{problem}");
        rank.comm.host_barrier().unwrap();
        free(base);
    });
}

#[test]
fn wrong_arguments_are_refused_and_nothing_is_moved() {
    let Some(gpus) = gpu::count() else { return };
    worlds("two_shot_packet", 2, |mut rank| {
        let bytes = COUNT * size_of::<f32>();
        let memory = [0, 1].map(|_| Memory::new(&mut rank, bytes, false));
        let (from, to) = (memory[0].address(), memory[1].address());
        let on_host = vec![0_f32; COUNT];
        let refused = |rank: &mut Rank, call: RawCall, why: &str| {
            let problem = rank.call(&call).unwrap_err().to_string();
            assert!(problem.contains(why), "{problem}");
        };
        let host = on_host.as_ptr() as u64;
        refused(&mut rank, all_reduce(host, to, COUNT), "input is not device memory");
        refused(&mut rank, all_reduce(from, 0, COUNT), "output is null");
        refused(&mut rank, all_reduce(from + 2, to, COUNT), "not aligned");
        refused(&mut rank, all_reduce(from, from + 64, COUNT), "overlaps");
        let mut pinned = std::ptr::null_mut();
        // SAFETY: `pinned` is a local.
        unsafe { sys::cuMemAllocHost_v2(&mut pinned, bytes) }.result().unwrap();
        refused(&mut rank, all_reduce(pinned as u64, to, COUNT), "input is host memory");
        // SAFETY: allocated above.
        unsafe { sys::cuMemFreeHost(pinned) }.result().unwrap();
        if gpus > 1 {
            let other = CudaContext::new((rank.comm.rank() + 1) % gpus).unwrap();
            other.bind_to_thread().unwrap();
            let theirs = alloc(bytes);
            refused(&mut rank, all_reduce(theirs, to, COUNT), "input is memory of CUDA device");
            let ours = std::mem::replace(&mut rank.stream, other.new_stream().unwrap());
            refused(&mut rank, all_reduce(from, to, COUNT), "stream is not of this communicator's");
            rank.stream = ours;
            other.bind_to_thread().unwrap();
            free(theirs);
        }
        // To free memory is to wait for what runs on its GPU: none may be in the call below before the other is done with that.
        rank.comm.host_barrier().unwrap();
        // All of that has left nothing behind.
        rank.upload(from, &input(rank.comm.rank(), 0));
        rank.call(&all_reduce(from, to, COUNT)).unwrap();
        rank.synchronize().unwrap();
        assert!(rank.download::<f32>(to, COUNT) == sum(2, 0));
    });
}

#[test]
fn ranks_that_call_different_things_are_told() {
    for registered in [false, true] {
        if gpu::count().is_none() {
            return;
        }
        gpu::ranks_with(common::settings(), 2, |mut rank| {
            let memory = Memory::new(&mut rank, 1 << 16, registered);
            let (me, at) = (rank.comm.rank(), memory.address());
            let called = rank.call(&all_reduce(at, at, 1000 + me));
            let error = called.and_then(|()| rank.synchronize()).unwrap_err();
            let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
            assert_eq!(failure.kind, FailureKind::Mismatch, "{error}");
            for count in ["count 1000", "count 1001"] {
                assert!(error.to_string().contains(count), "{error}");
            }
            // The stream is usable.
            rank.stream.synchronize().unwrap();
            rank.upload(at, &[1_f32]);
        });
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    if gpu::count().is_none() {
        return;
    }
    // Longer than it takes to compile the kernel on a busy machine.
    let settings = common::settings().timeout(Duration::from_secs(3));
    gpu::ranks_with(settings, 3, |mut rank| {
        let memory = Memory::new(&mut rank, 1 << 16, false);
        let at = memory.address();
        // So that the kernel is compiled.
        rank.call(&all_reduce(at, at, 1000)).unwrap();
        rank.synchronize().unwrap();
        rank.comm.host_barrier().unwrap();
        if rank.comm.rank() == 1 {
            // Comes when the others have given up.
            std::thread::sleep(Duration::from_secs(7));
            let error = rank.call(&all_reduce(at, at, 1000)).unwrap_err();
            assert_eq!(error.failure().unwrap().culprit, Some(1), "{error}");
            return;
        }
        let since = Instant::now();
        rank.call(&all_reduce(at, at, 1000)).unwrap();
        let error = rank.synchronize().unwrap_err();
        let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
        assert_eq!((failure.kind, failure.culprit), (FailureKind::TimedOut, Some(1)), "{error}");
        assert!(error.to_string().contains("waits for rank 1 at step"), "{error}");
        assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
        rank.stream.synchronize().unwrap();
    });
}

#[test]
fn an_abort_ends_kernels_that_wait() {
    if gpu::count().is_none() {
        return;
    }
    gpu::ranks_with(common::settings().timeout(Duration::from_secs(60)), 2, |mut rank| {
        let memory = Memory::new(&mut rank, 1 << 16, false);
        let at = memory.address();
        let since = Instant::now();
        if rank.comm.rank() == 0 {
            rank.call(&all_reduce(at, at, 1000)).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            rank.comm.abort();
            let error = rank.synchronize().unwrap_err();
            assert_eq!(error.failure().unwrap().kind, FailureKind::Aborted, "{error}");
        } else {
            while rank.call(&all_reduce(at, at, 0)).is_ok()
                && rank.comm.failure().is_none()
                && since.elapsed() < Duration::from_secs(20)
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            let error = rank.call(&all_reduce(at, at, 1000)).unwrap_err();
            assert_eq!(error.failure().unwrap().kind, FailureKind::Aborted, "{error}");
        }
        assert!(since.elapsed() < Duration::from_secs(20));
    });
}

/// Calls without end; the error that ends them.
fn calls_without_end(rank: &mut Rank) -> Error {
    let memory = Memory::new(rank, 1 << 16, false);
    let at = memory.address();
    loop {
        let called = rank.call(&all_reduce(at, at, 10_000));
        if let Err(error) = called.and_then(|()| rank.synchronize()) {
            return error;
        }
    }
}

#[test]
fn processes_share_memory_of_other_allocators() {
    if me().is_some() {
        let mut rank = gpu::rank(connect(Duration::from_secs(20)));
        registers(&mut rank);
        println!("REPORT fine");
        return;
    }
    if gpu::count().is_some() {
        let mut ranks = Ranks::start("processes_share_memory_of_other_allocators", 3, 0);
        for rank in 0..3 {
            assert_eq!(ranks.report(rank, Duration::from_secs(60)), "fine");
        }
    }
}

#[test]
fn a_process_that_is_killed_is_named_and_streams_stay_usable() {
    if me().is_some() {
        let mut rank = gpu::rank(connect(Duration::from_secs(20)));
        println!("READY");
        let error = calls_without_end(&mut rank);
        rank.stream.synchronize().unwrap();
        let memory = Memory::new(&mut rank, 64, false);
        rank.upload(memory.address(), &[1_f32]);
        report(&error);
        return;
    }
    if gpu::count().is_none() {
        return;
    }
    for moment in [200, 350] {
        let mut ranks =
            Ranks::start("a_process_that_is_killed_is_named_and_streams_stay_usable", 3, 0);
        ranks.ready(Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(moment));
        ranks.signal(1, rustix::process::Signal::KILL);
        let since = Instant::now();
        for rank in [0, 2] {
            let said = ranks.report(rank, Duration::from_secs(15));
            assert!(said.starts_with("PeerDied culprit 1 "), "rank {rank}: {said}");
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    }
}

#[test]
fn a_communicator_is_made_again_after_a_failure() {
    if gpu::count().is_none() {
        return;
    }
    let context = |rank: usize| -> Arc<CudaContext> {
        CudaContext::new(rank % gpu::count().unwrap()).unwrap()
    };
    for _ in 0..2 {
        gpu::ranks_with(common::settings(), 2, |mut rank| {
            rank.comm.abort();
            let memory = Memory::new(&mut rank, 1 << 12, false);
            assert!(rank.call(&all_reduce(memory.address(), memory.address(), 10)).is_err());
        });
    }
    worlds("direct", 2, |mut rank| {
        assert!(context(rank.comm.rank()).synchronize().is_ok());
        registers(&mut rank);
    });
}

/// No rank waits for one that cannot.
#[test]
fn a_rank_whose_gpu_has_no_memory_is_named_on_all_ranks() {
    const NAME: &str = "a_rank_whose_gpu_has_no_memory_is_named_on_all_ranks";
    if gpu::is_run_again() {
        let since = Instant::now();
        common::ranks_with(common::settings(), 3, |host| {
            let context = CudaContext::new(host.rank()).unwrap();
            let rank = host.rank();
            let error = host.on_gpu(context).map(|_| ()).unwrap_err().to_string();
            let part = if rank == 1 { "cuMemCreate" } else { "rank 1 could not allocate" };
            assert!(error.contains(part), "rank {rank}: {error}");
        });
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    } else if gpu::count().is_some_and(|count| count >= 3)
        && std::env::var_os("VGPU_DEVICES").is_some()
    {
        gpu::again(NAME, Some(("VGPU_REFUSE", "cuMemCreate@1")));
    }
}

/// Makes communicators on virtual GPUs with such a setting, in a process of its own; what each rank is told.
fn refusals(test: &str, setting: (&str, &str), look: impl Fn(usize, String) + Sync) {
    if gpu::is_run_again() {
        let since = Instant::now();
        common::ranks_with(common::settings(), 3, |host| {
            let (rank, context) = (host.rank(), CudaContext::new(host.rank()).unwrap());
            look(rank, host.on_gpu(context).map(|_| ()).unwrap_err().to_string());
        });
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    } else if gpu::count().is_some_and(|count| count >= 3)
        && std::env::var_os("VGPU_DEVICES").is_some()
    {
        gpu::again(test, Some(setting));
    }
}

#[test]
fn gpus_of_different_architectures_are_refused() {
    let test = "gpus_of_different_architectures_are_refused";
    refusals(test, ("VGPU_ARCH", "90,80,90"), |rank, error| {
        let said = ["GPU of rank 1 is sm_80", "GPU of rank 0 is sm_90", "GPU of rank 1 is sm_80"];
        assert!(error.contains(said[rank]), "{error}");
    });
}

#[test]
fn gpus_that_do_not_reach_each_other_are_refused() {
    let test = "gpus_that_do_not_reach_each_other_are_refused";
    refusals(test, ("VGPU_ISOLATED", "1"), |rank, error| {
        let other = usize::from(rank == 0);
        let said = format!("CUDA device {rank} does not reach the memory of rank {other}'s GPU");
        assert!(error.contains(&said), "{error}");
    });
}

#[test]
fn an_old_driver_is_refused() {
    refusals("an_old_driver_is_refused", ("VGPU_DRIVER", "11080"), |_, error| {
        assert!(error.contains("the driver is of CUDA 11.8, at least 12.1 is needed"), "{error}");
    });
}

#[test]
fn a_driver_that_does_not_take_the_compilers_code_is_named() {
    const NAME: &str = "a_driver_that_does_not_take_the_compilers_code_is_named";
    if gpu::is_run_again() {
        gpu::ranks_with(common::settings(), 2, |mut rank| {
            let memory = Memory::new(&mut rank, 1 << 12, false);
            let error = rank.call(&all_reduce(memory.address(), memory.address(), 10)).unwrap_err();
            let said = "the driver is of CUDA 12.8, at least 13.0 is needed";
            assert!(error.to_string().contains(said), "{error}");
        });
    } else if gpu::count().is_some() && std::env::var_os("VGPU_DEVICES").is_some() {
        gpu::again(NAME, Some(("VGPU_DRIVER", "12080")));
    }
}

#[test]
fn memory_that_is_asked_for_while_a_stream_is_captured_is_refused_on_all_ranks() {
    const NAME: &str =
        "memory_that_is_asked_for_while_a_stream_is_captured_is_refused_on_all_ranks";
    if gpu::count().is_none() || !gpu::is_alone(NAME) {
        return;
    }
    gpu::ranks_with(common::settings(), 2, |mut rank| {
        let before = Memory::new(&mut rank, 1 << 12, false);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let captures = rank.comm.rank() == 1;
        if captures {
            rank.stream.begin_capture(mode).unwrap();
        }
        let error = rank.comm.alloc_bytes(1 << 12).map(|_| ()).unwrap_err().to_string();
        let said = if captures { "CAPTURE" } else { "rank 1 could not allocate GPU memory" };
        assert!(error.contains(said), "{error}");
        if captures {
            let flags =
                sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let _ = rank.stream.end_capture(flags);
        }
        // Nothing of that is left.
        let at = before.address();
        rank.upload(at, &[1_f32; 10]);
        rank.call(&all_reduce(at, at, 10)).unwrap();
        rank.synchronize().unwrap();
        assert_eq!(rank.download::<f32>(at, 10), [2.0; 10]);
        assert!(rank.comm.alloc_bytes(1 << 12).is_ok());
    });
}

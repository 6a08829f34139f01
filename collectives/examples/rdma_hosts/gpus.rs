//! Collectives of GPUs by RDMA: four ranks, threads of one process, each with a virtual GPU, two on each of two hosts.
//!
//! The guest has no NVRTC: `rdma_hosts kernels FOLDER` compiles what the ranks need before, on the machine that starts it, and leaves it as the
//! cache of kernels.

use std::path::Path;

use cudarc::driver::CudaContext;
use warpmesh::bootstrap::LocalBootstrap;
use warpmesh::plan::Collective;
use warpmesh::primitives::net::rdma::{GpuMemory, RdmaOptions, SignalMode};
use warpmesh::primitives::net::{NetOptions, TransportChoice};
use warpmesh::{
    Builder, Communicator, DataType, RawCall, ReduceOp, cuda_kernel_on, cuda_mail_kernels,
};
use warpmesh_kernels::cache;

use super::ensure;
use super::harness::Outcome;
use super::ranks::{HOSTS, LIMIT, NICS};

/// The architecture of the guest's virtual GPUs.
const ARCH: u32 = 90;

/// Elements: of one thread block, of several, and of no whole units.
const COUNTS: [usize; 3] = [1000, 40_000, 777];

fn call(collective: Collective, count: usize) -> RawCall {
    let dtype = if collective.reduces() { DataType::F32 } else { DataType::U32 };
    // The sums of an average are unfinished when they travel.
    let op = if collective == Collective::AllReduce { ReduceOp::Avg } else { ReduceOp::Sum };
    let (input, output) = (std::ptr::null(), std::ptr::null_mut());
    let root = if collective.is_rooted() { ROOT } else { 0 };
    RawCall { collective, dtype, op, root, count, input, output }
}

/// Not on the first host.
const ROOT: usize = 2;

const COLLECTIVES: [Collective; 4] = [
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
];

/// Compiles the kernels of all ranks' calls.
pub fn compile(folder: &Path) -> Outcome {
    for collective in COLLECTIVES {
        for count in COUNTS {
            let call = call(collective, count);
            for rank in 0..HOSTS.len() {
                let kernel = cuda_kernel_on(&call, (rank, &HOSTS), false, None)?;
                cache::kernel(&kernel.source, &kernel.name, ARCH, Some(folder))?;
            }
        }
    }
    for kernel in cuda_mail_kernels() {
        cache::kernel(&kernel.source, &kernel.name, ARCH, Some(folder))?;
    }
    Ok(())
}

/// Elements of the message from one rank to another: some, none, many.
fn uneven(from: usize, to: usize, count: usize) -> usize {
    [count, 0, 7, 2 * count][(3 * from + to) % 4]
}

/// All collectives by both ways of signals, with memory that two NICs of each rank reach, and that is staged for one.
pub fn run() -> bool {
    let (two, one) =
        ([&["rxe1", "rxe3"][..], &["rxe2", "rxe4"]], NICS.each_ref().map(std::slice::from_ref));
    let ways = [
        (SignalMode::FetchAdd, GpuMemory::Peermem, two),
        (SignalMode::Immediate, GpuMemory::Staged, one),
    ];
    ways.into_iter().all(|(signals, gpu_memory, nics)| {
        let since = std::time::Instant::now();
        let done = world(signals, gpu_memory, nics);
        let name = format!("rdma-hosts gpus, {signals:?}, {gpu_memory:?}");
        match done {
            Ok(()) => println!("{name}: ok, {:.1} s", since.elapsed().as_secs_f64()),
            Err(ref error) => println!("{name}: FAILED: {error}"),
        }
        done.is_ok()
    })
}

fn world(signals: SignalMode, gpu_memory: GpuMemory, nics: [&[&str]; 2]) -> Outcome {
    let bootstraps = LocalBootstrap::create(HOSTS.len(), LIMIT)?;
    std::thread::scope(|scope| {
        let start = |(rank, bootstrap): (usize, LocalBootstrap)| {
            let host = HOSTS[rank];
            let devices = nics[host].iter().map(|nic| (*nic).to_owned()).collect();
            let rdma = RdmaOptions {
                devices,
                timeout: 16,
                signals: Some(signals),
                gpu_memory,
                ..Default::default()
            };
            let net = NetOptions { transport: TransportChoice::Rdma, rdma, ..Default::default() };
            let builder = Communicator::builder().timeout(LIMIT).host_mark(&format!("host {host}"));
            scope.spawn(move || one(&builder.net(net), bootstrap, rank).map_err(|e| e.to_string()))
        };
        let threads: Vec<_> = bootstraps.into_iter().enumerate().map(start).collect();
        for (rank, thread) in threads.into_iter().enumerate() {
            let ended = thread.join().map_err(|_| format!("rank {rank} panicked"))?;
            ended.map_err(|error| format!("rank {rank}: {error}"))?;
        }
        Ok(())
    })
}

/// One rank: whole numbers, different for each rank and place.
fn one(builder: &Builder, bootstrap: LocalBootstrap, rank: usize) -> Outcome {
    let context = CudaContext::new(rank)?;
    let stream = context.new_stream()?;
    let mut comm = builder.clone().connect(bootstrap)?.on_gpu(context)?;
    let world = HOSTS.len();
    let value = |rank: usize, k: usize| ((rank * 7 + k) % 61) as f32;
    for count in COUNTS {
        let mine: Vec<f32> = (0..world * count).map(|k| value(rank, k)).collect();
        let sum = |k: usize| (0..world).map(|rank| value(rank, k)).sum::<f32>();

        let mut data = stream.clone_htod(&mine[..count])?;
        comm.all_reduce(&mut data, ReduceOp::Avg, &stream)?;
        let seen = stream.clone_dtoh(&data)?;
        ensure!((0..count).all(|k| seen[k] == sum(k) / world as f32), "all_reduce of {count}");

        let input = stream.clone_htod(&mine)?;
        let mut output = stream.alloc_zeros::<f32>(count)?;
        comm.reduce_scatter(&input, &mut output, ReduceOp::Sum, &stream)?;
        let seen = stream.clone_dtoh(&output)?;
        ensure!((0..count).all(|k| seen[k] == sum(rank * count + k)), "reduce_scatter of {count}");

        let block = |rank: usize| (0..count).map(move |k| (rank * 1_000_003 + k) as u32);
        let input = stream.clone_htod(&block(rank).collect::<Vec<_>>())?;
        let mut all = stream.alloc_zeros::<u32>(world * count)?;
        comm.all_gather(&input, &mut all, &stream)?;
        let seen = stream.clone_dtoh(&all)?;
        ensure!(seen.into_iter().eq((0..world).flat_map(block)), "all_gather of {count}");

        let mut data = stream.clone_htod(&block(rank).collect::<Vec<_>>())?;
        comm.broadcast(&mut data, ROOT, &stream)?;
        ensure!(stream.clone_dtoh(&data)?.into_iter().eq(block(ROOT)), "broadcast of {count}");

        let send: Vec<usize> = (0..world).map(|to| uneven(rank, to, count)).collect();
        let receive: Vec<usize> = (0..world).map(|from| uneven(from, rank, count)).collect();
        let message = |from: usize, to: usize| {
            (0..uneven(from, to, count)).map(move |k| (from * 1_000_003 + to * 10_007 + k) as u32)
        };
        let sent: Vec<u32> = (0..world).flat_map(|to| message(rank, to)).collect();
        let input = stream.clone_htod(&sent)?;
        let mut output = stream.alloc_zeros::<u32>(receive.iter().sum())?;
        comm.all_to_all_v::<u32, _, _>(&input, &send, &mut output, &receive, &stream)?;
        let seen = stream.clone_dtoh(&output)?;
        let expected = (0..world).flat_map(|from| message(from, rank));
        ensure!(seen.into_iter().eq(expected), "all_to_all_v of {count}");
    }
    comm.synchronize_stream(&stream)?;
    Ok(())
}

//! What a call costs beside moving data: plan look-up and launch, and the sums of 16-bit floats.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use warpmesh::{Communicator, Element, ReduceOp};

criterion_group!(benches, launch, sums);
criterion_main!(benches);

/// An all-reduce of 8 bytes with nobody else: all that is left is the way to the plan and through
/// the executor.
fn launch(c: &mut Criterion) {
    let mut comm = Communicator::builder().local(1).expect("one rank").remove(0);
    let mut data = comm.alloc::<f32>(2).expect("8 bytes");
    c.bench_function("launch/all_reduce 8 B, 1 rank", |b| {
        b.iter(|| comm.all_reduce(&mut data, ReduceOp::Sum).expect("alone"));
    });
}

/// An all-reduce of 64 KiB between two ranks, which is mostly the fold.
fn sums(c: &mut Criterion) {
    let mut group = c.benchmark_group("sum 64 KiB, 2 ranks");
    group.throughput(Throughput::Bytes(64 << 10));
    group.bench_function("f16", |b| b.iter_custom(|iters| all_reduce(f16::ONE, iters)));
    group.bench_function("bf16", |b| b.iter_custom(|iters| all_reduce(bf16::ONE, iters)));
    group.bench_function("f32", |b| b.iter_custom(|iters| all_reduce(1_f32, iters)));
    group.finish();
}

/// The time of `iters` all-reduces on rank 0; rank 1 does as many.
fn all_reduce<T: Element>(one: T, iters: u64) -> Duration {
    let ranks = Communicator::builder().local(2).expect("two ranks");
    let start = Barrier::new(2);
    let run = |mut comm: Communicator| {
        let count = (64 << 10) / size_of::<T>();
        let mut data = comm.alloc::<T>(count).expect("64 KiB");
        data.fill(one);
        comm.all_reduce(&mut data, ReduceOp::Max).expect("both are here");
        start.wait();
        let began = Instant::now();
        for _ in 0..iters {
            // The mean of equal numbers stays what it is, so nothing overflows.
            comm.all_reduce(&mut data, ReduceOp::Avg).expect("both are here");
        }
        began.elapsed()
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = ranks.into_iter().map(|comm| scope.spawn(|| run(comm))).collect();
        let times: Vec<_> = ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect();
        times[0]
    })
}

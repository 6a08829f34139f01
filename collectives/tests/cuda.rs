//! Collectives on GPUs: every collective, type, operator, size, offset and placement against an oracle, by every plan that
//! has a kernel. Needs a CUDA driver and NVRTC; `cargo xtask test` runs it on virtual GPUs.

mod common;

use common::cases::{Case, Op, awkward, cases};
use common::gpu::{self, Memory, check};
use proptest::prelude::*;
use warpmesh::algorithms::{self, Algorithm};
use warpmesh::plan::Collective;
use warpmesh::{DataType, Element, RawCall, ReduceOp};

/// A call of the algorithm's collective.
fn case(algorithm: &Algorithm, world: usize, count: usize) -> Case {
    Case {
        world,
        collective: algorithm.collective,
        dtype: DataType::F32,
        op: Op::Sum,
        count,
        root: world / 2,
        offsets: (0, 0),
        registered: true,
        symmetric: false,
        in_place: false,
        canonical: false,
        algorithm: Some(algorithm.name),
    }
}

fn algorithms() -> impl Iterator<Item = &'static Algorithm> {
    let data = |a: &&Algorithm| a.collective != Collective::Barrier;
    algorithms::ALL.iter().copied().filter(data)
}

#[test]
fn every_algorithm_for_every_number_of_ranks() {
    let Some(gpus) = gpu::count() else { return };
    for algorithm in algorithms() {
        for world in [1, 2, 3, 4, 5, 8].into_iter().filter(|world| *world <= gpus.max(4)) {
            let counts = [1, 2 * world + 1, 1000];
            check(&counts.map(|count| case(algorithm, world, count)));
        }
    }
}

/// One thread block, then several, then fewer: the slices of a block are others than in the call before.
#[test]
fn calls_of_every_size_follow_each_other() {
    let Some(gpus) = gpu::count() else { return };
    for algorithm in algorithms() {
        for world in [2, 3, 5].into_iter().filter(|world| *world <= gpus.max(3)) {
            let counts = [1000, 30_000, 30_000, 9, 12_000, 12_000, 30_000];
            check(&counts.map(|count| case(algorithm, world, count)));
        }
    }
}

/// More sources and destinations than moves of a node of eight GPUs have.
#[test]
fn an_all_reduce_of_many_ranks() {
    if gpu::count().is_some() {
        let named =
            |a: &&Algorithm| ["one_shot_packet", "two_shot_packet", "direct"].contains(&a.name);
        for algorithm in
            algorithms().filter(named).filter(|a| a.collective == Collective::AllReduce)
        {
            check(&[case(algorithm, 34, 1000)]);
        }
    }
}

/// Small enough to be run under many seeds: calls of each algorithm on one communicator, on memory that is registered and
/// that is not, in place and not.
#[test]
fn every_algorithm_in_weak_memory() {
    if gpu::count().is_none() {
        return;
    }
    // Those of the switch, too: where there is one, these take them.
    for algorithm in algorithms().chain(algorithms::MULTICAST.iter().copied()) {
        for world in [2, 3] {
            let plain = Case { symmetric: true, ..case(algorithm, world, 700) };
            let staged = Case { registered: false, in_place: true, ..plain };
            // Several blocks after one, and fewer again.
            let [longer, shorter] = [9000, 5000].map(|count| Case { count, ..plain });
            check(&[plain, staged, longer, shorter]);
        }
    }
}

/// A launch of several rounds, then one whose blocks have longer slices: each writes where several of a peer's blocks may still read
/// what came in the round before the last.
#[test]
fn launches_with_other_slices_in_weak_memory() {
    if gpu::count().is_none() {
        return;
    }
    let named = |a: &&Algorithm| (a.collective, a.name) == (Collective::Scatter, "staged");
    let algorithm = algorithms().find(named).unwrap();
    let counts = [300_000, 240_000];
    check(&counts.map(|count| Case { registered: false, ..case(algorithm, 8, count) }));
}

#[test]
fn every_type_and_operator() {
    if gpu::count().is_none() {
        return;
    }
    // A kernel is compiled for each: the algorithms take turns.
    let all: Vec<_> = algorithms().filter(|a| a.collective == Collective::AllReduce).collect();
    let mut cases = vec![Vec::new(); all.len()];
    for (row, dtype) in DataType::ALL.into_iter().enumerate() {
        for (column, op) in Op::ALL.into_iter().enumerate() {
            let turn = (row + column) % all.len();
            let (offsets, in_place) = ((1, 1), true);
            cases[turn].push(Case { dtype, op, offsets, in_place, ..case(all[turn], 3, 1001) });
        }
    }
    cases.iter().for_each(|cases| check(cases));
    // Alone, a factor is all that there is to do.
    for algorithm in all {
        check(&[Case { op: Op::PreMulSum, offsets: (5, 7), ..case(algorithm, 1, 531) }]);
    }
}

/// All-reduces numbers whose sum depends on the order and on where it is rounded, on the host and by each plan on GPUs.
fn canonical_bits<T: Element>(of: fn(f32) -> T) {
    const COUNT: usize = 5003;
    let settings = || common::settings().canonical(true);
    let mine = |rank| -> Vec<T> { (0..COUNT).map(|k| of(awkward(rank, k))).collect() };
    for world in [3, 8] {
        let host = common::ranks_with(settings(), world, |mut comm| {
            let mut data = mine(comm.rank());
            comm.all_reduce(&mut data, ReduceOp::Sum).unwrap();
            data
        });
        for algorithm in algorithms().filter(|a| a.collective == Collective::AllReduce) {
            let builder = settings().algorithm(algorithm.name);
            let same = gpu::ranks_with(builder, world, |mut rank| {
                let me = rank.comm.rank();
                let memory = Memory::symmetric(&mut rank, COUNT * size_of::<T>());
                rank.upload(memory.address(), &mine(me));
                let at = memory.address() as usize;
                let call = RawCall {
                    collective: Collective::AllReduce,
                    dtype: T::DTYPE,
                    op: ReduceOp::Sum,
                    root: 0,
                    count: COUNT,
                    input: at as *const u8,
                    output: at as *mut u8,
                };
                rank.call(&call).unwrap();
                rank.synchronize().unwrap();
                let data = rank.download::<T>(memory.address(), COUNT);
                bytemuck::cast_slice::<T, u8>(&data) == bytemuck::cast_slice::<T, u8>(&host[me])
            });
            assert!(same.into_iter().all(|same| same), "{} {} {world}", algorithm.name, T::DTYPE);
        }
    }
}

#[test]
fn canonical_bits_are_those_of_the_host_device() {
    if gpu::count().is_some() {
        canonical_bits(|x| x);
        canonical_bits(f64::from);
        canonical_bits(half::f16::from_f32);
        canonical_bits(half::bf16::from_f32);
        canonical_bits(float8::F8E4M3::from_f32);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_is_exact(case in cases()) {
        if gpu::count().is_some() {
            check(&[case]);
        }
    }
}

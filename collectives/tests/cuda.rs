//! Collectives on GPUs: every collective, type, operator, size, offset and placement against an oracle, by every plan that
//! has a kernel. Needs a CUDA driver and NVRTC; `cargo xtask test` runs it on virtual GPUs.

mod common;

use common::cases::{Case, Op, cases};
use common::gpu::{self, check};
use proptest::prelude::*;
use warpmesh::DataType;
use warpmesh::plan::Collective;

/// A call of the algorithm's collective.
fn case(algorithm: &warpmesh::algorithms::Algorithm, world: usize, count: usize) -> Case {
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

fn algorithms() -> impl Iterator<Item = &'static warpmesh::algorithms::Algorithm> {
    let data = |a: &&warpmesh::algorithms::Algorithm| a.collective != Collective::Barrier;
    warpmesh::algorithms::ALL.iter().copied().filter(data)
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

/// Small enough to be run under many seeds: three calls of each algorithm on one communicator, on memory that is registered and
/// that is not, in place and not.
#[test]
fn every_algorithm_in_weak_memory() {
    if gpu::count().is_none() {
        return;
    }
    for algorithm in algorithms() {
        for world in [2, 3] {
            let plain = case(algorithm, world, 700);
            check(&[plain, Case { registered: false, in_place: true, ..plain }]);
        }
    }
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

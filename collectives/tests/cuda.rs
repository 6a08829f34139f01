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

#[test]
fn every_type_and_operator() {
    if gpu::count().is_none() {
        return;
    }
    for algorithm in algorithms().filter(|a| a.collective == Collective::AllReduce) {
        let mut cases = Vec::new();
        for dtype in DataType::ALL {
            for op in [Op::Sum, Op::Prod, Op::Min, Op::Max, Op::Avg, Op::PreMulSum] {
                let (offsets, in_place) = ((1, 1), true);
                cases.push(Case { dtype, op, offsets, in_place, ..case(algorithm, 3, 1001) });
            }
        }
        check(&cases);
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

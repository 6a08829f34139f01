//! Collectives on GPUs: every collective, type, operator, size, offset and placement against an oracle, by every plan that
//! has a kernel. Needs a CUDA driver and NVRTC; `cargo xtask test` runs it on virtual GPUs.

mod common;

use common::cases::{Case, Number, Op, alias, by_type, cases, reduce_op, result, value};
use common::gpu::{self, Memory, Rank};
use proptest::prelude::*;
use warpmesh::plan::Collective;
use warpmesh::{DataType, RawCall};

/// Runs cases of one world, algorithm and mode on one communicator.
fn check(cases: &[Case]) {
    let Some(first) = cases.first() else { return };
    let mut builder = common::settings().canonical(first.canonical);
    if let Some(name) = first.algorithm {
        builder = builder.algorithm(name);
    }
    let problems = gpu::ranks_with(builder, first.world, |mut rank| {
        let mut wrong = |case: &Case| by_type!(case.dtype, run(&mut rank, *case));
        cases.iter().find_map(|case| wrong(case).map(|problem| (*case, problem)))
    });
    for (rank, problem) in problems.into_iter().enumerate() {
        assert!(problem.is_none(), "rank {rank}: {problem:?}");
    }
}

/// Runs a case three times on one rank, without a pause between; returns what is wrong.
fn run<T: Number>(rank: &mut Rank, case: Case) -> Option<String> {
    let Case { world, collective, count, root, offset, in_place, op, .. } = case;
    let me = rank.comm.rank();
    let (inputs, outputs) = collective.blocks(world, root, me);
    let space = offset + world * count + 8;
    let guard = vec![T::of(3); space];
    let input = Memory::new(rank, size_of_val(&guard[..]), case.registered);
    let output = Memory::new(rank, size_of_val(&guard[..]), case.registered);
    let place = if in_place { alias(collective, me, root, count) } else { None };
    let (start_in, start_out) = place.map_or((offset, offset), |(i, o)| (offset + i, offset + o));
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

/// A call of the algorithm's collective.
fn case(algorithm: &warpmesh::algorithms::Algorithm, world: usize, count: usize) -> Case {
    Case {
        world,
        collective: algorithm.collective,
        dtype: DataType::F32,
        op: Op::Sum,
        count,
        root: world / 2,
        offset: 0,
        registered: true,
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
                let (offset, in_place) = (1, true);
                cases.push(Case { dtype, op, offset, in_place, ..case(algorithm, 3, 1001) });
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

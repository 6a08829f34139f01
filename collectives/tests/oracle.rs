//! Every collective, type, operator, size, offset, placement and plan against an oracle that is
//! exact in any order.

mod common;

use common::cases::{Case, Number, Op, alias, by_type, cases, reduce_op, result, value};
use proptest::prelude::*;
use warpmesh::algorithms::{Layout, NODES, NodeAlgorithm};
use warpmesh::plan::Collective;
use warpmesh::{Communicator, DataType, RawCall};

fn check(case: Case) {
    by_type!(case.dtype, check_typed(case));
}

fn check_typed<T: Number>(case: Case) {
    let mut builder = common::settings().canonical(case.canonical);
    if let Some(name) = case.algorithm {
        builder = builder.algorithm(name);
    }
    let problems = common::ranks_with(builder, case.world, |mut comm| run::<T>(&mut comm, case));
    for (rank, problem) in problems.into_iter().enumerate() {
        assert_eq!(problem, None, "rank {rank} of {case:?}");
    }
}

/// Runs a case twice on one rank; returns what is wrong.
fn run<T: Number>(comm: &mut Communicator, case: Case) -> Option<String> {
    let Case { world, collective, count, root, offsets, in_place, op, .. } = case;
    let rank = comm.rank();
    let (inputs, outputs) = collective.blocks(world, root, rank);
    let space = offsets.0.max(offsets.1) + world * count + 8;
    let (mut memory_in, mut memory_out, mut plain_in, mut plain_out);
    let (input, output): (&mut [T], &mut [T]) = if case.registered {
        memory_in = comm.alloc::<T>(space).unwrap();
        memory_out = comm.alloc::<T>(space).unwrap();
        (&mut memory_in, &mut memory_out)
    } else {
        plain_in = vec![T::of(0); space];
        plain_out = vec![T::of(0); space];
        (&mut plain_in, &mut plain_out)
    };
    for _ in 0..2 {
        let guard = T::of(3);
        output.fill(guard);
        let place = if in_place { alias(collective, rank, root, count) } else { None };
        let (start_in, start_out) = match place {
            Some((start_in, start_out)) => (offsets.1 + start_in, offsets.1 + start_out),
            None => offsets,
        };
        let from: &mut [T] = if place.is_some() { output } else { input };
        for i in 0..inputs * count {
            from[start_in + i] = T::of(value(op, rank, i / count, i % count, world));
        }
        let before_out: Vec<T> = output.to_vec();
        let base = if place.is_some() { output.as_ptr() } else { input.as_ptr() };
        let call = RawCall {
            collective,
            dtype: T::DTYPE,
            op: reduce_op::<T>(op, rank),
            root,
            count,
            input: base.wrapping_add(start_in).cast(),
            output: output.as_mut_ptr().wrapping_add(start_out).cast(),
        };
        // SAFETY: both buffers hold `space` elements, which covers all blocks at these starts.
        if let Err(error) = unsafe { comm.call(&call) } {
            return Some(error.to_string());
        }
        for (i, (seen, before)) in output.iter().zip(&before_out).enumerate() {
            let inside = i >= start_out && i < start_out + outputs * count;
            let want = match inside {
                true => result::<T>(case, rank, (i - start_out) / count, (i - start_out) % count),
                false => *before,
            };
            if bytemuck::bytes_of(seen) != bytemuck::bytes_of(&want) {
                return Some(format!(
                    "element {i} (output from {start_out}) is {seen:?}, not {want:?}"
                ));
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_is_exact(case in cases()) {
        check(case);
    }
}

/// Every algorithm by name, with every type and operator that it reduces, at a size of several
/// rounds for the staged ones.
#[test]
fn every_algorithm_with_every_type_and_operator() {
    for algorithm in warpmesh::algorithms::ALL {
        if algorithm.collective == Collective::Barrier {
            continue;
        }
        let ops: &[Op] = match algorithm.collective.reduces() {
            true => &Op::ALL,
            false => &[Op::Sum],
        };
        for dtype in DataType::ALL {
            for op in ops {
                check(Case {
                    world: 3,
                    collective: algorithm.collective,
                    dtype,
                    op: *op,
                    count: 1001,
                    root: 1,
                    offsets: (1, 1),
                    registered: true,
                    symmetric: false,
                    in_place: algorithm.collective != Collective::AllToAll,
                    canonical: false,
                    algorithm: Some(algorithm.name),
                });
            }
        }
    }
}

#[test]
fn messages_of_many_rounds_are_exact() {
    for algorithm in warpmesh::algorithms::ALL {
        if algorithm.collective == Collective::Barrier {
            continue;
        }
        for (world, count) in [(2, 2_000_003), (5, 300_001)] {
            check(Case {
                world,
                collective: algorithm.collective,
                dtype: DataType::F32,
                op: Op::Sum,
                count,
                root: world - 1,
                offsets: (0, 0),
                registered: true,
                symmetric: false,
                in_place: false,
                canonical: false,
                algorithm: Some(algorithm.name),
            });
        }
    }
}

/// Plans for several nodes: between hosts, and on one, where what they put to other nodes is a move.
#[test]
fn plans_for_several_nodes_are_exact() {
    for hosts in [&[0, 0, 1, 1][..], &[0, 1, 0], &[0, 0, 0, 1, 2], &[0, 1]] {
        for algorithm in NODES.iter().filter(|a| a.collective != Collective::Barrier) {
            for (dtype, op, count) in [
                (DataType::F32, Op::Sum, 100_003),
                (DataType::Bf16, Op::Avg, 1001),
                (DataType::I8, Op::Max, 5),
                (DataType::F64, Op::PreMulSum, 77),
            ] {
                let collective = algorithm.collective;
                let case = Case {
                    world: hosts.len(),
                    collective,
                    dtype,
                    op,
                    count,
                    root: hosts.len() - 1,
                    offsets: (1, 2),
                    registered: count > 1000 || count == 5,
                    symmetric: false,
                    in_place: collective != Collective::AllToAll && count % 2 == 1,
                    canonical: algorithm.name == "in_order",
                    algorithm: Some(algorithm.name),
                };
                by_type!(dtype, check_on_hosts(case, hosts));
                by_type!(dtype, check_on_one(case, algorithm, hosts));
            }
        }
    }
}

fn check_on_hosts<T: Number>(case: Case, hosts: &[usize]) {
    let builder = common::settings().canonical(case.canonical).algorithm(case.algorithm.unwrap());
    let problems = common::ranks_on_hosts(&builder, hosts, |mut comm| run::<T>(&mut comm, case));
    for (rank, problem) in problems.into_iter().enumerate() {
        assert_eq!(problem, None, "rank {rank} of {case:?} on hosts {hosts:?}");
    }
}

/// On one host, with the plan loaded for it.
fn check_on_one<T: Number>(case: Case, algorithm: &NodeAlgorithm, hosts: &[usize]) {
    let plan = algorithm.plan(&Layout::new(hosts), case.root);
    let builder = common::settings().canonical(case.canonical).algorithm(algorithm.name);
    let problems = common::ranks_with(builder, case.world, |mut comm| {
        comm.add_plan(plan.clone()).unwrap();
        run::<T>(&mut comm, case)
    });
    for (rank, problem) in problems.into_iter().enumerate() {
        assert_eq!(problem, None, "rank {rank} of {case:?}, {}", algorithm.name);
    }
}

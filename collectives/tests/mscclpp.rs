//! Plans in MSCCL++'s JSON form, run with real data: what is proven of them is what they do.

mod common;

use std::path::PathBuf;

use warpmesh::plan::{Collective, Plan};
use warpmesh::{Communicator, DataType, ReduceOp};

/// The plans' texts, except those of more ranks than a small machine has.
fn plans() -> Vec<Plan> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    let read = |file| Plan::read(&std::fs::read_to_string(file).unwrap()).unwrap();
    files.into_iter().map(read).filter(|plan| plan.shape.world <= 4).collect()
}

/// An element of a rank's input: sums of it are exact.
fn element(rank: usize, i: usize) -> f32 {
    ((i * 7 + rank * 13) % 101) as f32
}

#[test]
fn every_plan_computes_its_collective() {
    let plans = plans();
    assert!(plans.len() > 20);
    for plan in plans {
        let settings = common::settings().algorithm(&plan.shape.name);
        common::ranks_with(settings, plan.shape.world, |mut comm| {
            comm.add_plan(plan.clone()).unwrap();
            let explained = comm.explain(plan.shape.collective, DataType::F32, 1000, true);
            assert!(explained.contains(&format!("-> {}", plan.shape.name)), "{explained}");
            // One element, odd numbers, several rounds; each again, so that slots are used again.
            for count in [1, 3, 257, 100_003, 1, 257, 100_003] {
                run(&mut comm, plan.shape.collective, count, &plan.shape.name);
            }
        });
    }
}

fn run(comm: &mut Communicator, collective: Collective, count: usize, name: &str) {
    let (rank, world) = (comm.rank(), comm.world());
    let (inputs, outputs) = collective.blocks(world, 0, rank);
    let mut input = comm.alloc::<f32>(inputs * count).unwrap();
    let mut output = comm.alloc::<f32>(outputs * count).unwrap();
    for (i, x) in input.iter_mut().enumerate() {
        *x = element(rank, i);
    }
    output.fill(-1.0);
    match collective {
        Collective::AllReduce => comm.all_reduce_into(&input, &mut output, ReduceOp::Sum),
        Collective::AllGather => comm.all_gather(&input, &mut output),
        Collective::ReduceScatter => comm.reduce_scatter(&input, &mut output, ReduceOp::Sum),
        _ => comm.all_to_all(&input, &mut output),
    }
    .unwrap();
    let sum = |i: usize| (0..world).map(|rank| element(rank, i)).sum::<f32>();
    for (i, x) in output.iter().enumerate() {
        let (block, at) = (i / count, i % count);
        let expected = match collective {
            Collective::AllReduce => sum(i),
            Collective::AllGather => element(block, at),
            Collective::ReduceScatter => sum(rank * count + at),
            _ => element(block, rank * count + at),
        };
        assert_eq!(*x, expected, "{name}, rank {rank}, element {i} of {count}");
    }
}

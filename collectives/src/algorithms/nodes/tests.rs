use std::sync::Arc;

use super::patterns::{CLEAR, DONE, READY, SEMAPHORES};
use super::*;
use crate::plan::Place;
use crate::plan::Whose;
use crate::plan::verify::{verify, verify_sequence};

/// Ranks of each node, for a number of layouts: even, uneven, one rank a node, ranks dealt out in turn.
fn layouts() -> Vec<Arc<Layout>> {
    let keys: [&[usize]; 12] = [
        &[0, 0, 1, 1],
        &[0, 1],
        &[0, 1, 2],
        &[0, 0, 0, 1],
        &[0, 1, 1, 1, 1],
        &[0, 1, 0, 1],
        &[0, 0, 1, 1, 2, 2],
        &[0, 0, 0, 1, 1, 2, 2, 2],
        &[0, 1, 2, 0, 1, 2, 0],
        &[0, 0, 0, 0, 1, 1, 1, 1],
        &[0, 0, 1, 2, 2, 2, 2, 3],
        &[0, 0],
    ];
    keys.map(|keys| Arc::new(Layout::new(keys))).to_vec()
}

fn plans(layout: &Arc<Layout>) -> impl Iterator<Item = (&'static NodeAlgorithm, Plan)> + use<> {
    let layout = layout.clone();
    NODES.iter().flat_map(move |algorithm| {
        let roots = if algorithm.collective.is_rooted() { layout.world() } else { 1 };
        let layout = layout.clone();
        (0..roots).map(move |root| (*algorithm, algorithm.plan(&layout, root)))
    })
}

/// What an algorithm's plans all keep: with another root a sum may be in rank order by chance.
fn proven(algorithm: &NodeAlgorithm, layout: &Layout) -> Claims {
    let roots = if algorithm.collective.is_rooted() { layout.world() } else { 1 };
    let claims = (0..roots).map(|root| {
        let name = format!("{} {} {root} {layout:?}", algorithm.collective, algorithm.name);
        verify(&algorithm.plan(layout, root))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .claims
    });
    claims.reduce(|a, b| a.and(&b)).expect("there is a rank")
}

#[test]
fn every_plan_is_proven_and_keeps_its_claims() {
    for layout in layouts() {
        for algorithm in NODES {
            let name = format!("{} {} {layout:?}", algorithm.collective, algorithm.name);
            let proven = proven(algorithm, &layout);
            if layout.nodes() > 1 && layout.rails() > 1 {
                // What a rank that is alone sends as it is belongs to no rank any more; here are none.
                let contributors = proven.contributors && algorithm.claims.contributors;
                assert_eq!(Claims { contributors, ..proven }, algorithm.claims, "{name}");
            } else {
                assert!(proven.cover(&algorithm.claims), "{name}: {proven:?}");
            }
        }
    }
}

#[test]
fn any_number_of_workers_computes_the_same() {
    for keys in [&[0, 0, 1, 1][..], &[0, 1], &[0, 0, 0, 1, 2]] {
        let layout = Layout::new(keys);
        for algorithm in NODES {
            for workers in [1, 2, 3, MOST_WORKERS] {
                let name = format!("{} {} of {workers}", algorithm.collective, algorithm.name);
                let algorithm = algorithm.with_workers(workers);
                let plan = algorithm.plan(&layout, 0);
                assert!(plan.programs.iter().all(|p| p.workers.len() == workers), "{name}");
                let proven = proven(&algorithm, &layout);
                assert!(proven.cover(&algorithm.claims), "{name}: {proven:?}");
            }
        }
    }
}

#[test]
fn any_plan_can_follow_any_other() {
    for keys in [&[0, 0, 1, 1][..], &[0, 0, 0, 1, 2]] {
        let layout = Arc::new(Layout::new(keys));
        let all: Vec<_> = plans(&layout).filter(|(_, plan)| plan.shape.root <= 1).collect();
        for (_, first) in &all {
            for (_, second) in &all {
                let sequence = [(first, 2), (second, 1), (first, 1), (second, 3)];
                verify_sequence(&sequence).unwrap_or_else(|error| {
                    panic!("{:?} then {:?}: {error}", first.shape, second.shape)
                });
            }
        }
    }
}

/// Signals without data are what lends a rank's buffers to others: without any one kind of them there is a race, or a
/// rank returns before its output is written.
#[test]
fn no_signal_of_plans_for_registered_memory_can_be_left_out() {
    let layout = Layout::new(&[0, 0, 1, 1]);
    let mut tried = 0;
    for algorithm in NODES.iter().filter(|a| a.name.ends_with("_direct")) {
        for semaphore in [CLEAR, READY, DONE] {
            let mut plan = algorithm.plan(&layout, 0);
            let keep = |instruction: &Instruction| match instruction {
                Instruction::Signal { semaphore: s, .. }
                | Instruction::Wait { semaphore: s, .. } => s % SEMAPHORES != semaphore,
                _ => true,
            };
            let lists = || plan.programs.iter().flat_map(|program| &program.workers).flatten();
            if lists().all(keep) {
                continue;
            }
            plan.programs
                .iter_mut()
                .flat_map(|p| &mut p.workers)
                .for_each(|list| list.retain(keep));
            let name = format!("{} without {semaphore}", algorithm.collective);
            assert!(verify(&plan).is_err(), "{name}");
            tried += 1;
        }
    }
    assert_eq!(tried, 15, "two kinds in each sum, three elsewhere");
}

/// What goes between nodes is a put, or a signal without data.
#[test]
fn only_puts_reach_memory_of_other_nodes() {
    for layout in layouts() {
        for (algorithm, plan) in plans(&layout) {
            for (rank, program) in plan.programs.iter().enumerate() {
                let near = |place: &Place| match place.whose {
                    Whose::Rank(owner) => layout.node_of(owner) == layout.node_of(rank),
                    Whose::Group => false,
                };
                for instruction in program.workers.iter().flatten() {
                    let fine = match instruction {
                        Instruction::Move { to, from, .. } => to.iter().chain(from).all(near),
                        Instruction::Put { to, from, .. } => near(from) && !near(to),
                        _ => true,
                    };
                    assert!(fine, "{} {}: {instruction:?}", algorithm.collective, algorithm.name);
                }
            }
        }
    }
}

/// Parts of the message that an all-reduce puts to other nodes, from all ranks of a node: no more than must be.
#[test]
fn an_all_reduce_sends_no_more_than_it_must() {
    for (keys, nodes) in [(&[0, 0, 1, 1][..], 2), (&[0, 0, 0, 1, 1, 1, 2, 2, 2], 3)] {
        let layout = Arc::new(Layout::new(keys));
        for algorithm in [plans::ALL_REDUCE, direct::ALL_REDUCE] {
            let plan = algorithm.plan(&layout, 0);
            let puts = |rank: &usize| {
                let list = plan.programs[*rank].workers.iter().flatten();
                list.filter(|i| matches!(i, Instruction::Put { .. })).count()
            };
            let sent: usize = layout.members(0).iter().map(puts).sum();
            // 2 (n - 1) / n of the message, of which a part is 1 / (rails n workers).
            assert_eq!(sent, 2 * (nodes - 1) * layout.rails() * algorithm.workers);
        }
    }
}

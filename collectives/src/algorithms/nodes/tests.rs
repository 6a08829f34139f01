use std::sync::Arc;

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

#[test]
fn every_plan_is_proven_and_keeps_its_claims() {
    for layout in layouts() {
        for (algorithm, plan) in plans(&layout) {
            let name = format!("{} {} {layout:?}", algorithm.collective, algorithm.name);
            let proof = verify(&plan).unwrap_or_else(|error| panic!("{name}: {error}"));
            if layout.nodes() > 1 && layout.rails() > 1 {
                // What a rank that is alone sends as it is belongs to no rank any more; here are none.
                let contributors = proof.claims.contributors && algorithm.claims.contributors;
                let claims = Claims { contributors, ..proof.claims };
                assert_eq!(claims, algorithm.claims, "{name}");
            } else {
                assert!(proof.claims.cover(&algorithm.claims), "{name}: {:?}", proof.claims);
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
        let plan = plans::ALL_REDUCE.plan(&layout, 0);
        let puts = |rank: &usize| {
            let list = plan.programs[*rank].workers.iter().flatten();
            list.filter(|i| matches!(i, Instruction::Put { .. })).count()
        };
        let sent: usize = layout.members(0).iter().map(puts).sum();
        // 2 (n - 1) / n of the message, of which a part is 1 / (rails n).
        assert_eq!(sent, 2 * (nodes - 1) * layout.rails());
    }
}

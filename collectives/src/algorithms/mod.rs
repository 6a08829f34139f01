//! The built-in algorithms. Each is a constant [`Algorithm`]: its shape, what it promises, and a
//! function that writes one rank's program. To add one, write a file like [`ring`](self) and list
//! it in [`ALL`] or [`MULTICAST`]; the tests then verify it for 1–16 ranks, run it against the oracle, and the
//! selection takes it where the cost model finds it fastest.
#![forbid(unsafe_code)]

mod built_in;
mod direct;
mod multicast;
mod nodes;
mod packet;
mod ring;
mod staged;

pub(crate) use self::built_in::BuiltIn;
pub(crate) use self::nodes::NODE_SEMAPHORES;
pub use self::nodes::{Layout, MOST_WORKERS, NODES, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Plan, Program, Shape};

/// An algorithm for one collective, for any number of ranks.
#[derive(Debug)]
pub struct Algorithm {
    /// Its name, unique within the collective.
    pub name: &'static str,
    /// What it computes.
    pub collective: Collective,
    /// Parts that a window is cut into, by world size.
    pub parts: fn(usize) -> usize,
    /// Slots of scratch memory per rank, by world size.
    pub scratch: fn(usize) -> usize,
    /// Slots of packet memory per rank, by world size.
    pub packets: fn(usize) -> usize,
    /// What the verifier finds for it; a test compares.
    pub claims: Claims,
    /// Writes the program of the builder's rank.
    pub write: fn(&mut Builder),
}

impl Algorithm {
    /// The shape for a world.
    pub fn shape(&self, world: usize, root: usize) -> Shape {
        Shape {
            name: self.name.to_owned(),
            collective: self.collective,
            world,
            root,
            parts: (self.parts)(world),
            scratch: (self.scratch)(world),
            packets: (self.packets)(world),
        }
    }

    /// One rank's program.
    pub fn program(&self, rank: usize, world: usize, root: usize) -> Program {
        let mut builder = Builder::new(rank, world, root);
        (self.write)(&mut builder);
        builder.finish()
    }

    /// The whole plan, for the verifier, for printing and for other tools.
    pub fn plan(&self, world: usize, root: usize) -> Plan {
        let programs = (0..world).map(|rank| self.program(rank, world, root)).collect();
        Plan { shape: self.shape(world, root), programs }
    }
}

/// The built-in algorithms that any device can run. Where two are predicted equally fast, the earlier one is taken.
pub const ALL: &[&Algorithm] = &[
    &packet::ONE_SHOT,
    &packet::ONE_SHOT_PULL,
    &packet::TWO_SHOT,
    &direct::ALL_REDUCE,
    &staged::ONE_SHOT,
    &staged::ALL_REDUCE,
    &ring::ALL_REDUCE,
    &packet::ALL_GATHER,
    &direct::ALL_GATHER,
    &staged::ALL_GATHER,
    &packet::REDUCE_SCATTER,
    &direct::REDUCE_SCATTER,
    &staged::REDUCE_SCATTER,
    &packet::BROADCAST,
    &direct::BROADCAST,
    &staged::BROADCAST,
    &packet::REDUCE,
    &direct::REDUCE,
    &staged::REDUCE,
    &packet::ALL_TO_ALL,
    &direct::ALL_TO_ALL,
    &staged::ALL_TO_ALL,
    &packet::GATHER,
    &direct::GATHER,
    &staged::GATHER,
    &packet::SCATTER,
    &direct::SCATTER,
    &staged::SCATTER,
    &staged::BARRIER,
];

/// Those for GPUs behind a switch that reduces and multiplies: they address all ranks' memory at once.
pub const MULTICAST: &[&Algorithm] = &[
    &multicast::ONE_SHOT,
    &multicast::ALL_REDUCE,
    &multicast::STAGED,
    &multicast::ALL_GATHER_PACKETS,
    &multicast::ALL_GATHER,
    &multicast::ALL_GATHER_STAGED,
    &multicast::REDUCE_SCATTER,
    &multicast::REDUCE_SCATTER_STAGED,
];

/// All built-in algorithms: [`ALL`], then [`MULTICAST`].
pub fn all() -> impl Iterator<Item = &'static Algorithm> {
    ALL.iter().chain(MULTICAST).copied()
}

fn none(_: usize) -> usize {
    0
}

fn one(_: usize) -> usize {
    1
}

fn world(world: usize) -> usize {
    world
}

fn twice_world(world: usize) -> usize {
    2 * world
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::verify::{verify, verify_sequence};

    fn plans(world: usize) -> impl Iterator<Item = (&'static Algorithm, Plan)> {
        all().flat_map(move |algorithm| {
            let roots = if algorithm.collective.is_rooted() { 0..world } else { 0..1 };
            roots.map(move |root| (algorithm, algorithm.plan(world, root)))
        })
    }

    #[test]
    fn every_plan_is_proven_and_keeps_its_claims_for_1_to_16_ranks() {
        for world in 1..=16 {
            for (algorithm, plan) in plans(world) {
                let name = format!("{} {} of {world}", algorithm.collective, algorithm.name);
                let proof = verify(&plan).unwrap_or_else(|error| panic!("{name}: {error}"));
                // With one rank everything is in order and nothing needs to synchronise.
                if world > 2 {
                    assert_eq!(proof.claims, algorithm.claims, "{name}");
                } else {
                    assert!(proof.claims.cover(&algorithm.claims), "{name}: {:?}", proof.claims);
                }
            }
        }
    }

    #[test]
    fn any_plan_can_follow_any_other() {
        for world in [2, 3, 5] {
            let all: Vec<_> = plans(world).filter(|(_, plan)| plan.shape.root <= 1).collect();
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

    #[test]
    fn names_are_unique_within_a_collective() {
        for (i, a) in all().enumerate() {
            let same = |b: &Algorithm| b.collective == a.collective && b.name == a.name;
            assert!(!all().skip(i + 1).any(same), "{} {}", a.collective, a.name);
        }
    }
}

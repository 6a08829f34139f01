//! GPUs behind a switch that reduces and multiplies ("NVLS"): a load from the group's memory is the reduction over all ranks, a
//! store to it goes to all of them. So a rank moves a byte once, where it would else move one for each peer.
//!
//! The switch adds in an order that nobody knows, so its sums are not canonical. A part is loaded by one rank alone, which
//! sends it to all: that is why all have the same bits.
//!
//! Memory behind a multicast address goes when its owner lets go of it, whoever else still uses the address. So whoever finishes
//! one of these plans knows that all are done with it: after its last access each rank signals all others, or has sent them
//! packets, and everyone waits for these.

use super::{Algorithm, none, one, world};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Place};

const ENTER: usize = 0;
const LEAVE: usize = 1;

/// Windows of a round of [`STAGED`]: while one of them is under way, the next is copied in.
const STAGES: usize = 2;

/// Registered memory at the same place on all ranks: rank r reduces part r of the inputs in the switch, and sends it to
/// everyone's output.
pub(super) const ALL_REDUCE: Algorithm = Algorithm {
    name: "nvls",
    collective: Collective::AllReduce,
    parts: world,
    scratch: none,
    packets: none,
    claims: Claims::ALL.without_canonical(),
    write: |b| {
        let me = b.rank();
        b.barrier(ENTER);
        b.reduce(me, [b.output(0).of_group()], [b.input(0).of_group()]);
        b.barrier(LEAVE);
    },
};

/// Any memory: everyone stages its input, rank r replaces part r of everyone's by their sum, and everyone collects the sums.
///
/// A block's copies, waits and reductions follow each other, so the window is cut into stages. Nobody waits for a stage
/// before the next one is copied in and announced, and what is reduced is on its way out while the next stage is reduced:
///
/// ```text
///   in 0 | in 1 | reduce 0 | reduce 1 | out 0 | out 1
/// ```
pub(super) const STAGED: Algorithm = Algorithm {
    name: "nvls_staged",
    collective: Collective::AllReduce,
    parts: staged_parts,
    scratch: staged_parts,
    packets: none,
    claims: Claims::ALL.without_canonical(),
    write: |b| {
        let (me, n) = (b.rank(), b.world());
        // The own one first.
        let parts = |stage: usize| (0..n).map(move |r| stage * n + (me + r) % n);
        for stage in 0..STAGES {
            parts(stage).for_each(|part| b.copy(part, [b.scratch(part)], b.input(0)));
            b.signal(ENTER, b.peers());
        }
        for stage in 0..STAGES {
            let part = stage * n + me;
            b.wait(ENTER, b.peers());
            b.reduce(part, [b.scratch(part).of_group()], [b.scratch(part).of_group()]);
            b.signal(LEAVE, b.peers());
            b.copy(part, [b.output(0)], b.scratch(part));
        }
        for stage in 0..STAGES {
            b.wait(LEAVE, b.peers());
            parts(stage).skip(1).for_each(|part| b.copy(part, [b.output(0)], b.scratch(part)));
        }
    },
};

fn staged_parts(world: usize) -> usize {
    STAGES * world
}

/// As `one_shot_packet`, but what everyone sends leaves it once, not once for each peer. The sums are made by the ranks, in rank order.
pub(super) const ONE_SHOT: Algorithm = Algorithm {
    name: "one_shot_multicast",
    collective: Collective::AllReduce,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL,
    write: |b| {
        let (me, input) = (b.rank(), b.input(0));
        b.copy(0, [Place::packets(me, me).of_group()], input);
        let own = |rank| if rank == me { input } else { b.packets_from(rank, rank) };
        b.reduce(0, [b.output(0)], b.ranks().map(own).collect::<Vec<_>>());
    },
};

/// Registered memory at the same place on all ranks: everyone sends its input to everyone's output.
pub(super) const ALL_GATHER: Algorithm = Algorithm {
    name: "nvls",
    collective: Collective::AllGather,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        b.barrier(ENTER);
        b.copy(0, [b.output(b.rank()).of_group()], b.input(0));
        b.barrier(LEAVE);
    },
};

/// Any memory: everyone sends its input to everyone's scratch memory.
pub(super) const ALL_GATHER_STAGED: Algorithm = Algorithm {
    name: "nvls_staged",
    collective: Collective::AllGather,
    parts: one,
    scratch: world,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        b.copy(0, [b.scratch(me).of_group()], b.input(0));
        b.signal(ENTER, b.peers());
        b.copy(0, [b.output(me)], b.input(0));
        collect(b, |b, peer| {
            b.wait(ENTER, [peer]);
            b.copy(0, [b.output(peer)], b.scratch(peer));
        });
    },
};

/// Small messages: everyone sends its input to everyone as packets.
pub(super) const ALL_GATHER_PACKETS: Algorithm = Algorithm {
    name: "packet_multicast",
    collective: Collective::AllGather,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        b.copy(0, [Place::packets(me, me).of_group()], b.input(0));
        b.copy(0, [b.output(me)], b.input(0));
        collect(b, |b, peer| b.copy(0, [b.output(peer)], b.packets_from(peer, peer)));
    },
};

/// Registered memory at the same place on all ranks: rank r reduces everyone's block r in the switch.
pub(super) const REDUCE_SCATTER: Algorithm = Algorithm {
    name: "nvls",
    collective: Collective::ReduceScatter,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL.without_canonical(),
    write: |b| {
        b.barrier(ENTER);
        b.reduce(0, [b.output(0)], [b.input(b.rank()).of_group()]);
        b.barrier(LEAVE);
    },
};

/// Any memory: everyone stages its blocks, rank r reduces block r in the switch.
pub(super) const REDUCE_SCATTER_STAGED: Algorithm = Algorithm {
    name: "nvls_staged",
    collective: Collective::ReduceScatter,
    parts: one,
    scratch: world,
    packets: none,
    claims: Claims::ALL.without_canonical(),
    write: |b| {
        let me = b.rank();
        b.peers().for_each(|rank| b.copy(0, [b.scratch(rank)], b.input(rank)));
        b.signal(ENTER, b.peers());
        b.copy(0, [b.scratch(me)], b.input(me));
        b.wait(ENTER, b.peers());
        b.reduce(0, [b.output(0)], [b.scratch(me).of_group()]);
        b.barrier(LEAVE);
    },
};

/// Does something for each peer.
fn collect(b: &mut Builder, each: impl Fn(&mut Builder, usize)) {
    b.peers().for_each(|peer| each(b, peer));
}

#[cfg(test)]
mod tests {
    use super::super::MULTICAST;
    use crate::plan::{Buffer, Instruction, Place, Whose};

    #[test]
    fn whoever_finishes_knows_that_all_are_done_with_the_group_s_memory() {
        let plain = |place: &Place| place.whose == Whose::Group && place.buffer != Buffer::Packets;
        for (algorithm, world) in MULTICAST.iter().flat_map(|a| (2..9).map(move |n| (a, n))) {
            for rank in 0..world {
                let list = algorithm.program(rank, world, 0).workers.remove(0);
                let accesses = list.iter().rposition(|instruction| match instruction {
                    Instruction::Move { to, from, .. } => to.iter().chain(from).any(plain),
                    _ => false,
                });
                // What is signalled is awaited, as the verifier has proven.
                let told = |n: usize| {
                    list[n..].iter().any(|instruction| match instruction {
                        Instruction::Signal { to, .. } => to.len() == world - 1,
                        _ => false,
                    })
                };
                assert!(accesses.is_none_or(told), "{} {}", algorithm.collective, algorithm.name);
            }
        }
    }
}

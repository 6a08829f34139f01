//! Registered memory: ranks read and write each other's buffers where they are, nothing is staged.
//!
//! All of these begin with signals (the input that is read is complete, the output that is written
//! may be) and end with signals back (nobody touches it any more): between all ranks, or where only
//! the root's memory is reached, between it and each other rank. That is what makes it safe to hand
//! out the user's own memory.

use super::{Algorithm, none, one, world};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Place};

const ENTER: usize = 0;
const LEAVE: usize = 1;

/// Rank r reads part r of everyone's input, reduces it in rank order and writes the result to
/// everyone's output.
pub(super) const ALL_REDUCE: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::AllReduce,
    parts: world,
    scratch: none,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        b.barrier(ENTER);
        b.reduce(me, b.ranks().map(|rank| Place::output(rank, 0)), inputs(b, 0));
        b.barrier(LEAVE);
    },
};

/// Everyone writes its input into everyone's output.
pub(super) const ALL_GATHER: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::AllGather,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        b.barrier(ENTER);
        b.copy(0, b.ranks().map(|rank| Place::output(rank, me)), b.input(0));
        b.barrier(LEAVE);
    },
};

/// Rank r reads block r of everyone's input and reduces it in rank order.
pub(super) const REDUCE_SCATTER: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::ReduceScatter,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        b.barrier(ENTER);
        b.reduce(0, [b.output(0)], inputs(b, b.rank()));
        b.barrier(LEAVE);
    },
};

/// Everyone reads the root's input.
pub(super) const BROADCAST: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::Broadcast,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            b.signal(ENTER, b.peers());
            b.copy(0, [b.output(0)], b.input(0));
            b.wait(LEAVE, b.peers());
        } else {
            b.wait(ENTER, [b.root()]);
            b.copy(0, [b.output(0)], Place::input(b.root(), 0));
            b.signal(LEAVE, [b.root()]);
        }
    },
};

/// Rank r reads part r of everyone's input, reduces it and writes the result to the root's output.
pub(super) const REDUCE: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::Reduce,
    parts: world,
    scratch: none,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        b.barrier(ENTER);
        b.reduce(b.rank(), [Place::output(b.root(), 0)], inputs(b, 0));
        b.barrier(LEAVE);
    },
};

/// Everyone reads its block of everyone's input. In place it would overwrite blocks that others
/// still have to read.
pub(super) const ALL_TO_ALL: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::AllToAll,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL.without_in_place(),
    write: |b| {
        let me = b.rank();
        b.barrier(ENTER);
        b.copy(0, [b.output(me)], b.input(me));
        for peer in b.peers() {
            b.copy(0, [b.output(peer)], Place::input(peer, me));
        }
        b.barrier(LEAVE);
    },
};

/// Everyone writes its input into the root's output.
pub(super) const GATHER: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::Gather,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        let me = b.rank();
        if b.is_root() {
            b.signal(ENTER, b.peers());
        } else {
            b.wait(ENTER, [b.root()]);
        }
        b.copy(0, [Place::output(b.root(), me)], b.input(0));
        if b.is_root() {
            b.wait(LEAVE, b.peers());
        } else {
            b.signal(LEAVE, [b.root()]);
        }
    },
};

/// Everyone reads its block of the root's input.
pub(super) const SCATTER: Algorithm = Algorithm {
    name: "direct",
    collective: Collective::Scatter,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        let me = b.rank();
        if b.is_root() {
            b.signal(ENTER, b.peers());
            b.copy(0, [b.output(0)], b.input(me));
            b.wait(LEAVE, b.peers());
        } else {
            b.wait(ENTER, [b.root()]);
            b.copy(0, [b.output(0)], Place::input(b.root(), me));
            b.signal(LEAVE, [b.root()]);
        }
    },
};

/// Block `block` of everyone's input, in rank order.
fn inputs(b: &Builder, block: usize) -> impl Iterator<Item = Place> + use<> {
    b.ranks().map(move |rank| Place::input(rank, block))
}

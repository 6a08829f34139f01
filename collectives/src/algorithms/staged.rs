//! Memory that is not registered: each rank copies what others need into its own scratch memory,
//! from where they read it. Large messages go in rounds that fit a cache.

use super::{Algorithm, none, one, world};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Place};

const STAGED: usize = 0;
const RESULT: usize = 1;

/// Everyone stages its input; rank r reduces part r out of everyone's scratch, stages the result,
/// and everyone collects the results.
pub(super) const ALL_REDUCE: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::AllReduce,
    parts: world,
    scratch: |world| world + 1,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let (me, n) = (b.rank(), b.world());
        for peer in b.peers() {
            b.copy(peer, [b.scratch(peer)], b.input(0));
            b.signal(STAGED, [peer]);
        }
        b.wait(STAGED, b.peers());
        b.reduce(me, [b.output(0), b.scratch(n)], staged(b, me, 0));
        b.barrier(RESULT);
        for peer in b.peers() {
            b.copy(peer, [b.output(0)], Place::scratch(peer, n));
        }
    },
};

/// Everyone stages its whole input and reduces everything itself, in rank order. One wait less than
/// [`ALL_REDUCE`], n times the additions: for few ranks and messages of middling size.
pub(super) const ONE_SHOT: Algorithm = Algorithm {
    name: "one_shot_staged",
    collective: Collective::AllReduce,
    parts: one,
    scratch: one,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        b.copy(0, [b.scratch(0)], b.input(0));
        b.barrier(STAGED);
        b.reduce(0, [b.output(0)], staged(b, 0, 0));
    },
};

/// Everyone stages its input and collects everyone else's.
pub(super) const ALL_GATHER: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::AllGather,
    parts: one,
    scratch: one,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        b.copy(0, [b.scratch(0)], b.input(0));
        b.signal(STAGED, b.peers());
        b.copy(0, [b.output(b.rank())], b.input(0));
        for peer in b.peers() {
            b.wait(STAGED, [peer]);
            b.copy(0, [b.output(peer)], Place::scratch(peer, 0));
        }
    },
};

/// Everyone stages its blocks; rank r reduces block r out of everyone's scratch.
pub(super) const REDUCE_SCATTER: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::ReduceScatter,
    parts: one,
    scratch: world,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        for peer in b.peers() {
            b.copy(0, [b.scratch(peer)], b.input(peer));
            b.signal(STAGED, [peer]);
        }
        b.wait(STAGED, b.peers());
        b.reduce(0, [b.output(0)], staged(b, me, me));
    },
};

/// The root stages its input; everyone reads it.
pub(super) const BROADCAST: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::Broadcast,
    parts: one,
    scratch: one,
    packets: none,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            b.copy(0, [b.scratch(0)], b.input(0));
            b.signal(STAGED, b.peers());
            b.copy(0, [b.output(0)], b.input(0));
        } else {
            b.wait(STAGED, [b.root()]);
            b.copy(0, [b.output(0)], Place::scratch(b.root(), 0));
        }
    },
};

/// Everyone stages its input; rank r reduces part r into its scratch, from where the root collects.
pub(super) const REDUCE: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::Reduce,
    parts: world,
    scratch: |world| world + 1,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let (me, n) = (b.rank(), b.world());
        for peer in b.peers() {
            b.copy(peer, [b.scratch(peer)], b.input(0));
            b.signal(STAGED, [peer]);
        }
        b.wait(STAGED, b.peers());
        if b.is_root() {
            b.reduce(me, [b.output(0)], staged(b, me, 0));
            for peer in b.peers() {
                b.wait(RESULT, [peer]);
                b.copy(peer, [b.output(0)], Place::scratch(peer, n));
            }
        } else {
            b.reduce(me, [b.scratch(n)], staged(b, me, 0));
            b.signal(RESULT, [b.root()]);
        }
    },
};

/// Everyone stages its blocks; everyone collects the ones that are for it.
pub(super) const ALL_TO_ALL: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::AllToAll,
    parts: one,
    scratch: world,
    packets: none,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        for peer in b.peers() {
            b.copy(0, [b.scratch(peer)], b.input(peer));
            b.signal(STAGED, [peer]);
        }
        b.copy(0, [b.output(me)], b.input(me));
        for peer in b.peers() {
            b.wait(STAGED, [peer]);
            b.copy(0, [b.output(peer)], Place::scratch(peer, me));
        }
    },
};

/// Everyone stages its input; the root collects.
pub(super) const GATHER: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::Gather,
    parts: one,
    scratch: one,
    packets: none,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            b.copy(0, [b.output(b.rank())], b.input(0));
            for peer in b.peers() {
                b.wait(STAGED, [peer]);
                b.copy(0, [b.output(peer)], Place::scratch(peer, 0));
            }
        } else {
            b.copy(0, [b.scratch(0)], b.input(0));
            b.signal(STAGED, [b.root()]);
        }
    },
};

/// The root stages all blocks; everyone collects its own.
pub(super) const SCATTER: Algorithm = Algorithm {
    name: "staged",
    collective: Collective::Scatter,
    parts: one,
    scratch: world,
    packets: none,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        let me = b.rank();
        if b.is_root() {
            for peer in b.peers() {
                b.copy(0, [b.scratch(peer)], b.input(peer));
                b.signal(STAGED, [peer]);
            }
            b.copy(0, [b.output(0)], b.input(me));
        } else {
            b.wait(STAGED, [b.root()]);
            b.copy(0, [b.output(0)], Place::scratch(b.root(), me));
        }
    },
};

/// Everyone signals everyone.
pub(super) const BARRIER: Algorithm = Algorithm {
    name: "signals",
    collective: Collective::Barrier,
    parts: one,
    scratch: none,
    packets: none,
    claims: Claims::ALL,
    write: |b| b.barrier(STAGED),
};

/// Everyone's contribution in rank order: slot `slot` of everyone's scratch, the own one straight
/// from the input.
fn staged(b: &Builder, slot: usize, block: usize) -> impl Iterator<Item = Place> + use<> {
    let (me, input) = (b.rank(), b.input(block));
    b.ranks().map(move |rank| if rank == me { input } else { Place::scratch(rank, slot) })
}

//! Small messages: everything travels as packets, whose arrival is their own signal.
//!
//! There is no separate synchronisation. The slots of an epoch are free again two epochs later,
//! when their readers' own later packets (or the executor's guard) have shown that they are done.

use super::{Algorithm, none, one, twice_world, world};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Place};

/// Everyone sends its whole input to everyone and reduces everything itself, in rank order, so all
/// ranks get the same bits. One step, n-1 times the traffic.
pub(super) const ONE_SHOT: Algorithm = Algorithm {
    name: "one_shot_packet",
    collective: Collective::AllReduce,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        b.copy(0, b.peers().map(|peer| Place::packets(peer, me)), b.input(0));
        b.reduce(0, [b.output(0)], contributions(b, 0));
    },
};

/// Like [`ONE_SHOT`], but everyone leaves its input in its own memory, where the others read it:
/// one store instead of n-1. Where memory is shared by cores it is the same trip.
pub(super) const ONE_SHOT_PULL: Algorithm = Algorithm {
    name: "one_shot_pull",
    collective: Collective::AllReduce,
    parts: one,
    scratch: none,
    packets: one,
    claims: Claims::ALL,
    write: |b| {
        let (me, input) = (b.rank(), b.input(0));
        b.copy(0, (b.world() > 1).then(|| Place::packets(me, 0)), input);
        let own = |rank| {
            if rank == me { input } else { Place::packets_from(rank, 0, rank) }
        };
        b.reduce(0, [b.output(0)], b.ranks().map(own));
    },
};

/// Part r is reduced by rank r, which sends the result to all. Two steps, each byte travels once
/// to its reducer and once back.
pub(super) const TWO_SHOT: Algorithm = Algorithm {
    name: "two_shot_packet",
    collective: Collective::AllReduce,
    parts: world,
    scratch: none,
    packets: twice_world,
    claims: Claims::ALL,
    write: |b| {
        let (me, n) = (b.rank(), b.world());
        for peer in b.peers() {
            b.copy(peer, [Place::packets(peer, me)], b.input(0));
        }
        let results = b.peers().map(|peer| Place::packets(peer, n + me));
        b.reduce(me, results.chain([b.output(0)]), contributions(b, 0));
        for peer in b.peers() {
            b.copy(peer, [b.output(0)], b.packets_from(n + peer, peer));
        }
    },
};

/// Everyone sends its input to everyone.
pub(super) const ALL_GATHER: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::AllGather,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        b.copy(0, b.peers().map(|peer| Place::packets(peer, me)), b.input(0));
        b.copy(0, [b.output(me)], b.input(0));
        for peer in b.peers() {
            b.copy(0, [b.output(peer)], b.packets_from(peer, peer));
        }
    },
};

/// Everyone sends block q to rank q, which reduces what it gets.
pub(super) const REDUCE_SCATTER: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::ReduceScatter,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        for peer in b.peers() {
            b.copy(0, [Place::packets(peer, me)], b.input(peer));
        }
        b.reduce(0, [b.output(0)], contributions(b, me));
    },
};

/// The root sends its input to everyone.
pub(super) const BROADCAST: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::Broadcast,
    parts: one,
    scratch: none,
    packets: one,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            b.copy(0, b.peers().map(|peer| Place::packets(peer, 0)), b.input(0));
            b.copy(0, [b.output(0)], b.input(0));
        } else {
            b.copy(0, [b.output(0)], b.packets_from(0, b.root()));
        }
    },
};

/// Everyone sends its input to the root, which reduces.
pub(super) const REDUCE: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::Reduce,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            b.reduce(0, [b.output(0)], contributions(b, 0));
        } else {
            b.copy(0, [Place::packets(b.root(), b.rank())], b.input(0));
        }
    },
};

/// Everyone sends block q to rank q.
pub(super) const ALL_TO_ALL: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::AllToAll,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL,
    write: |b| {
        let me = b.rank();
        for peer in b.peers() {
            b.copy(0, [Place::packets(peer, me)], b.input(peer));
        }
        b.copy(0, [b.output(me)], b.input(me));
        for peer in b.peers() {
            b.copy(0, [b.output(peer)], b.packets_from(peer, peer));
        }
    },
};

/// Everyone sends its input to the root.
pub(super) const GATHER: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::Gather,
    parts: one,
    scratch: none,
    packets: world,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            b.copy(0, [b.output(b.rank())], b.input(0));
            for peer in b.peers() {
                b.copy(0, [b.output(peer)], b.packets_from(peer, peer));
            }
        } else {
            b.copy(0, [Place::packets(b.root(), b.rank())], b.input(0));
        }
    },
};

/// The root sends block q to rank q.
pub(super) const SCATTER: Algorithm = Algorithm {
    name: "packet",
    collective: Collective::Scatter,
    parts: one,
    scratch: none,
    packets: one,
    claims: Claims::ALL.without_synchronising(),
    write: |b| {
        if b.is_root() {
            for peer in b.peers() {
                b.copy(0, [Place::packets(peer, 0)], b.input(peer));
            }
            b.copy(0, [b.output(0)], b.input(b.rank()));
        } else {
            b.copy(0, [b.output(0)], b.packets_from(0, b.root()));
        }
    },
};

/// Everyone's contribution in rank order: the own one from the input, the others from packets.
fn contributions(b: &Builder, block: usize) -> impl Iterator<Item = Place> + use<> {
    let (me, input) = (b.rank(), b.input(block));
    let own = move |rank| {
        if rank == me { input } else { Place::packets_from(me, rank, rank) }
    };
    b.ranks().map(own)
}

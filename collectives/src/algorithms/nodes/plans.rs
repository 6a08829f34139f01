//! The plans.

use super::patterns::{
    Item, LEADERS, PART, READY, STAGED, SUM, Slots, Sum, collect, distribute, put,
};
use super::{Layout, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Collective, Place};

/// Each rail has a part for each node, which is at home with the rail's rank there.
pub(super) const ALL_REDUCE: NodeAlgorithm = NodeAlgorithm {
    name: "rails",
    collective: Collective::AllReduce,
    workers: 1,
    parts: |layout| layout.rails() * layout.nodes(),
    scratch: |layout| {
        let parts = layout.rails() * layout.nodes();
        Slots::behind(parts, layout).end(layout) + layout.nodes()
    },
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_canonical(),
    write: |b, layout| {
        let nodes = layout.nodes();
        let parts = layout.rails() * nodes;
        let home = |part: usize| layout.members(part % nodes)[part / nodes];
        let sum = |part| Sum { part, block: 0, home: home(part), staged: part };
        let sums: Vec<_> = (0..parts).map(sum).collect();
        let slots = Slots::behind(parts, layout);
        let result = slots.end(layout);
        let own = result + layout.node_of(b.rank());
        collect(b, layout, &sums, &slots, |b| vec![b.output(0), b.scratch(own)]);
        let item = |part| Item { part, home: home(part), slot: result + part % nodes, block: 0 };
        let items: Vec<_> = (0..parts).map(item).collect();
        distribute(b, layout, &items);
    },
};

/// A part of each rank is at home there, gets all contributions as they are, and adds them up in rank order.
pub(super) const ALL_REDUCE_IN_ORDER: NodeAlgorithm = NodeAlgorithm {
    name: "in_order",
    collective: Collective::AllReduce,
    workers: 1,
    parts: Layout::world,
    scratch: |layout| 3 * layout.world(),
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL,
    write: |b, layout| {
        let (me, world) = (b.rank(), layout.world());
        let is_near = |rank: usize| layout.node_of(rank) == layout.node_of(me);
        let peers: Vec<_> = b.peers().collect();
        for &peer in peers.iter().filter(|peer| is_near(**peer)) {
            b.copy(peer, [b.scratch(peer)], b.input(0));
            b.signal(STAGED, [peer]);
        }
        for &peer in peers.iter().filter(|peer| !is_near(**peer)) {
            let sent = b.scratch(peer).partial();
            b.reduce(peer, [sent], [b.input(0)]);
            put(b, peer, (peer, Place::scratch(peer, world + me).partial()), sent, SUM);
        }
        b.wait(STAGED, peers.iter().copied().filter(|peer| is_near(*peer)));
        b.wait(SUM, peers.iter().copied().filter(|peer| !is_near(*peer)));
        let from = |rank: usize| match rank {
            rank if rank == me => b.input(0),
            rank if is_near(rank) => Place::scratch(rank, me),
            rank => b.scratch(world + rank).partial(),
        };
        let all: Vec<_> = b.ranks().map(from).collect();
        b.reduce(me, [b.output(0), b.scratch(2 * world + me)], all);
        let item = |part| Item { part, home: part, slot: 2 * world + part, block: 0 };
        let items: Vec<_> = b.ranks().map(item).collect();
        distribute(b, layout, &items);
    },
};

pub(super) const ALL_GATHER: NodeAlgorithm = NodeAlgorithm {
    name: "rails",
    collective: Collective::AllGather,
    workers: 1,
    parts: |_| 1,
    scratch: Layout::world,
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL,
    write: |b, layout| {
        let me = b.rank();
        b.copy(0, [b.scratch(me)], b.input(0));
        b.copy(0, [b.output(me)], b.input(0));
        let item = |rank| Item { part: 0, home: rank, slot: rank, block: rank };
        let items: Vec<_> = b.ranks().map(item).collect();
        distribute(b, layout, &items);
    },
};

pub(super) const REDUCE_SCATTER: NodeAlgorithm = NodeAlgorithm {
    name: "rails",
    collective: Collective::ReduceScatter,
    workers: 1,
    parts: |_| 1,
    scratch: |layout| Slots::behind(layout.world(), layout).end(layout),
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_canonical(),
    write: |b, layout| {
        let sum = |rank| Sum { part: 0, block: rank, home: rank, staged: rank };
        let sums: Vec<_> = b.ranks().map(sum).collect();
        let slots = Slots::behind(layout.world(), layout);
        collect(b, layout, &sums, &slots, |b| vec![b.output(0)]);
    },
};

pub(super) const BROADCAST: NodeAlgorithm = NodeAlgorithm {
    name: "rails",
    collective: Collective::Broadcast,
    workers: 1,
    parts: |_| 1,
    scratch: |_| 1,
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_synchronising(),
    write: |b, layout| {
        if b.is_root() {
            b.copy(0, [b.scratch(0)], b.input(0));
            b.copy(0, [b.output(0)], b.input(0));
        }
        let item = Item { part: 0, home: b.root(), slot: 0, block: 0 };
        distribute(b, layout, &[item]);
    },
};

pub(super) const REDUCE: NodeAlgorithm = NodeAlgorithm {
    name: "rails",
    collective: Collective::Reduce,
    workers: 1,
    parts: |_| 1,
    scratch: |layout| Slots::behind(1, layout).end(layout),
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_canonical().without_synchronising(),
    write: |b, layout| {
        let sum = Sum { part: 0, block: 0, home: b.root(), staged: 0 };
        collect(b, layout, &[sum], &Slots::behind(1, layout), |b| vec![b.output(0)]);
    },
};

/// Blocks for ranks of other nodes go straight to them.
pub(super) const ALL_TO_ALL: NodeAlgorithm = NodeAlgorithm {
    name: "straight",
    collective: Collective::AllToAll,
    workers: 1,
    parts: |_| 1,
    scratch: |layout| 2 * layout.world(),
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL,
    write: |b, layout| {
        let (me, world) = (b.rank(), layout.world());
        let is_near = |rank: usize| layout.node_of(rank) == layout.node_of(me);
        let peers: Vec<_> = b.peers().collect();
        for &peer in &peers {
            b.copy(0, [b.scratch(peer)], b.input(peer));
            if is_near(peer) {
                b.signal(STAGED, [peer]);
            } else {
                put(b, 0, (peer, Place::scratch(peer, world + me)), b.scratch(peer), PART);
            }
        }
        b.copy(0, [b.output(me)], b.input(me));
        for &peer in &peers {
            let (semaphore, from) = match is_near(peer) {
                true => (STAGED, Place::scratch(peer, me)),
                false => (PART, b.scratch(world + peer)),
            };
            b.wait(semaphore, [peer]);
            b.copy(0, [b.output(peer)], from);
        }
    },
};

pub(super) const GATHER: NodeAlgorithm = NodeAlgorithm {
    name: "straight",
    collective: Collective::Gather,
    workers: 1,
    parts: |_| 1,
    scratch: |layout| layout.world() + 1,
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_synchronising(),
    write: |b, layout| {
        let (me, root) = (b.rank(), b.root());
        let is_near = |rank: usize| layout.node_of(rank) == layout.node_of(root);
        if b.is_root() {
            b.copy(0, [b.output(me)], b.input(0));
            for peer in b.peers() {
                let (semaphore, from) = match is_near(peer) {
                    true => (STAGED, Place::scratch(peer, 0)),
                    false => (PART, b.scratch(1 + peer)),
                };
                b.wait(semaphore, [peer]);
                b.copy(0, [b.output(peer)], from);
            }
            return;
        }
        b.copy(0, [b.scratch(0)], b.input(0));
        if is_near(me) {
            b.signal(STAGED, [root]);
        } else {
            put(b, 0, (root, Place::scratch(root, 1 + me)), b.scratch(0), PART);
        }
    },
};

pub(super) const SCATTER: NodeAlgorithm = NodeAlgorithm {
    name: "straight",
    collective: Collective::Scatter,
    workers: 1,
    parts: |_| 1,
    scratch: |layout| layout.world() + 1,
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_synchronising(),
    write: |b, layout| {
        let (me, root, world) = (b.rank(), b.root(), layout.world());
        let is_near = |rank: usize| layout.node_of(rank) == layout.node_of(root);
        if !b.is_root() {
            let (semaphore, from) = match is_near(me) {
                true => (STAGED, Place::scratch(root, me)),
                false => (PART, b.scratch(world)),
            };
            b.wait(semaphore, [root]);
            b.copy(0, [b.output(0)], from);
            return;
        }
        for peer in b.peers() {
            b.copy(0, [b.scratch(peer)], b.input(peer));
            if is_near(peer) {
                b.signal(STAGED, [peer]);
            } else {
                put(b, 0, (peer, Place::scratch(peer, world)), b.scratch(peer), PART);
            }
        }
        b.copy(0, [b.output(0)], b.input(me));
    },
};

/// The first rank of each node meets those of the others when its node is there.
pub(super) const BARRIER: NodeAlgorithm = NodeAlgorithm {
    name: "leaders",
    collective: Collective::Barrier,
    workers: 1,
    parts: |_| 1,
    scratch: |_| 0,
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL,
    write: |b, layout| {
        let me = b.rank();
        let node = layout.node_of(me);
        let leader = layout.members(node)[0];
        if me != leader {
            b.signal(STAGED, [leader]);
            b.wait(READY, [leader]);
            return;
        }
        b.wait(STAGED, layout.neighbours(me));
        let leaders: Vec<_> = layout.others(node).map(|other| layout.members(other)[0]).collect();
        b.signal(LEADERS, leaders.iter().copied());
        b.wait(LEADERS, leaders);
        b.signal(READY, layout.neighbours(me));
    },
};

//! Plans for registered memory: neighbours read and write each other's buffers where they are, and what goes to another
//! node goes straight from a buffer, and into one where nothing is to be added.
//!
//! ```text
//!   before     a rank tells its neighbours (READY) and those who put to it (CLEAR) that its buffers are there to be used
//!   after      neighbours tell each other that they do not touch each other's any more (DONE)
//! ```

use super::patterns::{CLEAR, DONE, PART, READY, SUM, put};
use super::{Layout, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Place};

/// As the staged `rails`. A rank that is alone on its node sends its input as it is. While one worker waits for the network,
/// the other adds up.
pub(super) const ALL_REDUCE: NodeAlgorithm = NodeAlgorithm {
    name: "rails_direct",
    collective: Collective::AllReduce,
    workers: 2,
    parts: |layout| layout.rails() * layout.nodes(),
    scratch: slots,
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_canonical().without_contributors(),
    write: |b, layout| {
        let (me, nodes) = (b.rank(), layout.nodes());
        let node = layout.node_of(me);
        let home = |part: usize| layout.members(part % nodes)[part / nodes];
        let parts = layout.rails() * nodes;
        let sums: Vec<_> =
            (0..parts).map(|part| Sum { part, block: 0, home: home(part) }).collect();
        begin(b, layout);
        let members = outputs(layout.members(node), 0);
        collect(b, layout, &sums, &members);
        for part in (0..parts).filter(|part| home(*part) == me) {
            for gateway in layout.others(node).map(|other| layout.gateway(me, other)) {
                put(b, part, (gateway, Place::output(gateway, 0)), b.output(0), PART);
            }
        }
        let passed = |part: &usize| passes_on(layout, me, home(*part));
        for part in (0..parts).filter(passed) {
            b.wait(PART, [home(part)]);
            b.copy(part, outputs(&layout.neighbours(me), 0), b.output(0));
        }
        end(b, layout);
    },
};

/// What comes from another node goes on to the neighbours while more of it comes.
const PIECES: usize = 4;

/// Every block goes from its rank's input to outputs: to all of its node, and to a gateway of each other node.
pub(super) const ALL_GATHER: NodeAlgorithm = NodeAlgorithm {
    name: "rails_direct",
    collective: Collective::AllGather,
    workers: 1,
    parts: pieces,
    scratch: |_| 0,
    packets: |_| 0,
    uneven: false,
    claims: Claims::ALL,
    write: |b, layout| {
        let me = b.rank();
        let parts = pieces(layout);
        let node = layout.node_of(me);
        let from: Vec<_> = b.ranks().filter(|home| passes_on(layout, me, *home)).collect();
        let gateways: Vec<_> = layout.others(node).map(|other| layout.gateway(me, other)).collect();
        b.signal(CLEAR, from.iter().copied());
        b.signal(READY, layout.neighbours(me));
        b.wait(CLEAR, gateways.iter().copied());
        for part in 0..parts {
            for &gateway in &gateways {
                put(b, part, (gateway, Place::output(gateway, me)), b.input(0), PART);
            }
        }
        b.wait(READY, layout.neighbours(me));
        for part in 0..parts {
            b.copy(part, outputs(layout.members(node), me), b.input(0));
        }
        for part in 0..parts {
            for &home in &from {
                b.wait(PART, [home]);
                b.copy(part, outputs(&layout.neighbours(me), home), b.output(home));
            }
        }
        end(b, layout);
    },
};

/// As the staged `rails`. A rank that is alone on its node sends its input as it is.
pub(super) const REDUCE_SCATTER: NodeAlgorithm = NodeAlgorithm {
    name: "rails_direct",
    collective: Collective::ReduceScatter,
    workers: 1,
    parts: |_| 1,
    scratch: slots,
    packets: |_| 0,
    uneven: false,
    claims: Claims::ALL.without_canonical().without_contributors(),
    write: |b, layout| {
        let sums: Vec<_> = b.ranks().map(|rank| Sum { part: 0, block: rank, home: rank }).collect();
        begin(b, layout);
        collect(b, layout, &sums, &[b.output(0)]);
        end(b, layout);
    },
};

/// As the staged `rails`. A rank that is alone on its node sends its input as it is.
pub(super) const REDUCE: NodeAlgorithm = NodeAlgorithm {
    name: "rails_direct",
    collective: Collective::Reduce,
    workers: 1,
    parts: |_| 1,
    scratch: slots,
    packets: |_| 0,
    uneven: false,
    claims: Claims::ALL.without_canonical().without_contributors().without_synchronising(),
    write: |b, layout| {
        begin(b, layout);
        let sum = Sum { part: 0, block: 0, home: b.root() };
        collect(b, layout, &[sum], &[b.output(0)]);
        end(b, layout);
    },
};

/// From the root's input to the outputs of its node and of a gateway of each other node, which passes it on.
pub(super) const BROADCAST: NodeAlgorithm = NodeAlgorithm {
    name: "rails_direct",
    collective: Collective::Broadcast,
    workers: 1,
    parts: pieces,
    scratch: |_| 0,
    packets: |_| 0,
    uneven: false,
    claims: Claims::ALL.without_synchronising(),
    write: |b, layout| {
        let (me, root) = (b.rank(), b.root());
        let parts = pieces(layout);
        let (node, neighbours) = (layout.node_of(me), layout.neighbours(me));
        let source = layout.gateway(root, node);
        if me != source {
            b.signal(READY, [source]);
            b.wait(DONE, [source]);
            return;
        }
        if me == root {
            let others = layout.others(node);
            let gateways: Vec<_> = others.map(|other| layout.gateway(root, other)).collect();
            b.wait(CLEAR, gateways.iter().copied());
            for part in 0..parts {
                for &gateway in &gateways {
                    put(b, part, (gateway, Place::output(gateway, 0)), b.input(0), PART);
                }
            }
        } else {
            b.signal(CLEAR, [root]);
        }
        b.wait(READY, neighbours.iter().copied());
        for part in 0..parts {
            if me == root {
                b.copy(part, outputs(layout.members(node), 0), b.input(0));
            } else {
                b.wait(PART, [root]);
                b.copy(part, outputs(&neighbours, 0), b.output(0));
            }
        }
        b.signal(DONE, neighbours);
    },
};

/// Every block goes from input to output.
pub(super) const ALL_TO_ALL: NodeAlgorithm = NodeAlgorithm {
    name: "straight_direct",
    collective: Collective::AllToAll,
    workers: 1,
    parts: |_| 1,
    scratch: |_| 0,
    packets: |_| 0,
    uneven: false,
    claims: Claims::ALL.without_in_place(),
    write: |b, layout| {
        let me = b.rank();
        let is_near = |rank: &usize| layout.node_of(*rank) == layout.node_of(me);
        let (near, far): (Vec<_>, Vec<_>) = b.peers().partition(is_near);
        b.signal(CLEAR, far.iter().copied());
        b.signal(READY, near.iter().copied());
        for &peer in &far {
            b.wait(CLEAR, [peer]);
            put(b, 0, (peer, Place::output(peer, me)), b.input(peer), PART);
        }
        for &peer in &near {
            b.wait(READY, [peer]);
            b.copy(0, [Place::output(peer, me)], b.input(peer));
            b.signal(DONE, [peer]);
        }
        b.copy(0, [b.output(me)], b.input(me));
        b.wait(DONE, near);
        b.wait(PART, far);
    },
};

/// Parts of what is passed on, if anyone passes anything on.
fn pieces(layout: &Layout) -> usize {
    if layout.largest() == 1 { 1 } else { PIECES }
}

/// Whether a rank passes on to its neighbours what comes from `home`.
fn passes_on(layout: &Layout, me: usize, home: usize) -> bool {
    let node = layout.node_of(me);
    layout.node_of(home) != node && layout.gateway(home, node) == me
}

fn outputs(ranks: &[usize], block: usize) -> Vec<Place> {
    ranks.iter().map(|rank| Place::output(*rank, block)).collect()
}

/// Neighbours' buffers are there to be read and written from here on.
fn begin(b: &mut Builder, layout: &Layout) {
    let neighbours = layout.neighbours(b.rank());
    b.signal(READY, neighbours.iter().copied());
    b.wait(READY, neighbours);
}

/// From here on no neighbour touches this rank's buffers.
fn end(b: &mut Builder, layout: &Layout) {
    let neighbours = layout.neighbours(b.rank());
    b.signal(DONE, neighbours.iter().copied());
    b.wait(DONE, neighbours);
}

/// A sum of everyone's contributions, for its home.
struct Sum {
    part: usize,
    /// The block of everyone's input that is added up.
    block: usize,
    home: usize,
}

/// Slots of scratch memory: a sum that comes from each node, and those that a rank sends.
fn slots(layout: &Layout) -> usize {
    layout.nodes() + layout.nodes() * layout.largest().div_ceil(layout.rails())
}

/// Adds up what the ranks have: a sum's home gets it in `to`. A rank is home of one sum at most.
fn collect(b: &mut Builder, layout: &Layout, sums: &[Sum], to: &[Place]) {
    let (me, nodes) = (b.rank(), layout.nodes());
    let node = layout.node_of(me);
    let members = layout.members(node);
    let inputs = |sum: &Sum| {
        let block = sum.block;
        members.iter().map(move |rank| Place::input(*rank, block))
    };
    // Where the sum of a node comes to, at home: a contribution as it is if there is one alone.
    let arrives = |home: usize, from: usize| {
        let slot = Place::scratch(home, from);
        if layout.members(from).len() == 1 { slot } else { slot.partial() }
    };
    let mut sent = nodes..;
    // Those for other nodes first, which have the longer way.
    for sum in sums.iter().filter(|sum| passes_on(layout, me, sum.home)) {
        let from = match members {
            [_] => b.input(sum.block),
            _ => b.scratch(sent.next().unwrap_or(nodes)).partial(),
        };
        if from.partial {
            b.reduce(sum.part, [from], inputs(sum));
        }
        put(b, sum.part, (sum.home, arrives(sum.home, node)), from, SUM);
    }
    for sum in sums.iter().filter(|sum| sum.home == me) {
        b.wait(SUM, layout.others(node).map(|other| layout.gateway(me, other)));
        let all = (0..nodes).flat_map(|from| match from {
            from if from == node => inputs(sum).collect(),
            from => vec![arrives(me, from)],
        });
        b.reduce(sum.part, to.iter().copied(), all);
    }
}

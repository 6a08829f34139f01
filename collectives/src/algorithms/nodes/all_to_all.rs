//! The all-to-all of two levels.

use super::patterns::{PART, PORT, READY, STAGED};
use super::{Layout, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Instruction, Place};

/// A block for a rank of another node goes first to the neighbour with that rank's place, and from there along the rail: a
/// rank has one partner on each other node, which gets the blocks of all its neighbours behind one another.
pub(super) const RAILS: NodeAlgorithm = NodeAlgorithm {
    name: "rails",
    collective: Collective::AllToAll,
    workers: 1,
    parts: |_| 1,
    scratch: |layout| Slots::of(layout).end(),
    packets: |_| 0,
    uneven: false,
    claims: Claims::ALL,
    write: |b, layout| {
        let me = b.rank();
        let node = layout.node_of(me);
        let members = layout.members(node);
        let neighbours = layout.neighbours(me);
        let slots = Slots::of(layout);
        let away = || layout.others(node).flat_map(|other| layout.members(other).iter().copied());
        let first_stage = |b: &mut Builder, through: usize| {
            for to in away().filter(|to| layout.gateway(*to, node) == through) {
                let slot = slots.handed_on(layout, me, to);
                b.copy(0, [Place::scratch(through, slot)], b.input(to));
            }
        };
        for &peer in &neighbours {
            first_stage(b, peer);
            b.copy(0, [b.scratch(slots.near(peer))], b.input(peer));
            b.signal(STAGED, [peer]);
        }
        first_stage(b, me);
        b.copy(0, [b.output(me)], b.input(me));
        b.wait(STAGED, neighbours.iter().copied());
        for to in away().filter(|to| layout.gateway(*to, node) == me) {
            for (n, &from) in members.iter().enumerate() {
                b.push(Instruction::Put {
                    port: PORT,
                    part: 0,
                    to: Place::scratch(to, slots.arrived(from)),
                    from: b.scratch(slots.handed_on(layout, from, to)),
                    then_signal: (n + 1 == members.len()).then_some(PART),
                });
            }
        }
        for &peer in &neighbours {
            b.copy(0, [b.output(peer)], Place::scratch(peer, slots.near(me)));
        }
        for other in layout.others(node) {
            b.wait(PART, [layout.gateway(me, other)]);
            for &from in layout.members(other) {
                b.copy(0, [b.output(from)], b.scratch(slots.arrived(from)));
            }
        }
        // A neighbour's slots are written at the beginning of the call after the next.
        b.signal(READY, neighbours.iter().copied());
        b.wait(READY, neighbours);
    },
};

/// Where a rank keeps blocks: those for neighbours, those that have arrived, and those that it hands on.
#[derive(Clone, Copy)]
struct Slots {
    world: usize,
    /// Ranks of one node for which one of another is the gateway, at most.
    served: usize,
    nodes: usize,
    largest: usize,
}

impl Slots {
    fn of(layout: &Layout) -> Self {
        let (world, nodes, largest) = (layout.world(), layout.nodes(), layout.largest());
        Self { world, served: largest.div_ceil(layout.rails()), nodes, largest }
    }

    fn near(&self, peer: usize) -> usize {
        peer
    }

    fn arrived(&self, from: usize) -> usize {
        self.world + from
    }

    /// At the gateway of `to` in the node of `from`.
    fn handed_on(&self, layout: &Layout, from: usize, to: usize) -> usize {
        let members = layout.members(layout.node_of(from)).len();
        let of_gateway = layout.node_of(to) * self.served + layout.place(to) / members;
        2 * self.world + layout.place(from) * self.nodes * self.served + of_gateway
    }

    fn end(&self) -> usize {
        2 * self.world + self.largest * self.nodes * self.served
    }
}

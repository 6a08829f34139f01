//! The all-reduce for small messages.

use super::patterns::{SUM, put};
use super::{Layout, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Collective, Place};

/// The slot in which a node's first rank tells its neighbours the result.
const RESULT: usize = 0;

/// Small messages: the first rank of each node adds up its node's contributions, which come as packets; the first ranks
/// send each other their sums, each adds up all of them, and tells its neighbours by packets. One trip between nodes.
pub(super) const EXCHANGE: NodeAlgorithm = NodeAlgorithm {
    name: "exchange",
    collective: Collective::AllReduce,
    workers: 1,
    parts: |_| 1,
    scratch: Layout::nodes,
    packets: Layout::largest,
    uneven: true,
    claims: Claims::ALL.without_canonical(),
    write: |b, layout| {
        let me = b.rank();
        let node = layout.node_of(me);
        let members = layout.members(node);
        let first = members[0];
        if me != first {
            b.copy(0, [Place::packets(first, layout.place(me))], b.input(0));
            b.copy(0, [b.output(0)], b.packets_from(RESULT, first));
            return;
        }
        let theirs = members.iter().enumerate().skip(1);
        let theirs: Vec<_> = theirs.map(|(place, rank)| b.packets_from(place, *rank)).collect();
        let sum = |node| b.scratch(node).partial();
        let (own, all): (Place, Vec<_>) = (sum(node), (0..layout.nodes()).map(sum).collect());
        b.reduce(0, [own], [b.input(0)].into_iter().chain(theirs));
        let firsts: Vec<_> = layout.others(node).map(|other| layout.members(other)[0]).collect();
        for &other in &firsts {
            put(b, 0, (other, Place::scratch(other, node).partial()), own, SUM);
        }
        b.wait(SUM, firsts);
        let results = members.iter().skip(1).map(|rank| Place::packets(*rank, RESULT));
        b.reduce(0, results.chain([b.output(0)]), all);
    },
};

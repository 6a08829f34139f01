//! All-reduces for small messages, and for registered memory.

use super::patterns::{PART, READY, SEMAPHORES, STAGED, SUM, put};
use super::{Layout, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Place};

/// The slot in which a node's first rank tells its neighbours the result.
const RESULT: usize = 0;

/// Small messages: the first rank of each node adds up its node's contributions, which come as packets; the first ranks
/// send each other their sums, each adds up all of them, and tells its neighbours by packets. One trip between nodes.
pub(super) const EXCHANGE: NodeAlgorithm = NodeAlgorithm {
    name: "exchange",
    collective: Collective::AllReduce,
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

/// Registered memory: what `rails` does, but neighbours read each other's inputs and write each other's outputs where they
/// are, and what is finished goes from output to output. A rank that is alone on its node sends its input as it is.
/// Two workers have half of the parts each: while one waits for the network the other adds up.
pub(super) const DIRECT: NodeAlgorithm = NodeAlgorithm {
    name: "rails_direct",
    collective: Collective::AllReduce,
    parts: |layout| WORKERS * layout.rails() * layout.nodes(),
    scratch: |layout| WORKERS * slots(layout),
    packets: |_| 0,
    uneven: true,
    claims: Claims::ALL.without_canonical().without_contributors(),
    write: |b, layout| (0..WORKERS).for_each(|worker| direct(b, layout, worker)),
};

const WORKERS: usize = 2;

/// Slots of a worker: a sum of each node, and those that it sends.
fn slots(layout: &Layout) -> usize {
    layout.nodes() + layout.nodes() * layout.largest().div_ceil(layout.rails())
}

fn direct(b: &mut Builder, layout: &Layout, worker: usize) {
    b.worker(worker);
    let (me, nodes) = (b.rank(), layout.nodes());
    let node = layout.node_of(me);
    let members = layout.members(node);
    let neighbours = layout.neighbours(me);
    let of_worker = |semaphore: usize| semaphore + worker * SEMAPHORES;
    let parts = layout.rails() * nodes;
    let first_part = worker * parts;
    let home = |part: usize| layout.members(part % nodes)[part % parts / nodes];
    let first_slot = worker * slots(layout);
    // Where the sum of a node comes to, at home: a contribution as it is if there is one alone.
    let arrives = |home: usize, from: usize| {
        let slot = Place::scratch(home, first_slot + from);
        if layout.members(from).len() == 1 { slot } else { slot.partial() }
    };
    let inputs = || members.iter().map(|rank| Place::input(*rank, 0));
    let outputs = |ranks: &[usize]| ranks.iter().map(|r| Place::output(*r, 0)).collect::<Vec<_>>();
    b.signal(of_worker(READY), neighbours.iter().copied());
    b.wait(of_worker(READY), neighbours.iter().copied());
    // What this rank adds up for its node, those for other nodes first, which have the longer way.
    let all = first_part..first_part + parts;
    let mine = |part: &usize| layout.gateway(home(*part), node) == me;
    let mut sent = first_slot + nodes..;
    for part in all.clone().filter(mine).filter(|part| home(*part) != me) {
        let home = home(part);
        let from = match members {
            [_] => b.input(0),
            _ => b.scratch(sent.next().unwrap_or(first_slot)).partial(),
        };
        if from.partial {
            b.reduce(part, [from], inputs());
        }
        put(b, part, (home, arrives(home, node)), from, of_worker(SUM));
    }
    for part in all.clone().filter(|part| home(*part) == me) {
        let gateways: Vec<_> = layout.others(node).map(|other| layout.gateway(me, other)).collect();
        b.wait(of_worker(SUM), gateways.iter().copied());
        let sums = (0..nodes).flat_map(|from| match from {
            from if from == node => inputs().collect(),
            from => vec![arrives(me, from)],
        });
        b.reduce(part, outputs(members), sums);
        for gateway in gateways {
            let to = (gateway, Place::output(gateway, 0));
            put(b, part, to, b.output(0), of_worker(PART));
        }
    }
    for part in all.filter(mine).filter(|part| home(*part) != me) {
        b.wait(of_worker(PART), [home(part)]);
        b.copy(part, outputs(&neighbours), b.output(0));
    }
    b.signal(of_worker(STAGED), neighbours.iter().copied());
    b.wait(of_worker(STAGED), neighbours);
}

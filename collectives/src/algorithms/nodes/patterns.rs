//! The two patterns of which the plans are made.

use super::Layout;
use crate::plan::{Builder, Instruction, Place};

/// Semaphores: contributions are staged, a sum has come from another node, so has a finished part, which this rank has
/// ready for its neighbours, at home and as a gateway.
pub(super) const STAGED: usize = 0;
pub(super) const SUM: usize = 1;
pub(super) const PART: usize = 2;
pub(super) const READY: usize = 3;
pub(super) const PASSED_ON: usize = 4;
/// Signals without data to other nodes: the others are the port's, behind its data.
pub(super) const LEADERS: usize = 5;
/// The same in other plans: this rank's output is there to be put to.
pub(super) const CLEAR: usize = LEADERS;
/// Neighbours do not touch this rank's buffers any more.
pub(super) const DONE: usize = STAGED;
/// How many there are: another worker has as many of its own.
pub(crate) const SEMAPHORES: usize = 6;
/// The port to all other nodes.
pub(super) const PORT: usize = 0;

/// Puts slot `from` to slot `to` of a rank of another node, and signals it.
pub(super) fn put(
    b: &mut Builder,
    part: usize,
    (rank, to): (usize, Place),
    from: Place,
    semaphore: usize,
) {
    debug_assert_eq!(to.whose, crate::plan::Whose::Rank(rank));
    b.push(Instruction::Put { port: PORT, part, to, from, then_signal: Some(semaphore) });
}

/// A finished part that goes to everyone: its home has it in `slot`, and all have it there in the end, or their
/// neighbours.
pub(super) struct Item {
    pub(super) part: usize,
    pub(super) home: usize,
    pub(super) slot: usize,
    /// The block of the output where it belongs.
    pub(super) block: usize,
}

/// Brings items from their homes to everyone's output. Homes have filled their slots, and their own outputs.
pub(super) fn distribute(b: &mut Builder, layout: &Layout, items: &[Item]) {
    let me = b.rank();
    let node = layout.node_of(me);
    let neighbours = layout.neighbours(me);
    for item in items.iter().filter(|item| item.home == me) {
        for other in layout.others(node) {
            let gateway = layout.gateway(me, other);
            let to = (gateway, Place::scratch(gateway, item.slot));
            put(b, item.part, to, b.scratch(item.slot), PART);
        }
    }
    if items.iter().any(|item| item.home == me) {
        b.signal(READY, neighbours.iter().copied());
    }
    // What comes from other nodes by this rank, in the order in which each home puts it.
    let mine =
        |item: &&Item| layout.node_of(item.home) != node && layout.gateway(item.home, node) == me;
    for item in items.iter().filter(mine) {
        b.wait(PART, [item.home]);
        b.copy(item.part, [b.output(item.block)], b.scratch(item.slot));
    }
    if items.iter().any(|item| mine(&item)) {
        b.signal(PASSED_ON, neighbours.iter().copied());
    }
    // The neighbours' own, then what came by them.
    for &peer in &neighbours {
        let own = items.iter().filter(|item| item.home == peer);
        take(b, READY, peer, own);
    }
    for &peer in &neighbours {
        let passed = |item: &&Item| {
            layout.node_of(item.home) != node && layout.gateway(item.home, node) == peer
        };
        take(b, PASSED_ON, peer, items.iter().filter(passed));
    }
}

/// Copies items out of a neighbour's slots, after its signal.
fn take<'a>(b: &mut Builder, semaphore: usize, peer: usize, items: impl Iterator<Item = &'a Item>) {
    let mut items = items.peekable();
    if items.peek().is_some() {
        b.wait(semaphore, [peer]);
    }
    for item in items {
        b.copy(item.part, [b.output(item.block)], Place::scratch(peer, item.slot));
    }
}

/// A sum of everyone's contributions, for its home.
pub(super) struct Sum {
    pub(super) part: usize,
    /// The block of everyone's input that is added up.
    pub(super) block: usize,
    pub(super) home: usize,
    /// The slot in which contributions to it are staged.
    pub(super) staged: usize,
}

/// Where in scratch memory a rank keeps sums of its node, and those of other nodes that come to it.
pub(super) struct Slots {
    sent: usize,
    arrived: usize,
}

impl Slots {
    /// Behind so many others.
    pub(super) fn behind(others: usize, layout: &Layout) -> Self {
        Self { sent: others, arrived: others + Self::most_sent(layout) }
    }

    /// The first slot behind these, where a rank is home of one sum at most.
    pub(super) fn end(&self, layout: &Layout) -> usize {
        self.arrived + layout.nodes()
    }

    /// Sums that one rank adds up, at most, if each rank is home of one.
    fn most_sent(layout: &Layout) -> usize {
        layout.nodes() * layout.largest().div_ceil(layout.rails())
    }
}

/// Adds up what the ranks have: a sum's home gets it in `to`. A rank is home of one sum at most.
pub(super) fn collect(
    b: &mut Builder,
    layout: &Layout,
    sums: &[Sum],
    slots: &Slots,
    to: impl Fn(&Builder) -> Vec<Place>,
) {
    let me = b.rank();
    let node = layout.node_of(me);
    let adder = |sum: &Sum| layout.gateway(sum.home, node);
    for peer in layout.neighbours(me) {
        let mut theirs = sums.iter().filter(|sum| adder(sum) == peer).peekable();
        let any = theirs.peek().is_some();
        for sum in theirs {
            b.copy(sum.part, [b.scratch(sum.staged)], b.input(sum.block));
        }
        b.signal(STAGED, any.then_some(peer));
    }
    let mine: Vec<&Sum> = sums.iter().filter(|sum| adder(sum) == me).collect();
    if !mine.is_empty() {
        b.wait(STAGED, layout.neighbours(me));
    }
    let members = layout.members(node);
    let of_node = |sum: &Sum| -> Vec<Place> {
        let place = |&rank: &usize| match rank == me {
            true => Place::input(me, sum.block),
            false => Place::scratch(rank, sum.staged),
        };
        members.iter().map(place).collect()
    };
    // Those for other nodes first, which have the longer way.
    for other in layout.others(node) {
        for (n, sum) in mine.iter().enumerate().filter(|(_, sum)| layout.node_of(sum.home) == other)
        {
            let sent = b.scratch(slots.sent + n).partial();
            b.reduce(sum.part, [sent], of_node(sum));
            let arrives = Place::scratch(sum.home, slots.arrived + node).partial();
            put(b, sum.part, (sum.home, arrives), sent, SUM);
        }
    }
    // Its own node's are added where they are, in between the other nodes' sums.
    let others: Vec<_> = layout.others(node).map(|other| layout.gateway(me, other)).collect();
    for sum in mine.iter().filter(|sum| sum.home == me) {
        b.wait(SUM, others.iter().copied());
        let all = (0..layout.nodes()).flat_map(|from| match from {
            from if from == node => of_node(sum),
            from => vec![b.scratch(slots.arrived + from).partial()],
        });
        let all: Vec<_> = all.collect();
        b.reduce(sum.part, to(b), all);
    }
}

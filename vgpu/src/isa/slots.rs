//! Where registers lie: virtual registers that never hold a value at the same time share a *slot* of the register file.
//!
//! Liveness is that of one thread on the control-flow graph. That is enough although the paths of a diverged warp run in any
//! interleaving, because a slot has an element per lane, and
//!
//! * a handler writes only the elements of the lanes that execute it, so what a lane's element holds is decided by the
//!   instructions that this lane executes, in its own program order, which is a path of the graph;
//! * a handler that reads elements of other lanes (`shfl`, `vote`, `match`, `redux`) reads those of lanes that execute the same
//!   instruction at that moment, whose operands are therefore live; other lanes' values are undefined in PTX.
//!
//! A write under a guard may leave the old value, so it begins no new life: the register stays live above it. A register
//! that may be read before it is written is live from the first instruction on, alone in its slot, and so reads as zero,
//! as it does without sharing. Registers of one instruction, read or written, never share, so handlers may write one result
//! before they read the next operand. Constants and special registers are filled once and keep their slots.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smallvec::SmallVec;

use super::decode::VREG;
use super::spec::W;
use crate::exec::alu::NONE;
use crate::exec::warp::{Inst, NO_GUARD};

/// Where control goes after an instruction whose guard holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// To the next one.
    Next,
    /// To `Inst::target`.
    Jump,
    /// To a target in a table.
    Table(u32),
    /// Nowhere.
    End,
}

/// What the decoder knows of an instruction beside its fields.
#[derive(Clone, Debug)]
pub(super) struct Note {
    /// Virtual registers that it writes.
    pub writes: SmallVec<[u32; 4]>,
    pub flow: Flow,
}

/// The fields of an instruction that may name registers.
fn fields(i: &Inst) -> impl Iterator<Item = u32> + '_ {
    [i.d, i.a, i.b, i.c, i.e, i.guard].into_iter().chain(i.v)
}

/// The virtual registers of an instruction.
fn registers(i: &Inst) -> impl Iterator<Item = u32> + '_ {
    fields(i).filter(|&x| x & VREG != 0 && x != NONE).map(|x| x & !VREG)
}

/// The virtual registers that it reads: one field of each written register is the one that is written.
fn reads(i: &Inst, note: &Note) -> SmallVec<[u32; 8]> {
    let mut all: SmallVec<[u32; 8]> = registers(i).collect();
    for w in &note.writes {
        if let Some(n) = all.iter().position(|x| x == w) {
            all.swap_remove(n);
        }
    }
    all
}

/// For each instruction the places that it reads or writes.
pub(super) fn uses(code: &[Inst], place: &[u32]) -> Vec<SmallVec<[u32; 6]>> {
    code.iter().map(|i| registers(i).map(|r| place[r as usize]).collect()).collect()
}

/// Replaces virtual registers by their places.
pub(super) fn rename(code: &mut [Inst], place: &[u32]) {
    for i in code {
        let renamed = [&mut i.d, &mut i.a, &mut i.b, &mut i.c, &mut i.e, &mut i.guard];
        for x in renamed.into_iter().chain(&mut i.v).filter(|x| **x & VREG != 0 && **x != NONE) {
            *x = place[(*x & !VREG) as usize];
        }
    }
}

/// The control-flow graph.
struct Graph {
    /// First instruction of each block, and the end of the code.
    starts: Vec<u32>,
    /// Block of each instruction.
    block: Vec<u32>,
    before: Vec<SmallVec<[u32; 4]>>,
}

impl Graph {
    fn new(code: &[Inst], notes: &[Note], tables: &[Vec<u32>]) -> Self {
        let targets = |at: usize| -> SmallVec<[u32; 4]> {
            match notes[at].flow {
                Flow::Jump => SmallVec::from_slice(&[code[at].target]),
                Flow::Table(t) => tables[t as usize].iter().copied().collect(),
                Flow::Next | Flow::End => SmallVec::new(),
            }
        };
        let mut leads = vec![false; code.len() + 1];
        leads[0] = true;
        for at in (0..code.len()).filter(|&at| notes[at].flow != Flow::Next) {
            leads[at + 1] = true;
            targets(at).iter().for_each(|&t| leads[t as usize] = true);
        }
        leads[code.len()] = true;
        let starts: Vec<u32> =
            leads.iter().enumerate().filter(|x| *x.1).map(|x| x.0 as u32).collect();
        let mut block = Vec::with_capacity(code.len());
        for (n, w) in starts.windows(2).enumerate() {
            block.resize(w[1] as usize, n as u32);
        }
        let mut before = vec![SmallVec::new(); starts.len() - 1];
        for (n, w) in starts.windows(2).enumerate() {
            let last = w[1] as usize - 1;
            let falls = notes[last].flow == Flow::Next || code[last].guard != NO_GUARD;
            let next = (falls && w[1] < code.len() as u32).then_some(w[1]);
            for t in targets(last).into_iter().chain(next) {
                before[block[t as usize] as usize].push(n as u32);
            }
        }
        Graph { starts, block, before }
    }
}

/// From the first to the last instruction at which a register is read, written or live, both included.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u32,
    last: u32,
}

impl Range {
    fn add(&mut self, at: u32) {
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }
}

fn ranges(code: &[Inst], notes: &[Note], graph: &Graph, registers: usize) -> Vec<Range> {
    let mut range = vec![Range { first: u32::MAX, last: 0 }; registers];
    // (register, block): read there before it is surely written; surely written there.
    let (mut exposed, mut killed) = (Vec::new(), Vec::new());
    let mut killed_in = vec![u32::MAX; registers];
    for (at, (i, note)) in code.iter().zip(notes).enumerate() {
        let b = graph.block[at];
        for r in reads(i, note) {
            range[r as usize].add(at as u32);
            if killed_in[r as usize] != b {
                exposed.push((r, b));
            }
        }
        for &r in &note.writes {
            range[r as usize].add(at as u32);
            if i.guard == NO_GUARD && killed_in[r as usize] != b {
                killed_in[r as usize] = b;
                killed.push((r, b));
            }
        }
    }
    exposed.sort_unstable();
    exposed.dedup();
    killed.sort_unstable();
    let mut killed = killed.into_iter().peekable();
    // Blocks that write the register at hand, or were already reached from its reads.
    let mut done = vec![u32::MAX; graph.before.len()];
    for uses in exposed.chunk_by(|x, y| x.0 == y.0) {
        let r = uses[0].0;
        while let Some((k, b)) = killed.next_if(|k| k.0 <= r) {
            done[b as usize] = k;
        }
        extend(&mut range[r as usize], r, uses.iter().map(|x| x.1).collect(), graph, &mut done);
    }
    range
}

/// Stretches a register's range over all blocks from which one of these, which read it first, can be reached without a write.
fn extend(range: &mut Range, r: u32, mut open: Vec<u32>, graph: &Graph, done: &mut [u32]) {
    while let Some(b) = open.pop() {
        range.add(graph.starts[b as usize]);
        for &p in &graph.before[b as usize] {
            range.add(graph.starts[p as usize + 1] - 1);
            if done[p as usize] != r {
                done[p as usize] = r;
                open.push(p);
            }
        }
    }
}

/// The place of every virtual register, and the size of the register file.
pub(super) fn assign(
    code: &[Inst],
    notes: &[Note],
    tables: &[Vec<u32>],
    classes: &[W],
    fixed: impl Iterator<Item = u32>,
    share: bool,
) -> (Vec<u32>, u32) {
    let graph = Graph::new(code, notes, tables);
    let mut range = ranges(code, notes, &graph, classes.len());
    for r in fixed {
        range[r as usize] = Range { first: 0, last: u32::MAX };
    }
    let mut order: Vec<u32> =
        (0..classes.len() as u32).filter(|&r| range[r as usize].first != u32::MAX).collect();
    order.sort_unstable_by_key(|&r| range[r as usize].first);
    let mut place = vec![0; classes.len()];
    let mut end = 0;
    for class in [W::D, W::S, W::H, W::P] {
        let mut free = Vec::new();
        let mut taken = BinaryHeap::new();
        for &r in order.iter().filter(|&&r| classes[r as usize] == class) {
            let Range { first, last } = range[r as usize];
            while let Some(&Reverse((until, at))) = taken.peek()
                && until < first
                && share
            {
                taken.pop();
                free.push(at);
            }
            let at = free.pop().unwrap_or_else(|| {
                end += class.bytes();
                end - class.bytes()
            });
            place[r as usize] = at;
            taken.push(Reverse((last, at)));
        }
    }
    (place, end.next_multiple_of(64).max(64))
}

#[cfg(test)]
mod tests;

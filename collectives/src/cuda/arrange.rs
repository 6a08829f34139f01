//! Makes one worker's list fit a thread block: signals and waits for several peers at once, and moves of
//! the same form next to each other.
//!
//! A plan is written with one peer after the other; on a GPU each signal and wait costs a barrier of the
//! block, and small moves side by side keep all warps busy. What is reordered here:
//!
//! - a signal is merged into a later one over the same semaphore, if there are only moves between that
//!   do not wait for packets. It comes later, but nothing that this worker waits for comes between.
//! - a wait is merged into an earlier one over the same semaphore, if there are only moves between that
//!   send no packets. It comes earlier, but nothing that a peer could wait for comes between.
#![forbid(unsafe_code)]

use crate::plan::{Buffer, Instruction, Place, Shape, Whose};

/// The list with signals and waits merged.
pub(super) fn arrange(list: &[Instruction]) -> Vec<Instruction> {
    let mut list = list.to_vec();
    merge_signals(&mut list);
    merge_waits(&mut list);
    list
}

fn merge_signals(list: &mut Vec<Instruction>) {
    let mut at = 0;
    while at < list.len() {
        if let Some(next) = next_over(list, at, is_signal, |to, from| !awaits(to, from)) {
            let Instruction::Signal { to: earlier, .. } = list.remove(at) else { unreachable!() };
            if let Instruction::Signal { to, .. } = &mut list[next - 1] {
                to.splice(..0, earlier);
            }
        } else {
            at += 1;
        }
    }
}

fn merge_waits(list: &mut Vec<Instruction>) {
    let mut at = 0;
    while at < list.len() {
        if let Some(next) = next_over(list, at, is_wait, |to, _| !to.iter().any(is_packets)) {
            let Instruction::Wait { from: later, .. } = list.remove(next) else { unreachable!() };
            if let Instruction::Wait { from, .. } = &mut list[at] {
                from.extend(later);
            }
        } else {
            at += 1;
        }
    }
}

/// The semaphore and peers of a signal.
fn is_signal(instruction: &Instruction) -> Option<(usize, &[usize])> {
    match instruction {
        Instruction::Signal { semaphore, to } => Some((*semaphore, to)),
        _ => None,
    }
}

/// The semaphore and peers of a wait.
fn is_wait(instruction: &Instruction) -> Option<(usize, &[usize])> {
    match instruction {
        Instruction::Wait { semaphore, from } => Some((*semaphore, from)),
        _ => None,
    }
}

/// The semaphore and peers of an instruction, if it is of a kind.
type Kind = fn(&Instruction) -> Option<(usize, &[usize])>;

/// The next instruction of the kind and semaphore of the one at `at`, for other peers, if there are only
/// moves between, if any, that may be passed.
fn next_over(
    list: &[Instruction],
    at: usize,
    kind: Kind,
    passes: impl Fn(&[Place], &[Place]) -> bool,
) -> Option<usize> {
    let (semaphore, peers) = kind(&list[at])?;
    let between = |instruction: &&Instruction| match instruction {
        Instruction::Move { to, from, .. } => passes(to, from),
        _ => false,
    };
    let next = at + 1 + list[at + 1..].iter().take_while(between).count();
    let (other, others) = kind(list.get(next)?)?;
    let disjoint = !peers.iter().any(|peer| others.contains(peer));
    (other == semaphore && disjoint).then_some(next)
}

/// Whether a move touches what an earlier one does, and one of the two writes it. Threads of a block share moves in other ways
/// from one to the next, so there has to be a barrier between such two. (Packets are ordered by their flags.)
pub(super) fn conflict(
    earlier: &Instruction,
    later: &Instruction,
    shape: &Shape,
    rank: usize,
) -> bool {
    let (
        Instruction::Move { part: a, to: written, from: read, .. },
        Instruction::Move { part: b, to, from, .. },
    ) = (earlier, later)
    else {
        return false;
    };
    let same = |x: &Place, y: &Place| {
        let shared = x.whose == y.whose || [x.whose, y.whose].contains(&Whose::Group);
        let memory = x.buffer != Buffer::Packets && (!x.is_user() || a == b);
        shared && memory && in_place(x, shape, rank) == in_place(y, shape, rank)
    };
    let any =
        |these: &[Place], those: &[Place]| these.iter().any(|x| those.iter().any(|y| same(x, y)));
    any(written, to) || any(written, from) || any(read, to)
}

/// Which memory a place is if input and output are the same.
fn in_place(place: &Place, shape: &Shape, rank: usize) -> (Buffer, usize) {
    let owner = match place.whose {
        Whose::Rank(owner) => owner,
        Whose::Group => rank,
    };
    let alias = shape.collective.alias(shape.root, owner, place.index);
    match (place.buffer, alias) {
        (Buffer::Input, Some(block)) => (Buffer::Output, block),
        (buffer, _) => (buffer, place.index),
    }
}

fn awaits(_: &[Place], from: &[Place]) -> bool {
    from.iter().any(is_packets)
}

fn is_packets(place: &Place) -> bool {
    place.buffer == Buffer::Packets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Builder;

    fn kinds(list: &[Instruction]) -> String {
        list.iter()
            .map(|instruction| match instruction {
                Instruction::Move { .. } => "m".to_owned(),
                Instruction::Signal { to, .. } => format!("s{to:?}"),
                Instruction::Wait { from, .. } => format!("w{from:?}"),
                _ => "?".to_owned(),
            })
            .collect()
    }

    fn arranged(write: impl FnOnce(&mut Builder)) -> String {
        let mut builder = Builder::new(0, 4, 0);
        write(&mut builder);
        kinds(&arrange(&builder.finish().workers[0]))
    }

    #[test]
    fn signals_go_down_and_waits_go_up_over_plain_moves() {
        let staged = arranged(|b| {
            for peer in 1..4 {
                b.copy(peer, [b.scratch(peer)], b.input(0));
                b.signal(0, [peer]);
            }
            for peer in 1..4 {
                b.wait(0, [peer]);
                b.copy(peer, [b.output(0)], Place::scratch(peer, 0));
            }
        });
        assert_eq!(staged, "mmms[1, 2, 3]w[1, 2, 3]mmm");
    }

    #[test]
    fn a_signal_does_not_pass_what_waits_nor_a_wait_what_others_wait_for() {
        let list = arranged(|b| {
            b.signal(0, [1]);
            b.copy(0, [b.output(0)], b.packets_from(0, 1));
            b.signal(0, [2]);
            b.wait(1, [1]);
            b.copy(0, [Place::packets(1, 0)], b.input(0));
            b.wait(1, [2]);
        });
        assert_eq!(list, "s[1]ms[2]w[1]mw[2]");
        // The same peer twice is two signals, and another semaphore is another matter.
        let list = arranged(|b| {
            b.signal(0, [1]);
            b.copy(0, [b.output(0)], b.input(0));
            b.signal(0, [1]);
            b.copy(0, [b.output(0)], b.input(0));
            b.signal(1, [2]);
        });
        assert_eq!(list, "s[1]ms[1]ms[2]");
    }
}

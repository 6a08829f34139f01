//! The collective calls on the tree.
//!
//! ```text
//!              root ── has every part: makes the result, sends it down in pieces
//!            ▲      ╲
//!      parts │       ╲ pieces of the result, as they come
//!            │        ▼
//!      inner rank: passes parts up as they come, keeps and passes down the result
//! ```
//!
//! Parts go up one by one, so the root knows who is missing; the result goes down as one body, so that a rank wakes a
//! few times for it and not once for every rank. Nobody but the root holds parts of others, and what waits to go up
//! is bounded: behind a slow parent, children are not read.
//!
//! A rank that waits for longer than a call between ranks takes tells its children so (`Here`), and they theirs: it
//! has come, it may only have come late, and their time begins anew. Who has heard nothing of that kind when its time
//! has passed blames the rank above it. The root says it once more before it judges who is missing, and inner ranks
//! answer (`Present`): one that has given its part and then stopped is not taken for one that passes on what it gets,
//! so its children are not blamed for it.

use std::time::{Duration, Instant};

use super::shape::share;
use super::tree::{Ears, Tree};
use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{Deadline, Frame, Kind, PIECE, body_of_all, longest_of_all, parts_of};
use crate::bootstrap::{MAX_CONTRIBUTION, MAX_GATHERED};

/// What may wait to go up before children are not read any more, bytes.
const MAX_QUEUE: usize = 1 << 20;

/// One call on one rank.
struct Call<'a> {
    tree: &'a mut Tree,
    timeout: Duration,
    deadline: Deadline,
    /// When the children are told that this rank has come.
    here: Option<Instant>,
    /// How long such a word, or an answer to it, may take.
    patience: Duration,
    /// What has not been queued of the own contribution.
    mine: Option<&'a [u8]>,
    /// At the root.
    inbox: Option<Inbox>,
    /// The result, as far as it has come.
    body: Vec<u8>,
    arriving: bool,
    whole: bool,
    /// What each child has been sent of the body; `None` when it has all, or has gone.
    cursors: Vec<Option<usize>>,
    /// A child that went away while the result went down: the others get theirs first.
    gone: Option<Fault>,
}

/// The parts that have come to the root.
struct Inbox {
    parts: Vec<Vec<u8>>,
    complete: Vec<bool>,
    /// When a rank has said last that it passes things on.
    heard: Vec<Option<Instant>>,
    missing: usize,
    bytes: u64,
}

impl Tree {
    /// Gives `mine` to all. Collecting and handing out may take `timeout` each.
    pub(super) fn all_gather(
        &mut self,
        mine: &[u8],
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let outcome = Call::new(self, mine, timeout).run();
        outcome.inspect_err(|fault| self.spread(fault, timeout))
    }
}

impl<'a> Call<'a> {
    fn new(tree: &'a mut Tree, mine: &'a [u8], timeout: Duration) -> Self {
        let root = tree.parent.is_none();
        let patience = share(timeout, tree.height) / 2;
        Self {
            timeout,
            deadline: Deadline::after(timeout.saturating_add(tree.grace)),
            here: (!tree.children.is_empty()).then(|| Instant::now() + patience),
            patience,
            mine: (!root).then_some(mine),
            inbox: root.then(|| Inbox::new(tree.world, mine)),
            body: Vec::new(),
            arriving: false,
            whole: false,
            cursors: vec![Some(0); tree.children.len()],
            gone: None,
            tree,
        }
    }

    fn run(mut self) -> Result<Vec<Vec<u8>>, Fault> {
        loop {
            self.complete();
            self.feed();
            if self.whole && self.slow_children().is_empty() {
                return self.result();
            }
            self.check_time()?;
            self.wait()?;
            self.hear_parent()?;
            self.hear_children()?;
        }
    }

    /// At the root: makes the result once all parts are there.
    fn complete(&mut self) {
        if let Some(inbox) = self.inbox.as_ref().filter(|inbox| inbox.missing == 0 && !self.whole) {
            self.body = body_of_all(&inbox.parts);
            self.whole = true;
            self.arrives();
        }
    }

    fn arrives(&mut self) {
        self.arriving = true;
        self.deadline = Deadline::after(self.timeout);
    }

    fn result(self) -> Result<Vec<Vec<u8>>, Fault> {
        let died = || self.tree.children.iter_mut().find_map(|child| child.obituary());
        if let Some(fault) = self.gone.or_else(died) {
            return Err(fault);
        }
        let peer = self.tree.parent_rank();
        match self.inbox {
            Some(inbox) => Ok(inbox.parts),
            None => parts_of(&self.body, self.tree.world).ok_or(Fault::Malformed { peer }),
        }
    }

    /// Queues and sends as much as the sockets take.
    fn feed(&mut self) {
        self.feed_parent();
        for at in 0..self.cursors.len() {
            self.feed_child(at);
        }
    }

    fn feed_parent(&mut self) {
        let Some(parent) = &mut self.tree.parent else { return };
        // Not left with an empty queue: then nothing would wake this rank for the rest.
        while parent.flush() || parent.out.pending() < PIECE {
            let Some(mine) = self.mine else { return };
            let (piece, rest) = mine.split_at(mine.len().min(PIECE));
            let kind = if rest.is_empty() { Kind::Part } else { Kind::PartPiece };
            parent.out.push(kind, self.tree.rank, piece);
            self.mine = (!rest.is_empty()).then_some(rest);
        }
    }

    fn feed_child(&mut self, at: usize) {
        let child = &mut self.tree.children[at];
        while child.flush() {
            let Some(sent) = self.cursors[at] else { return };
            if self.arriving
                && let Some(fault) = child.obituary()
            {
                self.gone.get_or_insert(fault);
                self.cursors[at] = None;
                return;
            }
            let rest = &self.body[sent..];
            // A piece that is not full waits for more, unless it is the last.
            if !self.whole && rest.len() < PIECE {
                return;
            }
            let piece = &rest[..rest.len().min(PIECE)];
            let last = self.whole && piece.len() == rest.len();
            child.out.push(if last { Kind::All } else { Kind::AllPiece }, 0, piece);
            self.cursors[at] = (!last).then_some(sent + piece.len());
        }
    }

    fn check_time(&mut self) -> Result<(), Fault> {
        if self.here.is_some_and(|at| at <= Instant::now()) {
            self.say_here();
        }
        if !self.deadline.passed() {
            return Ok(());
        }
        let ranks = match &self.inbox {
            _ if self.whole => self.slow_children(),
            None => vec![self.tree.parent_rank()],
            Some(inbox) => inbox.missing(&self.tree.parents, 2 * self.patience),
        };
        Err(Fault::Missing { ranks, waited: self.timeout })
    }

    fn say_here(&mut self) {
        // The root asks once more when it is about to judge.
        let last = self.deadline.left().checked_sub(self.patience * 3 / 2);
        let last = last.filter(|left| self.inbox.is_some() && !left.is_zero());
        self.here = last.map(|left| Instant::now() + left);
        if !self.arriving {
            self.tree.tell_children(Kind::Here);
            self.tree.flush();
        }
    }

    fn slow_children(&self) -> Vec<usize> {
        let busy =
            |at: &usize| self.cursors[*at].is_some() || self.tree.children[*at].out.pending() > 0;
        (0..self.cursors.len()).filter(busy).map(|at| self.tree.children[at].peer).collect()
    }

    fn wait(&mut self) -> Result<(), Fault> {
        let full = self.tree.parent.as_ref().is_some_and(|link| link.out.pending() > MAX_QUEUE);
        let ears = Ears { parent: !self.whole, children: !self.arriving && !full };
        let here =
            self.here.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        self.tree.wait(ears, None, self.deadline.left().min(here))
    }

    fn hear_parent(&mut self) -> Result<(), Fault> {
        loop {
            let Some(parent) = self.tree.parent.as_mut().filter(|link| link.ready) else {
                return Ok(());
            };
            let peer = parent.peer;
            let Some(frame) = parent.read()? else { return Ok(()) };
            match frame.kind {
                Kind::All | Kind::AllPiece => self.take(frame, peer)?,
                Kind::Here if !self.arriving => self.know_who_is_above(),
                _ => return Err(Fault::Malformed { peer }),
            }
            if self.whole {
                return Ok(());
            }
        }
    }

    fn know_who_is_above(&mut self) {
        self.deadline = Deadline::after(self.timeout.saturating_add(self.tree.grace));
        let Tree { parent, children, rank, .. } = &mut *self.tree;
        if let Some(parent) = parent.as_mut().filter(|_| !children.is_empty()) {
            parent.out.push(Kind::Present, *rank, &[]);
        }
        self.tree.tell_children(Kind::Here);
    }

    /// A piece of the result.
    fn take(&mut self, frame: Frame, peer: usize) -> Result<(), Fault> {
        if !self.arriving {
            self.arrives();
        }
        if self.body.is_empty() {
            self.body = frame.body;
        } else {
            self.body.extend_from_slice(&frame.body);
        }
        self.whole = frame.kind == Kind::All;
        if self.body.len() > longest_of_all(self.tree.world) {
            return Err(Fault::Malformed { peer });
        }
        Ok(())
    }

    fn hear_children(&mut self) -> Result<(), Fault> {
        if self.arriving {
            return Ok(());
        }
        for at in 0..self.tree.children.len() {
            if self.tree.children[at].ready {
                self.hear_child(at)?;
            }
        }
        Ok(())
    }

    fn hear_child(&mut self, at: usize) -> Result<(), Fault> {
        let Tree { children, parent, parents, world, rank, .. } = &mut *self.tree;
        let child = &mut children[at];
        while parent.as_ref().is_none_or(|parent| parent.out.pending() <= MAX_QUEUE) {
            let Some(frame) = child.read()? else { return Ok(()) };
            let Frame { kind, rank: from, body } = frame;
            let upward = matches!(kind, Kind::Part | Kind::PartPiece | Kind::Present);
            if !upward || from >= *world || from == *rank {
                return Err(Fault::Malformed { peer: child.peer });
            }
            match (&mut self.inbox, &mut *parent) {
                (Some(inbox), _) if is_below(parents, from, child.peer) => {
                    inbox.take(from, kind, &body, child.peer)?;
                }
                // Sent together with what others' children have brought.
                (None, Some(parent)) => parent.out.push(kind, from, &body),
                _ => return Err(Fault::Malformed { peer: child.peer }),
            }
        }
        Ok(())
    }
}

/// Whether `rank` is `ancestor` or comes to the root by it.
fn is_below(parents: &[usize], rank: usize, ancestor: usize) -> bool {
    let mut at = rank;
    while at != ancestor && at != 0 {
        at = parents[at];
    }
    at == ancestor
}

impl Inbox {
    fn new(world: usize, mine: &[u8]) -> Self {
        let mut parts = vec![Vec::new(); world];
        parts[0] = mine.to_vec();
        let mut complete = vec![false; world];
        complete[0] = true;
        let heard = vec![None; world];
        Self { parts, complete, heard, missing: world - 1, bytes: mine.len() as u64 }
    }

    fn take(&mut self, rank: usize, kind: Kind, piece: &[u8], peer: usize) -> Result<(), Fault> {
        if kind == Kind::Present {
            self.heard[rank] = Some(Instant::now());
            return Ok(());
        }
        let part = &mut self.parts[rank];
        if self.complete[rank] || part.len() + piece.len() > MAX_CONTRIBUTION {
            return Err(Fault::Malformed { peer });
        }
        part.extend_from_slice(piece);
        self.bytes += piece.len() as u64;
        if self.bytes > MAX_GATHERED as u64 {
            return Err(Fault::TotalTooLarge { bytes: self.bytes });
        }
        if kind == Kind::Part {
            self.complete[rank] = true;
            self.missing -= 1;
        }
        Ok(())
    }

    /// Who has not come, or has not answered within `lately` although others' parts come by it. Who is behind such a
    /// rank cannot be heard, so nothing is said about it.
    fn missing(&self, parents: &[usize], lately: Duration) -> Vec<usize> {
        let absent = (1..self.complete.len()).filter(|&rank| !self.complete[rank]);
        let mut blamed: Vec<usize> =
            absent.map(|rank| self.highest(rank, parents, lately)).collect();
        blamed.sort_unstable();
        blamed.dedup();
        blamed
    }

    /// The rank nearest to the root, on the way from there to `rank`, that passes nothing on.
    fn highest(&self, rank: usize, parents: &[usize], lately: Duration) -> usize {
        let (mut highest, mut at) = (rank, parents[rank]);
        while at != 0 {
            let heard = self.heard[at].is_some_and(|when| when.elapsed() < lately);
            if !heard || !self.complete[at] {
                highest = at;
            }
            at = parents[at];
        }
        highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks 1 and 2 below the root, 3 and 4 below 1, 5 below 3.
    const PARENTS: [usize; 6] = [0, 0, 0, 1, 1, 3];
    const LATELY: Duration = Duration::from_secs(60);

    fn blamed(come: &[usize], heard: &[usize]) -> Vec<usize> {
        let mut inbox = Inbox::new(6, b"");
        for &rank in come {
            inbox.take(rank, Kind::Part, b"", 0).unwrap();
        }
        for &rank in heard {
            inbox.take(rank, Kind::Present, b"", 0).unwrap();
        }
        inbox.missing(&PARENTS, LATELY)
    }

    #[test]
    fn who_is_behind_a_missing_rank_is_not_blamed() {
        assert_eq!(blamed(&[2], &[]), [1]);
        assert_eq!(blamed(&[1, 2], &[1]), [3, 4]);
        assert_eq!(blamed(&[1, 3, 4], &[1, 3]), [2, 5]);
        // It may have been the last thing that it did: to give its part.
        assert_eq!(blamed(&[1, 2], &[]), [1]);
        assert_eq!(blamed(&[1, 2, 3, 4], &[1]), [3]);
    }

    #[test]
    fn what_is_too_much_or_twice_is_refused() {
        let mut inbox = Inbox::new(6, b"");
        inbox.bytes = MAX_GATHERED as u64 - 1;
        inbox.take(1, Kind::PartPiece, b"x", 1).unwrap();
        let fault = inbox.take(2, Kind::Part, b"x", 2).unwrap_err();
        assert_eq!(fault, Fault::TotalTooLarge { bytes: MAX_GATHERED as u64 + 1 });
        inbox.bytes = 0;
        inbox.take(1, Kind::Part, b"x", 1).unwrap();
        let twice = inbox.take(1, Kind::Part, b"", 1);
        assert_eq!(twice, Err(Fault::Malformed { peer: 1 }));
    }

    #[test]
    fn what_is_below_whom_is_known() {
        assert!(is_below(&PARENTS, 5, 1) && is_below(&PARENTS, 5, 3) && is_below(&PARENTS, 1, 1));
        assert!(!is_below(&PARENTS, 5, 2) && !is_below(&PARENTS, 0, 1));
    }
}

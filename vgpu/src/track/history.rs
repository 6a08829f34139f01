//! What a granule remembers: writes in coherence order, and reads for the race detector.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::clock::{Claim, Know, NOBODY, Thread};
use crate::exec::warp::Scope;

/// How many writes a granule remembers, unless more are each the newest of some byte.
pub(super) const HISTORY: usize = 12;

/// What a write releases: who, at which of its operations, with which scope, and what it knew.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub(super) who: Thread,
    /// What it did itself; lanes that had done nothing count as well.
    pub(super) claim: Claim,
    pub(super) scope: Scope,
    pub(super) know: Arc<Know>,
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) mask: u16,
    /// Of a strong one: bytes of an element.
    pub(super) element: u8,
    pub(super) data: [u8; 16],
    pub(super) who: Thread,
    pub(super) clock: u32,
    /// Scope if it is strong.
    pub(super) strong: Option<Scope>,
    /// True for the write of an atomic, which directly follows what it read.
    pub(super) atomic: bool,
    /// True if it counts as known to all, since what came before it was forgotten.
    pub(super) floor: bool,
    pub(super) line: u32,
    pub(super) id: u64,
    /// Nothing for most writes, which are weak and alone.
    pub(super) extra: Option<Box<Extra>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    pub(super) releases: Vec<Release>,
    /// Morally strong reads of it: each thread's first.
    pub(super) readers: Vec<Claim>,
    /// Writes that the model puts before this one: by causality, or because both are morally strong. The order of the list
    /// between other writes is a choice that no reader may rely on.
    pub(super) after: Vec<u64>,
}

impl Write {
    /// A weak write without any relation to others.
    pub(super) fn plain(mask: u16, data: [u8; 16], who: Thread, clock: u32, line: u32) -> Self {
        Write {
            mask,
            element: 0,
            data,
            who,
            clock,
            strong: None,
            atomic: false,
            floor: false,
            line,
            id: 0,
            extra: None,
        }
    }

    pub(super) fn releases(&self) -> &[Release] {
        self.extra.as_ref().map_or(&[], |e| &e.releases)
    }
    pub(super) fn readers(&self) -> &[Claim] {
        self.extra.as_ref().map_or(&[], |e| &e.readers)
    }
    pub(super) fn after(&self) -> &[u64] {
        self.extra.as_ref().map_or(&[], |e| &e.after)
    }
    pub(super) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Notes a morally strong read.
    pub(super) fn read_by(&mut self, who: Thread, clock: u32) {
        if self.readers().iter().any(|r| r.warp == who.warp && r.lanes & who.bit() != 0) {
            return;
        }
        let readers = &mut self.extra().readers;
        match readers.iter_mut().find(|r| r.warp == who.warp && r.clock == clock) {
            Some(r) => r.lanes |= who.bit(),
            None => readers.push(Claim { warp: who.warp, lanes: who.bit(), clock }),
        }
    }

    /// True if a thread that knows `know` knows of the write, or of a morally strong read of it.
    pub(super) fn is_known(&self, me: Thread, know: &Know) -> bool {
        let reader = |r: &Claim| {
            let mine = r.warp == me.warp && r.lanes & me.bit() != 0;
            let one = |l: u8| know.knows(Thread { warp: r.warp, lane: l }, r.clock);
            mine || (0..32).any(|l| r.lanes >> l & 1 == 1 && one(l))
        };
        self.floor
            || self.who == me
            || know.knows(self.who, self.clock)
            || self.readers().iter().any(reader)
    }
}

/// Reads by some lanes of a warp with one instruction.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) mask: u16,
    /// Of a strong one: bytes of an element.
    pub(super) element: u8,
    pub(super) claim: Claim,
    pub(super) strong: Option<Scope>,
    pub(super) line: u32,
}

#[derive(Debug)]
pub(super) struct History {
    /// Coherence order; the first covers the whole granule.
    pub(super) writes: SmallVec<[Write; 2]>,
    pub(super) reads: SmallVec<[Read; 2]>,
    newest: [u8; 16],
}

/// `bytes` with those of `mask` from `data`.
fn blend(bytes: [u8; 16], mask: u16, data: &[u8; 16]) -> [u8; 16] {
    // Without branches, which is what the vectoriser takes.
    std::array::from_fn(|n| if mask >> n & 1 == 1 { data[n] } else { bytes[n] })
}

impl History {
    /// A granule whose bytes are known to all.
    pub(super) fn new(data: [u8; 16]) -> Self {
        let first = Write::plain(!0, data, Thread { warp: NOBODY, lane: 0 }, 0, 0);
        History { writes: smallvec![first], reads: SmallVec::new(), newest: data }
    }

    /// The bytes as of write number `at`.
    pub(super) fn at(&self, at: usize) -> [u8; 16] {
        if at + 1 == self.writes.len() {
            return self.newest;
        }
        let (mut out, mut missing) = ([0; 16], !0u16);
        for w in self.writes[..=at].iter().rev() {
            out = blend(out, w.mask & missing, &w.data);
            missing &= !w.mask;
            if missing == 0 {
                break;
            }
        }
        out
    }

    /// The newest bytes.
    pub(super) fn newest(&self) -> [u8; 16] {
        self.newest
    }

    /// Puts a write at a place in coherence order, and forgets old ones beyond the limit.
    pub(super) fn insert(&mut self, at: usize, w: Write) {
        // Bytes that later writes cover are theirs.
        let later = self.writes[at..].iter().fold(0, |m, w| m | w.mask);
        self.newest = blend(self.newest, w.mask & !later, &w.data);
        self.writes.insert(at, w);
        self.trim();
    }

    /// Index of the oldest write that a load with this knowledge may still see.
    pub(super) fn floor(&self, mask: u16, me: Thread, know: &Know) -> usize {
        let known = |w: &Write| w.mask & mask != 0 && w.is_known(me, know);
        self.writes.iter().rposition(known).unwrap_or(0)
    }

    /// Writes before the floor that nothing known follows: coherence order between them and the floor is open.
    pub(super) fn unordered(&self, mask: u16, me: Thread, know: &Know, floor: usize) -> Vec<usize> {
        let hides = |w: &Write, id: u64| w.mask & mask != 0 && (w.floor || w.after().contains(&id));
        let hidden = |n: usize| {
            let (id, mut later) = (self.writes[n].id, self.writes[n + 1..].iter());
            later.any(|w| hides(w, id) && w.is_known(me, know))
        };
        (1..floor).filter(|&n| self.writes[n].mask & mask == mask && !hidden(n)).collect()
    }

    /// Forgets old writes beyond the limit: the oldest whose bytes were all written again. Nobody may then see anything older
    /// in its place, which has other releases: so the writes that cover it count as known to all. That hides stale
    /// values, and never allows one.
    fn trim(&mut self) {
        while self.writes.len() > HISTORY {
            let later = |n: usize| self.writes[n + 1..].iter().fold(0, |m, w| m | w.mask);
            let covered = |n: &usize| self.writes[*n].mask & !later(*n) == 0;
            let Some(n) = (1..self.writes.len()).find(covered) else { return };
            let gone = self.writes.remove(n);
            let mut missing = gone.mask;
            for w in &mut self.writes[n..] {
                w.floor |= w.mask & missing != 0;
                missing &= !w.mask;
            }
            for e in self.writes.iter_mut().filter_map(|w| w.extra.as_mut()) {
                e.after.retain(|&id| id != gone.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Thread = Thread { warp: 1, lane: 0 };

    fn history(masks: &[u16]) -> History {
        let mut h = History::new([0; 16]);
        for (n, &mask) in masks.iter().enumerate() {
            let who = Thread { warp: 0, lane: 0 };
            let mut w = Write::plain(mask, [n as u8 + 1; 16], who, n as u32 + 1, 0);
            w.id = n as u64 + 1;
            // Without trimming.
            h.newest = blend(h.newest, mask, &w.data);
            h.writes.push(w);
        }
        h
    }

    #[test]
    fn trimming_shows_nothing_older_than_what_it_forgot() {
        let mut h = history(&[!0; 20]);
        h.trim();
        assert_eq!(h.writes.len(), HISTORY);
        // Ten writes are forgotten; the oldest that a thread without any knowledge may see is the first one that is left.
        let floor = h.floor(0xff, ME, &Know::default());
        assert_eq!((floor, h.at(floor)[0]), (1, 10));
        assert!(h.unordered(0xff, ME, &Know::default(), floor).is_empty());
    }

    #[test]
    fn trimming_keeps_the_newest_write_of_each_byte() {
        let masks: Vec<u16> = (0..16).map(|n| 1 << n).chain([1, 2, 1, 2]).collect();
        let mut h = history(&masks);
        let before = h.newest();
        h.trim();
        assert_eq!(h.newest(), before);
        assert_eq!(h.writes.len(), 17); // the base, and one for each byte
        let know = Know::default();
        assert_eq!(h.at(h.floor(1, ME, &know))[0], 19); // byte 0 was forgotten twice
        assert_eq!(h.floor(1 << 9, ME, &know), 0); // byte 9 was not: its initial value may be seen
    }
}

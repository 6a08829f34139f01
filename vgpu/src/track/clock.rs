//! Vector clocks of threads, in the compact form that warps allow.
//!
//! A thread is a lane of a warp. All lanes of a warp share one clock, which goes on whenever a lane hands its knowledge to
//! somebody: so two events of one thread have the same stamp only if nobody can know one without the other, or if nobody
//! was told of them yet. What a thread knows is a number per warp (*all* lanes up to there) and a sorted list of exceptions:
//! some lanes of a warp, up to a later clock. Exceptions come from releases by single lanes and from barriers of part of a
//! warp; they vanish when the number per warp catches up with them.

use std::collections::HashMap;

/// A multiplicative hash: granule numbers need no defence against anybody.
#[derive(Default, Clone, Copy)]
pub struct FastHash(u64);

impl std::hash::Hasher for FastHash {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64((*b).into());
        }
    }
    fn write_u16(&mut self, x: u16) {
        self.write_u64(x.into());
    }
    fn write_u32(&mut self, x: u32) {
        self.write_u64(x.into());
    }
    fn write_u64(&mut self, x: u64) {
        self.0 = (self.0.rotate_left(5) ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map with that hash.
pub type FastMap<K, V> = HashMap<K, V, std::hash::BuildHasherDefault<FastHash>>;

/// The warp of initial values and of the host between launches: everybody knows what it did.
pub const NOBODY: u32 = u32::MAX;

/// A lane of a warp.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Thread {
    /// Number of the warp in the model.
    pub warp: u32,
    /// Lane, 0 to 31.
    pub lane: u8,
}

impl Thread {
    /// A mask of this lane alone.
    pub fn bit(self) -> u32 {
        1 << self.lane
    }
}

/// Lanes of a warp up to a clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The warp.
    pub warp: u32,
    /// Its lanes.
    pub lanes: u32,
    /// Up to which clock, included.
    pub clock: u32,
}

/// What a thread knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Know {
    /// By warp: what all its lanes did up to this clock is known.
    all: Vec<u32>,
    /// Beyond that, sorted by warp. None is implied by another one or by `all`.
    some: Vec<Claim>,
}

impl Know {
    /// Up to which clock everything that a warp did is known.
    #[inline(always)]
    pub fn all_of(&self, warp: u32) -> u32 {
        self.all.get(warp as usize).copied().unwrap_or(0)
    }

    /// True if what a thread did up to a clock is known.
    pub fn knows(&self, t: Thread, clock: u32) -> bool {
        self.knows_lanes(Claim { warp: t.warp, lanes: t.bit(), clock })
    }

    /// True if what all these lanes did up to the clock is known.
    #[inline]
    pub fn knows_lanes(&self, c: Claim) -> bool {
        c.lanes & !self.lanes_of(c.warp, c.clock) == 0
    }

    /// The lanes of a warp of which all is known that they did up to a clock.
    #[inline]
    pub fn lanes_of(&self, warp: u32, clock: u32) -> u32 {
        if warp == NOBODY || self.all_of(warp) >= clock {
            return !0;
        }
        let from = self.some.partition_point(|s| s.warp < warp);
        let known = |m: u32, s: &Claim| if s.clock >= clock { m | s.lanes } else { m };
        self.some[from..].iter().take_while(|s| s.warp == warp).fold(0, known)
    }

    /// A warp of which more is known than it has done, if there is one.
    pub fn first_beyond(&self, clock: impl Fn(u32) -> u32) -> Option<u32> {
        let all = self.all.iter().enumerate().map(|(warp, known)| (warp as u32, *known));
        let mut claims = all.chain(self.some.iter().map(|c| (c.warp, c.clock)));
        claims.find(|&(warp, known)| known > clock(warp)).map(|(warp, _)| warp)
    }

    /// What of this is about some warps.
    pub fn about(&self, which: impl Fn(u32) -> bool) -> Know {
        let all = self.all.iter().enumerate();
        let all = all.map(|(warp, &clock)| if which(warp as u32) { clock } else { 0 }).collect();
        Know { all, some: self.some.iter().filter(|c| which(c.warp)).copied().collect() }
    }

    /// How many numbers it takes.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.all.len() + self.some.len()
    }

    /// Learns of some lanes of a warp.
    pub fn add(&mut self, c: Claim) {
        let from = self.some.partition_point(|s| s.warp < c.warp);
        self.add_at(from, c);
    }

    /// As `add`; the exceptions of that warp begin at `from`.
    fn add_at(&mut self, from: usize, c: Claim) {
        if self.all_of(c.warp) >= c.clock {
            return;
        }
        let to = from + self.some[from..].iter().take_while(|s| s.warp == c.warp).count();
        let implies = |a: &Claim, b: &Claim| b.lanes & !a.lanes == 0 && a.clock >= b.clock;
        if self.some[from..to].iter().any(|s| implies(s, &c)) {
            return;
        }
        let mut to = to;
        for n in (from..to).rev() {
            if implies(&c, &self.some[n]) {
                self.some.remove(n);
                to -= 1;
            }
        }
        self.some.insert(to, c);
        self.promote(from, to + 1);
    }

    /// Raises the number of a warp as far as its exceptions `from..to` together allow.
    fn promote(&mut self, from: usize, to: usize) {
        let group = &self.some[from..to];
        if group.iter().fold(0, |m, s| m | s.lanes) != !0 {
            return;
        }
        let last = |l: u32| group.iter().filter(|s| s.lanes >> l & 1 == 1).map(|s| s.clock).max();
        let clock = (0..32).filter_map(last).min().unwrap_or(0);
        let warp = self.some[from].warp as usize;
        if self.all.len() <= warp {
            self.all.resize(warp + 1, 0);
        }
        self.all[warp] = self.all[warp].max(clock);
        for n in (from..to).rev().filter(|&n| self.some[n].clock <= clock).collect::<Vec<_>>() {
            self.some.remove(n);
        }
    }

    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Know) {
        if self.all.len() < other.all.len() {
            self.all.resize(other.all.len(), 0);
        }
        for (a, b) in self.all.iter_mut().zip(&other.all) {
            *a = (*a).max(*b);
        }
        let all = &self.all;
        self.some.retain(|c| all.get(c.warp as usize).is_none_or(|known| *known < c.clock));
        // Mostly there are none.
        let new: Vec<Claim> =
            other.some.iter().copied().filter(|c| !self.knows_lanes(*c)).collect();
        if new.is_empty() {
            return;
        }
        let mine = std::mem::take(&mut self.some);
        let (mut a, mut b) = (mine.iter().peekable(), new.iter().peekable());
        let mut from = 0;
        loop {
            let first = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) => x.warp <= y.warp,
                (x, y) if x.is_some() || y.is_some() => x.is_some(),
                _ => return,
            };
            let Some(&c) = (if first { a.next() } else { b.next() }) else { return };
            if self.some[from..].first().is_some_and(|s| s.warp != c.warp) {
                from = self.some.len();
            }
            self.add_at(from, c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(warp: u32, lanes: u32, clock: u32) -> Claim {
        Claim { warp, lanes, clock }
    }

    /// The same by a table of all threads.
    #[derive(Clone, Default)]
    struct Plain(HashMap<(u32, u8), u32>);

    impl Plain {
        fn add(&mut self, c: Claim) {
            for lane in (0..32).filter(|l| c.lanes >> l & 1 == 1) {
                let at = self.0.entry((c.warp, lane)).or_default();
                *at = (*at).max(c.clock);
            }
        }
        fn join(&mut self, other: &Plain) {
            for (&(warp, lane), &clock) in &other.0 {
                self.add(claim(warp, 1 << lane, clock));
            }
        }
    }

    #[test]
    fn knowledge_is_that_of_a_full_vector_clock() {
        let mut seed = 1u64;
        let mut random = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut all: Vec<(Know, Plain)> = vec![Default::default(); 4];
        for _ in 0..4000 {
            let (a, b) = (random(4) as usize, random(4) as usize);
            if random(3) == 0 {
                let (know, plain) = all[b].clone();
                all[a].0.join(&know);
                all[a].1.join(&plain);
            } else {
                let lanes = match random(4) {
                    0 => !0,
                    1 => 1 << random(32),
                    2 => 0xffff << (16 * random(2)),
                    _ => random(1 << 32) as u32,
                };
                let c = claim(random(5) as u32, lanes, random(60) as u32);
                all[a].0.add(c);
                all[a].1.add(c);
            }
            let (know, plain) = &all[a];
            for (warp, lane) in (0..5).flat_map(|w| (0..32).map(move |l| (w, l))) {
                let clock = plain.0.get(&(warp, lane)).copied().unwrap_or(0);
                let t = Thread { warp, lane };
                assert!(
                    know.knows(t, clock) && !know.knows(t, clock + 1),
                    "{t:?} {clock} {know:?}"
                );
            }
            if random(40) == 0 {
                all[a] = Default::default();
            }
        }
    }

    #[test]
    fn exceptions_vanish_when_all_lanes_are_known() {
        let mut k = Know::default();
        k.add(claim(3, 0xffff, 7));
        k.add(claim(3, 1, 9));
        assert!(
            k.knows(Thread { warp: 3, lane: 0 }, 9) && !k.knows(Thread { warp: 3, lane: 1 }, 8)
        );
        assert!(!k.knows(Thread { warp: 3, lane: 16 }, 1));
        k.add(claim(3, 0xffff_0000, 8));
        assert_eq!((k.all_of(3), k.some.len()), (7, 2));
        k.add(claim(3, !0, 9));
        assert_eq!((k.all_of(3), k.some.len()), (9, 0));
    }
}

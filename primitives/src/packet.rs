//! Packets: data that is its own signal.
//!
//! On the host a packet is a cache line of 56 bytes of data and a flag. The writer stores the data
//! and then the flag; whoever sees the flag it expects sees the data, in the one cache-line
//! transfer that brought both. There is no second trip for a semaphore, which is why small messages
//! travel in this form.
//!
//! ```text
//!   | word 0 | word 1 | ... | word 6 | flag = epoch << 24 | tag |
//! ```
//!
//! The *epoch* differs from all that the line held before, so a line is never taken for fresh
//! twice. The *tag* is a digest of the call (collective, type, op, count): a peer that made another
//! call is noticed at the first packet, at no cost.
//!
//! A line is always a line: regions that hold packets hold nothing else, so no user data is ever
//! compared with a flag.

use crate::sync::{AtomicU64, Ordering};

/// Data bytes in a line.
pub const LINE_DATA: usize = 56;
/// Bytes in a line.
pub const LINE_BYTES: usize = 64;
const WORDS: usize = LINE_DATA / 8;
const TAG_BITS: u32 = 24;

/// What a packet of this epoch of this call carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(u64);

impl Flag {
    /// `epoch` counts from 1 (fresh memory holds 0) and is cut to 40 bits: a line would have to
    /// lie untouched for 2^40 epochs to be mistaken. `tag` is cut to 24 bits.
    #[inline]
    pub fn new(epoch: u64, tag: u32) -> Self {
        Self(epoch << TAG_BITS | u64::from(tag) & ((1 << TAG_BITS) - 1))
    }

    fn epoch(self) -> u64 {
        self.0 >> TAG_BITS
    }

    /// The epoch in a flag word that was found in a line, for a diagnosis.
    pub fn epoch_of(word: u64) -> u64 {
        Self(word).epoch()
    }
}

/// Why a packet cannot be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotYet {
    /// It has not come; the line holds this flag.
    Absent(u64),
    /// It came from another call: same epoch, another tag.
    OtherCall(u64),
}

/// One packet in shared memory. Its one writer and its one reader are fixed by the plan.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Line {
    words: [AtomicU64; WORDS],
    flag: AtomicU64,
}

const _: () = assert!(cfg!(loom) || size_of::<Line>() == LINE_BYTES);

impl Line {
    /// Stores `data` and then the flag. The data stores are Relaxed: the Release store of the flag
    /// publishes them, and the protocol above has made sure that the reader is done with the
    /// line's former content.
    #[inline]
    pub fn write(&self, data: &[u64], flag: Flag) {
        for (word, value) in self.words.iter().zip(data) {
            word.store(*value, Ordering::Relaxed);
        }
        self.flag.store(flag.0, Ordering::Release);
    }

    /// Reads the data if the packet with this flag is there. Does not block. The Acquire load of
    /// the flag makes the Relaxed loads after it see the words that its writer stored before.
    #[inline]
    pub fn try_read(&self, flag: Flag, data: &mut [u64]) -> Result<(), NotYet> {
        let seen = self.flag.load(Ordering::Acquire);
        if seen != flag.0 {
            return Err(refuse(seen, flag));
        }
        for (word, value) in self.words.iter().zip(data) {
            *value = word.load(Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Line {
    /// Reads the data of a packet whose writer wrote another one after it, which this thread has
    /// read: that one's Release store came after these words, and its Acquire load before these
    /// Relaxed ones.
    #[inline]
    pub fn read_after_last(&self, data: &mut [u64]) {
        for (word, value) in self.words.iter().zip(data) {
            *value = word.load(Ordering::Relaxed);
        }
    }
}

fn refuse(seen: u64, flag: Flag) -> NotYet {
    if Flag(seen).epoch() == flag.epoch() { NotYet::OtherCall(seen) } else { NotYet::Absent(seen) }
}

/// Lines that `bytes` of data take.
pub const fn lines_for(bytes: usize) -> usize {
    bytes.div_ceil(LINE_DATA)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_once_its_flag_is_there() {
        let line = Line::default();
        let flag = Flag::new(1, 77);
        let mut data = [0; 3];
        assert_eq!(line.try_read(flag, &mut data), Err(NotYet::Absent(0)));
        line.write(&[1, 2, 3], flag);
        assert_eq!(line.try_read(flag, &mut data), Ok(()));
        assert_eq!(data, [1, 2, 3]);
        assert!(matches!(line.try_read(Flag::new(2, 77), &mut data), Err(NotYet::Absent(_))));
    }

    #[test]
    fn another_call_of_the_same_epoch_is_told_apart() {
        let line = Line::default();
        line.write(&[1], Flag::new(5, 1));
        let seen = line.try_read(Flag::new(5, 2), &mut [0]);
        assert!(matches!(seen, Err(NotYet::OtherCall(_))), "{seen:?}");
    }

    #[test]
    fn tags_do_not_spill_into_the_epoch() {
        assert_eq!(Flag::new(3, u32::MAX).epoch(), 3);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Whoever sees the last line's flag sees the lines before it, without a look at theirs.
    #[test]
    fn the_last_flag_publishes_all_lines() {
        loom::model(|| {
            let lines = Arc::new([Line::default(), Line::default()]);
            let theirs = lines.clone();
            let flag = Flag::new(1, 9);
            let peer = loom::thread::spawn(move || {
                theirs[0].write(&[10], flag);
                theirs[1].write(&[11], flag);
            });
            let mut data = [0];
            if lines[1].try_read(flag, &mut data).is_ok() {
                lines[0].read_after_last(&mut data);
                assert_eq!(data, [10]);
            }
            peer.join().unwrap();
        });
    }

    /// The reader sees all words of the epoch it waits for and none of another, when the writer
    /// writes a line again only after a packet came back (the double buffering of the plans).
    #[test]
    fn flag_publishes_the_words() {
        loom::model(|| {
            let lines = Arc::new([Line::default(), Line::default()]);
            let theirs = lines.clone();
            let peer = loom::thread::spawn(move || {
                for epoch in 1..=2 {
                    let flag = Flag::new(epoch, 9);
                    theirs[0].write(&[epoch * 10, epoch * 10 + 1], flag);
                    while theirs[1].try_read(flag, &mut []).is_err() {
                        loom::thread::yield_now();
                    }
                }
            });
            for epoch in 1..=2 {
                let flag = Flag::new(epoch, 9);
                let mut data = [0; 2];
                while lines[0].try_read(flag, &mut data).is_err() {
                    loom::thread::yield_now();
                }
                assert_eq!(data, [epoch * 10, epoch * 10 + 1]);
                lines[1].write(&[], flag);
            }
            peer.join().unwrap();
        });
    }
}

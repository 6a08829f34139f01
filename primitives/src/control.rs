//! The control segment: what a rank lets its peers see of itself, apart from data.
//!
//! Every rank owns one per node, mapped by all its peers. Who writes, who reads, what orders it:
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | `abort` | anyone, once (compare-exchange from 0) | the owner, in every long wait | Release / Acquire |
//! | `board` | the owner, at the start of a call | peers: after the owner's first signal or packet of that call, or for a diagnosis | entry's `sequence` Release / Acquire |
//! | `finished` | the owner, at the end of an epoch and of a call | peers, before they write into memory that it may still read | Release / Acquire |
//! | `progress` | the owner, in a long wait | peers, for a diagnosis only | Relaxed: a torn picture misleads a message, nothing else |
//! | `sleeping`, `doorbell` | the owner / anyone | signallers / the owner's futex | Relaxed; see [`crate::patience`] |
//! | semaphores | the owner | the one peer that each belongs to | see [`crate::semaphore`] |

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::semaphore::SemaphoreWord;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sys::Mapping;

/// Semaphores that each pair of ranks has in each direction.
pub const SEMAPHORES: usize = 64;
/// Words of a call's description on the board.
pub const CALL_WORDS: usize = 6;
/// Calls that the board remembers. A peer is at most two calls ahead (the epoch rule of the
/// collectives' executor), so four entries are never overwritten under a reader that needs them.
pub const BOARD: usize = 4;

const MAGIC: u64 = u64::from_le_bytes(*b"warpmesh");
const VERSION: u32 = 1;

/// One call on the board.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct BoardEntry {
    sequence: AtomicU64,
    tag: AtomicU64,
    words: [AtomicU64; CALL_WORDS],
}

impl BoardEntry {
    /// Only the board's owner calls this.
    #[inline]
    fn write(&self, call: &Call) {
        // A reader that looks at this entry while it changes must not take a mixture for a call:
        // 0 is no call, and the fence keeps the new words behind it.
        self.sequence.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        self.tag.store(call.tag, Ordering::Relaxed);
        for (word, value) in self.words.iter().zip(call.words) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence.store(call.sequence, Ordering::Release);
    }

    /// Call number `sequence`, if it is here, whole.
    #[inline]
    fn read(&self, sequence: u64) -> Option<Call> {
        if self.sequence.load(Ordering::Acquire) != sequence {
            return None;
        }
        let tag = self.tag.load(Ordering::Relaxed);
        let words = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
        // Pairs with the fence in `write`: if any word above came from a later call, this second
        // look sees that call's number, or 0.
        fence(Ordering::Acquire);
        let still = self.sequence.load(Ordering::Relaxed) == sequence;
        still.then_some(Call { sequence, tag, words })
    }
}

/// What a rank says that it is calling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Which call on this communicator, from 1.
    pub sequence: u64,
    /// Digest of what must be equal on all ranks.
    pub tag: u64,
    /// The call in full; the meaning is the collectives' business.
    pub words: [u64; CALL_WORDS],
}

/// What a waiting rank says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Between calls, in a call, or in a long wait.
    pub state: State,
    /// In a long wait: the peer that it waits for.
    pub peer: usize,
    /// In a long wait: the instruction or step that waits.
    pub place: u32,
    /// In a long wait: the count or epoch that it needs.
    pub expected: u64,
    /// In a long wait: the count or epoch that is there.
    pub seen: u64,
    /// Counts up as long as the rank is alive and waiting.
    pub heartbeat: u64,
}

/// What a rank is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Outside of a wait: computing, moving data, or not calling at all.
    #[default]
    Working,
    /// In a long wait for a peer.
    Waiting,
    /// The communicator was dropped.
    Left,
}

#[derive(Debug)]
#[repr(C)]
struct ProgressWords {
    /// state << 56 | peer << 32 | place
    place: AtomicU64,
    expected: AtomicU64,
    seen: AtomicU64,
    heartbeat: AtomicU64,
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Head {
    magic: AtomicU64,
    version: AtomicU32,
    world: AtomicU32,
    abort: CachePadded<AtomicU64>,
    board: CachePadded<[BoardEntry; BOARD]>,
    finished_epoch: CachePadded<AtomicU64>,
    finished_call: AtomicU64,
    progress: CachePadded<ProgressWords>,
    sleeping: CachePadded<AtomicU32>,
    doorbell: CachePadded<AtomicU32>,
}

/// Bytes of the words of one semaphore, for all peers: whole pairs of cache lines, so that two
/// semaphores never share one.
fn row(world: usize) -> usize {
    (world * size_of::<SemaphoreWord>()).next_multiple_of(128)
}

/// A rank's control segment, mine or a peer's.
#[derive(Clone, Debug)]
pub struct Control {
    mapping: Arc<Mapping>,
    world: usize,
}

impl Control {
    /// Bytes for a node of `world` ranks.
    pub(crate) fn bytes(world: usize) -> usize {
        size_of::<Head>() + SEMAPHORES * row(world)
    }

    /// Writes the header into a fresh mapping of at least [`Control::bytes`] zero bytes.
    pub(crate) fn format(mapping: Arc<Mapping>, world: usize) -> Self {
        let this = Self { mapping, world };
        this.head().version.store(VERSION, Ordering::Relaxed);
        this.head().world.store(world as u32, Ordering::Relaxed);
        this.head().magic.store(MAGIC, Ordering::Release);
        this
    }

    /// Takes a peer's mapping, if it is a control segment of this version for this world.
    pub(crate) fn open(mapping: Arc<Mapping>, world: usize) -> Option<Self> {
        if mapping.len() < Self::bytes(world) {
            return None;
        }
        let this = Self { mapping, world };
        let head = this.head();
        let fits = head.magic.load(Ordering::Acquire) == MAGIC
            && head.version.load(Ordering::Relaxed) == VERSION
            && head.world.load(Ordering::Relaxed) == world as u32;
        fits.then_some(this)
    }

    fn head(&self) -> &Head {
        // SAFETY: `format` and `open` are called with mappings of at least `Self::bytes`, page
        // aligned; Head consists of atomics, for which every bit pattern is valid, and nobody
        // accesses these bytes otherwise.
        unsafe { &*self.mapping.base().cast::<Head>() }
    }

    /// Semaphore `index` by which the owner signals `peer`. The words of one index lie side by
    /// side, in the signaller's memory: telling all peers costs one cache line, not one each.
    ///
    /// # Panics
    /// If `index` or `peer` is out of range: both are fixed when a channel or plan is prepared.
    #[inline]
    pub fn semaphore(&self, index: usize, peer: usize) -> &SemaphoreWord {
        assert!(index < SEMAPHORES && peer < self.world, "semaphore {index} of peer {peer}");
        let offset =
            size_of::<Head>() + index * row(self.world) + peer * size_of::<SemaphoreWord>();
        // SAFETY: in range by the assertion and `Self::bytes`; Head's size and the rows keep
        // the alignment; all access is by SemaphoreWord's atomics.
        unsafe { &*self.mapping.base().add(offset).cast::<SemaphoreWord>() }
    }

    /// Announces a call. Only the owner calls this.
    #[inline]
    pub fn announce(&self, call: &Call) {
        self.head().board[call.sequence as usize % BOARD].write(call);
    }

    /// The owner's call number `sequence`, if the board holds it now. Does not block.
    #[inline]
    pub fn call(&self, sequence: u64) -> Option<Call> {
        self.head().board[sequence as usize % BOARD].read(sequence)
    }

    /// The newest call on the board, for a diagnosis.
    pub fn latest_call(&self) -> Option<Call> {
        let newest = self.head().board.iter().map(|e| e.sequence.load(Ordering::Acquire)).max();
        newest.filter(|sequence| *sequence > 0).and_then(|sequence| self.call(sequence))
    }

    /// Says that the owner is done with all memory of `epoch` and before. Only the owner calls it.
    #[inline]
    pub fn finish_epoch(&self, epoch: u64) {
        self.head().finished_epoch.store(epoch, Ordering::Release);
    }

    /// The last epoch that the owner has finished.
    #[inline]
    pub fn finished_epoch(&self) -> u64 {
        self.head().finished_epoch.load(Ordering::Acquire)
    }

    /// Says that the owner returned from call `sequence`. Only the owner calls it.
    #[inline]
    pub fn finish_call(&self, sequence: u64) {
        self.head().finished_call.store(sequence, Ordering::Release);
    }

    /// The last call that the owner returned from.
    pub fn finished_call(&self) -> u64 {
        self.head().finished_call.load(Ordering::Acquire)
    }

    /// The abort word: 0, or the first failure that anyone posted here.
    #[inline]
    pub(crate) fn abort_word(&self) -> u64 {
        self.head().abort.load(Ordering::Acquire)
    }

    /// Posts a failure and returns what the word holds now: the first one stays.
    pub(crate) fn post_abort(&self, word: u64) -> u64 {
        let abort = &self.head().abort;
        let posted = abort.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
        posted.map_or_else(|earlier| earlier, |_| word)
    }

    /// Writes the progress record. Only the owner calls it; the heartbeat counts by itself.
    pub fn set_progress(&self, progress: &Progress) {
        let words = &self.head().progress;
        let place = (progress.state as u64) << 56
            | (progress.peer as u64 & 0xff_ffff) << 32
            | u64::from(progress.place);
        words.place.store(place, Ordering::Relaxed);
        words.expected.store(progress.expected, Ordering::Relaxed);
        words.seen.store(progress.seen, Ordering::Relaxed);
        let beat = words.heartbeat.load(Ordering::Relaxed);
        words.heartbeat.store(beat + 1, Ordering::Relaxed);
    }

    /// The progress record, for a diagnosis.
    pub fn progress(&self) -> Progress {
        let words = &self.head().progress;
        let place = words.place.load(Ordering::Relaxed);
        Progress {
            state: match place >> 56 {
                1 => State::Waiting,
                2 => State::Left,
                _ => State::Working,
            },
            peer: (place >> 32 & 0xff_ffff) as usize,
            place: place as u32,
            expected: words.expected.load(Ordering::Relaxed),
            seen: words.seen.load(Ordering::Relaxed),
            heartbeat: words.heartbeat.load(Ordering::Relaxed),
        }
    }

    /// To be called by whoever stored something that the owner may wait for. Costs a load of a
    /// cached line unless the owner sleeps.
    #[inline]
    pub fn ring(&self) {
        if self.head().sleeping.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    pub(crate) fn wake(&self) {
        let doorbell = &self.head().doorbell;
        doorbell.fetch_add(1, Ordering::Release);
        crate::sys::futex_wake(doorbell);
    }

    pub(crate) fn sleeping(&self) -> &AtomicU32 {
        &self.head().sleeping
    }

    pub(crate) fn doorbell(&self) -> &AtomicU32 {
        &self.head().doorbell
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn control(world: usize) -> Control {
        let (mapping, _) = Mapping::create(Control::bytes(world)).unwrap();
        Control::format(Arc::new(mapping), world)
    }

    #[test]
    fn the_board_keeps_the_last_calls() {
        let control = control(2);
        assert_eq!(control.latest_call(), None);
        for sequence in 1..=6 {
            control.announce(&Call { sequence, tag: sequence * 7, words: [sequence; 6] });
        }
        assert_eq!(control.call(2), None);
        assert_eq!(control.call(3).unwrap().tag, 21);
        assert_eq!(control.latest_call().unwrap().words, [6; 6]);
    }

    #[test]
    fn the_first_abort_stays() {
        let control = control(2);
        assert_eq!(control.post_abort(5), 5);
        assert_eq!(control.post_abort(6), 5);
        assert_eq!(control.abort_word(), 5);
    }

    #[test]
    fn progress_survives_packing_and_beats() {
        let control = control(2);
        let wait = Progress {
            state: State::Waiting,
            peer: 70_000,
            place: u32::MAX,
            expected: 9,
            seen: 8,
            heartbeat: 0,
        };
        control.set_progress(&wait);
        control.set_progress(&wait);
        assert_eq!(control.progress(), Progress { heartbeat: 2, ..wait });
    }

    #[test]
    fn another_world_or_garbage_is_refused() {
        let (mapping, _) = Mapping::create(Control::bytes(4)).unwrap();
        let mapping = Arc::new(mapping);
        assert!(Control::open(mapping.clone(), 4).is_none());
        Control::format(mapping.clone(), 4);
        assert!(Control::open(mapping.clone(), 4).is_some());
        assert!(Control::open(mapping, 3).is_none());
    }

    #[test]
    fn semaphores_do_not_overlap() {
        let control = control(3);
        for index in 0..SEMAPHORES {
            for peer in 0..3 {
                control.semaphore(index, peer).publish((index * 3 + peer) as u64);
            }
        }
        for index in 0..SEMAPHORES {
            for peer in 0..3 {
                assert!(control.semaphore(index, peer).reached((index * 3 + peer) as u64).is_ok());
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// A reader that looks while the entry changes sees a whole call or none.
    #[test]
    fn an_entry_is_never_a_mixture() {
        loom::model(|| {
            let entry = Arc::new(BoardEntry::default());
            let call = |sequence| Call { sequence, tag: sequence, words: [sequence; CALL_WORDS] };
            entry.write(&call(1));
            let theirs = entry.clone();
            let owner = loom::thread::spawn(move || theirs.write(&call(5)));
            for sequence in [1, 5] {
                if let Some(seen) = entry.read(sequence) {
                    assert_eq!(seen, call(sequence));
                }
            }
            owner.join().unwrap();
        });
    }
}

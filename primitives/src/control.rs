//! The control segment: what a rank lets its peers see of itself, apart from data.
//!
//! Every rank owns one, mapped by all ranks of its host. Ranks of other hosts hold a *mirror* of it, without its
//! semaphores, which the owner writes by transfers: see [`crate::node`]. Who writes, who reads, what orders it:
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | `abort` | anyone, once (compare-exchange from 0) | the owner, in every long wait | Release / Acquire |
//! | `board` | the owner, at the start of a call | peers: after the owner's first signal or packet of that call, or for a diagnosis | entry's `sequence` Release / Acquire |
//! | `finished` | the owner, at the end of an epoch and of a call | peers, before they write into memory that it may still read | Release / Acquire |
//! | `cleared` | the owner, when it has seen all ranks of its host finish an epoch | peers of other hosts, before they write into memory of that host | Release / the transfer, Acquire |
//! | `progress` | the owner, in a long wait | peers, for a diagnosis only | Relaxed: a torn picture misleads a message, nothing else |
//! | `via` | the owner, before it posts a failure that a connection of its own is behind | peers, for a diagnosis only | Relaxed: as above |
//! | `sleeping`, `doorbell` | the owner / anyone | signallers / the owner's futex | Relaxed; see [`crate::patience`] |
//! | semaphores | the owner | the one peer of the host that each belongs to | see [`crate::semaphore`] |
//!
//! In a mirror words change as a transfer arrives: a word may be half old and half new, and an entry of the board, too.
//! Such a word is never above the new one if words only count up, and an abort word is 0 until all of it is there; the
//! entries that a rank with peers on other hosts writes carry a seal, so that a mixture is found out.

use std::mem::offset_of;
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

/// The tag's upper half, for a rank with peers on other hosts.
const SEAL: u64 = !0 << 32;

/// A digest of a call that a mixture of two calls does not have, but by chance.
fn seal(sequence: u64, tag: u64, words: &[u64; CALL_WORDS]) -> u64 {
    let part = |(n, word): (usize, &u64)| {
        let odd = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        word.rotate_left(8 * n as u32 + 5).wrapping_mul(odd)
    };
    let sum: u64 = words.iter().enumerate().map(part).fold(sequence ^ tag << 32, u64::wrapping_add);
    // Never 0, which is the seal of those that carry none.
    (sum ^ sum << 32) & SEAL | 1 << 32
}

impl Call {
    /// With the seal that mirrors need.
    pub(crate) fn sealed(self) -> Self {
        Self { tag: self.tag & !SEAL | seal(self.sequence, self.tag & !SEAL, &self.words), ..self }
    }
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
        let call = Call { sequence, tag: tag & !SEAL, words };
        let whole = tag & SEAL == 0 || tag == call.sealed().tag;
        (still && whole).then_some(call)
    }
}

/// What a rank says that it is calling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Which call on this communicator, from 1.
    pub sequence: u64,
    /// Digest of what must be equal on all ranks: 32 bits.
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
    /// Through what the connection went that broke, as text behind which are zeros.
    via: [AtomicU64; VIA / 8],
}

/// The longest [`Control::via`], bytes: what is left of the record's pair of cache lines.
const VIA: usize = 96;

#[derive(Debug)]
#[repr(C)]
struct Finished {
    epoch: AtomicU64,
    call: AtomicU64,
    cleared: AtomicU64,
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Head {
    magic: AtomicU64,
    version: AtomicU32,
    world: AtomicU32,
    abort: CachePadded<AtomicU64>,
    board: CachePadded<[BoardEntry; BOARD]>,
    finished: CachePadded<Finished>,
    progress: CachePadded<ProgressWords>,
    sleeping: CachePadded<AtomicU32>,
    doorbell: CachePadded<AtomicU32>,
}

/// Bytes of the words of one semaphore, for all peers: whole pairs of cache lines, so that two
/// semaphores never share one.
fn row(world: usize) -> usize {
    (world * size_of::<SemaphoreWord>()).next_multiple_of(128)
}

/// A rank's control segment, mine or a peer's, or the mirror of one.
#[derive(Clone, Debug)]
pub struct Control {
    mapping: Arc<Mapping>,
    /// Where it begins in the mapping.
    begin: usize,
    /// 0 for a mirror, which has no semaphores.
    world: usize,
}

/// A range of a control segment's bytes that is told to ranks of other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) begin: usize,
    pub(crate) bytes: usize,
}

impl Words {
    /// Everything that others are told: abort, board, what is finished, progress.
    pub(crate) const NEWS: Self = Self {
        begin: offset_of!(Head, abort),
        bytes: offset_of!(Head, sleeping) - offset_of!(Head, abort),
    };
    /// What is finished.
    pub(crate) const FINISHED: Self =
        Self { begin: offset_of!(Head, finished), bytes: size_of::<Finished>() };

    /// The entry of a call.
    pub(crate) fn board(sequence: u64) -> Self {
        let entry = size_of::<BoardEntry>();
        Self { begin: offset_of!(Head, board) + sequence as usize % BOARD * entry, bytes: entry }
    }
}

impl Control {
    /// Bytes for a node of `world` ranks.
    pub(crate) fn bytes(world: usize) -> usize {
        size_of::<Head>() + SEMAPHORES * row(world)
    }

    /// Writes the header into a fresh mapping of at least [`Control::bytes`] zero bytes.
    pub(crate) fn format(mapping: Arc<Mapping>, world: usize) -> Self {
        let this = Self { mapping, begin: 0, world };
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
        let this = Self { mapping, begin: 0, world };
        let head = this.head();
        let fits = head.magic.load(Ordering::Acquire) == MAGIC
            && head.version.load(Ordering::Relaxed) == VERSION
            && head.world.load(Ordering::Relaxed) == world as u32;
        fits.then_some(this)
    }

    /// Bytes of a mirror.
    pub(crate) const MIRROR: usize = size_of::<Head>();

    /// The mirror of number `index` in memory of so many.
    pub(crate) fn mirror(mapping: Arc<Mapping>, index: usize) -> Self {
        let begin = index * Self::MIRROR;
        assert!(begin + Self::MIRROR <= mapping.len(), "mirror {index}");
        Self { mapping, begin, world: 0 }
    }

    fn head(&self) -> &Head {
        // SAFETY: `format` and `open` are called with mappings of at least `Self::bytes`, page
        // aligned, and `mirror` asserts the same of the bytes from a multiple of Head's size on; Head consists of
        // atomics, for which every bit pattern is valid, and nobody of this process accesses these bytes otherwise
        // but the transport, which stores what a peer sent in the same way as the peer's NIC would.
        unsafe { &*self.mapping.base().add(self.begin).cast::<Head>() }
    }

    /// Copies what others are told from another segment, word by word.
    pub(crate) fn copy_news(&self, from: &Self) {
        let words = |control: &Self| {
            let head: *const Head = control.head();
            // SAFETY: the range lies in the head, at a multiple of its alignment, and is made of atomics and padding.
            unsafe { head.byte_add(Words::NEWS.begin).cast::<AtomicU64>() }
        };
        let (to, from) = (words(self), words(from));
        for n in 0..Words::NEWS.bytes / size_of::<u64>() {
            // SAFETY: as above; `AtomicU64` is valid for all bits.
            let (to, from) = unsafe { (&*to.add(n), &*from.add(n)) };
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
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
        self.head().finished.epoch.store(epoch, Ordering::Release);
    }

    /// The last epoch that the owner has finished.
    #[inline]
    pub fn finished_epoch(&self) -> u64 {
        self.head().finished.epoch.load(Ordering::Acquire)
    }

    /// Says that the owner returned from call `sequence`. Only the owner calls it.
    #[inline]
    pub fn finish_call(&self, sequence: u64) {
        self.head().finished.call.store(sequence, Ordering::Release);
    }

    /// The last call that the owner returned from.
    pub fn finished_call(&self) -> u64 {
        self.head().finished.call.load(Ordering::Acquire)
    }

    /// Says that all ranks of the owner's host are done with `epoch` and before. Only the owner calls it.
    #[inline]
    pub(crate) fn clear_epoch(&self, epoch: u64) {
        self.head().finished.cleared.store(epoch, Ordering::Release);
    }

    /// The last epoch that all ranks of the owner's host have finished, as far as it has said.
    #[inline]
    pub fn cleared_epoch(&self) -> u64 {
        self.head().finished.cleared.load(Ordering::Acquire)
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

    /// Says through what a connection of the owner went that broke; a long text is cut. Only the owner calls it.
    pub(crate) fn set_via(&self, via: &str) {
        let mut bytes = [0; VIA];
        let fits = |n: &usize| via.is_char_boundary(*n);
        let kept = (0..=VIA.min(via.len())).rev().find(fits).unwrap_or(0);
        bytes[..kept].copy_from_slice(&via.as_bytes()[..kept]);
        for (word, bytes) in self.head().progress.via.iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_le_bytes(bytes.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
    }

    /// Through what the owner's connection went that broke, for a diagnosis; empty if none has.
    pub fn via(&self) -> String {
        let words = self.head().progress.via.iter();
        let bytes: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_end_matches('\0').to_owned()
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
    fn a_mirror_shows_whole_calls_only() {
        let (owner, (mapping, _)) = (control(2), Mapping::create(2 * Control::MIRROR).unwrap());
        let mirror = Control::mirror(Arc::new(mapping), 1);
        for sequence in [3, 7] {
            let call = Call { sequence, tag: sequence * 5, words: [sequence; 6] };
            owner.announce(&call.sealed());
            assert_eq!(owner.call(sequence), Some(call));
            mirror.copy_news(&owner);
            assert_eq!(mirror.call(sequence), Some(call));
        }
        // Call 7 is where call 3 was: any one word of the older makes it a mixture.
        let entry = &mirror.head().board[3];
        for word in &entry.words {
            let new = word.swap(3, Ordering::Relaxed);
            assert_eq!(mirror.call(7), None);
            word.store(new, Ordering::Relaxed);
        }
        assert!(mirror.call(7).is_some());
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
    fn what_broke_is_told_with_the_news_and_cut_between_characters() {
        let (owner, (mapping, _)) = (control(2), Mapping::create(Control::MIRROR).unwrap());
        let mirror = Control::mirror(Arc::new(mapping), 0);
        assert_eq!(owner.via(), "");
        owner.set_via("mlx5_0 port 1");
        mirror.copy_news(&owner);
        assert_eq!(mirror.via(), "mlx5_0 port 1");
        owner.set_via(&"é".repeat(100));
        assert_eq!(owner.via(), "é".repeat(VIA / 2));
        owner.set_via(&format!("x{}", "é".repeat(100)));
        assert_eq!(owner.via(), format!("x{}", "é".repeat(VIA / 2 - 1)));
        owner.set_via("rxe1");
        assert_eq!(owner.via(), "rxe1");
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

//! Watches a rank's kernels: tells peers whom they wait for, and ends them when the wait is pointless.
//!
//! Kernels run by themselves, while the thread that launched them may do anything. So each communicator has a thread that
//! looks now and then. A kernel that waits for long writes a record to host memory, again and again; while it does, the thread asks
//! what a waiting host rank would ask: has someone posted a failure, is a peer gone, do the calls differ, is the time over?
//!
//! | word in `Control` | written by | read by |
//! |---|---|---|
//! | `abort` | this thread, or the communicator when it is dropped: 1 | kernels, while they wait |
//! | `failed` | kernels: a wait ended in vain, or a peer's call differs | this thread, and every call |
//! | `record[block]` | the block's waiting threads, relaxed; the first word last, which differs each time | this thread |

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use warpmesh_primitives::control::{Progress, State};
use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::gpu::HostMemory;
use warpmesh_primitives::node::Node;
use warpmesh_primitives::patience::WaitingFor;

use super::regions::MAX_BLOCKS;
use crate::host::AT_OTHER;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(10);
/// `MISMATCH` of plan.cuh.
const MISMATCH: u32 = 1 << 16;
/// `Control` of wait.cuh: where records begin, and words of one.
const RECORDS: usize = 8;
const RECORD_WORDS: usize = 4;
/// The low bits of a record's first word, which differ each time that it is written.
const BEAT_BITS: u32 = 16;

/// The memory that a rank's kernels and its host share.
pub(crate) struct Shared {
    pub(crate) memory: HostMemory,
    node: Arc<Node>,
}

/// What a block that waits says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    /// The call's number, and a count.
    beat: u64,
    expected: u64,
    seen: u64,
    peer: u32,
    place: u32,
}

impl Shared {
    fn words(&self) -> &[AtomicU64] {
        let words = self.memory.len() / size_of::<AtomicU64>();
        // SAFETY: pinned, page aligned memory that lives as long as `self`; the device's accesses are atomic too.
        unsafe { std::slice::from_raw_parts(self.memory.host().cast::<AtomicU64>(), words) }
    }

    fn half_words(&self) -> &[AtomicU32] {
        // SAFETY: as above; the first word is only ever accessed in halves.
        unsafe { std::slice::from_raw_parts(self.memory.host().cast::<AtomicU32>(), 2) }
    }

    /// Makes every wait of this rank's kernels end.
    pub(crate) fn abort(&self) {
        self.half_words()[0].store(1, Ordering::Release);
    }

    /// Why a kernel gave up, if one did.
    pub(crate) fn given_up(&self) -> Option<Failure> {
        let by = self.node.rank();
        match self.half_words()[1].load(Ordering::Acquire) {
            0 => None,
            word if word >= MISMATCH => {
                let culprit = Some((word - MISMATCH) as usize);
                Some(Failure { kind: FailureKind::Mismatch, by, culprit })
            }
            _ => Some(Failure { kind: FailureKind::TimedOut, by, culprit: None }),
        }
    }

    fn record(&self, block: usize) -> Record {
        let word =
            |n: usize| self.words()[RECORDS + block * RECORD_WORDS + n].load(Ordering::Relaxed);
        let whom = word(3);
        Record {
            beat: word(0),
            expected: word(1),
            seen: word(2),
            peer: whom as u32,
            place: (whom >> 32) as u32,
        }
    }
}

/// The thread that watches.
pub(crate) struct Watch {
    pub(crate) shared: Arc<Shared>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to watch the kernels that know this memory.
    pub(crate) fn start(node: Arc<Node>, memory: HostMemory) -> std::io::Result<Self> {
        let rank = node.rank();
        let shared = Arc::new(Shared { memory, node });
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let mut watcher = Watcher::new(shared.clone());
        let stopped = stop.clone();
        let thread =
            std::thread::Builder::new().name(format!("warpmesh-{rank}")).spawn(move || {
                let (stop, wake) = &*stopped;
                let mut guard = stop.lock().unwrap_or_else(PoisonError::into_inner);
                while !*guard && watcher.look() {
                    let slept = wake.wait_timeout(guard, PERIOD);
                    guard = slept.unwrap_or_else(PoisonError::into_inner).0;
                }
            })?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    shared: Arc<Shared>,
    /// What was there at the last look.
    records: [Record; MAX_BLOCKS],
    /// The wait that goes on, and since when.
    wait: Option<(Record, Instant)>,
}

impl Watcher {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, records: [Record::default(); MAX_BLOCKS], wait: None }
    }

    /// One look; false if there is nothing more to watch, for kernels have been told to end.
    fn look(&mut self) -> bool {
        let node = self.shared.node.clone();
        let failure = node.failure().or_else(|| self.shared.given_up()).or_else(|| self.waiting());
        if let Some(failure) = failure {
            self.tell_of_other_messages();
            node.post(failure);
            self.shared.abort();
        }
        failure.is_none()
    }

    /// Passes on what a kernel says of a message that is not what this rank receives.
    fn tell_of_other_messages(&self) {
        let records = (0..MAX_BLOCKS).map(|block| self.shared.record(block));
        if let Some(Record { expected, seen, peer, place, .. }) =
            records.into_iter().find(|record| record.place == AT_OTHER)
        {
            let (state, peer) = (State::Working, peer as usize);
            let progress = Progress { state, peer, place, expected, seen, heartbeat: 0 };
            self.shared.node.me().set_progress(&progress);
        }
    }

    /// Looks after the oldest call that waits.
    fn waiting(&mut self) -> Option<Failure> {
        let mut oldest: Option<Record> = None;
        for (block, before) in self.records.iter_mut().enumerate() {
            let now = self.shared.record(block);
            let call = |record: &Record| record.beat >> BEAT_BITS;
            if now.beat != before.beat && oldest.is_none_or(|old| call(&now) < call(&old)) {
                oldest = Some(now);
            }
            *before = now;
        }
        let node = &self.shared.node;
        let Some(record) = oldest else {
            if self.wait.take().is_some() {
                node.me().set_progress(&Progress { state: State::Working, ..node.me().progress() });
            }
            return None;
        };
        let key = |r: &Record| (r.beat >> BEAT_BITS, r.expected, r.place);
        let since = match self.wait {
            Some((before, since)) if key(&before) == key(&record) => since,
            _ => Instant::now(),
        };
        self.wait = Some((record, since));
        let on = WaitingFor {
            peer: (record.peer as usize).min(node.world() - 1),
            place: record.place,
            expected: record.expected,
            sequence: record.beat >> BEAT_BITS,
        };
        node.look_around(on, record.seen, since.elapsed())
    }
}

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
use warpmesh_primitives::net::proxy::{PortError, Proxy};
use warpmesh_primitives::node::Node;
use warpmesh_primitives::patience::WaitingFor;

use super::regions::MAX_BLOCKS;
use crate::host::AT_OTHER;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(10);
/// How long nothing is heard of a wait before it is taken to be over.
const QUIET: Duration = Duration::from_millis(250);
/// Looks at which a kernel has waited on for a rank that is gone before that counts: what the rank had sent may have come after the
/// kernel wrote its record, and a late thread may write one more.
const LOOKS: u32 = 3;
/// How long a rank may take to say that it leaves after its connection has closed.
const GRACE: Duration = Duration::from_secs(1);
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
    /// Starts to watch the kernels that know this memory, and what carries out what they put to other hosts.
    pub(crate) fn start(
        node: Arc<Node>,
        memory: HostMemory,
        proxy: Option<Arc<Proxy>>,
    ) -> std::io::Result<Self> {
        let rank = node.rank();
        let shared = Arc::new(Shared { memory, node });
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let mut watcher = Watcher::new(shared.clone(), proxy);
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

/// A wait that goes on.
#[derive(Clone, Copy)]
struct Wait {
    record: Record,
    since: Instant,
    /// When a kernel last said so.
    heard: Instant,
    /// Looks at which it did so though the rank is gone.
    in_vain: u32,
}

struct Watcher {
    shared: Arc<Shared>,
    /// What was there at the last look.
    records: [Record; MAX_BLOCKS],
    wait: Option<Wait>,
    proxy: Option<Arc<Proxy>>,
    /// Since when transfers to a rank are lost that has not said that it needs none.
    lost: Option<Instant>,
}

impl Watcher {
    fn new(shared: Arc<Shared>, proxy: Option<Arc<Proxy>>) -> Self {
        let records = [Record::default(); MAX_BLOCKS];
        Self { shared, records, wait: None, proxy, lost: None }
    }

    /// One look; false if there is nothing more to watch, for kernels have been told to end.
    fn look(&mut self) -> bool {
        let node = self.shared.node.clone();
        node.progress();
        let given_up = self.shared.given_up().inspect(|failure| self.hear_of(failure));
        let failure = node.failure().or(given_up);
        let failure = failure.or_else(|| self.waiting()).or_else(|| self.lost());
        if let Some(failure) = failure {
            self.tell_of_other_messages();
            node.post(failure);
            self.shared.abort();
        }
        failure.is_none()
    }

    /// Of a call that differs on another host word may come a little later than to the kernel.
    fn hear_of(&self, failure: &Failure) {
        let node = &self.shared.node;
        let call = node.me().latest_call().map_or(0, |call| call.sequence);
        let is_known = |peer: usize| node.is_near(peer) || node.control(peer).call(call).is_some();
        let until = Instant::now() + QUIET;
        while failure.kind == FailureKind::Mismatch
            && !failure.culprit.is_none_or(is_known)
            && Instant::now() < until
        {
            node.progress();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Looks whether what kernels put to other hosts was lost: a rank that leaves needs nothing any more, but says so another way,
    /// perhaps a little later.
    fn lost(&mut self) -> Option<Failure> {
        let errors = self.proxy.as_ref()?.errors();
        let node = &self.shared.node;
        let call = node.me().latest_call().map_or(0, |call| call.sequence);
        let mut needed = None;
        for PortError { peer, cause, .. } in errors {
            let Some(peer) = peer else { continue };
            if node.fault(peer).is_none() {
                node.break_off(peer, cause.clone());
            }
            if node.control(peer).finished_call() < call {
                needed = Some((peer, cause));
            }
        }
        let (peer, cause) = needed?;
        let since = *self.lost.get_or_insert_with(Instant::now);
        (since.elapsed() > GRACE).then(|| node.disconnected(peer, cause))
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

    /// Nothing waits.
    fn rest(&mut self) {
        if self.wait.take().is_some() {
            let me = self.shared.node.me();
            me.set_progress(&Progress { state: State::Working, ..me.progress() });
        }
    }

    /// Looks after the oldest call that waits.
    fn waiting(&mut self) -> Option<Failure> {
        let key = |r: &Record| (r.beat >> BEAT_BITS, r.expected, r.place);
        let goes_on = |r: &Record| self.wait.is_some_and(|wait| key(&wait.record) == key(r));
        let mut oldest: Option<Record> = None;
        for (block, before) in self.records.iter_mut().enumerate() {
            let now = self.shared.record(block);
            // Of one call's blocks, that which was looked after before.
            let rank = |record: &Record| (record.beat >> BEAT_BITS, !goes_on(record));
            if now.beat != before.beat && oldest.is_none_or(|old| rank(&now) < rank(&old)) {
                oldest = Some(now);
            }
            *before = now;
        }
        let now = Instant::now();
        let wait = match (oldest, self.wait) {
            (Some(record), Some(wait)) if goes_on(&record) => Wait { record, heard: now, ..wait },
            (Some(record), _) => Wait { record, since: now, heard: now, in_vain: 0 },
            // Over, or a thread that shares its multiprocessor with many looks around late: nothing is to be concluded.
            (None, Some(wait)) if wait.heard.elapsed() < QUIET => return None,
            (None, _) => {
                self.rest();
                return None;
            }
        };
        self.wait = Some(wait);
        let Wait { record, since, .. } = wait;
        let node = &self.shared.node;
        let on = WaitingFor {
            peer: (record.peer as usize).min(node.world() - 1),
            place: record.place,
            expected: record.expected,
            sequence: record.beat >> BEAT_BITS,
        };
        let failure = node.look_around(on, record.seen, since.elapsed())?;
        let gone = failure.culprit.filter(|_| failure.kind != FailureKind::TimedOut);
        let Some(peer) = gone.filter(|&peer| node.control(peer).finished_call() >= on.sequence)
        else {
            return Some(failure);
        };
        // It may have sent what is waited for; from another host that comes by another connection than the news that it has left.
        let in_vain = wait.in_vain + 1;
        self.wait = Some(Wait { in_vain, ..wait });
        let counts = if node.is_near(peer) { in_vain > LOOKS } else { since.elapsed() > GRACE };
        counts.then_some(failure)
    }
}

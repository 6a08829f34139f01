//! Streams and events. A stream is a thread that does its work in order; a kernel of one stream runs beside those of others.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use super::capture::{Capture, Tail};

type Op = Box<dyn FnOnce() + Send>;

/// Flag of a stream that does not order itself with the default one.
const NON_BLOCKING: c_uint = 1;

/// A queue with a thread.
pub struct Stream {
    queue: Mutex<Sender<Op>>,
    /// How much of what was pushed is not done.
    pending: Arc<AtomicUsize>,
    /// Number, never the same twice.
    pub id: u64,
    /// As it was created.
    pub flags: c_uint,
    /// As it was created.
    pub priority: c_int,
    capture: Mutex<Option<Tail>>,
}

/// Something that has happened or not yet, and when.
#[derive(Default)]
pub struct Mark {
    done: Mutex<Option<Instant>>,
    cond: Condvar,
}

impl Mark {
    fn set(&self) {
        *self.done.lock().unwrap() = Some(Instant::now());
        self.cond.notify_all();
    }

    /// Waits until it has happened.
    pub fn wait(&self) -> Instant {
        let mut done = self.done.lock().unwrap();
        loop {
            if let Some(t) = *done {
                return t;
            }
            done = self.cond.wait(done).unwrap();
        }
    }

    /// When it happened.
    pub fn when(&self) -> Option<Instant> {
        *self.done.lock().unwrap()
    }
}

impl Stream {
    /// A stream.
    pub fn new(flags: c_uint, priority: c_int) -> std::io::Result<Stream> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (queue, work) = channel::<Op>();
        // The thread ends when the stream and with it the sender is dropped.
        std::thread::Builder::new()
            .name("vgpu-stream".into())
            .spawn(move || work.into_iter().for_each(|op| op()))?;
        let pending = Arc::default();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (queue, capture) = (Mutex::new(queue), Mutex::default());
        Ok(Stream { queue, pending, id, flags, priority, capture })
    }

    /// True if it is ordered with the default stream.
    pub fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }

    /// Where it stands in the graph that it is captured to.
    pub fn capture(&self) -> MutexGuard<'_, Option<Tail>> {
        self.capture.lock().unwrap()
    }

    /// True if it is captured: then the capture is of no use any more.
    pub fn invalidate_capture(&self) -> bool {
        self.capture().as_ref().map(|t| t.capture.invalidate()).is_some()
    }

    /// True if all work so far is done.
    pub fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// Adds work.
    pub fn push(&self, op: impl FnOnce() + Send + 'static) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let left = self.pending.clone();
        self.send(Box::new(move || {
            op();
            // Publishes what the work did to who sees that nothing is pending.
            left.fetch_sub(1, Ordering::Release);
        }));
    }

    fn send(&self, op: Op) {
        // The receiver lives as long as the sender: sending fails only if the thread panicked, which it has then said.
        let _ = self.queue.lock().unwrap().send(op);
    }

    /// A mark that happens when all work so far is done. It is no work itself: who has waited for it finds the stream idle.
    pub fn mark(&self) -> Arc<Mark> {
        let mark = Arc::new(Mark::default());
        let set = mark.clone();
        self.send(Box::new(move || set.set()));
        mark
    }

    /// Work that is added from now on begins after the mark.
    pub fn wait_for(&self, mark: &Arc<Mark>) {
        let mark = mark.clone();
        self.push(move || {
            mark.wait();
        });
    }
}

/// What an event stands for.
#[derive(Clone, Default)]
pub enum Record {
    /// Nothing yet, which counts as happened.
    #[default]
    Never,
    /// A point in a stream.
    Mark(Arc<Mark>),
    /// A point in a graph that is, or was, captured: these nodes.
    Captured(Arc<Capture>, Vec<usize>),
}

/// An event: its last record counts.
pub struct Event {
    last: Mutex<Record>,
    /// True if it takes times.
    pub timed: bool,
}

impl Event {
    /// An event that was never recorded.
    pub fn new(timed: bool) -> Event {
        Event { last: Mutex::default(), timed }
    }

    /// Takes the place of the last record.
    pub fn record(&self, record: Record) {
        *self.last.lock().unwrap() = record;
    }

    /// The last record.
    pub fn last(&self) -> Record {
        self.last.lock().unwrap().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_waits_for_the_record_that_was_last_when_it_was_told_to() {
        let (a, b) = (Stream::new(1, 0).unwrap(), Stream::new(1, 0).unwrap());
        let (release, gate) = channel::<()>();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (first, second) = (log.clone(), log.clone());
        a.push(move || {
            gate.recv().unwrap();
            first.lock().unwrap().push('a');
        });
        let event = Event::new(true);
        event.record(Record::Mark(a.mark()));
        let Record::Mark(recorded) = event.last() else { panic!("not recorded") };
        b.wait_for(&recorded);
        event.record(Record::Mark(b.mark())); // a later record changes nothing for who already waits
        b.push(move || second.lock().unwrap().push('b'));
        assert!(recorded.when().is_none());
        release.send(()).unwrap();
        b.mark().wait();
        assert_eq!(*log.lock().unwrap(), ['a', 'b']);
    }
}

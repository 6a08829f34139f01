//! Streams and events. A stream is a thread that does its work in order; a kernel of one stream runs beside those of others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

type Op = Box<dyn FnOnce() + Send>;

/// A queue with a thread.
pub struct Stream {
    queue: Mutex<Sender<Op>>,
    blocking: bool,
    /// Work that is not done.
    pending: Arc<AtomicUsize>,
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
    /// A stream; `blocking` ones are ordered with the default stream.
    pub fn new(blocking: bool) -> std::io::Result<Stream> {
        let (queue, work) = channel::<Op>();
        let pending = Arc::new(AtomicUsize::new(0));
        // The thread ends when the stream and with it the sender is dropped.
        std::thread::Builder::new()
            .name("vgpu-stream".into())
            .spawn(move || work.into_iter().for_each(|op| op()))?;
        Ok(Stream { queue: Mutex::new(queue), blocking, pending })
    }

    /// True if it is ordered with the default stream.
    pub fn is_blocking(&self) -> bool {
        self.blocking
    }

    /// True if all work is done.
    pub fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// Adds work.
    pub fn push(&self, op: impl FnOnce() + Send + 'static) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let left = self.pending.clone();
        self.send(move || {
            op();
            // Whoever sees that all is done sees what was done.
            left.fetch_sub(1, Ordering::Release);
        });
    }

    fn send(&self, op: impl FnOnce() + Send + 'static) {
        // The receiver lives as long as the sender: sending fails only if the thread panicked, which it has then said.
        let _ = self.queue.lock().unwrap().send(Box::new(op));
    }

    /// A mark that happens when all work so far is done.
    pub fn mark(&self) -> Arc<Mark> {
        let mark = Arc::new(Mark::default());
        let set = mark.clone();
        // Not counted as work: who has waited for the mark finds the stream idle.
        self.send(move || set.set());
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

/// An event: the mark of its last record; before the first one it counts as happened.
#[derive(Default)]
pub struct Event {
    mark: Mutex<Option<Arc<Mark>>>,
}

impl Event {
    /// Takes the place of the last record.
    pub fn record(&self, mark: Arc<Mark>) {
        *self.mark.lock().unwrap() = Some(mark);
    }

    /// The last record.
    pub fn last(&self) -> Option<Arc<Mark>> {
        self.mark.lock().unwrap().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_waits_for_the_record_that_was_last_when_it_was_told_to() {
        let (a, b) = (Stream::new(false).unwrap(), Stream::new(false).unwrap());
        let (release, gate) = channel::<()>();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (first, second) = (log.clone(), log.clone());
        a.push(move || {
            gate.recv().unwrap();
            first.lock().unwrap().push('a');
        });
        let event = Event::default();
        event.record(a.mark());
        b.wait_for(&event.last().unwrap());
        event.record(b.mark()); // a later record changes nothing for who already waits
        b.push(move || second.lock().unwrap().push('b'));
        assert!(event.last().unwrap().when().is_none());
        release.send(()).unwrap();
        b.mark().wait();
        assert_eq!(*log.lock().unwrap(), ['a', 'b']);
    }
}

//! Calls that run beside the caller: a communicator on a thread of its own, with a queue.
//!
//! ```
//! use warpmesh::{Communicator, ReduceOp, Stream};
//!
//! # let comm = Communicator::builder().local(1)?.pop().unwrap();
//! let stream = Stream::new(comm)?;
//! let gradients = vec![1.0_f32; 1000];
//! // The buffer moves into the call and comes back with its result.
//! let reduced = stream.enqueue(|comm| {
//!     let mut gradients = gradients;
//!     comm.all_reduce(&mut gradients, ReduceOp::Sum).map(|()| gradients)
//! });
//! // ... compute something else meanwhile ...
//! let gradients = reduced.wait()?;
//! # assert_eq!(gradients[0], 1.0);
//! # Ok::<_, warpmesh::Error>(())
//! ```

use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

use crate::communicator::{AbortHandle, Communicator};
use crate::error::{Error, argument};

type Work = Box<dyn FnOnce(&mut Communicator) + Send>;

/// A queue of work for one communicator. What is enqueued runs in order, on one thread, so ranks
/// that enqueue in the same order call in the same order. Dropping it waits for what is queued.
#[derive(Debug)]
pub struct Stream {
    queue: Option<Sender<Work>>,
    thread: Option<JoinHandle<Communicator>>,
    abort: AbortHandle,
}

/// A result that is still to come.
#[derive(Debug)]
pub struct Pending<R> {
    result: Receiver<Result<R, Error>>,
    ready: Option<Result<R, Error>>,
}

impl Stream {
    /// Moves a communicator to a thread of its own.
    pub fn new(comm: Communicator) -> Result<Self, Error> {
        let abort = comm.abort_handle();
        let (queue, work) = mpsc::channel::<Work>();
        let mut comm = comm;
        let run = move || {
            for work in work {
                work(&mut comm);
            }
            comm
        };
        let thread = std::thread::Builder::new().name("warpmesh-stream".into()).spawn(run);
        let thread =
            thread.map_err(|error| argument("Stream::new", "thread", error.to_string()))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), abort })
    }

    /// Queues work. Never blocks.
    pub fn enqueue<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Communicator) -> Result<R, Error> + Send + 'static,
    ) -> Pending<R> {
        let (to, result) = mpsc::channel();
        let work = Box::new(move |comm: &mut Communicator| {
            // Nobody may be waiting for the result any more.
            let _ = to.send(work(comm));
        });
        if let Some(queue) = &self.queue {
            // Fails only if an earlier work panicked; then the result never comes, and says so.
            let _ = queue.send(work);
        }
        Pending { result, ready: None }
    }

    /// Ends what is running and queued, on all ranks.
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// Waits for everything queued and gives the communicator back; None if some work panicked.
    pub fn finish(mut self) -> Option<Communicator> {
        self.queue = None;
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<R> Pending<R> {
    /// Whether the result is there. Does not block.
    pub fn is_done(&mut self) -> bool {
        if self.ready.is_none() {
            self.ready = match self.result.try_recv() {
                Ok(result) => Some(result),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(lost())),
            };
        }
        self.ready.is_some()
    }

    /// Waits for the result. The work's own waits are bounded by the communicator's timeout.
    pub fn wait(self) -> Result<R, Error> {
        let Self { result, ready } = self;
        ready.unwrap_or_else(|| result.recv().unwrap_or_else(|_| Err(lost())))
    }
}

fn lost() -> Error {
    argument("Pending::wait", "stream", "ended before this work was done: earlier work panicked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ReduceOp;

    #[test]
    fn work_runs_in_order_beside_the_caller() {
        let ranks = Communicator::builder().local(2).unwrap();
        let streams: Vec<_> = ranks.into_iter().map(|comm| Stream::new(comm).unwrap()).collect();
        let mut pending = Vec::new();
        for i in 0..20_u32 {
            for stream in &streams {
                pending.push((
                    i,
                    stream.enqueue(move |comm| {
                        let mut data = [i + comm.rank() as u32];
                        comm.all_reduce(&mut data, ReduceOp::Sum).map(|()| data[0])
                    }),
                ));
            }
        }
        for (i, result) in pending {
            assert_eq!(result.wait().unwrap(), 2 * i + 1);
        }
        assert!(streams.into_iter().all(|stream| stream.finish().is_some()));
    }

    #[test]
    fn a_panic_is_an_error_for_what_follows() {
        let comm = Communicator::builder().local(1).unwrap().pop().unwrap();
        let stream = Stream::new(comm).unwrap();
        let bad = stream.enqueue::<()>(|_| panic!("on purpose"));
        let mut after = stream.enqueue(|_| Ok(1));
        assert!(bad.wait().is_err());
        while !after.is_done() {}
        assert!(after.wait().is_err());
        assert!(stream.finish().is_none());
    }
}

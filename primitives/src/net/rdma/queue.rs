//! A connection's queue pair, as its lane sees it.

use std::io;

use super::lane::Queue;
use crate::sys::verbs::{QueuePair, Work};

/// The queue pair of a lane. What goes through it was made by [`super::RdmaTransport::post`], from memory that is
/// registered.
#[derive(Debug)]
pub(super) struct SendQueue(pub(super) QueuePair);

impl Queue for SendQueue {
    fn post(&mut self, batch: &[Work]) -> io::Result<()> {
        // SAFETY: requests come from `RdmaTransport::post` alone, which checks their ranges against registered memory
        // and takes the keys from there; `forget` stops the queue pairs with requests that read what goes. Inline bytes
        // are memory of the host, valid as long as its region, which is kept until it is forgotten.
        unsafe { self.0.post(batch) }
    }
}

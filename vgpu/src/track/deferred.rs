//! Loads and atomics that are performed later than they are issued.

use std::sync::Arc;

use super::clock::{Know, Thread};
use super::model::{Access, Model};

/// A read-modify-write: the new bytes for the old ones; none if the atomic stores nothing new but still writes.
pub type Update = Box<dyn Fn(&[u8; 16]) -> [u8; 16] + Send>;

pub(super) struct Deferred {
    ticket: u64,
    pub(super) who: Thread,
    pub(super) clock: u32,
    know: Arc<Know>,
    pub(super) access: Access,
    update: Option<Update>,
}

impl Model {
    pub(super) fn defer(
        &mut self,
        who: Thread,
        clock: u32,
        access: Access,
        update: Option<Update>,
    ) -> u64 {
        self.ids += 1;
        let know = self.know(who);
        self.deferred.push(Deferred { ticket: self.ids, who, clock, know, access, update });
        self.ids
    }

    /// The bytes of a deferred load or atomic, which is performed now if it was not before.
    pub fn force(&mut self, ticket: u64) -> [u8; 16] {
        self.flush(|d| d.ticket == ticket);
        self.results.remove(&ticket).unwrap_or_default()
    }

    pub(super) fn flush(&mut self, which: impl Fn(&Deferred) -> bool) {
        while let Some(n) = self.deferred.iter().position(&which) {
            let d = self.deferred.remove(n);
            let data = match d.update {
                None => self.read(d.who, d.clock, &d.know, &d.access),
                Some(f) => self.modify(d.who, d.clock, &d.know, &d.access, &*f),
            };
            self.results.insert(d.ticket, data);
        }
    }

    /// Performs all deferred operations: the end of a run.
    pub fn perform_all(&mut self) {
        self.flush(|_| true);
    }

    /// Performs some deferred operation, so that none waits for ever.
    pub fn nudge(&mut self) {
        if !self.deferred.is_empty() {
            let n = self.random(self.deferred.len() as u64) as usize;
            let ticket = self.deferred[n].ticket;
            self.flush(|d| d.ticket == ticket);
        }
    }
}

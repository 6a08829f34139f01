//! A port for threads of the host.

use std::sync::Arc;
use std::time::Duration;

use super::{PortError, Shared};
use crate::net::fifo::{Fifo, Trigger, What};
use crate::net::wait::Wait;
use crate::net::{NetError, Signals};

/// What `PortChannel` of port.cuh is for kernels, for one thread of the host. Made by
/// [`Proxy::channel`](super::Proxy::channel).
///
/// Offsets and sizes are bytes, below [`LIMIT`](crate::net::fifo::LIMIT), from where the port's source and destination
/// begin. Each call waits at most for the timeout, and fails when the port has failed.
#[derive(Debug)]
pub struct PortChannel {
    fifo: Fifo,
    port: u16,
    signals: Signals,
    semaphore: u32,
    /// Signals that were waited for.
    waited: u64,
    shared: Arc<Shared>,
    timeout: Duration,
}

impl PortChannel {
    pub(super) fn new(
        fifo: Fifo,
        port: u16,
        signals: Signals,
        semaphore: u32,
        shared: Arc<Shared>,
        timeout: Duration,
    ) -> Self {
        assert!((semaphore as usize) < signals.len(), "semaphore {semaphore}");
        Self { fifo, port, signals, semaphore, waited: 0, shared, timeout }
    }

    /// Sends bytes. Returns when the proxy has been told; the source may be written again after a
    /// [`flush`](Self::flush). Blocks only if the FIFO is full.
    ///
    /// # Errors
    /// Numbers that do not fit, no room within the timeout, or why the port has failed before.
    #[inline]
    pub fn put(&self, to: u64, from: u64, bytes: u64) -> Result<(), PortError> {
        self.push(What::PUT, to, from, bytes).map(drop)
    }

    /// As [`put`](Self::put); the peer's semaphore counts up when the data is there, and all of this port before.
    ///
    /// # Errors
    /// Those of [`put`](Self::put).
    #[inline]
    pub fn put_with_signal(&self, to: u64, from: u64, bytes: u64) -> Result<(), PortError> {
        self.push(What::PUT.and(What::SIGNAL), to, from, bytes).map(drop)
    }

    /// Counts up the peer's semaphore behind all of this port before.
    ///
    /// # Errors
    /// Those of [`put`](Self::put).
    #[inline]
    pub fn signal(&self) -> Result<(), PortError> {
        self.push(What::SIGNAL, 0, 0, 0).map(drop)
    }

    /// Waits until all that was pushed into the FIFO before has left its source.
    ///
    /// # Errors
    /// Those of [`put`](Self::put), and that it took longer than the timeout.
    pub fn flush(&self) -> Result<(), PortError> {
        let number = self.push(What::FLUSH, 0, 0, 0)?;
        self.fifo.wait_done(number, self.timeout).map_err(|cause| self.failed(cause))?;
        self.check()
    }

    /// Waits for one more signal of the peer: then all data that it sent before is there.
    ///
    /// # Errors
    /// The port has failed, for instance since the connection broke, or it took longer than the timeout.
    pub fn wait(&mut self) -> Result<(), PortError> {
        let mut wait = Wait::new(self.timeout);
        while !self.arrived() {
            self.check().or_else(|error| if self.arrived() { Ok(()) } else { Err(error) })?;
            if !wait.pause() {
                let (semaphore, waited) = (self.semaphore, self.waited);
                let what = format!("signal {} at semaphore {semaphore}", waited + 1);
                return Err(self.failed(NetError::TimedOut { what, timeout: self.timeout }));
            }
        }
        self.waited += 1;
        Ok(())
    }

    /// Whether [`wait`](Self::wait) would return at once.
    #[inline]
    pub fn arrived(&self) -> bool {
        self.signals.seen(self.semaphore) > self.waited
    }

    #[inline]
    fn push(&self, what: What, to: u64, from: u64, bytes: u64) -> Result<u64, PortError> {
        self.check()?;
        let trigger = Trigger { what, port: self.port, to, from, bytes };
        self.fifo.push(&trigger, self.timeout).map_err(|cause| self.failed(cause))
    }

    #[inline]
    fn check(&self) -> Result<(), PortError> {
        self.shared.error(self.port).map_or(Ok(()), Err)
    }

    fn failed(&self, cause: NetError) -> PortError {
        PortError { port: self.port, peer: None, trigger: None, cause }
    }
}

//! The proxy: a thread that carries out what kernels, or other threads, push into FIFOs.
//!
//! ```text
//!   DevicePort or PortChannel ─► Fifo ─► proxy thread ─► dyn Transport
//!              flush: waits for done ◄── counts what has left its source, in the FIFO's order
//! ```
//!
//! - **It never dies of a transfer.** A port that there is not, a range outside of its memory, a connection that broke:
//!   the port gets an error, which its owner reads with [`Proxy::error`], and its later triggers are dropped, for a
//!   signal behind lost data would tell a lie. Other ports go on. Dropped triggers count as done, so that nobody
//!   waits for ever; whoever flushed looks for the port's error. Kernels are told by the port's `abort`: their waits end.
//! - **Flush does not block it.** Triggers count as done when their data has left; a flush is only somebody waiting.
//! - **Idle, it sleeps.** After the last work it spins for a while ([`ProxyOptions::spin`]). Then it sleeps in slices of
//!   a sixteenth of the time since then, at most [`ProxyOptions::slice`]: kernels cannot ring, and what they push is
//!   found late by that sixteenth. Whoever launches such kernels rings the bell ([`Proxy::bell`]), and it spins again.
//!   If all producers are of the host, which ring by themselves, it sleeps until they do, or a peer sends something.
//! - **Its end is bounded.** [`Proxy::stop`] carries out what is there, for so long, and says what was left.
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | FIFOs | see [`fifo`](super::fifo) | | |
//! | `Shared::failed` | the proxy, after the error | owners of ports | Release / Acquire |
//! | `Shared::stop` | `stop`, after the deadline | the proxy | Release / Acquire |

mod channel;
pub mod device;
mod service;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::channel::PortChannel;
use self::device::Alarm;
pub use self::device::{DevicePort, DevicePorts, PortHandle};
use self::service::{Desk, Service};
use super::fifo::{Bell, Fifo, Trigger};
use super::{NetError, Signals, Span, Transport};

/// How long a dropped proxy may take to carry out what is there.
const DROPPED: Duration = Duration::from_secs(1);

/// A row of the proxy's table: what a trigger's port means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// The rank that transfers go to.
    pub peer: usize,
    /// This rank's memory; a trigger's offset counts from here.
    pub from: Span,
    /// The peer's, as that.
    pub to: Span,
    /// The peer's semaphore that signals count up.
    pub semaphore: u32,
}

/// How a proxy works.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Whether kernels push into the FIFOs, which cannot ring.
    pub device_producers: bool,
    /// How long it looks without a pause after its last work.
    pub spin: Duration,
    /// The longest sleep, with kernels as producers. Waking up costs 5 to 50 microseconds, the latter in busy
    /// virtual machines: 8 ms keep that under a hundredth of a core.
    pub slice: Duration,
    /// CPUs on which it runs, for instance those near the GPU, as far as the thread that starts it may run on them. If it may on none of
    /// them, or there are none here, it runs wherever that thread may.
    pub cpus: Vec<usize>,
    /// Its thread's name, at most 15 bytes.
    pub name: String,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self {
            device_producers: false,
            spin: Duration::from_micros(50),
            slice: Duration::from_millis(8),
            cpus: Vec::new(),
            name: "warpmesh-proxy".to_owned(),
        }
    }
}

/// Why a port does nothing any more.
#[derive(Clone, Debug)]
pub struct PortError {
    /// Which.
    pub port: u16,
    /// The rank at its other end, if there is such a port.
    pub peer: Option<usize>,
    /// What was to be done when it failed; None if its connection broke without.
    pub trigger: Option<Trigger>,
    /// The cause.
    pub cause: NetError,
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "port {} to rank {peer}: {}", self.port, self.cause),
            None => write!(f, "port {}: {}", self.port, self.cause),
        }
    }
}

impl std::error::Error for PortError {}

/// What a proxy had not carried out when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The peer that transfers were for; None for triggers that were not taken from their FIFO.
    pub peer: Option<usize>,
    /// How many.
    pub transfers: u64,
}

/// A proxy that has ended.
#[derive(Debug)]
pub struct Stopped {
    /// What it worked with.
    pub transport: Box<dyn Transport>,
    /// What was left; empty if all was carried out.
    pub left: Vec<Left>,
}

/// A thread that serves FIFOs. See the [module](self). Dropping it stops it, within a second.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    bell: Bell,
    signals: Signals,
    requests: mpsc::Sender<Request>,
    thread: Option<JoinHandle<Stopped>>,
}

type Request = Box<dyn FnOnce(&mut Desk) + Send>;

#[derive(Debug, Default)]
struct Shared {
    /// Ports that have failed.
    failed: AtomicU64,
    errors: Mutex<BTreeMap<u16, PortError>>,
    /// Kernels' ports, by number.
    alarms: Mutex<Vec<(u16, Alarm)>>,
    stop: AtomicBool,
    until: Mutex<Option<Instant>>,
}

impl Proxy {
    /// Starts the thread. The FIFOs have to be made with `bell`, and have no other consumer. What was posted to the
    /// transport before has to be sent; from now on only the proxy posts.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        transport: Box<dyn Transport>,
        ports: Vec<Port>,
        fifos: Vec<Fifo>,
        bell: Bell,
        options: &ProxyOptions,
    ) -> Result<Self, NetError> {
        let shared = Arc::new(Shared::default());
        let signals = transport.signals().clone();
        let (requests, inbox) = mpsc::channel();
        let desk = Desk { transport, ports };
        let service =
            Service::new(desk, fifos, bell.clone(), shared.clone(), inbox, options.clone());
        let thread = std::thread::Builder::new().name(options.name.clone());
        let thread = thread.spawn(move || service.run()).map_err(|error| NetError::System {
            what: "start a proxy's thread".to_owned(),
            cause: error.to_string(),
        })?;
        Ok(Self { shared, bell, signals, requests, thread: Some(thread) })
    }

    /// What wakes it. To be rung before kernels are launched that push into its FIFOs.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Why a port does nothing any more. One load as long as none has failed.
    pub fn error(&self, port: u16) -> Option<PortError> {
        self.shared.error(port)
    }

    /// The errors of all ports that have failed. One load as long as none has.
    pub fn errors(&self) -> Vec<PortError> {
        self.shared.errors()
    }

    /// A port for a thread of the host, which pushes into `fifo` and waits for the signals that the peer's port counts up
    /// at this rank's `semaphore`. Each of its waits takes at most `timeout`.
    ///
    /// # Panics
    /// If there is no such semaphore.
    pub fn channel(
        &self,
        fifo: &Fifo,
        port: u16,
        semaphore: u32,
        timeout: Duration,
    ) -> PortChannel {
        let (signals, shared) = (self.signals.clone(), self.shared.clone());
        PortChannel::new(fifo.clone(), port, signals, semaphore, shared, timeout)
    }

    /// Lets the proxy's thread do something with its transport, between transfers: register memory, connect. Blocks
    /// until it is done, at most for `timeout`; what it does should not take long, for nothing moves meanwhile.
    ///
    /// # Errors
    /// [`NetError::TimedOut`]; it may still be done then.
    pub fn with_transport<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce(&mut dyn Transport) -> T + Send + 'static,
    ) -> Result<T, NetError> {
        self.ask(timeout, |desk| work(&mut *desk.transport))
    }

    /// Adds a port; its number. Blocks as [`Proxy::with_transport`].
    ///
    /// # Errors
    /// There are 65536; or that of [`Proxy::with_transport`].
    pub fn add_port(&self, port: Port, timeout: Duration) -> Result<u16, NetError> {
        let number = self.ask(timeout, move |desk| {
            let number = u16::try_from(desk.ports.len()).ok()?;
            desk.ports.push(port);
            Some(number)
        })?;
        number.ok_or_else(|| NetError::System {
            what: "a port of a proxy".to_owned(),
            cause: "all 65536 are in use; start a second proxy".to_owned(),
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce(&mut Desk) -> T + Send + 'static,
    ) -> Result<T, NetError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let request: Request = Box::new(move |desk| drop(answer.send(work(desk))));
        // If the thread has ended, nobody answers, either.
        let _ = self.requests.send(request);
        self.bell.ring();
        let what = "an answer of the proxy's thread".to_owned();
        answered.recv_timeout(timeout).map_err(|_| NetError::TimedOut { what, timeout })
    }

    /// Ends the thread: carries out what is in the FIFOs and what has begun, at most for `limit`. Blocks until then.
    /// None if the thread had ended before, by a panic of its transport.
    pub fn stop(mut self, limit: Duration) -> Option<Stopped> {
        self.end(limit)
    }

    fn end(&mut self, limit: Duration) -> Option<Stopped> {
        let thread = self.thread.take()?;
        *lock(&self.shared.until) = Instant::now().checked_add(limit);
        self.shared.stop.store(true, Ordering::Release);
        self.bell.ring();
        let stopped = thread.join().ok();
        // Nobody carries out anything for them any more.
        lock(&self.shared.alarms).iter().for_each(|(_, alarm)| alarm.ring());
        stopped
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stopped) = self.end(DROPPED).filter(|stopped| !stopped.left.is_empty()) {
            tracing::warn!("a proxy was dropped before it was done: {:?}", stopped.left);
        }
    }
}

impl Shared {
    fn error(&self, port: u16) -> Option<PortError> {
        if self.failed.load(Ordering::Acquire) == 0 {
            return None;
        }
        lock(&self.errors).get(&port).cloned()
    }

    fn errors(&self) -> Vec<PortError> {
        match self.failed.load(Ordering::Acquire) {
            0 => Vec::new(),
            _ => lock(&self.errors).values().cloned().collect(),
        }
    }

    #[cold]
    fn fail(&self, error: PortError) {
        tracing::debug!("{error}");
        let port = error.port;
        // The first error is the cause of those behind it.
        lock(&self.errors).entry(port).or_insert(error);
        self.failed.fetch_add(1, Ordering::Release);
        // After the error, which whoever sees the alarm looks for.
        let alarms = lock(&self.alarms);
        alarms.iter().filter(|(of, _)| *of == port).for_each(|(_, alarm)| alarm.ring());
    }

    /// Rings the alarm when the port fails, or at once if it has.
    fn watch(&self, port: u16, alarm: Alarm) {
        lock(&self.alarms).push((port, alarm.clone()));
        // Looked for afterwards: what fails in between is seen here, or sees the alarm.
        if self.error(port).is_some() {
            alarm.ring();
        }
    }
}

/// Nothing spans a panic under these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

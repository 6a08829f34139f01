//! Ports for kernels: what `PortChannel` of port.cuh is made of, and what the host learns of its waits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::DeviceRepr;

use super::{PortError, Proxy, Shared};
use crate::error::Error;
use crate::gpu::{DeviceMemory, Gpu, HostMemory};
use crate::net::NetError;
use crate::net::fifo::{Bell, Fifo};

/// `MAX_BLOCKS` of wait.cuh.
const MAX_BLOCKS: usize = 64;
/// Words of `Record` there, and where the first one begins in `Control`.
const RECORD_WORDS: usize = 4;
const RECORDS: usize = 8;
/// Bytes of `Control`.
const CONTROL: usize = 8 * (RECORDS + RECORD_WORDS * MAX_BLOCKS);
/// The most ports of a [`DevicePorts`]: as many as a proxy has.
const MOST: usize = 1 << 16;
/// Where `head`, `tail_cache` and the first `received` lie in the device's memory, in a line each, for different threads write them.
const HEAD: u64 = 0;
const TAIL_CACHE: u64 = 128;
const RECEIVED: u64 = 256;
const LINE: u64 = 64;

/// `Fifo` of port.cuh, whose table says who writes which word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FifoHandle {
    /// Address of the triggers, in memory of the host.
    pub ring: u64,
    /// Of the next trigger's number, in memory of the device.
    pub head: u64,
    /// Of the number of triggers that were read, in memory of the host.
    pub tail: u64,
    /// Of what was seen there last, in memory of the device.
    pub tail_cache: u64,
    /// Of the number of triggers that are carried out, in memory of the host.
    pub done: u64,
    /// Triggers that the ring holds.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
}

/// `Patience` of wait.cuh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PatienceHandle {
    /// Address of the `Control`.
    pub control: u64,
    /// Nanoseconds that a wait may take.
    pub timeout: u64,
    /// What records of waits carry.
    pub sequence: u64,
}

/// `PortChannel` of port.cuh: a kernel's parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PortHandle {
    /// Where triggers are pushed.
    pub fifo: FifoHandle,
    /// The port's number at the proxy.
    pub port: u32,
    /// The rank at the other end, for reports.
    pub peer: u32,
    /// Bounds of waits. A plan's kernels may have their own in its place; then an error of the port does not end them.
    pub patience: PatienceHandle,
    /// Address of the words that the peer's signals count up.
    pub awaited: u64,
    /// Of how often was waited, in memory of the device.
    pub received: u64,
    /// How many words there are.
    pub lanes: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: plain numbers in the layout of the kernel's struct, which a test compares.
unsafe impl DeviceRepr for PortHandle {}

/// A FIFO for kernels of one GPU, with what they need besides: a proxy serves it like any other.
///
/// ```text
///   memory of the host, pinned         Fifo: ring, tail, done;  a Control for each port: abort, records of waits
///   memory of the device               head, tail_cache;  received, for each port
/// ```
#[derive(Debug)]
pub struct DevicePorts {
    fifo: Fifo,
    words: Arc<DeviceMemory>,
    controls: Arc<Controls>,
    most: usize,
    open: usize,
}

/// A port of a kernel's. Lives as long as kernels use it.
pub struct DevicePort {
    handle: PortHandle,
    shared: Arc<Shared>,
    alarm: Alarm,
    _words: Arc<DeviceMemory>,
    fifo: Fifo,
}

/// `Control` of wait.cuh, for each port.
///
/// | word | written by | read by | order |
/// |---|---|---|---|
/// | `abort` | the proxy: 1, once the port has failed | waiting kernels; [`DevicePort::check`] | Release / relaxed, or by `done`; it says nothing but that |
/// | `failed` | a kernel: 1, when a wait took too long | [`DevicePort::check`] | relaxed / Acquire |
/// | `record[block]` | waiting threads of the block; the first word last | [`DevicePort::check`] | relaxed: each word is right by itself |
#[derive(Debug)]
struct Controls(HostMemory);

/// What ends the waits of one port's kernels.
#[derive(Clone, Debug)]
pub(super) struct Alarm {
    controls: Arc<Controls>,
    at: usize,
}

impl Alarm {
    fn words(&self) -> &[AtomicU64] {
        let first = self.at * CONTROL;
        // SAFETY: pinned, page aligned memory that lives as long as `self`, with room for this control; what the device does to
        // it is atomic too. Its first word is only accessed in halves.
        unsafe {
            let base = self.controls.0.host().add(first).cast::<AtomicU64>();
            std::slice::from_raw_parts(base, CONTROL / size_of::<AtomicU64>())
        }
    }

    /// `abort` and `failed`.
    fn halves(&self) -> &[AtomicU32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.words().as_ptr().cast::<AtomicU32>(), 2) }
    }

    /// Ends them.
    pub(super) fn ring(&self) {
        self.halves()[0].store(1, Ordering::Release);
    }

    fn was_rung(&self) -> bool {
        self.halves()[0].load(Ordering::Acquire) != 0
    }

    /// What a wait that took too long had been for: peer, place, expected, seen.
    fn late(&self) -> Option<(u32, u32, u64, u64)> {
        if self.halves()[1].load(Ordering::Acquire) == 0 {
            return None;
        }
        let (records, _) = self.words()[RECORDS..].as_chunks::<RECORD_WORDS>();
        // Whoever went on waiting wrote last; some waits before may have ended well.
        let newest = records.iter().max_by_key(|record| record[0].load(Ordering::Relaxed))?;
        let [_, expected, seen, who] = newest.each_ref().map(|word| word.load(Ordering::Relaxed));
        Some((who as u32, (who >> 32) as u32, expected, seen))
    }
}

impl DevicePorts {
    /// A FIFO of `size` triggers, a power of two, for at most `most` ports. To be made before kernels run that others wait for:
    /// the driver may wait for them.
    ///
    /// # Errors
    /// Sizes that cannot be, or the driver refuses.
    pub fn new(gpu: &Gpu, size: usize, most: usize, bell: Bell) -> Result<Self, Error> {
        if most == 0 || most > MOST {
            let problem = "has to be 1 to 65536";
            return Err(Error::Argument { argument: "ports of a FIFO", problem });
        }
        Ok(Self {
            fifo: Fifo::on_gpu(gpu, size, bell)?,
            words: Arc::new(gpu.device_memory(RECEIVED as usize + most * LINE as usize)?),
            controls: Arc::new(Controls(gpu.host_memory(most * CONTROL)?)),
            most,
            open: 0,
        })
    }

    /// What [`Proxy::start`] is to serve.
    pub fn fifo(&self) -> &Fifo {
        &self.fifo
    }

    /// The proxy's port, for kernels, which wait for signals that the peer's port counts up at this rank's `semaphore`. Each wait
    /// takes at most `timeout`. Blocks until the proxy has answered.
    ///
    /// # Errors
    /// There is no such port, all are in use, the transport's signals are not for a GPU, or the proxy does not answer.
    pub fn open(
        &mut self,
        proxy: &Proxy,
        port: u16,
        semaphore: u32,
        timeout: Duration,
    ) -> Result<DevicePort, NetError> {
        let refused = |cause: String| {
            Err(NetError::System { what: format!("port {port} for kernels"), cause })
        };
        if self.open == self.most {
            return refused(format!("all {} of this FIFO are in use", self.most));
        }
        let known = proxy.ask(timeout, move |desk| desk.ports.get(usize::from(port)).copied())?;
        let Some(known) = known else { return refused("the proxy has no such port".to_owned()) };
        let Some(awaited) = proxy.signals.device_words(semaphore) else {
            let why = "is none that kernels reach: make the transport for the GPU";
            return refused(format!("semaphore {semaphore} {why}"));
        };
        let alarm = Alarm { controls: self.controls.clone(), at: self.open };
        let handle = PortHandle {
            fifo: self.handle(),
            port: port.into(),
            peer: known.peer as u32,
            patience: PatienceHandle {
                control: self.controls.0.device() + (self.open * CONTROL) as u64,
                timeout: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
                sequence: 1,
            },
            awaited,
            received: self.words.address() + RECEIVED + self.open as u64 * LINE,
            lanes: proxy.signals.lanes() as u32,
            reserved: 0,
        };
        self.open += 1;
        proxy.shared.watch(port, alarm.clone());
        let (shared, _words, fifo) = (proxy.shared.clone(), self.words.clone(), self.fifo.clone());
        Ok(DevicePort { handle, shared, alarm, _words, fifo })
    }

    /// The FIFO, for kernels. Good as long as `self` lives.
    pub fn handle(&self) -> FifoHandle {
        let (ring, tail, done) = self.fifo.offsets();
        // A FIFO of `on_gpu` has an address there.
        let base = self.fifo.device().unwrap_or_default();
        let words = self.words.address();
        FifoHandle {
            ring: base + ring as u64,
            head: words + HEAD,
            tail: base + tail as u64,
            tail_cache: words + TAIL_CACHE,
            done: base + done as u64,
            size: self.fifo.size() as u32,
            reserved: 0,
        }
    }
}

impl DevicePort {
    /// The kernel's parameter. Good as long as `self` lives.
    pub fn handle(&self) -> PortHandle {
        self.handle
    }

    /// Wakes the proxy, which kernels cannot. To be called when one is launched that pushes; without it, what it pushes is found
    /// late, if nothing was pushed for long.
    pub fn launching(&self) {
        self.fifo.bell().ring();
    }

    /// Whether, and why, a wait of a kernel's ended in vain, or the port has failed. Does not wait: to be called when the kernel has
    /// ended, or while it runs.
    ///
    /// # Errors
    /// The port's error, which names the peer; a wait that took too long, and for what; the proxy has ended.
    pub fn check(&self) -> Result<(), PortError> {
        let (port, peer) = (self.handle.port as u16, Some(self.handle.peer as usize));
        if let Some(error) = self.shared.error(port) {
            return Err(error);
        }
        let failed = |cause| Err(PortError { port, peer, trigger: None, cause });
        if let Some((peer, place, expected, seen)) = self.alarm.late() {
            let timeout = Duration::from_nanos(self.handle.patience.timeout);
            let what =
                format!("{expected} from rank {peer}, at place {place} of a kernel, but {seen}");
            return failed(NetError::TimedOut { what, timeout });
        }
        if self.alarm.was_rung() {
            let (what, cause) =
                ("serve a kernel's port".to_owned(), "the proxy has ended".to_owned());
            return failed(NetError::System { what, cause });
        }
        Ok(())
    }
}

impl fmt::Debug for DevicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevicePort").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// Sizes and offsets of [`PortHandle`] and its parts, as C++ has to have them: struct, member (none for the size), bytes. A test
/// asserts them in a kernel.
pub const LAYOUT: [(&str, &str, usize); 21] = {
    use std::mem::offset_of as at;
    [
        ("Fifo", "", size_of::<FifoHandle>()),
        ("Fifo", "ring", at!(FifoHandle, ring)),
        ("Fifo", "head", at!(FifoHandle, head)),
        ("Fifo", "tail", at!(FifoHandle, tail)),
        ("Fifo", "tail_cache", at!(FifoHandle, tail_cache)),
        ("Fifo", "done", at!(FifoHandle, done)),
        ("Fifo", "size", at!(FifoHandle, size)),
        ("Patience", "", size_of::<PatienceHandle>()),
        ("Patience", "control", at!(PatienceHandle, control)),
        ("Patience", "timeout", at!(PatienceHandle, timeout)),
        ("Patience", "sequence", at!(PatienceHandle, sequence)),
        ("PortChannel", "", size_of::<PortHandle>()),
        ("PortChannel", "fifo", at!(PortHandle, fifo)),
        ("PortChannel", "port", at!(PortHandle, port)),
        ("PortChannel", "peer", at!(PortHandle, peer)),
        ("PortChannel", "patience", at!(PortHandle, patience)),
        ("PortChannel", "awaited", at!(PortHandle, awaited)),
        ("PortChannel", "received", at!(PortHandle, received)),
        ("PortChannel", "lanes", at!(PortHandle, lanes)),
        ("Control", "", CONTROL),
        ("Control", "record", 8 * RECORDS),
    ]
};

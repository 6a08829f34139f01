//! The CUDA driver API on the virtual machine: `libcuda.so.1`.
//!
//! [`api`] has the entry points, [`stream`] what is asynchronous. A handle is a number that a table knows, so a stale one is
//! `CUDA_ERROR_INVALID_HANDLE` and never a wild pointer. An entry point that is not implemented does not exist.

pub mod api;
pub mod ipc;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::error::Fault;
use crate::module::LoadedModule;
use crate::track::RaceReport;
use crate::track::model::Config;
use crate::{Counters, Machine, MachineConfig};
use stream::{Event, Stream};

/// A `CUresult` that is not success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "each variant is CUDA_ERROR_ of the same name")]
pub enum Error {
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    InvalidDevice = 101,
    InvalidContext = 201,
    InvalidPtx = 218,
    InvalidHandle = 400,
    NotFound = 500,
    NotReady = 600,
    IllegalAddress = 700,
    LaunchOutOfResources = 701,
    LaunchTimeout = 702,
    MisalignedAddress = 716,
    LaunchFailed = 719,
    NotSupported = 801,
}

/// Codes, names and texts, for `cuGetErrorName` and `cuGetErrorString`.
const NAMES: [(u32, &std::ffi::CStr, &std::ffi::CStr); 16] = [
    (0, c"CUDA_SUCCESS", c"no error"),
    (1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (3, c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
    (101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
    (201, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
    (218, c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
    (400, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
    (500, c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
    (600, c"CUDA_ERROR_NOT_READY", c"device not ready"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
    (701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch"),
    (702, c"CUDA_ERROR_LAUNCH_TIMEOUT", c"the launch timed out and was terminated"),
    (716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
];

impl From<&Fault> for Error {
    fn from(f: &Fault) -> Self {
        match f {
            Fault::IllegalAddress { .. } => Error::IllegalAddress,
            Fault::Misaligned { .. } => Error::MisalignedAddress,
            Fault::Hang { .. } => Error::LaunchTimeout,
            Fault::BadLaunch { .. } => Error::InvalidValue,
            Fault::Trap { .. } => Error::LaunchFailed,
        }
    }
}

/// A table of handles. They are multiples of 16, and never the small numbers that name the default streams.
struct Handles<T>(Mutex<HashMap<usize, Arc<T>>>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles(Mutex::default())
    }
}

impl<T> Handles<T> {
    fn add(&self, x: Arc<T>) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
        let h = NEXT.fetch_add(16, Ordering::Relaxed);
        self.0.lock().unwrap().insert(h, x);
        h
    }
    fn get(&self, h: usize) -> Result<Arc<T>, Error> {
        self.0.lock().unwrap().get(&h).cloned().ok_or(Error::InvalidHandle)
    }
    fn remove(&self, h: usize) -> Result<Arc<T>, Error> {
        self.0.lock().unwrap().remove(&h).ok_or(Error::InvalidHandle)
    }
    fn all(&self) -> Vec<Arc<T>> {
        self.0.lock().unwrap().values().cloned().collect()
    }
}

/// A kernel of a module on a device.
struct Function {
    module: Arc<LoadedModule>,
    device: u32,
    name: String,
}

/// A primary context.
struct Context {
    device: u32,
    handle: OnceLock<usize>,
    default: Arc<Stream>,
    /// Streams made in it that order themselves with the default one.
    streams: Handles<Stream>,
    /// The first thing that went wrong in a kernel; every later call returns it, as on a device.
    error: Arc<Mutex<Option<Error>>>,
}

/// The driver of this process.
struct Driver {
    machine: Arc<Machine>,
    arch: u32,
    contexts: Handles<Context>,
    primary: Vec<Arc<Context>>,
    modules: Handles<(Arc<LoadedModule>, u32)>,
    functions: Handles<Function>,
    events: Handles<Event>,
    /// Which context a stream belongs to.
    owners: Handles<(Arc<Context>, Arc<Stream>)>,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Err(_) => default,
        Ok(text) => text.parse().unwrap_or_else(|_| {
            eprintln!("vgpu: {name}={text} is no number; {default} is used");
            default
        }),
    }
}

impl Driver {
    /// Reads the environment: VGPU_DEVICES, VGPU_SMS, VGPU_ARCH, VGPU_MODE (sc or weak), VGPU_RACES, VGPU_SEED, VGPU_WATCHDOG.
    fn new() -> std::io::Result<Driver> {
        let weak = std::env::var("VGPU_MODE").is_ok_and(|m| m == "weak");
        let race = number("VGPU_RACES", 0) != 0;
        let track = (weak || race).then(|| Config { weak, race, seed: number("VGPU_SEED", 0) });
        let config = MachineConfig {
            devices: number("VGPU_DEVICES", 1) as u32,
            sms: number("VGPU_SMS", 132) as u32,
            track,
            watchdog: Duration::from_secs(number("VGPU_WATCHDOG", 10)),
            ..MachineConfig::default()
        };
        let machine = Arc::new(Machine::new(config)?);
        let contexts = Handles::default();
        let context = |device| -> std::io::Result<Arc<Context>> {
            let default = Arc::new(Stream::new(true)?);
            let c = Context {
                device,
                handle: OnceLock::new(),
                default,
                streams: Handles::default(),
                error: Arc::default(),
            };
            Ok(Arc::new(c))
        };
        let primary = (0..machine.config().devices).map(context).collect::<Result<Vec<_>, _>>()?;
        for c in &primary {
            let h = contexts.add(c.clone());
            c.handle.get_or_init(|| h);
        }
        Ok(Driver {
            machine,
            arch: number("VGPU_ARCH", 90) as u32,
            contexts,
            primary,
            modules: Handles::default(),
            functions: Handles::default(),
            events: Handles::default(),
            owners: Handles::default(),
        })
    }

    fn get() -> Result<&'static Driver, Error> {
        DRIVER.get().ok_or(Error::NotInitialized)
    }

    fn context(&self, device: i32) -> Result<&Arc<Context>, Error> {
        usize::try_from(device).ok().and_then(|d| self.primary.get(d)).ok_or(Error::InvalidDevice)
    }
}

/// Appends a launch's counts to the file that VGPU_COUNTERS names: one JSON object a line.
fn write_counters(kernel: &str, device: u32, c: &Counters) {
    let Some(path) = std::env::var_os("VGPU_COUNTERS") else {
        return;
    };
    let by_target = |x: &[u64; 4]| {
        format!("{{\"own\":{},\"peer\":{},\"host\":{},\"multicast\":{}}}", x[0], x[1], x[2], x[3])
    };
    let peers: Vec<String> = c.peers.iter().map(|(l, s)| format!("[{l},{s}]")).collect();
    let line = format!(
        "{{\"kernel\":\"{kernel}\",\"device\":{device},\"loaded\":{},\"stored\":{},\"peers\":[{}],\"widths\":{:?},\"atomics\":{},\"polls\":{},\"barriers\":{},\"instructions\":{}}}\n",
        by_target(&c.loaded),
        by_target(&c.stored),
        peers.join(","),
        c.widths,
        c.atomics,
        c.polls,
        c.barriers,
        c.instructions,
    );
    // One write of a whole line to a file opened for appending, so that processes do not mix their lines.
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    if let Err(e) = file.and_then(|mut f| std::io::Write::write_all(&mut f, line.as_bytes())) {
        eprintln!("vgpu: counters cannot be written to {}: {e}", path.display());
    }
}

/// Prints the races that were not printed before.
fn report_races(all: &[RaceReport]) {
    static PRINTED: Mutex<usize> = Mutex::new(0);
    let mut printed = PRINTED.lock().unwrap();
    for race in all.iter().skip(*printed) {
        eprintln!("vgpu: {race}");
    }
    *printed = all.len().max(*printed);
}

impl Context {
    fn check(&self) -> Result<(), Error> {
        self.error.lock().unwrap().map_or(Ok(()), Err)
    }

    /// Puts work on a stream, in order with the default stream where the API says so.
    fn enqueue(&self, stream: &Arc<Stream>, op: impl FnOnce() + Send + 'static) {
        if Arc::ptr_eq(stream, &self.default) {
            for other in self.streams.all().iter().filter(|s| s.is_blocking()) {
                stream.wait_for(&other.mark());
            }
        } else if stream.is_blocking() {
            stream.wait_for(&self.default.mark());
        }
        stream.push(op);
    }
}

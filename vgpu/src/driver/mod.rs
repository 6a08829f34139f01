//! The CUDA driver API on the virtual machine: `libcuda.so.1`.
//!
//! [`api`] has the entry points; each file here has those of one subject with what is behind them. A handle is a number that
//! a table knows, so a stale one is `CUDA_ERROR_INVALID_HANDLE` and never a wild pointer. An entry point that is not
//! implemented does not exist.
#![allow(missing_docs, reason = "names, arguments and results are those of the CUDA driver API")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of each is the driver API's: pointers are valid for what is read or written"
)]

pub mod api;
mod capture;
mod context;
mod copy;
mod device;
mod entry;
mod graph;
mod image;
pub mod ipc;
mod launch;
mod memory;
mod module;
mod multicast;
mod object;
mod pointer;
mod pool;
mod proc_address;
mod queue;
mod result;
mod stream;
mod vmm;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::mem::space::MAX_DEVICES;
use crate::remote::{self, Client};
use crate::track::model::Config;
use crate::{Machine, MachineConfig};
use capture::Capture;
use context::Context;
use graph::{Graph, GraphExec};
use module::{Function, Library, Module};
use result::{Error, Res};
use stream::{Event, Stream};

/// The CUresult of a fault.
pub(crate) fn code_of(fault: &crate::Fault) -> u32 {
    Error::from(fault) as u32
}

/// A number that was no handle before. They are multiples of 16, and never the small numbers that name the default streams.
fn new_handle() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// A table of handles.
struct Handles<T>(Mutex<HashMap<usize, Arc<T>>>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles(Mutex::default())
    }
}

impl<T> Handles<T> {
    fn add(&self, x: Arc<T>) -> usize {
        let h = new_handle();
        self.0.lock().unwrap().insert(h, x);
        h
    }
    fn get(&self, h: usize) -> Res<Arc<T>> {
        self.0.lock().unwrap().get(&h).cloned().ok_or(Error::InvalidHandle)
    }
    fn remove(&self, h: usize) -> Res<Arc<T>> {
        self.0.lock().unwrap().remove(&h).ok_or(Error::InvalidHandle)
    }
    fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.0.lock().unwrap().retain(|_, x| keep(x));
    }
    fn all(&self) -> Vec<Arc<T>> {
        self.0.lock().unwrap().values().cloned().collect()
    }
}

/// The driver of this process.
struct Driver {
    machine: Arc<Machine>,
    /// Architectures: device d has the d-th, or where there are fewer, they go round.
    archs: Vec<u32>,
    /// What the driver says that its version is.
    version: u64,
    /// Devices do not reach each other.
    isolated: bool,
    refusal: Option<entry::Refusal>,
    /// Devices that know no fabric handles, and devices whose driver says that it does and then does not permit any.
    no_fabric: Vec<u32>,
    no_imex: Vec<u32>,
    contexts: Handles<Context>,
    primary: Vec<Arc<Context>>,
    modules: Handles<Module>,
    libraries: Handles<Library>,
    functions: Handles<Function>,
    events: Handles<Event>,
    /// Streams, and the context that each belongs to.
    streams: Handles<(Arc<Context>, Arc<Stream>)>,
    graphs: Handles<Graph>,
    graph_execs: Handles<GraphExec>,
    /// Captures in progress.
    captures: Mutex<Vec<Arc<Capture>>>,
    pools: pool::Pools,
    host: memory::HostFlags,
    ipc: ipc::Shared,
    vmm: vmm::Vmm,
    /// Launches do nothing.
    idle: bool,
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

/// A variable that lists devices, with commas between.
fn devices(name: &str) -> Vec<u32> {
    let text = std::env::var(name).unwrap_or_default();
    let all: Result<Vec<u32>, _> =
        text.split(',').filter(|one| !one.is_empty()).map(str::parse).collect();
    all.unwrap_or_else(|_| {
        eprintln!("vgpu: {name}={text} is not numbers with commas between; it has no effect");
        Vec::new()
    })
}

/// VGPU_ARCH: one number for all devices, or several with commas between.
fn archs() -> Vec<u32> {
    let text = std::env::var("VGPU_ARCH").unwrap_or_else(|_| "90".to_owned());
    let all: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
    all.unwrap_or_else(|_| {
        eprintln!("vgpu: VGPU_ARCH={text} is not numbers with commas between; 90 is used");
        vec![90]
    })
}

impl Driver {
    /// Compute capability of a device: 90 for 9.0.
    fn arch(&self, device: u32) -> u32 {
        self.archs[device as usize % self.archs.len()]
    }

    /// Whether a device reaches memory of another one.
    fn reaches(&self, device: u32, owner: u32) -> bool {
        device == owner || !self.isolated
    }

    /// Whether memory of a device can have fabric handles.
    fn may_have_fabric_handles(&self, device: u32) -> Res<()> {
        if self.no_fabric.contains(&device) {
            return Err(Error::NotSupported);
        }
        if self.no_imex.contains(&device) { Err(Error::NotPermitted) } else { Ok(()) }
    }

    /// Reads the environment: VGPU_DEVICES, VGPU_SMS, VGPU_ARCH, VGPU_DRIVER, VGPU_ISOLATED, VGPU_MODE (sc, weak or idle), VGPU_RACES,
    /// VGPU_SEED, VGPU_WATCHDOG, VGPU_REFUSE, VGPU_NO_FABRIC, VGPU_NO_IMEX.
    fn new() -> std::io::Result<Driver> {
        let mode = std::env::var("VGPU_MODE").unwrap_or_default();
        let weak = mode == "weak";
        let race = number("VGPU_RACES", 0) != 0;
        let track = (weak || race).then(|| Config { weak, race, seed: number("VGPU_SEED", 0) });
        let config = MachineConfig {
            devices: number("VGPU_DEVICES", 1).min(MAX_DEVICES as u64) as u32,
            sms: number("VGPU_SMS", 132) as u32,
            track,
            watchdog: Duration::from_secs(number("VGPU_WATCHDOG", 10)),
            ..MachineConfig::default()
        };
        let engine = std::env::var_os(remote::VARIABLE).filter(|_| track.is_some());
        let machine = Arc::new(match engine {
            Some(path) => Machine::with_engine(config, Client::join(path.as_ref())?)?,
            None => Machine::new(config)?,
        });
        // As on hardware: a device reaches ordinary memory of another one only after cuCtxEnablePeerAccess.
        machine.space().restrict_to_owners();
        let contexts = Handles::default();
        let primary = (0..machine.config().devices)
            .map(|device| Context::new(device, 0, true))
            .collect::<Result<Vec<_>, _>>()?;
        for c in &primary {
            let h = contexts.add(c.clone());
            c.handle.get_or_init(|| h);
        }
        Ok(Driver {
            pools: pool::Pools::new(machine.config().devices),
            vmm: vmm::Vmm::new(machine.space().clone()),
            machine,
            archs: archs(),
            version: number("VGPU_DRIVER", 13000),
            isolated: number("VGPU_ISOLATED", 0) != 0,
            refusal: entry::Refusal::from_environment(),
            no_fabric: devices("VGPU_NO_FABRIC"),
            no_imex: devices("VGPU_NO_IMEX"),
            contexts,
            primary,
            modules: Handles::default(),
            libraries: Handles::default(),
            functions: Handles::default(),
            events: Handles::default(),
            streams: Handles::default(),
            graphs: Handles::default(),
            graph_execs: Handles::default(),
            captures: Mutex::default(),
            host: memory::HostFlags::default(),
            ipc: ipc::Shared::default(),
            idle: mode == "idle",
        })
    }

    /// The primary context of a device.
    fn primary(&self, device: i32) -> Res<&Arc<Context>> {
        usize::try_from(device).ok().and_then(|d| self.primary.get(d)).ok_or(Error::InvalidDevice)
    }
}

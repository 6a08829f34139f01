//! Gloo over TCP, PyTorch's library for collectives on the host. `gloo/shim.cc` makes its templates
//! callable.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warpmesh::bootstrap::Bootstrap;
use warpmesh::plan::Collective;
use warpmesh::{DataType, ReduceOp};

use super::{Backend, Buffer, Call, Kind};
use crate::layout::{Place, Test};
use crate::perf::Control;

/// Names the network card to use, as it does for PyTorch.
const INTERFACE: &str = "GLOO_SOCKET_IFNAME";
/// `ring` or `bcube`: this algorithm at all sizes.
const ALGORITHM: &str = "WARPMESH_PERF_GLOO_ALGORITHM";

/// `WmGloo` of the shim.
#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

/// `WmGlooCall` of the shim.
#[repr(C)]
struct RawCall {
    input: *const c_void,
    output: *mut c_void,
    count: u64,
    collective: u32,
    dtype: u32,
    op: u32,
    algorithm: u32,
    root: u32,
    reserved: u32,
}

const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<RawCall>() == 48 && offset_of!(RawCall, count) == 16);
    assert!(offset_of!(RawCall, collective) == 24 && offset_of!(RawCall, root) == 40);
};

/// `WmGlooAlgorithm` of the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Ring = 1,
    Bcube = 2,
}

// SAFETY: as in shim.h, which shim.cc includes.
unsafe extern "C" {
    fn wm_gloo_open(
        rank: c_int,
        world: c_int,
        interface: *const c_char,
        host: *const c_char,
        seconds: f64,
        gloo: *mut *mut Handle,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn wm_gloo_address_bytes(gloo: *const Handle) -> usize;
    fn wm_gloo_addresses(
        gloo: *const Handle,
        addresses: *mut u8,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn wm_gloo_connect(
        gloo: *mut Handle,
        addresses: *const u8,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn wm_gloo_run(
        gloo: *mut Handle,
        call: *const RawCall,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn wm_gloo_barrier(gloo: *mut Handle, error: *mut c_char, capacity: usize) -> c_int;
    fn wm_gloo_close(gloo: *mut Handle);
}

/// Calls the shim, which returns 0 or writes why not.
fn checked(what: &str, call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    let mut text = [0_u8; 512];
    if call(text.as_mut_ptr().cast(), text.len()) == 0 {
        return Ok(());
    }
    let why = CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy();
    bail!("Gloo: {what}: {why}")
}

/// Gloo as a backend.
pub struct Gloo {
    handle: NonNull<Handle>,
    control: Control,
    rank: usize,
    /// The algorithm that was asked for.
    asked: Option<Algorithm>,
    /// What was found to be the quicker one, by the bytes of an all-reduce.
    quicker: Vec<(usize, Algorithm)>,
}

impl Gloo {
    /// Connects with the other ranks: over the network card that `GLOO_SOCKET_IFNAME` names, else,
    /// if all ranks are `local`, over the loopback, else over that of this host's name. Every rank
    /// calls it.
    pub fn connect(control: &Control, local: bool, timeout: Duration) -> Result<Self> {
        let (rank, world) = (control.rank(), control.world());
        let asked = asked_algorithm()?;
        let handle = listen(rank, world, local, timeout)?;
        let gloo = Self { handle, control: control.clone(), rank, asked, quicker: vec![] };
        // SAFETY: the handle is open.
        let bytes = world * unsafe { wm_gloo_address_bytes(handle.as_ptr()) };
        let mut mine = vec![0; bytes];
        checked("addresses", |error, capacity| {
            // SAFETY: there is room for an address for each rank.
            unsafe { wm_gloo_addresses(handle.as_ptr(), mine.as_mut_ptr(), error, capacity) }
        })?;
        let all = control.clone().all_gather(&mine)?.concat();
        ensure!(all.len() == world * bytes, "Gloo: ranks have addresses of different kinds");
        checked("connecting", |error, capacity| {
            // SAFETY: those of all ranks, by rank.
            unsafe { wm_gloo_connect(handle.as_ptr(), all.as_ptr(), error, capacity) }
        })
        .with_context(|| {
            format!("{INTERFACE} names the network card that ranks reach each other by")
        })?;
        Ok(gloo)
    }

    /// Gloo leaves the algorithm to its caller, so this takes the quicker one. The first call of each
    /// size tries both; it is one that warms up, and what it leaves in the buffers is not looked at.
    ///
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn algorithm(&mut self, call: &Call) -> Result<Algorithm> {
        let bytes = call.count * call.dtype.size();
        let known = self.quicker.iter().find(|(size, _)| *size == bytes);
        if let Some(algorithm) = self.asked.or(known.map(|(_, algorithm)| *algorithm)) {
            return Ok(algorithm);
        }
        let mut times = [vec![], vec![]];
        for _ in 0..if bytes < 1 << 20 { 21 } else { 3 } {
            for (algorithm, times) in [Algorithm::Ring, Algorithm::Bcube].iter().zip(&mut times) {
                let raw = self.raw(call, *algorithm)?;
                self.barrier()?;
                let start = Instant::now();
                // SAFETY: the same contract.
                unsafe { self.run_raw(call.test, &raw) }?;
                times.push(start.elapsed().as_secs_f64());
            }
        }
        // All ranks have to take the same: the one that is quicker on the slowest rank.
        let mine = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        let [ring, bcube] = [self.control.max(mine[0])?, self.control.max(mine[1])?];
        let algorithm = if ring <= bcube { Algorithm::Ring } else { Algorithm::Bcube };
        self.quicker.push((bytes, algorithm));
        Ok(algorithm)
    }

    /// # Safety
    /// As [`Backend::run`].
    unsafe fn run_raw(&self, test: Test, raw: &RawCall) -> Result<()> {
        checked(test.name(), |error, capacity| {
            // SAFETY: the same contract; the shim reads the call before it returns.
            unsafe { wm_gloo_run(self.handle.as_ptr(), raw, error, capacity) }
        })
    }

    fn raw(&self, call: &Call, algorithm: Algorithm) -> Result<RawCall> {
        let Test::Collective(collective) = call.test else {
            bail!("Gloo has no {} here", call.test)
        };
        let (code, own_block) = match collective {
            Collective::AllReduce => (0, 0),
            Collective::AllGather => (1, self.rank * call.count * call.dtype.size()),
            Collective::Broadcast => (2, 0),
            other => bail!("Gloo has no {other} here"),
        };
        let in_place = call.input == call.output.cast_const().wrapping_add(own_block);
        let reduces = call.test.reduces();
        let op = if reduces { operation(call.op) } else { Some(0) };
        // What only moves are bytes.
        let dtype = if reduces { arithmetic(call.dtype) } else { arithmetic(DataType::U8) };
        let count = if reduces { call.count } else { call.count * call.dtype.size() };
        Ok(RawCall {
            input: if in_place { null() } else { call.input.cast() },
            output: call.output.cast(),
            count: count as u64,
            collective: code,
            dtype: dtype.context("a type that Gloo does not have")?,
            op: op.context("an operation that Gloo does not have")?,
            algorithm: algorithm as u32,
            root: call.root as u32,
            reserved: 0,
        })
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { wm_gloo_close(self.handle.as_ptr()) }
    }
}

fn asked_algorithm() -> Result<Option<Algorithm>> {
    Ok(match std::env::var(ALGORITHM).ok().as_deref() {
        None => None,
        Some("ring") => Some(Algorithm::Ring),
        Some("bcube") => Some(Algorithm::Bcube),
        Some(other) => bail!("{ALGORITHM} is '{other}', not ring or bcube"),
    })
}

/// A rank that others can connect to.
fn listen(rank: usize, world: usize, local: bool, timeout: Duration) -> Result<NonNull<Handle>> {
    let interface = std::env::var(INTERFACE).ok().map(CString::new).transpose()?;
    let system = rustix::system::uname();
    let host = if local { c"127.0.0.1" } else { system.nodename() }.to_owned();
    let open = || {
        // The thread that serves Gloo's sockets would share this rank's core otherwise.
        warpmesh::primitives::host::go_on_any_core();
        let mut handle = null_mut();
        checked("listening", |error, capacity| {
            let interface = interface.as_ref().map_or(null(), |name| name.as_ptr());
            let (rank, world, seconds) = (rank as c_int, world as c_int, timeout.as_secs_f64());
            // SAFETY: texts end with a zero and live until the call returns.
            unsafe {
                let (host, handle) = (host.as_ptr(), &raw mut handle);
                wm_gloo_open(rank, world, interface, host, seconds, handle, error, capacity)
            }
        })?;
        Ok(handle as usize)
    };
    let opened = std::thread::scope(|scope| scope.spawn(open).join());
    let handle: Result<usize> = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let handle = handle.with_context(|| format!("{INTERFACE} names the network card to use"))?;
    NonNull::new(handle as *mut Handle).context("Gloo: no handle")
}

impl Backend for Gloo {
    fn kind(&self) -> Kind {
        Kind::Gloo
    }

    fn version(&self) -> String {
        "Gloo (TCP)".to_owned()
    }

    fn refuses(&self, test: Test, dtype: DataType, op: ReduceOp, _: Place) -> Option<String> {
        let known = [Collective::AllReduce, Collective::AllGather, Collective::Broadcast];
        if !known.iter().any(|collective| test == Test::Collective(*collective)) {
            return Some("only all_reduce, all_gather and broadcast are measured".to_owned());
        }
        if !test.reduces() {
            return None;
        }
        if arithmetic(dtype).is_none() {
            return Some(format!("it has no type for {dtype}, or rounds each sum"));
        }
        operation(op).is_none().then(|| format!("it has no operation for {}", op.name()))
    }

    fn alloc(&mut self, _: usize) -> Result<Option<Buffer>> {
        Ok(None)
    }

    unsafe fn run(&mut self, call: &Call) -> Result<()> {
        if call.count == 0 {
            // Gloo's all-gather divides by the number of bytes.
            return Ok(());
        }
        let all_reduce = call.test == Test::Collective(Collective::AllReduce);
        // SAFETY: the same contract.
        let algorithm = if all_reduce { unsafe { self.algorithm(call) }? } else { Algorithm::Ring };
        let raw = self.raw(call, algorithm)?;
        // SAFETY: the same contract.
        unsafe { self.run_raw(call.test, &raw) }
    }

    fn barrier(&mut self) -> Result<()> {
        checked("barrier", |error, capacity| {
            // SAFETY: the handle is open.
            unsafe { wm_gloo_barrier(self.handle.as_ptr(), error, capacity) }
        })
    }

    fn explain(&mut self, call: &Call, _: bool) -> Option<String> {
        let all_reduce = call.test == Test::Collective(Collective::AllReduce);
        let text = match self.asked {
            Some(algorithm) => format!("Gloo: {algorithm:?}"),
            None => {
                "Gloo: the quicker of ring and bcube, tried at the first call of a size".to_owned()
            }
        };
        all_reduce.then_some(text)
    }

    fn held_bytes(&self) -> Option<usize> {
        None
    }
}

/// The shim's number of a type to calculate with.
fn arithmetic(dtype: DataType) -> Option<u32> {
    match dtype {
        DataType::I8 => Some(0),
        DataType::U8 => Some(1),
        DataType::I32 => Some(2),
        DataType::U32 => Some(3),
        DataType::I64 => Some(4),
        DataType::U64 => Some(5),
        DataType::F32 => Some(6),
        DataType::F64 => Some(7),
        _ => None,
    }
}

fn operation(op: ReduceOp) -> Option<u32> {
    match op {
        ReduceOp::Sum => Some(0),
        ReduceOp::Prod => Some(1),
        ReduceOp::Min => Some(2),
        ReduceOp::Max => Some(3),
        _ => None,
    }
}

//! Kernel launches, host functions and occupancy.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};

use super::entry::{api, current, driver, put, slice, stream};
use super::graph::Kind;
use super::result::{Error, Res};
use crate::isa::decode::Kernel;
use crate::launch::LaunchSpec;
use crate::{Counters, Machine};

/// The shape of a launch.
#[derive(Clone, Copy)]
struct Shape {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    cooperative: bool,
}

/// `CUlaunchAttribute`.
#[repr(C)]
pub struct LaunchAttribute {
    id: c_uint,
    pad: c_uint,
    value: [c_uint; 16],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: usize,
    attrs: *const LaunchAttribute,
    n: c_uint,
}

/// Takes the attributes of a launch; true if it is cooperative. What cannot be honoured is refused, hints are not.
fn attributes(all: &[LaunchAttribute]) -> Res<bool> {
    let mut cooperative = false;
    for a in all {
        match a.id {
            // Ignore, access policy, synchronisation policy, cluster scheduling, overlap with the launch before (allowed, not asked
            // for), priority, memory domains, preferred cluster, carveout, link use.
            0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 11 | 14 | 16 => {}
            2 => cooperative = a.value[0] != 0,
            4 if a.value[..3] == [1, 1, 1] => {}
            4 => {
                eprintln!(
                    "vgpu: a cluster of {:?} blocks: clusters of more than one block are not there",
                    &a.value[..3]
                );
                return Err(Error::InvalidClusterSize);
            }
            id => {
                eprintln!("vgpu: launch attribute {id} is not supported");
                return Err(Error::NotSupported);
            }
        }
    }
    Ok(cooperative)
}

/// The parameter block, from one pointer per parameter or from a buffer as a whole.
unsafe fn parameters(
    kernel: &Kernel,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Res<Vec<u8>> {
    let mut bytes = vec![0u8; kernel.param_bytes as usize];
    match (params.is_null(), extra.is_null()) {
        (true, true) if kernel.params.is_empty() => {}
        (false, true) => {
            for (k, &(at, size)) in kernel.params.iter().enumerate() {
                // SAFETY: the caller passes one pointer per parameter, to as many bytes as it has.
                unsafe {
                    let from = (*params.add(k)).cast::<u8>().cast_const();
                    let to = bytes.as_mut_ptr().add(at as usize);
                    std::ptr::copy_nonoverlapping(from, to, size as usize);
                }
            }
        }
        (true, false) => {
            // SAFETY: the caller passes pairs of a name and a value, until the name that ends them.
            let buffer = unsafe { packed(extra)? };
            if buffer.len() > bytes.len() {
                return Err(Error::InvalidValue);
            }
            bytes[..buffer.len()].copy_from_slice(buffer);
        }
        _ => return Err(Error::InvalidValue),
    }
    Ok(bytes)
}

/// The buffer that `extra` names.
unsafe fn packed<'a>(mut extra: *mut *mut c_void) -> Res<&'a [u8]> {
    const END: usize = 0;
    const POINTER: usize = 1;
    const SIZE: usize = 2;
    let (mut at, mut size) = (std::ptr::null(), 0);
    // SAFETY: the caller's promise is that of the driver API.
    unsafe {
        loop {
            match *extra as usize {
                END => return slice(at, size),
                POINTER => at = (*extra.add(1)).cast::<u8>().cast_const(),
                SIZE => size = (*extra.add(1)).cast::<usize>().read(),
                _ => return Err(Error::InvalidValue),
            }
            extra = extra.add(2);
        }
    }
}

unsafe fn launch(
    f: usize,
    shape: Shape,
    h: usize,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Res<()> {
    if driver()?.idle {
        return Ok(());
    }
    let (d, c, s) = stream(h)?;
    let f = d.functions.get(f)?;
    let (kernel, device) = f.kernel(d, c.device)?;
    if device != c.device {
        return Err(Error::InvalidHandle);
    }
    // SAFETY: the caller's promise is that of the driver API.
    let bytes = unsafe { parameters(&kernel, params, extra)? };
    let spec = spec(&kernel, device, shape, &bytes);
    let threads = shape.block.iter().product::<u32>();
    let room = d.machine.occupancy(&kernel, threads, shape.shared) * d.machine.config().sms;
    let blocks: u64 = shape.grid.iter().map(|g| u64::from(*g)).product();
    if shape.cooperative && blocks > room.into() {
        return Err(Error::CooperativeLaunchTooLarge);
    }
    if shape.shared > f.dynamic_limit(&kernel) {
        return Err(Error::InvalidValue); // more has to be asked for by cuFuncSetAttribute
    }
    d.machine.check(&spec).map_err(|e| {
        eprintln!("vgpu: {e}");
        Error::from(&e)
    })?;
    d.vmm.refresh();
    let (machine, error) = (d.machine.clone(), c.error.clone());
    c.submit(&s, Kind::Kernel, move || run(&machine, &kernel, device, shape, &bytes, &error))
}

fn spec<'a>(
    kernel: &'a Arc<Kernel>,
    device: u32,
    shape: Shape,
    params: &'a [u8],
) -> LaunchSpec<'a> {
    LaunchSpec {
        kernel,
        device,
        grid: shape.grid,
        block: shape.block,
        dynamic_shared: shape.shared,
        params,
        cooperative: shape.cooperative,
    }
}

/// Runs a kernel to its end.
fn run(
    machine: &Machine,
    kernel: &Arc<Kernel>,
    device: u32,
    shape: Shape,
    params: &[u8],
    error: &Mutex<Option<Error>>,
) {
    match machine.run(&spec(kernel, device, shape, params)) {
        Ok(counters) => write_counters(&kernel.name, device, &counters),
        Err(fault) => {
            eprintln!("vgpu: {fault}");
            error.lock().unwrap().get_or_insert(Error::from(&fault));
        }
    }
    machine.print_races();
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

fn occupancy(f: usize, threads: c_int, shared: usize) -> Res<c_int> {
    let (d, c) = current()?;
    let (kernel, _) = d.functions.get(f)?.kernel(d, c.device)?;
    let threads = u32::try_from(threads).ok().filter(|t| *t > 0).ok_or(Error::InvalidValue)?;
    let shared = u32::try_from(shared).map_err(|_| Error::InvalidValue)?;
    let fits = threads <= kernel.max_threads.unwrap_or(1024).min(1024)
        && kernel.shared_bytes.saturating_add(shared) <= crate::machine::BLOCK_SHARED;
    Ok(if fits { d.machine.occupancy(&kernel, threads, shared) as c_int } else { 0 })
}

/// The block size that fills a multiprocessor best, the largest of equals, and the grid that fills the device.
unsafe fn potential(
    grid: *mut c_int,
    block: *mut c_int,
    f: usize,
    shared_of: Option<unsafe extern "C" fn(c_int) -> usize>,
    shared: usize,
    limit: c_int,
) -> Res<()> {
    let (d, c) = current()?;
    let (kernel, _) = d.functions.get(f)?.kernel(d, c.device)?;
    let most = kernel.max_threads.unwrap_or(1024).min(1024) as c_int;
    let most = if limit > 0 { most.min(limit) } else { most };
    let mut best = (0, 0, 0);
    for threads in (1..=most / 32).map(|w| w * 32).chain((most < 32).then_some(most)) {
        // SAFETY: the caller's function takes a block size.
        let shared = shared_of.map_or(shared, |g| unsafe { g(threads) });
        let blocks = occupancy(f, threads, shared)?;
        best = best.max((blocks * threads, threads, blocks));
    }
    // SAFETY: the caller's pointers are as the driver API asks.
    unsafe {
        put(block, best.1)?;
        put(grid, best.2 * d.machine.config().sms as c_int)
    }
}

api! {
    cuLaunchKernel(f: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, s: usize, params: *mut *mut c_void, extra: *mut *mut c_void) {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared, cooperative: false };
        launch(f, shape, s, params, extra)
    }
    cuLaunchCooperativeKernel(f: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, s: usize, params: *mut *mut c_void) {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared, cooperative: true };
        launch(f, shape, s, params, std::ptr::null_mut())
    }
    cuLaunchKernelEx(config: *const LaunchConfig, f: usize, params: *mut *mut c_void, extra: *mut *mut c_void) {
        let config = config.as_ref().ok_or(Error::InvalidValue)?;
        let cooperative = attributes(slice(config.attrs, config.n as usize)?)?;
        let LaunchConfig { grid, block, shared, .. } = *config;
        launch(f, Shape { grid, block, shared, cooperative }, config.stream, params, extra)
    }
    cuLaunchHostFunc(s: usize, f: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let (_, c, s) = stream(s)?;
        let f = f.ok_or(Error::InvalidValue)?;
        let data = data as usize;
        // The caller promises that the function may be called with this from another thread.
        c.submit(&s, Kind::Host, move || f(data as *mut c_void))
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, f: usize, threads: c_int, shared: usize) {
        put(blocks, occupancy(f, threads, shared)?)
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks: *mut c_int, f: usize, threads: c_int, shared: usize, flags: c_uint) {
        if flags > 1 {
            return Err(Error::InvalidValue);
        }
        put(blocks, occupancy(f, threads, shared)?)
    }
    cuOccupancyMaxPotentialBlockSize(grid: *mut c_int, block: *mut c_int, f: usize, shared_of: Option<unsafe extern "C" fn(c_int) -> usize>, shared: usize, limit: c_int) {
        potential(grid, block, f, shared_of, shared, limit)
    }
    cuOccupancyMaxPotentialBlockSizeWithFlags(grid: *mut c_int, block: *mut c_int, f: usize, shared_of: Option<unsafe extern "C" fn(c_int) -> usize>, shared: usize, limit: c_int, flags: c_uint) {
        if flags > 1 {
            return Err(Error::InvalidValue);
        }
        potential(grid, block, f, shared_of, shared, limit)
    }
}

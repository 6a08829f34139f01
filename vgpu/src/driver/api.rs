//! The entry points.
#![allow(missing_docs, reason = "names, arguments and results are those of the CUDA driver API")]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of each is the driver API's: pointers are valid for what is read or written"
)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::ipc::MemHandle;
use super::stream::{Event, Stream};
use super::{Context, DRIVER, Driver, Error, Function, NAMES};
use crate::machine::LaunchSpec;
use crate::mem::space::Kind;

type Res<T> = Result<T, Error>;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

fn code(r: Res<()>) -> c_uint {
    r.map_or_else(|e| e as c_uint, |()| 0)
}

/// The current context, if nothing has gone wrong in it.
fn current() -> Res<(&'static Driver, Arc<Context>)> {
    let d = Driver::get()?;
    let c = d.contexts.get(CURRENT.get()).map_err(|_| Error::InvalidContext)?;
    c.check()?;
    Ok((d, c))
}

fn stream(d: &Driver, c: &Context, h: usize) -> Res<Arc<Stream>> {
    match h {
        0..=2 => Ok(c.default.clone()),
        _ => Ok(d.owners.get(h)?.1.clone()),
    }
}

/// Writes a result; a null pointer is the caller's mistake.
unsafe fn put<T>(p: *mut T, x: T) -> Res<()> {
    if p.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the API asks for a pointer to a writable T.
    unsafe { p.write(x) };
    Ok(())
}

macro_rules! api {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_uint {
            // SAFETY: the caller keeps the driver API's contract for its pointers.
            #[allow(unused_unsafe, reason = "some entry points take no pointers")]
            let body = || -> Res<()> { unsafe { $body } };
            code(body())
        }
    )* };
}

/// Copies bytes between any two of device, host-visible and plain host memory.
unsafe fn copy(
    d: &Driver,
    c: &Arc<Context>,
    s: &Arc<Stream>,
    to: u64,
    from: u64,
    n: usize,
    wait: bool,
) -> Res<()> {
    let space = d.machine.space();
    let (dst, src) = (space.find(to, n as u64).is_some(), space.find(from, n as u64).is_some());
    if to == 0 || from == 0 || !dst && !src {
        return Err(Error::InvalidValue);
    }
    if src || wait {
        c.enqueue(s, move || {
            // SAFETY: device ranges were checked, host ranges are the caller's promise until the copy is done.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, n) };
        });
        // Into pageable memory a copy is done when the call returns.
        if wait || !dst {
            s.mark().wait();
        }
    } else {
        // SAFETY: the caller promises `n` readable bytes; they are taken now, as the API does with pageable memory.
        let staged = unsafe { std::slice::from_raw_parts(from as *const u8, n) }.to_vec();
        c.enqueue(s, move || {
            // SAFETY: the destination was checked.
            unsafe { std::ptr::copy_nonoverlapping(staged.as_ptr(), to as *mut u8, n) };
        });
    }
    c.check()
}

/// Copies between any two addresses, of which both may be the host's.
unsafe fn copy_any(to: u64, from: u64, n: usize, h: usize, wait: bool) -> Res<()> {
    let (d, c) = current()?;
    let (s, space) = (stream(d, &c, h)?, d.machine.space());
    if to == 0 || from == 0 {
        return Err(Error::InvalidValue);
    }
    if space.find(to, n as u64).is_some() || space.find(from, n as u64).is_some() {
        // SAFETY: the caller's contract.
        return unsafe { copy(d, &c, &s, to, from, n, wait) };
    }
    s.mark().wait();
    // SAFETY: the caller promises both ranges; work that was queued before is done.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, n) };
    c.check()
}

fn fill<T: Copy + Send + 'static>(at: u64, x: T, n: usize, h: usize, wait: bool) -> Res<()> {
    let (d, c) = current()?;
    let s = stream(d, &c, h)?;
    d.machine.space().find(at, (n * size_of::<T>()) as u64).ok_or(Error::InvalidValue)?;
    if !at.is_multiple_of(size_of::<T>() as u64) {
        return Err(Error::InvalidValue);
    }
    c.enqueue(&s, move || {
        // SAFETY: the range was checked.
        (0..n).for_each(|k| unsafe { (at as *mut T).add(k).write(x) });
    });
    if wait {
        s.mark().wait();
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the arguments of cuLaunchKernel")]
unsafe fn launch(
    f: usize,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    h: usize,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
    cooperative: bool,
) -> Res<()> {
    let (d, c) = current()?;
    let s = stream(d, &c, h)?;
    let f = d.functions.get(f)?;
    let kernel =
        f.module.kernel(d.machine.space(), f.device, &f.name).map_err(|_| Error::InvalidPtx)?;
    if !extra.is_null() || params.is_null() && !kernel.params.is_empty() {
        return Err(Error::InvalidValue); // only kernelParams
    }
    let mut bytes = vec![0u8; kernel.param_bytes as usize];
    for (k, &(at, size)) in kernel.params.iter().enumerate() {
        // SAFETY: the caller passes one pointer per parameter, to as many bytes as it has.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (*params.add(k)).cast::<u8>(),
                bytes.as_mut_ptr().add(at as usize),
                size as usize,
            )
        };
    }
    let spec = LaunchSpec {
        kernel: &kernel,
        device: f.device,
        grid,
        block,
        dynamic_shared: shared,
        params: &[],
        cooperative,
    };
    d.machine.check(&spec).map_err(|e| Error::from(&e))?;
    let (machine, error, device) = (d.machine.clone(), c.error.clone(), f.device);
    c.enqueue(&s, move || {
        let spec = LaunchSpec {
            kernel: &kernel,
            device,
            grid,
            block,
            dynamic_shared: shared,
            params: &bytes,
            cooperative,
        };
        match machine.launch(&spec).and_then(|l| machine.wait(&l)) {
            Ok(counters) => super::write_counters(&kernel.name, device, &counters),
            Err(fault) => {
                eprintln!("vgpu: {fault}");
                error.lock().unwrap().get_or_insert(Error::from(&fault));
            }
        }
        super::report_races(&machine.races());
    });
    Ok(())
}

fn attribute(d: &Driver, a: c_int) -> Res<c_int> {
    Ok(match a {
        1..=4 => {
            if a == 4 {
                64
            } else {
                1024
            }
        }
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 48 * 1024,
        9 => 64 * 1024,
        10 => 32,
        12 | 82 => 65536,
        16 => d.machine.config().sms as c_int,
        31 | 41 | 90 | 95 => 1,
        33 | 34 | 50 | 83 | 102 | 115 | 132 => 0,
        39 => 2048,
        75 => (d.arch / 10) as c_int,
        76 => (d.arch % 10) as c_int,
        81 => 228 * 1024,
        97 => crate::machine::BLOCK_SHARED as c_int,
        106 => 32,
        111 => 1024,
        _ => return Err(Error::InvalidValue),
    })
}

api! {
    cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        if DRIVER.get().is_none() {
            let driver = Driver::new().map_err(|_| Error::OutOfMemory)?;
            DRIVER.get_or_init(|| driver);
        }
        Ok(())
    }
    cuDriverGetVersion(version: *mut c_int) { put(version, 13000) }
    cuDeviceGetCount(n: *mut c_int) { put(n, Driver::get()?.primary.len() as c_int) }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        Driver::get()?.context(ordinal)?;
        put(device, ordinal)
    }
    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        Driver::get()?.context(device)?;
        let text = b"vgpu virtual device\0";
        if name.is_null() || len < text.len() as c_int {
            return Err(Error::InvalidValue);
        }
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
        Ok(())
    }
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        Driver::get()?.context(device)?;
        put(bytes, 64 << 30)
    }
    cuDeviceGetAttribute(value: *mut c_int, a: c_int, device: c_int) {
        let d = Driver::get()?;
        d.context(device)?;
        put(value, attribute(d, a)?)
    }
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        Driver::get()?.context(device)?;
        let mut id = *b"vgpu virtual dev";
        id[15] = device as u8;
        put(uuid, id)
    }
    cuDeviceCanAccessPeer(can: *mut c_int, a: c_int, b: c_int) {
        let d = Driver::get()?;
        d.context(a)?;
        d.context(b)?;
        put(can, c_int::from(a != b))
    }
    cuCtxEnablePeerAccess(peer: usize, flags: c_uint) {
        let (d, _) = current()?;
        d.contexts.get(peer).map_err(|_| Error::InvalidContext)?;
        if flags == 0 { Ok(()) } else { Err(Error::InvalidValue) }
    }
    cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) {
        put(context, Driver::get()?.context(device)?.handle.get().copied().unwrap_or(0))
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) { Driver::get()?.context(device).map(drop) }
    cuCtxGetCurrent(context: *mut usize) {
        Driver::get()?;
        put(context, CURRENT.get())
    }
    cuCtxSetCurrent(context: usize) {
        let d = Driver::get()?;
        if context != 0 {
            d.contexts.get(context).map_err(|_| Error::InvalidContext)?;
        }
        CURRENT.set(context);
        Ok(())
    }
    cuCtxGetDevice(device: *mut c_int) { put(device, current()?.1.device as c_int) }
    cuCtxSynchronize() {
        let (_, c) = current()?;
        let marks: Vec<_> = c.streams.all().iter().chain([&c.default]).map(|s| s.mark()).collect();
        for m in &marks {
            m.wait();
        }
        c.check()
    }
    cuMemAlloc_v2(at: *mut u64, bytes: usize) {
        let (d, c) = current()?;
        if bytes == 0 {
            return Err(Error::InvalidValue);
        }
        put(at, d.machine.space().alloc(c.device, Kind::Device, bytes as u64).map_err(|_| Error::OutOfMemory)?)
    }
    cuMemFree_v2(at: u64) {
        // Freeing waits for all work of the device, as on hardware.
        let r = cuCtxSynchronize();
        let (d, _) = current()?;
        if r == 0 && (at == 0 || d.machine.space().free(at)) { Ok(()) } else { Err(Error::InvalidValue) }
    }
    cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let (d, c) = current()?;
        put(at, d.machine.space().alloc(c.device, Kind::Host, bytes as u64).map_err(|_| Error::OutOfMemory)? as *mut c_void)
    }
    cuMemFreeHost(at: *mut c_void) { if cuMemFree_v2(at as u64) == 0 { Ok(()) } else { Err(Error::InvalidValue) } }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        current()?;
        put(free, 64 << 30)?;
        put(total, 64 << 30)
    }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, n: usize, s: usize) {
        let (d, c) = current()?;
        copy(d, &c, &stream(d, &c, s)?, to, from as u64, n, false)
    }
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, n: usize, s: usize) {
        let (d, c) = current()?;
        copy(d, &c, &stream(d, &c, s)?, to as u64, from, n, false)
    }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, n: usize, s: usize) {
        let (d, c) = current()?;
        copy(d, &c, &stream(d, &c, s)?, to, from, n, false)
    }
    cuMemcpyHtoD_v2(to: u64, from: *const c_void, n: usize) {
        let (d, c) = current()?;
        copy(d, &c, &c.default, to, from as u64, n, true)
    }
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, n: usize) {
        let (d, c) = current()?;
        copy(d, &c, &c.default, to as u64, from, n, true)
    }
    cuMemcpyDtoD_v2(to: u64, from: u64, n: usize) {
        let (d, c) = current()?;
        copy(d, &c, &c.default, to, from, n, true)
    }
    cuMemcpy(to: u64, from: u64, n: usize) { copy_any(to, from, n, 0, true) }
    cuMemcpyAsync(to: u64, from: u64, n: usize, s: usize) { copy_any(to, from, n, s, false) }
    cuMemsetD8Async(at: u64, x: u8, n: usize, s: usize) { fill(at, x, n, s, false) }
    cuMemsetD32Async(at: u64, x: c_uint, n: usize, s: usize) { fill(at, x, n, s, false) }
    cuMemsetD8_v2(at: u64, x: u8, n: usize) { fill(at, x, n, 0, true) }
    cuMemsetD32_v2(at: u64, x: c_uint, n: usize) { fill(at, x, n, 0, true) }
    cuModuleLoadData(module: *mut usize, image: *const c_void) {
        let (d, c) = current()?;
        if image.is_null() {
            return Err(Error::InvalidValue);
        }
        let text = CStr::from_ptr(image.cast()).to_str().map_err(|_| Error::InvalidPtx)?;
        let m = d.machine.load(text).map_err(|e| {
            eprintln!("vgpu: {e}");
            Error::InvalidPtx
        })?;
        put(module, d.modules.add(Arc::new((Arc::new(m), c.device))))
    }
    cuModuleUnload(module: usize) { Driver::get()?.modules.remove(module).map(drop) }
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
        let (d, _) = current()?;
        let m = d.modules.get(module)?;
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        if !m.0.module().functions.get(&name).is_some_and(|f| f.is_kernel) {
            return Err(Error::NotFound);
        }
        put(function, d.functions.add(Arc::new(Function { module: m.0.clone(), device: m.1, name })))
    }
    cuModuleGetGlobal_v2(at: *mut u64, bytes: *mut usize, module: usize, name: *const c_char) {
        let (d, _) = current()?;
        let m = d.modules.get(module)?;
        let name = CStr::from_ptr(name).to_string_lossy();
        let (address, size) = m.0.global(d.machine.space(), m.1, &name).ok_or(Error::NotFound)?;
        if !at.is_null() {
            put(at, address)?;
        }
        if bytes.is_null() { Ok(()) } else { put(bytes, size as usize) }
    }
    cuLaunchKernel(f: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, s: usize, params: *mut *mut c_void, extra: *mut *mut c_void) {
        launch(f, [gx, gy, gz], [bx, by, bz], shared, s, params, extra, false)
    }
    cuLaunchCooperativeKernel(f: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, s: usize, params: *mut *mut c_void) {
        launch(f, [gx, gy, gz], [bx, by, bz], shared, s, params, std::ptr::null_mut(), true)
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, f: usize, threads: c_int, shared: usize) {
        let (d, _) = current()?;
        let f = d.functions.get(f)?;
        let kernel = f.module.kernel(d.machine.space(), f.device, &f.name).map_err(|_| Error::InvalidPtx)?;
        put(blocks, d.machine.occupancy(&kernel, threads as u32, shared as u32) as c_int)
    }
    cuStreamCreate(s: *mut usize, flags: c_uint) {
        let (d, c) = current()?;
        if flags > 1 {
            return Err(Error::InvalidValue);
        }
        let new = Arc::new(Stream::new(flags == 0).map_err(|_| Error::OutOfMemory)?);
        c.streams.add(new.clone());
        put(s, d.owners.add(Arc::new((c, new))))
    }
    cuStreamCreateWithPriority(s: *mut usize, flags: c_uint, _priority: c_int) { if cuStreamCreate(s, flags) == 0 { Ok(()) } else { Err(Error::InvalidValue) } }
    cuStreamDestroy_v2(s: usize) {
        let owner = Driver::get()?.owners.remove(s)?;
        // Work that is queued is still done: the thread ends after it.
        owner.0.streams.0.lock().unwrap().retain(|_, x| !Arc::ptr_eq(x, &owner.1));
        Ok(())
    }
    cuStreamSynchronize(s: usize) {
        let (d, c) = current()?;
        stream(d, &c, s)?.mark().wait();
        c.check()
    }
    cuStreamQuery(s: usize) {
        let (d, c) = current()?;
        let idle = stream(d, &c, s)?.is_idle();
        c.check()?;
        if idle { Ok(()) } else { Err(Error::NotReady) }
    }
    cuStreamWaitEvent(s: usize, event: usize, _flags: c_uint) {
        let (d, c) = current()?;
        let s = stream(d, &c, s)?;
        if let Some(mark) = d.events.get(event)?.last() {
            s.wait_for(&mark);
        }
        Ok(())
    }
    cuEventCreate(event: *mut usize, _flags: c_uint) { put(event, current()?.0.events.add(Arc::new(Event::default()))) }
    cuEventRecord(event: usize, s: usize) {
        let (d, c) = current()?;
        let s = stream(d, &c, s)?;
        d.events.get(event)?.record(s.mark());
        Ok(())
    }
    cuEventQuery(event: usize) {
        let last = current()?.0.events.get(event)?.last();
        if last.is_none_or(|m| m.when().is_some()) { Ok(()) } else { Err(Error::NotReady) }
    }
    cuEventSynchronize(event: usize) {
        let (d, c) = current()?;
        if let Some(m) = d.events.get(event)?.last() {
            m.wait();
        }
        c.check()
    }
    cuEventElapsedTime_v2(ms: *mut f32, start: usize, end: usize) {
        let (d, _) = current()?;
        let when = |e| -> Res<_> { d.events.get(e)?.last().ok_or(Error::InvalidHandle)?.when().ok_or(Error::NotReady) };
        put(ms, (when(end)? - when(start)?).as_secs_f32() * 1e3)
    }
    cuEventDestroy_v2(event: usize) { Driver::get()?.events.remove(event).map(drop) }
    cuIpcGetMemHandle(handle: *mut MemHandle, at: u64) {
        put(handle, MemHandle::new(current()?.0.machine.space(), at)?)
    }
    cuIpcOpenMemHandle_v2(at: *mut u64, handle: MemHandle, _flags: c_uint) {
        let (d, _) = current()?;
        put(at, handle.open(d.machine.space(), d.machine.config().devices)?)
    }
    cuIpcCloseMemHandle(at: u64) { if cuMemFree_v2(at) == 0 { Ok(()) } else { Err(Error::InvalidValue) } }
    cuGetErrorName(error: c_uint, text: *mut *const c_char) {
        let known = NAMES.iter().find(|n| n.0 == error).ok_or(Error::InvalidValue)?;
        put(text, known.1.as_ptr())
    }
    cuGetErrorString(error: c_uint, text: *mut *const c_char) {
        let known = NAMES.iter().find(|n| n.0 == error).ok_or(Error::InvalidValue)?;
        put(text, known.2.as_ptr())
    }
}

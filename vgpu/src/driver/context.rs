//! Contexts: what a thread works in, and which devices it lets into each other's memory.

use std::collections::HashSet;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::entry::{STACK, api, current, current_handle, driver, offer, put};
use super::graph::Kind;
use super::result::{Error, Res};
use super::stream::{Mark, Stream};

/// A context: the device's primary one, or one that a program made.
pub(super) struct Context {
    pub device: u32,
    pub handle: OnceLock<usize>,
    primary: bool,
    flags: c_uint,
    pub default: Arc<Stream>,
    /// All other streams made in it.
    streams: Mutex<Vec<Weak<Stream>>>,
    /// What destroyed streams still have to do.
    orphans: Mutex<Vec<Arc<Mark>>>,
    /// The first thing that went wrong in a kernel; every later call returns it, as on a device.
    pub error: Arc<Mutex<Option<Error>>>,
    /// Contexts whose memory this one was let into.
    peers: Mutex<HashSet<usize>>,
    limits: [AtomicUsize; LIMITS.len()],
}

/// Limits that can be asked and set, with what they are at first: stack, printf, heap, synchronisation depth, pending launches.
const LIMITS: [usize; 5] = [1024, 1 << 20, 8 << 20, 2, 2048];

impl Context {
    pub fn new(device: u32, flags: c_uint, primary: bool) -> std::io::Result<Arc<Context>> {
        Ok(Arc::new(Context {
            device,
            handle: OnceLock::new(),
            primary,
            flags,
            default: Arc::new(Stream::new(0, 0)?),
            streams: Mutex::default(),
            orphans: Mutex::default(),
            error: Arc::default(),
            peers: Mutex::default(),
            limits: LIMITS.map(AtomicUsize::new),
        }))
    }

    /// What went wrong in it, if anything.
    pub fn check(&self) -> Res<()> {
        self.error.lock().unwrap().map_or(Ok(()), Err)
    }

    /// Its streams, without the default one.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.streams.lock().unwrap().iter().filter_map(Weak::upgrade).collect()
    }

    pub fn adopt(&self, stream: &Arc<Stream>) {
        let mut all = self.streams.lock().unwrap();
        all.retain(|s| s.strong_count() > 0);
        all.push(Arc::downgrade(stream));
    }

    /// A stream is destroyed; its work is still done.
    pub fn abandon(&self, stream: &Arc<Stream>) {
        let mut orphans = self.orphans.lock().unwrap();
        orphans.retain(|m| m.when().is_none());
        orphans.push(stream.mark());
        self.streams.lock().unwrap().retain(|s| !std::ptr::eq(s.as_ptr(), &**stream));
    }

    /// Puts work on a stream, or into the graph that the stream is captured to.
    pub fn submit(
        &self,
        stream: &Arc<Stream>,
        kind: Kind,
        work: impl Fn() + Send + Sync + 'static,
    ) -> Res<()> {
        if let Some(tail) = stream.capture().as_mut() {
            return tail.push(kind, Arc::new(work));
        }
        self.order(stream)?;
        stream.push(work);
        Ok(())
    }

    /// A mark that happens when all work so far of a stream is done.
    pub fn mark(&self, stream: &Arc<Stream>) -> Res<Arc<Mark>> {
        self.order(stream)?;
        Ok(stream.mark())
    }

    /// True if a mark of a stream would happen at once.
    pub fn is_idle(&self, stream: &Arc<Stream>) -> Res<bool> {
        let mut others = Vec::new();
        if Arc::ptr_eq(stream, &self.default) {
            others = self.streams();
            others.retain(|s| s.is_blocking());
            if others.iter().any(|s| s.invalidate_capture()) {
                return Err(Error::CaptureImplicit);
            }
        } else if stream.is_blocking() {
            others.push(self.default.clone());
        }
        Ok(stream.is_idle() && others.iter().all(|s| s.is_idle()))
    }

    /// Makes what comes next on a stream wait for what the default stream's rules ask.
    fn order(&self, stream: &Arc<Stream>) -> Res<()> {
        if Arc::ptr_eq(stream, &self.default) {
            let blocking: Vec<_> = self.streams().into_iter().filter(|s| s.is_blocking()).collect();
            let mut implicit = false;
            for s in &blocking {
                implicit |= s.invalidate_capture();
            }
            if implicit {
                return Err(Error::CaptureImplicit);
            }
            blocking.iter().for_each(|s| stream.wait_for(&s.mark()));
        } else if stream.is_blocking() {
            stream.wait_for(&self.default.mark());
        }
        Ok(())
    }

    /// Waits for all work.
    pub fn synchronize(&self) -> Res<()> {
        let streams = self.streams();
        let mut capturing = false;
        for s in &streams {
            capturing |= s.invalidate_capture();
        }
        if capturing {
            return Err(Error::CaptureUnsupported);
        }
        let mut marks = self.orphans.lock().unwrap().clone();
        marks.extend(streams.iter().chain([&self.default]).map(|s| s.mark()));
        for mark in &marks {
            mark.wait();
        }
        self.check()
    }
}

fn create(context: *mut usize, flags: c_uint, device: c_int) -> Res<()> {
    let d = driver()?;
    let device = d.primary(device)?.device;
    if flags & !0x3f != 0 {
        return Err(Error::InvalidValue);
    }
    let c = Context::new(device, flags, false).map_err(|_| Error::OutOfMemory)?;
    let h = d.contexts.add(c.clone());
    c.handle.get_or_init(|| h);
    // SAFETY: the caller's pointer is as the driver API asks.
    unsafe { put(context, h)? };
    STACK.with_borrow_mut(|s| s.push(h));
    Ok(())
}

/// The context of a handle, the current one if it is null.
fn named(context: usize) -> Res<Arc<Context>> {
    if context == 0 {
        return Ok(current()?.1);
    }
    let c = driver()?.contexts.get(context).map_err(|_| Error::InvalidContext)?;
    c.check()?;
    Ok(c)
}

fn peer(peer: usize) -> Res<(Arc<Context>, Arc<Context>)> {
    let (d, c) = current()?;
    let other = d.contexts.get(peer).map_err(|_| Error::InvalidContext)?;
    Ok((c, other))
}

api! {
    cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) {
        put(context, driver()?.primary(device)?.handle.get().copied().unwrap_or(0))
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) { driver()?.primary(device).map(drop) }
    cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) {
        driver()?.primary(device)?;
        put(flags, 0)?;
        put(active, 1) // primary contexts exist from the start
    }
    cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) {
        // How a thread waits is a hint.
        driver()?.primary(device)?;
        if flags & !0x3f == 0 { Ok(()) } else { Err(Error::InvalidValue) }
    }
    cuCtxCreate_v2(context: *mut usize, flags: c_uint, device: c_int) { create(context, flags, device) }
    cuCtxCreate_v4(context: *mut usize, params: *const c_void, flags: c_uint, device: c_int) {
        // Execution affinity and contexts for graphics, which the parameters are for, are not there.
        if params.is_null() { create(context, flags, device) } else { Err(Error::NotSupported) }
    }
    cuCtxCreate_v3(context: *mut usize, params: *const c_void, n: c_int, flags: c_uint, device: c_int) {
        if params.is_null() && n == 0 { create(context, flags, device) } else { Err(Error::NotSupported) }
    }
    cuCtxDestroy_v2(context: usize) {
        let d = driver()?;
        let c = d.contexts.get(context).map_err(|_| Error::InvalidContext)?;
        if c.primary {
            return Err(Error::InvalidContext);
        }
        let _ = c.synchronize();
        d.contexts.remove(context)?;
        d.streams.retain(|s| !Arc::ptr_eq(&s.0, &c));
        STACK.with_borrow_mut(|s| if s.last() == Some(&context) { s.pop(); });
        Ok(())
    }
    cuCtxPushCurrent_v2(context: usize) {
        driver()?.contexts.get(context).map_err(|_| Error::InvalidContext)?;
        STACK.with_borrow_mut(|s| s.push(context));
        Ok(())
    }
    cuCtxPopCurrent_v2(context: *mut usize) {
        driver()?;
        let old = STACK.with_borrow_mut(Vec::pop).ok_or(Error::InvalidContext)?;
        offer(context, old);
        Ok(())
    }
    cuCtxGetCurrent(context: *mut usize) {
        driver()?;
        put(context, current_handle())
    }
    cuCtxSetCurrent(context: usize) {
        let d = driver()?;
        if context != 0 {
            d.contexts.get(context).map_err(|_| Error::InvalidContext)?;
        }
        STACK.with_borrow_mut(|s| {
            s.pop();
            if context != 0 {
                s.push(context);
            }
        });
        Ok(())
    }
    cuCtxGetDevice(device: *mut c_int) { put(device, current()?.1.device as c_int) }
    cuCtxGetDevice_v2(device: *mut c_int, context: usize) { put(device, named(context)?.device as c_int) }
    cuCtxGetFlags(flags: *mut c_uint) { put(flags, current()?.1.flags) }
    cuCtxGetId(context: usize, id: *mut u64) {
        let d = driver()?;
        let context = if context == 0 { current_handle() } else { context };
        d.contexts.get(context).map_err(|_| Error::ContextIsDestroyed)?;
        put(id, context as u64)
    }
    cuCtxGetApiVersion(context: usize, version: *mut c_uint) {
        let d = driver()?;
        if context != 0 {
            d.contexts.get(context).map_err(|_| Error::InvalidContext)?;
        }
        put(version, 3020) // that of the newest contexts
    }
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        current()?;
        offer(least, 0);
        offer(greatest, 0);
        Ok(())
    }
    cuCtxGetLimit(value: *mut usize, limit: c_uint) {
        let (_, c) = current()?;
        let known = c.limits.get(limit as usize).ok_or(Error::UnsupportedLimit)?;
        put(value, known.load(Ordering::Relaxed))
    }
    cuCtxSetLimit(limit: c_uint, value: usize) {
        let (_, c) = current()?;
        let known = c.limits.get(limit as usize).ok_or(Error::UnsupportedLimit)?;
        known.store(value, Ordering::Relaxed);
        Ok(())
    }
    cuCtxSynchronize() { current()?.1.synchronize() }
    cuCtxSynchronize_v2(context: usize) { named(context)?.synchronize() }
    cuCtxEnablePeerAccess(peer_context: usize, flags: c_uint) {
        let (c, other) = peer(peer_context)?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        if other.device == c.device {
            return Err(Error::InvalidDevice);
        }
        if !driver()?.reaches(c.device, other.device) {
            return Err(Error::PeerAccessUnsupported);
        }
        if !c.peers.lock().unwrap().insert(peer_context) {
            return Err(Error::PeerAccessAlreadyEnabled);
        }
        driver()?.machine.space().set_peer(other.device, c.device, true);
        Ok(())
    }
    cuCtxDisablePeerAccess(peer_context: usize) {
        let (c, other) = peer(peer_context)?;
        if !c.peers.lock().unwrap().remove(&peer_context) {
            return Err(Error::PeerAccessNotEnabled);
        }
        driver()?.machine.space().set_peer(other.device, c.device, false);
        Ok(())
    }
}

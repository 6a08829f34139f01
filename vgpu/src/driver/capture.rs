//! Stream capture: work that is put on a stream becomes nodes of a graph.
//!
//! A capture begins on one stream and spreads to those that wait for an event recorded in it. Each such stream has a
//! [`Tail`]: the nodes that its next one depends on. What cannot be captured makes the whole capture invalid.

use std::cell::Cell;
use std::ffi::c_uint;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;

use super::Driver;
use super::entry::{api, driver, offer, put, stream};
use super::graph::{Graph, Kind, Work};
use super::result::{Error, Res};
use super::stream::{Record, Stream};

const GLOBAL: c_uint = 0;
const RELAXED: c_uint = 2;

thread_local! {
    /// What the thread lets itself do while there are captures (`CUstreamCaptureMode`).
    static MODE: Cell<c_uint> = const { Cell::new(GLOBAL) };
}

/// A capture in progress.
pub struct Capture {
    id: u64,
    mode: c_uint,
    thread: ThreadId,
    /// Number of the stream on which it began.
    origin: u64,
    graph: Arc<Graph>,
    graph_handle: usize,
    streams: Mutex<Vec<Weak<Stream>>>,
    invalid: AtomicBool,
    ended: AtomicBool,
}

impl Capture {
    /// It cannot become a graph any more.
    pub fn invalidate(&self) {
        self.invalid.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Res<()> {
        if self.invalid.load(Ordering::Relaxed) { Err(Error::CaptureInvalidated) } else { Ok(()) }
    }

    fn end(&self, d: &Driver) {
        self.ended.store(true, Ordering::Relaxed);
        d.captures.lock().unwrap().retain(|c| c.id != self.id);
        for s in self.streams.lock().unwrap().iter().filter_map(Weak::upgrade) {
            s.capture().take_if(|t| t.capture.id == self.id);
        }
    }
}

/// Where a stream stands in a capture.
pub struct Tail {
    /// Which one.
    pub capture: Arc<Capture>,
    /// The nodes that the next one depends on, by index.
    deps: Vec<usize>,
    /// Their handles, for a program that asks.
    handles: Vec<usize>,
}

impl Tail {
    /// Adds a node.
    pub fn push(&mut self, kind: Kind, work: Work) -> Res<()> {
        self.capture.check()?;
        self.deps = vec![self.capture.graph.add(kind, work, self.deps.clone())];
        Ok(())
    }

    /// The record of an event at this place.
    pub fn record(&self) -> Res<Record> {
        self.capture.check()?;
        Ok(Record::Captured(self.capture.clone(), self.deps.clone()))
    }
}

impl Driver {
    /// True if a graph is still being captured.
    pub(super) fn is_captured_to(&self, graph: &Arc<Graph>) -> bool {
        self.captures.lock().unwrap().iter().any(|c| Arc::ptr_eq(&c.graph, graph))
    }

    /// A call that could disturb a capture, such as an allocation, is refused while there is one that the thread's mode
    /// counts, and makes it invalid.
    pub(super) fn prohibit_in_capture(&self) -> Res<()> {
        let (mode, me) = (MODE.get(), std::thread::current().id());
        let counts = |c: &&Arc<Capture>| {
            let mine = c.thread == me && c.mode != RELAXED;
            mode != RELAXED && (mine || mode == GLOBAL && c.mode == GLOBAL)
        };
        let all = self.captures.lock().unwrap();
        let disturbed: Vec<_> = all.iter().filter(counts).collect();
        disturbed.iter().for_each(|c| c.invalidate());
        if disturbed.is_empty() { Ok(()) } else { Err(Error::CaptureUnsupported) }
    }
}

/// `cuStreamWaitEvent` with an event of a capture: the stream joins it.
pub fn join(s: &Arc<Stream>, is_default: bool, from: &Arc<Capture>, nodes: &[usize]) -> Res<()> {
    if from.ended.load(Ordering::Relaxed) {
        return Err(Error::CapturedEvent);
    }
    from.check()?;
    if is_default {
        from.invalidate();
        return Err(Error::CaptureImplicit);
    }
    let mut mine = s.capture();
    match mine.as_mut() {
        Some(t) if t.capture.id == from.id => {
            let new: Vec<_> = nodes.iter().filter(|n| !t.deps.contains(n)).copied().collect();
            t.deps.extend(new);
        }
        Some(t) => {
            t.capture.invalidate();
            from.invalidate();
            return Err(Error::CaptureMerge);
        }
        None => {
            from.streams.lock().unwrap().push(Arc::downgrade(s));
            *mine = Some(Tail { capture: from.clone(), deps: nodes.to_vec(), handles: Vec::new() });
        }
    }
    Ok(())
}

/// Status (`CUstreamCaptureStatus`) of a capture.
fn status(c: &Capture) -> c_uint {
    if c.check().is_ok() { 1 } else { 2 }
}

/// What `cuStreamGetCaptureInfo` gives, in all its versions.
struct Info {
    status: *mut c_uint,
    id: *mut u64,
    graph: *mut usize,
    deps: *mut *const usize,
    n: *mut usize,
}

impl Info {
    unsafe fn give(&self, h: usize) -> Res<()> {
        let (_, _, s) = stream(h)?;
        let mut tail = s.capture();
        // SAFETY: the caller's pointers are as the driver API asks.
        unsafe {
            put(self.status, tail.as_ref().map_or(0, |t| status(&t.capture)))?;
            if let Some(t) = tail.as_mut().filter(|t| t.capture.check().is_ok()) {
                t.handles = t.capture.graph.handles(&t.deps);
                offer(self.id, t.capture.id);
                offer(self.graph, t.capture.graph_handle);
                offer(self.deps, t.handles.as_ptr());
                offer(self.n, t.handles.len());
            }
        }
        Ok(())
    }
}

/// Ends a capture that is sound; an error says why it is not.
fn finish(c: &Capture, s: &Stream, deps: &[usize]) -> Res<usize> {
    if c.origin != s.id {
        return Err(Error::CaptureUnmatched);
    }
    if c.mode != RELAXED && c.thread != std::thread::current().id() {
        return Err(Error::CaptureWrongThread);
    }
    c.check()?;
    // What nobody depends on must lead to the place where the capture ends: else a branch would be left behind.
    if c.graph.sinks().iter().any(|n| !deps.contains(n)) {
        return Err(Error::CaptureUnjoined);
    }
    Ok(c.graph_handle)
}

api! {
    cuStreamBeginCapture_v2(h: usize, mode: c_uint) {
        let (d, c, s) = stream(h)?;
        if mode > RELAXED {
            return Err(Error::InvalidValue);
        }
        if Arc::ptr_eq(&s, &c.default) {
            return Err(Error::CaptureUnsupported);
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut mine = s.capture();
        if mine.is_some() {
            return Err(Error::IllegalState);
        }
        let graph = Arc::new(Graph::default());
        let capture = Arc::new(Capture {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            mode,
            thread: std::thread::current().id(),
            origin: s.id,
            graph_handle: d.graphs.add(graph.clone()),
            graph,
            streams: Mutex::new(vec![Arc::downgrade(&s)]),
            invalid: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        d.captures.lock().unwrap().push(capture.clone());
        *mine = Some(Tail { capture, deps: Vec::new(), handles: Vec::new() });
        Ok(())
    }
    cuStreamEndCapture(h: usize, graph: *mut usize) {
        let (d, _, s) = stream(h)?;
        put(graph, 0)?;
        let (c, deps) = match &*s.capture() {
            Some(t) => (t.capture.clone(), t.deps.clone()),
            None => return Err(Error::IllegalState),
        };
        match finish(&c, &s, &deps) {
            Err(e @ (Error::CaptureUnmatched | Error::CaptureWrongThread)) => {
                c.invalidate();
                Err(e)
            }
            done => {
                c.end(d);
                if done.is_err() {
                    d.graphs.remove(c.graph_handle)?;
                }
                put(graph, done?)
            }
        }
    }
    cuStreamIsCapturing(h: usize, to: *mut c_uint) {
        let (_, c, s) = stream(h)?;
        // The default stream would depend on every blocking one.
        if Arc::ptr_eq(&s, &c.default)
            && c.streams().iter().any(|s| s.is_blocking() && s.capture().is_some())
        {
            return Err(Error::CaptureImplicit);
        }
        let status = s.capture().as_ref().map_or(0, |t| status(&t.capture));
        put(to, status)
    }
    cuStreamGetCaptureInfo_v2(h: usize, status: *mut c_uint, id: *mut u64, graph: *mut usize, deps: *mut *const usize, n: *mut usize) {
        Info { status, id, graph, deps, n }.give(h)
    }
    cuStreamGetCaptureInfo_v3(h: usize, status: *mut c_uint, id: *mut u64, graph: *mut usize, deps: *mut *const usize, edges: *mut *const u8, n: *mut usize) {
        Info { status, id, graph, deps, n }.give(h)?;
        offer(edges, std::ptr::null()); // ordinary edges have no data
        Ok(())
    }
    cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        driver()?;
        if mode.is_null() || *mode > RELAXED {
            return Err(Error::InvalidValue);
        }
        *mode = MODE.replace(*mode);
        Ok(())
    }
}

//! Streams and events, as programs use them, and memory operations of streams.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::capture;
use super::entry::{api, current, driver, put, stream};
use super::graph::Kind;
use super::result::{Error, Res};
use super::stream::{Event, Mark, Record, Stream};

/// Flags of events: wait by blocking, take no times.
const EVENT_FLAGS: c_uint = 3;
const EVENT_NO_TIMES: c_uint = 2;
/// Flag of a record or wait that is a node of its own in a graph.
const EXTERNAL: c_uint = 1;

fn create(to: *mut usize, flags: c_uint, priority: c_int) -> Res<()> {
    let (d, c) = current()?;
    if flags > 1 {
        return Err(Error::InvalidValue);
    }
    let new = Arc::new(Stream::new(flags, priority).map_err(|_| Error::OutOfMemory)?);
    c.adopt(&new);
    // SAFETY: the caller's pointer is as the driver API asks.
    unsafe { put(to, d.streams.add(Arc::new((c, new)))) }
}

fn record(event: usize, h: usize, flags: c_uint) -> Res<()> {
    let (d, c, s) = stream(h)?;
    let event = d.events.get(event)?;
    if flags > EXTERNAL {
        return Err(Error::InvalidValue);
    }
    let captured = s.capture().as_ref().map(|t| t.record()).transpose()?;
    event.record(match captured {
        Some(_) if flags == EXTERNAL => return Err(Error::NotSupported),
        Some(record) => record,
        None => Record::Mark(c.mark(&s)?),
    });
    Ok(())
}

fn wait_event(h: usize, event: usize, flags: c_uint) -> Res<()> {
    let (d, c, s) = stream(h)?;
    if flags > EXTERNAL {
        return Err(Error::InvalidValue);
    }
    match d.events.get(event)?.last() {
        Record::Never => Ok(()),
        Record::Captured(from, nodes) => {
            capture::join(&s, Arc::ptr_eq(&s, &c.default), &from, &nodes)
        }
        Record::Mark(_) if s.capture().is_some() && flags == EXTERNAL => Err(Error::NotSupported),
        // A graph cannot wait for what happened, or not, outside of it.
        Record::Mark(_) if s.invalidate_capture() => Err(Error::CaptureIsolation),
        Record::Mark(mark) => {
            s.wait_for(&mark);
            Ok(())
        }
    }
}

/// The mark of an event's last record; asking for that of a captured one spoils the capture.
fn last(event: usize) -> Res<Option<Arc<Mark>>> {
    match current()?.0.events.get(event)?.last() {
        Record::Never => Ok(None),
        Record::Mark(m) => Ok(Some(m)),
        Record::Captured(capture, _) => {
            capture.invalidate();
            Err(Error::CapturedEvent)
        }
    }
}

/// A number in device memory that a stream writes or waits for.
trait Word: Copy + Send + Sync + 'static {
    /// The signed difference's sign, as `CU_STREAM_WAIT_VALUE_GEQ` compares.
    fn reached(self, wanted: Self, how: c_uint) -> bool;
    unsafe fn load(at: u64) -> Self;
    unsafe fn store(self, at: u64);
}

macro_rules! word {
    ($ty:ty, $signed:ty, $atomic:ty) => {
        impl Word for $ty {
            fn reached(self, wanted: $ty, how: c_uint) -> bool {
                match how {
                    0 => self.wrapping_sub(wanted) as $signed >= 0,
                    1 => self == wanted,
                    2 => self & wanted != 0,
                    _ => !(self | wanted) != 0,
                }
            }
            unsafe fn load(at: u64) -> $ty {
                // SAFETY: the caller checked the address; kernels access it by host atomics too.
                unsafe { <$atomic>::from_ptr(at as *mut $ty) }.load(Ordering::Acquire)
            }
            unsafe fn store(self, at: u64) {
                // SAFETY: as above.
                unsafe { <$atomic>::from_ptr(at as *mut $ty) }.store(self, Ordering::Release)
            }
        }
    };
}
word!(u32, i32, AtomicU32);
word!(u64, i64, AtomicU64);

fn check_word<T>(at: u64) -> Res<()> {
    let (d, c) = current()?;
    let n = size_of::<T>() as u64;
    let fine = d.machine.space().access(at, n, c.device, true);
    let fine = fine.is_some_and(|r| r.kind != crate::mem::space::Kind::Multicast);
    if fine && at.is_multiple_of(n) { Ok(()) } else { Err(Error::InvalidValue) }
}

fn write_value<T: Word>(h: usize, at: u64, value: T, flags: c_uint) -> Res<()> {
    let (_, c, s) = stream(h)?;
    check_word::<T>(at)?;
    // Without the barrier that flag 1 leaves out, a write is allowed to come later, not asked to.
    if flags > 1 {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the address was checked.
    c.submit(&s, Kind::BatchMemOp, move || unsafe { value.store(at) })
}

fn wait_value<T: Word>(h: usize, at: u64, value: T, flags: c_uint) -> Res<()> {
    const FLUSH: c_uint = 1 << 30;
    let (d, c, s) = stream(h)?;
    check_word::<T>(at)?;
    let how = flags & !FLUSH;
    if how > 3 {
        return Err(Error::InvalidValue);
    }
    let (patience, error) = (d.machine.config().watchdog, c.error.clone());
    c.submit(&s, Kind::BatchMemOp, move || {
        let start = Instant::now();
        // SAFETY: the address was checked.
        while !unsafe { T::load(at) }.reached(value, how) {
            if start.elapsed() > patience {
                eprintln!("vgpu: a stream waited {patience:?} for a value at {at:#x}");
                error.lock().unwrap().get_or_insert(Error::LaunchTimeout);
                return;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    })
}

api! {
    cuStreamCreate(s: *mut usize, flags: c_uint) { create(s, flags, 0) }
    cuStreamCreateWithPriority(s: *mut usize, flags: c_uint, _priority: c_int) {
        create(s, flags, 0) // there is one priority, and others are brought to the nearest, as documented
    }
    cuStreamDestroy_v2(s: usize) {
        let owner = driver()?.streams.remove(s)?;
        owner.1.invalidate_capture();
        // Work that is queued is still done: the thread ends after it.
        owner.0.abandon(&owner.1);
        Ok(())
    }
    cuStreamSynchronize(s: usize) {
        let (_, c, s) = stream(s)?;
        if s.invalidate_capture() {
            return Err(Error::CaptureUnsupported);
        }
        c.mark(&s)?.wait();
        c.check()
    }
    cuStreamQuery(s: usize) {
        let (_, c, s) = stream(s)?;
        if s.invalidate_capture() {
            return Err(Error::CaptureUnsupported);
        }
        if c.is_idle(&s)? { c.check() } else { Err(Error::NotReady) }
    }
    cuStreamGetCtx(s: usize, context: *mut usize) {
        let (_, c, _) = stream(s)?;
        put(context, c.handle.get().copied().unwrap_or(0))
    }
    cuStreamGetCtx_v2(s: usize, context: *mut usize, green: *mut usize) {
        let (_, c, _) = stream(s)?;
        put(context, c.handle.get().copied().unwrap_or(0))?;
        put(green, 0) // no stream is of a green context
    }
    cuStreamGetDevice(s: usize, device: *mut c_int) { put(device, stream(s)?.1.device as c_int) }
    cuStreamGetFlags(s: usize, flags: *mut c_uint) { put(flags, stream(s)?.2.flags) }
    cuStreamGetPriority(s: usize, priority: *mut c_int) { put(priority, stream(s)?.2.priority) }
    cuStreamGetId(s: usize, id: *mut u64) { put(id, stream(s)?.2.id) }
    cuStreamWaitEvent(s: usize, event: usize, flags: c_uint) { wait_event(s, event, flags) }
    cuStreamWriteValue32_v2(s: usize, at: u64, value: u32, flags: c_uint) { write_value(s, at, value, flags) }
    cuStreamWriteValue64_v2(s: usize, at: u64, value: u64, flags: c_uint) { write_value(s, at, value, flags) }
    cuStreamWaitValue32_v2(s: usize, at: u64, value: u32, flags: c_uint) { wait_value(s, at, value, flags) }
    cuStreamWaitValue64_v2(s: usize, at: u64, value: u64, flags: c_uint) { wait_value(s, at, value, flags) }
    cuEventCreate(event: *mut usize, flags: c_uint) {
        let (d, _) = current()?;
        match flags {
            f if f & !EVENT_FLAGS == 0 => put(event, d.events.add(Arc::new(Event::new(f & EVENT_NO_TIMES == 0)))),
            4..8 => Err(Error::NotSupported), // events between processes
            _ => Err(Error::InvalidValue),
        }
    }
    cuEventRecord(event: usize, s: usize) { record(event, s, 0) }
    cuEventRecordWithFlags(event: usize, s: usize, flags: c_uint) { record(event, s, flags) }
    cuEventQuery(event: usize) {
        let (d, c) = current()?;
        let last = last(event)?;
        d.prohibit_in_capture()?;
        c.check()?;
        if last.is_none_or(|m| m.when().is_some()) { Ok(()) } else { Err(Error::NotReady) }
    }
    cuEventSynchronize(event: usize) {
        let (_, c) = current()?;
        if let Some(m) = last(event)? {
            m.wait();
        }
        c.check()
    }
    cuEventElapsedTime(ms: *mut f32, start: usize, end: usize) { elapsed(ms, start, end) }
    cuEventElapsedTime_v2(ms: *mut f32, start: usize, end: usize) { elapsed(ms, start, end) }
    cuEventDestroy_v2(event: usize) { driver()?.events.remove(event).map(drop) }
}

unsafe fn elapsed(ms: *mut f32, start: usize, end: usize) -> Res<()> {
    let when = |event| -> Res<Instant> {
        if !current()?.0.events.get(event)?.timed {
            return Err(Error::InvalidHandle);
        }
        last(event)?.ok_or(Error::InvalidHandle)?.when().ok_or(Error::NotReady)
    };
    let (start, end) = (when(start)?, when(end)?);
    let seconds = match end.checked_duration_since(start) {
        Some(t) => t.as_secs_f32(),
        None => -(start - end).as_secs_f32(),
    };
    // SAFETY: the caller's pointer is as the driver API asks.
    unsafe { put(ms, seconds * 1e3) }
}

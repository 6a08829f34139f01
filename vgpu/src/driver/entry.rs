//! What all entry points share: how one is written, the calling thread's context, results through pointers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_uint;
use std::sync::Arc;

use super::context::Context;
use super::result::{Error, Res};
use super::stream::Stream;
use super::{DRIVER, Driver};

thread_local! {
    /// The thread's stack of contexts; the last one is current.
    pub(super) static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    /// The thread's default streams, by context.
    static PER_THREAD: RefCell<HashMap<usize, Arc<Stream>>> = RefCell::default();
}

pub(super) fn code(r: Res<()>) -> c_uint {
    r.map_or_else(|e| e as c_uint, |()| 0)
}

pub(super) fn driver() -> Res<&'static Driver> {
    DRIVER.get().ok_or(Error::NotInitialized)
}

/// Handle of the current context, 0 if there is none.
pub(super) fn current_handle() -> usize {
    STACK.with_borrow(|s| s.last().copied().unwrap_or(0))
}

/// The current context, if nothing has gone wrong in it.
pub(super) fn current() -> Res<(&'static Driver, Arc<Context>)> {
    let d = driver()?;
    let c = d.contexts.get(current_handle()).map_err(|_| Error::InvalidContext)?;
    c.check()?;
    Ok((d, c))
}

/// The stream of a handle, and the context that it belongs to.
pub(super) fn stream(h: usize) -> Res<(&'static Driver, Arc<Context>, Arc<Stream>)> {
    let (d, c) = current()?;
    match h {
        // The legacy default stream, by both of its names.
        0 | 1 => {
            let s = c.default.clone();
            Ok((d, c, s))
        }
        // The thread's own default stream.
        2 => {
            let key = current_handle();
            let s = PER_THREAD.with_borrow(|all| all.get(&key).cloned());
            let s = match s {
                Some(s) => s,
                None => {
                    let new = Arc::new(Stream::new(0, 0).map_err(|_| Error::OutOfMemory)?);
                    c.adopt(&new);
                    PER_THREAD.with_borrow_mut(|all| all.insert(key, new.clone()));
                    new
                }
            };
            Ok((d, c, s))
        }
        _ => {
            let owner = d.streams.get(h)?;
            owner.0.check()?;
            Ok((d, owner.0.clone(), owner.1.clone()))
        }
    }
}

/// Writes a result; a null pointer is the caller's mistake.
///
/// # Safety
/// The pointer is null or good for a write.
pub(super) unsafe fn put<T>(p: *mut T, x: T) -> Res<()> {
    if p.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller's promise.
    unsafe { p.write(x) };
    Ok(())
}

/// Writes a result that the caller may not want.
///
/// # Safety
/// The pointer is null or good for a write.
pub(super) unsafe fn offer<T>(p: *mut T, x: T) {
    if !p.is_null() {
        // SAFETY: the caller's promise.
        unsafe { p.write(x) };
    }
}

/// An array that the caller passes: a null pointer only without elements.
///
/// # Safety
/// The pointer is null or good for reads of `n` elements.
pub(super) unsafe fn slice<'a, T>(p: *const T, n: usize) -> Res<&'a [T]> {
    match (n, p.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(Error::InvalidValue),
        // SAFETY: the caller's promise.
        _ => Ok(unsafe { std::slice::from_raw_parts(p, n) }),
    }
}

/// A function that fails on a device, so that a program's way to live with that can be tested.
pub(super) struct Refusal {
    function: String,
    device: u32,
}

impl Refusal {
    /// Reads VGPU_REFUSE: FUNCTION@DEVICE.
    pub fn from_environment() -> Option<Self> {
        let text = std::env::var("VGPU_REFUSE").ok()?;
        let parsed = text.split_once('@').and_then(|(function, device)| {
            Some(Self { function: function.to_owned(), device: device.parse().ok()? })
        });
        if parsed.is_none() {
            eprintln!("vgpu: VGPU_REFUSE={text} is not FUNCTION@DEVICE; nothing is refused");
        }
        parsed
    }
}

/// Fails if this function is refused on the calling thread's device.
pub(super) fn allowed(function: &str) -> Res<()> {
    let Some(driver) = DRIVER.get() else { return Ok(()) };
    let Some(refusal) = driver.refusal.as_ref().filter(|r| r.function == function) else {
        return Ok(());
    };
    match driver.contexts.get(current_handle()) {
        Ok(context) if context.device == refusal.device => Err(Error::OutOfMemory),
        _ => Ok(()),
    }
}

/// Defines entry points: C functions whose bodies give a `Res<()>`.
macro_rules! api {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> std::ffi::c_uint {
            // SAFETY: the caller keeps the driver API's contract for its pointers.
            #[allow(unused_unsafe, reason = "some entry points take no pointers")]
            let body = || -> crate::driver::result::Res<()> { unsafe { $body } };
            let result = crate::driver::entry::allowed(stringify!($name)).and_then(|()| body());
            crate::driver::entry::code(result)
        }
    )* };
}
pub(super) use api;

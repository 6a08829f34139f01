//! The current device of a thread: that of its current context, as the driver keeps it.
//!
//! So a program may mix both APIs: what it makes current by `cuCtxSetCurrent` is what the runtime API works on.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::Mutex;

use crate::driver;
use crate::error::Res;

/// Primary contexts that this library holds.
static RETAINED: Mutex<Option<HashMap<c_int, usize>>> = Mutex::new(None);

/// Starts the driver. Doing it again is nothing.
pub fn init() -> Res<()> {
    // SAFETY: takes no pointers.
    unsafe { driver::cuInit(0) }
}

/// The primary context of a device.
pub fn primary(device: c_int) -> Res<usize> {
    init()?;
    let mut retained = RETAINED.lock().unwrap();
    let retained = retained.get_or_insert_default();
    if let Some(&context) = retained.get(&device) {
        return Ok(context);
    }
    let mut context = 0;
    // SAFETY: writes a handle to a local.
    unsafe { driver::cuDevicePrimaryCtxRetain(&mut context, device)? };
    retained.insert(device, context);
    Ok(context)
}

/// Forgets a primary context, which was destroyed.
pub fn forget(device: c_int) {
    if let Some(retained) = RETAINED.lock().unwrap().as_mut() {
        retained.remove(&device);
    }
}

/// Makes a device the thread's current one.
pub fn set(device: c_int) -> Res<()> {
    let context = primary(device)?;
    // SAFETY: takes no pointers.
    unsafe { driver::cuCtxSetCurrent(context) }
}

/// The thread's current device; 0 if none was chosen.
pub fn device() -> Res<c_int> {
    init()?;
    let (mut context, mut device) = (0, 0);
    // SAFETY: writes to locals.
    unsafe {
        driver::cuCtxGetCurrent(&mut context)?;
        if context != 0 {
            driver::cuCtxGetDevice(&mut device)?;
        }
    }
    Ok(device)
}

/// The thread's current device, with a context: what every call that works on a device begins with.
pub fn ensure() -> Res<c_int> {
    init()?;
    let mut context = 0;
    // SAFETY: writes to a local.
    unsafe { driver::cuCtxGetCurrent(&mut context)? };
    if context == 0 {
        set(0)?;
    }
    device()
}

//! `cudaError_t`: its names, and the last error of a thread.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_uint};

/// A `cudaError_t` that is not success. A `CUresult` means the same under the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error(c_uint);

/// What calls of this crate return.
pub type Res<T> = Result<T, Error>;

impl Error {
    pub const INVALID_VALUE: Error = Error(1);
    pub const INVALID_CONFIGURATION: Error = Error(9);
    pub const INVALID_SYMBOL: Error = Error(13);
    pub const INVALID_MEMCPY_DIRECTION: Error = Error(21);
    pub const INSUFFICIENT_DRIVER: Error = Error(35);
    pub const CALL_REQUIRES_NEWER_DRIVER: Error = Error(36);
    pub const MISSING_CONFIGURATION: Error = Error(52);
    pub const INVALID_DEVICE_FUNCTION: Error = Error(98);
    pub const INVALID_DEVICE: Error = Error(101);
    pub const INVALID_KERNEL_IMAGE: Error = Error(200);
    pub const NO_KERNEL_IMAGE_FOR_DEVICE: Error = Error(209);

    /// The result of a driver call.
    pub fn check(code: c_uint) -> Res<()> {
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }
}

thread_local! {
    static LAST: Cell<c_uint> = const { Cell::new(0) };
}

/// The code of a result; an error becomes the thread's last error.
pub fn record(result: Res<()>) -> c_uint {
    match result {
        Ok(()) => 0,
        Err(Error(code)) => {
            LAST.set(code);
            code
        }
    }
}

/// Writes a result; a null pointer is the caller's mistake.
///
/// # Safety
/// `p` is null or valid for writing a `T`.
pub unsafe fn put<T>(p: *mut T, x: T) -> Res<()> {
    if p.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: the caller's contract.
    unsafe { p.write(x) };
    Ok(())
}

/// Entry points of the runtime API: the body's error is recorded and returned.
macro_rules! api {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> std::ffi::c_uint {
            // SAFETY: the caller keeps the runtime API's contract for its pointers, which is also the driver API's.
            #[allow(unused_unsafe, reason = "some entry points take no pointers")]
            let body = || -> $crate::error::Res<()> { unsafe { $body } };
            $crate::error::record(body())
        }
    )* };
}

#[unsafe(no_mangle)]
extern "C" fn cudaGetLastError() -> c_uint {
    LAST.replace(0)
}

#[unsafe(no_mangle)]
extern "C" fn cudaPeekAtLastError() -> c_uint {
    LAST.get()
}

#[unsafe(no_mangle)]
extern "C" fn cudaGetErrorName(code: c_uint) -> *const c_char {
    known(code).map_or(c"unrecognized error code", |k| k.1).as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cudaGetErrorString(code: c_uint) -> *const c_char {
    known(code).map_or(c"unrecognized error code", |k| k.2).as_ptr()
}

type Known = (c_uint, &'static CStr, &'static CStr);

fn known(code: c_uint) -> Option<&'static Known> {
    ERRORS.iter().find(|k| k.0 == code)
}

/// What this library and a driver below it can return.
#[rustfmt::skip]
const ERRORS: &[Known] = &[
    (0, c"cudaSuccess", c"no error"),
    (1, c"cudaErrorInvalidValue", c"invalid argument"),
    (2, c"cudaErrorMemoryAllocation", c"out of memory"),
    (3, c"cudaErrorInitializationError", c"initialization error"),
    (4, c"cudaErrorCudartUnloading", c"driver shutting down"),
    (9, c"cudaErrorInvalidConfiguration", c"invalid configuration argument"),
    (12, c"cudaErrorInvalidPitchValue", c"invalid pitch"),
    (13, c"cudaErrorInvalidSymbol", c"invalid device symbol"),
    (21, c"cudaErrorInvalidMemcpyDirection", c"invalid direction of a copy"),
    (35, c"cudaErrorInsufficientDriver", c"no CUDA driver, or too old a one"),
    (36, c"cudaErrorCallRequiresNewerDriver", c"the driver lacks what this call needs"),
    (52, c"cudaErrorMissingConfiguration", c"launch without a configuration"),
    (98, c"cudaErrorInvalidDeviceFunction", c"invalid device function"),
    (100, c"cudaErrorNoDevice", c"no CUDA device"),
    (101, c"cudaErrorInvalidDevice", c"invalid device ordinal"),
    (200, c"cudaErrorInvalidKernelImage", c"invalid device code"),
    (201, c"cudaErrorDeviceUninitialized", c"invalid device context"),
    (208, c"cudaErrorAlreadyMapped", c"already mapped"),
    (209, c"cudaErrorNoKernelImageForDevice", c"no kernel image for this device"),
    (211, c"cudaErrorNotMapped", c"not mapped"),
    (215, c"cudaErrorUnsupportedLimit", c"unsupported limit"),
    (217, c"cudaErrorPeerAccessUnsupported", c"no peer access between these devices"),
    (218, c"cudaErrorInvalidPtx", c"PTX that cannot be loaded"),
    (222, c"cudaErrorUnsupportedPtxVersion", c"unsupported PTX version"),
    (300, c"cudaErrorInvalidSource", c"invalid device code source"),
    (301, c"cudaErrorFileNotFound", c"file not found"),
    (302, c"cudaErrorSharedObjectSymbolNotFound", c"symbol of a shared object not found"),
    (304, c"cudaErrorOperatingSystem", c"a call to the operating system failed"),
    (400, c"cudaErrorInvalidResourceHandle", c"invalid resource handle"),
    (401, c"cudaErrorIllegalState", c"not in the right state for this call"),
    (500, c"cudaErrorSymbolNotFound", c"named symbol not found"),
    (600, c"cudaErrorNotReady", c"not ready"),
    (700, c"cudaErrorIllegalAddress", c"a kernel accessed an illegal address"),
    (701, c"cudaErrorLaunchOutOfResources", c"too many resources for a launch"),
    (702, c"cudaErrorLaunchTimeout", c"a kernel made no progress and was given up"),
    (704, c"cudaErrorPeerAccessAlreadyEnabled", c"peer access is already enabled"),
    (705, c"cudaErrorPeerAccessNotEnabled", c"peer access is not enabled"),
    (708, c"cudaErrorSetOnActiveProcess", c"too late: the device is in use"),
    (709, c"cudaErrorContextIsDestroyed", c"the context is destroyed"),
    (710, c"cudaErrorAssert", c"an assertion in a kernel failed"),
    (712, c"cudaErrorHostMemoryAlreadyRegistered", c"host memory is already registered"),
    (713, c"cudaErrorHostMemoryNotRegistered", c"host memory is not registered"),
    (715, c"cudaErrorIllegalInstruction", c"a kernel ran an illegal instruction"),
    (716, c"cudaErrorMisalignedAddress", c"a kernel accessed a misaligned address"),
    (717, c"cudaErrorInvalidAddressSpace", c"a kernel used an address of the wrong space"),
    (719, c"cudaErrorLaunchFailure", c"a kernel failed"),
    (720, c"cudaErrorCooperativeLaunchTooLarge", c"too many blocks for a cooperative launch"),
    (800, c"cudaErrorNotPermitted", c"not permitted"),
    (801, c"cudaErrorNotSupported", c"not supported"),
    (900, c"cudaErrorStreamCaptureUnsupported", c"not permitted while a stream is capturing"),
    (901, c"cudaErrorStreamCaptureInvalidated", c"an earlier error invalidated the capture"),
    (902, c"cudaErrorStreamCaptureMerge", c"two captures cannot be merged"),
    (903, c"cudaErrorStreamCaptureUnmatched", c"the capture did not begin in this stream"),
    (904, c"cudaErrorStreamCaptureUnjoined", c"the capture has work that was not joined"),
    (905, c"cudaErrorStreamCaptureIsolation", c"a dependency crosses the capture's boundary"),
    (906, c"cudaErrorStreamCaptureImplicit", c"a capture would depend on the legacy stream"),
    (907, c"cudaErrorCapturedEvent", c"the event was last recorded in a capture"),
    (908, c"cudaErrorStreamCaptureWrongThread", c"the capture began in another thread"),
    (909, c"cudaErrorTimeout", c"timed out"),
    (910, c"cudaErrorGraphExecUpdateFailure", c"the graph differs too much for an update"),
    (912, c"cudaErrorInvalidClusterSize", c"invalid cluster size"),
    (999, c"cudaErrorUnknown", c"unknown error"),
];

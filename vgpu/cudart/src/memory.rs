//! Memory: allocation, host memory, pools, pointers, handles between processes.

use std::ffi::{c_int, c_uint, c_void};
#[cfg(test)]
use std::mem::offset_of;

use crate::context;
use crate::driver::{self, IpcHandle};
use crate::error::{Error, Res, put};

/// Rows of a pitched allocation begin at multiples of this.
const PITCH: usize = 512;

/// `cudaPointerAttributes`.
#[repr(C)]
struct PointerAttributes {
    kind: c_uint,
    device: c_int,
    device_pointer: u64,
    host_pointer: u64,
    reserved: [u64; 8],
}

/// `cudaMemoryTypeHost` and `cudaMemoryTypeDevice`; the driver numbers them alike.
const HOST: c_uint = 1;
const DEVICE: c_uint = 2;

/// Device memory; none for no bytes, as the API says.
unsafe fn alloc(at: *mut u64, bytes: usize) -> Res<()> {
    context::ensure()?;
    let mut new = 0;
    if bytes > 0 {
        // SAFETY: writes to a local.
        unsafe { driver::cuMemAlloc_v2(&mut new, bytes)? };
    }
    // SAFETY: the caller's contract.
    unsafe { put(at, new) }
}

unsafe fn host_alloc(at: *mut *mut c_void, bytes: usize, flags: c_uint) -> Res<()> {
    context::ensure()?;
    let mut new = std::ptr::null_mut();
    if bytes > 0 {
        // SAFETY: writes to a local.
        unsafe { driver::cuMemHostAlloc(&mut new, bytes, flags)? };
    }
    // SAFETY: the caller's contract.
    unsafe { put(at, new) }
}

/// One attribute of a pointer; none if the driver does not know the pointer.
unsafe fn pointer<T: Default>(attribute: c_uint, at: u64) -> Res<Option<T>> {
    let mut value = T::default();
    // SAFETY: the callers below ask for the type that the attribute has.
    match unsafe { driver::cuPointerGetAttribute((&raw mut value).cast(), attribute, at) } {
        Ok(()) => Ok(Some(value)),
        Err(Error::INVALID_VALUE) => Ok(None),
        Err(e) => Err(e),
    }
}

unsafe fn pointer_attributes(at: u64) -> Res<PointerAttributes> {
    let unregistered = PointerAttributes {
        kind: 0,
        device: -2,
        device_pointer: 0,
        host_pointer: at,
        reserved: [0; 8],
    };
    // SAFETY: 2 MEMORY_TYPE and 9 DEVICE_ORDINAL are ints, 3 DEVICE_POINTER is an address.
    unsafe {
        let Some(kind) = pointer::<c_uint>(2, at)? else {
            return Ok(unregistered);
        };
        Ok(PointerAttributes {
            kind: if kind == HOST { HOST } else { DEVICE },
            device: pointer(9, at)?.unwrap_or(-2),
            device_pointer: pointer(3, at)?.unwrap_or(0),
            // Device memory has no address that the host may use, though a virtual GPU's would do.
            host_pointer: if kind == HOST { at } else { 0 },
            ..unregistered
        })
    }
}

api! {
    cudaMalloc(at: *mut u64, bytes: usize) { alloc(at, bytes) }
    cudaMallocPitch(at: *mut u64, pitch: *mut usize, width: usize, height: usize) {
        let row = width.checked_next_multiple_of(PITCH).ok_or(Error::INVALID_VALUE)?;
        put(pitch, row)?;
        alloc(at, row.checked_mul(height).ok_or(Error::INVALID_VALUE)?)
    }
    cudaFree(at: u64) {
        context::ensure()?;
        if at == 0 { Ok(()) } else { driver::cuMemFree_v2(at) }
    }
    cudaMallocHost(at: *mut *mut c_void, bytes: usize) { host_alloc(at, bytes, 0) }
    cudaHostAlloc(at: *mut *mut c_void, bytes: usize, flags: c_uint) { host_alloc(at, bytes, flags) }
    cudaFreeHost(at: *mut c_void) {
        context::ensure()?;
        if at.is_null() { Ok(()) } else { driver::cuMemFreeHost(at) }
    }
    cudaHostRegister(at: *mut c_void, bytes: usize, flags: c_uint) {
        context::ensure()?;
        driver::cuMemHostRegister_v2(at, bytes, flags)
    }
    cudaHostUnregister(at: *mut c_void) {
        context::ensure()?;
        driver::cuMemHostUnregister(at)
    }
    cudaHostGetDevicePointer(at: *mut u64, host: *mut c_void, flags: c_uint) {
        context::ensure()?;
        driver::cuMemHostGetDevicePointer_v2(at, host, flags)
    }
    cudaHostGetFlags(flags: *mut c_uint, host: *mut c_void) {
        context::ensure()?;
        driver::cuMemHostGetFlags(flags, host)
    }
    cudaMemGetInfo(free: *mut usize, total: *mut usize) {
        context::ensure()?;
        driver::cuMemGetInfo_v2(free, total)
    }
    cudaMallocAsync(at: *mut u64, bytes: usize, stream: usize) {
        context::ensure()?;
        driver::cuMemAllocAsync(at, bytes, stream)
    }
    cudaFreeAsync(at: u64, stream: usize) {
        context::ensure()?;
        driver::cuMemFreeAsync(at, stream)
    }
    cudaDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) {
        context::init()?;
        driver::cuDeviceGetDefaultMemPool(pool, device)
    }
    cudaDeviceGetMemPool(pool: *mut usize, device: c_int) {
        context::init()?;
        driver::cuDeviceGetMemPool(pool, device)
    }
    cudaDeviceSetMemPool(device: c_int, pool: usize) {
        context::init()?;
        driver::cuDeviceSetMemPool(device, pool)
    }
    cudaMemPoolTrimTo(pool: usize, keep: usize) { driver::cuMemPoolTrimTo(pool, keep) }
    cudaMemPoolSetAttribute(pool: usize, attribute: c_uint, value: *mut c_void) {
        driver::cuMemPoolSetAttribute(pool, attribute, value)
    }
    cudaMemPoolGetAttribute(pool: usize, attribute: c_uint, value: *mut c_void) {
        driver::cuMemPoolGetAttribute(pool, attribute, value)
    }
    cudaPointerGetAttributes(out: *mut PointerAttributes, at: u64) {
        context::ensure()?;
        put(out, pointer_attributes(at)?)
    }
    cudaIpcGetMemHandle(handle: *mut IpcHandle, at: u64) {
        context::ensure()?;
        driver::cuIpcGetMemHandle(handle, at)
    }
    cudaIpcOpenMemHandle(at: *mut u64, handle: IpcHandle, flags: c_uint) {
        context::ensure()?;
        driver::cuIpcOpenMemHandle_v2(at, handle, flags)
    }
    cudaIpcCloseMemHandle(at: u64) {
        context::ensure()?;
        driver::cuIpcCloseMemHandle(at)
    }
}

/// What the tests compare with the header.
#[cfg(test)]
pub const LAYOUT: &[(&str, usize)] = &[
    ("sizeof(cudaPointerAttributes)", size_of::<PointerAttributes>()),
    ("offsetof(cudaPointerAttributes, device)", offset_of!(PointerAttributes, device)),
    ("offsetof(cudaPointerAttributes, hostPointer)", offset_of!(PointerAttributes, host_pointer)),
    ("sizeof(cudaIpcMemHandle_t)", size_of::<IpcHandle>()),
];

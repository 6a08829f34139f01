//! Devices, versions, limits, peers, and entry points of the driver.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::error::{Error, Res, put};
use crate::properties::Properties;
use crate::{context, driver, registry};

/// The first CUDA 13: what this library has is in every one of them.
const VERSION: c_int = 13000;

fn exists(device: c_int) -> Res<()> {
    context::init()?;
    let mut count = 0;
    // SAFETY: writes to a local.
    unsafe { driver::cuDeviceGetCount(&mut count)? };
    if (0..count).contains(&device) { Ok(()) } else { Err(Error::INVALID_DEVICE) }
}

api! {
    cudaGetDeviceCount(count: *mut c_int) {
        context::init()?;
        driver::cuDeviceGetCount(count)
    }
    cudaGetDevice(device: *mut c_int) { put(device, context::device()?) }
    cudaSetDevice(device: c_int) {
        exists(device)?;
        context::set(device)
    }
    cudaInitDevice(device: c_int, _device_flags: c_uint, _flags: c_uint) {
        exists(device)?;
        context::primary(device).map(drop)
    }
    cudaDeviceSynchronize() {
        context::ensure()?;
        driver::cuCtxSynchronize()
    }
    cudaDeviceReset() {
        let device = context::device()?;
        driver::cuDevicePrimaryCtxReset_v2(device)?;
        registry::forget(device);
        context::forget(device);
        driver::cuCtxSetCurrent(0)
    }
    cudaGetDeviceProperties(properties: *mut Properties, device: c_int) {
        exists(device)?;
        put(properties, Properties::of(device)?)
    }
    cudaDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) {
        context::init()?;
        driver::cuDeviceGetAttribute(value, attribute, device)
    }
    cudaDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: c_int) {
        context::init()?;
        driver::cuDeviceGetPCIBusId(id, len, device)
    }
    cudaDeviceGetByPCIBusId(device: *mut c_int, id: *const c_char) {
        context::init()?;
        driver::cuDeviceGetByPCIBusId(device, id)
    }
    cudaDeviceGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        context::ensure()?;
        driver::cuCtxGetStreamPriorityRange(least, greatest)
    }
    cudaSetDeviceFlags(flags: c_uint) { driver::cuDevicePrimaryCtxSetFlags_v2(context::device()?, flags) }
    cudaGetDeviceFlags(flags: *mut c_uint) {
        context::ensure()?;
        driver::cuCtxGetFlags(flags)
    }
    cudaDeviceSetLimit(limit: c_uint, value: usize) {
        context::ensure()?;
        driver::cuCtxSetLimit(limit, value)
    }
    cudaDeviceGetLimit(value: *mut usize, limit: c_uint) {
        context::ensure()?;
        driver::cuCtxGetLimit(value, limit)
    }
    cudaDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) {
        context::init()?;
        driver::cuDeviceCanAccessPeer(can, device, peer)
    }
    cudaDeviceGetP2PAttribute(value: *mut c_int, attribute: c_int, from: c_int, to: c_int) {
        context::init()?;
        driver::cuDeviceGetP2PAttribute(value, attribute, from, to)
    }
    cudaDeviceEnablePeerAccess(peer: c_int, flags: c_uint) {
        exists(peer)?;
        if context::ensure()? == peer {
            return Err(Error::INVALID_DEVICE);
        }
        driver::cuCtxEnablePeerAccess(context::primary(peer)?, flags)
    }
    cudaDeviceDisablePeerAccess(peer: c_int) {
        exists(peer)?;
        context::ensure()?;
        driver::cuCtxDisablePeerAccess(context::primary(peer)?)
    }
    cudaDriverGetVersion(version: *mut c_int) { driver::cuDriverGetVersion(version) }
    cudaRuntimeGetVersion(version: *mut c_int) { put(version, VERSION) }
    cudaGetDriverEntryPoint(name: *const c_char, entry: *mut *mut c_void, flags: u64, status: *mut c_int) {
        driver::cuGetProcAddress_v2(name, entry, VERSION, flags, status)
    }
    cudaGetDriverEntryPointByVersion(name: *const c_char, entry: *mut *mut c_void, version: c_uint, flags: u64, status: *mut c_int) {
        driver::cuGetProcAddress_v2(name, entry, version as c_int, flags, status)
    }
}

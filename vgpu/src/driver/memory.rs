//! Memory of devices and memory of the host that devices see.

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::Mutex;

use super::Driver;
use super::device::TOTAL_MEMORY;
use super::entry::{api, current, offer, put};
use super::result::{Error, Res};
use crate::mem::space::{Kind, Region};

/// `CU_MEMHOSTALLOC_` and `CU_MEMHOSTREGISTER_`: portable, mapped, write-combined or I/O memory, read-only.
const HOST_FLAGS: c_uint = 0xf;

/// Flags of host memory by address, and whether it was registered.
pub(super) type HostFlags = Mutex<HashMap<u64, (c_uint, bool)>>;

fn alloc(bytes: usize) -> Res<u64> {
    let (d, c) = current()?;
    d.prohibit_in_capture()?;
    if bytes == 0 {
        return Err(Error::InvalidValue);
    }
    if bytes > TOTAL_MEMORY {
        return Err(Error::OutOfMemory);
    }
    d.machine.space().alloc(c.device, Kind::Device, bytes as u64).map_err(|_| Error::OutOfMemory)
}

/// Frees what begins at `at`, if it is of that kind and was allocated here.
pub(super) fn free(at: u64, kind: Kind) -> Res<()> {
    let (d, c) = current()?;
    d.prohibit_in_capture()?;
    let space = d.machine.space();
    let region = allocation(d, at).filter(|r| r.kind == kind).ok_or(Error::InvalidValue)?;
    let device = if kind == Kind::Host { c.device } else { region.device };
    // Freeing waits for all work of the device, as on hardware.
    for c in d.contexts.all().iter().filter(|c| c.device == device) {
        c.synchronize()?;
    }
    d.ipc.forget(at);
    d.pools.forget(at);
    if space.free(at) { Ok(()) } else { Err(Error::InvalidValue) }
}

/// The region that begins at `at`, if this process allocated it.
fn allocation(d: &Driver, at: u64) -> Option<&Region> {
    let space = d.machine.space();
    let owned = |r: &&Region| r.base == at && r.is_allocation && !d.ipc.is_imported(at);
    space.find(at, 1).filter(owned)
}

fn host_alloc(bytes: usize, flags: c_uint) -> Res<*mut c_void> {
    let (d, c) = current()?;
    d.prohibit_in_capture()?;
    if bytes == 0 || flags & !HOST_FLAGS != 0 {
        return Err(Error::InvalidValue);
    }
    let space = d.machine.space();
    let at = space.alloc(c.device, Kind::Host, bytes as u64).map_err(|_| Error::OutOfMemory)?;
    d.host.lock().unwrap().insert(at, (flags, false));
    Ok(at as *mut c_void)
}

api! {
    cuMemAlloc_v2(at: *mut u64, bytes: usize) { put(at, alloc(bytes)?) }
    cuMemFree_v2(at: u64) { if at == 0 { current().map(drop) } else { free(at, Kind::Device) } }
    cuMemGetHandleForAddressRange(_handle: *mut c_void, _at: u64, _bytes: usize, _kind: c_uint, _flags: u64) {
        Err(Error::NotSupported) // no dma-buf
    }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        current()?;
        put(free, TOTAL_MEMORY)?;
        put(total, TOTAL_MEMORY)
    }
    cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, at: u64) {
        let (d, _) = current()?;
        let (first, len) = d.allocated_range(at).ok_or(Error::NotFound)?;
        offer(base, first);
        offer(bytes, len as usize);
        Ok(())
    }
    cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, flags: c_uint) { put(at, host_alloc(bytes, flags)?) }
    cuMemAllocHost_v2(at: *mut *mut c_void, bytes: usize) { put(at, host_alloc(bytes, 0)?) }
    cuMemFreeHost(at: *mut c_void) {
        let (d, _) = current()?;
        free(at as u64, Kind::Host)?;
        d.host.lock().unwrap().remove(&(at as u64));
        Ok(())
    }
    cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: c_uint) {
        let (d, _) = current()?;
        d.prohibit_in_capture()?;
        let space = d.machine.space();
        let at = at as u64;
        let end = at.checked_add(bytes as u64).ok_or(Error::InvalidValue)?;
        if at == 0 || bytes == 0 || flags & !HOST_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        if space.contains(at) || space.contains(end - 1) || !space.register(at, bytes as u64) {
            return Err(Error::HostMemoryAlreadyRegistered);
        }
        d.host.lock().unwrap().insert(at, (flags, true));
        Ok(())
    }
    cuMemHostUnregister(at: *mut c_void) {
        let (d, _) = current()?;
        d.prohibit_in_capture()?;
        if at.is_null() {
            return Err(Error::InvalidValue);
        }
        let at = at as u64;
        if !d.host.lock().unwrap().remove(&at).is_some_and(|(_, registered)| registered) {
            return Err(Error::HostMemoryNotRegistered);
        }
        for c in d.contexts.all() {
            c.synchronize()?;
        }
        d.machine.space().unregister(at);
        Ok(())
    }
    cuMemHostGetDevicePointer_v2(to: *mut u64, at: *mut c_void, flags: c_uint) {
        let (d, _) = current()?;
        let host = d.machine.space().find(at as u64, 1).is_some_and(|r| r.kind == Kind::Host);
        if flags != 0 || !host {
            return Err(Error::InvalidValue);
        }
        put(to, at as u64) // host and devices use one address
    }
    cuMemHostGetFlags(flags: *mut c_uint, at: *mut c_void) {
        let (d, _) = current()?;
        let region = d.machine.space().find(at as u64, 1).ok_or(Error::InvalidValue)?;
        let known = d.host.lock().unwrap().get(&region.base).copied();
        put(flags, known.ok_or(Error::InvalidValue)?.0)
    }
}

impl Driver {
    /// First address and length of the allocation or mapping around an address.
    pub(super) fn allocated_range(&self, at: u64) -> Option<(u64, u64)> {
        self.machine.space().find(at, 1).map(|r| (r.base, r.len))
    }
}

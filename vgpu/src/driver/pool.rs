//! Stream-ordered memory: each device has one pool.
//!
//! An address is given at once and its bytes are there at once, which is before the stream comes to it; it is freed when
//! the stream does. A pool keeps nothing: what is freed is gone.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;

use super::device::TOTAL_MEMORY;
use super::entry::{api, driver, put, slice, stream};
use super::graph::Kind;
use super::new_handle;
use super::result::{Error, Res};
use super::vmm::{AccessDesc, Location};

/// The pools of all devices.
pub(super) struct Pools(Mutex<Vec<Pool>>);

struct Pool {
    handle: usize,
    /// Sizes by address.
    live: HashMap<u64, u64>,
    /// Which devices may access it.
    access: u64,
    used: u64,
    high: u64,
    /// Reuse by event dependencies, opportunistic, internal dependencies: kept for who asks.
    reuse: [c_int; 3],
    threshold: u64,
}

impl Pools {
    pub fn new(devices: u32) -> Pools {
        let pool = |device: u32| Pool {
            handle: new_handle(),
            live: HashMap::new(),
            access: 1u64 << device,
            used: 0,
            high: 0,
            reuse: [1; 3],
            threshold: 0,
        };
        Pools(Mutex::new((0..devices).map(pool).collect()))
    }

    /// True if an address begins an allocation of a pool.
    pub fn has(&self, at: u64) -> bool {
        self.pool_of(at) != 0
    }

    /// Handle of the pool that an address is of, or 0.
    pub fn pool_of(&self, at: u64) -> usize {
        self.0.lock().unwrap().iter().find(|p| p.live.contains_key(&at)).map_or(0, |p| p.handle)
    }

    /// An address is freed; false if it is of no pool.
    pub fn forget(&self, at: u64) -> bool {
        self.0.lock().unwrap().iter_mut().any(|p| match p.live.remove(&at) {
            Some(n) => {
                p.used -= n;
                true
            }
            None => false,
        })
    }

    fn handle(&self, device: u32) -> usize {
        self.0.lock().unwrap()[device as usize].handle
    }

    /// Does something with a pool and its device.
    fn with<R>(&self, handle: usize, f: impl FnOnce(u32, &mut Pool) -> Res<R>) -> Res<R> {
        let mut all = self.0.lock().unwrap();
        let device = all.iter().position(|p| p.handle == handle).ok_or(Error::InvalidValue)?;
        f(device as u32, &mut all[device])
    }
}

impl Pool {
    unsafe fn get(&self, which: c_uint, to: *mut c_void) -> Res<()> {
        // SAFETY: the caller passes a place for the attribute's type.
        unsafe {
            match which {
                1..=3 => put(to.cast(), self.reuse[which as usize - 1]),
                4 => put(to.cast(), self.threshold),
                5 | 7 => put(to.cast(), self.used),
                6 | 8 => put(to.cast(), self.high),
                _ => Err(Error::InvalidValue),
            }
        }
    }

    unsafe fn set(&mut self, which: c_uint, from: *const c_void) -> Res<()> {
        if from.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the caller passes a value of the attribute's type.
        unsafe {
            match which {
                1..=3 => self.reuse[which as usize - 1] = from.cast::<c_int>().read(),
                4 => self.threshold = from.cast::<u64>().read(),
                // The marks can only be reset.
                6 | 8 if from.cast::<u64>().read() == 0 => self.high = self.used,
                _ => return Err(Error::InvalidValue),
            }
        }
        Ok(())
    }
}

fn alloc(pool: Option<usize>, bytes: usize, h: usize) -> Res<u64> {
    let (d, c, s) = stream(h)?;
    if bytes == 0 {
        return Err(Error::InvalidValue);
    }
    if s.capture().is_some() {
        return Err(Error::NotSupported); // memory nodes
    }
    if bytes > TOTAL_MEMORY {
        return Err(Error::OutOfMemory);
    }
    let space = d.machine.space();
    d.pools.with(pool.unwrap_or(d.pools.handle(c.device)), |device, p| {
        let at = space.alloc_private(device, bytes as u64).map_err(|_| Error::OutOfMemory)?;
        if let Some(region) = space.find(at, 1) {
            let peers = (0..64).filter(|n| p.access >> n & 1 == 1);
            peers.for_each(|n| region.allow(n, true, true));
        }
        p.live.insert(at, bytes as u64);
        p.used += bytes as u64;
        p.high = p.high.max(p.used);
        Ok(at)
    })
}

api! {
    cuMemAllocAsync(at: *mut u64, bytes: usize, s: usize) { put(at, alloc(None, bytes, s)?) }
    cuMemAllocFromPoolAsync(at: *mut u64, bytes: usize, pool: usize, s: usize) { put(at, alloc(Some(pool), bytes, s)?) }
    cuMemFreeAsync(at: u64, s: usize) {
        let (d, c, s) = stream(s)?;
        if s.capture().is_some() {
            return Err(Error::NotSupported); // memory nodes
        }
        if !d.pools.forget(at) {
            return Err(Error::InvalidValue);
        }
        let space = d.machine.space().clone();
        c.submit(&s, Kind::Memset, move || {
            space.free(at);
        })
    }
    cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) {
        let d = driver()?;
        put(pool, d.pools.handle(d.primary(device)?.device))
    }
    cuDeviceGetMemPool(pool: *mut usize, device: c_int) {
        let d = driver()?;
        put(pool, d.pools.handle(d.primary(device)?.device))
    }
    cuDeviceSetMemPool(device: c_int, pool: usize) {
        let d = driver()?;
        // There are no others than the default ones.
        if pool == d.pools.handle(d.primary(device)?.device) { Ok(()) } else { Err(Error::InvalidValue) }
    }
    cuMemPoolTrimTo(pool: usize, _keep: usize) { driver()?.pools.with(pool, |_, _| Ok(())) }
    cuMemPoolGetAttribute(pool: usize, which: c_uint, to: *mut c_void) { driver()?.pools.with(pool, |_, p| p.get(which, to)) }
    cuMemPoolSetAttribute(pool: usize, which: c_uint, from: *const c_void) { driver()?.pools.with(pool, |_, p| p.set(which, from)) }
    cuMemPoolSetAccess(pool: usize, descs: *const AccessDesc, n: usize) {
        let d = driver()?;
        let descs = slice(descs, n)?;
        let wanted = descs.iter().map(|desc| desc.check(d)).collect::<Res<Vec<_>>>()?;
        d.pools.with(pool, |owner, p| {
            for (device, load, store) in wanted {
                if load != store || device == owner && !store {
                    return Err(Error::InvalidValue); // all or nothing, and never nothing for the owner
                }
                if load { p.access |= 1 << device } else { p.access &= !(1 << device) }
                let regions = p.live.keys().filter_map(|at| d.machine.space().find(*at, 1));
                regions.for_each(|r| r.allow(device, load, store));
            }
            Ok(())
        })
    }
    cuMemPoolGetAccess(flags: *mut c_uint, pool: usize, location: *const Location) {
        let d = driver()?;
        let device = location.as_ref().ok_or(Error::InvalidValue)?.device(d)?;
        d.pools.with(pool, |_, p| put(flags, if p.access >> device & 1 == 1 { 3 } else { 0 }))
    }
}

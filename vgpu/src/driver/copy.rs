//! Copies and fills.

use std::ffi::{c_uint, c_void};

use super::entry::{api, driver, stream};
use super::graph::Kind as NodeKind;
use super::result::{Error, Res};
use crate::mem::space::{AddressSpace, Kind};

/// True if all bytes are device or pinned memory, false if they are pageable memory of the program.
fn is_pinned(space: &AddressSpace, at: u64, len: u64) -> Res<bool> {
    let end = at.checked_add(len).ok_or(Error::InvalidValue)?;
    let mut next = at;
    // Mappings can follow each other; a copy may go over several.
    while next < end {
        match space.find(next, 1) {
            Some(r) if r.kind == Kind::Multicast || !r.is_accessible() => {
                return Err(Error::InvalidValue);
            }
            Some(r) => next = r.base + r.len,
            // A hole in device memory, or pinned memory that ends too early, is no host memory.
            None if next != at || space.contains(at) => return Err(Error::InvalidValue),
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Which side of a copy has to be memory that the driver knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
    Any,
}

/// Copies bytes between any two of device, pinned and pageable memory.
unsafe fn copy(way: Way, h: usize, to: u64, from: u64, n: usize, wait: bool) -> Res<()> {
    let (d, c, s) = stream(h)?;
    if n == 0 {
        return Ok(());
    }
    if to == 0 || from == 0 {
        return Err(Error::InvalidValue);
    }
    let space = d.machine.space();
    let (dst, src) = (is_pinned(space, to, n as u64)?, is_pinned(space, from, n as u64)?);
    let wrong = match way {
        Way::HostToDevice => !dst,
        Way::DeviceToHost => !src,
        Way::DeviceToDevice => !dst || !src,
        Way::Any => false,
    };
    if wrong {
        return Err(Error::InvalidValue);
    }
    if src || wait || s.capture().is_some() {
        c.submit(&s, NodeKind::Memcpy, move || {
            // SAFETY: device ranges were checked, host ranges are the caller's promise until the copy is done.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, n) };
        })?;
        // Into pageable memory a copy is done when the call returns.
        if (wait || !dst) && s.capture().is_none() {
            s.mark().wait();
        }
    } else {
        // SAFETY: the caller promises `n` readable bytes; they are taken now, as the API does with pageable memory.
        let staged = unsafe { std::slice::from_raw_parts(from as *const u8, n) }.to_vec();
        c.submit(&s, NodeKind::Memcpy, move || {
            // SAFETY: the destination was checked.
            unsafe { std::ptr::copy_nonoverlapping(staged.as_ptr(), to as *mut u8, n) };
        })?;
    }
    c.check()
}

/// One side of a two-dimensional copy.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Side {
    x: usize,
    y: usize,
    kind: c_uint,
    host: u64,
    device: u64,
    array: usize,
    pitch: usize,
}

impl Side {
    /// Address of the first byte.
    fn start(&self) -> Res<u64> {
        let base = match self.kind {
            1 => self.host,
            2 | 4 => self.device, // device, or any by its address
            3 => return Err(Error::NotSupported),
            _ => return Err(Error::InvalidValue),
        };
        if base == 0 {
            Err(Error::InvalidValue)
        } else {
            Ok(base + (self.y * self.pitch + self.x) as u64)
        }
    }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Copy2d {
    src: Side,
    dst: Side,
    width: usize,
    height: usize,
}

fn copy_2d(p: *const Copy2d, h: usize, wait: bool) -> Res<()> {
    // SAFETY: the caller's pointer is as the driver API asks.
    let p = unsafe { p.as_ref() }.ok_or(Error::InvalidValue)?;
    let (d, c, s) = stream(h)?;
    let (width, height) = (p.width, p.height);
    if width == 0 || height == 0 {
        return Ok(());
    }
    let pitches = (p.dst.pitch, p.src.pitch);
    if height > 1 && (pitches.0 < width || pitches.1 < width) {
        return Err(Error::InvalidValue);
    }
    let (to, from) = (p.dst.start()?, p.src.start()?);
    let span = |pitch: usize| (pitch * (height - 1) + width) as u64;
    let space = d.machine.space();
    let pinned = is_pinned(space, to, span(pitches.0))? & is_pinned(space, from, span(pitches.1))?;
    c.submit(&s, NodeKind::Memcpy, move || {
        for row in 0..height {
            let (to, from) = (to as usize + row * pitches.0, from as usize + row * pitches.1);
            // SAFETY: as in `copy`.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, width) };
        }
    })?;
    if (wait || !pinned) && s.capture().is_none() {
        s.mark().wait();
    }
    c.check()
}

fn fill<T: Copy + Send + Sync + 'static>(at: u64, x: T, n: usize, h: usize, wait: bool) -> Res<()> {
    let (d, c, s) = stream(h)?;
    let len = n.checked_mul(size_of::<T>()).ok_or(Error::InvalidValue)? as u64;
    let aligned = at.is_multiple_of(size_of::<T>() as u64);
    if n == 0 && aligned {
        return Ok(());
    }
    if !aligned || !is_pinned(d.machine.space(), at, len)? {
        return Err(Error::InvalidValue);
    }
    c.submit(&s, NodeKind::Memset, move || {
        // SAFETY: the range was checked.
        (0..n).for_each(|k| unsafe { (at as *mut T).add(k).write(x) });
    })?;
    if wait {
        s.mark().wait();
    }
    c.check()
}

/// Both contexts of a copy between peers.
fn contexts(a: usize, b: usize) -> Res<()> {
    let d = driver()?;
    d.contexts.get(a).map_err(|_| Error::InvalidContext)?;
    d.contexts.get(b).map(drop).map_err(|_| Error::InvalidContext)
}

api! {
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, n: usize, s: usize) { copy(Way::HostToDevice, s, to, from as u64, n, false) }
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, n: usize, s: usize) { copy(Way::DeviceToHost, s, to as u64, from, n, false) }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, n: usize, s: usize) { copy(Way::DeviceToDevice, s, to, from, n, false) }
    cuMemcpyAsync(to: u64, from: u64, n: usize, s: usize) { copy(Way::Any, s, to, from, n, false) }
    cuMemcpyHtoD_v2(to: u64, from: *const c_void, n: usize) { copy(Way::HostToDevice, 0, to, from as u64, n, true) }
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, n: usize) { copy(Way::DeviceToHost, 0, to as u64, from, n, true) }
    cuMemcpyDtoD_v2(to: u64, from: u64, n: usize) { copy(Way::DeviceToDevice, 0, to, from, n, true) }
    cuMemcpy(to: u64, from: u64, n: usize) { copy(Way::Any, 0, to, from, n, true) }
    cuMemcpyPeer(to: u64, to_context: usize, from: u64, from_context: usize, n: usize) {
        contexts(to_context, from_context)?;
        copy(Way::DeviceToDevice, 0, to, from, n, true)
    }
    cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, n: usize, s: usize) {
        contexts(to_context, from_context)?;
        copy(Way::DeviceToDevice, s, to, from, n, false)
    }
    cuMemcpy2D_v2(p: *const Copy2d) { copy_2d(p, 0, true) }
    cuMemcpy2DAsync_v2(p: *const Copy2d, s: usize) { copy_2d(p, s, false) }
    cuMemsetD8Async(at: u64, x: u8, n: usize, s: usize) { fill(at, x, n, s, false) }
    cuMemsetD16Async(at: u64, x: u16, n: usize, s: usize) { fill(at, x, n, s, false) }
    cuMemsetD32Async(at: u64, x: c_uint, n: usize, s: usize) { fill(at, x, n, s, false) }
    cuMemsetD8_v2(at: u64, x: u8, n: usize) { fill(at, x, n, 0, true) }
    cuMemsetD16_v2(at: u64, x: u16, n: usize) { fill(at, x, n, 0, true) }
    cuMemsetD32_v2(at: u64, x: c_uint, n: usize) { fill(at, x, n, 0, true) }
}

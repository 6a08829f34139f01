//! Copies, fills and symbols.

use std::ffi::{c_int, c_uint, c_void};

use crate::error::{Error, Res, put};
use crate::{context, driver, registry};

/// `cudaMemcpyKind`.
const HOST_TO_HOST: c_uint = 0;
const HOST_TO_DEVICE: c_uint = 1;
const DEVICE_TO_HOST: c_uint = 2;
const DEVICE_TO_DEVICE: c_uint = 3;
const DEFAULT: c_uint = 4;

/// Copies in the default stream and waits, as far as the driver does for this kind of copy.
unsafe fn copy(to: u64, from: u64, n: usize, kind: c_uint) -> Res<()> {
    context::ensure()?;
    if n == 0 {
        return Ok(());
    }
    // SAFETY: the caller's contract.
    unsafe {
        match kind {
            HOST_TO_DEVICE => driver::cuMemcpyHtoD_v2(to, from as *const c_void, n),
            DEVICE_TO_HOST => driver::cuMemcpyDtoH_v2(to as *mut c_void, from, n),
            DEVICE_TO_DEVICE => driver::cuMemcpyDtoD_v2(to, from, n),
            // All addresses are of one space: the driver sees from them where memory is.
            HOST_TO_HOST | DEFAULT => driver::cuMemcpy(to, from, n),
            _ => Err(Error::INVALID_MEMCPY_DIRECTION),
        }
    }
}

unsafe fn copy_async(to: u64, from: u64, n: usize, kind: c_uint, stream: usize) -> Res<()> {
    context::ensure()?;
    if n == 0 {
        return Ok(());
    }
    // SAFETY: the caller's contract.
    unsafe {
        match kind {
            HOST_TO_DEVICE => driver::cuMemcpyHtoDAsync_v2(to, from as *const c_void, n, stream),
            DEVICE_TO_HOST => driver::cuMemcpyDtoHAsync_v2(to as *mut c_void, from, n, stream),
            DEVICE_TO_DEVICE => driver::cuMemcpyDtoDAsync_v2(to, from, n, stream),
            HOST_TO_HOST | DEFAULT => driver::cuMemcpyAsync(to, from, n, stream),
            _ => Err(Error::INVALID_MEMCPY_DIRECTION),
        }
    }
}

unsafe fn fill(at: u64, value: c_int, n: usize, stream: Option<usize>) -> Res<()> {
    context::ensure()?;
    let value = value as u8; // the API fills with the low byte
    if n == 0 {
        return Ok(());
    }
    // SAFETY: the caller's contract.
    unsafe {
        match stream {
            None => driver::cuMemsetD8_v2(at, value, n),
            Some(stream) => driver::cuMemsetD8Async(at, value, n, stream),
        }
    }
}

/// Rows of a matrix: where it begins and the distance of its rows.
#[derive(Clone, Copy)]
struct Rows {
    at: u64,
    pitch: usize,
}

impl Rows {
    fn row(self, n: usize) -> u64 {
        self.at + (n * self.pitch) as u64
    }
}

/// Copies row by row, which is slower on hardware than one call of the driver, and the same.
unsafe fn copy_rows(
    to: Rows,
    from: Rows,
    [width, height]: [usize; 2],
    mut copy: impl FnMut(u64, u64) -> Res<()>,
) -> Res<()> {
    if width > to.pitch || width > from.pitch {
        return Err(Error::INVALID_VALUE);
    }
    (0..height).try_for_each(|n| copy(to.row(n), from.row(n)))
}

/// Address of bytes in a variable of the current device.
fn in_variable(symbol: *const c_void, offset: usize, n: usize) -> Res<u64> {
    let v = registry::variable(symbol)?;
    if offset.checked_add(n).is_none_or(|end| end > v.bytes) {
        return Err(Error::INVALID_VALUE);
    }
    Ok(v.address + offset as u64)
}

/// The kinds of copies to and from a symbol.
fn to_symbol(kind: c_uint) -> Res<()> {
    let right = matches!(kind, HOST_TO_DEVICE | DEVICE_TO_DEVICE | DEFAULT);
    if right { Ok(()) } else { Err(Error::INVALID_MEMCPY_DIRECTION) }
}

fn from_symbol(kind: c_uint) -> Res<()> {
    let right = matches!(kind, DEVICE_TO_HOST | DEVICE_TO_DEVICE | DEFAULT);
    if right { Ok(()) } else { Err(Error::INVALID_MEMCPY_DIRECTION) }
}

api! {
    cudaMemcpy(to: u64, from: u64, n: usize, kind: c_uint) { copy(to, from, n, kind) }
    cudaMemcpyAsync(to: u64, from: u64, n: usize, kind: c_uint, stream: usize) { copy_async(to, from, n, kind, stream) }
    // Which devices they are is in the addresses.
    cudaMemcpyPeer(to: u64, to_device: c_int, from: u64, from_device: c_int, n: usize) {
        context::primary(to_device)?;
        context::primary(from_device)?;
        copy(to, from, n, DEVICE_TO_DEVICE)
    }
    cudaMemcpyPeerAsync(to: u64, to_device: c_int, from: u64, from_device: c_int, n: usize, stream: usize) {
        context::primary(to_device)?;
        context::primary(from_device)?;
        copy_async(to, from, n, DEVICE_TO_DEVICE, stream)
    }
    cudaMemcpy2D(to: u64, to_pitch: usize, from: u64, from_pitch: usize, width: usize, height: usize, kind: c_uint) {
        let (to, from) = (Rows { at: to, pitch: to_pitch }, Rows { at: from, pitch: from_pitch });
        copy_rows(to, from, [width, height], |to, from| copy(to, from, width, kind))
    }
    cudaMemcpy2DAsync(to: u64, to_pitch: usize, from: u64, from_pitch: usize, width: usize, height: usize, kind: c_uint, stream: usize) {
        let (to, from) = (Rows { at: to, pitch: to_pitch }, Rows { at: from, pitch: from_pitch });
        copy_rows(to, from, [width, height], |to, from| copy_async(to, from, width, kind, stream))
    }
    cudaMemset(at: u64, value: c_int, n: usize) { fill(at, value, n, None) }
    cudaMemsetAsync(at: u64, value: c_int, n: usize, stream: usize) { fill(at, value, n, Some(stream)) }
    cudaMemset2D(at: u64, pitch: usize, value: c_int, width: usize, height: usize) {
        let rows = Rows { at, pitch };
        copy_rows(rows, rows, [width, height], |row, _| fill(row, value, width, None))
    }
    cudaMemset2DAsync(at: u64, pitch: usize, value: c_int, width: usize, height: usize, stream: usize) {
        let rows = Rows { at, pitch };
        copy_rows(rows, rows, [width, height], |row, _| fill(row, value, width, Some(stream)))
    }
    cudaGetSymbolAddress(at: *mut u64, symbol: *const c_void) { put(at, registry::variable(symbol)?.address) }
    cudaGetSymbolSize(bytes: *mut usize, symbol: *const c_void) { put(bytes, registry::variable(symbol)?.bytes) }
    cudaMemcpyToSymbol(symbol: *const c_void, from: u64, n: usize, offset: usize, kind: c_uint) {
        to_symbol(kind)?;
        copy(in_variable(symbol, offset, n)?, from, n, kind)
    }
    cudaMemcpyFromSymbol(to: u64, symbol: *const c_void, n: usize, offset: usize, kind: c_uint) {
        from_symbol(kind)?;
        copy(to, in_variable(symbol, offset, n)?, n, kind)
    }
    cudaMemcpyToSymbolAsync(symbol: *const c_void, from: u64, n: usize, offset: usize, kind: c_uint, stream: usize) {
        to_symbol(kind)?;
        copy_async(in_variable(symbol, offset, n)?, from, n, kind, stream)
    }
    cudaMemcpyFromSymbolAsync(to: u64, symbol: *const c_void, n: usize, offset: usize, kind: c_uint, stream: usize) {
        from_symbol(kind)?;
        copy_async(to, in_variable(symbol, offset, n)?, n, kind, stream)
    }
}

//! The driver itself, and what devices say of themselves.

use std::ffi::{CStr, c_char, c_int, c_uint};

use super::entry::{api, driver, put};
use super::result::{Error, Res, describe};
use super::{DRIVER, Driver};

/// Memory of a device, as far as programs are told: it is host memory and not counted.
pub(super) const TOTAL_MEMORY: usize = 64 << 30;

/// Attributes that are true. Concurrent kernels, mapped host memory, unified addresses, priorities, caches (which change nothing),
/// preemption, registered host memory by its own pointer, stream memory operations, cooperative launches, virtual
/// memory with file handles, memory pools.
const TRUE: [c_int; 21] =
    [15, 19, 31, 40, 41, 78, 79, 80, 86, 90, 91, 92, 93, 94, 95, 99, 102, 103, 115, 122, 123];

/// Attributes that are false or none. Clocks, buses and cache sizes; timeouts, integrated, prohibited modes, ECC, PCI
/// numbers beyond the bus, TCC, managed and pageable memory, RDMA, sparse arrays, handles of pools, clusters, DMA
/// buffers, events between processes, tensor maps, virtual memory on the host.
const FALSE: [c_int; 53] = [
    13, 17, 18, 20, 32, 34, 35, 36, 37, 38, 50, 83, 84, 85, 88, 89, 96, 98, 100, 101, 104, 105,
    107, 108, 109, 110, 112, 113, 114, 116, 117, 118, 119, 120, 121, 124, 125, 126, 127, 129, 130,
    133, 135, 136, 137, 138, 141, 142, 143, 144, 145, 146, 147,
];

fn attribute(d: &Driver, a: c_int, device: c_int) -> Res<c_int> {
    Ok(match a {
        a if TRUE.contains(&a) => 1,
        a if FALSE.contains(&a) => 0,
        1..=3 | 111 => 1024,
        4 => 64,
        5 | 11 => i32::MAX,
        6 | 7 => 65535,
        8 => 48 * 1024,
        9 => 64 * 1024,
        10 | 106 => 32,
        12 | 82 => 65536,
        16 => d.machine.config().sms as c_int,
        33 => device,
        39 => 2048,
        75 => (d.arch(device as u32) / 10) as c_int,
        76 => (d.arch(device as u32) % 10) as c_int,
        81 => 228 * 1024,
        87 => 2, // the ratio of single to double precision
        97 => crate::machine::BLOCK_SHARED as c_int,
        128 => c_int::from(!d.no_fabric.contains(&(device as u32))),
        131 | 134 => -1, // no NUMA node
        // Multicast objects need hardware that has multimem instructions.
        132 => c_int::from(d.arch(device as u32) >= 90),
        _ => return Err(Error::InvalidValue),
    })
}

unsafe fn write_text(to: *mut c_char, len: c_int, text: &str) -> Res<()> {
    if to.is_null() || len <= text.len() as c_int {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller's buffer has `len` bytes, more than the text.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

api! {
    cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        if DRIVER.get().is_none() {
            let driver = Driver::new().map_err(|_| Error::OutOfMemory)?;
            DRIVER.get_or_init(|| driver);
        }
        Ok(())
    }
    cuDriverGetVersion(version: *mut c_int) { put(version, driver()?.version as c_int) }
    cuDeviceGetCount(n: *mut c_int) { put(n, driver()?.primary.len() as c_int) }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        driver()?.primary(ordinal)?;
        put(device, ordinal)
    }
    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        driver()?.primary(device)?;
        write_text(name, len, "vgpu virtual device")
    }
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        driver()?.primary(device)?;
        put(bytes, TOTAL_MEMORY)
    }
    cuDeviceGetAttribute(value: *mut c_int, a: c_int, device: c_int) {
        let d = driver()?;
        d.primary(device)?;
        put(value, attribute(d, a, device)?)
    }
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        driver()?.primary(device)?;
        let mut id = *b"vgpu virtual dev";
        id[15] = device as u8;
        put(uuid, id)
    }
    cuDeviceGetPCIBusId(to: *mut c_char, len: c_int, device: c_int) {
        driver()?.primary(device)?;
        write_text(to, len, &format!("0000:{device:02X}:00.0"))
    }
    cuDeviceGetByPCIBusId(device: *mut c_int, id: *const c_char) {
        let d = driver()?;
        if id.is_null() {
            return Err(Error::InvalidValue);
        }
        // [domain:]bus:device[.function]
        let text = CStr::from_ptr(id).to_string_lossy();
        let mut parts = text.split(['.', ':']).rev().map(|p| u32::from_str_radix(p, 16));
        let function = if text.contains('.') { parts.next() } else { Some(Ok(0)) };
        let (slot, bus, domain) = (parts.next(), parts.next(), parts.next().unwrap_or(Ok(0)));
        match (function, slot, bus, domain) {
            (Some(Ok(0)), Some(Ok(0)), Some(Ok(bus)), Ok(0)) => {
                d.primary(bus as c_int)?;
                put(device, bus as c_int)
            }
            _ => Err(Error::InvalidDevice),
        }
    }
    cuDeviceCanAccessPeer(can: *mut c_int, a: c_int, b: c_int) {
        let d = driver()?;
        d.primary(a)?;
        d.primary(b)?;
        put(can, c_int::from(a != b && d.reaches(a as u32, b as u32)))
    }
    cuDeviceGetP2PAttribute(value: *mut c_int, which: c_uint, a: c_int, b: c_int) {
        let d = driver()?;
        d.primary(a)?;
        d.primary(b)?;
        if a == b {
            return Err(Error::InvalidDevice);
        }
        let answer = match which {
            1 => 0, // all links are alike
            2 | 3 => c_int::from(d.reaches(a as u32, b as u32)),
            4 | 5 => 0,
            _ => return Err(Error::InvalidValue),
        };
        put(value, answer)
    }
    cuGetErrorName(error: c_uint, text: *mut *const c_char) {
        put(text, describe(error).ok_or(Error::InvalidValue)?.0.as_ptr())
    }
    cuGetErrorString(error: c_uint, text: *mut *const c_char) {
        put(text, describe(error).ok_or(Error::InvalidValue)?.1.as_ptr())
    }
}

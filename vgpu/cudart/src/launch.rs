//! Launches, functions and occupancy.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
#[cfg(test)]
use std::mem::offset_of;

use crate::driver::{self, LaunchConfig};
use crate::error::{Error, Res, put};
use crate::{context, registry};

/// `dim3`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Dim3 {
    x: c_uint,
    y: c_uint,
    z: c_uint,
}

/// `cudaLaunchConfig_t`.
#[repr(C)]
struct Config {
    grid: Dim3,
    block: Dim3,
    shared: usize,
    stream: usize,
    attributes: *mut c_void,
    count: c_uint,
}

/// What is between `<<<` and `>>>`.
#[derive(Clone, Copy)]
struct Configuration {
    grid: Dim3,
    block: Dim3,
    shared: usize,
    stream: usize,
}

thread_local! {
    /// Configurations of launches whose arguments are being evaluated, which may launch in turn.
    static CONFIGURATIONS: RefCell<Vec<Configuration>> = const { RefCell::new(Vec::new()) };
}

/// Limits that the driver reports as an invalid value, and the runtime API as an invalid configuration.
fn check(c: &Configuration, device: c_int) -> Res<()> {
    let limit = |attribute| -> Res<u64> {
        let mut value = 0;
        // SAFETY: writes to a local.
        unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device)? };
        Ok(value as u64)
    };
    let sizes = [c.block.x, c.block.y, c.block.z, c.grid.x, c.grid.y, c.grid.z].map(u64::from);
    for (&size, attribute) in sizes.iter().zip(2..) {
        // MAX_BLOCK_DIM_X, _Y, _Z and MAX_GRID_DIM_X, _Y, _Z are 2 to 7.
        if size == 0 || size > limit(attribute)? {
            return Err(Error::INVALID_CONFIGURATION);
        }
    }
    if sizes[..3].iter().product::<u64>() > limit(1)? || c_uint::try_from(c.shared).is_err() {
        return Err(Error::INVALID_CONFIGURATION);
    }
    Ok(())
}

unsafe fn launch(
    host: *const c_void,
    c: Configuration,
    args: *mut *mut c_void,
    cooperative: bool,
) -> Res<()> {
    let f = registry::function(host)?;
    check(&c, context::ensure()?)?;
    let Configuration { grid: g, block: b, shared, stream } = c;
    let (shared, none) = (shared as c_uint, std::ptr::null_mut());
    // SAFETY: the caller passes one pointer per parameter of the kernel.
    unsafe {
        if cooperative {
            driver::cuLaunchCooperativeKernel(f, g.x, g.y, g.z, b.x, b.y, b.z, shared, stream, args)
        } else {
            driver::cuLaunchKernel(f, g.x, g.y, g.z, b.x, b.y, b.z, shared, stream, args, none)
        }
    }
}

/// `cudaFuncAttributes`.
#[derive(Default)]
#[repr(C)]
struct FunctionAttributes {
    shared: usize,
    constant: usize,
    local: usize,
    /// maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes,
    /// preferredShmemCarveout: the driver's attributes 0 and 4 to 9, in this order.
    values: [c_int; 7],
    /// Clusters and what is reserved.
    rest: [c_int; 22],
}

unsafe fn attribute(f: usize, number: c_uint) -> Res<c_int> {
    let mut value = 0;
    // SAFETY: writes to a local.
    unsafe { driver::cuFuncGetAttribute(&mut value, number, f)? };
    Ok(value)
}

#[unsafe(no_mangle)]
extern "C" fn __cudaPushCallConfiguration(
    grid: Dim3,
    block: Dim3,
    shared: usize,
    stream: usize,
) -> c_uint {
    CONFIGURATIONS.with_borrow_mut(|c| c.push(Configuration { grid, block, shared, stream }));
    0
}

api! {
    __cudaPopCallConfiguration(grid: *mut Dim3, block: *mut Dim3, shared: *mut usize, stream: *mut usize) {
        let c = CONFIGURATIONS.with_borrow_mut(Vec::pop).ok_or(Error::MISSING_CONFIGURATION)?;
        put(grid, c.grid)?;
        put(block, c.block)?;
        put(shared, c.shared)?;
        put(stream, c.stream)
    }
    // A kernel handle is the address of the host function: the same handle serves all devices.
    __cudaGetKernel(kernel: *mut *const c_void, host: *const c_void) {
        if !registry::is_kernel(host) {
            return Err(Error::INVALID_DEVICE_FUNCTION);
        }
        put(kernel, host)
    }
    __cudaLaunchKernel(kernel: *const c_void, grid: Dim3, block: Dim3, args: *mut *mut c_void, shared: usize, stream: usize) {
        launch(kernel, Configuration { grid, block, shared, stream }, args, false)
    }
    cudaLaunchKernel(host: *const c_void, grid: Dim3, block: Dim3, args: *mut *mut c_void, shared: usize, stream: usize) {
        launch(host, Configuration { grid, block, shared, stream }, args, false)
    }
    cudaLaunchCooperativeKernel(host: *const c_void, grid: Dim3, block: Dim3, args: *mut *mut c_void, shared: usize, stream: usize) {
        launch(host, Configuration { grid, block, shared, stream }, args, true)
    }
    cudaLaunchKernelExC(config: *const Config, host: *const c_void, args: *mut *mut c_void) {
        let c = config.as_ref().ok_or(Error::INVALID_VALUE)?;
        let plain = Configuration { grid: c.grid, block: c.block, shared: c.shared, stream: c.stream };
        if c.count == 0 {
            return launch(host, plain, args, false);
        }
        let f = registry::function(host)?;
        check(&plain, context::ensure()?)?;
        let config = LaunchConfig {
            grid: [c.grid.x, c.grid.y, c.grid.z],
            block: [c.block.x, c.block.y, c.block.z],
            shared: c.shared as c_uint,
            stream: c.stream,
            attributes: c.attributes,
            count: c.count,
        };
        driver::cuLaunchKernelEx(&config, f, args, std::ptr::null_mut())
    }
    cudaGetFuncBySymbol(function: *mut usize, host: *const c_void) { put(function, registry::function(host)?) }
    cudaFuncGetAttributes(out: *mut FunctionAttributes, host: *const c_void) {
        let f = registry::function(host)?;
        let mut a = FunctionAttributes {
            shared: attribute(f, 1)? as usize,
            constant: attribute(f, 2)? as usize,
            local: attribute(f, 3)? as usize,
            ..Default::default()
        };
        for (value, number) in a.values.iter_mut().zip([0, 4, 5, 6, 7, 8, 9]) {
            *value = attribute(f, number)?;
        }
        put(out, a)
    }
    cudaFuncSetAttribute(host: *const c_void, number: c_uint, value: c_int) {
        driver::cuFuncSetAttribute(registry::function(host)?, number, value)
    }
    cudaFuncSetCacheConfig(host: *const c_void, config: c_uint) {
        driver::cuFuncSetCacheConfig(registry::function(host)?, config)
    }
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, host: *const c_void, threads: c_int, shared: usize) {
        driver::cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, registry::function(host)?, threads, shared)
    }
    // The flags choose how the L1 cache counts, which a virtual GPU has not.
    cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks: *mut c_int, host: *const c_void, threads: c_int, shared: usize, _flags: c_uint) {
        driver::cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, registry::function(host)?, threads, shared)
    }
    cudaLaunchHostFunc(stream: usize, f: driver::HostFn, data: *mut c_void) {
        context::ensure()?;
        driver::cuLaunchHostFunc(stream, f, data)
    }
}

/// What the tests compare with the header.
#[cfg(test)]
pub const LAYOUT: &[(&str, usize)] = &[
    ("sizeof(dim3)", size_of::<Dim3>()),
    ("sizeof(cudaLaunchConfig_t)", size_of::<Config>()),
    ("offsetof(cudaLaunchConfig_t, stream)", offset_of!(Config, stream)),
    ("offsetof(cudaLaunchConfig_t, numAttrs)", offset_of!(Config, count)),
    ("sizeof(CUlaunchConfig)", size_of::<LaunchConfig>()),
    ("offsetof(CUlaunchConfig, hStream)", offset_of!(LaunchConfig, stream)),
    ("offsetof(CUlaunchConfig, numAttrs)", offset_of!(LaunchConfig, count)),
    ("sizeof(cudaLaunchAttribute)", 72),
    ("sizeof(CUlaunchAttribute)", 72),
    ("sizeof(cudaFuncAttributes)", size_of::<FunctionAttributes>()),
    (
        "offsetof(cudaFuncAttributes, preferredShmemCarveout)",
        offset_of!(FunctionAttributes, values) + 6 * size_of::<c_int>(),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vgpu_nested_launches_keep_their_configurations() {
        let dim = |x| Dim3 { x, y: 1, z: 1 };
        __cudaPushCallConfiguration(dim(1), dim(2), 3, 4);
        __cudaPushCallConfiguration(dim(5), dim(6), 7, 8);
        let pop = || {
            let (mut g, mut b, mut shared, mut stream) = (dim(0), dim(0), 0, 0);
            // SAFETY: pointers to locals.
            let code =
                unsafe { __cudaPopCallConfiguration(&mut g, &mut b, &mut shared, &mut stream) };
            (code, g.x, b.x, shared, stream)
        };
        assert_eq!(pop(), (0, 5, 6, 7, 8));
        assert_eq!(pop(), (0, 1, 2, 3, 4));
        assert_eq!(pop().0, 52);
    }
}

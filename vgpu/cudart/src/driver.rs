//! The driver API: `libcuda.so.1`, opened by name, each entry point looked up when it is first used.
#![allow(non_snake_case, reason = "the names of the driver API")]

use std::ffi::{CStr, c_char, c_float, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::error::{Error, Res};

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, symbol: *const c_char) -> *mut c_void;
}

const RTLD_NOW: c_int = 2;

/// Address of the library's handle; 0: there is no driver.
fn library() -> usize {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        // SAFETY: a C string; the library is never closed.
        let handle = unsafe { dlopen(c"libcuda.so.1".as_ptr(), RTLD_NOW) } as usize;
        if handle == 0 {
            eprintln!(
                "libcudart (vgpu): libcuda.so.1 is not there; start the program by `vgpu run`"
            );
        }
        handle
    })
}

fn find(name: &CStr) -> Res<*mut c_void> {
    if library() == 0 {
        return Err(Error::INSUFFICIENT_DRIVER);
    }
    // SAFETY: a handle that dlopen gave, and a C string.
    let entry = unsafe { dlsym(library() as *mut c_void, name.as_ptr()) };
    if entry.is_null() {
        eprintln!("libcudart (vgpu): the driver has no {}", name.to_string_lossy());
        return Err(Error::CALL_REQUIRES_NEWER_DRIVER);
    }
    Ok(entry)
}

/// Declares entry points. Each is unsafe as in the driver API: pointers must be valid for what is read or written.
macro_rules! driver {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => { $(
        #[allow(clippy::missing_safety_doc, clippy::too_many_arguments, reason = "the driver API's")]
        pub unsafe fn $name($($arg: $ty),*) -> Res<()> {
            static ENTRY: OnceLock<Res<usize>> = OnceLock::new();
            let name = const {
                match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name has no NUL inside"),
                }
            };
            let entry = (*ENTRY.get_or_init(|| find(name).map(|p| p as usize)))?;
            // SAFETY: the driver API declares the entry point of this name with these arguments.
            let entry: unsafe extern "C" fn($($ty),*) -> c_uint = unsafe { std::mem::transmute(entry) };
            // SAFETY: the caller's contract.
            Error::check(unsafe { entry($($arg),*) })
        }
    )* };
}

/// `CUipcMemHandle`, `cudaIpcMemHandle_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IpcHandle([u8; 64]);

/// `CUlaunchConfig`. The attributes are laid out as in `cudaLaunchAttribute`.
#[repr(C)]
pub struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared: c_uint,
    pub stream: usize,
    pub attributes: *mut c_void,
    pub count: c_uint,
}

/// `CUhostFn`, `cudaHostFn_t`.
pub type HostFn = Option<unsafe extern "C" fn(*mut c_void)>;

driver! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuGetProcAddress_v2(name: *const c_char, entry: *mut *mut c_void, version: c_int, flags: u64, status: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int);
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int);
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
    cuDeviceGetP2PAttribute(value: *mut c_int, attribute: c_int, from: c_int, to: c_int);
    cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: c_int);
    cuDeviceGetByPCIBusId(device: *mut c_int, id: *const c_char);
    cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int);
    cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int);
    cuDevicePrimaryCtxReset_v2(device: c_int);
    cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint);
    cuCtxGetCurrent(context: *mut usize);
    cuCtxSetCurrent(context: usize);
    cuCtxGetDevice(device: *mut c_int);
    cuCtxGetFlags(flags: *mut c_uint);
    cuCtxSynchronize();
    cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
    cuCtxSetLimit(limit: c_uint, value: usize);
    cuCtxGetLimit(value: *mut usize, limit: c_uint);
    cuCtxEnablePeerAccess(peer: usize, flags: c_uint);
    cuCtxDisablePeerAccess(peer: usize);

    cuMemAlloc_v2(at: *mut u64, bytes: usize);
    cuMemFree_v2(at: u64);
    cuMemAllocAsync(at: *mut u64, bytes: usize, stream: usize);
    cuMemFreeAsync(at: u64, stream: usize);
    cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int);
    cuDeviceGetMemPool(pool: *mut usize, device: c_int);
    cuDeviceSetMemPool(device: c_int, pool: usize);
    cuMemPoolTrimTo(pool: usize, keep: usize);
    cuMemPoolSetAttribute(pool: usize, attribute: c_uint, value: *mut c_void);
    cuMemPoolGetAttribute(pool: usize, attribute: c_uint, value: *mut c_void);
    cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(at: *mut c_void);
    cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister(at: *mut c_void);
    cuMemHostGetDevicePointer_v2(at: *mut u64, host: *mut c_void, flags: c_uint);
    cuMemHostGetFlags(flags: *mut c_uint, at: *mut c_void);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuPointerGetAttribute(data: *mut c_void, attribute: c_uint, at: u64);
    cuIpcGetMemHandle(handle: *mut IpcHandle, at: u64);
    cuIpcOpenMemHandle_v2(at: *mut u64, handle: IpcHandle, flags: c_uint);
    cuIpcCloseMemHandle(at: u64);

    cuMemcpy(to: u64, from: u64, bytes: usize);
    cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize);
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize);
    cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize);
    cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: usize);
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize);
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize);
    cuMemsetD8_v2(at: u64, value: u8, bytes: usize);
    cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: usize);

    cuModuleLoadData(module: *mut usize, image: *const c_void);
    cuModuleUnload(module: usize);
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char);
    cuModuleGetGlobal_v2(at: *mut u64, bytes: *mut usize, module: usize, name: *const c_char);
    cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: usize);
    cuFuncSetAttribute(function: usize, attribute: c_uint, value: c_int);
    cuFuncSetCacheConfig(function: usize, config: c_uint);
    cuLaunchKernel(f: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint,
        shared: c_uint, stream: usize, params: *mut *mut c_void, extra: *mut *mut c_void);
    cuLaunchCooperativeKernel(f: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint,
        shared: c_uint, stream: usize, params: *mut *mut c_void);
    cuLaunchKernelEx(config: *const LaunchConfig, f: usize, params: *mut *mut c_void, extra: *mut *mut c_void);
    cuLaunchHostFunc(stream: usize, f: HostFn, data: *mut c_void);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, f: usize, threads: c_int, shared: usize);

    cuStreamCreateWithPriority(stream: *mut usize, flags: c_uint, priority: c_int);
    cuStreamCreate(stream: *mut usize, flags: c_uint);
    cuStreamDestroy_v2(stream: usize);
    cuStreamSynchronize(stream: usize);
    cuStreamQuery(stream: usize);
    cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint);
    cuStreamGetPriority(stream: usize, priority: *mut c_int);
    cuStreamGetFlags(stream: usize, flags: *mut c_uint);
    cuStreamGetId(stream: usize, id: *mut u64);
    cuEventCreate(event: *mut usize, flags: c_uint);
    cuEventDestroy_v2(event: usize);
    cuEventRecord(event: usize, stream: usize);
    cuEventRecordWithFlags(event: usize, stream: usize, flags: c_uint);
    cuEventQuery(event: usize);
    cuEventSynchronize(event: usize);
    cuEventElapsedTime_v2(ms: *mut c_float, start: usize, end: usize);

    cuStreamBeginCapture_v2(stream: usize, mode: c_uint);
    cuStreamEndCapture(stream: usize, graph: *mut usize);
    cuStreamIsCapturing(stream: usize, status: *mut c_uint);
    cuStreamGetCaptureInfo_v3(stream: usize, status: *mut c_uint, id: *mut u64, graph: *mut usize,
        dependencies: *mut *const usize, edges: *mut *const c_void, count: *mut usize);
    cuThreadExchangeStreamCaptureMode(mode: *mut c_uint);
    cuGraphCreate(graph: *mut usize, flags: c_uint);
    cuGraphDestroy(graph: usize);
    cuGraphGetNodes(graph: usize, nodes: *mut usize, count: *mut usize);
    cuGraphInstantiateWithFlags(exec: *mut usize, graph: usize, flags: u64);
    cuGraphExecDestroy(exec: usize);
    cuGraphUpload(exec: usize, stream: usize);
    cuGraphLaunch(exec: usize, stream: usize);
}

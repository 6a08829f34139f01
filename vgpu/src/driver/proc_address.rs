//! `cuGetProcAddress`: entry points by name and by the version of CUDA that they are wanted of.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::entry::{api, offer, put};
use super::result::{Error, Res};
use crate::driver::api::*;

/// Name, first version of CUDA with this form of it, address.
struct Entry(&'static str, c_int, *const c_void);

macro_rules! entries {
    ($($name:ident $since:literal $symbol:ident;)*) => {
        const ENTRIES: &[Entry] =
            &[$(Entry(stringify!($name), $since, $symbol as *const c_void)),*];
    };
}

// What is asked for by name is the newest form that the version knows, so every form that a name had since the first one
// here is listed: a program would call another one with the wrong arguments.
entries! {
    cuCtxCreate 3020 cuCtxCreate_v2;
    cuCtxCreate 11040 cuCtxCreate_v3;
    cuCtxCreate 12050 cuCtxCreate_v4;
    cuCtxDestroy 4000 cuCtxDestroy_v2;
    cuCtxDisablePeerAccess 4000 cuCtxDisablePeerAccess;
    cuCtxEnablePeerAccess 4000 cuCtxEnablePeerAccess;
    cuCtxGetApiVersion 3020 cuCtxGetApiVersion;
    cuCtxGetCurrent 4000 cuCtxGetCurrent;
    cuCtxGetDevice 2000 cuCtxGetDevice;
    cuCtxGetDevice 13000 cuCtxGetDevice_v2;
    cuCtxGetFlags 7000 cuCtxGetFlags;
    cuCtxGetId 12000 cuCtxGetId;
    cuCtxGetLimit 3010 cuCtxGetLimit;
    cuCtxGetStreamPriorityRange 5050 cuCtxGetStreamPriorityRange;
    cuCtxPopCurrent 4000 cuCtxPopCurrent_v2;
    cuCtxPushCurrent 4000 cuCtxPushCurrent_v2;
    cuCtxSetCurrent 4000 cuCtxSetCurrent;
    cuCtxSetLimit 3010 cuCtxSetLimit;
    cuCtxSynchronize 2000 cuCtxSynchronize;
    cuCtxSynchronize 13000 cuCtxSynchronize_v2;
    cuDeviceCanAccessPeer 4000 cuDeviceCanAccessPeer;
    cuDeviceGet 2000 cuDeviceGet;
    cuDeviceGetAttribute 2000 cuDeviceGetAttribute;
    cuDeviceGetByPCIBusId 4010 cuDeviceGetByPCIBusId;
    cuDeviceGetCount 2000 cuDeviceGetCount;
    cuDeviceGetDefaultMemPool 11020 cuDeviceGetDefaultMemPool;
    cuDeviceGetMemPool 11020 cuDeviceGetMemPool;
    cuDeviceGetName 2000 cuDeviceGetName;
    cuDeviceGetP2PAttribute 8000 cuDeviceGetP2PAttribute;
    cuDeviceGetPCIBusId 4010 cuDeviceGetPCIBusId;
    cuDeviceGetUuid 11040 cuDeviceGetUuid_v2;
    cuDevicePrimaryCtxGetState 7000 cuDevicePrimaryCtxGetState;
    cuDevicePrimaryCtxRelease 11000 cuDevicePrimaryCtxRelease_v2;
    cuDevicePrimaryCtxRetain 7000 cuDevicePrimaryCtxRetain;
    cuDevicePrimaryCtxSetFlags 11000 cuDevicePrimaryCtxSetFlags_v2;
    cuDeviceSetMemPool 11020 cuDeviceSetMemPool;
    cuDeviceTotalMem 3020 cuDeviceTotalMem_v2;
    cuDriverGetVersion 2020 cuDriverGetVersion;
    cuEventCreate 2000 cuEventCreate;
    cuEventDestroy 4000 cuEventDestroy_v2;
    cuEventElapsedTime 2000 cuEventElapsedTime;
    cuEventElapsedTime 12080 cuEventElapsedTime_v2;
    cuEventQuery 2000 cuEventQuery;
    cuEventRecord 2000 cuEventRecord;
    cuEventRecordWithFlags 11010 cuEventRecordWithFlags;
    cuEventSynchronize 2000 cuEventSynchronize;
    cuFuncGetAttribute 2020 cuFuncGetAttribute;
    cuFuncGetModule 11000 cuFuncGetModule;
    cuFuncGetName 12030 cuFuncGetName;
    cuFuncGetParamInfo 12040 cuFuncGetParamInfo;
    cuFuncLoad 12040 cuFuncLoad;
    cuFuncSetAttribute 9000 cuFuncSetAttribute;
    cuFuncSetCacheConfig 3000 cuFuncSetCacheConfig;
    cuGetErrorName 6000 cuGetErrorName;
    cuGetErrorString 6000 cuGetErrorString;
    cuGetProcAddress 11030 cuGetProcAddress;
    cuGetProcAddress 12000 cuGetProcAddress_v2;
    cuGraphCreate 10000 cuGraphCreate;
    cuGraphDestroy 10000 cuGraphDestroy;
    cuGraphExecDestroy 10000 cuGraphExecDestroy;
    cuGraphGetNodes 10000 cuGraphGetNodes;
    cuGraphGetRootNodes 10000 cuGraphGetRootNodes;
    cuGraphInstantiateWithFlags 11040 cuGraphInstantiateWithFlags;
    cuGraphLaunch 10000 cuGraphLaunch;
    cuGraphNodeGetType 10000 cuGraphNodeGetType;
    cuGraphUpload 11010 cuGraphUpload;
    cuInit 2000 cuInit;
    cuIpcCloseMemHandle 4010 cuIpcCloseMemHandle;
    cuIpcGetMemHandle 4010 cuIpcGetMemHandle;
    cuIpcOpenMemHandle 11000 cuIpcOpenMemHandle_v2;
    cuKernelGetAttribute 12000 cuKernelGetAttribute;
    cuKernelGetFunction 12000 cuKernelGetFunction;
    cuKernelGetLibrary 12050 cuKernelGetLibrary;
    cuKernelGetName 12030 cuKernelGetName;
    cuKernelSetAttribute 12000 cuKernelSetAttribute;
    cuLaunchCooperativeKernel 9000 cuLaunchCooperativeKernel;
    cuLaunchHostFunc 10000 cuLaunchHostFunc;
    cuLaunchKernel 4000 cuLaunchKernel;
    cuLaunchKernelEx 11060 cuLaunchKernelEx;
    cuLibraryGetGlobal 12000 cuLibraryGetGlobal;
    cuLibraryGetKernel 12000 cuLibraryGetKernel;
    cuLibraryGetKernelCount 12040 cuLibraryGetKernelCount;
    cuLibraryGetModule 12000 cuLibraryGetModule;
    cuLibraryLoadData 12000 cuLibraryLoadData;
    cuLibraryLoadFromFile 12000 cuLibraryLoadFromFile;
    cuLibraryUnload 12000 cuLibraryUnload;
    cuMemAddressFree 10020 cuMemAddressFree;
    cuMemAddressReserve 10020 cuMemAddressReserve;
    cuMemAlloc 3020 cuMemAlloc_v2;
    cuMemAllocAsync 11020 cuMemAllocAsync;
    cuMemAllocFromPoolAsync 11020 cuMemAllocFromPoolAsync;
    cuMemAllocHost 3020 cuMemAllocHost_v2;
    cuMemCreate 10020 cuMemCreate;
    cuMemExportToShareableHandle 10020 cuMemExportToShareableHandle;
    cuMemFree 3020 cuMemFree_v2;
    cuMemFreeAsync 11020 cuMemFreeAsync;
    cuMemFreeHost 2000 cuMemFreeHost;
    cuMemGetAccess 10020 cuMemGetAccess;
    cuMemGetAddressRange 3020 cuMemGetAddressRange_v2;
    cuMemGetAllocationGranularity 10020 cuMemGetAllocationGranularity;
    cuMemGetAllocationPropertiesFromHandle 10020 cuMemGetAllocationPropertiesFromHandle;
    cuMemGetInfo 3020 cuMemGetInfo_v2;
    cuMemHostAlloc 2020 cuMemHostAlloc;
    cuMemHostGetDevicePointer 3020 cuMemHostGetDevicePointer_v2;
    cuMemHostGetFlags 2030 cuMemHostGetFlags;
    cuMemHostRegister 6050 cuMemHostRegister_v2;
    cuMemHostUnregister 4000 cuMemHostUnregister;
    cuMemImportFromShareableHandle 10020 cuMemImportFromShareableHandle;
    cuMemMap 10020 cuMemMap;
    cuMemPoolGetAccess 11020 cuMemPoolGetAccess;
    cuMemPoolGetAttribute 11020 cuMemPoolGetAttribute;
    cuMemPoolSetAccess 11020 cuMemPoolSetAccess;
    cuMemPoolSetAttribute 11020 cuMemPoolSetAttribute;
    cuMemPoolTrimTo 11020 cuMemPoolTrimTo;
    cuMemRelease 10020 cuMemRelease;
    cuMemRetainAllocationHandle 11000 cuMemRetainAllocationHandle;
    cuMemSetAccess 10020 cuMemSetAccess;
    cuMemUnmap 10020 cuMemUnmap;
    cuMemcpy 4000 cuMemcpy;
    cuMemcpy2D 3020 cuMemcpy2D_v2;
    cuMemcpy2DAsync 3020 cuMemcpy2DAsync_v2;
    cuMemcpyAsync 4000 cuMemcpyAsync;
    cuMemcpyDtoD 3020 cuMemcpyDtoD_v2;
    cuMemcpyDtoDAsync 3020 cuMemcpyDtoDAsync_v2;
    cuMemcpyDtoH 3020 cuMemcpyDtoH_v2;
    cuMemcpyDtoHAsync 3020 cuMemcpyDtoHAsync_v2;
    cuMemcpyHtoD 3020 cuMemcpyHtoD_v2;
    cuMemcpyHtoDAsync 3020 cuMemcpyHtoDAsync_v2;
    cuMemcpyPeer 4000 cuMemcpyPeer;
    cuMemcpyPeerAsync 4000 cuMemcpyPeerAsync;
    cuMemsetD16 3020 cuMemsetD16_v2;
    cuMemsetD16Async 3020 cuMemsetD16Async;
    cuMemsetD32 3020 cuMemsetD32_v2;
    cuMemsetD32Async 3020 cuMemsetD32Async;
    cuMemsetD8 3020 cuMemsetD8_v2;
    cuMemsetD8Async 3020 cuMemsetD8Async;
    cuModuleGetFunction 2000 cuModuleGetFunction;
    cuModuleGetGlobal 3020 cuModuleGetGlobal_v2;
    cuModuleGetLoadingMode 11070 cuModuleGetLoadingMode;
    cuModuleLoad 2000 cuModuleLoad;
    cuModuleLoadData 2000 cuModuleLoadData;
    cuModuleLoadDataEx 2010 cuModuleLoadDataEx;
    cuModuleLoadFatBinary 2000 cuModuleLoadFatBinary;
    cuModuleUnload 2000 cuModuleUnload;
    cuMulticastAddDevice 12010 cuMulticastAddDevice;
    cuMulticastBindAddr 12010 cuMulticastBindAddr;
    cuMulticastBindMem 12010 cuMulticastBindMem;
    cuMulticastCreate 12010 cuMulticastCreate;
    cuMulticastGetGranularity 12010 cuMulticastGetGranularity;
    cuMulticastUnbind 12010 cuMulticastUnbind;
    cuOccupancyMaxActiveBlocksPerMultiprocessor 6050 cuOccupancyMaxActiveBlocksPerMultiprocessor;
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags 7000 cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags;
    cuOccupancyMaxPotentialBlockSize 6050 cuOccupancyMaxPotentialBlockSize;
    cuOccupancyMaxPotentialBlockSizeWithFlags 7000 cuOccupancyMaxPotentialBlockSizeWithFlags;
    cuPointerGetAttribute 4000 cuPointerGetAttribute;
    cuPointerGetAttributes 7000 cuPointerGetAttributes;
    cuPointerSetAttribute 6000 cuPointerSetAttribute;
    cuStreamBeginCapture 10010 cuStreamBeginCapture_v2;
    cuStreamCreate 2000 cuStreamCreate;
    cuStreamCreateWithPriority 5050 cuStreamCreateWithPriority;
    cuStreamDestroy 4000 cuStreamDestroy_v2;
    cuStreamEndCapture 10000 cuStreamEndCapture;
    cuStreamGetCaptureInfo 11030 cuStreamGetCaptureInfo_v2;
    cuStreamGetCaptureInfo 12030 cuStreamGetCaptureInfo_v3;
    cuStreamGetCtx 9020 cuStreamGetCtx;
    cuStreamGetCtx 12050 cuStreamGetCtx_v2;
    cuStreamGetDevice 12080 cuStreamGetDevice;
    cuStreamGetFlags 5050 cuStreamGetFlags;
    cuStreamGetId 12000 cuStreamGetId;
    cuStreamGetPriority 5050 cuStreamGetPriority;
    cuStreamIsCapturing 10000 cuStreamIsCapturing;
    cuStreamQuery 2000 cuStreamQuery;
    cuStreamSynchronize 2000 cuStreamSynchronize;
    cuStreamWaitEvent 3020 cuStreamWaitEvent;
    cuStreamWaitValue32 11070 cuStreamWaitValue32_v2;
    cuStreamWaitValue64 11070 cuStreamWaitValue64_v2;
    cuStreamWriteValue32 11070 cuStreamWriteValue32_v2;
    cuStreamWriteValue64 11070 cuStreamWriteValue64_v2;
    cuThreadExchangeStreamCaptureMode 10010 cuThreadExchangeStreamCaptureMode;
}

/// `CUdriverProcAddressQueryResult`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Found {
    Yes = 0,
    No = 1,
    NotInVersion = 2,
}

/// The newest form of a name up to a version.
fn find(name: &str, version: c_int, flags: u64) -> (Found, *const c_void) {
    const PER_THREAD: u64 = 2;
    let forms = || ENTRIES.iter().filter(|e| e.0 == name);
    if flags & PER_THREAD != 0 && takes_default_stream(name) {
        return (Found::No, std::ptr::null()); // there are no forms for the per-thread default stream
    }
    match forms().filter(|e| e.1 <= version).max_by_key(|e| e.1) {
        Some(e) => (Found::Yes, e.2),
        None if forms().next().is_some() => (Found::NotInVersion, std::ptr::null()),
        None => (Found::No, std::ptr::null()),
    }
}

/// True if the entry point has another form for programs whose stream 0 is the thread's own.
fn takes_default_stream(name: &str) -> bool {
    ["cuMemcpy", "cuMemset", "cuStream", "cuLaunch", "cuGraphLaunch", "cuGraphUpload"]
        .iter()
        .any(|p| name.starts_with(p))
        && !["cuStreamCreate", "cuStreamDestroy"].iter().any(|p| name.starts_with(p))
        || [
            "cuEventRecord",
            "cuEventRecordWithFlags",
            "cuMemAllocAsync",
            "cuMemFreeAsync",
            "cuMemAllocFromPoolAsync",
        ]
        .contains(&name)
}

unsafe fn get(
    name: *const c_char,
    to: *mut *const c_void,
    version: c_int,
    flags: u64,
) -> Res<Found> {
    if name.is_null() || flags > 3 {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller's pointers are as the driver API asks.
    unsafe {
        let (found, address) = find(&CStr::from_ptr(name).to_string_lossy(), version, flags);
        put(to, address)?;
        Ok(found)
    }
}

api! {
    cuGetProcAddress_v2(name: *const c_char, to: *mut *const c_void, version: c_int, flags: u64, status: *mut c_uint) {
        let found = get(name, to, version, flags)?;
        offer(status, found as c_uint);
        // With a place for the status, a missing name is no error.
        if found == Found::Yes || !status.is_null() { Ok(()) } else { Err(Error::NotFound) }
    }
    cuGetProcAddress(name: *const c_char, to: *mut *const c_void, version: c_int, flags: u64) {
        let found = get(name, to, version, flags)?;
        if found == Found::Yes { Ok(()) } else { Err(Error::NotFound) }
    }
    cuGetExportTable(table: *mut *const c_void, id: *const [u8; 16]) {
        // There are no private tables. NVRTC asks for one wherever there is a driver, and does without.
        if id.is_null() {
            return Err(Error::InvalidValue);
        }
        put(table, std::ptr::null())?;
        Err(Error::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_the_form_of_the_version() {
        let form = |name, version| find(name, version, 0);
        assert_eq!(form("cuMemAlloc", 12000), (Found::Yes, cuMemAlloc_v2 as *const c_void));
        assert_eq!(form("cuMemAlloc", 2000).0, Found::NotInVersion);
        assert_eq!(form("cuCtxCreate", 11000).1, cuCtxCreate_v2 as *const c_void);
        assert_eq!(form("cuCtxCreate", 13000).1, cuCtxCreate_v4 as *const c_void);
        assert_eq!(form("cuNothing", 13000).0, Found::No);
        assert_eq!(find("cuLaunchKernel", 13000, 2).0, Found::No);
        assert_eq!(find("cuMemAlloc", 13000, 2).0, Found::Yes);
    }
}

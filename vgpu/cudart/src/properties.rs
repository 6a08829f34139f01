//! `cudaDeviceProp` of CUDA 13.
#![allow(non_snake_case, reason = "the names of the C structure")]

use std::ffi::c_int;

use crate::driver;
use crate::error::{Error, Res};

/// Declares the structure; after `=` are the device attributes that a field is made of. The others are set by name, or stay
/// zero: a virtual GPU has no textures and surfaces.
macro_rules! properties {
    ($($name:ident: $ty:ty $(= $attributes:tt)?,)*) => {
        #[derive(Clone)]
        #[repr(C)]
        pub struct Properties { $($name: $ty,)* }

        impl Properties {
            fn zero() -> Properties {
                // SAFETY: integers and arrays of integers, for which zeros are values.
                unsafe { std::mem::zeroed() }
            }

            fn take_attributes(&mut self, device: c_int) -> Res<()> {
                $($(
                    let values: Res<Vec<c_int>> = $attributes.into_iter().map(|a| attribute(a, device)).collect();
                    self.$name = FromAttributes::from(&values?);
                )?)*
                Ok(())
            }
        }

        /// What the tests compare with the header.
        #[cfg(test)]
        pub const LAYOUT: &[(&str, usize)] = &[
            ("sizeof(cudaDeviceProp)", size_of::<Properties>()),
            $((concat!("offsetof(cudaDeviceProp, ", stringify!($name), ")"), std::mem::offset_of!(Properties, $name)),)*
        ];
    };
}

properties! {
    name: [u8; 256],
    uuid: [u8; 16],
    luid: [u8; 8],
    luidDeviceNodeMask: u32,
    totalGlobalMem: usize,
    sharedMemPerBlock: usize = [8],
    regsPerBlock: i32 = [12],
    warpSize: i32 = [10],
    memPitch: usize = [11],
    maxThreadsPerBlock: i32 = [1],
    maxThreadsDim: [i32; 3] = [2, 3, 4],
    maxGridSize: [i32; 3] = [5, 6, 7],
    totalConstMem: usize = [9],
    major: i32 = [75],
    minor: i32 = [76],
    textureAlignment: usize = [14],
    texturePitchAlignment: usize = [51],
    multiProcessorCount: i32 = [16],
    integrated: i32 = [18],
    canMapHostMemory: i32 = [19],
    maxTexture1D: i32,
    maxTexture1DMipmap: i32,
    maxTexture2D: [i32; 2],
    maxTexture2DMipmap: [i32; 2],
    maxTexture2DLinear: [i32; 3],
    maxTexture2DGather: [i32; 2],
    maxTexture3D: [i32; 3],
    maxTexture3DAlt: [i32; 3],
    maxTextureCubemap: i32,
    maxTexture1DLayered: [i32; 2],
    maxTexture2DLayered: [i32; 3],
    maxTextureCubemapLayered: [i32; 2],
    maxSurface1D: i32,
    maxSurface2D: [i32; 2],
    maxSurface3D: [i32; 3],
    maxSurface1DLayered: [i32; 2],
    maxSurface2DLayered: [i32; 3],
    maxSurfaceCubemap: i32,
    maxSurfaceCubemapLayered: [i32; 2],
    surfaceAlignment: usize,
    concurrentKernels: i32 = [31],
    ECCEnabled: i32 = [32],
    pciBusID: i32 = [33],
    pciDeviceID: i32 = [34],
    pciDomainID: i32 = [50],
    tccDriver: i32 = [35],
    asyncEngineCount: i32 = [40],
    unifiedAddressing: i32 = [41],
    memoryBusWidth: i32 = [37],
    l2CacheSize: i32 = [38],
    persistingL2CacheMaxSize: i32 = [108],
    maxThreadsPerMultiProcessor: i32 = [39],
    streamPrioritiesSupported: i32 = [78],
    globalL1CacheSupported: i32 = [79],
    localL1CacheSupported: i32 = [80],
    sharedMemPerMultiprocessor: usize = [81],
    regsPerMultiprocessor: i32 = [82],
    managedMemory: i32 = [83],
    isMultiGpuBoard: i32 = [84],
    multiGpuBoardGroupID: i32 = [85],
    hostNativeAtomicSupported: i32 = [86],
    pageableMemoryAccess: i32 = [88],
    concurrentManagedAccess: i32 = [89],
    computePreemptionSupported: i32 = [90],
    canUseHostPointerForRegisteredMem: i32 = [91],
    cooperativeLaunch: i32 = [95],
    sharedMemPerBlockOptin: usize = [97],
    pageableMemoryAccessUsesHostPageTables: i32 = [100],
    directManagedMemAccessFromHost: i32 = [101],
    maxBlocksPerMultiProcessor: i32 = [106],
    accessPolicyMaxWindowSize: i32 = [109],
    reservedSharedMemPerBlock: usize = [111],
    hostRegisterSupported: i32 = [99],
    sparseCudaArraySupported: i32 = [112],
    hostRegisterReadOnlySupported: i32 = [113],
    timelineSemaphoreInteropSupported: i32 = [114],
    memoryPoolsSupported: i32 = [115],
    gpuDirectRDMASupported: i32 = [116],
    gpuDirectRDMAFlushWritesOptions: u32 = [117],
    gpuDirectRDMAWritesOrdering: i32 = [118],
    memoryPoolSupportedHandleTypes: u32 = [119],
    deferredMappingCudaArraySupported: i32 = [121],
    ipcEventSupported: i32 = [125],
    clusterLaunch: i32 = [120],
    unifiedFunctionPointers: i32 = [129],
    deviceNumaConfig: i32 = [130],
    deviceNumaId: i32 = [131],
    mpsEnabled: i32 = [133],
    hostNumaId: i32 = [134],
    gpuPciDeviceID: u32 = [139],
    gpuPciSubsystemID: u32 = [140],
    hostNumaMultinodeIpcSupported: i32 = [143],
    reserved: [i32; 56],
}

impl Properties {
    /// What the driver says of a device.
    pub fn of(device: c_int) -> Res<Properties> {
        let mut p = Properties::zero();
        // SAFETY: writes to the fields, of the sizes that are given.
        unsafe {
            let len = p.name.len() as c_int;
            driver::cuDeviceGetName(p.name.as_mut_ptr().cast(), len, device)?;
            driver::cuDeviceGetUuid_v2(&mut p.uuid, device)?;
            driver::cuDeviceTotalMem_v2(&mut p.totalGlobalMem, device)?;
        }
        p.take_attributes(device)?;
        Ok(p)
    }
}

/// An attribute; zero if the driver does not know it.
fn attribute(number: c_int, device: c_int) -> Res<c_int> {
    let mut value = 0;
    // SAFETY: writes to a local.
    match unsafe { driver::cuDeviceGetAttribute(&mut value, number, device) } {
        Ok(()) => Ok(value),
        Err(Error::INVALID_VALUE) => Ok(0),
        Err(e) => Err(e),
    }
}

/// What a field can be made of: as many attributes as it has elements.
trait FromAttributes {
    fn from(values: &[c_int]) -> Self;
}

impl FromAttributes for i32 {
    fn from(values: &[c_int]) -> i32 {
        values[0]
    }
}

impl FromAttributes for u32 {
    fn from(values: &[c_int]) -> u32 {
        values[0] as u32
    }
}

impl FromAttributes for usize {
    fn from(values: &[c_int]) -> usize {
        values[0] as usize
    }
}

impl<const N: usize> FromAttributes for [i32; N] {
    fn from(values: &[c_int]) -> [i32; N] {
        std::array::from_fn(|n| values[n])
    }
}

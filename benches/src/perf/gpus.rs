//! `--show-gpus`: what there is to measure with.

use anyhow::Result;
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use cudarc::nvrtc;
use warpmesh::primitives::gpu::CudaError;

use super::cli::NO_GPU;
use super::exit::{Exit, Failed};
use super::format;
use crate::backend::cuda::{self, Device};
use crate::backend::nccl;

/// Prints driver, GPUs, who reaches whom, and the libraries.
pub fn show() -> Result<Exit> {
    let count = cuda::devices()?;
    if count == 0 {
        return Err(Failed::because(Exit::NotImplemented, NO_GPU));
    }
    println!("driver: CUDA {}", cuda::driver_version()?);
    println!("GPUs: {count}");
    let devices: Vec<Device> = (0..count).map(Device::of_rank).collect::<Result<_>>()?;
    for device in &devices {
        println!("GPU {}: {}", device.ordinal(), describe(device)?);
    }
    println!("peer access, from row to column (y yes, . no):");
    for device in &devices {
        let row: Result<Vec<_>> = devices.iter().map(|peer| reaches(device, peer)).collect();
        println!("  GPU {:>2}: {}", device.ordinal(), row?.join(" "));
    }
    println!("NVRTC: {}", nvrtc_version());
    println!("NCCL: {}", nccl::version().unwrap_or_else(|_| "not found".to_owned()));
    Ok(Exit::Success)
}

fn describe(device: &Device) -> Result<String> {
    let context = device.context();
    let attribute = |attribute| {
        let value = context.attribute(attribute);
        value.map_err(|error| CudaError::new("cuDeviceGetAttribute", error.0))
    };
    let yes = |value: i32| if value != 0 { "yes" } else { "no" };
    let memory = context.total_mem();
    let memory = memory.map_err(|error| CudaError::new("cuDeviceTotalMem", error.0))?;
    Ok(format!(
        "{}, {}, sm_{}{}, {} multiprocessors, {}, multicast {}, exports memory {}",
        device.name(),
        device.pci_address(),
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        format::size(memory),
        yes(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED)?),
        yes(attribute(Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)?),
    ))
}

fn reaches(device: &Device, peer: &Device) -> Result<&'static str> {
    let of = |device: &Device| CudaContext::cu_device(device.context());
    if of(device) == of(peer) {
        return Ok("-");
    }
    let mut reaches = 0;
    // SAFETY: the pointer is to a local, the devices are there.
    let code = unsafe { sys::cuDeviceCanAccessPeer(&mut reaches, of(device), of(peer)) };
    CudaError::check(code, "cuDeviceCanAccessPeer")?;
    Ok(if reaches != 0 { "y" } else { "." })
}

fn nvrtc_version() -> String {
    // SAFETY: looks for the library; if it is there, the function has been in it for ever.
    unsafe {
        let (mut major, mut minor) = (0, 0);
        if !nvrtc::sys::is_culib_present()
            || nvrtc::sys::nvrtcVersion(&mut major, &mut minor)
                != nvrtc::sys::nvrtcResult::NVRTC_SUCCESS
        {
            return "not found".to_owned();
        }
        format!("{major}.{minor}")
    }
}

//! A rank's GPU: context, stream, memory, events and graphs; and this library on it.

mod memory;
mod timing;
mod warpmesh;

use std::sync::Arc;

use ::warpmesh::primitives::gpu::{self, CudaError};
use anyhow::{Result, ensure};
use cudarc::driver::sys::{self, CUresult, CUstream};
use cudarc::driver::{CudaContext, CudaStream};

pub use self::warpmesh::WarpmeshCuda;
use super::clock::Clock;
use super::{Buffer, Graph};

/// GPUs that this process can use: none without a driver.
pub fn devices() -> Result<usize> {
    if !gpu::Gpu::driver_is_there() {
        return Ok(0);
    }
    let found = CudaContext::device_count();
    match found.map_err(|error| CudaError::new("cuInit", error.0)) {
        // A driver that is installed where there is no GPU.
        Err(CudaError::Driver { code, .. }) if code == CUresult::CUDA_ERROR_NO_DEVICE as u32 => {
            Ok(0)
        }
        found => Ok(found? as usize),
    }
}

/// The driver's CUDA version, as in "13.0".
pub fn driver_version() -> Result<String> {
    let mut version = 0;
    // SAFETY: the pointer is to a local.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    CudaError::check(code, "cuDriverGetVersion")?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// One rank's GPU and the stream that it works on.
#[derive(Clone)]
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// GPUs here.
    count: usize,
}

impl Device {
    /// The GPU of a rank, by its number on this host, round robin. Its context becomes that of the
    /// calling thread.
    pub fn of_rank(local_rank: usize) -> Result<Self> {
        let count = devices()?;
        ensure!(count > 0, "there is no GPU, or no CUDA driver (libcuda.so.1)");
        let context = CudaContext::new(local_rank % count);
        let context = context.map_err(|error| CudaError::new("making a context", error.0))?;
        let stream = context.new_stream();
        let stream = stream.map_err(|error| CudaError::new("cuStreamCreate", error.0))?;
        Ok(Self { context, stream, count })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// GPUs here.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "GPU".to_owned())
    }

    /// Its major compute capability.
    pub fn capability(&self) -> Result<u8> {
        let major = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let major = self.context.attribute(major);
        Ok(major.map_err(|error| CudaError::new("cuDeviceGetAttribute", error.0))? as u8)
    }

    /// Its PCI address, as in `0000:00:05`.
    pub fn pci_address(&self) -> String {
        let mut text = [0; 16];
        let device = self.context.cu_device();
        // SAFETY: room for as many bytes as is said, which the driver ends with NUL.
        let code =
            unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, device) };
        if code != CUresult::CUDA_SUCCESS {
            return "gpu".to_owned();
        }
        let bytes = text.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8);
        let text: String = bytes.map(char::from).collect();
        // nccl-tests leaves the function out.
        text.split('.').next().unwrap_or_default().to_lowercase()
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The stream that all libraries of this rank work on.
    pub fn stream(&self) -> CUstream {
        self.stream.cu_stream()
    }

    /// Memory that no library knows of, all zero.
    pub fn plain(&self, len: usize) -> Result<Buffer> {
        let memory = memory::allocate(self, len)?;
        Ok(Buffer::on_device(memory, len))
    }

    /// Memory that something else has allocated on this GPU, all zero.
    ///
    /// # Safety
    /// `address` is good for `len` bytes of this GPU while `owner` lives.
    pub unsafe fn owned(
        &self,
        address: u64,
        len: usize,
        owner: impl std::any::Any,
    ) -> Result<Buffer> {
        // SAFETY: the same contract.
        let memory = unsafe { memory::Owned::new(self, address, owner) };
        memory.clear(len)?;
        Ok(Buffer::on_device(memory, len))
    }

    /// Events on the stream.
    pub fn clock(&self, marks: usize) -> Result<Box<dyn Clock>> {
        Ok(Box::new(timing::StreamClock::new(self, marks)?))
    }

    /// Whether everything on the stream is done.
    pub fn is_idle(&self) -> Result<bool> {
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(self.stream()) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => Ok(CudaError::check(code, "cuStreamQuery").map(|()| true)?),
        }
    }

    /// Calls on the stream are recorded from here on.
    pub fn begin_capture(&self) -> Result<()> {
        timing::begin_capture(self)
    }

    /// What was recorded.
    pub fn end_capture(&self) -> Result<Box<dyn Graph>> {
        Ok(Box::new(timing::Recorded::new(self)?))
    }
}

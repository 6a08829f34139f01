//! Memory of a GPU, and copies of it.

use std::any::Any;

use ::warpmesh::primitives::gpu::CudaError;
use anyhow::Result;
use cudarc::driver::sys;

use super::Device;
use crate::backend::DeviceMemory;

/// Memory that the driver allocated for this program.
struct Allocation {
    device: Device,
    address: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.device.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `allocate`, and freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Memory that no library knows of, all zero.
pub(super) fn allocate(device: &Device, len: usize) -> Result<Owned> {
    let mut address = 0;
    // SAFETY: the pointer is to a local.
    let code = unsafe { sys::cuMemAlloc_v2(&mut address, len.max(1)) };
    CudaError::check(code, "cuMemAlloc")?;
    let allocation = Allocation { device: device.clone(), address };
    // SAFETY: just allocated, with this length, and freed with `allocation`.
    let memory = unsafe { Owned::new(device, address, allocation) };
    memory.clear(len)?;
    Ok(memory)
}

/// Memory of a GPU with what frees it.
pub(super) struct Owned {
    device: Device,
    address: u64,
    _owner: Box<dyn Any>,
}

impl Owned {
    /// # Safety
    /// `address` is memory of this GPU while `owner` lives.
    pub(super) unsafe fn new(device: &Device, address: u64, owner: impl Any) -> Self {
        Self { device: device.clone(), address, _owner: Box::new(owner) }
    }

    /// Fills it with zeros.
    pub(super) fn clear(&self, len: usize) -> Result<()> {
        let stream = self.device.stream();
        // SAFETY: memory of this GPU, of this length.
        let code = unsafe { sys::cuMemsetD8Async(self.address, 0, len, stream) };
        CudaError::check(code, "cuMemsetD8Async")?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives.
        let code = unsafe { sys::cuStreamSynchronize(self.device.stream()) };
        Ok(CudaError::check(code, "cuStreamSynchronize")?)
    }
}

impl DeviceMemory for Owned {
    fn address(&self) -> u64 {
        self.address
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        let to = self.address + offset as u64;
        // SAFETY: a range of this memory; `from` lives until the copy is done, which is waited for.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.device.stream())
        };
        CudaError::check(code, "cuMemcpyHtoDAsync")?;
        self.wait()
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        let from = self.address + offset as u64;
        // SAFETY: a range of this memory; `to` lives until the copy is done, which is waited for.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.device.stream())
        };
        CudaError::check(code, "cuMemcpyDtoHAsync")?;
        self.wait()
    }
}

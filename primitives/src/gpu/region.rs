//! Device memory that transfers may read and write.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUdeviceptr};

use super::{CudaError, Gpu, HostMemory, PeerMemory, PointerInfo};
use crate::error::Error;
use crate::net::Region;

/// Memory of one GPU, zero in the beginning.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<CudaContext>,
    base: CUdeviceptr,
    len: usize,
}

impl DeviceMemory {
    /// Where it begins for the GPU.
    pub fn address(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated in `device_memory`, freed once; who drops it has waited for the kernels that use it.
            let _ = unsafe { sys::cuMemFree_v2(self.base) };
        }
    }
}

/// A range of a GPU's memory for [`Transport::register`](crate::net::Transport::register).
#[derive(Debug)]
pub struct DeviceRegion {
    address: u64,
    len: usize,
    dma_buf: Option<(OwnedFd, u64)>,
    /// What keeps the memory.
    _keep: Keep,
}

#[derive(Debug)]
enum Keep {
    Memory { _memory: Arc<DeviceMemory> },
    Shared { _memory: PeerMemory },
    Promised,
}

// SAFETY: the memory lives as long as `_keep`, or as whoever called `Gpu::region` has promised. Nobody forms references to
// memory of a device.
unsafe impl Region for DeviceRegion {
    fn address(&self) -> *mut u8 {
        self.address as usize as *mut u8
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_on_device(&self) -> bool {
        true
    }

    fn dma_buf(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.dma_buf.as_ref().map(|(file, begin)| (file.as_fd(), *begin))
    }
}

// SAFETY: the memory lives as long as the value, and only raw pointers to it are handed out.
unsafe impl Region for HostMemory {
    fn address(&self) -> *mut u8 {
        self.host()
    }

    fn len(&self) -> usize {
        self.len()
    }
}

impl Gpu {
    /// Memory of this GPU, all zero. May wait for kernels that run.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn device_memory(&self, len: usize) -> Result<DeviceMemory, CudaError> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let mut base = 0;
        // SAFETY: `base` is a local.
        CudaError::check(unsafe { sys::cuMemAlloc_v2(&mut base, len.max(1)) }, "cuMemAlloc")?;
        let memory = DeviceMemory { context: self.context.clone(), base, len };
        // SAFETY: allocated just now, and nobody else knows it.
        CudaError::check(unsafe { sys::cuMemsetD8_v2(base, 0, len.max(1)) }, "cuMemsetD8")?;
        self.context.synchronize().map_err(CudaError::of("cuCtxSynchronize"))?;
        Ok(memory)
    }

    /// A range for transfers, over memory that the region keeps.
    ///
    /// The driver frees memory only when the device's kernels have ended. So keep a clone of `memory` as long as kernels run that wait for
    /// transfers: else the thread of the transport, which serves them, may be the last to let go of it, and wait for them.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn region_of(&self, memory: &Arc<DeviceMemory>) -> Result<DeviceRegion, Error> {
        let keep = Keep::Memory { _memory: memory.clone() };
        self.region_kept(memory.base, memory.len, keep)
    }

    /// A range for transfers, over this rank's part of memory that the node shares, which the region keeps.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn region_of_shared(
        &self,
        rank: usize,
        memory: &PeerMemory,
    ) -> Result<DeviceRegion, Error> {
        let keep = Keep::Shared { _memory: memory.clone() };
        self.region_kept(memory.address(rank), memory.len(), keep)
    }

    /// A range for transfers, over memory of somebody else's.
    ///
    /// # Safety
    /// The memory lives as long as the region; what is registered with a transport lives until it was forgotten there.
    ///
    /// # Errors
    /// It is not memory of this GPU, or the driver refuses.
    pub unsafe fn region(&self, address: u64, len: usize) -> Result<DeviceRegion, Error> {
        self.region_kept(address, len, Keep::Promised)
    }

    fn region_kept(&self, address: u64, len: usize, keep: Keep) -> Result<DeviceRegion, Error> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let info = PointerInfo::of(address)?;
        let device = self.context.ordinal();
        if !info.is_device || info.device != device as i32 {
            return Err(CudaError::NotOfDevice { address, device }.into());
        }
        let end = info.start.saturating_add(info.len);
        if address.saturating_add(len as u64) > end {
            let beyond = address.saturating_add(len as u64) - end;
            return Err(CudaError::EndsOutside { address, beyond }.into());
        }
        let dma_buf = self.dma_buf(&info, address);
        Ok(DeviceRegion { address, len, dma_buf, _keep: keep })
    }

    /// A dma-buf of the whole allocation, and where the range begins in it; none where the driver has none.
    fn dma_buf(&self, info: &PointerInfo, address: u64) -> Option<(OwnedFd, u64)> {
        let can = self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED);
        if can.unwrap_or(0) == 0 {
            return None;
        }
        // The driver asks for whole pages.
        let first = info.start & !(PAGE - 1);
        let len = (info.start + info.len).next_multiple_of(PAGE) - first;
        let mut file: i32 = -1;
        let kind = sys::CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
        // SAFETY: for this kind the driver writes a file descriptor, an int.
        let code = unsafe {
            sys::cuMemGetHandleForAddressRange((&raw mut file).cast(), first, len as usize, kind, 0)
        };
        CudaError::check(code, "cuMemGetHandleForAddressRange").ok()?;
        // SAFETY: a new descriptor, which the driver gave to us.
        Some((unsafe { OwnedFd::from_raw_fd(file) }, address - first))
    }
}

const PAGE: u64 = 4096;

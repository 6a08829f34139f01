//! Device memory that another allocator made (a framework's, cudarc's): what the driver knows of an address, and how peers map it.
//!
//! Memory of `cuMemCreate` goes to peers as a file descriptor, memory of `cuMemAlloc` to other processes as a CUDA IPC handle. In
//! the same process its address is enough.

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUdeviceptr, CUipcMemHandle, CUmemGenericAllocationHandle, CUmemorytype, CUresult,
};

use super::memory::{FILE, Mapped, Physical};
use super::{CudaError, Gpu};
use crate::error::Error;

/// What the driver knows of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointerInfo {
    /// Whether it is device memory.
    pub is_device: bool,
    /// Whether it is host memory that the driver knows.
    pub is_host: bool,
    /// The ordinal of its device.
    pub device: i32,
    /// The allocation's number, never used twice in a process; 0 if the driver has none.
    pub id: u64,
    /// The allocation that it lies in.
    pub start: u64,
    /// Bytes of it.
    pub len: u64,
}

impl PointerInfo {
    /// Asks the driver. What it does not know is neither device nor host memory. Does not block, also while a graph is captured.
    ///
    /// # Errors
    /// The driver refuses; not for a strange address.
    pub fn of(address: u64) -> Result<Self, CudaError> {
        use sys::CUpointer_attribute_enum as Attribute;
        let (mut kind, mut device) = (0_u32, 0_i32);
        let (mut id, mut start, mut len) = (0_u64, 0_u64, 0_u64);
        let mut which = [
            Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
            Attribute::CU_POINTER_ATTRIBUTE_BUFFER_ID,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
        ];
        let mut to: [*mut c_void; 5] = [
            (&raw mut kind).cast(),
            (&raw mut device).cast(),
            (&raw mut id).cast(),
            (&raw mut start).cast(),
            (&raw mut len).cast(),
        ];
        // SAFETY: five attributes, and places of their types for them.
        let code =
            unsafe { sys::cuPointerGetAttributes(5, which.as_mut_ptr(), to.as_mut_ptr(), address) };
        CudaError::check(code, "cuPointerGetAttributes")?;
        let is = |of: CUmemorytype| kind == of as u32;
        let is_device = is(CUmemorytype::CU_MEMORYTYPE_DEVICE);
        let is_host = is(CUmemorytype::CU_MEMORYTYPE_HOST);
        Ok(Self { is_device, is_host, device, id, start, len })
    }
}

/// How a peer gets at memory that was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// In the same process only.
    Address = 0,
    /// By a CUDA IPC handle.
    Ipc = 1,
    /// By the file descriptor that goes with it.
    File = 2,
}

/// A range of device memory as a peer is told of it: bytes for a wire.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Exported {
    /// [`Way`].
    way: u32,
    device: u32,
    /// Of this process: its number in the system, and a random one, for processes of other containers may have the same.
    process: u64,
    nonce: u64,
    /// Of the allocation, and of the range in it.
    allocation: u64,
    allocation_len: u64,
    address: u64,
    len: u64,
    handle: [u8; 64],
}

/// An exported range, with what keeps it alive until peers have it.
#[derive(Debug)]
pub struct Export {
    /// What peers are told.
    pub range: Exported,
    /// For [`Way::File`], the file that peers get.
    pub file: Option<OwnedFd>,
}

/// A range of a peer's memory that this rank's GPU reaches.
#[derive(Debug)]
pub struct Import {
    address: u64,
    _keep: Keep,
}

#[derive(Debug)]
enum Keep {
    /// Of this process: whoever registered it keeps it.
    Own,
    Ipc {
        _handle: OpenedHandle,
    },
    Mapped {
        _mapping: Mapped,
    },
}

impl Import {
    /// Where the range begins for this rank's GPU.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// An IPC handle that was opened.
#[derive(Debug)]
struct OpenedHandle {
    context: Arc<CudaContext>,
    base: CUdeviceptr,
}

impl Drop for OpenedHandle {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: opened once, closed once; who drops it has waited for the kernels that use it.
            let _ = unsafe { sys::cuIpcCloseMemHandle(self.base) };
        }
    }
}

impl Exported {
    /// Takes what came off a wire, if it can be.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let range: Self = bytemuck::try_pod_read_unaligned(bytes).ok()?;
        let end = range.address.checked_add(range.len)?;
        let inside = range.address >= range.allocation
            && end <= range.allocation.checked_add(range.allocation_len)?;
        (inside && range.way <= Way::File as u32).then_some(range)
    }

    /// Bytes of the range.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the exporter's file is needed.
    pub fn needs_file(&self) -> bool {
        self.way == Way::File as u32
    }

    fn is_of_this_process(&self) -> bool {
        (self.process, self.nonce) == this_process()
    }
}

fn this_process() -> (u64, u64) {
    static NONCE: OnceLock<u64> = OnceLock::new();
    let random = || getrandom::u64().unwrap_or_default();
    (u64::from(std::process::id()), *NONCE.get_or_init(random))
}

impl Gpu {
    /// Makes a range of this GPU's memory ready for peers to map.
    ///
    /// # Errors
    /// It is not device memory of this GPU, or ends outside its allocation.
    pub fn export(&self, address: u64, len: u64) -> Result<Export, Error> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let info = PointerInfo::of(address)?;
        if !info.is_device || info.device != self.context.ordinal() as i32 {
            return Err(CudaError::NotOfDevice { address, device: self.context.ordinal() }.into());
        }
        let end = address.saturating_add(len);
        if end > info.start.saturating_add(info.len) {
            let beyond = end - info.start.saturating_add(info.len);
            return Err(CudaError::EndsOutside { address, beyond }.into());
        }
        let (process, nonce) = this_process();
        let mut range = Exported {
            way: Way::Address as u32,
            device: self.context.ordinal() as u32,
            process,
            nonce,
            allocation: info.start,
            allocation_len: info.len,
            address,
            len,
            handle: [0; 64],
        };
        if let Some(file) = file_of(info.start) {
            range.way = Way::File as u32;
            return Ok(Export { range, file: Some(file) });
        }
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: `handle` is a local.
        let code = unsafe { sys::cuIpcGetMemHandle(&mut handle, info.start) };
        if code == CUresult::CUDA_SUCCESS {
            range.way = Way::Ipc as u32;
            range.handle = handle.reserved.map(|byte| byte as u8);
        }
        Ok(Export { range, file: None })
    }

    /// Maps a peer's range for this GPU.
    ///
    /// # Errors
    /// The driver refuses, or the memory cannot leave the peer's process.
    pub fn import(&self, range: &Exported, file: Option<&OwnedFd>) -> Result<Import, Error> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let offset = range.address - range.allocation;
        if let Some(file) = file.filter(|_| range.needs_file()) {
            let physical = Physical::import(file, range.allocation_len as usize)?;
            let mapping = Mapped::new(self, &physical)?;
            let address = mapping.base() + offset;
            return Ok(Import { address, _keep: Keep::Mapped { _mapping: mapping } });
        }
        if range.is_of_this_process() {
            self.reach(range.device as i32)?;
            return Ok(Import { address: range.address, _keep: Keep::Own });
        }
        if range.way != Way::Ipc as u32 {
            return Err(CudaError::CannotBeShared { address: range.address }.into());
        }
        let handle = CUipcMemHandle { reserved: range.handle.map(|byte| byte as i8) };
        const LAZY_PEER: u32 = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut base = 0;
        // SAFETY: `base` is a local, the handle is plain bytes that the driver checks.
        let code = unsafe { sys::cuIpcOpenMemHandle_v2(&mut base, handle, LAZY_PEER) };
        CudaError::check(code, "cuIpcOpenMemHandle")?;
        let opened = OpenedHandle { context: self.context.clone(), base };
        Ok(Import { address: base + offset, _keep: Keep::Ipc { _handle: opened } })
    }

    /// Lets this GPU reach the ordinary memory of another one in this process.
    fn reach(&self, device: i32) -> Result<(), CudaError> {
        if device == self.context.ordinal() as i32 {
            return Ok(());
        }
        let mut peer = std::ptr::null_mut();
        // SAFETY: `peer` is a local. The peer's rank holds the primary context, so it lives on after the release.
        let code = unsafe {
            let code = sys::cuDevicePrimaryCtxRetain(&mut peer, device);
            CudaError::check(code, "cuDevicePrimaryCtxRetain")?;
            let code = sys::cuCtxEnablePeerAccess(peer, 0);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(device);
            code
        };
        match code {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => CudaError::check(code, "cuCtxEnablePeerAccess"),
        }
    }
}

/// The file of an allocation of `cuMemCreate` that may have one; none for other memory.
fn file_of(start: u64) -> Option<OwnedFd> {
    let mut handle: CUmemGenericAllocationHandle = 0;
    // SAFETY: `handle` is a local; the address is only looked up.
    let code = unsafe { sys::cuMemRetainAllocationHandle(&mut handle, start as *mut c_void) };
    if code != CUresult::CUDA_SUCCESS {
        return None;
    }
    let mut fd: i32 = -1;
    // SAFETY: for this handle type the driver writes an int. The handle was retained above.
    let code = unsafe {
        let code = sys::cuMemExportToShareableHandle((&raw mut fd).cast(), handle, FILE, 0);
        let _ = sys::cuMemRelease(handle);
        code
    };
    let exported = code == CUresult::CUDA_SUCCESS && fd >= 0;
    // SAFETY: a new descriptor, which the driver gave to us.
    exported.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

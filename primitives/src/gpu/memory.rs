//! Device memory that peers map, and host memory that the device sees.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationProp, CUmemAllocationType, CUmemGenericAllocationHandle, CUmemLocation,
    CUmemLocationType,
};

use super::handles::{FABRIC, FILE, Given, Handles, Name};
use super::multicast::{self, Multicast};
use super::vote::agree;
use super::{CudaError, Gpu};
use crate::error::Error;
use crate::node::Node;

fn location(device: usize) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device as i32 }
}

fn properties(device: usize, handles: Handles) -> CUmemAllocationProp {
    // SAFETY: a C struct of numbers and a pointer, for which zeros are valid and mean nothing special.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = handles.types();
    properties.location = location(device);
    properties
}

/// The multiple of which a device's allocations are made.
pub(super) fn granularity(device: usize, handles: Handles) -> Result<usize, CudaError> {
    let mut granularity = 0;
    let properties = properties(device, handles);
    let option = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
    // SAFETY: both pointers are to locals.
    let code = unsafe { sys::cuMemGetAllocationGranularity(&mut granularity, &properties, option) };
    CudaError::check(code, "cuMemGetAllocationGranularity")?;
    Ok(granularity.max(1))
}

/// A physical allocation, or a multicast object; it lives until the last mapping is gone too.
#[derive(Debug)]
pub(super) struct Physical {
    handle: CUmemGenericAllocationHandle,
    len: usize,
}

impl Physical {
    pub(super) fn create(device: usize, len: usize, handles: Handles) -> Result<Self, CudaError> {
        let mut handle = 0;
        let properties = properties(device, handles);
        // SAFETY: both pointers are to locals.
        let code = unsafe { sys::cuMemCreate(&mut handle, len, &properties, 0) };
        CudaError::check(code, "cuMemCreate")?;
        Ok(Self { handle, len })
    }

    /// What a handle stands for: it is released with this.
    pub(super) fn of_handle(handle: CUmemGenericAllocationHandle, len: usize) -> Self {
        Self { handle, len }
    }

    pub(super) fn handle(&self) -> CUmemGenericAllocationHandle {
        self.handle
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn export(&self) -> Result<OwnedFd, CudaError> {
        let mut fd: i32 = -1;
        // SAFETY: for this handle type the driver writes a file descriptor, an int.
        let code = unsafe {
            sys::cuMemExportToShareableHandle((&raw mut fd).cast(), self.handle, FILE, 0)
        };
        CudaError::check(code, "cuMemExportToShareableHandle")?;
        // SAFETY: a new descriptor, which the driver gave to us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn import(fd: &OwnedFd, len: usize) -> Result<Self, CudaError> {
        let mut handle = 0;
        // SAFETY: for this handle type the driver takes the descriptor's number for a pointer; it does not
        // take the descriptor away.
        let code = unsafe {
            let number = fd.as_raw_fd() as usize as *mut c_void;
            sys::cuMemImportFromShareableHandle(&mut handle, number, FILE)
        };
        CudaError::check(code, "cuMemImportFromShareableHandle")?;
        Ok(Self { handle, len })
    }

    /// Its name on the fabric.
    pub(super) fn name(&self) -> Result<Name, CudaError> {
        let mut name: Name = [0; _];
        // SAFETY: for this handle type the driver writes a CUmemFabricHandle, 64 bytes.
        let code = unsafe {
            sys::cuMemExportToShareableHandle((&raw mut name).cast(), self.handle, FABRIC, 0)
        };
        CudaError::check(code, "cuMemExportToShareableHandle (fabric)")?;
        Ok(name)
    }

    /// The allocation of so many bytes that has a name on the fabric.
    pub(super) fn of_name(name: &Name, len: usize) -> Result<Self, CudaError> {
        let mut handle = 0;
        // SAFETY: for this handle type the driver reads 64 bytes, and checks them; it does not write there.
        let code = unsafe {
            let name = name.as_ptr().cast_mut().cast();
            sys::cuMemImportFromShareableHandle(&mut handle, name, FABRIC)
        };
        CudaError::check(code, "cuMemImportFromShareableHandle (fabric)")?;
        Ok(Self { handle, len })
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        // SAFETY: created or imported, and released once. What it fails with nobody can use.
        let _ = unsafe { sys::cuMemRelease(self.handle) };
    }
}

/// A mapping of an allocation of some device, or of a multicast object, for one device to use.
#[derive(Debug)]
pub(super) struct Mapped {
    context: Arc<CudaContext>,
    base: CUdeviceptr,
    len: usize,
}

impl Mapped {
    /// At an address that is a multiple of `granularity`.
    pub(super) fn new(
        gpu: &Gpu,
        physical: &Physical,
        granularity: usize,
    ) -> Result<Self, CudaError> {
        let len = physical.len;
        let mut base = 0;
        // SAFETY: `base` is a local; the driver chooses the address.
        let code = unsafe { sys::cuMemAddressReserve(&mut base, len, granularity, 0, 0) };
        CudaError::check(code, "cuMemAddressReserve")?;
        // SAFETY: the range was reserved just now and nothing is mapped there.
        let code = unsafe { sys::cuMemMap(base, len, 0, physical.handle, 0) };
        if let Err(error) = CudaError::check(code, "cuMemMap") {
            // SAFETY: reserved above, nothing mapped.
            let _ = unsafe { sys::cuMemAddressFree(base, len) };
            return Err(error);
        }
        let mapped = Self { context: gpu.context.clone(), base, len };
        let access = CUmemAccessDesc {
            location: location(gpu.context.ordinal()),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range is mapped; `access` is one description.
        CudaError::check(unsafe { sys::cuMemSetAccess(base, len, &access, 1) }, "cuMemSetAccess")?;
        Ok(mapped)
    }

    /// Where it begins.
    pub(super) fn base(&self) -> u64 {
        self.base
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() {
            return;
        }
        // SAFETY: mapped and reserved in `new`, once; who drops it has waited for the kernels that use it.
        unsafe {
            let _ = sys::cuMemUnmap(self.base, self.len);
            let _ = sys::cuMemAddressFree(self.base, self.len);
        }
    }
}

/// One range of device memory on every rank, those of this host mapped for this rank's GPU. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeerMemory {
    len: usize,
    /// Before the memory behind it: fields are dropped in this order.
    multicast: Option<Arc<Multicast>>,
    mappings: Arc<[Option<Mapped>]>,
}

impl PeerMemory {
    /// Bytes that this rank asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where `rank`'s range begins for this rank's GPU.
    ///
    /// # Panics
    /// If there is no such rank on this host.
    pub fn address(&self, rank: usize) -> u64 {
        self.mappings[rank]
            .as_ref()
            .map_or_else(|| panic!("rank {rank} is elsewhere"), Mapped::base)
    }

    /// Whether `rank`'s range is mapped here: it is, if the rank is on this host.
    pub fn is_mapped(&self, rank: usize) -> bool {
        self.mappings.get(rank).is_some_and(Option::is_some)
    }

    /// The multicast address of all ranks' ranges, for `multimem` instructions alone: on all ranks there is one, or on none. Only
    /// memory of [`Gpu::share_multicast`] has one.
    pub fn multicast(&self) -> Option<u64> {
        self.multicast.as_ref().map(|multicast| multicast.address())
    }
}

impl Gpu {
    /// Shares `len` bytes of this rank's GPU with all ranks of the host and maps theirs. Every rank calls it, in the same
    /// order as its other calls of this kind, with the same length. Blocks until those of the host have. The memory starts as zeros.
    ///
    /// # Errors
    /// The driver refuses, here or on another rank, or a peer is gone.
    pub fn share(&self, node: &Arc<Node>, len: usize) -> Result<PeerMemory, Error> {
        Ok(self.share_in_units(node, len, self.granularity)?.0)
    }

    /// As [`Gpu::share`], with a multicast address ([`PeerMemory::multicast`]) where the ranks have a GPU each and these and their
    /// drivers can; without one where not, on all ranks alike, and where there are several hosts.
    ///
    /// # Errors
    /// As [`Gpu::share`].
    pub fn share_multicast(&self, node: &Arc<Node>, len: usize) -> Result<PeerMemory, Error> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let granularity = match node.spans_hosts() {
            true => None,
            false => multicast::granularity(self, node)?,
        };
        let Some(granularity) = granularity else {
            return self.share(node, len);
        };
        let unit = granularity.max(self.granularity);
        let (mut memory, physical) = self.share_in_units(node, len, unit)?;
        let multicast = Multicast::new(self, node, &physical, unit)?;
        memory.multicast = multicast.map(Arc::new);
        Ok(memory)
    }

    fn share_in_units(
        &self,
        node: &Arc<Node>,
        len: usize,
        unit: usize,
    ) -> Result<(PeerMemory, Physical), Error> {
        let whole = len.max(1).next_multiple_of(unit);
        let made = agree(node, "allocate GPU memory", self.zeros(whole, unit))?;
        let (physical, mine, given) = made;
        let all = given.exchange(node)?;
        let mut mine = Some(mine);
        let map = |(rank, theirs): (usize, Option<Given>)| match theirs {
            Some(theirs) => {
                let mapped = Mapped::new(self, &theirs.import(whole)?, unit);
                mapped.map(Some).map_err(|error| self.explain_access(error, rank))
            }
            None => Ok(mine.take_if(|_| rank == node.rank())),
        };
        let mappings = all.into_iter().enumerate().map(map).collect();
        let mappings = agree(node, "map its peers' GPU memory", mappings)?;
        Ok((PeerMemory { len, multicast: None, mappings }, physical))
    }

    /// What it means that memory of a peer's GPU cannot be mapped for this one.
    fn explain_access(&self, error: CudaError, rank: usize) -> CudaError {
        let codes = [
            sys::CUresult::CUDA_ERROR_INVALID_DEVICE,
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,
        ];
        if !codes.into_iter().any(|code| error.is(code)) {
            return error;
        }
        CudaError::NoPeerAccess { device: self.context.ordinal(), rank }
    }

    /// Memory that peers can map, all zero: the allocation, this rank's mapping, and what the others get.
    fn zeros(&self, len: usize, unit: usize) -> Result<(Physical, Mapped, Given), CudaError> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let physical = Physical::create(self.context.ordinal(), len, self.handles)?;
        let mine = Mapped::new(self, &physical, unit)?;
        // SAFETY: the range is mapped for this device and nobody else knows it yet.
        CudaError::check(unsafe { sys::cuMemsetD8_v2(mine.base, 0, len) }, "cuMemsetD8")?;
        self.context.synchronize().map_err(CudaError::of("cuCtxSynchronize"))?;
        let given = self.handles.give(&physical)?;
        Ok((physical, mine, given))
    }

    /// Host memory of `len` zero bytes that the device sees at the same address as the host.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn host_memory(&self, len: usize) -> Result<HostMemory, CudaError> {
        self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let mut base = std::ptr::null_mut();
        const SEEN_BY_ALL_CONTEXTS: u32 = 1;
        const SEEN_BY_THE_DEVICE: u32 = 2;
        let flags = SEEN_BY_ALL_CONTEXTS | SEEN_BY_THE_DEVICE;
        // SAFETY: `base` is a local.
        let code = unsafe { sys::cuMemHostAlloc(&mut base, len.max(1), flags) };
        CudaError::check(code, "cuMemHostAlloc")?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(CudaError::NoDriver)?;
        // SAFETY: as many bytes were allocated just now.
        unsafe { base.write_bytes(0, len) };
        let mut device = 0;
        // SAFETY: `device` is a local and `base` came from cuMemHostAlloc.
        let code =
            unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, base.as_ptr().cast(), 0) };
        let memory = HostMemory { context: self.context.clone(), base, device, len };
        CudaError::check(code, "cuMemHostGetDevicePointer")?;
        Ok(memory)
    }
}

/// Pinned host memory that the device sees.
#[derive(Debug)]
pub struct HostMemory {
    context: Arc<CudaContext>,
    base: NonNull<u8>,
    device: CUdeviceptr,
    len: usize,
}

// SAFETY: memory without thread affinity; only raw pointers are handed out.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// The first byte, for the host.
    pub fn host(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The first byte, for the device.
    pub fn device(&self) -> u64 {
        self.device
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

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated in `host_memory`, freed once; who drops it has waited for the kernels that use it.
            let _ = unsafe { sys::cuMemFreeHost(self.base.as_ptr().cast()) };
        }
    }
}

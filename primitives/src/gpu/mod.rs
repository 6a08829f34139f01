//! CUDA devices: memory that the GPUs of a node reach in each other.
//!
//! The driver is looked for at run time; a machine without one has everything else of this crate. Memory is allocated as a
//! physical allocation (CUDA's virtual memory management) that is exported as a file descriptor and passed to the peers like
//! the host's shared memory, or by its name on an NVLink fabric ([`Handles`]), and mapped by each of them.

mod error;
mod foreign;
mod handles;
mod memory;
mod multicast;
mod queue;
mod region;
mod vote;

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};

pub use self::error::CudaError;
pub use self::foreign::{Export, Exported, Import, PointerInfo, Way};
pub use self::handles::{Handles, NoFabric, UnknownHandles};
pub use self::memory::{HostMemory, PeerMemory};
pub(crate) use self::queue::CopyQueue;
pub use self::region::{DeviceMemory, DeviceRegion};
use crate::error::Error;
use crate::topology::BusId;

/// A GPU as a communicator uses it.
#[derive(Clone, Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    /// Multiple of which allocations are made.
    granularity: usize,
    handles: Handles,
    architecture: u32,
    multiprocessors: u32,
}

/// Multicast objects are of 12.1; the rest is older.
const OLDEST_DRIVER: i32 = 12010;

/// The version of the driver's CUDA: 12040 for 12.4.
///
/// # Errors
/// The driver does not say.
pub fn driver_version() -> Result<i32, CudaError> {
    let mut version = 0;
    // SAFETY: `version` is a local.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    CudaError::check(code, "cuDriverGetVersion")?;
    Ok(version)
}

fn check_driver() -> Result<(), CudaError> {
    let (driver, needed) = (driver_version()?, OLDEST_DRIVER);
    if driver < needed {
        let what = "virtual memory that ranks share; install a newer driver";
        return Err(CudaError::DriverTooOld { driver, needed, what });
    }
    Ok(())
}

impl Gpu {
    /// The GPU of a context. Its current context becomes that of the calling thread.
    ///
    /// # Errors
    /// The driver is too old, or it or the device lacks virtual memory management with file descriptors.
    pub fn new(context: Arc<CudaContext>) -> Result<Self, Error> {
        use sys::CUdevice_attribute_enum as Attribute;
        context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        check_driver()?;
        let attribute = |attribute, what| context.attribute(attribute).map_err(CudaError::of(what));
        let exports = attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
            "whether memory can be exported",
        )?;
        if exports == 0 {
            let device = context.ordinal();
            return Err(CudaError::Unsupported { device, what: "exporting memory to peers" }.into());
        }
        let major = attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            "the compute capability",
        )?;
        let minor = attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            "the compute capability",
        )?;
        let multiprocessors = attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            "the number of multiprocessors",
        )?;
        let granularity = memory::granularity(context.ordinal(), Handles::Files)?;
        let (architecture, multiprocessors) = ((10 * major + minor) as u32, multiprocessors as u32);
        let handles = Handles::Files;
        Ok(Self { context, granularity, handles, architecture, multiprocessors })
    }

    /// Whether there is a CUDA driver on this machine.
    pub fn driver_is_there() -> bool {
        // SAFETY: looks for the library, nothing more.
        #[cfg(not(feature = "dynamic-linking"))]
        let there = unsafe { sys::is_culib_present() };
        // Without it this program would not have started.
        #[cfg(feature = "dynamic-linking")]
        let there = true;
        there
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Where it is on the PCI bus, if the driver says so.
    pub fn bus(&self) -> Option<BusId> {
        let mut text = [0; 32];
        let device = self.context.cu_device();
        // SAFETY: the text is as long as is said, and ends with NUL then.
        let code =
            unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as i32, device) };
        CudaError::check(code, "cuDeviceGetPCIBusId").ok()?;
        let text: Vec<u8> =
            text.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
        std::str::from_utf8(&text).ok()?.parse().ok()
    }

    /// Compute capability: 90 for 9.0.
    pub fn architecture(&self) -> u32 {
        self.architecture
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }
}

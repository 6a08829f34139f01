use cudarc::driver::sys::{self, CUresult};

/// What the CUDA driver refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A call of the driver failed.
    #[error("{what}: CUDA error {code}, {name}")]
    Driver {
        /// What was tried.
        what: &'static str,
        /// The CUresult.
        code: u32,
        /// Its name.
        name: String,
    },

    /// The device or its driver cannot do something that is needed.
    #[error("CUDA device {device} or its driver does not support {what}")]
    Unsupported {
        /// The device.
        device: usize,
        /// What is missing.
        what: &'static str,
    },

    /// The driver is of an older CUDA than what is needed.
    #[error("the driver is of CUDA {}, at least {} is needed: {what}", dotted(*.driver), dotted(*.needed))]
    DriverTooOld {
        /// The driver's version, as `cuDriverGetVersion` has it: 12040 for 12.4.
        driver: i32,
        /// The oldest that does.
        needed: i32,
        /// What for, and what else would help.
        what: &'static str,
    },

    /// A GPU does not reach a peer's memory.
    #[error(
        "CUDA device {device} does not reach the memory of rank {rank}'s GPU: there is no peer access between the two, by NVLink or \
         PCIe (`nvidia-smi topo -p2p rw` shows which have it)"
    )]
    NoPeerAccess {
        /// The device of this rank.
        device: usize,
        /// The peer.
        rank: usize,
    },

    /// An address is not memory of the GPU that it should be of.
    #[error("{address:#x} is not memory of CUDA device {device}")]
    NotOfDevice {
        /// The address.
        address: u64,
        /// The device.
        device: usize,
    },

    /// A range is longer than the memory that it begins in.
    #[error("the range at {address:#x} ends {beyond} bytes outside its allocation")]
    EndsOutside {
        /// Its beginning.
        address: u64,
        /// Bytes.
        beyond: u64,
    },

    /// Memory that other processes cannot map.
    #[error(
        "the memory at {address:#x} cannot be shared with other processes: it was allocated from a memory pool (cuMemAllocAsync) or \
         without a handle type; allocate it with cuMemAlloc, with cuMemCreate for file descriptors, or by this library"
    )]
    CannotBeShared {
        /// The address.
        address: u64,
    },

    /// Another rank could not do its part of what all do together.
    #[error("rank {rank} could not {what}; its own error says why")]
    OfPeer {
        /// The first such rank.
        rank: usize,
        /// What it tried.
        what: &'static str,
    },

    /// No CUDA driver.
    #[error("no CUDA driver on this machine (libcuda.so.1 is not found)")]
    NoDriver,
}

/// 12040 is 12.4.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl CudaError {
    /// Whether a call was answered with this code.
    pub fn is(&self, code: CUresult) -> bool {
        matches!(self, Self::Driver { code: answered, .. } if *answered == code as u32)
    }

    /// Makes one of cudarc's errors say what was tried.
    pub(super) fn of(what: &'static str) -> impl Fn(cudarc::driver::DriverError) -> Self {
        move |error| Self::new(what, error.0)
    }

    /// For a call that was answered with this code.
    pub fn new(what: &'static str, code: CUresult) -> Self {
        let mut name = std::ptr::null();
        // SAFETY: `name` is a local; the driver points it to a constant, or leaves it.
        let known = unsafe { sys::cuGetErrorName(code, &mut name) };
        let name = if known == CUresult::CUDA_SUCCESS && !name.is_null() {
            // SAFETY: a constant of the driver's.
            unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            "unknown".to_owned()
        };
        Self::Driver { what, code: code as u32, name }
    }

    /// Ok for success, else the error with what was tried.
    ///
    /// # Errors
    /// The call failed.
    pub fn check(code: CUresult, what: &'static str) -> Result<(), Self> {
        if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Self::new(what, code)) }
    }
}

//! Host memory for words that threads, kernels and NICs share.

use crate::error::{Error, system};
use crate::gpu::{Gpu, HostMemory};
use crate::sys::Mapping;

/// Page aligned memory, zero in the beginning.
#[derive(Debug)]
pub(in crate::net) enum HostWords {
    /// For the host, and NICs.
    Mapped(Mapping),
    /// Also for a GPU.
    Pinned(HostMemory),
}

impl HostWords {
    pub(in crate::net) fn new(bytes: usize, what: &'static str) -> Result<Self, Error> {
        Ok(Self::Mapped(Mapping::create(bytes).map_err(system(what))?.0))
    }

    pub(in crate::net) fn pinned(gpu: &Gpu, bytes: usize) -> Result<Self, Error> {
        Ok(Self::Pinned(gpu.host_memory(bytes)?))
    }

    #[inline]
    pub(in crate::net) fn base(&self) -> *mut u8 {
        match self {
            Self::Mapped(mapping) => mapping.base(),
            Self::Pinned(memory) => memory.host(),
        }
    }

    pub(in crate::net) fn len(&self) -> usize {
        match self {
            Self::Mapped(mapping) => mapping.len(),
            Self::Pinned(memory) => memory.len(),
        }
    }

    /// Where a GPU sees it.
    pub(in crate::net) fn device(&self) -> Option<u64> {
        match self {
            Self::Mapped(_) => None,
            Self::Pinned(memory) => Some(memory.device()),
        }
    }
}

//! Memory that all ranks have mapped, in which buffers of calls may lie.
//!
//! A window has the same number on all ranks. Kernels find where a peer's window begins in a table in device memory, which a
//! registration writes before any call can name the window.

use std::sync::{Arc, Weak};

use cudarc::driver::sys;
use warpmesh_primitives::gpu::{CudaError, Gpu, Import, PeerMemory, PointerInfo};

use super::regions::{MAX_WINDOWS, Regions};
use crate::error::{Error, argument};

/// A buffer's place in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) window: usize,
    pub(crate) offset: u64,
}

/// What keeps a window mapped.
pub(crate) enum Keep {
    /// Memory of this library's.
    Own(PeerMemory),
    /// Memory of another allocator, with the number that the driver gave it here.
    Foreign { _peers: Vec<Import>, id: u64 },
}

struct Window {
    number: usize,
    start: u64,
    len: u64,
    keep: Keep,
    alive: Weak<()>,
}

impl Window {
    /// Whether memory with this number is what was registered: memory that was freed may be allocated anew.
    fn is_still(&self, info: &PointerInfo) -> bool {
        match self.keep {
            Keep::Own(_) => true,
            Keep::Foreign { id, .. } => id == info.id,
        }
    }
}

/// All windows of a communicator.
#[derive(Default)]
pub(crate) struct Windows {
    next: usize,
    live: Vec<Window>,
}

impl Windows {
    /// Bytes of this library's memory that this rank has in windows.
    pub(crate) fn bytes(&self) -> usize {
        let own = |window: &Window| match &window.keep {
            Keep::Own(memory) => memory.len(),
            Keep::Foreign { .. } => 0,
        };
        self.live.iter().map(own).sum()
    }

    /// Lets go of windows that nobody holds.
    pub(crate) fn tidy(&mut self) {
        self.live.retain(|window| window.alive.strong_count() > 0);
    }

    /// Adds a window that begins at these addresses, by rank; what keeps it alive. All ranks do it in the same order.
    ///
    /// # Errors
    /// The driver refuses, or there are too many.
    pub(crate) fn add(
        &mut self,
        gpu: &Gpu,
        regions: &Regions,
        rank: usize,
        (starts, len): (&[u64], u64),
        keep: Keep,
    ) -> Result<(usize, Arc<()>), Error> {
        let number = self.next;
        self.next += 1;
        let row = number % MAX_WINDOWS;
        if self.live.iter().any(|window| window.number == row) {
            let problem = format!("is there {MAX_WINDOWS} times already: drop some");
            return Err(argument("register", "registered memory", problem));
        }
        gpu.context().bind_to_thread().map_err(|e| driver("cuCtxSetCurrent", e.0))?;
        let bytes = size_of_val(starts);
        // SAFETY: the table has a row of as many words for every window.
        let code =
            unsafe { sys::cuMemcpyHtoD_v2(regions.window_row(row), starts.as_ptr().cast(), bytes) };
        CudaError::check(code, "cuMemcpyHtoD").map_err(warpmesh_primitives::Error::from)?;
        let alive = Arc::new(());
        let weak = Arc::downgrade(&alive);
        self.live.push(Window { number: row, start: starts[rank], len, keep, alive: weak });
        Ok((row, alive))
    }

    /// The window that a range lies in, of which the driver says this.
    pub(crate) fn find(&self, address: u64, bytes: u64, info: &PointerInfo) -> Option<Place> {
        self.live.iter().find_map(|window| {
            let offset = address.checked_sub(window.start)?;
            let fits = offset.checked_add(bytes)? <= window.len;
            let good = fits && window.alive.strong_count() > 0 && window.is_still(info);
            good.then_some(Place { window: window.number, offset })
        })
    }

    /// The window of exactly this range, if it was registered.
    pub(crate) fn exact(
        &self,
        address: u64,
        len: u64,
        info: &PointerInfo,
    ) -> Option<(usize, Arc<()>)> {
        self.live.iter().find_map(|window| {
            let same = (window.start, window.len) == (address, len) && window.is_still(info);
            Some((window.number, window.alive.upgrade().filter(|_| same)?))
        })
    }
}

fn driver(what: &'static str, code: sys::CUresult) -> Error {
    warpmesh_primitives::Error::from(CudaError::new(what, code)).into()
}

//! Semaphores for which kernels wait, and what that asks of a GPU.

use super::{Exchange, RdmaOptions, RdmaTransport};
use crate::gpu::Gpu;
use crate::net::{NetError, Region, Signals};

/// The first architecture whose kernels see what NICs wrote into its memory before what these wrote into the host's.
const ORDERED: u32 = 90;

impl RdmaTransport {
    /// As [`RdmaTransport::new`], with semaphores for which kernels of a GPU can wait, in pinned memory of the host.
    ///
    /// Data that NICs write into memory of the GPU is seen by a kernel behind such a semaphore from compute capability 9.0 on. Older
    /// GPUs may show the semaphore first, so memory of theirs is refused: peers' data has to go through memory of the host.
    ///
    /// # Errors
    /// As [`RdmaTransport::new`]; the driver refuses.
    pub fn on_gpu(
        gpu: &Gpu,
        (rank, world): (usize, usize),
        semaphores: usize,
        options: RdmaOptions,
        exchange: Box<dyn Exchange>,
    ) -> Result<Self, NetError> {
        let signals = |lanes| Signals::on_gpu(gpu, semaphores, lanes);
        let mut transport = Self::with(rank, world, &signals, options, exchange)?;
        transport.too_old = Some(gpu.architecture()).filter(|&arch| arch < ORDERED);
        Ok(transport)
    }

    /// Refuses memory of a GPU whose kernels may see signals before data.
    pub(super) fn check_order(&self, number: u32, region: &dyn Region) -> Result<(), NetError> {
        match self.too_old.filter(|_| region.is_on_device()) {
            None => Ok(()),
            Some(arch) => Err(NetError::System {
                what: format!("registering memory {number}, which is a device's"),
                cause: format!(
                    "kernels of a GPU of sm_{arch} may see signals before what NICs write into its memory; register memory of the \
                     host, or use GPUs from sm_{ORDERED} on"
                ),
            }),
        }
    }
}

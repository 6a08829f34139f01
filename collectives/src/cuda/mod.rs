//! The CUDA device: collectives on GPU memory, by plans compiled to kernels.
//!
//! A call is put on the caller's stream and returns at once: it fills a kernel's parameter and launches it, no more. Ranks
//! need not come at the same time; kernels wait for each other, each wait is bounded. What goes wrong on the device is
//! returned by the next call or by [`CudaCommunicator::synchronize`].

mod arrange;
mod buffer;
mod call;
mod choose;
pub(crate) mod emit;
mod far;
mod geometry;
mod group;
mod kernel;
mod lines;
mod mail;
mod names;
pub(crate) mod params;
mod recent;
mod regions;
mod setup;
mod show;
mod switch;
mod typed;
mod watch;
mod windows;

use warpmesh_primitives::failure::Failure;
use warpmesh_primitives::gpu::{CudaError, Gpu};

pub use self::buffer::{CudaBytes, CudaRegistration};
use self::choose::Candidate;
pub use self::emit::EmitError;
use self::far::Far;
pub use self::group::CudaGroup;
use self::kernel::Loaded;
use self::mail::Mail;
use self::recent::Recent;
use self::regions::Regions;
pub use self::show::{CudaKernel, cuda_kernel, cuda_kernel_on, cuda_mail_kernels};
pub use self::typed::CudaBuffer;
use self::watch::Watch;
use self::windows::Windows;
use crate::algorithms::Layout;
use crate::communicator::Communicator;
use crate::dtype::DataType;
use crate::error::Error;
use crate::host::Letter;
use crate::op::OpKind;

/// A group of ranks whose buffers lie on GPUs: made of a [`Communicator`] by [`Communicator::on_gpu`].
pub struct CudaCommunicator {
    host: Communicator,
    gpu: Gpu,
    regions: Regions,
    watch: Watch,
    /// Ranks of other hosts, if there are any.
    far: Option<Far>,
    layout: Layout,
    candidates: Vec<Candidate>,
    kernels: Vec<(Key, Loaded)>,
    recent: Recent,
    windows: Windows,
    mail: Mail,
    letters: Vec<Letter>,
    sequence: u64,
    /// Thread blocks of a kernel, at most.
    most_blocks: usize,
}

/// What a kernel is compiled for, besides the rank: the plan's number, the root, the type, the operator.
type Key = (usize, usize, DataType, OpKind);

impl std::fmt::Debug for CudaCommunicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, world) = (self.rank(), self.world());
        write!(f, "CudaCommunicator(rank {rank} of {world}, call {})", self.sequence)
    }
}

impl CudaCommunicator {
    /// This rank.
    pub fn rank(&self) -> usize {
        self.host.rank()
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.host.world()
    }

    /// Bytes of GPU memory that this rank holds for the communicator, [`CudaBytes`] included.
    pub fn held_bytes(&self) -> usize {
        self.regions.bytes() + self.windows.bytes() + self.mail.memory().len()
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Makes all ranks' running and later calls fail.
    pub fn abort(&self) {
        self.host.abort();
    }

    /// Something that can abort this communicator from any thread.
    pub fn abort_handle(&self) -> crate::AbortHandle {
        self.host.abort_handle()
    }

    /// Why this communicator is of no further use, if it is not. Does not block.
    pub fn failure(&self) -> Option<Failure> {
        self.host.node().failure().or_else(|| self.watch.shared.given_up())
    }

    /// Waits until all ranks have come here. The ranks' host threads meet, not their streams.
    ///
    /// # Errors
    /// A peer is gone, or does not come in time.
    pub fn host_barrier(&mut self) -> Result<(), Error> {
        Ok(self.host.bootstrap_mut().barrier()?)
    }
}

fn driver_error(error: CudaError) -> Error {
    warpmesh_primitives::Error::from(error).into()
}

impl Drop for CudaCommunicator {
    fn drop(&mut self) {
        // Kernels end by themselves, if peers do their part, or by the watcher; only then may memory be unmapped.
        if self.host.node().failure().is_some() {
            self.watch.shared.abort();
        }
        let _ = self.gpu.context().synchronize();
        self.host.node().me().finish_call(self.sequence);
        if self.far.is_some() {
            // Before the connections close, so that peers know why they do.
            self.host.node().leave();
        }
    }
}

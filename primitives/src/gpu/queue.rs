//! Copies by the copy engines, in order, on a stream of their own.
//!
//! The stream is made to be independent of the default one: a kernel that waits for what a copy brings must not be what
//! the copy waits for.
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | `done` | the stream, behind what was queued before [`CopyQueue::mark`] | the host | the stream's, with the fence of a stream write / Acquire |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult, CUstream};

use super::{CudaError, Gpu, HostMemory};

/// A stream of copies and of words that are written behind them.
#[derive(Debug)]
pub(crate) struct CopyQueue {
    context: Arc<CudaContext>,
    stream: CUstream,
    done: HostMemory,
    marks: u64,
    /// The thread for which the context was made the current one.
    bound: Option<ThreadId>,
}

// SAFETY: streams have no thread affinity, and the context is made current for each thread that uses the queue.
unsafe impl Send for CopyQueue {}

impl CopyQueue {
    /// An empty queue. May wait for kernels that run, since it allocates.
    pub(crate) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let context = gpu.context().clone();
        context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
        let attribute = Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS;
        let can =
            context.attribute(attribute).map_err(CudaError::of("stream memory operations"))?;
        if can == 0 {
            let what = "stream memory operations of 64 bits";
            return Err(CudaError::Unsupported { device: context.ordinal(), what });
        }
        let done = gpu.host_memory(size_of::<AtomicU64>())?;
        let mut stream = std::ptr::null_mut();
        const NON_BLOCKING: u32 = 1;
        // SAFETY: `stream` is a local.
        let code = unsafe { sys::cuStreamCreate(&mut stream, NON_BLOCKING) };
        CudaError::check(code, "cuStreamCreate")?;
        Ok(Self { context, stream, done, marks: 0, bound: None })
    }

    /// Copies bytes behind all that was queued before.
    ///
    /// # Safety
    /// Both ranges are memory that the device reaches, until the mark behind is done.
    pub(crate) unsafe fn copy(
        &mut self,
        to: u64,
        from: u64,
        bytes: usize,
    ) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller's promise.
        let code = unsafe { sys::cuMemcpyAsync(to, from, bytes, self.stream) };
        CudaError::check(code, "cuMemcpyAsync")
    }

    /// Stores a word behind all that was queued before, which whoever sees the word sees, too.
    ///
    /// # Safety
    /// An aligned word that the device reaches, until the mark behind is done.
    pub(crate) unsafe fn write(&mut self, at: u64, value: u64) -> Result<(), CudaError> {
        self.bind()?;
        const BEHIND_A_FENCE: u32 = 0;
        // SAFETY: the caller's promise.
        let code = unsafe { sys::cuStreamWriteValue64_v2(self.stream, at, value, BEHIND_A_FENCE) };
        CudaError::check(code, "cuStreamWriteValue64")
    }

    /// A number that [`CopyQueue::done`] reaches when all that was queued before has happened.
    pub(crate) fn mark(&mut self) -> Result<u64, CudaError> {
        let (at, mark) = (self.done.device(), self.marks + 1);
        // SAFETY: this queue's own pinned word, which lives as long as the stream.
        unsafe { self.write(at, mark)? };
        self.marks = mark;
        Ok(mark)
    }

    /// The last mark that has happened. Acquire.
    #[inline]
    pub(crate) fn done(&self) -> u64 {
        // SAFETY: an aligned word of pinned memory that lives as long as `self`; the stream's stores to it are whole.
        unsafe { AtomicU64::from_ptr(self.done.host().cast()) }.load(Ordering::Acquire)
    }

    /// Whether marks are missing.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        self.done() < self.marks
    }

    /// Asks the driver whether something went wrong. Does not block.
    pub(crate) fn check(&mut self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(self.stream) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            code => CudaError::check(code, "a copy between memories"),
        }
    }

    /// Waits until all that was queued has happened. Nothing in the queue waits for anything, so this takes no longer than copies do.
    pub(crate) fn finish(&mut self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives.
        CudaError::check(unsafe { sys::cuStreamSynchronize(self.stream) }, "cuStreamSynchronize")
    }

    /// Makes the context current, which one thread, mostly, needs once.
    fn bind(&mut self) -> Result<(), CudaError> {
        let thread = std::thread::current().id();
        if self.bound != Some(thread) {
            self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
            self.bound = Some(thread);
        }
        Ok(())
    }
}

impl Drop for CopyQueue {
    /// Whose memory is copied may go only then.
    fn drop(&mut self) {
        if self.finish().is_ok() {
            // SAFETY: made in `new`, destroyed once.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
    }
}

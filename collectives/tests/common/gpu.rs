//! Ranks on GPUs.

use std::sync::Arc;

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use warpmesh::{Builder, Communicator, CudaBytes, CudaCommunicator, Element, Error, RawCall};
use warpmesh_primitives::gpu::Gpu;

/// The number of GPUs. `None`: there is no driver, which is said loudly, and is a failure if WARPMESH_NEEDS_GPU is set.
pub fn count() -> Option<usize> {
    if Gpu::driver_is_there() {
        return Some(CudaContext::device_count().unwrap() as usize).filter(|count| *count > 0);
    }
    eprintln!("\n*** NOT RUN: no CUDA driver; `vgpu run -- cargo test` has a virtual one ***\n");
    assert!(std::env::var_os("WARPMESH_NEEDS_GPU").is_none(), "a GPU is needed");
    None
}

/// A rank of a world of threads, with a stream.
pub struct Rank {
    pub comm: CudaCommunicator,
    pub stream: Arc<CudaStream>,
}

/// Runs `work` as every rank of a world of threads, rank r on GPU r (or as many as there are), and returns what each returned.
pub fn ranks_with<R: Send>(
    builder: Builder,
    world: usize,
    work: impl Fn(Rank) -> R + Sync,
) -> Vec<R> {
    super::ranks_with(builder, world, |comm| work(rank(comm)))
}

/// A rank on GPU r, or as many as there are, with a stream.
pub fn rank(comm: Communicator) -> Rank {
    let context = CudaContext::new(comm.rank() % count().unwrap()).unwrap();
    let stream = context.new_stream().unwrap();
    Rank { comm: comm.on_gpu(context).unwrap(), stream }
}

impl Rank {
    pub fn upload<T: Element>(&self, to: u64, data: &[T]) {
        let bytes = size_of_val(data);
        // SAFETY: the tests' memory is as long as what is copied there.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, data.as_ptr().cast(), bytes, self.stream.cu_stream())
        };
        code.result().unwrap();
        self.stream.synchronize().unwrap();
    }

    pub fn download<T: Element>(&self, from: u64, count: usize) -> Vec<T> {
        let mut data = vec![T::zeroed(); count];
        let bytes = size_of_val(&data[..]);
        // SAFETY: as above.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast(),
                from,
                bytes,
                self.stream.cu_stream(),
            )
        };
        code.result().unwrap();
        self.stream.synchronize().unwrap();
        data
    }

    pub fn call(&mut self, call: &RawCall) -> Result<(), Error> {
        // SAFETY: the tests' buffers live until the stream has passed the call.
        unsafe { self.comm.call(call, self.stream.cu_stream()) }
    }

    pub fn synchronize(&mut self) -> Result<(), Error> {
        // SAFETY: the stream is of the communicator's context.
        unsafe { self.comm.synchronize(self.stream.cu_stream()) }
    }
}

/// Memory of a rank's GPU.
pub enum Memory {
    Registered(CudaBytes),
    Plain(CudaSlice<u8>, u64),
}

impl Memory {
    pub fn new(rank: &mut Rank, bytes: usize, registered: bool) -> Memory {
        if registered {
            return Memory::Registered(rank.comm.alloc_bytes(bytes).unwrap());
        }
        let slice = rank.stream.alloc_zeros::<u8>(bytes).unwrap();
        let address = slice.device_ptr(&rank.stream).0;
        Memory::Plain(slice, address)
    }

    pub fn address(&self) -> u64 {
        match self {
            Memory::Registered(bytes) => bytes.address(),
            Memory::Plain(_, address) => *address,
        }
    }
}

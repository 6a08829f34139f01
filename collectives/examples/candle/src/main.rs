//! All-reduce of candle tensors, in place, on CPUs or GPUs: two ranks, each a thread with a model's gradients.
//!
//! ```text
//! cargo run --release                          # tensors on the CPU
//! cargo run --release --features cuda -- cuda  # tensors on GPUs, rank r's on GPU r
//! ```

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, DType, Device, Error, InplaceOp1, Layout, Result, Tensor,
};
use warpmesh::{Communicator, CudaCommunicator, ReduceOp};

/// A sum over all ranks, as an operation of candle's.
enum AllReduce {
    Host(Mutex<Communicator>),
    // Without candle's own GPUs there is nothing to make it of.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    Gpu(Mutex<CudaCommunicator>),
}

impl AllReduce {
    fn new(host: Communicator, device: &Device) -> Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => {
                let context = gpu.cuda_stream().context().clone();
                Ok(Self::Gpu(Mutex::new(host.on_gpu(context).map_err(Error::wrap)?)))
            }
            _ => Ok(Self::Host(Mutex::new(host))),
        }
    }
}

/// The tensor's elements in its storage; they have to follow each other.
fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    let offsets = layout.contiguous_offsets();
    let (begin, end) = offsets.ok_or_else(|| Error::msg("all_reduce: the tensor is not contiguous"))?;
    Ok(begin..end)
}

impl InplaceOp1 for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Self::Host(comm) = self else {
            candle_core::bail!("all_reduce: a tensor on the CPU, a communicator on a GPU");
        };
        let mut comm = comm.lock().expect("no other thread has failed");
        let done = match storage {
            CpuStorage::F32(data) => comm.all_reduce(&mut data[range(layout)?], ReduceOp::Sum),
            CpuStorage::BF16(data) => comm.all_reduce(&mut data[range(layout)?], ReduceOp::Sum),
            CpuStorage::F16(data) => comm.all_reduce(&mut data[range(layout)?], ReduceOp::Sum),
            _ => candle_core::bail!("all_reduce: add your type here"),
        };
        done.map_err(Error::wrap)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::cuda::CudaStorageSlice::{BF16, F16, F32};
        let Self::Gpu(comm) = self else {
            candle_core::bail!("all_reduce: a tensor on a GPU, a communicator on the host");
        };
        let mut comm = comm.lock().expect("no other thread has failed");
        // In order with candle's own kernels.
        let stream = storage.device.cuda_stream();
        let (range, sum) = (range(layout)?, ReduceOp::Sum);
        let done = match &mut storage.slice {
            F32(data) => comm.all_reduce(&mut data.slice_mut(range), sum, &stream),
            BF16(data) => comm.all_reduce(&mut data.slice_mut(range), sum, &stream),
            F16(data) => comm.all_reduce(&mut data.slice_mut(range), sum, &stream),
            _ => candle_core::bail!("all_reduce: add your type here"),
        };
        done.map_err(Error::wrap)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("all_reduce: built without the feature `cuda`")
    }
}

const RANKS: usize = 2;

/// A rank's work: its tensors are its number plus one, so that a sum over the ranks is 3.
fn work(host: Communicator, on_gpu: bool) -> Result<()> {
    let rank = host.rank();
    let device = if on_gpu { Device::new_cuda(rank)? } else { Device::Cpu };
    let sum = AllReduce::new(host, &device)?;
    for dtype in [DType::F32, DType::BF16] {
        let gradients = Tensor::full(rank as f32 + 1.0, (4, 1000), &device)?.to_dtype(dtype)?;
        gradients.inplace_op1(&sum)?;
        // Part of a tensor, too: one row of it is added up once more.
        gradients.narrow(0, 1, 1)?.inplace_op1(&sum)?;
        let rows = gradients.to_dtype(DType::F32)?.max(1)?.to_vec1::<f32>()?;
        println!("rank {rank}, {}: rows of {rows:?}", dtype.as_str());
        if rows != [3.0, 6.0, 3.0, 3.0] {
            candle_core::bail!("rank {rank}: wrong sums");
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let on_gpu = match std::env::args().nth(1).as_deref() {
        None | Some("cpu") => false,
        Some("cuda") => true,
        Some(other) => candle_core::bail!("unknown argument '{other}': cpu or cuda"),
    };
    let ranks = Communicator::builder().local(RANKS).map_err(Error::wrap)?;
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            ranks.into_iter().map(|rank| scope.spawn(move || work(rank, on_gpu))).collect();
        ranks.into_iter().try_for_each(|rank| rank.join().expect("no rank panics"))
    })
}

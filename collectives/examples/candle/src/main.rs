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
    let (begin, end) =
        offsets.ok_or_else(|| Error::msg("all_reduce: the tensor is not contiguous"))?;
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
            CpuStorage::F64(data) => comm.all_reduce(&mut data[range(layout)?], ReduceOp::Sum),
            CpuStorage::F16(data) => comm.all_reduce(&mut data[range(layout)?], ReduceOp::Sum),
            _ => candle_core::bail!("all_reduce: add your type here"),
        };
        done.map_err(Error::wrap)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::cuda::CudaStorageSlice::{BF16, F16, F32, F64};
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
            F64(data) => comm.all_reduce(&mut data.slice_mut(range), sum, &stream),
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
const ROWS: usize = 4;
const COLUMNS: usize = 1001;

/// A rank's work: tensors of several types, of which some are summed up whole and then in part.
fn work(host: Communicator, on_gpu: bool) -> Result<()> {
    let rank = host.rank();
    let device = if on_gpu { Device::new_cuda(rank)? } else { Device::Cpu };
    let sum = AllReduce::new(host, &device)?;
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        let gradients = gradients(rank, dtype, &device)?;
        gradients.inplace_op1(&sum)?;
        check(&gradients, |index| 3 * element(index))?;
        // A part of a tensor, too, wherever it begins.
        let part = 1002..2999;
        gradients.flatten_all()?.narrow(0, part.start, part.len())?.inplace_op1(&sum)?;
        check(&gradients, |index| if part.contains(&index) { 6 } else { 3 } * element(index))?;
        // A column does not lie in one piece; both ranks are told so, and go on.
        match gradients.narrow(1, 5, 1)?.inplace_op1(&sum) {
            Err(error) if error.to_string().contains("not contiguous") => {}
            other => candle_core::bail!("a column was taken: {other:?}"),
        }
    }
    println!("rank {rank}, {:?}: sums of four types are right", device.location());
    Ok(())
}

/// Small integers, which all types have, and whose sums they have.
fn element(index: usize) -> usize {
    index % 37
}

/// Made on the device, by kernels of candle's that the all-reduce has to wait for: each rank's
/// elements times its number plus one, so that the ranks' sum is three times the element.
fn gradients(rank: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let elements = (0..ROWS * COLUMNS).map(|index| element(index) as f32).collect();
    let elements = Tensor::from_vec(elements, (ROWS, COLUMNS), device)?.to_dtype(dtype)?;
    elements.affine(rank as f64 + 1.0, 0.0)
}

fn check(tensor: &Tensor, wanted: impl Fn(usize) -> usize) -> Result<()> {
    let found = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let wrong = found.iter().enumerate().find(|(index, value)| **value != wanted(*index) as f64);
    match wrong {
        None if found.len() == ROWS * COLUMNS => Ok(()),
        wrong => candle_core::bail!("{:?} of {} elements: {wrong:?}", tensor.dtype(), found.len()),
    }
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

//! The calls, with cudarc's types.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use super::{CudaBytes, CudaCommunicator};
use crate::communicator::RawCall;
use crate::communicator::typed::{block, same_length};
use crate::dtype::Element;
use crate::error::{Error, argument};
use crate::op::ReduceOp;
use crate::plan::Collective;

/// GPU memory that peers reach, so that calls on it stage nothing; cudarc copies to it and from it as to a `CudaSlice`. Made by
/// [`CudaCommunicator::alloc`] or [`CudaCommunicator::alloc_symmetric`]. Use it on one stream, or order streams yourself: cudarc records no events for it.
#[derive(Debug)]
pub struct CudaBuffer<T> {
    bytes: CudaBytes,
    len: usize,
    stream: Arc<CudaStream>,
    _elements: PhantomData<T>,
}

impl<T> DeviceSlice<T> for CudaBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for CudaBuffer<T> {
    fn device_ptr<'a>(&'a self, _: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        (self.bytes.address(), SyncOnDrop::Record(None))
    }
}

impl<T> DevicePtrMut<T> for CudaBuffer<T> {
    fn device_ptr_mut<'a>(&'a mut self, _: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        (self.bytes.address(), SyncOnDrop::Record(None))
    }
}

/// A call but for its buffers.
struct What {
    collective: Collective,
    op: ReduceOp,
    root: usize,
    count: usize,
}

impl What {
    fn of(collective: Collective, count: usize) -> Self {
        Self { collective, op: ReduceOp::Sum, root: 0, count }
    }
}

/// Collectives on device memory: `CudaSlice`, views of one, [`CudaBuffer`], anything that cudarc has a device pointer of. They are
/// put on `stream` and return at once, with the errors of [`CudaCommunicator::call`]; all ranks call the same in the same order.
impl CudaCommunicator {
    /// Allocates `len` elements that all ranks reach, all zero. A collective call, with the same length on all ranks. Blocks
    /// until all have come. What was dropped before is freed first, after what runs on this GPU is done.
    ///
    /// # Errors
    /// The driver refuses, or a peer is gone.
    pub fn alloc<T: Element>(
        &mut self,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<CudaBuffer<T>, Error> {
        let bytes = self.alloc_bytes(size_of_elements::<T>(len)?)?;
        Ok(CudaBuffer { bytes, len, stream: stream.clone(), _elements: PhantomData })
    }

    /// As [`alloc`](Self::alloc), for buffers that all ranks pass at the same offset, which a switch between the GPUs can reduce
    /// where they are: see [`alloc_symmetric_bytes`](Self::alloc_symmetric_bytes).
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn alloc_symmetric<T: Element>(
        &mut self,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<CudaBuffer<T>, Error> {
        let bytes = self.alloc_symmetric_bytes(size_of_elements::<T>(len)?)?;
        Ok(CudaBuffer { bytes, len, stream: stream.clone(), _elements: PhantomData })
    }

    /// Reduces `buffer` over all ranks, in place: everyone gets the result.
    pub fn all_reduce<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &mut B,
        op: ReduceOp,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let what = What { op, ..What::of(Collective::AllReduce, buffer.len()) };
        self.in_place::<T, B>(what, buffer, (0, 0), stream)
    }

    /// Reduces `input` over all ranks into everyone's `output`, which has the same length.
    pub fn all_reduce_into<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        output: &mut B,
        op: ReduceOp,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        same_length("all_reduce", "output", output.len(), input.len())?;
        let what = What { op, ..What::of(Collective::AllReduce, input.len()) };
        self.out_of_place::<T, A, B>(what, input, output, stream)
    }

    /// Gathers everyone's `input`, of the same length on all ranks, into everyone's `output`, in rank order. `output` is
    /// `world` times as long.
    pub fn all_gather<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        output: &mut B,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let expected = input.len().saturating_mul(self.world());
        same_length("all_gather", "output", output.len(), expected)?;
        self.out_of_place::<T, A, B>(
            What::of(Collective::AllGather, input.len()),
            input,
            output,
            stream,
        )
    }

    /// Gathers in place: this rank's block of `buffer` is its input.
    pub fn all_gather_in_place<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &mut B,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let count = block("all_gather", buffer.len(), self.world())?;
        let what = What::of(Collective::AllGather, count);
        self.in_place::<T, B>(what, buffer, (self.rank() * count, 0), stream)
    }

    /// Reduces everyone's `input` and gives rank r block r, in `output`. `input` is `world` times as long as `output`.
    pub fn reduce_scatter<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        output: &mut B,
        op: ReduceOp,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let expected = output.len().saturating_mul(self.world());
        same_length("reduce_scatter", "input", input.len(), expected)?;
        let what = What { op, ..What::of(Collective::ReduceScatter, output.len()) };
        self.out_of_place::<T, A, B>(what, input, output, stream)
    }

    /// Reduces in place: the result replaces this rank's block of `buffer`. The other blocks keep what they held.
    pub fn reduce_scatter_in_place<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &mut B,
        op: ReduceOp,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let count = block("reduce_scatter", buffer.len(), self.world())?;
        let what = What { op, ..What::of(Collective::ReduceScatter, count) };
        self.in_place::<T, B>(what, buffer, (0, self.rank() * count), stream)
    }

    /// Copies the root's `buffer` to everyone's.
    pub fn broadcast<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &mut B,
        root: usize,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let what = What { root, ..What::of(Collective::Broadcast, buffer.len()) };
        self.in_place::<T, B>(what, buffer, (0, 0), stream)
    }

    /// Reduces everyone's `buffer` into the root's. Other ranks' buffers keep what they held.
    pub fn reduce<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &mut B,
        op: ReduceOp,
        root: usize,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let what = What { op, root, ..What::of(Collective::Reduce, buffer.len()) };
        self.in_place::<T, B>(what, buffer, (0, 0), stream)
    }

    /// Gives block q of `input` to rank q, and gets rank q's block for this rank as block q of `output`. Both have the same
    /// length, a multiple of `world`.
    pub fn all_to_all<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        output: &mut B,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        same_length("all_to_all", "output", output.len(), input.len())?;
        let count = block("all_to_all", input.len(), self.world())?;
        self.out_of_place::<T, A, B>(What::of(Collective::AllToAll, count), input, output, stream)
    }

    /// Gathers everyone's `input` into the root's `output`, which is `world` times as long; what other ranks pass as output is
    /// not touched.
    pub fn gather<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        output: &mut B,
        root: usize,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        if self.rank() == root {
            let expected = input.len().saturating_mul(self.world());
            same_length("gather", "output", output.len(), expected)?;
        }
        let what = What { root, ..What::of(Collective::Gather, input.len()) };
        self.out_of_place::<T, A, B>(what, input, output, stream)
    }

    /// Gives block r of the root's `input` to rank r, in `output`. The root's input is `world` times as long; what other ranks
    /// pass as input is not looked at.
    pub fn scatter<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        output: &mut B,
        root: usize,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        if self.rank() == root {
            let expected = output.len().saturating_mul(self.world());
            same_length("scatter", "input", input.len(), expected)?;
        }
        let what = What { root, ..What::of(Collective::Scatter, output.len()) };
        self.out_of_place::<T, A, B>(what, input, output, stream)
    }

    /// Waits until everything on `stream` is done.
    ///
    /// # Errors
    /// A collective has failed.
    pub fn synchronize_stream(&mut self, stream: &CudaStream) -> Result<(), Error> {
        // SAFETY: the stream exists, for it is borrowed.
        unsafe { self.synchronize(stream.cu_stream()) }
    }

    /// Input and output begin so many elements into a buffer.
    fn in_place<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        what: What,
        buffer: &mut B,
        (from, to): (usize, usize),
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let (at, _written) = buffer.device_ptr_mut(stream);
        let element = |n: usize| at + (n * size_of::<T>()) as u64;
        self.put::<T>(what, element(from), element(to), stream)
    }

    fn out_of_place<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        what: What,
        input: &A,
        output: &mut B,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let (input, _read) = input.device_ptr(stream);
        let (output, _written) = output.device_ptr_mut(stream);
        self.put::<T>(what, input, output, stream)
    }

    fn put<T: Element>(
        &mut self,
        what: What,
        input: u64,
        output: u64,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        let What { collective, op, root, count } = what;
        let (input, output) = (input as usize as *const u8, output as usize as *mut u8);
        let call = RawCall { collective, dtype: T::DTYPE, op, root, count, input, output };
        // SAFETY: the callers checked the lengths; cudarc frees memory in the order of its stream, and so keeps it until the call has
        // passed. The stream exists, for it is borrowed.
        unsafe { self.call(&call, stream.cu_stream()) }
    }
}

fn size_of_elements<T>(len: usize) -> Result<usize, Error> {
    let too_many = || argument("alloc", "len", format!("{len} elements are too many"));
    len.checked_mul(size_of::<T>()).ok_or_else(too_many)
}

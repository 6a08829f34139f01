//! The calls, with Rust's types.

use super::{Communicator, RawCall};
use crate::dtype::Element;
use crate::error::{Error, argument};
use crate::host::Spans;
use crate::op::ReduceOp;
use crate::plan::Collective;

impl Communicator {
    /// Reduces `buffer` over all ranks, in place: everyone gets the result.
    pub fn all_reduce<T: Element>(&mut self, buffer: &mut [T], op: ReduceOp) -> Result<(), Error> {
        let (at, count) = (buffer.as_mut_ptr(), buffer.len());
        self.typed::<T>(Collective::AllReduce, op, 0, count, at, at)
    }

    /// Reduces `input` over all ranks into everyone's `output`, which has the same length.
    pub fn all_reduce_into<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<(), Error> {
        same_length("all_reduce", "output", output.len(), input.len())?;
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        self.typed::<T>(Collective::AllReduce, op, 0, input.len(), from, to)
    }

    /// Gathers everyone's `input`, of the same length on all ranks, into everyone's `output`, in
    /// rank order. `output` is `world` times as long.
    pub fn all_gather<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        same_length(
            "all_gather",
            "output",
            output.len(),
            input.len().saturating_mul(self.world()),
        )?;
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        self.typed::<T>(Collective::AllGather, ReduceOp::Sum, 0, input.len(), from, to)
    }

    /// Gathers in place: this rank's block of `buffer` is its input.
    pub fn all_gather_in_place<T: Element>(&mut self, buffer: &mut [T]) -> Result<(), Error> {
        let count = block("all_gather", buffer.len(), self.world())?;
        let to = buffer.as_mut_ptr();
        let from = to.wrapping_add(self.rank() * count);
        self.typed::<T>(Collective::AllGather, ReduceOp::Sum, 0, count, from, to)
    }

    /// Reduces everyone's `input` and gives rank r block r, in `output`. `input` is `world` times
    /// as long as `output`.
    pub fn reduce_scatter<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        op: ReduceOp,
    ) -> Result<(), Error> {
        let expected = output.len().saturating_mul(self.world());
        same_length("reduce_scatter", "input", input.len(), expected)?;
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        self.typed::<T>(Collective::ReduceScatter, op, 0, output.len(), from, to)
    }

    /// Reduces in place: the result replaces this rank's block of `buffer`. The other blocks keep
    /// what they held.
    pub fn reduce_scatter_in_place<T: Element>(
        &mut self,
        buffer: &mut [T],
        op: ReduceOp,
    ) -> Result<(), Error> {
        let count = block("reduce_scatter", buffer.len(), self.world())?;
        let from = buffer.as_mut_ptr();
        let to = from.wrapping_add(self.rank() * count);
        self.typed::<T>(Collective::ReduceScatter, op, 0, count, from, to)
    }

    /// Copies the root's `buffer` to everyone's.
    pub fn broadcast<T: Element>(&mut self, buffer: &mut [T], root: usize) -> Result<(), Error> {
        let (at, count) = (buffer.as_mut_ptr(), buffer.len());
        self.typed::<T>(Collective::Broadcast, ReduceOp::Sum, root, count, at, at)
    }

    /// Reduces everyone's `buffer` into the root's. Other ranks' buffers keep what they held.
    pub fn reduce<T: Element>(
        &mut self,
        buffer: &mut [T],
        op: ReduceOp,
        root: usize,
    ) -> Result<(), Error> {
        let (at, count) = (buffer.as_mut_ptr(), buffer.len());
        self.typed::<T>(Collective::Reduce, op, root, count, at, at)
    }

    /// Gives block q of `input` to rank q, and gets rank q's block for this rank as block q of
    /// `output`. Both have the same length, a multiple of `world`.
    pub fn all_to_all<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<(), Error> {
        same_length("all_to_all", "output", output.len(), input.len())?;
        let count = block("all_to_all", input.len(), self.world())?;
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        self.typed::<T>(Collective::AllToAll, ReduceOp::Sum, 0, count, from, to)
    }

    /// All-to-all with blocks of different lengths: `send[q]` elements of `input` go to rank q,
    /// `receive[q]` elements come from rank q, both packed in rank order. What rank a sends to b
    /// must be what b receives from a; ranks that disagree all get an error.
    pub fn all_to_all_v<T: Element>(
        &mut self,
        input: &[T],
        send: &[usize],
        output: &mut [T],
        receive: &[usize],
    ) -> Result<(), Error> {
        let from = self.spans("send", send, "input", input.len())?;
        let to = self.spans("receive", receive, "output", output.len())?;
        let largest = self.agree_on_counts(send, receive)?;
        let spans = Spans { input: &from, output: &to };
        let (from, to) = (input.as_ptr().cast(), output.as_mut_ptr().cast());
        // SAFETY: the spans were checked against the slices, which are borrowed for the call.
        unsafe { self.all_to_all_uneven(T::DTYPE, from, to, &spans, largest) }
    }

    /// Gathers everyone's `input` into the root's `output`, which is `world` times as long; other
    /// ranks pass an empty output.
    pub fn gather<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        root: usize,
    ) -> Result<(), Error> {
        if self.rank() == root {
            let expected = input.len().saturating_mul(self.world());
            same_length("gather", "output", output.len(), expected)?;
        }
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        self.typed::<T>(Collective::Gather, ReduceOp::Sum, root, input.len(), from, to)
    }

    /// Gives block r of the root's `input` to rank r, in `output`. The root's input is `world`
    /// times as long; other ranks pass an empty input.
    pub fn scatter<T: Element>(
        &mut self,
        input: &[T],
        output: &mut [T],
        root: usize,
    ) -> Result<(), Error> {
        if self.rank() == root {
            let expected = output.len().saturating_mul(self.world());
            same_length("scatter", "input", input.len(), expected)?;
        }
        let (from, to) = (input.as_ptr(), output.as_mut_ptr());
        self.typed::<T>(Collective::Scatter, ReduceOp::Sum, root, output.len(), from, to)
    }

    /// Sends `data` to `peer`, which must call [`recv`](Self::recv) with the same length and type.
    /// Blocks until all of it has been taken or buffered. Sends and receives that depend on each
    /// other belong in a [`group`](Self::group).
    pub fn send<T: Element>(&mut self, data: &[T], peer: usize) -> Result<(), Error> {
        self.group(|group| group.send(data, peer))
    }

    /// Receives from `peer`. Blocks until all of `data` has come.
    pub fn recv<T: Element>(&mut self, data: &mut [T], peer: usize) -> Result<(), Error> {
        self.group(|group| group.recv(data, peer))
    }

    fn typed<T: Element>(
        &mut self,
        collective: Collective,
        op: ReduceOp,
        root: usize,
        count: usize,
        input: *const T,
        output: *mut T,
    ) -> Result<(), Error> {
        let (input, output) = (input.cast(), output.cast());
        let call = RawCall { collective, dtype: T::DTYPE, op, root, count, input, output };
        // SAFETY: the callers checked the slices' lengths, and hold them borrowed.
        unsafe { self.call(&call) }
    }

    /// Offsets of blocks that follow each other.
    fn spans(
        &self,
        what: &'static str,
        counts: &[usize],
        buffer: &'static str,
        len: usize,
    ) -> Result<Vec<(usize, usize)>, Error> {
        same_length("all_to_all_v", what, counts.len(), self.world())?;
        let mut next = 0_usize;
        let mut spans = Vec::with_capacity(counts.len());
        for count in counts {
            spans.push((next, *count));
            let too_many = || argument("all_to_all_v", what, "adds up to too many elements");
            next = next.checked_add(*count).ok_or_else(too_many)?;
        }
        same_length("all_to_all_v", buffer, len, next)?;
        Ok(spans)
    }

    /// Tells every rank what it will get from this one. All ranks learn of the first disagreement,
    /// and of the largest block.
    fn agree_on_counts(&mut self, send: &[usize], receive: &[usize]) -> Result<usize, Error> {
        let world = self.world();
        let offered: Vec<u64> = send.iter().map(|count| *count as u64).collect();
        let mut announced = vec![0_u64; world];
        self.all_to_all(&offered, &mut announced)?;
        let expected = receive.iter().map(|count| *count as u64);
        let differs = announced.iter().zip(expected).position(|(a, b)| *a != b);
        // 0 stands for agreement, else the sender and receiver that disagree, plus one.
        let bad = differs.map_or(0, |peer| (peer * world + self.rank() + 1) as u64);
        let largest = offered.iter().copied().max().unwrap_or(0);
        let mut summary = [bad, largest];
        self.all_reduce(&mut summary, ReduceOp::Max)?;
        let [bad, largest] = summary;
        if bad == 0 {
            return Ok(largest as usize);
        }
        let (sender, receiver) = ((bad as usize - 1) / world, (bad as usize - 1) % world);
        let problem = format!("of rank {receiver} is not what rank {sender} sends to it");
        Err(argument("all_to_all_v", "receive", problem))
    }
}

/// Elements of a rank's block of a buffer.
pub(crate) fn block(call: &'static str, len: usize, world: usize) -> Result<usize, Error> {
    if len.is_multiple_of(world) {
        return Ok(len / world);
    }
    Err(argument(call, "buffer", format!("has {len} elements, not a multiple of {world} ranks")))
}

pub(crate) fn same_length(
    call: &'static str,
    what: &'static str,
    len: usize,
    expected: usize,
) -> Result<(), Error> {
    if len == expected {
        return Ok(());
    }
    Err(argument(call, what, format!("has {len} elements, must have {expected}")))
}

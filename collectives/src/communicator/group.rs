//! Groups: several calls that are made together.

use std::marker::PhantomData;

use super::{Communicator, RawCall};
use crate::dtype::{DataType, Element};
use crate::error::{Error, argument};
use crate::host::{Direction, Letter};
use crate::op::ReduceOp;
use crate::plan::Collective;

/// Collects the calls of a [`Communicator::group`]. It borrows their buffers until the group ends.
#[derive(Debug)]
pub struct Group<'buffers> {
    rank: usize,
    world: usize,
    letters: Vec<Letter>,
    calls: Vec<RawCall>,
    buffers: PhantomData<&'buffers mut ()>,
}

impl Communicator {
    /// Makes the calls that `collect` lists: first all sends and receives, which are under way
    /// together and so cannot block one another, then the collectives, in the order listed. Blocks
    /// until all are done. Nothing is done if `collect` fails.
    pub fn group<'buffers>(
        &mut self,
        collect: impl FnOnce(&mut Group<'buffers>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut group = Group::new(self.rank(), self.world(), std::mem::take(&mut self.letters));
        let collected = collect(&mut group);
        let (mut letters, calls) = group.into_parts();
        let done = collected.and_then(|()| self.deliver(&mut letters));
        // Kept, so that the next group need not allocate.
        self.letters = letters;
        done?;
        for call in &calls {
            // SAFETY: the group borrows the buffers for 'buffers, which outlives this call.
            unsafe { self.call(call) }?;
        }
        Ok(())
    }

    fn deliver(&mut self, letters: &mut [Letter]) -> Result<(), Error> {
        if letters.is_empty() {
            return Ok(());
        }
        self.check_alive()?;
        let done = self.mail.run(letters);
        done.map_err(|failure| self.failed(failure))
    }
}

impl<'buffers> Group<'buffers> {
    /// An empty one, which keeps its letters in a list that was used before.
    pub(crate) fn new(rank: usize, world: usize, mut letters: Vec<Letter>) -> Self {
        letters.clear();
        Self { rank, world, letters, calls: Vec::new(), buffers: PhantomData }
    }

    /// What was collected.
    pub(crate) fn into_parts(self) -> (Vec<Letter>, Vec<RawCall>) {
        (self.letters, self.calls)
    }

    /// Sends `data` to `peer`, which receives the same number of the same type.
    pub fn send<T: Element>(&mut self, data: &'buffers [T], peer: usize) -> Result<(), Error> {
        // SAFETY: the slice is borrowed until the group has ended.
        unsafe { self.send_raw(data.as_ptr().cast(), data.len(), T::DTYPE, peer) }
    }

    /// Receives `data` from `peer`.
    pub fn recv<T: Element>(&mut self, data: &'buffers mut [T], peer: usize) -> Result<(), Error> {
        // SAFETY: the slice is borrowed until the group has ended.
        unsafe { self.recv_raw(data.as_mut_ptr().cast(), data.len(), T::DTYPE, peer) }
    }

    /// Reduces `buffer` over all ranks, in place.
    pub fn all_reduce<T: Element>(&mut self, buffer: &'buffers mut [T], op: ReduceOp) {
        let at = buffer.as_mut_ptr();
        self.calls.push(RawCall {
            collective: Collective::AllReduce,
            dtype: T::DTYPE,
            op,
            root: 0,
            count: buffer.len(),
            input: at.cast_const().cast(),
            output: at.cast(),
        });
    }

    /// Copies the root's `buffer` to everyone's.
    pub fn broadcast<T: Element>(&mut self, buffer: &'buffers mut [T], root: usize) {
        let at = buffer.as_mut_ptr();
        self.calls.push(RawCall {
            collective: Collective::Broadcast,
            dtype: T::DTYPE,
            op: ReduceOp::Sum,
            root,
            count: buffer.len(),
            input: at.cast_const().cast(),
            output: at.cast(),
        });
    }

    /// Any collective call, by addresses.
    ///
    /// # Safety
    /// As [`Communicator::call`], until the group has ended.
    pub unsafe fn call_raw(&mut self, call: &RawCall) {
        self.calls.push(*call);
    }

    /// Sends `count` elements at `from` to `peer`.
    ///
    /// # Safety
    /// `from` is good for reading them until the group has ended.
    pub unsafe fn send_raw(
        &mut self,
        from: *const u8,
        count: usize,
        dtype: DataType,
        peer: usize,
    ) -> Result<(), Error> {
        self.post("send", Direction::Send(from), count, dtype, peer)
    }

    /// Receives `count` elements from `peer` to `to`.
    ///
    /// # Safety
    /// `to` is good for writing them until the group has ended, and nobody else uses it.
    pub unsafe fn recv_raw(
        &mut self,
        to: *mut u8,
        count: usize,
        dtype: DataType,
        peer: usize,
    ) -> Result<(), Error> {
        self.post("recv", Direction::Receive(to), count, dtype, peer)
    }

    fn post(
        &mut self,
        call: &'static str,
        direction: Direction,
        count: usize,
        dtype: DataType,
        peer: usize,
    ) -> Result<(), Error> {
        if peer >= self.world {
            let problem = format!("is {peer}, but there are {} ranks", self.world);
            return Err(argument(call, "peer", problem));
        }
        let bytes = count.checked_mul(dtype.size()).filter(|bytes| isize::try_from(*bytes).is_ok());
        let bytes =
            bytes.ok_or_else(|| argument(call, "count", format!("{count} is too large")))?;
        let null = match direction {
            Direction::Send(at) => at.is_null(),
            Direction::Receive(at) => at.is_null(),
        };
        if null && bytes > 0 {
            return Err(argument(call, "buffer", "is null"));
        }
        let dtype = dtype as u8;
        self.letters.push(Letter { peer, direction, bytes, dtype, done: 0 });
        Ok(())
    }

    /// The rank that makes the calls.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

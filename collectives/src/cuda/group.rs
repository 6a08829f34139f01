//! Groups of calls on GPUs, point-to-point messages, and all-to-all with uneven blocks.

use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::CudaCommunicator;
use super::mail::{self, Terms};
use crate::communicator::typed::same_length;
use crate::communicator::{Group, RawCall};
use crate::dtype::{DataType, Element};
use crate::error::{Error, argument};
use crate::host::{Direction, Letter};
use crate::op::ReduceOp;
use crate::plan::Collective;

/// Collects the calls of a [`CudaCommunicator::group`]. It borrows their buffers until the group is on its stream.
/// (The list of what cudarc is told is allocated for each group; by addresses, [`CudaCommunicator::group_raw`], nothing is.)
pub struct CudaGroup<'buffers> {
    calls: Group<'buffers>,
    stream: &'buffers CudaStream,
    /// What tells cudarc, when it is dropped, that the buffers were used.
    used: Vec<SyncOnDrop<'buffers>>,
}

impl std::fmt::Debug for CudaGroup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.calls.fmt(f)
    }
}

impl<'buffers> CudaGroup<'buffers> {
    /// Sends `data` to `peer`, which receives the same number of the same type.
    pub fn send<T: Element, A: DevicePtr<T> + ?Sized>(
        &mut self,
        data: &'buffers A,
        peer: usize,
    ) -> Result<(), Error> {
        let (at, used) = data.device_ptr(self.stream);
        self.used.push(used);
        // SAFETY: the buffer is borrowed until the group is on the stream.
        unsafe { self.calls.send_raw(at as usize as *const u8, data.len(), T::DTYPE, peer) }
    }

    /// Receives `data` from `peer`.
    pub fn recv<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        data: &'buffers mut B,
        peer: usize,
    ) -> Result<(), Error> {
        let len = data.len();
        let (at, used) = data.device_ptr_mut(self.stream);
        self.used.push(used);
        // SAFETY: the buffer is borrowed until the group is on the stream.
        unsafe { self.calls.recv_raw(at as usize as *mut u8, len, T::DTYPE, peer) }
    }

    /// Reduces `buffer` over all ranks, in place.
    pub fn all_reduce<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &'buffers mut B,
        op: ReduceOp,
    ) {
        self.in_place::<T, B>(Collective::AllReduce, op, 0, buffer);
    }

    /// Copies the root's `buffer` to everyone's.
    pub fn broadcast<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        buffer: &'buffers mut B,
        root: usize,
    ) {
        self.in_place::<T, B>(Collective::Broadcast, ReduceOp::Sum, root, buffer);
    }

    fn in_place<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        collective: Collective,
        op: ReduceOp,
        root: usize,
        buffer: &'buffers mut B,
    ) {
        let count = buffer.len();
        let (at, used) = buffer.device_ptr_mut(self.stream);
        self.used.push(used);
        let (input, output) = (at as usize as *const u8, at as usize as *mut u8);
        let call = RawCall { collective, dtype: T::DTYPE, op, root, count, input, output };
        // SAFETY: the buffer is borrowed until the group is on the stream.
        unsafe { self.calls.call_raw(&call) };
    }
}

impl CudaCommunicator {
    /// Puts the calls that `collect` lists on `stream`: first all sends and receives, which are under way together and so cannot
    /// block one another, then the collectives, in the order listed. Returns when they are queued. Nothing is done if `collect` fails.
    ///
    /// The first message between two ranks of different hosts connects them: it blocks until the other has come to its end of it, and cannot
    /// be captured into a graph. So ranks that send round in a circle need a group, if there are several hosts.
    ///
    /// Sizes are compared on the device: a message that is not what its receiver expects is an error of the next call, or of
    /// [`synchronize`](Self::synchronize), on all ranks.
    ///
    /// # Errors
    /// An argument is wrong, a message to this rank itself has no other end, or an earlier call has failed.
    pub fn group<'buffers>(
        &mut self,
        stream: &'buffers CudaStream,
        collect: impl FnOnce(&mut CudaGroup<'buffers>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let calls = Group::new(self.rank(), self.world(), std::mem::take(&mut self.letters));
        let mut group = CudaGroup { calls, stream, used: Vec::new() };
        let collected = collect(&mut group);
        let CudaGroup { calls, used, .. } = group;
        // SAFETY: the group borrows the buffers for 'buffers, and cudarc frees memory in the order of its stream.
        let done = unsafe { self.finish_group(collected, calls, stream.cu_stream()) };
        drop(used);
        done
    }

    /// As [`group`](Self::group), by addresses: the calls are added with [`Group::send_raw`], [`Group::recv_raw`] and
    /// [`Group::call_raw`].
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// The buffers are memory of this rank's GPU and good for their elements until the stream has passed the group; the stream
    /// exists.
    pub unsafe fn group_raw(
        &mut self,
        stream: CUstream,
        collect: impl FnOnce(&mut Group<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut group = Group::new(self.rank(), self.world(), std::mem::take(&mut self.letters));
        let collected = collect(&mut group);
        // SAFETY: the caller's.
        unsafe { self.finish_group(collected, group, stream) }
    }

    /// Sends `data` to `peer`, which must call [`recv`](Self::recv) with the same length and type. Returns when it is queued; the
    /// stream goes on when all has been taken or buffered. Sends and receives that depend on each other belong in a
    /// [`group`](Self::group).
    pub fn send<T: Element, A: DevicePtr<T> + ?Sized>(
        &mut self,
        data: &A,
        peer: usize,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        self.group(stream, |group| group.send::<T, A>(data, peer))
    }

    /// Receives from `peer`. Returns when it is queued; the stream goes on when all of `data` has come.
    pub fn recv<T: Element, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        data: &mut B,
        peer: usize,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        self.group(stream, |group| group.recv::<T, B>(data, peer))
    }

    /// All-to-all with counts that differ: the q-th of the blocks of `send` elements goes to rank q, and `receive` says how many come
    /// from each. Blocks follow each other in `input` and in `output`, which must be different memory. Returns when it is queued.
    ///
    /// # Errors
    /// The counts do not add up to the buffers' lengths. Counts that differ between two ranks are found on the device: see
    /// [`group`](Self::group).
    pub fn all_to_all_v<T: Element, A: DevicePtr<T> + ?Sized, B: DevicePtrMut<T> + ?Sized>(
        &mut self,
        input: &A,
        send: &[usize],
        output: &mut B,
        receive: &[usize],
        stream: &CudaStream,
    ) -> Result<(), Error> {
        add_up("send", send, self.world(), "input", input.len())?;
        add_up("receive", receive, self.world(), "output", output.len())?;
        let (from, _read) = input.device_ptr(stream);
        let (to, _written) = output.device_ptr_mut(stream);
        let at = |base: u64, elements: usize| base as usize + elements * size_of::<T>();
        let (mut sent, mut received) = (0, 0);
        // SAFETY: blocks lie in the buffers, by the sums above; cudarc keeps these until the stream has passed.
        unsafe {
            self.group_raw(stream.cu_stream(), |group| {
                for (peer, (&out, &back)) in send.iter().zip(receive).enumerate() {
                    group.send_raw(at(from, sent) as *const u8, out, T::DTYPE, peer)?;
                    group.recv_raw(at(to, received) as *mut u8, back, T::DTYPE, peer)?;
                    (sent, received) = (sent + out, received + back);
                }
                Ok(())
            })
        }
    }

    /// # Safety
    /// As [`CudaCommunicator::group_raw`].
    unsafe fn finish_group(
        &mut self,
        collected: Result<(), Error>,
        group: Group<'_>,
        stream: CUstream,
    ) -> Result<(), Error> {
        let (letters, calls) = group.into_parts();
        // SAFETY: the caller's.
        let done = collected.and_then(|()| unsafe { self.deliver(&letters, stream) });
        // Kept, so that the next group need not allocate.
        self.letters = letters;
        self.letters.clear();
        done?;
        for call in &calls {
            // SAFETY: the caller's.
            unsafe { self.call(call, stream) }?;
        }
        Ok(())
    }

    /// # Safety
    /// As [`CudaCommunicator::group_raw`].
    unsafe fn deliver(&mut self, letters: &[Letter], stream: CUstream) -> Result<(), Error> {
        if letters.iter().all(|letter| letter.bytes == 0) {
            return Ok(());
        }
        self.check_alive()?;
        self.check_stream("send", stream)?;
        for letter in letters.iter().filter(|letter| letter.bytes > 0) {
            self.check_letter(letter)?;
        }
        let rank = self.rank();
        if !mail::is_paired_at_home(rank, letters) {
            let problem = format!("of rank {rank} to itself does not match what it receives");
            return Err(argument("send", "message", problem));
        }
        let terms = Terms {
            far: self.far.as_ref(),
            control: self.watch.shared.memory.device(),
            timeout: self.kernel_timeout(),
            most_blocks: self.most_blocks,
        };
        // SAFETY: the caller's.
        unsafe {
            mail::deliver_at_home(rank, letters, stream)?;
            let architecture = self.gpu.architecture();
            self.mail.deliver(self.gpu.context(), architecture, letters, &terms, stream)
        }
    }

    fn check_letter(&self, letter: &Letter) -> Result<(), Error> {
        let (call, what, at) = match letter.direction {
            Direction::Send(at) => ("send", "input", at as u64),
            Direction::Receive(at) => ("recv", "output", at as u64),
        };
        let size = DataType::ALL.get(usize::from(letter.dtype)).map_or(1, |dtype| dtype.size());
        if !at.is_multiple_of(size as u64) {
            return Err(argument(
                call,
                what,
                format!("is not aligned for elements of {size} bytes"),
            ));
        }
        self.pointer(call, what, at).map(drop)
    }
}

fn add_up(
    counts_name: &'static str,
    counts: &[usize],
    world: usize,
    buffer: &'static str,
    len: usize,
) -> Result<(), Error> {
    same_length("all_to_all_v", counts_name, counts.len(), world)?;
    let sum = counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
    let too_many = || argument("all_to_all_v", counts_name, "adds up to too many elements");
    same_length("all_to_all_v", buffer, len, sum.ok_or_else(too_many)?)
}

//! Requests and completions: calls that are made for every transfer.

use std::ffi::c_int;
use std::io;

use super::objects::{Completions, QueuePair};
use super::types::{
    RecvWr, Remote, RemoteAtomic, RemoteRdma, SEND_INLINE, SEND_SIGNALED, SendWr, Sge,
    WR_ATOMIC_FETCH_AND_ADD, WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM, Wc,
};

/// What a request does at the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Writes the local bytes.
    Write,
    /// Writes them, and takes a receive of the peer's, which is told this number.
    WriteImm(u32),
    /// Adds this to eight bytes, whose former value goes to the local bytes.
    FetchAdd(u64),
}

/// Bytes of this process, and the key under which the NIC knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Local {
    pub address: u64,
    /// How many; 0 for none.
    pub bytes: u32,
    pub key: u32,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Comes back with its completion.
    pub id: u64,
    pub op: Op,
    pub local: Local,
    /// Address and key at the peer.
    pub remote: u64,
    pub key: u32,
    /// Whether its success is told; failures always are.
    pub signalled: bool,
    /// Whether the bytes are copied when it is posted.
    pub inline: bool,
}

/// Arrays that requests are written to in the library's form; used again and again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    requests: Vec<SendWr>,
    bytes: Vec<Sge>,
    receives: Vec<RecvWr>,
}

// SAFETY: the pointers in it are to its own vectors and are written anew before each use.
unsafe impl Send for Scratch {}

impl QueuePair {
    /// Posts requests, in this order, as one list.
    ///
    /// # Safety
    /// The local bytes of each lie in memory that is registered under its key or, if it is inline, can be read now.
    /// Bytes that are not inline stay readable (for a fetch-add: writable) until the request has completed.
    pub(crate) unsafe fn post(&mut self, batch: &[Work]) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(()); // drivers refuse an empty list
        }
        let post = self.operations().post_send.ok_or(io::ErrorKind::Unsupported)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let first = scratch.write(batch);
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair lives; the list is well formed and lives through the call; the bytes by the contract.
        let result = unsafe { post(self.raw(), first, &raw mut bad) };
        self.scratch = scratch;
        answer(result)
    }

    /// Posts receives without memory, for writes with immediate data.
    pub(crate) fn post_receives(&mut self, id: u64, count: usize) -> io::Result<()> {
        if count == 0 {
            return Ok(()); // drivers refuse an empty list
        }
        let post = self.operations().post_recv.ok_or(io::ErrorKind::Unsupported)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let first = scratch.write_receives(id, count);
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair lives; the list is well formed, lives through the call and names no memory.
        let result = unsafe { post(self.raw(), first, &raw mut bad) };
        self.scratch = scratch;
        answer(result)
    }
}

/// Functions of the data path return an errno.
fn answer(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result.abs())) }
}

impl Scratch {
    /// The first of a linked list of these requests; null if there are none.
    fn write(&mut self, batch: &[Work]) -> *mut SendWr {
        self.bytes.clear();
        self.bytes.extend(batch.iter().map(|work| Sge {
            addr: work.local.address,
            length: work.local.bytes,
            lkey: work.local.key,
        }));
        let bytes = self.bytes.as_mut_ptr();
        self.requests.clear();
        self.requests.extend(batch.iter().enumerate().map(|(i, work)| {
            // SAFETY: one for each request.
            request(work, unsafe { bytes.add(i) })
        }));
        link(&mut self.requests, |request, next| request.next = next)
    }

    fn write_receives(&mut self, id: u64, count: usize) -> *mut RecvWr {
        let none = std::ptr::null_mut();
        let receive = RecvWr { wr_id: id, next: none, sg_list: std::ptr::null_mut(), num_sge: 0 };
        self.receives.clear();
        self.receives.resize(count, receive);
        link(&mut self.receives, |receive, next| receive.next = next)
    }
}

/// Makes a linked list of a vector.
fn link<T>(items: &mut [T], set: impl Fn(&mut T, *mut T)) -> *mut T {
    let base = items.as_mut_ptr();
    for i in 1..items.len() {
        // SAFETY: both are in the vector.
        unsafe { set(&mut *base.add(i - 1), base.add(i)) };
    }
    if items.is_empty() { std::ptr::null_mut() } else { base }
}

fn request(work: &Work, bytes: *mut Sge) -> SendWr {
    let rdma = Remote { rdma: RemoteRdma { remote_addr: work.remote, rkey: work.key } };
    let atomic = |add| Remote {
        atomic: RemoteAtomic {
            remote_addr: work.remote,
            compare_add: add,
            swap: 0,
            rkey: work.key,
        },
    };
    let (opcode, imm_data, remote) = match work.op {
        Op::Write => (WR_RDMA_WRITE, 0, rdma),
        Op::WriteImm(number) => (WR_RDMA_WRITE_WITH_IMM, number.to_be(), rdma),
        Op::FetchAdd(add) => (WR_ATOMIC_FETCH_AND_ADD, 0, atomic(add)),
    };
    let signalled = if work.signalled { SEND_SIGNALED } else { 0 };
    let inline = if work.inline { SEND_INLINE } else { 0 };
    SendWr {
        wr_id: work.id,
        next: std::ptr::null_mut(),
        sg_list: bytes,
        num_sge: c_int::from(work.local.bytes > 0),
        opcode,
        send_flags: signalled | inline,
        imm_data,
        remote,
        qp_type: 0,
        rest: [0; 6],
    }
}

impl Completions {
    /// Takes completions, as many as there are and fit; how many.
    pub(crate) fn poll(&mut self, into: &mut [Wc]) -> io::Result<usize> {
        let poll = self.operations().poll_cq.ok_or(io::ErrorKind::Unsupported)?;
        let room = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
        // SAFETY: the queue lives, and there is room for as many.
        let polled = unsafe { poll(self.raw(), room, into.as_mut_ptr()) };
        usize::try_from(polled).map_err(|_| io::Error::other("polling the completion queue failed"))
    }
}

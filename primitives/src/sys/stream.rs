//! Sending from, and receiving into, memory that others may change meanwhile.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recv, recvmsg, send, sendmsg,
};

/// A piece of memory by address and length, of which no reference is formed. Laid out as the system's `iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Piece {
    address: *mut u8,
    bytes: usize,
}

const _: () = assert!(size_of::<Piece>() == size_of::<IoSlice<'static>>());
const _: () = assert!(align_of::<Piece>() == align_of::<IoSlice<'static>>());

impl Piece {
    pub(crate) fn new(address: *mut u8, bytes: usize) -> Self {
        Self { address, bytes }
    }

    /// A piece that is only sent.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { address: bytes.as_ptr().cast_mut(), bytes: bytes.len() }
    }
}

/// Sends what the socket takes of these pieces now; AGAIN if that is nothing.
///
/// # Safety
/// The pieces can be read.
pub(crate) unsafe fn send_pieces(socket: impl AsFd, pieces: &[Piece]) -> Result<usize, Errno> {
    // SAFETY: `IoSlice` is documented to have the layout of `iovec`, which is `Piece`'s; only the kernel follows it.
    let slices =
        unsafe { std::slice::from_raw_parts(pieces.as_ptr().cast::<IoSlice<'_>>(), pieces.len()) };
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(&socket, slices, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Receives what is there, into the beginning of `bytes`; AGAIN if that is nothing, 0 if the peer has closed. A third of
/// a microsecond cheaper than pieces.
#[inline]
pub(crate) fn receive_bytes(socket: impl AsFd, bytes: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match recv(&socket, &mut *bytes, RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            other => return other.map(|(got, _)| got),
        }
    }
}

/// Sends what the socket takes of `bytes` now; AGAIN if that is nothing.
#[inline]
pub(crate) fn send_bytes(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match send(&socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Receives what is there into these pieces; AGAIN if that is nothing, 0 if the peer has closed.
///
/// # Safety
/// The pieces can be written, and nothing but raw pointers reaches them meanwhile.
pub(crate) unsafe fn receive_pieces(
    socket: impl AsFd,
    pieces: &mut [Piece],
) -> Result<usize, Errno> {
    let (first, count) = (pieces.as_mut_ptr().cast::<IoSliceMut<'_>>(), pieces.len());
    // SAFETY: `IoSliceMut` is documented to have the layout of `iovec`, which is `Piece`'s; only the kernel follows it.
    let slices = unsafe { std::slice::from_raw_parts_mut(first, count) };
    loop {
        let none = &mut RecvAncillaryBuffer::default();
        match recvmsg(&socket, slices, none, RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            other => return other.map(|got| got.bytes),
        }
    }
}

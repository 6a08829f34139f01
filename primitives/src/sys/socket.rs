//! Messages with a file descriptor over a Unix socket, and who has hung up.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Sends `bytes` with one descriptor. The message is small, so it goes as a whole or not at all.
pub(crate) fn send_with_fd(
    socket: impl AsFd,
    bytes: &[u8],
    fd: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Receives exactly `bytes.len()` bytes and the one descriptor that came with them, or fails with
/// TIMEDOUT at `deadline`, CONNRESET when the peer is gone, PROTO when the message is not this.
pub(crate) fn recv_with_fd(
    socket: impl AsFd,
    bytes: &mut [u8],
    deadline: Instant,
) -> Result<OwnedFd, Errno> {
    wait_readable(socket.as_fd(), deadline)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let expected = bytes.len();
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    if got.bytes == 0 {
        return Err(Errno::CONNRESET);
    }
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let fd = fds.next().ok_or(Errno::PROTO)?;
    if got.bytes == expected { Ok(fd) } else { Err(Errno::PROTO) }
}

/// Waits until `socket` can be read (data, a connection, or its end); TIMEDOUT at `deadline`.
pub(crate) fn wait_readable(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(), Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(other) => return Err(other),
        }
    }
}

/// Whether the other end of `socket` is closed (its process ended, or it closed on purpose).
/// Pending data does not count, and nothing is read.
pub(crate) fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let asked = PollFlags::RDHUP;
    let mut fds = [PollFd::from_borrowed_fd(socket, asked)];
    let zero = timespec(Duration::ZERO);
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    matches!(poll(&mut fds, Some(&zero)), Ok(1)) && fds[0].revents().intersects(gone)
}

pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

fn tcp_info(socket: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    // SAFETY: `tcp_info` is made of integers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed; the system writes at most `length` bytes to `info`, and
    // fewer if it knows fewer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    (result == 0).then_some(info)
}

/// How long nothing was heard of the other end of a TCP connection, though data that was sent is not acknowledged; None
/// if all is. A peer that takes no data but answers is heard of.
pub(crate) fn silent_for(socket: BorrowedFd<'_>) -> Option<Duration> {
    let info = tcp_info(socket).filter(|info| info.tcpi_unacked > 0)?;
    Some(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// Whether the system holds data for the other end of a TCP connection that it has not acknowledged, and still may.
pub(crate) fn owes(socket: BorrowedFd<'_>) -> bool {
    /// `TCP_CLOSE` of linux/tcp_states.h.
    const CLOSED: u8 = 7;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as it is borrowed; the system writes one number.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    result == 0 && bytes > 0 && tcp_info(socket).is_some_and(|info| info.tcpi_state != CLOSED)
}

/// The shortest time that the other end of a TCP connection took to answer; None if the system does not tell.
pub(crate) fn round_trip(socket: BorrowedFd<'_>) -> Option<Duration> {
    /// Where `tcpi_min_rtt` is in linux/tcp.h's `tcp_info`, which only grows at its end; libc's ends before.
    const PLACE: usize = 148 / size_of::<u32>();
    let mut info = [0_u32; 64];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed; the system writes at most `length` bytes to `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    let told = result == 0 && length as usize >= (PLACE + 1) * size_of::<u32>();
    let micros = Some(info[PLACE]).filter(|&micros| told && micros > 0 && micros < u32::MAX);
    micros.map(|micros| Duration::from_micros(micros.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_tcp_connection_knows_how_far_its_peer_is() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        near.write_all(&[1]).unwrap();
        far.read_exact(&mut [0]).unwrap();
        let time = round_trip(near.as_fd()).unwrap();
        assert!(time < Duration::from_secs(1), "{time:?}");
        assert_eq!(round_trip(UnixStream::pair().unwrap().0.as_fd()), None);
    }

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let (_, fd) = crate::sys::Mapping::create(1).unwrap();
        send_with_fd(&a, b"hello", fd.as_fd()).unwrap();
        let mut bytes = [0; 5];
        recv_with_fd(&b, &mut bytes, Instant::now() + Duration::from_secs(1)).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn bytes_without_a_descriptor_are_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut a, b"hello").unwrap();
        let end = Instant::now() + Duration::from_secs(1);
        assert_eq!(recv_with_fd(&b, &mut [0; 5], end).unwrap_err(), Errno::PROTO);
    }

    #[test]
    fn silence_times_out_and_a_closed_peer_shows() {
        let (a, b) = UnixStream::pair().unwrap();
        let end = Instant::now() + Duration::from_millis(10);
        assert_eq!(recv_with_fd(&b, &mut [0; 5], end).unwrap_err(), Errno::TIMEDOUT);
        assert!(!hung_up(b.as_fd()));
        drop(a);
        assert!(hung_up(b.as_fd()));
    }
}

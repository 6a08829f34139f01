//! The root's side of the collective calls.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::bootstrap::MAX_CONTRIBUTION;
use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{
    Deadline, FrameReader, Kind, Outgoing, ReadError, frame, frame_of_all, wait,
};

/// The connections of the root, all non-blocking.
#[derive(Debug)]
pub(super) struct Star {
    /// Rank r at r - 1.
    peers: Vec<TcpStream>,
}

impl Star {
    pub(super) fn new(peers: Vec<TcpStream>) -> Self {
        Self { peers }
    }

    /// Where the ranks came in.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.peers.first()?.local_addr().ok()
    }

    /// Tells all ranks that all have come.
    pub(super) fn start(&self, timeout: Duration) -> Result<(), Fault> {
        self.deliver(&frame(Kind::All, &[]), timeout)
    }

    /// Collects every rank's part and sends all to all; each of the two may take `timeout`.
    pub(super) fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>, Fault> {
        let parts =
            self.collect(mine, timeout).inspect_err(|fault| announce(&self.peers, fault))?;
        self.deliver(&frame_of_all(&parts), timeout)?;
        Ok(parts)
    }

    fn collect(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>, Fault> {
        let deadline = Deadline::after(timeout);
        let mut inbox = Inbox::new(&self.peers);
        let mut fds: Vec<_> = self.peers.iter().map(|p| PollFd::new(p, PollFlags::IN)).collect();
        loop {
            wait(&mut fds, deadline.left()).map_err(|e| failed_wait(&e))?;
            for (at, _) in fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()) {
                inbox.hear(at)?;
            }
            if inbox.missing == 0 {
                let others = inbox.parts.into_iter().flatten();
                return Ok(std::iter::once(mine.to_vec()).chain(others).collect());
            }
            if deadline.passed() {
                return Err(Fault::Missing { ranks: inbox.missing(), waited: timeout });
            }
        }
    }

    /// Sends `bytes` to every rank. One that has gone does not keep them from the others.
    fn deliver(&self, bytes: &[u8], timeout: Duration) -> Result<(), Fault> {
        let deadline = Deadline::after(timeout);
        let mut outbox: Vec<_> = self.peers.iter().map(|_| Outgoing::new(bytes)).collect();
        let mut gone = None;
        loop {
            gone = gone.or(self.send(&mut outbox));
            let slow: Vec<_> = (0..outbox.len()).filter(|&at| !outbox[at].is_done()).collect();
            if !slow.is_empty() && deadline.passed() {
                let ranks = slow.iter().map(|at| at + 1).collect();
                gone = gone.or(Some(Fault::Missing { ranks, waited: timeout }));
            } else if !slow.is_empty() {
                let out = |&at: &usize| PollFd::new(&self.peers[at], PollFlags::OUT);
                let mut fds: Vec<_> = slow.iter().map(out).collect();
                match wait(&mut fds, deadline.left()) {
                    Ok(()) => continue,
                    Err(e) => gone = gone.or(Some(failed_wait(&e))),
                }
            }
            return gone.map_or(Ok(()), |fault| Err(self.give_up(&outbox, fault)));
        }
    }

    /// Sends what the sockets take now; the first rank that has gone, if any.
    fn send(&self, outbox: &mut [Outgoing<'_>]) -> Option<Fault> {
        let mut gone = None;
        for (at, (out, peer)) in outbox.iter_mut().zip(&self.peers).enumerate() {
            if let Err(e) = out.write(peer) {
                out.give_up();
                gone = gone.or(Some(Fault::closed(at + 1, Some(&e))));
            }
        }
        gone
    }

    fn give_up(&self, outbox: &[Outgoing<'_>], fault: Fault) -> Fault {
        let (torn, whole): (Vec<_>, Vec<_>) =
            self.peers.iter().zip(outbox).partition(|(_, out)| out.is_torn());
        announce(whole.into_iter().map(|(peer, _)| peer), &fault);
        // After half a frame a fault would be taken for its other half.
        for (peer, _) in torn {
            let _ = peer.shutdown(Shutdown::Write);
        }
        fault
    }
}

/// What has come from the ranks in one call.
struct Inbox<'a> {
    peers: &'a [TcpStream],
    readers: Vec<FrameReader>,
    parts: Vec<Option<Vec<u8>>>,
    missing: usize,
}

impl<'a> Inbox<'a> {
    fn new(peers: &'a [TcpStream]) -> Self {
        let reader = |_| FrameReader::new(MAX_CONTRIBUTION as u64);
        Self {
            peers,
            readers: peers.iter().map(reader).collect(),
            parts: vec![None; peers.len()],
            missing: peers.len(),
        }
    }

    fn hear(&mut self, at: usize) -> Result<(), Fault> {
        let peer = at + 1;
        if self.parts[at].is_some() {
            return check_quiet(&self.peers[at], peer);
        }
        match self.readers[at].read(&self.peers[at]) {
            Ok(Some(frame)) if frame.kind == Kind::Part => {
                self.parts[at] = Some(frame.body);
                self.missing -= 1;
                Ok(())
            }
            Ok(None) => Ok(()),
            Ok(Some(_)) | Err(ReadError::Malformed) => Err(Fault::Malformed { peer }),
            Err(ReadError::Closed(cause)) => Err(Fault::closed(peer, cause.as_ref())),
        }
    }

    fn missing(&self) -> Vec<usize> {
        let missing = self.parts.iter().enumerate().filter(|(_, part)| part.is_none());
        missing.map(|(at, _)| at + 1).collect()
    }
}

/// That a rank which waits for the root has neither left nor said anything out of turn.
pub(super) fn check_quiet(stream: &TcpStream, peer: usize) -> Result<(), Fault> {
    match stream.peek(&mut [0]) {
        Ok(0) => Err(Fault::closed(peer, None)),
        Ok(_) => Err(Fault::Malformed { peer }),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(())
        }
        Err(e) => Err(Fault::closed(peer, Some(&e))),
    }
}

/// Tells the ranks that it is over and why, as far as their connections take it without waiting.
pub(super) fn announce<'a>(peers: impl IntoIterator<Item = &'a TcpStream>, fault: &Fault) {
    let bytes = frame(Kind::Fault, &fault.encode());
    for peer in peers {
        // A rank that cannot be told any more has gone, or is told by the close.
        let _ = Outgoing::new(&bytes).write(peer);
        let _ = peer.shutdown(Shutdown::Write);
    }
}

pub(super) fn failed_wait(cause: &io::Error) -> Fault {
    Fault::Os { rank: 0, errno: cause.raw_os_error().unwrap_or(0) }
}

//! One connection between two ranks that have proved the secret to each other.

use std::io;
use std::net::{Shutdown, TcpStream};

use rustix::event::{PollFd, PollFlags};

use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{Deadline, Frame, FrameReader, Kind, Outbox, ReadError, wait};

/// The connection to a rank: what comes from it and what is on its way to it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: usize,
    pub(super) out: Outbox,
    /// Whether the last wait found something to read, or an end.
    pub(super) ready: bool,
    stream: TcpStream,
    reader: FrameReader,
    /// Nothing can be written any more. What the peer said before can still be read.
    broken: bool,
}

impl Link {
    /// `stream` is non-blocking, and `peer` has proved the secret on it.
    pub(super) fn new(peer: usize, stream: TcpStream) -> Self {
        let (out, reader) = (Outbox::default(), FrameReader::default());
        Self { peer, out, ready: false, stream, reader, broken: false }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The next frame, if it is there; a `Fault` is an error like the peer's end.
    pub(super) fn read(&mut self) -> Result<Option<Frame>, Fault> {
        let peer = self.peer;
        match self.reader.read(&self.stream) {
            Ok(Some(frame)) if frame.kind == Kind::Fault => {
                Err(Fault::decode(&frame.body).unwrap_or(Fault::Malformed { peer }))
            }
            Ok(frame) => Ok(frame),
            Err(ReadError::Malformed) => Err(Fault::Malformed { peer }),
            Err(ReadError::Closed(cause)) => Err(Fault::closed(peer, cause.as_ref())),
        }
    }

    /// Sends what the socket takes now; whether all has gone. A peer that has ended is found out by reading.
    pub(super) fn flush(&mut self) -> bool {
        if !self.broken && self.out.write(&self.stream).is_err() {
            self.broken = true;
        }
        if self.broken {
            self.out.give_up();
        }
        self.out.pending() == 0
    }

    /// Why nothing can be written any more: what the peer said last, or that it has ended.
    pub(super) fn obituary(&mut self) -> Option<Fault> {
        if !self.broken {
            return None;
        }
        loop {
            match self.read() {
                Ok(Some(_)) => {}
                Ok(None) => return Some(Fault::closed(self.peer, None)),
                Err(fault) => return Some(fault),
            }
        }
    }

    /// Lets the peer know that nothing more will come.
    pub(super) fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// What to wait for on this link; `None` for nothing, not even its end.
    pub(super) fn interest(&self, listen: bool) -> Option<PollFd<'_>> {
        let mut flags = PollFlags::empty();
        if listen {
            flags |= PollFlags::IN;
        }
        if self.out.pending() > 0 {
            flags |= PollFlags::OUT;
        }
        (!flags.is_empty()).then(|| PollFd::new(&self.stream, flags))
    }
}

/// Tells `links` why it is over, for as long as `deadline` gives those that are in the middle of something, and
/// hangs up.
pub(super) fn spread(mut links: Vec<&mut Link>, fault: &Fault, deadline: Deadline) {
    let body = fault.encode();
    for link in &mut links {
        link.out.push(Kind::Fault, 0, &body);
    }
    loop {
        links.retain_mut(|link| {
            let told = link.flush();
            if told {
                link.hang_up();
            }
            !told
        });
        if links.is_empty() || deadline.passed() {
            break;
        }
        let mut fds: Vec<_> = links.iter().filter_map(|link| link.interest(false)).collect();
        if wait(&mut fds, deadline.left()).is_err() {
            break;
        }
    }
    // Told by the close; it will take this rank for the culprit, but it took nothing else for all this time.
    links.iter().for_each(|link| link.hang_up());
}

pub(super) fn failed_wait(rank: usize, cause: &io::Error) -> Fault {
    Fault::Os { rank, errno: cause.raw_os_error().unwrap_or(0) }
}

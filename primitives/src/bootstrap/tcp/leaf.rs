//! The side of every rank that is not the root.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::bootstrap::auth::{Handshake, Hello, REPLY_BYTES, Reply, Verdict};
use crate::bootstrap::error::BootstrapError;
use crate::bootstrap::fault::Fault;
use crate::bootstrap::unique_id::UniqueId;
use crate::bootstrap::wire::{
    Deadline, FrameReader, Kind, Outgoing, ReadError, fill, frame, longest_of_all, parts_of,
    wait_for,
};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A rank's connection to the root, non-blocking.
#[derive(Debug)]
pub(super) struct Leaf {
    world: usize,
    stream: TcpStream,
}

/// Who wants in, where, until when.
struct Knock<'a> {
    id: &'a UniqueId,
    rank: usize,
    world: usize,
    timeout: Duration,
    begin: Instant,
    deadline: Deadline,
}

/// How an attempt ended without success.
enum Setback {
    /// It may go better later.
    Again(io::Error),
    Final(BootstrapError),
}

impl Leaf {
    pub(super) fn join(
        id: &UniqueId,
        rank: usize,
        world: usize,
        timeout: Duration,
    ) -> Result<Self, BootstrapError> {
        let (begin, deadline) = (Instant::now(), Deadline::after(timeout));
        let stream = Knock { id, rank, world, timeout, begin, deadline }.until_in()?;
        let leaf = Self { world, stream };
        let start = leaf.exchange(&[], timeout).map_err(|fault| fault.error(world))?;
        if !start.is_empty() {
            return Err(BootstrapError::Malformed { peer: 0 });
        }
        Ok(leaf)
    }

    /// Where this rank goes out.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.stream.local_addr().ok()
    }

    pub(super) fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>, Fault> {
        let body = self.exchange(&frame(Kind::Part, mine), timeout)?;
        parts_of(&body, self.world).ok_or_else(|| self.hang_up(Fault::Malformed { peer: 0 }))
    }

    /// Sends `bytes` and waits for what the root sends to all.
    fn exchange(&self, bytes: &[u8], timeout: Duration) -> Result<Vec<u8>, Fault> {
        self.answer(bytes, timeout).map_err(|fault| self.hang_up(fault))
    }

    fn answer(&self, bytes: &[u8], timeout: Duration) -> Result<Vec<u8>, Fault> {
        let mut out = Outgoing::new(bytes);
        let mut reader = FrameReader::new(longest_of_all(self.world));
        let mut arriving = false;
        let mut deadline = Deadline::after(timeout.saturating_add(grace(timeout)));
        loop {
            // A root that has failed closes, but what it said before that can still be read.
            if out.write(&self.stream).is_err() {
                out.give_up();
            }
            if let Some(body) = self.hear(&mut reader)? {
                return Ok(body);
            }
            if reader.started() && !arriving {
                arriving = true;
                deadline = Deadline::after(timeout);
            }
            let waited = wait_for(&self.stream, !out.is_done(), deadline);
            if !waited.map_err(|e| Fault::closed(0, Some(&e)))? {
                return Err(Fault::Missing { ranks: vec![0], waited: timeout });
            }
        }
    }

    fn hear(&self, reader: &mut FrameReader) -> Result<Option<Vec<u8>>, Fault> {
        let malformed = Fault::Malformed { peer: 0 };
        match reader.read(&self.stream) {
            Ok(None) => Ok(None),
            Ok(Some(frame)) => match frame.kind {
                Kind::All => Ok(Some(frame.body)),
                Kind::Fault => Err(Fault::decode(&frame.body).unwrap_or(malformed)),
                Kind::Part => Err(malformed),
            },
            Err(ReadError::Malformed) => Err(malformed),
            Err(ReadError::Closed(cause)) => Err(Fault::closed(0, cause.as_ref())),
        }
    }

    /// Lets the root know at once that this rank takes no further part.
    fn hang_up(&self, fault: Fault) -> Fault {
        let _ = self.stream.shutdown(Shutdown::Both);
        fault
    }
}

impl Knock<'_> {
    fn until_in(&self) -> Result<TcpStream, BootstrapError> {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let cause = match self.enter() {
                Ok(stream) => return Ok(stream),
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Again(cause)) => cause,
            };
            if self.deadline.passed() || !may_pass(cause.kind()) {
                let (rank, addr, waited) = (self.rank, self.id.addr(), self.begin.elapsed());
                return Err(BootstrapError::Unreachable { rank, addr, attempts, waited, cause });
            }
            thread::sleep(pause.min(self.deadline.left()));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn enter(&self) -> Result<TcpStream, Setback> {
        let stream = connect(self.id.addr(), self.deadline)?;
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let hello = Hello::new(word(self.rank), word(self.world))?;
        self.send(&stream, &hello.encode())?;
        let Reply::Challenge(nonce) = self.reply(&stream)? else {
            return Err(self.impostor());
        };
        let handshake = Handshake::new(hello, nonce);
        self.send(&stream, &handshake.proof(self.id.secret()))?;
        match self.reply(&stream)? {
            Reply::Verdict(verdict, proof)
                if handshake.believe(self.id.secret(), verdict, &proof) =>
            {
                self.obey(verdict)?;
                Ok(stream)
            }
            _ => Err(self.impostor()),
        }
    }

    fn obey(&self, verdict: Verdict) -> Result<(), BootstrapError> {
        let Knock { rank, world, .. } = *self;
        Err(match verdict {
            Verdict::Accepted => return Ok(()),
            Verdict::OtherWorld { root_world } => {
                BootstrapError::WorldMismatch { rank, world, root_world: root_world as usize }
            }
            Verdict::OutOfRange => BootstrapError::RankOutOfRange { rank, world },
            Verdict::Duplicate => BootstrapError::DuplicateRank { rank, world, addr: None },
        })
    }

    fn reply(&self, stream: &TcpStream) -> Result<Reply, Setback> {
        let (mut bytes, mut have) = ([0; REPLY_BYTES], 0);
        while !fill(stream, &mut bytes, &mut have).map_err(Setback::closed)? {
            self.wait(stream, false)?;
        }
        match Reply::decode(&bytes) {
            Some(Reply::Busy) => Err(Setback::Again(io::ErrorKind::ResourceBusy.into())),
            Some(Reply::Refused) => {
                Err(BootstrapError::Refused { rank: self.rank, addr: self.id.addr() }.into())
            }
            Some(reply) => Ok(reply),
            None => Err(self.impostor()),
        }
    }

    fn send(&self, stream: &TcpStream, bytes: &[u8]) -> Result<(), Setback> {
        let mut out = Outgoing::new(bytes);
        loop {
            // What the root said before it closed, for instance that it is busy, is in the next reply.
            if out.write(stream).is_err() || out.is_done() {
                return Ok(());
            }
            self.wait(stream, true)?;
        }
    }

    fn wait(&self, stream: &TcpStream, write: bool) -> Result<(), Setback> {
        if wait_for(stream, write, self.deadline).map_err(Setback::Again)? {
            return Ok(());
        }
        let (world, waited) = (self.world, self.timeout);
        Err(BootstrapError::Missing { missing: vec![0], world, waited }.into())
    }

    fn impostor(&self) -> Setback {
        BootstrapError::Impostor { addr: self.id.addr() }.into()
    }
}

impl Setback {
    fn closed(cause: Option<io::Error>) -> Self {
        Self::Again(cause.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
    }
}

impl From<BootstrapError> for Setback {
    fn from(error: BootstrapError) -> Self {
        Self::Final(error)
    }
}

fn connect(addr: SocketAddr, deadline: Deadline) -> Result<TcpStream, Setback> {
    let left = deadline.left().max(FIRST_PAUSE);
    let stream = TcpStream::connect_timeout(&addr, left).map_err(Setback::Again)?;
    // On loopback a connection to a port where nobody listens yet can be given that very port as its own
    // and meet itself.
    if stream.local_addr().is_ok_and(|own| own == addr) {
        return Err(Setback::Again(io::ErrorKind::ConnectionRefused.into()));
    }
    stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).map_err(Setback::Again)?;
    Ok(stream)
}

/// Whether an attempt that failed like this can succeed later: the root starts, a route comes up.
fn may_pass(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::*;
    matches!(
        kind,
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | AddrNotAvailable
            | Interrupted
            | ResourceBusy
    )
}

/// How much longer than the root a rank waits, so that the root's verdict comes first.
fn grace(timeout: Duration) -> Duration {
    (timeout / 4).min(Duration::from_secs(1))
}

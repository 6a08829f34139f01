//! How a rank gets in at another rank's door: first at the root's, then at its parent's.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::link::Link;
use super::listen;
use crate::bootstrap::auth::{Handshake, Hello, REPLY_BYTES, Reply, Secret, Verdict};
use crate::bootstrap::descriptors;
use crate::bootstrap::error::BootstrapError;
use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{Deadline, Kind, Outbox, fill, wait};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection is tried for before the root is listened to again.
const LONGEST_TRY: Duration = Duration::from_millis(500);

/// Who wants in, where, until when.
pub(super) struct Knock<'a> {
    secret: &'a Secret,
    rank: usize,
    world: usize,
    /// Who listens there.
    host: usize,
    addr: SocketAddr,
    /// Whether this rank listens, too, and tells where.
    pub(super) listens: bool,
    timeout: Duration,
    deadline: Deadline,
    begin: Instant,
    attempts: Cell<u32>,
}

/// The connection to the root meanwhile, at a parent's door.
pub(super) struct Watch<'a> {
    pub(super) root: &'a mut Link,
    /// When the root is told that the parent does not answer; `None` when it has been.
    pub(super) complain: Option<Instant>,
}

/// How an attempt ended without success.
enum Setback {
    /// It may go better later.
    Again(io::Error),
    Final(BootstrapError),
}

type Entered = (TcpStream, Option<TcpListener>);

impl<'a> Knock<'a> {
    /// At the root's door.
    pub(super) fn new(
        secret: &'a Secret,
        addr: SocketAddr,
        (rank, world): (usize, usize),
        timeout: Duration,
    ) -> Self {
        Self {
            secret,
            rank,
            world,
            host: 0,
            addr,
            listens: false,
            timeout,
            deadline: Deadline::after(timeout),
            begin: Instant::now(),
            attempts: Cell::new(0),
        }
    }

    /// The same rank at its parent's door.
    pub(super) fn at_parent(self, host: usize, addr: SocketAddr, deadline: Deadline) -> Self {
        let (begin, attempts) = (Instant::now(), Cell::new(0));
        Self { host, addr, listens: false, deadline, begin, attempts, ..self }
    }

    /// Tries until it is in, or cannot get in, or its time has passed. `watch` is listened to meanwhile.
    pub(super) fn until_in(&self, mut watch: Option<Watch<'_>>) -> Result<Entered, BootstrapError> {
        let mut pause = FIRST_PAUSE;
        loop {
            self.attempts.set(self.attempts.get() + 1);
            let cause = match self.enter(&mut watch) {
                Ok(entered) => return Ok(entered),
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Again(cause)) => cause,
            };
            // Before it is blamed on the parent: the root may know better.
            self.look_around(&mut watch)?;
            if self.deadline.passed() || !may_pass(&cause) {
                return Err(self.unreachable(cause));
            }
            if !(descriptors::are_exhausted(&cause) && descriptors::raise()) {
                thread::sleep(pause.min(self.deadline.left()));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn unreachable(&self, cause: io::Error) -> BootstrapError {
        let Self { rank, host: peer, addr, .. } = *self;
        if descriptors::are_exhausted(&cause) {
            return BootstrapError::Descriptors { rank, limit: descriptors::limit() };
        }
        let (attempts, waited) = (self.attempts.get(), self.begin.elapsed());
        BootstrapError::Unreachable { rank, peer, addr, attempts, waited, cause }
    }

    fn enter(&self, watch: &mut Option<Watch<'_>>) -> Result<Entered, Setback> {
        let longest = if watch.is_some() { LONGEST_TRY } else { Duration::MAX };
        let stream = connect(self.addr, self.deadline.left().min(longest))?;
        let own = stream.local_addr().map_err(Setback::Again)?;
        let listener = self.listens.then(|| listen_at(own)).transpose()?;
        let port = listener.as_ref().map(|(_, port)| *port).unwrap_or_default();
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let hello = Hello::new(word(self.rank), word(self.world), port)?;
        self.send(&stream, &hello.encode(), watch)?;
        let Reply::Challenge(nonce) = self.reply(&stream, watch)? else {
            return Err(self.impostor());
        };
        let handshake = Handshake::new(hello, word(self.host), nonce);
        self.send(&stream, &handshake.proof(self.secret), watch)?;
        match self.reply(&stream, watch)? {
            Reply::Verdict(verdict, proof) if handshake.believe(self.secret, verdict, &proof) => {
                self.obey(verdict)?;
                Ok((stream, listener.map(|(listener, _)| listener)))
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

    fn reply(&self, stream: &TcpStream, watch: &mut Option<Watch<'_>>) -> Result<Reply, Setback> {
        let (mut bytes, mut have) = ([0; REPLY_BYTES], 0);
        while !fill(stream, &mut bytes, &mut have).map_err(Setback::closed)? {
            self.wait(stream, PollFlags::IN, watch)?;
        }
        match Reply::decode(&bytes) {
            Some(Reply::Busy) => Err(Setback::Again(io::ErrorKind::ResourceBusy.into())),
            Some(Reply::Refused) => {
                Err(BootstrapError::Refused { rank: self.rank, addr: self.addr }.into())
            }
            Some(reply) => Ok(reply),
            None => Err(self.impostor()),
        }
    }

    fn send(
        &self,
        stream: &TcpStream,
        bytes: &[u8],
        watch: &mut Option<Watch<'_>>,
    ) -> Result<(), Setback> {
        let mut out = Outbox::default();
        out.push_raw(bytes);
        loop {
            // What the host said before it closed, for instance that it is busy, is in the next reply.
            if out.write(stream).is_err() || out.pending() == 0 {
                return Ok(());
            }
            self.wait(stream, PollFlags::IN | PollFlags::OUT, watch)?;
        }
    }

    fn wait(
        &self,
        stream: &TcpStream,
        flags: PollFlags,
        watch: &mut Option<Watch<'_>>,
    ) -> Result<(), Setback> {
        if self.deadline.passed() {
            let (missing, world, waited) = (vec![self.host], self.world, self.timeout);
            return Err(BootstrapError::Missing { missing, world, waited }.into());
        }
        let mut longest = self.deadline.left();
        let mut fds = vec![PollFd::new(stream, flags)];
        if let Some(watch) = watch {
            fds.push(PollFd::new(watch.root.stream(), PollFlags::IN));
            let left = |at: Instant| at.saturating_duration_since(Instant::now());
            longest = longest.min(watch.complain.map_or(Duration::MAX, left));
        }
        wait(&mut fds, longest).map_err(Setback::Again)?;
        drop(fds);
        Ok(self.look_around(watch)?)
    }

    /// Hears what the root says meanwhile, and tells it if this takes long.
    fn look_around(&self, watch: &mut Option<Watch<'_>>) -> Result<(), BootstrapError> {
        let Some(Watch { root, .. }) = watch else {
            return Ok(());
        };
        match root.read() {
            Ok(None) => {}
            Ok(Some(_)) => return Err(Fault::Malformed { peer: 0 }.error(self.world)),
            // The root hangs up on ranks that are in their place: the parent's verdict is on its way.
            Err(Fault::Closed { peer: 0, .. }) => *watch = None,
            Err(fault) => return Err(fault.error(self.world)),
        }
        if let Some(Watch { root, complain: late @ Some(_) }) = watch
            && late.is_some_and(|at| at <= Instant::now())
        {
            *late = None;
            root.out.push(Kind::Stuck, self.host, &[]);
            root.flush();
        }
        Ok(())
    }

    fn impostor(&self) -> Setback {
        BootstrapError::Impostor { addr: self.addr }.into()
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

/// A socket for children, at the address by which this rank reaches the root: those that reach the root reach that.
fn listen_at(mut own: SocketAddr) -> Result<(TcpListener, u16), Setback> {
    own.set_port(0);
    let listener = listen(own).map_err(Setback::Again)?;
    let port = listener.local_addr().map_err(Setback::Again)?.port();
    Ok((listener, port))
}

fn connect(addr: SocketAddr, longest: Duration) -> Result<TcpStream, Setback> {
    let stream = TcpStream::connect_timeout(&addr, longest.max(FIRST_PAUSE));
    let stream = stream.map_err(Setback::Again)?;
    // On loopback a connection to a port where nobody listens yet can be given that very port as its own
    // and meet itself.
    if stream.local_addr().is_ok_and(|own| own == addr) {
        return Err(Setback::Again(io::ErrorKind::ConnectionRefused.into()));
    }
    stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).map_err(Setback::Again)?;
    Ok(stream)
}

/// Whether an attempt that failed like this can succeed later: the host starts, a route comes up.
fn may_pass(cause: &io::Error) -> bool {
    use io::ErrorKind::*;
    let passing = matches!(
        cause.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | AddrNotAvailable
            | Interrupted
            | ResourceBusy
    );
    passing || descriptors::are_exhausted(cause)
}

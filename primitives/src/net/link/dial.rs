//! The side that dials: connects, proves the secret, and asks for the same; again and again until it is let in.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::Identity;
use crate::bootstrap::auth::{Handshake, Hello, REPLY_BYTES, Reply, Secret, Verdict};
use crate::bootstrap::wire::{Outbox, fill};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The attempts to reach one peer.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) peer: usize,
    address: SocketAddr,
    own: SocketAddr,
    stage: Stage,
    attempts: u32,
    /// What the last attempt came to.
    last: String,
    pause: Duration,
}

enum Stage {
    Rest { until: Instant },
    Connecting(TcpStream),
    Challenge(TcpStream, Hello, Message),
    Verdict(TcpStream, Handshake, Message),
}

/// A reply, as far as it is here.
struct Message {
    bytes: [u8; REPLY_BYTES],
    have: usize,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.doing())
    }
}

impl Stage {
    fn doing(&self) -> &'static str {
        match self {
            Self::Rest { .. } => "about to try again",
            Self::Connecting(_) => "no answer yet: its host is down, or a firewall is between",
            Self::Challenge(..) => {
                "connected, but it has not looked: it does not connect to this rank"
            }
            Self::Verdict(..) => "connected, and waiting for its verdict",
        }
    }
}

impl Dial {
    /// Of a peer that listens at `address`, from a free port of this rank's own.
    pub(super) fn new(peer: usize, address: SocketAddr, mut own: SocketAddr) -> Self {
        own.set_port(0);
        let stage = Stage::Rest { until: Instant::now() };
        Self { peer, address, own, stage, attempts: 0, last: String::new(), pause: FIRST_PAUSE }
    }

    /// Goes on without blocking; the connection once both sides have proved themselves.
    pub(super) fn go(&mut self, identity: &Identity) -> Option<TcpStream> {
        loop {
            let rest = Stage::Rest { until: Instant::now() };
            let stage = std::mem::replace(&mut self.stage, rest);
            match self.step(stage, identity) {
                Ok(Step::In(stream)) => return Some(stream),
                Ok(Step::On(stage)) => self.stage = stage,
                Ok(Step::Wait(stage)) => {
                    self.stage = stage;
                    return None;
                }
                Err(why) => {
                    self.last = why;
                    self.stage = Stage::Rest { until: Instant::now() + self.pause };
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                    return None;
                }
            }
        }
    }

    /// What to wait on; None during a rest.
    pub(super) fn socket(&self) -> Option<PollFd<'_>> {
        match &self.stage {
            Stage::Rest { .. } => None,
            Stage::Connecting(stream) => Some(PollFd::new(stream, PollFlags::OUT)),
            Stage::Challenge(stream, ..) | Stage::Verdict(stream, ..) => {
                Some(PollFd::new(stream, PollFlags::IN))
            }
        }
    }

    /// When a rest is over.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        if let Stage::Rest { until } = self.stage { Some(until) } else { None }
    }

    /// What was seen of the peer, for an error.
    pub(super) fn report(&self) -> String {
        let Self { peer, address, attempts, last, .. } = self;
        let now = if last.is_empty() || !matches!(self.stage, Stage::Rest { .. }) {
            self.stage.doing()
        } else {
            last
        };
        format!("; rank {peer} at {address}, attempt {attempts}: {now}")
    }

    fn step(&mut self, stage: Stage, identity: &Identity) -> Result<Step, String> {
        match stage {
            Stage::Rest { until } if Instant::now() < until => Ok(Step::Wait(stage)),
            Stage::Rest { .. } => self.begin().map(Step::On),
            Stage::Connecting(stream) => self.connected(stream, identity),
            Stage::Challenge(stream, hello, mut reply) => {
                let Some(said) = reply.read(&stream)? else {
                    return Ok(Step::Wait(Stage::Challenge(stream, hello, reply)));
                };
                let Reply::Challenge(nonce) = said else { return Err(refusal(said)) };
                let handshake = Handshake::new(hello, word(self.peer), nonce);
                send(&stream, &handshake.proof(&self.key(identity)))?;
                Ok(Step::On(Stage::Verdict(stream, handshake, Message::new())))
            }
            Stage::Verdict(stream, handshake, mut reply) => {
                let Some(said) = reply.read(&stream)? else {
                    return Ok(Step::Wait(Stage::Verdict(stream, handshake, reply)));
                };
                self.obey(said, &handshake, identity).map(|()| Step::In(stream))
            }
        }
    }

    fn begin(&mut self) -> Result<Stage, String> {
        self.attempts += 1;
        if self.own.is_ipv4() != self.address.is_ipv4() {
            let own = self.own.ip();
            return Err(format!("this rank has {own}, of the other family; choose the interfaces"));
        }
        dial(self.own, self.address).map(Stage::Connecting).map_err(|errno| errno.to_string())
    }

    fn connected(&self, stream: TcpStream, identity: &Identity) -> Result<Step, String> {
        let zero = rustix::event::Timespec::default();
        let mut fds = [PollFd::new(&stream, PollFlags::OUT)];
        if !matches!(rustix::event::poll(&mut fds, Some(&zero)), Ok(1)) {
            return Ok(Step::Wait(Stage::Connecting(stream)));
        }
        if let Ok(Err(errno)) = sockopt::socket_error(&stream) {
            return Err(errno.to_string());
        }
        // On loopback, a connection to a port where nobody listens can be given that very port and meet itself.
        if stream.local_addr().ok() == stream.peer_addr().ok() {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).to_string());
        }
        // No port: links are made to addresses that are known.
        let hello = Hello::new(word(identity.rank), word(identity.world), 0);
        let hello = hello.map_err(|error| error.to_string())?;
        send(&stream, &hello.encode())?;
        Ok(Step::On(Stage::Challenge(stream, hello, Message::new())))
    }

    fn obey(&self, said: Reply, handshake: &Handshake, identity: &Identity) -> Result<(), String> {
        match said {
            Reply::Verdict(verdict, proof) => {
                if !handshake.believe(&self.key(identity), verdict, &proof) {
                    return Err("what listens there does not know the secret".to_owned());
                }
                match verdict {
                    Verdict::Accepted => Ok(()),
                    other => Err(format!("it refused: {other:?}")),
                }
            }
            other => Err(refusal(other)),
        }
    }

    fn key(&self, identity: &Identity) -> Secret {
        identity.key(identity.rank, self.peer)
    }
}

enum Step {
    On(Stage),
    Wait(Stage),
    In(TcpStream),
}

impl Message {
    fn new() -> Self {
        Self { bytes: [0; REPLY_BYTES], have: 0 }
    }

    fn read(&mut self, from: &TcpStream) -> Result<Option<Reply>, String> {
        match fill(from, &mut self.bytes, &mut self.have) {
            Ok(false) => Ok(None),
            Ok(true) => match Reply::decode(&self.bytes) {
                Some(reply) => Ok(Some(reply)),
                None => Err("what it sent is no answer of this version".to_owned()),
            },
            Err(None) => Err("it closed the connection".to_owned()),
            Err(Some(error)) => Err(error.to_string()),
        }
    }
}

fn refusal(reply: Reply) -> String {
    match reply {
        Reply::Busy => "it has too many strangers at its door",
        Reply::Refused => "it refused the secret of this rank",
        _ => "what it sent is out of turn",
    }
    .to_owned()
}

/// A connection on its way, from `own` address to `to`.
fn dial(own: SocketAddr, to: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    rustix::net::bind(&socket, &own)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno),
    }
}

/// A rank, as it is sent.
pub(super) fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Few bytes into an empty queue: they fit, or the connection has broken.
fn send(stream: &TcpStream, bytes: &[u8]) -> Result<(), String> {
    let mut out = Outbox::of(bytes);
    match out.write(stream) {
        Ok(()) if out.pending() == 0 => Ok(()),
        Ok(()) => Err("it takes no bytes".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

//! The side that is dialled: who connects is a stranger until it proves the secret. As the bootstrap's door, one
//! thread hears all of them at once, they have a number and a time, and nothing of variable length is read.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Identity;
use super::dial::word;
use crate::bootstrap::auth::{
    HELLO_BYTES, Handshake, Hello, Nonce, PROOF_BYTES, Reply, Secret, Verdict,
};
use crate::bootstrap::wire::{Outbox, fill};

/// Connections that have not proved the secret, at most.
const MAX_CANDIDATES: usize = 64;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The oldest gives way to a new one only after this time, so ranks that come all at once do not push each other out.
const MIN_STAY: Duration = Duration::from_millis(100);
/// How long nobody is let in after the system could give no connection.
const CLOSED: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    /// Oldest first.
    candidates: Vec<Candidate>,
    closed_until: Option<Instant>,
    /// Strangers, and the last one's address and offence.
    dropped: u64,
    last: Option<String>,
}

#[derive(Debug)]
struct Candidate {
    stream: TcpStream,
    from: SocketAddr,
    since: Instant,
    stage: Stage,
    have: usize,
}

enum Stage {
    Hello([u8; HELLO_BYTES]),
    Proof(Handshake, Secret, [u8; PROOF_BYTES]),
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Hello(_)) { "Hello" } else { "Proof" })
    }
}

enum Heard {
    Nothing,
    Proved(usize),
    Stranger(&'static str),
}

impl Door {
    /// `listener` does not block.
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, candidates: Vec::new(), closed_until: None, dropped: 0, last: None }
    }

    /// Goes on with whoever is at the door, without blocking. Ranks that have proved themselves, and that `judge`
    /// accepts, are returned.
    pub(super) fn serve(
        &mut self,
        identity: &Identity,
        judge: impl Fn(usize) -> Verdict,
    ) -> Vec<(usize, TcpStream)> {
        self.accept();
        let mut admitted = Vec::new();
        for mut candidate in std::mem::take(&mut self.candidates) {
            match candidate.hear(identity) {
                Heard::Proved(rank) => {
                    let verdict = judge(rank);
                    candidate.tell(verdict);
                    if verdict == Verdict::Accepted {
                        admitted.push((rank, candidate.stream));
                    } else {
                        self.forget(candidate, "this rank waits for no connection of that rank");
                    }
                }
                Heard::Stranger(why) => self.forget(candidate, why),
                Heard::Nothing if candidate.since.elapsed() >= PATIENCE => {
                    self.forget(candidate, "it did not prove the secret within 5 s");
                }
                Heard::Nothing => self.candidates.push(candidate),
            }
        }
        admitted
    }

    /// What to wait on.
    pub(super) fn sockets(&self) -> impl Iterator<Item = rustix::event::PollFd<'_>> {
        let flags = rustix::event::PollFlags::IN;
        let streams =
            self.candidates.iter().map(move |c| rustix::event::PollFd::new(&c.stream, flags));
        let open = self.can_take();
        let door = open.then(|| rustix::event::PollFd::new(&self.listener, flags));
        door.into_iter().chain(streams)
    }

    /// What was seen of others than ranks, for an error.
    pub(super) fn report(&self) -> String {
        match &self.last {
            Some(last) => format!("; {} strangers were dropped, the last: {last}", self.dropped),
            None => String::new(),
        }
    }

    fn can_take(&self) -> bool {
        let open = self.closed_until.is_none_or(|until| until <= Instant::now());
        let oldest = self.candidates.first().map_or(Duration::MAX, |c| c.since.elapsed());
        open && (self.candidates.len() < MAX_CANDIDATES || oldest >= MIN_STAY)
    }

    fn accept(&mut self) {
        // Bounded, so that a flood cannot keep the candidates from being heard.
        for _ in 0..MAX_CANDIDATES {
            if !self.can_take() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, from)) => self.take(stream, from),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => {
                    tracing::warn!("could not accept a connection of a rank, will try again: {e}");
                    self.closed_until = Some(Instant::now() + CLOSED);
                    return;
                }
            }
        }
    }

    fn take(&mut self, stream: TcpStream, from: SocketAddr) {
        if self.candidates.len() == MAX_CANDIDATES {
            let oldest = self.candidates.remove(0);
            oldest.send(&Reply::Busy);
            self.forget(oldest, "64 newer connections wait to prove the secret");
        }
        let stage = Stage::Hello([0; HELLO_BYTES]);
        let candidate = Candidate { stream, from, since: Instant::now(), stage, have: 0 };
        let set = candidate.stream.set_nonblocking(true);
        match set.and_then(|()| candidate.stream.set_nodelay(true)) {
            Ok(()) => self.candidates.push(candidate),
            Err(_) => self.forget(candidate, "its socket takes no options"),
        }
    }

    fn forget(&mut self, candidate: Candidate, why: &str) {
        tracing::warn!("dropped a connection to this rank from {}: {why}", candidate.from);
        self.dropped += 1;
        self.last = Some(format!("{}, {why}", candidate.from));
    }
}

impl Candidate {
    fn hear(&mut self, identity: &Identity) -> Heard {
        let buffer: &mut [u8] = match &mut self.stage {
            Stage::Hello(bytes) => bytes,
            Stage::Proof(_, _, bytes) => bytes,
        };
        match fill(&self.stream, buffer, &mut self.have) {
            Ok(false) => return Heard::Nothing,
            Ok(true) => {}
            Err(_) => return Heard::Stranger("it closed before it had proved the secret"),
        }
        match &self.stage {
            Stage::Hello(bytes) => match Hello::decode(bytes) {
                Ok(hello) => self.challenge(hello, identity),
                Err(_) => Heard::Stranger("what it sent is no hello of this version"),
            },
            Stage::Proof(handshake, key, proof) if handshake.proves(key, proof) => {
                Heard::Proved(handshake.hello.rank as usize)
            }
            Stage::Proof(..) => {
                self.send(&Reply::Refused);
                Heard::Stranger("it does not know the secret, or replays what it heard")
            }
        }
    }

    fn challenge(&mut self, hello: Hello, identity: &Identity) -> Heard {
        let Ok(nonce) = Nonce::fresh() else {
            return Heard::Stranger("the system has no random bytes for a challenge");
        };
        let key = identity.key(hello.rank as usize, identity.rank);
        self.stage =
            Stage::Proof(Handshake::new(hello, word(identity.rank), nonce), key, [0; PROOF_BYTES]);
        self.have = 0;
        self.send(&Reply::Challenge(nonce));
        Heard::Nothing
    }

    /// Proves in return that this is the rank that was dialled.
    fn tell(&self, verdict: Verdict) {
        if let Stage::Proof(handshake, key, _) = &self.stage {
            self.send(&handshake.verdict(key, verdict));
        }
    }

    /// Few bytes into an empty queue: where they do not fit the connection has broken, and the next read says so.
    fn send(&self, reply: &Reply) {
        let _ = Outbox::of(&reply.encode()).write(&self.stream);
    }
}

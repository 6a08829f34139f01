//! A rank's door: who connects is a stranger until the secret is proved.
//!
//! One thread listens to all half-authenticated connections at once, so one that is silent or slow costs the
//! others nothing. They have a number and a time; what they send is read up to a fixed size and no further. Whom it
//! lets in is for its owner to judge: the root knows the ranks, a parent its children.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::bootstrap::auth::{
    BadHello, HELLO_BYTES, Handshake, Hello, Nonce, PROOF_BYTES, Reply, Secret, Verdict,
};
use crate::bootstrap::descriptors;
use crate::bootstrap::wire::{Outbox, fill};

/// Connections that have not proved the secret, at most.
const MAX_CANDIDATES: usize = 64;

/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The oldest is dropped for a new one only after this time: ranks that come all at once do not push each
/// other out.
const MIN_STAY: Duration = Duration::from_millis(100);

/// How long nobody is let in after the system could give no connection.
const CLOSED: Duration = Duration::from_millis(200);

/// How often the ages are looked at.
pub(super) const TICK: Duration = Duration::from_millis(20);

pub(super) struct Door<'a> {
    listener: &'a TcpListener,
    secret: &'a Secret,
    /// Who listens here.
    host: u32,
    /// Oldest first.
    candidates: Vec<Candidate>,
    /// Whether somebody waits to be accepted, and of which candidates there is something to read.
    ready: (bool, Vec<bool>),
    /// Where nobody is let in for a while although there is room for a candidate.
    pub(super) full: bool,
    /// Set where the system could not give another connection.
    closed_until: Option<Instant>,
    /// The process's limit of open files, if that was why no connection could be had since the last one.
    exhausted: Option<u64>,
}

/// A connection whose other end has proved the secret, and waits for the verdict.
pub(super) struct Proved {
    pub(super) hello: Hello,
    pub(super) addr: SocketAddr,
    stream: TcpStream,
    handshake: Handshake,
}

struct Candidate {
    stream: TcpStream,
    addr: SocketAddr,
    since: Instant,
    stage: Stage,
    have: usize,
}

enum Stage {
    Hello([u8; HELLO_BYTES]),
    Proof(Handshake, [u8; PROOF_BYTES]),
}

/// What a candidate has come to.
enum Heard {
    Nothing,
    Proved(Handshake),
    Stranger(&'static str),
}

impl<'a> Door<'a> {
    /// The door of rank `host`, whose listening socket does not block.
    pub(super) fn open(listener: &'a TcpListener, secret: &'a Secret, host: usize) -> Self {
        Self {
            listener,
            secret,
            host: host as u32,
            candidates: Vec::new(),
            ready: (false, Vec::new()),
            full: false,
            closed_until: None,
            exhausted: None,
        }
    }

    /// What to wait for: see [`note`](Self::note).
    pub(super) fn interests(&self) -> Vec<PollFd<'_>> {
        let listen = if self.can_take() { PollFlags::IN } else { PollFlags::empty() };
        let candidates = self.candidates.iter();
        let candidates = candidates.map(|one| PollFd::new(&one.stream, PollFlags::IN));
        std::iter::once(PollFd::new(self.listener, listen)).chain(candidates).collect()
    }

    /// How long one may wait before [`hear`](Self::hear) has to be called anyway.
    pub(super) fn patience(&self) -> Duration {
        let idle = self.candidates.is_empty() && self.can_take();
        if idle { Duration::MAX } else { TICK }
    }

    /// Takes which of [`interests`](Self::interests) have something.
    pub(super) fn note(&mut self, woken: &[bool]) {
        let (listener, candidates) = woken.split_first().unwrap_or((&false, &[]));
        self.ready = (*listener && self.can_take(), candidates.to_vec());
    }

    /// Hears everyone out as far as they have come; those who have proved the secret.
    pub(super) fn hear(&mut self) -> Vec<Proved> {
        let (listener, ready) = std::mem::take(&mut self.ready);
        // Those who are inside first: it makes room.
        let proved = self.hear_candidates(&ready);
        if listener {
            self.accept();
        }
        proved
    }

    /// The limit of open files where that alone keeps ranks out.
    pub(super) fn exhausted(&self) -> Option<u64> {
        self.exhausted
    }

    fn can_take(&self) -> bool {
        let open = !self.full && self.closed_until.is_none_or(|until| until <= Instant::now());
        let oldest = self.candidates.first().map_or(Duration::MAX, |c| c.since.elapsed());
        open && (self.candidates.len() < MAX_CANDIDATES || oldest >= MIN_STAY)
    }

    fn hear_candidates(&mut self, ready: &[bool]) -> Vec<Proved> {
        let mut proved = Vec::new();
        let ready = ready.iter().chain(std::iter::repeat(&false));
        for (mut candidate, &ready) in std::mem::take(&mut self.candidates).into_iter().zip(ready) {
            let heard = if ready { candidate.hear(self.secret, self.host) } else { Heard::Nothing };
            match heard {
                Heard::Proved(handshake) => proved.push(candidate.believed(handshake)),
                Heard::Stranger(why) => candidate.drop_because(why),
                Heard::Nothing if candidate.since.elapsed() >= PATIENCE => {
                    candidate.drop_because("it did not prove the secret within 5 s");
                }
                Heard::Nothing => self.candidates.push(candidate),
            }
        }
        proved
    }

    fn accept(&mut self) {
        // Bounded, so that a flood cannot keep the candidates from being heard.
        for _ in 0..MAX_CANDIDATES {
            if !self.can_take() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, addr)) => self.take(stream, addr),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if may_accept_again(&e) => {}
                Err(e) => return self.close_for_a_while(&e),
            }
        }
    }

    fn close_for_a_while(&mut self, cause: &io::Error) {
        if descriptors::are_exhausted(cause) {
            self.exhausted = Some(descriptors::limit());
        }
        tracing::warn!(
            "rank {} could not accept a bootstrap connection, will try again: {cause}",
            self.host
        );
        self.closed_until = Some(Instant::now() + CLOSED);
    }

    fn take(&mut self, stream: TcpStream, addr: SocketAddr) {
        self.exhausted = None;
        if self.candidates.len() == MAX_CANDIDATES {
            let oldest = self.candidates.remove(0);
            oldest.send(&Reply::Busy);
            oldest.drop_because("64 newer connections wait to prove the secret");
        }
        let stage = Stage::Hello([0; HELLO_BYTES]);
        let candidate = Candidate { stream, addr, since: Instant::now(), stage, have: 0 };
        let set = candidate.stream.set_nonblocking(true);
        match set.and_then(|()| candidate.stream.set_nodelay(true)) {
            Ok(()) => self.candidates.push(candidate),
            Err(_) => candidate.drop_because("its socket takes no options"),
        }
    }
}

impl Drop for Door<'_> {
    fn drop(&mut self) {
        for late in self.candidates.drain(..) {
            late.drop_because(
                "it had not proved the secret when the last rank joined or the job failed",
            );
        }
    }
}

/// Whether only this one connection failed, or another attempt has what this one lacked.
fn may_accept_again(cause: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted};
    let passing = matches!(cause.kind(), ConnectionAborted | Interrupted);
    passing || (descriptors::are_exhausted(cause) && descriptors::raise())
}

impl Proved {
    /// Says the verdict; the connection, for the protocol behind the handshake.
    pub(super) fn answer(self, secret: &Secret, verdict: Verdict) -> TcpStream {
        say(&self.stream, &self.handshake.verdict(secret, verdict));
        self.stream
    }
}

impl Candidate {
    fn hear(&mut self, secret: &Secret, host: u32) -> Heard {
        let buffer: &mut [u8] = match &mut self.stage {
            Stage::Hello(bytes) => bytes,
            Stage::Proof(_, bytes) => bytes,
        };
        match fill(&self.stream, buffer, &mut self.have) {
            Ok(false) => return Heard::Nothing,
            Ok(true) => {}
            Err(_) => return Heard::Stranger("it closed before it had proved the secret"),
        }
        match &self.stage {
            Stage::Hello(bytes) => match Hello::decode(bytes) {
                Ok(hello) => self.challenge(hello, host),
                Err(bad) => self.refuse_hello(bad),
            },
            Stage::Proof(handshake, proof) if handshake.proves(secret, proof) => {
                Heard::Proved(*handshake)
            }
            Stage::Proof(..) => {
                self.send(&Reply::Refused);
                Heard::Stranger("it does not know the secret, or replays what it heard")
            }
        }
    }

    fn challenge(&mut self, hello: Hello, host: u32) -> Heard {
        let Ok(nonce) = Nonce::fresh() else {
            return Heard::Stranger("the system has no random bytes for a challenge");
        };
        self.stage = Stage::Proof(Handshake::new(hello, host, nonce), [0; PROOF_BYTES]);
        self.have = 0;
        self.send(&Reply::Challenge(nonce));
        Heard::Nothing
    }

    fn refuse_hello(&self, bad: BadHello) -> Heard {
        match bad {
            BadHello::NotOurs => Heard::Stranger("what it sent is no bootstrap hello"),
            BadHello::Version(version) => {
                self.send(&Reply::Refused);
                tracing::warn!("{} speaks bootstrap protocol version {version}", self.addr);
                Heard::Stranger("it speaks another protocol version")
            }
        }
    }

    fn believed(self, handshake: Handshake) -> Proved {
        Proved { hello: handshake.hello, addr: self.addr, stream: self.stream, handshake }
    }

    fn send(&self, reply: &Reply) {
        say(&self.stream, reply);
    }

    fn drop_because(self, why: &str) {
        tracing::warn!("dropped a connection to the bootstrap from {}: {why}", self.addr);
    }
}

/// Fixed and few bytes into an empty queue: where they do not fit at once the connection has broken, and the
/// next read says so.
fn say(stream: &TcpStream, reply: &Reply) {
    let mut out = Outbox::default();
    out.push_raw(&reply.encode());
    let _ = out.write(stream);
}

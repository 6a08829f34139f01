//! The root's door: who connects is a stranger until the secret is proved.
//!
//! One thread listens to all half-authenticated connections at once, so one that is silent or slow costs the
//! others nothing. They have a number and a time; what they send is read up to a fixed size and no further.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::star::{announce, check_quiet, failed_wait};
use crate::bootstrap::auth::{
    BadHello, HELLO_BYTES, Handshake, Hello, Nonce, PROOF_BYTES, Reply, Secret, Verdict,
};
use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{Deadline, Outgoing, fill, wait};

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
const TICK: Duration = Duration::from_millis(20);

pub(super) struct Door<'a> {
    listener: &'a TcpListener,
    secret: &'a Secret,
    world: u32,
    /// Oldest first.
    candidates: Vec<Candidate>,
    /// Rank r at r - 1.
    members: Vec<Option<TcpStream>>,
    missing: usize,
    /// Set where the system could not give another connection, for instance for want of descriptors.
    closed_until: Option<Instant>,
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

/// What can be read without waiting.
struct Ready {
    listener: bool,
    candidates: Vec<bool>,
    /// Places in `members`.
    members: Vec<usize>,
}

impl<'a> Door<'a> {
    /// `world` is at most `MAX_WORLD`.
    pub(super) fn open(listener: &'a TcpListener, secret: &'a Secret, world: usize) -> Self {
        Self {
            listener,
            secret,
            world: world as u32,
            candidates: Vec::new(),
            members: (1..world).map(|_| None).collect(),
            missing: world - 1,
            closed_until: None,
        }
    }

    /// The connections of ranks 1 and up, once all are there. A fault is told to those that are.
    pub(super) fn admit_all(mut self, timeout: Duration) -> Result<Vec<TcpStream>, Fault> {
        let outcome = self.run(timeout);
        if let Err(fault) = &outcome {
            announce(self.members.iter().flatten(), fault);
        }
        for late in self.candidates {
            late.drop_because(
                "it had not proved the secret when the last rank joined or the job failed",
            );
        }
        outcome.map(|()| self.members.into_iter().flatten().collect())
    }

    fn run(&mut self, timeout: Duration) -> Result<(), Fault> {
        let deadline = Deadline::after(timeout);
        while self.missing > 0 {
            if deadline.passed() {
                let absent = (0..self.members.len()).filter(|&at| self.members[at].is_none());
                return Err(Fault::Missing {
                    ranks: absent.map(|at| at + 1).collect(),
                    waited: timeout,
                });
            }
            let ready = self.wait(deadline).map_err(|e| failed_wait(&e))?;
            for at in ready.members {
                self.members[at].as_ref().map_or(Ok(()), |peer| check_quiet(peer, at + 1))?;
            }
            // Those who are inside first: it makes room.
            self.hear_candidates(&ready.candidates)?;
            if ready.listener {
                self.accept();
            }
        }
        Ok(())
    }

    fn wait(&self, deadline: Deadline) -> io::Result<Ready> {
        let listens = self.can_take();
        let listen = if listens { PollFlags::IN } else { PollFlags::empty() };
        let present = (0..self.members.len()).filter(|&at| self.members[at].is_some());
        let present: Vec<usize> = present.collect();
        let mut fds = vec![PollFd::new(self.listener, listen)];
        let candidates = self.candidates.iter().map(|candidate| &candidate.stream);
        let streams = candidates.chain(self.members.iter().flatten());
        fds.extend(streams.map(|stream| PollFd::new(stream, PollFlags::IN)));
        let idle = listens && self.candidates.is_empty();
        wait(&mut fds, if idle { deadline.left() } else { deadline.left().min(TICK) })?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            listener: listens && ready.next() == Some(true),
            candidates: ready.by_ref().take(self.candidates.len()).collect(),
            members: present.into_iter().zip(ready).filter_map(|(at, r)| r.then_some(at)).collect(),
        })
    }

    fn can_take(&self) -> bool {
        let open = self.closed_until.is_none_or(|until| until <= Instant::now());
        let oldest = self.candidates.first().map_or(Duration::MAX, |c| c.since.elapsed());
        open && (self.candidates.len() < MAX_CANDIDATES || oldest >= MIN_STAY)
    }

    fn hear_candidates(&mut self, ready: &[bool]) -> Result<(), Fault> {
        for (mut candidate, &ready) in std::mem::take(&mut self.candidates).into_iter().zip(ready) {
            let heard = if ready { candidate.hear(self.secret) } else { Heard::Nothing };
            match heard {
                Heard::Proved(handshake) => self.judge(candidate, handshake)?,
                Heard::Stranger(why) => candidate.drop_because(why),
                Heard::Nothing if candidate.since.elapsed() >= PATIENCE => {
                    candidate.drop_because("it did not prove the secret within 5 s");
                }
                Heard::Nothing => self.candidates.push(candidate),
            }
        }
        Ok(())
    }

    /// Takes in, or says why not, a rank that has proved the secret.
    fn judge(&mut self, candidate: Candidate, handshake: Handshake) -> Result<(), Fault> {
        let (verdict, fault) = self.opinion(handshake.hello, candidate.addr);
        candidate.send(&handshake.verdict(self.secret, verdict));
        if let Some(fault) = fault {
            return Err(fault);
        }
        self.members[handshake.hello.rank as usize - 1] = Some(candidate.stream);
        self.missing -= 1;
        Ok(())
    }

    fn opinion(&self, hello: Hello, addr: SocketAddr) -> (Verdict, Option<Fault>) {
        let (root_world, rank) = (self.world, hello.rank as usize);
        if hello.world != root_world {
            let (world, root_world) = (hello.world as usize, root_world as usize);
            let fault = Fault::OtherWorld { rank, world, root_world };
            (Verdict::OtherWorld { root_world: self.world }, Some(fault))
        } else if hello.rank >= root_world {
            (Verdict::OutOfRange, Some(Fault::OutOfRange { rank }))
        } else if rank == 0 || self.members[rank - 1].is_some() {
            (Verdict::Duplicate, Some(Fault::Duplicate { rank, addr: Some(addr) }))
        } else {
            (Verdict::Accepted, None)
        }
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
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => {
                    tracing::warn!(
                        "the bootstrap root could not accept a connection, will try again: {e}"
                    );
                    self.closed_until = Some(Instant::now() + CLOSED);
                    return;
                }
            }
        }
    }

    fn take(&mut self, stream: TcpStream, addr: SocketAddr) {
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

impl Candidate {
    fn hear(&mut self, secret: &Secret) -> Heard {
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
                Ok(hello) => self.challenge(hello),
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

    fn challenge(&mut self, hello: Hello) -> Heard {
        let Ok(nonce) = Nonce::fresh() else {
            return Heard::Stranger("the system has no random bytes for a challenge");
        };
        self.stage = Stage::Proof(Handshake::new(hello, nonce), [0; PROOF_BYTES]);
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

    /// Fixed and few bytes into an empty queue: where they do not fit at once the connection has broken, and
    /// the next read says so.
    fn send(&self, reply: &Reply) {
        let _ = Outgoing::new(&reply.encode()).write(&self.stream);
    }

    fn drop_because(self, why: &str) {
        tracing::warn!("dropped a connection to the bootstrap from {}: {why}", self.addr);
    }
}

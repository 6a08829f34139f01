//! Links: a TCP connection between two ranks, on which both have proved that they are who they say.
//!
//! ```text
//!   rank r (dials)                             rank s < r (is dialled)
//!     hello: version, r, world, nonce ────────►   of strangers: dropped, logged, the job goes on
//!         ◄──────────────── challenge: a fresh nonce
//!     proof: HMAC(key(r, s), hello, nonce) ───►
//!         ◄── verdict: status, HMAC(key(r, s), status, hello, nonce)
//! ```
//!
//! The key is made from the job's secret and a number that rank 0 draws anew for each [`Links`], and from both ranks:
//! what was recorded elsewhere proves nothing, and a connection that somebody leads to another rank fails.
//!
//! Invariants:
//!
//! - Nothing of variable length is read before the proof; after it lengths are checked before memory is taken.
//! - Links are authenticated when they are made, not encrypted.
//! - Every wait has a deadline, and an error that names the peer and says what was seen of it.
//! - A network that falls silent breaks the link within [`LinkOptions::silence`].
//!
//! Links are made when they are asked for. A rank that comes early waits in the system's queue, or is let in when
//! another rank is waited for, and its link is kept.

mod address;
mod dial;
mod door;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

pub use self::address::LinkOptions;
use self::address::{Card, seen_from};
use self::dial::Dial;
use self::door::Door;
use crate::bootstrap::auth::{Secret, Verdict};
use crate::bootstrap::wire::{Deadline, Outbox, fill, wait, wait_for};
use crate::bootstrap::{Bootstrap, BootstrapError};
use crate::error::Error;
use crate::net::{NetError, NetFault};

/// The longest message of [`Link::exchange`]: it fits into the sockets' buffers, so ranks may exchange with several
/// peers in any order.
pub const MAX_EXCHANGE: usize = 32 << 10;

/// How often the door is looked at while a rank waits for others.
const TICK: Duration = Duration::from_millis(20);
/// Missing peers of which an error tells all.
const TOLD: usize = 4;

/// One rank's links. See the [module](self).
#[derive(Debug)]
pub struct Links {
    identity: Identity,
    own: SocketAddr,
    addresses: Vec<SocketAddr>,
    silence: Duration,
    door: Door,
    /// Under way to peers that have not let this rank in yet.
    dials: Vec<Dial>,
    places: Vec<Place>,
}

/// Who this rank is, and how it proves that.
#[derive(Debug)]
struct Identity {
    rank: usize,
    world: usize,
    secret: Secret,
}

#[derive(Debug)]
enum Place {
    Empty,
    Here(Link),
    /// Somebody took it, for good.
    Taken,
}

/// A connection to a rank that has proved to be that.
#[derive(Debug)]
pub struct Link {
    peer: usize,
    stream: TcpStream,
    via: String,
}

impl Links {
    /// Opens this rank's door, and tells all others where it is. Every rank calls it, in the same order as its other
    /// calls of the bootstrap. Blocks until all have.
    ///
    /// # Errors
    /// The bootstrap fails, no address is found or can be listened at, or a rank sent something else.
    pub fn new(bootstrap: &mut dyn Bootstrap, options: &LinkOptions) -> Result<Self, Error> {
        let (rank, world) = (bootstrap.rank(), bootstrap.world());
        let (listener, own) = listen(options.choose(bootstrap.address())?)?;
        let card = Card { address: own, nonce: random()? };
        let cards = bootstrap.all_gather(&card.encode())?;
        let read = |(peer, bytes): (usize, &Vec<u8>)| {
            let what = "its address for links is garbled: do all ranks run the same build?";
            Card::decode(bytes).ok_or(NetError::Protocol { peer, what: what.to_owned() })
        };
        let cards = cards.iter().enumerate().map(read).collect::<Result<Vec<Card>, _>>()?;
        let nonce = cards.first().map_or([0; 32], |card| card.nonce);
        let secret = bootstrap.secret().unwrap_or(Secret::derive(&[]));
        let secret = Secret::derive(&[b"links", secret.bytes(), &nonce]);
        let addresses = cards.iter().map(|card| seen_from(own, card.address)).collect();
        Ok(Self {
            identity: Identity { rank, world, secret },
            own,
            addresses,
            silence: options.silence,
            door: Door::new(listener),
            dials: Vec::new(),
            places: (0..world).map(|_| Place::Empty).collect(),
        })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.identity.rank
    }

    /// Ranks in all.
    pub fn world(&self) -> usize {
        self.identity.world
    }

    /// Where this rank listens.
    pub fn address(&self) -> SocketAddr {
        self.own
    }

    /// Links this rank with each of these peers, each of which calls this at the same time. Links that are there stay;
    /// one that its peer has closed is made anew. Blocks until all are there, at most for `timeout`.
    ///
    /// # Errors
    /// [`NetError::Missing`] names the peers that did not come and says what was seen of them; links that were made
    /// stay, and another call goes on where this one stopped. [`NetError::Protocol`] for a rank that there is not, or this one.
    pub fn connect(&mut self, peers: &[usize], timeout: Duration) -> Result<(), NetError> {
        let mut missing = self.absent(peers)?;
        let deadline = Deadline::after(timeout);
        let rank = self.rank();
        for &peer in missing.iter().filter(|&&peer| peer < rank) {
            if !self.dials.iter().any(|dial| dial.peer == peer) {
                self.dials.push(Dial::new(peer, self.addresses[peer], self.own));
            }
        }
        while !missing.is_empty() {
            self.advance()?;
            missing.retain(|&peer| !matches!(self.places[peer], Place::Here(_)));
            if deadline.passed() && !missing.is_empty() {
                let hint = self.hint(&missing);
                return Err(NetError::Missing { missing, timeout, hint });
            }
            if !missing.is_empty() {
                self.rest(deadline)?;
            }
        }
        Ok(())
    }

    /// The link to a peer, if there is one.
    pub fn link(&self, peer: usize) -> Option<&Link> {
        match self.places.get(peer) {
            Some(Place::Here(link)) => Some(link),
            _ => None,
        }
    }

    /// The link to a peer, for good: it is not made again.
    pub fn take(&mut self, peer: usize) -> Option<Link> {
        let place = self.places.get_mut(peer)?;
        if !matches!(place, Place::Here(_)) {
            return None;
        }
        match std::mem::replace(place, Place::Taken) {
            Place::Here(link) => Some(link),
            _ => None,
        }
    }

    /// As [`Link::exchange`], with a peer that is connected.
    ///
    /// # Errors
    /// Those, and [`NetError::Missing`] for a peer that is not connected.
    pub fn exchange(
        &self,
        peer: usize,
        mine: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, NetError> {
        let hint = ": connect first".to_owned();
        let missing = NetError::Missing { missing: vec![peer], timeout: Duration::ZERO, hint };
        self.link(peer).ok_or(missing)?.exchange(mine, timeout)
    }

    /// Peers, of those asked for, that are not linked. Closed links are let go.
    fn absent(&mut self, peers: &[usize]) -> Result<Vec<usize>, NetError> {
        let (rank, world) = (self.rank(), self.world());
        let mut absent = Vec::new();
        for &peer in peers {
            if peer == rank || peer >= world {
                let what = format!("rank {rank} of {world} cannot link with it");
                return Err(NetError::Protocol { peer, what });
            }
            let place = &mut self.places[peer];
            match place {
                Place::Here(link) if !link.closed() => continue,
                Place::Taken => {
                    let what = "its link was taken, and is not made again".to_owned();
                    return Err(NetError::Protocol { peer, what });
                }
                _ => *place = Place::Empty,
            }
            absent.push(peer);
        }
        absent.sort_unstable();
        absent.dedup();
        Ok(absent)
    }

    /// Goes on with all who dial and are dialled.
    fn advance(&mut self) -> Result<(), NetError> {
        let mut made = Vec::new();
        self.dials.retain_mut(|dial| match dial.go(&self.identity) {
            Some(stream) => {
                made.push((dial.peer, stream));
                false
            }
            None => true,
        });
        let (rank, places) = (self.identity.rank, &self.places);
        let judge = |peer: usize| match places.get(peer) {
            Some(Place::Taken) => Verdict::Duplicate,
            Some(_) if peer > rank => Verdict::Accepted,
            _ => Verdict::OutOfRange,
        };
        made.extend(self.door.serve(&self.identity, judge));
        for (peer, stream) in made {
            // The newest counts: whoever dials again has given up the link before.
            self.places[peer] = Place::Here(Link::new(peer, stream, self.silence)?);
        }
        Ok(())
    }

    fn rest(&self, deadline: Deadline) -> Result<(), NetError> {
        let soonest = self.dials.iter().filter_map(Dial::rests_until).min();
        let pause = soonest.map_or(TICK, |at| at.saturating_duration_since(Instant::now()));
        let mut fds: Vec<_> =
            self.door.sockets().chain(self.dials.iter().filter_map(Dial::socket)).collect();
        let waited = wait(&mut fds, deadline.left().min(TICK).min(pause));
        waited.map_err(|error| system("wait for ranks", &error))
    }

    fn hint(&self, missing: &[usize]) -> String {
        let mut hint = String::new();
        for &peer in missing.iter().take(TOLD) {
            match self.dials.iter().find(|dial| dial.peer == peer) {
                Some(dial) => hint += &dial.report(),
                None => hint += &format!("; rank {peer} did not dial this rank's {}", self.own),
            }
        }
        hint + &self.door.report()
    }
}

impl Identity {
    /// The secret of one pair of ranks, of which the first dials.
    fn key(&self, dials: usize, dialled: usize) -> Secret {
        let word = |rank: usize| (rank as u64).to_le_bytes();
        Secret::derive(&[b"link", self.secret.bytes(), &word(dials), &word(dialled)])
    }
}

impl Link {
    fn new(peer: usize, stream: TcpStream, silence: Duration) -> Result<Self, NetError> {
        watch(&stream, silence).map_err(|errno| system("set options of a socket", &errno))?;
        let name = |address: std::io::Result<SocketAddr>| {
            address.map_or_else(|_| "an unknown address".to_owned(), |address| address.to_string())
        };
        let via = format!("{} to {}", name(stream.local_addr()), name(stream.peer_addr()));
        Ok(Self { peer, stream, via })
    }

    /// The rank at the other end.
    pub fn peer(&self) -> usize {
        self.peer
    }

    /// Both addresses, for reports.
    pub fn via(&self) -> &str {
        &self.via
    }

    /// The socket; it does not block.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether both ends have the same address.
    pub fn stays_on_this_host(&self) -> bool {
        let ip = |address: std::io::Result<SocketAddr>| address.ok().map(|address| address.ip());
        let own = ip(self.stream.local_addr());
        own.is_some() && own == ip(self.stream.peer_addr())
    }

    /// Whether the peer has closed it, or it broke: the peer's process ended, however, or its host has been silent for
    /// too long. One system call.
    pub fn closed(&self) -> bool {
        crate::sys::hung_up(self.stream.as_fd())
    }

    /// Sends bytes and receives the peer's, which calls this too. At most [`MAX_EXCHANGE`] bytes. Blocks for at most
    /// `timeout`.
    ///
    /// # Errors
    /// [`NetError::Broken`] if the peer closed, was silent for so long, or sent something else; then the link is out
    /// of step and of no more use.
    pub fn exchange(&self, mine: &[u8], timeout: Duration) -> Result<Vec<u8>, NetError> {
        let (message, deadline) = (self.message(mine)?, Deadline::after(timeout));
        let mut out = Outbox::of(&message);
        let theirs = self.next(&mut out, deadline, timeout)?;
        self.finish(&mut out, deadline, timeout)?;
        Ok(theirs)
    }

    /// Sends bytes, which the peer [takes](Self::take). At most [`MAX_EXCHANGE`] bytes. Blocks, at most for `timeout`, only
    /// if the peer has not taken a good deal that was sent before.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn give(&self, mine: &[u8], timeout: Duration) -> Result<(), NetError> {
        let message = self.message(mine)?;
        self.finish(&mut Outbox::of(&message), Deadline::after(timeout), timeout)
    }

    /// What the peer has [given](Self::give) next. Blocks for it for at most `timeout`.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn take(&self, timeout: Duration) -> Result<Vec<u8>, NetError> {
        self.next(&mut Outbox::default(), Deadline::after(timeout), timeout)
    }

    /// Whether [`Link::take`] has a whole message to return, or an error, without waiting. Two system calls.
    pub fn holds_message(&self) -> bool {
        let mut head = [0; 8];
        match rustix::net::recv(&self.stream, &mut head, rustix::net::RecvFlags::PEEK) {
            Ok((_, 8)) => {}
            Ok((_, 1..8)) | Err(rustix::io::Errno::AGAIN) => return false,
            _ => return true,
        }
        let (words, _) = head.as_chunks::<4>();
        let length = u32::from_le_bytes(words[1]) as usize;
        let garbled = u32::from_le_bytes(words[0]) != EXCHANGE || length > MAX_EXCHANGE;
        let there = rustix::io::ioctl_fionread(&self.stream).unwrap_or(u64::MAX);
        garbled || there >= 8 + length as u64 || self.closed()
    }

    fn message(&self, mine: &[u8]) -> Result<Vec<u8>, NetError> {
        if mine.len() > MAX_EXCHANGE {
            let what = format!("{} bytes to exchange, at most {MAX_EXCHANGE}", mine.len());
            return Err(NetError::Protocol { peer: self.peer, what });
        }
        let head = [EXCHANGE, mine.len() as u32].map(u32::to_le_bytes).concat();
        Ok([&head[..], mine].concat())
    }

    /// The peer's next message; sends meanwhile.
    fn next(
        &self,
        out: &mut Outbox,
        deadline: Deadline,
        timeout: Duration,
    ) -> Result<Vec<u8>, NetError> {
        let mut head = [0; 8];
        self.receive(&mut head, out, deadline, timeout)?;
        let (words, _) = head.as_chunks::<4>();
        let length = u32::from_le_bytes(words[1]) as usize;
        if u32::from_le_bytes(words[0]) != EXCHANGE || length > MAX_EXCHANGE {
            return Err(self.broken("what it sent is no message of an exchange"));
        }
        let mut theirs = vec![0; length];
        self.receive(&mut theirs, out, deadline, timeout)?;
        Ok(theirs)
    }

    fn finish(
        &self,
        out: &mut Outbox,
        deadline: Deadline,
        timeout: Duration,
    ) -> Result<(), NetError> {
        self.send(out)?;
        while out.pending() > 0 {
            self.wait(true, deadline, timeout)?;
            self.send(out)?;
        }
        Ok(())
    }

    /// Fills `into`, sending meanwhile.
    fn receive(
        &self,
        into: &mut [u8],
        out: &mut Outbox,
        deadline: Deadline,
        timeout: Duration,
    ) -> Result<(), NetError> {
        let mut have = 0;
        loop {
            self.send(out)?;
            match fill(&self.stream, into, &mut have) {
                Ok(true) => return Ok(()),
                Ok(false) => self.wait(out.pending() > 0, deadline, timeout)?,
                Err(None) => return Err(self.broken("the peer closed it")),
                Err(Some(error)) => return Err(self.broken(error)),
            }
        }
    }

    fn send(&self, out: &mut Outbox) -> Result<(), NetError> {
        out.write(&self.stream).map_err(|error| self.broken(error))
    }

    fn wait(&self, write: bool, deadline: Deadline, timeout: Duration) -> Result<(), NetError> {
        match wait_for(&self.stream, write, deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.broken(format!("no message within {timeout:?}"))),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, cause: impl ToString) -> NetError {
        NetError::Broken(self.fault(cause))
    }

    /// That this link broke.
    pub fn fault(&self, cause: impl ToString) -> NetFault {
        NetFault { peer: self.peer, via: self.via.clone(), cause: cause.to_string() }
    }
}

/// Begins a message of an exchange.
const EXCHANGE: u32 = u32::from_le_bytes(*b"wmx1");

/// Makes the system notice a peer, or a network, that is gone.
fn watch(stream: &TcpStream, silence: Duration) -> Result<(), rustix::io::Errno> {
    let silence = silence.max(Duration::from_secs(2));
    let second = Duration::from_secs(1);
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, (silence / 3).max(second))?;
    sockopt::set_tcp_keepintvl(stream, (silence / 6).max(second))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), NetError> {
    let what = format!("listen at {address} for other ranks");
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        rustix::net::listen(&listener, 4096)?;
        let mut own = listener.local_addr()?;
        if let (SocketAddr::V6(own), SocketAddr::V6(chosen)) = (&mut own, address) {
            own.set_scope_id(chosen.scope_id());
        }
        Ok((listener, own))
    };
    open().map_err(|error: std::io::Error| system(&what, &error))
}

fn random() -> Result<[u8; 32], BootstrapError> {
    Secret::random().map(|secret| *secret.bytes())
}

fn system(what: &str, cause: &dyn std::fmt::Display) -> NetError {
    NetError::System { what: what.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests;

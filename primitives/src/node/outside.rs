//! Ranks of other hosts: how this rank reaches them, and what it knows of them.
//!
//! Nobody maps memory of another host, so what a rank would read in a peer's control segment comes to it: every rank
//! has a *mirror* of each rank of another host, and the owner writes its words there by transfers ([`Outside::tell`]):
//! the board's entry before the first transfer of a call, what it has finished where a plan needs that, and
//! all of it in long waits, when it fails and when it leaves. So reports, and the rules that make ranks fail together,
//! are the same for all peers.
//!
//! ```text
//!   host A                              host B
//!   rank 0 ◄─ shared memory ─► rank 1   rank 2 ◄─ shared memory ─► rank 3
//!      └──── connection, if a plan needs it ─────┘
//!            0 tells 2 of itself: mirror of 0           all that 2 and 3 know of 0
//!            0 tells 2 of 1, too: hearsay of 1          what 2 knows of 1, for reports only
//! ```
//!
//! A rank that waits also passes on what it sees of the ranks of its host (*hearsay*), and ranks of one host look into each
//! other's mirrors, so that a rank that is to blame is named by ranks that have no connection to it.
//!
//! The transport is behind a lock: calls use it on the thread that makes them, and any thread may abort.
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | mirrors | the owner's transfers | this rank | what is told before a transfer with a signal is there when the signal is seen; else see [`crate::control`] |
//! | `linked`, `told` | whoever holds the transport / posts a failure | threads of this rank | Release / Acquire; Relaxed |

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::bootstrap::Bootstrap;
use crate::control::{Control, SEMAPHORES, Words};
use crate::error::Error;
use crate::net::{NetError, NetFault, NetOptions, Region, Signals, Span, Transfer, Transport};
use crate::sys::Mapping;

/// Numbers of memory: a rank's control segment, and its mirrors: one of each rank, then hearsay of each rank.
const CONTROL: u32 = 0;
const MIRRORS: u32 = 1;
/// The first number of other memory.
const FIRST: u32 = 2;
/// How long a rank that has failed sends what it has not sent.
pub(super) const SHORTLY: Duration = Duration::from_millis(200);
/// The same for one that leaves: a packet that is lost is sent again after a second or two.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// This rank's side of all connections to other hosts.
#[derive(Debug)]
pub(super) struct Outside {
    rank: usize,
    transport: Mutex<Open>,
    name: &'static str,
    options: NetOptions,
    signals: Signals,
    peers: Vec<Peer>,
    /// This rank's mirrors.
    mirrors: Arc<Mapping>,
    /// Those of the ranks of this host, this rank's first.
    views: Vec<Arc<Mapping>>,
    /// Whether a failure was told.
    told: AtomicBool,
}

#[derive(Debug)]
struct Open {
    transport: Box<dyn Transport>,
    next: u32,
    /// Transfers that were posted, by peer.
    posted: Vec<u64>,
}

#[derive(Debug, Default)]
struct Peer {
    linked: AtomicBool,
    /// Why the connection is of no more use.
    fault: OnceLock<NetFault>,
}

impl Outside {
    /// Bytes of a rank's mirrors.
    pub(super) fn bytes(world: usize) -> usize {
        2 * world * Control::MIRROR
    }

    /// Opens the transport. Every rank calls it; blocks until all have. `control` is this rank's segment; `views` are
    /// the mirrors of the ranks of this host, this rank's first.
    pub(super) fn open(
        bootstrap: &mut dyn Bootstrap,
        options: &NetOptions,
        control: Arc<Mapping>,
        views: Vec<Arc<Mapping>>,
    ) -> Result<Self, Error> {
        let (rank, world) = (bootstrap.rank(), bootstrap.world());
        let mut transport = crate::net::open(bootstrap, SEMAPHORES * world, options, None)?;
        let mirrors = views[0].clone();
        for (number, region) in [(CONTROL, control), (MIRRORS, mirrors.clone())] {
            publish(bootstrap, transport.as_mut(), number, region)?;
        }
        Ok(Self {
            rank,
            name: transport.name(),
            options: options.clone(),
            signals: transport.signals().clone(),
            transport: Mutex::new(Open { transport, next: FIRST, posted: vec![0; world] }),
            peers: (0..world).map(|_| Peer::default()).collect(),
            mirrors,
            views,
            told: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Whoever panicked held it between whole calls of the transport.
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn options(&self) -> &NetOptions {
        &self.options
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// A rank's control segment, as it told itself.
    pub(super) fn mirror(&self, peer: usize) -> Control {
        Control::mirror(self.mirrors.clone(), peer)
    }

    /// What others said of a rank; what this rank says of a neighbour.
    fn hearsay(&self, about: usize) -> Control {
        Control::mirror(self.mirrors.clone(), self.peers.len() + about)
    }

    /// The newest that any rank of this host knows of a rank of another.
    pub(super) fn known(&self, peer: usize) -> Control {
        let seats = [peer, self.peers.len() + peer];
        let all =
            self.views.iter().flat_map(|view| seats.map(|n| Control::mirror(view.clone(), n)));
        let age = |control: &Control| {
            let call = control.latest_call().map_or(0, |call| call.sequence);
            (call, control.progress().heartbeat)
        };
        all.max_by_key(age).unwrap_or_else(|| self.mirror(peer))
    }

    pub(super) fn is_linked(&self, peer: usize) -> bool {
        self.peers[peer].linked.load(Ordering::Acquire)
    }

    /// Why the connection to a peer broke, if it did.
    pub(super) fn fault(&self, peer: usize) -> Option<&NetFault> {
        self.peers[peer].fault.get()
    }

    /// Notes why a peer cannot be reached any more; the first reason counts.
    pub(super) fn break_off(&self, peer: usize, error: NetError) {
        let fault = match error {
            NetError::Broken(fault) => fault,
            other => NetFault { peer, via: self.name.to_owned(), cause: other.to_string() },
        };
        if let Some(peer) = self.peers.get(fault.peer) {
            let _ = peer.fault.set(fault);
        }
    }

    /// Registers memory; the number that it has on all ranks, if all register theirs in the same order, and what they have to
    /// learn of it.
    pub(super) fn register(&self, region: Arc<dyn Region>) -> Result<(u32, Vec<u8>), NetError> {
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        Ok((number, open.transport.register(number, region)?))
    }

    /// Takes what a peer got for its memory of this number.
    pub(super) fn learn(&self, peer: usize, number: u32, of: &[u8]) -> Result<(), NetError> {
        self.lock().transport.learn(peer, number, of)
    }

    /// Takes back [`Outside::register`].
    pub(super) fn withdraw(&self, number: u32) {
        self.lock().transport.forget(number);
    }

    /// Connects to those of the peers that are not, for at most so long; those that came are told of this rank.
    pub(super) fn connect(&self, peers: &[usize], timeout: Duration) -> Result<(), NetError> {
        let mut open = self.lock();
        let new: Vec<usize> = peers.iter().copied().filter(|peer| !self.is_linked(*peer)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let connected = open.transport.connect(&new, timeout);
        let missing: &[usize] = match &connected {
            Ok(()) => &[],
            Err(NetError::Missing { missing, .. }) => missing,
            Err(_) => return connected,
        };
        for &peer in new.iter().filter(|peer| !missing.contains(peer)) {
            self.peers[peer].linked.store(true, Ordering::Release);
            self.post_news(&mut open, self.rank, peer);
        }
        connected
    }

    /// Hands over a transfer.
    pub(super) fn post(&self, peer: usize, transfer: &Transfer) -> Result<(), NetError> {
        let mut open = self.lock();
        open.transport.post(peer, transfer)?;
        open.posted[peer] += 1;
        Ok(())
    }

    /// Sends and receives what can be; whether anything was.
    pub(super) fn progress(&self) -> bool {
        match self.lock().transport.progress() {
            Ok(moved) => moved,
            Err(fault) => {
                tracing::debug!(rank = self.rank, "{fault}");
                self.break_off(fault.peer, NetError::Broken(fault));
                true
            }
        }
    }

    /// Sleeps until there is something to do, at most so long.
    pub(super) fn doze(&self, longest: Duration) {
        let mut open = self.lock();
        let since = Instant::now();
        open.transport.doze(longest, None);
        drop(open);
        // A transport that cannot say returns at once; its peers may need this core.
        if since.elapsed() < longest / 8 {
            rustix::thread::sched_yield();
        }
    }

    /// Breaks a connection off on which nothing was heard for so long.
    pub(super) fn break_silence(&self, peer: usize, longest: Duration) {
        let silence = self.lock().transport.silence(peer);
        let Some((silence, via)) = silence.filter(|(silence, _)| *silence >= longest) else {
            return;
        };
        let cause = format!(
            "timed out: nothing was heard of its host for {:.1} s, though data is under way to it",
            silence.as_secs_f64()
        );
        self.break_off(peer, NetError::Broken(NetFault { peer, via, cause }));
    }

    /// Whether all that was posted to a peer has left this rank's memory.
    pub(super) fn has_sent(&self, peer: usize) -> bool {
        let open = self.lock();
        open.transport.sent(peer) >= open.posted[peer]
    }

    /// Tells a peer a part of this rank's control segment, in order with other transfers.
    pub(super) fn tell(&self, peer: usize, words: Words) -> Result<(), NetError> {
        self.post(peer, &self.told(self.rank, words))
    }

    /// Tells all connected peers everything of this rank, and of these neighbours.
    pub(super) fn tell_news(&self, neighbours: impl Iterator<Item = (usize, Control)>) {
        self.tell_some(&|_, _| true, neighbours);
    }

    /// The same, but nothing to peers that have not taken what they were told before.
    pub(super) fn tell_who_listens(&self, neighbours: impl Iterator<Item = (usize, Control)>) {
        self.tell_some(&|open, peer| open.transport.sent(peer) >= open.posted[peer], neighbours);
    }

    fn tell_some(
        &self,
        listens: &dyn Fn(&Open, usize) -> bool,
        neighbours: impl Iterator<Item = (usize, Control)>,
    ) {
        let mut open = self.lock();
        let told: Vec<usize> = (0..self.peers.len())
            .filter(|peer| self.is_linked(*peer) && listens(&open, *peer))
            .collect();
        let linked = || told.iter().copied();
        linked().for_each(|peer| self.post_news(&mut open, self.rank, peer));
        for (neighbour, control) in neighbours {
            self.hearsay(neighbour).copy_news(&control);
            linked().for_each(|peer| self.post_news(&mut open, neighbour, peer));
        }
    }

    /// News go where they can: a peer that is gone needs none, and whoever waits for it will see that it is.
    fn post_news(&self, open: &mut Open, about: usize, peer: usize) {
        if open.transport.post(peer, &self.told(about, Words::NEWS)).is_ok() {
            open.posted[peer] += 1;
        }
    }

    /// What this rank says of itself, or of a neighbour.
    fn told(&self, about: usize, Words { begin, bytes }: Words) -> Transfer {
        let seat = |number: usize| Span {
            memory: MIRRORS,
            offset: (number * Control::MIRROR + begin) as u64,
        };
        let (from, to) = if about == self.rank {
            (Span { memory: CONTROL, offset: begin as u64 }, seat(about))
        } else {
            let hearsay = seat(self.peers.len() + about);
            (hearsay, hearsay)
        };
        Transfer { from, to, bytes: bytes as u64, signal: None }
    }

    /// Whether this is the first failure, which has to be told.
    pub(super) fn first_failure(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// The failure that a peer of another host has told of, if one has.
    pub(super) fn failure(&self) -> Option<u64> {
        let linked = (0..self.peers.len()).filter(|peer| self.is_linked(*peer));
        linked.map(|peer| self.mirror(peer).abort_word()).find(|word| *word != 0)
    }

    /// Sends what has not left yet, at most for so long.
    pub(super) fn flush(&self, longest: Duration) {
        let end = Instant::now() + longest;
        let waits = |peer: &usize| {
            self.is_linked(*peer) && self.fault(*peer).is_none() && !self.has_sent(*peer)
        };
        while (0..self.peers.len()).any(|peer| waits(&peer)) && Instant::now() < end {
            if !self.progress() {
                self.doze(Duration::from_millis(1));
            }
        }
    }
}

fn publish(
    bootstrap: &mut dyn Bootstrap,
    transport: &mut dyn Transport,
    number: u32,
    region: Arc<dyn Region>,
) -> Result<(), Error> {
    let described = transport.register(number, region)?;
    let rank = bootstrap.rank();
    for (peer, described) in bootstrap.all_gather(&described)?.iter().enumerate() {
        if peer != rank {
            transport.learn(peer, number, described)?;
        }
    }
    Ok(())
}

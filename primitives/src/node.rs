//! All ranks, as one of them sees them: how they find each other, pass memory, and notice each other's end.
//!
//! Each pair of ranks of one host keeps one Unix socket open. It passes memory (a memfd each way), and it tells
//! of the peer's death: the kernel closes it, however the process ends. Its abstract name is
//! random, the connecting side has to show a token that only the bootstrap told it, and both sides
//! check that the other belongs to the same user. What a rank knows of ranks of other hosts came by transfers:
//! see `outside.rs`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::bootstrap::Bootstrap;
use crate::control::{Call, Control, Progress, State};
use crate::error::{Error, system};
use crate::failure::{Failure, FailureKind};
use crate::host::HostId;
use crate::meeting::{self, Introduction};
use crate::memory::SharedMemory;
use crate::net::{NetFault, NetOptions};
use crate::patience::{self, Patience, WaitPolicy, WaitingFor};
use crate::sys::Mapping;

mod away;
mod outside;

pub use self::away::{MOST_DESCRIBED, Outgoing};
use self::outside::Outside;

/// This rank's view of all ranks. Shared by all that communicate: channels, the collectives' executor, abort handles.
#[derive(Debug)]
pub struct Node {
    rank: usize,
    /// By rank: what this rank sees of it. Of ranks of other hosts, mirrors.
    controls: Vec<Control>,
    /// To ranks of this host.
    links: Vec<Option<UnixStream>>,
    pids: Vec<u32>,
    machines: Vec<String>,
    /// The host of each rank.
    hosts: Vec<usize>,
    cores: usize,
    load: f64,
    policy: WaitPolicy,
    /// None if all ranks are on this host.
    outside: Option<Outside>,
}

/// How ranks come together.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// How long to wait for peers, now and in every later wait.
    pub timeout: Duration,
    /// Ranks with different marks do not share memory, wherever they run. None: what `WARPMESH_HOST_ID` says.
    pub host_mark: Option<String>,
    /// How ranks of several hosts reach each other. None: what the environment says.
    pub net: Option<NetOptions>,
}

impl Node {
    /// Meets all ranks of `bootstrap`, with options from the environment. See [`Node::connect_with`].
    pub fn connect(bootstrap: &mut dyn Bootstrap, timeout: Duration) -> Result<Arc<Self>, Error> {
        Self::connect_with(bootstrap, &NodeOptions { timeout, host_mark: None, net: None })
    }

    /// Meets all ranks of `bootstrap`. Every rank calls it; it returns when all have, or fails after the timeout. Ranks of
    /// one host then share memory; those of others are connected when they are needed: see [`Node::reach`].
    pub fn connect_with(
        bootstrap: &mut dyn Bootstrap,
        options: &NodeOptions,
    ) -> Result<Arc<Self>, Error> {
        let (rank, world, timeout) = (bootstrap.rank(), bootstrap.world(), options.timeout);
        let deadline = Instant::now() + timeout;
        let host = options.host_mark.as_deref().map_or_else(HostId::current, HostId::marked);
        let (mine, listener) = Introduction::prepare(rank, &host)?;
        let introductions = meeting::exchange(bootstrap, &mine)?;
        let links = meeting::connect(rank, &introductions, &listener, deadline, timeout)?;

        let (mapping, fd) = Mapping::create(Control::bytes(world)).map_err(system("memfd"))?;
        let mapping = Arc::new(mapping);
        let own = Control::format(mapping.clone(), world);
        let open = |(peer, theirs): (usize, Option<Mapping>)| {
            theirs.map(|theirs| open_control(peer, theirs, world)).transpose()
        };
        let theirs = exchange_mappings(&links, &fd, CONTROL_SEGMENT, deadline)?;
        let near: Vec<_> = theirs.into_iter().enumerate().map(open).collect::<Result<_, _>>()?;
        let hosts = meeting::hosts_of(&introductions);
        let outside = match hosts.iter().any(|host| *host > 0) {
            true => Some(open_outside(bootstrap, options, &links, mapping, deadline)?),
            false => None,
        };
        let control = |(peer, near): (usize, Option<Control>)| match (near, &outside) {
            (Some(near), _) => near,
            (None, Some(outside)) if peer != rank => outside.mirror(peer),
            _ => own.clone(),
        };
        let controls = near.into_iter().enumerate().map(control).collect();
        let load = |rank: usize| {
            let users = meeting::machine_of(&introductions, rank);
            users.clone().count() as f64 / meeting::cores_of(users) as f64
        };
        let load = firsts(&hosts).map(load).fold(1.0, f64::max);
        let users = meeting::machine_of(&introductions, rank);
        let cores = meeting::cores_of(users.clone());
        let policy = WaitPolicy::for_load(users.count(), cores, timeout);
        let pids = introductions.iter().map(|peer| peer.pid).collect();
        let machines = introductions.iter().map(|peer| peer.machine.clone()).collect();
        let node =
            Self { rank, controls, links, pids, machines, hosts, cores, load, policy, outside };
        node.reach(&node.leaders(), 0)?;
        Ok(Arc::new(node))
    }

    /// The first ranks of hosts make a tree, in which they are connected from the beginning: so what ends one rank
    /// comes to all hosts, also before a call has connected others. The peers of this rank in it.
    fn leaders(&self) -> Vec<usize> {
        let firsts: Vec<usize> = firsts(&self.hosts).collect();
        let is_above = |a: usize, b: usize| b > 0 && (b - 1) / BRANCHES == a;
        let Some(me) = firsts.iter().position(|first| *first == self.rank) else {
            return Vec::new();
        };
        let others = (0..firsts.len()).filter(|other| is_above(me, *other) || is_above(*other, me));
        others.map(|other| firsts[other]).collect()
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.controls.len()
    }

    /// The host of each rank; hosts are numbered by their first ranks.
    pub fn hosts(&self) -> &[usize] {
        &self.hosts
    }

    /// Whether a rank is on this host.
    #[inline]
    pub fn is_near(&self, rank: usize) -> bool {
        self.hosts[rank] == self.hosts[self.rank]
    }

    /// Whether there are ranks on other hosts.
    #[inline]
    pub fn spans_hosts(&self) -> bool {
        self.outside.is_some()
    }

    /// The name of the transport to ranks of other hosts, if there are any.
    pub fn transport(&self) -> Option<&'static str> {
        self.outside.as_ref().map(Outside::name)
    }

    fn neighbours(&self) -> impl Iterator<Item = usize> {
        (0..self.world()).filter(|rank| *rank != self.rank && self.is_near(*rank))
    }

    /// Cores that the ranks of this machine may use, together.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// Ranks on each core, on the machine where there are most; at least 1. The same on all ranks.
    pub fn load(&self) -> f64 {
        self.load
    }

    /// Bytes of a rank's control segment, and of its mirrors.
    pub fn control_bytes(&self) -> usize {
        let mirrors = if self.spans_hosts() { Outside::bytes(self.world()) } else { 0 };
        Control::bytes(self.world()) + mirrors
    }

    /// How this rank waits.
    pub fn policy(&self) -> &WaitPolicy {
        &self.policy
    }

    /// This rank's own control segment.
    #[inline]
    pub fn me(&self) -> &Control {
        &self.controls[self.rank]
    }

    /// A rank's control segment, or what a rank of another host has told of it.
    ///
    /// # Panics
    /// If there is no such rank.
    #[inline]
    pub fn control(&self, rank: usize) -> &Control {
        &self.controls[rank]
    }

    /// The most that is known of a rank on this host, for a diagnosis: of one elsewhere, perhaps hearsay.
    pub fn known(&self, rank: usize) -> Control {
        match &self.outside {
            Some(outside) if !self.is_near(rank) => outside.known(rank),
            _ => self.controls[rank].clone(),
        }
    }

    /// A rank's process id, as it sees it.
    pub fn pid(&self, rank: usize) -> u32 {
        self.pids[rank]
    }

    /// The name of a rank's machine.
    pub fn machine(&self, rank: usize) -> &str {
        &self.machines[rank]
    }

    /// Why the connection to a rank of another host broke, if it did.
    pub fn fault(&self, rank: usize) -> Option<&NetFault> {
        self.outside.as_ref()?.fault(rank)
    }

    /// Announces a call. Only the thread that makes it does.
    #[inline]
    pub fn announce(&self, call: &Call) {
        let call = if self.spans_hosts() { call.sealed() } else { *call };
        self.me().announce(&call);
    }

    /// Shares `len` bytes (of this rank; others may ask for other sizes) with all ranks of the host and maps
    /// theirs. Every rank calls it, in the same order as its other calls of this kind. Blocks
    /// until all have. The memory starts as zeros. Its pages are taken when first touched, or now if
    /// `populate` says so: then no access to it, here or by a peer, stops for a page fault.
    pub fn share(self: &Arc<Self>, len: usize, populate: bool) -> Result<SharedMemory, Error> {
        let (mapping, fd) = Mapping::create(len).map_err(system("memfd for shared memory"))?;
        let mapping = Arc::new(mapping);
        let mut all = Vec::with_capacity(self.world());
        for (rank, fd) in self.exchange(&fd)?.into_iter().enumerate() {
            let theirs = match fd {
                None => (rank == self.rank).then(|| mapping.clone()),
                Some(fd) => {
                    let mapping = Mapping::open(fd.as_fd());
                    Some(Arc::new(mapping.map_err(system("map a peer's memory"))?))
                }
            };
            all.push(theirs);
        }
        if populate {
            all.iter().flatten().for_each(|mapping| mapping.populate());
        }
        Ok(SharedMemory::new(self.rank, len, all))
    }

    /// Gives every peer of this host a file and takes one from each: by rank, none for this rank and those elsewhere. Every
    /// rank calls it, in the same
    /// order as [`Node::share`]. Blocks until all have.
    pub fn exchange(&self, file: &OwnedFd) -> Result<Vec<Option<OwnedFd>>, Error> {
        meeting::send_descriptor(&self.links, file, SHARED_MEMORY).map_err(|e| self.lost(e))?;
        let receive = |(peer, link): (usize, &Option<UnixStream>)| match link {
            Some(link) => self.receive_memory(peer, link).map(Some),
            None => Ok(None),
        };
        self.links.iter().enumerate().map(receive).collect()
    }

    /// Waits for a peer's memory, looking around meanwhile like any other wait.
    fn receive_memory(&self, peer: usize, link: &UnixStream) -> Result<OwnedFd, Error> {
        let on = WaitingFor { peer, place: AT_SHARE, expected: 1, sequence: 0 };
        let since = Instant::now();
        loop {
            let slice = Instant::now() + self.policy.look_around;
            match meeting::receive_descriptor(link, SHARED_MEMORY, slice) {
                Ok(fd) => return Ok(fd),
                Err(Errno::TIMEDOUT) => {
                    if let Some(failure) = self.look_around(on, 0, since.elapsed()) {
                        return Err(self.post(failure).into());
                    }
                }
                Err(errno) => return Err(self.lost((peer, errno))),
            }
        }
    }

    /// A connection that broke: the peer is gone, which all ranks are told.
    fn lost(&self, (peer, errno): (usize, Errno)) -> Error {
        if !matches!(errno, Errno::CONNRESET | Errno::PIPE) {
            return meeting::exchange_failed((peer, errno));
        }
        let on = WaitingFor { peer, ..WaitingFor::default() };
        let (by, culprit) = (self.rank, Some(peer));
        let died = Failure { kind: FailureKind::PeerDied, by, culprit };
        let failure = self.failure().or_else(|| self.gone(on, Duration::ZERO)).unwrap_or(died);
        self.post(failure).into()
    }

    /// Waits until `look` returns Ok; its Err is the count or epoch that is there. Spins, yields,
    /// sleeps; fails when the wait's time is over or something happened that makes it pointless.
    #[inline]
    pub fn wait(
        &self,
        on: WaitingFor,
        mut look: impl FnMut() -> Result<(), u64>,
    ) -> Result<(), Failure> {
        let mut patience = Patience::default();
        while let Err(seen) = look() {
            patience.pause(self, on, seen)?;
        }
        Ok(())
    }

    /// Rings every peer that sleeps: for whoever stored something that any of them may wait for.
    #[inline]
    pub fn ring_all(&self) {
        self.controls.iter().for_each(Control::ring);
    }

    /// The failure that was posted, if any. One load of a cached line.
    #[inline]
    pub fn failure(&self) -> Option<Failure> {
        Failure::from_word(self.me().abort_word())
    }

    /// Tells all ranks of a failure and returns the one that counts: the first that this rank
    /// learned of.
    #[cold]
    pub fn post(&self, failure: Failure) -> Failure {
        // Before the word, so that whoever sees it finds where the connection broke.
        if let Failure { kind: FailureKind::Disconnected, by, culprit: Some(culprit) } = failure
            && by == self.rank
            && let Some(fault) = self.fault(culprit)
        {
            self.me().set_via(&fault.via);
        }
        let word = self.me().post_abort(failure.to_word());
        for rank in self.neighbours() {
            self.controls[rank].post_abort(word);
            self.controls[rank].wake();
        }
        self.me().wake();
        if let Some(outside) = self.outside.as_ref().filter(|outside| outside.first_failure()) {
            outside.tell_news(self.hearsay());
            outside.flush(outside::SHORTLY);
        }
        Failure::from_word(word).unwrap_or(failure)
    }

    /// What this rank can say of its neighbours.
    fn hearsay(&self) -> impl Iterator<Item = (usize, Control)> {
        self.neighbours().map(|rank| (rank, self.controls[rank].clone()))
    }

    /// Marks this rank as gone; peers that still need it fail at once.
    pub fn leave(&self) {
        // The rest of the record stays: it may say why this rank leaves.
        self.me().set_progress(&Progress { state: State::Left, ..self.me().progress() });
        for rank in self.neighbours() {
            self.controls[rank].wake();
        }
        if let Some(outside) = &self.outside {
            outside.tell_news(std::iter::empty());
            let failed = self.failure().is_some();
            outside.flush(if failed { outside::SHORTLY } else { outside::FAREWELL });
        }
    }

    /// A look around in a long wait: publishes the progress record, then asks whether someone
    /// posted a failure, whether peers are gone that have not finished this call, whether a peer's
    /// call differs, and whether the time is over.
    pub fn look_around(&self, on: WaitingFor, seen: u64, waited: Duration) -> Option<Failure> {
        self.me().set_progress(&patience::waiting(on, seen));
        if let Some(outside) = &self.outside {
            let beat = self.me().progress().heartbeat;
            // What is said of others serves reports alone, and may be older.
            let all = beat.is_multiple_of(HEARSAY);
            outside.tell_who_listens(self.hearsay().filter(|_| all));
            // So that the error says which connection, and not just who was waited for.
            if waited > self.policy.timeout.mul_f64(SILENCE) && !self.is_near(on.peer) {
                outside.break_silence(on.peer, self.policy.timeout.mul_f64(SILENCE / 2.0));
            }
        }
        let failure = self.told_failure().or_else(|| self.gone(on, waited));
        let failure = failure.or_else(|| self.mismatch(on.sequence));
        if failure.is_some() || waited < self.policy.timeout {
            return failure;
        }
        let culprit = self.culprit(on, seen);
        let timed_out = Failure { kind: FailureKind::TimedOut, by: self.rank, culprit };
        // Meanwhile another may have said who it is, and left.
        Some(self.told_failure().unwrap_or(timed_out))
    }

    /// The failure that this rank was told of, by a rank of this host or another.
    fn told_failure(&self) -> Option<Failure> {
        let outside = || Failure::from_word(self.outside.as_ref()?.failure()?);
        self.failure().or_else(outside)
    }

    fn gone(&self, on: WaitingFor, waited: Duration) -> Option<Failure> {
        // A peer elsewhere says that it has finished when it leaves, but not if it just ends: then whoever needs it
        // waits for it, and the others have time to finish.
        let knows = |peer: usize| self.is_near(peer) || waited >= GRACE;
        let matters = |peer: usize| match on.sequence {
            sequence if sequence > 0 && knows(peer) => {
                self.control(peer).finished_call() < sequence
            }
            _ => peer == on.peer,
        };
        let culprit = (0..self.world()).find(|&peer| self.is_gone(peer) && matters(peer))?;
        let left = self.control(culprit).progress().state == State::Left;
        let kind = match (left, self.is_near(culprit)) {
            (true, _) => FailureKind::PeerLeft,
            (false, true) => FailureKind::PeerDied,
            (false, false) => FailureKind::Disconnected,
        };
        Some(Failure { kind, by: self.rank, culprit: Some(culprit) })
    }

    /// Whether a peer has left, or ended, or its connection broke, as far as this rank sees.
    pub fn is_gone(&self, peer: usize) -> bool {
        // Threads of one process may share a socket's life with a rank that dropped its end only
        // in part, so a rank that says it left counts as well.
        let closed = |link: &UnixStream| crate::sys::hung_up(link.as_fd());
        self.links[peer].as_ref().is_some_and(closed)
            || self.fault(peer).is_some()
            || (peer != self.rank && self.control(peer).progress().state == State::Left)
    }

    /// Whether a peer has announced another call of this number than this rank, as far as can be seen now.
    pub fn mismatch(&self, sequence: u64) -> Option<Failure> {
        let mine = self.me().call(sequence)?;
        let differs = |peer: &usize| {
            self.control(*peer).call(sequence).is_some_and(|theirs| theirs.tag != mine.tag)
        };
        let culprit = (0..self.world()).find(differs)?;
        Some(Failure { kind: FailureKind::Mismatch, by: self.rank, culprit: Some(culprit) })
    }

    /// Follows who waits for whom, from the peer that this rank waits for, to one that does not
    /// itself wait: that one is to blame. A rank whose heartbeat stands still is not waiting,
    /// whatever its record says: it was stopped, or it is busy elsewhere. None if all wait.
    fn culprit(&self, on: WaitingFor, seen: u64) -> Option<usize> {
        let beats = |rank: usize| self.known(rank).progress().heartbeat;
        let before: Vec<u64> = (0..self.world()).map(beats).collect();
        let end = Instant::now() + STANDSTILL;
        while Instant::now() < end {
            std::thread::sleep(self.policy.look_around);
            self.me().set_progress(&patience::waiting(on, seen));
            if let Some(outside) = &self.outside {
                outside.tell_who_listens(self.hearsay());
                self.drain();
            }
        }
        let mut suspect = on.peer;
        for _ in 0..self.world() {
            let progress = self.known(suspect).progress();
            let alive = progress.heartbeat != before[suspect];
            if suspect == self.rank {
                return None;
            }
            if !alive || progress.state != State::Waiting || progress.peer >= self.world() {
                return Some(suspect);
            }
            suspect = progress.peer;
        }
        None
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.leave();
    }
}

/// How long a heartbeat has to stand still. Waiting ranks beat every few milliseconds; this leaves
/// room for a machine with many ranks a core.
const STANDSTILL: Duration = Duration::from_millis(150);
/// The step that a rank reports while it waits for peers to share memory.
pub const AT_SHARE: u32 = u32::MAX - 3;
/// The step that a rank reports while it connects to a rank of another host.
pub const AT_REACH: u32 = u32::MAX - 6;
/// Ranks below one in the tree of the hosts' first ranks.
const BRANCHES: usize = 16;
/// How long a rank whose connection broke may be missed before it counts as one that is needed.
const GRACE: Duration = Duration::from_secs(1);
/// The part of a wait's limit after which a silent network is to blame.
const SILENCE: f64 = 0.75;
/// Every so many beats a rank passes on what it sees of its neighbours.
const HEARSAY: u64 = 4;
const CONTROL_SEGMENT: u32 = 1;
const SHARED_MEMORY: u32 = 2;
const MIRRORS: u32 = 3;

/// The first rank of each host.
fn firsts(hosts: &[usize]) -> impl Iterator<Item = usize> {
    (0..hosts.len()).filter(|rank| !hosts[..*rank].contains(&hosts[*rank]))
}

/// What the other ranks of this host share of this kind.
fn exchange_mappings(
    links: &[Option<UnixStream>],
    own: &OwnedFd,
    kind: u32,
    deadline: Instant,
) -> Result<Vec<Option<Mapping>>, Error> {
    let failed = meeting::exchange_failed;
    meeting::send_descriptor(links, own, kind).map_err(failed)?;
    let receive = |(peer, link): (usize, &Option<UnixStream>)| {
        let Some(link) = link else { return Ok(None) };
        let fd = meeting::receive_descriptor(link, kind, deadline);
        let fd = fd.map_err(|errno| failed((peer, errno)))?;
        Mapping::open(fd.as_fd()).map(Some).map_err(system("map what a peer shares"))
    };
    links.iter().enumerate().map(receive).collect()
}

fn open_outside(
    bootstrap: &mut dyn Bootstrap,
    options: &NodeOptions,
    links: &[Option<UnixStream>],
    control: Arc<Mapping>,
    deadline: Instant,
) -> Result<Outside, Error> {
    let net = match &options.net {
        Some(net) => net.clone(),
        None => NetOptions::from_env()?,
    };
    let (mirrors, fd) =
        Mapping::create(Outside::bytes(bootstrap.world())).map_err(system("memfd"))?;
    let theirs = exchange_mappings(links, &fd, MIRRORS, deadline)?;
    if theirs.iter().flatten().any(|theirs| theirs.len() < mirrors.len()) {
        let what = "mirrors of a rank of this host are of another version";
        return Err(Error::Connect { peer: bootstrap.rank(), what });
    }
    let views = std::iter::once(mirrors).chain(theirs.into_iter().flatten());
    Outside::open(bootstrap, &net, control, views.map(Arc::new).collect())
}

fn open_control(peer: usize, mapping: Mapping, world: usize) -> Result<Control, Error> {
    Control::open(Arc::new(mapping), world)
        .ok_or(Error::Connect { peer, what: "its control segment is of another version" })
}

//! The ranks of one host: how they find each other, pass memory, and notice each other's end.
//!
//! Each pair of ranks keeps one Unix socket open. It passes memory (a memfd each way), and it tells
//! of the peer's death: the kernel closes it, however the process ends. Its abstract name is
//! random, the connecting side has to show a token that only the bootstrap told it, and both sides
//! check that the other belongs to the same user.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::bootstrap::Bootstrap;
use crate::control::{Control, Progress, State};
use crate::error::{Error, system};
use crate::failure::{Failure, FailureKind};
use crate::meeting::{self, Introduction};
use crate::memory::SharedMemory;
use crate::patience::{self, Patience, WaitPolicy, WaitingFor};
use crate::sys::Mapping;

/// This rank's view of the ranks on its host. Shared by all that communicate: channels, the
/// collectives' executor, abort handles.
#[derive(Debug)]
pub struct Node {
    rank: usize,
    controls: Vec<Control>,
    links: Vec<Option<UnixStream>>,
    pids: Vec<u32>,
    cores: usize,
    policy: WaitPolicy,
}

impl Node {
    /// Meets all ranks of `bootstrap`, which must be on this host. Every rank calls it; it returns
    /// when all have, or fails after `timeout`, which also becomes the limit of every later wait.
    pub fn connect(bootstrap: &mut dyn Bootstrap, timeout: Duration) -> Result<Arc<Self>, Error> {
        let (rank, world) = (bootstrap.rank(), bootstrap.world());
        let deadline = Instant::now() + timeout;
        let (mine, listener) = Introduction::prepare(rank)?;
        let introductions = meeting::exchange(bootstrap, &mine)?;
        let links = meeting::connect(rank, &introductions, &listener, deadline, timeout)?;

        let (mapping, fd) = Mapping::create(Control::bytes(world)).map_err(system("memfd"))?;
        let control = Control::format(Arc::new(mapping), world);
        let failed = meeting::exchange_failed;
        meeting::send_descriptor(&links, &fd, CONTROL_SEGMENT).map_err(failed)?;
        let mut controls = Vec::with_capacity(world);
        for (peer, link) in links.iter().enumerate() {
            let Some(link) = link else {
                controls.push(control.clone());
                continue;
            };
            let fd = meeting::receive_descriptor(link, CONTROL_SEGMENT, deadline);
            controls.push(open_control(peer, fd.map_err(|errno| failed((peer, errno)))?, world)?);
        }
        let cores = meeting::cores_of(&introductions);
        let policy = WaitPolicy::for_load(world, cores, timeout);
        let pids = introductions.iter().map(|peer| peer.pid).collect();
        Ok(Arc::new(Self { rank, controls, links, pids, cores, policy }))
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks on this node.
    pub fn world(&self) -> usize {
        self.controls.len()
    }

    /// Cores that the ranks may use, together.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// Bytes of a rank's control segment.
    pub fn control_bytes(&self) -> usize {
        Control::bytes(self.world())
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

    /// A rank's control segment.
    ///
    /// # Panics
    /// If there is no such rank.
    #[inline]
    pub fn control(&self, rank: usize) -> &Control {
        &self.controls[rank]
    }

    /// A rank's process id, as it sees it.
    pub fn pid(&self, rank: usize) -> u32 {
        self.pids[rank]
    }

    /// Shares `len` bytes (of this rank; others may ask for other sizes) with all ranks and maps
    /// theirs. Every rank calls it, in the same order as its other calls of this kind. Blocks
    /// until all have. The memory starts as zeros. Its pages are taken when first touched, or now if
    /// `populate` says so: then no access to it, here or by a peer, stops for a page fault.
    pub fn share(self: &Arc<Self>, len: usize, populate: bool) -> Result<SharedMemory, Error> {
        let (mapping, fd) = Mapping::create(len).map_err(system("memfd for shared memory"))?;
        let mapping = Arc::new(mapping);
        let mut all = Vec::with_capacity(self.world());
        for fd in self.exchange(&fd)? {
            all.push(match fd {
                None => mapping.clone(),
                Some(fd) => {
                    Arc::new(Mapping::open(fd.as_fd()).map_err(system("map a peer's memory"))?)
                }
            });
        }
        if populate {
            all.iter().for_each(|mapping| mapping.populate());
        }
        Ok(SharedMemory::new(self.rank, len, all))
    }

    /// Gives every peer a file and takes one from each: by rank, none for this rank. Every rank calls it, in the same
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
        let failure = self.failure().or_else(|| self.gone(on)).unwrap_or(died);
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
        let word = self.me().post_abort(failure.to_word());
        for (rank, control) in self.controls.iter().enumerate() {
            if rank != self.rank {
                control.post_abort(word);
            }
            control.wake();
        }
        Failure::from_word(word).unwrap_or(failure)
    }

    /// Marks this rank as gone; peers that still need it fail at once.
    pub fn leave(&self) {
        // The rest of the record stays: it may say why this rank leaves.
        self.me().set_progress(&Progress { state: State::Left, ..self.me().progress() });
        for control in &self.controls {
            control.wake();
        }
    }

    /// A look around in a long wait: publishes the progress record, then asks whether someone
    /// posted a failure, whether peers are gone that have not finished this call, whether a peer's
    /// call differs, and whether the time is over.
    pub fn look_around(&self, on: WaitingFor, seen: u64, waited: Duration) -> Option<Failure> {
        self.me().set_progress(&patience::waiting(on, seen));
        let failure =
            self.failure().or_else(|| self.gone(on)).or_else(|| self.mismatch(on.sequence));
        if failure.is_some() || waited < self.policy.timeout {
            return failure;
        }
        let culprit = self.culprit(on, seen);
        Some(Failure { kind: FailureKind::TimedOut, by: self.rank, culprit })
    }

    fn gone(&self, on: WaitingFor) -> Option<Failure> {
        let matters = |peer: usize| match on.sequence {
            0 => peer == on.peer,
            sequence => self.control(peer).finished_call() < sequence,
        };
        let culprit = (0..self.world()).find(|&peer| self.hung_up(peer) && matters(peer))?;
        let left = self.control(culprit).progress().state == State::Left;
        let kind = if left { FailureKind::PeerLeft } else { FailureKind::PeerDied };
        Some(Failure { kind, by: self.rank, culprit: Some(culprit) })
    }

    fn hung_up(&self, peer: usize) -> bool {
        // Threads of one process may share a socket's life with a rank that dropped its end only
        // in part, so a rank that says it left counts as well.
        let closed = |link: &UnixStream| crate::sys::hung_up(link.as_fd());
        self.links[peer].as_ref().is_some_and(closed)
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
        let before: Vec<u64> = self.controls.iter().map(|c| c.progress().heartbeat).collect();
        let end = Instant::now() + STANDSTILL;
        while Instant::now() < end {
            std::thread::sleep(self.policy.look_around);
            self.me().set_progress(&patience::waiting(on, seen));
        }
        let mut suspect = on.peer;
        for _ in 0..self.world() {
            let progress = self.control(suspect).progress();
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
const CONTROL_SEGMENT: u32 = 1;
const SHARED_MEMORY: u32 = 2;

fn open_control(peer: usize, fd: OwnedFd, world: usize) -> Result<Control, Error> {
    let mapping = Mapping::open(fd.as_fd()).map_err(system("map a peer's control segment"))?;
    Control::open(Arc::new(mapping), world)
        .ok_or(Error::Connect { peer, what: "its control segment is of another version" })
}

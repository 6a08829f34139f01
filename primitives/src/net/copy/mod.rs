//! Transfers between GPUs of one node by their copy engines: for messages that are large enough to be worth no multiprocessor.
//!
//! ```text
//!   post ─► a stream for each peer:  copy the data ─► write the peer's semaphore ─► write this rank's count of what was sent
//!              cuMemcpyAsync            cuStreamWriteValue64, behind a fence           the same
//! ```
//!
//! Everything of a transfer is in one stream, so it happens in order, and nothing has to be asked: whoever sees the semaphore sees
//! the data. The streams are independent of the default one and wait for nothing; a kernel may wait for what they bring.
//!
//! A semaphore has two words, which get the same count: one in memory of the device, for kernels, which then poll their own GPU's
//! memory, and one in memory of the host.
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | semaphore, on the device | the stream of the one peer that signals it | kernels of its owner | the stream's / acquire |
//! | semaphore, on the host | the same, behind the first | threads of its owner | the stream's / Acquire |
//! | a queue's count | the stream | the transport's thread | the stream's / Acquire |
//!
//! Memory of peers is mapped when it is learned of. A copy engine asks nobody: memory that was forgotten is still written by peers that
//! know it, so they have to be told before, and its owner drops it after that.

mod memories;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use self::memories::{Memories, RegisteredWords};
use super::{NetError, NetFault, Region, Signals, Transfer, Transport};
use crate::bootstrap::Bootstrap;
use crate::error::{Error, system};
use crate::gpu::{CopyQueue, CudaError, Gpu, PeerMemory};
use crate::host::HostId;
use crate::meeting::{self, Introduction};
use crate::node::Node;
use crate::sys::{Mapping, hung_up};

/// Time between looks at the peers and the streams, which cost system calls.
const LOOK: Duration = Duration::from_millis(1);
/// The longest sleep while copies are underway, of whose end nothing tells.
const NAP: Duration = Duration::from_micros(50);

/// One rank's copies. See the [module](self).
#[derive(Debug)]
pub struct CopyTransport {
    // Declared in the order in which they are to go: streams, then what they read and write.
    peers: Vec<Option<Peer>>,
    memories: Memories,
    signals: Signals,
    words: PeerMemory,
    links: Vec<Option<UnixStream>>,
    rank: usize,
    semaphores: usize,
    faults: VecDeque<NetFault>,
    looked: Instant,
}

/// The way to a peer.
#[derive(Debug)]
struct Peer {
    copies: CopyQueue,
    /// The peer's semaphores in memory of its host.
    words: RegisteredWords,
    /// How often this rank has signalled each.
    signalled: HashMap<u32, u64>,
    open: bool,
    fault: Option<NetFault>,
}

impl CopyTransport {
    /// Connects all ranks of a node, with so many semaphores each. Every rank calls it, with the same number. Blocks until all have,
    /// at most for `timeout`. To be called before kernels run that others wait for: the driver may wait for them.
    ///
    /// # Errors
    /// A rank is on another host, is gone or late, or the driver refuses: GPUs that do not reach each other, say.
    pub fn new(
        bootstrap: &mut dyn Bootstrap,
        node: &Arc<Node>,
        gpu: &Gpu,
        semaphores: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let (rank, semaphores) = (bootstrap.rank(), semaphores.max(1));
        let bytes = semaphores * size_of::<u64>();
        if let Some(peer) = (0..node.world()).find(|peer| !node.is_near(*peer)) {
            return Err(Error::OtherHost { rank, peer });
        }
        let (mine, listener) = Introduction::prepare(rank, &HostId::current())?;
        let all = meeting::exchange(bootstrap, &mine)?;
        let deadline = Instant::now() + timeout;
        let links = meeting::connect(rank, &all, &listener, deadline, timeout)?;
        let (own, file) = Mapping::create(bytes).map_err(system("memory for signals"))?;
        let words = gpu.share(node, bytes)?;
        let mut peers = Vec::with_capacity(links.len());
        for theirs in node.exchange(&file)? {
            let Some(file) = theirs else {
                peers.push(None);
                continue;
            };
            let mapping = Mapping::open(file.as_fd()).map_err(system("map a peer's signals"))?;
            peers.push(Some(Peer::new(gpu, mapping)?));
        }
        let signals = Signals::doubled(own, semaphores, words.address(rank));
        Ok(Self {
            peers,
            memories: Memories::new(gpu.clone()),
            signals,
            words,
            links,
            rank,
            semaphores,
            faults: VecDeque::new(),
            looked: Instant::now(),
        })
    }

    /// A peer that is connected.
    fn peer(&mut self, peer: usize) -> Result<&mut Peer, NetError> {
        match self.peers.get_mut(peer) {
            Some(Some(Peer { fault: Some(fault), .. })) => Err(NetError::Broken(fault.clone())),
            Some(Some(found)) if found.open => Ok(found),
            _ => {
                let (timeout, hint) = (Duration::ZERO, ": connect first".to_owned());
                Err(NetError::Missing { missing: vec![peer], timeout, hint })
            }
        }
    }

    #[cold]
    fn fail(&mut self, number: usize, cause: String) {
        if let Some(Some(peer)) = self.peers.get_mut(number) {
            let via = "copies between GPUs of this node".to_owned();
            let fault = NetFault { peer: number, via, cause };
            tracing::debug!("{fault}");
            peer.fault = Some(fault.clone());
            self.faults.push_back(fault);
        }
    }

    /// Looks for peers that are gone and copies that have failed, now and then.
    fn look(&mut self) {
        self.looked = Instant::now();
        for number in 0..self.peers.len() {
            let (Some(Some(peer)), Some(Some(link))) =
                (self.peers.get_mut(number), self.links.get(number))
            else {
                continue;
            };
            if peer.fault.is_some() || !peer.open {
                continue;
            }
            if let Err(error) = peer.copies.check() {
                self.fail(number, error.to_string());
            } else if hung_up(link.as_fd()) {
                self.fail(number, "the peer is gone".to_owned());
            }
        }
    }

    fn is_copying(&self) -> bool {
        self.peers.iter().flatten().any(|peer| peer.fault.is_none() && peer.copies.is_busy())
    }
}

impl Peer {
    fn new(gpu: &Gpu, words: Mapping) -> Result<Self, CudaError> {
        let words = RegisteredWords::new(gpu, words)?;
        let copies = CopyQueue::new(gpu)?;
        Ok(Self { copies, words, signalled: HashMap::new(), open: false, fault: None })
    }

    /// Queues all of a transfer: addresses of the data, and of the semaphore on the device.
    fn queue(
        &mut self,
        data: Option<(u64, u64, usize)>,
        signal: Option<(u32, u64)>,
    ) -> Result<(), CudaError> {
        if let Some((to, from, bytes)) = data {
            // SAFETY: both ranges were checked; the transport keeps the memories and drops its streams, which wait, before them.
            unsafe { self.copies.copy(to, from, bytes)? };
        }
        if let Some((semaphore, on_device)) = signal {
            let count = self.signalled.entry(semaphore).or_insert(0);
            *count += 1;
            // SAFETY: words of this semaphore, in memory that the transport and this peer keep longer than the stream.
            unsafe {
                self.copies.write(on_device, *count)?;
                self.copies.write(self.words.address(semaphore), *count)?;
            }
        }
        self.copies.mark().map(drop)
    }
}

impl Transport for CopyTransport {
    fn name(&self) -> &'static str {
        "copy"
    }

    /// Memory of the GPU alone: that of [`Gpu::region_of`] and the like.
    fn register(&mut self, number: u32, region: Arc<dyn Region>) -> Result<Vec<u8>, NetError> {
        self.memories.register(number, region, &self.links)
    }

    /// Waits for this rank's own copies out of it. Peers that know it go on writing it: they have to be told before.
    fn forget(&mut self, number: u32) {
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.copies.is_busy()) {
            let _ = peer.copies.finish();
        }
        self.memories.forget(number);
    }

    /// Maps the memory for this rank's GPU.
    fn learn(&mut self, peer: usize, number: u32, description: &[u8]) -> Result<(), NetError> {
        let link = self.links.get(peer).and_then(Option::as_ref);
        self.memories.learn(peer, number, description, link)
    }

    fn connect(&mut self, peers: &[usize], _timeout: Duration) -> Result<(), NetError> {
        for &number in peers.iter().filter(|&&peer| peer != self.rank) {
            match self.peers.get_mut(number) {
                Some(Some(Peer { fault: Some(fault), .. })) => {
                    return Err(NetError::Broken(fault.clone()));
                }
                Some(Some(peer)) => peer.open = true,
                _ => {
                    let (timeout, hint) = (Duration::ZERO, ": there is no such rank".to_owned());
                    return Err(NetError::Missing { missing: vec![number], timeout, hint });
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, peer: usize, transfer: &Transfer) -> Result<(), NetError> {
        let source = match transfer.bytes {
            0 => None,
            bytes => Some(self.memories.source(transfer.from, bytes)?),
        };
        self.peer(peer)?;
        let to = |from| -> Result<_, NetError> {
            let to = self.memories.destination(peer, transfer.to, transfer.bytes)?;
            Ok((to, from, transfer.bytes as usize))
        };
        let data = source.map(to).transpose()?;
        let semaphores = self.semaphores;
        if let Some(signal) = transfer.signal.filter(|&signal| signal as usize >= semaphores) {
            let what = format!("semaphore {signal}, of which it has {semaphores}");
            return Err(NetError::Protocol { peer, what });
        }
        let word = |semaphore| self.words.address(peer) + u64::from(semaphore) * 8;
        let signal = transfer.signal.map(|semaphore| (semaphore, word(semaphore)));
        if let Err(error) = self.peer(peer)?.queue(data, signal) {
            // It may be there in part, so nothing may follow it.
            self.fail(peer, error.to_string());
            let fault = self.faults.back().cloned();
            return Err(fault.map_or_else(|| refused(peer, &error), NetError::Broken));
        }
        Ok(())
    }

    #[inline]
    fn sent(&self, peer: usize) -> u64 {
        self.peers.get(peer).and_then(Option::as_ref).map_or(0, |peer| peer.copies.done())
    }

    /// The copy engines go on by themselves; this looks for what has failed.
    #[inline]
    fn progress(&mut self) -> Result<bool, NetFault> {
        if self.faults.is_empty() && self.looked.elapsed() >= LOOK {
            self.look();
        }
        self.faults.pop_front().map_or(Ok(false), Err)
    }

    fn doze(&mut self, longest: Duration, bell: Option<BorrowedFd<'_>>) {
        if !self.faults.is_empty() {
            return;
        }
        let longest = if self.is_copying() { longest.min(NAP) } else { longest };
        let mut fds: Vec<PollFd<'_>> =
            bell.into_iter().map(|b| PollFd::from_borrowed_fd(b, PollFlags::IN)).collect();
        for (peer, link) in self.peers.iter().zip(&self.links) {
            if let (Some(Peer { fault: None, open: true, .. }), Some(link)) = (peer, link) {
                fds.push(PollFd::new(link, PollFlags::RDHUP));
            }
        }
        let _ = crate::bootstrap::wire::wait(&mut fds, longest);
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }
}

impl Drop for CopyTransport {
    /// Says that nothing more comes, when what was queued is there. Before memory is given back: the driver waits for kernels there,
    /// which, if ranks share a process, may be those of a peer that waits for this rank.
    fn drop(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            let _ = peer.copies.finish();
        }
        for link in self.links.iter().flatten() {
            let _ = link.shutdown(std::net::Shutdown::Write);
        }
    }
}

fn refused(peer: usize, error: &CudaError) -> NetError {
    NetError::System { what: format!("copy to rank {peer}"), cause: error.to_string() }
}

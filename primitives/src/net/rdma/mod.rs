//! Transfers by RDMA: InfiniBand and RoCE, through libibverbs.
//!
//! ```text
//!   Transfer          ranges checked, memory numbers become addresses and keys          (this file)
//!     └► connection   cut into requests, dealt out to lanes, signals added              connection.rs
//!          └► lane    waits for room, goes to the NIC in lists, completes               lane.rs
//!               └► queue pair of a NIC                                                  queue.rs, nic.rs, sys/verbs
//! ```
//!
//! # Lanes
//!
//! A rank has one or several NICs. A connection has as many *lanes* as the rank with fewer of them: lane i is a
//! reliable connection between the i-th NIC of one and the i-th of the other. A transfer of [`RdmaOptions::stripe`]
//! bytes or more is cut over all lanes; a smaller one goes to the lane with the fewest unacknowledged bytes.
//!
//! # Signals
//!
//! Requests of one lane take effect in their order at the peer, those of different lanes in any. So a semaphore has a
//! word for each NIC of its owner, and [`Signals::seen`] is the least of them.
//!
//! > A signal is sent on **every** lane, behind all requests of the transfers before it; lane i of n counts up
//! > the words i, i + n, i + 2n, ... by one.
//!
//! Let a semaphore's words all be at least k. Then on each lane the k-th signal has taken effect, and with it all
//! that was posted before it on that lane; as that is so for all lanes, all data before the k-th signal is there. It
//! costs one small request for each lane and signal, and needs no agreement about which lanes carried what. The
//! words beyond the connection's lanes exist where the owner has more NICs than the sender.
//!
//! - *Fetch-add* ([`SignalMode::FetchAdd`]): an atomic addition by the owner's NIC. A NIC performs it after the writes
//!   before it on the same queue pair, and memory is registered without relaxed ordering. Nobody in the owner's
//!   process has to do anything. What it fetches goes to a word that nobody reads.
//! - *Immediate* ([`SignalMode::Immediate`]): the last request of the transfer on each lane, or an empty write where it has
//!   none, carries the semaphore's number and takes a receive of the owner's; its transport counts the words up in
//!   [`Transport::progress`]. Receives are posted anew as they are used; a sender that finds none is told to try
//!   again by the NIC, for as long as it takes.
//!
//! A connection signals immediately if either end wants that or has a NIC without atomics.
//!
//! # Memory of GPUs
//!
//! Where all NICs reach it, by dma-buf or `nvidia-peermem`, it is like any other. Where they do not, it is *staged*, through rings in
//! pinned memory of the host; so is what is sent to a GPU that may show a signal before the data. `reach.rs` chooses, for each memory when it is registered;
//! `staged/` is how it goes, with its own table of words.
//!
//! # Words that are shared
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | semaphore, fetch-add | the peers' requests, by this rank's NICs | anyone | the NIC's / Acquire |
//! | semaphore, immediate | this transport's thread | anyone | Release, after the completion was polled / Acquire |
//! | the sink of fetch-add | this rank's NICs | nobody | none |
//!
//! # Failure
//!
//! A connection breaks as a whole with the first of its requests that fails, with an event of its queue pairs, or when a
//! port stays down for longer than [`RdmaOptions::port_grace`]; its other lanes are stopped, so that no later data
//! arrives without the earlier. A NIC notices that a peer has gone only when it sends: whoever but waits for a
//! peer learns of its end from [`Exchange::gone`], which is asked now and then: see [`LinkExchange`].

mod connect;
mod connection;
mod faults;
mod lane;
mod linked;
mod nic;
mod options;
mod queue;
mod reach;
mod staged;
mod watch;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::connect::Exchange;
use self::connect::Half;
pub use self::linked::LinkExchange;
use rustix::event::{PollFd, PollFlags};

use self::connection::{Connection, Job, words};
use self::nic::Nic;
pub use self::options::{GpuMemory, RdmaOptions, SignalMode};
use self::queue::SendQueue;
use self::reach::{Ends, Known, Registered};
use self::staged::{Credits, RECORD, Staging, Task};
use self::wire::{Credit, Description, MAX_NICS};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::net::{NetError, NetFault, Region, Signals, Transfer, Transport};
use crate::sys::verbs::{Verbs, WC_RECV_RDMA_WITH_IMM, WC_SUCCESS, Wc};

/// Completions that are taken at a time.
const POLLED: usize = 32;

/// Polls of a NIC in a row, at most: peers that go on may send all the time.
const MOST_POLLS: usize = 64;

/// Calls of `progress` in a row that find nothing, between looks at the clock.
const IDLE: u32 = 64;

/// Time between looks at the NICs' events, which cost a system call.
const LOOK: Duration = Duration::from_millis(5);

/// Marks the identities of receives; the peer's number is below it.
const RECEIVE: u32 = 1 << 31;

/// One rank's side of transfers by RDMA. See the [module](self).
#[derive(Debug)]
pub struct RdmaTransport {
    // Declared in the order in which they are to go: queue pairs, memory, NICs, and what the NICs write.
    peers: BTreeMap<usize, Peer>,
    /// Those with which it is about to connect.
    halves: BTreeMap<usize, Half>,
    memories: BTreeMap<u32, Registered>,
    nics: Vec<Nic>,
    signals: Signals,
    credits: Credits,
    /// Each NIC's key for these.
    credit_keys: Vec<u32>,
    verbs: Verbs,
    rank: usize,
    world: usize,
    options: RdmaOptions,
    exchange: Box<dyn Exchange>,
    /// Peers' memory, by peer and number.
    known: BTreeMap<(usize, u32), Description>,
    /// Peers with requests that wait for room.
    backlog: Vec<usize>,
    /// Connections that broke, and have not been reported.
    faults: VecDeque<NetFault>,
    polled: Vec<Wc>,
    idle: u32,
    looked: Instant,
    /// Completions that failed, of which nothing has come yet.
    failing: Vec<(usize, usize, Wc)>,
    /// The GPU whose copy engines move what is staged.
    gpu: Option<Gpu>,
    /// Whether connections that are made from now on have rings.
    stages: bool,
    /// Peers with rings at one end or both.
    staged: Vec<usize>,
}

/// A peer that is connected.
#[derive(Debug)]
struct Peer {
    connection: Connection<SendQueue>,
    /// Receives that were taken since some were posted, by lane.
    taken: Vec<usize>,
    /// Of receives, for each lane.
    receives: usize,
    mtu: u32,
    in_backlog: bool,
    /// Rings for memory that NICs do not reach. Behind the queue pairs, which use them.
    staging: Option<Staging>,
    /// Where the peer wants to be told how much of its ring is free, by lane.
    credits: Vec<Credit>,
    fault: Option<NetFault>,
}

impl RdmaTransport {
    /// Opens the NICs of rank `rank` of `world`, with a table of so many semaphores. Peers are met through `exchange`.
    /// Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`NetError::Unavailable`] if there is no libibverbs, no NIC, or one without an address or a link, with what to do;
    /// [`NetError::System`] if the system refuses something: options that cannot be, or a limit.
    pub fn new(
        rank: usize,
        world: usize,
        semaphores: usize,
        options: RdmaOptions,
        exchange: Box<dyn Exchange>,
    ) -> Result<Self, NetError> {
        let signals = |lanes| Signals::new(semaphores, lanes);
        Self::with(rank, world, &signals, options, exchange)
    }

    fn with(
        rank: usize,
        world: usize,
        signals: &dyn Fn(usize) -> Result<Signals, Error>,
        options: RdmaOptions,
        exchange: Box<dyn Exchange>,
    ) -> Result<Self, NetError> {
        options.check()?;
        let verbs = Verbs::load().map_err(|error| faults::unavailable(error.to_string()))?;
        let ports = nic::ports(&verbs, &options)?;
        if ports.len() > MAX_NICS || world > RECEIVE as usize {
            return Err(NetError::System {
                what: format!("{} NICs for one of {world} ranks", ports.len()),
                cause: format!("at most {MAX_NICS} are used; name them in WARPMESH_IB_DEVICES"),
            });
        }
        let signals = signals(ports.len()).map_err(|error| NetError::System {
            what: "a table of semaphores".to_owned(),
            cause: error.to_string(),
        })?;
        let credits = Credits::new(world, ports.len()).map_err(|errno| NetError::System {
            what: "words of flow control".to_owned(),
            cause: errno.to_string(),
        })?;
        let open = |(name, port): &(String, u8)| {
            let shared = (&signals, &credits);
            Nic::open(&verbs, (name, *port), &options, shared, world.saturating_sub(1))
        };
        let nics = ports.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            peers: BTreeMap::new(),
            halves: BTreeMap::new(),
            memories: BTreeMap::new(),
            credit_keys: nics.iter().map(|nic| nic.credit_keys().1).collect(),
            nics,
            signals,
            credits,
            verbs,
            rank,
            world,
            options,
            exchange,
            known: BTreeMap::new(),
            backlog: Vec::new(),
            faults: VecDeque::new(),
            polled: vec![Wc::default(); POLLED],
            idle: 0,
            looked: Instant::now(),
            failing: Vec::new(),
            gpu: None,
            stages: false,
            staged: Vec::new(),
        })
    }

    /// The NICs' names and ports, in the order of the lanes.
    pub fn nics(&self) -> impl Iterator<Item = &str> {
        self.nics.iter().map(|nic| nic.via.as_str())
    }

    /// How signals go to and come from a connected peer.
    pub fn signal_mode(&self, peer: usize) -> Option<SignalMode> {
        self.peers.get(&peer).map(|peer| peer.connection.mode())
    }

    /// Bytes of a packet's data on the connection to a peer.
    pub fn mtu(&self, peer: usize) -> Option<u32> {
        self.peers.get(&peer).map(|peer| peer.mtu)
    }

    /// Takes what has completed on a NIC; whether anything has.
    fn poll(&mut self, nic: usize) -> bool {
        let mut polled = std::mem::take(&mut self.polled);
        let found = self.nics[nic].completions.poll(&mut polled);
        match &found {
            Ok(found) => polled[..*found].iter().for_each(|wc| self.completed(nic, wc)),
            Err(error) => self.break_all(nic, &error.to_string()),
        }
        self.polled = polled;
        found.is_ok_and(|found| found > 0)
    }

    fn completed(&mut self, nic: usize, wc: &Wc) {
        let (tag, sequence) = ((wc.wr_id >> 32) as u32, wc.wr_id as u32);
        let number = (tag & !RECEIVE) as usize;
        if !self.peers.contains_key(&number) {
            self.begun(number);
        }
        let Some(peer) = self.peers.get_mut(&number) else { return };
        if peer.fault.is_some() {
            return; // what was under way when it broke
        }
        if wc.status != WC_SUCCESS {
            self.failing.push((nic, number, *wc));
        } else if tag & RECEIVE != 0 {
            self.signalled(nic, number, wc);
        } else if !peer.connection.completed(nic, sequence) {
            self.break_one(number, nic, "the NIC completed a request that was not under way");
        } else if peer.connection.is_waiting() {
            self.put_in_backlog(number);
        }
    }

    /// A signal by immediate data has come, or a record for memory that is staged.
    fn signalled(&mut self, nic: usize, number: usize, wc: &Wc) {
        let semaphore = u32::from_be(wc.imm_data);
        let Some(peer) = self.peers.get_mut(&number) else { return };
        let known = (semaphore as usize) < self.signals.len() || semaphore == RECORD;
        let taken = if wc.opcode == WC_RECV_RDMA_WITH_IMM && known {
            peer.takes(nic, semaphore, &self.memories)
        } else {
            Err(format!("it signals semaphore {semaphore}, of {}", self.signals.len()))
        };
        match taken {
            Err(cause) => {
                return self.break_one(number, nic, &format!("what the peer sent: {cause}"));
            }
            Ok(true) => {}
            Ok(false) => {
                for word in words(nic, peer.connection.lanes.len(), self.nics.len()) {
                    self.signals.count(semaphore, word);
                }
            }
        }
        if let Err(error) = peer.received(nic, number) {
            self.break_one(number, nic, &format!("posting receives: {error}"));
        }
    }

    fn put_in_backlog(&mut self, number: usize) {
        if let Some(peer) = self.peers.get_mut(&number)
            && !std::mem::replace(&mut peer.in_backlog, true)
        {
            self.backlog.push(number);
        }
    }

    /// Hands over what waits and has room now; whether anything was.
    fn flush(&mut self) -> bool {
        let (mut any, mut broken) = (false, Vec::new());
        let peers = &mut self.peers;
        self.backlog.retain(|number| {
            let Some(peer) = peers.get_mut(number) else { return false };
            if peer.fault.is_some() {
                return false; // what waits may read memory that is gone
            }
            match peer.connection.flush() {
                Ok(flushed) => {
                    any |= flushed;
                    peer.in_backlog = peer.connection.is_waiting();
                }
                Err((lane, error)) => broken.push((*number, lane, error)),
            }
            peer.in_backlog
        });
        for (number, lane, error) in broken {
            self.break_one(number, lane, &format!("posting requests: {error}"));
        }
        any
    }
}

impl Peer {
    /// A receive of this lane was taken. Posts new ones, many at a time.
    fn received(&mut self, lane: usize, number: usize) -> std::io::Result<()> {
        self.taken[lane] += 1;
        if self.taken[lane] < self.receives.div_ceil(4) {
            return Ok(());
        }
        let count = std::mem::take(&mut self.taken[lane]);
        self.connection.lanes[lane].queue.0.post_receives(receive_id(number), count)
    }

    fn has_queue(&self, identity: usize) -> bool {
        self.connection.lanes.iter().any(|lane| lane.queue.0.identity() == identity)
    }
}

fn no_rings(peer: usize) -> NetError {
    NetError::System {
        what: format!("a transfer to rank {peer} of memory that NICs do not reach"),
        cause: "the connection was made without rings for that; register such memory before ranks connect".to_owned(),
    }
}

/// What completions of receives from a peer are known by.
fn receive_id(peer: usize) -> u64 {
    u64::from(RECEIVE | peer as u32) << 32
}

impl Transport for RdmaTransport {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn register(&mut self, number: u32, region: Arc<dyn Region>) -> Result<Vec<u8>, NetError> {
        if self.memories.contains_key(&number) {
            return Err(NetError::System {
                what: format!("registering memory {number}"),
                cause: "the number is in use; forget it first".to_owned(),
            });
        }
        self.register_memory(number, region)
    }

    fn forget(&mut self, number: u32) {
        let Some(memory) = self.memories.get(&number) else { return };
        let first = memory.region.address() as u64;
        let range = first..first + memory.region.len() as u64;
        let reads = |peer: &Peer| {
            let mut lanes = peer.connection.lanes.iter().enumerate();
            let staged = peer.staging.as_ref().filter(|s| s.outlet.reads(number, &range));
            let lane = lanes.find(|(_, lane)| lane.reads(&range)).map(|(lane, _)| lane);
            lane.or(staged.map(|_| 0))
        };
        let readers = self.peers.iter().filter_map(|(number, peer)| Some((*number, reads(peer)?)));
        // Requests with its address must not get to a NIC any more.
        for (peer, lane) in readers.collect::<Vec<_>>() {
            let cause =
                format!("memory {number} was taken back while transfers from it were under way");
            self.break_one(peer, lane, &cause);
        }
        // Nor may copies go on; they wait for nothing.
        for staging in self.peers.values_mut().filter_map(|peer| peer.staging.as_mut()) {
            if staging.outlet.reads(number, &range) {
                staging.outlet.finish();
            }
            staging.inlet.iter_mut().for_each(|inlet| inlet.finish_into(number));
        }
        self.memories.remove(&number);
    }

    fn learn(&mut self, peer: usize, number: u32, description: &[u8]) -> Result<(), NetError> {
        let description = Description::parse(description).map_err(|what| NetError::Protocol {
            peer,
            what: format!("memory {number}: {what}"),
        })?;
        self.known.insert((peer, number), description);
        Ok(())
    }

    fn connect(&mut self, peers: &[usize], timeout: Duration) -> Result<(), NetError> {
        self.connect_to(peers, Instant::now() + timeout, timeout)
    }

    fn post(&mut self, peer: usize, transfer: &Transfer) -> Result<(), NetError> {
        let Some(found) = self.peers.get_mut(&peer) else {
            return Err(NetError::System {
                what: format!("a transfer to rank {peer}"),
                cause: "there is no connection to it; call connect first".to_owned(),
            });
        };
        if let Some(fault) = &found.fault {
            return Err(NetError::Broken(fault.clone()));
        }
        let connection = &mut found.connection;
        let semaphores = connection.semaphores();
        if let Some(signal) = transfer.signal.filter(|signal| *signal >= semaphores) {
            return Err(NetError::System {
                what: format!("semaphore {signal} of rank {peer}"),
                cause: format!("it has {semaphores}"),
            });
        }
        let known = Known { own: &self.memories, theirs: &self.known, peer };
        let ends = known.ends(connection.lanes.len(), transfer)?;
        let job = match &ends {
            Some(ends) => ends.job(),
            None => Some(Job { signal: transfer.signal, ..Job::default() }),
        };
        // Nothing may overtake what still waits for a copy or for room in a ring.
        let waits =
            found.staging.as_mut().filter(|staging| job.is_none() || !staging.outlet.is_empty());
        let posted = match (job, waits) {
            (Some(job), None) => connection.post(&job),
            (None, None) => return Err(no_rings(peer)),
            (_, Some(staging)) => {
                let signal = Task::signal(transfer.signal);
                let task = ends.as_ref().map_or(signal, Ends::task);
                if !staging.outlet.can(&task) {
                    return Err(no_rings(peer));
                }
                staging.outlet.push(task);
                self.serve_staged();
                return Ok(());
            }
        };
        let waits = connection.is_waiting();
        if let Err((lane, error)) = posted {
            self.break_one(peer, lane, &format!("posting requests: {error}"));
        } else if waits {
            self.put_in_backlog(peer);
        }
        Ok(())
    }

    fn sent(&self, peer: usize) -> u64 {
        self.peers.get(&peer).map_or(0, |peer| peer.connection.sent())
    }

    fn progress(&mut self) -> Result<bool, NetFault> {
        let mut any = false;
        for nic in 0..self.nics.len() {
            any |= self.poll(nic);
        }
        if !self.failing.is_empty() {
            self.take_all();
        }
        any |= !self.staged.is_empty() && self.serve_staged();
        any |= !self.backlog.is_empty() && self.flush();
        if !any {
            self.look_sometimes();
        }
        match self.faults.pop_front() {
            Some(fault) => Err(fault),
            None => Ok(any),
        }
    }

    /// Until the bell: a NIC tells nobody of what comes. Returns at once if requests are under way, or without a bell;
    /// after a millisecond at most if peers signal by immediate data, which [`Transport::progress`] has to take.
    fn doze(&mut self, longest: Duration, bell: Option<BorrowedFd<'_>>) {
        let busy = self.peers.values().any(|peer| {
            peer.connection.is_busy() || peer.staging.as_ref().is_some_and(Staging::is_busy)
        });
        let Some(bell) = bell.filter(|_| !busy) else { return };
        let immediate = |peer: &Peer| peer.connection.mode() == SignalMode::Immediate;
        let takes = self.peers.values().any(immediate);
        let longest = if takes { longest.min(Duration::from_millis(1)) } else { longest };
        let mut fds = [PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        let _ = crate::bootstrap::wire::wait(&mut fds, longest);
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }
}

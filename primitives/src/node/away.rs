//! Transfers to ranks of other hosts, and what goes along with them.

use std::time::{Duration, Instant};

use super::outside::Outside;
use super::{AT_REACH, Node};
use crate::bootstrap::Bootstrap;
use crate::control::{State, Words};
use crate::error::Error;
use crate::failure::{Failure, FailureKind};
use crate::gpu::Gpu;
use crate::memory::SharedMemory;
use crate::net::{NetError, Signals, Span, Transfer, Transport};
use crate::patience::WaitingFor;
use crate::topology::{BusId, Topology};

/// A transfer to a rank of another host, from memory that was published.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Which memory, of this rank and of the peer: see [`Node::publish`].
    pub memory: (u32, u32),
    /// First byte, of this rank's and of the peer's.
    pub offset: (u64, u64),
    /// How many; 0 for a signal alone.
    pub bytes: u64,
    /// The semaphore between the two ranks that is counted up behind it.
    pub signal: Option<usize>,
}

/// Looks for what has come, at most.
const TURNS: usize = 64;

/// The longest description of registered memory, bytes.
pub const MOST_DESCRIBED: usize = 254;

impl Node {
    /// Makes memory of [`Node::share`] reachable for transfers from other hosts; the number that it has on all ranks.
    /// Every rank calls it, with its own memory. Blocks until all have.
    ///
    /// # Errors
    /// Those of [`Node::register`], and the bootstrap's.
    pub fn publish(
        &self,
        bootstrap: &mut dyn Bootstrap,
        memory: &SharedMemory,
    ) -> Result<u32, Error> {
        let (number, mine) = self.register(memory)?;
        for (peer, theirs) in bootstrap.all_gather(&mine)?.iter().enumerate() {
            self.learn(peer, number, theirs)?;
        }
        Ok(number)
    }

    /// The first half of [`Node::publish`]: the number of the memory, and at most [`MOST_DESCRIBED`] bytes that all other
    /// ranks have to [learn](Node::learn). All ranks register their memory in the same order.
    ///
    /// # Errors
    /// There are no other hosts, the memory is not this node's, or the system or a NIC refuses it.
    pub fn register(&self, memory: &SharedMemory) -> Result<(u32, Vec<u8>), Error> {
        let argument = |argument, problem| Error::Argument { argument, problem };
        let outside = self.outside.as_ref();
        let outside = outside.ok_or_else(|| argument("node", "all ranks are on one host"))?;
        let mapping = memory.mapping().ok_or_else(|| argument("memory", "is not of a node"))?;
        Ok(outside.register(mapping)?)
    }

    /// Takes what a rank registered; nothing is to be known of a rank of this host.
    ///
    /// # Errors
    /// The description is none of this transport's.
    pub fn learn(&self, peer: usize, number: u32, description: &[u8]) -> Result<(), Error> {
        match self.is_near(peer) {
            true => Ok(()),
            false => Ok(self.outside().learn(peer, number, description)?),
        }
    }

    /// Takes back [`Node::publish`]: nobody writes to the memory any more.
    pub fn withdraw(&self, number: u32) {
        self.outside().withdraw(number);
    }

    /// Opens a second transport to the ranks of other hosts, of the same kind: for memory of a GPU, with so many semaphores, for which
    /// its kernels can wait. If no NICs are named, it has those near the GPU, as far as ranks of this host do not share them
    /// ([`Topology::share`]). Every rank calls it. Blocks until all have.
    ///
    /// # Errors
    /// There are no other hosts, the driver refuses, or what the transport needs is not there.
    pub fn open_for_gpu(
        &self,
        bootstrap: &mut dyn Bootstrap,
        gpu: &Gpu,
        topology: &Topology,
        semaphores: usize,
    ) -> Result<Box<dyn Transport>, Error> {
        let outside = self.outside.as_ref();
        let problem = "all ranks are on one host";
        let outside = outside.ok_or(Error::Argument { argument: "node", problem })?;
        let mut options = outside.options().clone();
        options.rdma.near = self.nics_near(bootstrap, gpu, topology)?;
        crate::net::open(bootstrap, semaphores, &options, Some(gpu))
    }

    fn nics_near(
        &self,
        bootstrap: &mut dyn Bootstrap,
        gpu: &Gpu,
        topology: &Topology,
    ) -> Result<Vec<String>, Error> {
        let bus = |said: &[u8]| std::str::from_utf8(said).ok()?.parse::<BusId>().ok();
        let mine = gpu.bus().map_or_else(String::new, |bus| bus.to_string());
        let all = bootstrap.all_gather(mine.as_bytes())?;
        let of_host = (0..self.world()).filter(|rank| self.is_near(*rank));
        let known = of_host.filter_map(|rank| Some((rank, bus(&all[rank])?)));
        let (ranks, devices): (Vec<usize>, Vec<BusId>) = known.unzip();
        let Some(me) = ranks.iter().position(|rank| *rank == self.rank) else {
            return Ok(Vec::new());
        };
        let nets = topology.share(&devices, me);
        Ok(nets.into_iter().map(|at| topology.nets[at].name.clone()).collect())
    }

    /// Signals of other hosts: semaphore `s` of peer `p` is number `s * world + p`. None if there are no others.
    pub fn signals(&self) -> Option<&Signals> {
        self.outside.as_ref().map(Outside::signals)
    }

    /// Connects to these ranks of other hosts, each of which does so at the same time. Does nothing for those that are
    /// connected. Blocks, looking around meanwhile as in any other wait.
    pub fn reach(&self, peers: &[usize], sequence: u64) -> Result<(), Failure> {
        let Some(outside) = &self.outside else { return Ok(()) };
        let since = Instant::now();
        let mut pause = Duration::ZERO;
        loop {
            let (missing, why) = match outside.connect(peers, pause) {
                Ok(()) => return Ok(()),
                Err(NetError::Missing { missing, hint, .. }) => {
                    // Of all looks together, not of the last one.
                    let timeout = since.elapsed();
                    (missing[0], NetError::Missing { missing, timeout, hint })
                }
                Err(error) => return Err(self.disconnected(peers[0], error)),
            };
            pause = self.policy.look_around;
            outside.progress();
            let on = WaitingFor { peer: missing, place: AT_REACH, expected: 1, sequence };
            if let Some(failure) = self.look_around(on, 0, since.elapsed()) {
                if failure.kind == FailureKind::TimedOut {
                    outside.break_off(missing, why);
                }
                return Err(self.post(failure));
            }
        }
    }

    /// As [`Node::reach`] for one rank, without blocking: whether it is connected now.
    pub fn try_reach(&self, peer: usize) -> Result<bool, Failure> {
        let outside = self.outside();
        if outside.is_linked(peer) {
            return Ok(true);
        }
        match outside.connect(&[peer], Duration::ZERO) {
            Ok(()) => Ok(true),
            Err(NetError::Missing { .. }) => Ok(false),
            Err(error) => Err(self.disconnected(peer, error)),
        }
    }

    /// Hands over a transfer to a rank of another host, to which this rank is connected. Transfers to one rank take
    /// effect in order, as far as their signals tell.
    #[inline]
    pub fn put(&self, peer: usize, what: &Outgoing) -> Result<(), Failure> {
        let Outgoing { memory, offset, bytes, signal } = *what;
        let transfer = Transfer {
            from: Span { memory: memory.0, offset: offset.0 },
            to: Span { memory: memory.1, offset: offset.1 },
            bytes,
            signal: signal.map(|semaphore| self.signal_number(semaphore)),
        };
        let posted = self.outside().post(peer, &transfer);
        posted.map_err(|error| self.disconnected(peer, error))
    }

    /// Tells a connected rank of another host which call this rank is in, before the call's transfers.
    pub fn tell_call(&self, peer: usize, sequence: u64) {
        self.tell(peer, Words::board(sequence));
    }

    /// Tells connected ranks of other hosts that all ranks of this host have finished an epoch.
    pub fn tell_cleared(&self, peers: &[usize], epoch: u64) {
        self.me().clear_epoch(epoch);
        peers.iter().for_each(|&peer| self.tell(peer, Words::FINISHED));
    }

    fn tell(&self, peer: usize, words: Words) {
        self.told(peer, self.outside().tell(peer, words));
    }

    /// Counts up a semaphore between this rank and a connected one of another host, which it may not need any more.
    pub fn tell_signal(&self, peer: usize, semaphore: usize) {
        let signal = Some(self.signal_number(semaphore));
        self.told(peer, self.outside().post(peer, &Transfer { signal, ..Transfer::default() }));
    }

    /// A peer that has gone need not be told; whoever waits for it sees that it has.
    fn told(&self, peer: usize, posted: Result<(), NetError>) {
        if let Err(error) = posted {
            self.outside().break_off(peer, error);
        }
    }

    fn signal_number(&self, semaphore: usize) -> u32 {
        (semaphore * self.world() + self.rank) as u32
    }

    /// Whether a rank has left after a call: then it has received all that it needed for it, though the acknowledgement may
    /// have been lost.
    pub fn has_left_after(&self, peer: usize, sequence: u64) -> bool {
        self.is_gone(peer) && self.control(peer).finished_call() >= sequence
    }

    /// Whether all transfers to a rank have left this rank's memory.
    pub fn has_sent(&self, peer: usize) -> bool {
        self.outside().has_sent(peer)
    }

    /// Goes on with transfers, without blocking; whether anything moved. Waits do so by themselves.
    #[inline]
    pub fn progress(&self) -> bool {
        self.outside.as_ref().is_some_and(Outside::progress)
    }

    /// Takes all that has come by now; bounded, for peers that tell news all the time.
    pub(crate) fn drain(&self) {
        let _ = (0..TURNS).all(|_| self.progress());
    }

    /// Sleeps until a transfer can go on, at most so long.
    pub(crate) fn doze(&self, longest: Duration) {
        self.outside().doze(longest);
    }

    fn outside(&self) -> &Outside {
        self.outside.as_ref().expect("only ranks of other hosts are reached by transfers")
    }

    /// Notes why a rank of another host cannot be reached any more; the first reason counts. Who waits for it finds that it is gone.
    pub fn break_off(&self, peer: usize, error: NetError) {
        self.outside().break_off(peer, error);
    }

    /// Posts that a rank of another host cannot be reached any more, and why; the failure that counts.
    #[cold]
    pub fn disconnected(&self, peer: usize, error: NetError) -> Failure {
        let culprit = if let NetError::Broken(fault) = &error { fault.peer } else { peer };
        self.outside().break_off(culprit, error);
        let left = self.control(culprit).progress().state == State::Left;
        let kind = if left { FailureKind::PeerLeft } else { FailureKind::Disconnected };
        // A rank that has failed says why before it goes.
        let failure = self.told_failure();
        self.post(failure.unwrap_or(Failure { kind, by: self.rank, culprit: Some(culprit) }))
    }
}

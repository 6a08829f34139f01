//! How two ranks connect their queue pairs.
//!
//! ```text
//!   rank a                                   rank b
//!   queue pairs: initialised                 queue pairs: initialised
//!     ├────────── offer ──────────► ◄──────── offer ─────┤      what wire.rs says
//!   lanes: as many as both have; ready       the same
//!     ├────────── ready ──────────► ◄──────── ready ─────┤      nothing is sent to a queue pair that is not
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use super::connection::{Connection, Rules, Signalling};
use super::lane::Lane;
use super::nic::Nic;
use super::options::{SignalMode, mtu_of_code};
use super::queue::SendQueue;
use super::staged::{Rings, Staging};
use super::wire::{Credit, End, Offer, RingEnd, Table};
use super::{Peer, RdmaTransport, receive_id};
use crate::net::{NetError, NetFault};
use crate::sys::verbs::{Connect, QueuePair, Route};

/// Carries small messages between this rank and its peers before their NICs can: a way that is authenticated, since
/// whoever speaks on it gets to write registered memory.
pub trait Exchange: Send + fmt::Debug {
    /// Sends a message, of at most some kilobytes, to a peer. Does not wait for the peer to take it.
    ///
    /// # Errors
    /// The peer cannot be reached, or is gone.
    fn give(&mut self, peer: usize, message: &[u8], deadline: Instant) -> Result<(), NetError>;

    /// The next message of a peer. Blocks for it until `deadline`; looks once if that has passed.
    ///
    /// # Errors
    /// [`NetError::Missing`] if none came in time; others if the peer is gone or speaks something else.
    fn take(&mut self, peer: usize, deadline: Instant) -> Result<Vec<u8>, NetError>;

    /// Makes the way to these peers, each of which does so at the same time.
    ///
    /// # Errors
    /// [`NetError::Missing`] names the peers that did not come by `deadline`.
    fn reach(&mut self, _peers: &[usize], _deadline: Instant) -> Result<(), NetError> {
        Ok(())
    }

    /// Peers that have gone since the last call, as far as this way shows: asked every few milliseconds in a wait.
    fn gone(&mut self) -> Vec<NetFault> {
        Vec::new()
    }
}

/// The second message.
const READY: &[u8] = b"WMRR";

/// A peer with which this rank is about to connect.
#[derive(Debug)]
pub(super) enum Half {
    /// It was made an offer.
    Offered { queues: Vec<QueuePair>, sequences: Vec<u32>, rings: Option<Box<Rings>> },
    /// This rank is ready, and has told it.
    Ready(Box<Peer>),
}

impl RdmaTransport {
    /// Goes as far as peers answer; what is begun is kept for the next call.
    pub(super) fn connect_to(
        &mut self,
        peers: &[usize],
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), NetError> {
        let peers = self.not_connected(peers)?;
        let unreached = match self.exchange.reach(&peers, deadline) {
            Ok(()) => Vec::new(),
            Err(NetError::Missing { missing, hint, .. }) if missing.len() == peers.len() => {
                let hint = format!("{hint} ({})", self.own_nics());
                return Err(NetError::Missing { missing, timeout, hint });
            }
            Err(NetError::Missing { missing, .. }) => missing,
            Err(other) => return Err(other),
        };
        let reached = || peers.iter().copied().filter(|peer| !unreached.contains(peer));
        for peer in reached() {
            if !self.halves.contains_key(&peer) {
                let (half, offer) = self.offer(peer)?;
                self.exchange.give(peer, &offer, deadline)?;
                self.halves.insert(peer, half);
            }
        }
        let mut missing = unreached.clone();
        for peer in reached() {
            self.answer(peer, deadline, &mut missing)?;
        }
        for peer in reached() {
            self.conclude(peer, deadline, &mut missing)?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let nics = self.own_nics();
        let hint = format!("; look at whether they run, and at what they say ({nics})");
        Err(NetError::Missing { missing, timeout, hint })
    }

    /// Through what peers would have been reached, for reports.
    fn own_nics(&self) -> String {
        let nics: Vec<&str> = self.nics().collect();
        format!("by RDMA, through {}", nics.join(", "))
    }

    /// Takes a peer's offer, and tells it that this rank is ready.
    fn answer(
        &mut self,
        peer: usize,
        deadline: Instant,
        missing: &mut Vec<usize>,
    ) -> Result<(), NetError> {
        if !matches!(self.halves.get(&peer), Some(Half::Offered { .. })) {
            return Ok(());
        }
        let Some(offer) = self.take(peer, deadline, missing)? else { return Ok(()) };
        if let Some(half) = self.halves.remove(&peer) {
            let connected = self.accept(peer, half, &offer)?;
            self.exchange.give(peer, READY, deadline)?;
            self.halves.insert(peer, Half::Ready(Box::new(connected)));
        }
        Ok(())
    }

    /// Hears that a peer is ready, too.
    fn conclude(
        &mut self,
        peer: usize,
        deadline: Instant,
        missing: &mut Vec<usize>,
    ) -> Result<(), NetError> {
        if !matches!(self.halves.get(&peer), Some(Half::Ready(_))) {
            return Ok(());
        }
        match self.take(peer, deadline, missing)? {
            None => return Ok(()),
            Some(message) if message == READY => {}
            Some(_) => {
                let what = "not the message that it is ready for RDMA".to_owned();
                return Err(NetError::Protocol { peer, what });
            }
        }
        self.begun(peer);
        Ok(())
    }

    /// A peer that is ready: it has said so, or has sent something already, which can be here before that word.
    pub(super) fn begun(&mut self, peer: usize) {
        if let Some(Half::Ready(_)) = self.halves.get(&peer)
            && let Some(Half::Ready(connected)) = self.halves.remove(&peer)
        {
            if connected.staging.is_some() {
                self.staged.push(peer);
            }
            self.peers.insert(peer, *connected);
        }
    }

    fn not_connected(&self, peers: &[usize]) -> Result<Vec<usize>, NetError> {
        let mut new = Vec::new();
        for peer in peers.iter().copied() {
            if peer >= self.world || peer == self.rank {
                return Err(NetError::System {
                    what: format!("connecting rank {} to rank {peer}", self.rank),
                    cause: format!("peers are other ranks of the {} that there are", self.world),
                });
            }
            match self.peers.get(&peer).map(|peer| &peer.fault) {
                Some(Some(fault)) => return Err(NetError::Broken(fault.clone())),
                Some(None) => {}
                None => new.push(peer),
            }
        }
        new.sort_unstable();
        new.dedup();
        Ok(new)
    }

    /// A peer's message; None, and an entry in `missing`, if it did not come in time.
    fn take(
        &mut self,
        peer: usize,
        deadline: Instant,
        missing: &mut Vec<usize>,
    ) -> Result<Option<Vec<u8>>, NetError> {
        match self.exchange.take(peer, deadline) {
            Ok(message) => Ok(Some(message)),
            Err(NetError::Missing { .. }) => {
                missing.push(peer);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Queue pairs for a peer, and what it must know of them.
    fn offer(&self, peer: usize) -> Result<(Half, Vec<u8>), NetError> {
        let (mut queues, mut sequences, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let gpu = self.gpu.as_ref().filter(|_| self.stages);
        let rings = gpu.map(|gpu| Rings::new(gpu, &self.nics)).transpose()?.map(Box::new);
        for (lane, nic) in self.nics.iter().enumerate() {
            let queue = nic.queue_pair()?;
            let sequence = random_sequence(&nic.via)?;
            let (key, _) = nic.credit_keys();
            let credit = Credit { address: self.credits.address(peer, lane), key };
            let ring = rings.as_ref().map(|rings| rings.end(lane));
            ends.push(nic.end((queue.number(), sequence), ring, credit));
            queues.push(queue);
            sequences.push(sequence);
        }
        let (address, _) = self.signals.memory();
        let (semaphores, lanes) = (self.signals.len() as u32, self.nics.len() as u32);
        let table = Table { address: address as u64, semaphores, lanes };
        let offer = Offer { mode: self.own_mode(), table, ends };
        Ok((Half::Offered { queues, sequences, rings }, offer.to_bytes()))
    }

    /// Without atomics on one NIC, a semaphore could not be counted up on all lanes; and behind data that is staged the processor counts.
    fn own_mode(&self) -> SignalMode {
        if self.stages || self.nics.iter().any(|nic| nic.atomics == 0) {
            return SignalMode::Immediate;
        }
        let usual = if self.gpu.is_some() { SignalMode::FetchAdd } else { SignalMode::Immediate };
        self.options.signals.unwrap_or(usual)
    }

    /// Connects this rank's queue pairs to what the peer offers.
    fn accept(&self, peer: usize, half: Half, offer: &[u8]) -> Result<Peer, NetError> {
        let (queues, sequences, rings) = match half {
            Half::Ready(connected) => return Ok(*connected),
            Half::Offered { queues, sequences, rings } => (queues, sequences, rings),
        };
        let offer = Offer::parse(offer).map_err(|what| NetError::Protocol { peer, what })?;
        let lanes = self.nics.len().min(offer.ends.len());
        let staging = Staging::new(rings.map(|rings| *rings), &self.nics, &offer.ends)?;
        let immediate = [self.own_mode(), offer.mode].contains(&SignalMode::Immediate);
        let mode = if immediate { SignalMode::Immediate } else { SignalMode::FetchAdd };
        // One that is never used comes back when the queue pair breaks: so a rank that does not send learns it.
        let receives = if immediate { self.receives() } else { 1 };
        let mut connected = Vec::new();
        let mut rules =
            Rules { mode, stripe: self.options.stripe, longest: u32::MAX, inline: u32::MAX };
        let sides = self.nics.iter().zip(&offer.ends).zip(queues.into_iter().zip(sequences));
        for ((nic, end), (mut queue, sequence)) in sides {
            self.bring_up(peer, nic, end, &mut queue, sequence)?;
            let failed = |error: std::io::Error| NetError::System {
                what: format!("{}: receives for rank {peer}", nic.via),
                cause: error.to_string(),
            };
            queue.post_receives(receive_id(peer), receives).map_err(failed)?;
            let sizes = queue.sizes();
            rules.longest = rules.longest.min(nic.longest);
            rules.inline = rules.inline.min(sizes.inline);
            let lane = Lane::new(SendQueue(queue), peer as u32, sizes.sends as usize);
            connected.push((lane, Signalling { key: end.table_key, sink: nic.sink() }));
        }
        let mtu = self.nics.iter().zip(&offer.ends).map(|(nic, end)| nic.mtu.min(end.mtu)).min();
        Ok(Peer {
            connection: Connection::new(connected, rules, offer.table),
            staging,
            credits: offer.ends[..lanes].iter().map(|end| end.credit).collect(),
            taken: vec![0; lanes],
            receives,
            mtu: mtu_of_code(mtu.unwrap_or(1)),
            in_backlog: false,
            fault: None,
        })
    }

    fn receives(&self) -> usize {
        self.nics.iter().map(|nic| nic.sizes.receives).min().unwrap_or(1) as usize
    }

    fn bring_up(
        &self,
        peer: usize,
        nic: &Nic,
        end: &End,
        queue: &mut QueuePair,
        sequence: u32,
    ) -> Result<(), NetError> {
        if nic.gid_kind != end.gid_kind {
            let what = format!(
                "its address on the lane of {} is of kind {}, this rank's of kind {} (0 InfiniBand, 1 RoCE v1, 2 RoCE v2): \
                 list NICs of the same network in the same order in WARPMESH_IB_DEVICES, or set WARPMESH_IB_GID_INDEX",
                nic.via, end.gid_kind, nic.gid_kind
            );
            return Err(NetError::Protocol { peer, what });
        }
        let to = Connect {
            route: Route {
                port: nic.port,
                gid: end.gid,
                gid_index: nic.gid_index,
                global: nic.global,
                lid: end.lid,
                traffic_class: self.options.traffic_class,
                service_level: self.options.service_level,
            },
            queue: end.queue,
            mtu: nic.mtu.min(end.mtu),
            sequence,
            peer_sequence: end.sequence,
            atomics: nic.atomics.min(end.atomics),
            peer_atomics: nic.atomics.min(end.atomics),
            timeout: self.options.timeout,
            retries: self.options.retries,
        };
        queue.connect(&to).map_err(|error| NetError::System {
            what: format!("{}: connecting to rank {peer}, address {:?}", nic.via, end.gid.raw),
            cause: format!(
                "{error}; if it is a time-out or there is no route, the peer's address is not reachable from this \
                 NIC's interface (`ip route get`, `ping -I`)"
            ),
        })
    }
}

impl Nic {
    fn end(&self, (queue, sequence): (u32, u32), ring: Option<RingEnd>, credit: Credit) -> End {
        End {
            queue,
            sequence,
            table_key: self.table_key(),
            gid: self.gid,
            gid_kind: self.gid_kind,
            mtu: self.mtu,
            lid: self.lid,
            atomics: self.atomics,
            ring,
            credit,
        }
    }
}

/// Where packet numbers begin: not where those of an earlier connection between the same queue pairs may have ended.
fn random_sequence(via: &str) -> Result<u32, NetError> {
    let random = getrandom::u32().map_err(|error| NetError::System {
        what: format!("{via}: a random number"),
        cause: error.to_string(),
    })?;
    Ok(random & 0x00ff_ffff)
}

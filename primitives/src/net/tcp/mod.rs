//! Transfers over TCP: for networks without RDMA, and where RDMA does not work.
//!
//! ```text
//!   post ─► queue ─► sendmsg(header, source, header, source, ..)      nothing is staged on this side
//!                                     │
//!        recvmsg(place of the data that is missing, inbox) ─► count up the semaphore
//! ```
//!
//! A peer's bytes are checked before they are believed: a frame names a memory and a range, and nothing is written
//! that does not lie in registered memory. Small transfers that are behind one another go and come by one system call.
//!
//! Memory of a device, which no system call reaches, goes through pinned memory of the host, in pieces that the copy engine moves on
//! streams of the connection's own: they wait for no kernel, and no kernel of other streams for them. A signal counts up when the copies
//! before it are seen to be done.
//!
//! A connection that breaks, or whose peer does not keep to the protocol, ends alone, with an error that names the
//! peer, both addresses and the cause.

mod connection;
mod frame;
mod memories;
mod stage;

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, epoll};
use rustix::io::Errno;
use rustix::net::sockopt;

use self::connection::{Cause, Connection, Stages};
use self::memories::Memories;
use self::stage::Stage;
use super::link::{Link, LinkOptions, Links};
use super::{NetError, NetFault, Region, Signals, Transfer, Transport};
use crate::bootstrap::Bootstrap;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::sys::{owes, round_trip};

/// Peers whose sockets are simply asked, rather than the system which of them have something.
const FEW: usize = 2;
/// Sockets that the system tells of at once.
const EVENTS: usize = 64;

/// How long a transport that is dropped waits for peers to have what was sent.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes per second of a connection that is to be kept busy: 40 Gbit/s, more than a core copies.
const FASTEST: f64 = 5e9;
/// Bounds of what the system holds for a connection, to be sent or acknowledged.
const LEAST_HELD: usize = 256 << 10;
const MOST_HELD: usize = 2 << 20;

/// Congestion controls that send as fast as they may, the fastest first.
const UNPACED: [&str; 2] = ["cubic", "reno"];

/// How TCP is used.
#[derive(Clone, Debug, Default)]
pub struct TcpOptions {
    /// How connections are made and watched.
    pub link: LinkOptions,
    /// Bytes that the system may hold for a connection in each direction. None: it adapts them itself; but to a peer that
    /// is near, so that 256 KiB to 2 MiB are enough for 40 Gbit/s, it holds no more than these.
    pub buffer: Option<usize>,
    /// The system's congestion control by name. None: its default; but between ranks of one host, where there is no
    /// network that could be congested, cubic or reno, for one that paces itself (BBR) costs a third of the speed there.
    pub congestion: Option<String>,
}

/// One rank's connections. See the [module](self).
#[derive(Debug)]
pub struct TcpTransport {
    links: Links,
    options: TcpOptions,
    signals: Signals,
    /// How many semaphores each rank has.
    theirs: Vec<u64>,
    /// Whose copy engines move memory of devices.
    gpu: Option<Gpu>,
    memories: Memories,
    places: Vec<Place>,
    /// Peers with an open connection.
    open: Vec<usize>,
    epoll: OwnedFd,
    /// Faults that nobody was told of yet.
    faults: VecDeque<NetFault>,
}

#[derive(Debug)]
enum Place {
    Never,
    Open(Box<Connection>),
    Broken {
        fault: NetFault,
        sent: u64,
        /// Kept until the transport goes: the driver frees pinned memory only when the device's kernels have ended, and those may wait
        /// for the word that this connection is broken.
        _stages: Option<Box<Stages>>,
    },
}

impl TcpTransport {
    /// Opens this rank's door, with so many semaphores for its peers to count up. Every rank calls it. Blocks until all
    /// have.
    ///
    /// # Errors
    /// Those of [`Links::new`]; a rank of another version; there is no memory, or there are no descriptors.
    pub fn new(
        bootstrap: &mut dyn Bootstrap,
        semaphores: usize,
        options: &TcpOptions,
    ) -> Result<Self, Error> {
        Self::with(bootstrap, Signals::new(semaphores, 1)?, None, options)
    }

    /// As [`TcpTransport::new`], also for memory of a GPU, and with semaphores for which its kernels can wait. Each connection takes
    /// 2 MiB of pinned memory. That the driver allocates it may take as long as kernels run, so peers are to be connected before
    /// kernels are launched that wait for them.
    ///
    /// # Errors
    /// As [`TcpTransport::new`]; the driver refuses.
    pub fn on_gpu(
        bootstrap: &mut dyn Bootstrap,
        gpu: &Gpu,
        semaphores: usize,
        options: &TcpOptions,
    ) -> Result<Self, Error> {
        let signals = Signals::on_gpu(gpu, semaphores, 1)?;
        Self::with(bootstrap, signals, Some(gpu.clone()), options)
    }

    fn with(
        bootstrap: &mut dyn Bootstrap,
        signals: Signals,
        gpu: Option<Gpu>,
        options: &TcpOptions,
    ) -> Result<Self, Error> {
        let links = Links::new(bootstrap, &options.link)?;
        let hellos = bootstrap.all_gather(&frame::hello(signals.len()))?;
        let read = |(peer, hello): (usize, &Vec<u8>)| {
            let what = "it does not speak this version of the TCP transport".to_owned();
            frame::read_hello(hello).ok_or(NetError::Protocol { peer, what })
        };
        let theirs = hellos.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = epoll.map_err(crate::error::system("epoll for connections"))?;
        Ok(Self {
            places: (0..links.world()).map(|_| Place::Never).collect(),
            links,
            options: options.clone(),
            signals,
            theirs,
            gpu,
            memories: Memories::default(),
            open: Vec::new(),
            epoll,
            faults: VecDeque::new(),
        })
    }

    /// Opens those that are linked; the others are left in the list.
    fn open_linked(&mut self, peers: &mut Vec<usize>) -> Result<(), NetError> {
        let linked = peers.extract_if(.., |peer| self.links.link(*peer).is_some());
        linked.collect::<Vec<_>>().into_iter().try_for_each(|peer| self.open(peer))
    }

    fn open(&mut self, peer: usize) -> Result<(), NetError> {
        let what = "its link is gone".to_owned();
        let link = self.links.take(peer).ok_or(NetError::Protocol { peer, what })?;
        self.tune(&link)?;
        let stages = self.stages()?;
        let connection = Connection::new(link, self.theirs[peer], stages);
        self.places[peer] = Place::Open(Box::new(connection));
        self.open.push(peer);
        self.watch(peer)
    }

    /// Has the system tell of what comes, once there are many peers: it costs every packet, so for a few they are asked.
    fn watch(&self, new: usize) -> Result<(), NetError> {
        let of = |peer: usize| {
            let Place::Open(connection) = &self.places[peer] else { return Ok(()) };
            let data = epoll::EventData::new_u64(peer as u64);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            match epoll::add(&self.epoll, connection.link.stream(), data, flags) {
                // It was among many before, of which some are gone.
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(errno) => Err(refused(&errno)),
            }
        };
        match self.open.len() {
            few if few <= FEW => Ok(()),
            now if now == FEW + 1 => self.open.iter().copied().try_for_each(of),
            _ => of(new),
        }
    }

    fn stages(&self) -> Result<Option<Box<Stages>>, NetError> {
        let Some(gpu) = &self.gpu else { return Ok(None) };
        let stages = || Ok(Box::new(Stages { out: Stage::new(gpu)?, in_: Stage::new(gpu)? }));
        let failed = |error: crate::gpu::CudaError| NetError::System {
            what: "pinned memory and streams for a connection".to_owned(),
            cause: error.to_string(),
        };
        stages().map(Some).map_err(failed)
    }

    fn tune(&self, link: &Link) -> Result<(), NetError> {
        let stream = link.stream();
        let tune = || {
            if let Some(bytes) = self.options.buffer {
                sockopt::set_socket_send_buffer_size(stream, bytes)?;
                sockopt::set_socket_recv_buffer_size(stream, bytes)?;
            } else if let Some(bytes) = round_trip(stream.as_fd()).and_then(on_the_way) {
                sockopt::set_socket_send_buffer_size(stream, bytes)?;
            }
            match &self.options.congestion {
                Some(name) => sockopt::set_tcp_congestion(stream, name),
                None if link.stays_on_this_host() => {
                    // Not every user may choose each; what the system has will do, too.
                    let _ = UNPACED
                        .iter()
                        .any(|name| sockopt::set_tcp_congestion(stream, name).is_ok());
                    Ok(())
                }
                None => Ok(()),
            }
        };
        tune().map_err(|errno| refused(&errno))
    }

    /// Goes on with one peer; whether anything moved. A connection that breaks is noted.
    #[inline]
    fn serve(&mut self, peer: usize) -> bool {
        let Some(Place::Open(connection)) = self.places.get_mut(peer) else {
            return false;
        };
        let sent = if connection.is_sending() { connection.send() } else { Ok(false) };
        // Also after sending has failed: what came before that is to be had.
        let received = connection.receive(&self.memories, &self.signals);
        match (sent, received) {
            (Ok(sent), Ok(received)) => sent || received,
            // There may be more.
            (Err(_), Ok(true)) => true,
            (Err(cause), _) | (_, Err(cause)) => {
                self.fail(peer, cause);
                true
            }
        }
    }

    #[cold]
    fn fail(&mut self, peer: usize, cause: Cause) {
        let Some(Place::Open(connection)) = self.places.get_mut(peer) else {
            return;
        };
        connection.settle(&self.signals);
        let (fault, sent) = (connection.fault(cause), connection.sent());
        tracing::debug!(peer, "{fault}");
        let _ = epoll::delete(&self.epoll, connection.link.stream());
        let _stages = connection.take_stages();
        self.faults.push_back(fault.clone());
        self.open.retain(|&open| open != peer);
        // Closes the socket.
        self.places[peer] = Place::Broken { fault, sent, _stages };
    }

    /// Peers that the system has something of.
    fn serve_ready(&mut self) -> bool {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let none = rustix::event::Timespec::default();
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&none)) else {
            return false;
        };
        events.iter().fold(false, |moved, event| self.serve(event.data.u64() as usize) | moved)
    }

    fn serve_senders(&mut self) -> bool {
        let mut moved = false;
        for at in (0..self.open.len()).rev() {
            let peer = self.open[at];
            if matches!(&self.places[peer], Place::Open(c) if c.is_sending() || c.is_copying()) {
                moved |= self.serve(peer);
            }
        }
        moved
    }

    /// A connection that is there.
    fn connection(&mut self, peer: usize) -> Result<&mut Connection, NetError> {
        match self.places.get_mut(peer) {
            Some(Place::Open(connection)) => Ok(connection),
            Some(Place::Broken { fault, .. }) => Err(NetError::Broken(fault.clone())),
            _ => {
                let (timeout, hint) = (Duration::ZERO, ": connect first".to_owned());
                Err(NetError::Missing { missing: vec![peer], timeout, hint })
            }
        }
    }
}

/// Bytes that the system has to hold for a peer that answers after so long; None if it would not hold so many, and is to
/// adapt them itself. Left to itself it holds as much as it may, out of the caches, and sends what waits there from
/// whichever core sees an acknowledgement: packets then overtake each other, and are sent twice.
fn on_the_way(round_trip: Duration) -> Option<usize> {
    let bytes = (round_trip.as_secs_f64() * FASTEST) as usize;
    (bytes <= MOST_HELD).then_some(bytes.max(LEAST_HELD))
}

fn refused(cause: &dyn std::fmt::Display) -> NetError {
    let what = "options of a connection to a peer".to_owned();
    NetError::System { what, cause: cause.to_string() }
}

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn register(&mut self, number: u32, region: Arc<dyn Region>) -> Result<Vec<u8>, NetError> {
        if region.is_on_device() && self.gpu.is_none() {
            let what = format!("register memory {number}, which is a device's");
            let cause = "this transport knows no GPU; make it by TcpTransport::on_gpu".to_owned();
            return Err(NetError::System { what, cause });
        }
        self.memories.register(number, region)
    }

    /// Connections whose peers are in the middle of a transfer to it, or to which it is still being sent, break.
    fn forget(&mut self, number: u32) {
        self.memories.forget(number);
        for peer in self.open.clone() {
            if matches!(&self.places[peer], Place::Open(c) if c.uses(number)) {
                self.fail(
                    peer,
                    format!("memory {number} was forgotten in the middle of a transfer"),
                );
            }
        }
    }

    fn learn(&mut self, peer: usize, number: u32, description: &[u8]) -> Result<(), NetError> {
        self.memories.learn(peer, number, description)
    }

    fn connect(&mut self, peers: &[usize], timeout: Duration) -> Result<(), NetError> {
        let mut new: Vec<usize> = Vec::new();
        for &peer in peers {
            match self.places.get(peer) {
                Some(Place::Open(_)) => {}
                Some(Place::Broken { fault, .. }) => return Err(NetError::Broken(fault.clone())),
                _ => new.push(peer),
            }
        }
        new.sort_unstable();
        new.dedup();
        // Also a peer that has come, sent everything and gone is connected.
        self.open_linked(&mut new)?;
        let linked = self.links.connect(&new, timeout);
        self.open_linked(&mut new)?;
        linked
    }

    #[inline]
    fn post(&mut self, peer: usize, transfer: &Transfer) -> Result<(), NetError> {
        let source = match transfer.bytes {
            0 => None,
            bytes => Some(self.memories.range("the source", transfer.from, bytes)?),
        };
        self.memories.check_theirs(peer, transfer.to, transfer.bytes)?;
        let connection = self.connection(peer)?;
        if let Some(signal) = transfer.signal.filter(|&s| u64::from(s) >= connection.semaphores()) {
            let what = format!("semaphore {signal}, of which it has {}", connection.semaphores());
            return Err(NetError::Protocol { peer, what });
        }
        if let Err(cause) = connection.post(transfer, source) {
            // What came before is still to be had: `progress` finds it, and then the same error.
            tracing::debug!(peer, "sending failed: {cause}");
        }
        Ok(())
    }

    #[inline]
    fn sent(&self, peer: usize) -> u64 {
        match self.places.get(peer) {
            Some(Place::Open(connection)) => connection.sent(),
            Some(Place::Broken { sent, .. }) => *sent,
            _ => 0,
        }
    }

    fn silence(&self, peer: usize) -> Option<(Duration, String)> {
        let Some(Place::Open(connection)) = self.places.get(peer) else { return None };
        let link = &connection.link;
        Some((crate::sys::silent_for(link.stream().as_fd())?, link.via().to_owned()))
    }

    #[inline]
    fn progress(&mut self) -> Result<bool, NetFault> {
        let moved = if self.open.len() <= FEW {
            // Backwards, for a connection that breaks goes out of the list.
            (0..self.open.len()).rev().fold(false, |moved, at| self.serve(self.open[at]) | moved)
        } else {
            self.serve_senders() | self.serve_ready()
        };
        self.faults.pop_front().map_or(Ok(moved), Err)
    }

    fn doze(&mut self, longest: Duration, bell: Option<BorrowedFd<'_>>) {
        if !self.faults.is_empty() {
            return;
        }
        let mut fds: Vec<PollFd<'_>> =
            bell.into_iter().map(|b| PollFd::from_borrowed_fd(b, PollFlags::IN)).collect();
        for &peer in &self.open {
            if let Place::Open(connection) = &self.places[peer] {
                if connection.is_copying() {
                    return; // of copies nothing tells that one could sleep for
                }
                let write =
                    if connection.is_sending() { PollFlags::OUT } else { PollFlags::empty() };
                fds.push(PollFd::new(
                    connection.link.stream(),
                    PollFlags::IN | PollFlags::RDHUP | write,
                ));
            }
        }
        let _ = crate::bootstrap::wire::wait(&mut fds, longest);
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }
}

impl Drop for TcpTransport {
    /// Says that nothing more comes, and takes what comes until peers have all that was sent, for a while: a socket with unread bytes, or
    /// one that is closed when bytes come, is reset, and what the system still holds for the peer lost.
    fn drop(&mut self) {
        let (memories, signals) = (&self.memories, &self.signals);
        let mut open: Vec<&mut Connection> = Vec::new();
        for place in &mut self.places {
            if let Place::Open(connection) = place {
                let _ = connection.link.stream().shutdown(std::net::Shutdown::Write);
                open.push(connection);
            }
        }
        let until = Instant::now() + LINGER;
        loop {
            open.retain_mut(|connection| {
                let _ = connection.receive(memories, signals);
                connection.settle(signals);
                owes(connection.link.stream().as_fd())
            });
            if open.is_empty() || Instant::now() >= until {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_for_a_peer_is_what_is_on_its_way() {
        let micros = |micros| on_the_way(Duration::from_micros(micros));
        assert_eq!(micros(1), Some(LEAST_HELD));
        assert_eq!(micros(200), Some(1_000_000));
        assert_eq!(micros(420), None, "2.1 MB are the system's to adapt");
    }
}

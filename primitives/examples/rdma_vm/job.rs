//! Two ranks, each a process, with a transport each.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warpmesh_primitives::bootstrap::{Bootstrap, TcpBootstrap, TcpRoot, UniqueId};
use warpmesh_primitives::net::rdma::{Exchange, RdmaOptions, RdmaTransport};
use warpmesh_primitives::net::{NetError, NetFault, Span, Transfer, Transport};

use super::ensure;
use super::harness::Outcome;
use super::memory::Memory;

/// For all that has to come within the guest's slow time.
pub const LIMIT: Duration = Duration::from_secs(15);
/// Each rank's memory, and its number.
pub const BYTES: usize = 8 << 20;
pub const MEMORY: u32 = 7;
pub const SEMAPHORES: usize = 16;

/// Where a peer finds rank 0.
const ID: &str = "RDMA_VM_ID";

/// One rank of two.
pub struct Job {
    pub rank: usize,
    pub peer: usize,
    pub bootstrap: TcpBootstrap,
    /// Whether packets are lost on purpose.
    pub loses: bool,
    /// The other process, on rank 0.
    pub child: Option<Child>,
}

impl Job {
    /// Rank 0 starts rank 1 as another process of this program, with the same argument.
    pub fn start(test: &str) -> Outcome<Self> {
        if let Ok(id) = std::env::var(ID) {
            let bootstrap = TcpBootstrap::join(&id.parse::<UniqueId>()?, 1, 2, LIMIT)?;
            return Ok(Self { rank: 1, peer: 0, bootstrap, loses: false, child: None });
        }
        let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.args(["--test", test]).env(ID, id.to_string()).spawn()?;
        let bootstrap = TcpBootstrap::root(root, 2, LIMIT)?;
        Ok(Self { rank: 0, peer: 1, bootstrap, loses: false, child: Some(child) })
    }

    /// Waits for the other process, which has to have succeeded.
    pub fn finish(mut self) -> Outcome {
        match &mut self.child {
            None => Ok(()),
            Some(child) => {
                let status = child.wait()?;
                ensure!(status.success(), "rank 1 failed: {status}");
                Ok(())
            }
        }
    }

    /// Options with this rank's NICs: of each cable, rank 0 has the one end and rank 1 the other.
    pub fn options(&self, cables: usize) -> RdmaOptions {
        let nics = [["rxe1", "rxe3"], ["rxe2", "rxe4"]][self.rank];
        let devices = nics[..cables].iter().map(|nic| (*nic).to_owned()).collect();
        // 268 ms are long enough for a guest whose processors are taken away now and then. Where packets are lost, many
        // answers are waited for, and soft-RoCE takes 7 tries for "for ever".
        let (timeout, retries) = if self.loses { (14, 7) } else { (16, 6) };
        RdmaOptions { devices, timeout, retries, ..RdmaOptions::default() }
    }

    /// How this rank's first NIC is called in reports.
    pub fn via(&self) -> &'static str {
        ["rxe1 port 1", "rxe2 port 1"][self.rank]
    }

    /// A way to the other rank.
    pub fn exchange(&mut self) -> Outcome<Box<dyn Exchange>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let ports = self.bootstrap.all_gather(&port.to_le_bytes())?;
        let stream = if self.rank == 0 {
            let port = u16::from_le_bytes(ports[1][..].try_into()?);
            TcpStream::connect(("127.0.0.1", port))?
        } else {
            listener.accept()?.0
        };
        Ok(Box::new(Socket { peer: self.peer, stream }))
    }

    pub fn transport(&mut self, options: RdmaOptions) -> Outcome<RdmaTransport> {
        let way = self.exchange()?;
        self.transport_by(options, way)
    }

    /// The same, by this way.
    fn transport_by(
        &self,
        options: RdmaOptions,
        exchange: Box<dyn Exchange>,
    ) -> Outcome<RdmaTransport> {
        Ok(RdmaTransport::new(self.rank, 2, SEMAPHORES, options, exchange)?)
    }

    /// A transport that is connected, with memory that the peer may write.
    pub fn pair(&mut self, options: RdmaOptions) -> Outcome<Pair> {
        let way = self.exchange()?;
        self.pair_by(options, way)
    }

    /// The same, by this way.
    pub fn pair_by(&mut self, options: RdmaOptions, way: Box<dyn Exchange>) -> Outcome<Pair> {
        let mut transport = self.transport_by(options, way)?;
        let memory = Arc::new(Memory::new(BYTES));
        let mine = transport.register(MEMORY, memory.clone())?;
        let all = self.bootstrap.all_gather(&mine)?;
        transport.learn(self.peer, MEMORY, &all[self.peer])?;
        transport.connect(&[self.peer], LIMIT)?;
        Ok(Pair { peer: self.peer, transport, memory, posted: 0 })
    }

    /// What both ranks give.
    pub fn gather(&mut self, mine: &[u8]) -> Outcome<Vec<Vec<u8>>> {
        Ok(self.bootstrap.all_gather(mine)?)
    }

    /// Meets the other rank.
    pub fn barrier(&mut self) -> Outcome {
        Ok(self.bootstrap.barrier()?)
    }
}

/// A connected transport with its memory.
pub struct Pair {
    pub peer: usize,
    pub transport: RdmaTransport,
    pub memory: Arc<Memory>,
    pub posted: u64,
}

impl Pair {
    pub fn put(&mut self, from: u64, to: u64, bytes: u64, signal: Option<u32>) -> Outcome {
        let span = |offset| Span { memory: MEMORY, offset };
        let transfer = Transfer { from: span(from), to: span(to), bytes, signal };
        self.transport.post(self.peer, &transfer)?;
        self.posted += 1;
        Ok(())
    }

    /// A signal without data.
    pub fn signal(&mut self, semaphore: u32) -> Outcome {
        self.put(0, 0, 0, Some(semaphore))
    }

    /// Makes progress until it is so.
    pub fn until(&mut self, what: &str, is: impl Fn(&RdmaTransport) -> bool) -> Outcome {
        let start = Instant::now();
        let mut looks = 0_u32;
        while !is(&self.transport) {
            if !self.transport.progress().map_err(|fault| fault.to_string())? {
                looks += 1;
                if looks.is_multiple_of(200) {
                    std::thread::yield_now();
                }
                ensure!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
            }
        }
        Ok(())
    }

    pub fn wait(&mut self, semaphore: u32, count: u64) -> Outcome {
        let what = format!("signal {count} of semaphore {semaphore}");
        self.until(&what, |transport| transport.signals().seen(semaphore) >= count)
    }

    /// Waits until everything has left.
    pub fn flush(&mut self) -> Outcome {
        let (peer, posted) = (self.peer, self.posted);
        self.until("all to have left", |transport| transport.sent(peer) >= posted)
    }

    /// The fault that comes within `limit`, while `act` is called again and again.
    pub fn fault(
        &mut self,
        limit: Duration,
        mut act: impl FnMut(&mut Self) -> Outcome,
    ) -> Outcome<NetFault> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Err(fault) = self.transport.progress() {
                return Ok(fault);
            }
            act(self)?;
            std::thread::yield_now();
        }
        Err(format!("no fault within {limit:?}").into())
    }
}

/// An [`Exchange`] over a socket to the one peer: messages behind their length.
#[derive(Debug)]
struct Socket {
    peer: usize,
    stream: TcpStream,
}

impl Socket {
    fn read(&mut self, deadline: Instant) -> std::io::Result<Vec<u8>> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut len = [0; 2];
        self.stream.read_exact(&mut len)?;
        let mut message = vec![0; usize::from(u16::from_le_bytes(len))];
        self.stream.read_exact(&mut message)?;
        Ok(message)
    }
}

impl Exchange for Socket {
    fn give(&mut self, peer: usize, message: &[u8], _: Instant) -> Result<(), NetError> {
        let all = [&(message.len() as u16).to_le_bytes()[..], message].concat();
        self.stream.write_all(&all).map_err(|error| NetError::System {
            what: format!("a message to rank {peer}"),
            cause: error.to_string(),
        })
    }

    fn take(&mut self, peer: usize, deadline: Instant) -> Result<Vec<u8>, NetError> {
        assert_eq!(peer, self.peer);
        self.read(deadline).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                NetError::Missing { missing: vec![peer], timeout: LIMIT, hint: String::new() }
            }
            _ => NetError::Protocol { peer, what: error.to_string() },
        })
    }
}

/// Numbers that look random and are the same each time.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

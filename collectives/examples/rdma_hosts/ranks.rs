//! Four ranks, each a process, and the communicators that they make.

use std::process::{Child, Command};
use std::time::Duration;

use warpmesh::bootstrap::{Bootstrap, TcpBootstrap, TcpRoot, UniqueId};
use warpmesh::primitives::net::rdma::{RdmaOptions, SignalMode};
use warpmesh::primitives::net::{NetOptions, TransportChoice};
use warpmesh::{Builder, Communicator, Machine};

use super::ensure;
use super::harness::Outcome;

/// The host of each rank, and each host's NIC.
pub const HOSTS: [usize; WORLD] = [0, 0, 1, 1];
pub const NICS: [&str; 2] = ["rxe1", "rxe2"];
pub const WORLD: usize = 4;

/// For all that has to come within the guest's slow time.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Where the others find rank 0, and which rank a process is.
const ID: &str = "RDMA_HOSTS_ID";
const RANK: &str = "RDMA_HOSTS_RANK";

/// Which rank this process is.
pub fn number() -> usize {
    std::env::var(RANK).ok().and_then(|rank| rank.parse().ok()).unwrap_or(0)
}

/// One rank of four.
pub struct Job {
    pub rank: usize,
    bootstrap: TcpBootstrap,
    /// The other processes, on rank 0.
    children: Vec<Child>,
}

impl Job {
    /// Rank 0 starts the others as processes of this program, with the same argument.
    pub fn start(test: &str) -> Outcome<Self> {
        let rank = number();
        if let Ok(id) = std::env::var(ID) {
            let bootstrap = TcpBootstrap::join(&id.parse()?, rank, WORLD, LIMIT)?;
            return Ok(Self { rank, bootstrap, children: Vec::new() });
        }
        let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
        let start = |rank: usize| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--test", test]).env(ID, id.to_string()).env(RANK, rank.to_string());
            command.spawn()
        };
        let children = (1..WORLD).map(start).collect::<Result<_, _>>()?;
        Ok(Self { rank, bootstrap: TcpBootstrap::root(root, WORLD, LIMIT)?, children })
    }

    /// Waits for the other processes, which have to have succeeded.
    pub fn finish(mut self) -> Outcome {
        for (rank, child) in (1..).zip(&mut self.children) {
            let status = child.wait()?;
            ensure!(status.success(), "rank {rank}: {status}");
        }
        Ok(())
    }

    /// Waits for the last rank's process, which has to have been killed.
    pub fn bury_last(&mut self) -> Outcome {
        if let Some(mut last) = self.children.pop() {
            let status = last.wait()?;
            ensure!(!status.success(), "rank {} was to be killed", WORLD - 1);
        }
        Ok(())
    }

    pub fn host(&self) -> usize {
        HOSTS[self.rank]
    }

    /// Options with the NIC of this rank's host.
    pub fn options(&self) -> RdmaOptions {
        let devices = vec![NICS[self.host()].to_owned()];
        // 268 ms are long enough for a guest whose processors are taken away now and then.
        RdmaOptions { devices, timeout: 16, ..RdmaOptions::default() }
    }

    /// The same, with this way of signals.
    pub fn signals(&self, signals: SignalMode) -> RdmaOptions {
        RdmaOptions { signals: Some(signals), ..self.options() }
    }

    /// The same for a network that loses packets: many answers are waited for. (Soft-RoCE takes 7 tries for "for ever".)
    pub fn lossy(&self, signals: SignalMode) -> RdmaOptions {
        RdmaOptions { timeout: 14, retries: 7, ..self.signals(signals) }
    }

    /// A way for four ranks to meet.
    fn meeting(&mut self) -> Outcome<TcpBootstrap> {
        if self.rank == 0 {
            let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
            self.gather(id.to_string().as_bytes())?;
            return Ok(TcpBootstrap::root(root, WORLD, LIMIT)?);
        }
        let id: UniqueId = std::str::from_utf8(&self.gather(&[])?[0])?.parse()?;
        Ok(TcpBootstrap::join(&id, self.rank, WORLD, LIMIT)?)
    }

    /// A communicator by RDMA. Without measuring the machine, which others may use: so plans are the same each time.
    pub fn communicator(&mut self, options: RdmaOptions) -> Outcome<Communicator> {
        self.communicator_with(options, Communicator::builder().timeout(LIMIT))
    }

    /// The same, with other settings.
    pub fn communicator_with(
        &mut self,
        options: RdmaOptions,
        builder: Builder,
    ) -> Outcome<Communicator> {
        let bootstrap = self.meeting()?;
        let mark = format!("host {}", self.host());
        let net =
            NetOptions { transport: TransportChoice::Rdma, rdma: options, ..Default::default() };
        let builder = builder.machine(Machine::TYPICAL).host_mark(&mark).net(net);
        Ok(builder.connect(bootstrap)?)
    }

    /// What all ranks give.
    pub fn gather(&mut self, mine: &[u8]) -> Outcome<Vec<Vec<u8>>> {
        Ok(self.bootstrap.all_gather(mine)?)
    }

    /// Meets the other ranks.
    pub fn barrier(&mut self) -> Outcome {
        Ok(self.bootstrap.barrier()?)
    }
}

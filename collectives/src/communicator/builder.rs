//! Making a communicator.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use warpmesh_primitives::bootstrap::{Bootstrap, Launch, LocalBootstrap};
use warpmesh_primitives::node::Node;

use super::Communicator;
use super::plans::{Plans, Selection};
use crate::cost::Machine;
use crate::error::{Error, argument};
use crate::host::{Executor, Mail, Region};
use crate::machine;

/// Settings of a communicator. All ranks use the same.
#[derive(Clone, Debug)]
pub struct Builder {
    timeout: Duration,
    canonical: bool,
    algorithm: Option<String>,
    machine: Option<Machine>,
}

impl Default for Builder {
    fn default() -> Self {
        let timeout = Duration::from_secs(30);
        Self { timeout, canonical: false, algorithm: None, machine: None }
    }
}

/// Bytes of a rank's packet memory, scratch memory and point-to-point rings.
const PACKETS: usize = 2 << 20;
const SCRATCH: usize = 16 << 20;
const RINGS: usize = 4 << 20;
/// Largest scratch slot: a round should stay in a core's cache.
const SLOT: usize = 256 << 10;

/// What ranks compare when they meet.
#[derive(Serialize, Deserialize)]
struct Greeting {
    version: String,
    canonical: bool,
    algorithm: Option<String>,
    machine: Option<Machine>,
}

impl Builder {
    /// How long to wait for other ranks, when connecting and in every call. 30 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sums are left folds in rank order, rounded once, so that results do not depend on the
    /// algorithm, the message's size or the device. Off by default.
    pub fn canonical(mut self, canonical: bool) -> Self {
        self.canonical = canonical;
        self
    }

    /// Takes the plan of this name wherever the collective has one that can do the call.
    pub fn algorithm(mut self, name: &str) -> Self {
        self.algorithm = Some(name.to_owned());
        self
    }

    /// Uses these terms for predictions instead of measured ones.
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    pub(super) fn preferences(&self) -> (bool, Option<&str>) {
        (self.canonical, self.algorithm.as_deref())
    }

    /// Joins the ranks that the launcher's environment variables describe. Blocks until all have
    /// come, or fails after the timeout.
    pub fn from_env(self) -> Result<Communicator, Error> {
        let launch = Launch::from_env()?;
        let problem = "holds no rank: start with warpmesh-perf, torchrun, mpirun or srun, or set \
                       WARPMESH_RANK, WARPMESH_WORLD and WARPMESH_UNIQUE_ID";
        let launch = launch.ok_or_else(|| argument("from_env", "environment", problem))?;
        let bootstrap = launch.connect(self.timeout)?;
        self.connect(bootstrap)
    }

    /// Communicators for `world` threads of this process, one each. Blocks until all are ready.
    pub fn local(self, world: usize) -> Result<Vec<Communicator>, Error> {
        let bootstraps = LocalBootstrap::create(world, self.timeout)?;
        std::thread::scope(|scope| {
            let connect = |bootstrap| {
                let builder = self.clone();
                scope.spawn(move || builder.connect(bootstrap))
            };
            let threads: Vec<_> = bootstraps.into_iter().map(connect).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|result| result.unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        })
    }

    /// Connects the ranks of a bootstrap, which must be on one machine. Blocks until all have come,
    /// or fails after the timeout.
    pub fn connect(self, bootstrap: impl Bootstrap + 'static) -> Result<Communicator, Error> {
        let mut bootstrap: Box<dyn Bootstrap> = Box::new(bootstrap);
        let machine = self.greet(bootstrap.as_mut())?;
        let node = Node::connect(bootstrap.as_mut(), self.timeout)?;
        let (rank, world) = (node.rank(), node.world());
        let packets = Region::new(node.share(PACKETS, false)?);
        let scratch = Region::new(node.share(SCRATCH, false)?);
        let rings = Mail::memory_bytes(world, RINGS);
        let mail = Mail::new(node.clone(), node.share(rings, false)?);
        let selection = Selection {
            machine,
            canonical: self.canonical,
            only: self.algorithm.clone(),
            slot_limit: SLOT,
        };
        let plans = Plans::new((rank, world, node.cores()), selection, scratch, packets);
        let held = PACKETS + SCRATCH + rings + node.control_bytes();
        Ok(Communicator {
            executor: Executor::new(node.clone()),
            node,
            bootstrap,
            config: self,
            plans,
            mail,
            letters: Vec::new(),
            folds: super::folds(),
            sequence: 0,
            buffers: Vec::new(),
            next_buffer: 0,
            held,
        })
    }

    /// Compares the settings with all ranks and takes rank 0's terms of the machine.
    fn greet(&self, bootstrap: &mut dyn Bootstrap) -> Result<Machine, Error> {
        let first = bootstrap.rank() == 0;
        let terms = self.machine.or_else(|| first.then(machine::terms));
        let mine = Greeting {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            canonical: self.canonical,
            algorithm: self.algorithm.clone(),
            machine: if first { terms } else { None },
        };
        let bytes = serde_json::to_vec(&mine).map_err(crate::plan::PlanJsonError::from)?;
        let mut machine = None;
        for (peer, bytes) in bootstrap.all_gather(&bytes)?.iter().enumerate() {
            let theirs: Greeting = serde_json::from_slice(bytes).map_err(|error| {
                argument("connect", "peer", format!("rank {peer} sent no settings: {error}"))
            })?;
            let same = (&theirs.version, theirs.canonical, &theirs.algorithm)
                == (&mine.version, mine.canonical, &mine.algorithm);
            if !same {
                let problem = format!(
                    "of rank {peer} differ: version {}, canonical {}, algorithm {:?}",
                    theirs.version, theirs.canonical, theirs.algorithm
                );
                return Err(argument("connect", "settings", problem));
            }
            machine = machine.or(theirs.machine);
        }
        Ok(machine.unwrap_or(Machine::TYPICAL))
    }
}

//! Making a communicator.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use warpmesh_primitives::bootstrap::{Bootstrap, Launch, LocalBootstrap};
use warpmesh_primitives::net::NetOptions;
use warpmesh_primitives::node::{Node, NodeOptions};

use super::Communicator;
use super::plans::{Plans, Selection};
use crate::cost::Machine;
use crate::error::{Error, argument};
use crate::host::{Away, Executor, Mail, Region};
use crate::machine;

/// Settings of a communicator. All ranks use the same.
#[derive(Clone, Debug)]
pub struct Builder {
    timeout: Duration,
    canonical: bool,
    algorithm: Option<String>,
    machine: Option<Machine>,
    host_mark: Option<String>,
    net: Option<NetOptions>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            canonical: false,
            algorithm: None,
            machine: None,
            host_mark: None,
            net: None,
        }
    }
}

/// Bytes of a rank's packet memory, scratch memory and point-to-point rings.
const PACKETS: usize = 2 << 20;
const SCRATCH: usize = 16 << 20;
const RINGS: usize = 4 << 20;
/// Largest scratch slot: a round should stay in a core's cache.
const SLOT: usize = 256 << 10;
/// The same between hosts: fewer rounds, each of which takes trips.
const SLOT_BETWEEN_HOSTS: usize = 512 << 10;

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

    /// Ranks with different marks do not share memory, wherever they run, as if they were on different hosts. By default
    /// what `WARPMESH_HOST_ID` says.
    pub fn host_mark(mut self, mark: &str) -> Self {
        self.host_mark = Some(mark.to_owned());
        self
    }

    /// How ranks of several hosts reach each other; by default what the environment says, see
    /// [`NetOptions::from_env`].
    pub fn net(mut self, options: NetOptions) -> Self {
        self.net = Some(options);
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

    /// Connects the ranks of a bootstrap. Ranks of one host share memory; to those of other hosts connections are made when a
    /// call needs them. Blocks until all have come, or fails after the timeout.
    pub fn connect(self, bootstrap: impl Bootstrap + 'static) -> Result<Communicator, Error> {
        let mut bootstrap: Box<dyn Bootstrap> = Box::new(bootstrap);
        let machine = self.greet(bootstrap.as_mut())?;
        let options = NodeOptions {
            timeout: self.timeout,
            host_mark: self.host_mark.clone(),
            net: self.net.clone(),
        };
        let node = Node::connect_with(bootstrap.as_mut(), &options)?;
        let packets = Region::new(node.share(PACKETS, false)?, 0);
        let scratch = node.share(SCRATCH, false)?;
        let number = match node.spans_hosts() {
            true => node.publish(bootstrap.as_mut(), &scratch)?,
            false => 0,
        };
        let scratch = Region::new(scratch, number);
        let (mail, rings) = mail(&node, bootstrap.as_mut())?;
        let selection = Selection {
            machine,
            canonical: self.canonical,
            only: self.algorithm.clone(),
            slot_limit: if node.spans_hosts() { SLOT_BETWEEN_HOSTS } else { SLOT },
        };
        let plans = Plans::new(node.clone(), selection, scratch, packets);
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

/// The rings of this rank, and the bytes of memory that they take.
fn mail(node: &Arc<Node>, bootstrap: &mut dyn Bootstrap) -> Result<(Mail, usize), Error> {
    let bytes = Mail::memory_bytes(node.world(), RINGS);
    let rings = node.share(bytes, false)?;
    let Some(signals) = node.signals().cloned() else {
        return Ok((Mail::new(node.clone(), rings, None), bytes));
    };
    let outbox = node.share(bytes, false)?;
    let numbers = (node.publish(bootstrap, &outbox)?, node.publish(bootstrap, &rings)?);
    let away = Away { outbox, numbers, signals };
    Ok((Mail::new(node.clone(), rings, Some(away)), 2 * bytes))
}

//! What a launcher says about this process in its environment.
//!
//! | launcher | rank | world | local rank |
//! |---|---|---|---|
//! | our own | `WARPMESH_RANK` | `WARPMESH_WORLD` | `WARPMESH_LOCAL_RANK` |
//! | torchrun | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` |
//! | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK` |
//! | MPICH, Intel MPI | `PMI_RANK` | `PMI_SIZE` | `MPI_LOCALRANKID` |
//! | srun | `SLURM_PROCID` | `SLURM_NTASKS` | `SLURM_LOCALID` |
//!
//! The first launcher in this order whose rank or world is set counts: `mpirun` inside a Slurm job is Open MPI.
//! Rank 0 is found by, in this order, `WARPMESH_UNIQUE_ID`; `WARPMESH_ADDR` (host:port of rank 0); and under
//! torchrun `MASTER_ADDR` with `WARPMESH_PORT`, or `MASTER_PORT` + 1 since torchrun itself has that port.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use super::auth::Secret;
use super::check_world;
use super::error::BootstrapError;
use super::tcp::TcpBootstrap;
use super::unique_id::UniqueId;

/// Who this process is in its job, and how it finds rank 0.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Launch {
    /// Whose variables were read.
    pub launcher: Launcher,
    /// This process's rank, in `0..world`.
    pub rank: usize,
    /// The number of ranks, at least 1.
    pub world: usize,
    /// This process's place among those on its host, in `0..world`, where the launcher says it.
    pub local_rank: Option<usize>,
    /// How rank 0 is found.
    pub rendezvous: Rendezvous,
}

/// How the ranks of a job find rank 0.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Rendezvous {
    /// There is one rank.
    Alone,
    /// Everything is in the id.
    Id(UniqueId),
    /// By name, which is resolved when connecting.
    Address {
        /// Rank 0's host: a name or an address.
        host: String,
        /// The port that rank 0 listens at.
        port: u16,
        /// From `WARPMESH_SECRET`, or derived from what is known of the job.
        secret: Secret,
    },
}

/// A program that starts the ranks of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// warpmesh's own.
    Warpmesh,
    /// PyTorch's torchrun, and what sets the same variables.
    Torchrun,
    /// Open MPI's mpirun.
    OpenMpi,
    /// MPICH's or Intel MPI's mpirun.
    Pmi,
    /// Slurm's srun.
    Slurm,
}

/// A launcher's variables.
struct Group {
    launcher: Launcher,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    /// The same on every rank of a job, and another in another job.
    job: &'static [&'static str],
}

const GROUPS: [Group; 5] = [
    Group {
        launcher: Launcher::Warpmesh,
        rank: "WARPMESH_RANK",
        world: "WARPMESH_WORLD",
        local_rank: "WARPMESH_LOCAL_RANK",
        job: &[],
    },
    Group {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        job: &["TORCHELASTIC_RUN_ID", "MASTER_PORT"],
    },
    Group {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        job: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
    },
    Group {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        job: &[],
    },
    Group {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        world: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    },
];

const UNIQUE_ID: &str = "WARPMESH_UNIQUE_ID";
const ADDR: &str = "WARPMESH_ADDR";
const PORT: &str = "WARPMESH_PORT";
const SECRET: &str = "WARPMESH_SECRET";
const MASTER_ADDR: &str = "MASTER_ADDR";
const MASTER_PORT: &str = "MASTER_PORT";

impl Launch {
    /// Reads this process's environment; `None` where no launcher has set anything.
    ///
    /// # Errors
    ///
    /// As [`from_vars`](Self::from_vars).
    pub fn from_env() -> Result<Option<Self>, BootstrapError> {
        // A value that is no UTF-8 becomes one that no variable here may have, and is named as such.
        Self::from_vars(&|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
    }

    /// Reads the environment that `get` gives by name; `None` where no launcher has set anything.
    ///
    /// Without `WARPMESH_UNIQUE_ID` and `WARPMESH_SECRET` the secret is derived from variables that are
    /// particular to the job, and a warning is logged: it keeps strays out, not someone who knows them.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::MalformedVariable`], [`BootstrapError::MissingVariable`] where only a part of what
    /// belongs together is set, [`BootstrapError::NoRendezvous`], [`BootstrapError::RankOutOfRange`] and
    /// [`BootstrapError::WorldOutOfRange`].
    pub fn from_vars(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, BootstrapError> {
        let vars = Vars(get);
        let group = GROUPS.iter().find(|g| vars.has(g.rank) || vars.has(g.world));
        group.map_or_else(|| vars.nothing_set(), |group| vars.launch(group).map(Some))
    }

    /// Meets the other ranks: rank 0 listens, the others join.
    ///
    /// Blocks as [`TcpBootstrap::root`] and [`TcpBootstrap::join`] do, plus the time that it takes to
    /// resolve the name of rank 0's host, which `timeout` does not bound.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::Resolve`], and those of [`TcpBootstrap::from_id_as_root`] and
    /// [`TcpBootstrap::join`].
    pub fn connect(&self, timeout: Duration) -> Result<TcpBootstrap, BootstrapError> {
        let id = match &self.rendezvous {
            Rendezvous::Alone => return Ok(TcpBootstrap::alone(timeout)),
            Rendezvous::Id(id) => id.clone(),
            Rendezvous::Address { host, port, secret } => {
                UniqueId::with_secret(resolve(host, *port)?, secret.clone())?
            }
        };
        match self.rank {
            0 => TcpBootstrap::from_id_as_root(&id, self.world, timeout),
            rank => TcpBootstrap::join(&id, rank, self.world, timeout),
        }
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warpmesh => "the warpmesh launcher",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI's mpirun",
            Self::Pmi => "MPICH's mpirun",
            Self::Slurm => "srun",
        })
    }
}

struct Vars<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Vars<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// No rank and no world: right, unless something is set that says there should be.
    fn nothing_set(&self) -> Result<Option<Launch>, BootstrapError> {
        match [UNIQUE_ID, "WARPMESH_LOCAL_RANK"].into_iter().find(|name| self.has(name)) {
            Some(set) => Err(BootstrapError::MissingVariable { set, missing: "WARPMESH_RANK" }),
            None => Ok(None),
        }
    }

    fn launch(&self, group: &Group) -> Result<Launch, BootstrapError> {
        let missing = |set, missing| BootstrapError::MissingVariable { set, missing };
        let rank = self.number(group.rank)?;
        let world = self.number(group.world)?;
        let rank = rank.ok_or_else(|| missing(group.world, group.rank))?;
        let world = world.ok_or_else(|| missing(group.rank, group.world))?;
        check_world(world)?;
        if rank >= world {
            return Err(BootstrapError::RankOutOfRange { rank, world });
        }
        let local_rank = self.number(group.local_rank)?;
        if local_rank.is_some_and(|local| local >= world) {
            let value = self.get(group.local_rank).unwrap_or_default();
            return Err(malformed(group.local_rank, value, "below the number of ranks"));
        }
        let rendezvous = self.rendezvous(group, rank, world)?;
        Ok(Launch { launcher: group.launcher, rank, world, local_rank, rendezvous })
    }

    fn rendezvous(
        &self,
        group: &Group,
        rank: usize,
        world: usize,
    ) -> Result<Rendezvous, BootstrapError> {
        match self.unique_id()? {
            _ if world == 1 => return Ok(Rendezvous::Alone),
            Some(id) => return Ok(Rendezvous::Id(id)),
            None => {}
        }
        let (host, port) = match self.get(ADDR) {
            Some(addr) => split_addr(addr)?,
            None if group.launcher == Launcher::Torchrun => self.master()?,
            None => {
                return Err(BootstrapError::NoRendezvous { launcher: group.launcher, rank, world });
            }
        };
        Ok(Rendezvous::Address { host, port, secret: self.secret(group, port)? })
    }

    fn unique_id(&self) -> Result<Option<UniqueId>, BootstrapError> {
        let expected = "a unique id: wm1:<host address>:<port>:<64 hexadecimal digits>";
        // Not shown, not even in part: it holds the secret.
        let hidden = |e| match e {
            BootstrapError::IdVersion { .. } => e,
            _ => malformed(UNIQUE_ID, "(not shown)".into(), expected),
        };
        self.get(UNIQUE_ID).map(|text| text.parse().map_err(hidden)).transpose()
    }

    /// Where torchrun's own rendezvous is, one port further.
    fn master(&self) -> Result<(String, u16), BootstrapError> {
        let missing = |missing| BootstrapError::MissingVariable { set: "RANK", missing };
        let host = self.get(MASTER_ADDR).ok_or_else(|| missing(MASTER_ADDR))?;
        if host.is_empty() {
            return Err(malformed(MASTER_ADDR, host, "the name or address of rank 0's host"));
        }
        if let Some(port) = self.port(PORT, "a port, 1 to 65535", u16::MAX)? {
            return Ok((host, port));
        }
        let expected = "a port, 1 to 65534 (the one after it is used too, or WARPMESH_PORT)";
        let port = self.port(MASTER_PORT, expected, u16::MAX - 1)?;
        Ok((host, port.ok_or_else(|| missing(MASTER_PORT))? + 1))
    }

    fn secret(&self, group: &Group, port: u16) -> Result<Secret, BootstrapError> {
        match self.get(SECRET) {
            Some(secret) if secret.is_empty() => Err(malformed(SECRET, secret, "not empty")),
            Some(secret) => Ok(Secret::derive(&[b"given", secret.as_bytes()])),
            None => {
                tracing::warn!(
                    "{SECRET} is not set: the bootstrap's secret is derived from port {port} and {:?}, which \
                     protects against strays but not against someone on the host or its network who knows \
                     them; set {SECRET} to the same random text on every rank",
                    group.job
                );
                Ok(self.derived(group, port))
            }
        }
    }

    fn derived(&self, group: &Group, port: u16) -> Secret {
        let job: Vec<_> = group.job.iter().map(|name| (*name, self.get(name))).collect();
        let port = port.to_string();
        let mut parts = vec![&b"job"[..], port.as_bytes()];
        for (name, value) in &job {
            // A variable that is not set differs from an empty one.
            parts.extend(value.iter().flat_map(|value| [name.as_bytes(), value.as_bytes()]));
        }
        Secret::derive(&parts)
    }

    fn number(&self, name: &'static str) -> Result<Option<usize>, BootstrapError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let number = text.parse().map_err(|_| malformed(name, text, "a number, 0 or more"))?;
        Ok(Some(number))
    }

    fn port(
        &self,
        name: &'static str,
        expected: &'static str,
        last: u16,
    ) -> Result<Option<u16>, BootstrapError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(port) if (1..=last).contains(&port) => Ok(Some(port)),
            _ => Err(malformed(name, text, expected)),
        }
    }
}

/// The host and port of `WARPMESH_ADDR`; an IPv6 address has to be in brackets.
fn split_addr(text: String) -> Result<(String, u16), BootstrapError> {
    let parse = || {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|&port| port != 0)?;
        let usable = match text.parse::<SocketAddr>() {
            Ok(addr) => !addr.ip().is_unspecified(),
            Err(_) => {
                let odd = |c: char| c.is_whitespace() || ":[]/@".contains(c);
                !host.is_empty() && !host.contains(odd)
            }
        };
        usable.then(|| (host.trim_matches(['[', ']']).to_string(), port))
    };
    let expected = "host:port of rank 0, like node1:4321 or [fe80::1]:4321";
    parse().ok_or_else(|| malformed(ADDR, text, expected))
}

/// The first IPv4 address of a host, or else the first: the choice must not depend on the rank.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, BootstrapError> {
    let failed = |cause| BootstrapError::Resolve { host: host.to_string(), cause };
    let all: Vec<_> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    let first = all.iter().find(|addr| addr.is_ipv4()).or(all.first());
    first.copied().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

fn malformed(name: &'static str, value: String, expected: &'static str) -> BootstrapError {
    let value = value.chars().take(80).collect();
    BootstrapError::MalformedVariable { name, value, expected }
}

#[cfg(test)]
mod tests;

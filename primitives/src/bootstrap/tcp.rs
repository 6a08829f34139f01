//! A bootstrap for ranks that are processes, on one host or several, over TCP.
//!
//! All ranks register at rank 0, the root, and each gets a place in a tree of [`shape::FAN_OUT`] children a rank, over
//! which calls go up and down: the time of a call grows with the tree's height, and no rank keeps more than
//! fan-out + 1 connections. Each rank works through whatever connection is ready, in the calling thread and without
//! order among its peers; no thread stays behind after a call. A job of up to fan-out + 1 ranks is a star.
//!
//! In a larger one ranks connect to each other, too: each listens, on a port that the system chooses, at the address by
//! which it reaches the root, so no firewall or address translation may be between any two.
//!
//! Who finds a fault tells its neighbours in the tree, who tell theirs: every rank names the same culprit.

mod branch;
mod door;
mod gather;
mod knock;
mod link;
mod reception;
mod shape;
#[cfg(test)]
mod tests;
mod tree;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use self::door::Door;
use self::reception::Reception;
use self::shape::{FAN_OUT, Shape};
use self::tree::Tree;
use super::auth::Secret;
use super::error::BootstrapError;
use super::fault::Fault;
use super::unique_id::UniqueId;
use super::wire::Deadline;
use super::{Bootstrap, check_contribution, check_world};

/// The listening socket of a job's root, before the ranks join.
#[derive(Debug)]
pub struct TcpRoot {
    listener: TcpListener,
    id: UniqueId,
}

/// One rank of a job whose ranks are processes.
///
/// Dropping it closes its connections; the other ranks' next call names this rank.
#[derive(Debug)]
pub struct TcpBootstrap {
    rank: usize,
    world: usize,
    timeout: Duration,
    /// `None` for a rank that is alone.
    tree: Option<Tree>,
    secret: Option<Secret>,
    /// What ended it: the ranks are out of step and every later call has the same answer.
    failed: Option<Fault>,
}

impl TcpRoot {
    /// Listens at `addr` and makes the id by which the other ranks join, with a new secret.
    ///
    /// Port 0 takes a free port. Ranks may connect from here on; they are answered in
    /// [`TcpBootstrap::root`]. Does not block.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::NotConnectable`] for `0.0.0.0` and `::`, since the id has to name an address that
    /// others reach; [`BootstrapError::Bind`] where the system refuses the address.
    pub fn bind(addr: impl Into<SocketAddr>) -> Result<(Self, UniqueId), BootstrapError> {
        let addr = addr.into();
        if addr.ip().is_unspecified() {
            return Err(BootstrapError::NotConnectable { addr });
        }
        let listener = listen(addr).map_err(|cause| BootstrapError::Bind { addr, cause })?;
        let bound = listener.local_addr().map_err(|cause| BootstrapError::Bind { addr, cause })?;
        let id = UniqueId::new(bound)?;
        Ok((Self { listener, id: id.clone() }, id))
    }

    /// Listens where `id` says.
    fn bind_id(id: &UniqueId) -> Result<Self, BootstrapError> {
        // A launcher that tried out the port, or the job's last incarnation, may be about to let go of it.
        let deadline = Deadline::after(Duration::from_secs(1));
        loop {
            match listen(id.addr()) {
                Ok(listener) => {
                    return Ok(Self { listener, id: id.clone() });
                }
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && !deadline.passed() => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(cause) => {
                    return Err(BootstrapError::Bind { addr: id.addr(), cause });
                }
            }
        }
    }
}

impl TcpBootstrap {
    /// Makes this process rank 0 of `world` ranks and waits for the others, at most `timeout`. Every later
    /// collective call has the same timeout. The listening socket is closed on return.
    ///
    /// Connections that do not prove the secret are dropped and logged with their address; at most 64 of
    /// them are open at a time, for at most 5 s each.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::Missing`] names the ranks that did not come, [`BootstrapError::PeerClosed`] one that
    /// came and left. [`BootstrapError::DuplicateRank`], [`BootstrapError::WorldMismatch`] and
    /// [`BootstrapError::RankOutOfRange`] say what a rank that knows the secret has wrong. All ranks that
    /// have joined get the same error.
    pub fn root(root: TcpRoot, world: usize, timeout: Duration) -> Result<Self, BootstrapError> {
        check_world(world)?;
        Self::root_of(root, Shape { world, fan_out: FAN_OUT }, timeout)
    }

    fn root_of(root: TcpRoot, shape: Shape, timeout: Duration) -> Result<Self, BootstrapError> {
        let world = shape.world;
        if world == 1 {
            return Ok(Self::alone(timeout));
        }
        let TcpRoot { listener, id } = root;
        let door = Door::open(&listener, id.secret(), 0);
        let reception = Reception::new(door, id.secret(), id.addr(), shape);
        let tree = reception.admit_all(timeout).map_err(|fault| fault.error(world))?;
        let secret = Some(id.secret().clone());
        Ok(Self { rank: 0, world, timeout, tree: Some(tree), secret, failed: None })
    }

    /// As [`root`](Self::root), for an id that was made ahead of time: listens at the id's address, which
    /// has to be one of this host.
    ///
    /// # Errors
    ///
    /// Also [`BootstrapError::Bind`], after 1 s where the port is in use.
    pub fn from_id_as_root(
        id: &UniqueId,
        world: usize,
        timeout: Duration,
    ) -> Result<Self, BootstrapError> {
        check_world(world)?;
        if world == 1 {
            return Ok(Self::alone(timeout));
        }
        Self::root(TcpRoot::bind_id(id)?, world, timeout)
    }

    /// Joins the job `id` as `rank`, in `1..world`, and waits until every rank has joined.
    ///
    /// In a job of more than 17 ranks it listens for others until all have joined. Ranks may start in any order: as long as the root does not listen yet, this tries again. It waits at
    /// most `timeout` for the root to accept it. From then on the root's own timeout decides, since only the
    /// root can name who is missing: this rank waits for that at most `timeout` again, and a quarter (at
    /// most 1 s) more. Every later collective call has the same timeout.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::Unreachable`] where the root did not listen in time,
    /// [`BootstrapError::Refused`] and [`BootstrapError::Impostor`] where this rank or the root does not
    /// know the secret, [`BootstrapError::RootJoins`] for rank 0, and those of [`root`](Self::root).
    pub fn join(
        id: &UniqueId,
        rank: usize,
        world: usize,
        timeout: Duration,
    ) -> Result<Self, BootstrapError> {
        check_world(world)?;
        Self::join_as(id, rank, Shape { world, fan_out: FAN_OUT }, timeout)
    }

    fn join_as(
        id: &UniqueId,
        rank: usize,
        shape: Shape,
        timeout: Duration,
    ) -> Result<Self, BootstrapError> {
        let world = shape.world;
        if rank >= world {
            return Err(BootstrapError::RankOutOfRange { rank, world });
        }
        if world == 1 {
            return Ok(Self::alone(timeout));
        }
        if rank == 0 {
            return Err(BootstrapError::RootJoins);
        }
        let tree = branch::join(id, rank, shape, timeout)?;
        let secret = Some(id.secret().clone());
        Ok(Self { rank, world, timeout, tree: Some(tree), secret, failed: None })
    }

    /// A job of one rank, without any socket.
    pub(super) fn alone(timeout: Duration) -> Self {
        Self { rank: 0, world: 1, timeout, tree: None, secret: None, failed: None }
    }
}

impl Bootstrap for TcpBootstrap {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, BootstrapError> {
        check_contribution(mine)?;
        if let Some(fault) = &self.failed {
            return Err(fault.error(self.world));
        }
        let all = match &mut self.tree {
            None => Ok(vec![mine.to_vec()]),
            Some(tree) => tree.all_gather(mine, self.timeout),
        };
        all.map_err(|fault| self.failed.insert(fault).error(self.world))
    }

    fn secret(&self) -> Option<Secret> {
        self.secret.clone()
    }

    fn address(&self) -> Option<SocketAddr> {
        self.tree.as_ref().and_then(Tree::address)
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    // The standard library's queue of 128 makes ranks beyond that wait a second for their next attempt.
    rustix::net::listen(&listener, 4096)?;
    Ok(listener)
}

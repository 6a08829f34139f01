//! This library.

use std::ptr::NonNull;
use std::time::Duration;

use anyhow::{Context, Result};
use warpmesh::algorithms;
use warpmesh::bootstrap::Bootstrap;
use warpmesh::plan::Collective;
use warpmesh::{Builder, Communicator, DataType, Error, Group, RawCall, ReduceOp};

use super::{Backend, Buffer, Call, Kind, Refused};
use crate::layout::{Place, Test};

/// How the communicator is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The limit of every wait.
    pub timeout: Duration,
    /// Sums in rank order.
    pub canonical: bool,
    /// An algorithm by name, instead of the choice by cost.
    pub algorithm: Option<String>,
}

impl Settings {
    /// A builder with them.
    pub fn builder(&self) -> Builder {
        let builder = Communicator::builder().timeout(self.timeout).canonical(self.canonical);
        match &self.algorithm {
            Some(name) => builder.algorithm(name),
            None => builder,
        }
    }
}

/// A communicator as a backend.
pub struct Warpmesh {
    comm: Communicator,
    algorithm: Option<String>,
}

impl Warpmesh {
    /// Makes a communicator with the other ranks. Every rank calls it.
    pub fn connect(bootstrap: impl Bootstrap + 'static, settings: &Settings) -> Result<Self> {
        let comm = settings.builder().connect(bootstrap).context("making the communicator")?;
        Ok(Self { comm, algorithm: settings.algorithm.clone() })
    }

    /// Sends to the next rank and receives from the one before, at the same time.
    ///
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn exchange(&mut self, call: &Call) -> Result<()> {
        let world = self.comm.world();
        // SAFETY: as promised by the caller, until the group has ended.
        self.comm.group(|group| unsafe { exchange(group, call, world) })?;
        Ok(())
    }
}

/// Sends to the next rank and receives from the one before.
///
/// # Safety
/// The call's buffers are good until the group is done.
pub(super) unsafe fn exchange(
    group: &mut Group<'_>,
    call: &Call,
    world: usize,
) -> Result<(), Error> {
    let rank = group.rank();
    let (to, from) = ((rank + 1) % world, (rank + world - 1) % world);
    // SAFETY: the caller's.
    unsafe {
        group.send_raw(call.input, call.count, call.dtype, to)?;
        group.recv_raw(call.output, call.count, call.dtype, from)
    }
}

/// What the library cannot do is a refusal, everything else an error.
#[cold]
pub(super) fn told_apart(error: Error) -> anyhow::Error {
    match error {
        Error::NoPlan { .. } => Refused(error.to_string()).into(),
        error => error.into(),
    }
}

/// Name and whether it works in place, of the algorithms for a test: on one host, and between hosts.
fn algorithms_for(test: Test) -> impl Iterator<Item = (&'static str, bool)> {
    let here = algorithms::ALL.iter().map(|a| (a.collective, a.name, a.claims.in_place));
    let between = algorithms::NODES.iter().map(|a| (a.collective, a.name, a.claims.in_place));
    here.chain(between)
        .filter(move |(collective, ..)| Test::Collective(*collective) == test)
        .map(|(_, name, in_place)| (name, in_place))
}

/// The library takes another algorithm for what the named one does not do; a benchmark must not.
pub(super) fn unknown_algorithm(name: &str, test: Test) -> Option<String> {
    let all: Vec<_> = algorithms_for(test).map(|(known, _)| known).collect();
    (!all.contains(&name))
        .then(|| format!("no algorithm '{name}' for {test}; there are {}", all.join(", ")))
}

/// The library does not say what it will do in place, so that is taken from what the algorithm
/// claims.
pub(super) fn in_place_is_claimed(name: &str, test: Test) -> bool {
    algorithms_for(test).any(|(known, in_place)| known == name && in_place)
}

impl Backend for Warpmesh {
    fn kind(&self) -> Kind {
        Kind::Warpmesh
    }

    fn version(&self) -> String {
        format!("warpmesh {}", env!("CARGO_PKG_VERSION"))
    }

    fn refuses(&self, test: Test, _: DataType, _: ReduceOp, _: Place) -> Option<String> {
        unknown_algorithm(self.algorithm.as_deref()?, test)
    }

    fn substitutes(&mut self, call: &Call, place: Place, registered: bool) -> Option<String> {
        let name = self.algorithm.clone()?;
        let text = self.explain(call, registered)?;
        let chosen = text.lines().find_map(|line| line.strip_prefix("-> "));
        let chosen = chosen?.split_whitespace().next()?;
        if chosen != name {
            return Some(format!("'{name}' cannot do this, '{chosen}' would be taken"));
        }
        (place == Place::In && !in_place_is_claimed(&name, call.test))
            .then(|| format!("'{name}' does not work in place"))
    }

    fn promises_same_bits(&self) -> bool {
        true
    }

    fn alloc(&mut self, bytes: usize) -> Result<Option<Buffer>> {
        let mut memory = self.comm.alloc_bytes(bytes).context("allocating registered memory")?;
        let start = NonNull::new(memory.as_mut_ptr()).context("registered memory is at null")?;
        let len = memory.len();
        // SAFETY: good for `len` bytes while `memory` lives; nobody but the buffer sees it.
        Ok(Some(unsafe { Buffer::from_owner(start, len, memory) }))
    }

    #[inline]
    unsafe fn run(&mut self, call: &Call) -> Result<()> {
        let Test::Collective(collective) = call.test else {
            // SAFETY: the same contract.
            return unsafe { self.exchange(call) };
        };
        let raw = RawCall {
            collective,
            dtype: call.dtype,
            op: call.op,
            root: call.root,
            count: call.count,
            input: call.input,
            output: call.output,
        };
        // SAFETY: the same contract.
        unsafe { self.comm.call(&raw) }.map_err(told_apart)
    }

    fn barrier(&mut self) -> Result<()> {
        Ok(self.comm.barrier()?)
    }

    fn explain(&mut self, call: &Call, registered: bool) -> Option<String> {
        let collective = match call.test {
            Test::Collective(collective) => collective,
            Test::SendRecv => return None,
        };
        (collective != Collective::Barrier)
            .then(|| self.comm.explain(collective, call.dtype, call.count, registered))
    }

    fn held_bytes(&self) -> Option<usize> {
        Some(self.comm.held_bytes())
    }
}

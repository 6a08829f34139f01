//! Plans in MSCCL++'s JSON form.
//!
//! [`Plan::from_mscclpp`] translates an execution plan of MSCCL++ for all ranks into one of ours. The
//! two do not mean quite the same by their words:
//!
//! | MSCCL++ | here |
//! |---|---|
//! | thread block | worker |
//! | chunk of input or output | part of a block; a part for each share if thread blocks share it |
//! | chunk of scratch memory | slot, of scratch or of packet memory, by how it is written |
//! | `copy` `get` `put` `cpkt` `upkt` `ppkt` `rppkt` | a `Move` for each chunk |
//! | `re` `res` `rre` `rres` `repkt` `respkt` `recpkt` `recspkt` | a reducing `Move` for each chunk |
//! | `glres` `gstore` `gstorepkt` | a `Move` from or to the group, if that is all ranks |
//! | `signal` `wait` `rlxsignal` `rlxwait` | `Signal`, `Wait`: ours are never relaxed |
//! | `put` over a port, `pws`, `pwsf`, `flush` | `Put`, whose `then_signal` is the signal after it; `Flush` |
//! | `ppkt` `rppkt` over a port | `Put` of plain memory with a signal; who reads it waits for that |
//! | `barrier`, `sem_acquire`, `sem_release` | signals from a rank to itself |
//! | `nop` | nothing: a worker's instructions are in order |
//! | `pipeline` | its body, once: it only says in which pieces the same is done |
//!
//! **Sums.** The format leaves the order of a sum to its executor; here it is the order of the ranks
//! that the sources come from. A sum from which contributions are missing stays in the accumulation
//! type and in scratch memory until it is complete, also where the format has it in a user's buffer.
//! Which operator reduces is not the plan's matter but the call's; a plan with two is refused.
//!
//! **In place.** A plan for one buffer becomes one for two, that may be the same.
//!
//! **Closed.** An MSCCL++ plan may rely on its ranks being together when it starts, or on nothing
//! following at once. Ours may not: any plan can follow any. Where the verifier finds a race without
//! it, a barrier of all ranks is added before, after, or at both ends, the least that makes the
//! plan provable; and every worker ends with a flush of the ports that it used. A plan that is
//! not provable in any case is returned as it is, for [`verify`] to say why.
//!
//! **Refused**, by name and place: `glre` and `start`, which have no executable form; switch groups
//! that are not all ranks; `pws` and `pwsf` over memory channels and reads over port channels, which the
//! format does not have; semaphores whose count drifts from run to run; a channel with two signalling
//! or two waiting thread blocks; packets from one port's transfer that two thread blocks read;
//! collectives other than all-reduce, all-gather, reduce-scatter and all-to-all.
//!
//! The text is a stranger's: any input gives a plan or an error, and what it asks for is counted
//! before it is made.

mod close;
mod compact;
mod decode;
mod format;
mod layout;
mod meet;
mod memory;
mod names;
mod run;
mod semaphores;
#[cfg(test)]
mod tests;

use std::fmt;

use self::decode::decode;
use self::format::Document;
use self::layout::Layout;
use self::memory::Memory;
use self::run::Run;
use self::semaphores::{Meetings, Semaphores};
use super::Plan;
use super::verify::{Defect, Proof, verify};

/// Why an MSCCL++ plan could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MscclppError {
    /// Not JSON, or not such a plan; says line and column.
    #[error("not an MSCCL++ plan in JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A collective that is not one of the four.
    #[error(
        "the collective '{name}' is not read; allreduce, allgather, reducescatter and alltoall are"
    )]
    Collective {
        /// Its name in the plan.
        name: String,
    },
    /// The list of ranks is empty.
    #[error("the plan is for no ranks: 'gpus' is empty")]
    NoRanks,
    /// What a plan says of a rank cannot be.
    #[error("rank {rank}: {problem}")]
    Rank {
        /// Which rank.
        rank: usize,
        /// What is wrong.
        problem: String,
    },
    /// An operation is unknown, or cannot be done as it stands there.
    #[error("{at}: {problem}")]
    Operation {
        /// Where, and what it is called.
        at: OperationSite,
        /// What is wrong.
        problem: String,
    },
    /// A number that is beyond what any plan needs.
    #[error("{what}: {value} is more than {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        value: usize,
        /// The most that is read.
        limit: usize,
    },
}

/// A place in an MSCCL++ plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationSite {
    /// Whose program.
    pub rank: usize,
    /// Which thread block, by its id.
    pub threadblock: usize,
    /// Which operation of the thread block, from 0.
    pub op: usize,
    /// In a pipeline: which operation of its body.
    pub inner: Option<usize>,
    /// The operation's name.
    pub name: String,
}

impl fmt::Display for OperationSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, threadblock, op, inner, name } = self;
        write!(f, "rank {rank}, thread block {threadblock}, op {op}")?;
        if let Some(inner) = inner {
            write!(f, ".{inner}")?;
        }
        write!(f, " ({name})")
    }
}

/// The same, borrowed.
#[derive(Clone, Copy, Debug)]
struct At<'a> {
    rank: usize,
    threadblock: usize,
    op: usize,
    inner: Option<usize>,
    name: &'a str,
}

impl At<'_> {
    fn wrong(&self, problem: impl Into<String>) -> MscclppError {
        let at = OperationSite {
            rank: self.rank,
            threadblock: self.threadblock,
            op: self.op,
            inner: self.inner,
            name: self.name.to_owned(),
        };
        let problem = problem.into();
        MscclppError::Operation { at, problem }
    }
}

fn bounded(what: &'static str, value: usize, limit: usize) -> Result<(), MscclppError> {
    match value <= limit {
        true => Ok(()),
        false => Err(MscclppError::TooLarge { what, value, limit }),
    }
}

impl Plan {
    /// Translates an execution plan of MSCCL++, in JSON, for all ranks. The result is not proven: see
    /// [`verify`]. How it differs from the original is in the [module's documentation](self).
    ///
    /// # Errors
    ///
    /// [`MscclppError`] names the line, or the rank, thread block and operation.
    pub fn from_mscclpp(text: &str) -> Result<Self, MscclppError> {
        let document: Document = serde_json::from_str(text)?;
        let layout = Layout::new(&document)?;
        let blocks = decode(&document, &layout)?;
        let initial: Vec<Vec<usize>> = document
            .gpus
            .iter()
            .map(|gpu| gpu.semaphores.iter().map(|s| s.init_value).collect())
            .collect();
        let meetings = Meetings::new(&blocks, &initial)?;
        let mut run = Run::new(blocks, meetings, Memory::new(&layout));
        run.finish()?;
        let (plan, semaphores) = close::write(run, &document.name)?;
        Ok(closed(plan, &semaphores, layout.in_place))
    }
}

/// The plan with the least barriers around it that make it provable, in place if it is written for
/// that; without any if none do.
fn closed(plan: Plan, semaphores: &Semaphores, in_place: bool) -> Plan {
    let is_proven = |proof: Result<Proof, Defect>| match proof {
        Ok(proof) => proof.claims.in_place || !in_place,
        Err(_) => false,
    };
    let as_it_is = verify(&plan);
    let is_race = matches!(as_it_is, Err(Defect::Race { .. }));
    if !is_race && as_it_is.is_err() || is_proven(as_it_is) {
        return plan;
    }
    for (before, after) in [(false, true), (true, false), (true, true)] {
        let gated = close::with_barriers(&plan, semaphores, before, after);
        if let Some(gated) = gated.filter(|gated| is_proven(verify(gated))) {
            return gated;
        }
    }
    plan
}

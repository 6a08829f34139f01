//! Which plan a call on GPUs takes.
#![forbid(unsafe_code)]

use crate::algorithms::{self, Algorithm};
use crate::communicator::plans::{Query, serves};
use crate::cost::{Machine, Work};
use crate::op::OpKind;
use crate::plan::{Instruction, Program, Shape};

/// A plan, and what it costs.
pub(crate) struct Candidate {
    pub(crate) algorithm: &'static Algorithm,
    /// Whether it reaches into peers' buffers.
    pub(crate) registered: bool,
    /// Whether it passes unfinished sums on, which kernels keep as elements.
    partial: bool,
    work: Work,
}

/// GPUs joined by NVLink, in nanoseconds: what published measurements say of such machines, to be replaced by measured terms.
const NVLINK: Machine = Machine {
    hop: 1000.0,
    switch: 1000.0,
    message: 30.0,
    cached: 0.0012,
    uncached: 0.0012,
    packet: 0.004,
    shared: 0.0012,
    shared_far: 0.0012,
};

/// All built-in plans.
pub(crate) fn candidates(world: usize) -> Vec<Candidate> {
    let candidate = |algorithm: &&'static Algorithm| {
        // Ranks play at most two different parts: the root's and the others'.
        let programs = [0, 1 % world].map(|rank| algorithm.program(rank, world, 0));
        let parts = (algorithm.parts)(world);
        let work = |rank: usize| Work::of(&programs[rank], parts, (rank, world));
        let reaches = |rank: usize| Shape::reaches_user_memory(&programs[rank], rank);
        Candidate {
            algorithm,
            registered: reaches(0) || reaches(1 % world),
            partial: programs.iter().any(has_partial),
            work: work(0).max(work(1 % world)),
        }
    };
    // Packets that are polled in a peer's memory would keep the link busy with nothing.
    algorithms::ALL.iter().filter(|a| a.name != "one_shot_pull").map(candidate).collect()
}

/// The number of the plan that is predicted to be the fastest.
pub(crate) fn choose(
    candidates: &[Candidate],
    query: &Query,
    count: usize,
    canonical: bool,
    only: Option<&str>,
) -> Option<usize> {
    let able = |candidate: &Candidate| {
        candidate.algorithm.collective == query.collective
            && serves(&candidate.algorithm.claims, query, candidate.registered, canonical)
            && (!candidate.partial || sums_are_elements(query))
            // A contribution's factor is known only after a wait for its rank.
            && (query.op != OpKind::PreMulSum || (candidate.algorithm.packets)(2) == 0)
    };
    let mut numbers: Vec<_> = (0..candidates.len()).filter(|n| able(&candidates[*n])).collect();
    let named = |n: &usize| Some(candidates[*n].algorithm.name) == only;
    if numbers.iter().any(named) {
        numbers.retain(named);
    }
    let bytes = count * query.dtype.size();
    let time = |n: &usize| NVLINK.predict(&candidates[*n].work, bytes, 1, 1.0);
    numbers.into_iter().min_by(|a, b| time(a).total_cmp(&time(b)))
}

fn has_partial(program: &Program) -> bool {
    let partial = |instruction: &Instruction| match instruction {
        Instruction::Move { to, from, .. } => to.iter().chain(from).any(|place| place.partial),
        _ => false,
    };
    program.workers.iter().flatten().any(partial)
}

/// Whether an unfinished sum is what a finished one would be.
fn sums_are_elements(query: &Query) -> bool {
    !query.dtype.is_narrow_float() && !matches!(query.op, OpKind::Avg | OpKind::PreMulSum)
}

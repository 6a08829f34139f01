//! Which plan a call on GPUs takes.
#![forbid(unsafe_code)]

use super::switch::{AtHand, Needs};
use crate::algorithms::{self, Algorithm};
use crate::communicator::RawCall;
use crate::communicator::plans::{Query, serves};
use crate::cost::{Machine, Work};
use crate::op::OpKind;
use crate::plan::{Instruction, Program, Shape};

/// A plan, and what it costs.
pub(crate) struct Candidate {
    pub(crate) algorithm: &'static Algorithm,
    /// Whether it reaches into peers' buffers.
    pub(crate) registered: bool,
    /// What it addresses as the group's.
    pub(crate) switch: Needs,
    /// Whether it passes unfinished sums on, which kernels keep as elements.
    partial: bool,
    work: Work,
}

/// GPUs joined by NVLink, in nanoseconds: what published measurements say of such machines, to be replaced by measured terms.
const NVLINK: Machine = Machine {
    hop: 1000.0,
    switch: 1000.0,
    message: 30.0,
    cached: 0.0005,
    uncached: 0.0005,
    packet: 0.004,
    // Eight GPUs' all-reduce of large messages in place is 275 GB/s.
    switched: Some(0.0018),
    shared: 0.0019,
    shared_far: 0.0019,
    ..Machine::TYPICAL
};

/// All built-in plans; those that go through a switch if there is `multicast` memory.
pub(crate) fn candidates(world: usize, multicast: bool) -> Vec<Candidate> {
    let candidate = |algorithm: &&'static Algorithm| {
        // Ranks play at most two different parts: the root's and the others'.
        let programs = [0, 1 % world].map(|rank| algorithm.program(rank, world, 0));
        let parts = (algorithm.parts)(world);
        let work = |rank: usize| Work::of(&programs[rank], parts, (rank, world)).between_gpus();
        let reaches = |rank: usize| Shape::reaches_user_memory(&programs[rank], rank);
        Candidate {
            algorithm,
            registered: reaches(0) || reaches(1 % world),
            switch: Needs::of(&programs[0]),
            partial: programs.iter().any(has_partial),
            work: work(0).max(work(1 % world)),
        }
    };
    // Packets that are polled in a peer's memory would keep the link busy with nothing.
    let everywhere = algorithms::ALL.iter().filter(|a| a.name != "one_shot_pull");
    let switched = algorithms::MULTICAST.iter().filter(|_| multicast);
    everywhere.chain(switched).map(candidate).collect()
}

/// What a call asks of a plan; its addresses are not looked at.
pub(crate) fn query(call: &RawCall, registered: bool, in_place: bool) -> Query {
    let op = if call.collective.reduces() { call.op.kind() } else { OpKind::Sum };
    let RawCall { collective, dtype, .. } = *call;
    Query { collective, registered, in_place, dtype, op, uneven: false }
}

/// The number of the plan that is predicted to be the fastest.
pub(crate) fn choose(
    candidates: &[Candidate],
    query: &Query,
    at_hand: AtHand,
    count: usize,
    canonical: bool,
    only: Option<&str>,
) -> Option<usize> {
    let able = |candidate: &Candidate| {
        candidate.algorithm.collective == query.collective
            && serves(&candidate.algorithm.claims, query, candidate.registered, canonical)
            && candidate.switch.are_met(at_hand, query.dtype, query.op)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DataType;
    use crate::plan::Collective;

    /// The plan of an all-reduce over eight ranks.
    fn chosen(
        at_hand: AtHand,
        registered: bool,
        (dtype, op): (DataType, OpKind),
        bytes: usize,
    ) -> &'static str {
        let candidates = candidates(8, at_hand.memory);
        let collective = Collective::AllReduce;
        let query = Query { collective, registered, in_place: false, dtype, op, uneven: false };
        let number = choose(&candidates, &query, at_hand, bytes / dtype.size(), false, None);
        candidates[number.unwrap()].algorithm.name
    }

    const HALVES: (DataType, OpKind) = (DataType::F16, OpKind::Sum);
    const SWITCH: AtHand = AtHand { memory: true, input: true, output: true };

    #[test]
    fn the_switch_takes_small_messages_as_packets_and_large_ones_where_they_are() {
        assert_eq!(chosen(SWITCH, true, HALVES, 1 << 10), "one_shot_multicast");
        assert_eq!(chosen(SWITCH, true, HALVES, 16 << 10), "one_shot_multicast");
        assert_eq!(chosen(SWITCH, true, HALVES, 4 << 20), "nvls");
        assert_eq!(chosen(SWITCH, true, HALVES, 1 << 30), "nvls");
        // Registered, but not at the same place on all ranks.
        let memory = AtHand { memory: true, ..AtHand::default() };
        assert_eq!(chosen(memory, true, HALVES, 1 << 30), "direct");
        assert_eq!(chosen(memory, false, HALVES, 1 << 30), "nvls_staged");
    }

    #[test]
    fn what_the_switch_cannot_do_goes_without_it() {
        assert_eq!(chosen(AtHand::default(), true, HALVES, 1 << 10), "one_shot_packet");
        assert_eq!(chosen(AtHand::default(), true, HALVES, 1 << 30), "direct");
        assert_eq!(chosen(AtHand::default(), false, HALVES, 1 << 30), "staged");
        assert_eq!(chosen(SWITCH, true, (DataType::F16, OpKind::Avg), 1 << 30), "direct");
        assert_eq!(chosen(SWITCH, true, (DataType::I8, OpKind::Sum), 1 << 30), "direct");
        assert_eq!(chosen(SWITCH, true, (DataType::F32, OpKind::Max), 1 << 30), "direct");
        // Packets are added up by the ranks: any type, any operator.
        assert_eq!(chosen(SWITCH, true, (DataType::I8, OpKind::Prod), 64), "one_shot_multicast");
    }
}

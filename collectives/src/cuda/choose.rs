//! Which plan a call on GPUs takes.
#![forbid(unsafe_code)]

use super::emit::sums_are_elements;
use super::switch::{AtHand, Needs};
use crate::algorithms::{self, BuiltIn, Layout, NODES};
use crate::communicator::RawCall;
use crate::communicator::plans::{Query, serves};
use crate::cost::{Machine, Work};
use crate::op::OpKind;
use crate::plan::{Buffer, Instruction, Place, Program, Shape};

/// A plan, and what it costs.
pub(crate) struct Candidate {
    pub(crate) algorithm: BuiltIn,
    /// Whether it reaches into peers' buffers.
    pub(crate) registered: bool,
    /// What it addresses as the group's.
    pub(crate) switch: Needs,
    /// Whether slots hold unfinished sums.
    pub(crate) partial: bool,
    /// Whether packets do, which kernels keep as elements.
    packed_sums: bool,
    /// Whether it uses packets.
    packets: bool,
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

/// All built-in plans for a layout; those that go through a switch if there is `multicast` memory.
pub(crate) fn candidates(layout: &Layout, multicast: bool) -> Vec<Candidate> {
    if layout.nodes() > 1 {
        let nodes = NODES.iter().map(|algorithm| candidate(BuiltIn::Nodes(algorithm), layout));
        return nodes.flatten().collect();
    }
    // Packets that are polled in a peer's memory would keep the link busy with nothing.
    let everywhere = algorithms::ALL.iter().filter(|a| a.name != "one_shot_pull");
    let switched = algorithms::MULTICAST.iter().filter(|_| multicast);
    let all = everywhere.chain(switched);
    all.filter_map(|algorithm| candidate(BuiltIn::Node(algorithm), layout)).collect()
}

/// None if it has no kernel: several workers, or a put of something else than slots.
fn candidate(algorithm: BuiltIn, layout: &Layout) -> Option<Candidate> {
    let world = layout.world();
    // In one node ranks play at most two different parts: the root's and the others'.
    let different = if layout.nodes() > 1 { world } else { world.min(2) };
    let programs: Vec<_> = (0..different).map(|n| algorithm.program(n, layout, 0)).collect();
    let parts = algorithm.parts(layout);
    let work = |(rank, program): (usize, &Program)| {
        let work = Work::of(program, parts, (rank, world)).between_gpus();
        work.between_hosts(program, parts, rank, layout)
    };
    let numbered = || programs.iter().enumerate();
    let has = |test: fn(&Place) -> bool| programs.iter().flat_map(places).any(test);
    let packed = |place: &Place| place.buffer == Buffer::Packets;
    numbered().all(|(_, program)| has_kernel(program)).then(|| Candidate {
        algorithm,
        registered: numbered().any(|(rank, program)| Shape::reaches_user_memory(program, rank)),
        switch: Needs::of(&programs[0]),
        partial: has(|place| place.partial),
        packed_sums: has(|place| place.partial && place.buffer != Buffer::Scratch),
        packets: has(packed),
        work: numbered().map(work).reduce(Work::max).unwrap_or_default(),
    })
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
        candidate.algorithm.collective() == query.collective
            && serves(candidate.algorithm.claims(), query, candidate.registered, canonical)
            && candidate.switch.are_met(at_hand, query.dtype, query.op)
            && (!candidate.packed_sums || sums_are_elements(query.dtype, query.op))
            // A contribution's factor is known only after a wait for its rank.
            && (query.op != OpKind::PreMulSum || !candidate.packets)
    };
    let mut numbers: Vec<_> = (0..candidates.len()).filter(|n| able(&candidates[*n])).collect();
    let named = |n: &usize| Some(candidates[*n].algorithm.name()) == only;
    if numbers.iter().any(named) {
        numbers.retain(named);
    }
    let bytes = count * query.dtype.size();
    let time = |n: &usize| NVLINK.predict(&candidates[*n].work, bytes, 1, 1.0);
    numbers.into_iter().min_by(|a, b| time(a).total_cmp(&time(b)))
}

/// Operands of all moves.
fn places<'a>(program: &'a Program) -> impl Iterator<Item = &'a Place> {
    let operands = |instruction: &'a Instruction| match instruction {
        Instruction::Move { to, from, .. } => Some(to.iter().chain(from)),
        _ => None,
    };
    program.workers.iter().flatten().filter_map(operands).flatten()
}

fn has_kernel(program: &Program) -> bool {
    let puts = program.workers.iter().flatten().all(|instruction| match instruction {
        Instruction::Put { from, to, .. } => [from, to].iter().all(|p| p.buffer == Buffer::Scratch),
        _ => true,
    });
    puts && program.workers.len() < 2
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
        let candidates = candidates(&Layout::new(&[0; 8]), at_hand.memory);
        let collective = Collective::AllReduce;
        let query = Query { collective, registered, in_place: false, dtype, op, uneven: false };
        let number = choose(&candidates, &query, at_hand, bytes / dtype.size(), false, None);
        candidates[number.unwrap()].algorithm.name()
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

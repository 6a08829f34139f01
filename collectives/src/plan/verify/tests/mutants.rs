//! Planted defects: every built-in plan, changed in one place in every way that a mistake would.
//!
//! Each mutant must be rejected, for the right reason and where the mistake is, or lose a claim. The
//! few that do neither are right plans: they are listed by rule, with the reason, and the
//! list is exact.

use std::collections::BTreeSet;
use std::fmt;

use crate::algorithms::{Algorithm, all};
use crate::plan::verify::{Claims, Defect, Proof, Site, verify};
use crate::plan::{Buffer, Collective, Instruction, Place, Plan, Whose};

/// A way to plant a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    DropWait,
    DropSignal,
    SwapSources,
    DoubleSource,
    DropSource,
    DropTarget,
    SwapTargets,
    MergeSlots,
    WrongWriter,
    /// What follows a wait, before it.
    MoveBeforeWait,
    /// A signal, before what it tells of.
    SignalBeforeMove,
}

/// A changed plan and where the change is.
struct Mutant {
    kind: Kind,
    rank: usize,
    index: usize,
    /// The other end of what was changed: a peer, an instruction, a slot.
    other: usize,
    plan: Plan,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, rank, index, other, plan } = self;
        let shape = &plan.shape;
        write!(
            f,
            "{} {} of {}: {kind:?} at rank {rank}, instruction {index}, {other}",
            shape.collective, shape.name, shape.world
        )
    }
}

/// Changes one instruction of a rank's only worker.
fn changed(plan: &Plan, rank: usize, index: usize, change: impl FnOnce(&mut Instruction)) -> Plan {
    let mut plan = plan.clone();
    change(&mut plan.programs[rank].workers[0][index]);
    plan
}

/// All instructions, with their rank and index.
fn instructions(plan: &Plan) -> impl Iterator<Item = (usize, usize, &Instruction)> {
    plan.programs.iter().enumerate().flat_map(|(rank, program)| {
        assert_eq!(program.workers.len(), 1, "the built-in plans are of one worker");
        let list = program.workers[0].iter().enumerate();
        list.map(move |(index, instruction)| (rank, index, instruction))
    })
}

fn peers_mut(instruction: &mut Instruction) -> &mut Vec<usize> {
    match instruction {
        Instruction::Signal { to, .. } => to,
        Instruction::Wait { from, .. } => from,
        other => panic!("{other:?} has no peers"),
    }
}

fn sources_mut(instruction: &mut Instruction) -> &mut Vec<Place> {
    match instruction {
        Instruction::Move { from, .. } => from,
        other => panic!("{other:?} has no sources"),
    }
}

fn targets_mut(instruction: &mut Instruction) -> &mut Vec<Place> {
    match instruction {
        Instruction::Move { to, .. } => to,
        other => panic!("{other:?} has no destinations"),
    }
}

fn targets(instruction: &Instruction) -> &[Place] {
    match instruction {
        Instruction::Move { to, .. } => to,
        _ => &[],
    }
}

/// Whether it is a move of what other ranks touch too: all but the user's own buffers.
fn is_shared(rank: usize, instruction: &Instruction) -> bool {
    let shared = |place: &Place| !(place.is_user() && place.is_of(rank));
    match instruction {
        Instruction::Move { to, from, .. } => to.iter().chain(from).any(shared),
        _ => false,
    }
}

/// Removes an element; what is left without any is removed as a whole.
fn without<T>(
    plan: &Plan,
    (rank, index): (usize, usize),
    nth: usize,
    list: fn(&mut Instruction) -> &mut Vec<T>,
) -> Plan {
    let mut plan = plan.clone();
    let program = &mut plan.programs[rank].workers[0];
    let elements = list(&mut program[index]);
    elements.remove(nth);
    if elements.is_empty() {
        program.remove(index);
    }
    plan
}

fn mutants(plan: &Plan) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (rank, index, instruction) in instructions(plan) {
        let mut plant = |kind, other, plan| {
            mutants.push(Mutant { kind, rank, index, other, plan });
        };
        let at = (rank, index);
        match instruction {
            Instruction::Wait { from, .. } => {
                for (nth, peer) in from.iter().enumerate() {
                    plant(Kind::DropWait, *peer, without(plan, at, nth, peers_mut));
                }
            }
            Instruction::Signal { to, .. } => {
                for (nth, peer) in to.iter().enumerate() {
                    plant(Kind::DropSignal, *peer, without(plan, at, nth, peers_mut));
                }
            }
            Instruction::Move { to, from, reduce, .. } => {
                for nth in 0..to.len() {
                    plant(Kind::DropTarget, nth, without(plan, at, nth, targets_mut));
                }
                for (nth, source) in from.iter().enumerate() {
                    if let Some(writer) = source.writer {
                        let wrong = (writer + 1) % plan.shape.world;
                        let plan = changed(plan, rank, index, |instruction| {
                            sources_mut(instruction)[nth].writer = Some(wrong);
                        });
                        plant(Kind::WrongWriter, nth, plan);
                    }
                }
                if *reduce {
                    plant_in_sum(plan, at, from.len(), &mut plant);
                }
            }
            other => panic!("the built-in plans have no {other:?}"),
        }
        let next = plan.programs[rank].workers[0].get(index + 1);
        let kind = match (instruction, next) {
            (Instruction::Wait { .. }, Some(next)) if is_shared(rank, next) => Kind::MoveBeforeWait,
            (first, Some(Instruction::Signal { .. })) if is_shared(rank, first) => {
                Kind::SignalBeforeMove
            }
            _ => continue,
        };
        let mut plan = plan.clone();
        plan.programs[rank].workers[0].swap(index, index + 1);
        plant(kind, index + 1, plan);
    }
    mutants.extend(swapped_targets(plan));
    mutants.extend(merged_slots(plan));
    mutants
}

fn plant_in_sum(
    plan: &Plan,
    at: (usize, usize),
    sources: usize,
    plant: &mut impl FnMut(Kind, usize, Plan),
) {
    for nth in 0..sources {
        let doubled = changed(plan, at.0, at.1, |instruction| {
            let sources = sources_mut(instruction);
            sources.push(sources[nth]);
        });
        plant(Kind::DoubleSource, nth, doubled);
        if sources > 1 {
            plant(Kind::DropSource, nth, without(plan, at, nth, sources_mut));
        }
        if nth + 1 < sources {
            let swapped = changed(plan, at.0, at.1, |instruction| {
                sources_mut(instruction).swap(nth, nth + 1);
            });
            plant(Kind::SwapSources, nth, swapped);
        }
    }
}

/// The destinations of two of a rank's instructions, exchanged.
fn swapped_targets(plan: &Plan) -> Vec<Mutant> {
    let all: Vec<_> = instructions(plan).collect();
    let mut mutants = Vec::new();
    for (rank, first, a) in &all {
        let later = all.iter().filter(|(r, i, _)| r == rank && i > first);
        for (_, second, b) in later {
            if let (Some(x), Some(y)) = (targets(a).first(), targets(b).first())
                && x != y
            {
                let mut plan = plan.clone();
                let list = &mut plan.programs[*rank].workers[0];
                targets_mut(&mut list[*first])[0] = *y;
                targets_mut(&mut list[*second])[0] = *x;
                mutants.push(Mutant {
                    kind: Kind::SwapTargets,
                    rank: *rank,
                    index: *first,
                    other: *second,
                    plan,
                });
            }
        }
    }
    mutants
}

/// Two slots of a rank's memory that are both in use, made one. Of memory that is used as the group's, those of all ranks:
/// the group has one slot of a number.
fn merged_slots(plan: &Plan) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (buffer, slots) in
        [(Buffer::Scratch, plan.shape.scratch), (Buffer::Packets, plan.shape.packets)]
    {
        let of_group = |place: &Place| place.whose == Whose::Group && place.buffer == buffer;
        let mut places =
            instructions(plan).flat_map(|(_, _, i)| targets(i).iter().chain(sources(i)));
        let grouped = places.any(of_group);
        for rank in 0..if grouped { 1 } else { plan.shape.world } {
            let is = |place: &Place, slot| {
                let whose = grouped || place.whose == Whose::Rank(rank);
                whose && place.buffer == buffer && place.index == slot
            };
            let used: Vec<usize> = (0..slots)
                .filter(|slot| {
                    let mut places = instructions(plan).flat_map(|(_, _, i)| targets(i));
                    places.any(|place| is(place, *slot))
                })
                .collect();
            for (i, first) in used.iter().enumerate() {
                for second in &used[i + 1..] {
                    let mut plan = plan.clone();
                    let lists = plan.programs.iter_mut().map(|p| &mut p.workers[0]);
                    for instruction in lists.flatten() {
                        if let Instruction::Move { to, from, .. } = instruction {
                            let places = to.iter_mut().chain(from);
                            places
                                .filter(|place| is(place, *second))
                                .for_each(|place| place.index = *first);
                        }
                    }
                    mutants.push(Mutant {
                        kind: Kind::MergeSlots,
                        rank,
                        index: *first,
                        other: *second,
                        plan,
                    });
                }
            }
        }
    }
    mutants
}

/// Why a mutant is as right as the plan that it was made of; None if it should not be.
fn equivalent(mutant: &Mutant) -> Option<&'static str> {
    let shape = &mutant.plan.shape;
    let world = shape.world;
    let list = &mutant.plan.programs[mutant.rank].workers[0];
    match (shape.collective.name(), shape.name.as_str(), mutant.kind) {
        ("all_reduce", "ring", Kind::SwapSources) => {
            Some("the ring claims no order, and one rank sums a part for all")
        }
        ("all_reduce", "ring", Kind::MergeSlots) if mutant.other >= mutant.index + world => {
            Some("between the two steps the part has gone all around, past the slot's reader")
        }
        ("all_gather" | "broadcast", "packet" | "packet_multicast", Kind::SwapTargets)
            if sources(&list[mutant.index]) == sources(&list[mutant.other]) =>
        {
            Some("both instructions copy the same input, so their destinations may change places")
        }
        ("reduce_scatter", "nvls_staged", Kind::SignalBeforeMove)
            if mutant.index + 1 == mutant.other && list[mutant.other..].len() == 2 =>
        {
            Some(
                "the last barrier is for ranks that then let go of their memory; halves do the rest",
            )
        }
        _ => None,
    }
}

fn sources(instruction: &Instruction) -> &[Place] {
    match instruction {
        Instruction::Move { from, .. } => from,
        _ => &[],
    }
}

/// Whether a rejection is the one for this mistake, and says where it is.
fn is_to_the_point(mutant: &Mutant, defect: &Defect) -> bool {
    let Mutant { kind, rank, index, other, .. } = mutant;
    let is_there = |at: &Site| at.rank == *rank && at.instruction == Some(*index);
    let is_of =
        |at: &Site, with: &str| at.rank == *rank || *with == format!("rank {rank} worker 0");
    let merged = [format!("packets[{index}]"), format!("scratch[{index}]")];
    let names = |text: &str| merged.iter().any(|slot| text.contains(slot));
    match (kind, defect) {
        (Kind::DropWait, Defect::UnmatchedSignal { from, to, .. }) => from == other && to == rank,
        (
            Kind::DropWait | Kind::MoveBeforeWait | Kind::SignalBeforeMove,
            Defect::Race { at, other: with, .. },
        ) => is_of(at, with),
        // The simulation came to the move before the one that should come first.
        (Kind::MoveBeforeWait, Defect::Instruction { at, problem }) => {
            is_there(at) && problem.contains("holds nothing yet")
        }
        (Kind::DropWait, Defect::WrongResult { rank: at, .. }) => at == rank,
        // In the ring, where each step has the same semaphore, the next step's wait is taken.
        (Kind::DropWait | Kind::SwapTargets, Defect::Instruction { problem, .. }) => {
            problem.contains("part")
                || problem.contains("holds nothing")
                || problem.contains("is written")
        }
        (Kind::DropSignal, Defect::Deadlock { waiting }) => {
            waiting.iter().any(|one| one.starts_with(&format!("rank {other}, ")))
        }
        (Kind::DoubleSource, Defect::Instruction { problem, .. }) => {
            problem.contains("contributions")
        }
        (
            Kind::DropSource | Kind::DropTarget | Kind::SwapTargets | Kind::MergeSlots,
            Defect::WrongResult { .. },
        ) => true,
        (Kind::DropTarget, Defect::Instruction { problem, .. }) => problem.contains("nothing"),
        (Kind::DropTarget | Kind::SwapTargets, Defect::Deadlock { .. }) => true,
        (Kind::SwapTargets, Defect::Race { .. } | Defect::UnreadPacket { .. }) => true,
        (Kind::MergeSlots, Defect::Instruction { problem, .. }) => {
            problem.contains("part") || names(problem)
        }
        (Kind::MergeSlots, Defect::Race { place, .. } | Defect::UnreadPacket { place, .. }) => {
            names(place)
        }
        (Kind::WrongWriter, Defect::Instruction { at, problem }) => {
            is_there(at) && problem.contains("is written by rank")
        }
        _ => false,
    }
}

/// What became of a mutant: None if it is one to be found and was found.
fn complaint(mutant: &Mutant, before: Claims) -> Option<String> {
    let expected = equivalent(mutant);
    match verify(&mutant.plan) {
        Ok(Proof { claims }) if claims == before => match expected {
            Some(_) => None,
            None => Some(format!("{mutant}: is not found")),
        },
        Ok(Proof { claims }) if before.cover(&claims) && expected.is_none() => None,
        // Of two ranks, the other order of a sum may be the rank order.
        Ok(Proof { claims })
            if claims.cover(&before) && matches!(mutant.kind, Kind::SwapSources) =>
        {
            None
        }
        Ok(_) => Some(format!("{mutant}: has other claims")),
        Err(defect) if expected.is_some() => Some(format!("{mutant}: is right, but: {defect}")),
        Err(defect) if !is_to_the_point(mutant, &defect) => Some(format!("{mutant}: {defect}")),
        Err(_) => None,
    }
}

/// The reasons for which some mutants are right.
fn every_mutant_is_found(
    algorithms: impl Iterator<Item = &'static Algorithm>,
) -> BTreeSet<&'static str> {
    let mut complaints = Vec::new();
    let mut reasons = BTreeSet::new();
    for algorithm in algorithms {
        let roots = if algorithm.collective.is_rooted() { 2 } else { 1 };
        for (world, root) in (2..=5).flat_map(|world| (0..roots).map(move |root| (world, root))) {
            let plan = algorithm.plan(world, root);
            let claims = verify(&plan).unwrap().claims;
            let found = mutants(&plan);
            assert!(!found.is_empty(), "{:?}", plan.shape);
            reasons.extend(found.iter().filter_map(equivalent));
            complaints.extend(found.iter().filter_map(|mutant| complaint(mutant, claims)));
        }
    }
    assert!(
        complaints.is_empty(),
        "{} mutants:\n{}",
        complaints.len(),
        complaints[..complaints.len().min(100)].join("\n")
    );
    reasons
}

#[test]
fn every_mutant_of_an_all_reduce_is_found() {
    let reasons = every_mutant_is_found(all().filter(|a| a.collective == Collective::AllReduce));
    assert_eq!(reasons.len(), 2, "each rule for right mutants is needed: {reasons:?}");
}

#[test]
fn every_mutant_of_another_collective_is_found() {
    let reasons = every_mutant_is_found(all().filter(|a| a.collective != Collective::AllReduce));
    assert_eq!(reasons.len(), 2, "each rule for right mutants is needed: {reasons:?}");
}

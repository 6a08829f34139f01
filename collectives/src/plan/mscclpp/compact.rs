//! Slots are numbered over the whole plan while it is gone through; here each rank gets as many as
//! it uses. Those that the group reaches have the same number at all ranks, and come first.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Buffer, Instruction, Place, Plan, Whose};

/// Renumbers the slots of a buffer, in the order that `order` gives to each, and says how many a
/// rank has at most.
pub(super) fn compact(plan: &mut Plan, buffer: Buffer, order: &[usize]) -> usize {
    let mut group = BTreeSet::new();
    let mut own = vec![BTreeSet::new(); plan.shape.world];
    each_place(plan, buffer, |place| {
        let slot = (order[place.index], place.index);
        match place.whose {
            Whose::Group => group.insert(slot),
            Whose::Rank(rank) => own[rank].insert(slot),
        };
    });
    let shared = numbered(&group, 0);
    let mut count = group.len();
    let mut numbers = Vec::with_capacity(own.len());
    for slots in own {
        let apart: BTreeSet<_> = slots.difference(&group).copied().collect();
        count = count.max(group.len() + apart.len());
        numbers.push(numbered(&apart, group.len()));
    }
    each_place(plan, buffer, |place| {
        let apart = match place.whose {
            Whose::Group => None,
            Whose::Rank(rank) => numbers[rank].get(&place.index),
        };
        if let Some(number) = apart.or_else(|| shared.get(&place.index)) {
            place.index = *number;
        }
    });
    count
}

fn numbered(slots: &BTreeSet<(usize, usize)>, first: usize) -> BTreeMap<usize, usize> {
    let slots = slots.iter().map(|(_, slot)| *slot);
    slots.zip(first..).collect()
}

fn each_place(plan: &mut Plan, buffer: Buffer, mut visit: impl FnMut(&mut Place)) {
    let programs = plan.programs.iter_mut();
    for instruction in programs.flat_map(|program| program.workers.iter_mut().flatten()) {
        let places: Vec<&mut Place> = match instruction {
            Instruction::Move { to, from, .. } => to.iter_mut().chain(from).collect(),
            Instruction::Put { to, from, .. } => vec![to, from],
            _ => Vec::new(),
        };
        places.into_iter().filter(|place| place.buffer == buffer).for_each(&mut visit);
    }
}

//! Symbolic values: expressions over the ranks' inputs.

use std::collections::HashMap;

use super::super::Shape;

/// An interned expression; equal ids are equal expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ValueId(u32);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// A part of a rank's input block, in one round of one call.
    Input { call: usize, round: usize, rank: usize, block: usize, part: usize },
    /// A left fold, in the accumulation type.
    Sum(Vec<ValueId>),
    /// A sum of the switch's, in an order of its own: another load of the same may give other bits. Which load it is.
    Switched(Vec<ValueId>, usize),
    /// A sum rounded to the element type.
    Finished(ValueId),
}

/// What the outputs of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Findings {
    pub(crate) same_bits: bool,
    pub(crate) canonical: bool,
    pub(crate) finishes_once: bool,
    pub(crate) contributors: bool,
    pub(crate) synchronises: bool,
}

/// Bounds the memory for sums, in terms, that a plan from a stranger can ask for.
const MAX_TERMS: usize = 1 << 26;
/// Bounds the recursion over sums of sums.
const MAX_DEPTH: usize = 1000;

impl Findings {
    /// What is found in both of two runs.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            same_bits: self.same_bits && other.same_bits,
            canonical: self.canonical && other.canonical,
            finishes_once: self.finishes_once && other.finishes_once,
            contributors: self.contributors && other.contributors,
            synchronises: self.synchronises && other.synchronises,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Values {
    all: Vec<Value>,
    /// Of each: the inputs in it, counted as often as they are in it, and how deeply they lie.
    extents: Vec<(usize, usize)>,
    terms: usize,
    ids: HashMap<Value, ValueId>,
}

impl Values {
    pub(super) fn intern(&mut self, value: Value) -> ValueId {
        if let Some(id) = self.ids.get(&value) {
            return *id;
        }
        let id = ValueId(self.all.len() as u32);
        let extent = match &value {
            Value::Input { .. } => (1, 0),
            Value::Finished(inner) => self.extent(*inner),
            Value::Sum(terms) | Value::Switched(terms, _) => {
                self.terms += terms.len();
                let extents = terms.iter().map(|term| self.extent(*term));
                extents.fold((0, 0), |all, one| (all.0 + one.0, all.1.max(one.1 + 1)))
            }
        };
        self.extents.push(extent);
        self.all.push(value.clone());
        self.ids.insert(value, id);
        id
    }

    fn get(&self, id: ValueId) -> &Value {
        &self.all[id.0 as usize]
    }

    fn extent(&self, id: ValueId) -> (usize, usize) {
        self.extents[id.0 as usize]
    }

    /// The left fold of the sources; each says whether it is an unfinished sum. An unfinished sum
    /// in front is continued, so `(a + b) + c` is the same expression in one step or two; one of a single
    /// contribution is that contribution, wherever it stands.
    ///
    /// No result has more than one contribution of each rank. A sum of more is refused at once: by
    /// adding sums to themselves, a short plan could write one that does not fit in memory.
    pub(super) fn fold(
        &mut self,
        sources: &[(ValueId, bool)],
        world: usize,
    ) -> Result<ValueId, String> {
        let extents = sources.iter().map(|(id, _)| self.extent(*id));
        let (contributions, depth) =
            extents.fold((0, 0), |all, one| (all.0 + one.0, all.1.max(one.1)));
        if contributions > world {
            return Err(format!("reduces {contributions} contributions; there are {world} ranks"));
        }
        if self.terms > MAX_TERMS || depth > MAX_DEPTH {
            return Err("the plan's sums are too long, or too deep, to be verified".into());
        }
        let mut terms = Vec::with_capacity(sources.len());
        for (i, (id, partial)) in sources.iter().enumerate() {
            match self.get(*id) {
                Value::Sum(inner) if *partial && (i == 0 || inner.len() == 1) => {
                    terms.extend(inner.iter().copied());
                }
                _ => terms.push(*id),
            }
        }
        Ok(self.intern(Value::Sum(terms)))
    }

    /// What the switch makes of all ranks' elements in a load that no other is like.
    pub(super) fn switched(&mut self, terms: Vec<ValueId>) -> ValueId {
        let load = self.all.len();
        self.intern(Value::Switched(terms, load))
    }

    /// Whether a finished sum enters this one as if it were a contribution.
    fn contains_finished(&self, id: ValueId) -> bool {
        match self.get(id) {
            Value::Input { .. } => false,
            Value::Finished(_) => true,
            Value::Sum(terms) | Value::Switched(terms, _) => {
                terms.iter().any(|term| self.contains_finished(*term))
            }
        }
    }

    /// The rank whose input a value is, if it is one.
    pub(super) fn contributor(&self, id: ValueId) -> Option<usize> {
        match self.get(id) {
            Value::Input { rank, .. } => Some(*rank),
            _ => None,
        }
    }

    fn leaves(&self, id: ValueId, into: &mut Vec<ValueId>) {
        match self.get(id) {
            Value::Input { .. } => into.push(id),
            Value::Finished(inner) => self.leaves(*inner, into),
            Value::Sum(terms) | Value::Switched(terms, _) => {
                terms.iter().for_each(|term| self.leaves(*term, into));
            }
        }
    }

    /// Checks an output against what the collective promises; says whether it is canonical and
    /// finished once.
    pub(super) fn check(
        &mut self,
        shape: &Shape,
        seen: ValueId,
        chunk: Chunk,
    ) -> Result<(bool, bool), String> {
        let mut expected = Vec::new();
        for (rank, block) in sources_of(shape, chunk) {
            let Chunk { call, round, part, .. } = chunk;
            expected.push(self.intern(Value::Input { call, round, rank, block, part }));
        }
        if !shape.collective.reduces() {
            return match seen == expected[0] {
                true => Ok((true, true)),
                false => {
                    Err(format!("holds {} instead of {}", self.show(seen), self.show(expected[0])))
                }
            };
        }
        let Value::Finished(sum) = *self.get(seen) else {
            return Err(format!("holds {}, which is not a finished reduction", self.show(seen)));
        };
        let canonical = self.intern(Value::Sum(expected.clone()));
        let mut leaves = Vec::new();
        self.leaves(sum, &mut leaves);
        leaves.sort_unstable();
        expected.sort_unstable();
        if leaves != expected {
            return Err(format!("holds {} instead of {}", self.show(sum), self.show(canonical)));
        }
        Ok((sum == canonical, !self.contains_finished(sum)))
    }

    /// For messages: `in0 + in1`, with blocks and parts where they matter.
    pub(super) fn show(&self, id: ValueId) -> String {
        match self.get(id) {
            Value::Input { call, round, rank, block, part } => {
                format!("rank {rank}'s in[{block}].{part} of call {call} round {round}")
            }
            Value::Finished(inner) => self.show(*inner),
            Value::Sum(terms) | Value::Switched(terms, _) => {
                let terms: Vec<_> = terms.iter().map(|term| self.show(*term)).collect();
                format!("({})", terms.join(" + "))
            }
        }
    }
}

/// A part of an output block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) call: usize,
    pub(super) round: usize,
    pub(super) rank: usize,
    pub(super) block: usize,
    pub(super) part: usize,
}

/// The (rank, input block) that an output block is made of, in canonical order.
fn sources_of(shape: &Shape, chunk: Chunk) -> Vec<(usize, usize)> {
    use super::super::Collective::*;
    let Chunk { rank, block, .. } = chunk;
    match shape.collective {
        AllReduce | Reduce => (0..shape.world).map(|source| (source, 0)).collect(),
        ReduceScatter => (0..shape.world).map(|source| (source, rank)).collect(),
        AllGather | Gather => vec![(block, 0)],
        Broadcast => vec![(shape.root, 0)],
        AllToAll => vec![(block, rank)],
        Scatter => vec![(shape.root, rank)],
        Barrier => Vec::new(),
    }
}

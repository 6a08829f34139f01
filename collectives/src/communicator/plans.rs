//! Which plans there are, and which one a call takes.
//!
//! The choice depends only on what all ranks have in common (the call, whether buffers are
//! registered, the machine's terms as rank 0 knows them), so all ranks make the same one.
#![forbid(unsafe_code)]

use std::sync::Arc;

use warpmesh_primitives::node::Node;

use crate::algorithms::{self, BuiltIn, Layout, NODES};
use crate::cost::{Machine, Work};
use crate::dtype::DataType;
use crate::host::{Prepared, Region};
use crate::op::OpKind;
use crate::plan::verify::Claims;
use crate::plan::{Collective, Instruction, Place, Plan, Program, Shape, Whose};

/// A plan that a communicator can run.
#[derive(Debug)]
pub(crate) struct Candidate {
    source: Source,
    claims: Claims,
    /// Whether it touches other ranks' user buffers.
    registered: bool,
    /// By root; built-in unrooted plans and loaded plans have one.
    prepared: Vec<Option<Prepared>>,
    work: Option<Work>,
}

#[derive(Debug)]
enum Source {
    BuiltIn(BuiltIn),
    Loaded(Plan),
}

/// What decides between plans, apart from the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) collective: Collective,
    pub(crate) registered: bool,
    pub(crate) in_place: bool,
    pub(crate) dtype: DataType,
    pub(crate) op: OpKind,
    /// Blocks differ in length, so they cannot be found in a peer's memory.
    pub(crate) uneven: bool,
}

impl Query {
    /// Queries of the same class have the same candidates.
    fn class(&self) -> usize {
        let finish =
            self.dtype.is_narrow_float() || matches!(self.op, OpKind::Avg | OpKind::PreMulSum);
        let order = matches!(self.dtype, DataType::F32 | DataType::F64) || finish;
        let scaled = self.op == OpKind::PreMulSum;
        let flags = [self.registered, self.in_place, finish, order, self.uneven, scaled];
        flags.iter().fold(self.collective as usize, |class, flag| class * 2 + usize::from(*flag))
    }
}

const CLASSES: usize = Collective::ALL.len() << 6;
/// Two per power of two.
const BUCKETS: usize = 2 * usize::BITS as usize;
const UNKNOWN: u16 = u16::MAX;
const NOTHING: u16 = u16::MAX - 1;

/// All plans of a communicator and the choices made so far.
#[derive(Debug)]
pub(crate) struct Plans {
    node: Arc<Node>,
    layout: Layout,
    machine: Machine,
    canonical: bool,
    /// Only plans of this name, where the collective has one that can.
    only: Option<String>,
    pub(crate) scratch: Region,
    pub(crate) packets: Region,
    slot_limit: usize,
    candidates: Vec<Candidate>,
    choices: Vec<Option<Box<[u16; BUCKETS]>>>,
}

/// Settings of the selection.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) machine: Machine,
    pub(crate) canonical: bool,
    pub(crate) only: Option<String>,
    pub(crate) slot_limit: usize,
}

impl Plans {
    pub(crate) fn new(
        node: Arc<Node>,
        selection: Selection,
        scratch: Region,
        packets: Region,
    ) -> Self {
        let layout = Layout::new(node.hosts());
        let built_in = |algorithm| Candidate::built_in(algorithm, &layout);
        let candidates = match layout.nodes() {
            1 => algorithms::ALL.iter().map(|a| built_in(BuiltIn::Node(a))).collect(),
            _ => NODES.iter().map(|a| built_in(BuiltIn::Nodes(a))).collect(),
        };
        let Selection { machine, canonical, only, slot_limit } = selection;
        Self {
            node,
            layout,
            machine,
            canonical,
            only,
            scratch,
            packets,
            slot_limit,
            candidates,
            choices: (0..CLASSES).map(|_| None).collect(),
        }
    }

    /// The first access of a plan to memory that is not there to be accessed: between hosts there are only puts.
    pub(crate) fn out_of_reach(&self, plan: &Plan) -> Option<String> {
        let near = |rank: usize, place: &Place| match place.whose {
            Whose::Rank(owner) => self.layout.node_of(owner) == self.layout.node_of(rank),
            Whose::Group => self.layout.nodes() == 1,
        };
        plan.programs.iter().enumerate().find_map(|(rank, program)| {
            let far = program.workers.iter().flatten().find(|instruction| match instruction {
                Instruction::Move { to, from, .. } => {
                    !to.iter().chain(from).all(|place| near(rank, place))
                }
                _ => false,
            })?;
            Some(format!(
                "has rank {rank} reach memory of another host by {far:?}; between hosts there are only puts"
            ))
        })
    }

    /// Adds a proven plan.
    pub(crate) fn add(&mut self, plan: Plan, claims: Claims) {
        let registered = (0..self.node.world())
            .any(|rank| Shape::reaches_user_memory(&plan.programs[rank], rank));
        let prepared = vec![None];
        self.candidates.push(Candidate {
            source: Source::Loaded(plan),
            claims,
            registered,
            prepared,
            work: None,
        });
        self.choices.iter_mut().for_each(|choice| *choice = None);
    }

    /// The number of the plan for a call, if there is one.
    #[inline]
    pub(crate) fn choose(&mut self, query: &Query, root: usize, count: usize) -> Option<usize> {
        let class = query.class();
        let bucket = bucket(count * query.dtype.size());
        let known = self.choices[class].as_ref().map_or(UNKNOWN, |choice| choice[bucket]);
        let choice = if known == UNKNOWN { self.decide(query, root, class, bucket) } else { known };
        (choice != NOTHING).then_some(usize::from(choice))
    }

    #[cold]
    fn decide(&mut self, query: &Query, root: usize, class: usize, bucket: usize) -> u16 {
        let count = (representative(bucket) / query.dtype.size()).max(1);
        let ranked = self.ranked(query, root, count);
        let choice = ranked.first().map_or(NOTHING, |(number, _)| *number as u16);
        let choices = self.choices[class].get_or_insert_with(|| Box::new([UNKNOWN; BUCKETS]));
        choices[bucket] = choice;
        choice
    }

    /// All plans that can do a call, with predicted nanoseconds, fastest first.
    pub(crate) fn ranked(&mut self, query: &Query, root: usize, count: usize) -> Vec<(usize, f64)> {
        let able = |p: &Self, number: usize| p.able(number, query, root);
        let mut numbers: Vec<_> =
            (0..self.candidates.len()).filter(|number| able(self, *number)).collect();
        let named = |p: &Self, n: &usize| p.only.as_deref() == Some(p.candidates[*n].source.name());
        if numbers.iter().any(|number| named(self, number)) {
            numbers.retain(|number| named(self, number));
        }
        let mut ranked: Vec<_> = numbers
            .into_iter()
            .filter_map(|number| Some((number, self.predict(number, query, count)?)))
            .collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        ranked
    }

    fn able(&self, number: usize, query: &Query, root: usize) -> bool {
        let candidate = &self.candidates[number];
        candidate.source.collective() == query.collective
            && candidate.source.serves_root(root)
            && (!query.uneven || candidate.source.serves_uneven())
            && serves(&candidate.claims, query, candidate.registered, self.canonical)
    }

    fn predict(&mut self, number: usize, query: &Query, count: usize) -> Option<f64> {
        let (world, layout) = (self.node.world(), &self.layout);
        let candidate = &mut self.candidates[number];
        let work = *candidate.work.get_or_insert_with(|| {
            let parts = candidate.source.parts(layout);
            let of = |rank: usize| {
                let program = candidate.source.program(rank, layout, 0);
                let work = Work::of(&program, parts, (rank, world));
                work.between_hosts(&program, parts, rank, layout)
            };
            of(0).max(of(1 % world))
        });
        // Any root has the same shape; a loaded plan has only its own.
        let root = self.candidates[number].source.own_root();
        let size = query.dtype.size();
        let rounds = match self.prepared(number, root).window(query.dtype) {
            0 => return None,
            window => count.div_ceil(window),
        };
        Some(self.machine.predict(&work, count * size, rounds, self.node.load()))
    }

    /// A plan made ready for a root.
    pub(crate) fn prepared(&mut self, number: usize, root: usize) -> &Prepared {
        let candidate = &mut self.candidates[number];
        let index = if candidate.prepared.len() > 1 { root } else { 0 };
        if candidate.prepared[index].is_none() {
            let shape = candidate.source.shape(&self.layout, root);
            let program = candidate.source.program(self.node.rank(), &self.layout, root);
            let prepared = Prepared::new(
                &shape,
                &program,
                &candidate.claims,
                &self.node,
                &self.scratch,
                &self.packets,
                self.slot_limit,
            );
            candidate.prepared[index] = Some(prepared);
        }
        candidate.prepared[index].as_ref().expect("made above")
    }

    /// A plan's name.
    pub(crate) fn name(&self, number: usize) -> &str {
        self.candidates.get(number).map_or("?", |candidate| candidate.source.name())
    }
}

impl Candidate {
    fn built_in(algorithm: BuiltIn, layout: &Layout) -> Self {
        let world = layout.world();
        let roots = if algorithm.collective().is_rooted() { world } else { 1 };
        let reaches =
            |rank: usize| Shape::reaches_user_memory(&algorithm.program(rank, layout, 0), rank);
        // In one node ranks play at most two different parts: the root's and the others'.
        let different = if layout.nodes() > 1 { world } else { world.min(2) };
        Self {
            source: Source::BuiltIn(algorithm),
            claims: *algorithm.claims(),
            registered: (0..different).any(reaches),
            prepared: (0..roots).map(|_| None).collect(),
            work: None,
        }
    }
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::BuiltIn(algorithm) => algorithm.name(),
            Self::Loaded(plan) => &plan.shape.name,
        }
    }

    fn collective(&self) -> Collective {
        match self {
            Self::BuiltIn(algorithm) => algorithm.collective(),
            Self::Loaded(plan) => plan.shape.collective,
        }
    }

    fn serves_root(&self, root: usize) -> bool {
        match self {
            Self::Loaded(plan) => !plan.shape.collective.is_rooted() || plan.shape.root == root,
            _ => true,
        }
    }

    fn serves_uneven(&self) -> bool {
        !matches!(self, Self::BuiltIn(BuiltIn::Nodes(algorithm)) if !algorithm.uneven)
    }

    fn own_root(&self) -> usize {
        match self {
            Self::Loaded(plan) => plan.shape.root,
            _ => 0,
        }
    }

    fn parts(&self, layout: &Layout) -> usize {
        match self {
            Self::BuiltIn(algorithm) => algorithm.parts(layout),
            Self::Loaded(plan) => plan.shape.parts,
        }
    }

    fn shape(&self, layout: &Layout, root: usize) -> Shape {
        match self {
            Self::BuiltIn(algorithm) => algorithm.shape(layout, root),
            Self::Loaded(plan) => plan.shape.clone(),
        }
    }

    fn program(&self, rank: usize, layout: &Layout, root: usize) -> Program {
        match self {
            Self::BuiltIn(algorithm) => algorithm.program(rank, layout, root),
            Self::Loaded(plan) => plan.programs[rank].clone(),
        }
    }
}

/// Whether a plan that keeps these claims, and touches peers' buffers or not, can do a call.
pub(crate) fn serves(
    claims: &Claims,
    query: &Query,
    registered: bool,
    only_canonical: bool,
) -> bool {
    let Claims { same_bits, canonical, finishes_once, contributors, in_place, .. } = *claims;
    let narrow = query.dtype.is_narrow_float();
    let needs_finish = narrow || matches!(query.op, OpKind::Avg | OpKind::PreMulSum);
    let float = narrow || matches!(query.dtype, DataType::F32 | DataType::F64);
    let reduces = query.collective.reduces();
    (!registered || query.registered && !query.uneven)
        && (!query.in_place || in_place)
        && (!only_canonical || !reduces || canonical)
        && (!reduces || finishes_once || !needs_finish)
        && (!reduces || contributors || query.op != OpKind::PreMulSum)
        && (!reduces || same_bits || !float)
        && (!reduces || finishes_once || !only_canonical)
}

/// Sizes with the same two leading bits share a choice.
#[inline]
fn bucket(bytes: usize) -> usize {
    let bytes = bytes.max(1);
    let log = bytes.ilog2() as usize;
    let half = if log == 0 { 0 } else { bytes >> (log - 1) & 1 };
    2 * log + half
}

/// A size in the middle of a bucket.
fn representative(bucket: usize) -> usize {
    let base = 1_usize << (bucket / 2);
    base + (bucket % 2) * (base / 2) + base / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_representative_lies_in_its_bucket() {
        for index in 4..80 {
            assert_eq!(bucket(representative(index)), index);
        }
        for bytes in 1..10_000 {
            assert!(bucket(bytes) <= bucket(bytes + 1));
        }
    }
}

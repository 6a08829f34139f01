//! Plans for several nodes: what ranks of one node share memory for, and what goes between nodes, by a port.
//!
//! Between nodes data goes only by `Put`, from memory that is registered or scratch to such memory: from a rank to one
//! rank of each other node, its *gateway* there, which hands it on to its neighbours. Two patterns make most plans:
//!
//! ```text
//!   collect     every rank stages its contributions; a rank of each node adds up what its node has of a part and
//!               puts the sum to the part's home, which adds up the nodes' sums
//!   distribute  a part's home puts it to a gateway of each other node; neighbours copy it from home or gateway
//! ```
//!
//! Homes of parts are spread so that ranks with the same place in their nodes (a *rail*) exchange with each other
//! alone: then each NIC serves one rank, and a connection is made for each rail and pair of nodes.

mod all_reduce;
mod all_to_all;
mod direct;
mod layout;
mod patterns;
mod plans;
mod share;

pub use self::layout::Layout;
use self::patterns::PORT;
pub(crate) use self::patterns::SEMAPHORES as NODE_SEMAPHORES;
pub use self::share::MOST_WORKERS;
use self::share::Share;
use crate::plan::verify::Claims;
use crate::plan::{Builder, Collective, Instruction, Plan, Program, Shape};

/// An algorithm for ranks of several nodes.
#[derive(Clone, Copy, Debug)]
pub struct NodeAlgorithm {
    /// Its name, unique within the collective.
    pub name: &'static str,
    /// What it computes.
    pub collective: Collective,
    /// Workers that do the same, each for its share of a window: while one waits for the network the others go on. Any
    /// number computes the same.
    pub workers: usize,
    /// Parts that a worker's share is cut into.
    pub parts: fn(&Layout) -> usize,
    /// Slots of scratch memory per rank and worker.
    pub scratch: fn(&Layout) -> usize,
    /// Slots of packet memory per rank and worker.
    pub packets: fn(&Layout) -> usize,
    /// Whether blocks may differ in length: not if a rank hands on blocks of others, whose lengths it does not know.
    pub uneven: bool,
    /// What the verifier finds for it, for two nodes or more with two ranks or more; a test compares.
    pub claims: Claims,
    /// Writes what one worker of the builder's rank does.
    pub write: fn(&mut Builder, &Layout),
}

impl NodeAlgorithm {
    /// The same with so many workers, at most [`MOST_WORKERS`].
    pub const fn with_workers(self, workers: usize) -> Self {
        assert!(workers >= 1 && workers <= MOST_WORKERS);
        Self { workers, ..self }
    }

    /// The shape for a layout.
    pub fn shape(&self, layout: &Layout, root: usize) -> Shape {
        Shape {
            name: self.name.to_owned(),
            collective: self.collective,
            world: layout.world(),
            root,
            parts: self.workers * (self.parts)(layout),
            scratch: self.workers * (self.scratch)(layout),
            packets: self.workers * (self.packets)(layout),
        }
    }

    /// One rank's program.
    pub fn program(&self, rank: usize, layout: &Layout, root: usize) -> Program {
        let mut builder = Builder::new(rank, layout.world(), root);
        (self.write)(&mut builder, layout);
        let mut list = builder.finish().workers.swap_remove(0);
        // What is put has to have left before the slot is used again.
        if list.iter().any(|i| matches!(i, Instruction::Put { .. })) {
            list.push(Instruction::Flush { port: PORT });
        }
        let (parts, scratch, packets) =
            ((self.parts)(layout), (self.scratch)(layout), (self.packets)(layout));
        let share = |worker| Share { worker, parts, scratch, packets };
        let workers = (0..self.workers).map(|worker| share(worker).of(&list)).collect();
        Program { workers }
    }

    /// The whole plan.
    pub fn plan(&self, layout: &Layout, root: usize) -> Plan {
        let programs = (0..layout.world()).map(|rank| self.program(rank, layout, root)).collect();
        Plan { shape: self.shape(layout, root), programs }
    }
}

/// The built-in algorithms for several nodes.
pub const NODES: &[&NodeAlgorithm] = &[
    &all_reduce::EXCHANGE,
    &direct::ALL_REDUCE,
    &direct::ALL_GATHER,
    &direct::REDUCE_SCATTER,
    &direct::BROADCAST,
    &direct::REDUCE,
    &direct::ALL_TO_ALL,
    &plans::ALL_REDUCE,
    &plans::ALL_REDUCE_IN_ORDER,
    &plans::ALL_GATHER,
    &plans::REDUCE_SCATTER,
    &plans::BROADCAST,
    &plans::REDUCE,
    &plans::ALL_TO_ALL,
    &all_to_all::RAILS,
    &plans::GATHER,
    &plans::SCATTER,
    &plans::BARRIER,
];

#[cfg(test)]
mod tests;

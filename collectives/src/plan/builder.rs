//! Writing one rank's program.

use super::{Instruction, Place, Program};

/// Collects one rank's instructions. An algorithm is a function that fills one of these; it makes
/// the program of the one rank it is asked for, in time proportional to that program.
#[derive(Debug)]
pub struct Builder {
    rank: usize,
    world: usize,
    root: usize,
    worker: usize,
    program: Program,
}

impl Builder {
    /// An empty program of one worker.
    pub fn new(rank: usize, world: usize, root: usize) -> Self {
        let program = Program { workers: vec![Vec::new()] };
        Self { rank, world, root, worker: 0, program }
    }

    /// The rank whose program this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the plan.
    pub fn world(&self) -> usize {
        self.world
    }

    /// The root of a rooted collective.
    pub fn root(&self) -> usize {
        self.root
    }

    /// Whether this rank is the root.
    pub fn is_root(&self) -> bool {
        self.rank == self.root
    }

    /// All ranks, in order.
    pub fn ranks(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.world
    }

    /// All other ranks, from the next one on and around, so that not all ranks turn to the same
    /// peer at the same time.
    pub fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, world) = (self.rank, self.world);
        (1..world).map(move |step| (rank + step) % world)
    }

    /// The rank `step` places further on, around.
    pub fn ahead(&self, step: usize) -> usize {
        (self.rank + step) % self.world
    }

    /// The rank `step` places back, around.
    pub fn behind(&self, step: usize) -> usize {
        (self.rank + self.world - step % self.world) % self.world
    }

    /// This rank's input block.
    pub fn input(&self, block: usize) -> Place {
        Place::input(self.rank, block)
    }

    /// This rank's output block.
    pub fn output(&self, block: usize) -> Place {
        Place::output(self.rank, block)
    }

    /// This rank's scratch slot.
    pub fn scratch(&self, slot: usize) -> Place {
        Place::scratch(self.rank, slot)
    }

    /// This rank's packet slot, that `writer` writes.
    pub fn packets_from(&self, slot: usize, writer: usize) -> Place {
        Place::packets_from(self.rank, slot, writer)
    }

    /// Adds to worker `worker` from here on; workers up to it come into being.
    pub fn worker(&mut self, worker: usize) -> &mut Self {
        while self.program.workers.len() <= worker {
            self.program.workers.push(Vec::new());
        }
        self.worker = worker;
        self
    }

    /// Copies a part from one place to others. No destinations, no instruction.
    pub fn copy(&mut self, part: usize, to: impl IntoIterator<Item = Place>, from: Place) {
        self.move_part(part, to.into_iter().collect(), vec![from], false);
    }

    /// Reduces a part, in the order of the sources.
    pub fn reduce(
        &mut self,
        part: usize,
        to: impl IntoIterator<Item = Place>,
        from: impl IntoIterator<Item = Place>,
    ) {
        self.move_part(part, to.into_iter().collect(), from.into_iter().collect(), true);
    }

    fn move_part(&mut self, part: usize, to: Vec<Place>, from: Vec<Place>, reduce: bool) {
        if !to.is_empty() {
            self.push(Instruction::Move { part, to, from, reduce });
        }
    }

    /// Signals ranks.
    pub fn signal(&mut self, semaphore: usize, to: impl IntoIterator<Item = usize>) {
        let to: Vec<_> = to.into_iter().collect();
        if !to.is_empty() {
            self.push(Instruction::Signal { semaphore, to });
        }
    }

    /// Waits for ranks.
    pub fn wait(&mut self, semaphore: usize, from: impl IntoIterator<Item = usize>) {
        let from: Vec<_> = from.into_iter().collect();
        if !from.is_empty() {
            self.push(Instruction::Wait { semaphore, from });
        }
    }

    /// Signals all peers and waits for all of them: what any rank did before, every rank sees after.
    pub fn barrier(&mut self, semaphore: usize) {
        self.signal(semaphore, self.peers());
        self.wait(semaphore, self.peers());
    }

    /// Adds any instruction.
    pub fn push(&mut self, instruction: Instruction) {
        self.program.workers[self.worker].push(instruction);
    }

    /// The program.
    pub fn finish(self) -> Program {
        self.program
    }
}

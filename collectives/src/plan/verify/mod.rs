//! Proves plans: no deadlock, no race, the right answer, in which order it is summed.
//!
//! The verifier runs a plan symbolically for all ranks at once, over several calls and rounds.
//! Values are expressions over the ranks' inputs; time is a vector clock per worker, advanced by
//! signals, waits and packets alone. Two accesses to the same place, one of them a store, that no
//! chain of these orders, are a race, whatever interleaving the simulation happened to take: that
//! is why one run of it is a proof.
//!
//! The application is part of the picture: it writes inputs before a call and reads outputs after
//! it, at any moment its own rank is not in the call. So a peer that reads an input after its owner
//! has left races with the application, and a missing barrier shows.
//!
//! Between epochs the executors guarantee one thing: before a rank writes scratch or packets in
//! epoch e, it knows that all ranks have finished epoch e-2 (those used the same half). After a
//! plan that *synchronises* (whoever finishes it knows that all have started it) this costs
//! nothing; after others the executor waits (the *guard*), and so does the simulation.

mod port;
mod run;
mod value;

use std::collections::HashSet;
use std::fmt;

use super::text::instruction_text;
use super::{Buffer, Instruction, Place, Plan, Program, Whose};
use run::Run;

/// What a plan was found to be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// All ranks get the same bits.
    pub same_bits: bool,
    /// Sums are left folds in rank order, finished once.
    pub canonical: bool,
    /// Sums are kept in the accumulation type until they are finished, once. Plans without this
    /// are for types that need no wider accumulation, and not for `Avg` and `PreMulSum`.
    pub finishes_once: bool,
    /// Every contribution comes straight from its rank: the owner of the memory that it is read
    /// from, or the writer of the packet. `PreMulSum` needs it, to know whose factor to take.
    pub contributors: bool,
    /// Whoever finishes knows that all ranks have started.
    pub synchronises: bool,
    /// Input and output may be the same memory.
    pub in_place: bool,
}

impl Claims {
    /// Everything.
    pub const ALL: Self = Self {
        same_bits: true,
        canonical: true,
        finishes_once: true,
        contributors: true,
        synchronises: true,
        in_place: true,
    };

    /// Everything but the canonical order.
    pub const fn without_canonical(mut self) -> Self {
        self.canonical = false;
        self
    }

    /// Everything but the synchronisation of all ranks.
    pub const fn without_contributors(mut self) -> Self {
        self.contributors = false;
        self
    }

    /// Without that promise.
    pub const fn without_synchronising(mut self) -> Self {
        self.synchronises = false;
        self
    }

    /// Everything but in place.
    pub const fn without_in_place(mut self) -> Self {
        self.in_place = false;
        self
    }

    /// What both claim.
    #[cfg(test)]
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            same_bits: self.same_bits && other.same_bits,
            canonical: self.canonical && other.canonical,
            finishes_once: self.finishes_once && other.finishes_once,
            contributors: self.contributors && other.contributors,
            synchronises: self.synchronises && other.synchronises,
            in_place: self.in_place && other.in_place,
        }
    }

    /// Whether all that `other` claims holds here.
    pub fn cover(&self, other: &Self) -> bool {
        (self.same_bits || !other.same_bits)
            && (self.canonical || !other.canonical)
            && (self.finishes_once || !other.finishes_once)
            && (self.contributors || !other.contributors)
            && (self.synchronises || !other.synchronises)
            && (self.in_place || !other.in_place)
    }
}

/// What the verifier found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What the plan is good for.
    pub claims: Claims,
}

/// Proves a plan by itself: over several rounds and followed by itself, in place and not.
pub fn verify(plan: &Plan) -> Result<Proof, Defect> {
    check_shape(plan)?;
    let alone = Run::new(&[(plan, 1, false)], false).finish()?;
    let synchronises = alone.synchronises;
    let sequence = [(plan, 3, synchronises), (plan, 1, synchronises), (plan, 2, synchronises)];
    let found = Run::new(&sequence, false).finish()?;
    // What is claimed holds in place too, where some plans read what they have written.
    let in_place = Run::new(&sequence, true).finish();
    let found = in_place.as_ref().map_or(found, |other| found.and(*other));
    let in_place = in_place.is_ok();
    let claims = Claims {
        same_bits: found.same_bits,
        canonical: found.canonical,
        finishes_once: found.finishes_once,
        contributors: found.contributors,
        synchronises,
        in_place,
    };
    Ok(Proof { claims })
}

/// Proves that plans can follow each other on one communicator, each for a number of rounds.
pub fn verify_sequence(sequence: &[(&Plan, usize)]) -> Result<(), Defect> {
    let Some((first, _)) = sequence.first() else {
        return Ok(());
    };
    let mut steps = Vec::with_capacity(sequence.len());
    for (plan, rounds) in sequence {
        check_shape(plan)?;
        let world = plan.shape.world;
        if world != first.shape.world {
            return Err(Defect::Shape {
                what: "world",
                value: world,
                must: "that of the first plan",
            });
        }
        let synchronises = Run::new(&[(plan, 1, false)], false).finish()?.synchronises;
        steps.push((*plan, *rounds, synchronises));
    }
    Run::new(&steps, false).finish().map(drop)
}

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// A number in the plan's shape cannot be.
    #[error("{what} is {value}, must be {must}")]
    Shape {
        /// Which number.
        what: &'static str,
        /// What it is.
        value: usize,
        /// What would be right.
        must: &'static str,
    },
    /// An instruction names something that is not there, or combines what cannot be combined.
    #[error("{at}: {problem}")]
    Instruction {
        /// Where.
        at: Site,
        /// What is wrong.
        problem: String,
    },
    /// Two accesses to the same place without order.
    #[error("{at}: race: {access} {place} while {other} may still {others_access} it")]
    Race {
        /// The later access in the simulation.
        at: Site,
        /// `reads` or `writes`.
        access: &'static str,
        /// The place.
        place: String,
        /// Who accessed it before.
        other: String,
        /// `read` or `write`.
        others_access: &'static str,
    },
    /// A packet was overwritten before it was read, or never read.
    #[error("{at}: writes {place}, but nobody has read the packet that is there")]
    UnreadPacket {
        /// Where.
        at: Site,
        /// The slot.
        place: String,
    },
    /// Nobody can go on.
    #[error("deadlock: {}", waiting.join("; "))]
    Deadlock {
        /// Who waits for what.
        waiting: Vec<String>,
    },
    /// Signals that nobody waits for.
    #[error(
        "semaphore {semaphore} from rank {from} to rank {to}: {extra} signals are never waited for"
    )]
    UnmatchedSignal {
        /// Which semaphore.
        semaphore: usize,
        /// The signalling rank.
        from: usize,
        /// The rank that should wait.
        to: usize,
        /// How many.
        extra: usize,
    },
    /// A wrong result.
    #[error("rank {rank}, output block {block}, part {part}, round {round}: {problem}")]
    WrongResult {
        /// Whose output.
        rank: usize,
        /// Which block.
        block: usize,
        /// Which part.
        part: usize,
        /// In which round.
        round: usize,
        /// What it holds.
        problem: String,
    },
}

/// A place in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Whose program.
    pub rank: usize,
    /// Which worker.
    pub worker: usize,
    /// Which instruction, from 0; None for the application around the call.
    pub instruction: Option<usize>,
    /// The instruction as text.
    pub text: String,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.rank)?;
        match self.instruction {
            None => write!(f, ", {}", self.text),
            Some(i) => write!(f, ", worker {}, instruction {i} ({})", self.worker, self.text),
        }
    }
}

pub(super) fn site(rank: usize, worker: usize, index: usize, instruction: &Instruction) -> Site {
    Site { rank, worker, instruction: Some(index), text: instruction_text(rank, instruction) }
}

/// Semaphores that plans may use between two ranks.
pub const PLAN_SEMAPHORES: usize = 56;
const MAX_WORLD: usize = 4096;
pub(crate) const MAX_SLOTS: usize = 65_536;
/// Workers and ports of all ranks: bounds the verifier's clocks on plans from strangers.
const MAX_THREADS: usize = 8192;
/// Bounds the verifier's work on plans from strangers.
pub(crate) const MAX_CHUNKS: usize = 1 << 20;

/// Checks all that can be checked without running: numbers in range, operands that fit.
pub(crate) fn check_shape(plan: &Plan) -> Result<(), Defect> {
    let shape = &plan.shape;
    let (world, root) = (shape.world, shape.root);
    let within = |what, value, ok, must| {
        if ok { Ok(()) } else { Err(Defect::Shape { what, value, must }) }
    };
    within("world", world, (1..=MAX_WORLD).contains(&world), "1 to 4096")?;
    within("root", root, root < world, "below world")?;
    within("programs", plan.programs.len(), plan.programs.len() == world, "world")?;
    within("parts", shape.parts, (1..=MAX_SLOTS).contains(&shape.parts), "1 to 65536")?;
    within("scratch", shape.scratch, shape.scratch <= MAX_SLOTS, "at most 65536")?;
    within("packets", shape.packets, shape.packets <= MAX_SLOTS, "at most 65536")?;
    let (input, output) = shape.collective.blocks(world, root, root);
    let chunks = world.saturating_mul(input + output).saturating_mul(shape.parts);
    within("world * blocks * parts", chunks, chunks <= MAX_CHUNKS, "at most 1048576")?;
    for (rank, program) in plan.programs.iter().enumerate() {
        let workers = program.workers.len();
        within("workers of a program", workers, (1..=1024).contains(&workers), "1 to 1024")?;
        check_program(plan, rank, program)?;
    }
    let threads = plan.programs.iter().map(threads_of).sum();
    within("workers and ports of all ranks", threads, threads <= MAX_THREADS, "at most 8192")
}

fn threads_of(program: &Program) -> usize {
    let puts = |list: &Vec<Instruction>| {
        let ports = list.iter().filter_map(|instruction| match instruction {
            Instruction::Put { port, .. } => Some(*port),
            _ => None,
        });
        ports.collect::<HashSet<_>>().len()
    };
    let ports: usize = program.workers.iter().map(puts).sum();
    program.workers.len() + ports
}

fn check_program(plan: &Plan, rank: usize, program: &Program) -> Result<(), Defect> {
    for (worker, instructions) in program.workers.iter().enumerate() {
        for (index, instruction) in instructions.iter().enumerate() {
            if let Err(problem) = check_instruction(plan, rank, instruction) {
                let at = site(rank, worker, index, instruction);
                return Err(Defect::Instruction { at, problem });
            }
        }
    }
    Ok(())
}

fn check_instruction(plan: &Plan, rank: usize, instruction: &Instruction) -> Result<(), String> {
    let shape = &plan.shape;
    let part_exists = |part: usize| match part < shape.parts {
        true => Ok(()),
        false => Err(format!("there is no part {part}, only {}", shape.parts)),
    };
    let peers_exist = |semaphore: usize, peers: &[usize]| {
        if semaphore >= PLAN_SEMAPHORES {
            return Err(format!("semaphore {semaphore}: there are {PLAN_SEMAPHORES}"));
        }
        match peers.iter().find(|peer| **peer >= shape.world) {
            Some(peer) => Err(format!("there is no rank {peer}")),
            None => Ok(()),
        }
    };
    match instruction {
        Instruction::Move { part, to, from, reduce } => {
            part_exists(*part)?;
            check_operands(to, from, *reduce)?;
            to.iter().try_for_each(|place| check_place(plan, place, Access::Store))?;
            from.iter().try_for_each(|place| check_place(plan, place, Access::Load))
        }
        Instruction::Signal { semaphore, to: peers }
        | Instruction::Wait { semaphore, from: peers } => peers_exist(*semaphore, peers),
        Instruction::Put { port: _, part, to, from, then_signal } => {
            part_exists(*part)?;
            peers_exist(then_signal.unwrap_or(0), &[])?;
            if !from.is_of(rank) || from.buffer == Buffer::Packets {
                return Err("a put's source is plain memory of its own rank".into());
            }
            if to.buffer == Buffer::Packets || matches!(to.whose, Whose::Group) || to.is_of(rank) {
                return Err("a put's destination is plain memory of one other rank".into());
            }
            if to.partial != from.partial {
                return Err("a put does not change between partial and finished".into());
            }
            check_place(plan, to, Access::Store)?;
            check_place(plan, from, Access::Load)
        }
        Instruction::Flush { .. } => Ok(()),
    }
}

fn check_operands(to: &[Place], from: &[Place], reduce: bool) -> Result<(), String> {
    if to.is_empty() || from.is_empty() {
        return Err("a move has at least one source and one destination".into());
    }
    if to.iter().any(|place| place.partial != to[0].partial) {
        return Err("all destinations are partial, or none is".into());
    }
    let group = matches!(from[0].whose, Whose::Group);
    if !reduce && from.len() > 1 {
        return Err("a copy has one source".into());
    }
    if !reduce && group {
        return Err("a load from the group is a reduction".into());
    }
    if !reduce && from[0].partial != to[0].partial {
        return Err("a copy does not change between partial and finished".into());
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Access {
    Load,
    Store,
}

fn check_place(plan: &Plan, place: &Place, access: Access) -> Result<(), String> {
    let shape = &plan.shape;
    let owners = match place.whose {
        Whose::Rank(owner) if owner >= shape.world => {
            return Err(format!("there is no rank {owner}"));
        }
        Whose::Rank(owner) => owner..owner + 1,
        Whose::Group => 0..shape.world,
    };
    for owner in owners {
        let (inputs, outputs) = shape.collective.blocks(shape.world, shape.root, owner);
        let (what, count) = match place.buffer {
            Buffer::Input => ("input block", inputs),
            Buffer::Output => ("output block", outputs),
            Buffer::Scratch => ("scratch slot", shape.scratch),
            Buffer::Packets => ("packet slot", shape.packets),
        };
        if place.index >= count {
            return Err(format!("rank {owner} has no {what} {}, only {count}", place.index));
        }
    }
    if place.partial && place.is_user() {
        return Err("users' buffers hold no partial sums".into());
    }
    if place.buffer == Buffer::Input && access == Access::Store {
        return Err("inputs are not written".into());
    }
    if place.buffer == Buffer::Packets && access == Access::Load {
        if matches!(place.whose, Whose::Group) {
            return Err("packets are read one rank's at a time".into());
        }
        match place.writer {
            Some(writer) if writer < shape.world => {}
            _ => return Err("a packet that is read names its writer".into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! A rank's program as a CUDA kernel.
//!
//! The text has the program's structure: how many peers, which kinds of operands, which type and
//! operator. What depends on the rank (addresses, parts, peers) stands in tables in the kernel's parameters, in
//! the order in which the text names it. So ranks whose programs have the same structure share a kernel.
#![forbid(unsafe_code)]

mod far;

use super::arrange::{arrange, conflict};
use super::lines::{self, Line};
use super::names::{contributions, entry_name, kinds, kinds_name, op_name, type_name};
use super::switch;
use crate::algorithms::Layout;
use crate::dtype::DataType;
use crate::op::OpKind;
use crate::plan::verify::Claims;
use crate::plan::{Buffer, Instruction, Place, Program, Shape, Whose};

/// A kernel's text and what its tables hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// CUDA C++ for NVRTC or nvcc.
    pub(crate) source: String,
    /// The entry point.
    pub(crate) name: String,
    pub(crate) tables: Tables,
}

/// What depends on the rank, in the order of the kernel's parameters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Operands of all moves.
    pub(crate) places: Vec<Operand>,
    /// Semaphores that are signalled or awaited, and what is put to other hosts.
    pub(crate) words: Vec<Word>,
    /// The part of each move.
    pub(crate) parts: Vec<u32>,
    /// Whether ranks tell each other where their buffers are and by what they multiply: plans that reach into peers' buffers, and
    /// `PreMulSum`.
    pub(crate) announces: bool,
    /// Peers that are told.
    pub(crate) boards: Vec<usize>,
}

/// The semaphore, after all of a plan's own, that says that a rank has finished an epoch.
pub(crate) const GUARD: usize = warpmesh_primitives::control::SEMAPHORES;

/// An operand of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) place: Place,
    /// Whether it is found by what its rank announced: a place in a window, this rank's own included.
    pub(crate) announced: bool,
    /// With which of the plan's meetings address and factor are known, from 1; 0: from the beginning.
    pub(crate) meeting: u8,
}

/// A word of a kernel's table, between this rank and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) what: Words,
    /// Of the semaphore, or the slot.
    pub(crate) number: usize,
    pub(crate) peer: usize,
}

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// The semaphore that this rank waits for, in its own memory. For a peer on another host: how often it has.
    Awaited,
    /// That which it signals, in the peer's.
    Signalled,
    /// Where the signals of a peer on another host are counted.
    Counters,
    /// The port that counts them at the peer, for a put with a signal or without.
    Port,
    SilentPort,
    /// The port by which ranks tell each other what they call.
    Greeting,
    /// Where a slot begins in scratch memory, of any rank.
    Slot,
}

/// Why a program has no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// Something that kernels do not have.
    #[error(
        "plan '{plan}' has no CUDA kernel: {what} (worker {worker}, instruction {instruction})"
    )]
    Unsupported {
        /// The plan.
        plan: String,
        /// What it is.
        what: &'static str,
        /// Which worker.
        worker: usize,
        /// Which instruction of it.
        instruction: usize,
    },
}

/// Ranks of other hosts that a program has to do with, in order; they have to do with this one, too.
pub(crate) fn away(program: &Program, rank: usize, layout: &Layout) -> Vec<usize> {
    program.partners(|peer| layout.node_of(peer) != layout.node_of(rank))
}

/// The kernel of `rank`'s program for a type and an operator. `announces`: some rank of the plan reaches into peers' buffers.
pub(crate) fn emit(
    shape: &Shape,
    program: &Program,
    claims: &Claims,
    announces: bool,
    (rank, layout): (usize, &Layout),
    dtype: DataType,
    op: OpKind,
) -> Result<Kernel, EmitError> {
    let mut writer = Writer {
        rank,
        world: shape.world,
        layout,
        away: away(program, rank, layout),
        met: Vec::new(),
        dtype,
        op,
        body: Vec::new(),
        tables: Tables::default(),
        signalled: Vec::new(),
        awaited: Vec::new(),
        meetings: Vec::new(),
        switched: false,
        open: Vec::new(),
        learning: false,
        learned: false,
    };
    let unsupported = |what, worker, instruction| EmitError::Unsupported {
        plan: shape.name.clone(),
        what,
        worker,
        instruction,
    };
    if program.workers.len() > 1 {
        return Err(unsupported("several workers", 1, 0));
    }
    let list = program.workers.first().map_or_else(Vec::new, |list| arrange(list));
    writer.begin(announces, claims, &list);
    let mut at = 0;
    while at < list.len() {
        let count = writer.step(&list[at..], at, shape).map_err(|what| unsupported(what, 0, at))?;
        at += count;
    }
    // Also without puts there is a greeting, which has to have left.
    if !list.iter().any(|instruction| matches!(instruction, Instruction::Flush { .. })) {
        writer.flush(list.len());
    }
    Ok(writer.finish(shape, claims))
}

struct Writer<'a> {
    rank: usize,
    world: usize,
    layout: &'a Layout,
    /// Peers on other hosts, and those of them that were waited for.
    away: Vec<usize>,
    met: Vec<usize>,
    dtype: DataType,
    op: OpKind,
    body: Vec<Line>,
    tables: Tables,
    /// How often a semaphore of a peer has been signalled so far, and awaited.
    signalled: Vec<(usize, usize, u32)>,
    awaited: Vec<(usize, usize, u32)>,
    /// For each meeting, the peers that were waited for.
    meetings: Vec<Vec<usize>>,
    /// Whether a move goes through the switch.
    switched: bool,
    /// Moves since the block's last barrier: signals and waits have one.
    open: Vec<Instruction>,
    /// Whether threads have learned where operands are, which others do not know before the next barrier.
    learning: bool,
    /// Whether there were moves before the first meeting, for which threads have learned what needs none.
    learned: bool,
}

impl Writer<'_> {
    fn is_near(&self, peer: usize) -> bool {
        self.layout.node_of(peer) == self.layout.node_of(self.rank)
    }

    /// What every epoch begins with: the guard, and announcements.
    fn begin(&mut self, announces: bool, claims: &Claims, list: &[Instruction]) {
        let is_peer = |peer: &usize| *peer != self.rank && self.is_near(*peer);
        let peers: Vec<_> = (0..self.world).filter(is_peer).collect();
        let count = peers.len();
        if count > 0 {
            let first = self.words(Words::Awaited, GUARD, &peers);
            self.line(
                format!("w.guard<{count}>(p.word + @, p.peer + @, {AT_GUARD});"),
                &[first, first],
            );
            if !claims.synchronises {
                let first = self.words(Words::Signalled, GUARD, &peers);
                self.line(format!("w.begin<{count}>(p.word + @);"), &[first]);
            }
        }
        self.guard_far();
        // A rank that is alone has nobody to tell, but its own factor.
        self.tables.announces = (announces && count > 0) || self.op == OpKind::PreMulSum;
        if self.tables.announces {
            self.line(format!("w.announce<{count}>(p);"), &[]);
            self.tables.boards = peers;
            let mut early = list.iter().take_while(|i| !matches!(i, Instruction::Wait { .. }));
            if early.any(|i| matches!(i, Instruction::Move { .. })) {
                self.line("w.learn(p, learned);".to_owned(), &[]);
                (self.learning, self.learned) = (true, true);
            }
        }
    }

    /// Writes the next instruction, and those that can be done with it; how many these are.
    fn step(
        &mut self,
        list: &[Instruction],
        number: usize,
        shape: &Shape,
    ) -> Result<usize, &'static str> {
        match &list[0] {
            Instruction::Move { .. } => {
                let count = group(list, shape, self.rank);
                let conflicts =
                    |earlier| list[..count].iter().any(|m| conflict(earlier, m, shape, self.rank));
                if self.learning || self.open.iter().any(conflicts) {
                    self.line("w.sync();".to_owned(), &[]);
                    self.synced();
                }
                self.open.extend_from_slice(&list[..count]);
                self.moves(&list[..count], number)?;
                return Ok(count);
            }
            Instruction::Signal { semaphore, to } => self.signal(*semaphore, to, number)?,
            Instruction::Wait { semaphore, from } => self.wait(*semaphore, from, number)?,
            Instruction::Put { .. } => {
                let count = self.puts(list, number)?;
                self.synced();
                return Ok(count);
            }
            Instruction::Flush { .. } => self.flush(number),
        }
        self.synced();
        Ok(1)
    }

    /// After a barrier of the block.
    fn synced(&mut self) {
        self.open.clear();
        self.learning = false;
    }

    fn signal(
        &mut self,
        semaphore: usize,
        to: &[usize],
        number: usize,
    ) -> Result<(), &'static str> {
        for (nth, peers) in by_turn(&mut self.signalled, semaphore, to)? {
            let (near, far): (Vec<_>, Vec<_>) = peers.into_iter().partition(|p| self.is_near(*p));
            if !near.is_empty() {
                let first = self.words(Words::Signalled, semaphore, &near);
                let count = near.len();
                self.line(format!("w.signal<{count}>(p.word + @, @);"), &[first, nth as usize]);
            }
            if !far.is_empty() {
                self.signal_far(semaphore, &far, number);
            }
        }
        Ok(())
    }

    fn wait(
        &mut self,
        semaphore: usize,
        from: &[usize],
        number: usize,
    ) -> Result<(), &'static str> {
        for (nth, peers) in by_turn(&mut self.awaited, semaphore, from)? {
            let (peers, far): (Vec<_>, Vec<_>) = peers.into_iter().partition(|p| self.is_near(*p));
            if !far.is_empty() {
                self.wait_far(semaphore, &far, number);
            }
            if peers.is_empty() {
                continue;
            }
            let first = self.words(Words::Awaited, semaphore, &peers);
            let count = peers.len();
            // What a peer has announced is learned with the first wait for it.
            let new = peers.iter().any(|peer| self.meeting(*peer) == 0);
            if self.tables.announces && new {
                self.meetings.push(peers);
                let meeting = self.meetings.len();
                // The first one learns everything that is known by then, where nothing was moved before.
                let all = meeting == 1 && !self.learned;
                if meeting > MOST_MEETINGS {
                    return Err("waits for more than 63 different groups of peers");
                }
                self.line(
                    format!("w.meet<{count}, {meeting}, {all}>(p, learned, @, @, @);"),
                    &[first, nth as usize, number],
                );
            } else {
                self.line(
                    format!("w.wait<{count}>(p.word + @, p.peer + @, @, @);"),
                    &[first, first, nth as usize, number],
                );
            }
        }
        Ok(())
    }

    /// The meeting with a peer, or 0.
    fn meeting(&self, peer: usize) -> usize {
        self.meetings.iter().position(|peers| peers.contains(&peer)).map_or(0, |at| at + 1)
    }

    /// What the table has for a list of operands.
    fn entries(&self, places: &[Place]) -> Result<Vec<Operand>, &'static str> {
        let reaches = reaches(places, self.rank);
        let entries = places.iter().flat_map(|&place| switch::entries(place, self.world));
        let operand = |place: Place| {
            // The host knows the group's address.
            let announced = reaches && place.is_user() && place.whose != Whose::Group;
            let peer = place.peer(self.rank);
            let needed = announced || self.op == OpKind::PreMulSum;
            let meeting = if needed { self.meeting(peer) as u8 } else { 0 };
            if announced && peer != self.rank && meeting == 0 {
                return Err("a peer's buffer before the first wait for the peer");
            }
            Ok(Operand { place, announced, meeting })
        };
        entries.map(operand).collect()
    }

    /// Where these words of some peers stand in the table; they are added if they do not yet.
    fn words(&mut self, what: Words, number: usize, peers: &[usize]) -> usize {
        let wanted: Vec<_> = peers.iter().map(|&peer| Word { what, number, peer }).collect();
        let table = &mut self.tables.words;
        let known = table.windows(wanted.len()).position(|window| window == wanted);
        known.unwrap_or_else(|| {
            table.extend(wanted);
            table.len() - peers.len()
        })
    }

    fn moves(&mut self, group: &[Instruction], number: usize) -> Result<(), &'static str> {
        let form = self.form(operands(&group[0]), switch::is_switched(&group[0]))?;
        let sources = self.tables.places.len();
        let part = self.tables.parts.len();
        for instruction in group {
            let operands = self.entries(operands(instruction).0)?;
            self.tables.places.extend(operands);
            self.tables.parts.push(match instruction {
                Instruction::Move { part, .. } => *part as u32,
                _ => unreachable!("a group is of moves"),
            });
        }
        let destinations = self.tables.places.len();
        for instruction in group {
            let operands = self.entries(operands(instruction).1)?;
            self.tables.places.extend(operands);
        }
        let count = group.len();
        let (at, factor) = if self.tables.announces {
            ("learned.at", "learned.factor")
        } else {
            ("p.place", "p.place")
        };
        self.line(
            format!(
                "w.move<{form}, {count}>({at} + @, {at} + @, {factor} + @, p.peer + WORDS + @, p.parts + @, @);"
            ),
            &[sources, destinations, sources, sources, part, number],
        );
        Ok(())
    }

    /// The move's template.
    fn form(
        &mut self,
        (from, to, reduce): (&[Place], &[Place], bool),
        switched: bool,
    ) -> Result<String, &'static str> {
        let differ = !sums_are_elements(self.dtype, self.op);
        let partial = |place: &&Place| place.partial && differ;
        if from.iter().chain(to).filter(partial).any(|place| place.buffer != Buffer::Scratch) {
            return Err("packets of unfinished sums that differ from elements");
        }
        if to.iter().any(|place| partial(&place)) && to.len() > 1 {
            return Err("an unfinished sum for several places");
        }
        if !reduce && from.iter().chain(to).any(|place| partial(&place)) {
            return Err("a copy of unfinished sums");
        }
        let ty = type_name(self.dtype);
        let tables = if self.tables.announces { ", SHARED" } else { "" };
        if switched {
            self.switched = true;
            let operands = (from, to, reduce);
            let (reduce, operands) = switch::form(operands, self.world, self.dtype, self.op)?;
            let op = if reduce { op_name(self.op) } else { "Copy" };
            return Ok(format!("SwitchMove<{ty}, {op}, {operands}{tables}>"));
        }
        let mut sources = kinds(from, differ)?;
        if let Some(own) = contributions(from, self.rank, self.world) {
            sources.fill(own);
        }
        let op = if reduce { op_name(self.op) } else { "Copy" };
        let to = kinds(to, differ)?;
        Ok(format!("Move<{ty}, {op}, {}, {}{tables}>", kinds_name(&sources), kinds_name(&to)))
    }

    fn line(&mut self, text: String, numbers: &[usize]) {
        self.body.push(Line::new(text, numbers));
    }

    fn finish(self, shape: &Shape, claims: &Claims) -> Kernel {
        let Self { dtype, op, body, tables, world, switched, away, .. } = self;
        let body = lines::text(&body);
        let mut header = String::new();
        if switched {
            header += "#include \"warpmesh/multicast.cuh\"\n";
        }
        if !away.is_empty() {
            header += "#include \"warpmesh/far.cuh\"\n";
        }
        let worker = if away.is_empty() { "Worker" } else { "FarWorker" };
        let name = entry_name(shape, dtype, op);
        let (words, parts) = (tables.words.len(), tables.parts.len());
        let (places, boards) = (tables.places.len(), tables.boards.len());
        let learned = if tables.announces {
            format!("  __shared__ Learned<{places}> learned;\n")
        } else {
            String::new()
        };
        let synchronises = claims.synchronises || world == 1;
        let size = super::params::Layout::of(&tables).size;
        let source = format!(
            "// {collective} by '{plan}' for {world} ranks, {dtype}, {op}.\n\
             {header}#include \"warpmesh/plan.cuh\"\n\
             using namespace warpmesh;\n\n\
             constexpr int WORDS = {words};\n\
             using P = Params<WORDS, {parts}, {places}, {boards}>;\n\
             static_assert(sizeof(P) == {size}, \"as the host fills it\");\n\n\
             extern \"C\" __global__ void __launch_bounds__({THREADS}, 2)\n\
             {name}(const __grid_constant__ P p) {{\n  \
{learned}  \
               {worker}<{synchronises}, {THREADS}> w(p.call);\n  \
               u32 round = 0;\n  \
               do {{\n{body}  \
               }} while (w.next(round));\n  \
               w.finish();\n\
             }}\n",
            collective = shape.collective,
            plan = shape.name.replace(|c: char| c.is_control(), " "),
            world = shape.world,
            op = op.name(),
        );
        Kernel { source, name, tables }
    }
}

/// The step that a rank reports while it waits for peers to begin the last epoch.
pub(crate) const AT_GUARD: u32 = u32::MAX - 4;

/// Meetings that the table's bytes have room for.
const MOST_MEETINGS: usize = 63;

/// The most threads of a block.
pub(crate) const THREADS: usize = 512;

/// The most signals to one semaphore in an epoch: what its value says of them has 8 bits.
const TURNS: u32 = 256;

/// Peers by how often each had its turn before, each group in order.
fn by_turn(
    turns: &mut Vec<(usize, usize, u32)>,
    semaphore: usize,
    peers: &[usize],
) -> Result<Vec<(u32, Vec<usize>)>, &'static str> {
    let mut groups: Vec<(u32, Vec<usize>)> = Vec::new();
    for &peer in peers {
        let known = turns.iter().position(|turn| (turn.0, turn.1) == (semaphore, peer));
        let at = known.unwrap_or_else(|| {
            turns.push((semaphore, peer, 0));
            turns.len() - 1
        });
        let nth = turns[at].2;
        if nth == TURNS {
            return Err("more than 256 signals of a semaphore");
        }
        turns[at].2 += 1;
        match groups.iter_mut().find(|(turn, _)| *turn == nth) {
            Some((_, peers)) => peers.push(peer),
            None => groups.push((nth, vec![peer])),
        }
    }
    Ok(groups)
}

/// Whether an unfinished sum is what a finished one would be.
pub(crate) fn sums_are_elements(dtype: DataType, op: OpKind) -> bool {
    !dtype.is_narrow_float() && !matches!(op, OpKind::Avg | OpKind::PreMulSum)
}

/// How many moves from the first on have one form and do not depend on each other.
fn group(list: &[Instruction], shape: &Shape, rank: usize) -> usize {
    if switch::is_switched(&list[0]) {
        return 1;
    }
    let form = |instruction: &Instruction| {
        let Instruction::Move { from, to, reduce, .. } = instruction else { return None };
        let kinds = (kinds(from, true).ok(), kinds(to, true).ok());
        Some((kinds, *reduce, contributions(from, rank, shape.world)))
    };
    let first = form(&list[0]);
    let mut count = 1;
    while count < list.len()
        && form(&list[count]) == first
        && !list[..count].iter().any(|earlier| conflict(earlier, &list[count], shape, rank))
    {
        count += 1;
    }
    count
}

fn operands(instruction: &Instruction) -> (&[Place], &[Place], bool) {
    match instruction {
        Instruction::Move { from, to, reduce, .. } => (from, to, *reduce),
        _ => (&[], &[], false),
    }
}

/// Whether a list of operands reaches into a peer's buffers: then all of them are found by what their ranks announced.
fn reaches(places: &[Place], rank: usize) -> bool {
    places.iter().any(|place| place.is_user() && !place.is_of(rank))
}

#[cfg(test)]
mod tests;

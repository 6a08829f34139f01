//! Operations of the format into actions: every name resolved, every number checked, ranges cut
//! into single chunks. What cannot run is refused here, by its name.

use super::format::{BufferType, ChannelType, Chunks, Document, Op, Threadblock};
use super::layout::{Cell, Layout};
use super::names::{BlockNames, Channel, RankNames};
use super::{At, MscclppError, bounded};

/// Bounds what a short text can ask for: operands of all actions.
const MAX_OPERANDS: usize = 1 << 20;
/// Thread blocks of all ranks.
const MAX_THREADBLOCKS: usize = 4096;

/// Where an action reads or writes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Plain(Cell),
    /// A chunk of scratch memory as packets.
    Packet {
        rank: usize,
        chunk: usize,
    },
    /// The same chunk of all ranks.
    Group {
        buffer: BufferType,
        chunk: usize,
    },
    GroupPacket {
        chunk: usize,
    },
}

#[derive(Debug)]
pub(super) enum Action {
    Move {
        to: Vec<Operand>,
        from: Vec<Operand>,
        reduce: bool,
    },
    /// A transfer over a port channel; of packets, it must also be noticed by who reads them.
    Put {
        channel: Channel,
        to: Operand,
        from: Operand,
    },
    Signal(Channel),
    Wait(Channel),
    Flush(Channel),
    Barrier {
        id: usize,
        /// How many thread blocks should meet.
        of: usize,
    },
    Acquire(usize),
    Release(usize),
}

/// One thread block's actions, each with the operation it is part of.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) rank: usize,
    pub(super) actions: Vec<(At<'a>, Action)>,
}

/// All thread blocks of all ranks, by rank and thread block.
pub(super) fn decode<'a>(
    document: &'a Document,
    layout: &Layout,
) -> Result<Vec<Block<'a>>, MscclppError> {
    let count = document.gpus.iter().map(|gpu| gpu.threadblocks.len()).sum();
    bounded("thread blocks", count, MAX_THREADBLOCKS)?;
    let mut decoder = Decoder { layout, operands: 0, reduce_op: None };
    let mut blocks = Vec::with_capacity(count);
    for (rank, gpu) in document.gpus.iter().enumerate() {
        let names = RankNames::new(gpu, layout.world);
        let mut threadblocks: Vec<_> = gpu.threadblocks.iter().collect();
        threadblocks.sort_by_key(|threadblock| threadblock.id);
        for (place, threadblock) in threadblocks.into_iter().enumerate() {
            if threadblock.id != place {
                let problem = format!("thread block {place} is missing or there twice");
                return Err(MscclppError::Rank { rank, problem });
            }
            let names = BlockNames::new(&names, threadblock);
            let here = Surroundings { rank, names: &names, semaphores: gpu.semaphores.len() };
            blocks.push(decoder.block(here, threadblock)?);
        }
    }
    Ok(blocks)
}

struct Decoder<'a, 'l> {
    layout: &'l Layout,
    operands: usize,
    reduce_op: Option<&'a str>,
}

/// What an operation's numbers count in.
#[derive(Clone, Copy)]
struct Surroundings<'n> {
    rank: usize,
    names: &'n BlockNames<'n>,
    semaphores: usize,
}

/// What an operand must be.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Local,
    Remote,
    LocalPacket,
    RemotePacket,
    Group,
    GroupPacket,
}

/// An operation and where it stands.
#[derive(Clone, Copy)]
struct Here<'a, 'n> {
    around: Surroundings<'n>,
    at: At<'a>,
    op: &'a Op,
}

impl Here<'_, '_> {
    fn refuse<T>(&self, problem: impl Into<String>) -> Result<T, MscclppError> {
        Err(self.at.wrong(problem))
    }

    fn is_port(&self) -> bool {
        self.op.channel_type == Some(ChannelType::Port)
    }
}

impl<'a> Decoder<'a, '_> {
    fn block(
        &mut self,
        around: Surroundings<'_>,
        threadblock: &'a Threadblock,
    ) -> Result<Block<'a>, MscclppError> {
        let mut actions = Vec::new();
        for (index, op) in threadblock.ops.iter().enumerate() {
            let at = At {
                rank: around.rank,
                threadblock: threadblock.id,
                op: index,
                inner: None,
                name: &op.name,
            };
            if op.name != "pipeline" {
                self.op(Here { around, at, op }, &mut actions)?;
                continue;
            }
            for (inner, op) in op.ops.iter().enumerate() {
                let inner = Some(inner);
                let name = &op.name;
                let at = At { inner, name, ..at };
                self.op(Here { around, at, op }, &mut actions)?;
            }
        }
        Ok(Block { rank: around.rank, actions })
    }

    fn op(
        &mut self,
        here: Here<'a, '_>,
        into: &mut Vec<(At<'a>, Action)>,
    ) -> Result<(), MscclppError> {
        use Role::*;
        let actions = match here.op.name.as_str() {
            "nop" => Vec::new(),
            "barrier" => self.barrier(here)?,
            "put" | "pws" | "pwsf" => self.put(here)?,
            "ppkt" => self.put_packets(here)?,
            "rppkt" => self.read_put_packets(here)?,
            "get" => self.pairs(here, Remote, Local)?,
            "copy" => self.pairs(here, Local, Local)?,
            "cpkt" => self.pairs(here, Local, LocalPacket)?,
            "upkt" => self.pairs(here, LocalPacket, Local)?,
            "signal" | "rlxsignal" => self.channels(here, Action::Signal)?,
            "wait" | "rlxwait" => self.channels(here, Action::Wait)?,
            "flush" => self.flush(here)?,
            "re" => self.reduce(here, Local, &[Local], None)?,
            "res" => self.reduce(here, Local, &[Local], Some(Remote))?,
            "rre" => self.reduce(here, Remote, &[Local], None)?,
            "rres" => self.reduce(here, Remote, &[Local], Some(Remote))?,
            "repkt" => self.reduce(here, LocalPacket, &[Local], None)?,
            "respkt" => self.reduce(here, LocalPacket, &[Local], Some(RemotePacket))?,
            "recpkt" => self.reduce(here, LocalPacket, &[Local, LocalPacket], None)?,
            "recspkt" => {
                self.reduce(here, LocalPacket, &[Local, LocalPacket], Some(RemotePacket))?
            }
            "glres" => self.group(here, Group, Group, true)?,
            "gstore" => self.group(here, Local, Group, false)?,
            "gstorepkt" => self.group(here, LocalPacket, GroupPacket, false)?,
            "sem_acquire" => self.semaphores(here, Action::Acquire)?,
            "sem_release" => self.semaphores(here, Action::Release)?,
            "pipeline" => return here.refuse("a pipeline stands inside a pipeline"),
            "glre" => {
                return here.refuse("a group load alone has no executable form; only glres has");
            }
            "start" => return here.refuse("it marks a list's start and is not executable"),
            _ => return here.refuse("no operation of the format has this name"),
        };
        into.extend(actions.into_iter().map(|action| (here.at, action)));
        Ok(())
    }

    fn barrier(&self, here: Here<'a, '_>) -> Result<Vec<Action>, MscclppError> {
        match (here.op.barrier_id, here.op.num_threadblocks) {
            (Some(id), Some(of)) => Ok(vec![Action::Barrier { id, of }]),
            _ => here.refuse("it has no barrier_id or no num_threadblocks"),
        }
    }

    fn put(&mut self, here: Here<'a, '_>) -> Result<Vec<Action>, MscclppError> {
        if !here.is_port() {
            if here.op.name != "put" {
                return here.refuse("it goes over a port channel, and this is none");
            }
            return self.pairs(here, Role::Local, Role::Remote);
        }
        let mut actions = Vec::new();
        for (i, to, from) in self.each_pair(here, Role::Local, Role::Remote)? {
            let channel = self.port_to(here, i, to)?;
            actions.push(Action::Put { channel, to, from });
        }
        let channels = self.all_channels(here)?;
        if here.op.name != "put" {
            actions.extend(channels.iter().copied().map(Action::Signal));
        }
        if here.op.name == "pwsf" {
            actions.extend(channels.into_iter().map(Action::Flush));
        }
        Ok(actions)
    }

    fn put_packets(&mut self, here: Here<'a, '_>) -> Result<Vec<Action>, MscclppError> {
        if !here.is_port() {
            return self.pairs(here, Role::Local, Role::RemotePacket);
        }
        // Over a port nothing is made into packets on the way: in scratch memory they are packets.
        let scratch = |chunks: &Chunks| chunks.buffer == Some(BufferType::Scratch);
        let from = match here.op.src_buff.iter().all(scratch) {
            true => Role::LocalPacket,
            false => Role::Local,
        };
        let mut actions = Vec::new();
        for (i, to, from) in self.each_pair(here, from, Role::RemotePacket)? {
            let channel = self.port_to(here, i, to)?;
            actions.push(Action::Put { channel, to, from });
        }
        Ok(actions)
    }

    /// One source, which goes to all destinations.
    fn read_put_packets(&mut self, here: Here<'a, '_>) -> Result<Vec<Action>, MscclppError> {
        let [source] = here.op.src_buff.as_slice() else {
            return here.refuse("it takes one source");
        };
        let from = self.operands(here, source, Role::LocalPacket)?;
        let mut targets = Vec::new();
        for chunks in &here.op.dst_buff {
            targets.push(self.operands(here, chunks, Role::RemotePacket)?);
        }
        if targets.is_empty() || targets.iter().any(|to| to.len() != from.len()) {
            return here.refuse("sources and destinations are not of the same number of chunks");
        }
        let mut actions = Vec::new();
        for (i, from) in from.into_iter().enumerate() {
            let to: Vec<_> = targets.iter().map(|to| to[i]).collect();
            if here.is_port() {
                for (target, to) in to.into_iter().enumerate() {
                    let channel = self.port_to(here, target, to)?;
                    actions.push(Action::Put { channel, to, from });
                }
            } else {
                actions.push(copy(to, from));
            }
        }
        Ok(actions)
    }

    /// Copies: source i to destination i.
    fn pairs(
        &mut self,
        here: Here<'a, '_>,
        from: Role,
        to: Role,
    ) -> Result<Vec<Action>, MscclppError> {
        let pairs = self.each_pair(here, from, to)?;
        Ok(pairs.into_iter().map(|(_, to, from)| copy(vec![to], from)).collect())
    }

    /// For each chunk: which of the operands it belongs to, its destination, its source.
    fn each_pair(
        &mut self,
        here: Here<'a, '_>,
        from: Role,
        to: Role,
    ) -> Result<Vec<(usize, Operand, Operand)>, MscclppError> {
        let (sources, targets) = (&here.op.src_buff, &here.op.dst_buff);
        if sources.len() != targets.len() || sources.is_empty() {
            return here.refuse(format!(
                "{} sources for {} destinations",
                sources.len(),
                targets.len()
            ));
        }
        let mut pairs = Vec::new();
        for (i, (source, target)) in sources.iter().zip(targets).enumerate() {
            let from = self.operands(here, source, from)?;
            let to = self.operands(here, target, to)?;
            if from.len() != to.len() {
                return here.refuse(format!(
                    "source {i} has {} chunks, destination {i} has {}",
                    source.size, target.size
                ));
            }
            pairs.extend(to.into_iter().zip(from).map(|(to, from)| (i, to, from)));
        }
        Ok(pairs)
    }

    /// The first source is local, the others as said; the first destinations as said, and if there
    /// may be more, those as said.
    fn reduce(
        &mut self,
        here: Here<'a, '_>,
        others: Role,
        first: &[Role],
        more: Option<Role>,
    ) -> Result<Vec<Action>, MscclppError> {
        self.same_reduce_op(here)?;
        let (sources, targets) = (&here.op.src_buff, &here.op.dst_buff);
        if sources.is_empty() || targets.len() < first.len() {
            return here.refuse("sources or destinations are missing");
        }
        if targets.len() > first.len() && more.is_none() {
            return here.refuse("it has more destinations than it writes");
        }
        let mut from = Vec::with_capacity(sources.len());
        for (i, chunks) in sources.iter().enumerate() {
            let role = if i == 0 { Role::Local } else { others };
            from.push(self.operands(here, chunks, role)?);
        }
        let mut to = Vec::with_capacity(targets.len());
        for (i, chunks) in targets.iter().enumerate() {
            let role = first.get(i).copied().or(more).unwrap_or(Role::Local);
            to.push(self.operands(here, chunks, role)?);
        }
        transposed(&from, &to).map_or_else(
            || here.refuse("sources and destinations are not of the same number of chunks"),
            Ok,
        )
    }

    fn group(
        &mut self,
        here: Here<'a, '_>,
        from: Role,
        to: Role,
        reduce: bool,
    ) -> Result<Vec<Action>, MscclppError> {
        if reduce {
            self.same_reduce_op(here)?;
        }
        let ([_], [_]) = (here.op.src_buff.as_slice(), here.op.dst_buff.as_slice()) else {
            return here.refuse("it takes one source and one destination");
        };
        let pairs = self.each_pair(here, from, to)?;
        let action = |(_, to, from)| Action::Move { to: vec![to], from: vec![from], reduce };
        Ok(pairs.into_iter().map(action).collect())
    }

    /// A plan of ours reduces by the operator of the call, so the format's must all be one.
    fn same_reduce_op(&mut self, here: Here<'a, '_>) -> Result<(), MscclppError> {
        let op = here.op.reduce_op.as_deref().unwrap_or("sum");
        if !["sum", "prod", "min", "max"].contains(&op) {
            return here.refuse(format!("no reduction is called '{op}'"));
        }
        let first = *self.reduce_op.get_or_insert(op);
        if first != op {
            return here.refuse(format!("it reduces by {op}, the plan before by {first}"));
        }
        Ok(())
    }

    fn semaphores(
        &self,
        here: Here<'a, '_>,
        action: fn(usize) -> Action,
    ) -> Result<Vec<Action>, MscclppError> {
        let count = here.around.semaphores;
        match here.op.semaphore_ids.iter().find(|id| **id >= count) {
            Some(id) => here.refuse(format!("there is no semaphore {id}, only {count}")),
            None => Ok(here.op.semaphore_ids.iter().copied().map(action).collect()),
        }
    }

    fn channels(
        &self,
        here: Here<'a, '_>,
        action: fn(Channel) -> Action,
    ) -> Result<Vec<Action>, MscclppError> {
        Ok(self.all_channels(here)?.into_iter().map(action).collect())
    }

    fn flush(&self, here: Here<'a, '_>) -> Result<Vec<Action>, MscclppError> {
        if !here.is_port() {
            return here.refuse("only port channels are flushed");
        }
        self.channels(here, Action::Flush)
    }

    fn all_channels(&self, here: Here<'a, '_>) -> Result<Vec<Channel>, MscclppError> {
        let ids = 0..here.op.channel_ids.len();
        ids.map(|i| self.channel(here, i)).collect()
    }

    /// The channel that operand `i` goes over.
    fn channel(&self, here: Here<'a, '_>, i: usize) -> Result<Channel, MscclppError> {
        let Some(ChannelType::Memory | ChannelType::Port) = here.op.channel_type else {
            return here.refuse("its channel is neither a memory nor a port channel");
        };
        let Some(id) = here.op.channel_ids.get(i) else {
            return here.refuse(format!("it has no channel for operand {i}"));
        };
        let channel = here.around.names.channel(here.is_port(), *id);
        let channel = channel.map_err(|problem| here.at.wrong(problem))?;
        if channel.peer >= self.layout.world || channel.peer == here.at.rank {
            return here.refuse(format!("its channel leads to rank {}", channel.peer));
        }
        Ok(channel)
    }

    /// The port channel of operand `i`, which must lead to where that lies.
    fn port_to(&self, here: Here<'a, '_>, i: usize, to: Operand) -> Result<Channel, MscclppError> {
        let channel = self.channel(here, i)?;
        let owner = match to {
            Operand::Plain(cell) => Some(cell.rank()),
            Operand::Packet { rank, .. } => Some(rank),
            _ => None,
        };
        if owner != Some(channel.peer) {
            return here.refuse(format!(
                "channel {i} leads to rank {}, but destination {i} is not there",
                channel.peer
            ));
        }
        Ok(channel)
    }

    /// The single chunks of a range, or of this thread block's share of it.
    fn operands(
        &mut self,
        here: Here<'a, '_>,
        chunks: &Chunks,
        role: Role,
    ) -> Result<Vec<Operand>, MscclppError> {
        let (owner, buffer) = self.memory(here, chunks, role)?;
        let finer = self.layout.finer;
        let mut first = chunks.index.saturating_mul(finer);
        let mut count = chunks.size.saturating_mul(finer);
        if let Some(share) = here.op.tbg_info {
            if share.tb_id >= share.tbg_size {
                return here.refuse("its tb_id is not below its tbg_size");
            }
            count /= share.tbg_size;
            first = first.saturating_add(share.tb_id.saturating_mul(count));
        }
        self.operands = self.operands.saturating_add(count);
        bounded("operands of all operations", self.operands, MAX_OPERANDS)?;
        let owner = owner.unwrap_or(here.at.rank);
        let operand = |chunk: usize| {
            let cell = self.layout.cell(owner, buffer, chunk);
            let cell = cell.map_err(|problem| here.at.wrong(problem))?;
            Ok(match role {
                Role::Local | Role::Remote => Operand::Plain(cell),
                Role::LocalPacket | Role::RemotePacket => Operand::Packet { rank: owner, chunk },
                Role::Group => Operand::Group { buffer, chunk },
                Role::GroupPacket => Operand::GroupPacket { chunk },
            })
        };
        (first..first.saturating_add(count)).map(operand).collect()
    }

    /// Whose memory and which buffer an operand of this role lies in; None for one's own.
    fn memory(
        &self,
        here: Here<'a, '_>,
        chunks: &Chunks,
        role: Role,
    ) -> Result<(Option<usize>, BufferType), MscclppError> {
        let packets = matches!(role, Role::LocalPacket | Role::RemotePacket | Role::GroupPacket);
        let (owner, buffer) = match (role, chunks) {
            (Role::Local | Role::LocalPacket, Chunks { buffer: Some(b), .. }) => (None, *b),
            (Role::Remote | Role::RemotePacket, Chunks { buffer_id: Some(id), .. }) => {
                self.remote(here, *id)?
            }
            (Role::Group | Role::GroupPacket, Chunks { switch_channel_id: Some(id), .. }) => {
                let buffer = here.around.names.switch(*id);
                (None, buffer.map_err(|problem| here.at.wrong(problem))?)
            }
            (Role::Local | Role::LocalPacket, _) => {
                return here.refuse("an operand that must be local has no 'type'");
            }
            (Role::Remote | Role::RemotePacket, _) => {
                return here.refuse("an operand that must be remote has no 'buffer_id'");
            }
            _ => return here.refuse("an operand of the group has no 'switch_channel_id'"),
        };
        if packets && buffer != BufferType::Scratch {
            return here.refuse("packets lie in scratch memory only");
        }
        Ok((owner, buffer))
    }

    fn remote(
        &self,
        here: Here<'a, '_>,
        id: usize,
    ) -> Result<(Option<usize>, BufferType), MscclppError> {
        let puts = ["put", "pws", "pwsf", "ppkt", "rppkt"].contains(&here.op.name.as_str());
        match here.op.channel_type {
            Some(ChannelType::Memory) => {}
            Some(ChannelType::Port) if puts => {}
            Some(ChannelType::Port) => {
                return here.refuse("a port channel only puts; this reads or writes memory itself");
            }
            _ => return here.refuse("remote memory needs a memory or a port channel"),
        }
        let buffer = here.around.names.buffer(here.is_port(), id);
        let (rank, buffer) = buffer.map_err(|problem| here.at.wrong(problem))?;
        if rank >= self.layout.world {
            return here.refuse(format!("remote buffer {id} is of rank {rank}"));
        }
        Ok((Some(rank), buffer))
    }
}

fn copy(to: Vec<Operand>, from: Operand) -> Action {
    Action::Move { to, from: vec![from], reduce: false }
}

/// One action for each chunk; None if the ranges are not all of one length.
fn transposed(from: &[Vec<Operand>], to: &[Vec<Operand>]) -> Option<Vec<Action>> {
    let count = from[0].len();
    if from.iter().chain(to).any(|range| range.len() != count) {
        return None;
    }
    let action = |chunk: usize| Action::Move {
        to: to.iter().map(|range| range[chunk]).collect(),
        from: from.iter().map(|range| range[chunk]).collect(),
        reduce: true,
    };
    Some((0..count).map(action).collect())
}

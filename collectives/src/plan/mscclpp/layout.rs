//! Where the format's chunks lie in our blocks and parts.
//!
//! The format cuts each buffer of a rank into chunks. A chunk of a user's buffer is a part of a
//! block; a chunk of scratch memory is a slot. Where thread blocks share a chunk, all chunks are
//! cut finer, so that each thread block's share is a number of whole chunks again.

use super::super::verify::{MAX_CHUNKS, MAX_SLOTS};
use super::super::{Collective, Shape};
use super::format::{BufferType, Document, Op};
use super::{MscclppError, bounded};

/// The closing barrier is of all pairs of ranks.
const MAX_RANKS: usize = 1024;

/// Chunks of all ranks' buffers.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) collective: Collective,
    pub(super) world: usize,
    pub(super) in_place: bool,
    /// Parts of a block: the format's chunks of it times `finer`.
    pub(super) parts: usize,
    /// How many of our chunks one of the format's is.
    pub(super) finer: usize,
    /// Chunks of every rank's scratch memory.
    scratch: Vec<usize>,
}

/// A chunk of a rank's memory. In place, what is both input and output is called output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    Input { rank: usize, block: usize, part: usize },
    Output { rank: usize, block: usize, part: usize },
    Scratch { rank: usize, chunk: usize },
}

impl Cell {
    pub(super) fn rank(self) -> usize {
        match self {
            Self::Input { rank, .. } | Self::Output { rank, .. } | Self::Scratch { rank, .. } => {
                rank
            }
        }
    }

    /// The part of the window that a chunk of a user's buffer is.
    pub(super) fn part(self) -> Option<usize> {
        match self {
            Self::Input { part, .. } | Self::Output { part, .. } => Some(part),
            Self::Scratch { .. } => None,
        }
    }
}

impl Layout {
    pub(super) fn new(document: &Document) -> Result<Self, MscclppError> {
        let collective = collective(&document.collective)?;
        let world = document.gpus.len();
        bounded("ranks", world, MAX_RANKS)?;
        if world == 0 {
            return Err(MscclppError::NoRanks);
        }
        let finer = finer(document)?;
        let mut layout = Self {
            collective,
            world,
            in_place: document.inplace,
            parts: 0,
            finer,
            scratch: Vec::with_capacity(world),
        };
        for (rank, gpu) in document.gpus.iter().enumerate() {
            let wrong = |problem| MscclppError::Rank { rank, problem };
            if gpu.id != rank {
                return Err(wrong(format!("entry {rank} of 'gpus' has id {}", gpu.id)));
            }
            let parts =
                layout.parts_of(rank, gpu.input_chunks, gpu.output_chunks).map_err(wrong)?;
            if rank > 0 && parts != layout.parts {
                return Err(wrong(format!(
                    "its blocks have {parts} chunks, those of rank 0 have {}",
                    layout.parts
                )));
            }
            layout.parts = parts;
            let scratch = gpu.scratch_chunks.saturating_mul(finer);
            bounded("scratch chunks", scratch, MAX_SLOTS)?;
            layout.scratch.push(scratch);
        }
        Ok(layout)
    }

    /// Our parts of a block, from the format's chunks of input and output.
    fn parts_of(&self, rank: usize, input: usize, output: usize) -> Result<usize, String> {
        let (inputs, outputs) = self.collective.blocks(self.world, 0, rank);
        let parts = input / inputs;
        if parts == 0 || parts * inputs != input || parts.checked_mul(outputs) != Some(output) {
            return Err(format!(
                "{input} input chunks and {output} output chunks are not those of {} over {} ranks",
                self.collective, self.world
            ));
        }
        let parts = parts.saturating_mul(self.finer);
        let chunks = parts.saturating_mul(self.world * (inputs + outputs));
        match chunks <= MAX_CHUNKS && parts <= MAX_SLOTS {
            true => Ok(parts),
            false => Err(format!("{input} input chunks are too many")),
        }
    }

    /// A chunk of a rank's buffer, already counted in our finer chunks.
    pub(super) fn cell(
        &self,
        rank: usize,
        buffer: BufferType,
        chunk: usize,
    ) -> Result<Cell, String> {
        let (inputs, outputs) = self.collective.blocks(self.world, 0, rank);
        let (name, count) = match buffer {
            BufferType::Input => ("input", inputs * self.parts),
            BufferType::Output => ("output", outputs * self.parts),
            BufferType::Scratch => ("scratch", self.scratch[rank]),
        };
        if chunk >= count {
            return Err(format!(
                "rank {rank} has {} {name} chunks, there is no chunk {}",
                count / self.finer,
                chunk / self.finer
            ));
        }
        let (block, part) = (chunk / self.parts, chunk % self.parts);
        Ok(match buffer {
            BufferType::Scratch => Cell::Scratch { rank, chunk },
            BufferType::Output => Cell::Output { rank, block, part },
            BufferType::Input => match self.collective.alias(0, rank, block) {
                Some(block) if self.in_place => Cell::Output { rank, block, part },
                _ => Cell::Input { rank, block, part },
            },
        })
    }

    /// The input block that is in a cell before anything is written to it.
    pub(super) fn input_of(&self, cell: Cell) -> Option<usize> {
        let (rank, output) = match cell {
            Cell::Input { block, .. } => return Some(block),
            Cell::Output { rank, block, .. } if self.in_place => (rank, block),
            _ => return None,
        };
        match self.collective {
            Collective::ReduceScatter => Some(rank),
            Collective::AllGather => (output == rank).then_some(0),
            _ => Some(output),
        }
    }

    /// The plan's shape, without slots.
    pub(super) fn shape(&self, name: &str) -> Shape {
        Shape {
            name: name.to_owned(),
            collective: self.collective,
            world: self.world,
            root: 0,
            parts: self.parts,
            scratch: 0,
            packets: 0,
        }
    }
}

fn collective(name: &str) -> Result<Collective, MscclppError> {
    Ok(match name {
        "allreduce" => Collective::AllReduce,
        "allgather" => Collective::AllGather,
        "reducescatter" => Collective::ReduceScatter,
        "alltoall" => Collective::AllToAll,
        _ => {
            return Err(MscclppError::Collective { name: name.to_owned() });
        }
    })
}

/// The number of pieces to cut every chunk into, so that all thread blocks' shares are whole.
fn finer(document: &Document) -> Result<usize, MscclppError> {
    let threadblocks = document.gpus.iter().flat_map(|gpu| &gpu.threadblocks);
    let mut finer = 1;
    for op in threadblocks.flat_map(|tb| &tb.ops) {
        for op in std::iter::once(op).chain(&op.ops) {
            finer = finer_for(op, finer)?;
        }
    }
    Ok(finer)
}

fn finer_for(op: &Op, mut finer: usize) -> Result<usize, MscclppError> {
    let Some(share) = op.tbg_info else {
        return Ok(finer);
    };
    for chunks in op.src_buff.iter().chain(&op.dst_buff) {
        let pieces = share.tbg_size.max(1) / gcd(chunks.size, share.tbg_size.max(1));
        bounded("thread blocks of a group", pieces, MAX_SLOTS)?;
        finer *= pieces / gcd(finer, pieces);
        bounded("shares of a chunk", finer, MAX_SLOTS)?;
    }
    Ok(finer)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

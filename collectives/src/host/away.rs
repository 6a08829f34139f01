//! What a rank puts to ranks of other hosts.

use warpmesh_primitives::failure::Failure;
use warpmesh_primitives::node::Outgoing;

use super::executor::{Executor, Extent, Job};
use super::prepare::{Prepared, Spot, Step};
use crate::communicator::call::{Address, Board};

/// Buffers of a rank's call: memory and first byte.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Far {
    sequence: u64,
    input: Option<(u32, u64)>,
    output: Option<(u32, u64)>,
}

impl Executor {
    /// To another host.
    pub(super) fn put(
        &mut self,
        prepared: &Prepared,
        step: &Step,
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Failure> {
        let Step::Put { part, block, from, to, partial, peer, semaphore } = *step else {
            return Ok(());
        };
        let length = match (job.spans, block) {
            (Some(spans), Some(block)) => spans.input[block].1,
            _ => job.count,
        };
        let Extent { first, count } = self.window(length, prepared, part, job, round);
        let size = if partial { job.accumulator } else { job.size };
        let me = self.node.rank();
        let (from, to) = match count {
            // A signal alone names no memory.
            0 => ((0, 0), (0, 0)),
            _ => (
                self.spot(from, me, first, prepared, job)?,
                self.spot(to, peer, first, prepared, job)?,
            ),
        };
        let what = Outgoing {
            memory: (from.0, to.0),
            offset: (from.1, to.1),
            bytes: (count * size) as u64,
            signal: semaphore,
        };
        self.node.put(peer, &what)
    }

    /// Memory and first byte of a put's end at a rank, from element `first` of a block on.
    fn spot(
        &mut self,
        spot: Spot,
        rank: usize,
        first: usize,
        prepared: &Prepared,
        job: &Job<'_>,
    ) -> Result<(u32, u64), Failure> {
        let (base, block) = match spot {
            Spot::Scratch(halves) => {
                return Ok((prepared.scratch, halves[(self.epoch % 2) as usize]));
            }
            Spot::Input(block) => (self.far(rank, job)?.input, block),
            Spot::Output(block) => (self.far(rank, job)?.output, block),
        };
        // A peer that is in the same call has registered its buffers, or would have been found out by the call's tag.
        let (memory, begin) = base.ok_or_else(|| self.mismatch(rank))?;
        Ok((memory, begin + ((block * job.count + first) * job.size) as u64))
    }

    /// Where a rank's buffers of this call are, as it said on its board.
    fn far(&mut self, rank: usize, job: &Job<'_>) -> Result<Far, Failure> {
        if self.far[rank].sequence != job.sequence {
            let board = self.node.control(rank).call(job.sequence).map(|call| Board::read(&call));
            let board = board.ok_or_else(|| self.mismatch(rank))?;
            let find = |address: Option<Address>| {
                let Address { id, offset } = address?;
                Some((self.memories.get(id)?.as_ref()?.number?, offset as u64))
            };
            let (input, output) = (find(board.input), find(board.output));
            self.far[rank] = Far { sequence: job.sequence, input, output };
        }
        Ok(self.far[rank])
    }
}

//! Inputs whose result is exact in any order, and the check of results bit by bit.
//!
//! ```
//! use warpmesh::DataType;
//! use warpmesh_benches::layout::{Op, Test};
//! use warpmesh_benches::oracle::{Job, Oracle};
//!
//! let test = Test::from_name("all_reduce").unwrap();
//! let job = Job { test, dtype: DataType::F32, op: Op::Sum, world: 1, root: 0, count: 4 };
//! let oracle = Oracle::new(job, 42);
//! let (mut input, mut output) = ([0; 16], [0; 16]);
//! oracle.spoil_output(0, &mut output); // what is not written counts as wrong
//! oracle.fill_input(0, &mut input);
//! assert_eq!(oracle.wrong(0, &output), 4);
//! output.copy_from_slice(&input); // the collective, with one rank
//! assert_eq!(oracle.wrong(0, &output), 0);
//! ```
//!
//! Elements repeat with a period, so that filling and checking run at the speed of memory; every
//! repetition is rotated, so that a block in the wrong place is still noticed.

mod pattern;
mod values;

use warpmesh::DataType;
use warpmesh::plan::Collective;

pub use self::pattern::digest;
use self::pattern::{PERIOD, Pattern};
use self::values::{Values, mix};
use crate::layout::{Op, Test};

/// A call whose result is to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What is called.
    pub test: Test,
    /// The elements' type.
    pub dtype: DataType,
    /// The reduction, where there is one.
    pub op: Op,
    /// Ranks.
    pub world: usize,
    /// The root, where there is one.
    pub root: usize,
    /// Elements per block: the count argument of the call.
    pub count: usize,
}

/// Knows every rank's input and output of one call.
#[derive(Clone, Copy, Debug)]
pub struct Oracle {
    job: Job,
    values: Values,
    seed: u64,
}

/// A run of elements of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    /// Whose input it is; None for the reduction of all.
    of: Option<usize>,
    /// The first element's index in that input.
    first: usize,
    count: usize,
}

impl Oracle {
    /// Another seed gives other data, so that what a former call left behind is not taken for the
    /// result of this one.
    pub fn new(job: Job, seed: u64) -> Self {
        let op = job.test.reduces().then_some(job.op);
        Self { job, values: Values::new(job.dtype, op, job.world, mix(seed)), seed }
    }

    /// Writes a rank's input: its whole send buffer. Bytes beyond it are left alone.
    pub fn fill_input(&self, rank: usize, buffer: &mut [u8]) {
        let input = Segment { of: Some(rank), first: 0, count: self.input_count(rank) };
        let bytes = input.count * self.job.dtype.size();
        self.pattern(input).write(0, &mut buffer[..bytes]);
    }

    /// How many elements of a rank's input differ from what [`Oracle::fill_input`] wrote.
    pub fn input_damage(&self, rank: usize, buffer: &[u8]) -> u64 {
        let input = Segment { of: Some(rank), first: 0, count: self.input_count(rank) };
        let bytes = input.count * self.job.dtype.size();
        self.pattern(input).differing(0, &buffer[..bytes])
    }

    /// Writes to a rank's output what is wrong at every element: the complement of the result.
    /// In place, call it before [`Oracle::fill_input`].
    pub fn spoil_output(&self, rank: usize, buffer: &mut [u8]) {
        let size = self.job.dtype.size();
        let mut rest = buffer;
        for segment in self.output(rank) {
            let (bytes, others) = rest.split_at_mut(segment.count * size);
            self.pattern(segment).write(segment.first, bytes);
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            rest = others;
        }
    }

    /// How many elements of a rank's output differ from the result.
    ///
    /// # Panics
    /// If `output` is shorter than the rank's output.
    pub fn wrong(&self, rank: usize, output: &[u8]) -> u64 {
        let size = self.job.dtype.size();
        let mut rest = output;
        let mut wrong = 0;
        for segment in self.output(rank) {
            let (bytes, others) = rest.split_at(segment.count * size);
            wrong += self.pattern(segment).differing(segment.first, bytes);
            rest = others;
        }
        wrong
    }

    /// Elements of a rank's output.
    pub fn output_count(&self, rank: usize) -> usize {
        self.output(rank).iter().map(|segment| segment.count).sum()
    }

    /// Elements of a rank's input.
    pub fn input_count(&self, rank: usize) -> usize {
        let Job { test, world, root, count, .. } = self.job;
        match test {
            Test::Collective(collective) => collective.blocks(world, root, rank).0 * count,
            Test::SendRecv => count,
        }
    }

    /// Fills a buffer with floats whose sum depends on the order, to see whether all ranks end
    /// with the same bits: where ranks add in different orders, some element will tell.
    ///
    /// Returns false for types whose sums do not depend on the order.
    pub fn fill_rough(&self, rank: usize, buffer: &mut [u8]) -> bool {
        pattern::fill_rough(self.job.dtype, mix(self.seed ^ rank as u64), buffer)
    }

    /// The segments of a rank's output, in order.
    fn output(&self, rank: usize) -> Vec<Segment> {
        let Job { test, world, root, count, .. } = self.job;
        let whole = |of| Segment { of, first: 0, count };
        let mine = |of| Segment { of, first: rank * count, count };
        let Test::Collective(collective) = test else {
            return vec![whole(Some((rank + world - 1) % world))];
        };
        match collective {
            Collective::AllReduce => vec![whole(None)],
            Collective::Reduce if rank == root => vec![whole(None)],
            Collective::ReduceScatter => vec![mine(None)],
            Collective::Broadcast => vec![whole(Some(root))],
            Collective::Scatter => vec![mine(Some(root))],
            Collective::AllGather => (0..world).map(|of| whole(Some(of))).collect(),
            Collective::Gather if rank == root => (0..world).map(|of| whole(Some(of))).collect(),
            Collective::AllToAll => (0..world).map(|of| mine(Some(of))).collect(),
            _ => vec![],
        }
    }

    fn pattern(&self, segment: Segment) -> Pattern {
        let slots = PERIOD.min(segment.first + segment.count);
        Pattern::new(self.job.dtype.size(), slots, |slot| match segment.of {
            Some(rank) => self.values.input(rank, slot),
            None => self.values.reduced(slot),
        })
    }
}

#[cfg(test)]
mod tests;

//! A call of a collective, as the user makes it and as the peers see it.

use std::fmt;

use warpmesh_primitives::control::Call;

use crate::dtype::DataType;
use crate::error::{Error, argument};
use crate::op::{OpKind, ReduceOp};
use crate::plan::Collective;

/// A collective call without types: what bindings and benchmarks use. See
/// [`Communicator::call`](crate::Communicator::call).
#[derive(Clone, Copy, Debug)]
pub struct RawCall {
    /// Which collective.
    pub collective: Collective,
    /// The elements' type.
    pub dtype: DataType,
    /// How elements are combined; ignored by collectives that do not.
    pub op: ReduceOp,
    /// The root of a rooted collective, else 0.
    pub root: usize,
    /// Elements of a block: NCCL's count argument.
    pub count: usize,
    /// The input, or null where this rank has none.
    pub input: *const u8,
    /// The output, or null where this rank has none; the same address as the input in place.
    pub output: *mut u8,
}

impl RawCall {
    /// Bytes of this rank's input and output.
    pub(crate) fn bytes(&self, rank: usize, world: usize) -> Result<(usize, usize), Error> {
        let name = self.collective.name();
        let (inputs, outputs) = self.collective.blocks(world, self.root, rank);
        let block = self.count.checked_mul(self.dtype.size());
        let total = |blocks: usize| block.and_then(|bytes| bytes.checked_mul(blocks));
        // Bounded by isize::MAX so that pointer arithmetic cannot wrap.
        match (total(inputs.max(world)), total(inputs), total(outputs)) {
            (Some(most), Some(input), Some(output)) if isize::try_from(most).is_ok() => {
                Ok((input, output))
            }
            _ => Err(argument(name, "count", format!("{} is too large", self.count))),
        }
    }

    /// Checks everything that can be checked on this rank.
    pub(crate) fn check(&self, rank: usize, world: usize) -> Result<Checked, Error> {
        let name = self.collective.name();
        if self.root >= world {
            let problem = format!("is {}, but there are {world} ranks", self.root);
            return Err(argument(name, "root", problem));
        }
        if let ReduceOp::PreMulSum(scalar) = self.op
            && scalar.dtype() != self.dtype
        {
            let problem =
                format!("multiplies by a {}, elements are {}", scalar.dtype(), self.dtype);
            return Err(argument(name, "op", problem));
        }
        let (input, output) = self.bytes(rank, world)?;
        let checked = Checked { in_place: false, input_bytes: input, output_bytes: output };
        let (start_in, start_out) = (self.input as usize, self.output as usize);
        for (what, start, bytes) in [("input", start_in, input), ("output", start_out, output)] {
            if bytes > 0 && start == 0 {
                return Err(argument(name, what, "is null"));
            }
            if bytes > 0 && start & (self.dtype.size() - 1) != 0 {
                return Err(argument(name, what, format!("is not aligned for {}", self.dtype)));
            }
        }
        let overlap = input > 0
            && output > 0
            && start_in < start_out.saturating_add(output)
            && start_out < start_in.saturating_add(input);
        if !overlap {
            return Ok(checked);
        }
        match self.in_place_start(rank, input, output) {
            Some(start) if start == start_in as isize - start_out as isize => {
                Ok(Checked { in_place: true, ..checked })
            }
            _ => Err(argument(name, "output", "overlaps input, but is not in place")),
        }
    }

    /// In place, where the input begins relative to the output.
    fn in_place_start(&self, rank: usize, input: usize, output: usize) -> Option<isize> {
        let block = (self.count * self.dtype.size()) as isize;
        let rank = rank as isize;
        match self.collective {
            Collective::AllReduce | Collective::AllToAll => Some(0),
            Collective::Broadcast | Collective::Reduce => (input == output).then_some(0),
            Collective::AllGather | Collective::Gather => Some(rank * block),
            Collective::ReduceScatter | Collective::Scatter => Some(-rank * block),
            Collective::Barrier => None,
        }
    }
}

/// What [`RawCall::check`] found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    pub(crate) in_place: bool,
    /// Bytes of this rank's input and output.
    pub(crate) input_bytes: usize,
    pub(crate) output_bytes: usize,
}

/// An address in registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) id: usize,
    pub(crate) offset: usize,
}

impl Address {
    const NONE: u64 = u64::MAX;
    const OFFSET_BITS: u32 = 44;

    fn to_word(address: Option<Self>) -> u64 {
        address.map_or(Self::NONE, |a| (a.id as u64) << Self::OFFSET_BITS | a.offset as u64)
    }

    fn from_word(word: u64) -> Option<Self> {
        let offset = word & ((1 << Self::OFFSET_BITS) - 1);
        let id = (word >> Self::OFFSET_BITS) as usize;
        (word != Self::NONE).then_some(Self { id, offset: offset as usize })
    }
}

/// What a rank puts on its board for a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Board {
    pub(crate) collective: Collective,
    pub(crate) dtype: DataType,
    pub(crate) op: OpKind,
    pub(crate) root: usize,
    pub(crate) count: usize,
    pub(crate) input: Option<Address>,
    pub(crate) output: Option<Address>,
    /// The plan's number, which is the same on all ranks.
    pub(crate) plan: usize,
    /// This rank's factor of a `PreMulSum`; ranks may differ in it.
    pub(crate) scale: u64,
}

impl Board {
    /// What a rank says of a call by this plan.
    #[inline]
    pub(crate) fn of(
        call: &RawCall,
        op: OpKind,
        plan: usize,
        (input, output): (Option<Address>, Option<Address>),
    ) -> Self {
        Self {
            collective: call.collective,
            dtype: call.dtype,
            op,
            root: call.root,
            count: call.count,
            input,
            output,
            plan,
            scale: match call.op {
                ReduceOp::PreMulSum(scalar) => scalar.bits(),
                _ => 0,
            },
        }
    }

    /// As words, with a digest of everything that has to be equal on all ranks.
    #[inline]
    pub(crate) fn write(&self, sequence: u64) -> (Call, u32) {
        let what = self.collective as u64
            | (self.dtype as u64) << 8
            | (self.op as u64) << 16
            | (self.root as u64) << 32;
        let (count, plan) = (self.count as u64, self.plan as u64);
        let tag = digest([what, count, plan]);
        let (input, output) = (Address::to_word(self.input), Address::to_word(self.output));
        let words = [what, count, input, output, plan, self.scale];
        (Call { sequence, tag: u64::from(tag), words }, tag)
    }

    /// The digest in a call that was read from a board.
    #[inline]
    pub(crate) fn tag_of(call: &Call) -> u32 {
        call.tag as u32
    }

    /// Reads a peer's words; whatever they hold gives a description, if perhaps a wrong one.
    pub(crate) fn read(call: &Call) -> Self {
        let [what, count, input, output, plan, scale] = call.words;
        let at = |shift: u32| (what >> shift) as u8;
        Self {
            collective: Collective::ALL[usize::from(at(0)) % Collective::ALL.len()],
            dtype: DataType::from_code(at(8)).unwrap_or(DataType::U8),
            op: OpKind::from_code(at(16)).unwrap_or(OpKind::Sum),
            root: (what >> 32) as usize,
            count: count as usize,
            input: Address::from_word(input),
            output: Address::from_word(output),
            plan: plan as usize,
            scale,
        }
    }

    /// Bytes of `rank`'s input.
    pub(crate) fn input_bytes(&self, rank: usize, world: usize) -> usize {
        let (inputs, _) = self.collective.blocks(world, self.root, rank);
        inputs.saturating_mul(self.count).saturating_mul(self.dtype.size())
    }

    /// Bytes of `rank`'s output.
    pub(crate) fn output_bytes(&self, rank: usize, world: usize) -> usize {
        let (_, outputs) = self.collective.blocks(world, self.root, rank);
        outputs.saturating_mul(self.count).saturating_mul(self.dtype.size())
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { collective, dtype, count, .. } = self;
        if *collective == Collective::Barrier {
            return f.write_str("barrier");
        }
        write!(f, "{collective}({dtype}")?;
        if collective.reduces() {
            write!(f, ", {}", self.op.name())?;
        }
        write!(f, ", count {count}")?;
        if collective.is_rooted() {
            write!(f, ", root {}", self.root)?;
        }
        let registered = self.input.is_some() || self.output.is_some();
        write!(f, ", {}registered)", if registered { "" } else { "not " })
    }
}

/// Mixes words so that calls that differ anywhere get different digests, but for one in 2^24.
#[inline]
fn digest(words: [u64; 3]) -> u32 {
    let mut mixed = 0x9e37_79b9_7f4a_7c15_u64;
    for word in words {
        // The finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
        // Generators, OOPSLA 2014).
        mixed = (mixed ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(input: usize, output: usize) -> RawCall {
        RawCall {
            collective: Collective::AllReduce,
            dtype: DataType::F32,
            op: ReduceOp::Sum,
            root: 0,
            count: 4,
            input: input as *const u8,
            output: output as *mut u8,
        }
    }

    fn problem(call: &RawCall, rank: usize) -> &'static str {
        match call.check(rank, 4) {
            Err(Error::Argument { argument, .. }) => argument,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_are_named() {
        assert_eq!(problem(&call(0, 64), 0), "input");
        assert_eq!(problem(&call(64, 0), 0), "output");
        assert_eq!(problem(&call(66, 128), 0), "input");
        assert_eq!(problem(&call(64, 68), 0), "output");
        assert_eq!(problem(&RawCall { root: 4, ..call(64, 128) }, 0), "root");
        assert_eq!(problem(&RawCall { count: usize::MAX / 4, ..call(64, 128) }, 0), "count");
        let op = ReduceOp::pre_mul_sum(1_i32);
        assert_eq!(problem(&RawCall { op, ..call(64, 128) }, 0), "op");
    }

    #[test]
    fn in_place_is_told_from_overlap() {
        assert!(!call(64, 128).check(0, 4).unwrap().in_place);
        assert!(call(64, 64).check(0, 4).unwrap().in_place);
        let gather = RawCall { collective: Collective::AllGather, ..call(64 + 32, 64) };
        assert!(gather.check(2, 4).unwrap().in_place);
        assert_eq!(problem(&gather, 1), "output");
        let scatter = RawCall { collective: Collective::ReduceScatter, ..call(64, 64 + 16) };
        assert!(scatter.check(1, 4).unwrap().in_place);
        assert_eq!(problem(&scatter, 2), "output");
    }

    #[test]
    fn the_board_carries_a_call() {
        let board = Board {
            collective: Collective::Reduce,
            dtype: DataType::Bf16,
            op: OpKind::Max,
            root: 70_000,
            count: 1 << 40,
            input: Some(Address { id: 3, offset: 1 << 40 }),
            output: None,
            plan: 17,
            scale: 99,
        };
        let (call, tag) = board.write(5);
        let read = Board::read(&call);
        assert_eq!(
            (read.collective, read.dtype, read.op),
            (board.collective, board.dtype, board.op)
        );
        assert_eq!((read.root, read.count, read.plan), (board.root, board.count, board.plan));
        assert_eq!((read.input, read.output), (board.input, board.output));
        assert_eq!(read.scale, board.scale);
        assert_eq!(Board::tag_of(&call), tag);
        let (other, _) = Board { count: board.count + 1, ..board }.write(5);
        assert_ne!(Board::tag_of(&other) & 0xff_ffff, tag & 0xff_ffff);
    }

    #[test]
    fn garbage_on_a_board_is_no_panic() {
        let board = Board::read(&Call { sequence: 1, tag: 0, words: [u64::MAX; 6] });
        let _ = (board.input_bytes(0, 8), board.to_string());
    }
}

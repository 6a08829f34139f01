//! What plans ask of a switch that reduces and multiplies, and which kernels it has.
#![forbid(unsafe_code)]

use crate::dtype::DataType;
use crate::op::OpKind;
use crate::plan::{Buffer, Instruction, Place, Program, Whose};

/// What a plan addresses as the group's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Loads, which reduce.
    pub(crate) reduces: bool,
    /// Scratch or packet memory.
    pub(crate) memory: bool,
    /// The users' buffers, which then have to lie at the same place on all ranks.
    pub(crate) input: bool,
    pub(crate) output: bool,
}

/// What a call has that can be addressed as the group's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AtHand {
    pub(crate) memory: bool,
    pub(crate) input: bool,
    pub(crate) output: bool,
}

impl Needs {
    pub(crate) fn of(program: &Program) -> Self {
        let mut needs = Self::default();
        for instruction in program.workers.iter().flatten() {
            let Instruction::Move { from, to, .. } = instruction else { continue };
            needs.reduces |= from.iter().any(is_of_group);
            for place in from.iter().chain(to).filter(|place| is_of_group(place)) {
                match place.buffer {
                    Buffer::Input => needs.input = true,
                    Buffer::Output => needs.output = true,
                    Buffer::Scratch | Buffer::Packets => needs.memory = true,
                }
            }
        }
        needs
    }

    /// Whether a call can take the plan.
    pub(crate) fn are_met(&self, by: AtHand, dtype: DataType, op: OpKind) -> bool {
        (!self.memory || by.memory)
            && (!self.input || by.input)
            && (!self.output || by.output)
            && (!self.reduces || reduces(dtype, op))
    }
}

/// Whether the switch has this reduction, with the results that the library promises. `Multimem` of switch.cuh.
pub(crate) fn reduces(dtype: DataType, op: OpKind) -> bool {
    use DataType::{Bf16, F16, F32, F64, I32, I64, U32, U64};
    let integer = matches!(dtype, I32 | U32 | I64 | U64);
    match op {
        OpKind::Sum => integer || matches!(dtype, F16 | Bf16 | F32 | F64),
        // The switch rounds its sum to the type; of 16-bit floats the average would be rounded twice.
        OpKind::Avg => integer || matches!(dtype, F32 | F64),
        // Of floats, a NaN has to win, which nobody promises of the switch.
        OpKind::Min | OpKind::Max => integer,
        OpKind::Prod | OpKind::PreMulSum => false,
    }
}

/// Whether a place is everybody's at once.
fn is_of_group(place: &Place) -> bool {
    place.whose == Whose::Group
}

/// Whether a move goes through the switch.
pub(super) fn is_switched(instruction: &Instruction) -> bool {
    match instruction {
        Instruction::Move { from, to, .. } => from.iter().chain(to).any(is_of_group),
        _ => false,
    }
}

/// The operator and the operands of `SwitchMove` of multicast.cuh.
pub(super) fn form(
    (from, to, reduce): (&[Place], &[Place], bool),
    world: usize,
    dtype: DataType,
    op: OpKind,
) -> Result<(bool, String), &'static str> {
    let ([from], [to]) = (from, to) else {
        return Err("a multicast place among several operands");
    };
    let loads = is_of_group(from);
    if loads && !reduces(dtype, op) {
        return Err("a reduction that the switch does not have");
    }
    // What is reduced of one contribution is that contribution.
    if reduce && !loads && matches!(op, OpKind::Avg | OpKind::PreMulSum) {
        return Err("a contribution that is finished and sent to the group");
    }
    if from.buffer == Buffer::Packets || (to.buffer == Buffer::Packets && loads) {
        return Err("packets out of the switch");
    }
    Ok((loads, format!("{}, {}", operand(from, world), operand(to, world))))
}

fn operand(place: &Place, world: usize) -> String {
    let kind = match place.buffer {
        Buffer::Input | Buffer::Output => "USER",
        Buffer::Scratch => "SLOT",
        Buffer::Packets => "PACKETS",
    };
    match is_of_group(place) {
        true => format!("Group<{kind}, {world}>"),
        false => format!("Own<{kind}>"),
    }
}

/// The entries of an operand's table: for the group its address, then that of each rank, for what the switch does not take.
pub(super) fn entries(place: Place, world: usize) -> impl Iterator<Item = Place> {
    let beside = is_of_group(&place) && place.buffer != Buffer::Packets;
    let of = move |rank| Place { whose: Whose::Rank(rank), ..place };
    std::iter::once(place).chain((0..if beside { world } else { 0 }).map(of))
}

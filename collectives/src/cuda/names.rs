//! What things are called in CUDA C++.
#![forbid(unsafe_code)]

use crate::dtype::DataType;
use crate::op::OpKind;
use crate::plan::{Buffer, Place, Shape, Whose};

/// A kernel's entry point.
pub(super) fn entry_name(shape: &Shape, dtype: DataType, op: OpKind) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let plan: String = shape.name.chars().take(40).map(plain).collect();
    let op = if shape.collective.reduces() { op.name() } else { "copy" };
    format!("{}_{plan}_{}_{}_{op}", shape.collective, shape.world, dtype.name())
}

/// A type of element.cuh.
pub(super) fn type_name(dtype: DataType) -> &'static str {
    match dtype {
        DataType::I8 => "Int8",
        DataType::U8 => "Uint8",
        DataType::I32 => "Int32",
        DataType::U32 => "Uint32",
        DataType::I64 => "Int64",
        DataType::U64 => "Uint64",
        DataType::F16 => "Half",
        DataType::F32 => "Float",
        DataType::F64 => "Double",
        DataType::Bf16 => "Bfloat16",
        DataType::F8E4M3 => "E4M3",
        DataType::F8E5M2 => "E5M2",
    }
}

/// An operator of element.cuh.
pub(super) fn op_name(op: OpKind) -> &'static str {
    match op {
        OpKind::Sum => "Sum",
        OpKind::Prod => "Prod",
        OpKind::Max => "Max",
        OpKind::Min => "Min",
        OpKind::Avg => "Avg",
        OpKind::PreMulSum => "PreMulSum",
    }
}

/// The kind of sources that are everyone's contribution in rank order, the own one from the input and the
/// others from one kind of memory: which of them is the own one is then for the run to say.
pub(super) fn contributions(from: &[Place], rank: usize, world: usize) -> Option<&'static str> {
    if from.len() != world {
        return None;
    }
    let mut others = from.iter().enumerate().filter(|(number, _)| *number != rank);
    let own =
        from.get(rank).is_some_and(|place| place.buffer == Buffer::Input && place.is_of(rank));
    let buffer = others.clone().next()?.1.buffer;
    match buffer {
        _ if !own || !others.all(|(_, place)| place.buffer == buffer) => None,
        // Each rank's kernel says which of them are unfinished.
        _ if from.iter().any(|place| place.partial) => None,
        Buffer::Packets => Some("OWN"),
        Buffer::Scratch => Some("OWN_SLOT"),
        _ => None,
    }
}

/// The kinds of a list of operands; `differ`: unfinished sums are no elements.
pub(super) fn kinds(places: &[Place], differ: bool) -> Result<Vec<&'static str>, &'static str> {
    let kind = |place: &Place| match (place.whose, place.buffer) {
        (Whose::Group, _) => Err("a multicast place"),
        (_, Buffer::Scratch) if place.partial && differ => Ok("PARTIAL"),
        (_, Buffer::Input | Buffer::Output) => Ok("USER"),
        (_, Buffer::Scratch) => Ok("SLOT"),
        (_, Buffer::Packets) => Ok("PACKETS"),
    };
    places.iter().map(kind).collect()
}

/// As template arguments.
pub(super) fn kinds_name(kinds: &[&str]) -> String {
    match kinds {
        [first, rest @ ..] if !rest.is_empty() && rest.iter().all(|kind| kind == first) => {
            format!("Repeated<{}, {first}>", kinds.len())
        }
        _ => format!("Kinds<{}>", kinds.join(", ")),
    }
}

//! What things are called in CUDA C++.
#![forbid(unsafe_code)]

use crate::dtype::DataType;
use crate::op::OpKind;
use crate::plan::Shape;

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

//! What a fold should give, said as plainly as possible: one element after the other, with the
//! conversions of `half` and `float8` and the operators of `std`.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use super::Case;
use crate::dtype::DataType;
use crate::op::OpKind;

trait Model: Copy {
    type Acc: Accumulator;
    fn read(bytes: &[u8]) -> Self;
    fn widen(self) -> Self::Acc;
    fn narrow(acc: Self::Acc) -> Vec<u8>;
}

trait Accumulator: Copy {
    fn read(bytes: &[u8]) -> Self;
    fn bytes(self) -> Vec<u8>;
    fn times(self, other: Self) -> Self;
    fn over(self, world: u32) -> Self;
    fn combine(self, op: OpKind, other: Self) -> Self;
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Accumulator for $int {
            fn read(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("an element"))
            }

            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }

            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            fn over(self, world: u32) -> Self {
                (i128::from(self) / i128::from(world)) as Self
            }

            fn combine(self, op: OpKind, other: Self) -> Self {
                match op {
                    OpKind::Sum | OpKind::Avg | OpKind::PreMulSum => self.wrapping_add(other),
                    OpKind::Prod => self.wrapping_mul(other),
                    OpKind::Max => Ord::max(self, other),
                    OpKind::Min => Ord::min(self, other),
                }
            }
        }
    )*};
}

macro_rules! floats {
    ($($float:ty),*) => {$(
        impl Accumulator for $float {
            fn read(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("an element"))
            }

            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }

            fn times(self, other: Self) -> Self {
                Some(self * other).filter(|number| !number.is_nan()).unwrap_or(Self::NAN)
            }

            fn over(self, world: u32) -> Self {
                let quotient = self / (world as Self);
                Some(quotient).filter(|number| !number.is_nan()).unwrap_or(Self::NAN)
            }

            fn combine(self, op: OpKind, other: Self) -> Self {
                let pair = [self, other];
                let number = match op {
                    OpKind::Sum | OpKind::Avg | OpKind::PreMulSum => self + other,
                    OpKind::Prod => self * other,
                    _ if self.is_nan() || other.is_nan() => Self::NAN,
                    OpKind::Max => pair.into_iter().max_by(Self::total_cmp).expect("two"),
                    OpKind::Min => pair.into_iter().min_by(Self::total_cmp).expect("two"),
                };
                if number.is_nan() { Self::NAN } else { number }
            }
        }
    )*};
}

integers!(i8, u8, i32, u32, i64, u64);
floats!(f32, f64);

macro_rules! exact {
    ($($number:ty),*) => {$(
        impl Model for $number {
            type Acc = Self;

            fn read(bytes: &[u8]) -> Self {
                Accumulator::read(bytes)
            }

            fn widen(self) -> Self {
                self
            }

            fn narrow(acc: Self) -> Vec<u8> {
                acc.bytes()
            }
        }
    )*};
}

macro_rules! narrow {
    ($($float:ty: $bits:ty),*) => {$(
        impl Model for $float {
            type Acc = f32;

            fn read(bytes: &[u8]) -> Self {
                Self::from_bits(<$bits>::from_le_bytes(bytes.try_into().expect("an element")))
            }

            fn widen(self) -> f32 {
                self.to_f32()
            }

            fn narrow(acc: f32) -> Vec<u8> {
                Self::from_f32(acc).to_bits().to_le_bytes().to_vec()
            }
        }
    )*};
}

exact!(i8, u8, i32, u32, i64, u64, f32, f64);
narrow!(f16: u16, bf16: u16, F8E4M3: u8, F8E5M2: u8);

/// Calls a function for the Rust type of a [`DataType`].
macro_rules! with_type {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DataType::I8 => $function::<i8>($($argument),*),
            DataType::U8 => $function::<u8>($($argument),*),
            DataType::I32 => $function::<i32>($($argument),*),
            DataType::U32 => $function::<u32>($($argument),*),
            DataType::I64 => $function::<i64>($($argument),*),
            DataType::U64 => $function::<u64>($($argument),*),
            DataType::F16 => $function::<f16>($($argument),*),
            DataType::F32 => $function::<f32>($($argument),*),
            DataType::F64 => $function::<f64>($($argument),*),
            DataType::Bf16 => $function::<bf16>($($argument),*),
            DataType::F8E4M3 => $function::<F8E4M3>($($argument),*),
            DataType::F8E5M2 => $function::<F8E5M2>($($argument),*),
        }
    };
}

/// What each destination of a case should hold.
pub(super) fn expected(case: &Case) -> Vec<u8> {
    with_type!(case.dtype, expect(case))
}

fn expect<M: Model>(case: &Case) -> Vec<u8> {
    let operand = |((bytes, partial), scale): (&(Vec<u8>, bool), &u64), i: usize| {
        if *partial {
            return M::Acc::read(&bytes[i * size_of::<M::Acc>()..][..size_of::<M::Acc>()]);
        }
        let number = M::read(&bytes[i * size_of::<M>()..][..size_of::<M>()]).widen();
        if case.op == OpKind::PreMulSum {
            let factor = M::read(&scale.to_le_bytes()[..size_of::<M>()]).widen();
            number.times(factor)
        } else {
            number
        }
    };
    let element = |i| {
        let operands = case.from.iter().zip(&case.scales).map(|source| operand(source, i));
        let acc = operands.reduce(|a, b| a.combine(case.op, b)).expect("a source");
        match (case.partial, case.op) {
            (true, _) => acc.bytes(),
            (false, OpKind::Avg) => M::narrow(acc.over(case.args.world)),
            (false, _) => M::narrow(acc),
        }
    };
    (0..case.count).flat_map(element).collect()
}

/// The bits of a small number, or of something like it.
pub(super) fn small(dtype: DataType, value: i8) -> u64 {
    let number = f32::from(value);
    match dtype {
        DataType::F16 => f16::from_f32(number).to_bits().into(),
        DataType::Bf16 => bf16::from_f32(number).to_bits().into(),
        DataType::F8E4M3 => F8E4M3::from_f32(number).to_bits().into(),
        DataType::F8E5M2 => F8E5M2::from_f32(number).to_bits().into(),
        DataType::F32 => number.to_bits().into(),
        DataType::F64 => f64::from(value).to_bits(),
        _ => i64::from(value) as u64,
    }
}

/// The bits of a zero, infinity, NaN, or one of the least or greatest numbers, of either sign.
pub(super) fn special(dtype: DataType, choice: u64) -> u64 {
    let (fraction, bits) = match dtype {
        DataType::F16 => (10, 16),
        DataType::Bf16 => (7, 16),
        DataType::F8E4M3 => (3, 8),
        DataType::F8E5M2 => (2, 8),
        DataType::F32 => (23, 32),
        DataType::F64 => (52, 64),
        _ => (0, 8 * dtype.size() as u32),
    };
    let sign = 1_u64 << (bits - 1);
    let infinity = (sign - 1) >> fraction << fraction;
    let magnitude = match choice >> 1 & 7 {
        0 | 1 => 0,
        2 => 1,
        3 => 1 << fraction,
        4 => infinity - 1,
        5 => infinity,
        6 => infinity + 1,
        _ => sign - 1,
    };
    (magnitude & (sign - 1)) | if choice & 1 == 0 { 0 } else { sign }
}

//! Reduction operators.

use std::fmt;

use crate::dtype::{DataType, Element};

/// How elements of the same index are combined.
///
/// Integers wrap on overflow. 16- and 8-bit floats are combined in f32 and rounded once, at the
/// end. `Min` and `Max` of floats are IEEE 754-2019 `minimum` and `maximum`: a NaN wins over
/// everything, and -0 is less than +0.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The product.
    Prod,
    /// The least element.
    Min,
    /// The greatest element.
    Max,
    /// The sum divided by the number of ranks; integers round towards zero.
    Avg,
    /// The sum of each rank's elements times that rank's factor.
    PreMulSum(Scalar),
}

/// The operator without its factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum OpKind {
    Sum = 0,
    Prod = 1,
    Max = 2,
    Min = 3,
    Avg = 4,
    PreMulSum = 5,
}

impl ReduceOp {
    /// [`ReduceOp::PreMulSum`] with a factor of the buffers' type. Ranks may use different factors.
    pub fn pre_mul_sum<T: Element>(factor: T) -> Self {
        Self::PreMulSum(Scalar::new(factor))
    }

    pub(crate) fn kind(self) -> OpKind {
        match self {
            Self::Sum => OpKind::Sum,
            Self::Prod => OpKind::Prod,
            Self::Min => OpKind::Min,
            Self::Max => OpKind::Max,
            Self::Avg => OpKind::Avg,
            Self::PreMulSum(_) => OpKind::PreMulSum,
        }
    }

    /// The name that nccl-tests uses.
    pub fn name(self) -> &'static str {
        self.kind().name()
    }
}

impl OpKind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Sum, Self::Prod, Self::Max, Self::Min, Self::Avg, Self::PreMulSum];

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "max",
            Self::Min => "min",
            Self::Avg => "avg",
            Self::PreMulSum => "mulsum",
        }
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One element of any type, by its bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scalar {
    dtype: DataType,
    bits: u64,
}

impl Scalar {
    /// Takes an element's bits.
    pub fn new<T: Element>(value: T) -> Self {
        let mut bits = [0; 8];
        bits[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        Self { dtype: T::DTYPE, bits: u64::from_le_bytes(bits) }
    }

    /// Its type.
    pub fn dtype(self) -> DataType {
        self.dtype
    }

    /// Its bits, as in memory, in the low bytes.
    pub fn bits(self) -> u64 {
        self.bits
    }

    /// The element, if it is of type `T`.
    pub fn get<T: Element>(self) -> Option<T> {
        let bytes = self.bits.to_le_bytes();
        (T::DTYPE == self.dtype).then(|| bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()]))
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.dtype, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scalar_is_read_back_as_its_own_type_only() {
        let scalar = Scalar::new(half::bf16::from_f32(1.5));
        assert_eq!(scalar.get::<half::bf16>(), Some(half::bf16::from_f32(1.5)));
        assert_eq!(scalar.get::<half::f16>(), None);
    }

    #[test]
    fn codes_lead_back() {
        for kind in OpKind::ALL {
            assert_eq!(OpKind::from_code(kind as u8), Some(kind));
        }
    }
}

//! Elements whose reduction is exact, whatever the order.
//!
//! A float is taken as `int * 2^exp`. What makes each reduction exact:
//!
//! | op | inputs at one index |
//! |---|---|
//! | sum, mulsum | integers times one common power of two; their magnitudes add up to at most 2^p, p the type's precision, so every partial sum is representable |
//! | prod | one rank has a random mantissa, the others are powers of two and signs, few enough of them to stay in range |
//! | avg | integers whose sum is a multiple of the number of ranks, so the quotient is exact |
//! | min, max | any |
//!
//! Integer types wrap, so sums and products of any bits are exact modulo 2^bits; for avg the
//! magnitudes add up to less than the type's maximum.
//!
//! The expected result is computed from the integers, not from the encoded elements.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use warpmesh::DataType;

use crate::layout::Op;

/// Inputs of all ranks at any index, and what their reduction is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    dtype: DataType,
    op: Option<Op>,
    world: usize,
    seed: u64,
}

/// `int * 2^exp`. Of integer types, `int` alone, modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Number {
    int: i64,
    exp: i32,
}

impl Values {
    /// Without an operation elements are copied, and have any bits.
    pub(super) fn new(dtype: DataType, op: Option<Op>, world: usize, seed: u64) -> Self {
        Self { dtype, op, world, seed }
    }

    /// The bits of `rank`'s element `index`.
    pub(super) fn input(&self, rank: usize, index: usize) -> u64 {
        match self.op {
            None => truncate(self.dtype, self.own(rank, index)),
            Some(op) => encode(self.dtype, self.contribution(op, rank, index)),
        }
    }

    /// The bits of the reduction of all ranks' elements `index`.
    pub(super) fn reduced(&self, index: usize) -> u64 {
        let op = self.op.expect("only reductions have a reduced result");
        let all = (0..self.world).map(|rank| (rank, self.contribution(op, rank, index)));
        let result = match op {
            Op::Prod => all.map(|(_, number)| number).fold(ONE, Number::times),
            Op::Min => {
                all.map(|(_, number)| number).min_by(|a, b| self.compare(a, b)).unwrap_or(ONE)
            }
            Op::Max => {
                all.map(|(_, number)| number).max_by(|a, b| self.compare(a, b)).unwrap_or(ONE)
            }
            Op::Sum | Op::MulSum | Op::Avg => self.total(op, all),
        };
        encode(self.dtype, result)
    }

    fn total(&self, op: Op, all: impl Iterator<Item = (usize, Number)>) -> Number {
        let mut exp = 0;
        let sum: i128 = all
            .map(|(rank, number)| {
                exp = number.exp;
                i128::from(number.int) * i128::from(op.factor(rank))
            })
            .sum();
        let divisor = if op == Op::Avg { self.world as i128 } else { 1 };
        Number { int: (sum / divisor) as i64, exp }
    }

    fn compare(&self, a: &Number, b: &Number) -> std::cmp::Ordering {
        match self.dtype {
            DataType::U64 => (a.int as u64).cmp(&(b.int as u64)),
            dtype if precision(dtype).is_none() => a.int.cmp(&b.int),
            _ => a.value().total_cmp(&b.value()),
        }
    }

    fn contribution(&self, op: Op, rank: usize, index: usize) -> Number {
        match (op, precision(self.dtype)) {
            (Op::Avg, None) => self.bounded_integer(rank, index),
            (_, None) => Number { int: sign_extend(self.dtype, self.own(rank, index)), exp: 0 },
            (Op::Sum | Op::MulSum, Some(p)) => self.summand(op, rank, index, p),
            (Op::Prod, Some(p)) => self.factor(rank, index, p),
            (Op::Avg, Some(p)) => self.deviation(rank, index, p),
            (Op::Min | Op::Max, Some(p)) => self.any(rank, index, p),
        }
    }

    /// Magnitudes add up to at most 2^p, with room for one contribution too many.
    fn summand(&self, op: Op, rank: usize, index: usize, p: u32) -> Number {
        let largest_factor = if op == Op::MulSum { 2 } else { 1 };
        let exp = (self.common(index) >> 32) as i32 % 4;
        let int = self.share(1 << p, largest_factor, rank, index);
        Number { int: if self.own(rank, index) & 1 == 0 { int } else { -int }, exp }
    }

    /// As [`Values::summand`] for integers that are to be averaged.
    fn bounded_integer(&self, rank: usize, index: usize) -> Number {
        let int = self.share(largest(self.dtype), 1, rank, index);
        let signed = matches!(self.dtype, DataType::I8 | DataType::I32 | DataType::I64);
        let negative = signed && self.own(rank, index) & 1 == 1;
        Number { int: if negative { -int } else { int }, exp: 0 }
    }

    /// A magnitude of at least 1 such that those of all ranks, and one more, times the factor add
    /// up to at most `total`. Where there are too many ranks for that, most have 0, which ones
    /// depends on the index.
    fn share(&self, total: u64, factor: u64, rank: usize, index: usize) -> i64 {
        let ranks = factor * (self.world as u64 + 1);
        let stride = ranks.div_ceil(total);
        if !(rank as u64 + self.common(index) % stride).is_multiple_of(stride) {
            return 0;
        }
        let limit = (total / ranks).max(1);
        (1 + (self.own(rank, index) >> 8) % limit) as i64
    }

    /// One rank's mantissa is random and not 1, the others are a power of two or -1: nobody's
    /// contribution can be missing without being missed.
    fn factor(&self, rank: usize, index: usize, p: u32) -> Number {
        let (own, common) = (self.own(rank, index), self.common(index));
        let sign = if own & 1 == 0 { 1 } else { -1 };
        if rank as u64 == common % self.world as u64 {
            let half = 1_i64 << (p - 1);
            let rest = 1 + ((own >> 8) % (half as u64 - 1)) as i64;
            return Number { int: sign * (half + rest), exp: 1 - p as i32 };
        }
        let stride = (self.world as u64).div_ceil(exponent_room(self.dtype));
        if (rank as u64 + (common >> 32)).is_multiple_of(stride) {
            return Number { int: sign, exp: if own & 2 == 0 { 1 } else { -1 } };
        }
        Number { int: -1, exp: 0 }
    }

    /// A common mean plus a deviation that the next rank takes back. All partial sums fit the
    /// type in which sums are kept, which is f32 for the narrow ones.
    fn deviation(&self, rank: usize, index: usize, p: u32) -> Number {
        let room = (1_u64 << p.max(24)) / (4 * self.world as u64);
        let limit = (1_u64 << (p - 1)).min(room).max(1);
        let mean = (self.common(index) % (2 * limit + 1)) as i64 - limit as i64;
        let push = |rank: usize| (self.own(rank, index) % limit) as i64;
        let next = (rank + 1) % self.world;
        Number { int: mean + push(rank) - push(next), exp: 0 }
    }

    fn any(&self, rank: usize, index: usize, p: u32) -> Number {
        let own = self.own(rank, index);
        let int = (1 + (own >> 8) % ((1 << p) - 1)) as i64;
        Number { int: if own & 1 == 0 { int } else { -int }, exp: (own >> 4) as i32 & 3 }
    }

    /// Random bits of one rank's element.
    fn own(&self, rank: usize, index: usize) -> u64 {
        mix(self.seed ^ mix(((rank as u64 + 1) << 40) ^ index as u64))
    }

    /// Random bits that all ranks have in common at an index.
    fn common(&self, index: usize) -> u64 {
        mix(!self.seed ^ mix(index as u64))
    }
}

const ONE: Number = Number { int: 1, exp: 0 };

impl Number {
    fn times(self, other: Self) -> Self {
        Self { int: self.int.wrapping_mul(other.int), exp: self.exp + other.exp }
    }

    /// Exact: the integer has at most 53 bits.
    fn value(self) -> f64 {
        self.int as f64 * 2_f64.powi(self.exp)
    }
}

/// The finalizer of splitmix64.
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Bits of the significand with the hidden one; None for integers.
pub(super) fn precision(dtype: DataType) -> Option<u32> {
    match dtype {
        DataType::F8E5M2 => Some(3),
        DataType::F8E4M3 => Some(4),
        DataType::Bf16 => Some(8),
        DataType::F16 => Some(11),
        DataType::F32 => Some(24),
        DataType::F64 => Some(53),
        _ => None,
    }
}

/// How many powers of two, each 2 or a half, may be multiplied in any order, with one to spare.
fn exponent_room(dtype: DataType) -> u64 {
    match dtype {
        DataType::F8E4M3 => 4,
        DataType::F8E5M2 | DataType::F16 => 12,
        DataType::F64 => 1000,
        _ => 120,
    }
}

fn largest(dtype: DataType) -> u64 {
    match dtype {
        DataType::I8 => i8::MAX as u64,
        DataType::U8 => u8::MAX.into(),
        DataType::I32 => i32::MAX as u64,
        DataType::U32 => u32::MAX.into(),
        // Kept in an i64 here.
        _ => i64::MAX as u64,
    }
}

fn truncate(dtype: DataType, bits: u64) -> u64 {
    bits & (u64::MAX >> (64 - 8 * dtype.size()))
}

fn sign_extend(dtype: DataType, bits: u64) -> i64 {
    match dtype {
        DataType::I8 => (bits as i8).into(),
        DataType::I32 => (bits as i32).into(),
        _ => truncate(dtype, bits) as i64,
    }
}

fn encode(dtype: DataType, number: Number) -> u64 {
    match dtype {
        DataType::F64 => number.value().to_bits(),
        DataType::F32 => (number.value() as f32).to_bits().into(),
        DataType::F16 => f16::from_f64(number.value()).to_bits().into(),
        DataType::Bf16 => bf16::from_f64(number.value()).to_bits().into(),
        DataType::F8E4M3 => F8E4M3::from_f64(number.value()).to_bits().into(),
        DataType::F8E5M2 => F8E5M2::from_f64(number.value()).to_bits().into(),
        _ => truncate(dtype, number.int as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLDS: [usize; 9] = [1, 2, 3, 4, 7, 8, 16, 100, 300];

    /// The value of a float's bits, from the formats' definition.
    fn decode(dtype: DataType, bits: u64) -> f64 {
        let (fraction_bits, exponent_bits) = match dtype {
            DataType::F8E5M2 => (2, 5),
            DataType::F8E4M3 => (3, 4),
            DataType::Bf16 => (7, 8),
            DataType::F16 => (10, 5),
            DataType::F32 => (23, 8),
            _ => return f64::from_bits(bits),
        };
        let fraction = (bits & ((1 << fraction_bits) - 1)) as f64;
        let exponent = (bits >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let negative = bits >> (fraction_bits + exponent_bits) & 1 == 1;
        let one = 2_f64.powi(fraction_bits);
        let magnitude = match exponent {
            0 => fraction / one * 2_f64.powi(1 - bias),
            _ => (1.0 + fraction / one) * 2_f64.powi(exponent - bias),
        };
        if negative { -magnitude } else { magnitude }
    }

    fn floats() -> impl Iterator<Item = DataType> {
        DataType::ALL.into_iter().filter(|dtype| precision(*dtype).is_some())
    }

    /// Combines in two orders, rounding to the type after every step, and wants the expected bits.
    #[test]
    fn floats_are_exact_in_any_order_even_when_every_step_is_rounded() {
        for (dtype, world) in floats().flat_map(|dtype| WORLDS.map(|world| (dtype, world))) {
            for op in [Op::Sum, Op::MulSum, Op::Prod, Op::Min, Op::Max] {
                let values = Values::new(dtype, Some(op), world, 7);
                for index in 0..200 {
                    let ranks: Vec<usize> = (0..world).collect();
                    let backwards: Vec<usize> = (0..world).rev().collect();
                    for order in [ranks, backwards] {
                        let got = fold(&values, op, dtype, &order, index);
                        assert_eq!(got, values.reduced(index), "{dtype} {op:?} {world} {index}");
                    }
                }
            }
        }
    }

    fn fold(values: &Values, op: Op, dtype: DataType, order: &[usize], index: usize) -> u64 {
        let term = |rank: usize| decode(dtype, values.input(rank, index)) * op.factor(rank) as f64;
        let mut sum = term(order[0]);
        for &rank in &order[1..] {
            let next = match op {
                Op::Prod => sum * term(rank),
                Op::Min => sum.min(term(rank)),
                Op::Max => sum.max(term(rank)),
                _ => sum + term(rank),
            };
            sum = decode(dtype, round(dtype, next));
        }
        round(dtype, sum)
    }

    fn round(dtype: DataType, value: f64) -> u64 {
        match dtype {
            DataType::F64 => value.to_bits(),
            DataType::F32 => (value as f32).to_bits().into(),
            DataType::F16 => f16::from_f64(value).to_bits().into(),
            DataType::Bf16 => bf16::from_f64(value).to_bits().into(),
            DataType::F8E4M3 => F8E4M3::from_f64(value).to_bits().into(),
            _ => F8E5M2::from_f64(value).to_bits().into(),
        }
    }

    #[test]
    fn means_are_exact_in_the_type_that_sums_are_kept_in() {
        for (dtype, world) in floats().flat_map(|dtype| WORLDS.map(|world| (dtype, world))) {
            let values = Values::new(dtype, Some(Op::Avg), world, 8);
            for index in 0..200 {
                let terms = (0..world).map(|rank| decode(dtype, values.input(rank, index)));
                let mean = if dtype == DataType::F64 {
                    terms.sum::<f64>() / world as f64
                } else {
                    (terms.map(|term| term as f32).sum::<f32>() / world as f32).into()
                };
                assert_eq!(round(dtype, mean + 0.0), values.reduced(index), "{dtype} {world}");
            }
        }
    }

    #[test]
    fn encodings_are_finite_and_lossless() {
        for (dtype, world) in floats().flat_map(|dtype| WORLDS.map(|world| (dtype, world))) {
            for op in Op::ALL {
                let values = Values::new(dtype, Some(op), world, 9);
                for (rank, index) in (0..world).flat_map(|rank| (0..20).map(move |i| (rank, i))) {
                    let number = values.contribution(op, rank, index);
                    assert_eq!(decode(dtype, values.input(rank, index)), number.value());
                }
            }
        }
    }

    #[test]
    fn integers_wrap_and_means_do_not_overflow() {
        for world in WORLDS {
            let values = Values::new(DataType::I8, Some(Op::Sum), world, 1);
            let sum = (0..world).map(|rank| values.input(rank, 3) as i8);
            assert_eq!(sum.fold(0, i8::wrapping_add) as u8, values.reduced(3) as u8);
            let values = Values::new(DataType::U64, Some(Op::Prod), world, 2);
            let product = (0..world).map(|rank| values.input(rank, 3));
            assert_eq!(product.fold(1, u64::wrapping_mul), values.reduced(3));
            for index in 0..100 {
                let values = Values::new(DataType::I8, Some(Op::Avg), world, 3);
                let sum: i64 =
                    (0..world).map(|rank| i64::from(values.input(rank, index) as i8)).sum();
                assert!(i8::try_from(sum).is_ok(), "{world}: {sum}");
                assert_eq!((sum / world as i64) as u8, values.reduced(index) as u8);
            }
        }
    }

    #[test]
    fn unsigned_extremes_are_compared_without_sign() {
        for index in 0..50 {
            let values = Values::new(DataType::U64, Some(Op::Max), 4, 5);
            let max = (0..4).map(|rank| values.input(rank, index)).max();
            assert_eq!(Some(values.reduced(index)), max);
        }
    }
}

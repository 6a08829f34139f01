//! Calls with inputs for which one right answer exists, bit by bit: small integers (powers of two for products), so that every sum
//! is representable in any order.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use proptest::prelude::*;
use warpmesh::plan::Collective;
use warpmesh::{DataType, Element, ReduceOp};

/// A test's element: made from and read as a small number.
pub trait Number: Element + PartialEq {
    fn of(value: i64) -> Self;
}

macro_rules! numbers {
    ($($t:ty: |$x:ident| $e:expr),* $(,)?) => {$(
        impl Number for $t { fn of($x: i64) -> Self { $e } }
    )*};
}

numbers! {
    i8: |x| x as i8, u8: |x| x as u8, i32: |x| x as i32, u32: |x| x as u32,
    i64: |x| x, u64: |x| x as u64, f32: |x| x as f32, f64: |x| x as f64,
    f16: |x| f16::from_f64(x as f64), bf16: |x| bf16::from_f64(x as f64),
    F8E4M3: |x| F8E4M3::from_f64(x as f64), F8E5M2: |x| F8E5M2::from_f64(x as f64),
}

/// Calls a function that is generic over a [`Number`] with the type that a [`DataType`] names.
#[allow(unused_macros, reason = "each test binary uses a part")]
macro_rules! by_type {
    ($dtype:expr, $f:ident($($argument:expr),*)) => {{
        use float8::{F8E4M3, F8E5M2};
        use half::{bf16, f16};
        match $dtype {
            DataType::I8 => $f::<i8>($($argument),*),
            DataType::U8 => $f::<u8>($($argument),*),
            DataType::I32 => $f::<i32>($($argument),*),
            DataType::U32 => $f::<u32>($($argument),*),
            DataType::I64 => $f::<i64>($($argument),*),
            DataType::U64 => $f::<u64>($($argument),*),
            DataType::F16 => $f::<f16>($($argument),*),
            DataType::F32 => $f::<f32>($($argument),*),
            DataType::F64 => $f::<f64>($($argument),*),
            DataType::Bf16 => $f::<bf16>($($argument),*),
            DataType::F8E4M3 => $f::<F8E4M3>($($argument),*),
            DataType::F8E5M2 => $f::<F8E5M2>($($argument),*),
            other => panic!("untested type {other}"),
        }
    }};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use by_type;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Sum,
    Prod,
    Min,
    Max,
    Avg,
    PreMulSum,
}

impl Op {
    pub const ALL: [Self; 6] =
        [Self::Sum, Self::Prod, Self::Min, Self::Max, Self::Avg, Self::PreMulSum];
}

/// A rank's element. Sums of 8 ranks stay within what the narrowest type holds exactly (f8e5m2
/// has 2 mantissa bits and its integers are exact up to 8).
pub fn value(op: Op, rank: usize, block: usize, index: usize, world: usize) -> i64 {
    let hash = (rank * 31 + block * 17 + index * 7 + index / 3) as i64;
    match op {
        Op::Sum | Op::PreMulSum => hash % 2 * i64::from(hash % 5 != 0),
        // One rank contributes 2, the others 1.
        Op::Prod => 1 + i64::from(index % world == rank),
        Op::Min | Op::Max => hash % 8,
        // One rank contributes the world, once, twice or four times: exact in every type.
        Op::Avg => (1 << (index % 3)) * i64::from(index % world == rank) * world as i64,
    }
}

/// What a reduction gives.
pub fn expected(op: Op, block: usize, index: usize, world: usize) -> i64 {
    let values = (0..world).map(|rank| value(op, rank, block, index, world));
    match op {
        Op::Sum => values.sum(),
        Op::Prod => values.product(),
        Op::Min => values.min().unwrap(),
        Op::Max => values.max().unwrap(),
        Op::Avg => values.sum::<i64>() / world as i64,
        Op::PreMulSum => (0..world).map(|r| value(op, r, block, index, world) * factor(r)).sum(),
    }
}

/// A rank's factor of a `PreMulSum`.
pub fn factor(rank: usize) -> i64 {
    rank as i64 % 2
}

/// The operator of a rank.
pub fn reduce_op<T: Number>(op: Op, rank: usize) -> ReduceOp {
    match op {
        Op::Sum => ReduceOp::Sum,
        Op::Prod => ReduceOp::Prod,
        Op::Min => ReduceOp::Min,
        Op::Max => ReduceOp::Max,
        Op::Avg => ReduceOp::Avg,
        Op::PreMulSum => ReduceOp::pre_mul_sum(T::of(factor(rank))),
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub world: usize,
    pub collective: Collective,
    pub dtype: DataType,
    pub op: Op,
    pub count: usize,
    pub root: usize,
    /// Elements by which input and output are away from the beginning of their memory; in place the output's.
    pub offsets: (usize, usize),
    pub registered: bool,
    /// Registered memory that is used at the same places on all ranks. (On GPUs.)
    pub symmetric: bool,
    pub in_place: bool,
    pub canonical: bool,
    pub algorithm: Option<&'static str>,
}

/// An element of a rank's output.
pub fn result<T: Number>(case: Case, rank: usize, block: usize, index: usize) -> T {
    let Case { world, root, op, .. } = case;
    T::of(match case.collective {
        Collective::AllReduce | Collective::Reduce => expected(op, 0, index, world),
        Collective::ReduceScatter => expected(op, rank, index, world),
        Collective::AllGather | Collective::Gather => value(op, block, 0, index, world),
        Collective::Broadcast => value(op, root, 0, index, world),
        Collective::AllToAll => value(op, block, rank, index, world),
        Collective::Scatter => value(op, root, rank, index, world),
        other => panic!("{other} has no output"),
    })
}

/// Values whose sum depends on the order and on where it is rounded.
pub fn awkward(rank: usize, index: usize) -> f32 {
    let hash = (rank * 7919 + index * 104_729) % 1_000_003;
    (hash as f32 - 500_000.0) * 1.37e-3 * 10_f32.powi((hash % 9) as i32 - 4)
}

/// In place, where input and output start in one buffer.
pub fn alias(
    collective: Collective,
    rank: usize,
    root: usize,
    count: usize,
) -> Option<(usize, usize)> {
    match collective {
        Collective::AllReduce | Collective::AllToAll => Some((0, 0)),
        Collective::AllGather => Some((rank * count, 0)),
        Collective::ReduceScatter => Some((0, rank * count)),
        Collective::Broadcast | Collective::Reduce => Some((0, 0)),
        Collective::Gather if rank == root => Some((rank * count, 0)),
        Collective::Scatter if rank == root => Some((0, rank * count)),
        _ => None,
    }
}

pub const COLLECTIVES: [Collective; 8] = [
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllToAll,
    Collective::Gather,
    Collective::Scatter,
];

/// The built-in algorithms of a collective.
pub fn names(collective: Collective) -> Vec<&'static str> {
    let of = |a: &&&warpmesh::algorithms::Algorithm| a.collective == collective;
    warpmesh::algorithms::ALL.iter().filter(of).map(|a| a.name).collect()
}

/// Any call of up to eight ranks.
pub fn cases() -> impl Strategy<Value = Case> {
    let op = prop_oneof![
        4 => Just(Op::Sum), 1 => Just(Op::Prod), 1 => Just(Op::Min), 1 => Just(Op::Max),
        1 => Just(Op::Avg), 1 => Just(Op::PreMulSum)
    ];
    let count = prop_oneof![0..40_usize, 0..3000_usize, 20_000..90_000_usize];
    let flags = any::<[bool; 4]>();
    let offsets = (0..9_usize, 0..9_usize);
    let picks = (0..8_usize, 0..12_usize, any::<prop::sample::Index>(), 0..8_usize, offsets);
    (1..=8_usize, op, count, picks, flags).prop_map(|(world, op, count, picks, flags)| {
        let (collective, dtype, algorithm, root, offsets) = picks;
        let collective = COLLECTIVES[collective];
        let names = names(collective);
        let algorithm = algorithm.index(names.len() + 1);
        let [registered, symmetric, in_place, canonical] = flags;
        Case {
            world,
            collective,
            dtype: DataType::ALL[dtype],
            op,
            count,
            root: root % world,
            offsets,
            registered,
            symmetric,
            in_place,
            canonical,
            algorithm: names.get(algorithm).copied(),
        }
    })
}

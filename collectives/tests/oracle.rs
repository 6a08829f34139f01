//! Every collective, type, operator, size, offset, placement and plan against an oracle that is
//! exact in any order: inputs are small integers (powers of two for products), so that every sum
//! is representable and one right answer exists, bit by bit.

mod common;

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use proptest::prelude::*;
use warpmesh::plan::Collective;
use warpmesh::{Communicator, DataType, Element, RawCall, ReduceOp};

/// A test's element: made from and read as a small number.
trait Number: Element + PartialEq {
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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Sum,
    Prod,
    Min,
    Max,
    Avg,
    PreMulSum,
}

/// A rank's element. Sums of 8 ranks stay within what the narrowest type holds exactly (f8e5m2
/// has 2 mantissa bits and its integers are exact up to 8).
fn value(op: Op, rank: usize, block: usize, index: usize, world: usize) -> i64 {
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

fn expected(op: Op, block: usize, index: usize, world: usize) -> i64 {
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

fn factor(rank: usize) -> i64 {
    rank as i64 % 2
}

fn reduce_op<T: Number>(op: Op, rank: usize) -> ReduceOp {
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
struct Case {
    world: usize,
    collective: Collective,
    dtype: DataType,
    op: Op,
    count: usize,
    root: usize,
    offset: usize,
    registered: bool,
    in_place: bool,
    canonical: bool,
    algorithm: Option<&'static str>,
}

fn check(case: Case) {
    match case.dtype {
        DataType::I8 => check_typed::<i8>(case),
        DataType::U8 => check_typed::<u8>(case),
        DataType::I32 => check_typed::<i32>(case),
        DataType::U32 => check_typed::<u32>(case),
        DataType::I64 => check_typed::<i64>(case),
        DataType::U64 => check_typed::<u64>(case),
        DataType::F16 => check_typed::<f16>(case),
        DataType::F32 => check_typed::<f32>(case),
        DataType::F64 => check_typed::<f64>(case),
        DataType::Bf16 => check_typed::<bf16>(case),
        DataType::F8E4M3 => check_typed::<F8E4M3>(case),
        DataType::F8E5M2 => check_typed::<F8E5M2>(case),
        other => panic!("untested type {other}"),
    }
}

fn check_typed<T: Number>(case: Case) {
    let mut builder = common::settings().canonical(case.canonical);
    if let Some(name) = case.algorithm {
        builder = builder.algorithm(name);
    }
    let problems = common::ranks_with(builder, case.world, |mut comm| run::<T>(&mut comm, case));
    for (rank, problem) in problems.into_iter().enumerate() {
        assert_eq!(problem, None, "rank {rank} of {case:?}");
    }
}

/// Runs a case twice on one rank; returns what is wrong.
fn run<T: Number>(comm: &mut Communicator, case: Case) -> Option<String> {
    let Case { world, collective, count, root, offset, in_place, op, .. } = case;
    let rank = comm.rank();
    let (inputs, outputs) = collective.blocks(world, root, rank);
    let space = offset + world * count + 8;
    let (mut memory_in, mut memory_out, mut plain_in, mut plain_out);
    let (input, output): (&mut [T], &mut [T]) = if case.registered {
        memory_in = comm.alloc::<T>(space).unwrap();
        memory_out = comm.alloc::<T>(space).unwrap();
        (&mut memory_in, &mut memory_out)
    } else {
        plain_in = vec![T::of(0); space];
        plain_out = vec![T::of(0); space];
        (&mut plain_in, &mut plain_out)
    };
    for _ in 0..2 {
        let guard = T::of(3);
        output.fill(guard);
        let place = if in_place { alias(collective, rank, root, count) } else { None };
        let (start_in, start_out) = match place {
            Some((start_in, start_out)) => (offset + start_in, offset + start_out),
            None => (offset, offset),
        };
        let from: &mut [T] = if place.is_some() { output } else { input };
        for i in 0..inputs * count {
            from[start_in + i] = T::of(value(op, rank, i / count, i % count, world));
        }
        let before_out: Vec<T> = output.to_vec();
        let base = if place.is_some() { output.as_ptr() } else { input.as_ptr() };
        let call = RawCall {
            collective,
            dtype: T::DTYPE,
            op: reduce_op::<T>(op, rank),
            root,
            count,
            input: base.wrapping_add(start_in).cast(),
            output: output.as_mut_ptr().wrapping_add(start_out).cast(),
        };
        // SAFETY: both buffers hold `space` elements, which covers all blocks at these starts.
        if let Err(error) = unsafe { comm.call(&call) } {
            return Some(error.to_string());
        }
        for (i, (seen, before)) in output.iter().zip(&before_out).enumerate() {
            let inside = i >= start_out && i < start_out + outputs * count;
            let want = match inside {
                true => result::<T>(case, rank, (i - start_out) / count, (i - start_out) % count),
                false => *before,
            };
            if bytemuck::bytes_of(seen) != bytemuck::bytes_of(&want) {
                return Some(format!(
                    "element {i} (output from {start_out}) is {seen:?}, not {want:?}"
                ));
            }
        }
    }
    None
}

fn result<T: Number>(case: Case, rank: usize, block: usize, index: usize) -> T {
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

/// In place, where input and output start in one buffer.
fn alias(collective: Collective, rank: usize, root: usize, count: usize) -> Option<(usize, usize)> {
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

const COLLECTIVES: [Collective; 8] = [
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllToAll,
    Collective::Gather,
    Collective::Scatter,
];

fn names(collective: Collective) -> Vec<&'static str> {
    let of = |a: &&&warpmesh::algorithms::Algorithm| a.collective == collective;
    warpmesh::algorithms::ALL.iter().filter(of).map(|a| a.name).collect()
}

fn cases() -> impl Strategy<Value = Case> {
    let op = prop_oneof![
        4 => Just(Op::Sum), 1 => Just(Op::Prod), 1 => Just(Op::Min), 1 => Just(Op::Max),
        1 => Just(Op::Avg), 1 => Just(Op::PreMulSum)
    ];
    let count = prop_oneof![0..40_usize, 0..3000_usize, 20_000..90_000_usize];
    let flags = any::<[bool; 3]>();
    let picks = (0..8_usize, 0..12_usize, any::<prop::sample::Index>(), 0..8_usize, 0..9_usize);
    (1..=8_usize, op, count, picks, flags).prop_map(|(world, op, count, picks, flags)| {
        let (collective, dtype, algorithm, root, offset) = picks;
        let collective = COLLECTIVES[collective];
        let names = names(collective);
        let algorithm = algorithm.index(names.len() + 1);
        let [registered, in_place, canonical] = flags;
        Case {
            world,
            collective,
            dtype: DataType::ALL[dtype],
            op,
            count,
            root: root % world,
            offset,
            registered,
            in_place,
            canonical,
            algorithm: names.get(algorithm).copied(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_call_is_exact(case in cases()) {
        check(case);
    }
}

/// Every algorithm by name, with every type and operator that it reduces, at a size of several
/// rounds for the staged ones.
#[test]
fn every_algorithm_with_every_type_and_operator() {
    for algorithm in warpmesh::algorithms::ALL {
        if algorithm.collective == Collective::Barrier {
            continue;
        }
        let ops: &[Op] = match algorithm.collective.reduces() {
            true => &[Op::Sum, Op::Prod, Op::Min, Op::Max, Op::Avg, Op::PreMulSum],
            false => &[Op::Sum],
        };
        for dtype in DataType::ALL {
            for op in ops {
                check(Case {
                    world: 3,
                    collective: algorithm.collective,
                    dtype,
                    op: *op,
                    count: 1001,
                    root: 1,
                    offset: 1,
                    registered: true,
                    in_place: algorithm.collective != Collective::AllToAll,
                    canonical: false,
                    algorithm: Some(algorithm.name),
                });
            }
        }
    }
}

#[test]
fn messages_of_many_rounds_are_exact() {
    for algorithm in warpmesh::algorithms::ALL {
        if algorithm.collective == Collective::Barrier {
            continue;
        }
        for (world, count) in [(2, 2_000_003), (5, 300_001)] {
            check(Case {
                world,
                collective: algorithm.collective,
                dtype: DataType::F32,
                op: Op::Sum,
                count,
                root: world - 1,
                offset: 0,
                registered: true,
                in_place: false,
                canonical: false,
                algorithm: Some(algorithm.name),
            });
        }
    }
}

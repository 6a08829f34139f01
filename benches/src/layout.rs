//! What nccl-tests calls a test: a collective, how its size column becomes counts and offsets, and
//! how a time becomes bandwidths.

use std::fmt;

use warpmesh::plan::Collective;
use warpmesh::{DataType, ReduceOp};

/// What is measured in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// One of the library's collectives.
    Collective(Collective),
    /// Every rank sends to the next and receives from the one before, in a group.
    SendRecv,
}

impl Test {
    /// All tests, in the order of `all`.
    pub const ALL: [Self; 9] = [
        Self::Collective(Collective::AllReduce),
        Self::Collective(Collective::AllGather),
        Self::Collective(Collective::ReduceScatter),
        Self::Collective(Collective::Broadcast),
        Self::Collective(Collective::Reduce),
        Self::Collective(Collective::AllToAll),
        Self::Collective(Collective::Gather),
        Self::Collective(Collective::Scatter),
        Self::SendRecv,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Collective(collective) => collective.name(),
            Self::SendRecv => "sendrecv",
        }
    }

    /// The test of this name; nccl-tests' names of its programs are understood too.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix("_perf").unwrap_or(name);
        let name = if name == "alltoall" { "all_to_all" } else { name };
        Self::ALL.into_iter().find(|test| test.name() == name)
    }

    /// The program of nccl-tests that measures this.
    pub fn program(self) -> String {
        match self.name() {
            "all_to_all" => "alltoall_perf".to_owned(),
            name => format!("{name}_perf"),
        }
    }

    /// Whether elements are combined.
    pub const fn reduces(self) -> bool {
        matches!(self, Self::Collective(collective) if collective.reduces())
    }

    /// Whether one rank plays a part of its own.
    pub const fn is_rooted(self) -> bool {
        matches!(self, Self::Collective(collective) if collective.is_rooted())
    }

    /// Whether it can run in place. An exchange with neighbours cannot: the buffer that is sent
    /// would be overwritten while it is read.
    pub const fn has_in_place(self) -> bool {
        !matches!(self, Self::SendRecv)
    }

    /// Counts and offsets for `bytes` of the size column.
    pub fn layout(self, bytes: usize, dtype: DataType, world: usize) -> Layout {
        use Collective::{AllGather, AllToAll, Gather, ReduceScatter, Scatter};
        let total = bytes / dtype.size();
        // Shards start at multiples of 16 bytes.
        let shard = (total / world) & !(16 / dtype.size() - 1);
        let all = shard * world;
        let (count, send, recv, offsets) = match self {
            Self::Collective(AllGather | Gather) => (shard, shard, all, (shard, 0)),
            Self::Collective(ReduceScatter | Scatter) => (shard, all, shard, (0, shard)),
            Self::Collective(AllToAll) => (shard, all, all, (0, 0)),
            _ => (total, total, total, (0, 0)),
        };
        Layout {
            count,
            send,
            recv,
            send_offset: offsets.0,
            recv_offset: offsets.1,
            element: dtype.size(),
        }
    }

    /// algbw and busbw in GB/s (1e9 bytes) of one operation that takes `seconds`: the formulas of
    /// nccl-tests' PERFORMANCE.md.
    pub fn bandwidth(self, layout: &Layout, world: usize, seconds: f64) -> (f64, f64) {
        use Collective::{AllGather, AllReduce, AllToAll, Gather, ReduceScatter, Scatter};
        let n = world as f64;
        let alg = layout.bytes() as f64 / seconds / 1e9;
        let factor = match self {
            Self::Collective(AllReduce) => 2.0 * (n - 1.0) / n,
            Self::Collective(AllGather | ReduceScatter | AllToAll | Gather | Scatter) => {
                (n - 1.0) / n
            }
            _ => 1.0,
        };
        (alg, alg * factor)
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Counts, in elements, of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The count argument of the call: elements per block.
    pub count: usize,
    /// Elements of the send buffer.
    pub send: usize,
    /// Elements of the receive buffer.
    pub recv: usize,
    /// In place, rank r sends from r times this into the receive buffer.
    pub send_offset: usize,
    /// In place, rank r receives at r times this into the receive buffer.
    pub recv_offset: usize,
    /// Bytes of an element.
    pub element: usize,
}

impl Layout {
    /// The size column: bytes of the larger buffer.
    pub fn bytes(&self) -> usize {
        self.send.max(self.recv) * self.element
    }
}

/// Whether send and receive buffer are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// They are not.
    Out,
    /// They are, at the row's offsets.
    In,
}

/// A reduction by name; what it is for a type and rank is [`Op::on`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The sum.
    Sum,
    /// The product.
    Prod,
    /// The greatest.
    Max,
    /// The least.
    Min,
    /// The mean.
    Avg,
    /// The sum of elements times their rank's factor.
    MulSum,
}

impl Op {
    /// All, in nccl-tests' order.
    pub const ALL: [Self; 6] =
        [Self::Sum, Self::Prod, Self::Max, Self::Min, Self::Avg, Self::MulSum];

    /// nccl-tests' name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Max => "max",
            Self::Min => "min",
            Self::Avg => "avg",
            Self::MulSum => "mulsum",
        }
    }

    /// The operation of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name)
    }

    /// A rank's factor for [`Op::MulSum`]: 1 or 2, as in nccl-tests.
    pub const fn factor(self, rank: usize) -> i64 {
        match self {
            Self::MulSum => 1 + (rank % 2) as i64,
            _ => 1,
        }
    }

    /// The library's operation for buffers of this type on this rank.
    pub fn on(self, dtype: DataType, rank: usize) -> ReduceOp {
        match self {
            Self::Sum => ReduceOp::Sum,
            Self::Prod => ReduceOp::Prod,
            Self::Max => ReduceOp::Max,
            Self::Min => ReduceOp::Min,
            Self::Avg => ReduceOp::Avg,
            Self::MulSum => pre_mul_sum(dtype, self.factor(rank)),
        }
    }
}

fn pre_mul_sum(dtype: DataType, factor: i64) -> ReduceOp {
    let float = factor as f32;
    match dtype {
        DataType::I8 => ReduceOp::pre_mul_sum(factor as i8),
        DataType::U8 => ReduceOp::pre_mul_sum(factor as u8),
        DataType::I32 => ReduceOp::pre_mul_sum(factor as i32),
        DataType::U32 => ReduceOp::pre_mul_sum(factor as u32),
        DataType::I64 => ReduceOp::pre_mul_sum(factor),
        DataType::U64 => ReduceOp::pre_mul_sum(factor as u64),
        DataType::F16 => ReduceOp::pre_mul_sum(half::f16::from_f32(float)),
        DataType::Bf16 => ReduceOp::pre_mul_sum(half::bf16::from_f32(float)),
        DataType::F32 => ReduceOp::pre_mul_sum(float),
        DataType::F64 => ReduceOp::pre_mul_sum(f64::from(float)),
        DataType::F8E4M3 => ReduceOp::pre_mul_sum(float8::F8E4M3::from_f32(float)),
        DataType::F8E5M2 => ReduceOp::pre_mul_sum(float8::F8E5M2::from_f32(float)),
        other => unreachable!("{other} has no factors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str, bytes: usize, world: usize) -> Layout {
        Test::from_name(name).unwrap().layout(bytes, DataType::F32, world)
    }

    #[test]
    fn shards_are_aligned_to_16_bytes() {
        let gather = layout("all_gather", 1000, 3);
        assert_eq!((gather.count, gather.send, gather.recv), (80, 80, 240));
        assert_eq!((gather.send_offset, gather.recv_offset), (80, 0));
        let scatter = layout("reduce_scatter_perf", 1000, 3);
        assert_eq!((scatter.count, scatter.send, scatter.recv), (80, 240, 80));
        assert_eq!((scatter.send_offset, scatter.recv_offset), (0, 80));
        assert_eq!(layout("alltoall", 8, 4).bytes(), 0);
        assert_eq!(layout("all_reduce", 10, 3).count, 2);
    }

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        // A published row of nccl-tests, 72 ranks.
        let test = Test::from_name("all_reduce").unwrap();
        let row = test.layout(8_589_934_592, DataType::F32, 72);
        let (alg, bus) = test.bandwidth(&row, 72, 20_299e-6);
        assert!((alg - 423.16).abs() < 0.02 && (bus - 834.57).abs() < 0.02, "{alg} {bus}");
        let test = Test::from_name("all_gather").unwrap();
        let (alg, bus) = test.bandwidth(&layout("all_gather", 1 << 20, 4), 4, 1e-3);
        assert!((alg - 1.048_576).abs() < 1e-9 && (bus - 0.786_432).abs() < 1e-9);
    }

    #[test]
    fn names_lead_back() {
        for test in Test::ALL {
            assert_eq!(Test::from_name(test.name()), Some(test));
            assert_eq!(Test::from_name(&test.program()), Some(test));
        }
        for op in Op::ALL {
            assert_eq!(Op::from_name(op.name()), Some(op));
            assert_eq!(op.on(DataType::Bf16, 1).name(), op.name());
        }
    }
}

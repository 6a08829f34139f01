use super::*;

/// Plain, slow collectives on real buffers, which the tests then spoil.
struct World {
    oracle: Oracle,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
}

fn job(name: &str, dtype: DataType, op: Op, world: usize, count: usize) -> Job {
    Job { test: Test::from_name(name).unwrap(), dtype, op, world, root: world / 2, count }
}

impl World {
    /// Inputs are filled, outputs spoiled.
    fn new(job: Job) -> Self {
        let oracle = Oracle::new(job, 1);
        let size = job.dtype.size();
        let buffers = |count: &dyn Fn(usize) -> usize| -> Vec<Vec<u8>> {
            (0..job.world).map(|rank| vec![0; count(rank) * size]).collect()
        };
        let mut inputs = buffers(&|rank| oracle.input_count(rank));
        let mut outputs = buffers(&|rank| oracle.output_count(rank));
        for rank in 0..job.world {
            oracle.fill_input(rank, &mut inputs[rank]);
            oracle.spoil_output(rank, &mut outputs[rank]);
        }
        Self { oracle, inputs, outputs }
    }

    /// Wrong elements of all ranks.
    fn wrong(&self) -> u64 {
        let ranks = self.outputs.iter().enumerate();
        ranks.map(|(rank, output)| self.oracle.wrong(rank, output)).sum()
    }

    /// An f32 all-reduce in which rank r is added `times(r)` times.
    fn sum(&mut self, times: impl Fn(usize) -> usize) {
        let count = self.oracle.job.count;
        for output in &mut self.outputs {
            for index in 0..count {
                let ranks = self.inputs.iter().enumerate();
                let sum: f32 =
                    ranks.map(|(rank, input)| times(rank) as f32 * f32_at(input, index)).sum();
                output[index * 4..][..4].copy_from_slice(&sum.to_ne_bytes());
            }
        }
    }
}

fn f32_at(bytes: &[u8], index: usize) -> f32 {
    f32::from_ne_bytes(bytes[index * 4..][..4].try_into().unwrap())
}

fn summed(count: usize) -> World {
    let mut world = World::new(job("all_reduce", DataType::F32, Op::Sum, 4, count));
    world.sum(|_| 1);
    world
}

#[test]
fn a_right_sum_is_right() {
    assert_eq!(summed(10_000).wrong(), 0);
}

#[test]
fn nothing_written_is_all_wrong() {
    for test in Test::ALL {
        for dtype in DataType::ALL {
            let world = World::new(job(test.name(), dtype, Op::Sum, 3, 5000));
            let elements: usize = (0..3).map(|rank| world.oracle.output_count(rank)).sum();
            assert_eq!(world.wrong(), elements as u64, "{test} {dtype}");
        }
    }
}

#[test]
fn a_missing_contribution_is_wrong_everywhere() {
    for missing in 0..4 {
        let mut world = summed(1000);
        world.sum(|rank| usize::from(rank != missing));
        assert_eq!(world.wrong(), 4000);
    }
}

#[test]
fn a_doubled_contribution_is_wrong_everywhere() {
    for doubled in 0..4 {
        let mut world = summed(1000);
        world.sum(|rank| if rank == doubled { 2 } else { 1 });
        assert_eq!(world.wrong(), 4000);
    }
}

#[test]
fn missing_and_doubled_contributions_are_found_for_every_type_and_op() {
    for dtype in DataType::ALL {
        for op in [Op::Sum, Op::Prod, Op::MulSum, Op::Avg, Op::Min, Op::Max] {
            let full = Values::new(dtype, Some(op), 4, 5);
            let fewer = |index| {
                let inputs: Vec<u64> = (0..4).map(|rank| full.input(rank, index)).collect();
                (inputs, full.reduced(index))
            };
            // The result is not that of a part of the ranks: some element depends on each rank.
            let results: Vec<_> = (0..500).map(fewer).collect();
            for rank in 0..4 {
                let depends = |(inputs, result): &(Vec<u64>, u64)| match op {
                    Op::Min | Op::Max => inputs[rank] == *result,
                    _ => inputs[rank] != 0,
                };
                assert!(results.iter().any(depends), "{dtype} {op:?} {rank}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_one_wrong_element() {
    let mut world = summed(10_000);
    world.outputs[2][4 * 7777 + 1] ^= 0x10;
    assert_eq!(world.wrong(), 1);
}

#[test]
fn a_tail_that_was_not_written_is_wrong() {
    let right = summed(10_000);
    let mut world = World::new(right.oracle.job);
    for (output, from) in world.outputs.iter_mut().zip(&right.outputs) {
        let written = from.len() - 4 * 3;
        output[..written].copy_from_slice(&from[..written]);
    }
    assert_eq!(world.wrong(), 4 * 3);
}

#[test]
fn blocks_in_the_wrong_place_are_wrong() {
    for count in [40, PERIOD, 2 * PERIOD, 10_000] {
        let mut world = World::new(job("all_gather", DataType::F32, Op::Sum, 3, count));
        let gathered = world.inputs.concat();
        world.outputs.fill(gathered);
        assert_eq!(world.wrong(), 0);
        let (a, b) = world.outputs[1].split_at_mut(count * 4);
        a.swap_with_slice(&mut b[..count * 4]);
        assert!(world.wrong() > count as u64, "{count}");
    }
}

#[test]
fn a_block_shifted_by_a_period_is_wrong() {
    let mut world = summed(3 * PERIOD);
    let shifted = world.outputs[0][PERIOD * 4..].to_vec();
    world.outputs[0][..shifted.len()].copy_from_slice(&shifted);
    assert!(world.wrong() > PERIOD as u64);
}

#[test]
fn what_another_seed_left_behind_is_wrong() {
    let mut world = summed(100);
    world.oracle = Oracle::new(world.oracle.job, 2);
    assert!(world.wrong() > 390);
}

#[test]
fn moves_are_where_they_belong() {
    for count in [8, 9000] {
        let bytes = count * 2;
        let mut world = World::new(job("all_to_all", DataType::F16, Op::Sum, 3, count));
        for to in 0..3 {
            let blocks = world.inputs.iter().map(|input| &input[to * bytes..][..bytes]);
            world.outputs[to] = blocks.collect::<Vec<_>>().concat();
        }
        assert_eq!(world.wrong(), 0);
        let mut world = World::new(job("scatter", DataType::F16, Op::Sum, 3, count));
        for to in 0..3 {
            world.outputs[to] = world.inputs[1][to * bytes..][..bytes].to_vec();
        }
        assert_eq!(world.wrong(), 0);
        let mut world = World::new(job("gather", DataType::F16, Op::Sum, 3, count));
        assert!(world.outputs[0].is_empty());
        world.outputs[1] = world.inputs.concat();
        assert_eq!(world.wrong(), 0);
        let mut world = World::new(job("sendrecv", DataType::F16, Op::Sum, 3, count));
        for to in 0..3 {
            world.outputs[to] = world.inputs[(to + 2) % 3].clone();
        }
        assert_eq!(world.wrong(), 0);
    }
}

#[test]
fn a_damaged_input_is_noticed() {
    let mut world = summed(100);
    assert_eq!(world.oracle.input_damage(3, &world.inputs[3]), 0);
    world.inputs[3][17] ^= 1;
    assert_eq!(world.oracle.input_damage(3, &world.inputs[3]), 1);
}

#[test]
fn rough_sums_tell_orders_apart() {
    let oracle = Oracle::new(job("all_reduce", DataType::F32, Op::Sum, 3, 1000), 3);
    let mut inputs = vec![vec![0; 4000]; 3];
    for (rank, input) in inputs.iter_mut().enumerate() {
        assert!(oracle.fill_rough(rank, input));
    }
    let sum = |order: [usize; 3]| -> Vec<u8> {
        let add = |index| order.iter().map(|&rank| f32_at(&inputs[rank], index)).sum::<f32>();
        (0..1000).flat_map(|index| add(index).to_ne_bytes()).collect()
    };
    assert_ne!(digest(&sum([0, 1, 2])), digest(&sum([2, 1, 0])));
    assert_eq!(digest(&sum([0, 1, 2])), digest(&sum([0, 1, 2])));
    assert!((0..1000).all(|i| (0.25..2.0).contains(&f32_at(&inputs[0], i).abs())));
    let integers = Oracle::new(job("all_reduce", DataType::I32, Op::Sum, 3, 8), 3);
    assert!(!integers.fill_rough(0, &mut [0; 32]));
}

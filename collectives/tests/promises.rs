//! What a communicator promises besides right results: no allocation in a call, little memory, a
//! quick start, the same bits from every plan in canonical mode.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use common::cases::awkward;
use half::bf16;
use warpmesh::plan::{Collective, Plan};
use warpmesh::{DataType, Error, ReduceOp};

/// Counts this thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_call_allocates_nothing_once_its_kind_was_used() {
    common::ranks(3, |mut comm| {
        let len = 90_000;
        let mut registered = comm.alloc::<f32>(len).unwrap();
        let mut result = comm.alloc::<f32>(len).unwrap();
        let mut plain = vec![1.0_f32; len];
        let mut other = vec![0.0_f32; len];
        let (next, last) = ((comm.rank() + 1) % 3, (comm.rank() + 2) % 3);
        for round in 0..4 {
            ALLOCATIONS.set(0);
            for count in [3, 300, 3_000, 30_000] {
                comm.all_reduce(&mut registered[..count], ReduceOp::Sum).unwrap();
                comm.all_reduce(&mut plain[..count], ReduceOp::Avg).unwrap();
                comm.all_gather(&plain[..count], &mut other[..3 * count]).unwrap();
                comm.reduce_scatter(&registered[..3 * count], &mut result[..count], ReduceOp::Max)
                    .unwrap();
                comm.broadcast(&mut plain[..count], 2).unwrap();
                comm.all_to_all(&plain[..count], &mut other[..count]).unwrap();
                comm.group(|group| {
                    group.send(&plain[..count], next)?;
                    group.recv(&mut other[..count], last)
                })
                .unwrap();
                comm.barrier().unwrap();
            }
            if round > 0 {
                assert_eq!(ALLOCATIONS.get(), 0, "in round {round}");
            }
        }
    });
}

#[test]
fn eight_ranks_are_ready_in_50_ms_and_hold_at_most_32_mib_each() {
    // The machine's terms are measured once, not by every communicator.
    drop(common::settings().local(1).unwrap());
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let ranks = common::settings().local(8).unwrap();
        best = best.min(start.elapsed());
        assert!(ranks.iter().all(|comm| comm.held_bytes() <= 32 << 20));
    }
    assert!(best < Duration::from_millis(50), "{best:?}");
}

#[test]
fn canonical_results_are_the_left_fold_whatever_the_plan() {
    let names = |collective: Collective| {
        let of = move |a: &&&warpmesh::algorithms::Algorithm| a.collective == collective;
        warpmesh::algorithms::ALL.iter().filter(of).map(|a| a.name)
    };
    for world in [2, 3, 5, 8] {
        for name in names(Collective::AllReduce).chain(["whatever is fastest"]) {
            let builder = common::settings().canonical(true).algorithm(name);
            common::ranks_with(builder, world, |mut comm| {
                for count in [1, 77, 5_000, 70_000] {
                    let mine = |i| awkward(comm.rank(), i);
                    let mut single: Vec<f32> = (0..count).map(mine).collect();
                    let mut brain: Vec<bf16> =
                        (0..count).map(|i| bf16::from_f32(mine(i))).collect();
                    comm.all_reduce(&mut single, ReduceOp::Sum).unwrap();
                    comm.all_reduce(&mut brain, ReduceOp::Sum).unwrap();
                    for i in 0..count {
                        let sum =
                            (1..world).fold(awkward(0, i), |sum, rank| sum + awkward(rank, i));
                        assert_eq!(single[i].to_bits(), sum.to_bits(), "{name}, {world}, {i}");
                        let term = |rank| bf16::from_f32(awkward(rank, i)).to_f32();
                        let sum = (1..world).fold(term(0), |sum, rank| sum + term(rank));
                        assert_eq!(brain[i], bf16::from_f32(sum), "{name}, {world}, {i}");
                    }
                }
            });
        }
    }
}

#[test]
fn all_ranks_get_the_same_bits_from_every_plan() {
    for algorithm in warpmesh::algorithms::ALL {
        if algorithm.collective != Collective::AllReduce {
            continue;
        }
        let results =
            common::ranks_with(common::settings().algorithm(algorithm.name), 5, |mut comm| {
                let mut data = comm.alloc::<f32>(10_007).unwrap();
                let rank = comm.rank();
                data.iter_mut().enumerate().for_each(|(i, x)| *x = awkward(rank, i));
                comm.all_reduce(&mut data, ReduceOp::Sum).unwrap();
                data.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            });
        assert!(results.iter().all(|bits| *bits == results[0]), "{}", algorithm.name);
    }
}

#[test]
fn all_to_all_v_moves_uneven_blocks_and_names_disagreements() {
    common::on_each(&[[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 2, 3]], |mut comm| {
        let me = comm.rank();
        // Rank a sends (a + 1) * (b % 3) * 1000 elements to b: some blocks are empty.
        let count = |a: usize, b: usize| (a + 1) * (b % 3) * 1000;
        let send: Vec<usize> = (0..4).map(|b| count(me, b)).collect();
        let receive: Vec<usize> = (0..4).map(|a| count(a, me)).collect();
        let input: Vec<u32> = send
            .iter()
            .enumerate()
            .flat_map(|(b, n)| (0..*n).map(move |i| (me * 4 + b + 100 * i) as u32))
            .collect();
        let mut output = vec![0; receive.iter().sum()];
        for _ in 0..3 {
            comm.all_to_all_v(&input, &send, &mut output, &receive).unwrap();
            let expected: Vec<u32> = receive
                .iter()
                .enumerate()
                .flat_map(|(a, n)| (0..*n).map(move |i| (a * 4 + me + 100 * i) as u32))
                .collect();
            assert_eq!(output, expected);
        }
        // Rank 2 expects one element less from rank 3 than it sends. Everyone learns of it.
        let mut receive = receive.clone();
        if me == 2 {
            receive[3] -= 1;
            output.pop();
        }
        let error = comm.all_to_all_v(&input, &send, &mut output, &receive).unwrap_err();
        assert!(
            error.to_string().contains("receive of rank 2 is not what rank 3 sends"),
            "{error}"
        );
        comm.barrier().unwrap();
    });
}

#[test]
fn groups_and_point_to_point_do_not_deadlock_whatever_their_order() {
    common::on_each(&[[0, 0, 0], [0, 1, 1], [0, 1, 2]], |mut comm| {
        let me = comm.rank();
        // Larger than all slots of a ring together.
        let len = 1_000_000;
        let out: Vec<Vec<u64>> = (0..3).map(|to| vec![(me * 3 + to) as u64; len]).collect();
        let mut back = vec![vec![0_u64; len]; 3];
        comm.group(|group| {
            for (to, data) in out.iter().enumerate() {
                group.send(data, to)?;
            }
            for (from, data) in back.iter_mut().enumerate().rev() {
                group.recv(data, from)?;
            }
            Ok(())
        })
        .unwrap();
        for (from, data) in back.iter().enumerate() {
            assert!(data.iter().all(|x| *x == (from * 3 + me) as u64));
        }
        // Two messages of one pair keep their order.
        let mut first = [0_u8];
        let mut second = [0_u8];
        comm.group(|group| match me {
            0 => group.send(&[1_u8], 1).and_then(|()| group.send(&[2_u8], 1)),
            1 => group.recv(&mut first, 0).and_then(|()| group.recv(&mut second, 0)),
            _ => Ok(()),
        })
        .unwrap();
        assert!(me != 1 || (first, second) == ([1], [2]));
    });
}

/// Rank 1 waits for 2, which waits for 0, which waits for 1: though 1 and 0 have not exchanged anything before, 1 has to
/// let 0 in while it waits for 2.
#[test]
fn messages_that_wait_for_one_another_connect_their_ranks() {
    common::on_each(&[[0, 0, 0], [0, 1, 2]], |mut comm| {
        let (mut from, mut also) = ([0_u8], [0_u8]);
        match comm.rank() {
            0 => comm.send(&[7_u8], 1).and_then(|()| comm.send(&[8_u8], 2)),
            1 => {
                comm.group(|group| group.recv(&mut from, 2).and_then(|()| group.recv(&mut also, 0)))
            }
            _ => comm.recv(&mut from, 0).and_then(|()| comm.send(&[9_u8], 1)),
        }
        .unwrap();
        let expected = [([0], [0]), ([9], [7]), ([8], [0])];
        assert_eq!((from, also), expected[comm.rank()]);
        comm.barrier().unwrap();
    });
}

#[test]
fn a_receive_of_another_length_names_both() {
    let errors = |hosts: &[usize]| {
        common::ranks_on_hosts(&common::settings(), hosts, |mut comm| {
            let mut data = [0_u8; 400];
            match comm.rank() {
                0 => comm.send(&data[..300], 1).and_then(|()| comm.barrier()).unwrap_err(),
                _ => comm.recv(&mut data, 0).unwrap_err(),
            }
            .to_string()
        })
    };
    for error in [errors(&[0, 0]), errors(&[0, 1])].concat() {
        assert!(error.contains("receives 400 bytes from rank 0, which sends 300"), "{error}");
    }
}

#[test]
fn a_mixture_of_registered_and_other_memory_is_named() {
    let errors = common::ranks(3, |mut comm| {
        let mut registered = comm.alloc::<f32>(60_000).unwrap();
        let mut plain = vec![0.0_f32; 60_000];
        let data = if comm.rank() == 1 { &mut plain[..] } else { &mut registered[..] };
        comm.all_reduce(data, ReduceOp::Sum).unwrap_err().to_string()
    });
    for error in errors {
        assert!(error.contains("made different calls"), "{error}");
        assert!(error.contains(", not registered)") && error.contains(", registered)"), "{error}");
    }
}

#[test]
fn split_makes_independent_communicators() {
    common::on_each(&[[0; 5], [0, 0, 1, 1, 1]], |mut comm| {
        let me = comm.rank();
        // Odd and even ranks, in reverse order; rank 4 stays out.
        let color = (me < 4).then_some((me % 2) as u32);
        let part = comm.split(color, -(me as i32)).unwrap();
        let Some(mut part) = part else {
            assert_eq!(me, 4);
            return comm.barrier().unwrap();
        };
        assert_eq!((part.world(), part.rank()), (2, usize::from(me < 2)));
        let mut sum = [me as u32];
        part.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
        assert_eq!(sum[0], if me % 2 == 0 { 2 } else { 4 });
        comm.barrier().unwrap();
    });
}

/// Collectives in which some ranks only send: the fast ones must not overrun the slow ones'
/// scratch memory, which is used again every other round.
#[test]
fn fast_ranks_do_not_overrun_slow_ones() {
    let names = ["packet", "staged", "direct"].map(|name| (name, [0; 3]));
    for (name, hosts) in names.into_iter().chain([("rails", [0, 1, 1]), ("rails", [0, 1, 2])]) {
        common::ranks_on_hosts(&common::settings().algorithm(name), &hosts, |mut comm| {
            let me = comm.rank();
            // Several rounds of staged memory, one of packets.
            let count = if name == "packet" { 100 } else { 200_000 };
            let mut data = comm.alloc::<u32>(count).unwrap();
            let mut all = comm.alloc::<u32>(3 * count).unwrap();
            for call in 0..12_u32 {
                let slow = Duration::from_millis(3 * u64::from(me == call as usize % 3));
                std::thread::sleep(slow);
                data.fill(call * 10);
                comm.broadcast(&mut data, 0).unwrap();
                assert!(data.iter().all(|x| *x == call * 10), "{name}, broadcast {call}");
                std::thread::sleep(slow);
                data.fill(call + me as u32);
                comm.reduce(&mut data, ReduceOp::Sum, 1).unwrap();
                assert!(
                    me != 1 || data.iter().all(|x| *x == 3 * call + 3),
                    "{name}, reduce {call}"
                );
                std::thread::sleep(slow);
                data.fill(call + me as u32);
                comm.gather(&data, &mut all, 2).unwrap();
                let blocks = all.chunks(count).enumerate();
                let right = blocks.map(|(r, block)| block.iter().all(|x| *x == call + r as u32));
                assert!(me != 2 || right.fold(true, |a, b| a & b), "{name}, gather {call}");
                std::thread::sleep(slow);
                all.iter_mut().enumerate().for_each(|(i, x)| *x = call + (i / count) as u32);
                comm.scatter(&all, &mut data, 0).unwrap();
                assert!(data.iter().all(|x| *x == call + me as u32), "{name}, scatter {call}");
            }
        });
    }
}

#[test]
fn two_communicators_do_not_disturb_each_other() {
    let mut first = common::settings().local(2).unwrap();
    let mut second = common::settings().local(2).unwrap();
    std::thread::scope(|scope| {
        for (mut a, mut b) in first.drain(..).zip(second.drain(..)) {
            scope.spawn(move || {
                let rank = a.rank() as i64;
                for i in 0..500_i64 {
                    // Unequal numbers of calls, interleaved.
                    let mut x = [i + rank];
                    a.all_reduce(&mut x, ReduceOp::Sum).unwrap();
                    assert_eq!(x[0], 2 * i + 1);
                    if i % 3 == 0 {
                        b.all_reduce(&mut x, ReduceOp::Max).unwrap();
                        assert_eq!(x[0], 2 * i + 1);
                    }
                }
            });
        }
    });
}

#[test]
fn a_plan_of_the_users_runs_and_a_wrong_one_is_refused() {
    let text = "warpmesh plan 1\nname mine\ncollective all_reduce\nworld 2\npackets 2\n\
                rank 0\n  copy 0: r1.packets[0] = in[0]\n  reduce 0: out[0] = in[0], packets[1]<1\n\
                rank 1\n  copy 0: r0.packets[1] = in[0]\n  reduce 0: out[0] = packets[0]<0, in[0]\n";
    let wrong = text.replace("out[0] = packets[0]<0, in[0]", "out[0] = in[0], in[0]");
    common::ranks_with(common::settings().algorithm("mine"), 2, |mut comm| {
        let error = comm.add_plan(Plan::from_text(&wrong).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Plan(_)), "{error}");
        comm.add_plan(Plan::from_text(text).unwrap()).unwrap();
        let explained = comm.explain(Collective::AllReduce, DataType::F32, 1000, false);
        assert!(explained.contains("-> mine"), "{explained}");
        let mut data = vec![comm.rank() as f32 + 1.0; 1000];
        comm.all_reduce(&mut data, ReduceOp::Sum).unwrap();
        assert!(data.iter().all(|x| *x == 3.0));
    });
}

#[test]
fn memory_of_threads_can_be_registered_anywhere_in_it() {
    common::ranks(3, |mut comm| {
        let len = 300_000;
        let (mut from, mut to) = (vec![0_i32; len], vec![0_i32; len]);
        // SAFETY: both outlive the communicator, which this thread drops first.
        let registered = unsafe {
            let bytes = len * size_of::<i32>();
            let from = comm.register(from.as_mut_ptr().cast(), bytes).unwrap();
            (from, comm.register(to.as_mut_ptr().cast(), bytes).unwrap())
        };
        assert!(registered.0.is_shared() && registered.1.is_shared());
        // A second buffer inside the same allocation, at another offset on each rank.
        for (count, offset) in [(100, 0), (50_000, 7), (200_000, 1000 + comm.rank())] {
            from[offset..offset + count].fill(comm.rank() as i32 + 1);
            let (input, output) = (&from[offset..offset + count], &mut to[offset..offset + count]);
            comm.all_reduce_into(input, output, ReduceOp::Sum).unwrap();
            assert!(output.iter().all(|x| *x == 6));
        }
        let held = comm.held_bytes();
        comm.barrier().unwrap();
        drop(registered);
        let more = comm.alloc::<u8>(1000).unwrap();
        assert_eq!(comm.held_bytes(), held + 1000);
        drop(more);
        drop(comm.alloc::<u8>(1).unwrap());
        assert_eq!(comm.held_bytes(), held + 1);
        drop(comm);
    });
}

#[test]
fn wrong_arguments_are_refused_before_anything_moves() {
    common::ranks(2, |mut comm| {
        let name = |result: Result<(), Error>| match result.unwrap_err() {
            Error::Argument { argument, .. } => argument,
            other => panic!("{other}"),
        };
        let mut small = [7_u8; 3];
        assert_eq!(name(comm.all_gather(&[1, 2], &mut small)), "output");
        assert_eq!(name(comm.reduce_scatter(&small, &mut [0_u8; 2], ReduceOp::Sum)), "input");
        assert_eq!(name(comm.broadcast(&mut small, 2)), "root");
        assert_eq!(name(comm.all_gather_in_place(&mut small)), "buffer");
        assert_eq!(name(comm.send(&small, 9)), "peer");
        let op = ReduceOp::pre_mul_sum(2.0_f32);
        assert_eq!(name(comm.all_reduce(&mut small, op)), "op");
        assert_eq!(small, [7; 3]);
        // Zero elements are no call at all.
        comm.all_reduce::<f32>(&mut [], ReduceOp::Sum).unwrap();
        comm.barrier().unwrap();
    });
}

//! Messages between GPUs: sends and receives in groups of any order, uneven all-to-all, graphs, and what goes wrong with them.
//! Needs a CUDA driver and NVRTC; `cargo xtask test` runs it on virtual GPUs.

mod common;

use std::time::{Duration, Instant};

use common::gpu::{self, Memory, Rank};
use common::processes::{Ranks, connect, me, report};
use cudarc::driver::sys::{self, CUstreamCaptureMode};
use warpmesh::{Builder, DataType, Error, ReduceOp};
use warpmesh_primitives::failure::FailureKind;

/// A byte of a message.
fn byte(from: usize, to: usize, number: usize, k: usize) -> u8 {
    (k * 7 + from * 31 + to * 57 + number * 101 + k / 251) as u8
}

fn message(from: usize, to: usize, number: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|k| byte(from, to, number, k)).collect()
}

/// Ranks that wait for each other longer than it takes to compile a kernel on a busy machine.
fn settings() -> Builder {
    common::settings().timeout(Duration::from_secs(60))
}

/// Every rank sends so many messages of these sizes to every rank, itself included, all in one group; twice. Buffers begin
/// `shift` bytes behind an aligned address, and the bytes around them stay as they were.
fn everyone_to_everyone(mut rank: Rank, sizes: &[usize], shift: usize, backwards: bool) {
    const GUARD: u8 = 0xA5;
    let (me, world) = (rank.comm.rank(), rank.comm.world());
    let each = sizes.iter().map(|size| size + 64).sum::<usize>();
    let from = Memory::new(&mut rank, world * each, false);
    let to = Memory::new(&mut rank, world * each, false);
    // Where message `number` of a peer lies.
    let at = |peer: usize, number: usize| {
        peer * each + sizes[..number].iter().map(|size| size + 64).sum::<usize>() + shift
    };
    for round in 0..2 {
        let mut sent = vec![GUARD; world * each];
        let mut expected = vec![GUARD; world * each];
        for peer in 0..world {
            for (number, &size) in sizes.iter().enumerate() {
                let here = at(peer, number)..at(peer, number) + size;
                sent[here.clone()].copy_from_slice(&message(me, peer, number + round, size));
                expected[here].copy_from_slice(&message(peer, me, number + round, size));
            }
        }
        rank.upload(from.address(), &sent);
        rank.upload(to.address(), &vec![GUARD; world * each]);
        let mut peers: Vec<usize> = (0..world).collect();
        if backwards {
            peers.reverse();
        }
        let stream = rank.stream.cu_stream();
        // SAFETY: all messages lie in the two buffers, which live until the stream has passed.
        let queued = unsafe {
            rank.comm.group_raw(stream, |group| {
                for &peer in &peers {
                    for (number, &size) in sizes.iter().enumerate() {
                        let offset = at(peer, number);
                        let from = (from.address() as usize + offset) as *const u8;
                        let to = (to.address() as usize + offset) as *mut u8;
                        group.recv_raw(to, size, DataType::U8, peer)?;
                        group.send_raw(from, size, DataType::U8, peer)?;
                    }
                }
                Ok(())
            })
        };
        queued.unwrap();
        rank.synchronize().unwrap();
        let seen = rank.download::<u8>(to.address(), world * each);
        let wrong = seen.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(
            wrong, None,
            "rank {me} of {world}, round {round}, {sizes:?} shifted by {shift}"
        );
    }
}

#[test]
fn messages_arrive_whatever_their_sizes_and_order() {
    if gpu::count().is_none() {
        return;
    }
    for world in [1, 2, 3, 5, 8] {
        for (shift, backwards) in [(0, false), (4, true), (1, true)] {
            // Below and above a slot, a channel, all channels, all slots of all channels.
            let sizes = [0, 1, 127, 4096, 16_200, 33_001, 70_000];
            let sizes = if world > 4 { &sizes[..5] } else { &sizes[..] };
            gpu::ranks_with(common::settings(), world, |rank| {
                everyone_to_everyone(rank, sizes, shift, backwards);
            });
        }
    }
    let large = [3 << 20, 5];
    gpu::ranks_with(common::settings(), 2, |rank| everyone_to_everyone(rank, &large, 0, false));
}

#[test]
fn messages_arrive_on_other_hosts() {
    if gpu::count().is_none() {
        return;
    }
    let sizes = [0, 1, 127, 4096, 16_200, 33_001, 70_000];
    for hosts in [&[0, 1][..], &[0, 0, 1], &[0, 1, 2, 0]] {
        for (shift, backwards) in [(0, false), (1, true)] {
            gpu::ranks_on(&settings(), hosts, |rank| {
                everyone_to_everyone(rank, &sizes, shift, backwards);
            });
        }
    }
    let large = [3 << 20, 5];
    gpu::ranks_on(&settings(), &[0, 1], |rank| everyone_to_everyone(rank, &large, 0, false));
}

#[test]
fn more_letters_than_a_kernel_takes() {
    if gpu::count().is_some() {
        let sizes: Vec<usize> = (0..25).map(|n| 1 + 900 * (n % 7)).collect();
        for hosts in [&[0, 0][..], &[0; 5], &[0, 1, 0]] {
            gpu::ranks_on(&settings(), hosts, |rank| {
                let backwards = rank.comm.rank() % 2 == 1;
                everyone_to_everyone(rank, &sizes, 0, backwards);
            });
        }
    }
}

/// Small enough to be run under many seeds.
#[test]
fn letters_in_weak_memory() {
    if gpu::count().is_some() {
        for world in [2, 3] {
            gpu::ranks_with(common::settings(), world, |rank| {
                everyone_to_everyone(rank, &[40_000, 100], 0, false);
            });
        }
    }
}

/// Elements that go from one rank to another: some, none, many.
fn uneven(from: usize, to: usize) -> usize {
    [0, 1, 777, 20_000][(3 * from + to) % 4]
}

#[test]
fn uneven_blocks_go_to_everyone_and_collectives_follow_in_a_group() {
    if gpu::count().is_none() {
        return;
    }
    for hosts in [&[0][..], &[0, 0, 0], &[0; 4], &[0, 1, 0, 1]] {
        gpu::ranks_on(&settings(), hosts, |mut rank| {
            let (me, world) = (rank.comm.rank(), rank.comm.world());
            let value =
                |from: usize, to: usize, k: usize| (from * 1000 + to * 100) as f32 + k as f32;
            let send: Vec<usize> = (0..world).map(|to| uneven(me, to)).collect();
            let receive: Vec<usize> = (0..world).map(|from| uneven(from, me)).collect();
            let data: Vec<f32> = (0..world)
                .flat_map(|to| (0..uneven(me, to)).map(move |k| value(me, to, k)))
                .collect();
            let stream = rank.stream.clone();
            let input = stream.clone_htod(&[&data[..], &[0.0]].concat()).unwrap();
            let expected: Vec<f32> = (0..world)
                .flat_map(|from| (0..uneven(from, me)).map(move |k| value(from, me, k)))
                .collect();
            let mut output = stream.alloc_zeros::<f32>(expected.len() + 1).unwrap();
            let (from, mut to) = (input.slice(..data.len()), output.slice_mut(..expected.len()));
            rank.comm.all_to_all_v::<f32, _, _>(&from, &send, &mut to, &receive, &stream).unwrap();
            rank.synchronize().unwrap();
            assert!(stream.clone_dtoh(&output).unwrap()[..expected.len()] == expected, "rank {me}");

            let mut sums = stream.clone_htod(&[me as i32 + 1; 100]).unwrap();
            let mine = stream.clone_htod(&[me as u64; 9]).unwrap();
            let mut theirs = stream.alloc_zeros::<u64>(9).unwrap();
            let (next, before) = ((me + 1) % world, (me + world - 1) % world);
            rank.comm
                .group(&stream, |group| {
                    group.all_reduce::<i32, _>(&mut sums, ReduceOp::Sum);
                    group.send::<u64, _>(&mine, next)?;
                    group.recv::<u64, _>(&mut theirs, before)
                })
                .unwrap();
            rank.synchronize().unwrap();
            assert_eq!(stream.clone_dtoh(&theirs).unwrap(), [before as u64; 9]);
            let sum = (1..=world as i32).sum::<i32>();
            assert_eq!(stream.clone_dtoh(&sums).unwrap(), [sum; 100]);
        });
    }
}

#[test]
fn messages_in_graphs_are_replayed_and_mixed_with_others() {
    const NAME: &str = "messages_in_graphs_are_replayed_and_mixed_with_others";
    if gpu::count().is_some() && gpu::is_alone(NAME) {
        [[0, 0], [0, 1]].iter().for_each(|hosts| graphs_on(hosts));
    }
}

fn graphs_on(hosts: &[usize]) {
    gpu::ranks_on(&settings(), hosts, |mut rank| {
        const COUNT: usize = 50_000;
        let (me, stream) = (rank.comm.rank(), rank.stream.clone());
        let from = Memory::new(&mut rank, 4 * COUNT, true);
        let to = Memory::new(&mut rank, 4 * COUNT, true);
        let exchange = |rank: &mut Rank| {
            let raw = stream.cu_stream();
            // SAFETY: both buffers live until the end of the test, which waits for the stream.
            unsafe {
                rank.comm.group_raw(raw, |group| {
                    group.send_raw(from.address() as *const u8, COUNT, DataType::F32, 1 - me)?;
                    group.recv_raw(to.address() as *mut u8, COUNT, DataType::F32, 1 - me)
                })
            }
        };
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        if hosts[0] != hosts[1] {
            // Connecting is nothing that a graph could do.
            stream.begin_capture(mode).unwrap();
            let error = exchange(&mut rank).unwrap_err().to_string();
            assert!(error.contains("is captured"), "{error}");
            stream.end_capture(flags).expect("the capture goes on");
            exchange(&mut rank).unwrap();
        }
        stream.begin_capture(mode).unwrap();
        exchange(&mut rank).unwrap();
        let graph = stream.end_capture(flags).unwrap().unwrap();
        for round in 0..4 {
            let value = |rank: usize, k: usize| (rank * 10 + round) as f32 + (k % 1000) as f32;
            rank.upload(from.address(), &(0..COUNT).map(|k| value(me, k)).collect::<Vec<_>>());
            if round % 2 == 0 {
                graph.launch().unwrap();
            } else {
                exchange(&mut rank).unwrap();
            }
            rank.synchronize().unwrap();
            let seen = rank.download::<f32>(to.address(), COUNT);
            assert!(seen.iter().enumerate().all(|(k, x)| *x == value(1 - me, k)), "round {round}");
        }
    });
}

/// Sends or receives so many elements.
fn one(
    rank: &mut Rank,
    sends: bool,
    peer: usize,
    count: usize,
    dtype: DataType,
) -> Result<(), warpmesh::Error> {
    let memory = Memory::new(rank, count * dtype.size(), false);
    let (at, stream) = (memory.address() as usize, rank.stream.cu_stream());
    // SAFETY: the memory lives until the stream has passed.
    unsafe {
        rank.comm.group_raw(stream, |group| match sends {
            true => group.send_raw(at as *const u8, count, dtype, peer),
            false => group.recv_raw(at as *mut u8, count, dtype, peer),
        })?;
    }
    rank.synchronize()
}

#[test]
fn a_message_that_is_not_what_is_received_is_told_to_both() {
    if gpu::count().is_none() {
        return;
    }
    // Another length; the same length of another type.
    for (halves, hosts) in [(false, [0, 0]), (true, [0, 0]), (false, [0, 1]), (true, [0, 1])] {
        gpu::ranks_on(&settings(), &hosts, |mut rank| {
            let sends = rank.comm.rank() == 0;
            // More than the rings hold, so that the sender waits.
            let (count, dtype) = match (sends, halves) {
                (true, true) => (3 << 19, DataType::F16),
                (true, false) | (false, true) => (3 << 20, DataType::U8),
                (false, false) => (3_000_000, DataType::U8),
            };
            let result = one(&mut rank, sends, usize::from(sends), count, dtype);
            let error = result.unwrap_err();
            let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
            assert_eq!(
                (failure.kind, failure.culprit),
                (FailureKind::Mismatch, Some(0)),
                "{error}"
            );
            if !halves {
                let said = "receives 3000000 bytes from rank 0, which sends 3145728";
                assert!(error.to_string().contains(said), "{error}");
            }
            rank.stream.synchronize().unwrap();
        });
    }
}

#[test]
fn a_peer_that_does_not_send_is_named() {
    if gpu::count().is_none() {
        return;
    }
    let settings = common::settings().timeout(Duration::from_secs(1));
    gpu::ranks_with(settings, 2, |mut rank| {
        let since = Instant::now();
        if rank.comm.rank() == 1 {
            std::thread::sleep(Duration::from_secs(8));
            return;
        }
        let error = one(&mut rank, false, 1, 100, DataType::F32).unwrap_err();
        let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
        assert_eq!((failure.kind, failure.culprit), (FailureKind::TimedOut, Some(1)), "{error}");
        assert!(error.to_string().contains("receives from rank 1, which does not send"), "{error}");
        assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    });
}

#[test]
fn a_peer_on_another_host_that_does_not_send_is_named() {
    if gpu::count().is_none() {
        return;
    }
    for connects in [true, false] {
        let settings = common::settings().timeout(Duration::from_secs(3));
        gpu::ranks_on(&settings, &[0, 1], |mut rank| {
            let me = rank.comm.rank();
            if connects {
                one(&mut rank, me == 0, 1 - me, 100, DataType::F32).unwrap();
            }
            if me == 1 {
                std::thread::sleep(Duration::from_secs(10));
                return;
            }
            let since = Instant::now();
            let error = one(&mut rank, false, 1, 100, DataType::F32).unwrap_err();
            let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
            assert_eq!((failure.kind, failure.culprit), (FailureKind::TimedOut, Some(1)));
            let what =
                if connects { "receives from rank 1, which does not send" } else { "rank 1" };
            assert!(error.to_string().contains(what), "{error}");
            assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
        });
    }
}

#[test]
fn what_a_rank_sent_before_it_left_comes() {
    if gpu::count().is_none() {
        return;
    }
    for hosts in [[0, 0], [0, 1]] {
        gpu::ranks_on(&settings(), &hosts, |mut rank| {
            let (me, stream) = (rank.comm.rank(), rank.stream.clone());
            one(&mut rank, me == 0, 1 - me, 10, DataType::F32).unwrap();
            // As much as the rings hold.
            const COUNT: usize = 10_000;
            if me == 0 {
                let data = stream.clone_htod(&[2.5_f32; COUNT]).unwrap();
                rank.comm.send::<f32, _>(&data, 1, &stream).unwrap();
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
            let mut data = stream.alloc_zeros::<f32>(COUNT).unwrap();
            rank.comm.recv::<f32, _>(&mut data, 0, &stream).unwrap();
            rank.synchronize().unwrap();
            assert_eq!(stream.clone_dtoh(&data).unwrap(), [2.5; COUNT]);
            let error = one(&mut rank, false, 0, 10, DataType::F32).unwrap_err();
            let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
            assert_eq!((failure.kind, failure.culprit), (FailureKind::PeerLeft, Some(0)));
        });
    }
}

/// A kernel says that it waits, gets what it waits for, and whoever sent it leaves at once.
#[test]
fn a_wait_that_is_over_needs_nobody() {
    if gpu::count().is_none() {
        return;
    }
    for turn in 0..12 {
        gpu::ranks_on(&settings(), &[0, 0], |mut rank| {
            let me = rank.comm.rank();
            one(&mut rank, me == 0, 1 - me, 10, DataType::F32).unwrap();
            if me == 0 {
                std::thread::sleep(Duration::from_millis(30 + turn));
            }
            one(&mut rank, me == 0, 1 - me, 10, DataType::F32).unwrap();
            if me == 1 {
                std::thread::sleep(Duration::from_millis(60));
                assert_eq!(rank.comm.failure(), None, "turn {turn}");
            }
        });
    }
}

/// More than the rings between two ranks hold.
const LONG: usize = 3 << 20;

/// Messages without end between rank 1 and each other rank, or of these alone; the error that ends them.
fn letters_without_end(rank: &mut Rank, to_victim: bool, taken: bool) -> Error {
    let memory = Memory::new(rank, 2 * LONG, false);
    let (me, stream, at) = (rank.comm.rank(), rank.stream.cu_stream(), memory.address() as usize);
    if me == 1 && !taken {
        // It is killed here.
        std::thread::sleep(Duration::from_secs(60));
    }
    loop {
        // SAFETY: the memory lives until the stream has passed, or the process has ended.
        let queued = unsafe {
            rank.comm.group_raw(stream, |group| {
                let peers = if me == 1 { &[0, 2][..] } else { &[1] };
                peers.iter().enumerate().try_for_each(|(n, &peer)| match (me == 1) == to_victim {
                    true => group.recv_raw((at + n * LONG) as *mut u8, LONG, DataType::U8, peer),
                    false => group.send_raw(at as *const u8, LONG, DataType::U8, peer),
                })
            })
        };
        if let Err(error) = queued.and_then(|()| rank.synchronize()) {
            return error;
        }
    }
}

/// While messages go to it or come from it, and while others wait for it with rings that are full or empty.
#[test]
fn a_process_that_is_killed_amid_messages_is_named_and_streams_stay_usable() {
    const NAME: &str = "a_process_that_is_killed_amid_messages_is_named_and_streams_stay_usable";
    if let Some((_, _, how)) = me() {
        let mut rank = gpu::rank(connect(Duration::from_secs(20)));
        println!("READY");
        let error = letters_without_end(&mut rank, how & 1 == 0, how & 2 == 0);
        rank.stream.synchronize().unwrap();
        let memory = Memory::new(&mut rank, 64, false);
        rank.upload(memory.address(), &[1.5_f32]);
        assert_eq!(rank.download::<f32>(memory.address(), 1), [1.5]);
        report(&error);
        return;
    }
    if gpu::count().is_none() {
        return;
    }
    let on_one = (0..4).map(|how| (how, &[0, 0, 0], "PeerDied"));
    let on_two = (0..4).map(|how| (how, &[0, 1, 0], "Disconnected"));
    for (how, hosts, kind) in on_one.chain(on_two) {
        let mut ranks = Ranks::start_on(NAME, hosts, how);
        ranks.ready(Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(400));
        ranks.signal(1, rustix::process::Signal::KILL);
        let since = Instant::now();
        for rank in [0, 2] {
            let said = ranks.report(rank, Duration::from_secs(15));
            assert!(said.starts_with(&format!("{kind} culprit 1 ")), "{how}, rank {rank}: {said}");
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    }
}

#[test]
fn wrong_arguments_of_messages_are_refused() {
    if gpu::count().is_none() {
        return;
    }
    gpu::ranks_with(common::settings(), 2, |mut rank| {
        let memory = Memory::new(&mut rank, 1 << 12, false);
        let (me, stream, good) =
            (rank.comm.rank(), rank.stream.cu_stream(), memory.address() as usize);
        let host = [0_u8; 64];
        let mut send = |at: usize, dtype: DataType, peer: usize| {
            // SAFETY: what is wrong is refused before it is used.
            let sent = unsafe {
                rank.comm.group_raw(stream, |group| group.send_raw(at as *const u8, 8, dtype, peer))
            };
            sent.unwrap_err().to_string()
        };
        assert!(send(good, DataType::F32, 2).contains("there are 2 ranks"));
        assert!(send(0, DataType::F32, 1 - me).contains("is null"));
        assert!(send(good + 1, DataType::F32, 1 - me).contains("not aligned"));
        assert!(send(host.as_ptr() as usize, DataType::U8, 1 - me).contains("memory"));
        assert!(send(good, DataType::F32, me).contains("to itself does not match"));
        // Nothing of that is left.
        assert!(one(&mut rank, me == 0, 1 - me, 5000, DataType::F32).is_ok());
        let stream = rank.stream.clone();
        let mut data = stream.alloc_zeros::<u8>(4).unwrap();
        let other = stream.alloc_zeros::<u8>(4).unwrap();
        let uneven =
            rank.comm.all_to_all_v::<u8, _, _>(&other, &[4, 1], &mut data, &[2, 2], &stream);
        assert!(uneven.unwrap_err().to_string().contains("input has 4 elements, must have 5"));
    });
}

//! Ranks that are processes, on one host and on two (which reach each other by TCP over loopback), and what happens to
//! the others when one dies, stops, leaves early or calls something else, at any moment.

mod common;

use std::time::{Duration, Instant};

use common::processes::{Ranks, connect, me, report};
use warpmesh::bootstrap::{TcpBootstrap, TcpRoot, UniqueId};
use warpmesh::{Communicator, Error, ReduceOp};

/// The hosts of four ranks.
const HOSTS: [[usize; 4]; 2] = [[0; 4], [0, 0, 1, 1]];

/// Collectives of many kinds and sizes, until one fails.
fn sweep(comm: &mut Communicator) -> Error {
    sweep_until(comm, usize::MAX).expect_err("a sweep without end ends with an error")
}

fn sweep_until(comm: &mut Communicator, calls: usize) -> Result<(), Error> {
    let world = comm.world();
    let largest = 200_000;
    let mut registered = comm.alloc::<f32>(largest * world)?;
    let mut result = comm.alloc::<f32>(largest * world)?;
    let mut plain = vec![1.0_f32; largest * world];
    for i in 0..calls {
        let count = [1, 100, 3_000, largest][i % 4];
        let root = i % world;
        let data = if i % 3 == 0 { &mut registered[..] } else { &mut plain[..] };
        match i % 7 {
            0 => comm.all_reduce(&mut data[..count], ReduceOp::Sum)?,
            1 => comm.broadcast(&mut data[..count], root)?,
            2 => comm.all_gather(&data[..count], &mut result[..count * world])?,
            3 => {
                comm.reduce_scatter(&data[..count * world], &mut result[..count], ReduceOp::Max)?
            }
            4 => comm.all_to_all(&data[..count * world], &mut result[..count * world])?,
            5 => comm.reduce(&mut data[..count], ReduceOp::Min, root)?,
            _ => {
                let (next, last) = ((comm.rank() + 1) % world, (comm.rank() + world - 1) % world);
                let (out, back) = (&data[..count], &mut result[..count]);
                comm.group(|group| {
                    group.send(out, next)?;
                    group.recv(back, last)
                })?;
            }
        }
        data.fill(1.0);
    }
    Ok(())
}

#[test]
fn processes_agree() {
    const NAME: &str = "processes_agree";
    if me().is_some() {
        let mut comm = connect(Duration::from_secs(20));
        sweep_until(&mut comm, 200).unwrap();
        let mut sum = [comm.rank() as u64 + 1];
        comm.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
        println!("REPORT {}", sum[0]);
        return;
    }
    for hosts in [HOSTS[0], HOSTS[1], [0, 1, 2, 1]] {
        let mut ranks = Ranks::start_on(NAME, &hosts, 0);
        for rank in 0..4 {
            assert_eq!(ranks.report(rank, Duration::from_secs(60)), "10");
        }
    }
}

/// Kills one rank of four at a moment that differs from run to run; the others name it within a
/// second.
#[test]
fn a_killed_rank_is_named_within_a_second() {
    const NAME: &str = "a_killed_rank_is_named_within_a_second";
    if me().is_some() {
        return report(&sweep(&mut connect(Duration::from_secs(30))));
    }
    for (seed, hosts) in (0..8).flat_map(|seed| HOSTS.map(|hosts| (seed, hosts))) {
        let victim = seed % 4;
        let mut ranks = Ranks::start_on(NAME, &hosts, seed);
        std::thread::sleep(Duration::from_millis(150 + seed as u64 * 37));
        ranks.signal(victim, rustix::process::Signal::KILL);
        let killed = Instant::now();
        for rank in (0..4).filter(|rank| *rank != victim) {
            let seen = ranks.report(rank, Duration::from_secs(5));
            let died = seen.starts_with(&format!("PeerDied culprit {victim} "));
            // From another host only the connection's end is seen.
            let broke = seen.starts_with(&format!("Disconnected culprit {victim} "));
            assert!(died || broke && hosts == HOSTS[1], "{seen}");
        }
        // The limit is a second for the error; processes take a moment more to end.
        assert!(killed.elapsed() < Duration::from_millis(1500), "{:?}", killed.elapsed());
    }
}

/// A stopped rank is named after the timeout, by those who wait for it directly and by those who
/// wait for someone who does.
#[test]
fn a_stopped_rank_is_named_after_the_timeout() {
    const NAME: &str = "a_stopped_rank_is_named_after_the_timeout";
    let timeout = Duration::from_millis(1500);
    if me().is_some() {
        return report(&sweep(&mut connect(timeout)));
    }
    for (seed, hosts) in (0..4).flat_map(|seed| HOSTS.map(|hosts| (seed, hosts))) {
        let victim = (seed + 1) % 4;
        let mut ranks = Ranks::start_on(NAME, &hosts, seed);
        std::thread::sleep(Duration::from_millis(200 + seed as u64 * 53));
        ranks.signal(victim, rustix::process::Signal::STOP);
        for rank in (0..4).filter(|rank| *rank != victim) {
            let seen = ranks.report(rank, Duration::from_secs(8));
            assert!(seen.starts_with(&format!("TimedOut culprit {victim} ")), "{seen}");
            let stopped = seen.contains("its process is stopped");
            assert!(stopped || hosts[rank] != hosts[victim], "{seen}");
        }
        // Once it goes on it learns of it, too.
        ranks.signal(victim, rustix::process::Signal::CONT);
        let seen = ranks.report(victim, Duration::from_secs(8));
        assert!(seen.starts_with("TimedOut culprit "), "{seen}");
    }
}

#[test]
fn a_rank_that_exits_early_is_named() {
    const NAME: &str = "a_rank_that_exits_early_is_named";
    if let Some((rank, _, seed)) = me() {
        let mut comm = connect(Duration::from_secs(20));
        if rank == 1 {
            sweep_until(&mut comm, 40 + seed).unwrap();
            if seed == 0 {
                drop(comm);
            }
            println!("REPORT gone");
            std::process::exit(0);
        }
        return report(&sweep(&mut comm));
    }
    for (seed, kinds) in [(0, ["PeerLeft"; 2]), (1, ["PeerDied", "Disconnected"])] {
        for (hosts, kinds) in [([0; 3], &kinds[..1]), ([0, 1, 1], &kinds)] {
            let mut ranks = Ranks::start_on(NAME, &hosts, seed);
            assert_eq!(ranks.report(1, Duration::from_secs(20)), "gone");
            for rank in [0, 2] {
                let seen = ranks.report(rank, Duration::from_secs(5));
                let expected = |kind: &&str| seen.starts_with(&format!("{kind} culprit 1 "));
                assert!(kinds.iter().any(expected), "{seen}");
            }
        }
    }
}

/// Ranks that make different calls all get an error that names both.
#[test]
fn different_calls_are_named_on_every_rank() {
    const NAME: &str = "different_calls_are_named_on_every_rank";
    if let Some((rank, _, seed)) = me() {
        let mut comm = connect(Duration::from_secs(5));
        let odd = rank == 2;
        let mut data = vec![1.0_f32; 60_000];
        let mut other = vec![1_i32; 100];
        let mut gathered = vec![0.0_f32; 400];
        comm.all_reduce(&mut data[..10], ReduceOp::Sum).unwrap();
        let first = match (seed, odd) {
            (0, true) => comm.all_reduce(&mut data[..99], ReduceOp::Sum),
            (1, true) => comm.all_reduce(&mut data[..100], ReduceOp::Max),
            (2, true) => comm.all_reduce(&mut other, ReduceOp::Sum),
            (3, true) => comm.all_gather(&data[..100], &mut gathered),
            (4, true) => comm.broadcast(&mut data[..100], 1),
            (5, true) => comm.all_reduce(&mut data, ReduceOp::Sum),
            (6, _) => comm.broadcast(&mut data[..100], usize::from(odd)),
            (7, true) => comm.barrier(),
            _ => comm.all_reduce(&mut data[..100], ReduceOp::Sum),
        };
        // A rank that only sends may be done before the others see that it differs.
        let error = first.and_then(|()| comm.barrier()).and_then(|()| comm.barrier()).unwrap_err();
        return report(&error);
    }
    for (seed, odd) in [
        (0, "all_reduce(float, sum, count 99,"),
        (1, "all_reduce(float, max, count 100,"),
        (2, "all_reduce(int32, sum, count 100,"),
        (3, "all_gather(float, count 100,"),
        (4, "broadcast(float, count 100, root 1,"),
        (5, "all_reduce(float, sum, count 60000,"),
        (6, "broadcast(float, count 100, root 1,"),
        (7, "barrier"),
    ] {
        let others = if seed == 6 {
            "broadcast(float, count 100, root 0,"
        } else {
            "all_reduce(float, sum, count 100,"
        };
        for hosts in HOSTS {
            let mut ranks = Ranks::start_on(NAME, &hosts, seed);
            for rank in 0..4 {
                let seen = ranks.report(rank, Duration::from_secs(8));
                assert!(seen.starts_with("Mismatch culprit "), "case {seed}: {seen}");
                assert!(seen.contains(odd) && seen.contains(others), "case {seed}: {seen}");
            }
        }
    }
}

/// After a failure the survivors make a new communicator, and it works; nothing of the old one is
/// left in the process's mappings or in shared memory.
#[test]
fn survivors_go_on_with_a_new_communicator() {
    const NAME: &str = "survivors_go_on_with_a_new_communicator";
    if let Some((rank, _, _)) = me() {
        let mut comm = connect(Duration::from_secs(20));
        // The survivors agree beforehand on where to meet again.
        let mut meeting = [0_u8; 128];
        let mut root = None;
        if rank == 0 {
            let (bound, id) = TcpRoot::bind(([127, 0, 0, 1], 0)).unwrap();
            meeting = id.to_bytes();
            root = Some(bound);
        }
        comm.broadcast(&mut meeting, 0).unwrap();
        if rank == 2 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .unwrap();
        }
        let error = sweep(&mut comm);
        assert!(error.failure().is_some_and(|f| f.culprit == Some(2)), "{error}");
        assert!(comm.barrier().is_err(), "a failed communicator stays failed");
        drop(comm);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("warpmesh"), "mappings are left: {maps}");
        let timeout = Duration::from_secs(10);
        let bootstrap = match root {
            Some(root) => TcpBootstrap::root(root, 2, timeout).unwrap(),
            None => {
                TcpBootstrap::join(&UniqueId::from_bytes(&meeting).unwrap(), 1, 2, timeout).unwrap()
            }
        };
        let mut comm = Communicator::builder().timeout(timeout).connect(bootstrap).unwrap();
        sweep_until(&mut comm, 50).unwrap();
        println!("REPORT went on");
        return;
    }
    for hosts in [[0, 0, 0], [0, 1, 1]] {
        let mut ranks = Ranks::start_on(NAME, &hosts, 0);
        for rank in [0, 1] {
            assert_eq!(ranks.report(rank, Duration::from_secs(30)), "went on");
        }
    }
}

/// `abort` from another thread ends a call that would wait for long, on all ranks.
#[test]
fn abort_ends_waiting_calls_on_all_ranks() {
    const NAME: &str = "abort_ends_waiting_calls_on_all_ranks";
    if let Some((rank, ..)) = me() {
        let mut comm = connect(Duration::from_secs(60));
        if rank == 0 {
            let handle = comm.abort_handle();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(200));
                handle.abort();
            });
            // Rank 0 never calls the barrier that the others wait in.
            std::thread::sleep(Duration::from_millis(400));
        }
        return report(&comm.barrier().unwrap_err());
    }
    for hosts in [[0, 0, 0], [0, 0, 1]] {
        let mut ranks = Ranks::start_on(NAME, &hosts, 0);
        for rank in 0..3 {
            let seen = ranks.report(rank, Duration::from_secs(10));
            assert!(seen.starts_with("Aborted culprit -1 "), "{seen}");
        }
    }
}

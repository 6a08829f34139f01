//! Ranks of one host as threads: shared memory, channels, and waits that end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warpmesh_primitives::Error;
use warpmesh_primitives::bootstrap::LocalBootstrap;
use warpmesh_primitives::channel::MemoryChannel;
use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::node::Node;

fn ranks<R: Send>(world: usize, timeout: Duration, work: impl Fn(Arc<Node>) -> R + Sync) -> Vec<R> {
    let bootstraps = LocalBootstrap::create(world, Duration::from_secs(10)).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = bootstraps
            .into_iter()
            .map(|mut bootstrap| {
                scope.spawn(move || work(Node::connect(&mut bootstrap, timeout).unwrap()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn put_get_signal_and_wait_carry_data_both_ways() {
    ranks(3, LONG, |node| {
        let (me, world) = (node.rank(), node.world());
        let memory = node.share(1000, false).unwrap();
        let mut to = MemoryChannel::new(&node, &memory, (me + 1) % world, 5).unwrap();
        let mut from = MemoryChannel::new(&node, &memory, (me + 2) % world, 5).unwrap();
        for round in 0..100_u8 {
            to.put(3, &[me as u8, round, 7]).unwrap();
            to.signal();
            from.wait().unwrap();
            let mut seen = [0; 3];
            from.read(3, &mut seen).unwrap();
            assert_eq!(seen, [(me + 2) as u8 % 3, round, 7]);
            // What the peer wrote to itself can be got, too.
            from.write(500, &[round + me as u8]).unwrap();
            from.signal();
            to.wait().unwrap();
            let mut got = [0];
            to.get(500, &mut got).unwrap();
            assert_eq!(got[0], round + ((me + 1) % world) as u8);
            to.signal();
            from.wait().unwrap();
        }
    });
}

#[test]
fn packets_need_no_signal() {
    ranks(2, LONG, |node| {
        let memory = node.share(1 << 16, false).unwrap();
        let mut channel = MemoryChannel::new(&node, &memory, 1 - node.rank(), 0).unwrap();
        for round in 0..200_usize {
            let len = round * 7 % 900;
            let data: Vec<u8> = (0..len).map(|i| (i + round) as u8).collect();
            let offset = (round % 2) * 4096;
            channel.put_packets(offset, &data).unwrap();
            let mut back = vec![0; len];
            channel.get_packets(offset, &mut back).unwrap();
            assert_eq!(back, data);
        }
    });
}

#[test]
fn wrong_ranges_ranks_and_ids_are_errors() {
    ranks(2, LONG, |node| {
        let memory = node.share(4096, false).unwrap();
        let channel = MemoryChannel::new(&node, &memory, 1 - node.rank(), 0).unwrap();
        assert!(matches!(channel.put(4090, &[0; 7]), Err(Error::OutOfRange { .. })));
        assert!(matches!(channel.get(usize::MAX, &mut [0]), Err(Error::OutOfRange { .. })));
        let new = |peer, id| MemoryChannel::new(&node, &memory, peer, id);
        assert!(matches!(new(node.rank(), 0), Err(Error::Argument { argument: "peer", .. })));
        assert!(matches!(new(2, 0), Err(Error::Argument { argument: "peer", .. })));
        assert!(matches!(new(1 - node.rank(), 64), Err(Error::Argument { argument: "id", .. })));
    });
}

#[test]
fn a_wait_that_nobody_answers_ends_and_names_the_peer() {
    let timeout = Duration::from_millis(300);
    let start = Instant::now();
    let failures = ranks(3, timeout, |node| {
        let memory = node.share(64, false).unwrap();
        // 1 waits for 0, 2 waits for 1; 0 is busy elsewhere, so it is to blame for both.
        if node.rank() == 0 {
            while node.failure().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            return node.failure().unwrap();
        }
        let mut channel = MemoryChannel::new(&node, &memory, node.rank() - 1, 0).unwrap();
        match channel.wait() {
            Err(Error::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    });
    for failure in failures {
        let Failure { kind, culprit, .. } = failure;
        assert_eq!((kind, culprit), (FailureKind::TimedOut, Some(0)));
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_peer_that_leaves_is_noticed_at_once() {
    let start = Instant::now();
    ranks(2, LONG, |node| {
        let memory = node.share(64, false).unwrap();
        if node.rank() == 1 {
            return;
        }
        let mut channel = MemoryChannel::new(&node, &memory, 1, 0).unwrap();
        let Err(Error::Failed(failure)) = channel.wait() else { panic!("nobody signalled") };
        assert_eq!((failure.kind, failure.culprit), (FailureKind::PeerLeft, Some(1)));
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_sleeping_waiter_is_woken() {
    ranks(2, LONG, |node| {
        let memory = node.share(64, false).unwrap();
        let mut channel = MemoryChannel::new(&node, &memory, 1 - node.rank(), 0).unwrap();
        for _ in 0..3 {
            if node.rank() == 0 {
                // Long enough for the other to be asleep.
                std::thread::sleep(Duration::from_millis(30));
                channel.signal();
                channel.wait().unwrap();
            } else {
                channel.wait().unwrap();
                channel.signal();
            }
        }
    });
}

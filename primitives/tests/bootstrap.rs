//! Ranks as threads that meet over TCP on loopback: what works, and what is said when a rank is at fault.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use warpmesh_primitives::bootstrap::{
    Bootstrap, BootstrapError, MAX_CONTRIBUTION, TcpBootstrap, TcpRoot, UniqueId,
};

/// For what has to succeed, on a machine that is busy.
const LONG: Duration = Duration::from_secs(30);
/// For what has to time out.
const SHORT: Duration = Duration::from_millis(400);
/// How late an error may be on a busy machine, beyond the timeout and a rank's grace.
const SLACK: Duration = Duration::from_secs(4);

type Outcome<T> = Result<T, BootstrapError>;

#[test]
fn any_start_order_gives_everyone_everything() {
    let work = |mut own: TcpBootstrap| {
        for round in 0..20 {
            let mine = vec![own.rank() as u8; own.rank() * round * 7];
            let all = own.all_gather(&mine)?;
            let expected = (0..own.world()).map(|rank| vec![rank as u8; rank * round * 7]);
            assert!(all.into_iter().eq(expected));
            own.barrier()?;
        }
        Ok(())
    };
    for step in [0, 3, 5, 7] {
        let delay = |rank: usize| Duration::from_millis(((rank + 1) * step % 8) as u64 * 5);
        for outcome in job(8, LONG, delay, work) {
            outcome.unwrap();
        }
    }
}

#[test]
fn sixteen_ranks_are_ready_in_20_ms() {
    let mut best = Duration::MAX;
    // Other tests and programs share the machine: what counts is what it can do.
    for _ in 0..20 {
        let begin = Instant::now();
        for outcome in job(16, LONG, at_once, Ok) {
            outcome.unwrap();
        }
        best = best.min(begin.elapsed());
    }
    println!("16 ranks were ready in {best:?}");
    assert!(best < Duration::from_millis(20), "{best:?}");
}

#[test]
fn the_largest_contributions_pass() {
    let work = |mut own: TcpBootstrap| {
        let mine = vec![own.rank() as u8 + 1; MAX_CONTRIBUTION - own.rank()];
        let all = own.all_gather(&mine)?;
        assert_eq!(all.len(), 3);
        for (rank, part) in all.iter().enumerate() {
            assert!(part[..] == vec![rank as u8 + 1; MAX_CONTRIBUTION - rank]);
        }
        let too_large = own.all_gather(&vec![0; MAX_CONTRIBUTION + 1]).unwrap_err();
        assert!(matches!(too_large, BootstrapError::TooLarge { .. }));
        own.barrier()
    };
    for outcome in job(3, LONG, at_once, work) {
        outcome.unwrap();
    }
}

#[test]
fn world_one_needs_no_socket() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let id = UniqueId::new(taken.local_addr().unwrap()).unwrap();
    for own in [
        TcpBootstrap::from_id_as_root(&id, 1, SHORT),
        TcpBootstrap::join(&id, 0, 1, SHORT),
        TcpBootstrap::root(bind().0, 1, SHORT),
    ] {
        let mut own = own.unwrap();
        assert_eq!((own.rank(), own.world()), (0, 1));
        assert_eq!(own.all_gather(b"x").unwrap(), [b"x"]);
    }
}

#[test]
fn the_id_can_be_made_ahead_of_time() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let id = UniqueId::new(port).unwrap();
    thread::scope(|s| {
        let joins = [1, 2].map(|rank| {
            let id = UniqueId::from_bytes(&id.to_bytes()).unwrap();
            s.spawn(move || TcpBootstrap::join(&id, rank, 3, LONG)?.all_gather(&[rank as u8]))
        });
        thread::sleep(Duration::from_millis(50));
        let mut root = TcpBootstrap::from_id_as_root(&id, 3, LONG).unwrap();
        assert_eq!(root.all_gather(&[0]).unwrap(), [[0], [1], [2]]);
        for join in joins {
            assert_eq!(join.join().unwrap().unwrap(), [[0], [1], [2]]);
        }
    });
}

#[test]
fn ipv6_works_where_the_host_has_it() {
    let Ok((root, id)) = TcpRoot::bind((Ipv6Addr::LOCALHOST, 0)) else {
        println!("NOT TESTED: this host has no IPv6 loopback");
        return;
    };
    let id: UniqueId = id.to_string().parse().unwrap();
    thread::scope(|s| {
        let join = s.spawn(move || TcpBootstrap::join(&id, 1, 2, LONG)?.barrier());
        TcpBootstrap::root(root, 2, LONG).unwrap().barrier().unwrap();
        join.join().unwrap().unwrap();
    });
}

#[test]
fn arguments_are_checked() {
    let (root, id) = bind();
    let join = |rank, world| TcpBootstrap::join(&id, rank, world, LONG).unwrap_err();
    assert!(matches!(join(4, 4), BootstrapError::RankOutOfRange { rank: 4, world: 4 }));
    assert!(matches!(join(0, 4), BootstrapError::RootJoins));
    assert!(matches!(join(0, 0), BootstrapError::WorldOutOfRange { world: 0, .. }));
    assert!(TcpBootstrap::root(root, usize::MAX, LONG).is_err());
    let any = TcpRoot::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap_err();
    assert!(matches!(any, BootstrapError::NotConnectable { .. }));
    let not_ours: SocketAddr = "192.0.2.1:4321".parse().unwrap();
    assert!(matches!(TcpRoot::bind(not_ours).unwrap_err(), BootstrapError::Bind { .. }));
}

#[test]
fn a_rank_that_never_comes_is_named_to_all() {
    let (root, id) = bind();
    let begin = Instant::now();
    thread::scope(|s| {
        let id = &id;
        let joins =
            [1, 3].map(|rank| s.spawn(move || TcpBootstrap::join(id, rank, 5, SHORT).unwrap_err()));
        expect_missing(&TcpBootstrap::root(root, 5, SHORT).unwrap_err(), &[2, 4]);
        for join in joins {
            let error = join.join().unwrap();
            expect_missing(&error, &[2, 4]);
            assert!(error.to_string().starts_with("ranks 2 and 4 of 5 did not come"), "{error}");
        }
    });
    assert!(begin.elapsed() < SHORT + SLACK);
}

#[test]
fn a_rank_that_stays_out_of_a_call_is_named_to_all() {
    let begin = Instant::now();
    let outcomes = job(4, SHORT, at_once, |mut own| {
        own.barrier()?;
        if own.rank() == 2 {
            thread::sleep(SHORT * 3);
            // Too late, and told so.
            return own.barrier();
        }
        let error = own.barrier().unwrap_err();
        let again = own.all_gather(b"x").unwrap_err();
        assert_eq!(again.to_string(), error.to_string(), "it stays failed");
        Err(error)
    });
    for outcome in outcomes {
        expect_missing(&outcome.unwrap_err(), &[2]);
    }
    assert!(begin.elapsed() < SHORT * 3 + SLACK);
}

#[test]
fn a_rank_that_dies_between_two_calls_is_named_at_once() {
    let begin = Instant::now();
    let outcomes = job(5, LONG, at_once, |mut own| {
        own.all_gather(b"first")?;
        if own.rank() == 3 { Ok(()) } else { own.barrier() }
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match rank {
            3 => outcome.unwrap(),
            _ => expect_closed(&outcome.unwrap_err(), 3),
        }
    }
    assert!(begin.elapsed() < SLACK);
}

#[test]
fn a_rank_that_dies_while_others_wait_is_named_at_once() {
    let begin = Instant::now();
    let outcomes = job(4, LONG, at_once, |mut own| {
        own.barrier()?;
        if own.rank() == 1 {
            thread::sleep(Duration::from_millis(100));
            return Ok(());
        }
        own.barrier()
    });
    for rank in [0, 2, 3] {
        expect_closed(outcomes[rank].as_ref().unwrap_err(), 1);
    }
    assert!(begin.elapsed() < SLACK);
}

#[test]
fn a_root_that_dies_is_named_at_once() {
    let begin = Instant::now();
    let outcomes = job(4, LONG, at_once, |mut own| {
        own.barrier()?;
        // More than the sockets hold: it dies in the middle of sending, too.
        if own.rank() == 0 { Ok(Vec::new()) } else { own.all_gather(&vec![0; MAX_CONTRIBUTION]) }
    });
    for outcome in &outcomes[1..] {
        expect_closed(outcome.as_ref().unwrap_err(), 0);
    }
    assert!(begin.elapsed() < SLACK);
}

#[test]
fn a_late_rank_hears_why_it_is_over_although_the_root_has_gone() {
    let outcomes = job(3, SHORT, at_once, |mut own| {
        own.barrier()?;
        if own.rank() == 2 {
            thread::sleep(SHORT * 3);
            return own.all_gather(&vec![0; MAX_CONTRIBUTION]);
        }
        own.all_gather(b"in time")
    });
    for outcome in outcomes {
        expect_missing(&outcome.unwrap_err(), &[2]);
    }
}

#[test]
fn another_world_is_an_error_at_both_ends() {
    let (root, id) = bind();
    thread::scope(|s| {
        let id = &id;
        let good = s.spawn(move || TcpBootstrap::join(id, 1, 4, LONG).unwrap_err());
        let bad = s.spawn(move || {
            thread::sleep(Duration::from_millis(50));
            TcpBootstrap::join(id, 5, 8, LONG).unwrap_err()
        });
        let at_root = TcpBootstrap::root(root, 4, LONG).unwrap_err();
        let says = "rank 5 was started with world 8, but rank 0 with world 4";
        for error in [at_root, good.join().unwrap(), bad.join().unwrap()] {
            assert!(error.to_string().contains(says), "{error}");
        }
    });
}

#[test]
fn a_duplicate_rank_is_an_error_at_both_ends() {
    let (root, id) = bind();
    thread::scope(|s| {
        let id = &id;
        let twice =
            [1, 1].map(|rank| s.spawn(move || TcpBootstrap::join(id, rank, 3, LONG).unwrap_err()));
        let at_root = TcpBootstrap::root(root, 3, LONG).unwrap_err();
        assert!(at_root.to_string().contains("a second process (at 127.0.0.1:"), "{at_root}");
        for error in [at_root].into_iter().chain(twice.map(|join| join.join().unwrap())) {
            let named = matches!(error, BootstrapError::DuplicateRank { rank: 1, world: 3, .. });
            assert!(named, "{error}");
        }
    });
}

#[test]
fn a_root_that_never_listens_is_an_error_in_time() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begin = Instant::now();
    let error = TcpBootstrap::join(&UniqueId::new(addr).unwrap(), 1, 2, SHORT).unwrap_err();
    let BootstrapError::Unreachable { rank: 1, addr: tried, attempts, .. } = error else {
        panic!("{error}");
    };
    assert!(tried == addr && attempts > 3);
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < SHORT + SLACK);
}

#[test]
fn a_root_that_never_answers_is_named_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let id = UniqueId::new(silent.local_addr().unwrap()).unwrap();
    let begin = Instant::now();
    expect_missing(&TcpBootstrap::join(&id, 1, 2, SHORT).unwrap_err(), &[0]);
    assert!(begin.elapsed() < SHORT + SLACK);
}

/// Runs `work` on `world` ranks, rank r started after `delay(r)`; what each returned.
fn job<T: Send>(
    world: usize,
    timeout: Duration,
    delay: impl Fn(usize) -> Duration + Sync,
    work: impl Fn(TcpBootstrap) -> Outcome<T> + Sync,
) -> Vec<Outcome<T>> {
    let (root, id) = bind();
    let mut root = Some(root);
    thread::scope(|s| {
        let (id, delay, work) = (&id, &delay, &work);
        let start = |rank| {
            let root = root.take();
            s.spawn(move || {
                thread::sleep(delay(rank));
                match root {
                    Some(root) => work(TcpBootstrap::root(root, world, timeout)?),
                    None => work(TcpBootstrap::join(id, rank, world, timeout)?),
                }
            })
        };
        let ranks: Vec<_> = (0..world).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn bind() -> (TcpRoot, UniqueId) {
    TcpRoot::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn at_once(_: usize) -> Duration {
    Duration::ZERO
}

fn expect_closed(error: &BootstrapError, rank: usize) {
    assert!(matches!(error, BootstrapError::PeerClosed { peer, .. } if *peer == rank), "{error}");
    assert!(error.to_string().contains(&format!("rank {rank} closed its bootstrap connection")));
}

fn expect_missing(error: &BootstrapError, ranks: &[usize]) {
    let named = matches!(error, BootstrapError::Missing { missing, .. } if missing == ranks);
    assert!(named, "{error}");
}

//! Trees that are deep with few ranks: ranks as threads, fan-outs of 2 and 3.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::branch::Registered;
use super::shape::{Shape, share};
use super::{TcpBootstrap, TcpRoot};
use crate::bootstrap::wire::Kind;
use crate::bootstrap::{Bootstrap, BootstrapError, Secret, UniqueId};

/// For what has to succeed, on a machine that is busy.
const LONG: Duration = Duration::from_secs(30);
/// For what has to time out: each of three levels has a twelfth to be heard.
const SHORT: Duration = Duration::from_secs(4);
/// How late an error may be on a busy machine, beyond the timeout and a rank's grace.
const SLACK: Duration = Duration::from_secs(4);

type Outcome<T> = Result<T, BootstrapError>;

fn bind() -> (TcpRoot, UniqueId) {
    TcpRoot::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// Runs `work` on all ranks of `shape` but those of `others`, which `play` starts; what each rank returned.
fn job_with<T: Send>(
    shape: Shape,
    timeout: Duration,
    others: &[usize],
    work: impl Fn(TcpBootstrap) -> Outcome<T> + Sync,
    play: impl FnOnce(&UniqueId) + Send,
) -> Vec<(usize, Outcome<T>)> {
    let (root, id) = bind();
    let mut root = Some(root);
    thread::scope(|s| {
        let (id, work) = (&id, &work);
        let mut start = |rank: usize| {
            let root = root.take();
            let ranks = move || match root {
                Some(root) => work(TcpBootstrap::root_of(root, shape, timeout)?),
                None => work(TcpBootstrap::join_as(id, rank, shape, timeout)?),
            };
            (rank, s.spawn(ranks))
        };
        let mut ranks = vec![start(0)];
        // It goes first, so the ranks that it plays are high in the tree; then the others come.
        let played = s.spawn(move || play(id));
        if !others.is_empty() {
            thread::sleep(Duration::from_millis(200));
        }
        ranks.extend((1..shape.world).filter(|rank| !others.contains(rank)).map(&mut start));
        let outcomes = ranks.into_iter().map(|(rank, own)| (rank, own.join().unwrap())).collect();
        played.join().unwrap();
        outcomes
    })
}

fn job<T: Send>(
    shape: Shape,
    timeout: Duration,
    work: impl Fn(TcpBootstrap) -> Outcome<T> + Sync,
) -> Vec<(usize, Outcome<T>)> {
    job_with(shape, timeout, &[], work, |_| ())
}

fn expect_closed<T>(outcomes: Vec<(usize, Outcome<T>)>, culprit: usize) {
    for (rank, outcome) in outcomes {
        let error = outcome.err().unwrap_or_else(|| panic!("rank {rank} has noticed nothing"));
        let named = matches!(error, BootstrapError::PeerClosed { peer, .. } if peer == culprit);
        assert!(named, "rank {rank}: {error}");
    }
}

fn expect_missing<T>(outcomes: Vec<(usize, Outcome<T>)>, ranks: &[usize]) {
    for (rank, outcome) in outcomes {
        let error = outcome.err().unwrap_or_else(|| panic!("rank {rank} has noticed nothing"));
        let named = matches!(&error, BootstrapError::Missing { missing, .. } if missing == ranks);
        assert!(named, "rank {rank}: {error}");
    }
}

#[test]
fn every_world_gathers_in_every_shape() {
    let work = |mut own: TcpBootstrap| {
        let part = |rank: usize, round: usize| vec![rank as u8; rank * rank * round % 997];
        for round in 0..4 {
            let all = own.all_gather(&part(own.rank(), round))?;
            assert!(all.into_iter().eq((0..own.world()).map(|rank| part(rank, round))));
            own.barrier()?;
        }
        Ok(())
    };
    for world in 1..=40 {
        for fan_out in [1 + world % 3, 16] {
            for (rank, outcome) in job(Shape { world, fan_out }, LONG, work) {
                outcome.unwrap_or_else(|e| panic!("rank {rank} of {world}, {fan_out}: {e}"));
            }
        }
    }
}

#[test]
fn large_and_uneven_contributions_pass_through_inner_ranks() {
    let part = |rank: usize| -> Vec<u8> {
        let length = if rank % 3 == 1 { (rank + 1) * 400_003 } else { rank };
        (0..length).map(|at| (at * 31 + rank) as u8).collect()
    };
    let outcomes = job(Shape { world: 12, fan_out: 2 }, LONG, |mut own| {
        for _ in 0..2 {
            let all = own.all_gather(&part(own.rank()))?;
            assert!(all.into_iter().eq((0..12).map(part)));
        }
        own.barrier()
    });
    outcomes.into_iter().for_each(|(_, outcome)| outcome.unwrap());
}

#[test]
fn a_rank_keeps_few_connections_and_no_door() {
    job(Shape { world: 30, fan_out: 3 }, LONG, |mut own| {
        own.barrier()?;
        let tree = own.tree.as_ref().unwrap();
        assert!(tree.children.len() <= 3 && tree.parent.is_some() == (own.rank > 0));
        own.barrier()
    })
    .into_iter()
    .for_each(|(_, outcome)| outcome.unwrap());
}

#[test]
fn each_rank_that_dies_between_two_calls_is_named_by_all() {
    for dying in 1..9 {
        let begin = Instant::now();
        let mut outcomes = job(Shape { world: 9, fan_out: 2 }, LONG, |mut own| {
            own.all_gather(b"first")?;
            if own.rank() == dying { Ok(()) } else { own.barrier() }
        });
        outcomes.remove(dying).1.unwrap();
        expect_closed(outcomes, dying);
        assert!(begin.elapsed() < SLACK, "{dying}");
    }
}

#[test]
fn the_root_that_dies_is_named_by_all() {
    let mut outcomes = job(Shape { world: 12, fan_out: 2 }, LONG, |mut own| {
        own.barrier()?;
        if own.rank() == 0 { Ok(()) } else { own.barrier() }
    });
    outcomes.remove(0).1.unwrap();
    expect_closed(outcomes, 0);
}

#[test]
fn a_rank_that_stays_out_of_a_call_is_named_by_all_in_time() {
    for absent in [1, 5, 8] {
        let begin = Instant::now();
        let outcomes = job(Shape { world: 9, fan_out: 2 }, SHORT, |mut own| {
            own.barrier()?;
            if own.rank() == absent {
                thread::sleep(SHORT * 3 / 2);
            }
            own.barrier()
        });
        // The late one, too, hears that it was too late, from whichever of its neighbours it asks first.
        expect_missing(outcomes, &[absent]);
        assert!(begin.elapsed() < SHORT * 2 + SLACK);
    }
}

#[test]
fn a_rank_that_gives_its_part_and_then_stops_is_named_and_not_its_children() {
    let outcomes = job(Shape { world: 9, fan_out: 2 }, SHORT, |mut own| {
        own.barrier()?;
        let tree = own.tree.as_mut().unwrap();
        // The one rank with children that is not right below the root.
        if tree.children.len() == 2 && tree.grace > share(SHORT, tree.height) {
            let (rank, parent) = (tree.rank, tree.parent.as_mut().unwrap());
            parent.out.push(Kind::Part, rank, b"");
            parent.flush();
            thread::sleep(SHORT * 3 / 2);
            return Ok(Some(rank));
        }
        own.barrier().map(|()| None)
    });
    let (stopped, others): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|(_, outcome)| outcome.is_ok());
    let [(_, Ok(Some(culprit)))] = stopped[..] else { panic!("one rank stops") };
    expect_missing(others, &[culprit]);
}

#[test]
fn a_slow_inner_rank_is_waited_for_by_its_children() {
    // An inner rank comes late, and some other rank so late that the children's time, without word of the first one,
    // would be over.
    let outcomes = job(Shape { world: 9, fan_out: 2 }, SHORT, |mut own| {
        own.barrier()?;
        let tree = own.tree.as_ref().unwrap();
        let (inner, leaf) = (tree.children.len() == 2, tree.children.is_empty());
        if own.rank() == 0 || inner {
            thread::sleep(SHORT * 7 / 10);
        } else if leaf && tree.grace < SHORT / 4 {
            // On the last level but one.
            thread::sleep(SHORT * 14 / 10);
        }
        own.barrier()
    });
    outcomes.into_iter().for_each(|(_, outcome)| outcome.unwrap());
}

#[test]
fn a_rank_that_never_comes_is_named_by_all_in_time() {
    let begin = Instant::now();
    let outcomes =
        job_with(Shape { world: 12, fan_out: 2 }, SHORT, &[4, 7], |own| Ok(own.rank), |_| ());
    expect_missing(outcomes, &[4, 7]);
    assert!(begin.elapsed() < SHORT * 2 + SLACK);
}

#[test]
fn a_rank_that_dies_on_the_way_to_its_place_is_named_by_all_at_once() {
    let shape = Shape { world: 12, fan_out: 2 };
    // As the first of all it is an inner rank whose children knock in vain; as the fifth it has a parent.
    for before in [0, 4] {
        let (begin, dying) = (Instant::now(), before + 1);
        let others: Vec<usize> = (1..=dying).collect();
        let outcomes = job_with(
            shape,
            LONG,
            &others,
            |own| Ok(own.rank),
            |id| {
                thread::scope(|s| {
                    for rank in 1..dying {
                        let own = Registered::at_root(id, rank, shape, LONG).unwrap();
                        s.spawn(move || own.climb().map(|own| own.until_start().unwrap_err()));
                    }
                    let dead = Registered::at_root(id, dying, shape, LONG).unwrap();
                    assert_eq!(dead.place.depth, shape.depth(dying));
                    // Until the others have come: who comes to a job that has ended finds nobody.
                    thread::sleep(Duration::from_millis(1500));
                });
            },
        );
        expect_closed(outcomes, dying);
        assert!(begin.elapsed() < SLACK);
    }
}

#[test]
fn a_rank_that_stops_before_its_children_come_is_named_by_all() {
    let shape = Shape { world: 12, fan_out: 2 };
    let begin = Instant::now();
    let silent = |id: &UniqueId| {
        let _open = Registered::at_root(id, 3, shape, LONG).unwrap();
        thread::sleep(SHORT * 2);
    };
    let outcomes = job_with(shape, SHORT, &[3], |own| Ok(own.rank), silent);
    expect_missing(outcomes, &[3]);
    assert!(begin.elapsed() < SHORT * 2 + SLACK);
}

/// Runs a job of 12, of which rank 3 is at rank 1's door when `attack` gets its address. Then it goes in, and all
/// have to succeed.
fn with_an_inner_door(attack: impl Fn(&UniqueId, SocketAddr) + Send + Sync) {
    let shape = Shape { world: 12, fan_out: 2 };
    let play = |id: &UniqueId| {
        thread::scope(|s| {
            // One after the other, so each has the place of its number.
            let known = [1, 2, 3].map(|rank| Registered::at_root(id, rank, shape, LONG).unwrap());
            let [first, second, third] = known;
            for own in [first, second] {
                let climb = move || own.climb().unwrap().until_start().unwrap();
                s.spawn(move || climb().all_gather(&[], LONG).unwrap());
            }
            assert_eq!((third.place.parent, third.place.depth), (1, 2));
            attack(id, third.place.addr.unwrap());
            third.climb().unwrap().until_start().unwrap().all_gather(&[], LONG).unwrap();
        });
    };
    let outcomes = job_with(shape, LONG, &[1, 2, 3], |mut own| own.barrier(), play);
    outcomes.into_iter().for_each(|(_, outcome)| outcome.unwrap());
}

#[test]
fn strangers_at_an_inner_door_stop_nobody() {
    with_an_inner_door(|_, addr| {
        let mut strangers = Vec::new();
        for bytes in
            [&b"GET / HTTP/1.1\r\nHost: inner\r\nUser-Agent: scanner/1.0\r\n\r\n"[..], b"wmbs", b""]
        {
            let mut stranger = TcpStream::connect(addr).unwrap();
            stranger.write_all(bytes).unwrap();
            strangers.push(stranger);
        }
        strangers[0].set_read_timeout(Some(LONG)).unwrap();
        assert!(matches!(strangers[0].read(&mut [0; 9]), Ok(0) | Err(_)), "unanswered");
        // Someone with another secret, who takes it for a root.
        let wrong = UniqueId::with_secret(addr, Secret::random().unwrap()).unwrap();
        let error = TcpBootstrap::join(&wrong, 5, 12, LONG).unwrap_err();
        assert!(matches!(error, BootstrapError::Refused { .. }), "{error}");
    });
}

#[test]
fn the_secret_alone_opens_no_inner_door_to_another_rank() {
    with_an_inner_door(|id, addr| {
        // It takes it for the root: the proof is over the host's rank.
        let text = id.to_string().replace(&id.addr().to_string(), &addr.to_string());
        let error = TcpBootstrap::join(&text.parse().unwrap(), 5, 12, LONG).unwrap_err();
        assert!(matches!(error, BootstrapError::Refused { .. }), "{error}");
    });
}

#[test]
fn garbage_from_a_child_names_it_on_all_ranks() {
    let shape = Shape { world: 12, fan_out: 2 };
    let frames: [(Kind, usize, &[u8]); 4] = [
        (Kind::Part, 12, b"x"),
        (Kind::All, 0, b""),
        (Kind::Place, 0, b"?"),
        (Kind::Stuck, 9, b""),
    ];
    for (kind, rank, body) in frames {
        let outcomes = job(shape, LONG, |mut own| {
            own.barrier()?;
            if own.rank() != 5 {
                return own.barrier();
            }
            let tree = own.tree.as_mut().unwrap();
            let parent = tree.parent.as_mut().unwrap();
            parent.out.push(kind, rank, body);
            own.barrier()
        });
        for (rank, outcome) in outcomes {
            let error = outcome.unwrap_err();
            // The ranks that pass such a frame up do not know all that the root does.
            assert!(matches!(error, BootstrapError::Malformed { .. }), "rank {rank}: {error}");
        }
    }
}

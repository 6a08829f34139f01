//! Collectives between hosts, over a network that delays, loses, is cut and mended. `cargo xtask test` runs these; by
//! hand, as root: `cargo test -p warpmesh --test hosts -- --ignored`.

mod common;
#[path = "../../primitives/tests/common/netns.rs"]
mod netns;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netns::{DEVICE, Weather, Wire};
use warpmesh::bootstrap::LocalBootstrap;
use warpmesh::primitives::failure::FailureKind;
use warpmesh::primitives::net::link::LinkOptions;
use warpmesh::primitives::net::tcp::TcpOptions;
use warpmesh::primitives::net::{NetOptions, TransportChoice};
use warpmesh::{Communicator, Error, ReduceOp};

const ADDRESSES: [&str; 2] = ["10.98.0.1", "10.98.0.2"];
/// The shortest that the system's timers can tell.
const SILENCE: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(6);

/// Runs two ranks on each of two hosts with a wire between them; what they return.
fn ranks<T: Send>(
    mut builder: warpmesh::Builder,
    silence: Duration,
    work: impl Fn(Communicator, &Weather) -> T + Sync,
) -> Vec<T> {
    let wire = Wire::new(ADDRESSES.map(|address| address.parse::<IpAddr>().unwrap()));
    let link =
        LinkOptions { interfaces: vec![DEVICE.to_owned()], silence, ..LinkOptions::default() };
    let tcp = TcpOptions { link, ..TcpOptions::default() };
    builder =
        builder.net(NetOptions { transport: TransportChoice::Tcp, tcp, ..Default::default() });
    let bootstraps = LocalBootstrap::create(4, Duration::from_secs(30)).unwrap();
    std::thread::scope(|scope| {
        let start = |(rank, bootstrap): (usize, LocalBootstrap)| {
            let (wire, builder, work) = (&wire, builder.clone(), &work);
            scope.spawn(move || {
                wire.host(rank / 2).enter();
                let weather: Arc<Weather> = wire.weather.clone();
                work(builder.connect(bootstrap).unwrap(), &weather)
            })
        };
        let all: Vec<_> = bootstraps.into_iter().enumerate().map(start).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn settings() -> warpmesh::Builder {
    Communicator::builder().timeout(TIMEOUT)
}

/// An all-reduce of so many elements, of which every result is known.
fn all_reduce(comm: &mut Communicator, count: usize, call: u32) -> Result<(), Error> {
    let mut data: Vec<u32> =
        (0..count as u32).map(|i| i + call * (comm.rank() as u32 + 1)).collect();
    comm.all_reduce(&mut data, ReduceOp::Sum)?;
    for (i, sum) in data.iter().enumerate() {
        assert_eq!(*sum, 4 * i as u32 + 10 * call, "element {i} of {count}, call {call}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_slow_network_that_loses_packets_changes_no_result() {
    ranks(common::settings(), Duration::from_secs(20), |mut comm, weather| {
        weather.delay(Duration::from_millis(1));
        weather.lose(20);
        for (call, count) in [1, 100, 5_000, 70_001, 300_000].into_iter().enumerate() {
            all_reduce(&mut comm, count, call as u32).unwrap();
        }
        let mine = vec![comm.rank() as u64; 1000];
        let mut all = vec![0; 4000];
        comm.all_gather(&mine, &mut all).unwrap();
        assert!(all.iter().enumerate().all(|(i, rank)| *rank == i as u64 / 1000));
        comm.barrier().unwrap();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_network_that_ends_in_a_call_is_named_on_every_rank() {
    // The system's timers end the connection, or come too late for the wait.
    for (count, silence) in [(10, SILENCE), (400_000, SILENCE), (400_000, 20 * SILENCE)] {
        let errors = ranks(settings(), silence, |mut comm, weather| {
            let begin = Instant::now();
            for call in 0.. {
                // While all are busy, in some call.
                if comm.rank() == 0 && begin.elapsed() > Duration::from_millis(300) {
                    weather.cut();
                }
                if let Err(error) = all_reduce(&mut comm, count, call) {
                    return (error, begin.elapsed());
                }
            }
            unreachable!("the network was cut");
        });
        for (rank, (error, when)) in errors.iter().enumerate() {
            let failure = error.failure().unwrap_or_else(|| panic!("{error}"));
            let culprit = failure.culprit.unwrap_or_else(|| panic!("{error}"));
            assert_eq!(failure.kind, FailureKind::Disconnected, "rank {rank}: {error}");
            // The ranks at the ends of a connection, which are on different hosts.
            assert_ne!(failure.by / 2, culprit / 2, "rank {rank}: {error}");
            assert!(*when < TIMEOUT + Duration::from_secs(4), "rank {rank} after {when:?}");
        }
        // Who saw a connection break says which, and how.
        let text: String = errors.iter().map(|(error, _)| error.to_string()).collect();
        let named = ADDRESSES.iter().all(|address| text.contains(address));
        assert!(named && text.contains("timed out"), "{text}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_short_interruption_costs_time_only() {
    // A rank that is done may have sent what others still wait for, the one that mends the network among them.
    let done = std::sync::Barrier::new(4);
    ranks(common::settings(), Duration::from_secs(20), |mut comm, weather| {
        all_reduce(&mut comm, 10, 0).unwrap();
        done.wait();
        if comm.rank() == 0 {
            weather.cut();
        }
        // Whoever mends it is in no call.
        if comm.rank() == 3 {
            std::thread::sleep(Duration::from_millis(700));
            weather.mend();
        }
        for call in 1..4 {
            all_reduce(&mut comm, 100_000, call).unwrap();
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_network_that_is_down_before_ranks_connect_is_named() {
    let errors = ranks(settings(), SILENCE, |mut comm, weather| {
        // Only the first ranks of the hosts are connected yet.
        comm.barrier().unwrap();
        // By then all have left it.
        std::thread::sleep(Duration::from_millis(500));
        weather.cut();
        let mut data = [comm.rank() as u8];
        match comm.rank() {
            1 => comm.send(&data, 3).and_then(|()| comm.barrier()).unwrap_err(),
            3 => comm.recv(&mut data, 1).unwrap_err(),
            _ => comm.barrier().unwrap_err(),
        }
        .to_string()
    });
    for rank in [1, 3] {
        let error = &errors[rank];
        let peer = format!("rank {}", 4 - rank);
        assert!(error.contains(&peer), "rank {rank}: {error}");
    }
}

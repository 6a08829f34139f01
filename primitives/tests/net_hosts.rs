//! The TCP transport between hosts: over a network that delays, loses, and ends. `cargo xtask test` runs these; by
//! hand, as root: `cargo test -p warpmesh-primitives --test net_hosts -- --ignored`.

#[path = "common/net.rs"]
mod common;
#[path = "common/netns.rs"]
mod netns;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::{LONG, Rank, pattern, transfer};
use netns::{DEVICE, Wire, on_hosts};
use warpmesh_primitives::bootstrap::{Bootstrap, LocalBootstrap, TcpBootstrap, TcpRoot};
use warpmesh_primitives::net::link::{LinkOptions, Links};
use warpmesh_primitives::net::tcp::{TcpOptions, TcpTransport};
use warpmesh_primitives::net::{NetError, NetFault, Transport};

const V4: [&str; 2] = ["10.99.0.1", "10.99.0.2"];
const V6: [&str; 2] = ["fd00:99::1", "fd00:99::2"];
/// The shortest that the system's timers can tell, and what they add to it.
const SILENCE: Duration = Duration::from_secs(2);
const NOTICED: Duration = Duration::from_secs(8);

fn wire(addresses: [&str; 2]) -> Wire {
    Wire::new(addresses.map(|address| address.parse::<IpAddr>().unwrap()))
}

fn options() -> TcpOptions {
    let interfaces = vec!["no-such-device".to_owned(), DEVICE.to_owned()];
    let link = LinkOptions { interfaces, silence: SILENCE, ..LinkOptions::default() };
    TcpOptions { link, ..TcpOptions::default() }
}

fn ranks<T: Send>(wire: &Wire, work: impl Fn(LocalBootstrap) -> T + Sync) -> Vec<T> {
    on_hosts(wire, LocalBootstrap::create(2, LONG).unwrap(), work)
}

/// Sends `count` transfers each way and looks at what came.
fn exchange(own: &mut Rank, bytes: usize, count: u64) {
    let peer = 1 - own.rank();
    own.memory.write(0, &pattern(own.rank() as u64, bytes));
    for _ in 0..count {
        own.transport.post(peer, &transfer(0, bytes as u64, bytes as u64, Some(1))).unwrap();
    }
    own.wait_signals(1, count);
    own.wait_sent(peer, count);
    assert!(own.memory.read(bytes, bytes) == pattern(peer as u64, bytes));
    // What the test sends next may go to the same place.
    own.bootstrap.barrier().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_slow_network_that_loses_packets_delivers_all() {
    for addresses in [V4, V6] {
        let wire = wire(addresses);
        wire.weather.delay(Duration::from_millis(2));
        wire.weather.lose(20);
        ranks(&wire, |bootstrap| {
            let mut own = Rank::connect(bootstrap, 600_000, &options());
            exchange(&mut own, 300_000, 8);
            own.bootstrap.barrier().unwrap();
        });
        let (passed, lost) = wire.weather.count();
        assert!(passed > 1_000 && lost > 10, "{passed} packets, {lost} lost");
    }
}

/// Cuts the wire while rank 0 sends, or while nobody does; what each rank hears, and how soon.
fn cut_off(sending: bool) -> Vec<(NetFault, Duration)> {
    let wire = wire(V4);
    ranks(&wire, |bootstrap| {
        let mut own = Rank::connect(bootstrap, 64 << 20, &options());
        exchange(&mut own, 1000, 1);
        if sending && own.rank() == 0 {
            own.transport.post(1, &transfer(0, 0, 64 << 20, None)).unwrap();
        }
        own.bootstrap.barrier().unwrap();
        let begin = Instant::now();
        while sending && begin.elapsed() < Duration::from_millis(100) {
            own.transport.progress().unwrap();
        }
        wire.weather.cut();
        let cut = Instant::now();
        let fault = own.until(|_| false).unwrap();
        let noticed = cut.elapsed();
        own.bootstrap.barrier().unwrap();
        (fault, noticed)
    })
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_network_that_ends_is_noticed_on_both_sides() {
    for sending in [true, false] {
        for (rank, (fault, noticed)) in cut_off(sending).into_iter().enumerate() {
            assert_eq!(fault.peer, 1 - rank);
            assert!(fault.via.contains(V4[0]) && fault.via.contains(V4[1]), "{fault}");
            assert!(fault.cause.contains("timed out"), "{fault}");
            assert!(noticed < NOTICED, "rank {rank}, sending {sending}: after {noticed:?}");
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_short_interruption_costs_time_only() {
    let wire = wire(V4);
    ranks(&wire, |bootstrap| {
        let mut own = Rank::connect(bootstrap, 400_000, &options());
        let weather = wire.weather.clone();
        let cutter = std::thread::spawn(move || {
            weather.cut();
            std::thread::sleep(Duration::from_millis(500));
            weather.mend();
        });
        exchange(&mut own, 200_000, 4);
        cutter.join().unwrap();
        own.bootstrap.barrier().unwrap();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn a_host_that_cannot_be_reached_is_named_when_ranks_connect() {
    let wire = wire(V4);
    wire.weather.cut();
    ranks(&wire, |mut bootstrap| {
        let rank = bootstrap.rank();
        let mut links = Links::new(&mut bootstrap, &options().link).unwrap();
        let error = links.connect(&[1 - rank], Duration::from_millis(500)).unwrap_err();
        let NetError::Missing { missing, hint, .. } = &error else { panic!("{error}") };
        assert_eq!(missing, &[1 - rank]);
        let expected = ["rank 1 did not dial", "rank 0 at 10.99.0.1"][rank];
        assert!(hint.contains(expected), "{hint}");
        assert!(rank == 0 || hint.contains("no answer yet"), "{hint}");
        bootstrap.barrier().unwrap();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn links_take_the_interface_of_the_bootstrap() {
    let wire = wire(V4);
    let (root, id) = std::thread::scope(|s| {
        let bind = || {
            wire.host(0).enter();
            TcpRoot::bind((V4[0].parse::<IpAddr>().unwrap(), 0)).unwrap()
        };
        s.spawn(bind).join().unwrap()
    });
    let root = std::sync::Mutex::new(Some(root));
    on_hosts(&wire, vec![0, 1], |rank| {
        let mut bootstrap = match rank {
            0 => TcpBootstrap::root(root.lock().unwrap().take().unwrap(), 2, LONG).unwrap(),
            _ => TcpBootstrap::join(&id, 1, 2, LONG).unwrap(),
        };
        let options = TcpOptions::default();
        let mut transport = TcpTransport::new(&mut bootstrap, 1, &options).unwrap();
        transport.connect(&[1 - rank], LONG).unwrap();
        transport.post(1 - rank, &transfer(0, 0, 0, Some(0))).unwrap();
        let begin = Instant::now();
        while transport.signals().seen(0) == 0 {
            assert!(begin.elapsed() < LONG);
            transport.progress().unwrap();
        }
        bootstrap.barrier().unwrap();
    });
}

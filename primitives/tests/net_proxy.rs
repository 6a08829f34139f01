//! The proxy: what it carries out, how it fails, sleeps, and ends.

#[path = "common/net.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LONG, Memory, Rank, cpu_time, pattern, ranks};
use warpmesh_primitives::bootstrap::{Bootstrap, LocalBootstrap};
use warpmesh_primitives::net::fifo::{Bell, Fifo, Trigger, What};
use warpmesh_primitives::net::proxy::{Left, Port, Proxy, ProxyOptions};
use warpmesh_primitives::net::tcp::TcpOptions;
use warpmesh_primitives::net::{NetError, Span};

/// A rank whose transport a proxy has. Port p goes to rank p, from the first half of memory to the second, and counts up
/// the semaphore of this rank there; a port to itself is never used.
struct Served {
    bootstrap: LocalBootstrap,
    memory: Arc<Memory>,
    proxy: Proxy,
    fifo: Fifo,
}

fn serve(bootstrap: LocalBootstrap, half: usize, options: &ProxyOptions) -> Served {
    let Rank { bootstrap, transport, memory } =
        Rank::connect(bootstrap, 2 * half, &TcpOptions::default());
    let port = |peer| Port {
        peer,
        from: Span::default(),
        to: Span { memory: 0, offset: half as u64 },
        semaphore: bootstrap.rank() as u32,
    };
    let ports = (0..bootstrap.world()).map(port).collect();
    let bell = Bell::new().unwrap();
    let fifo = Fifo::new(16, bell.clone()).unwrap();
    let proxy =
        Proxy::start(Box::new(transport), ports, vec![fifo.clone()], bell, options).unwrap();
    Served { bootstrap, memory, proxy, fifo }
}

#[test]
fn puts_signals_and_flushes_between_proxies() {
    for device_producers in [false, true] {
        let options = ProxyOptions { device_producers, cpus: vec![0], ..ProxyOptions::default() };
        ranks(3, |bootstrap| {
            let half = 100_000;
            let mut own = serve(bootstrap, half, &options);
            let (me, world) = (own.bootstrap.rank(), own.bootstrap.world());
            let (next, last) = ((me + 1) % world, (me + world - 1) % world);
            let to = own.proxy.channel(&own.fifo, next as u16, 0, LONG);
            let mut from = own.proxy.channel(&own.fifo, last as u16, last as u32, LONG);
            for round in 0..20 {
                let bytes = [8, 3_000, half][round % 3];
                own.memory.write(0, &pattern((me + round) as u64, bytes));
                if round % 2 == 0 {
                    to.put_with_signal(0, 0, bytes as u64).unwrap();
                } else {
                    to.put(0, 0, bytes as u64 / 2).unwrap();
                    to.put(bytes as u64 / 2, bytes as u64 / 2, bytes as u64 / 2).unwrap();
                    to.signal().unwrap();
                }
                to.flush().unwrap();
                // It has left, so this is nobody's data.
                own.memory.write(0, &vec![0xee; bytes]);
                from.wait().unwrap();
                let arrived = own.memory.read(half, bytes);
                assert!(arrived == pattern((last + round) as u64, bytes), "round {round}");
                own.bootstrap.barrier().unwrap();
            }
            let stopped = own.proxy.stop(LONG).unwrap();
            assert_eq!(stopped.left, []);
            assert_eq!(stopped.transport.name(), "tcp");
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn one_bad_transfer_ends_its_port_and_no_other() {
    ranks(2, |bootstrap| {
        let mut own = serve(bootstrap, 4096, &ProxyOptions::default());
        let (me, peer) = (own.bootstrap.rank(), 1 - own.bootstrap.rank());
        let good = Port {
            peer,
            from: Span::default(),
            to: Span { memory: 0, offset: 4096 },
            semaphore: 5,
        };
        let good = own.proxy.add_port(good, LONG).unwrap();
        let mut channel = own.proxy.channel(&own.fifo, good, 5, LONG);
        let bad = own.proxy.channel(&own.fifo, peer as u16, peer as u32, LONG);
        let nowhere = own.proxy.channel(&own.fifo, 999, 0, LONG);

        bad.put(0, 8190, 8).unwrap();
        nowhere.put(0, 0, 8).unwrap();
        channel.put_with_signal(0, 0, 100).unwrap();
        channel.flush().unwrap();
        channel.wait().unwrap();
        for (channel, expected) in
            [(&bad, "the source: bytes 8190..8190+8"), (&nowhere, "no such port")]
        {
            let error = channel.signal().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(matches!(error.trigger, Some(Trigger { what: What::PUT, bytes: 8, .. })));
            assert_eq!(channel.flush().unwrap_err().to_string(), error.to_string());
        }
        assert!(own.proxy.error(good).is_none() && own.proxy.error(me as u16).is_none());
        let error = channel.put(1 << 36, 0, 1).unwrap_err();
        assert!(matches!(error.cause, NetError::OutOfRange { .. }), "{error}");
        channel.put_with_signal(0, 0, 1).unwrap();
        channel.wait().unwrap();
        own.bootstrap.barrier().unwrap();
    });
}

#[test]
fn a_peer_that_leaves_ends_its_ports_and_no_others() {
    ranks(3, |bootstrap| {
        let mut own = serve(bootstrap, 4096, &ProxyOptions::default());
        let me = own.bootstrap.rank();
        if me == 2 {
            assert_eq!(own.proxy.stop(LONG).unwrap().left, []);
            own.bootstrap.barrier().unwrap();
            return;
        }
        let mut gone = own.proxy.channel(&own.fifo, 2, 2, LONG);
        let begin = Instant::now();
        let error = gone.wait().unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(5));
        let NetError::Broken(fault) = &error.cause else { panic!("{error}") };
        assert_eq!(fault.peer, 2, "{error}");
        let peer = 1 - me;
        let mut there = own.proxy.channel(&own.fifo, peer as u16, peer as u32, LONG);
        there.put_with_signal(0, 0, 4096).unwrap();
        there.wait().unwrap();
        there.flush().unwrap();
        assert!(gone.put(0, 0, 1).is_err() && gone.flush().is_err());
        own.bootstrap.barrier().unwrap();
    });
}

#[test]
fn its_end_is_bounded_and_names_what_was_left() {
    ranks(2, |bootstrap| {
        let half = 64 << 20;
        if bootstrap.rank() == 0 {
            let mut own = serve(bootstrap, half, &ProxyOptions::default());
            let channel = own.proxy.channel(&own.fifo, 1, 1, Duration::from_millis(100));
            // More than the sockets hold, to a peer that does not look.
            channel.put_with_signal(0, 0, half as u64).unwrap();
            let error = channel.flush().unwrap_err();
            assert!(matches!(error.cause, NetError::TimedOut { .. }), "{error}");
            let begin = Instant::now();
            let stopped = own.proxy.stop(Duration::from_millis(200)).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
            assert_eq!(stopped.left, [Left { peer: Some(1), transfers: 1 }]);
            own.bootstrap.barrier().unwrap();
        } else {
            let mut own = Rank::connect(bootstrap, 2 * half, &TcpOptions::default());
            own.bootstrap.barrier().unwrap();
        }
    });
}

#[test]
fn an_idle_proxy_uses_under_a_hundredth_of_a_core_and_wakes_soon() {
    for device_producers in [false, true] {
        let options = ProxyOptions { device_producers, ..ProxyOptions::default() };
        ranks(2, |bootstrap| {
            let mut own = serve(bootstrap, 4096, &options);
            let peer = 1 - own.bootstrap.rank();
            own.bootstrap.barrier().unwrap();
            let thread = || rustix::thread::gettid().as_raw_nonzero().get();
            let thread = own.proxy.with_transport(LONG, move |_| thread()).unwrap();
            // Past the time in which its sleeps grow; looking does not wake it.
            std::thread::sleep(Duration::from_millis(300));
            // The best of some: interrupts of others' work are charged to whoever runs.
            let share = (0..4).map(|_| {
                let (begin, before) = (Instant::now(), cpu_time(thread));
                std::thread::sleep(Duration::from_millis(700));
                (cpu_time(thread) - before).as_secs_f64() / begin.elapsed().as_secs_f64()
            });
            let share = share.fold(f64::MAX, f64::min);
            assert!(share < 0.01, "device {device_producers}: {share}");
            own.bootstrap.barrier().unwrap();
            let channel = own.proxy.channel(&own.fifo, peer as u16, peer as u32, LONG);
            let soonest = (0..10).map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                let begin = Instant::now();
                channel.put(0, 0, 8).unwrap();
                channel.flush().unwrap();
                begin.elapsed()
            });
            let soonest = soonest.min().unwrap();
            assert!(soonest < Duration::from_millis(12), "{soonest:?}");
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn the_transport_can_be_reached_between_transfers() {
    ranks(2, |bootstrap| {
        let mut own = serve(bootstrap, 4096, &ProxyOptions::default());
        let me = own.bootstrap.rank();
        let memory = Memory::new(64);
        let region = memory.clone();
        let described =
            own.proxy.with_transport(LONG, move |t| t.register(7, region)).unwrap().unwrap();
        let all = own.bootstrap.all_gather(&described).unwrap();
        let theirs = all[1 - me].clone();
        own.proxy.with_transport(LONG, move |t| t.learn(1 - me, 7, &theirs)).unwrap().unwrap();
        let to = Span { memory: 7, offset: 8 };
        let port = Port { peer: 1 - me, from: Span::default(), to, semaphore: 9 };
        let port = own.proxy.add_port(port, LONG).unwrap();
        let mut channel = own.proxy.channel(&own.fifo, port, 9, LONG);
        own.memory.write(0, &[me as u8 + 1; 8]);
        channel.put_with_signal(0, 0, 8).unwrap();
        channel.wait().unwrap();
        assert_eq!(memory.read(8, 8), [2 - me as u8; 8]);
        let slow = own.proxy.with_transport(Duration::from_millis(10), |_| {
            std::thread::sleep(Duration::from_millis(100));
        });
        assert!(matches!(slow, Err(NetError::TimedOut { .. })));
        own.bootstrap.barrier().unwrap();
    });
}

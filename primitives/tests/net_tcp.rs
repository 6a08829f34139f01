//! The TCP transport between ranks that are threads, with peers that lie, and with a process that is killed.

#[path = "common/net.rs"]
mod common;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{LONG, Memory, Rank, pattern, ranks, transfer};
use warpmesh_primitives::bootstrap::{Bootstrap, LocalBootstrap, TcpBootstrap, TcpRoot, UniqueId};
use warpmesh_primitives::net::link::{LinkOptions, Links};
use warpmesh_primitives::net::tcp::{TcpOptions, TcpTransport};
use warpmesh_primitives::net::{NetError, Region, Transport};

const SIZES: [usize; 12] = [0, 1, 8, 31, 480, 481, 4064, 4065, 20_000, 65_536, 300_001, 1 << 20];

#[test]
fn transfers_of_all_sizes_arrive_in_order_between_all_ranks() {
    let slot = SIZES.iter().sum::<usize>();
    for world in [2, 5] {
        ranks(world, |bootstrap| {
            let mut own = Rank::connect(bootstrap, 2 * world * slot, &TcpOptions::default());
            let me = own.rank();
            let others: Vec<usize> = (0..world).filter(|&peer| peer != me).collect();
            let (mut at, mut posted) = (0, 0);
            for (k, &bytes) in SIZES.iter().enumerate() {
                for &peer in &others {
                    let from = peer * slot + at;
                    own.memory.write(from, &pattern((me * world + peer + k) as u64, bytes));
                    let to = ((world + me) * slot + at) as u64;
                    // Two in three have a signal of their own, the last one certainly.
                    let signal = (k % 3 != 0).then_some(me as u32);
                    let post = transfer(from as u64, to, bytes as u64, signal);
                    own.transport.post(peer, &post).unwrap();
                }
                posted += u64::from(k % 3 != 0);
                at += bytes;
            }
            for &peer in &others {
                own.wait_signals(peer as u32, posted);
                own.wait_sent(peer, SIZES.len() as u64);
                let mut at = (world + peer) * slot;
                for (k, &bytes) in SIZES.iter().enumerate() {
                    let expected = pattern((peer * world + me + k) as u64, bytes);
                    assert!(own.memory.read(at, bytes) == expected, "{bytes} bytes of rank {peer}");
                    at += bytes;
                }
            }
            own.bootstrap.barrier().unwrap();
        });
    }
}

/// Also if the peer looks late, and sends something itself meanwhile.
#[test]
fn what_was_sent_before_the_transport_is_dropped_comes() {
    const BYTES: usize = 256 << 10;
    ranks(2, |bootstrap| {
        let mut own = Rank::connect(bootstrap, 2 * BYTES, &TcpOptions::default());
        let me = own.rank();
        if me == 0 {
            own.memory.write(0, &pattern(5, BYTES));
            own.transport.post(1, &transfer(0, BYTES as u64, BYTES as u64, Some(2))).unwrap();
            own.wait_sent(1, 1);
            own.bootstrap.barrier().unwrap();
            return;
        }
        own.bootstrap.barrier().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let _ = own.transport.post(0, &transfer(0, 0, 8, None));
        std::thread::sleep(Duration::from_millis(100));
        own.wait_signals(2, 1);
        assert!(own.memory.read(BYTES, BYTES) == pattern(5, BYTES));
    });
}

#[test]
fn many_small_transfers_in_both_directions_at_once() {
    ranks(2, |bootstrap| {
        let mut own = Rank::connect(bootstrap, 1 << 16, &TcpOptions::default());
        let (peer, count) = (1 - own.rank(), 50_000u64);
        own.memory.write(0, &pattern(own.rank() as u64, 64));
        for k in 0..count {
            let signal = (k % 16 == 15).then_some(3);
            own.transport.post(peer, &transfer(k % 32, 1024 + k % 32, 32, signal)).unwrap();
        }
        own.wait_signals(3, count / 16);
        own.wait_sent(peer, count);
        assert_eq!(own.memory.read(1024 + 31, 32), pattern(peer as u64, 64)[31..63]);
        own.bootstrap.barrier().unwrap();
    });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_sent() {
    ranks(2, |bootstrap| {
        let mut own = Rank::connect(bootstrap, 4096, &TcpOptions::default());
        let peer = 1 - own.rank();
        for (post, what) in [
            (transfer(4090, 0, 7, None), "source"),
            (transfer(u64::MAX, 0, 2, None), "source"),
            (transfer(0, 4090, 7, None), "destination"),
            (transfer(0, 0, 8, Some(16)), "semaphore 16"),
        ] {
            let error = own.transport.post(peer, &post).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(own.transport.post(own.bootstrap.rank(), &transfer(0, 0, 1, None)).is_err());
        assert!(own.transport.post(9, &transfer(0, 0, 1, None)).is_err());
        own.transport.post(peer, &transfer(0, 0, 8, Some(0))).unwrap();
        own.wait_signals(0, 1);
        own.bootstrap.barrier().unwrap();
    });
}

/// As the transport's hello: magic and 16 semaphores.
const HELLO: &[u8] = b"wmtcp\0\x01\0\x10\0\0\0\0\0\0\0";
/// That of another version.
const OTHER: &[u8] = b"wmtcp\0\x02\0\x10\0\0\0\0\0\0\0";

fn header(number: u32, memory: u32, signal: u32, offset: u64, bytes: u64) -> Vec<u8> {
    let words = [number, memory, signal].map(u32::to_le_bytes).concat();
    [&b"wmt1"[..], &words, &[offset, bytes].map(u64::to_le_bytes).concat()].concat()
}

/// Rank 1 knows the secret and then sends `bytes`; what rank 0 hears of it. Ranks 0 and 2 go on.
fn liar(bytes: &[u8]) -> String {
    let outcomes = ranks(3, |mut bootstrap: LocalBootstrap| {
        let me = bootstrap.rank();
        if me == 1 {
            let mut links = Links::new(&mut bootstrap, &LinkOptions::default()).unwrap();
            bootstrap.all_gather(HELLO).unwrap();
            links.connect(&[0], LONG).unwrap();
            let link = links.take(0).unwrap();
            let _ = link.stream().write_all(bytes);
            link.stream().shutdown(std::net::Shutdown::Write).unwrap();
            bootstrap.barrier().unwrap();
            return String::new();
        }
        let mut transport = TcpTransport::new(&mut bootstrap, 16, &TcpOptions::default()).unwrap();
        let memory = Memory::new(4096);
        transport.register(0, memory.clone()).unwrap();
        let (mut own, peer) = (Rank { bootstrap, transport, memory }, 2 - me);
        own.transport.connect(&[peer], LONG).unwrap();
        let mut said = String::new();
        if me == 0 {
            said = match own.transport.connect(&[1], LONG) {
                Ok(()) => own.until(|_| false).unwrap().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(own.transport.post(1, &transfer(0, 0, 1, None)).is_err());
            // Rank 2 may have sent already, to 100..110.
            let untouched = [own.memory.read(0, 100), own.memory.read(110, 4096 - 110)].concat();
            assert!(untouched.iter().all(|&byte| byte == 0), "written without leave");
        }
        own.memory.write(0, &[7; 10]);
        own.transport.post(peer, &transfer(0, 100, 10, Some(2))).unwrap();
        own.wait_signals(2, 1);
        assert_eq!(own.memory.read(100, 10), [7; 10]);
        own.bootstrap.barrier().unwrap();
        said
    });
    outcomes.into_iter().next().unwrap()
}

#[test]
fn peers_that_lie_lose_their_connection_and_nothing_is_written() {
    let none = u32::MAX;
    let data = [9; 64];
    let with_data = |head: Vec<u8>| [&head[..], &data].concat();
    for (bytes, expected) in [
        (vec![b'x'; 100], "no frame of this protocol"),
        (with_data(header(1, 0, none, 0, 64)), "frame 1 came where 0 was expected"),
        (with_data(header(0, 7, none, 0, 64)), "memory 7"),
        (
            with_data(header(0, 0, none, 4090, 64)),
            "bytes 4090..4090+64 of memory 0, which has 4096",
        ),
        (with_data(header(0, 0, none, u64::MAX - 3, 64)), "what it sends into"),
        (with_data(header(0, 0, none, 0, u64::MAX)), "what it sends into"),
        (with_data(header(0, 0, 16, 0, 64)), "semaphore 16, of which there are 16"),
        (header(0, 0, none, 0, 0)[..20].to_vec(), "in the middle of a transfer"),
        (header(0, 0, 0, 8, 64), "in the middle of a transfer"),
        (Vec::new(), "the peer closed it"),
    ] {
        let said = liar(&bytes);
        assert!(said.contains(expected) && said.contains("rank 1 through 127.0.0.1"), "{said}");
    }
}

#[test]
fn a_rank_of_another_version_is_named_before_anyone_connects() {
    ranks(2, |mut bootstrap: LocalBootstrap| {
        if bootstrap.rank() == 1 {
            let _links = Links::new(&mut bootstrap, &LinkOptions::default()).unwrap();
            bootstrap.all_gather(OTHER).unwrap();
            return;
        }
        let error = TcpTransport::new(&mut bootstrap, 16, &TcpOptions::default()).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("rank 1") && said.contains("this version"), "{said}");
    });
}

#[test]
fn memory_that_is_forgotten_in_the_middle_breaks_the_connection() {
    ranks(2, |bootstrap| {
        let mut own = Rank::connect(bootstrap, 64 << 20, &TcpOptions::default());
        let me = own.rank();
        if me == 0 {
            own.transport.post(1, &transfer(0, 0, 64 << 20, Some(0))).unwrap();
            let fault = own.until(|_| false).unwrap();
            assert_eq!(fault.peer, 1);
            assert!(matches!(
                own.transport.post(1, &transfer(0, 0, 1, None)),
                Err(NetError::Broken(_))
            ));
        } else {
            // The beginning is there.
            while own.memory.read(0, 1) == [0] && own.transport.progress().is_ok_and(|moved| !moved)
            {
            }
            own.transport.forget(0);
            let fault = own.until(|_| false).unwrap();
            assert!(fault.cause.contains("memory 0 was forgotten"), "{fault}");
            assert_eq!(own.transport.signals().seen(0), 0);
            assert!(own.transport.progress().is_ok(), "told once");
        }
        own.bootstrap.barrier().unwrap();
    });
}

const CHILD: &str = "WARPMESH_UNIQUE_ID";

/// Ends its process when the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process that is killed: streams to rank 0 until then.
fn stream_for_ever(id: &str) {
    let mut bootstrap = TcpBootstrap::join(&id.parse::<UniqueId>().unwrap(), 1, 2, LONG).unwrap();
    let mut transport = TcpTransport::new(&mut bootstrap, 1, &TcpOptions::default()).unwrap();
    transport.register(0, Memory::new(8 << 20)).unwrap();
    transport.connect(&[0], LONG).unwrap();
    for posted in 0.. {
        transport.post(0, &transfer(0, 0, 8 << 20, Some(0))).unwrap();
        while transport.sent(0) < posted {
            transport.progress().unwrap();
        }
    }
}

#[test]
fn a_peer_that_is_killed_in_flight_is_named_at_once() {
    if let Ok(id) = std::env::var(CHILD) {
        return stream_for_ever(&id);
    }
    let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0)).unwrap();
    let name = "a_peer_that_is_killed_in_flight_is_named_at_once";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name]).env(CHILD, id.to_string());
    let mut child = Killed(command.stdout(Stdio::null()).spawn().unwrap());
    let mut bootstrap = TcpBootstrap::root(root, 2, LONG).unwrap();
    let mut transport = TcpTransport::new(&mut bootstrap, 1, &TcpOptions::default()).unwrap();
    let memory = Memory::new(8 << 20);
    assert_eq!(memory.len(), 8 << 20);
    transport.register(0, memory).unwrap();
    transport.connect(&[1], LONG).unwrap();
    let begin = Instant::now();
    while transport.signals().seen(0) < 3 {
        transport.progress().unwrap();
        assert!(begin.elapsed() < LONG);
    }
    child.0.kill().unwrap();
    let killed = Instant::now();
    let fault = loop {
        match transport.progress() {
            Ok(_) => assert!(killed.elapsed() < Duration::from_secs(5)),
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault.peer, 1, "{fault}");
    assert!(fault.cause.contains("closed") || fault.cause.contains("reset"), "{fault}");
}

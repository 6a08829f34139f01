//! Transfers of device memory, by TCP and by copy engines: the same contract for both.

#[path = "common/gpu.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{BOTH, Device, LONG, SEMAPHORES, Via, connect, count, ranks, share};
use warpmesh_primitives::bootstrap::{Bootstrap, LocalBootstrap};
use warpmesh_primitives::gpu::DeviceMemory;
use warpmesh_primitives::net::tcp::{TcpOptions, TcpTransport};
use warpmesh_primitives::net::{NetError, Span, Transfer, Transport};

/// A rank with memory 0 of so many bytes.
struct Rank {
    bootstrap: LocalBootstrap,
    device: Device,
    memory: Arc<DeviceMemory>,
    transport: Box<dyn Transport>,
}

impl Rank {
    fn new(via: Via, mut bootstrap: LocalBootstrap, bytes: usize) -> Self {
        let device = Device::new(bootstrap.rank());
        let memory = device.memory(bytes);
        let mut transport = connect(via, &device, &mut bootstrap);
        let region = Arc::new(device.gpu.region_of(&memory).unwrap());
        share(&mut *transport, &mut bootstrap, 0, region);
        Self { bootstrap, device, memory, transport }
    }

    fn until(&mut self, done: impl Fn(&dyn Transport) -> bool) {
        let begin = Instant::now();
        while !done(&*self.transport) {
            assert!(begin.elapsed() < LONG, "nothing came");
            if !self.transport.progress().unwrap() {
                self.transport.doze(Duration::from_millis(1), None);
            }
        }
    }
}

fn transfer(from: u64, to: u64, bytes: u64, signal: Option<u32>) -> Transfer {
    let span = |offset| Span { memory: 0, offset };
    Transfer { from: span(from), to: span(to), bytes, signal }
}

/// Byte k of what a rank sends in a round.
fn byte(rank: usize, round: usize, k: usize) -> u8 {
    ((k * 31 + rank * 97 + round * 13) >> 3) as u8 ^ k as u8
}

fn pattern(rank: usize, round: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|k| byte(rank, round, k)).collect()
}

/// Sizes around those of the stage's pieces and of its ring.
const SIZES: [usize; 9] =
    [1, 8, 511, 4096, (256 << 10) + 3, 300_007, (1 << 20) - 1, 1 << 20, (5 << 20) + 77];

#[test]
fn device_memory_of_all_sizes_and_offsets_arrives_before_its_signal() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(3, |bootstrap| {
            let half = 6 << 20;
            let mut own = Rank::new(via, bootstrap, 4 * half);
            let (me, world) = (own.bootstrap.rank(), own.bootstrap.world());
            let peers: Vec<usize> = (0..world).filter(|&peer| peer != me).collect();
            for (round, bytes) in SIZES.into_iter().enumerate() {
                let shift = (round % 3) as u64;
                own.device.upload(own.memory.address() + shift, &pattern(me, round, bytes));
                for &peer in &peers {
                    let to = (half * (1 + me)) as u64 + 2 * shift;
                    let signal = Some(me as u32);
                    own.transport.post(peer, &transfer(shift, to, bytes as u64, signal)).unwrap();
                }
                for &peer in &peers {
                    let seen = |t: &dyn Transport| t.signals().seen(peer as u32) > round as u64;
                    own.until(seen);
                    let at = own.memory.address() + (half * (1 + peer)) as u64 + 2 * shift;
                    let got = own.device.download(at, bytes);
                    assert!(got == pattern(peer, round, bytes), "{via:?} {me}<{peer} {bytes}");
                    own.until(|t| t.sent(peer) == round as u64 + 1);
                }
                own.bootstrap.barrier().unwrap();
            }
        });
    }
}

#[test]
fn many_transfers_one_behind_the_other_with_few_signals() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let (each, many) = (9_001, 400);
            let mut own = Rank::new(via, bootstrap, 2 * each * many);
            let (me, peer) = (own.bootstrap.rank(), 1 - own.bootstrap.rank());
            own.device.upload(own.memory.address(), &pattern(me, 0, each * many));
            let half = (each * many) as u64;
            for k in 0..many {
                let (at, signal) = ((k * each) as u64, (k % 7 == 6 || k + 1 == many).then_some(3));
                own.transport.post(peer, &transfer(at, half + at, each as u64, signal)).unwrap();
            }
            own.transport.post(peer, &transfer(0, 0, 0, Some(4))).unwrap();
            own.until(|t| t.signals().seen(4) == 1);
            // A signal alone comes behind all data before it.
            assert_eq!(own.transport.signals().seen(3), many.div_ceil(7) as u64, "{via:?}");
            let got = own.device.download(own.memory.address() + half, each * many);
            assert!(got == pattern(peer, 0, each * many), "{via:?}");
            own.until(|t| t.sent(peer) == many as u64 + 1);
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_moved() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let mut own = Rank::new(via, bootstrap, 4096);
            let (me, peer) = (own.bootstrap.rank(), 1 - own.bootstrap.rank());
            let refused = |own: &mut Rank, to, what: &Transfer, expected: &str| {
                let error = own.transport.post(to, what).unwrap_err().to_string();
                assert!(error.contains(expected), "{via:?}: {error}");
            };
            refused(&mut own, peer, &transfer(4090, 0, 7, None), "the source: bytes 4090..4090+7");
            refused(&mut own, peer, &transfer(0, u64::MAX, 2, None), "the destination");
            refused(&mut own, peer, &transfer(0, 4096, 1, None), "the destination");
            let other = Transfer { from: Span { memory: 9, offset: 0 }, ..transfer(0, 0, 1, None) };
            refused(&mut own, peer, &other, "memory 9");
            let beyond = Some(SEMAPHORES as u32);
            refused(&mut own, peer, &transfer(0, 0, 8, beyond), "semaphore 16, of which it has 16");
            refused(&mut own, me, &transfer(0, 0, 8, None), "connect first");
            assert!(own.transport.learn(peer, 1, b"something else").is_err());
            let region = Arc::new(own.device.gpu.region_of(&own.memory).unwrap());
            assert!(own.transport.register(0, region).is_err(), "in use");
            // What was refused left nothing behind, and the connection is as good as before.
            own.device.upload(own.memory.address(), &[me as u8 + 1; 8]);
            own.transport.post(peer, &transfer(0, 64, 8, Some(0))).unwrap();
            own.until(|t| t.signals().seen(0) == 1 && t.sent(peer) == 1);
            let got = own.device.download(own.memory.address(), 4096);
            assert_eq!(got[64..72], [2 - me as u8; 8]);
            assert!(got[72..].iter().all(|&byte| byte == 0));
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn a_transport_of_the_host_refuses_device_memory() {
    let Some(_) = count() else { return };
    ranks(1, |mut bootstrap| {
        let device = Device::new(0);
        let mut tcp = TcpTransport::new(&mut bootstrap, 1, &TcpOptions::default()).unwrap();
        let region = Arc::new(device.gpu.region_of(&device.memory(64)).unwrap());
        let error = tcp.register(0, region).unwrap_err().to_string();
        assert!(error.contains("on_gpu"), "{error}");
        assert_eq!(tcp.signals().device_words(0), None);
    });
}

#[test]
fn a_peer_that_leaves_is_named_and_what_it_sent_is_there() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(3, |bootstrap| {
            let bytes = 3 << 20;
            let mut own = Rank::new(via, bootstrap, 4 * bytes);
            let me = own.bootstrap.rank();
            own.device.upload(own.memory.address(), &pattern(me, 1, bytes));
            own.bootstrap.barrier().unwrap();
            if me == 2 {
                for peer in 0..2 {
                    let all = transfer(0, (3 * bytes) as u64, bytes as u64, Some(2));
                    own.transport.post(peer, &all).unwrap();
                }
                own.until(|t| t.sent(0) == 1 && t.sent(1) == 1);
                drop(own.transport);
                own.bootstrap.barrier().unwrap();
                return;
            }
            let begin = Instant::now();
            let fault = loop {
                assert!(begin.elapsed() < LONG);
                match own.transport.progress() {
                    Ok(_) => own.transport.doze(Duration::from_millis(1), None),
                    Err(fault) => break fault,
                }
            };
            assert_eq!(fault.peer, 2, "{via:?}: {fault}");
            assert_eq!(own.transport.signals().seen(2), 1, "{via:?}");
            let got = own.device.download(own.memory.address() + 3 * bytes as u64, bytes);
            assert!(got == pattern(2, 1, bytes), "{via:?}");
            let error = own.transport.post(2, &transfer(0, 0, 1, None)).unwrap_err();
            assert!(matches!(&error, NetError::Broken(fault) if fault.peer == 2), "{error}");
            // The other connection goes on.
            let peer = 1 - me;
            own.transport.post(peer, &transfer(0, bytes as u64, 8, Some(5))).unwrap();
            own.until(|t| t.signals().seen(5) == 1 && t.sent(peer) == 1);
            own.bootstrap.barrier().unwrap();
        });
    }
}

//! What tests of transports share.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use warpmesh_primitives::bootstrap::{Bootstrap, LocalBootstrap};
use warpmesh_primitives::net::tcp::{TcpOptions, TcpTransport};
use warpmesh_primitives::net::{NetFault, Region, Span, Transfer, Transport};

pub const LONG: Duration = Duration::from_secs(30);

/// Memory of this process, zeros.
#[derive(Debug)]
pub struct Memory(Box<[UnsafeCell<u8>]>);

// SAFETY: the bytes are only reached by raw pointers, when the transfers' signals say that nobody else does.
unsafe impl Sync for Memory {}

// SAFETY: the box stays where it is until it is dropped, and `UnsafeCell` allows changes behind it.
unsafe impl Region for Memory {
    fn address(&self) -> *mut u8 {
        self.0.as_ptr().cast::<u8>().cast_mut()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Memory {
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self((0..bytes).map(|_| UnsafeCell::new(0)).collect()))
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.0.len());
        // SAFETY: in range; no transfer reads or writes these bytes now, by the test's own order.
        unsafe { self.address().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    pub fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        assert!(at + bytes <= self.0.len());
        // SAFETY: as above.
        (0..bytes).map(|k| unsafe { self.address().add(at + k).read() }).collect()
    }
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|k| ((k * 31 + seed * 7919) >> 3) as u8 ^ k as u8).collect()
}

/// Runs every rank on a thread; what they return, in rank order.
pub fn ranks<T: Send>(world: usize, work: impl Fn(LocalBootstrap) -> T + Sync) -> Vec<T> {
    thread::scope(|s| {
        let all = LocalBootstrap::create(world, LONG).unwrap().into_iter();
        let all: Vec<_> = all.map(|own| s.spawn(|| work(own))).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A rank's transport, connected to all others, with memory 0 of so many bytes.
pub struct Rank {
    pub bootstrap: LocalBootstrap,
    pub transport: TcpTransport,
    pub memory: Arc<Memory>,
}

impl Rank {
    pub fn connect(mut bootstrap: LocalBootstrap, bytes: usize, options: &TcpOptions) -> Self {
        let mut transport = TcpTransport::new(&mut bootstrap, 16, options).unwrap();
        let memory = Memory::new(bytes);
        let described = transport.register(0, memory.clone()).unwrap();
        let (rank, world) = (bootstrap.rank(), bootstrap.world());
        let peers: Vec<usize> = (0..world).filter(|&peer| peer != rank).collect();
        transport.connect(&peers, LONG).unwrap();
        for (peer, described) in bootstrap.all_gather(&described).unwrap().iter().enumerate() {
            if peer != rank {
                transport.learn(peer, 0, described).unwrap();
            }
        }
        Self { bootstrap, transport, memory }
    }

    pub fn rank(&self) -> usize {
        self.bootstrap.rank()
    }

    /// The first fault, or None once `done` is true.
    pub fn until(&mut self, done: impl Fn(&TcpTransport) -> bool) -> Option<NetFault> {
        let begin = Instant::now();
        while !done(&self.transport) {
            assert!(begin.elapsed() < LONG, "nothing came");
            match self.transport.progress() {
                Ok(true) => {}
                Ok(false) => self.transport.doze(Duration::from_millis(1), None),
                Err(fault) => return Some(fault),
            }
        }
        None
    }

    pub fn wait_signals(&mut self, semaphore: u32, count: u64) {
        let fault = self.until(|transport| transport.signals().seen(semaphore) >= count);
        assert_eq!(fault, None);
    }

    pub fn wait_sent(&mut self, peer: usize, count: u64) {
        assert_eq!(self.until(|transport| transport.sent(peer) >= count), None);
    }
}

pub fn transfer(from: u64, to: u64, bytes: u64, signal: Option<u32>) -> Transfer {
    Transfer {
        from: Span { memory: 0, offset: from },
        to: Span { memory: 0, offset: to },
        bytes,
        signal,
    }
}

/// For how long a thread of this process has had a CPU.
pub fn cpu_time(thread: i32) -> Duration {
    let table = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    Duration::from_nanos(table.split(' ').next().unwrap().parse().unwrap())
}

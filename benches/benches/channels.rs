//! The primitives under the collectives: a semaphore there and back, a packet there and back, a transfer from a port to its transport.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use warpmesh::bootstrap::LocalBootstrap;
use warpmesh::primitives::Error;
use warpmesh::primitives::channel::MemoryChannel;
use warpmesh::primitives::net::fifo::{Bell, Fifo};
use warpmesh::primitives::net::proxy::{Port, Proxy, ProxyOptions};
use warpmesh::primitives::net::{NetError, NetFault, Region, Signals, Span, Transfer, Transport};
use warpmesh::primitives::node::Node;

criterion_group!(benches, semaphore, packets, port);
criterion_main!(benches);

const TIMEOUT: Duration = Duration::from_secs(30);

fn semaphore(c: &mut Criterion) {
    c.bench_function("semaphore/round trip", |b| {
        b.iter_custom(|iters| {
            between_two(|rank, channel| {
                for _ in 0..iters {
                    if rank == 0 {
                        channel.signal();
                    }
                    channel.wait()?;
                    if rank == 1 {
                        channel.signal();
                    }
                }
                Ok(())
            })
        });
    });
}

fn packets(c: &mut Criterion) {
    for bytes in [8, 56, 4096] {
        c.bench_function(&format!("packets/{bytes} B there and back"), |b| {
            b.iter_custom(|iters| between_two(|rank, channel| bounce(rank, channel, bytes, iters)));
        });
    }
}

/// Packets of one end answer those of the other. Two places in turn: one is written again only
/// after the answer to it has come.
fn bounce(rank: usize, channel: &mut MemoryChannel, bytes: usize, iters: u64) -> Result<(), Error> {
    let half = MemoryChannel::packet_bytes(bytes);
    let mut data = vec![rank as u8; bytes];
    for i in 0..iters {
        let at = (i % 2) as usize * half;
        if rank == 0 {
            channel.put_packets(at, &data)?;
        }
        channel.get_packets(at, &mut data)?;
        if rank == 1 {
            channel.put_packets(at, &data)?;
        }
    }
    Ok(())
}

/// Runs both ends of a channel; the time of rank 0's.
fn between_two(work: impl Fn(usize, &mut MemoryChannel) -> Result<(), Error> + Sync) -> Duration {
    let ranks = LocalBootstrap::create(2, TIMEOUT).expect("two ranks");
    let end = |(rank, mut bootstrap): (usize, LocalBootstrap)| -> Result<Duration, Error> {
        let node = Node::connect(&mut bootstrap, TIMEOUT)?;
        let memory = node.share(2 * MemoryChannel::packet_bytes(4096), true)?;
        let mut channel = MemoryChannel::new(&node, &memory, 1 - rank, 0)?;
        let start = Instant::now();
        work(rank, &mut channel)?;
        Ok(start.elapsed())
    };
    thread::scope(|scope| {
        let spawn = |rank| scope.spawn(|| end(rank));
        let ends: Vec<_> = ranks.into_iter().enumerate().map(spawn).collect();
        let times: Result<Vec<_>, _> =
            ends.into_iter().map(|end| end.join().expect("no panic")).collect();
        times.expect("both ends work")[0]
    })
}

/// From a push into the FIFO until the proxy has posted the transfer, and the word of that back.
fn port(c: &mut Criterion) {
    let bell = Bell::new().expect("an event descriptor");
    let fifo = Fifo::new(64, bell.clone()).expect("a ring");
    let signals = Signals::new(1, 1).expect("memory for a signal");
    let posted = Arc::new(AtomicU64::new(0));
    let transport = Box::new(Counting { posted: posted.clone(), signals });
    let to = Port { peer: 0, from: Span::default(), to: Span::default(), semaphore: 0 };
    let options = ProxyOptions::default();
    let proxy = Proxy::start(transport, vec![to], vec![fifo.clone()], bell, &options);
    let proxy = proxy.expect("a thread");
    let channel = proxy.channel(&fifo, 0, 0, TIMEOUT);
    let mut pushed = 0;
    c.bench_function("port/push to posted", |b| {
        b.iter(|| {
            channel.put_with_signal(0, 0, 8).expect("room");
            pushed += 1;
            // Relaxed: a count alone.
            while posted.load(Ordering::Relaxed) < pushed {
                std::hint::spin_loop();
            }
        });
    });
}

/// Counts what is posted, which is all that becomes of it.
#[derive(Debug)]
struct Counting {
    posted: Arc<AtomicU64>,
    signals: Signals,
}

impl Transport for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn register(&mut self, _: u32, _: Arc<dyn Region>) -> Result<Vec<u8>, NetError> {
        Ok(Vec::new())
    }

    fn forget(&mut self, _: u32) {}

    fn learn(&mut self, _: usize, _: u32, _: &[u8]) -> Result<(), NetError> {
        Ok(())
    }

    fn connect(&mut self, _: &[usize], _: Duration) -> Result<(), NetError> {
        Ok(())
    }

    fn post(&mut self, _: usize, _: &Transfer) -> Result<(), NetError> {
        self.posted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn sent(&self, _: usize) -> u64 {
        self.posted.load(Ordering::Relaxed)
    }

    fn progress(&mut self) -> Result<bool, NetFault> {
        Ok(false)
    }

    fn doze(&mut self, _: Duration, _: Option<BorrowedFd<'_>>) {}

    fn signals(&self) -> &Signals {
        &self.signals
    }
}

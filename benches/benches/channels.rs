//! The primitives under the collectives: a semaphore there and back, a packet there and back.

use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use warpmesh::bootstrap::LocalBootstrap;
use warpmesh::primitives::Error;
use warpmesh::primitives::channel::MemoryChannel;
use warpmesh::primitives::node::Node;

criterion_group!(benches, semaphore, packets);
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

//! Tests of data that arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use warpmesh_primitives::net::rdma::{Exchange, RdmaOptions, RdmaTransport, SignalMode};
use warpmesh_primitives::net::{NetError, NetFault, Transport};

use super::ensure;
use super::harness::{Outcome, counter, lose, lose_no_more, shell};
use super::job::{BYTES, Job, LIMIT, MEMORY, Pair, Random, SEMAPHORES};
use super::memory::{Memory, pattern};

/// Half of the memory is what a rank sends, the other half what it gets.
const HALF: u64 = BYTES as u64 / 2;
const BACK: u32 = 1;

fn mode(mode: SignalMode, job: &mut Job, cables: usize) -> Outcome<Pair> {
    let options = job.options(cables);
    let pair = job.pair(RdmaOptions { signals: Some(mode), ..options })?;
    ensure!(pair.transport.signal_mode(job.peer) == Some(mode), "signals in another way");
    Ok(pair)
}

pub fn sizes_by_fetch_add(job: &mut Job) -> Outcome {
    let mut pair = mode(SignalMode::FetchAdd, job, 1)?;
    sizes(&mut pair, job.rank, &LENGTHS)
}

pub fn sizes_by_immediate(job: &mut Job) -> Outcome {
    let mut pair = mode(SignalMode::Immediate, job, 1)?;
    sizes(&mut pair, job.rank, &LENGTHS)
}

const LENGTHS: [u64; 15] =
    [1, 2, 3, 7, 8, 64, 219, 220, 221, 1000, 4095, 4097, 65_536, 262_147, 700_001];

/// Every length at several offsets, there and back; the bytes beside stay as they were.
fn sizes(pair: &mut Pair, rank: usize, lengths: &[u64]) -> Outcome {
    let mut round = 0;
    for (i, len) in lengths.iter().enumerate() {
        for (from, to) in [(0, 0), (1, 3), (4093, 64), (65, 4095)] {
            round += 1;
            let seed = round * 2 + i as u64;
            if rank == 0 {
                pair.memory.fill(from, *len, seed);
                pair.put(from, HALF + to, *len, Some(0))?;
                pair.wait(BACK, round)?;
            } else {
                pair.wait(0, round)?;
            }
            if rank == 1 {
                arrived(pair, to, *len, seed)?;
                pair.memory.write(HALF + to, &vec![0; *len as usize]);
                pair.memory.fill(from, *len, seed + 1);
                pair.put(from, HALF + to, *len, Some(BACK))?;
                pair.flush()?;
            } else {
                arrived(pair, to, *len, seed + 1)?;
                pair.memory.write(HALF + to, &vec![0; *len as usize]);
            }
        }
    }
    pair.flush()
}

/// The pattern is there, and around it are zeros.
fn arrived(pair: &Pair, to: u64, len: u64, seed: u64) -> Outcome {
    let bytes = pair.memory.read(HALF + to, len);
    let wrong = bytes.iter().zip(pattern(len, seed)).position(|(got, wanted)| *got != wanted);
    ensure!(wrong.is_none(), "{len} bytes to {to}: byte {wrong:?} is wrong");
    let before = pair.memory.read(HALF, to);
    let after = pair.memory.read(HALF + to + len, 64);
    ensure!(
        before.iter().chain(&after).all(|byte| *byte == 0),
        "{len} bytes to {to}: more was written"
    );
    Ok(())
}

pub fn many_in_flight_by_fetch_add(job: &mut Job) -> Outcome {
    many_in_flight(job, SignalMode::FetchAdd, 1, 1500)
}

pub fn many_in_flight_by_immediate(job: &mut Job) -> Outcome {
    many_in_flight(job, SignalMode::Immediate, 1, 1500)
}

/// Both ranks post everything before they look, with a queue that is much too short for it, and over all semaphores.
fn many_in_flight(job: &mut Job, signals: SignalMode, cables: usize, count: u64) -> Outcome {
    let options = job.options(cables);
    let options = RdmaOptions { signals: Some(signals), depth: 16, ..options };
    let mut pair = job.pair(options)?;
    let size = 512;
    for i in 0..count {
        pair.memory.fill(i * size, size, i + job.rank as u64);
    }
    for i in 0..count {
        pair.put(i * size, HALF + i * size, size - i % 7, Some((i % SEMAPHORES as u64) as u32))?;
    }
    let all = SEMAPHORES as u64;
    for semaphore in 0..all {
        let expected = count / all + u64::from(semaphore < count % all);
        pair.wait(semaphore as u32, expected)?;
        let seen = pair.transport.signals().seen(semaphore as u32);
        ensure!(seen == expected, "{seen} signals of {expected}");
    }
    for i in 0..count {
        let got = pair.memory.read(HALF + i * size, size - i % 7);
        let wanted = pattern(size - i % 7, i + job.peer as u64);
        ensure!(got == wanted, "transfer {i} is wrong");
    }
    pair.flush()?;
    ensure!(pair.transport.sent(job.peer) == count, "more left than was posted");
    job.barrier()
}

pub fn stripes_by_fetch_add(job: &mut Job) -> Outcome {
    stripes(job, SignalMode::FetchAdd)
}

pub fn stripes_by_immediate(job: &mut Job) -> Outcome {
    stripes(job, SignalMode::Immediate)
}

/// Two NICs: large and small transfers mixed. A signal that is seen has all before it; both cables are used.
fn stripes(job: &mut Job, signals: SignalMode) -> Outcome {
    let mut pair = mode(signals, job, 2)?;
    let sent = || -> Outcome<[u64; 2]> {
        Ok([
            counter("/sys/class/net/va/statistics/tx_bytes")?,
            counter("/sys/class/net/vc/statistics/tx_bytes")?,
        ])
    };
    let before = sent()?;
    let mut random = Random(5);
    let mut total = 0;
    for round in 0..6 {
        let lengths: Vec<u64> =
            (0..6)
                .map(|i| {
                    if i % 2 == 0 { 65_536 + random.below(400_000) } else { 1 + random.below(5000) }
                })
                .collect();
        let all: u64 = lengths.iter().sum();
        let mut at = 0;
        if job.rank == 0 {
            pair.memory.fill(0, all, round);
            for len in &lengths {
                pair.put(at, HALF + at, *len, Some(0))?;
                at += len;
            }
            pair.wait(BACK, round + 1)?;
        } else {
            let wanted = pattern(all, round);
            for (i, len) in lengths.iter().enumerate() {
                pair.wait(0, round * 6 + i as u64 + 1)?;
                let got = pair.memory.read(HALF + at, *len);
                ensure!(
                    got == wanted[at as usize..][..*len as usize],
                    "round {round}, transfer {i}"
                );
                at += len;
            }
            pair.memory.write(HALF, &vec![0; all as usize]);
            pair.signal(BACK)?;
            pair.flush()?;
        }
        total += all;
    }
    pair.flush()?;
    let after = sent()?;
    for cable in 0..2 {
        let carried = after[cable] - before[cable];
        ensure!(carried > total / 3, "cable {cable} carried {carried} of {total} bytes");
    }
    job.barrier()
}

pub fn two_nics_and_one_by_fetch_add(job: &mut Job) -> Outcome {
    let options = job.options(2 - job.rank);
    let mut pair = job.pair(RdmaOptions { signals: Some(SignalMode::FetchAdd), ..options })?;
    sizes(&mut pair, job.rank, &[8, 4096, 200_000])
}

pub fn two_nics_and_one_by_immediate(job: &mut Job) -> Outcome {
    let options = job.options(2 - job.rank);
    // One that wants it is enough; and ranks on processors that are told nothing do.
    let signals = [Some(SignalMode::FetchAdd), None][job.rank];
    let mut pair = job.pair(RdmaOptions { signals, ..options })?;
    ensure!(pair.transport.signal_mode(job.peer) == Some(SignalMode::Immediate), "not immediate");
    sizes(&mut pair, job.rank, &[8, 4096, 200_000])
}

/// A way on which the second message of a peer, that it is ready, stays away for a while.
#[derive(Debug)]
struct Late {
    way: Box<dyn Exchange>,
    taken: usize,
    held: Arc<AtomicBool>,
}

impl Exchange for Late {
    fn give(&mut self, peer: usize, message: &[u8], deadline: Instant) -> Result<(), NetError> {
        self.way.give(peer, message, deadline)
    }

    fn take(&mut self, peer: usize, deadline: Instant) -> Result<Vec<u8>, NetError> {
        if self.taken == 1 && self.held.load(Ordering::Relaxed) {
            let (missing, timeout, hint) = (vec![peer], Duration::ZERO, String::new());
            return Err(NetError::Missing { missing, timeout, hint });
        }
        self.taken += 1;
        self.way.take(peer, deadline)
    }
}

/// A rank that has said that it is ready gets data and signals before it has heard the same of the peer, and polls them
/// meanwhile, as ranks do that connect to others and go on.
pub fn what_comes_before_the_peer_has_said_that_it_is_ready_counts(job: &mut Job) -> Outcome {
    for signals in [SignalMode::FetchAdd, SignalMode::Immediate] {
        let held = Arc::new(AtomicBool::new(job.rank == 1));
        let way = Box::new(Late { way: job.exchange()?, taken: 0, held: held.clone() });
        let options = RdmaOptions { signals: Some(signals), ..job.options(1) };
        let mut transport = RdmaTransport::new(job.rank, 2, SEMAPHORES, options, way)?;
        let memory = Arc::new(Memory::new(BYTES));
        let mine = transport.register(MEMORY, memory.clone())?;
        let all = job.gather(&mine)?;
        transport.learn(job.peer, MEMORY, &all[job.peer])?;
        let connected = transport.connect(&[job.peer], LIMIT);
        let mut pair = Pair { peer: job.peer, transport, memory, posted: 0 };
        if job.rank == 0 {
            connected?;
            pair.memory.fill(0, 5000, 7);
            pair.put(0, HALF, 5000, Some(3))?;
            pair.flush()?;
        } else {
            ensure!(matches!(connected, Err(NetError::Missing { .. })), "{connected:?}");
        }
        job.barrier()?;
        if job.rank == 1 {
            let quiet = pair.fault(Duration::from_millis(50), |_| Ok(()));
            ensure!(quiet.is_err(), "{quiet:?}");
            held.store(false, Ordering::Relaxed);
            pair.transport.connect(&[0], LIMIT)?;
            pair.wait(3, 1)?;
            ensure!(pair.memory.read(HALF, 5000) == pattern(5000, 7), "wrong data");
        }
        job.barrier()?;
    }
    Ok(())
}

/// A way that says that the peer has gone, once: just when what the peer sent before has come, but was not polled.
#[derive(Debug)]
struct Gone {
    way: Box<dyn Exchange>,
    /// To the peer, which sends when it is told to.
    peer: Option<Box<dyn Exchange>>,
}

impl Exchange for Gone {
    fn give(&mut self, peer: usize, message: &[u8], deadline: Instant) -> Result<(), NetError> {
        self.way.give(peer, message, deadline)
    }

    fn take(&mut self, peer: usize, deadline: Instant) -> Result<Vec<u8>, NetError> {
        self.way.take(peer, deadline)
    }

    fn gone(&mut self) -> Vec<NetFault> {
        let Some(mut peer) = self.peer.take() else { return Vec::new() };
        let deadline = Instant::now() + LIMIT;
        let sent = peer.give(1, b"send", deadline).and_then(|()| peer.take(1, deadline));
        let cause = format!("it has gone: {:?}", sent.map(|_| ()));
        vec![NetFault { peer: 1, via: String::new(), cause }]
    }
}

/// Between the last look at the NIC and the news that the peer has gone, its last signals may come.
pub fn what_comes_just_before_the_news_that_the_peer_has_gone_counts(job: &mut Job) -> Outcome {
    let (way, aside) = (job.exchange()?, job.exchange()?);
    let options = RdmaOptions { signals: Some(SignalMode::Immediate), ..job.options(1) };
    let (peer, aside) = if job.rank == 0 { (Some(aside), None) } else { (None, Some(aside)) };
    let mut pair = job.pair_by(options, Box::new(Gone { way, peer }))?;
    let Some(mut aside) = aside else {
        let fault = pair.fault(LIMIT, |_| Ok(()))?;
        ensure!(fault.cause.contains("it has gone: Ok(())"), "{fault}");
        let seen = pair.transport.signals().seen(3);
        ensure!(seen == 40, "{seen} signals of 40 count");
        ensure!(pair.memory.read(HALF, 5000) == pattern(5000, 7), "wrong data");
        return job.barrier();
    };
    aside.take(0, Instant::now() + LIMIT)?;
    pair.memory.fill(0, 5000, 7);
    pair.put(0, HALF, 5000, None)?;
    (0..40).try_for_each(|_| pair.signal(3))?;
    pair.flush()?;
    aside.give(0, b"sent", Instant::now() + LIMIT)?;
    job.barrier()
}

/// Two packets of a hundred are lost, in both directions.
pub fn loss_of_2_percent(job: &mut Job) -> Outcome {
    if job.rank == 0 {
        lose()?;
    }
    job.barrier()?;
    job.loses = true;
    let result = under_loss(job).and_then(|()| job.barrier());
    // In any case, since other tests come.
    let lost = if job.rank == 0 { lose_no_more() } else { Ok(()) };
    result.and(lost)
}

fn under_loss(job: &mut Job) -> Outcome {
    for signals in [SignalMode::FetchAdd, SignalMode::Immediate] {
        let mut pair = mode(signals, job, 1)?;
        sizes(&mut pair, job.rank, &[1, 1000, 65_536, 200_000])?;
        // Where the last answer was lost, the peer still wants one.
        job.barrier()?;
        drop(pair);
        many_in_flight(job, signals, 2, 200)?;
        // One cable of two is slower for its losses: the other's signals must not count alone.
        stripes(job, signals)?;
    }
    Ok(())
}

/// The ends' options and ports differ: the lesser MTU counts, and data arrives.
pub fn mtus_that_differ(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mtu = [None, Some(512)][job.rank];
    let mut pair = job.pair(RdmaOptions { mtu, ..options })?;
    ensure!(pair.transport.mtu(job.peer) == Some(512), "{:?}", pair.transport.mtu(job.peer));
    sizes(&mut pair, job.rank, &[1, 511, 513, 70_000])?;
    job.barrier()?;
    drop(pair);
    // An interface with Ethernet's usual MTU at one end has packets of 1024 bytes.
    if job.rank == 1 {
        shell("ip link set vb mtu 1500")?;
    }
    job.barrier()?;
    let result = one_port_is_smaller(job);
    job.barrier()?;
    if job.rank == 1 {
        shell("ip link set vb mtu 4200")?;
    }
    result
}

fn one_port_is_smaller(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut pair = job.pair(options.clone())?;
    ensure!(pair.transport.mtu(job.peer) == Some(1024), "{:?}", pair.transport.mtu(job.peer));
    sizes(&mut pair, job.rank, &[1, 1025, 70_000])?;
    job.barrier()?;
    let refused = job.transport(RdmaOptions { mtu: Some(4096), ..options });
    match (job.rank, refused) {
        (0, Ok(_)) => Ok(()),
        (1, Err(error)) if error.to_string().contains("the port has 1024") => Ok(()),
        (_, other) => Err(format!("an MTU above the port's: {other:?}").into()),
    }
}

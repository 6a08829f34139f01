//! Tests of what breaks: errors come in time and name who and where.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use warpmesh_primitives::net::rdma::{RdmaOptions, SignalMode};
use warpmesh_primitives::net::{NetError, Region, Span, Transfer, Transport};

use super::ensure;
use super::harness::{DOWN, Outcome, UP, shell};
use super::job::{BYTES, Job, LIMIT, MEMORY, Pair, SEMAPHORES};
use super::memory::{Memory, pattern};

/// NICs give up after 7 · 268 ms; the guest is slow.
const SOON: Duration = Duration::from_secs(8);

pub fn a_killed_peer_is_named(job: &mut Job) -> Outcome {
    for cables in [1, 2] {
        // It gives up after 7 · 134 ms.
        let options = RdmaOptions { timeout: 15, ..job.options(cables) };
        let mut pair = job.pair(options)?;
        job.barrier()?;
        if job.rank == 1 && cables == 2 {
            std::process::abort();
        }
        if job.rank == 1 {
            return_without_the_connection(pair, job)?;
            continue;
        }
        let start = Instant::now();
        let fault = pair.fault(SOON, |pair| pair.put(0, 0, 4096, Some(0)).or(Ok(())))?;
        println!("    after {:?}: {fault}", start.elapsed());
        ensure!(fault.peer == 1 && fault.via.starts_with("rxe"), "{fault}");
        ensure!(fault.cause.contains("retry") && fault.cause.contains("MTU"), "{fault}");
        let again = pair.put(0, 0, 8, None).unwrap_err().to_string();
        ensure!(again == fault.to_string(), "later transfers say {again}");
        ensure!(pair.transport.progress().is_ok(), "it is reported twice");
        if cables == 1 {
            job.barrier()?;
        }
    }
    if let Some(mut child) = job.child.take() {
        ensure!(!child.wait()?.success(), "rank 1 was to be killed");
    }
    Ok(())
}

/// The peer's queue pairs go while its process lives.
fn return_without_the_connection(pair: Pair, job: &mut Job) -> Outcome {
    drop(pair);
    job.barrier()
}

pub fn memory_that_was_forgotten_is_refused(job: &mut Job) -> Outcome {
    for signals in [SignalMode::FetchAdd, SignalMode::Immediate] {
        let options = job.options(1);
        let mut pair = job.pair(RdmaOptions { signals: Some(signals), ..options })?;
        if job.rank == 1 {
            pair.transport.forget(MEMORY);
            pair.memory.write(0, &[0; 64]);
        }
        job.barrier()?;
        if job.rank == 0 {
            pair.memory.fill(0, 64, 1);
            pair.put(0, 0, 64, Some(0))?;
            let fault = pair.fault(SOON, |_| Ok(()))?;
            println!("    {fault}");
            ensure!(fault.peer == 1 && fault.via == job.via(), "{fault}");
            ensure!(fault.cause.contains("remote access error"), "{fault}");
            ensure!(fault.cause.contains("forget"), "{fault}");
        } else {
            let fault = pair.fault(SOON, |_| Ok(()))?; // its receives come back
            println!("    {fault}");
            ensure!(fault.peer == 0 && fault.via == job.via(), "{fault}");
        }
        job.barrier()?;
        ensure!(
            pair.memory.read(0, 64).iter().all(|byte| *byte == 0) || job.rank == 0,
            "it was written"
        );
        ensure!(pair.transport.signals().seen(0) == 0, "it was signalled");
    }
    Ok(())
}

/// A description with another key, as if memory had been registered anew without the peer learning it.
pub fn a_wrong_key_is_refused(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut pair = job.pair(options)?;
    let mut mine = pair.transport.register(9, Arc::new(Memory::new(BYTES)))?;
    if let Some(key) = mine.last_mut() {
        *key ^= 0x55; // the key is last
    }
    let all = job.gather(&mine)?;
    pair.transport.learn(job.peer, 9, &all[job.peer])?;
    if job.rank == 0 {
        let span = |memory| Span { memory, offset: 0 };
        let transfer = Transfer { from: span(MEMORY), to: span(9), bytes: 8, signal: None };
        pair.transport.post(1, &transfer)?;
        let fault = pair.fault(SOON, |_| Ok(()))?;
        ensure!(fault.cause.contains("remote access error"), "{fault}");
    }
    job.barrier()
}

/// What cannot be is refused at once, and the connection goes on.
pub fn ranges_are_checked(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut pair = job.pair(options)?;
    let size = BYTES as u64;
    let mut refused = |from: (u32, u64), to: (u32, u64), bytes, signal, words: &str| -> Outcome {
        let span = |(memory, offset)| Span { memory, offset };
        let transfer = Transfer { from: span(from), to: span(to), bytes, signal };
        match pair.transport.post(pair.peer, &transfer) {
            Err(error) if error.to_string().contains(words) => Ok(()),
            other => Err(format!("{transfer:?}: {other:?}, not '{words}'").into()),
        }
    };
    let good = (MEMORY, 0);
    refused((MEMORY, size - 7), good, 8, None, "the source of a transfer")?;
    refused((MEMORY, u64::MAX), good, 8, None, "the source of a transfer")?;
    refused((99, 0), good, 8, None, "memory 99, which has 0")?;
    refused(good, (MEMORY, size - 7), 8, Some(0), "the target of a transfer")?;
    refused(good, (MEMORY, 1), u64::MAX, None, "the source of a transfer")?;
    refused(good, (99, 0), 8, None, "memory 99, which has 0")?;
    refused(good, good, 8, Some(SEMAPHORES as u32), "it has 16")?;
    let nobody = Transfer { signal: Some(0), ..Transfer::default() };
    ensure!(pair.transport.post(5, &nobody).is_err(), "a transfer to nobody");
    ensure!(pair.transport.connect(&[job.rank], LIMIT).is_err(), "connected to itself");
    ensure!(pair.transport.learn(job.peer, 3, b"nonsense").is_err(), "learned nonsense");
    ensure!(pair.transport.register(MEMORY, Arc::new(Memory::new(4096))).is_err(), "twice");
    pair.memory.fill(0, 64, 3);
    pair.put(0, 4096, 64, Some(2))?;
    pair.wait(2, 1)?;
    ensure!(pair.memory.read(4096, 64) == pattern(64, 3), "wrong data");
    pair.flush()?;
    job.barrier()
}

/// Memory that is taken back while it is read: the connection breaks, and nothing reads it any more.
pub fn forgetting_a_source_breaks_the_connection(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut pair = job.pair(options)?;
    if job.rank == 0 {
        for _ in 0..400 {
            pair.put(0, 0, 65_536, None)?;
        }
        pair.transport.forget(MEMORY);
        let fault = pair.fault(SOON, |_| Ok(()))?;
        ensure!(fault.cause.contains("taken back"), "{fault}");
        ensure!(pair.put(0, 0, 8, None).is_err(), "it goes on");
    }
    job.barrier()
}

pub fn a_port_that_goes_down_is_named(job: &mut Job) -> Outcome {
    let options = job.options(1);
    // The NIC itself would try for longer.
    let options = RdmaOptions { timeout: 20, port_grace: Duration::from_millis(300), ..options };
    let mut pair = job.pair(options)?;
    job.barrier()?;
    if job.rank == 0 {
        shell(DOWN)?;
    }
    let start = Instant::now();
    let send = job.rank == 0;
    // Rank 1 only waits: it learns it from its own port. Rank 0's NIC gives up at once.
    let fault =
        pair.fault(SOON, |pair| if send { pair.put(0, 0, 64, Some(0)).or(Ok(())) } else { Ok(()) });
    job.barrier()?;
    if job.rank == 0 {
        shell(UP)?;
    }
    job.barrier()?;
    let fault = fault?;
    println!("    after {:?}: {fault}", start.elapsed());
    ensure!(fault.peer == job.peer && fault.via == job.via(), "{fault}");
    ensure!(fault.cause.contains("port is down"), "{fault}");
    Ok(())
}

/// Soft-RoCE gives up at once what it has to send without a port; so nothing is sent here while it is down.
pub fn a_port_that_is_back_in_time_breaks_nothing(job: &mut Job) -> Outcome {
    let port_grace = Duration::from_millis(1300);
    let options = RdmaOptions { port_grace, ..job.options(1) };
    let mut pair = job.pair(options)?;
    job.barrier()?;
    if job.rank == 0 {
        shell(DOWN)?;
    }
    job.barrier()?;
    let quiet = pair.fault(Duration::from_millis(400), |_| Ok(()));
    job.barrier()?;
    if job.rank == 0 {
        shell(UP)?;
    }
    job.barrier()?;
    ensure!(quiet.is_err(), "{quiet:?}");
    let quiet = pair.fault(port_grace + Duration::from_millis(200), |_| Ok(()));
    ensure!(quiet.is_err(), "{quiet:?}");
    pair.memory.fill(0, 100_000, 5);
    pair.put(0, 200_000, 100_000, Some(0))?;
    pair.wait(0, 1)?;
    ensure!(pair.memory.read(200_000, 100_000) == pattern(100_000, 5), "wrong data");
    pair.flush()?;
    job.barrier()
}

pub fn options_that_cannot_be_say_what_could(job: &mut Job) -> Outcome {
    let good = job.options(1);
    let devices = |name: &str| vec![name.to_owned()];
    for (options, words) in [
        (
            RdmaOptions { devices: devices("mlx5_9"), ..good.clone() },
            "there is no NIC mlx5_9; there are",
        ),
        (RdmaOptions { devices: devices("rxe1:7"), ..good.clone() }, "rxe1 port 7"),
        (RdmaOptions { gid_index: Some(200), ..good.clone() }, "Change WARPMESH_IB_GID_INDEX"),
        (RdmaOptions { mtu: Some(9000), ..good.clone() }, "256, 512, 1024, 2048 or 4096"),
    ] {
        match job.transport(options) {
            Err(error) if error.to_string().contains(words) => println!("    {error}"),
            other => return Err(format!("not '{words}': {other:?}").into()),
        }
    }
    Ok(())
}

/// A process that may lock next to nothing, as users may on many machines.
pub fn the_limit_of_locked_memory_is_named(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut transport = job.transport(options)?;
    let limit = Some(128 << 10);
    setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit })?;
    let mut sets = capabilities(None)?;
    sets.effective -= CapabilitySet::IPC_LOCK;
    set_capabilities(None, sets)?;
    let error = transport.register(1, Arc::new(Memory::new(BYTES)));
    let error = error.err().ok_or("memory was registered beyond the limit")?.to_string();
    println!("    {error}");
    ensure!(error.contains("128 KiB") && error.contains("RLIMIT_MEMLOCK"), "{error}");
    ensure!(error.contains(job.via()) && error.contains(&BYTES.to_string()), "{error}");
    transport.register(1, Arc::new(Memory::new(4096)))?;
    job.barrier()
}

/// Soft-RoCE knows no dma-buf: memory that has one is registered by its address, where that is the host's.
pub fn memory_with_a_dma_buf_that_the_nic_does_not_know(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut pair = job.pair(options)?;
    let mut memory = Memory::new(4096);
    memory.dma_buf = Some(OwnedFd::from(std::fs::File::open("/dev/zero")?));
    ensure!(memory.is_on_device(), "a device's");
    let memory = Arc::new(memory);
    let mine = pair.transport.register(8, memory.clone())?;
    let all = job.gather(&mine)?;
    pair.transport.learn(job.peer, 8, &all[job.peer])?;
    memory.fill(0, 64, 9);
    let span = |offset| Span { memory: 8, offset };
    let transfer = Transfer { from: span(0), to: span(1024), bytes: 64, signal: Some(0) };
    pair.transport.post(job.peer, &transfer)?;
    pair.wait(0, 1)?;
    ensure!(memory.read(1024, 64) == pattern(64, 9), "wrong data");
    job.barrier()
}

pub fn a_peer_that_does_not_connect_is_named(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut transport = job.transport(options)?;
    if job.rank == 0 {
        let start = Instant::now();
        let error = transport.connect(&[1], Duration::from_millis(400));
        ensure!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
        match error {
            Err(NetError::Missing { missing, .. }) if missing == [1] => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
    job.barrier()
}

pub fn a_peer_that_talks_nonsense_is_named(job: &mut Job) -> Outcome {
    let options = job.options(1);
    let mut exchange = job.exchange()?;
    if job.rank == 1 {
        exchange.give(0, b"GET / HTTP/1.1", Instant::now() + LIMIT)?;
        return job.barrier();
    }
    let rank = job.rank;
    let mut transport =
        warpmesh_primitives::net::rdma::RdmaTransport::new(rank, 2, SEMAPHORES, options, exchange)?;
    match transport.connect(&[1], LIMIT) {
        Err(error @ NetError::Protocol { peer: 1, .. }) => println!("    {error}"),
        other => return Err(format!("{other:?}").into()),
    }
    job.barrier()
}

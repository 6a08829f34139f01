//! Tests of what breaks: every rank gets an error in time that names who and where.

use std::time::{Duration, Instant};

use warpmesh::primitives::failure::{Failure, FailureKind};
use warpmesh::primitives::net::rdma::RdmaOptions;
use warpmesh::{Communicator, Error, ReduceOp};

use super::ensure;
use super::harness::{DOWN, Outcome, UP, cut, mend, shell};
use super::ranks::{HOSTS, Job, LIMIT, NICS, WORLD};

/// NICs give up after 7 · 268 ms, and the guest is slow.
const SOON: Duration = Duration::from_secs(8);

/// All-reduces, of one element and of many, until one fails.
fn until_it_fails(comm: &mut Communicator, limit: Duration) -> Outcome<Error> {
    let start = Instant::now();
    let mut data = comm.alloc::<f32>(300_000)?;
    while start.elapsed() < limit {
        for count in [1, 300_000] {
            data.fill(1.0);
            if let Err(error) = comm.all_reduce(&mut data[..count], ReduceOp::Sum) {
                return Ok(error);
            }
            ensure!(data[..count].iter().all(|sum| *sum == 4.0), "a wrong sum");
        }
    }
    Err(format!("no error within {limit:?}").into())
}

/// The failure of an error, whose first part is printed: behind it, users see what each rank was doing.
fn failure(job: &Job, error: &Error, start: Instant) -> Outcome<Failure> {
    let text = error.to_string();
    let first = text.split("; this rank (").next().unwrap_or_default();
    println!("    rank {} after {:.1?}: {first}", job.rank, start.elapsed());
    Ok(error.failure().ok_or_else(|| format!("not a failure: {error}"))?)
}

/// Whether a NIC of one of the ranks at the ends of a connection is named.
fn names_a_nic(error: &Error) -> bool {
    NICS.iter().any(|nic| error.to_string().contains(&format!("{nic} port 1")))
}

/// The process of rank 3 ends amid calls.
pub fn a_killed_rank_is_named(job: &mut Job) -> Outcome {
    let options = job.options();
    let mut comm = job.communicator(options)?;
    if job.rank == 3 {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(400));
            std::process::abort();
        });
    }
    let start = Instant::now();
    let error = until_it_fails(&mut comm, SOON)?;
    if job.rank == 3 {
        // Another thread is about to end this process.
        std::thread::sleep(LIMIT);
    }
    let Failure { kind, culprit, .. } = failure(job, &error, start)?;
    ensure!(culprit == Some(3), "rank {} blames {culprit:?}", job.rank);
    // Whoever sees it first: rank 2, its neighbour, or rank 1, to which it had a connection.
    let by_its_end = kind == FailureKind::PeerDied;
    ensure!(by_its_end || kind == FailureKind::Disconnected && names_a_nic(&error), "{kind:?}");
    job.bury_last()
}

/// Rank 1 drops its communicator while the others go on.
pub fn a_rank_that_leaves_is_named(job: &mut Job) -> Outcome {
    let options = job.options();
    let mut comm = job.communicator(options)?;
    comm.all_reduce(&mut [1_u8], ReduceOp::Sum)?;
    let start = Instant::now();
    if job.rank != 1 {
        let mut data = vec![1.0_f32; 300_000];
        let error = comm.all_reduce(&mut data, ReduceOp::Sum).err().ok_or("no error")?;
        let Failure { kind, culprit, .. } = failure(job, &error, start)?;
        ensure!(culprit == Some(1) && kind == FailureKind::PeerLeft, "{kind:?} {culprit:?}");
        ensure!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    }
    drop(comm);
    job.barrier()
}

/// The cable is cut amid calls, so that nothing arrives any more: the NICs themselves see nothing of it but that there are
/// no answers.
pub fn a_cable_that_is_cut_in_flight_is_named(job: &mut Job) -> Outcome {
    let options = RdmaOptions { timeout: 15, ..job.options() };
    let mut comm = job.communicator(options)?;
    if job.rank == 0 {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(400));
            cut().map_err(|error| error.to_string())
        });
    }
    let start = Instant::now();
    let error = until_it_fails(&mut comm, SOON);
    job.barrier()?;
    if job.rank == 0 {
        mend()?;
    }
    disconnected(job, &error?, start)?;
    // It is of no more use, and says so at once.
    let again = comm.barrier().err().ok_or("it goes on")?;
    ensure!(again.failure().is_some_and(|f| f.kind == FailureKind::Disconnected), "{again}");
    job.barrier()
}

/// The interface of the first host's NIC is taken down in a call, in which rank 3 is late. (With many transfers under way
/// the guest's kernel itself would hang: soft-RoCE of Linux 6.1 then loops in the system call that posts one.)
pub fn a_nic_that_goes_down_in_a_call_is_named(job: &mut Job) -> Outcome {
    // The NICs themselves would try for longer: ranks learn it from their own ports.
    let port_grace = Duration::from_millis(300);
    let options = RdmaOptions { timeout: 19, port_grace, ..job.options() };
    let mut comm = job.communicator(options)?;
    let mut data = [1_u32; 10];
    comm.all_reduce(&mut data, ReduceOp::Sum)?;
    if job.rank == 3 {
        std::thread::sleep(Duration::from_millis(400));
        shell(DOWN)?;
        std::thread::sleep(Duration::from_millis(1200));
    }
    let start = Instant::now();
    let result = comm.all_reduce(&mut data, ReduceOp::Sum);
    job.barrier()?;
    if job.rank == 3 {
        shell(UP)?;
    }
    disconnected(job, &result.err().ok_or("no error")?, start)?;
    job.barrier()
}

/// The error is of a connection between the hosts, and came in time.
fn disconnected(job: &Job, error: &Error, start: Instant) -> Outcome {
    let Failure { kind, by, culprit } = failure(job, error, start)?;
    ensure!(kind == FailureKind::Disconnected, "{kind:?}");
    let culprit = culprit.ok_or("nobody is named")?;
    ensure!(HOSTS[by] != HOSTS[culprit], "ranks {by} and {culprit} share a host");
    ensure!(names_a_nic(error), "rank {} names no NIC", job.rank);
    ensure!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
    Ok(())
}

/// Rank 3 does not make the call in which rank 1 would have connected to it.
pub fn a_rank_that_does_not_come_to_a_call_is_named(job: &mut Job) -> Outcome {
    let timeout = Duration::from_secs(3);
    let options = job.options();
    let mut comm = job.communicator_with(options, Communicator::builder().timeout(timeout))?;
    let start = Instant::now();
    if job.rank != 3 {
        let mut data = vec![1.0_f32; 300_000];
        let error = comm.all_reduce(&mut data, ReduceOp::Sum).err().ok_or("no error")?;
        let Failure { kind, culprit, .. } = failure(job, &error, start)?;
        ensure!(culprit == Some(3) && kind == FailureKind::TimedOut, "{kind:?} {culprit:?}");
        let waited = start.elapsed();
        ensure!(waited >= timeout && waited < timeout + SOON, "it took {waited:?}");
        // Rank 1 says through what it would have reached it.
        ensure!(job.rank != 1 || names_a_nic(&error), "rank 1 names no NIC");
    }
    job.barrier()
}

/// Rank 3 never comes at all: the others are told when they would have met.
pub fn a_rank_that_never_joins_is_named(job: &mut Job) -> Outcome {
    use warpmesh::bootstrap::{TcpBootstrap, TcpRoot, UniqueId};
    let timeout = Duration::from_secs(2);
    let start = Instant::now();
    let met = if job.rank == 0 {
        let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
        job.gather(id.to_string().as_bytes())?;
        TcpBootstrap::root(root, WORLD, timeout)
    } else {
        let id: UniqueId = std::str::from_utf8(&job.gather(&[])?[0])?.parse()?;
        if job.rank == 3 {
            return job.barrier();
        }
        TcpBootstrap::join(&id, job.rank, WORLD, timeout)
    };
    let error = met.err().ok_or("they met without rank 3")?.to_string();
    println!("    rank {} after {:.1?}: {error}", job.rank, start.elapsed());
    ensure!(error.contains('3'), "rank {}: {error}", job.rank);
    ensure!(start.elapsed() < timeout + SOON, "it took {:?}", start.elapsed());
    job.barrier()
}

/// Who wants RDMA on a NIC that one host has not gets an error on every rank, and not TCP.
pub fn a_nic_that_there_is_not_is_named(job: &mut Job) -> Outcome {
    let mut options = job.options();
    if job.rank == 2 {
        options.devices = vec!["mlx5_9".to_owned()];
    }
    let error = job.communicator(options).err().ok_or("they are connected")?.to_string();
    println!("    rank {}: {error}", job.rank);
    ensure!(error.contains("rank 2") && error.contains("there is no NIC mlx5_9"), "{error}");
    job.barrier()
}

//! A job of 40 ranks, two levels deep, of which one between root and leaves is a process that is killed or stopped.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use warpmesh_primitives::bootstrap::{Bootstrap, BootstrapError, TcpBootstrap, TcpRoot, UniqueId};

const WORLD: usize = 40;
/// Comes first, so it is the first below the root and has children.
const INNER: usize = 23;
const LONG: Duration = Duration::from_secs(30);
/// For what has to time out.
const SHORT: Duration = Duration::from_secs(3);
/// How late an error may be on a busy machine, beyond the timeout and a rank's grace.
const SLACK: Duration = Duration::from_secs(4);

const ID: &str = "BOOTSTRAP_TREE_ID";
const CALLS: &str = "BOOTSTRAP_TREE_CALLS";
const BYTES: &str = "BOOTSTRAP_TREE_BYTES";

/// Rank `INNER` as a process: this binary again. Killed when dropped.
struct Inner(Child);

impl Inner {
    /// It makes `calls` all_gathers of `bytes` and says so, then it waits in a barrier.
    fn start(id: &UniqueId, calls: usize, bytes: usize) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["the_inner_rank_as_a_process", "--exact", "--nocapture"])
            .env(ID, id.to_string())
            .env(CALLS, calls.to_string())
            .env(BYTES, bytes.to_string())
            .stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Waits until it says `word`.
    fn until(&mut self, word: &str) {
        let out = BufReader::new(self.0.stdout.as_mut().unwrap());
        let said = out.lines().map_while(Result::ok).any(|line| line.contains(word));
        assert!(said, "the inner rank has not come to {word:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: what [`Inner`] runs.
#[test]
fn the_inner_rank_as_a_process() {
    let Ok(id) = env::var(ID) else { return };
    let number = |name: &str| env::var(name).unwrap().parse::<usize>().unwrap();
    let mut own = TcpBootstrap::join(&id.parse().unwrap(), INNER, WORLD, LONG).unwrap();
    println!("joined");
    for _ in 0..number(CALLS) {
        own.all_gather(&vec![7; number(BYTES)]).unwrap();
    }
    println!("called");
    let _ = own.barrier();
}

/// Runs the ranks other than the inner one and those `absent` as threads; `deed` is done to the inner rank beside
/// them. All of them must name it, `in_time` after the deed.
fn all_name_the_inner_rank(
    (mut inner, root, id): (Inner, TcpRoot, UniqueId),
    absent: &[usize],
    (timeout, in_time): (Duration, Duration),
    work: impl Fn(TcpBootstrap) -> Result<(), BootstrapError> + Sync,
    deed: impl FnOnce(&mut Inner) + Send,
) {
    let mut root = Some(root);
    let (errors, took) = thread::scope(|s| {
        let (id, work) = (&id, &work);
        let mut start = |rank: usize| {
            let root = root.take();
            s.spawn(move || match root {
                Some(root) => work(TcpBootstrap::root(root, WORLD, timeout)?),
                None => work(TcpBootstrap::join(id, rank, WORLD, timeout)?),
            })
        };
        let first = start(0);
        // The root listens by now, and the inner rank, which started before, gets in first.
        thread::sleep(Duration::from_millis(300));
        let others = (1..WORLD).filter(|rank| *rank != INNER && !absent.contains(rank));
        let ranks: Vec<_> = std::iter::once(first).chain(others.map(&mut start)).collect();
        deed(&mut inner);
        let begin = Instant::now();
        let errors: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        (errors, begin.elapsed())
    });
    for error in errors {
        let error = error.expect_err("nobody succeeds without the inner rank");
        let named = match &error {
            BootstrapError::PeerClosed { peer, .. } => *peer == INNER,
            BootstrapError::Missing { missing, .. } => missing == &[INNER],
            _ => false,
        };
        assert!(named, "{error}");
    }
    assert!(took < in_time + SLACK, "{took:?}");
}

fn job(calls: usize, bytes: usize) -> (Inner, TcpRoot, UniqueId) {
    let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0)).unwrap();
    (Inner::start(&id, calls, bytes), root, id)
}

fn gather_for_ever(mut own: TcpBootstrap, bytes: usize) -> Result<(), BootstrapError> {
    loop {
        let all = own.all_gather(&vec![7; bytes])?;
        assert!(all.iter().all(|part| part.len() == bytes));
    }
}

#[test]
fn killed_before_the_start() {
    let kill = |inner: &mut Inner| {
        thread::sleep(Duration::from_millis(700));
        inner.signal(Signal::KILL);
    };
    let times = (LONG, Duration::ZERO);
    all_name_the_inner_rank(job(0, 0), &[7], times, |mut own| own.barrier(), kill);
}

#[test]
fn killed_between_two_calls() {
    let work = |mut own: TcpBootstrap| {
        own.all_gather(&[7])?;
        thread::sleep(Duration::from_millis(600));
        own.barrier()
    };
    let kill = |inner: &mut Inner| {
        inner.until("called");
        inner.signal(Signal::KILL);
    };
    all_name_the_inner_rank(job(1, 1), &[], (LONG, Duration::ZERO), work, kill);
}

#[test]
fn killed_while_one_is_waited_for() {
    let work = |mut own: TcpBootstrap| {
        own.all_gather(&[7])?;
        if own.rank() == 7 {
            thread::sleep(Duration::from_millis(1200));
        }
        own.barrier()
    };
    let kill = |inner: &mut Inner| {
        inner.until("called");
        thread::sleep(Duration::from_millis(500));
        inner.signal(Signal::KILL);
    };
    all_name_the_inner_rank(job(1, 1), &[], (LONG, Duration::ZERO), work, kill);
}

#[test]
fn killed_in_the_middle_of_large_calls() {
    for after in [150, 400] {
        let kill = |inner: &mut Inner| {
            inner.until("joined");
            thread::sleep(Duration::from_millis(after));
            inner.signal(Signal::KILL);
        };
        let work = |own| gather_for_ever(own, 40_000);
        let times = (LONG, Duration::ZERO);
        all_name_the_inner_rank(job(usize::MAX, 40_000), &[], times, work, kill);
    }
}

#[test]
fn stopped_in_the_middle_of_calls() {
    for after in [100, 177] {
        let stop = |inner: &mut Inner| {
            inner.until("joined");
            thread::sleep(Duration::from_millis(after));
            inner.signal(Signal::STOP);
        };
        let work = |own| gather_for_ever(own, 100);
        let times = (SHORT, SHORT + Duration::from_secs(1));
        all_name_the_inner_rank(job(usize::MAX, 100), &[], times, work, stop);
    }
}

const SOFT: &str = "BOOTSTRAP_TREE_SOFT";
const HARD: &str = "BOOTSTRAP_TREE_HARD";

/// Not a test by itself: a job in one process that may have few open files.
#[test]
fn a_job_in_one_process() {
    let limit = |name: &str| env::var(name).ok().map(|limit| limit.parse::<u64>().unwrap());
    let Some(soft) = limit(SOFT) else { return };
    let limits = Rlimit { current: Some(soft), maximum: limit(HARD) };
    setrlimit(Resource::Nofile, limits).unwrap();
    let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0)).unwrap();
    let mut root = Some(root);
    let world = 100;
    let outcomes: Vec<_> = thread::scope(|s| {
        let mut start = |rank: usize| {
            let (root, id) = (root.take(), &id);
            s.spawn(move || match root {
                Some(root) => TcpBootstrap::root(root, world, SHORT)?.all_gather(&[7]),
                None => TcpBootstrap::join(id, rank, world, SHORT)?.all_gather(&[7]),
            })
        };
        let ranks: Vec<_> = (0..world).map(&mut start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let wrong = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let said = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let limit = said.filter(|error| error.to_string().contains("ulimit -n")).count();
    println!("{wrong} failed, {limit} for the limit of open files");
}

fn job_with_limits(soft: u64, hard: u64) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["a_job_in_one_process", "--exact", "--nocapture"]);
    command.env(SOFT, soft.to_string()).env(HARD, hard.to_string());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn a_soft_limit_of_open_files_is_raised() {
    let said = job_with_limits(64, 1024);
    assert!(said.contains("0 failed"), "{said}");
}

#[test]
fn a_hard_limit_of_open_files_is_named() {
    let said = job_with_limits(64, 64);
    assert!(said.contains("100 failed"), "{said}");
    assert!(!said.contains(" 0 for the limit"), "{said}");
}

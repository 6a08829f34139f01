//! Ranks that are processes: a test runs its binary again as its ranks, the same test with a rank in the environment.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use warpmesh::bootstrap::{TcpBootstrap, TcpRoot, UniqueId};
use warpmesh::{Builder, Communicator, Error};

const RANK: &str = "MP_TEST_RANK";
const WORLD: &str = "MP_TEST_WORLD";
const ID: &str = "MP_TEST_ID";
const SEED: &str = "MP_TEST_SEED";

/// The ranks of a test, as processes. Killed when dropped, so that a failing test leaves none.
pub struct Ranks(pub Vec<Child>);

impl Ranks {
    /// Runs test `name` of this binary as `world` ranks.
    pub fn start(name: &str, world: usize, seed: usize) -> Self {
        Self::start_on(name, &vec![0; world], seed)
    }

    /// The same, as if ranks with different numbers were on different hosts.
    pub fn start_on(name: &str, hosts: &[usize], seed: usize) -> Self {
        let world = hosts.len();
        let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0)).unwrap();
        // Rank 0 binds the address again; the port was free a moment ago.
        drop(root);
        let start = |rank: usize| {
            Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--nocapture", "--test-threads=1"])
                .env(RANK, rank.to_string())
                .env(WORLD, world.to_string())
                .env(ID, id.to_string())
                .env(SEED, seed.to_string())
                .env("WARPMESH_HOST_ID", hosts[rank].to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        Self((0..world).map(start).collect())
    }

    /// Waits until all ranks have printed `READY`.
    pub fn ready(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        for child in &mut self.0 {
            let out = child.stdout.as_mut().unwrap();
            let (mut seen, mut byte) = (Vec::new(), [0]);
            while !seen.ends_with(b"READY") {
                assert!(Instant::now() < end && out.read(&mut byte).unwrap() == 1, "not ready");
                seen.push(byte[0]);
            }
        }
    }

    pub fn signal(&self, rank: usize, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0[rank]);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for a rank to end, at most `limit`; returns what it printed after `REPORT `.
    pub fn report(&mut self, rank: usize, limit: Duration) -> String {
        let end = Instant::now() + limit;
        let child = &mut self.0[rank];
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "rank {rank} still runs after {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (mut out, mut err) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let report =
            out.lines().find_map(|line| line.split_once("REPORT ")).map(|(_, r)| r.to_owned());
        report.unwrap_or_else(|| panic!("rank {rank} reported nothing:\n{out}\n{err}"))
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This process's rank and world, if it is one of a test's ranks.
pub fn me() -> Option<(usize, usize, usize)> {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    Some((number(RANK)?, number(WORLD)?, number(SEED)?))
}

/// Connects this process's rank.
pub fn connect(timeout: Duration) -> Communicator {
    connect_with(Communicator::builder().timeout(timeout))
}

/// As [`connect`], with other settings.
pub fn connect_with(builder: Builder) -> Communicator {
    let (rank, world, _) = me().unwrap();
    let id: UniqueId = std::env::var(ID).unwrap().parse().unwrap();
    let wait = Duration::from_secs(20);
    let bootstrap = match rank {
        0 => TcpBootstrap::from_id_as_root(&id, world, wait).unwrap(),
        _ => TcpBootstrap::join(&id, rank, world, wait).unwrap(),
    };
    builder.connect(bootstrap).unwrap()
}

/// Prints an error as [`Ranks::report`] reads it.
pub fn report(error: &Error) {
    let failure = error.failure().unwrap_or_else(|| panic!("not a failure: {error}"));
    let culprit = failure.culprit.map_or(-1, |rank| rank as i64);
    println!("REPORT {:?} culprit {culprit} | {error}", failure.kind);
}

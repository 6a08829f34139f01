//! Starts the ranks as processes, and ends them together.
//!
//! Each child asks the kernel to be killed when this process ends, however it ends; so Ctrl-C, a
//! kill or a crash here leaves nobody behind.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "mpi")]
use anyhow::ensure;
use anyhow::{Context, Result, bail};
use rustix::process::{
    Signal, WaitId, WaitIdOptions, getppid, set_parent_process_death_signal, waitid,
};
use warpmesh::bootstrap::UniqueId;

use super::cli::Cli;
use super::exit::{Exit, Failed};
use super::hosts::{self, Hosts, Network};

/// Set in children: this process's id.
const PARENT: &str = "WARPMESH_PERF_PARENT";
/// Set where this program starts mpirun: how many ranks there should be.
#[cfg(feature = "mpi")]
const WORLD: &str = "WARPMESH_PERF_WORLD";

/// How long ranks may take to end after one of them has: they report an error of their own, which
/// may say more, and a waiting rank notices within the limit of its waits.
const GRACE: Duration = Duration::from_secs(5);

/// In a child: ties its life to the parent's. Whether this is a child.
pub fn adopt() -> Result<bool> {
    let Ok(parent) = std::env::var(PARENT) else {
        return Ok(false);
    };
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with the parent")?;
    // It may have died before; then nobody would ever tell.
    let alive = getppid().is_some_and(|now| now.as_raw_nonzero().to_string() == parent);
    if !alive {
        bail!("the process that started this rank is gone");
    }
    Ok(true)
}

/// Starts the ranks and waits for them.
pub fn processes(cli: &Cli) -> Result<Exit> {
    let world = cli.world();
    let job = Job::new(Ipv4Addr::LOCALHOST, world)?;
    let mut ranks = Ranks { children: Vec::with_capacity(world) };
    for rank in 0..world {
        ranks.add(rank, job.rank(rank, rank)?)?;
    }
    ranks.supervise(cli.wait_limit())
}

/// Starts the ranks on their hosts and waits for them.
pub fn on_hosts(hosts: &Hosts, network: &Network, limit: Duration) -> Result<Exit> {
    network.enter(0)?;
    let job = Job::new(Hosts::address(0), hosts.world())?;
    let mut ranks = Ranks { children: Vec::with_capacity(hosts.world()) };
    for (rank, seat) in hosts.seats().enumerate() {
        network.enter(seat.host)?;
        let mut command = job.rank(rank, seat.local_rank)?;
        hosts::use_network(&mut command);
        ranks.add(rank, command)?;
    }
    ranks.supervise(limit)
}

/// What the ranks of a job have in common.
struct Job {
    world: usize,
    id: UniqueId,
}

impl Job {
    /// Rank 0 listens at this address a moment later, and tries again for a second if someone else was
    /// faster with the port and lets go of it.
    fn new(address: Ipv4Addr, world: usize) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).context("looking for a free port")?;
        let port = listener.local_addr()?.port();
        Ok(Self { world, id: UniqueId::new((address, port).into())? })
    }

    /// This program as a rank.
    fn rank(&self, rank: usize, local_rank: usize) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(std::env::args_os().skip(1))
            .env("WARPMESH_RANK", rank.to_string())
            .env("WARPMESH_WORLD", self.world.to_string())
            .env("WARPMESH_LOCAL_RANK", local_rank.to_string())
            .env("WARPMESH_UNIQUE_ID", self.id.to_string())
            .env(PARENT, std::process::id().to_string())
            .stdin(Stdio::null());
        if rank > 0 {
            // Rank 0 keeps ours: it alone prints results, and it shows progress on a terminal.
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        }
        Ok(command)
    }
}

struct Ranks {
    children: Vec<(Child, Option<ExitStatus>)>,
}

impl Ranks {
    /// Starts one more.
    fn add(&mut self, rank: usize, mut command: Command) -> Result<()> {
        let mut child = command.spawn().with_context(|| format!("starting rank {rank}"))?;
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    eprintln!("[rank {rank}] {line}");
                }
            });
        }
        self.children.push((child, None));
        Ok(())
    }

    /// Waits until all have ended, and sees to it that they do once one has.
    fn supervise(mut self, limit: Duration) -> Result<Exit> {
        self.wait_for_first()?;
        let Some(first) = self.reap()? else {
            return Ok(Exit::Success);
        };
        let good = self.status(first).is_some_and(|status| status.success());
        // Ranks end at nearly the same time; after a failure, when they have noticed it.
        let deadline = Instant::now() + GRACE + if good { limit } else { Duration::ZERO };
        while self.running().next().is_some() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            self.reap()?;
        }
        let stuck: Vec<usize> = self.running().collect();
        self.kill();
        // What they wrote is still on its way through the threads above.
        thread::sleep(Duration::from_millis(20));
        self.verdict(first, &stuck)
    }

    /// Sleeps until a child has ended; measuring ranks are not disturbed.
    fn wait_for_first(&self) -> Result<()> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::All, options) {
                Err(rustix::io::Errno::INTR) => {}
                ended => return ended.map(drop).context("waiting for the ranks"),
            }
        }
    }

    /// Takes notice of who has ended; the first of them that failed, or just the first.
    fn reap(&mut self) -> Result<Option<usize>> {
        for (child, status) in &mut self.children {
            if status.is_none() {
                *status = child.try_wait()?;
            }
        }
        let ended = |rank: &usize| self.status(*rank).is_some();
        let failed = |rank: &usize| self.status(*rank).is_some_and(|status| !status.success());
        let all = 0..self.children.len();
        Ok(all.clone().find(failed).or_else(|| all.clone().find(ended)))
    }

    fn status(&self, rank: usize) -> Option<ExitStatus> {
        self.children[rank].1
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.children.len()).filter(|rank| self.status(*rank).is_none())
    }

    fn kill(&mut self) {
        for (child, status) in &mut self.children {
            if status.is_none() {
                // Fails only if it has just ended by itself.
                let _ = child.kill();
                *status = child.wait().ok();
            }
        }
    }

    /// The exit code is that of a rank that reported one; a rank that was killed reports nothing.
    fn verdict(&self, first: usize, stuck: &[usize]) -> Result<Exit> {
        let killed = |rank: usize| self.status(rank).and_then(|status| status.signal());
        if let Some(signal) = killed(first) {
            bail!("rank {first} was ended by signal {signal}; the other ranks were ended with it");
        }
        let codes = (0..self.children.len()).filter_map(|rank| self.status(rank)?.code());
        if let Some(code) = codes.filter(|code| *code != 0).max_by_key(|code| (*code != 1, *code)) {
            return Ok(exit_of(code));
        }
        if !stuck.is_empty() {
            let text = format!("ranks {stuck:?} did not end with the others and were killed");
            return Err(Failed::because(Exit::Timeout, text));
        }
        Ok(Exit::Success)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a code means that a rank has ended with.
pub fn exit_of(code: i32) -> Exit {
    let known = [Exit::Library, Exit::Timeout, Exit::NotImplemented, Exit::Usage, Exit::Results];
    known.into_iter().find(|exit| *exit as i32 == code).unwrap_or(Exit::Internal)
}

/// Becomes `mpirun`, which starts this program again as every rank.
#[cfg(feature = "mpi")]
pub fn mpirun(cli: &Cli) -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    let mut command = match mpirun_command(cli) {
        Ok(command) => command,
        Err(error) => return error,
    };
    let error = command.exec();
    Failed::because(
        Exit::Usage,
        format!("cannot start mpirun: {error}; --backend mpi needs an MPI (Debian: openmpi-bin)"),
    )
}

/// `mpirun` with the ranks of the command line.
#[cfg(feature = "mpi")]
pub fn mpirun_command(cli: &Cli) -> Result<Command> {
    let mut command = Command::new("mpirun");
    command.args(["-n", &cli.world().to_string()]);
    let open_mpi = is_open_mpi();
    if open_mpi {
        // This program binds ranks itself, the same for all libraries.
        command.args(["--bind-to", "none", "--oversubscribe"]);
        // mpirun refuses root otherwise, and containers often have nobody else.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        if cli.world() > super::cores::count() {
            // Ranks that wait for each other on one core have to let go of it.
            command.env("OMPI_MCA_mpi_yield_when_idle", "1");
        }
    }
    if let Some(hosts) = &cli.hosts {
        let text = "--hosts with --backend mpi: only Open MPI's mpirun is known to reach them";
        ensure!(open_mpi, Failed::because(Exit::NotImplemented, text));
        command.args(hosts::open_mpi_arguments(hosts)?);
    }
    command.arg(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(WORLD, cli.world().to_string());
    Ok(command)
}

#[cfg(feature = "mpi")]
fn is_open_mpi() -> bool {
    let output = Command::new("mpirun").arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Open MPI"))
}

/// How many ranks [`mpirun`] was told to start, in a process that it has started.
#[cfg(feature = "mpi")]
pub fn asked_world() -> Option<usize> {
    std::env::var(WORLD).ok()?.parse().ok()
}

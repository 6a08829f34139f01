//! The processes around the ranks: the one that the user has started, the keeper of the hosts, and
//! the agent that an MPI reaches other hosts by.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, getegid, geteuid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Hosts;
#[cfg(feature = "mpi")]
use super::network::DEVICE;
use super::network::{Network, enter_by_address, use_network};
use crate::perf::exit::Exit;
use crate::perf::{format, launch};

/// Set in the keeper.
const KEEPER: &str = "WARPMESH_PERF_KEEPER";
/// The first argument of the agent.
const AGENT: &str = "host_agent";

/// Whether this process is the keeper of the hosts.
pub fn is_inside() -> bool {
    std::env::var_os(KEEPER).is_some()
}

/// Starts the keeper and waits for it. To be called before this process has threads: a process with
/// threads cannot enter a user namespace.
pub fn outside() -> Result<Exit> {
    isolate()?;
    let mut keeper = Command::new(std::env::current_exe()?);
    keeper.args(std::env::args_os().skip(1)).env(KEEPER, "1");
    // Nothing is written to it; its end tells the keeper that this process is gone.
    let mut keeper = keeper.stdin(Stdio::piped()).spawn().context("starting the hosts' keeper")?;
    let _lifeline = keeper.stdin.take();
    let status = keeper.wait().context("waiting for the hosts' keeper")?;
    exit_of("the hosts' keeper", status)
}

fn exit_of(who: &str, status: ExitStatus) -> Result<Exit> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(Exit::Success),
        (Some(code), _) => Ok(launch::exit_of(code)),
        (None, signal) => bail!("{who} was ended by signal {}", signal.unwrap_or(0)),
    }
}

/// Processes that are started from now on see none but each other; as their own root if this
/// process may not do that otherwise.
fn isolate() -> Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let new = UnshareFlags::NEWPID | UnshareFlags::NEWNS;
    // SAFETY: of this process only the mounts are its own from now on, and none of them changes
    // before the keeper changes them.
    match unsafe { unshare_unsafe(new) } {
        Err(Errno::PERM) => {}
        done => return done.context("new namespaces for --hosts"),
    }
    // SAFETY: as above; and the user is the same, seen by another number.
    unsafe { unshare_unsafe(new | UnshareFlags::NEWUSER) }.context(
        "--hosts makes namespaces, which this system lets neither this user nor this container do: \
         run it as root, or allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    let map = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, text).with_context(|| format!("writing {path}"))
    };
    map("setgroups", "deny".to_owned())?;
    map("uid_map", format!("0 {user} 1"))?;
    map("gid_map", format!("0 {group} 1"))
}

/// The keeper: makes the hosts, has the ranks started on them, and waits for these. `mpirun` starts
/// them where there is one.
pub fn inside(hosts: &Hosts, limit: Duration, mpirun: Option<Command>) -> Result<Exit> {
    die_with_the_program()?;
    remount()?;
    let network = Network::new(hosts)?;
    let exit = match mpirun {
        None => launch::on_hosts(hosts, &network, limit),
        Some(mpirun) => run_mpi(hosts, &network, mpirun),
    }?;
    if exit == Exit::Success {
        println!("{}", report(&network.sent()?));
    }
    Ok(exit)
}

/// That what was measured went over the network.
fn report(sent: &[u64]) -> String {
    let host =
        |(host, bytes): (usize, &u64)| format!("host{host} {}", format::size(*bytes as usize));
    let hosts: Vec<_> = sent.iter().enumerate().map(host).collect();
    format!("# Sent to other hosts: {}", hosts.join(", "))
}

fn die_with_the_program() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with the parent")?;
    // It may have died before; then its end of the pipe is closed.
    let stdin = std::io::stdin();
    let mut ends = [PollFd::new(&stdin, PollFlags::IN)];
    poll(&mut ends, Some(&Timespec::default())).context("looking for the parent")?;
    let gone = ends[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
    ensure!(!gone, "the process that started this one is gone");
    Ok(())
}

/// What programs expect to find about the processes that they see, and shared memory that is gone
/// with these: an MPI that is killed leaves files in it.
fn remount() -> Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("separating the mounts from the system's")?;
    let usual = MountFlags::NOSUID | MountFlags::NODEV;
    mount("proc", "/proc", "proc", usual | MountFlags::NOEXEC, None).context(
        "mounting /proc for the hosts: a container that hides parts of /proc does not allow it",
    )?;
    mount("tmpfs", "/dev/shm", "tmpfs", usual, None).context("mounting /dev/shm for the hosts")
}

/// mpirun on the first host, which starts its daemons on the others by the agent.
fn run_mpi(hosts: &Hosts, network: &Network, mut mpirun: Command) -> Result<Exit> {
    network.enter(0)?;
    let (variable, places) = network.places();
    mpirun.env(variable, places).stdin(Stdio::null());
    use_network(&mut mpirun);
    let status = mpirun.status().with_context(|| {
        format!("cannot start mpirun for {} hosts (Debian: openmpi-bin)", hosts.count())
    })?;
    exit_of("mpirun", status)
}

/// What has Open MPI's mpirun, on the first host, reach the others and go between hosts by TCP. On a
/// host its ranks share memory, as they do by default: that is what its users run.
#[cfg(feature = "mpi")]
pub fn open_mpi_arguments(hosts: &Hosts) -> Result<Vec<String>> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("the path of this program is no UTF-8")?;
    ensure!(
        !program.contains(char::is_whitespace),
        "Open MPI cannot start a program with a space in its path as an agent: {program}"
    );
    let agent = format!("{program} {AGENT}");
    let settings = [
        ("plm", "rsh"),
        ("plm_rsh_agent", &agent),
        // Gone with the hosts, however they end.
        ("orte_tmpdir_base", "/dev/shm"),
        ("oob_tcp_if_include", DEVICE),
        ("pml", "ob1"),
        ("btl", "tcp,vader,self"),
        ("btl_tcp_if_include", DEVICE),
    ];
    let mut arguments = vec!["--host".to_owned(), hosts.for_mpirun()];
    for (name, value) in settings {
        arguments.extend(["--mca", name, value].map(str::to_owned));
    }
    Ok(arguments)
}

/// Whether this process is the agent.
pub fn is_agent() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == AGENT)
}

/// The agent: `host_agent ADDRESS COMMAND...` becomes the command, on the host with this address, as
/// ssh would run it.
pub fn agent() -> Result<Exit> {
    let mut words = std::env::args().skip(2);
    let address = words.next().context("host_agent: no address")?;
    let command = words.collect::<Vec<_>>().join(" ");
    enter_by_address(&address)?;
    let error = Command::new("sh").args(["-c", &command]).exec();
    bail!("cannot start a shell on {address}: {error}")
}

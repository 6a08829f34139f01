//! `warpmesh-perf --hosts`: ranks on network namespaces, and that nothing is left of them, however they end.
//! `cargo xtask test` runs these; by hand, as root (or where user namespaces are allowed):
//! `cargo test --release -p warpmesh-benches --features mpi,gloo --test hosts -- --ignored`.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

fn perf(arguments: &str) -> Command {
    let mut command = Command::new("env");
    // A job in the background of some shells ignores SIGINT, and so would what it starts.
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_warpmesh-perf")]);
    command.args(arguments.split_whitespace());
    for name in ["RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"] {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a run that has to succeed.
fn table(arguments: &str) -> String {
    let Output { status, stdout, stderr } = perf(arguments).output().unwrap();
    let (out, err) = (text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(0), "{arguments}\n{out}\n{err}");
    assert!(out.contains("# Out of bounds values : 0 OK"), "{out}");
    out
}

/// The hosts of the ranks, from the table's header.
fn hosts_of_ranks(table: &str) -> Vec<String> {
    let host = |line: &str| {
        let (_, rest) = line.strip_prefix("#  Rank ")?.split_once(" on ")?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    table.lines().filter_map(host).collect()
}

/// Bytes that each host has sent, as the last line says.
#[cfg(any(feature = "mpi", feature = "gloo"))]
fn sent(table: &str) -> Vec<f64> {
    let line = table.lines().find_map(|line| line.strip_prefix("# Sent to other hosts: "));
    let host = |text: &str| match text.split_whitespace().collect::<Vec<_>>()[..] {
        [_, number, "MiB"] => number.parse::<f64>().unwrap() * f64::from(1 << 20),
        // Less is too little for anyone here.
        _ => 0.0,
    };
    line.unwrap_or_else(|| panic!("{table}")).split(", ").map(host).collect()
}

#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn ranks_of_one_host_share_memory_there() {
    let table = table("all_reduce -b 8 -e 64K -f 64 --hosts 3 -n 3");
    assert_eq!(hosts_of_ranks(&table), ["host0"; 3], "{table}");
}

#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn a_rank_that_fails_is_named_and_its_code_is_the_programs() {
    let output = perf("all_reduce -b 8 -e 8 --hosts 2 --algorithm no_such").output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    // Another job's variables: it is that job's rank, and makes no hosts.
    let output = perf("all_reduce --hosts 2").env("RANK", "0").env("WORLD_SIZE", "1").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stderr).contains("torchrun"), "{}", text(&output.stderr));
}

#[cfg(any(feature = "mpi", feature = "gloo"))]
#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn data_goes_over_the_network() {
    let backends =
        [(true, "warpmesh"), (cfg!(feature = "mpi"), "mpi"), (cfg!(feature = "gloo"), "gloo")];
    for (_, backend) in backends.iter().filter(|(built, _)| *built) {
        for (hosts, names) in
            [("1,1", "host0 host1"), ("2,1", "host0 host0 host1"), ("1,1,1", "host0 host1 host2")]
        {
            let line = format!("all_reduce -b 1M -e 1M -n 10 --hosts {hosts} --backend {backend}");
            let table = table(&line);
            assert_eq!(hosts_of_ranks(&table).join(" "), names, "{table}");
            // Each of at least 20 all-reduces brings half of its data, or more, to every host and from it.
            let least = 20.0 * f64::from(1 << 19);
            assert!(sent(&table).iter().all(|bytes| *bytes > least), "{line}\n{table}");
        }
    }
}

#[cfg(feature = "gloo")]
#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn gloo_is_right_with_every_type_operation_and_root_that_it_has() {
    for arguments in ["--hosts 2,1", "-g 3", "-g 3 --ranks threads"] {
        for algorithm in ["ring", "bcube"] {
            let line = format!(
                "all -b 4 -e 64K -f 32 -n 2 -d all -o all -r all --backend gloo {arguments}"
            );
            let output =
                perf(&line).env("WARPMESH_PERF_GLOO_ALGORITHM", algorithm).output().unwrap();
            let table = text(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{line}\n{table}\n{}", text(&output.stderr));
            let rows = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
            assert!(rows.count() > 100, "{table}");
        }
    }
}

/// Every collective, type and operator between hosts, each value looked at.
#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn warpmesh_is_right_between_hosts() {
    for arguments in ["-d all -o all", "-R 0 -d bfloat16 -o all", "-r all"] {
        let line = format!("all -b 4 -e 256K -f 32 -n 2 --hosts 2,1,1 {arguments}");
        let output = perf(&line).output().unwrap();
        let table = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{line}\n{table}\n{}", text(&output.stderr));
        let rows = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        assert!(rows.count() > 20, "{table}");
        assert!(table.contains("# Out of bounds values : 0 OK"), "{table}");
    }
}

/// With torchrun's variables, as on several machines.
#[cfg(feature = "gloo")]
#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn gloo_takes_the_network_card_that_it_is_told() {
    let rank = |rank: &str, card: &str, port: &str| {
        let mut command = perf("all_reduce -b 8 -e 8K -f 32 -n 2 --backend gloo --timeout 10");
        let variables = [("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")];
        command.envs(variables).env("MASTER_PORT", port).env("GLOO_SOCKET_IFNAME", card);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for (card, code) in [("lo", 0), ("no-such-card", 3)] {
        // The ranks meet at the port after torchrun's own.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = (free.port() - 1).to_string();
        let ranks = ["0", "1"].map(|number| rank(number, card, &port));
        let [root, other] = ranks.map(|rank| rank.wait_with_output().unwrap());
        let said = text(&root.stderr);
        assert_eq!((root.status.code(), other.status.code()), (Some(code), Some(code)), "{said}");
        assert!(code == 0 || said.contains("GLOO_SOCKET_IFNAME"), "{said}");
    }
}

/// A run that goes on for long.
struct Long {
    child: Child,
    /// The report's name, by which its processes are found.
    mark: PathBuf,
}

impl Drop for Long {
    fn drop(&mut self) {
        // After a failed test; else it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Long {
    fn start(more: &str) -> Self {
        let name = format!("hosts-{}-{}.json", std::process::id(), more.replace([' ', ','], "-"));
        let mark = std::env::temp_dir().join(name);
        let line = "all_reduce -b 1M -e 1M -n 100000000 --timeout 5";
        let mut command = perf(&format!("{line} {more} -J {}", mark.display()));
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let long = Self { child, mark };
        // The report is opened when the ranks have met.
        long.until("ranks have not met", |long| long.mark.exists());
        std::thread::sleep(Duration::from_millis(300));
        long
    }

    fn until(&self, otherwise: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < end, "{otherwise}: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processes of the run and the network namespaces that they are in. Ranks, mpirun and its daemons
    /// all have the report's name in their arguments or environment.
    fn processes(&self) -> Vec<(Pid, PathBuf)> {
        let mark = self.mark.to_str().unwrap().as_bytes().to_vec();
        let process = |entry: std::fs::DirEntry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
            let found = arguments.windows(mark.len()).any(|window| window == mark);
            found.then_some((pid, std::fs::read_link(entry.path().join("ns/net")).ok()?))
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(process).collect()
    }

    /// That all processes are gone, and with them whoever else was on their hosts.
    fn nobody_is_left(&self, hosts: &BTreeSet<PathBuf>) {
        self.until("processes are left", |long| long.processes().is_empty());
        let of = |entry: std::fs::DirEntry| std::fs::read_link(entry.path().join("ns/net")).ok();
        let left = || std::fs::read_dir("/proc").unwrap().flatten().filter_map(of);
        self.until("someone is left on a host", |_| !left().any(|host| hosts.contains(&host)));
        let _ = std::fs::remove_file(&self.mark);
    }

    /// The hosts' namespaces.
    fn hosts(&self, count: usize) -> BTreeSet<PathBuf> {
        let here = std::fs::read_link("/proc/self/ns/net").unwrap();
        let all = self.processes().into_iter().map(|(_, host)| host);
        let hosts: BTreeSet<PathBuf> = all.filter(|host| *host != here).collect();
        assert_eq!(hosts.len(), count, "{:?}", self.processes());
        hosts
    }
}

/// Runs with every backend that is built and that reaches other hosts, and the number of hosts.
fn long_runs() -> Vec<(&'static str, usize)> {
    let runs = [
        (true, "--hosts 3", 1),
        (true, "--hosts 2,1", 2),
        (cfg!(feature = "gloo"), "--hosts 1,2 --backend gloo", 2),
        (cfg!(feature = "mpi"), "--hosts 2,1 --backend mpi", 2),
    ];
    runs.iter().filter(|(built, ..)| *built).map(|(_, line, hosts)| (*line, *hosts)).collect()
}

#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn nothing_outlives_the_program() {
    for (line, hosts) in long_runs() {
        for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
            let mut long = Long::start(line);
            let hosts = long.hosts(hosts);
            kill_process(Pid::from_child(&long.child), signal).unwrap();
            let until = Instant::now() + Duration::from_secs(30);
            while long.child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < until, "{line}: goes on after {signal:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            long.nobody_is_left(&hosts);
        }
    }
}

#[test]
#[ignore = "needs namespaces: cargo xtask test runs it"]
fn a_rank_that_is_killed_ends_the_others_and_is_named() {
    for (line, hosts) in long_runs() {
        let mut long = Long::start(line);
        let hosts = long.hosts(hosts);
        let is_rank_2 = |(pid, _): &&(Pid, PathBuf)| {
            let variables = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            let variables = text(&variables.unwrap_or_default());
            let names = ["WARPMESH_RANK=2", "OMPI_COMM_WORLD_RANK=2"];
            variables.split('\0').any(|variable| names.contains(&variable))
        };
        let processes = long.processes();
        let (rank, _) = processes.iter().find(is_rank_2).expect("rank 2");
        kill_process(*rank, Signal::KILL).unwrap();
        long.nobody_is_left(&hosts);
        let mut errors = String::new();
        long.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_ne!(long.child.wait().unwrap().code(), Some(0));
        // Open MPI says "process rank 2 ... exited on signal 9".
        assert!(errors.contains("signal 9") && errors.contains("rank 2"), "{line}: {errors}");
    }
}

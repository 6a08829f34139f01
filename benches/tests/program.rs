//! `warpmesh-perf` as its users run it: its table, its report, its exit codes, and that nothing is
//! left of it, however it ends.

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

fn perf(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpmesh-perf"));
    command.args(arguments.split_whitespace());
    // Variables of a launcher around the tests would make it a rank of that job.
    for name in ["RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"] {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &str) -> Output {
    perf(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Four ranks with torchrun's variables, on two hosts; each is started by itself, as on several machines.
#[test]
fn torchruns_variables_start_ranks_on_several_hosts() {
    // The ranks meet at the port after torchrun's own.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rank = |rank: usize| {
        let mut command = perf("all -b 8 -e 64K -f 32 -n 2 --timeout 20");
        command
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "4")
            .env("LOCAL_RANK", (rank % 2).to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", (free.port() - 1).to_string())
            .env("WARPMESH_HOST_ID", format!("host {}", rank / 2));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ranks: Vec<_> = (0..4).map(rank).collect();
    let outputs: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let table = text(&outputs[0].stdout);
    assert_eq!(table.matches("# Out of bounds values : 0 OK").count(), 9, "{table}");
}

/// Standard output of a run that has to succeed.
fn table(arguments: &str) -> String {
    let output = run(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments}\n{out}\n{err}");
    out
}

/// The rows as tools made for nccl-tests read them: lines without '#', fields by white space.
fn rows(table: &str) -> Vec<Vec<String>> {
    let lines = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn the_command_of_the_readme_gives_a_table_that_tools_can_read() {
    let table = table("all_reduce -b 8 -e 64K -f 4 -g 4 -n 5");
    let rows = rows(&table);
    let sizes: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(sizes, ["8", "32", "128", "512", "2048", "8192", "32768"]);
    for row in &rows {
        assert_eq!(row.len(), 13, "{row:?}");
        assert_eq!(row[2..5], ["float", "sum", "-1"]);
        assert_eq!((&*row[8], &*row[12]), ("0", "0"));
        let number = |field: &str| field.parse::<f64>().unwrap();
        assert!(row[5..12].iter().all(|field| number(field) >= 0.0));
    }
    assert_eq!(table.matches("#  Rank ").count(), 4, "{table}");
    assert!(table.contains("\n# Out of bounds values : 0 OK\n"), "{table}");
    assert!(table.contains("\n# Avg bus bandwidth    : "), "{table}");
    assert!(table.contains("\n# Machine: copy "), "{table}");
}

#[test]
fn every_test_type_and_operation_is_right() {
    for ranks in ["processes", "threads"] {
        let arguments = "all -b 4 -e 4K -f 32 -g 3 -n 2 -d all -o all -r all --ranks";
        let table = table(&format!("{arguments} {ranks}"));
        let rows = rows(&table);
        assert!(rows.len() > 800, "{} rows", rows.len());
        for row in rows {
            let wrong = |field: &str| field != "0" && field != "N/A";
            assert!(!wrong(&row[8]) && !wrong(&row[12]), "{row:?}");
            assert_eq!(row[8], "0", "out of place everything is checked");
        }
    }
}

#[test]
fn memory_need_not_be_registered_nor_aligned() {
    let table = table("all_reduce -b 4 -e 64K -f 16 -g 2 -n 2 -R 0 -u 1 -d double --canonical");
    assert!(rows(&table).iter().all(|row| row[8] == "0" && row[12] == "0"), "{table}");
}

#[test]
fn latency_and_single_iterations_have_nccl_tests_columns() {
    for flags in ["--latency", "-I 1 -K 2"] {
        let table = table(&format!("broadcast -b 8 -e 1K -f 4 -g 2 -n 20 {flags}"));
        for row in rows(&table) {
            assert_eq!(row.len(), 21, "{row:?}");
            let number = |at: usize| row[at].parse::<f64>().unwrap();
            let (least, most, p99) = (number(9), number(10), number(11));
            assert!(least <= p99 && p99 <= most, "{row:?}");
        }
    }
}

#[test]
fn a_report_is_written_beside_an_older_one() {
    let folder = folder("report");
    let name = folder.join("out.json");
    std::fs::write(&name, "mine").unwrap();
    table(&format!("all_gather -b 1K -e 1K -g 2 -n 2 -J {}", name.display()));
    assert_eq!(std::fs::read_to_string(&name).unwrap(), "mine");
    let report = std::fs::read_to_string(folder.join("out.json.0")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["version"], 3);
    assert_eq!(report["results"][0]["in_place"]["nwrong"], 0.0);
    assert_eq!(report["config"]["devices"][1]["rank"], 1);
    assert!(!report.to_string().contains("wm1:"), "the job's secret is in the report");
    std::fs::remove_dir_all(folder).unwrap();
}

fn folder(name: &str) -> PathBuf {
    let name = format!("warpmesh-perf-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn exit_codes_are_those_of_nccl_tests() {
    let code = |arguments: &str| run(arguments).status.code();
    assert_eq!(code("all_reduze"), Some(6));
    assert_eq!(code("all_reduce -b 8 -e 4"), Some(6));
    assert_eq!(code("broadcast -g 2 -r 2"), Some(6));
    assert_eq!(code("all_reduce -g 2 -G 1"), Some(5));
    assert_eq!(code("all_reduce -b 8 -e 8 -g 2 --algorithm no_such_thing"), Some(5));
    assert_eq!(code("all_reduce -b 8 -e 8 -g 2 -R 0 --algorithm direct"), Some(5));
    let mut demanding = perf("all_reduce -b 8 -e 8 -g 2 -n 1");
    let output = demanding.env("NCCL_TESTS_MIN_BW", "1e9").output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(text(&output.stdout).contains("FAILED"));
    #[cfg(not(feature = "mpi"))]
    assert_eq!(code("all_reduce --backend mpi"), Some(5));
}

#[test]
fn what_takes_too_long_ends_with_its_code() {
    let output = run("all_reduce -b 1M -e 1M -g 2 -n 100000000 -T 1");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
}

/// A run that goes on for long, and its ranks.
struct Long {
    child: Child,
    ranks: Vec<Pid>,
    /// Kept open: a closed one would end the run.
    _out: Lines<BufReader<ChildStdout>>,
}

impl Long {
    fn start(more: &str) -> Self {
        let arguments = format!("all_reduce -b 1M -e 1M -g 3 -n 100000000 --timeout 2 {more}");
        let piped = Stdio::piped;
        let mut child = perf(&arguments).stdout(piped()).stderr(piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let pid = |line: String| {
            let (_, rest) = line.split_once(" Pid ")?;
            Pid::from_raw(rest.split_whitespace().next()?.parse().ok()?)
        };
        let ranks = out.by_ref().map_while(Result::ok).filter_map(pid).take(3).collect();
        std::thread::sleep(Duration::from_millis(300));
        Self { child, ranks, _out: out }
    }

    /// Exit code and standard error, after at most `limit`.
    fn ended(mut self, limit: Duration) -> (Option<i32>, String) {
        let end = Instant::now() + limit;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "still runs after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.nobody_is_left();
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stderr))
    }

    fn nobody_is_left(&self) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.ranks.iter().any(|rank| runs(*rank)) {
            assert!(Instant::now() < end, "ranks are still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// An orphan that has ended stays a zombie where nobody collects it.
fn runs(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    test_kill_process(pid).is_ok() && status.is_ok_and(|status| !status.contains(") Z "))
}

#[test]
fn a_rank_that_dies_ends_the_others() {
    let long = Long::start("");
    kill_process(long.ranks[1], Signal::KILL).unwrap();
    let (code, errors) = long.ended(Duration::from_secs(10));
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("rank 1 was ended by signal 9"), "{errors}");
    assert!(errors.contains("rank 1 died"), "{errors}");
}

#[test]
fn a_rank_that_stops_ends_the_others_and_is_ended_too() {
    let long = Long::start("");
    kill_process(long.ranks[2], Signal::STOP).unwrap();
    let (code, errors) = long.ended(Duration::from_secs(30));
    assert_eq!(code, Some(4), "{errors}");
}

#[test]
fn ranks_do_not_outlive_the_program() {
    let mut long = Long::start("");
    long.child.kill().unwrap();
    long.child.wait().unwrap();
    long.nobody_is_left();
}

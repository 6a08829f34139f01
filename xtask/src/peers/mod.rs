//! The comparison with Open MPI, and between hosts with Gloo, too: all in one run, the same buffers and
//! sizes.

mod hosts;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::system::{cargo, ensure_gloo, ensure_iproute2, ensure_open_mpi, root, step};

const HELP: &str = "\
cargo xtask peers [--quick] [--hosts [--without-warpmesh]] [--report FILE.md] [--json FILE-PREFIX]

Installs Open MPI and Gloo from the system's packages if they are missing, builds warpmesh-perf with
both, and runs all libraries in turn at each size, float, sum: warpmesh and Open MPI on one host, 8 B
to 128 MiB; all three between two hosts over TCP, 8 B and 64 KiB to 64 MiB. Hosts are network
namespaces of this machine: this needs root, or user namespaces. Ratios are warpmesh's time divided by
the other's; below 1 warpmesh is faster.

  --hosts   only what goes between hosts; --without-warpmesh measures the others alone there
  --quick   few iterations, and not the largest sizes
  --report  writes ratios and machine to this Markdown file, and those between hosts to
            FILE-hosts.md
  --json    warpmesh-perf's own reports, one for each table
";

/// How the report begins.
const HEAD: &str = "\
# Beside Open MPI

Written by `cargo xtask peers --report docs/peers.md`: both libraries in turn at every size, in one
run. Times in microseconds; *ratio* is warpmesh's time divided by Open MPI's. Calls rotate through a
buffer as large as the largest message of a table: small messages find their data in a cache, large
ones do not.
";

/// What is measured: a title, and warpmesh-perf's arguments. Calls rotate through a buffer as large as
/// the largest message of a run, so the first run of each kind stays in the caches and the others do
/// not.
const RUNS: [(&str, &str); 10] = [
    ("all_reduce, 2 ranks, registered, small", "all_reduce -b 8 -e 256K -f 2 -g 2 -R 1"),
    ("all_reduce, 2 ranks, registered, large", "all_reduce -b 2M -e 16M -f 2 -g 2 -R 1"),
    ("all_reduce, 2 ranks, registered, 128 MiB", "all_reduce -b 128M -e 128M -f 2 -g 2 -R 1"),
    ("all_reduce, 2 ranks, not registered, small", "all_reduce -b 8 -e 256K -f 2 -g 2 -R 0"),
    ("all_reduce, 2 ranks, not registered, large", "all_reduce -b 2M -e 16M -f 2 -g 2 -R 0"),
    ("all_reduce, 2 ranks, not registered, 128 MiB", "all_reduce -b 128M -e 128M -f 2 -g 2 -R 0"),
    ("all_reduce, 8 ranks, registered", "all_reduce -b 8 -e 16M -f 4 -g 8 -R 1"),
    ("all_reduce, 8 ranks, not registered", "all_reduce -b 8 -e 16M -f 4 -g 8 -R 0"),
    ("all_gather, 8 ranks, registered", "all_gather -b 512 -e 16M -f 4 -g 8 -R 1"),
    ("reduce_scatter, 8 ranks, registered", "reduce_scatter -b 512 -e 16M -f 4 -g 8 -R 1"),
];

/// How warpmesh-perf is built with everything that it is compared with on the host.
pub const FLAGS: [&str; 4] = ["--features", "mpi,gloo", "--target-dir", "target/mpi"];

/// Installs what is missing, and builds warpmesh-perf.
pub fn build() -> Result<()> {
    ensure_open_mpi()?;
    ensure_gloo()?;
    let build = ["build", "--release", "-p", "warpmesh-benches"];
    step("build with the MPI and Gloo backends", cargo(&build).args(FLAGS))
}

pub fn run(args: &[String]) -> Result<()> {
    let Some(options) = options(args)? else {
        print!("{HELP}");
        return Ok(());
    };
    ensure_iproute2()?;
    build()?;
    if !options.hosts {
        let text = HEAD.to_owned() + &one_host(&options)?;
        write(options.report.as_deref(), &text)?;
    }
    let text = hosts::HEAD.to_owned() + &hosts::run(&options)?;
    let file = options.report.map(|file| format!("{}-hosts.md", file.trim_end_matches(".md")));
    write(file.as_deref(), &text)
}

fn write(file: Option<&str>, text: &str) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text).with_context(|| format!("cannot write {file}"))
}

/// Beside Open MPI on one host; what is found, as Markdown.
fn one_host(options: &Options) -> Result<String> {
    let mut text = String::new();
    // The quick run leaves out what takes long.
    let wanted = |line: &str| !options.quick || !line.contains("-b 128M");
    let runs = RUNS.iter().enumerate().filter(|(_, (_, line))| wanted(line));
    for (number, (title, line)) in runs {
        let mut command = perf(line);
        command.args(["--backend", "warpmesh,mpi"]);
        if options.quick {
            command.args(["-n", "20", "-w", "5"]);
        } else {
            // Small messages need many iterations, and each size several turns of both backends.
            command.args(["-w", "20", "--min-time", "0.05", "--rounds", "5"]);
        }
        if let Some(prefix) = &options.json {
            command.arg("-J").arg(format!("{prefix}-{number}.json"));
        }
        println!("==> {title}");
        let output = watched(&mut command)?;
        section(&mut text, title, &command, &output);
    }
    Ok(text)
}

/// warpmesh-perf with these arguments.
fn perf(line: &str) -> Command {
    let mut command = Command::new(root().join("target/mpi/release/warpmesh-perf"));
    command.args(line.split(' '));
    command
}

#[derive(Debug, Default)]
struct Options {
    quick: bool,
    hosts: bool,
    without_warpmesh: bool,
    report: Option<String>,
    json: Option<String>,
}

/// None if help was asked for.
fn options(args: &[String]) -> Result<Option<Options>> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().cloned().with_context(|| format!("{arg} what?\n\n{HELP}"));
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--hosts" => options.hosts = true,
            "--without-warpmesh" => options.without_warpmesh = true,
            "--report" => options.report = Some(value()?),
            "--json" => options.json = Some(value()?),
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown argument '{other}'\n\n{HELP}"),
        }
    }
    if options.without_warpmesh && !options.hosts {
        bail!(
            "--without-warpmesh is for --hosts: on one host there would be nobody to compare with"
        );
    }
    Ok(Some(options))
}

/// Runs a benchmark; what it prints is shown while it runs, and returned.
fn watched(command: &mut Command) -> Result<String> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start warpmesh-perf")?;
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        let _ = writeln!(text, "{line}");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("warpmesh-perf failed ({status})");
    }
    Ok(text)
}

/// Says which machine it was, once.
fn machine(text: &mut String, output: &str) {
    let Some(device) = output.lines().find(|line| line.starts_with("#  Rank  0")) else { return };
    let cores =
        output.lines().find_map(|line| line.split(", ").find(|part| part.ends_with("cores here")));
    let name = device.split("] ").nth(1).unwrap_or("?");
    if !text.contains(name) {
        let _ = writeln!(text, "\nMachine: {name}, {}.", cores.unwrap_or("cores unknown"));
    }
}

/// What was run.
fn heading(text: &mut String, title: &str, command: &Command) {
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    let _ = writeln!(text, "\n## {title}\n\n`warpmesh-perf {}`\n", args.join(" "));
}

/// One measurement as Markdown: the machine, the command, a row per size.
fn section(text: &mut String, title: &str, command: &Command, output: &str) {
    machine(text, output);
    heading(text, title, command);
    let _ = writeln!(text, "| bytes | warpmesh | Open MPI | ratio | in place | Open MPI | ratio |");
    let _ = writeln!(text, "|--:|--:|--:|--:|--:|--:|--:|");
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rows: Vec<_> = output
        .lines()
        .filter(|line| line.starts_with(' '))
        .map(columns)
        .filter(|c| c.len() == 13)
        .collect();
    let ratios = output.lines().skip_while(|line| !line.contains("as a share of")).skip(2);
    let ratios: Vec<_> = ratios.map(columns).filter(|c| c.len() == 7).collect();
    let (ours, theirs) = rows.split_at(rows.len() / 2);
    for ((a, b), ratio) in ours.iter().zip(theirs).zip(&ratios) {
        let cells = [&a[0], &a[5], &b[5], &ratio[5], &a[9], &b[9], &ratio[6]];
        let cells: Vec<_> = cells.iter().map(|cell| cell.as_str()).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_what_is_missing_is_named() {
        let read = |line: &str| options(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let all = read("--quick --hosts --report docs/peers.md").unwrap().unwrap();
        assert!(all.quick && all.hosts && all.report.as_deref() == Some("docs/peers.md"));
        assert!(read("--help").unwrap().is_none());
        for (line, said) in [("--report", "what?"), ("--without-warpmesh", "--hosts"), ("-x", "-x")]
        {
            assert!(format!("{:#}", read(line).unwrap_err()).contains(said), "{line}");
        }
    }
}

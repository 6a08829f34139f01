//! The comparison with Open MPI: both in one run, the same buffers and sizes.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::system::{cargo, ensure_open_mpi, root, step};

const HELP: &str = "\
cargo xtask peers [--quick] [--report FILE] [--json FILE-PREFIX]

Installs Open MPI from the system's packages if it is missing, builds warpmesh-perf with the MPI
backend, and runs both backends in turn at each size, 8 B to 128 MiB, float, sum. The last column
is warpmesh's time divided by Open MPI's; below 1 warpmesh is faster. --quick makes few
iterations and leaves out 128 MiB. --report writes the ratios and the machine to a Markdown file.
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

pub fn run(args: &[String]) -> Result<()> {
    let Options { quick, report, json } = match options(args)? {
        Some(options) => options,
        None => {
            print!("{HELP}");
            return Ok(());
        }
    };
    ensure_open_mpi()?;
    let build = ["build", "--release", "-p", "warpmesh-benches", "--features", "mpi"];
    step("build with the MPI backend", cargo(&build).args(["--target-dir", "target/mpi"]))?;
    let mut text = String::from(HEAD);
    // The quick run leaves out what takes long.
    let runs = RUNS.iter().enumerate().filter(|(_, (_, line))| !quick || !line.contains("-b 128M"));
    for (number, (title, line)) in runs {
        let mut command = Command::new(root().join("target/mpi/release/warpmesh-perf"));
        command.args(line.split(' ')).args(["--backend", "warpmesh,mpi"]);
        if quick {
            command.args(["-n", "20", "-w", "5"]);
        } else {
            // Small messages need many iterations, and each size several turns of both backends.
            command.args(["-w", "20", "--min-time", "0.05", "--rounds", "5"]);
        }
        if let Some(prefix) = &json {
            command.arg("-J").arg(format!("{prefix}-{number}.json"));
        }
        println!("==> {title}");
        let output = watched(&mut command)?;
        section(&mut text, title, &command, &output);
    }
    if let Some(file) = report {
        std::fs::write(&file, text).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

#[derive(Default)]
struct Options {
    quick: bool,
    report: Option<String>,
    json: Option<String>,
}

/// None if help was asked for.
fn options(args: &[String]) -> Result<Option<Options>> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--report" => options.report = args.next().cloned(),
            "--json" => options.json = args.next().cloned(),
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown argument '{other}'\n\n{HELP}"),
        }
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

/// One measurement as Markdown: the machine, the command, a row per size.
fn section(text: &mut String, title: &str, command: &Command, output: &str) {
    if let Some(device) = output.lines().find(|line| line.starts_with("#  Rank  0")) {
        let cores =
            output.lines().find_map(|line| line.split(", ").find(|p| p.ends_with("cores here")));
        let name = device.split("] ").nth(1).unwrap_or("?");
        if !text.contains(name) {
            let _ = writeln!(text, "\nMachine: {name}, {}.", cores.unwrap_or("cores unknown"));
        }
    }
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    let _ = writeln!(text, "\n## {title}\n\n`warpmesh-perf {}`\n", args.join(" "));
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

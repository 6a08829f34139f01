//! The comparison with Open MPI: both in one run, the same buffers and sizes.

use std::process::Command;

use anyhow::{Result, bail};

use crate::system::{cargo, ensure_open_mpi, root, step};

const HELP: &str = "\
cargo xtask peers [--quick] [--json FILE-PREFIX]

Installs Open MPI from the system's packages if it is missing, builds warpmesh-perf with the MPI
backend, and runs both backends in turn at each size, 8 B to 128 MiB, float, sum. The last column
is warpmesh's time divided by Open MPI's; below 1 warpmesh is faster. --quick goes to 1 MiB with
few iterations.
";

/// What is measured: a title, and warpmesh-perf's arguments.
const RUNS: [(&str, &str); 6] = [
    ("all_reduce, 2 ranks, registered", "all_reduce -b 8 -e 128M -f 4 -g 2 -R 1"),
    ("all_reduce, 2 ranks, not registered", "all_reduce -b 8 -e 128M -f 4 -g 2 -R 0"),
    ("all_reduce, 8 ranks, registered", "all_reduce -b 8 -e 16M -f 4 -g 8 -R 1"),
    ("all_reduce, 8 ranks, not registered", "all_reduce -b 8 -e 16M -f 4 -g 8 -R 0"),
    ("all_gather, 8 ranks, registered", "all_gather -b 512 -e 16M -f 4 -g 8 -R 1"),
    ("reduce_scatter, 8 ranks, registered", "reduce_scatter -b 512 -e 16M -f 4 -g 8 -R 1"),
];

pub fn run(args: &[String]) -> Result<()> {
    let mut quick = false;
    let mut json = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => quick = true,
            "--json" => json = args.next().cloned(),
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            other => bail!("unknown argument '{other}'\n\n{HELP}"),
        }
    }
    ensure_open_mpi()?;
    let build = ["build", "--release", "-p", "warpmesh-benches", "--features", "mpi"];
    step("build with the MPI backend", cargo(&build).args(["--target-dir", "target/mpi"]))?;
    let perf = root().join("target/mpi/release/warpmesh-perf");
    for (number, (title, line)) in RUNS.iter().enumerate() {
        let mut command = Command::new(&perf);
        command.args(line.split(' ')).args(["--backend", "warpmesh,mpi"]);
        if quick {
            command.args(["-e", "1M", "-n", "20", "-w", "5"]);
        } else {
            // Small messages need many iterations, and each size several turns of both backends.
            command.args(["-w", "20", "--min-time", "0.05", "--rounds", "5"]);
        }
        if let Some(prefix) = &json {
            command.arg("-J").arg(format!("{prefix}-{number}.json"));
        }
        step(title, &mut command)?;
    }
    Ok(())
}

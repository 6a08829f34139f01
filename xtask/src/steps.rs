//! The layers of the tests, in the order in which they find mistakes most cheaply.

use anyhow::{Result, bail};

use crate::system::{cargo, ensure_iproute2, is_root, root, step};
use crate::{candle, cuda, gpu, kernels, nccl, peers, rdma_vm, tables};

/// Crates that the model checker builds.
const MODELLED: &str = "warpmesh-primitives";

pub fn test() -> Result<()> {
    lint()?;
    cuda::ensure()?;
    step("unit and doc tests", &mut cargo(&["test", "--workspace", "--lib", "--bins"]))?;
    step("doc tests", &mut cargo(&["test", "--workspace", "--doc"]))?;
    // Ranks that spin and move megabytes: in release, as users run them.
    let layers = ["test", "--release", "--workspace", "--test", "*", "--examples"];
    step("integration and mp tests", &mut cargo(&layers))?;
    hosts("warpmesh-primitives", "net_hosts", &[])?;
    hosts("warpmesh", "hosts", &[])?;
    tables::check()?;
    kernels::check()?;
    gpu::test()?;
    nccl::test()?;
    candle::test()?;
    rdma_vm::run(&[])?;
    loom()?;
    peers::build()?;
    let clippy = ["clippy", "--release", "-p", "warpmesh-benches", "--all-targets", "--quiet"];
    step(
        "clippy with these backends",
        cargo(&clippy).args(peers::FLAGS).args(["--", "-D", "warnings"]),
    )?;
    hosts("warpmesh-benches", "hosts", &peers::FLAGS)?;
    benchmark()?;
    println!("every layer passed");
    Ok(())
}

/// Tests with ranks in network namespaces. Only root may make these everywhere.
fn hosts(package: &str, name: &str, flags: &[&str]) -> Result<()> {
    ensure_iproute2()?;
    let mut hosts = cargo(&["test", "--release", "-p", package, "--test", name]);
    // One after the other: they look at what is left on the machine, and have it to themselves.
    hosts.args(flags).args(["--", "--ignored", "--test-threads", "1"]);
    if !is_root() {
        let target = std::env::consts::ARCH.to_uppercase();
        hosts.env(format!("CARGO_TARGET_{target}_UNKNOWN_LINUX_GNU_RUNNER"), "sudo -n");
    }
    step(&format!("hosts and networks ({package})"), &mut hosts)
}

pub fn lint() -> Result<()> {
    step("rustfmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    step("clippy", &mut cargo(&clippy))?;
    let doc = ["doc", "--workspace", "--no-deps", "--quiet"];
    step("documentation", cargo(&doc).env("RUSTDOCFLAGS", "-D warnings"))
}

/// All interleavings of the words that ranks share, up to three preemptions.
pub fn loom() -> Result<()> {
    let mut loom = cargo(&["test", "--release", "-p", MODELLED, "--lib", "loom_tests"]);
    loom.args(["--target-dir", "target/loom"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("LOOM_MAX_PREEMPTIONS", "3");
    step("loom", &mut loom)
}

/// How the bootstrap over TCP grows with the number of ranks.
pub fn bootstrap(args: &[String]) -> Result<()> {
    let example = ["run", "--release", "--quiet", "-p", "warpmesh-primitives", "--example"];
    step("bootstrap", cargo(&example).args(["bootstrap_scale", "--"]).args(args))
}

/// The README's main job, small, over processes and over threads, on the host and on virtual GPUs;
/// its table must parse.
fn benchmark() -> Result<()> {
    let perf = root().join("target/mpi/release/warpmesh-perf");
    for (name, args) in [
        ("warpmesh-perf, 4 processes", "all -b 8 -e 1M -f 64 -g 4 -n 3"),
        (
            "warpmesh-perf, 3 threads",
            "all_reduce -b 8 -e 256K -f 32 -g 3 -n 3 --ranks threads -d all -o all",
        ),
        (
            "warpmesh-perf beside MPI and Gloo",
            "all_reduce -b 8 -e 64K -f 16 -g 2 -n 3 --backend warpmesh,mpi,gloo",
        ),
        (
            "warpmesh-perf on 4 virtual GPUs, processes",
            "all_reduce -b 8 -e 64K -f 32 -g 4 -n 2 --device cuda -o all",
        ),
        (
            "warpmesh-perf on 4 virtual GPUs, 6 threads, graphs",
            "all_gather -b 8 -e 64K -f 32 -g 6 -n 2 --device cuda --ranks threads -R 0 -G 2",
        ),
        (
            "warpmesh-perf on 4 virtual GPUs of two hosts",
            "all_reduce -b 8 -e 64K -f 32 -n 2 --hosts 2,2 --device cuda -d half",
        ),
    ] {
        if args.contains("--hosts") && !is_root() {
            println!("==> {name}: not run, since only root may make network namespaces");
            continue;
        }
        println!("==> {name}");
        let mut command = std::process::Command::new(&perf);
        command.args(args.split(' '));
        if args.contains("--device cuda") {
            command = gpu::on_vgpu(4, &command);
        }
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{name}: {}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        let rows = rows(&text)?;
        if rows == 0 || !text.contains("# Out of bounds values : 0 OK") {
            bail!("{name}: no rows, or wrong values:\n{text}");
        }
        println!("    {name}: ok, {rows} rows");
    }
    Ok(())
}

/// Counts the table's rows as tools for nccl-tests read them: 13 columns, and the words that they
/// look for (SuperBench: the rows stand between the last line with `out-of-place` and the last with
/// `Out of bounds values`) where they look for them.
fn rows(text: &str) -> Result<usize> {
    let last = |words: &str| text.lines().enumerate().filter(|(_, l)| l.contains(words)).last();
    let (head, foot) = (last("out-of-place"), last("Out of bounds values"));
    if head.zip(foot).is_none_or(|((head, _), (foot, _))| head >= foot) {
        bail!("'out-of-place' stands behind the table:\n{text}");
    }
    let mut rows = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let numbers = columns.len() == 13
            && [0, 1, 5, 6, 7, 9, 10, 11]
                .iter()
                .all(|c| columns[*c].parse::<f64>().is_ok() || columns[*c] == "N/A");
        if !numbers {
            bail!("not a row of nccl-tests' table: {line:?}");
        }
        rows += 1;
    }
    Ok(rows)
}

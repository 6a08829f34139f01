//! `cargo xtask gpu`: proves and measures everything on a machine with GPUs, the most valuable first, and writes a report
//! after every step, so that a machine that goes away leaves what was found.

mod libraries;
mod report;
mod runs;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use self::libraries::Libraries;
use self::report::Report;
use self::runs::Run;
use crate::system::{cargo, has, root, step};
use crate::{cuda, standins, system};

const HELP: &str = "\
cargo xtask gpu [--quick] [--vgpu]

On a machine with GPUs: says what it found, runs the correctness tests of the CUDA device, measures
warpmesh against NCCL (all collectives; bfloat16, float, half; 8 B to 1 GiB; registered memory or
not; with and without CUDA graphs), and writes target/gpu-report.md. What fails is reported and the
rest goes on; the exit code says whether anything did. NVRTC and NCCL are fetched from PyPI where
the system has none.

  --quick  begins nothing after ten minutes, builds not counted; what is left out is listed
  --vgpu   the same on eight virtual GPUs, small, with a stand-in for NCCL: shows that the command
           works, and measures nothing
";

/// What a quick run may take, and a test or a measurement, which may hang.
const QUICK: Duration = Duration::from_secs(600);
const TESTS: Duration = Duration::from_secs(900);
const MEASUREMENT: Duration = Duration::from_secs(240);

#[derive(Clone, Copy, Default)]
struct Options {
    quick: bool,
    vgpu: bool,
}

pub fn run(args: &[String]) -> Result<()> {
    let mut options = Options::default();
    for arg in args {
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--vgpu" => options.vgpu = true,
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            other => bail!("unknown argument '{other}'\n\n{HELP}"),
        }
    }
    Bench::begin(options)?.everything()
}

/// The crates' tests that need a GPU: those whose names begin with `cuda` or `gpu`.
const TESTED: [(&str, &str); 2] =
    [("warpmesh", "collectives/tests"), ("warpmesh-primitives", "primitives/tests")];

struct Bench {
    options: Options,
    libraries: Libraries,
    report: Report,
    began: Instant,
    gpus: usize,
    /// Whether NCCL is measured too; false after it was seen to fail.
    nccl: bool,
}

impl Bench {
    /// Builds, looks for GPUs, and fetches libraries that are missing.
    fn begin(options: Options) -> Result<Self> {
        let build = ["build", "--release", "-p", "warpmesh-benches"];
        step("build warpmesh-perf", &mut cargo(&build))?;
        if options.vgpu {
            step("build vgpu", &mut cargo(&["build", "--release", "-p", "vgpu"]))?;
        }
        let mut libraries = Libraries::new(options.vgpu);
        // First: a machine without GPUs is told before the rest is built and fetched for it.
        let at_first = found(&libraries)?;
        cuda::ensure()?;
        if options.vgpu {
            libraries.add(standins::nccl(None)?);
        } else {
            libraries.fetch(&at_first);
        }
        // Again, with NVRTC and NCCL in reach.
        let found = found(&libraries)?;
        print!("{found}");
        let gpus = value(&found, "GPUs: ").and_then(|text| text.parse().ok());
        let gpus = gpus.with_context(|| format!("no number of GPUs in\n{found}"))?;
        let nccl = value(&found, "NCCL: ").is_some_and(|version| version != "not found");
        let report = Report::begin(&found, gpus, options.vgpu)?;
        for (package, test) in tests()? {
            let build = ["test", "--release", "-p", package, "--test", &test, "--no-run"];
            step(&format!("build test {test} of {package}"), &mut cargo(&build))?;
        }
        Ok(Self { options, libraries, report, began: Instant::now(), gpus, nccl })
    }

    /// All steps. An error if one failed.
    fn everything(mut self) -> Result<()> {
        let runs = runs::all(self.gpus, self.options.vgpu);
        let headline = runs.len().min(3);
        self.smoke()?;
        for run in &runs[..headline] {
            self.measure(run)?;
        }
        self.tests()?;
        for run in &runs[headline..] {
            self.measure(run)?;
        }
        self.report.end()
    }

    /// Every collective once, checked, in less than a minute.
    fn smoke(&mut self) -> Result<()> {
        let most = if self.options.vgpu { "16K" } else { "4M" };
        let args = format!("all -b 8 -e {most} -f 32 -n 2 -c 1 -T 60");
        let run = Run::new("every collective, checked", &args, self.gpus);
        let output = self.perf(&run, "warpmesh")?;
        self.report.step(&run.title, &output);
        self.report.write()
    }

    fn tests(&mut self) -> Result<()> {
        for (package, test) in tests()? {
            let title = format!("test {test} of {package}");
            if self.is_late(&title)? {
                continue;
            }
            let args = ["test", "--release", "-p", package, "--test", &test];
            let mut command = self.libraries.around(&cargo(&args));
            command.env("WARPMESH_NEEDS_GPU", "1").current_dir(root());
            let output = system::within(TESTS, &title, &mut command)?;
            self.report.step(&title, &output);
            self.report.write()?;
        }
        Ok(())
    }

    /// Both libraries; this one alone if that fails, since it may be the other one's fault.
    fn measure(&mut self, run: &Run) -> Result<()> {
        if self.is_late(&run.title)? {
            return Ok(());
        }
        if self.nccl {
            let output = self.perf(run, "warpmesh,nccl")?;
            if output.good {
                self.report.measured(run, &output);
                return self.report.write();
            }
            self.report.step(&format!("{}, beside NCCL", run.title), &output);
        }
        let output = self.perf(run, "warpmesh")?;
        // Then NCCL is what does not work here, and would fail in every run.
        self.nccl &= !output.good;
        self.report.measured(run, &output);
        self.report.write()
    }

    fn perf(&self, run: &Run, backends: &str) -> Result<system::Output> {
        let mut perf = Command::new(root().join("target/release/warpmesh-perf"));
        perf.args(run.args.split(' ')).args(["--backend", backends]);
        let mut command = self.libraries.around(&perf);
        if run.shares_gpus {
            // What NCCL needs for several ranks on one GPU.
            command.env("NCCL_MULTI_RANK_GPU_ENABLE", "1").env("NCCL_MAX_CTAS", "8");
        }
        system::within(MEASUREMENT, &format!("{} ({backends})", run.title), &mut command)
    }

    fn is_late(&mut self, what: &str) -> Result<bool> {
        let late = self.options.quick && self.began.elapsed() > QUICK;
        if late {
            self.report.left_out(what);
            self.report.write()?;
        }
        Ok(late)
    }
}

/// What warpmesh-perf finds.
fn found(libraries: &Libraries) -> Result<String> {
    let mut perf = Command::new(root().join("target/release/warpmesh-perf"));
    perf.arg("--show-gpus");
    let output = libraries.around(&perf).output().context("cannot start warpmesh-perf")?;
    let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
    if !output.status.success() {
        bail!("{}\n`cargo xtask gpu --vgpu` shows what would be done", err.trim_end());
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// What stands behind a name at the beginning of a line.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// Package and name of the tests that need a GPU.
fn tests() -> Result<Vec<(&'static str, String)>> {
    let mut tests = vec![];
    for (package, folder) in TESTED {
        let mut names = vec![];
        for entry in std::fs::read_dir(root().join(folder))? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let name = file.strip_suffix(".rs").unwrap_or_default();
            if name.starts_with("cuda") || name.starts_with("gpu") {
                names.push(name.to_owned());
            }
        }
        names.sort();
        tests.extend(names.into_iter().map(|name| (package, name)));
    }
    Ok(tests)
}

/// Everything on virtual GPUs; then the tests that are made for it with weak memory and race detection.
pub fn test() -> Result<()> {
    run(&["--vgpu".to_owned()])?;
    for seed in 1..=WEAK_SEEDS {
        let mode = format!("--weak --races --seed {seed}");
        for (package, tests) in [("warpmesh", "cuda*"), ("warpmesh-primitives", "gpu*")] {
            let mut test = cargo(&["test", "--release", "-p", package, "--test", tests]);
            // One at a time: a test that makes a communicator waits for all kernels of its GPUs, and those of others run for long.
            test.args(["weak_memory", "--", "--test-threads", "1"]);
            let mut command = Libraries::on_vgpu(8, &mode).around(&test);
            command.env("WARPMESH_NEEDS_GPU", "1").current_dir(root());
            step(&format!("tests of {package} on virtual GPUs {mode}"), &mut command)?;
        }
    }
    Ok(())
}

/// Runs in weak memory whose order of things differs.
const WEAK_SEEDS: u64 = 8;

/// For what runs there: virtual GPUs, and NVRTC.
pub fn on_vgpu(devices: usize, command: &Command) -> Command {
    Libraries::on_vgpu(devices, "").around(command)
}

/// The `git describe` of the sources, and the compiler.
fn versions() -> String {
    let first = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(root()).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
    };
    let driver = if has("nvidia-smi") {
        let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
        format!(", NVIDIA driver {}", first("nvidia-smi", &query))
    } else {
        String::new()
    };
    let commit = first("git", &["describe", "--always", "--dirty"]);
    format!("warpmesh {commit}, {}{driver}", first("rustc", &["--version"]))
}

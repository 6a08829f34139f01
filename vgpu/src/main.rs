//! The command line: `vgpu check FILE…` and `vgpu litmus FILE…`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use vgpu::MachineConfig;
use vgpu::litmus::{self, Question};
use vgpu::remote::Server;
use vgpu::track::model::Config;

/// A virtual GPU: checks PTX, runs litmus tests of the memory model.
#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load PTX files and decode every kernel; says how long that took.
    Check {
        /// PTX files.
        files: Vec<PathBuf>,
    },
    /// Run a CUDA program (driver API, cudarc, or `nvcc -cudart shared`) on virtual devices.
    Run {
        /// Number of devices.
        #[arg(long, default_value_t = 1)]
        devices: u32,
        /// Architecture: 80, 90 or 100; several, with commas between, for unlike devices.
        #[arg(long, default_value = "90")]
        arch: String,
        /// Multiprocessors per device.
        #[arg(long, default_value_t = 132)]
        sms: u32,
        /// Weak memory instead of SC.
        #[arg(long)]
        weak: bool,
        /// Report races.
        #[arg(long)]
        races: bool,
        /// Kernels do not run: a launch returns at once, to measure what a program costs the host.
        #[arg(long, conflicts_with_all = ["weak", "races"])]
        idle: bool,
        /// Seed of weak memory and of the order in which warps run.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Seconds without progress after which a kernel is given up.
        #[arg(long, default_value_t = 10)]
        watchdog: u64,
        /// File that gets a line of JSON per launch.
        #[arg(long)]
        counters: Option<PathBuf>,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Run litmus tests of the PTX memory model over seeds and say which states were seen.
    Litmus {
        /// Tests in the usual notation.
        files: Vec<PathBuf>,
        /// Runs per test.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// A table `file,holds` of the formal model's verdicts, to compare with.
        #[arg(long)]
        expected: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Check { files } => check(&files),
        command @ Command::Run { .. } => run(&command).unwrap_or_else(|e| {
            eprintln!("vgpu run: {e}");
            ExitCode::FAILURE
        }),
        Command::Litmus { files, seeds, expected } => {
            match litmus(&files, seeds, expected.as_deref()) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(e) => {
                    eprintln!("{e}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn check(files: &[PathBuf]) -> ExitCode {
    let mut failed = false;
    for file in files {
        if let Err(e) = check_one(file) {
            failed = true;
            eprintln!("{}: {e}", file.display());
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn check_one(file: &PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(file)?;
    let start = Instant::now();
    let module = vgpu::LoadedModule::parse(&text, false)?;
    let loaded = start.elapsed();
    let space = std::sync::Arc::new(vgpu::mem::space::AddressSpace::new()?);
    let (mut kernels, mut instructions) = (0, 0);
    for f in module.module().functions.values().filter(|f| f.is_kernel) {
        instructions += module.kernel(&space, 0, &f.name)?.code.len();
        kernels += 1;
    }
    let decoded = start.elapsed() - loaded;
    let mb = text.len() as f64 / 1e6;
    println!(
        "{}: {mb:.2} MB loaded in {loaded:.1?}; {kernels} kernels, {instructions} instructions decoded in {decoded:.1?}",
        file.display()
    );
    Ok(())
}

/// Runs the tests; false if a state was seen that the model forbids, or a file could not be read.
fn litmus(
    files: &[PathBuf],
    seeds: u64,
    expected: Option<&Path>,
) -> Result<bool, Box<dyn std::error::Error>> {
    let mut verdicts = HashMap::new();
    if let Some(path) = expected {
        for line in std::fs::read_to_string(path)?.lines().skip(1) {
            if let Some((file, holds)) = line.rsplit_once(',') {
                verdicts.insert(file.to_string(), holds.trim() == "1");
            }
        }
    }
    let (mut fine, mut allowed, mut found) = (true, 0, 0);
    println!("{:<48} {:>9} {:>9} {:>9}  verdict", "test", "seen", "runs", "hung");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let test = match litmus::parse(&std::fs::read_to_string(file)?) {
            Ok(t) => t,
            Err(e) => {
                println!("{name:<48} {e}");
                fine = false;
                continue;
            }
        };
        let o = litmus::run(&test, seeds);
        let says = match verdicts.get(&name) {
            None if o.holds(test.question) => "holds in all runs or was seen",
            None => "does not hold",
            Some(holds) => {
                let can_be = *holds == (test.question == Question::Exists);
                allowed += u32::from(can_be);
                found += u32::from(can_be && o.seen > 0);
                fine &= can_be || o.seen == 0;
                match (can_be, o.seen > 0) {
                    (true, true) => "allowed, seen",
                    (true, false) => "allowed, NOT SEEN",
                    (false, false) => "forbidden, never seen",
                    (false, true) => "FORBIDDEN BUT SEEN",
                }
            }
        };
        let proxies = if test.proxies { "; proxies are NOT told apart" } else { "" };
        let seed = o.first_seed.map_or(String::new(), |s| format!(" (seed {s})"));
        println!(
            "{name:<48} {:>9} {:>9} {:>9}  {says}{seed}{proxies}",
            o.seen, o.runs, o.unfinished
        );
    }
    if !verdicts.is_empty() {
        println!("allowed states seen: {found} of {allowed}");
    }
    Ok(fine)
}

/// Runs a program with the library of this crate in place of the CUDA driver.
fn run(command: &Command) -> std::io::Result<ExitCode> {
    let Command::Run { devices, arch, sms, weak, races, idle, seed, watchdog, counters, program } =
        command
    else {
        return Ok(ExitCode::FAILURE);
    };
    let folder = libraries()?;
    let mut path = folder.0.clone().into_os_string();
    if let Some(old) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(old);
    }
    let mut child = std::process::Command::new(&program[0]);
    child.args(&program[1..]).env("LD_LIBRARY_PATH", path);
    child
        .env("VGPU_DEVICES", devices.to_string())
        .env("VGPU_ARCH", arch)
        .env("VGPU_SMS", sms.to_string());
    let mode = match (weak, idle) {
        (true, _) => "weak",
        (_, true) => "idle",
        _ => "sc",
    };
    child.env("VGPU_MODE", mode).env("VGPU_RACES", u32::from(*races).to_string());
    child.env("VGPU_SEED", seed.to_string()).env("VGPU_WATCHDOG", watchdog.to_string());
    // Weak memory and races are seen across processes: this one runs the kernels of all of them.
    let socket = folder.0.join("engine");
    let track = Config { weak: *weak, race: *races, seed: *seed };
    let config = MachineConfig {
        devices: *devices,
        sms: *sms,
        track: Some(track),
        watchdog: Duration::from_secs(*watchdog),
        ..MachineConfig::default()
    };
    let engine = if *weak || *races { Some(Server::start(&socket, config)?) } else { None };
    if engine.is_some() {
        child.env(vgpu::remote::VARIABLE, &socket);
    }
    if let Some(file) = counters {
        child.env("VGPU_COUNTERS", std::path::absolute(file)?);
    }
    let status = child.status().map_err(|e| {
        std::io::Error::new(e.kind(), format!("{} cannot be started: {e}", program[0]))
    })?;
    drop(engine);
    Ok(status.code().map_or(ExitCode::FAILURE, |c| ExitCode::from(c as u8)))
}

/// A folder that holds this crate's libraries under the names by which programs ask for CUDA's.
fn libraries() -> std::io::Result<Folder> {
    let library = std::env::current_exe()?.with_file_name("libvgpu.so");
    if !library.exists() {
        let what =
            format!("{} is not there: build it with `cargo build -p vgpu`", library.display());
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, what));
    }
    let runtime = library.with_file_name("libvgpu_cudart.so");
    let folder = Folder::new()?;
    // cudarc asks for libcuda.so first, so both names are given: a real driver on this machine cannot win.
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.0.join(name))?;
    }
    if runtime.exists() {
        std::os::unix::fs::symlink(&runtime, folder.0.join("libcudart.so.13"))?;
    } else {
        eprintln!(
            "vgpu run: no {}; a program of `nvcc -cudart shared` needs `cargo build -p vgpu-cudart`",
            runtime.display()
        );
    }
    Ok(folder)
}

/// A folder that is there for as long as the program runs.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Folder> {
        let path = std::env::temp_dir().join(format!("vgpu-run-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

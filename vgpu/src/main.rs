//! The command line: `vgpu check FILE…` and `vgpu litmus FILE…`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use vgpu::litmus::{self, Question};

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
        Command::Litmus {
            files,
            seeds,
            expected,
        } => match litmus(&files, seeds, expected.as_deref()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::FAILURE
            }
        },
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
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn check_one(file: &PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(file)?;
    let start = Instant::now();
    let module = vgpu::LoadedModule::parse(&text, false)?;
    let loaded = start.elapsed();
    let space = vgpu::mem::space::AddressSpace::new()?;
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
    println!(
        "{:<48} {:>9} {:>9} {:>9}  verdict",
        "test", "seen", "runs", "hung"
    );
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
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
        let seed = o
            .first_seed
            .map_or(String::new(), |s| format!(" (seed {s})"));
        println!(
            "{name:<48} {:>9} {:>9} {:>9}  {says}{seed}",
            o.seen, o.runs, o.unfinished
        );
    }
    if !verdicts.is_empty() {
        println!("allowed states seen: {found} of {allowed}");
    }
    Ok(fine)
}

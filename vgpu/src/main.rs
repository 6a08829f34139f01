//! The command line: `vgpu check FILE…` and `vgpu litmus FILE…`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

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
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Check { files } => check(&files),
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
    let space = vgpu::mem::space::AddressSpace::new()?;
    let (mut kernels, mut instructions) = (0, 0);
    for f in module.module().functions.values().filter(|f| f.is_kernel) {
        instructions += module.kernel(&space, 0, &f.name)?.code.len();
        kernels += 1;
    }
    let decoded = start.elapsed() - loaded;
    let mb = text.len() as f64 / 1e6;
    println!("{}: {mb:.2} MB loaded in {loaded:.1?}; {kernels} kernels, {instructions} instructions decoded in {decoded:.1?}", file.display());
    Ok(())
}

//! The benchmark program.

mod bench;
mod cli;
mod control;
mod cores;
pub(crate) mod exit;
mod format;
mod gpus;
mod hosts;
mod launch;
mod machine;
mod rank;
mod report;
mod show;
mod stats;
mod sweep;
mod timing;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use warpmesh::bootstrap::Launch;

use self::cli::{Cli, Ranks};
pub use self::control::Control;
use self::exit::{Exit, Failed};
use crate::backend::Kind;

/// The program: reads the command line, starts ranks or is one, and returns nccl-tests' exit code.
pub fn main() -> ExitCode {
    if hosts::is_agent() {
        return ended(hosts::agent());
    }
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(text) => {
            // It prints help to standard output and errors to standard error.
            let _ = text.print();
            let exit = if text.use_stderr() { Exit::Usage } else { Exit::Success };
            return exit.into();
        }
    };
    let started = hosts::is_inside() || !matches!(Launch::from_env(), Ok(None));
    // Before anything that may start a thread.
    if cli.hosts.is_some() && !started {
        return ended(hosts::outside());
    }
    ended(cli.settle().and_then(|()| run(&cli)))
}

fn ended(result: Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(&error);
            Failed::exit_of(&error).into()
        }
    }
}

/// Says what went wrong.
fn complain(error: &anyhow::Error) {
    let rank = std::env::var("WARPMESH_RANK").unwrap_or_default();
    let who = if rank == "0" { "warpmesh-perf: rank 0" } else { "warpmesh-perf" };
    eprintln!("{who}: {error:#}");
}

/// Finds out what this process is: the one that starts ranks, or one of them.
fn run(cli: &Cli) -> Result<Exit> {
    if cli.show_gpus {
        return gpus::show();
    }
    if cli.show_cuda {
        return show::cuda(cli);
    }
    let started_here = launch::adopt()?;
    cores::count();
    if cli.backend.contains(&Kind::Mpi) {
        return with_mpi(cli);
    }
    if let Some(launch) = Launch::from_env()? {
        return rank::launched(cli, &launch, started_here);
    }
    if let Some(hosts) = &cli.hosts {
        return hosts::inside(hosts, cli.wait_limit(), None);
    }
    match cli.ranks {
        Ranks::Processes if cli.world() > 1 => launch::processes(cli),
        _ => rank::threads(cli),
    }
}

#[cfg(feature = "mpi")]
fn with_mpi(cli: &Cli) -> Result<Exit> {
    let launched = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];
    if launched.iter().any(|name| std::env::var_os(name).is_some()) {
        return rank::mpi(cli);
    }
    if let Some(hosts) = &cli.hosts {
        let mpirun = launch::mpirun_command(cli)?;
        return hosts::inside(hosts, cli.wait_limit(), Some(mpirun));
    }
    Err(launch::mpirun(cli))
}

#[cfg(not(feature = "mpi"))]
fn with_mpi(_: &Cli) -> Result<Exit> {
    let message = "--backend mpi: this warpmesh-perf was built without it. Build one with\n  \
                   cargo build --release -p warpmesh-benches --features mpi\n\
                   which needs an MPI, a C compiler and libclang with clang's headers; on Debian:\n  \
                   apt-get install --no-install-recommends libopenmpi-dev openmpi-bin libclang1-14 \
                   libclang-common-14-dev";
    Err(Failed::because(Exit::NotImplemented, message))
}

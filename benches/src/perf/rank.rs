//! One rank: joins the others and measures.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warpmesh::bootstrap::{Bootstrap, Launch, LocalBootstrap};

use super::cli::{Bind, Cli, Roots, Where};
use super::control::Control;
use super::cores::{self, Cores};
use super::exit::{Exit, Failed};
use super::sweep;
use crate::backend::cuda::{Device as Gpu, WarpmeshCuda};
use crate::backend::nccl::NcclBackend;
use crate::backend::warpmesh::{Settings, Warpmesh};
use crate::backend::{Backend, Kind};

/// This process is one rank of a job that someone has started.
pub fn launched(cli: &Cli, launch: &Launch, started_here: bool) -> Result<Exit> {
    check_world(cli, launch.world, &launch.launcher.to_string(), started_here)?;
    // Ranks that this program has started are all on this machine, whatever host they believe to be on.
    let local_rank = if started_here { None } else { launch.local_rank };
    let place = local_rank.unwrap_or(launch.rank);
    let bootstrap = launch.connect(cli.wait_limit()).context("meeting the other ranks")?;
    measure(cli, Control::new(bootstrap), (place, started_here), None)
}

/// All ranks are threads of this process. Ends with the error of the rank that failed first.
pub fn threads(cli: &Cli) -> Result<Exit> {
    let world = cli.world();
    let ranks = LocalBootstrap::create(world, cli.wait_limit())?;
    let (sender, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        for (rank, bootstrap) in ranks.into_iter().enumerate() {
            let sender = sender.clone();
            scope.spawn(move || {
                let ended = measure(cli, Control::new(bootstrap), (rank, true), None)
                    .with_context(|| format!("rank {rank}"));
                // Whoever waits for it is gone only if the process ends.
                let _ = sender.send((rank, ended));
            });
        }
        drop(sender);
        first_failure(&ended, cli.wait_limit())
    })
}

/// What rank 0 ended with, or the first error.
///
/// A library may wait for a failed rank for ever, in a call that nothing ends: NCCL does when it
/// makes a communicator. So the process ends if the others go on for longer than a wait may take.
fn first_failure(ended: &Receiver<Ended>, limit: Duration) -> Result<Exit> {
    let mut exit = Exit::Internal;
    // A rank that panics sends nothing, and then the scope panics.
    while let Ok((rank, ended_with)) = ended.recv() {
        match ended_with {
            Ok(rank_0) if rank == 0 => exit = rank_0,
            Ok(_) => {}
            Err(error) if all_end_within(limit, ended) => return Err(error),
            Err(error) => {
                super::complain(&error);
                std::process::exit(Failed::exit_of(&error) as i32);
            }
        }
    }
    Ok(exit)
}

/// A rank and what it ended with.
type Ended = (usize, Result<Exit>);

fn all_end_within(limit: Duration, ended: &Receiver<Ended>) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// This process is one rank of an MPI job.
#[cfg(feature = "mpi")]
pub fn mpi(cli: &Cli) -> Result<Exit> {
    use crate::backend::mpi;
    // Dropped last: MPI_Finalize waits for all ranks, so a failed one must not get there.
    let universe = mpi::initialize()?;
    let exit = mpi_rank(cli, &universe);
    if let Err(error) = &exit {
        super::complain(error);
        mpi::abort(Failed::exit_of(error) as i32);
    }
    exit
}

#[cfg(feature = "mpi")]
fn mpi_rank(cli: &Cli, universe: &::mpi::environment::Universe) -> Result<Exit> {
    use crate::backend::mpi::{Mpi, MpiBootstrap};
    let started_here = super::launch::asked_world();
    let mpi = Mpi::new(universe, started_here)?;
    let (rank, world) = (MpiBootstrap.rank(), MpiBootstrap.world());
    check_world(cli, world, "mpirun", started_here.is_some())?;
    let place = (rank, started_here.is_some());
    measure(cli, Control::new(MpiBootstrap), place, Some(Box::new(mpi)))
}

/// Ranks that someone else starts are counted by whoever does.
fn check_world(cli: &Cli, world: usize, launcher: &str, started_here: bool) -> Result<()> {
    let asked = cli.world();
    ensure!(
        cli.hosts.is_none() || started_here,
        Failed::usage(format!(
            "--hosts makes hosts and starts the ranks on them; {launcher} has started this one \
             already: leave --hosts out"
        ))
    );
    ensure!(
        asked == world || asked == 1,
        Failed::usage(format!(
            "{launcher} started {world} ranks, but -t times -g is {asked}: leave these flags out"
        ))
    );
    if let Roots::One(root) = cli.root {
        ensure!(root < world, Failed::usage(format!("-r {root}: there are {world} ranks")));
    }
    Ok(())
}

/// Keeps this rank on a core, if that was decided; makes the backends in the order of the command
/// line; measures. `place` is this rank's number on its host, and whether this program chose it.
fn measure(
    cli: &Cli,
    control: Control,
    place: (usize, bool),
    mut mpi: Option<Box<dyn Backend>>,
) -> Result<Exit> {
    let cores = settle(cli, &control, place)?;
    let gpu = (cli.device == Where::Cuda).then(|| Gpu::of_rank(place.0)).transpose()?;
    let settings = Settings {
        timeout: cli.wait_limit(),
        canonical: cli.canonical,
        algorithm: cli.algorithm.clone(),
    };
    let mut backends: Vec<Box<dyn Backend>> = vec![];
    for kind in &cli.backend {
        backends.push(match (kind, &gpu) {
            (Kind::Warpmesh, None) => boxed(Warpmesh::connect(control.clone(), &settings))?,
            (Kind::Warpmesh, Some(gpu)) => boxed(WarpmeshCuda::connect(&control, gpu, &settings))?,
            (Kind::Nccl, gpu) => {
                let gpu = gpu.as_ref().context("NCCL needs a GPU")?;
                boxed(NcclBackend::connect(&control, gpu, settings.timeout))?
            }
            (Kind::Gloo, _) => gloo(&control, place.1, settings.timeout)?,
            (Kind::Mpi, _) => mpi.take().context("MPI is not initialised")?,
        });
    }
    sweep::run(cli, &control, backends, gpu.as_ref(), cores)
}

#[cfg(feature = "gloo")]
fn gloo(control: &Control, local: bool, timeout: Duration) -> Result<Box<dyn Backend>> {
    boxed(crate::backend::gloo::Gloo::connect(control, local, timeout))
}

#[cfg(not(feature = "gloo"))]
fn gloo(_: &Control, _: bool, _: Duration) -> Result<Box<dyn Backend>> {
    let message = "--backend gloo: this warpmesh-perf was built without it. Build one with\n  \
                   cargo build --release -p warpmesh-benches --features gloo\n\
                   which needs Gloo and a C++ compiler; on Debian:\n  \
                   apt-get install --no-install-recommends libgloo-dev g++";
    Err(Failed::because(Exit::NotImplemented, message))
}

/// A backend, or what is wrong with its library.
fn boxed<B: Backend + 'static>(backend: Result<B>) -> Result<Box<dyn Backend>> {
    let told = |error: anyhow::Error| {
        let exit = Failed::code_in(&error).unwrap_or(Exit::Library);
        Failed::because(exit, format!("{error:#}"))
    };
    backend.map(|backend| Box::new(backend) as Box<dyn Backend>).map_err(told)
}

/// Sees what cores all ranks have, and takes one if that was decided.
fn settle(cli: &Cli, control: &Control, place: (usize, bool)) -> Result<Cores> {
    let (index, started_here) = place;
    let usable = cores::usable();
    // Threads of drivers and of NCCL would inherit a rank's core.
    let asked = cli.bind.or((cli.device == Where::Cuda).then_some(Bind::None));
    let wanted = cores::decide(asked, control.world(), started_here) == Bind::Core;
    let bound = wanted && cores::bind(index).is_some();
    cores::of_all(control, &usable, bound)
}

//! The command line: nccl-tests' flags, and our own.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::builder::ArgPredicate;
use clap::{Parser, ValueEnum};
use warpmesh::DataType;

use super::exit::{Exit, Failed};
use super::hosts::Hosts;
use crate::backend::Kind;
use crate::backend::cuda::devices;
use crate::layout::{Op, Test};

/// What is said where there is no GPU.
pub const NO_GPU: &str = "there is no CUDA driver (libcuda.so.1) on this machine, or no GPU; without one, \
                      `vgpu run` runs it on virtual GPUs (docs/vgpu.md), and --device host measures the host";

const EXAMPLES: &str = "\
Examples:
  Four processes, 8 B to 64 MiB:
    warpmesh-perf all_reduce -b 8 -e 64M -f 4 -g 4
  True latency of small messages, each operation on its own, p50 in the time column:
    warpmesh-perf all_reduce -b 8 -e 4K -f 2 -g 2 --latency
  Beside an MPI, same buffers, sizes in turn, with the ratio of the times:
    warpmesh-perf all_reduce -b 8 -e 128M -f 4 -g 2 --backend warpmesh,mpi
  Every collective, type and operation, checked bit by bit, written as JSON as well:
    warpmesh-perf all -b 1K -e 1M -f 32 -g 3 -d all -o all -J out.json
  On GPUs, beside NCCL, from a CUDA graph that is launched 5 times:
    warpmesh-perf all_reduce -b 8 -e 1G -f 4 -g 8 --device cuda --backend warpmesh,nccl -G 5
  The CUDA source of the kernel that a GPU would run for it (needs no GPU):
    warpmesh-perf all_reduce -b 1M -e 1M -d bfloat16 -g 8 --show-cuda
  Two hosts of two ranks each, on this machine, each host a network namespace:
    warpmesh-perf all_reduce -b 64K -e 64M -f 4 --hosts 2,2
  As one rank of a job that someone else starts (WARPMESH_ADDR=<host of rank 0>:<port> if need be):
    mpirun -n 4 warpmesh-perf all_reduce

Exit codes: 0 success, 1 internal, 3 the library failed, 4 timeout, 5 not implemented,
6 invalid usage, 7 wrong values (or bandwidth below 0.9 of NCCL_TESTS_MIN_BW).";

/// Measures collective communication as nccl-tests does, between processes or threads of this host,
/// on its cores or on its GPUs.
#[derive(Clone, Debug, Parser)]
#[command(name = "warpmesh-perf", version, after_help = EXAMPLES, rename_all = "snake_case", disable_version_flag = true, args_override_self = true)]
pub struct Cli {
    /// all_reduce, all_gather, reduce_scatter, broadcast, reduce, all_to_all, gather, scatter,
    /// sendrecv, or all
    #[arg(value_parser = tests, required = false, required_unless_present = "show_gpus",
          default_value_if("show_gpus", ArgPredicate::IsPresent, "all"))]
    pub test: Tests,

    /// Threads per process in nccl-tests; ranks are threads times ngpus
    #[arg(short = 't', long, default_value_t = 1, value_parser = positive, help_heading = RANKS)]
    pub nthreads: usize,
    /// GPUs per thread in nccl-tests; ranks are threads times ngpus. With more ranks than GPUs several
    /// share one: that works, but its times say little
    #[arg(short = 'g', long, default_value_t = 1, value_parser = positive, help_heading = RANKS)]
    pub ngpus: usize,
    /// What a rank is
    #[arg(long, value_enum, default_value_t = Ranks::Processes, help_heading = RANKS)]
    pub ranks: Ranks,
    /// Ranks on several hosts, so many on each, in order: 2,2 is ranks 0 and 1 on one host, 2 and 3 on
    /// another. Each host is a network namespace of this machine, with a virtual Ethernet between them;
    /// needs root or user namespaces, and ip (iproute2). On real hosts mpirun, torchrun or srun starts
    /// the ranks
    #[arg(long, value_name = "RANKS,RANKS", value_parser = Hosts::parse,
          conflicts_with_all = ["nthreads", "ngpus"], help_heading = RANKS)]
    pub hosts: Option<Hosts>,
    /// Where the buffers are: auto is cuda where there is a driver with a GPU, else host. Rank r of a
    /// host works on GPU r modulo their number
    #[arg(long, value_enum, default_value_t = Where::Auto, help_heading = RANKS)]
    pub device: Where,
    /// Whether the command line says where; set by [`Cli::settle`].
    #[arg(skip)]
    pub device_was_chosen: bool,
    /// Keep each rank on a core of its own; default: core where there are enough cores, the ranks
    /// are started by this program, and the buffers are on the host
    #[arg(long, value_enum, help_heading = RANKS)]
    pub bind: Option<Bind>,

    /// Smallest size; K, M, G are KiB, MiB, GiB
    #[arg(short = 'b', long, default_value = "32M", value_parser = bytes, help_heading = SIZES)]
    pub minbytes: usize,
    /// Largest size
    #[arg(short = 'e', long, default_value = "32M", value_parser = bytes, help_heading = SIZES)]
    pub maxbytes: usize,
    /// Next size is so many bytes more
    #[arg(short = 'i', long, default_value = "1M", value_parser = bytes, help_heading = SIZES)]
    pub stepbytes: usize,
    /// Next size is so many times this one (from 2 on; overrides -i)
    #[arg(short = 'f', long, default_value_t = 0, help_heading = SIZES)]
    pub stepfactor: usize,

    /// Timed iterations; default 20, with --latency 200
    #[arg(short = 'n', long, value_parser = positive, help_heading = TIMING)]
    pub iters: Option<usize>,
    /// More iterations, until a timed loop takes about so many seconds
    #[arg(long = "min-time", default_value_t = 0.0, value_name = "SECONDS", help_heading = TIMING)]
    pub min_time: f64,
    /// Operations per iteration
    #[arg(short = 'm', long, default_value_t = 1,
          value_parser = positive, help_heading = TIMING)]
    pub agg_iters: usize,
    /// Iterations before, not timed
    #[arg(short = 'w', long, default_value_t = 1,
          help_heading = TIMING)]
    pub warmup_iters: usize,
    /// Runs of the whole sweep; 0 for ever
    #[arg(short = 'N', long, default_value_t = 1,
          help_heading = TIMING)]
    pub run_cycles: usize,
    /// Loops per size, of which the median is reported; several backends take turns. Default 1,
    /// with several backends 3
    #[arg(long, value_parser = positive, help_heading = TIMING)]
    pub rounds: Option<usize>,
    /// Record the iterations as a CUDA graph and launch it so many times; 0 calls them one by one
    #[arg(short = 'G', long, default_value_t = 0, help_heading = TIMING)]
    pub cudagraph: usize,
    /// 0 operations back to back, 1 a barrier after each, 2 wait for each (the same as 0 on a host
    /// device), 3 a barrier that is not timed after each iteration
    #[arg(short = 'z', long, default_value_t = 0, value_parser = upto::<3>, help_heading = TIMING)]
    pub blocking: u8,
    /// The time of: 0 rank 0, 1 the average of all ranks, 2 the least, 3 the greatest
    #[arg(short = 'a', long, default_value_t = 1, value_parser = upto::<3>, help_heading = TIMING)]
    pub average: u8,
    /// Time every iteration by itself as well: columns i_min, i_max, i_p99 and i_cv%
    #[arg(short = 'I', long, default_value_t = 0,
          value_parser = upto::<1>, help_heading = TIMING)]
    pub per_iter_timing: u8,
    /// Leave so many first iterations out of those columns
    #[arg(short = 'K', long, default_value_t = 0,
          help_heading = TIMING)]
    pub per_iter_skip: usize,
    /// A true latency: all ranks start an operation together, each is timed by itself and counts
    /// with the slowest rank. The time column is the median; the columns of -I tell the rest
    #[arg(long, help_heading = TIMING)]
    pub latency: bool,

    /// sum, prod, max, min, avg, mulsum or all
    #[arg(short = 'o', long, default_value = "sum", value_parser = ops, help_heading = WHAT)]
    pub op: Ops,
    /// int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16, f8e4m3, f8e5m2 or
    /// all
    #[arg(short = 'd', long, default_value = "float", value_parser = types, help_heading = WHAT)]
    pub datatype: Types,
    /// The root's rank, or all
    #[arg(short = 'r', long, default_value = "0", value_parser = roots,
          allow_negative_numbers = true, help_heading = WHAT)]
    pub root: Roots,
    /// Iterations whose results are checked; 0 checks nothing
    #[arg(short = 'c', long, default_value_t = 1, help_heading = WHAT)]
    pub check: usize,
    /// 0 plain memory, 1 or 2 memory that the library has registered; with NCCL 1 is
    /// ncclCommRegister, 2 a symmetric window
    #[arg(short = 'R', long, default_value_t = 1,
          value_parser = upto::<2>, help_heading = WHAT)]
    pub local_register: u8,
    /// Start buffers so many elements off their alignment
    #[arg(short = 'u', long, default_value_t = 0, help_heading = WHAT)]
    pub unalign: usize,
    /// What is measured, several by comma
    #[arg(long, value_enum, value_delimiter = ',', default_value = "warpmesh", help_heading = WHAT)]
    pub backend: Vec<Kind>,
    /// Only this algorithm
    #[arg(long, value_name = "NAME", help_heading = WHAT)]
    pub algorithm: Option<String>,
    /// Sums in rank order, the same bits by every algorithm
    #[arg(long, help_heading = WHAT)]
    pub canonical: bool,

    /// Seconds that a test may take before everything ends with code 4; 0 for ever
    #[arg(short = 'T', long = "test-timeout", default_value_t = 0, value_name = "SECONDS",
          help_heading = REPORT)]
    pub test_timeout: u64,
    /// Seconds that a rank waits for another within an operation
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", help_heading = REPORT)]
    pub timeout: f64,
    /// Write a report here; the name ends in .json, and one that exists gets a number
    #[arg(short = 'J', long, value_parser = json_name,
          value_name = "FILE", help_heading = REPORT)]
    pub output_file: Option<String>,
    /// 1 adds the time of day to each row
    #[arg(short = 'S', long, default_value_t = 0,
          value_parser = upto::<1>, help_heading = REPORT)]
    pub report_timestamps: u8,
    /// 1 adds the memory in use to the footer
    #[arg(short = 'M', long, default_value_t = 0, value_parser = upto::<1>, help_heading = REPORT)]
    pub memory: u8,
    /// Print the driver, the GPUs, which of them reach each other, NVRTC and NCCL, and end
    #[arg(long = "show-gpus", help_heading = REPORT)]
    pub show_gpus: bool,
    /// Print the plan, the kernel's name and its CUDA C++ source for the first size, and end. Needs
    /// no GPU
    #[arg(long = "show-cuda", help_heading = REPORT)]
    pub show_cuda: bool,
    /// Say for each size what the library does and why
    #[arg(long, help_heading = REPORT)]
    pub explain: bool,
    /// Add to each row the share of the machine's copy bandwidth that it reached
    #[arg(long = "machine-fraction", help_heading = REPORT)]
    pub machine_fraction: bool,

    /// Print the version
    #[arg(long, action = clap::ArgAction::Version, help_heading = REPORT)]
    version: Option<bool>,

    #[command(flatten)]
    pub elsewhere: Elsewhere,
}

const RANKS: &str = "Ranks";
const SIZES: &str = "Sizes";
const TIMING: &str = "Timing";
const WHAT: &str = "What is measured";
const REPORT: &str = "Report";

/// Flags of nccl-tests that mean nothing here: 0 is accepted.
#[derive(Clone, Debug, clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Elsewhere {
    #[arg(short = 'p', long, default_value_t = 0, hide = true)]
    parallel_init: u8,
    #[arg(short = 'C', long, default_value_t = 0, hide = true)]
    report_cputime: u32,
    #[arg(short = 'y', long, default_value_t = 0, hide = true)]
    stream_null: u32,
    #[arg(short = 'x', long, default_value_t = 0, hide = true)]
    cta_policy: u32,
    #[arg(short = 'D', long, default_value_t = 0, hide = true)]
    device_implementation: u32,
    #[arg(short = 'V', long, default_value_t = 0, hide = true)]
    device_cta_count: u32,
}

/// What a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ranks {
    /// A process.
    Processes,
    /// A thread of one process.
    Threads,
}

/// Where buffers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Where {
    /// On GPUs if there are any, else on the host.
    Auto,
    /// In the host's memory.
    Host,
    /// On GPUs.
    Cuda,
}

/// Where ranks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bind {
    /// On a core of their own, round robin.
    Core,
    /// Wherever the system puts them.
    None,
}

#[derive(Clone, Debug)]
pub struct Tests(pub Vec<Test>);
#[derive(Clone, Debug)]
pub struct Ops(pub Vec<Op>);
#[derive(Clone, Debug)]
pub struct Types(pub Vec<DataType>);

/// Which roots rooted collectives have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    One(usize),
    All,
}

impl Cli {
    /// Ranks that were asked for.
    pub fn world(&self) -> usize {
        self.hosts.as_ref().map_or(self.nthreads * self.ngpus, Hosts::world)
    }

    /// Timed iterations.
    pub fn iterations(&self) -> usize {
        self.iters.unwrap_or(if self.latency { 200 } else { 20 })
    }

    /// Loops per size and backend.
    pub fn loops(&self) -> usize {
        self.rounds.unwrap_or(if self.backend.len() > 1 { 3 } else { 1 })
    }

    /// Whether iterations are timed by themselves.
    pub fn per_iteration(&self) -> bool {
        self.latency || self.per_iter_timing == 1
    }

    /// The limit of a wait.
    pub fn wait_limit(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    /// The size column's values.
    pub fn sizes(&self) -> Vec<usize> {
        let next = |size: &usize| match self.stepfactor {
            0 | 1 => size.checked_add(self.stepbytes),
            factor => size.checked_mul(factor),
        };
        let to_the_end = |size: &usize| *size <= self.maxbytes;
        std::iter::successors(Some(self.minbytes), next).take_while(to_the_end).collect()
    }

    /// Decides where the buffers are, and refuses what clap cannot see.
    pub fn settle(&mut self) -> Result<()> {
        if self.show_cuda || self.show_gpus {
            return self.check();
        }
        let with = |kind| self.backend.contains(&kind);
        // An MPI and Gloo move the host's memory, NCCL that of GPUs.
        let on_host = with(Kind::Mpi) || with(Kind::Gloo);
        let gpus = if on_host || self.device == Where::Host { 0 } else { devices()? };
        self.device_was_chosen = self.device != Where::Auto;
        self.device = match self.device {
            Where::Auto if gpus > 0 || with(Kind::Nccl) => Where::Cuda,
            Where::Auto => Where::Host,
            chosen => chosen,
        };
        self.check()?;
        let what = if with(Kind::Nccl) { "--backend nccl" } else { "--device cuda" };
        ensure!(
            self.device == Where::Host || gpus > 0,
            Failed::because(Exit::NotImplemented, format!("{what}: {NO_GPU}"))
        );
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.elsewhere.refuse()?;
        ensure!(
            self.minbytes <= self.maxbytes,
            Failed::usage(format!(
                "-b {} is above -e {}: nothing would be measured",
                self.minbytes, self.maxbytes
            ))
        );
        let grows = if self.stepfactor > 1 { self.minbytes > 0 } else { self.stepbytes > 0 };
        ensure!(
            grows || self.minbytes == self.maxbytes,
            Failed::usage("sizes would not grow: -f from -b 0, or -i 0")
        );
        ensure!(
            self.timeout > 0.0 && self.timeout < 1e9 && (0.0..1e9).contains(&self.min_time),
            Failed::usage("--timeout is above 0 and --min-time not below, in seconds")
        );
        self.check_device()?;
        self.check_ranks()
    }

    fn check_device(&self) -> Result<()> {
        let with = |kind| self.backend.contains(&kind);
        for kind in [Kind::Mpi, Kind::Gloo] {
            ensure!(
                !(with(kind) && (self.device == Where::Cuda || with(Kind::Nccl))),
                Failed::usage(format!("--backend {kind}: measured on the host only"))
            );
        }
        ensure!(
            !(with(Kind::Nccl) && self.device == Where::Host),
            Failed::usage("--backend nccl: NCCL moves the memory of GPUs, not --device host")
        );
        if self.cudagraph == 0 {
            return Ok(());
        }
        ensure!(
            self.device != Where::Host,
            Failed::because(Exit::NotImplemented, "-G: not on the host device, it has no graphs")
        );
        ensure!(
            !self.per_iteration() && self.blocking == 0 && self.min_time == 0.0,
            Failed::usage(
                "-G: operations of a graph are timed together, without -I, -z, --latency \
                           or --min-time"
            )
        );
        Ok(())
    }

    fn check_ranks(&self) -> Result<()> {
        if let Roots::One(root) = self.root {
            let rooted = self.test.0.iter().any(|test| test.is_rooted());
            ensure!(
                !rooted || root < self.world() || self.world() == 1,
                Failed::usage(format!("-r {root}: there are {} ranks", self.world()))
            );
        }
        let mpi = self.backend.contains(&Kind::Mpi);
        ensure!(
            !mpi || self.ranks == Ranks::Processes,
            Failed::usage("--backend mpi: ranks of an MPI are processes, not --ranks threads")
        );
        ensure!(
            self.hosts.is_none() || self.ranks == Ranks::Processes,
            Failed::usage("--hosts: threads of one process are on one host, not --ranks threads")
        );
        let twice = |kind: &Kind| self.backend.iter().filter(|other| *other == kind).count() > 1;
        ensure!(
            !self.backend.iter().any(twice),
            Failed::usage("--backend names one twice; see --rounds to measure it several times")
        );
        Ok(())
    }
}

impl Elsewhere {
    fn refuse(&self) -> Result<()> {
        let flags = [
            (self.report_cputime, "-C (--report_cputime)", "see `cargo bench --bench cuda_call`"),
            (self.stream_null, "-y (--stream_null)", "each rank has a stream of its own"),
            (self.cta_policy, "-x (--cta_policy)", "it is a setting of NCCL's"),
            (self.device_implementation, "-D (--device_implementation)", "kernels come from plans"),
            (self.device_cta_count, "-V (--device_cta_count)", "kernels come from plans"),
        ];
        match flags.iter().find(|(value, ..)| *value != 0) {
            None => Ok(()),
            Some((value, flag, why)) => {
                let message = format!("{flag} {value}: not here, {why}");
                Err(Failed::because(Exit::NotImplemented, message))
            }
        }
    }
}

fn tests(text: &str) -> Result<Tests, String> {
    if text == "all" {
        return Ok(Tests(Test::ALL.to_vec()));
    }
    let names = || Test::ALL.map(Test::name).join(", ");
    let unknown = || match text {
        "alltoallv" | "all_to_all_v" | "hypercube" => {
            format!("{text} is not measured; tests are {}, all", names())
        }
        _ => format!("tests are {}, all", names()),
    };
    Test::from_name(text).map(|test| Tests(vec![test])).ok_or_else(unknown)
}

fn ops(text: &str) -> Result<Ops, String> {
    if text == "all" {
        return Ok(Ops(Op::ALL.to_vec()));
    }
    let unknown = || format!("operations are {}, all", Op::ALL.map(Op::name).join(", "));
    Op::from_name(text).map(|op| Ops(vec![op])).ok_or_else(unknown)
}

fn types(text: &str) -> Result<Types, String> {
    if text == "all" {
        return Ok(Types(DataType::ALL.to_vec()));
    }
    text.parse().map(|dtype| Types(vec![dtype])).map_err(|error| format!("{error}, all"))
}

fn roots(text: &str) -> Result<Roots, String> {
    match text {
        "all" | "-1" => Ok(Roots::All),
        _ => text.parse().map(Roots::One).map_err(|_| "a rank, or all".to_owned()),
    }
}

/// As nccl-tests reads sizes: a number, with a fraction if you like, and K, M or G.
fn bytes(text: &str) -> Result<usize, String> {
    let wrong = || format!("'{text}' is no size: a number, then nothing, K, M or G");
    let (number, unit) = match text.trim_end_matches(['b', 'B']) {
        text if text.ends_with(['k', 'K']) => (&text[..text.len() - 1], 1_u64 << 10),
        text if text.ends_with(['m', 'M']) => (&text[..text.len() - 1], 1 << 20),
        text if text.ends_with(['g', 'G']) => (&text[..text.len() - 1], 1 << 30),
        text => (text, 1),
    };
    if let Ok(whole) = number.parse::<u64>() {
        let bytes = whole.checked_mul(unit).ok_or_else(wrong)?;
        return usize::try_from(bytes).map_err(|_| wrong());
    }
    let value: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = value * unit as f64;
    if (0.0..1e18).contains(&bytes) { Ok(bytes as usize) } else { Err(wrong()) }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a number, 1 or more".to_owned()),
    }
}

fn upto<const MOST: u8>(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(number) if number <= MOST => Ok(number),
        _ => Err(format!("a number, 0 to {MOST}")),
    }
}

fn json_name(text: &str) -> Result<String, String> {
    if text.ends_with(".json") { Ok(text.to_owned()) } else { Err("ends in .json".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_command_of_the_readme() {
        let cli = cli("warpmesh-perf all_reduce -b 8 -e 64M -f 4 -g 4");
        cli.check().unwrap();
        assert_eq!(cli.world(), 4);
        let sizes = cli.sizes();
        assert_eq!(sizes[..3], [8, 32, 128]);
        assert_eq!(sizes.last(), Some(&(8 << 22)));
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("4K"), Ok(4096));
        assert_eq!(bytes("1.5m"), Ok(3 << 19));
        assert_eq!(bytes("2GB"), Ok(2 << 30));
        assert!(bytes("-1").is_err() && bytes("K").is_err() && bytes("1e40").is_err());
        assert!(bytes("99999999999999G").is_err());
    }

    #[test]
    fn steps_are_additive_without_a_factor() {
        assert_eq!(cli("x all -b 0 -e 10 -i 5").sizes(), [0, 5, 10]);
        assert_eq!(cli("x all -b 8 -e 8").sizes(), [8]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_code() {
        let code = |line: &str| Failed::exit_of(&cli(line).check().unwrap_err());
        assert_eq!(code("x all_reduce -G 1 --device host"), Exit::NotImplemented);
        assert_eq!(code("x all_reduce -G 1 --device cuda --latency"), Exit::Usage);
        assert_eq!(code("x all_reduce --device host --backend nccl"), Exit::Usage);
        assert_eq!(code("x all_reduce --device cuda --backend mpi"), Exit::Usage);
        assert_eq!(code("x all_reduce --backend mpi,nccl"), Exit::Usage);
        assert_eq!(code("x all_reduce --device cuda --backend gloo"), Exit::Usage);
        assert_eq!(code("x all_reduce --hosts 1,1 --ranks threads"), Exit::Usage);
        assert_eq!(code("x all_reduce -D 1"), Exit::NotImplemented);
        assert_eq!(code("x all_reduce -b 8 -e 4"), Exit::Usage);
        assert_eq!(code("x all_reduce -b 0 -e 4 -f 2"), Exit::Usage);
        assert_eq!(code("x broadcast -g 4 -r 4"), Exit::Usage);
        assert_eq!(code("x broadcast -g 4 --backend mpi --ranks threads"), Exit::Usage);
        assert_eq!(code("x all --backend mpi,mpi"), Exit::Usage);
        assert!(cli("x all_reduce -G 0 -C 0 -r -1 -d f8e4m3 -o mulsum").check().is_ok());
    }

    #[test]
    fn hosts_say_how_many_ranks_there_are() {
        assert_eq!(cli("x all_reduce --hosts 2,3").world(), 5);
        assert!(Cli::try_parse_from(["x", "all_reduce", "--hosts", "2,2", "-g", "4"]).is_err());
    }

    #[test]
    fn unknown_names_list_the_known() {
        let error = Cli::try_parse_from(["x", "all_reduze"]).unwrap_err().to_string();
        assert!(error.contains("reduce_scatter"), "{error}");
    }
}

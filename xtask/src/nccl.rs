//! The benchmark's NCCL backend, on virtual GPUs, with a stand-in for NCCL that is compiled against NVIDIA's nccl.h: every
//! collective, type and operation against the benchmark's oracle; old versions; and what is said when NCCL fails. Of the
//! real NCCL only the names of its functions are compared: it does not run there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::gpu::Libraries;
use crate::system::{self, Output, cargo, root, step};
use crate::{cuda, standins};

const LIMIT: Duration = Duration::from_secs(240);

pub fn test() -> Result<()> {
    let build = ["build", "--release", "-p", "warpmesh-benches"];
    step("build warpmesh-perf", &mut cargo(&build))?;
    real_has_all_functions()?;
    let libraries = libraries()?;
    let newest = &libraries[&NEWEST];
    for (title, args, rows) in RIGHT {
        is_right(newest, title, args, rows)?;
    }
    for (version, rows) in OLDER {
        let args = "all -b 8 -e 4K -f 32 -g 3 -n 2 -d all -o sum";
        let title = format!("every collective, NCCL {version}");
        is_right(&libraries[&version], &title, args, rows)?;
    }
    for (call, args) in NEWER {
        is_called(newest, call, args)?;
    }
    FAILURES.iter().try_for_each(|failure| failure.is_told(&libraries))
}

/// Folders with stand-ins, by the version that they claim.
fn libraries() -> Result<HashMap<u32, PathBuf>> {
    let mut libraries = HashMap::from([
        (NEWEST, standins::nccl(None)?),
        (BROKEN, standins::broken_nccl()?),
        (TOO_OLD, standins::nccl(Some(TOO_OLD))?),
    ]);
    for (version, _) in OLDER {
        libraries.insert(version, standins::nccl(Some(version))?);
    }
    Ok(libraries)
}

/// Functions that older versions lack, and what has to call them: without them other ways are taken
/// in silence.
const NEWER: [(&str, &str); 5] = [
    ("ncclAlltoAll", "all_to_all -g 2"),
    ("ncclGather", "gather -g 2"),
    ("ncclScatter", "scatter -g 2"),
    ("ncclCommRegister", "all_reduce -g 2 -R 1"),
    ("ncclCommWindowRegister", "all_reduce -g 2 -R 2"),
];

fn is_called(library: &Path, function: &str, args: &str) -> Result<()> {
    let mut command = on_gpus(library, &format!("{args} --device cuda --backend nccl"));
    command.env("STANDIN_NCCL_FAIL", format!("{function}:2"));
    let output = system::exits(3, LIMIT, &format!("{function} is called"), &mut command)?;
    ensure!(output.good && output.err.contains(function), "{function}: not called");
    Ok(())
}

/// What has to be right, in how many rows, so that nothing is left out unnoticed. All begin small
/// and odd.
const RIGHT: [(&str, &str, usize); 4] = [
    (
        "every type and operation, 2 processes, windows",
        "all -b 4 -e 4K -f 32 -g 2 -n 1 -d all -o all -R 2",
        864,
    ),
    (
        "every type, operation and root, 3 threads",
        "all -b 4 -e 512 -f 8 -g 3 -n 1 -d all -o all -r all --ranks threads",
        1422,
    ),
    (
        "4 processes, graphs, every operation",
        "all -b 8 -e 64K -f 32 -g 4 -n 2 -G 3 -d bfloat16 -o all",
        63,
    ),
    (
        "6 threads on 4 GPUs, memory not registered",
        "all -b 8 -e 4K -f 32 -g 6 -n 2 -R 0 -u 1 --ranks threads",
        18,
    ),
];

/// Versions, and rows: without registered memory, 8-bit floats and whatever came later; without
/// symmetric windows; without all-to-all, gather and scatter.
const OLDER: [(u32, usize); 3] = [(21_212, 180), (22_602, 216), (22_703, 216)];

/// The names that the backend looks for are those of NVIDIA's library, which loads without a GPU.
fn real_has_all_functions() -> Result<()> {
    let output = perf(&cuda::nccl()?.join("lib"), "NVIDIA's NCCL is found", "--show-gpus", &[])?;
    ensure!(
        output.good && output.out.contains("\nNCCL: 2.32.3\n"),
        "NVIDIA's NCCL was not taken:\n{}{}",
        output.out,
        output.err
    );
    Ok(())
}

fn is_right(library: &Path, title: &str, args: &str, wanted: usize) -> Result<()> {
    let args = format!("{args} --device cuda --backend nccl -c 1");
    let output = perf(library, title, &args, &[("NCCL_MULTI_RANK_GPU_ENABLE", "1")])?;
    let rows = output.out.lines().filter(|line| line.split_whitespace().count() == 13);
    let rows = rows.filter(|line| !line.starts_with('#')).count();
    let tables = output.out.matches("# Out of bounds values : 0 OK").count();
    if !output.good || rows != wanted || tables != COLLECTIVES {
        bail!(
            "{title}: {rows} of {wanted} rows, {tables} right tables:\n{}{}",
            output.out,
            output.err
        );
    }
    println!("    {title}: {rows} rows");
    Ok(())
}

/// Those that `all` stands for, with sendrecv.
const COLLECTIVES: usize = 9;

/// Something that goes wrong, and what has to be said then.
struct Failure {
    /// Of the stand-in, or one of those below.
    version: u32,
    args: &'static str,
    /// The stand-in's variables.
    env: &'static str,
    /// The exit code of nccl-tests.
    code: i32,
    says: &'static [&'static str],
}

const NEWEST: u32 = 0;
/// A file that is no library; whether the system has an NCCL makes no difference then.
const BROKEN: u32 = 1;
const TOO_OLD: u32 = 21_003;

const PLAIN: &str = "all_reduce -b 8 -e 64 -g 2 -n 2";
const THREADS: &str = "all_reduce -b 8 -e 64 -g 2 -n 2 --ranks threads --timeout 3";

/// One of several ranks: in NCCL the other one waits for it for ever.
const FIRST: &str = "STANDIN_NCCL_RANK=1 STANDIN_NCCL_FAIL=ncclCommInitRank:1";
const LATER: &str = "STANDIN_NCCL_RANK=1 STANDIN_NCCL_FAIL=ncclAllReduce:1";

const FAILURES: [Failure; 15] = [
    of(BROKEN, PLAIN, "", 5, &["cannot load libnccl.so.2", "libnccl2", "nvidia-nccl-cu13"]),
    of(TOO_OLD, PLAIN, "", 5, &["older than 2.11", "ncclRedOpCreatePreMulSum"]),
    of(22_602, "all_reduce -g 2 -R 2", "", 5, &["NCCL 2.26.2 has no", "2.27", "take -R 1"]),
    of(NEWEST, "all_reduce -g 5", "", 3, &["ranks on one GPU need NCCL 2.30", "Duplicate GPU"]),
    of(NEWEST, PLAIN, "STANDIN_NCCL_FAIL=ncclGetUniqueId:3", 3, &["internal error"]),
    of(
        NEWEST,
        PLAIN,
        "STANDIN_NCCL_FAIL=ncclAllReduce:2",
        3,
        &["all_reduce", "system error", "asked"],
    ),
    of(NEWEST, "sendrecv -g 2", "STANDIN_NCCL_FAIL=ncclGroupEnd:5", 3, &["invalid usage"]),
    of(NEWEST, "reduce -g 2 -R 2", "STANDIN_NCCL_FAIL=ncclMemAlloc:1", 3, &["ncclMemAlloc"]),
    of(
        NEWEST,
        "reduce -g 2 -o mulsum",
        "STANDIN_NCCL_FAIL=ncclRedOpCreatePreMulSum:4",
        3,
        &["argument"],
    ),
    of(NEWEST, THREADS, FIRST, 3, &["rank 1: meeting: ncclCommInitRank"]),
    of(NEWEST, THREADS, LATER, 3, &["rank 1: all_reduce 8 B", "cuda error"]),
    of(NEWEST, PLAIN, FIRST, 3, &["[rank 1]", "ncclCommInitRank"]),
    of(NEWEST, PLAIN, LATER, 3, &["[rank 1]", "cuda error"]),
    of(NEWEST, PLAIN, "STANDIN_NCCL_ASYNC=6 STANDIN_NCCL_HANG=1", 3, &["remote process exited"]),
    of(NEWEST, THREADS, "STANDIN_NCCL_HANG=1", 4, &["NCCL is not done after 3 s"]),
];

const fn of(
    version: u32,
    args: &'static str,
    env: &'static str,
    code: i32,
    says: &'static [&'static str],
) -> Failure {
    Failure { version, args, env, code, says }
}

impl Failure {
    fn is_told(&self, libraries: &HashMap<u32, PathBuf>) -> Result<()> {
        let title = format!("{} {}: {}", self.args, self.env, self.says[0]);
        let library = &libraries[&self.version];
        let mut command = on_gpus(library, &format!("{} --device cuda --backend nccl", self.args));
        command.envs(self.env.split_whitespace().filter_map(|wish| wish.split_once('=')));
        let output = system::exits(self.code, LIMIT, &title, &mut command)?;
        ensure!(output.good, "{title}: not exit code {}: {}", self.code, output.command);
        for word in self.says {
            ensure!(output.err.contains(word), "{title}: no '{word}' in\n{}", output.err);
        }
        Ok(())
    }
}

fn perf(library: &Path, title: &str, args: &str, env: &[(&str, &str)]) -> Result<Output> {
    system::within(LIMIT, title, on_gpus(library, args).envs(env.iter().copied()))
}

/// warpmesh-perf on four virtual GPUs, with a folder's NCCL.
fn on_gpus(library: &Path, args: &str) -> Command {
    let mut libraries = Libraries::on_vgpu(4, "");
    libraries.add(library.to_owned());
    let mut perf = Command::new(root().join("target/release/warpmesh-perf"));
    libraries.around(perf.args(args.split(' ')))
}

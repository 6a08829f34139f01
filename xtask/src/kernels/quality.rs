//! The page of what kernels are made of.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sass::{self, Figures};
use super::{Folder, title};
use crate::system::{cargo, root, step};

const ARCHS: [u32; 3] = [80, 90, 100];

const HEAD: &str = "\
# What kernels are made of

Written by `cargo xtask kernels`; `cargo xtask test` fails if it is not what the compilers make today. These are the kernels of the
built-in plans for 8 ranks: fp16 sums (fp32 where a plan passes unfinished sums on), of what only copies 4-byte elements. They are
compiled as a communicator does it (NVRTC) and read off `nvdisasm`'s listing. `root` and `others` are the two kernels of a rooted collective.

- **instructions**: all of the kernel, in brackets the longest innermost loop that moves data.
- **registers**: of a thread. Up to 64, two blocks of 512 threads fit on an SM.
- **local**: accesses of thread-local memory (spills are such), in brackets bytes of stack.
- **generic**: accesses that find out at run time which memory they mean.
- **128-bit**, **narrow**: loads and stores of global memory. The narrow ones are signals, polls, state, and what is no whole unit.
- **in flight**: the most loads of 128 bits that a thread has issued before it needs the first of them.
- **poll**: instructions for each look at an awaited word, in the worst of the loops that wait. (A packet's look checks its two flags.
  The kernel of sends and receives chooses among the letters that it serves: a look is at one of them.)
";

const BESIDE: &str = "
## Beside MSCCL++

Instructions of a kernel for sm_90, beside MSCCL++'s for the same job: the median over its instantiations, nvcc 13.5, `-O3`. The target is
half of them.

| job | kernel of a plan | here | MSCCL++'s kernel | there | ratio | target |
|---|---|---|---|---|---|---|
";

/// A plan, MSCCL++'s kernel for the same job and its instructions.
const PEERS: [(&str, &str, &str, usize); 4] = [
    (
        "small all-reduce, one step",
        "all_reduce.one_shot_packet.all",
        "allreduce_allpair_packet",
        276,
    ),
    ("small all-reduce, two steps", "all_reduce.two_shot_packet.all", "allreduce_packet", 700),
    ("all-reduce in registered memory", "all_reduce.direct.all", "allreduce_rsag_zero_copy", 772),
    ("all-gather in registered memory", "all_gather.direct.all", "allgather_fullmesh_2", 1708),
];

type Kernels = BTreeMap<String, Figures>;

pub fn page() -> Result<String> {
    let mut text = HEAD.to_owned();
    let of_archs = figures()?;
    for (arch, kernels) in &of_archs {
        write_arch(&mut text, *arch, kernels)?;
    }
    let hopper = of_archs.get(&90).context("no kernels for sm_90")?;
    text.push_str(BESIDE);
    for (job, name, theirs, count) in PEERS {
        let ours = hopper.get(name).with_context(|| format!("no kernel {name}"))?.instructions;
        let ratio = ours as f64 / count as f64;
        let met = if 2 * ours <= count { "met" } else { "**not met**" };
        let plan = title(&name.split('.').collect::<Vec<_>>());
        writeln!(text, "| {job} | {plan} | {ours} | {theirs} | {count} | {ratio:.2} | {met} |")?;
    }
    Ok(text)
}

/// Compiles the kernels and reads them; by architecture and name.
fn figures() -> Result<BTreeMap<u32, Kernels>> {
    let folder = Folder::new("kernels")?;
    let archs = ARCHS.map(|arch| arch.to_string()).join(",");
    let test = [
        "test",
        "--release",
        "-p",
        "warpmesh",
        "--test",
        "kernels",
        "--",
        "--ignored",
        "compile_all",
    ];
    let mut compile = cargo(&test);
    let libraries = root().join("target/cuda/nvidia/cu13/lib");
    compile.env("WARPMESH_KERNELS", folder.path()).env("WARPMESH_ARCHS", archs);
    compile.env("LD_LIBRARY_PATH", libraries);
    step("compile the kernels of all plans", &mut compile)?;
    let mut all: BTreeMap<u32, Kernels> = BTreeMap::new();
    for file in std::fs::read_dir(folder.path())? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "cubin") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a file's name")?;
        let (name, arch) =
            name.rsplit_once('.').context("a file's name without an architecture")?;
        let output = Command::new(root().join("target/cuda/nvidia/cu13/bin/nvdisasm"))
            .arg(&path)
            .output()?;
        if !output.status.success() {
            bail!("nvdisasm {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        }
        let figures = sass::read(&String::from_utf8_lossy(&output.stdout));
        all.entry(arch.parse()?).or_default().insert(name.to_owned(), figures);
    }
    Ok(all)
}

fn write_arch(text: &mut String, arch: u32, kernels: &Kernels) -> Result<()> {
    writeln!(text, "\n## sm_{arch}\n")?;
    for (target, missed) in targets(kernels) {
        let names: Vec<String> =
            missed.iter().map(|name| title(&name.split('.').collect::<Vec<_>>())).collect();
        let met = match names.len() {
            0 => "met by all".to_owned(),
            all if all == kernels.len() => "**not met** by any".to_owned(),
            _ => format!("**not met** by {}", names.join("; ")),
        };
        writeln!(text, "- {target}: {met}.")?;
    }
    text.push_str("\n| kernel | instructions | registers | local | generic | 128-bit | narrow | in flight | poll |\n");
    text.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for (name, f) in kernels {
        let poll =
            if f.poll == 0 { "-".to_owned() } else { format!("{:.1}", f.poll as f64 / 10.0) };
        writeln!(
            text,
            "| {} | {} ({}) | {} | {} ({}) | {} | {} + {} | {} + {} | {} | {poll} |",
            title(&name.split('.').collect::<Vec<_>>()),
            f.instructions,
            f.move_loop,
            f.registers,
            f.local,
            f.stack,
            f.generic,
            f.wide.0,
            f.wide.1,
            f.narrow.0,
            f.narrow.1,
            f.in_flight,
        )?;
    }
    Ok(())
}

/// What is asked of kernels, and which miss it.
fn targets(kernels: &Kernels) -> [(&'static str, Vec<&str>); 5] {
    let missed = |fine: &dyn Fn(&str, &Figures) -> bool| {
        let bad = kernels.iter().filter(|(name, figures)| !fine(name, figures));
        bad.map(|(name, _)| name.as_str()).collect()
    };
    // What goes in packets is small, and a signal moves nothing.
    let large = |name: &str| !name.contains("packet") && !name.starts_with("barrier");
    [
        ("no spills, no local memory", missed(&|_, f| f.local == 0 && f.stack == 0)),
        ("no local or generic access in an inner loop", missed(&|_, f| f.bad_loops == 0)),
        (
            "at least four 16-byte loads in flight in large moves",
            missed(&|name, f| !large(name) || f.in_flight >= 4),
        ),
        ("at most 64 registers", missed(&|_, f| f.registers <= 64)),
        ("at most five instructions for a look at an awaited word", missed(&|_, f| f.poll <= 50)),
    ]
}

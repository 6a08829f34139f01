//! `cargo xtask rdma-vm`: the RDMA transport on NICs made of software, in a virtual machine of its own.
//!
//! Soft-RoCE (the kernel's module rdma_rxe) gives libibverbs NICs on any interface, but needs a kernel of which the tests
//! may ask that; so one is booted: Debian's, with a file system in memory that has little more than libibverbs, the
//! tools of perftest to compare with, `primitives/examples/rdma_vm`, vgpu for GPUs, and `collectives/examples/rdma_hosts`. qemu emulates
//! the processor, since this has to work where there is no virtualisation; figures from it compare programs, they say
//! nothing about NICs.

mod image;
mod packages;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::packages::Packages;
use crate::cuda;
use crate::system::{cargo, root, step};

const INIT: &str = include_str!("init.sh");

/// From the boot to the last test.
const LIMIT: Duration = Duration::from_secs(400);

/// What the guest runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    /// The transport.
    Transport,
    /// Transfers of memory of GPUs, which vgpu has.
    Gpus,
    /// Collectives.
    Hosts,
    /// The same of GPUs.
    GpuHosts,
}

const HELP: &str = "\
cargo xtask rdma-vm [--measure | --transport | --gpus [TEST] | --hosts [TEST]]

Boots a virtual machine with soft-RoCE NICs and runs the RDMA transport's tests in it, those with memory of virtual GPUs, and
those of collectives over it; packages are downloaded from Debian's mirror to target/rdma-vm the first time. With --measure it only
measures, beside perftest; with --transport, --gpus or --hosts it runs the one or the other, of the latter two perhaps a single test.
";

pub fn run(args: &[String]) -> Result<()> {
    use Program::{GpuHosts, Gpus, Hosts, Transport};
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let programs: &[(Program, &str)] = match words[..] {
        [] => &[(Transport, ""), (Gpus, ""), (Hosts, ""), (GpuHosts, "")],
        ["--measure"] => &[(Transport, "measure")],
        ["--transport"] => &[(Transport, "")],
        ["--gpus"] => &[(Gpus, ""), (GpuHosts, "")],
        ["--gpus", test] => &[(Gpus, test)],
        ["--hosts"] => &[(Hosts, "")],
        ["--hosts", test] => &[(Hosts, test)],
        _ => {
            print!("{HELP}");
            return Ok(());
        }
    };
    let home = root().join("target/rdma-vm");
    let packages = packages::ensure(&home)?;
    let files = build(programs, &home)?;
    layouts(&files, &packages)?;
    let lines: String = programs.iter().map(|(program, word)| program.line(word) + "\n").collect();
    let init = INIT.replace("@TESTS@\n", &lines);
    let archive = home.join("initramfs");
    image::write(&archive, &packages, &init, &files)?;
    boot(&packages, &archive)
}

impl Program {
    /// How the guest's first process runs it.
    fn line(self, word: &str) -> String {
        match self {
            Self::Transport => format!("run /t/rdma_vm {word}"),
            Self::Gpus => format!("run env LD_LIBRARY_PATH=/t/cuda {GPUS} /t/rdma_vm gpu {word}"),
            Self::Hosts => format!("run /t/rdma_hosts {word}"),
            Self::GpuHosts => {
                let cuda = "LD_LIBRARY_PATH=/t/cuda XDG_CACHE_HOME=/t/cache";
                format!("run env {cuda} VGPU_DEVICES=4 VGPU_SMS=2 /t/rdma_hosts gpus")
            }
        }
    }
}

/// The virtual GPUs: two, and one of an older architecture.
const GPUS: &str = "VGPU_DEVICES=3 VGPU_ARCH=90,90,80 VGPU_SMS=2";

/// Builds what the guest runs, all at once: its name there, and where it is here.
fn build(programs: &[(Program, &str)], home: &Path) -> Result<Vec<(String, PathBuf)>> {
    let has = |wanted: &[Program]| programs.iter().any(|(program, _)| wanted.contains(program));
    let release = root().join("target/release");
    let mut build = cargo(&["build", "--release"]);
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    let mut add = |name: &str, path: PathBuf| files.push((name.to_owned(), path));
    if has(&[Program::Transport, Program::Gpus]) {
        build.args(["-p", "warpmesh-primitives", "--example", "rdma_vm"]);
        add("t/rdma_vm", release.join("examples/rdma_vm"));
    }
    if has(&[Program::Hosts, Program::GpuHosts]) {
        build.args(["-p", "warpmesh", "--example", "rdma_hosts"]);
        add("t/rdma_hosts", release.join("examples/rdma_hosts"));
    }
    if has(&[Program::Gpus, Program::GpuHosts]) {
        build.args(["-p", "vgpu", "--lib"]);
        add("t/cuda/libcuda.so.1", release.join("libvgpu.so"));
        cuda::ensure()?;
    }
    step("build of the tests", &mut build)?;
    let compile = |example: &str, what: &str, to: &Path| {
        let mut compile = Command::new(release.join("examples").join(example));
        compile.arg(what).arg(to);
        compile.env("LD_LIBRARY_PATH", root().join("target/cuda/nvidia/cu13/lib"));
        step("kernels for the tests", &mut compile)
    };
    if has(&[Program::Gpus]) {
        let ports = home.join("ports.ptx");
        compile("rdma_vm", "ptx", &ports)?;
        add("t/ports.ptx", ports);
    }
    if has(&[Program::GpuHosts]) {
        let kernels = home.join("kernels");
        // Those of other sources than today's are of no use.
        let _ = std::fs::remove_dir_all(&kernels);
        compile("rdma_hosts", "kernels", &kernels)?;
        for entry in std::fs::read_dir(&kernels)? {
            let entry = entry?;
            let name = entry.file_name();
            add(&format!("t/cache/warpmesh/kernels/{}", name.to_string_lossy()), entry.path());
        }
    }
    Ok(files)
}

/// Compares the library's structures in `sys/verbs` with its header, if the program that does that was built.
fn layouts(files: &[(String, PathBuf)], packages: &Packages) -> Result<()> {
    let program = files.iter().find(|(name, _)| *name == "t/rdma_vm");
    program.map_or(Ok(()), |(_, program)| {
        let include = packages.guest.join("usr/include");
        step("libibverbs' structures", Command::new(program).arg("layouts").arg(include))
    })
}

/// Boots, shows the console, and passes the tests' exit code on.
fn boot(packages: &Packages, archive: &Path) -> Result<()> {
    println!("==> virtual machine");
    let mut machine = qemu(packages, archive);
    let status = machine.status().context("cannot start qemu (through `timeout`)")?;
    let console = "what it wrote stands above";
    match status.code() {
        Some(33) => Ok(()),
        Some(124 | 137) => {
            bail!("the virtual machine was not done after {} s; {console}", LIMIT.as_secs())
        }
        Some(code) if code > 33 && code % 2 == 1 => {
            bail!(
                "the tests in the virtual machine failed with exit code {}; {console}",
                (code - 1) / 2 - 16
            )
        }
        _ => bail!("the virtual machine ended without the tests' verdict ({status}); {console}"),
    }
}

/// The emulator, which its own packages' loader starts, as they may be of another release than this machine.
fn qemu(packages: &Packages, archive: &Path) -> Command {
    let (tree, seconds) = (&packages.qemu, LIMIT.as_secs().to_string());
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
    let libraries = libraries.map(|lib| tree.join(lib).display().to_string()).join(":");
    let kernel = packages.kernel.join(format!("boot/vmlinuz-{}", packages.release));
    let mut qemu = Command::new("timeout");
    qemu.args(["--foreground", "-k", "5", &seconds]).arg(tree.join("lib64/ld-linux-x86-64.so.2"));
    qemu.args(["--library-path", &libraries]).arg(tree.join("usr/bin/qemu-system-x86_64"));
    qemu.env("QEMU_MODULE_DIR", tree.join("usr/lib/x86_64-linux-gnu/qemu"));
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        qemu.arg("-L").arg(tree.join(data));
    }
    // Emulated, whatever there is: /dev/kvm may exist and hang. Without the instructions that qemu is slow at.
    qemu.args(["-M", "pc", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1G"]);
    qemu.args(["-cpu", "max,erms=off,fsrm=off,smap=off,la57=off"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr"]);
    qemu.stdin(std::process::Stdio::null());
    qemu
}

//! `cargo xtask rdma-vm`: the RDMA transport on NICs made of software, in a virtual machine of its own.
//!
//! Soft-RoCE (the kernel's module rdma_rxe) gives libibverbs NICs on any interface, but needs a kernel of which the tests
//! may ask that; so one is booted: Debian's, with a file system in memory that has little more than libibverbs, the
//! tools of perftest to compare with, `primitives/examples/rdma_vm` and `collectives/examples/rdma_hosts`. qemu emulates
//! the processor, since this has to work where there is no virtualisation; figures from it compare programs, they say
//! nothing about NICs.

mod image;
mod packages;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::packages::Packages;
use crate::system::{cargo, root, step};

const INIT: &str = include_str!("init.sh");

/// From the boot to the last test.
const LIMIT: Duration = Duration::from_secs(400);

/// Tests of the transport, and of collectives over it: package and example.
const TRANSPORT: (&str, &str) = ("warpmesh-primitives", "rdma_vm");
const HOSTS: (&str, &str) = ("warpmesh", "rdma_hosts");

const HELP: &str = "\
cargo xtask rdma-vm [--measure | --transport | --hosts [TEST]]

Boots a virtual machine with soft-RoCE NICs and runs the RDMA transport's tests in it, and those of collectives over
it; packages are downloaded from Debian's mirror to target/rdma-vm the first time. With --measure it only measures,
beside perftest; with --transport or --hosts it runs the one or the other, of the latter perhaps a single test.
";

pub fn run(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let programs: &[((&str, &str), &str)] = match words[..] {
        [] => &[(TRANSPORT, ""), (HOSTS, "")],
        ["--measure"] => &[(TRANSPORT, "measure")],
        ["--transport"] => &[(TRANSPORT, "")],
        ["--hosts"] => &[(HOSTS, "")],
        ["--hosts", test] => &[(HOSTS, test)],
        _ => {
            print!("{HELP}");
            return Ok(());
        }
    };
    let home = root().join("target/rdma-vm");
    let packages = packages::ensure(&home)?;
    layouts(&packages)?;
    let mut paths = Vec::new();
    let mut lines = String::new();
    for ((package, example), argument) in programs {
        let build = ["build", "--release", "-p", package, "--example", example];
        step("build of the tests", &mut cargo(&build))?;
        paths.push(root().join("target/release/examples").join(example));
        lines += &format!("run /t/{example} {argument}\n");
    }
    let init = INIT.replace("@TESTS@\n", &lines);
    let archive = home.join("initramfs");
    image::write(&archive, &packages, &init, &paths)?;
    boot(&packages, &archive)
}

/// Compares the library's structures in `sys/verbs` with its header.
fn layouts(packages: &Packages) -> Result<()> {
    let include = packages.guest.join("usr/include");
    let mut test = cargo(&["test", "--quiet", "-p", "warpmesh-primitives", "--lib"]);
    test.args(["structures_are_those_of_the_header", "--", "--ignored", "--exact"]);
    test.args(["sys::verbs::layout::structures_are_those_of_the_header"]);
    step("libibverbs' structures", test.env("WARPMESH_IBVERBS_INCLUDE", include))
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

//! Running programs, and installing the ones that are missing.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub fn root() -> std::path::PathBuf {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Cargo, in the workspace's root.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs a step to its end and says how long it took; an error if it fails.
pub fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("{name}: cannot start {command:?}"))?;
    if !status.success() {
        bail!("{name} failed ({status}): {command:?}");
    }
    println!("    {name}: ok, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Whether a program is there.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What the comparison with Open MPI and the tests of that backend need: Open MPI itself, and
/// libclang with its headers for the bindings. Installed from the system's packages if missing.
pub fn ensure_open_mpi() -> Result<()> {
    if has("mpicc") && has("mpirun") && libclang_is_there() {
        return Ok(());
    }
    let packages = ["libopenmpi-dev", "openmpi-bin", "libclang1-14", "libclang-common-14-dev"];
    if !has("apt-get") {
        bail!("Open MPI or libclang is missing; install the equivalents of {packages:?}");
    }
    let sudo = if rustix_is_root() { None } else { Some("sudo") };
    let apt = |args: &[&str]| {
        let mut command = Command::new(sudo.unwrap_or("apt-get"));
        if sudo.is_some() {
            command.arg("apt-get");
        }
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    step("apt-get update", &mut apt(&["update", "-qq"]))?;
    let mut install = apt(&["install", "-y", "-qq", "--no-install-recommends"]);
    step("install Open MPI", install.args(packages))
}

/// bindgen finds libclang by itself, but not without clang's own headers.
fn libclang_is_there() -> bool {
    let headers = |dir: std::fs::DirEntry| dir.path().join("include/stddef.h").exists();
    ["/usr/lib/clang", "/usr/lib64/clang"]
        .iter()
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .any(|dirs| dirs.flatten().any(headers))
}

fn rustix_is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

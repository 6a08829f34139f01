//! Running programs, and installing the ones that are missing.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

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

/// What a program that [`within`] ran has left.
pub struct Output {
    /// Whether it ended in time, and with the exit code that it should.
    pub good: bool,
    pub out: String,
    /// Errors, and what was made of them here.
    pub err: String,
    pub seconds: f64,
    /// The command line.
    pub command: String,
}

/// Lines of what a failed step said that are shown: enough for the failures of a test and what it says after them.
pub const SAID: usize = 60;

impl Output {
    /// The end of all that it said.
    pub fn last_lines(&self, count: usize) -> String {
        let all: Vec<&str> = self.out.lines().chain(self.err.lines()).collect();
        all[all.len().saturating_sub(count)..].join("\n")
    }
}

/// Runs a step that may fail or hang: it is ended, with all that it has started, after `limit`. What
/// it prints is shown if it fails.
pub fn within(limit: Duration, name: &str, command: &mut Command) -> Result<Output> {
    exits(0, limit, name, command)
}

/// The same, for a step that is good if it ends with this exit code.
pub fn exits(code: i32, limit: Duration, name: &str, command: &mut Command) -> Result<Output> {
    println!("==> {name}");
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let start = Instant::now();
    // A group of its own, which can be ended as a whole.
    let command = command.process_group(0).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait_until(&mut child, start + limit)?;
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    let (out, mut err) = (text(out), text(err));
    match status {
        None => err.push_str(&format!("not done after {} s; ended\n", limit.as_secs())),
        Some(status) if status.code() != Some(code) => err.push_str(&format!("{status}\n")),
        Some(_) => {}
    }
    let good = status.is_some_and(|status| status.code() == Some(code));
    let (seconds, command) = (start.elapsed().as_secs_f64(), line);
    let output = Output { good, out, err, seconds, command };
    let verdict = if good { "ok" } else { "FAILED" };
    println!("    {name}: {verdict}, {seconds:.0} s");
    if !good {
        println!("{}", output.last_lines(SAID));
    }
    Ok(output)
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let lines = pipe.into_iter().flat_map(|pipe| BufReader::new(pipe).lines());
        lines.map_while(Result::ok).map(|line| line + "\n").collect()
    })
}

/// None if it had to be ended.
fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(20));
    }
    let group = format!("-{}", child.id());
    Command::new("kill").args(["-KILL", "--", &group]).status().context("cannot start kill")?;
    child.wait()?;
    Ok(None)
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
    install("Open MPI or libclang", &packages)
}

/// What the gloo backend needs: Gloo, and a C++ compiler.
pub fn ensure_gloo() -> Result<()> {
    if has("c++") && std::path::Path::new("/usr/include/gloo/allreduce.h").exists() {
        return Ok(());
    }
    install("Gloo or a C++ compiler", &["libgloo-dev", "g++"])
}

/// What the tests between hosts need: `ip`, which makes their networks.
pub fn ensure_iproute2() -> Result<()> {
    let there = Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
    if there { Ok(()) } else { install("ip", &["iproute2"]) }
}

/// The system's packages that have `what`.
fn install(what: &str, packages: &[&str]) -> Result<()> {
    if !has("apt-get") {
        bail!("{what} is missing; install the equivalents of {packages:?}");
    }
    let sudo = if is_root() { None } else { Some("sudo") };
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
    step(&format!("install {what}"), install.args(packages))
}

/// bindgen finds libclang by itself, but not without clang's own headers.
fn libclang_is_there() -> bool {
    let headers = |dir: std::fs::DirEntry| dir.path().join("include/stddef.h").exists();
    ["/usr/lib/clang", "/usr/lib64/clang"]
        .iter()
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .any(|dirs| dirs.flatten().any(headers))
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Output {
        within(limit, "a test's step", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn what_a_step_prints_is_kept_and_its_failure_told() {
        let output = shell("echo a; echo b >&2; exit 3", Duration::from_secs(60));
        assert!(!output.good && output.out == "a\n", "{}", output.out);
        assert_eq!(output.last_lines(2), "b\nexit status: 3");
        assert!(shell("true", Duration::from_secs(60)).good);
    }

    #[test]
    fn a_step_that_hangs_is_ended_with_its_children() {
        // The child holds the pipe: if it lived on, this would wait for it.
        let output = shell("sleep 1000 & sleep 1000", Duration::from_millis(200));
        assert!(!output.good && output.err.contains("not done"), "{}", output.err);
    }
}

//! Runs tests one after the other, each in processes of its own: of this program, and of the collectives' tests on the
//! same virtual machine (`collectives/examples/rdma_hosts`).

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A test's name, and what each of its ranks does.
pub type Test<Job> = (&'static str, fn(&mut Job) -> Outcome);

/// Tests by their functions, whose names say what is so.
#[macro_export]
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => {
        &[$((stringify!($name), $module::$name as fn(&mut _) -> _),)*]
    };
}

/// Fails a test with a text.
#[macro_export]
macro_rules! ensure {
    ($good:expr, $($text:tt)+) => {
        if !$good {
            return Err(format!($($text)+).into());
        }
    };
}

/// What a program says when it ends.
pub fn exit_code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs tests, each at most so long; whether all were good. `what` they test stands in every line.
pub fn run_all<Job>(what: &str, tests: &[Test<Job>], limit: Duration) -> bool {
    let mut failed = 0;
    for (name, _) in tests {
        let start = Instant::now();
        let good = run(name, limit).unwrap_or_else(|error| {
            println!("    {error}");
            false
        });
        let verdict = if good { "ok" } else { "FAILED" };
        println!("{what} {name}: {verdict}, {:.1} s", start.elapsed().as_secs_f64());
        failed += usize::from(!good);
    }
    println!("{} of {} tests of {what} passed", tests.len() - failed, tests.len());
    failed == 0
}

/// Runs a test in a group of processes of its own, which is ended as a whole.
fn run(name: &str, limit: Duration) -> Outcome<bool> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args(["--test", name]).process_group(0).spawn()?;
    let start = Instant::now();
    let mut status = None;
    while status.is_none() && start.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(20));
        status = child.try_wait()?;
    }
    let group = rustix::process::Pid::from_child(&child);
    // The other ranks as well, whose parent has ended; an error says that nobody is left.
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    if status.is_none() {
        child.wait()?;
        println!("    not done after {limit:?}; ended");
    }
    Ok(status.is_some_and(|status| status.success()))
}

/// Runs commands of the shell, all of which have to succeed.
pub fn shell(script: &str) -> Outcome {
    let status = Command::new("/bin/dash").args(["-ec", script]).status()?;
    ensure!(status.success(), "'{script}' failed: {status}");
    Ok(())
}

/// A number that the kernel shows.
pub fn counter(path: &str) -> Outcome<u64> {
    Ok(std::fs::read_to_string(path)?.trim().parse()?)
}

/// The first cable: how it is cut at rank 0's end, and mended.
pub const DOWN: &str = "ip link set va down";
pub const UP: &str = "ip link set va up; ip route replace 10.9.1.2 dev va table 101; ip route replace 10.9.1.1 dev vb table 102
    ip neigh replace 10.9.1.2 lladdr $(cat /sys/class/net/vb/address) dev va nud permanent
    ip neigh replace 10.9.1.1 lladdr $(cat /sys/class/net/va/address) dev vb nud permanent";

/// Lets nothing pass the first cable, of which its ends see nothing else.
#[allow(dead_code, reason = "the transport's tests have none of it")]
pub fn cut() -> Outcome {
    shell("for i in va vb; do tc qdisc add dev $i root netem loss 100%; done")
}

/// Takes back [`cut`].
#[allow(dead_code, reason = "as above")]
pub fn mend() -> Outcome {
    shell("for i in va vb; do tc qdisc del dev $i root; done")
}

/// Loses two packets of a hundred on the first cable, in both directions.
pub fn lose() -> Outcome {
    shell("for i in va vb; do tc qdisc add dev $i root netem loss 2%; done")
}

/// Loses none any more. There have to have been some, or it was no test of anything.
pub fn lose_no_more() -> Outcome {
    let shown =
        std::process::Command::new("tc").args(["-s", "qdisc", "show", "dev", "va"]).output()?;
    shell("for i in va vb; do tc qdisc del dev $i root; done")?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let dropped = shown.split("dropped ").nth(1).and_then(|rest| rest.split([',', ' ']).next());
    let dropped: u64 = dropped.ok_or("tc shows no dropped packets")?.parse()?;
    println!("    {dropped} packets were lost in one direction");
    ensure!(dropped > 10, "only {dropped} packets were lost: no test of anything");
    Ok(())
}

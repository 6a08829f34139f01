//! vgpu: drops each release, acquire, fence and barrier of the tests' kernels in turn. Weak mode or the race detector must
//! catch every mutant that is wrong by the model; those that are not caught are listed with the reason.
//! Prints the rows of docs/vgpu-tables.md.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::{Rig, cases, kernels_ptx};
use vgpu::MachineConfig;
use vgpu::track::model::Config;

const SEEDS: u64 = 8;

type Case = (&'static str, u32, fn(&Rig));

const CASES: [Case; 8] = [
    ("block_sum", 1, cases::block_sum),
    ("warp_relay", 1, cases::warp_relay),
    ("grid_barrier", 1, cases::grid_barrier),
    ("ping_pong", 2, cases::ping_pong_between_devices),
    ("one_shot", cases::RANKS as u32, cases::one_shot_all_reduce),
    ("two_shot", cases::RANKS as u32, cases::two_shot_all_reduce),
    ("nvls", cases::RANKS as u32, cases::nvls_all_reduce),
    ("bulk_copy", 1, cases::bulk_copy),
];

/// Mutants that may survive: kernel, n-th line of its kind in the kernel, kind, and why that is right.
const SURVIVORS: [(&str, usize, &str, &str); 2] = [
    (
        "bulk_copy",
        3,
        "barrier",
        "right without it: the next phase of the mbarrier comes after wait_group in the one thread that starts it",
    ),
    (
        "bulk_copy",
        1,
        "proxy",
        "not modelled: that the copy's view of a fresh mbarrier needs a fence after its init",
    ),
];

/// Line numbers of a kernel's body.
fn body(lines: &[&str], kernel: &str) -> std::ops::Range<usize> {
    let entry = format!(".visible .entry {kernel}(");
    let start = lines
        .iter()
        .position(|l| l.starts_with(&entry))
        .unwrap_or_else(|| panic!("no kernel {kernel}"));
    let end = (start..lines.len()).find(|&n| lines[n] == "}").unwrap();
    start..end
}

/// What dropping the order of this line makes of it, and what that is called.
fn mutate(line: &str) -> Option<(&'static str, String)> {
    let opcode = line.trim_start();
    let plain = |what: &'static str, order: &str| Some((what, line.replacen(order, ".relaxed", 1)));
    match () {
        () if opcode.contains(".release.") => plain("release", ".release"),
        () if opcode.contains(".acquire.") => plain("acquire", ".acquire"),
        () if opcode.starts_with("bar.sync") || opcode.starts_with("barrier.sync") => {
            Some(("barrier", String::new()))
        }
        () if opcode.starts_with("bar.warp.sync") => Some(("warp", String::new())),
        () if opcode.starts_with("fence.acq_rel")
            || opcode.starts_with("fence.sc")
            || opcode.starts_with("membar") =>
        {
            Some(("fence", String::new()))
        }
        () if opcode.starts_with("fence.proxy.async") => Some(("proxy", String::new())),
        () if opcode.contains("cp.async.bulk.commit_group") => Some(("commit", String::new())),
        () if opcode.contains("cp.async.bulk.wait_group") => Some(("wait", String::new())),
        () if opcode.contains("mbarrier.try_wait") => {
            let start = line.find("mbarrier.try_wait")?;
            let end = start + line[start..].find(';')?;
            let mut passed = line.to_string();
            passed.replace_range(start..end, "setp.eq.u32 p, 0, 0");
            Some(("phase", passed))
        }
        () => None,
    }
}

/// How a mutant was caught, if it was.
fn caught(ptx: &str, devices: u32, run: fn(&Rig)) -> Option<String> {
    for seed in 0..SEEDS {
        let config = MachineConfig {
            devices,
            sms: 4,
            track: Some(Config { weak: true, race: true, seed }),
            watchdog: Duration::from_millis(20),
            ..MachineConfig::default()
        };
        let rig = Rig::new(ptx, config);
        let right = catch_unwind(AssertUnwindSafe(|| run(&rig))).is_ok();
        let races = rig.machine.races().len();
        match (right, races) {
            (true, 0) => {}
            (true, _) => return Some(format!("race, seed {seed}")),
            (false, 0) => return Some(format!("wrong result or hang, seed {seed}")),
            (false, _) => return Some(format!("wrong result or hang, and race, seed {seed}")),
        }
    }
    None
}

#[test]
fn vgpu_every_wrong_mutant_is_caught() {
    let Some(ptx) = kernels_ptx() else { return };
    std::panic::set_hook(Box::new(|_| ())); // mutants panic by design
    let lines: Vec<&str> = ptx.lines().collect();
    let (mut total, mut wrong) = (0, Vec::new());
    for (kernel, devices, run) in CASES {
        let mut counts = std::collections::HashMap::new();
        for n in body(&lines, kernel) {
            let Some((what, line)) = mutate(lines[n]) else {
                continue;
            };
            let count = counts.entry(what).or_insert(0usize);
            *count += 1;
            let mut changed = lines.clone();
            changed[n] = &line;
            let how = caught(&changed.join("\n"), devices, run);
            total += 1;
            let excuse =
                SURVIVORS.iter().find(|s| (s.0, s.1, s.2) == (kernel, *count, what)).map(|s| s.3);
            println!(
                "\n| {kernel} | {what} | {count} | {} |",
                how.as_deref().or(excuse).unwrap_or("NOT FOUND")
            );
            if how.is_some() == excuse.is_some() {
                wrong.push(format!(
                    "{kernel}: {what} {count} (PTX line {}): {how:?}, excuse {excuse:?}",
                    n + 1
                ));
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(total >= 40, "only {total} mutants");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

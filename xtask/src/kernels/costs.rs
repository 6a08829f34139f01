//! The page of what plans move between GPUs.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};

use super::Folder;
use crate::system::{cargo, root, step};

/// Bytes of the smaller of two calls; as in collectives/tests/kernels.rs.
const SIZE: u64 = 64 << 10;
const RANKS: usize = 8;

const HEAD: &str = "\
# What plans cost

Written by `cargo xtask kernels`; `cargo xtask test` fails if it is not what the plans do today. Each built-in plan runs on eight
virtual GPUs of one SM, once with S = 64 KiB and once with 128 KiB, and the virtual GPUs count its accesses. S is the whole buffer: in
all-gather, all-to-all, reduce-scatter, gather and scatter that of all ranks' blocks. Packets are lines of 16 bytes that carry 8.

- **reads**, **writes**: bytes over NVLink that a rank's kernel loads from peers' memory and stores there, as multiples of S: what the
  larger call has more than the smaller. For the rank that has most.
- **switch**: bytes that its kernel loads through the switch, which adds up what all ranks have there, and stores through it, for all.
- **besides**: bytes that do not depend on S, of one thread block: signals of 8 bytes and announcements of 32.
- **waits**: for other GPUs, one after the other.
- **least**: reads and writes of a rank that has to do most, if no switch reduces or copies: in as many steps as are needed, or in one.

| plan | reads | writes | switch | besides | waits | least | MSCCL++'s kernel for the job | its traffic | its waits |
|---|---|---|---|---|---|---|---|---|---|
";

/// Of each collective what a rank has to read or write at least, in multiples of S.
const LEAST: [(&str, &str); 8] = [
    ("all_reduce", "1.75, in one step 7"),
    ("all_gather", "0.875"),
    ("reduce_scatter", "0.875"),
    ("broadcast", "1, in one step 7 (root)"),
    ("reduce", "1, in one step 7 (root)"),
    ("all_to_all", "0.875"),
    ("gather", "0.875 (root)"),
    ("scatter", "0.875 (root)"),
];

/// What MSCCL++'s kernel for the same job does.
const PEERS: [(&str, &str, &str, &str); 5] = [
    ("all_reduce one_shot_packet", "allreduce_allpair_packet", "writes 14", "1"),
    ("all_reduce two_shot_packet", "allreduce_packet", "writes 3.5", "2"),
    (
        "all_reduce direct",
        "allreduce_rsag_zero_copy",
        "reads 0.875, writes 0.875",
        "2, and a barrier of the grid",
    ),
    ("all_reduce staged", "allreduce_rsag", "reads 0.875, writes 0.875", "2"),
    ("all_gather direct", "allgather_fullmesh_2", "writes 0.875", "2"),
];

/// Bytes that one launch loaded from peers and stored there, and the same through the switch.
type Traffic = [u64; 4];

pub fn page() -> Result<String> {
    let (said, counters) = run()?;
    let launches = launches(&counters)?;
    let mut text = HEAD.to_owned();
    for line in said.lines().filter_map(|line| line.split_once("cost ").map(|(_, cost)| cost)) {
        let [collective, plan, kernel, waits] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("not a plan's cost: {line}");
        };
        let most = most(launches.get(kernel).with_context(|| format!("{kernel} did not run"))?)?;
        let least =
            LEAST.iter().find(|(name, _)| *name == collective).map_or("", |(_, least)| least);
        let job = format!("{collective} {plan}");
        let peer = PEERS.iter().find(|(name, ..)| *name == job);
        let (_, name, traffic, their_waits) = peer.unwrap_or(&("", "", "", ""));
        let times = |bytes: f64| format!("{}", (bytes / SIZE as f64 * 1e4).round() / 1e4);
        let [reads, writes, loads, stores] = most.grows.map(|bytes| times(bytes as f64));
        let switch = match most.grows {
            [_, _, 0, 0] => String::new(),
            _ => format!("loads {loads}, stores {stores}"),
        };
        writeln!(
            text,
            "| {collective} `{plan}` | {reads} | {writes} | {switch} | {} | {waits} | {least} | {name} | {traffic} | {their_waits} |",
            most.besides
        )?;
    }
    Ok(text)
}

/// Runs all plans; what the test said, and the virtual GPUs' counts.
fn run() -> Result<(String, String)> {
    step("build the virtual GPU", &mut cargo(&["build", "--release", "-p", "vgpu"]))?;
    let folder = Folder::new("costs")?;
    let counters = folder.path().join("counters");
    println!("==> run the kernels of all plans");
    // Cargo runs the test's binary by way of the virtual GPU.
    let vgpu = root().join("target/release/vgpu").display().to_string();
    let (devices, file) = (RANKS.to_string(), counters.display().to_string());
    let runner = [&vgpu, "run", "--devices", &devices, "--sms", "1", "--counters", &file, "--"];
    let mut command = cargo(&["test", "--release", "-p", "warpmesh", "--test", "kernels"]);
    command.args(["--config", &format!("target.'cfg(all())'.runner = {runner:?}"), "--"]);
    command.args(["--ignored", "--nocapture", "--test-threads=1", "call_all"]);
    command
        .env("LD_LIBRARY_PATH", root().join("target/cuda/nvidia/cu13/lib"))
        .env("WARPMESH_NEEDS_GPU", "1");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("call_all failed:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let counted = std::fs::read_to_string(&counters).context("the virtual GPUs counted nothing")?;
    Ok((said, counted))
}

/// The launches of each kernel, by device, in order.
fn launches(counters: &str) -> Result<BTreeMap<&str, BTreeMap<u64, Vec<Traffic>>>> {
    let mut all: BTreeMap<&str, BTreeMap<u64, Vec<Traffic>>> = BTreeMap::new();
    for line in counters.lines() {
        let after = |from: &str, key: &str| {
            let at = line.find(from).with_context(|| format!("no {from} in {line}"))?;
            line[at..]
                .split_once(key)
                .map(|(_, rest)| rest)
                .with_context(|| format!("no {key} in {line}"))
        };
        let number = |from: &str, key: &str| -> Result<u64> {
            let rest = after(from, key)?;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            Ok(rest[..end].parse()?)
        };
        let kernel = after("\"kernel\"", ":\"")?.split('"').next().unwrap_or_default();
        let traffic = [
            number("\"loaded\"", "\"peer\":")?,
            number("\"stored\"", "\"peer\":")?,
            number("\"loaded\"", "\"multicast\":")?,
            number("\"stored\"", "\"multicast\":")?,
        ];
        all.entry(kernel).or_default().entry(number("\"device\"", ":")?).or_default().push(traffic);
    }
    Ok(all)
}

/// What the rank that has most to do does for SIZE bytes more, and what it does besides.
struct Most {
    grows: Traffic,
    besides: u64,
}

fn most(devices: &BTreeMap<u64, Vec<Traffic>>) -> Result<Most> {
    if devices.len() != RANKS {
        bail!("{} devices ran a kernel, not {RANKS}", devices.len());
    }
    let mut most = Most { grows: [0; 4], besides: 0 };
    for launches in devices.values() {
        let [small, large] = launches[..] else { bail!("{} launches, not 2", launches.len()) };
        let grows: Traffic = std::array::from_fn(|n| large[n] - small[n]);
        let sum = |traffic: Traffic| traffic.iter().sum::<u64>();
        most.besides = most.besides.max(sum(small).saturating_sub(sum(grows)));
        if sum(grows) > sum(most.grows) {
            most.grows = grows;
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_grow_with_the_size_stands_apart() {
        let line = |device, loaded, stored| {
            format!(
                "{{\"kernel\":\"k\",\"device\":{device},\"loaded\":{{\"own\":9,\"peer\":{loaded},\"multicast\":5}},\
                 \"stored\":{{\"own\":7,\"peer\":{stored},\"multicast\":6}},\"peers\":[]}}\n"
            )
        };
        let text: String = (0..8).map(|d| line(d, 10, 100 + d) + &line(d, 12, 190 + d)).collect();
        let launches = launches(&text).unwrap();
        let most = most(&launches["k"]).unwrap();
        assert_eq!((most.grows, most.besides), ([2, 90, 0, 0], 36));
    }
}

//! vgpu: each order, barrier and epoch rule of the headers weakened in turn. Weak mode, the race detector, a wrong result or a hang
//! must tell; a mutant that nothing tells is an order that no test needs.

mod common;

use std::time::Duration;

use common::oracle::Type;
use common::plans::{ALGORITHMS, Shape, World, prelude, source};
use common::{HASTE, HASTY, Rig, nvrtc, weak};
use vgpu::MachineConfig;

const RANKS: usize = 3;
const SEEDS: u64 = 24;
/// What is weakened: header, text, and what stands there instead.
const MUTANTS: [(&str, &str, &str, &str); 12] = [
    (
        "the barrier between rounds",
        "plan.cuh",
        "failed = __syncthreads_or(failed);\n    rounds = ++round;",
        "rounds = ++round;",
    ),
    ("a signal's release", "order.cuh", "st.release.sys.global.u64", "st.relaxed.sys.global.u64"),
    ("a wait's acquire", "order.cuh", "fence.acquire.sys;", ""),
    (
        "the barrier before a signal",
        "plan.cuh",
        "failed = __syncthreads_or(failed);\n    if (threadIdx.x < COUNT && !failed) word",
        "if (threadIdx.x < COUNT && !failed) word",
    ),
    (
        "the barrier after a wait",
        "plan.cuh",
        "(value(nth), call.patience, peers[threadIdx.x], place);\n    }\n    failed = __syncthreads_or(failed);",
        "(value(nth), call.patience, peers[threadIdx.x], place);\n    }",
    ),
    ("packets stored strongly", "order.cuh", "st.relaxed.sys.global.v2.u64", "st.global.v2.u64"),
    ("packets loaded strongly", "order.cuh", "ld.relaxed.sys.global.v2.u64", "ld.global.v2.u64"),
    ("two halves of packets", "plan.cuh", "odd ? call.half_packets : 0", "0"),
    ("two halves of scratch", "plan.cuh", "odd ? call.half_scratch : 0", "0"),
    (
        "a flag for each epoch",
        "packet.cuh",
        "return (folded == 0xFFFFFFFFu ? 0 : folded) + 1;",
        "return 1;",
    ),
    (
        "a value for each signal of an epoch",
        "plan.cuh",
        "(epoch + 1) << 8 | nth",
        "(epoch + 1) << 8",
    ),
    (
        "epochs of all blocks in step",
        "plan.cuh",
        "b < MAX_BLOCKS; b += threads() * gridDim.x",
        "b < gridDim.x; b = MAX_BLOCKS",
    ),
];

fn mutated(file: &str, from: &str, to: &str) -> Vec<(&'static str, String)> {
    let mut headers = nvrtc::mutated(file, from, to);
    headers.iter_mut().for_each(|(_, text)| *text = text.replace(HASTE.0, HASTE.1));
    headers
}

/// What is weakened where waits have no fence: before sm_90.
const OLD_MUTANTS: [(&str, &str, &str, &str); 1] =
    [("a wait's acquire", "order.cuh", "ld.acquire.sys.global.u64", "ld.relaxed.sys.global.u64")];

/// How a mutant was caught, if it was.
fn caught(ptx: &str) -> Option<String> {
    for seed in 0..SEEDS {
        let config =
            MachineConfig { watchdog: Duration::from_millis(40), ..weak(RANKS as u32, seed) };
        let rig = Rig::new(ptx, config);
        let mut world = World::new(&rig, RANKS, Type::F16);
        for (call, algorithm) in ALGORITHMS.iter().cycle().take(2 * ALGORITHMS.len()).enumerate() {
            let count = [70, 200][call / ALGORITHMS.len()];
            let shape =
                Shape { blocks: 1 + call % 3, window: 48, timeout: HASTY, ..Shape::new(count) };
            if let Err(what) = world.run(algorithm, "Sum", &shape) {
                return Some(format!("seed {seed}: {}", what.lines().next().unwrap_or_default()));
            }
        }
        if !rig.machine.races().is_empty() {
            return Some(format!("seed {seed}: a race"));
        }
    }
    None
}

#[test]
fn vgpu_mutants_of_the_headers_are_caught() {
    assert_caught(90, &MUTANTS);
}

#[test]
fn vgpu_mutants_of_older_archs_are_caught() {
    assert_caught(80, &OLD_MUTANTS);
}

fn assert_caught(arch: u32, mutants: &[(&str, &str, &str, &str)]) {
    let text = prelude(RANKS, "warpmesh/plan.cuh") + &source(RANKS, Type::F16, "Sum");
    let Some(whole) = nvrtc::compile_with(
        &mutated("order.cuh", "fence.acquire.sys", "fence.acquire.sys"),
        &text,
        arch,
    ) else {
        return;
    };
    assert_eq!(caught(&whole.unwrap()), None, "without a mutation");
    let mut missed = Vec::new();
    for &(what, file, from, to) in mutants {
        let Some(ptx) = nvrtc::compile_with(&mutated(file, from, to), &text, arch) else { return };
        let ptx = ptx.unwrap_or_else(|log| panic!("{what}: {log}"));
        match caught(&ptx) {
            Some(how) => println!("{what}: {how}"),
            None => {
                println!("{what}: not caught");
                missed.push(what);
            }
        }
    }
    assert!(missed.is_empty(), "sm_{arch}, not caught: {missed:?}");
}

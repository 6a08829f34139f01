//! vgpu: plan kernels over the device library, bit for bit, for every type and operator, in SC mode and with weak memory.

mod common;

use std::time::{Duration, Instant};

use common::oracle::{OPS, TYPES, Type};
use common::plans::{ALGORITHMS, Shape, World, prelude, source};
use common::{Rig, nvrtc, sc, weak};

/// PTX of all algorithms for a type and operators, by NVRTC.
fn ptx(ranks: usize, ty: Type, ops: &[&str], arch: u32) -> Option<String> {
    let kernels: String = ops.iter().map(|op| source(ranks, ty, op)).collect();
    let text = prelude(ranks, "warpmesh/plan.cuh") + &kernels;
    Some(nvrtc::compile(&text, arch)?.unwrap_or_else(|log| panic!("{log}")))
}

/// Counts, offsets, blocks, rounds.
fn shapes(ty: Type, ranks: usize) -> Vec<Shape> {
    let unit = 16 / ty.size();
    let many = 40 * unit + 3;
    vec![
        Shape::new(0),
        Shape::new(1),
        Shape::new(unit * ranks),
        Shape::new(many),
        Shape { offset: 1, ..Shape::new(many) },
        Shape {
            blocks: 3,
            threads: 96,
            window: 8 * unit * ranks,
            ..Shape::new(20 * unit * ranks + 5)
        },
    ]
}

#[test]
fn vgpu_every_type_and_operator_is_exact() {
    // On sm_80 some conversions are made of integer arithmetic.
    for (ranks, arch, ops) in [(2, 90, &OPS[..]), (3, 80, &["Sum", "Max", "PreMulSum"][..])] {
        for ty in TYPES {
            let Some(ptx) = ptx(ranks, ty, ops, arch) else { return };
            let rig = Rig::new(&ptx, sc(ranks as u32));
            let mut world = World::new(&rig, ranks, ty);
            for op in ops {
                for shape in shapes(ty, ranks) {
                    for algorithm in ALGORITHMS {
                        world.run(algorithm, op, &shape).unwrap_or_else(|e| panic!("{e}"));
                    }
                }
            }
        }
    }
}

#[test]
fn vgpu_eight_ranks() {
    for (ty, op) in
        [(Type::F16, "Sum"), (Type::F32, "PreMulSum"), (Type::E4M3, "Avg"), (Type::U8, "Prod")]
    {
        let Some(ptx) = ptx(8, ty, &[op], 100) else { return };
        let rig = Rig::new(&ptx, sc(8));
        let mut world = World::new(&rig, 8, ty);
        for shape in shapes(ty, 8) {
            for algorithm in ALGORITHMS {
                world.run(algorithm, op, &shape).unwrap_or_else(|e| panic!("{e}"));
            }
        }
    }
}

/// Calls of changing algorithms, sizes and numbers of blocks follow each other without anything being reset.
#[test]
fn vgpu_weak_memory_is_clean() {
    let (ranks, ty) = (3, Type::F16);
    let Some(ptx) = ptx(ranks, ty, &["Sum"], 90) else { return };
    for seed in 0..12 {
        let rig = Rig::new(&ptx, weak(ranks as u32, seed));
        let mut world = World::new(&rig, ranks, ty);
        for (call, algorithm) in ALGORITHMS.iter().cycle().take(15).enumerate() {
            let shape = Shape {
                blocks: 1 + call % 3,
                window: 48,
                offset: call % 2,
                ..Shape::new([70, 49, 200, 5][call % 4])
            };
            world.run(algorithm, "Sum", &shape).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        rig.assert_no_races();
    }
}

/// A kernel that waits for a peer that never comes ends by itself, and says whom it waited for.
#[test]
fn vgpu_a_peer_that_never_comes() {
    let (ranks, ty) = (3, Type::F32);
    let Some(ptx) = ptx(ranks, ty, &["Sum"], 90) else { return };
    // Numbers of the instructions that wait, in the kernels of common/plans.rs. (A warp without packets to reduce goes on to the
    // results.)
    for (algorithm, places) in [
        ("direct", 1..2),
        ("one_shot", 1..2),
        ("two_shot", 1..3),
        ("staged", 2..3),
        ("slots", 2..3),
    ] {
        for by_host in [false, true] {
            let rig = Rig::new(&ptx, sc(ranks as u32));
            let mut world = World::new(&rig, ranks, ty);
            world.run(algorithm, "Sum", &Shape::new(100)).unwrap();
            let timeout = if by_host { u64::MAX >> 1 } else { 30_000_000 };
            let shape = Shape { timeout, ..Shape::new(100) };
            let (launches, _) = world.start(algorithm, "Sum", &shape, &[0, 1]);
            if by_host {
                // Long enough for a word to the host about this call, which is the second.
                let record = |rank: usize| rig.read::<u64>(world.control[rank] + 64, 1)[0];
                let until = Instant::now() + Duration::from_secs(10);
                while record(0) >> 16 != 2 || record(1) >> 16 != 2 {
                    assert!(Instant::now() < until, "no record");
                    std::thread::sleep(Duration::from_millis(1));
                }
                for rank in 0..2 {
                    rig.write(world.control[rank], &[1u32]);
                }
            }
            for launch in &launches {
                rig.machine.wait(launch).unwrap_or_else(|e| panic!("{algorithm}: {e}"));
            }
            // Rank 0 has not told rank 1 that it is done: of the second epoch there is the first signal at most.
            assert!(rig.read::<u64>(world.word(1, 0), 1)[0] <= 2 << 8, "{algorithm}");
            for rank in 0..2 {
                let control = rig.read::<u32>(world.control[rank], 2);
                assert_eq!(
                    control,
                    [u32::from(by_host), u32::from(!by_host)],
                    "{algorithm} rank {rank}"
                );
                let record = rig.read::<u64>(world.control[rank] + 64, 4);
                let (peer, at) = (record[3] as u32, (record[3] >> 32) as u32);
                assert_eq!((record[0] >> 16, peer), (2, 2), "{algorithm} rank {rank}: {record:?}");
                assert!(places.contains(&at), "{algorithm} rank {rank}: {record:?}");
                assert!(record[2] < record[1], "{record:?}");
            }
        }
    }
}

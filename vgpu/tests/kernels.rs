//! vgpu: kernels compiled by the real nvcc, on several virtual devices, in SC mode and in weak mode with race detection.

mod common;

use std::time::Duration;

use common::{Params, Rig, kernels_ptx};
use vgpu::track::model::Config;
use vgpu::{Fault, MachineConfig};

fn sc(devices: u32) -> MachineConfig {
    MachineConfig {
        devices,
        sms: 4,
        ..MachineConfig::default()
    }
}

fn weak(devices: u32, seed: u64) -> MachineConfig {
    MachineConfig {
        track: Some(Config {
            weak: true,
            race: true,
            seed,
        }),
        ..sc(devices)
    }
}

/// SC mode, and two seeds of weak mode with race detection, which must find nothing.
fn in_all_modes(devices: u32, test: impl Fn(&Rig)) {
    let Some(ptx) = kernels_ptx() else { return };
    test(&Rig::new(&ptx, sc(devices)));
    for seed in 0..2 {
        let rig = Rig::new(&ptx, weak(devices, seed));
        test(&rig);
        let races: Vec<String> = rig.machine.races().iter().map(|r| r.to_string()).collect();
        assert!(races.is_empty(), "{}", races.join("\n"));
    }
}

#[test]
fn vgpu_copy_counts_its_bytes() {
    in_all_modes(2, |rig| {
        let n = 1000;
        let (a, b) = (rig.alloc::<u128>(1, n), rig.alloc::<u128>(0, n));
        let data: Vec<u128> = (0..n as u128).map(|x| x << 64 | !x).collect();
        rig.write(a, &data);
        let c = rig
            .run(
                "copy16",
                0,
                3,
                64,
                0,
                &Params::new().u64(b).u64(a).u64(n as u64),
            )
            .unwrap();
        assert_eq!(rig.read::<u128>(b, n), data);
        assert_eq!((c.loaded, c.stored), ([0, 16_000, 0, 0], [16_000, 0, 0, 0]));
        assert_eq!(c.widths, [0, 0, 0, 0, 2000, 0]);
        assert_eq!(c.peers[1], (16_000, 0));
        assert_eq!((c.atomics, c.barriers), (0, 0));
    });
}

#[test]
fn vgpu_block_sum() {
    in_all_modes(1, |rig| {
        let n = 5000u32;
        let (a, out) = (rig.alloc::<u32>(0, n as usize), rig.alloc::<u32>(0, 1));
        rig.write(a, &(0..n).map(|x| x * 7 + 3).collect::<Vec<_>>());
        let c = rig
            .run(
                "block_sum",
                0,
                3,
                128,
                0,
                &Params::new().u64(a).u32(n).u64(out),
            )
            .unwrap();
        assert_eq!(
            rig.read::<u32>(out, 1)[0],
            (0..n).map(|x| x * 7 + 3).sum::<u32>()
        );
        assert_eq!((c.atomics, c.barriers), (3, 3 * 128));
    });
}

#[test]
fn vgpu_grid_barrier() {
    in_all_modes(1, |rig| {
        let (data, counter, errors) = (
            rig.alloc::<u32>(0, 4 * 64),
            rig.alloc::<u32>(0, 1),
            rig.alloc::<u32>(0, 1),
        );
        rig.run(
            "grid_barrier",
            0,
            4,
            64,
            0,
            &Params::new().all(&[data, counter, errors]).u32(5),
        )
        .unwrap();
        assert_eq!(rig.read::<u32>(errors, 1)[0], 0);
    });
}

fn ping_pong(rig: &Rig, kernel: &str, rounds: u32) -> u32 {
    let flags = [rig.alloc::<u32>(0, 1), rig.alloc::<u32>(1, 1)];
    let (data, errors) = (rig.alloc::<u32>(0, 1), rig.alloc::<u32>(1, 1));
    let start = |d: usize| {
        let p = Params::new()
            .all(&[flags[d], flags[1 - d], data, errors])
            .u32(rounds)
            .u32(u32::from(d == 0));
        rig.start(kernel, d as u32, 1, 1, 0, &p)
    };
    let launches = [start(0), start(1)];
    for l in &launches {
        rig.machine.wait(l).unwrap();
    }
    rig.read::<u32>(errors, 1)[0]
}

#[test]
fn vgpu_ping_pong_between_devices() {
    in_all_modes(2, |rig| assert_eq!(ping_pong(rig, "ping_pong", 50), 0));
}

#[test]
fn vgpu_a_missing_release_is_found_both_ways() {
    let Some(ptx) = kernels_ptx() else { return };
    let stale = (0..20)
        .filter(|&s| ping_pong(&Rig::new(&ptx, weak(2, s)), "ping_pong_relaxed", 20) > 0)
        .count();
    assert!(stale >= 10, "stale data in only {stale} of 20 seeds");
    let race_only = MachineConfig {
        track: Some(Config {
            weak: false,
            race: true,
            seed: 1,
        }),
        ..sc(2)
    };
    let rig = Rig::new(&ptx, race_only);
    ping_pong(&rig, "ping_pong_relaxed", 5);
    let races = rig.machine.races();
    assert!(!races.is_empty());
    assert!(
        races
            .iter()
            .all(|r| r.first.0.kernel == "ping_pong_relaxed" && r.first.0.line > 0)
    );
}

#[test]
fn vgpu_same_seed_same_run() {
    let Some(ptx) = kernels_ptx() else { return };
    let run = |seed| ping_pong(&Rig::new(&ptx, weak(2, seed)), "ping_pong_relaxed", 40);
    let first: Vec<u32> = (0..6).map(run).collect();
    assert_eq!(first, (0..6).map(run).collect::<Vec<_>>());
    assert!(
        first.iter().any(|x| *x != first[0]),
        "seeds make no difference: {first:?}"
    );
}

const RANKS: usize = 8;

/// Input and flag pointers of all ranks, as the kernels take them.
fn peers(rig: &Rig, n: usize) -> (Vec<u64>, Params) {
    let input: Vec<u64> = (0..RANKS).map(|r| rig.alloc::<f32>(r as u32, n)).collect();
    let flags: Vec<u64> = (0..RANKS).map(|r| rig.alloc::<u32>(r as u32, 64)).collect();
    for (r, at) in input.iter().enumerate() {
        rig.write(
            *at,
            &(0..n).map(|i| (i % 13 + r) as f32).collect::<Vec<_>>(),
        );
    }
    let p = Params::new().all(&input).all(&flags);
    (input, p)
}

fn sum(i: usize) -> f32 {
    (0..RANKS).map(|r| (i % 13 + r) as f32).sum()
}

#[test]
fn vgpu_one_shot_all_reduce() {
    in_all_modes(RANKS as u32, |rig| {
        let n = 256;
        let (_, peers) = peers(rig, n);
        let out: Vec<u64> = (0..RANKS).map(|r| rig.alloc::<f32>(r as u32, n)).collect();
        let start = |r: usize| {
            let p = peers
                .clone()
                .u64(out[r])
                .u32(n as u32)
                .u32(r as u32)
                .u32(RANKS as u32)
                .u32(1);
            rig.start("one_shot", r as u32, 2, 32, 0, &p)
        };
        let launches: Vec<_> = (0..RANKS).map(start).collect();
        for l in &launches {
            let c = rig.machine.wait(l).unwrap();
            // Seven eighths of the input, and the polls of the flags, come from peers or from here.
            assert_eq!(c.loaded[1], 7 * 4 * n as u64);
            assert_eq!(c.stored[1], 7 * 4 * 2 * 2);
        }
        for at in out {
            assert_eq!(rig.read::<f32>(at, n), (0..n).map(sum).collect::<Vec<_>>());
        }
    });
}

#[test]
fn vgpu_two_shot_all_reduce() {
    in_all_modes(RANKS as u32, |rig| {
        let n = 512;
        let (input, peers) = peers(rig, n);
        let start = |r: usize| {
            let p = peers
                .clone()
                .u32(n as u32)
                .u32(r as u32)
                .u32(RANKS as u32)
                .u32(1);
            rig.start("two_shot", r as u32, 1, 64, 0, &p)
        };
        let launches: Vec<_> = (0..RANKS).map(start).collect();
        launches
            .iter()
            .for_each(|l| drop(rig.machine.wait(l).unwrap()));
        for at in input {
            assert_eq!(rig.read::<f32>(at, n), (0..n).map(sum).collect::<Vec<_>>());
        }
    });
}

#[test]
fn vgpu_ll_packets_need_no_other_flag() {
    in_all_modes(2, |rig| {
        let n = 100usize;
        let slots = [rig.alloc::<[u32; 4]>(0, n), rig.alloc::<[u32; 4]>(1, n)];
        let inputs: Vec<u64> = (0..2).map(|d| rig.alloc::<[u32; 2]>(d, n)).collect();
        let outs: Vec<u64> = (0..2).map(|d| rig.alloc::<[u32; 2]>(d, n)).collect();
        for (d, at) in inputs.iter().enumerate() {
            rig.write(
                *at,
                &(0..n as u32)
                    .map(|i| [i + 100 * d as u32, i * i])
                    .collect::<Vec<_>>(),
            );
        }
        let start = |d: usize| {
            let p = Params::new()
                .all(&[slots[1 - d], slots[d], inputs[d], outs[d]])
                .u32(n as u32)
                .u32(1);
            rig.start("ll_exchange", d as u32, 2, 32, 0, &p)
        };
        let launches = [start(0), start(1)];
        launches
            .iter()
            .for_each(|l| drop(rig.machine.wait(l).unwrap()));
        for at in outs {
            assert_eq!(
                rig.read::<[u32; 2]>(at, n),
                (0..n as u32)
                    .map(|i| [2 * i + 100, 2 * i * i])
                    .collect::<Vec<_>>()
            );
        }
    });
}

#[test]
fn vgpu_nvls_all_reduce() {
    in_all_modes(RANKS as u32, |rig| {
        let n = 256;
        let (input, peers) = peers(rig, n);
        let start = |r: usize| {
            let multicast = rig
                .machine
                .space()
                .multicast(r as u32, input.clone(), 4 * n as u64)
                .unwrap();
            let p = Params::new()
                .u64(multicast)
                .u32(n as u32)
                .u32(r as u32)
                .u32(RANKS as u32)
                .all(&[]);
            let mut p = p.u64(0);
            p.0.truncate(p.0.len() - 8);
            p.0.extend(&peers.0);
            rig.start("nvls", r as u32, 1, 32, 0, &p.u32(1))
        };
        let launches: Vec<_> = (0..RANKS).map(start).collect();
        for l in &launches {
            let c = rig.machine.wait(l).unwrap();
            assert_eq!(
                (c.loaded[3], c.stored[3]),
                (4 * n as u64 / 8, 4 * n as u64 / 8)
            );
        }
        for at in input {
            assert_eq!(rig.read::<f32>(at, n), (0..n).map(sum).collect::<Vec<_>>());
        }
    });
}

#[test]
fn vgpu_bulk_copy() {
    in_all_modes(1, |rig| {
        let n = 5 * 1024;
        let (a, b) = (rig.alloc::<u8>(0, n), rig.alloc::<u8>(0, n));
        let data: Vec<u8> = (0..n).map(|x| (x % 251) as u8).collect();
        rig.write(a, &data);
        rig.run(
            "bulk_copy",
            0,
            2,
            1024,
            1024,
            &Params::new().u64(b).u64(a).u32(n as u32),
        )
        .unwrap();
        assert_eq!(
            rig.read::<u8>(b, n),
            data.iter().map(|x| x ^ 1).collect::<Vec<_>>()
        );
    });
}

#[test]
fn vgpu_lanes_of_a_warp_make_progress_by_themselves() {
    in_all_modes(1, |rig| {
        let (turn, out) = (rig.alloc::<u32>(0, 1), rig.alloc::<u32>(0, 32));
        rig.run(
            "lane_hand_over",
            0,
            1,
            32,
            0,
            &Params::new().u64(turn).u64(out),
        )
        .unwrap();
        assert_eq!(
            rig.read::<u32>(out, 32),
            (0..32).map(|x| x * x).collect::<Vec<u32>>()
        );
    });
}

#[test]
fn vgpu_the_watchdog_says_who_waits_for_what() {
    let Some(ptx) = kernels_ptx() else { return };
    for config in [sc(1), weak(1, 3)] {
        let rig = Rig::new(
            &ptx,
            MachineConfig {
                watchdog: Duration::from_millis(300),
                ..config
            },
        );
        let flag = rig.alloc::<u32>(0, 1);
        let Err(Fault::Hang { report, .. }) =
            rig.run("waits_for_ever", 0, 2, 1, 0, &Params::new().u64(flag))
        else {
            panic!("no hang was reported");
        };
        for part in [
            "block 0",
            "block 1",
            "PTX line",
            &format!("{flag:#x}, which holds 0x7"),
            "last written by kernel `waits_for_ever` on device 0, block 1",
        ] {
            assert!(report.contains(part), "`{part}` is not in:\n{report}");
        }
    }
}

#[test]
fn vgpu_blocks_that_do_not_fit_deadlock_as_on_hardware() {
    let Some(ptx) = kernels_ptx() else { return };
    let rig = Rig::new(
        &ptx,
        MachineConfig {
            sms: 1,
            watchdog: Duration::from_millis(300),
            ..sc(1)
        },
    );
    let (data, counter, errors) = (
        rig.alloc::<u32>(0, 3 * 1024),
        rig.alloc::<u32>(0, 1),
        rig.alloc::<u32>(0, 1),
    );
    let p = Params::new().all(&[data, counter, errors]).u32(1);
    // Two blocks of 1024 threads fit on the one multiprocessor, the third waits for room.
    let Err(Fault::Hang { report, .. }) = rig.run("grid_barrier", 0, 3, 1024, 0, &p) else {
        panic!("no hang")
    };
    assert!(report.contains("1 blocks are not resident"), "{report}");
}

#[test]
fn vgpu_wrong_addresses_are_faults_with_their_line() {
    let Some(ptx) = kernels_ptx() else { return };
    let rig = Rig::new(&ptx, sc(1));
    let a = rig.alloc::<u128>(0, 4);
    let Err(Fault::IllegalAddress {
        at,
        address,
        bytes: 16,
    }) = rig.run("copy16", 0, 1, 32, 0, &Params::new().u64(a).u64(a).u64(5))
    else {
        panic!("no fault");
    };
    assert_eq!((address, at.kernel.as_str()), (a + 64, "copy16"));
    assert!(
        ptx.lines()
            .nth(at.line as usize - 1)
            .is_some_and(|l| l.contains("ld.global.v4")),
        "line {}",
        at.line
    );
    assert!(matches!(
        rig.run(
            "copy16",
            0,
            1,
            1,
            0,
            &Params::new().u64(a).u64(a + 4).u64(1)
        ),
        Err(Fault::Misaligned { .. })
    ));
}

#[test]
fn vgpu_ten_megabytes_of_ptx_load_within_a_second() {
    let Some(ptx) = kernels_ptx() else { return };
    let (head, kernels) = ptx.split_at(ptx.find(".visible .entry").unwrap());
    let mut text = head.to_string();
    for n in 0.. {
        text += &kernels
            .replace("_param_", &format!("_{n}_param_"))
            .replace(".entry ", &format!(".entry k{n}_"));
        if text.len() > 10_000_000 {
            break;
        }
    }
    let start = std::time::Instant::now();
    let module = vgpu::LoadedModule::parse(&text, false).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert!(module.module().functions.len() > 1000);
}

#[test]
fn vgpu_an_unknown_instruction_is_a_load_error_with_its_line() {
    let text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {\n  .reg .b32 %r<3>;\n\n  frob.u32 %r1, %r2;\n  ret;\n}\n";
    let error = |t: &str| vgpu::LoadedModule::parse(t, false).err();
    let Some(vgpu::LoadError::UnknownInstruction {
        line: 7, opcode, ..
    }) = error(text)
    else {
        panic!("{:?}", error(text))
    };
    assert_eq!(opcode, "frob.u32");
    assert!(
        error(&text.replace("frob.u32", "add.u33")).is_some()
            && error(&text.replace("frob.u32", "ld.global.weird.u32")).is_some()
    );
    assert!(error(&text.replace("frob.u32", "add.u32")).is_none());
}

//! vgpu: kernels compiled by the real nvcc, on several virtual devices, in SC mode and in weak mode with race detection.

mod common;

use std::time::Duration;

use common::{Params, Rig, cases, kernels_ptx};
use vgpu::mem::space::Kind;
use vgpu::track::Bytes;
use vgpu::track::model::Config;
use vgpu::{Fault, MachineConfig};

fn sc(devices: u32) -> MachineConfig {
    MachineConfig { devices, sms: 4, ..MachineConfig::default() }
}

fn weak(devices: u32, seed: u64) -> MachineConfig {
    MachineConfig { track: Some(Config { weak: true, race: true, seed }), ..sc(devices) }
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
    in_all_modes(2, cases::copy_counts_its_bytes);
}

#[test]
fn vgpu_block_sum() {
    in_all_modes(1, cases::block_sum);
}

#[test]
fn vgpu_grid_barrier() {
    in_all_modes(1, cases::grid_barrier);
}

#[test]
fn vgpu_ping_pong_between_devices() {
    in_all_modes(2, cases::ping_pong_between_devices);
}

#[test]
fn vgpu_a_missing_release_is_found_both_ways() {
    let Some(ptx) = kernels_ptx() else { return };
    let stale = (0..20)
        .filter(|&s| cases::ping_pong(&Rig::new(&ptx, weak(2, s)), "ping_pong_relaxed", 20) > 0)
        .count();
    assert!(stale >= 10, "stale data in only {stale} of 20 seeds");
    let race_only =
        MachineConfig { track: Some(Config { weak: false, race: true, seed: 1 }), ..sc(2) };
    let rig = Rig::new(&ptx, race_only);
    cases::ping_pong(&rig, "ping_pong_relaxed", 5);
    let races = rig.machine.races();
    assert!(!races.is_empty());
    assert!(races.iter().all(|r| r.first.0.kernel == "ping_pong_relaxed" && r.first.0.line > 0));
}

/// Two addresses of the same four bytes.
fn aliases(rig: &Rig) -> [u64; 2] {
    let a = rig.alloc::<u32>(0, 1);
    let space = rig.machine.space();
    let (file, offset) = space.find(a, 4).unwrap().backing.clone().unwrap();
    [a, space.map(0, Kind::Device, file, offset, 4).unwrap()]
}

#[test]
fn vgpu_histories_and_races_hold_through_aliases() {
    let Some(ptx) = kernels_ptx() else { return };
    let mut stale = 0;
    for seed in 0..20 {
        let rig = Rig::new(&ptx, weak(2, seed));
        let data = aliases(&rig);
        assert_eq!(cases::ping_pong_on(&rig, "ping_pong", 20, data), 0);
        assert_eq!(rig.machine.races(), []);
        stale += usize::from(cases::ping_pong_on(&rig, "ping_pong_relaxed", 20, data) > 0);
        assert!(!rig.machine.races().is_empty());
    }
    assert!(stale >= 10, "stale data in only {stale} of 20 seeds");
}

#[test]
fn vgpu_a_race_report_says_who_where_and_why() {
    let Some(ptx) = kernels_ptx() else { return };
    let race = MachineConfig { track: Some(Config { weak: false, race: true, seed: 1 }), ..sc(2) };
    let rig = Rig::new(&ptx, race);
    let data = rig.alloc::<u32>(0, 16) + 20;
    cases::ping_pong_on(&rig, "ping_pong_relaxed", 5, [data, data]);
    let races = rig.machine.races();
    let Some(r) = races.iter().find(|r| r.first.1 && !r.second.1) else { panic!("{races:?}") };
    assert_eq!((r.first.0.device, r.second.0.device), (0, 1));
    assert_eq!(r.at, Bytes::Allocation { base: data - 20, offset: 20, device: 0 });
    assert!(r.bytes == 4 && r.count >= 5, "{r:?}");
    let text = r.to_string();
    for part in [
        "race on 4 bytes at",
        "+ 0x14 (allocation on device 0)",
        "write by `ping_pong_relaxed` on device 0, block 0, warp 0, lane 0, PTX line",
        "`st.global.u32 [",
        "read  by `ping_pong_relaxed` on device 1",
        "`ld.global.u32",
        "nothing orders them; seen",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    // Each pair of instructions is there once.
    let lines: std::collections::HashSet<_> =
        races.iter().map(|r| (r.first.0.line, r.second.0.line)).collect();
    assert_eq!(lines.len(), races.len());
}

#[test]
fn vgpu_lanes_need_syncwarp() {
    in_all_modes(1, cases::warp_relay);
}

#[test]
fn vgpu_same_seed_same_run() {
    let Some(ptx) = kernels_ptx() else { return };
    let run = |seed| cases::ping_pong(&Rig::new(&ptx, weak(2, seed)), "ping_pong_relaxed", 40);
    let first: Vec<u32> = (0..6).map(run).collect();
    assert_eq!(first, (0..6).map(run).collect::<Vec<_>>());
    assert!(first.iter().any(|x| *x != first[0]), "seeds make no difference: {first:?}");
}

#[test]
fn vgpu_one_shot_all_reduce() {
    in_all_modes(cases::RANKS as u32, cases::one_shot_all_reduce);
}

#[test]
fn vgpu_two_shot_all_reduce() {
    in_all_modes(cases::RANKS as u32, cases::two_shot_all_reduce);
}

#[test]
fn vgpu_ll_packets_need_no_other_flag() {
    in_all_modes(2, cases::ll_packets_need_no_other_flag);
}

#[test]
fn vgpu_nvls_all_reduce() {
    in_all_modes(cases::RANKS as u32, cases::nvls_all_reduce);
}

#[test]
fn vgpu_bulk_copy() {
    in_all_modes(1, cases::bulk_copy);
}

#[test]
fn vgpu_a_missing_wait_for_a_copy_shows_in_sc_mode_too() {
    let Some(ptx) = kernels_ptx() else { return };
    let start = ptx.find("mbarrier.try_wait").unwrap();
    let end = start + ptx[start..].find(';').unwrap();
    let mutant = format!("{}setp.eq.u32 p, 0, 0{}", &ptx[..start], &ptx[end..]);
    let wrong = || cases::bulk_copy(&Rig::new(&mutant, sc(1)));
    assert!(std::panic::catch_unwind(wrong).is_err(), "the result is right without the wait");
}

#[test]
fn vgpu_lanes_of_a_warp_make_progress_by_themselves() {
    in_all_modes(1, cases::lanes_of_a_warp_make_progress_by_themselves);
}

#[test]
fn vgpu_the_watchdog_says_who_waits_for_what() {
    let Some(ptx) = kernels_ptx() else { return };
    for config in [sc(1), weak(1, 3)] {
        let rig = Rig::new(&ptx, MachineConfig { watchdog: Duration::from_millis(300), ..config });
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
fn vgpu_the_watchdog_knows_plain_writers_of_what_is_polled() {
    // Block 0 polls for 9; block 1 writes something else a while later, with a plain store of 16 bytes around it.
    let text = ".version 8.0\n.target sm_90\n.address_size 64
.visible .entry writes_plainly(.param .u64 flag) {
  .reg .b64 %d<4>; .reg .b32 %r<3>; .reg .pred %p;
  ld.param.u64 %d1, [flag]; mov.u32 %r1, %ctaid.x; setp.eq.u32 %p, %r1, 0; @%p bra POLL;
  mov.u64 %d2, %globaltimer;
WAIT: mov.u64 %d3, %globaltimer; sub.u64 %d3, %d3, %d2; setp.lt.u64 %p, %d3, 200000000; @%p bra WAIT;
  st.global.v4.u32 [%d1], {%r1, 5, %r1, %r1}; ret;
POLL: ld.volatile.global.u32 %r2, [%d1+4]; setp.ne.u32 %p, %r2, 9; @%p bra POLL;
  ret;
}";
    let rig = Rig::new(text, MachineConfig { watchdog: Duration::from_millis(300), ..sc(1) });
    let flag = rig.alloc::<u32>(0, 4);
    let Err(Fault::Hang { report, .. }) =
        rig.run("writes_plainly", 0, 2, 1, 0, &Params::new().u64(flag))
    else {
        panic!("no hang was reported");
    };
    let writer = "last written by kernel `writes_plainly` on device 0, block 1, warp 0, PTX line 9";
    assert!(report.contains(&format!("{:#x}, which holds 0x5", flag + 4)), "{report}");
    assert!(report.contains(writer), "{report}");
}

#[test]
fn vgpu_blocks_that_do_not_fit_deadlock_as_on_hardware() {
    let Some(ptx) = kernels_ptx() else { return };
    let rig =
        Rig::new(&ptx, MachineConfig { sms: 1, watchdog: Duration::from_millis(300), ..sc(1) });
    let (data, counter, errors) =
        (rig.alloc::<u32>(0, 3 * 1024), rig.alloc::<u32>(0, 1), rig.alloc::<u32>(0, 1));
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
    let Err(Fault::IllegalAddress { at, address, bytes: 16 }) =
        rig.run("copy16", 0, 1, 32, 0, &Params::new().u64(a).u64(a).u64(5))
    else {
        panic!("no fault");
    };
    assert_eq!((address, at.kernel.as_str()), (a + 64, "copy16"));
    assert!(
        ptx.lines().nth(at.line as usize - 1).is_some_and(|l| l.contains("ld.global.v4")),
        "line {}",
        at.line
    );
    assert!(matches!(
        rig.run("copy16", 0, 1, 1, 0, &Params::new().u64(a).u64(a + 4).u64(1)),
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
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(module.module().functions.len() > 1000);
}

#[test]
fn vgpu_an_unknown_instruction_is_a_load_error_with_its_line() {
    let text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {\n  .reg .b32 %r<3>;\n\n  frob.u32 %r1, %r2;\n  ret;\n}\n";
    let error = |t: &str| vgpu::LoadedModule::parse(t, false).err();
    let Some(vgpu::LoadError::UnknownInstruction { line: 7, opcode, .. }) = error(text) else {
        panic!("{:?}", error(text))
    };
    assert_eq!(opcode, "frob.u32");
    assert!(
        error(&text.replace("frob.u32", "add.u33")).is_some()
            && error(&text.replace("frob.u32", "ld.global.weird.u32")).is_some()
    );
    assert!(error(&text.replace("frob.u32", "add.u32")).is_none());
}

#[test]
fn vgpu_a_guarded_call_keeps_the_guards_of_the_callee() {
    let text = ".version 8.0\n.target sm_90\n.address_size 64
.func (.param .b32 r) odd(.param .b32 x) {
  .reg .b32 %r<3>; .reg .pred %p;
  ld.param.u32 %r1, [x]; and.b32 %r2, %r1, 1; setp.ne.u32 %p, %r2, 0;
  mov.u32 %r2, 100; @%p mov.u32 %r2, 200;
  st.param.b32 [r], %r2; ret;
}
.visible .entry k(.param .u64 out) {
  .reg .b64 %d; .reg .b32 %r<3>; .reg .pred %q;
  ld.param.u64 %d, [out]; mov.u32 %r1, %tid.x; mad.wide.u32 %d, %r1, 4, %d;
  setp.gt.u32 %q, %r1, 3; mov.u32 %r2, 7;
  { .param .b32 a; .param .b32 b; st.param.b32 [a], %r1; st.param.b32 [b], %r2;
    @%q call (b), odd, (a); ld.param.b32 %r2, [b]; }
  st.global.u32 [%d], %r2; ret;
}";
    let rig = Rig::new(text, sc(1));
    let out = rig.alloc::<u32>(0, 8);
    rig.run("k", 0, 1, 8, 0, &Params::new().u64(out)).unwrap();
    assert_eq!(rig.read::<u32>(out, 8), [7, 7, 7, 7, 100, 200, 100, 200]);
}

//! Kernels of kernels.cu with data and the results they must give. A wrong result is a panic.

use super::{Params, Rig};

pub fn ping_pong(rig: &Rig, kernel: &str, rounds: u32) -> u32 {
    let data = rig.alloc::<u32>(0, 1);
    ping_pong_on(rig, kernel, rounds, [data, data])
}

/// The same with the address by which each device knows the data.
pub fn ping_pong_on(rig: &Rig, kernel: &str, rounds: u32, data: [u64; 2]) -> u32 {
    let flags = [rig.alloc::<u32>(0, 1), rig.alloc::<u32>(1, 1)];
    let errors = rig.alloc::<u32>(1, 1);
    let start = |d: usize| {
        let p = Params::new()
            .all(&[flags[d], flags[1 - d], data[d], errors])
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

pub fn ping_pong_between_devices(rig: &Rig) {
    assert_eq!(ping_pong(rig, "ping_pong", 50), 0);
}

pub const RANKS: usize = 8;

/// Input and flag pointers of all ranks, as the kernels take them. The kernels fill the input themselves.
fn peers(rig: &Rig, n: usize) -> (Vec<u64>, Params) {
    let input: Vec<u64> = (0..RANKS).map(|r| rig.alloc::<f32>(r as u32, n)).collect();
    let flags: Vec<u64> = (0..RANKS).map(|r| rig.alloc::<u32>(r as u32, 64)).collect();
    let p = Params::new().all(&input).all(&flags);
    (input, p)
}

/// Starts a kernel on all ranks, waits for all, and checks that each has the sum; the counters.
fn all_reduce(
    rig: &Rig,
    kernel: &str,
    n: usize,
    grid: u32,
    block: u32,
    params: impl Fn(usize, u64) -> Params,
) -> Vec<vgpu::Counters> {
    let out: Vec<u64> = (0..RANKS).map(|r| rig.alloc::<f32>(r as u32, n)).collect();
    let start = |r: usize| rig.start(kernel, r as u32, grid, block, 0, &params(r, out[r]));
    let launches: Vec<_> = (0..RANKS).map(start).collect();
    let counters = launches.iter().map(|l| rig.machine.wait(l).unwrap()).collect();
    for at in out {
        assert_eq!(rig.read::<f32>(at, n), (0..n).map(sum).collect::<Vec<_>>());
    }
    counters
}

fn sum(i: usize) -> f32 {
    (0..RANKS).map(|r| (i % 13 + r) as f32).sum()
}

pub fn copy_counts_its_bytes(rig: &Rig) {
    let n = 1000;
    let (a, b) = (rig.alloc::<u128>(1, n), rig.alloc::<u128>(0, n));
    let data: Vec<u128> = (0..n as u128).map(|x| x << 64 | !x).collect();
    rig.write(a, &data);
    let c = rig.run("copy16", 0, 3, 64, 0, &Params::new().u64(b).u64(a).u64(n as u64)).unwrap();
    assert_eq!(rig.read::<u128>(b, n), data);
    assert_eq!((c.loaded, c.stored), ([0, 16_000, 0, 0], [16_000, 0, 0, 0]));
    assert_eq!(c.widths, [0, 0, 0, 0, 2000, 0]);
    assert_eq!(c.peers[1], (16_000, 0));
    assert_eq!((c.atomics, c.barriers), (0, 0));
}

pub fn block_sum(rig: &Rig) {
    let n = 5000u32;
    let (a, out) = (rig.alloc::<u32>(0, n as usize), rig.alloc::<u32>(0, 1));
    rig.write(a, &(0..n).map(|x| x * 7 + 3).collect::<Vec<_>>());
    let c = rig.run("block_sum", 0, 3, 128, 0, &Params::new().u64(a).u32(n).u64(out)).unwrap();
    assert_eq!(rig.read::<u32>(out, 1)[0], (0..n).map(|x| x * 7 + 3).sum::<u32>());
    assert_eq!((c.atomics, c.barriers), (3, 3 * 128));
}

pub fn grid_barrier(rig: &Rig) {
    let (data, counter, errors) =
        (rig.alloc::<u32>(0, 4 * 64), rig.alloc::<u32>(0, 1), rig.alloc::<u32>(0, 1));
    rig.run("grid_barrier", 0, 4, 64, 0, &Params::new().all(&[data, counter, errors]).u32(5))
        .unwrap();
    assert_eq!(rig.read::<u32>(errors, 1)[0], 0);
}

pub fn one_shot_all_reduce(rig: &Rig) {
    let n = 256;
    let (_, peers) = peers(rig, n);
    let params =
        |r: usize, out| peers.clone().u64(out).u32(n as u32).u32(r as u32).u32(RANKS as u32).u32(1);
    for c in all_reduce(rig, "one_shot", n, 1, 64, params) {
        // Seven eighths of the inputs, and a flag to each peer at both barriers.
        assert_eq!((c.loaded[1], c.stored[1]), (7 * 4 * n as u64, 7 * 4 * 2));
    }
}

pub fn two_shot_all_reduce(rig: &Rig) {
    let n = 512;
    let (_, peers) = peers(rig, n);
    let params =
        |r: usize, out| peers.clone().u64(out).u32(n as u32).u32(r as u32).u32(RANKS as u32).u32(1);
    for c in all_reduce(rig, "two_shot", n, 1, 64, params) {
        let slice = 4 * n as u64 / 8;
        assert_eq!((c.loaded[1], c.stored[1]), (7 * slice, 7 * slice + 7 * 4 * 2));
    }
}

pub fn ll_packets_need_no_other_flag(rig: &Rig) {
    let n = 100usize;
    let slots = [rig.alloc::<[u32; 4]>(0, n), rig.alloc::<[u32; 4]>(1, n)];
    let inputs: Vec<u64> = (0..2).map(|d| rig.alloc::<[u32; 2]>(d, n)).collect();
    let outs: Vec<u64> = (0..2).map(|d| rig.alloc::<[u32; 2]>(d, n)).collect();
    for (d, at) in inputs.iter().enumerate() {
        rig.write(*at, &(0..n as u32).map(|i| [i + 100 * d as u32, i * i]).collect::<Vec<_>>());
    }
    let start = |d: usize| {
        let p =
            Params::new().all(&[slots[1 - d], slots[d], inputs[d], outs[d]]).u32(n as u32).u32(1);
        rig.start("ll_exchange", d as u32, 2, 32, 0, &p)
    };
    let launches = [start(0), start(1)];
    launches.iter().for_each(|l| drop(rig.machine.wait(l).unwrap()));
    for at in outs {
        assert_eq!(
            rig.read::<[u32; 2]>(at, n),
            (0..n as u32).map(|i| [2 * i + 100, 2 * i * i]).collect::<Vec<_>>()
        );
    }
}

pub fn nvls_all_reduce(rig: &Rig) {
    let n = 1024;
    let (input, peers) = peers(rig, n);
    let params = |r: usize, out| {
        let multicast =
            rig.machine.space().multicast(r as u32, input.clone(), 4 * n as u64).unwrap();
        let mut p = Params::new()
            .u64(multicast)
            .u64(out)
            .u32(n as u32)
            .u32(r as u32)
            .u32(RANKS as u32)
            .u32(0);
        p.0.extend(&peers.0);
        p.u32(1)
    };
    for c in all_reduce(rig, "nvls", n, 1, 64, params) {
        assert_eq!((c.loaded[3], c.stored[3]), (4 * n as u64 / 8, 4 * n as u64 / 8));
    }
}

pub fn bulk_copy(rig: &Rig) {
    let n = 5 * 1024;
    let (a, b) = (rig.alloc::<u8>(0, n), rig.alloc::<u8>(0, n));
    let data: Vec<u8> = (0..n).map(|x| (x % 251) as u8).collect();
    rig.write(a, &data);
    rig.run("bulk_copy", 0, 2, 1024, 1024, &Params::new().u64(b).u64(a).u32(n as u32)).unwrap();
    assert_eq!(rig.read::<u8>(b, n), data.iter().map(|x| x ^ 1).collect::<Vec<_>>());
}

pub fn warp_relay(rig: &Rig) {
    let (data, flag) = (rig.alloc::<u32>(0, 32), rig.alloc::<u32>(0, 1));
    let errors = rig.alloc::<u32>(0, 1);
    rig.run("warp_relay", 0, 2, 32, 0, &Params::new().all(&[data, flag, errors]).u32(5)).unwrap();
    assert_eq!(rig.read::<u32>(errors, 1)[0], 0);
}

pub fn lanes_of_a_warp_make_progress_by_themselves(rig: &Rig) {
    let (turn, out) = (rig.alloc::<u32>(0, 1), rig.alloc::<u32>(0, 32));
    rig.run("lane_hand_over", 0, 1, 32, 0, &Params::new().u64(turn).u64(out)).unwrap();
    assert_eq!(rig.read::<u32>(out, 32), (0..32).map(|x| x * x).collect::<Vec<u32>>());
}

//! vgpu: each header in an ordinary kernel that includes nothing else, compiled by NVRTC, which shows that no toolkit header is needed.

mod common;

use common::{Bytes, Rig, headers, in_all_modes, is_caught, nvcc, nvrtc, patience, run};

#[test]
fn vgpu_every_header_compiles_alone_with_both_compilers() {
    for (name, _) in warpmesh_kernels::HEADERS {
        for arch in [80, 90, 100] {
            let alone = |prefix: &str| {
                format!("#include \"{prefix}{name}\"\n__global__ void nothing() {{}}\n")
            };
            let Some(nvrtc) = nvrtc::compile(&alone("warpmesh/"), arch) else { return };
            nvrtc.unwrap_or_else(|log| panic!("{name} {arch}: {log}"));
        }
        let alone = format!("#include \"{name}\"\n#include \"{name}\"\n");
        let Some(nvcc) = nvcc(&alone, &headers(), 90) else { return };
        nvcc.unwrap_or_else(|log| panic!("{name}: {log}"));
    }
}

const CHANNEL: &str = r#"
#include "warpmesh/channel.cuh"
using namespace warpmesh;

// In each round: put, get and packets, all of the same numbers, which differ from round to round.
extern "C" __global__ void exchange(const __grid_constant__ MemoryChannel c, u32 count, u32 rounds, u32 rank, u64 shift) {
  const Team team = Team::block();
  const u64 out = shift, in = 4096 + shift, copy = 8192 + shift, result = 12288 + shift, packets = 16384;
  bool fine = true;
  for (u32 r = 0; r < rounds; ++r) {
    for (u32 k = team.thread; k < count; k += team.threads) {
      reinterpret_cast<u16*>(c.mine + out)[k] = static_cast<u16>(1000 * rank + 100 * r + k);
    }
    team.sync();
    c.put_with_signal<Half>(in, out, count, team);
    fine &= c.wait(team, 2);
    c.get<Half>(copy, out, count, team);
    c.put_packets<Half>(packets + r % 2 * 8192, out, count, r, team);
    fine &= c.get_packets<Half>(result, packets + r % 2 * 8192, count, r, 4, team);
    for (u32 k = team.thread; k < count; k += team.threads) {
      const u32 want = static_cast<u16>(1000 * (1 - rank) + 100 * r + k);
      u32 got[2];
      load_element<2>(c.mine + in + 2 * k, got);
      fine &= got[0] == want;
    }
    // Both have read before one writes again.
    c.signal(team);
    fine &= c.wait(team, 6);
  }
  if (!fine) reinterpret_cast<u16*>(c.mine)[0] = 0xBAD;
}
"#;

#[test]
fn vgpu_memory_channel() {
    in_all_modes(CHANNEL, 2, memory_channel);
}

fn memory_channel(rig: &Rig) {
    let memory: Vec<u64> = (0..2).map(|d| rig.alloc(d, 32 << 10)).collect();
    let words: Vec<u64> = (0..2).map(|d| rig.alloc(d, 64)).collect();
    let (count, rounds) = (300, 3);
    for (call, shift) in [16u64, 2].into_iter().enumerate() {
        let params = |rank: usize| {
            let other = 1 - rank;
            let channel = Bytes::default()
                .u64s(&[memory[rank], memory[other], words[other], words[rank]])
                .u64s(&[words[rank] + 8, words[rank] + 16]);
            let p = patience(rig, channel, rank as u32).u32s(&[other as u32]);
            p.u64s(&[]).u32s(&[0, count, rounds, rank as u32]).u64(shift).0
        };
        run(rig, "exchange", 1, 64, &[params(0), params(1)]);
        for rank in 0..2usize {
            let of = |rank: usize| -> Vec<u16> {
                (0..count as usize).map(|k| (1000 * rank + 100 * 2 + k) as u16).collect()
            };
            for (what, at, from) in
                [("put", 4096, 1 - rank), ("get", 8192, 1 - rank), ("packets", 12288, 1 - rank)]
            {
                let got: Vec<u16> = rig.read(memory[rank] + at + shift, count as usize);
                assert_eq!(got, of(from), "{what}, rank {rank}, shift {shift}");
            }
            assert_eq!(rig.read::<u16>(memory[rank], 1), [0]);
            let counters: Vec<u64> = rig.read(words[rank], 3);
            assert_eq!(counters, [2 * 3 * (call as u64 + 1); 3]);
        }
    }
}

#[test]
fn vgpu_the_example_of_the_readme() {
    let page = include_str!("../device/README.md");
    let example = page.split("```cuda\n").nth(1).and_then(|text| text.split("```").next()).unwrap();
    in_all_modes(&example.replace("\"channel.cuh\"", "\"warpmesh/channel.cuh\""), 2, |rig| {
        let each = |bytes| (0..2).map(|r| rig.alloc(r, bytes)).collect::<Vec<u64>>();
        let (memory, words) = (each(8192), each(64));
        let sent = |rank: usize| (0..500).map(|k| (1000 * rank + k) as u16).collect::<Vec<_>>();
        (0..2).for_each(|r| rig.write(memory[r], &sent(r)));
        let params = |r: usize| {
            let channel = Bytes::default()
                .u64s(&[memory[r], memory[1 - r], words[1 - r], words[r]])
                .u64s(&[words[r] + 8, words[r] + 16]);
            let p = patience(rig, channel, r as u32).u32s(&[1 - r as u32, 0]);
            p.u32(500).u64(words[r] + 24).0
        };
        run(rig, "exchange", 1, 64, &[params(0), params(1)]);
        for r in 0..2 {
            assert_eq!(rig.read::<u16>(memory[r] + 4096, 500), sent(1 - r));
            assert_eq!(rig.read::<u32>(words[r] + 24, 1), [0]);
        }
    });
}

const SWITCH: &str = r#"
#include "warpmesh/switch.cuh"
using namespace warpmesh;

// All-reduce of 4 KiB: in plain stores, this rank's part through the switch, between two barriers, and out in plain loads.
template <class T, class Op>
__device__ void all_reduce(const SwitchChannel& c, u32* own, const u32* in, u32* out, u64 mine, u32 units) {
  using M = Multimem<T, Op>;
  for (u32 k = threadIdx.x; k < 1024; k += blockDim.x) own[k] = in[k];
  bool fine = c.barrier(1);
  for (u32 k = threadIdx.x; k < units; k += blockDim.x) {
    u32 word[4];
    c.load_reduce<T, Op>(mine + k * M::BYTES, word);
    if constexpr (M::BYTES == 16) {
      c.store(mine + k * 16, word);
    } else {
      c.reduce<T, Op>(mine + k * M::BYTES, word);
    }
  }
  fine &= c.barrier(2);
  for (u32 k = threadIdx.x; k < 1024; k += blockDim.x) out[k] = fine ? own[k] : 0;
}
#define ALL_REDUCE(NAME, T, OP)                                                                                  \
  extern "C" __global__ void NAME(const __grid_constant__ SwitchChannel c, u32* own, const u32* in, u32* out,    \
                                  u64 mine, u32 units) {                                                         \
    all_reduce<T, OP>(c, own, in, out, mine, units);                                                             \
  }
ALL_REDUCE(sum_f32, Float, Sum)
ALL_REDUCE(sum_f16, Half, Sum)
ALL_REDUCE(max_i32, Int32, Max)
ALL_REDUCE(max_u64, Uint64, Max)
static_assert(!Multimem<E4M3, Sum>::EXISTS && !Multimem<E5M2, Sum>::EXISTS, "their sums are rounded to f16 on the way");
"#;

#[test]
fn vgpu_switch_channel() {
    in_all_modes(SWITCH, 4, switch_channel);
}

fn switch_channel(rig: &Rig) {
    let ranks = 4usize;
    let each = |bytes| (0..ranks).map(|r| rig.alloc(r as u32, bytes)).collect::<Vec<u64>>();
    let (data, counters, passed) = (each(4096), each(64), each(64));
    let (from, to) = (each(4096), each(4096));
    let space = rig.machine.space();
    let group =
        |r: usize, of: &[u64], bytes| space.multicast(r as u32, of.to_vec(), bytes).unwrap();
    let params: Vec<Bytes> = (0..ranks)
        .map(|r| {
            let switch = Bytes::default()
                .u64s(&[group(r, &data, 4096), group(r, &counters, 64), counters[r], passed[r]])
                .u64(ranks as u64);
            patience(rig, switch, r as u32)
        })
        .collect();
    // Elements of 4 bytes: 16 units of 16 bytes for each rank, or as many as there are elements.
    let all = |kernel: &str, units: u32, bytes: u64| {
        let p = |r: usize| {
            params[r].clone().u64s(&[data[r], from[r], to[r]]).u64(r as u64 * bytes).u32(units).0
        };
        run(rig, kernel, 1, 64, &(0..ranks).map(p).collect::<Vec<_>>());
    };
    let input = |r: usize, k: usize| ((k * 7 + r * 13) % 50) as u32;
    let sum = |k: usize| (0..ranks).map(|r| input(r, k)).sum::<u32>();
    let most = |k: usize| (0..ranks).map(|r| input(r, k)).max().unwrap();

    (0..ranks).for_each(|r| {
        rig.write(from[r], &(0..256).map(|k| input(r, k) as f32).collect::<Vec<f32>>())
    });
    all("sum_f32", 16, 256);
    let want: Vec<f32> = (0..256).map(|k| sum(k) as f32).collect();
    (0..ranks).for_each(|r| assert_eq!(rig.read::<f32>(to[r], 256), want));

    let half = |x: u32| half::f16::from_f32(x as f32).to_bits();
    (0..ranks).for_each(|r| {
        rig.write(from[r], &(0..512).map(|k| half(input(r, k))).collect::<Vec<u16>>())
    });
    all("sum_f16", 16, 256);
    let want: Vec<u16> = (0..512).map(|k| half(sum(k))).collect();
    (0..ranks).for_each(|r| assert_eq!(rig.read::<u16>(to[r], 512), want));

    (0..ranks)
        .for_each(|r| rig.write(from[r], &(0..256).map(|k| input(r, k)).collect::<Vec<u32>>()));
    all("max_i32", 64, 256);
    let want: Vec<u32> = (0..256).map(most).collect();
    (0..ranks).for_each(|r| assert_eq!(rig.read::<u32>(to[r], 256), want));

    (0..ranks).for_each(|r| {
        rig.write(from[r], &(0..256).map(|k| u64::from(input(r, k)) << 40).collect::<Vec<u64>>())
    });
    all("max_u64", 64, 512);
    let want: Vec<u64> = (0..256).map(|k| u64::from(most(k)) << 40).collect();
    (0..ranks).for_each(|r| assert_eq!(rig.read::<u64>(to[r], 256), want));
}

const SYNC: &str = r#"
#include "warpmesh/sync.cuh"
using namespace warpmesh;

// Every block writes its word of each round, and reads those of all blocks after the barrier.
extern "C" __global__ void rounds(GridBarrier barrier, const __grid_constant__ Patience patience, u32* words, u32* errors, u32 count) {
  for (u32 r = 0; r < count; ++r) {
    if (threadIdx.x == blockDim.x - 1) words[r * gridDim.x + blockIdx.x] = 100 * r + blockIdx.x + 1;
    bool fine = barrier.sync(patience, r);
    if (threadIdx.x < gridDim.x) fine &= words[r * gridDim.x + threadIdx.x] == 100 * r + threadIdx.x + 1;
    if (!fine) errors[blockIdx.x] = r + 1;
  }
}

// Two teams of two warps in one block: each warp writes what the other one of its team reads, without waiting for the other team.
extern "C" __global__ void teams(u32* out) {
  __shared__ u32 word[128];
  const u32 half = threadIdx.x / 64;
  const Team team = Team::named(1 + half, half * 2, 2);
  for (u32 r = 0; r < (half ? 9 : 5); ++r) {
    word[threadIdx.x] = threadIdx.x + r;
    team.sync();
    const u32 other = word[half * 64 + (team.thread + 32) % 64];
    team.sync();
    out[threadIdx.x] = other;
  }
}
"#;

#[test]
fn vgpu_grid_barrier_and_teams() {
    in_all_modes(SYNC, 1, grid_barrier_and_teams);
}

fn grid_barrier_and_teams(rig: &Rig) {
    let word = rig.alloc(0, 8);
    // Grids of different sizes over the same word.
    for blocks in [4u32, 3, 1, 2] {
        let (words, errors) = (rig.alloc(0, 4096), rig.alloc(0, 64));
        let p = patience(rig, Bytes::default().u64(word), 0).u64s(&[words, errors]).u32(5).0;
        run(rig, "rounds", blocks, 64, &[p]);
        assert_eq!(rig.read::<u32>(errors, 4), [0; 4]);
    }
    assert_eq!(rig.read::<u64>(word, 1), [20 << 32]);
    let out = rig.alloc(0, 512);
    run(rig, "teams", 1, 128, &[Bytes::default().u64(out).0]);
    let want: Vec<u32> =
        (0..128).map(|t| t / 64 * 64 + (t % 64 + 32) % 64 + if t < 64 { 4 } else { 8 }).collect();
    assert_eq!(rig.read::<u32>(out, 128), want);
}

const LINES: &str = r#"
#include "warpmesh/packet.cuh"
using namespace warpmesh;

// Each thread sends a word and waits for the other device's.
extern "C" __global__ void swap8(u64 mine, u64 theirs, u32* out, u32 rank, u32 epochs) {
  for (u32 e = 0; e < epochs; ++e) {
    const u32 flag = flag_of(e), at = (e % 2 * blockDim.x + threadIdx.x) * 8;
    Line8::write(theirs + at, 1000 * rank + 100 * e + threadIdx.x, flag);
    Pair line;
    do line = Line8::read(mine + at);
    while (!Line8::is_of(line, flag));
    if (line.x != 1000 * (1 - rank) + 100 * e + threadIdx.x) out[0] = 1;
    // As a barrier of a move's rounds: no thread is two epochs ahead of another.
    __syncthreads();
  }
}

extern "C" __global__ void write128(u64 lines, u32 flag) {
  u32 data[4];
  for (u32 k = 0; k < 4; ++k) data[k] = 4 * threadIdx.x + k;
  Line128::write(lines + threadIdx.x / 8 * 128, data, flag);
}
// out[i]: whether the line of thread i has arrived; then the words.
extern "C" __global__ void read128(u64 lines, u32 flag, u32* out) {
  Quad part;
  out[threadIdx.x] = Line128::read(lines + threadIdx.x / 8 * 128, part, flag);
  u32* const words = out + blockDim.x + threadIdx.x * 4;
  words[0] = part.x, words[1] = part.y, words[2] = part.z, words[3] = part.w;
}
"#;

#[test]
fn vgpu_lines_of_8_bytes() {
    in_all_modes(LINES, 2, |rig| {
        let memory: Vec<u64> = (0..2).map(|d| rig.alloc(d, 4096)).collect();
        let out: Vec<u64> = (0..2).map(|d| rig.alloc(d, 64)).collect();
        let params = |r: usize| {
            Bytes::default().u64s(&[memory[r], memory[1 - r], out[r]]).u32s(&[r as u32, 5]).0
        };
        run(rig, "swap8", 1, 64, &[params(0), params(1)]);
        (0..2).for_each(|r| assert_eq!(rig.read::<u32>(out[r], 1), [0]));
    });
}

/// The layout only: that 128 bytes arrive as one is the hardware's, which no model of PTX shows.
#[test]
fn vgpu_lines_of_128_bytes() {
    in_all_modes(LINES, 1, |rig| {
        let (lines, out) = (rig.alloc(0, 512), rig.alloc(0, 1024));
        let read =
            |flag| run(rig, "read128", 1, 32, &[Bytes::default().u64(lines).u32(flag).u64(out).0]);
        run(rig, "write128", 1, 32, &[Bytes::default().u64(lines).u32(7).0]);
        read(8);
        assert_eq!(rig.read::<u32>(out, 32), [0; 32], "lines of another epoch");
        read(7);
        let words: Vec<u32> = rig.read(out, 32 * 5);
        assert_eq!(words[..32], [1; 32]);
        for (k, &word) in words[32..].iter().enumerate() {
            // The last two words of each line are its flag.
            assert_eq!(word, if k % 32 < 30 { k as u32 } else { 7 }, "word {k}");
        }
        // A line of which the last 16 bytes are missing.
        rig.write(lines + 128 + 112, &[0u32; 4]);
        read(7);
        let arrived: Vec<u32> = rig.read(out, 32);
        assert_eq!(arrived, (0..32).map(|t| u32::from(t / 8 != 1)).collect::<Vec<_>>());
    });
}

type Test = fn(&Rig);

/// Orders of these headers, weakened: kernel, what runs it, on how many devices; header, text, and what stands there instead.
const MUTANTS: [(&str, Test, u32, &str, &str, &str); 10] = [
    (SYNC, grid_barrier_and_teams, 1, "order.cuh", "atom.acq_rel.gpu", "atom.relaxed.gpu"),
    (SYNC, grid_barrier_and_teams, 1, "order.cuh", "atom.acq_rel.gpu", "atom.acquire.gpu"),
    (SYNC, grid_barrier_and_teams, 1, "order.cuh", "atom.acq_rel.gpu", "atom.release.gpu"),
    (SYNC, grid_barrier_and_teams, 1, "order.cuh", "ld.acquire.gpu", "ld.relaxed.gpu"),
    (
        SYNC,
        grid_barrier_and_teams,
        1,
        "sync.cuh",
        "    __syncthreads();\n    bool failed",
        "    bool failed",
    ),
    (
        SYNC,
        grid_barrier_and_teams,
        1,
        "sync.cuh",
        "return !__syncthreads_or(failed)",
        "return !failed",
    ),
    (
        SWITCH,
        switch_channel,
        4,
        "switch.cuh",
        "multimem.red.release.sys",
        "multimem.red.relaxed.sys",
    ),
    (
        SWITCH,
        switch_channel,
        4,
        "order.cuh",
        "ld.acquire.sys.global.u64",
        "ld.relaxed.sys.global.u64",
    ),
    (
        CHANNEL,
        memory_channel,
        2,
        "channel.cuh",
        "    team.sync();\n    if (team.thread == 0) {\n      const u64 value = load(sent)",
        "    if (team.thread == 0) {\n      const u64 value = load(sent)",
    ),
    (
        CHANNEL,
        memory_channel,
        2,
        "channel.cuh",
        "    team.sync();\n    return reached;",
        "    return reached;",
    ),
];

#[test]
fn vgpu_mutants_of_barriers_and_channels_are_caught() {
    let mut missed = Vec::new();
    for (source, test, devices, file, from, to) in MUTANTS {
        let Some(ptx) = nvrtc::compile_with(&nvrtc::mutated(file, from, to), source, 90) else {
            return;
        };
        if !is_caught(&ptx.unwrap_or_else(|log| panic!("{to}: {log}")), devices, test) {
            missed.push((file, to));
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

//! vgpu: ports of kernels, with a proxy of the host, and with one that is a kernel, so that weak memory and race detection see both sides.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{
    Bytes, HASTE, HASTY, Rig, in_all_modes, is_caught, nvrtc, patience, ptx, run, sc, with_proxy,
};
use vgpu::mem::space::Kind;

const PORT: &str = r#"
#include "warpmesh/port.cuh"
using namespace warpmesh;

// Each block puts its numbers one by one; then it may use their memory again.
extern "C" __global__ void send(const __grid_constant__ PortChannel c, u64* source, u32 count, u32* fine) {
  if (threadIdx.x != 0) return;
  bool all = true;
  for (u32 k = 0; k < count; ++k) {
    const u64 at = blockIdx.x * count + k;
    source[at] = 1000 + at;
    all &= k + 1 < count ? c.put(8 * at, 8 * at, 8, 0) : c.put_with_signal(8 * at, 8 * at, 8, 1);
  }
  all &= c.flush(2);
  for (u32 k = 0; k < count; ++k) source[blockIdx.x * count + k] = 0;
  fine[blockIdx.x] = all;
}
// The greatest numbers that fit, and ones that do not.
extern "C" __global__ void fields(const __grid_constant__ PortChannel c, u32* fine) {
  fine[0] = c.put_with_signal(0xFEDCBA987ull, 0x812345678ull, 0xFFFFFFFFFull, 0);
  fine[1] = c.signal(1);
  fine[2] = c.put(1ull << 36, 0, 1, 2);
}
"#;

/// What the host reads out of a trigger.
#[derive(Debug, PartialEq, Eq)]
struct Trigger {
    port: u64,
    what: u64,
    to: u64,
    from: u64,
    bytes: u64,
}

/// The host's side of a FIFO.
struct Proxy {
    ring: u64,
    tail: u64,
    done: u64,
    size: u64,
    next: u64,
}

impl Proxy {
    fn word(&self, at: u64) -> &AtomicU64 {
        // SAFETY: aligned words of host memory that live as long as the rig; the device uses them as atomics too.
        unsafe { AtomicU64::from_ptr(at as *mut u64) }
    }

    fn poll(&mut self) -> Option<Trigger> {
        let entry = self.ring + self.next % self.size * 16;
        let first = self.word(entry).load(Ordering::Acquire);
        if first >> 63 == (self.next / self.size) & 1 {
            return None;
        }
        let second = self.word(entry + 8).load(Ordering::Relaxed);
        self.next += 1;
        self.word(self.tail).store(self.next, Ordering::Release);
        let field = |shift: u32, bits: u32| first >> shift & ((1 << bits) - 1);
        Some(Trigger {
            port: field(36, 16),
            what: field(52, 3),
            from: field(55, 4) << 32 | second & 0xFFFF_FFFF,
            to: field(59, 4) << 32 | second >> 32,
            bytes: field(0, 36),
        })
    }
}

fn port(rig: &Rig, size: u32, number: u32) -> (Proxy, Bytes) {
    let host = |bytes| rig.machine.space().alloc(0, Kind::Host, bytes).unwrap();
    let (ring, tail, done) = (host(16 * u64::from(size)), host(64), host(64));
    let (head, cache) = (rig.alloc(0, 64), rig.alloc(0, 64));
    let fifo = Bytes::default().u64s(&[ring, head, tail, cache, done]).u32s(&[size, 0]);
    let bytes = patience(rig, fifo.u32s(&[number, 1]), 0).u64s(&[0, 0]).u32s(&[0, 0]);
    (Proxy { ring, tail, done, size: size.into(), next: 0 }, bytes)
}

#[test]
fn vgpu_port_channel() {
    let Some(ptx) = ptx(PORT) else { return };
    let (blocks, count) = (3u64, 20u64);
    let rig = Rig::new(&ptx, sc(1));
    // A ring of 4: many laps, and pushers that wait for room.
    let (mut proxy, params) = port(&rig, 4, 40_000);
    let (source, fine) = (rig.alloc(0, 8 * 60), rig.alloc(0, 64));
    let launch =
        rig.start("send", 0, blocks as u32, 32, &params.u64(source).u32(count as u32).u64(fine).0);
    let (mut received, mut signals) = (vec![0u64; 60], 0);
    let until = Instant::now() + Duration::from_secs(20);
    while proxy.next < blocks * (count + 1) {
        assert!(Instant::now() < until, "{} triggers", proxy.next);
        let Some(t) = proxy.poll() else { continue };
        assert_eq!(t.port, 40_000);
        if t.what & 1 != 0 {
            assert_eq!((t.bytes, t.from), (8, t.to));
            received[t.to as usize / 8] = rig.read::<u64>(source + t.from, 1)[0];
        }
        signals += t.what >> 1 & 1;
        proxy.word(proxy.done).store(proxy.next, Ordering::Release);
    }
    rig.machine.wait(&launch).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(received, (1000..1060).collect::<Vec<u64>>());
    assert_eq!(signals, blocks);
    assert_eq!(rig.read::<u32>(fine, 3), [1; 3]);
}

#[test]
fn vgpu_triggers_have_room_for_64_gib() {
    let Some(ptx) = ptx(PORT) else { return };
    let rig = Rig::new(&ptx, sc(1));
    let (mut proxy, params) = port(&rig, 8, 65_535);
    let fine = rig.alloc(0, 64);
    run(&rig, "fields", 1, 1, &[params.u64(fine).0]);
    assert_eq!(rig.read::<u32>(fine, 3), [1, 1, 0]);
    let put = Trigger {
        port: 65_535,
        what: 3,
        to: 0xF_EDCB_A987,
        from: 0x8_1234_5678,
        bytes: 0xF_FFFF_FFFF,
    };
    assert_eq!(proxy.poll(), Some(put));
    assert_eq!(proxy.poll(), Some(Trigger { port: 65_535, what: 2, to: 0, from: 0, bytes: 0 }));
    assert_eq!(proxy.poll(), None);
}

/// Two devices exchange words. A semaphore has two lanes: the first half of a transfer goes by the one, the second by the other.
const EXCHANGE: &str = r#"
struct Exchange {
  PortChannel port;  // of block 0; those of others are behind it
  u64* source;
  u64* target;
  u64* wrong;
  u32 rank, rounds, words;
};

extern "C" __global__ void exchange(const __grid_constant__ Exchange e) {
  PortChannel port = e.port;
  port.port += blockIdx.x;
  port.awaited += 2 * blockIdx.x;
  port.received += blockIdx.x;
  u64* const source = e.source + blockIdx.x * e.words;
  const u64 half = gridDim.x * e.words;
  bool fine = true;
  for (u32 r = 0; r < e.rounds; ++r) {
    const u64 at = r % 2 * half + blockIdx.x * e.words;
    for (u32 k = threadIdx.x; k < e.words; k += blockDim.x) source[k] = 1000000 * (e.rank + 1) + 1000 * r + at + k;
    __syncthreads();
    if (threadIdx.x == 0) {
      const u64 from = 8 * blockIdx.x * e.words;
      fine &= r % 2 ? port.put(8 * at, from, 8 * e.words, 1) && port.signal(2) : port.put_with_signal(8 * at, from, 8 * e.words, 3);
      fine &= port.flush(4);
    }
    __syncthreads();
    for (u32 k = threadIdx.x; k < e.words; k += blockDim.x) source[k] = 7;
    if (threadIdx.x == 0) fine &= port.wait(5);
    __syncthreads();
    for (u32 k = threadIdx.x; k < e.words; k += blockDim.x) fine &= e.target[at + k] == 1000000 * (2 - e.rank) + 1000 * r + at + k;
    __syncthreads();
  }
  if (!fine) *e.wrong = 1;
}
"#;

const BLOCKS: u32 = 3;
const ROUNDS: u32 = 5;
const WORDS: u32 = 12;

fn proxied(rig: &Rig) {
    proxied_within(rig, u64::MAX >> 1);
}

fn proxied_within(rig: &Rig, timeout: u64) {
    let each = |bytes| (0..2).map(|d| rig.alloc(d, bytes)).collect::<Vec<u64>>();
    let (source, target, signals, wrong) = (each(4096), each(4096), each(64), each(16));
    // A ring of 2 for three blocks: all wait for room.
    let fifo = |d: u32| {
        let host = |bytes| rig.machine.space().alloc(d, Kind::Host, bytes).unwrap();
        let words = [host(64), rig.alloc(d, 16), host(64), rig.alloc(d, 16), host(64)];
        Bytes::default().u64s(&words).u32s(&[2, 0])
    };
    let fifos = [fifo(0), fifo(1)];
    let side = |d: usize| fifos[d].clone().u64s(&[source[d], target[1 - d], signals[1 - d]]).0;
    let triggers: u32 = (0..ROUNDS).map(|r| (2 + r % 2) * BLOCKS).sum();
    let both = Bytes([side(0), side(1)].concat()).u32(triggers);
    let proxy = rig.start("proxy", 2, 1, 1, &both.0);
    let params = |d: usize| {
        let control = rig.alloc(d as u32, 64 + 32 * 64);
        let port = fifos[d].clone().u32s(&[0, 1 - d as u32]).u64s(&[control, timeout, 1]);
        let port = port.u64s(&[signals[d], rig.alloc(d as u32, 64)]);
        let args = port.u32s(&[2, 0]).u64s(&[source[d], target[d], wrong[d]]);
        args.u32s(&[d as u32, ROUNDS, WORDS]).0
    };
    run(rig, "exchange", BLOCKS, 32, &[params(0), params(1)]);
    rig.machine.wait(&proxy).unwrap_or_else(|e| panic!("{e}"));
    (0..2).for_each(|d| assert_eq!(rig.read::<u64>(wrong[d], 1), [0], "rank {d}"));
}

#[test]
fn vgpu_ports_with_a_proxy_in_weak_memory() {
    in_all_modes(&with_proxy(EXCHANGE), 3, proxied);
}

/// Orders and rules of port.cuh, weakened: what, header, text, and what stands there instead.
const MUTANTS: [(&str, &str, &str, &str); 12] = [
    (
        "the trigger's release",
        "port.cuh",
        "store_release_sys(entry, first)",
        "store_relaxed_sys(entry, first)",
    ),
    (
        "word 1 before word 0",
        "port.cuh",
        "    store_relaxed_sys(entry + 1, static_cast<u32>(from) | to << trigger::TO_LOW_SHIFT);\n",
        "",
    ),
    ("the acquire of a flush", "port.cuh", "load_acquire_sys(done)", "load_relaxed_sys(done)"),
    ("a flush that waits", "port.cuh", "(done)) > ticket", "(done)) >= 0"),
    ("a wait's acquire", "semaphore.cuh", "    acquire_polled_sys(word);\n", ""),
    ("all lanes of a wait", "port.cuh", "lane < lanes", "lane < 1"),
    ("a count of waits", "port.cuh", "    store(received, value);\n", ""),
    ("room in the ring", "port.cuh", "ticket - size + 1", "0"),
    ("the last entry of the ring", "port.cuh", "ticket - size + 1", "ticket - size"),
    ("a parity for each lap", "port.cuh", "(ticket / size & 1) ^ 1", "1"),
    (
        "the acquire of room",
        "port.cuh",
        "(seen = load_acquire_sys(tail)) >= needed; },",
        "(seen = load_relaxed_sys(tail)) >= needed; },",
    ),
    (
        "the acquire of what others saw of it",
        "port.cuh",
        "load_acquire_gpu(tail_cache)",
        "load_relaxed_sys(tail_cache)",
    ),
];

/// Whether the headers with this in place of that are caught; `None` without a compiler.
fn catches(file: &str, from: &str, to: &str) -> Option<bool> {
    let mut headers = nvrtc::mutated(file, from, to);
    headers.iter_mut().for_each(|(_, text)| *text = text.replace(HASTE.0, HASTE.1));
    let ptx = nvrtc::compile_with(&headers, &with_proxy(EXCHANGE), 90)?;
    let ptx = ptx.unwrap_or_else(|log| panic!("{to}: {log}"));
    Some(is_caught(&ptx, 3, |rig| proxied_within(rig, HASTY)))
}

#[test]
fn vgpu_mutants_of_ports_are_caught() {
    let Some(whole) = catches("port.cuh", "u32 lanes;", "u32 lanes;") else { return };
    assert!(!whole, "without a mutation");
    let missed: Vec<_> = MUTANTS
        .iter()
        .filter(|(_, file, from, to)| catches(file, from, to) == Some(false))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

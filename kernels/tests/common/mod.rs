//! What the tests share: NVIDIA's compilers, a machine of virtual GPUs, and all-reduce plans written by hand.
#![allow(dead_code, reason = "each test uses its part")]

pub mod nvrtc;
pub mod oracle;
pub mod plans;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use vgpu::mem::space::Kind;
use vgpu::track::model::Config;
use vgpu::{Launch, LaunchSpec, LoadedModule, Machine, MachineConfig};

/// The folder of the device library.
pub fn headers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("device")
}

/// Folder of the CUDA compiler (`bin`, `lib`). `None`: it is not there, which is said loudly, and is a failure under CI.
pub fn toolkit() -> Option<PathBuf> {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cuda/nvidia/cu13");
    if cuda.join("bin/nvcc").exists() {
        return Some(cuda);
    }
    eprintln!(
        "\n*** NOT RUN: no CUDA compiler in target/cuda; `cargo xtask cuda` fetches it ***\n"
    );
    assert!(std::env::var_os("CI").is_none(), "a test that cannot run is a failure under CI");
    None
}

/// PTX of a source, by nvcc, or its messages. The headers are those in `headers`.
pub fn nvcc(source: &str, headers: &Path, arch: u32) -> Option<Result<String, String>> {
    let cuda = toolkit()?;
    let unique = format!("warpmesh-{}-{:?}", std::process::id(), std::thread::current().id());
    let stem = std::env::temp_dir().join(unique);
    let (from, to) = (stem.with_extension("cu"), stem.with_extension("ptx"));
    std::fs::write(&from, source).unwrap();
    let done = Command::new(cuda.join("bin/nvcc"))
        .args(["-ptx", "-std=c++17", "-Werror=all-warnings", &format!("-arch=sm_{arch}")])
        .arg(format!("-I{}", headers.display()))
        .arg("-o")
        .args([&to, &from])
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&to);
    let _ = (std::fs::remove_file(from), std::fs::remove_file(to));
    Some(match text {
        Ok(text) if done.status.success() => Ok(text),
        _ => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    })
}

/// A kernel that is the proxy of two devices, so that weak memory and race detection see both sides of their FIFOs.
const PROXY: &str = r#"
#include "warpmesh/port.cuh"
using namespace warpmesh;

struct Side {
  Fifo fifo;        // this side's
  const u64* source;
  u64* target;      // the peer's
  u64* signals;     // the peer's: two lanes for each port
};

// What primitives/src/net/proxy does, for both sides in turn, until it has seen so many triggers of each, or none for long.
extern "C" __global__ void proxy(const __grid_constant__ Side a, const __grid_constant__ Side b, u32 triggers) {
  u64 next[2] = {0, 0}, counts[2][4] = {};
  for (u32 idle = 0; idle < 20000 && (next[0] < triggers || next[1] < triggers); ++idle) {
    for (u32 s = 0; s < 2; ++s) {
      const Side& side = s == 0 ? a : b;
      const u64 n = next[s];
      if (n == triggers) continue;
      const u64* const entry = side.fifo.ring + 2 * (n % side.fifo.size);
      const u64 first = load_acquire_sys(entry);
      if (first >> 63 == (n / side.fifo.size & 1)) continue;
      const u64 second = load_relaxed_sys(entry + 1);
      store_release_sys(side.fifo.tail, n + 1);
      const u64 bytes = first & 0xFFFFFFFFFull, what = first >> 52 & 7, port = first >> 36 & 0xFFFF;
      const u64 from = (second & 0xFFFFFFFF) / 8, to = (second >> 32) / 8, count = what & 1 ? (bytes + 7) / 8 : 0;
      const u64 value = what & 2 ? ++counts[s][port] : 0;
      for (u64 lane = 0; lane < 2; ++lane) {
        for (u64 k = lane * count / 2; k < (lane + 1) * count / 2; ++k) side.target[to + k] = side.source[from + k];
        if (value) store_release_sys(side.signals + 2 * port + lane, value);
      }
      store_release_sys(side.fifo.done, n + 1);
      next[s] = n + 1;
      idle = 0;
    }
  }
}

"#;

/// A source with that kernel.
pub fn with_proxy(source: &str) -> String {
    format!("{PROXY}{source}")
}

/// SC mode.
pub fn sc(devices: u32) -> MachineConfig {
    MachineConfig { devices, sms: 8, watchdog: Duration::from_secs(20), ..MachineConfig::default() }
}

/// Weak memory and race detection.
pub fn weak(devices: u32, seed: u64) -> MachineConfig {
    MachineConfig { track: Some(Config { weak: true, race: true, seed }), ..sc(devices) }
}

/// A machine with a loaded module.
pub struct Rig {
    pub machine: Machine,
    pub module: LoadedModule,
}

impl Rig {
    pub fn new(ptx: &str, config: MachineConfig) -> Rig {
        let machine = Machine::new(config).unwrap();
        let module = machine.load(ptx).unwrap_or_else(|e| panic!("{e}"));
        Rig { machine, module }
    }

    /// Zeroed memory of a device.
    pub fn alloc(&self, device: u32, bytes: usize) -> u64 {
        self.machine.space().alloc(device, Kind::Device, bytes.max(16) as u64).unwrap()
    }

    pub fn write<T: Copy>(&self, at: u64, data: &[T]) {
        assert!(self.machine.space().find(at, size_of_val(data).max(1) as u64).is_some());
        // SAFETY: inside one allocation; a test writes words that no kernel writes at that time.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr().cast::<u8>(),
                at as *mut u8,
                size_of_val(data),
            );
        }
    }

    pub fn read<T: Copy>(&self, at: u64, n: usize) -> Vec<T> {
        assert!(self.machine.space().find(at, (n * size_of::<T>()).max(1) as u64).is_some());
        // SAFETY: inside one allocation; the tests read plain numbers while no kernel touches them.
        (0..n).map(|k| unsafe { (at as *const T).add(k).read_unaligned() }).collect()
    }

    pub fn start(
        &self,
        kernel: &str,
        device: u32,
        grid: u32,
        block: u32,
        params: &[u8],
    ) -> Arc<Launch> {
        let space = self.machine.space();
        let kernel = self.module.kernel(space, device, kernel).unwrap_or_else(|e| panic!("{e}"));
        let spec = LaunchSpec {
            kernel: &kernel,
            device,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: 0,
            params,
            cooperative: false,
        };
        self.machine.launch(&spec).unwrap()
    }

    /// Panics if a race was found.
    pub fn assert_no_races(&self) {
        let races: Vec<String> = self.machine.races().iter().map(|r| r.to_string()).collect();
        assert!(races.is_empty(), "{}", races.join("\n"));
    }
}

const NO_TIMEOUT: u64 = u64::MAX >> 1;

/// PTX of a source by NVRTC. `None` without it.
pub fn ptx(source: &str) -> Option<String> {
    Some(nvrtc::compile(source, 90)?.unwrap_or_else(|log| panic!("{log}")))
}

/// SC mode, and weak mode with race detection, which must find nothing.
pub fn in_all_modes(source: &str, devices: u32, test: impl Fn(&Rig)) {
    let Some(ptx) = ptx(source) else { return };
    test(&Rig::new(&ptx, sc(devices)));
    for seed in 0..6 {
        let rig = Rig::new(&ptx, weak(devices, seed));
        test(&rig);
        rig.assert_no_races();
    }
}

/// Runs a kernel on as many devices as there are parameters, all at once.
pub fn run(rig: &Rig, kernel: &str, grid: u32, block: u32, params: &[Vec<u8>]) {
    let start = |(device, p): (usize, &Vec<u8>)| rig.start(kernel, device as u32, grid, block, p);
    let launches: Vec<_> = params.iter().enumerate().map(start).collect();
    for launch in launches {
        rig.machine.wait(&launch).unwrap_or_else(|e| panic!("{kernel}: {e}"));
    }
}

/// `Patience` with memory of its own.
pub fn patience(rig: &Rig, bytes: Bytes, device: u32) -> Bytes {
    bytes.u64(rig.alloc(device, 64 + 32 * 64)).u64s(&[NO_TIMEOUT, 1])
}

/// In weak mode the clock counts a warp's instructions. With ticks of 2^10 of them, which this makes, a hang ends soon.
pub const HASTE: (&str, &str) = ("TICK = 20;", "TICK = 10;");
/// A timeout for that.
pub const HASTY: u64 = 50_000;

/// Whether weak memory or race detection tells that something is wrong with a kernel.
pub fn is_caught(ptx: &str, devices: u32, test: fn(&Rig)) -> bool {
    (0..24).any(|seed| {
        let watchdog = Duration::from_millis(100);
        let rig = Rig::new(ptx, MachineConfig { watchdog, ..weak(devices, seed) });
        let wrong = catch_unwind(AssertUnwindSafe(|| test(&rig))).is_err();
        wrong || !rig.machine.races().is_empty()
    })
}

/// A struct of a kernel's parameters, field by field with its alignment.
#[derive(Clone, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn u64(mut self, x: u64) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(x.to_le_bytes());
        self
    }
    pub fn u32(mut self, x: u32) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(x.to_le_bytes());
        self
    }
    pub fn u16(mut self, x: u16) -> Self {
        self.0.resize(self.0.len().next_multiple_of(2), 0);
        self.0.extend(x.to_le_bytes());
        self
    }
    pub fn u8s(mut self, all: &[u8]) -> Self {
        self.0.extend(all);
        self
    }
    pub fn u64s(self, all: &[u64]) -> Self {
        all.iter().fold(self, |bytes, &x| bytes.u64(x))
    }
    pub fn u32s(self, all: &[u32]) -> Self {
        all.iter().fold(self, |bytes, &x| bytes.u32(x))
    }
}

/// Numbers that look random and are the same every time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }
}

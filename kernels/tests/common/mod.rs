//! What the tests share: NVIDIA's compilers, a machine of virtual GPUs, and all-reduce plans written by hand.
#![allow(dead_code, reason = "each test uses its part")]

pub mod nvrtc;
pub mod oracle;
pub mod plans;

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

//! What the tests share: NVIDIA's compiler from PyPI, and a machine with buffers.
#![allow(dead_code, reason = "each test uses its part")]

pub mod cases;
mod toolkit;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

pub use toolkit::toolkit;
use vgpu::mem::space::Kind;
use vgpu::{Counters, Fault, Launch, LaunchSpec, LoadedModule, Machine, MachineConfig};

/// PTX of tests/kernels/kernels.cu.
pub fn kernels_ptx() -> Option<String> {
    let cuda = toolkit()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/kernels.cu");
    let out = std::env::temp_dir().join(format!(
        "vgpu-kernels-{}-{:?}.ptx",
        std::process::id(),
        std::thread::current().id()
    ));
    let done = Command::new(cuda.join("bin/nvcc"))
        .args(["-ptx", "-w", "-arch=sm_90", "-std=c++17", "-o"])
        .arg(&out)
        .arg(&source)
        .status();
    assert!(done.is_ok_and(|s| s.success()), "nvcc fails on {}", source.display());
    let text = std::fs::read_to_string(&out).unwrap();
    let _ = std::fs::remove_file(out);
    Some(text)
}

/// A machine with a loaded module.
pub struct Rig {
    pub machine: Machine,
    pub module: LoadedModule,
}

/// Kernel parameters: values with their alignment.
#[derive(Clone, Default)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn new() -> Self {
        Params::default()
    }
    pub fn u64(mut self, x: u64) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(x.to_le_bytes());
        self
    }
    pub fn u32(mut self, x: u32) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }
    pub fn all(mut self, x: &[u64]) -> Self {
        for x in x {
            self = self.u64(*x);
        }
        self
    }
}

impl Rig {
    pub fn new(ptx: &str, config: MachineConfig) -> Rig {
        let machine = Machine::new(config).unwrap();
        let module = machine.load(ptx).unwrap_or_else(|e| panic!("{e}"));
        Rig { machine, module }
    }

    pub fn alloc<T>(&self, device: u32, n: usize) -> u64 {
        self.machine.space().alloc(device, Kind::Device, (n * size_of::<T>()) as u64).unwrap()
    }

    pub fn write<T: Copy>(&self, at: u64, data: &[T]) {
        assert!(self.machine.space().find(at, size_of_val(data) as u64).is_some());
        // SAFETY: inside one allocation; the tests write only while no kernel touches it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at as *mut T, data.len()) };
    }

    pub fn read<T: Copy>(&self, at: u64, n: usize) -> Vec<T> {
        assert!(self.machine.space().find(at, (n * size_of::<T>()) as u64).is_some());
        // SAFETY: inside one allocation; the tests read plain numbers while no kernel touches them.
        (0..n).map(|k| unsafe { (at as *const T).add(k).read() }).collect()
    }

    pub fn start(
        &self,
        name: &str,
        device: u32,
        grid: u32,
        block: u32,
        shared: u32,
        params: &Params,
    ) -> Arc<Launch> {
        let kernel = self
            .module
            .kernel(self.machine.space(), device, name)
            .unwrap_or_else(|e| panic!("{e}"));
        let spec = LaunchSpec {
            kernel: &kernel,
            device,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: shared,
            params: &params.0,
            cooperative: false,
        };
        self.machine.launch(&spec).unwrap()
    }

    pub fn run(
        &self,
        name: &str,
        device: u32,
        grid: u32,
        block: u32,
        shared: u32,
        params: &Params,
    ) -> Result<Counters, Fault> {
        self.machine.wait(&self.start(name, device, grid, block, shared, params))
    }
}

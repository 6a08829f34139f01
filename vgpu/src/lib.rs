//! A virtual GPU: it runs real PTX on host memory, so that CUDA code is tested on any machine.
//!
//! ```
//! use vgpu::{LaunchSpec, Machine, MachineConfig};
//!
//! let machine = Machine::new(MachineConfig::default())?;
//! let ptx = ".version 8.0\n.target sm_90\n.address_size 64\n
//!     .visible .entry one(.param .u64 p) {
//!         .reg .b64 %rd<2>;
//!         ld.param.u64 %rd1, [p];
//!         st.global.u32 [%rd1], 1;
//!         ret;
//!     }";
//! let module = machine.load(ptx)?;
//! let memory = machine.space().alloc(0, vgpu::mem::space::Kind::Device, 4)?;
//! let kernel = module.kernel(machine.space(), 0, "one")?;
//! let spec = LaunchSpec {
//!     kernel: &kernel,
//!     device: 0,
//!     grid: [1, 1, 1],
//!     block: [1, 1, 1],
//!     dynamic_shared: 0,
//!     params: &memory.to_le_bytes(),
//!     cooperative: false,
//! };
//! let counters = machine.wait(&*machine.launch(&spec)?)?;
//! assert_eq!(counters.stored[0], 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! How it is built, and what it cannot show: ARCHITECTURE.md of this crate.

pub mod driver;
pub mod error;
pub mod exec;
pub mod isa;
pub mod launch;
pub mod litmus;
pub mod machine;
pub mod mem;
pub mod module;
pub mod num;
mod progress;
pub mod ptx;
pub mod remote;
mod seeded;
pub mod track;
pub mod writers;

pub use error::{Fault, LoadError, Place};
pub use launch::{Launch, LaunchSpec};
pub use machine::{Machine, MachineConfig};
pub use mem::counters::Counters;
pub use module::LoadedModule;

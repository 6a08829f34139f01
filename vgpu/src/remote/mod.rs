//! Tracked mode over several processes: one process, the *engine* (`vgpu run`), runs the kernels of all of them.
//!
//! Weak memory and race detection keep histories of every granule and clocks of every thread. They are of use only if all
//! accesses go through them, so a program's process sends its launches to the engine and waits. Memory is files that both
//! map; every process has a range of addresses of its own (a *slice* of the engine's), so a pointer means the same in both.
//!
//! ```text
//!   process 1   cuLaunchKernel ──launch──►  engine: one machine, one model, one seeded scheduler
//!   process 2   cuLaunchKernel ──launch──►     │
//!               ◄── counters, fault ───────────┘
//! ```
//!
//! Streams, events and copies stay in the program's process. A process that dies takes its kernels and its memory along.

mod client;
mod server;
mod wire;

pub use client::Client;
pub use server::Server;

/// The variable that names the engine's socket.
pub const VARIABLE: &str = "VGPU_ENGINE";

/// Where the slices begin: far from where programs, libraries and heaps are.
const BASE: u64 = 16 << 40;

/// The most processes.
const SLICES: u32 = 32;

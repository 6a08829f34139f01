//! vgpu: the driver API, through cudarc's bindings of NVIDIA's header, on `libcuda.so.1` made of this crate.
//!
//! Each test runs in a process of its own, in which cudarc finds the library; see [`host`].

mod context;
mod graph;
mod host;
mod launch;
mod memory;
mod module;
mod multicast;
mod processes;
mod queue;
mod vmm;

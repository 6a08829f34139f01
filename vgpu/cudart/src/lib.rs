//! `libcudart.so.13`: the CUDA runtime API over the CUDA driver API.
//!
//! Programs that `nvcc -cudart shared` compiled import the entry points of this library. It opens `libcuda.so.1` by name, so
//! it works on the driver, and in the end on the virtual GPU, that the rest of the process uses. It keeps little of its own:
//!
//! ```text
//! device, memory, copy, stream, graph, launch    entry points, one driver call each or a few
//!   context     makes the primary context of a device current      registry    host symbol -> module, function, variable
//!     driver    the entry points of libcuda.so.1, looked up when first used      fatbin    PTX out of what nvcc embeds
//! ```
//!
//! Streams, events, graphs and errors are the driver's: handles and numbers are passed on as they are. An entry point that is
//! not implemented does not exist; one whose counterpart the driver lacks says so on stderr and returns
//! `cudaErrorCallRequiresNewerDriver`.

#[macro_use]
mod error;

mod context;
mod copy;
mod device;
mod driver;
mod fatbin;
mod graph;
mod launch;
#[cfg(test)]
mod layout;
mod memory;
mod properties;
mod registry;
mod stream;

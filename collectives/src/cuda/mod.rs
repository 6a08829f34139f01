//! The CUDA device: plans compiled to kernels.

mod arrange;
pub(crate) mod emit;
mod geometry;
mod kernel;
pub(crate) mod params;
mod regions;

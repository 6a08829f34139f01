//! The CUDA device: plans compiled to kernels.

mod arrange;
pub(crate) mod emit;
pub(crate) mod params;

//! NVIDIA's compiler and headers from PyPI.

use std::path::{Path, PathBuf};

/// Folder of the CUDA compiler and headers (`bin`, `include`). `None`: it is not there, which is said loudly, and is a failure
/// under CI.
pub fn toolkit() -> Option<PathBuf> {
    // The crates that use this file lie at several depths of the workspace.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|p| p.join("Cargo.lock").exists()).unwrap_or(here);
    let cuda = root.join("target/cuda/nvidia/cu13");
    if cuda.join("bin/nvcc").exists() {
        return Some(cuda);
    }
    eprintln!(
        "\n*** NOT RUN: no CUDA compiler in target/cuda; `cargo xtask cuda` fetches it ***\n"
    );
    assert!(std::env::var_os("CI").is_none(), "a test that cannot run is a failure under CI");
    None
}

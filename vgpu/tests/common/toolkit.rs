//! NVIDIA's compiler and headers from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: [&str; 6] = [
    "nvidia-cuda-nvcc",
    "nvidia-nvvm",
    "nvidia-cuda-crt",
    "nvidia-cuda-runtime",
    "nvidia-cuda-cccl",
    "nvidia-cuda-nvrtc",
];

/// Folder of the CUDA compiler and headers (`bin`, `include`), fetched into target/ once. `None`: it cannot be had here,
/// which is said loudly, and is a failure under CI.
pub fn toolkit() -> Option<PathBuf> {
    // The crates that use this file lie at several depths of the workspace.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root =
        here.ancestors().find(|p| p.join("Cargo.lock").exists()).unwrap().join("target/cuda");
    let cuda = root.join("nvidia/cu13");
    static ONCE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONCE.lock().unwrap_or_else(|e| e.into_inner());
    if !cuda.join("bin/nvcc").exists() {
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(&root)
            .args(PACKAGES)
            .status();
        if !cuda.join("bin/nvcc").exists() {
            eprintln!(
                "\n*** NOT RUN: NVIDIA's compiler is not in target/cuda and pip could not fetch it ({pip:?}) ***\n"
            );
            assert!(
                std::env::var_os("CI").is_none(),
                "a test that cannot run is a failure under CI"
            );
            return None;
        }
    }
    Some(cuda)
}

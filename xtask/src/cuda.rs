//! NVIDIA's compilers and NCCL, from PyPI: nvcc, ptxas, NVRTC and their headers, without a driver.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::system::{root, step};

/// Pinned, so that the same sources give the same PTX everywhere.
const PACKAGES: [&str; 7] = [
    "nvidia-cuda-nvcc==13.5.37",
    "nvidia-nvvm==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-cccl==13.3.5.0.6",
    "nvidia-cuda-nvrtc==13.5.37",
    "nvidia-cuda-nvdisasm==13.5.37",
];

/// Fetches the compilers into target/cuda unless they are there.
pub fn ensure() -> Result<()> {
    fetch("cuda", "NVIDIA's compilers (0.6 GB)", &PACKAGES)
}

/// NVIDIA's NCCL, for its header, and to see that it has the functions that are called.
pub fn nccl() -> Result<PathBuf> {
    fetch("nccl", "NVIDIA's NCCL (0.3 GB)", &["nvidia-nccl-cu13==2.32.3"])?;
    Ok(root().join("target/nccl/nvidia/nccl"))
}

/// The toolkit that `ensure` fetches.
pub fn toolkit() -> PathBuf {
    root().join("target/cuda/nvidia/cu13")
}

/// Packages into a folder of target/.
fn fetch(folder: &str, what: &str, packages: &[&str]) -> Result<()> {
    let folder = root().join("target").join(folder);
    // Written last, so that a fetch that was broken off is repeated.
    let stamp = folder.join("fetched");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&folder);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(["--root-user-action", "ignore", "--target"])
        .arg(&folder)
        .args(packages);
    if let Err(error) = step(&format!("fetch {what}"), &mut pip) {
        bail!(
            "{error:#}\nThe tests of CUDA code need them; Python 3 with pip fetches them from PyPI."
        );
    }
    std::fs::write(stamp, wanted)?;
    Ok(())
}

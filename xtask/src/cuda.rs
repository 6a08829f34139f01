//! NVIDIA's compilers, from PyPI: nvcc, ptxas, NVRTC and their headers, without a driver.

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

/// Fetches them into target/cuda unless they are there.
pub fn ensure() -> Result<()> {
    let folder = root().join("target/cuda");
    // Written last, so that a fetch that was broken off is repeated.
    let stamp = folder.join("fetched");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&folder);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(["--root-user-action", "ignore", "--target"])
        .arg(&folder)
        .args(PACKAGES);
    if let Err(error) = step("fetch NVIDIA's compilers (0.6 GB)", &mut pip) {
        bail!(
            "{error:#}\nThe tests of CUDA code need them; Python 3 with pip fetches them from PyPI."
        );
    }
    std::fs::write(stamp, wanted)?;
    Ok(())
}

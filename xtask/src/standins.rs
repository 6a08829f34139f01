//! Libraries that stand in for NVIDIA's on virtual GPUs: compiled from vgpu/standins, never shipped.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cuda;
use crate::system::{cargo, root, step};

/// A folder with the stand-in for libnccl.so.2, compiled against NVIDIA's nccl.h. It claims to be
/// an older NCCL, without what came later, if `version` is a number of `NCCL_VERSION`.
pub fn nccl(version: Option<u32>) -> Result<PathBuf> {
    cuda::ensure()?;
    let header = cuda::nccl()?.join("include");
    let name = version.map_or("nccl".to_owned(), |version| format!("nccl-{version}"));
    let folder = folder(&name)?;
    let mut cc = compiler();
    // Every function that others see has to be declared in nccl.h, with these types.
    cc.arg("-Wmissing-declarations")
        .arg("-I")
        .arg(header)
        .arg("-isystem")
        .arg(cuda::toolkit().join("include"));
    cc.args(version.map(|version| format!("-DSTANDIN_VERSION={version}")));
    cc.args(["nccl.c", "exchange.c", "fold.c"].map(source));
    cc.arg("-o").arg(folder.join("libnccl.so.2"));
    cc.arg("-L").arg(driver()?).args(["-l:libcuda.so.1", "-lm"]);
    step(&format!("compile the stand-in for NCCL ({name})"), &mut cc)?;
    Ok(folder)
}

/// A folder whose libnccl.so.2 does not load.
pub fn broken_nccl() -> Result<PathBuf> {
    let folder = folder("nccl-broken")?;
    std::fs::write(folder.join("libnccl.so.2"), "")?;
    Ok(folder)
}

/// A folder that looks like CUDA's to candle's build: `lib` has what it links.
pub fn candle() -> Result<PathBuf> {
    let home = folder("candle")?;
    let lib = home.join("lib");
    std::fs::create_dir_all(&lib)?;
    let math = lib.join("libmath.so");
    let mut cc = compiler();
    step(
        "compile the stand-ins for cuBLAS and cuRAND",
        cc.arg(source("math.c")).arg("-o").arg(&math),
    )?;
    for name in ["libcublas.so", "libcublasLt.so", "libcurand.so"] {
        link(&math, &lib.join(name))?;
    }
    link(&driver()?.join("libcuda.so.1"), &lib.join("libcuda.so"))?;
    link(&root().join("target/release/libvgpu_cudart.so"), &lib.join("libcudart.so"))?;
    link(&cuda::toolkit().join("lib/libnvrtc.so.13"), &lib.join("libnvrtc.so"))?;
    Ok(home)
}

/// The script that stands between candle's build and nvcc.
pub fn nvcc() -> PathBuf {
    source("nvcc")
}

fn compiler() -> Command {
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]);
    cc
}

fn source(name: &str) -> PathBuf {
    root().join("vgpu/standins").join(name)
}

/// A folder with vgpu's libcuda.so.1, to link with.
fn driver() -> Result<PathBuf> {
    let build = ["build", "--release", "--quiet", "-p", "vgpu", "-p", "vgpu-cudart"];
    step("build vgpu", &mut cargo(&build))?;
    let folder = folder("driver")?;
    link(&root().join("target/release/libvgpu.so"), &folder.join("libcuda.so.1"))?;
    Ok(folder)
}

fn folder(name: &str) -> Result<PathBuf> {
    let folder = root().join("target/standins").join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn link(to: &Path, at: &Path) -> Result<()> {
    let _ = std::fs::remove_file(at);
    symlink(to, at).with_context(|| format!("linking {}", at.display()))
}

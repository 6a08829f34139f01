//! The example with candle's tensors, on the host and on virtual GPUs. It checks its results itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::gpu::Libraries;
use crate::system::{cargo, root, within};
use crate::{cuda, standins};

/// Kernels of candle's that the example launches. All of them take nvcc minutes.
const KERNELS: &str = "affine cast";

/// The build, of which candle is most, and a run.
const BUILD: Duration = Duration::from_secs(1800);
const RUN: Duration = Duration::from_secs(120);

pub fn test() -> Result<()> {
    cuda::ensure()?;
    let home = standins::candle()?;
    let manifest = root().join("collectives/examples/candle/Cargo.toml").display().to_string();
    let target = root().join("target/candle");
    let mut fmt = cargo(&["fmt", "--check", "--manifest-path", &manifest]);
    passed("rustfmt of the candle example", RUN, &mut fmt)?;
    let mut build = cargo(&["build", "--features", "cuda", "--manifest-path", &manifest]);
    build
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CUDA_COMPUTE_CAP", "90")
        .env("CUDA_HOME", &home)
        .env("NVCC", standins::nvcc())
        .env("STANDIN_NVCC", cuda::toolkit().join("bin/nvcc"))
        .env("STANDIN_KERNELS", KERNELS);
    forget_other_kernels(&manifest, &target)?;
    passed("build the candle example", BUILD, &mut build)?;
    let mut libraries = Libraries::on_vgpu(2, "");
    libraries.add(home.join("lib"));
    for device in ["cpu", "cuda"] {
        let mut example = Command::new(target.join("debug/candle-all-reduce"));
        let mut command = libraries.around(example.arg(device));
        let said = passed(&format!("the candle example on {device}"), RUN, &mut command)?;
        if said.matches("right").count() != 2 {
            bail!(
                "the candle example on {device}: not both ranks say that they are right:\n{said}"
            );
        }
    }
    Ok(())
}

/// candle's build script keeps PTX for as long as its sources are the same, whatever nvcc does.
fn forget_other_kernels(manifest: &str, target: &Path) -> Result<()> {
    let stamp = target.join("kernels");
    let script = std::fs::read_to_string(standins::nvcc())?;
    let wanted = format!("{KERNELS}\n{script}");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    std::fs::create_dir_all(target)?;
    let mut clean = cargo(&["clean", "-p", "candle-kernels", "--manifest-path", manifest]);
    passed("forget candle's other kernels", RUN, clean.arg("--target-dir").arg(target))?;
    Ok(std::fs::write(stamp, wanted)?)
}

/// What a step printed that has to succeed.
fn passed(name: &str, limit: Duration, command: &mut Command) -> Result<String> {
    let output = within(limit, name, command)?;
    if output.good { Ok(output.out) } else { bail!("{name} failed: {}", output.command) }
}

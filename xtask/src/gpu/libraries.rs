//! NVRTC, NCCL and, where there is no GPU, vgpu: what programs are started with.

use std::path::PathBuf;
use std::process::Command;

use super::value;
use crate::cuda;
use crate::system::{root, step};

/// Folders for LD_LIBRARY_PATH, and what a program is started by.
pub struct Libraries {
    folders: Vec<PathBuf>,
    /// `vgpu run` and its arguments.
    before: Vec<String>,
}

/// The oldest CUDA whose driver has all that is called: NVIDIA's driver 570.
const OLDEST: (u32, u32) = (12, 8);

impl Libraries {
    /// What `cargo xtask cuda` fetches; with virtual GPUs, if asked.
    pub fn new(vgpu: bool) -> Self {
        if vgpu { Self::on_vgpu(8, "") } else { Self { folders: vec![nvrtc()], before: vec![] } }
    }

    /// Virtual GPUs, with arguments for `vgpu run` more.
    pub fn on_vgpu(devices: usize, mode: &str) -> Self {
        let vgpu = root().join("target/release/vgpu").display().to_string();
        let devices = devices.to_string();
        let before = [&vgpu, "run", "--devices", &devices].into_iter();
        let before = before.chain(mode.split_whitespace()).chain(["--"]).map(str::to_owned);
        Self { folders: vec![nvrtc()], before: before.collect() }
    }

    /// Another folder, to be looked at first.
    pub fn add(&mut self, folder: PathBuf) {
        self.folders.insert(0, folder);
    }

    /// Fetches what the driver needs and the system does not have.
    pub fn fetch(&mut self, found: &str) {
        let driver = value(found, "driver: CUDA ").and_then(version).unwrap_or((0, 0));
        if driver < OLDEST {
            println!(
                "the driver is of CUDA {}.{}; what is called is there since {}.{} (driver 570)",
                driver.0, driver.1, OLDEST.0, OLDEST.1
            );
        }
        if driver.0 < 13 {
            // Code of a newer compiler's does not load there.
            self.fetch_one("nvidia-cuda-nvrtc-cu12", "nvidia/cuda_nvrtc/lib");
        }
        if value(found, "NCCL: ") == Some("not found") {
            let package = if driver.0 < 13 { "nvidia-nccl-cu12" } else { "nvidia-nccl-cu13" };
            self.fetch_one(package, "nvidia/nccl/lib");
        }
    }

    /// From PyPI into target/PACKAGE. Without it less is measured, which the report says.
    fn fetch_one(&mut self, package: &str, folder: &str) {
        let target = root().join("target").join(package);
        let lib = target.join(folder);
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
            .args(["--root-user-action", "ignore", "--target"])
            .args([&target.display().to_string(), package]);
        if !lib.exists()
            && let Err(error) = step(&format!("fetch {package}"), &mut pip)
        {
            println!("{error:#}");
        }
        if lib.exists() {
            self.add(lib);
        }
    }

    /// A command that finds the libraries. Its environment is not that of `command`.
    pub fn around(&self, command: &Command) -> Command {
        let mut words = self.before.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        words.push(command.get_program().to_owned());
        words.extend(command.get_args().map(std::ffi::OsStr::to_owned));
        let mut started = Command::new(&words[0]);
        let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = self.folders.iter().cloned().chain(std::env::split_paths(&inherited));
        let path = std::env::join_paths(folders.filter(|folder| !folder.as_os_str().is_empty()));
        started.args(&words[1..]).env("LD_LIBRARY_PATH", path.unwrap_or_default());
        started
    }
}

fn nvrtc() -> PathBuf {
    cuda::toolkit().join("lib")
}

/// "12.8" as numbers.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("12.10") > version("12.8") && version("13.0") > Some(OLDEST));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn programs_are_started_by_vgpu_with_nvrtc_in_reach() {
        let command = Libraries::on_vgpu(8, "--weak").around(Command::new("perf").arg("all"));
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert_eq!(args, ["run", "--devices", "8", "--weak", "--", "perf", "all"]);
        let path = command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH");
        let path = path.and_then(|(_, value)| value).unwrap().to_string_lossy().into_owned();
        assert!(path.contains("target/cuda/nvidia/cu13/lib"), "{path}");
    }
}

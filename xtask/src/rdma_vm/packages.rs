//! Debian's packages, downloaded and unpacked under `target/rdma-vm`. Nothing is installed, and nobody need be root:
//! apt works on folders of its own, where no package is installed, so that it brings all dependencies too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::system::{has, within};

/// What runs in the guest, and the header that layouts are compared with. (rdma-core itself is not needed, and wants
/// udev.)
const GUEST: [&str; 6] =
    ["busybox-static", "dash", "iproute2", "ibverbs-providers", "perftest", "libibverbs-dev"];
const QEMU: [&str; 1] = ["qemu-system-x86"];
/// Depends on the present kernel with all modules; that for clouds has no soft-RoCE.
const KERNEL: &str = "linux-image-amd64";

const LIMIT: Duration = Duration::from_secs(240);

/// Unpacked packages.
pub struct Packages {
    pub guest: PathBuf,
    pub qemu: PathBuf,
    pub kernel: PathBuf,
    /// The kernel's release: `6.1.0-56-amd64`.
    pub release: String,
}

/// Gets what is not there yet.
pub fn ensure(home: &Path) -> Result<Packages> {
    let tree = |name: &str| home.join(name);
    let there = |name: &str| tree(name).join("complete").exists();
    if !["guest", "qemu", "kernel"].into_iter().all(there) {
        download(home).context(
            "getting Debian's packages for the virtual machine; it needs a Debian 12 or later on x86-64, and its mirror",
        )?;
    }
    let (guest, qemu, kernel) = (tree("guest"), tree("qemu"), tree("kernel"));
    let modules = fs::read_dir(kernel.join("lib/modules")).context("the kernel's modules")?;
    let release = modules.flatten().next().context("the kernel's package has no modules")?;
    let release = release.file_name().to_string_lossy().into_owned();
    Ok(Packages { guest, qemu, kernel, release })
}

fn download(home: &Path) -> Result<()> {
    if !cfg!(target_arch = "x86_64") || !has("apt-get") || !has("dpkg") {
        bail!("this machine has no apt-get and dpkg, or is no x86-64");
    }
    let apt = Apt::new(home)?;
    apt.run("apt-get update", &apt.get(&["update", "-qq"], home))?;
    apt.unpack("guest", &GUEST)?;
    apt.unpack("qemu", &QEMU)?;
    let image = apt.kernel()?;
    apt.unpack_alone("kernel", &image)
}

struct Apt<'a> {
    home: &'a Path,
}

impl<'a> Apt<'a> {
    fn new(home: &'a Path) -> Result<Self> {
        for folder in ["apt/lists/partial", "apt/cache/archives/partial"] {
            fs::create_dir_all(home.join(folder))?;
        }
        fs::write(home.join("apt/status"), "")?; // no package is installed
        Ok(Self { home })
    }

    /// Arguments for a program of apt's, whose downloads go to `archives`.
    fn get(&self, words: &[&str], archives: &Path) -> Vec<String> {
        let apt = self.home.join("apt");
        let options = [
            ("Dir::State", apt.clone()),
            ("Dir::State::status", apt.join("status")),
            ("Dir::Cache", apt.join("cache")),
            ("Dir::Cache::archives", archives.to_owned()),
            ("APT::Sandbox::User", "root".into()), // the folders need not be readable by others
        ];
        let options = options.iter().map(|(name, value)| format!("-o{name}={}", value.display()));
        options.chain(words.iter().map(|word| (*word).to_owned())).collect()
    }

    fn run(&self, name: &str, args: &[String]) -> Result<String> {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        finished(name, &mut command)
    }

    /// Downloads packages with all that they depend on, and unpacks them.
    fn unpack(&self, tree: &str, packages: &[&str]) -> Result<()> {
        self.tree(tree, |archives| {
            let words = ["install", "-y", "-qq", "--no-install-recommends", "--download-only"];
            let args = self.get(&[&words, packages].concat(), archives);
            self.run(&format!("download of {}", packages.join(", ")), &args).map(drop)
        })
    }

    /// Downloads one package without its dependencies, and unpacks it.
    fn unpack_alone(&self, tree: &str, package: &str) -> Result<()> {
        self.tree(tree, |archives| {
            let mut command = Command::new("apt-get");
            command.args(self.get(&["download", "-qq", package], archives)).current_dir(archives);
            finished(&format!("download of {package}"), &mut command).map(drop)
        })
    }

    /// Makes a folder of the packages that `fetch` leaves in the folder that it is given.
    fn tree(&self, name: &str, fetch: impl Fn(&Path) -> Result<()>) -> Result<()> {
        let tree = self.home.join(name);
        if tree.join("complete").exists() {
            return Ok(());
        }
        let archives = self.home.join(format!("apt/{name}"));
        fs::create_dir_all(archives.join("partial"))?;
        fetch(&archives)?;
        let _ = fs::remove_dir_all(&tree); // the rest of a run that was ended
        fs::create_dir_all(&tree)?;
        for package in fs::read_dir(&archives)?.flatten().map(|entry| entry.path()) {
            if package.extension().is_some_and(|ending| ending == "deb") {
                let mut dpkg = Command::new("dpkg");
                let unpack = dpkg.arg("-x").args([&package, &tree]).output()?;
                if !unpack.status.success() {
                    bail!(
                        "dpkg -x {}: {}",
                        package.display(),
                        String::from_utf8_lossy(&unpack.stderr)
                    );
                }
            }
        }
        fs::remove_dir_all(&archives)?;
        Ok(fs::write(tree.join("complete"), "")?)
    }

    /// The package that the kernel's meta package stands for today.
    fn kernel(&self) -> Result<String> {
        let mut command = Command::new("apt-cache");
        command.args(self.get(&["depends", KERNEL], self.home));
        let text = finished("the kernel's name", &mut command)?;
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let image = names.find(|name| name.starts_with("linux-image-"));
        image.map(str::to_owned).with_context(|| format!("no kernel behind {KERNEL}:\n{text}"))
    }
}

/// Runs a program to its end and returns what it wrote.
fn finished(name: &str, command: &mut Command) -> Result<String> {
    let output = within(LIMIT, name, command)?;
    if !output.good {
        bail!("{name} failed: {}", output.last_lines(5));
    }
    Ok(output.out)
}

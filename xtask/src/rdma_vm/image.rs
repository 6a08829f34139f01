//! The guest's file system: an archive that the kernel unpacks into memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages::Packages;

/// Programs of the guest's packages.
const PROGRAMS: [&str; 6] = ["dash", "ip", "tc", "rdma", "ib_write_bw", "ib_write_lat"];
/// The drivers' modules, whose dependencies come with them. Soft-RoCE asks the kernel's cryptography for crc32 by name.
const MODULES: [&str; 6] = ["crc32_generic", "rdma_rxe", "rdma_ucm", "veth", "dummy", "sch_netem"];
/// Where the packages' programs and libraries are.
const BIN: [&str; 4] = ["bin", "usr/bin", "sbin", "usr/sbin"];
const LIB: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// Files and folders of the guest, by path.
struct Image {
    files: BTreeMap<String, Option<Vec<u8>>>,
}

/// Writes the archive: the packages' programs, the kernel's modules, `init`, and `files` of this machine under their names there, programs
/// and libraries with what they want.
pub fn write(
    to: &Path,
    packages: &Packages,
    init: &str,
    files: &[(String, PathBuf)],
) -> Result<()> {
    let mut image = Image { files: BTreeMap::new() };
    for folder in ["proc", "sys", "dev", "tmp", "run"] {
        image.folder(folder);
    }
    image.file("init", init.as_bytes().to_vec());
    image.file("etc/hosts", b"127.0.0.1 localhost\n".to_vec());
    image
        .copy("etc/libibverbs.d/rxe.driver", &packages.guest.join("etc/libibverbs.d/rxe.driver"))?;
    image.copy(LOADER, &packages.guest.join(LOADER))?;
    image.copy("bin/busybox", &packages.guest.join("bin/busybox"))?; // needs no libraries
    for name in PROGRAMS {
        let path =
            BIN.iter().map(|bin| packages.guest.join(bin).join(name)).find(|path| path.exists());
        let path = path.with_context(|| format!("the packages have no program {name}"))?;
        image.program(&format!("bin/{name}"), &path, packages)?;
    }
    for (name, path) in files {
        if path.extension().is_some_and(|ending| ending == "ptx" || ending == "bin") {
            image.copy(name, path)?;
        } else {
            image.program(name, &lighter(path, to), packages)?;
        }
    }
    image.driver(packages)?;
    for (i, module) in modules(packages)?.iter().enumerate() {
        let name = module.file_stem().unwrap_or_default().to_string_lossy();
        image.file(&format!("mod/{i:03}-{name}.ko"), unpacked(module)?);
    }
    fs::write(to, image.archive()?).with_context(|| format!("writing {}", to.display()))
}

impl Image {
    fn folder(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.files.entry(path[..at].to_owned()).or_insert(None);
        }
        self.files.entry(path.to_owned()).or_insert(None);
    }

    fn file(&mut self, path: &str, content: Vec<u8>) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.files.insert(path.to_owned(), Some(content));
    }

    fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        if !self.files.contains_key(path) {
            let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
            self.file(path, content);
        }
        Ok(())
    }

    /// A program or library with the libraries that it wants, all of the guest's packages.
    fn program(&mut self, path: &str, from: &Path, packages: &Packages) -> Result<()> {
        self.copy(path, from)?;
        for library in libraries(from, packages)? {
            let name = library.file_name().context("a library's name")?.to_string_lossy();
            self.copy(&format!("{}/{name}", LIB[1]), &library)?;
        }
        Ok(())
    }

    /// libibverbs' driver for soft-RoCE, and libibverbs itself, which programs look for when they run.
    fn driver(&mut self, packages: &Packages) -> Result<()> {
        let folder = packages.guest.join(LIB[0]);
        self.program(
            &format!("{}/libibverbs.so.1", LIB[1]),
            &folder.join("libibverbs.so.1"),
            packages,
        )?;
        let drivers = fs::read_dir(folder.join("libibverbs")).context("libibverbs' drivers")?;
        for driver in drivers.flatten() {
            let name = driver.file_name().to_string_lossy().into_owned();
            if name.starts_with("librxe") {
                self.program(&format!("{}/libibverbs/{name}", LIB[0]), &driver.path(), packages)?;
            }
        }
        Ok(())
    }

    /// The archive in cpio's format "newc": for each file a head of hexadecimal numbers, its name, its content.
    fn archive(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, content)) in self.files.iter().enumerate() {
            let (mode, content) = match content {
                Some(content) => (0o100_755, content.as_slice()),
                None => (0o040_755, [].as_slice()),
            };
            entry(&mut out, number + 1, mode, path, content)?;
        }
        entry(&mut out, 0, 0, "TRAILER!!!", &[])?;
        Ok(out)
    }
}

fn entry(out: &mut Vec<u8>, inode: usize, mode: u32, path: &str, content: &[u8]) -> Result<()> {
    let (size, name) = (content.len(), path.len() + 1);
    write!(out, "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}", 0, 1)?;
    write!(out, "{0:08x}{0:08x}{0:08x}{0:08x}{name:08x}{0:08x}{path}\0", 0)?;
    pad(out);
    out.extend(content);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A copy of a program or library beside the archive, without what debuggers want: most of it, which the guest would have to unpack. Itself,
/// where there is no `strip`.
fn lighter(path: &Path, archive: &Path) -> PathBuf {
    let copy = archive.with_file_name(path.file_name().unwrap_or_default());
    let strip = Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(path).status();
    if strip.is_ok_and(|status| status.success()) { copy } else { path.to_owned() }
}

/// The libraries that a program wants, as the packages' own loader finds them.
fn libraries(program: &Path, packages: &Packages) -> Result<Vec<PathBuf>> {
    let folders = LIB.map(|lib| packages.guest.join(lib).display().to_string()).join(":");
    let mut loader = Command::new(packages.guest.join(LOADER));
    let output = loader.args(["--library-path", &folders, "--list"]).arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("libraries of {}: {error}{text}", program.display());
    }
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!(
            "{} wants a library that Debian's packages here lack: {}",
            program.display(),
            missing.trim()
        );
    }
    let paths = text.lines().filter_map(|line| line.split("=> ").nth(1)?.split(' ').next());
    Ok(paths.map(PathBuf::from).collect())
}

/// The modules' files, each behind those that it depends on.
fn modules(packages: &Packages) -> Result<Vec<PathBuf>> {
    let root = packages.kernel.join("lib/modules").join(&packages.release).join("kernel");
    let mut all = BTreeMap::new();
    find_modules(&root, &mut all)?;
    let mut order = Vec::new();
    MODULES.iter().try_for_each(|module| add_module(module, &all, &mut order))?;
    Ok(order)
}

/// Finds `NAME.ko` and `NAME.ko.xz`; names are compared with `_` for `-`.
fn find_modules(folder: &Path, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten() {
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), all)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            all.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn add_module(name: &str, all: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    let path = all.get(&name.replace('-', "_"));
    let path = path.with_context(|| format!("the kernel's package has no module {name}"))?;
    if order.contains(path) {
        return Ok(());
    }
    // The section .modinfo has strings that end in a zero.
    let content = unpacked(path)?;
    let key = b"\0depends=";
    let at = content.windows(key.len()).position(|window| window == key);
    let depends = at.map_or(&[][..], |at| &content[at + key.len()..]);
    let depends = depends.split(|byte| *byte == 0).next().unwrap_or_default();
    for other in String::from_utf8_lossy(depends).split(',').filter(|other| !other.is_empty()) {
        add_module(other, all, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// A module's content; newer kernels have it compressed.
fn unpacked(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|ending| ending == "xz") {
        let output =
            Command::new("xz").arg("-dc").arg(module).output().context("cannot start xz")?;
        return Ok(output.stdout);
    }
    fs::read(module).with_context(|| module.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_cpio_writes() {
        let mut image = Image { files: BTreeMap::new() };
        image.file("a/b", b"hello".to_vec());
        let archive = image.archive().unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.starts_with("07070100000001000041ed") && text.contains("000081ed"), "{text}");
        // Head of 110 bytes, "a" and its zero, no content: the next begins at 112.
        assert_eq!(&text[112..118], "070701");
        // Head, "a/b" and its zero end at 226, so two zeros come before the content.
        assert_eq!(&archive[226..233], b"\0\0hello");
        assert_eq!(archive.len() % 4, 0);
    }
}

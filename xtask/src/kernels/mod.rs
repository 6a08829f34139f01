//! docs/cuda-kernels.md: what the built-in plans' kernels are as machine code. docs/cuda-costs.md: what they move.

mod costs;
mod quality;
mod sass;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cuda;
use crate::system::root;

/// Writes both pages, or with `--check` fails if they are not what the kernels are.
pub fn run(args: &[String]) -> Result<()> {
    match args {
        [] => write(),
        [check] if check == "--check" => self::check(),
        other => bail!("cargo xtask kernels [--check], not {other:?}"),
    }
}

/// The pages as they are to be.
fn generate() -> Result<[(PathBuf, String); 2]> {
    cuda::ensure()?;
    let docs = root().join("docs");
    Ok([
        (docs.join("cuda-kernels.md"), quality::page()?),
        (docs.join("cuda-costs.md"), costs::page()?),
    ])
}

fn write() -> Result<()> {
    for (file, text) in generate()? {
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("wrote {}", file.display());
    }
    Ok(())
}

/// Fails if a page is not what the kernels are.
pub fn check() -> Result<()> {
    for (file, now) in generate()? {
        let page = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = now.lines().zip(page.lines().chain(std::iter::repeat("")));
        let difference = lines.find(|(now, page)| now != page);
        if difference.is_some() || now.len() != page.len() {
            let file = file.display();
            bail!("{file} is out of date ({difference:?}); `cargo xtask kernels` writes it anew");
        }
    }
    Ok(())
}

/// A folder of its own for one run, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = root().join("target").join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The words of a file's name, `COLLECTIVE.PLAN.ROLE...`, as a page shows them.
fn title(words: &[&str]) -> String {
    let role = match words.get(2) {
        Some(&"all") | None => String::new(),
        Some(role) => format!(", {role}"),
    };
    format!("{} `{}`{role}", words[0], words.get(1).unwrap_or(&""))
}

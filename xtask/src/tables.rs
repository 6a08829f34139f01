//! docs/vgpu-tables.md: what the virtual GPU's litmus tests and mutations show.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::cuda;
use crate::system::{cargo, root};

const LITMUS: &str = "\
# What the memory model and the race detector were shown to find

Written by `cargo xtask vgpu`; `cargo xtask test` fails if it is not what the tests say today.

## Litmus tests

vgpu/tests/litmus.rs, 10,000 seeds each. The verdict follows from the definitions of the PTX memory model (ISA 7.5):
a forbidden state is never seen, an allowed one is, or the last column says why not. `vgpu litmus` runs others.

| family | tests | forbidden, never seen | allowed and seen | allowed, never seen |
|---|---|---|---|---|
";

const MUTATIONS: &str = "
## Mutations

vgpu/tests/mutations.rs drops each release, acquire, fence and barrier from the test kernels in turn, and runs the mutant in
weak mode with race detection.

| kernel | dropped | n-th of its kind | how it is found |
|---|---|---|---|
";

fn file() -> PathBuf {
    root().join("docs/vgpu-tables.md")
}

/// Runs the tests and puts their rows together.
fn generate() -> Result<String> {
    cuda::ensure()?;
    let mut text = String::new();
    for (test, head) in [("litmus", LITMUS), ("mutations", MUTATIONS)] {
        println!("==> vgpu {test}");
        let args = ["test", "--release", "-p", "vgpu", "--test", test, "--", "--nocapture"];
        let output = cargo(&args).arg("--test-threads=1").output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{test} failed:\n{printed}\n{}", String::from_utf8_lossy(&output.stderr));
        }
        text.push_str(head);
        for row in printed.lines().filter(|line| line.starts_with("| ")) {
            text.push_str(row);
            text.push('\n');
        }
    }
    Ok(text)
}

/// Writes the page.
pub fn write() -> Result<()> {
    let file = file();
    std::fs::write(&file, generate()?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}

/// Fails if the page is not what the tests say.
pub fn check() -> Result<()> {
    let now = generate()?;
    let page = std::fs::read_to_string(file()).unwrap_or_default();
    match now.lines().zip(page.lines().chain(std::iter::repeat(""))).find(|(now, page)| now != page)
    {
        None if now.lines().count() == page.lines().count() => Ok(()),
        difference => bail!(
            "docs/vgpu-tables.md is not what the tests say ({difference:?}); `cargo xtask vgpu` writes it anew"
        ),
    }
}

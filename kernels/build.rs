//! Puts compiled kernels into the library: all that lie in the folder `$WARPMESH_EMBED_KERNELS`, which is a cache folder or a copy
//! of one. Programs that need no other kernels then need no NVRTC.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=WARPMESH_EMBED_KERNELS");
    let files = std::env::var_os("WARPMESH_EMBED_KERNELS").map(|folder| files(Path::new(&folder)));
    let entry = |file: &PathBuf| {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8");
        format!("    ({stem:?}, include_bytes!({file:?})),\n")
    };
    let entries: String = files.unwrap_or_default().iter().map(entry).collect();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where"));
    std::fs::write(out.join("embedded.rs"), format!("&[\n{entries}]\n"))
        .expect("OUT_DIR is writable");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let complain = |error: std::io::Error| -> ! {
        panic!(
            "WARPMESH_EMBED_KERNELS={}: {error}; it is to be a folder with kernels",
            folder.display()
        )
    };
    let folder = folder.canonicalize().unwrap_or_else(|error| complain(error));
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| complain(error));
    let paths = entries.map(|entry| entry.unwrap_or_else(|error| complain(error)).path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "bin")).collect();
    files.sort();
    if files.is_empty() {
        println!("cargo::warning=WARPMESH_EMBED_KERNELS={}: no kernels there", folder.display());
    }
    files
}

//! Compiled kernels in the user's cache folder, by a hash of all that the result depends on.
//!
//! A file is written beside and renamed, so that readers of other processes see all of it or nothing. It
//! begins with a digest of the rest: a file that was cut off or changed is not used, and is written anew.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::HEADERS;
use crate::compile::{CompileError, Compiled, compile, options, version};

const MAGIC: &[u8; 8] = b"wmkernel";

/// The folder: `$XDG_CACHE_HOME` or `~/.cache`, then `warpmesh/kernels`. None without a home.
pub fn folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    Some(cache.map(PathBuf::from).or_else(home)?.join("warpmesh/kernels"))
}

/// The compiled form of a text, from `folder` if it was compiled before, and kept there if not.
///
/// # Errors
/// As [`compile`](crate::compile()). A folder that cannot be read or written is no error: then every process compiles for itself.
pub fn kernel(
    source: &str,
    name: &str,
    arch: u32,
    folder: Option<&Path>,
) -> Result<Compiled, CompileError> {
    let version = version()?;
    let file =
        folder.map(|folder| folder.join(format!("{}.bin", key(source, name, arch, version))));
    let kept = || file.as_ref().and_then(|file| read(file));
    if let Some(kept) = kept() {
        return Ok(kept);
    }
    // Ranks that are threads come with the same text at the same time: the first compiles it for all.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = kept() {
        return Ok(kept);
    }
    let compiled = compile(source, name, arch)?;
    if let Some(file) = &file
        && let Err(error) = write(file, &compiled)
    {
        tracing::debug!(%error, file = %file.display(), "a compiled kernel was not kept");
    }
    Ok(compiled)
}

fn key(source: &str, name: &str, arch: u32, (major, minor): (i32, i32)) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(source);
    add(name);
    add(&format!("{major}.{minor}"));
    options(arch).iter().for_each(|option| add(option));
    for (header, text) in HEADERS {
        add(header);
        add(text);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &Path) -> Option<Compiled> {
    let bytes = std::fs::read(file).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (digest, body) = rest.split_at_checked(32)?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let (len, body) = body.split_first_chunk::<8>()?;
    let (ptx, cubin) = body.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some(Compiled { ptx: ptx.to_vec(), cubin: cubin.to_vec() })
}

fn write(file: &Path, compiled: &Compiled) -> std::io::Result<()> {
    let mut body = (compiled.ptx.len() as u64).to_le_bytes().to_vec();
    body.extend_from_slice(&compiled.ptx);
    body.extend_from_slice(&compiled.cubin);
    let bytes = [MAGIC.as_slice(), Sha256::digest(&body).as_slice(), &body].concat();
    // Two threads of a process may write at the same time too.
    let unique = format!("{}-{:?}.tmp", std::process::id(), std::thread::current().id());
    let beside = file.with_extension(unique.replace(['(', ')'], "-"));
    std::fs::create_dir_all(file.parent().unwrap_or(file))?;
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled() -> Compiled {
        Compiled { ptx: b".version 8.0".to_vec(), cubin: vec![0x7f, b'E', b'L', b'F', 0] }
    }

    #[test]
    fn a_file_is_read_back_and_one_that_was_changed_or_cut_is_not() {
        let folder = std::env::temp_dir().join(format!("warpmesh-cache-{}", std::process::id()));
        let file = folder.join("k.bin");
        write(&file, &compiled()).unwrap();
        assert_eq!(read(&file), Some(compiled()));
        let whole = std::fs::read(&file).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&file, &whole[..len]).unwrap();
            assert_eq!(read(&file), None, "{len} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&file, changed).unwrap();
            assert_eq!(read(&file), None, "byte {at}");
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing beside it");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_key_depends_on_everything() {
        let keys = [
            key("a", "n", 90, (13, 0)),
            key("b", "n", 90, (13, 0)),
            key("a", "m", 90, (13, 0)),
            key("a", "n", 80, (13, 0)),
            key("a", "n", 90, (13, 1)),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}

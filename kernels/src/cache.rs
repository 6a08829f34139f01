//! Compiled kernels: those that were built into the library (build.rs), and those in the user's cache folder. Both go by a hash of all
//! that the result depends on but the compiler's version; files have that in their names, too.
//!
//! A file is written beside and renamed, so that readers of other processes see all of it or nothing. It
//! begins with a digest of the rest: a file that was cut off or changed is not used, and is written anew.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::HEADERS;
use crate::compile::{CompileError, Compiled, compile, options, version};

const MAGIC: &[u8; 8] = b"wmkernel";

/// Names of files without `.bin`, and what they hold.
static EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The folder: `$XDG_CACHE_HOME` or `~/.cache`, then `warpmesh/kernels`. None without a home.
pub fn folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    Some(cache.map(PathBuf::from).or_else(home)?.join("warpmesh/kernels"))
}

/// The compiled form of a text: built in, or from `folder` if it was compiled before, and kept there if not. Without NVRTC, what any version of
/// it has left in the folder will do.
///
/// # Errors
/// As [`compile`](crate::compile()). A folder that cannot be read or written is no error: then every process compiles for itself.
pub fn kernel(
    source: &str,
    name: &str,
    arch: u32,
    folder: Option<&Path>,
) -> Result<Compiled, CompileError> {
    let key = key(source, name, arch);
    if let Some(built_in) = built_in(EMBEDDED, &key) {
        return Ok(built_in);
    }
    let (major, minor) = match version() {
        Ok(version) => version,
        Err(error) => return folder.and_then(|folder| of_any_version(folder, &key)).ok_or(error),
    };
    let file = folder.map(|folder| folder.join(format!("{key}-{major}.{minor}.bin")));
    let kept = || parse(&std::fs::read(file.as_ref()?).ok()?);
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

/// Whatever compiler made it.
fn built_in(files: &[(&str, &[u8])], key: &str) -> Option<Compiled> {
    let is_it = |stem: &str| stem.split_once('-').is_some_and(|(hash, _)| hash == key);
    files.iter().filter(|(stem, _)| is_it(stem)).find_map(|(_, bytes)| parse(bytes))
}

/// What a compiler that is not here any more has left.
fn of_any_version(folder: &Path, key: &str) -> Option<Compiled> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is_it = |file: &PathBuf| {
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        stem.and_then(|stem| stem.split_once('-')).is_some_and(|(hash, _)| hash == key)
    };
    let mut files: Vec<_> = files.filter(is_it).collect();
    // The same one each time.
    files.sort();
    files.iter().rev().find_map(|file| parse(&std::fs::read(file).ok()?))
}

fn key(source: &str, name: &str, arch: u32) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(source);
    add(name);
    options(arch).iter().for_each(|option| add(option));
    for (header, text) in HEADERS {
        add(header);
        add(text);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn parse(bytes: &[u8]) -> Option<Compiled> {
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
    fn without_a_compiler_what_another_one_left_will_do() {
        let name = format!("warpmesh-cache-any-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        write(&folder.join("k-12.8.bin"), &compiled()).unwrap();
        std::fs::write(folder.join("k-13.0.bin"), b"cut off").unwrap();
        std::fs::write(folder.join("other-13.0.bin"), b"").unwrap();
        let of = |key| of_any_version(&folder, key);
        let found = (of("k"), of("other"), of("missing"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, (Some(compiled()), None, None));
    }

    #[test]
    fn a_file_is_read_back_and_one_that_was_changed_or_cut_is_not() {
        let folder = std::env::temp_dir().join(format!("warpmesh-cache-{}", std::process::id()));
        let file = folder.join("k.bin");
        write(&file, &compiled()).unwrap();
        let whole = std::fs::read(&file).unwrap();
        assert_eq!(parse(&whole), Some(compiled()));
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(parse(&changed), None, "byte {at}");
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing beside it");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_key_depends_on_everything() {
        let keys = [key("a", "n", 90), key("b", "n", 90), key("a", "m", 90), key("a", "n", 80)];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn what_is_built_in_is_found_whatever_compiled_it() {
        let folder = std::env::temp_dir().join(format!("warpmesh-embed-{}", std::process::id()));
        let file = folder.join("k.bin");
        write(&file, &compiled()).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        let files: &[(&str, &[u8])] =
            &[("other-13.0", &bytes), ("hash-12.8", &bytes[1..]), ("hash-13.0", &bytes)];
        assert_eq!(built_in(files, "hash"), Some(compiled()));
        assert_eq!(built_in(files, "has"), None);
        assert_eq!(built_in(&files[..2], "hash"), None, "a broken one");
    }
}

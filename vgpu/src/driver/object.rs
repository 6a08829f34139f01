//! What processes share: a file in memory that describes itself.
//!
//! The last 64 KiB of the file are its *header*: what the object is, a number that no other object has, and, for a multicast
//! object, its state. The bytes of memory come before it. A process reaches another one's object through a file
//! descriptor, or by name (fabric and IPC handles): process, descriptor and number. A file system keeps none of this, so
//! nothing is left when the last process is gone, however it ended; and a handle of a process that has ended, or of an
//! object that is gone, is an error and never another object, since the number does not fit.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use rustix::mm::{MapFlags, ProtFlags};

use super::result::{Error, Res};

const MAGIC: u64 = 0x7667_7075_6f62_6a31;
const HEADER: u64 = 1 << 16;
/// Words of a header.
pub const WORDS: usize = (HEADER / 8) as usize;

/// What a handle is of. Memory bytes, the state of a multicast team, or the place of an ordinary allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum What {
    Memory = 1,
    Multicast = 2,
    Allocation = 3,
}

/// Words of the header that all objects have.
mod at {
    pub const MAGIC: usize = 0;
    pub const ID: usize = 1;
    pub const WHAT: usize = 3;
    pub const LEN: usize = 4;
    pub const OWNER: usize = 5;
    pub const TYPES: usize = 6;
}
/// The first word that each kind of object uses as it likes.
pub const FREE: usize = 8;

/// A number that no other object has: process, time and count.
pub type Id = [u64; 2];

/// An open object.
pub struct Object {
    fd: Arc<OwnedFd>,
    header: *const AtomicU64,
    /// Its number.
    pub id: Id,
    /// What it is.
    pub what: What,
    /// Length in bytes, without the header.
    pub len: u64,
    /// Device that it is on, or how many devices it is for.
    pub owner: u32,
    /// Kinds of handles that it can be exported as (`CUmemAllocationHandleType`).
    pub types: u64,
}

// SAFETY: `header` is a mapping of atomics that lives as long as the object.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

/// How a handle names an object: process, descriptor there, and the object's number.
#[derive(Clone, Copy)]
pub struct Name {
    pub process: u32,
    pub fd: i32,
    pub id: Id,
}

fn new_id() -> Id {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanoseconds = time.map_or(0, |t| t.as_nanos() as u64);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    [u64::from(std::process::id()) << 32 | count & 0xffff_ffff, nanoseconds]
}

fn open_path(path: &str) -> std::io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(path)?.into())
}

impl Object {
    /// Makes an object; bytes before the header are zero.
    pub fn create(what: What, len: u64, owner: u32, types: u64) -> Res<Object> {
        let make = || -> std::io::Result<OwnedFd> {
            let fd = rustix::fs::memfd_create("vgpu-object", rustix::fs::MemfdFlags::CLOEXEC)?;
            // Memory has its bytes in the file; the others have a length only.
            let bytes = if what == What::Memory { len } else { 0 };
            let end = bytes.checked_add(HEADER).ok_or(std::io::ErrorKind::OutOfMemory)?;
            rustix::fs::ftruncate(&fd, end)?;
            Ok(fd)
        };
        let fd = make().map_err(|_| Error::OutOfMemory)?;
        let header = map_header(&fd).ok_or(Error::OutOfMemory)?;
        let id = new_id();
        let new = Object { fd: Arc::new(fd), header, id, what, len, owner, types };
        let words = new.words();
        for (n, x) in [
            (at::ID, id[0]),
            (at::ID + 1, id[1]),
            (at::WHAT, what as u64),
            (at::LEN, len),
            (at::OWNER, owner.into()),
            (at::TYPES, types),
            (at::MAGIC, MAGIC),
        ] {
            words[n].store(x, Ordering::Relaxed);
        }
        Ok(new)
    }

    /// Opens a file that should be an object.
    fn open(fd: OwnedFd) -> Option<Object> {
        let header = map_header(&fd)?;
        let mut new = Object {
            fd: Arc::new(fd),
            header,
            id: [0; 2],
            what: What::Memory,
            len: 0,
            owner: 0,
            types: 0,
        };
        let word = |n: usize| new.words()[n].load(Ordering::Relaxed);
        let what = match word(at::WHAT) {
            1 => What::Memory,
            2 => What::Multicast,
            3 => What::Allocation,
            _ => return None,
        };
        let (magic, id, len) = (word(at::MAGIC), [word(at::ID), word(at::ID + 1)], word(at::LEN));
        let (owner, types) = (word(at::OWNER) as u32, word(at::TYPES));
        let size = rustix::fs::fstat(&new.fd).ok()?.st_size as u64;
        if magic != MAGIC || what == What::Memory && len + HEADER != size {
            return None;
        }
        (new.id, new.what, new.len, new.owner, new.types) = (id, what, len, owner, types);
        Some(new)
    }

    /// Opens the object of a descriptor of this process.
    pub fn from_fd(fd: i32) -> Option<Object> {
        Object::open(open_path(&format!("/proc/self/fd/{fd}")).ok()?)
    }

    /// Opens the object of a name, if it is still there.
    pub fn from_name(name: &Name) -> Option<Object> {
        let fd = open_path(&format!("/proc/{}/fd/{}", name.process, name.fd)).ok()?;
        // The descriptor may be another file by now: only the number says which object it is.
        Object::open(fd).filter(|o| o.id == name.id)
    }

    /// The name under which other processes find it, as long as this process has it open.
    pub fn name(&self) -> Name {
        Name { process: std::process::id(), fd: self.fd.as_raw_fd(), id: self.id }
    }

    /// A descriptor for another process. It is opened anew: locks belong to what is opened, and a process that gets this one
    /// must not hold the lock of a process that is killed.
    pub fn export(&self) -> Res<OwnedFd> {
        open_path(&format!("/proc/self/fd/{}", self.fd.as_raw_fd())).map_err(|_| Error::OutOfMemory)
    }

    /// The file.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// The header.
    pub fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: the mapping has that many words and lives as long as `self`.
        unsafe { &*self.header.cast() }
    }

    /// Does something while no other process that also asks does. A process that is killed leaves no lock behind.
    pub fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        while rustix::fs::flock(&self.fd, FlockOperation::LockExclusive)
            == Err(rustix::io::Errno::INTR)
        {}
        let r = f();
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
        r
    }
}

/// Maps the header of a file.
fn map_header(fd: &OwnedFd) -> Option<*const AtomicU64> {
    let size = rustix::fs::fstat(fd).ok()?.st_size as u64;
    let offset = size.checked_sub(HEADER).filter(|o| o.is_multiple_of(HEADER))?;
    let rw = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, chosen by the kernel, replaces nothing.
    let p = unsafe {
        let null = std::ptr::null_mut();
        rustix::mm::mmap(null, HEADER as usize, rw, MapFlags::SHARED, fd.as_fd(), offset).ok()?
    };
    Some(p.cast_const().cast())
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: mapped in `map_header`; `words` cannot be borrowed any more.
        unsafe {
            let _ = rustix::mm::munmap(self.header.cast_mut().cast(), HEADER as usize);
        }
    }
}

impl Name {
    /// As the 64 bytes of a handle.
    pub fn to_bytes(self, magic: u64) -> [u8; 64] {
        let mut bytes = [0; 64];
        let words = [magic, self.process.into(), self.fd as u64, self.id[0], self.id[1]];
        for (to, word) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the 64 bytes of a handle, if they are one.
    pub fn from_bytes(bytes: &[u8; 64], magic: u64) -> Option<Name> {
        let mut words = [0u64; 8];
        for (to, from) in words.iter_mut().zip(bytes.chunks(8)) {
            *to = u64::from_le_bytes(from.try_into().ok()?);
        }
        let [found, process, fd, a, b, rest @ ..] = words;
        (found == magic && rest == [0; 3]).then_some(Name {
            process: process as u32,
            fd: fd as i32,
            id: [a, b],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_its_object_and_nothing_else() {
        let a = Object::create(What::Memory, 1 << 16, 3, 1).unwrap();
        let name = Name::from_bytes(&a.name().to_bytes(7), 7).unwrap();
        assert!(Name::from_bytes(&a.name().to_bytes(7), 8).is_none());
        let again = Object::from_name(&name).unwrap();
        assert_eq!((again.id, again.len, again.owner, again.types), (a.id, 1 << 16, 3, 1));
        drop(a);
        // The number of the descriptor may be taken by another object: that is not it.
        let others: Vec<_> =
            (0..8).map(|_| Object::create(What::Memory, 1 << 16, 3, 1).unwrap()).collect();
        assert!(Object::from_name(&name).is_none());
        assert!(Object::from_fd(others[0].fd().as_raw_fd()).is_some());
    }

    #[test]
    fn other_files_are_no_objects() {
        let fd = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(Object::from_fd(fd.as_raw_fd()).is_none());
        rustix::fs::ftruncate(&fd, HEADER).unwrap();
        assert!(Object::from_fd(fd.as_raw_fd()).is_none());
        assert!(Object::from_fd(-1).is_none());
    }
}

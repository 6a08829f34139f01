//! Memory handles between processes (`cuIpc*`).
//!
//! A handle names an object that says where the allocation's bytes are. The object is closed when the allocation is freed,
//! so a handle that is older than that opens nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_uint;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::Driver;
use super::entry::{api, current, put};
use super::object::{FREE, Id, Name, Object, What};
use super::result::{Error, Res};
use crate::mem::space::Kind;

/// `CUipcMemHandle`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemHandle {
    /// Opaque to the program.
    pub bytes: [u8; 64],
}

const MAGIC: u64 = 0x7667_7075_2069_7063;
/// Words of the object: descriptor of the file with the bytes, and where in it.
const FILE: usize = FREE;
const OFFSET: usize = FREE + 1;
/// The only flag, and a required one: `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
const LAZY_PEER: c_uint = 1;

/// What this process exported and imported, by address.
#[derive(Default)]
pub(super) struct Shared {
    exported: Mutex<HashMap<u64, Object>>,
    imported: Mutex<HashMap<u64, (Id, usize)>>,
}

impl Shared {
    /// True if another process owns what begins at `at`.
    pub fn is_imported(&self, at: u64) -> bool {
        self.imported.lock().unwrap().contains_key(&at)
    }

    /// An allocation is freed: its handles end.
    pub fn forget(&self, at: u64) {
        self.exported.lock().unwrap().remove(&at);
    }
}

/// A handle of the allocation that begins at `at`.
fn export(d: &Driver, at: u64) -> Res<MemHandle> {
    let region = d.machine.space().find(at, 1).ok_or(Error::InvalidValue)?;
    let shareable = region.base == at
        && region.kind == Kind::Device
        && region.is_allocation
        && !d.pools.has(at)
        && !d.ipc.is_imported(at);
    let (fd, offset) = region.backing.as_ref().filter(|_| shareable).ok_or(Error::InvalidValue)?;
    let mut all = d.ipc.exported.lock().unwrap();
    let object = match all.entry(at) {
        Entry::Occupied(e) => e.into_mut(),
        Entry::Vacant(e) => {
            let new = Object::create(What::Allocation, region.len, region.device, 0)?;
            new.words()[FILE].store(fd.as_raw_fd() as u64, Ordering::Relaxed);
            new.words()[OFFSET].store(*offset, Ordering::Relaxed);
            e.insert(new)
        }
    };
    Ok(MemHandle { bytes: object.name().to_bytes(MAGIC) })
}

/// Maps the allocation of another process for a device. It stays mapped if that process ends.
fn import(d: &Driver, device: u32, handle: &MemHandle) -> Res<u64> {
    let name = Name::from_bytes(&handle.bytes, MAGIC).ok_or(Error::InvalidValue)?;
    if name.process == std::process::id() {
        return Err(Error::InvalidContext); // the driver refuses a handle of the same process
    }
    let space = d.machine.space();
    let mut imported = d.ipc.imported.lock().unwrap();
    let known = imported.iter_mut().find(|(_, (id, _))| *id == name.id);
    let at = match known {
        // As documented: the same address, once more.
        Some((at, (_, count))) => {
            *count += 1;
            *at
        }
        None => {
            let object = Object::from_name(&name).ok_or(Error::InvalidHandle)?;
            if object.what != What::Allocation || object.owner >= d.machine.config().devices {
                return Err(Error::InvalidHandle);
            }
            let word = |n: usize| object.words()[n].load(Ordering::Relaxed);
            let path = format!("/proc/{}/fd/{}", name.process, word(FILE));
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
            let file = Arc::new(file.map_err(|_| Error::InvalidHandle)?.into());
            let at = space
                .map_private(object.owner, file, word(OFFSET), object.len)
                .map_err(|_| Error::OutOfMemory)?;
            imported.insert(at, (name.id, 1));
            at
        }
    };
    if let Some(region) = space.find(at, 1) {
        region.allow(device, true, true);
    }
    Ok(at)
}

fn close(d: &Driver, at: u64) -> Res<()> {
    let mut imported = d.ipc.imported.lock().unwrap();
    let (_, count) = imported.get_mut(&at).ok_or(Error::InvalidValue)?;
    *count -= 1;
    if *count > 0 {
        return Ok(());
    }
    for c in d.contexts.all() {
        c.synchronize()?;
    }
    imported.remove(&at);
    d.machine.space().free(at);
    Ok(())
}

api! {
    cuIpcGetMemHandle(handle: *mut MemHandle, at: u64) { put(handle, export(current()?.0, at)?) }
    cuIpcOpenMemHandle_v2(at: *mut u64, handle: MemHandle, flags: c_uint) {
        let (d, c) = current()?;
        if flags != LAZY_PEER {
            return Err(Error::InvalidValue);
        }
        put(at, import(d, c.device, &handle)?)
    }
    cuIpcCloseMemHandle(at: u64) { close(current()?.0, at) }
}

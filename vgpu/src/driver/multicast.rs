//! Multicast objects: one address for the memory of several devices, of one process or of several.
//!
//! The object's header has the team: which devices were added, and which memory was bound where, by name. Each process keeps
//! the bound memory mapped; a count of changes in the header says when it has to look again. So a process that is killed
//! leaves its memory to those that have it mapped.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::entry::{api, driver, put};
use super::new_handle;
use super::object::{FREE, Name, Object, WORDS, What};
use super::result::{Error, Res};
use super::vmm::{FABRIC, GRANULARITY, Memories, Memory, POSIX_FD};
use crate::mem::space::{MAX_DEVICES, Team};

/// `CUmulticastObjectProp`.
#[repr(C)]
pub struct TeamProp {
    devices: c_uint,
    size: usize,
    handle_types: u64,
    flags: u64,
}

impl TeamProp {
    fn check(&self) -> Res<()> {
        let size = self.size as u64;
        let fits = size > 0 && size.is_multiple_of(GRANULARITY);
        if self.devices == 0 || self.devices as usize > MAX_DEVICES || !fits || self.flags != 0 {
            return Err(Error::InvalidValue);
        }
        if self.handle_types & !(POSIX_FD | FABRIC) != 0 {
            return Err(Error::NotSupported);
        }
        Ok(())
    }
}

// Words of the header: count of changes, mask of devices, then bindings.
const CHANGES: usize = FREE;
const DEVICES: usize = FREE + 1;
const BINDINGS: usize = FREE + 8;
const BINDING: usize = 8;

/// Memory bound to a range of the team, as the header has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Binding {
    device: u32,
    at: u64,
    len: u64,
    /// Where in the memory the range begins.
    from: u64,
    process: u32,
    fd: i32,
    id: [u64; 2],
}

impl Binding {
    /// Word 0 is the device plus one: zero is a free place.
    fn load(words: &[AtomicU64]) -> Option<Binding> {
        let word = |n: usize| words[n].load(Ordering::Relaxed);
        Some(Binding {
            device: word(0).checked_sub(1)? as u32,
            at: word(1),
            len: word(2),
            from: word(3),
            process: word(4) as u32,
            fd: word(5) as i32,
            id: [word(6), word(7)],
        })
    }

    fn store(&self, words: &[AtomicU64]) {
        let values = [
            u64::from(self.device) + 1,
            self.at,
            self.len,
            self.from,
            self.process.into(),
            self.fd as u64,
            self.id[0],
            self.id[1],
        ];
        // The first word last: a process that is killed in here leaves the place free.
        words[..BINDING]
            .iter()
            .zip(values)
            .rev()
            .for_each(|(to, x)| to.store(x, Ordering::Relaxed));
    }
}

/// A binding with its memory; none if the process that bound it was gone before this one looked.
struct Bound {
    binding: Binding,
    memory: Option<Arc<Memory>>,
}

#[derive(Default)]
struct Seen {
    changes: u64,
    bound: Vec<Bound>,
}

/// A multicast object, as this process sees it.
pub(super) struct Multicast {
    pub object: Object,
    pub number: u64,
    memories: Arc<Memories>,
    seen: RwLock<Seen>,
    /// File locks do not hold between threads of a process.
    changing: Mutex<()>,
}

impl std::fmt::Debug for Multicast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Multicast({:?})", self.object.id)
    }
}

impl Multicast {
    pub fn new(object: Object, memories: Arc<Memories>) -> Multicast {
        let number = new_handle() as u64;
        Multicast { object, number, memories, seen: RwLock::default(), changing: Mutex::new(()) }
    }

    fn word(&self, n: usize) -> &AtomicU64 {
        &self.object.words()[n]
    }

    fn devices(&self) -> u64 {
        self.word(DEVICES).load(Ordering::Relaxed)
    }

    fn places(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.object.words()[BINDINGS..WORDS].chunks_exact(BINDING)
    }

    /// Changes the team while nobody else does.
    fn change(&self, f: impl FnOnce() -> Res<()>) -> Res<()> {
        let _one = self.changing.lock().unwrap();
        self.object.locked(|| {
            f()?;
            // Publishes the change to `refresh`, which loads the count with acquire.
            self.word(CHANGES).fetch_add(1, Ordering::Release);
            Ok(())
        })
    }

    fn add(&self, device: u32) -> Res<()> {
        self.change(|| {
            let all = self.devices();
            if all >> device & 1 == 1 || all.count_ones() == self.object.owner {
                return Err(Error::InvalidValue);
            }
            self.word(DEVICES).store(all | 1 << device, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Waits until all devices were added, as mapping and binding do. On hardware that has no end; here it has.
    pub fn wait_for_all(&self, patience: Duration) -> Res<()> {
        let start = Instant::now();
        while self.devices().count_ones() < self.object.owner {
            if start.elapsed() > patience {
                eprintln!(
                    "vgpu: a multicast object waits for its devices: {} of {} were added in {patience:?}",
                    self.devices().count_ones(),
                    self.object.owner
                );
                return Err(Error::IllegalState);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn bind(&self, at: u64, memory: &Arc<Memory>, from: u64, len: u64) -> Res<()> {
        let fits = |x: u64| x.is_multiple_of(GRANULARITY);
        let inside = |off: u64, whole: u64| off.checked_add(len).is_some_and(|end| end <= whole);
        let sizes = len > 0 && fits(at) && fits(from) && fits(len);
        if !sizes || !inside(at, self.object.len) || !inside(from, memory.object.len) {
            return Err(Error::InvalidValue);
        }
        // What other processes may see needs memory that they may see.
        if self.object.types != 0 && memory.object.types == 0 {
            return Err(Error::InvalidValue);
        }
        let device = memory.object.owner;
        if self.devices() >> device & 1 == 0 {
            return Err(Error::InvalidDevice);
        }
        let Name { process, fd, id } = memory.object.name();
        let new = Binding { device, at, len, from, process, fd, id };
        self.change(|| {
            let overlaps = |b: Binding| b.device == device && b.at < at + len && at < b.at + b.len;
            if self.places().filter_map(Binding::load).any(overlaps) {
                return Err(Error::InvalidValue);
            }
            let place = self.places().find(|p| Binding::load(p).is_none());
            new.store(place.ok_or(Error::OutOfMemory)?);
            Ok(())
        })?;
        self.refresh();
        Ok(())
    }

    fn unbind(&self, device: u32, at: u64, len: u64) -> Res<()> {
        self.change(|| {
            let wanted = |b: Binding| (b.device, b.at, b.len) == (device, at, len);
            let place = self.places().find(|p| Binding::load(p).is_some_and(wanted));
            place.ok_or(Error::InvalidValue)?[0].store(0, Ordering::Relaxed);
            Ok(())
        })?;
        self.refresh();
        Ok(())
    }

    /// Maps what was bound, by any process, since the last look.
    pub fn refresh(&self) {
        if self.seen.read().unwrap().changes == self.word(CHANGES).load(Ordering::Acquire) {
            return;
        }
        let mut seen = self.seen.write().unwrap();
        let _one = self.changing.lock().unwrap();
        let (changes, all) = self.object.locked(|| {
            let all: Vec<_> = self.places().filter_map(Binding::load).collect();
            (self.word(CHANGES).load(Ordering::Acquire), all)
        });
        let mut old = std::mem::take(&mut seen.bound);
        let bound = |binding: Binding| match old.iter().position(|b| b.binding == binding) {
            Some(n) => old.swap_remove(n),
            None => {
                let Binding { process, fd, id, .. } = binding;
                Bound { binding, memory: self.memories.open(&Name { process, fd, id }) }
            }
        };
        *seen = Seen { changes, bound: all.into_iter().map(bound).collect() };
    }
}

impl Team for Multicast {
    fn members(&self, offset: u64, len: u64, out: &mut [u64]) -> Result<usize, String> {
        self.refresh();
        let seen = self.seen.read().unwrap();
        let (mut left, mut n) = (self.devices(), 0);
        while left != 0 {
            let device = left.trailing_zeros();
            left &= left - 1;
            let covers = |b: &&Bound| {
                let Binding { at, len: n, .. } = b.binding;
                b.binding.device == device && at <= offset && offset + len <= at + n
            };
            let bound = seen.bound.iter().find(covers).ok_or_else(|| {
                format!(
                    "no memory of device {device} is bound at {offset:#x} of a multicast object"
                )
            })?;
            let memory = bound.memory.as_ref().ok_or_else(|| {
                let p = bound.binding.process;
                format!("process {p}, which bound memory of device {device} to a multicast object, is gone")
            })?;
            out[n] = memory.home + bound.binding.from + (offset - bound.binding.at);
            n += 1;
        }
        Ok(n)
    }
}

/// A device that can be in a team.
fn member(device: c_int) -> Res<u32> {
    let d = driver()?;
    let device = d.primary(device)?.device;
    if d.arch(device) >= 90 { Ok(device) } else { Err(Error::NotSupported) }
}

api! {
    cuMulticastGetGranularity(to: *mut usize, prop: *const TeamProp, option: c_uint) {
        driver()?;
        let prop = prop.as_ref().ok_or(Error::InvalidValue)?;
        if option > 1 || prop.devices == 0 {
            return Err(Error::InvalidValue);
        }
        put(to, GRANULARITY as usize)
    }
    cuMulticastCreate(handle: *mut u64, prop: *const TeamProp) {
        let d = driver()?;
        d.prohibit_in_capture()?;
        member(0)?;
        let prop = prop.as_ref().ok_or(Error::InvalidValue)?;
        prop.check()?;
        let len = prop.size as u64;
        let object = Object::create(What::Multicast, len, prop.devices, prop.handle_types)?;
        put(handle, d.vmm.hold_team(object))
    }
    cuMulticastAddDevice(team: u64, device: c_int) {
        let team = driver()?.vmm.team(team)?;
        team.add(member(device)?)
    }
    cuMulticastBindMem(team: u64, at: usize, memory: u64, from: usize, bytes: usize, flags: u64) {
        let d = driver()?;
        let (team, memory) = (d.vmm.team(team)?, d.vmm.memory(memory)?);
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        team.wait_for_all(d.machine.config().watchdog)?;
        team.bind(at as u64, &memory, from as u64, bytes as u64)
    }
    cuMulticastBindAddr(team: u64, at: usize, memory: u64, bytes: usize, flags: u64) {
        let d = driver()?;
        let team = d.vmm.team(team)?;
        let (base, held) = d.vmm.at(memory).ok_or(Error::InvalidValue)?;
        let super::vmm::Held::Memory(m) = held else {
            return Err(Error::InvalidValue);
        };
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        team.wait_for_all(d.machine.config().watchdog)?;
        team.bind(at as u64, &m, memory - base, bytes as u64)
    }
    cuMulticastUnbind(team: u64, device: c_int, at: usize, bytes: usize) {
        let d = driver()?;
        let team = d.vmm.team(team)?;
        team.unbind(d.primary(device)?.device, at as u64, bytes as u64)
    }
}

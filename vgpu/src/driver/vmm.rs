//! Virtual memory management: physical memory, address ranges, and mappings of one to the other.
//!
//! Physical memory is an [`Object`]; it lives as long as any process has a handle, a mapping, or a multicast team with it. In
//! each process it is mapped once at its *home*, where multicast objects find it, and again wherever the program maps it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex, Weak};

use super::Driver;
use super::device::TOTAL_MEMORY;
use super::entry::{api, driver, put, slice};
use super::multicast::Multicast;
use super::new_handle;
use super::object::{Id, Name, Object, What};
use super::result::{Error, Res};
use crate::mem::space::{AddressSpace, Kind, Mapping, Region, Team};

/// Sizes and addresses of physical memory and of multicast objects are multiples of this.
pub(super) const GRANULARITY: u64 = 2 << 20;
pub(super) const POSIX_FD: u64 = 1;
pub(super) const FABRIC: u64 = 8;
const MAGIC: u64 = 0x7667_7075_6661_6272;

/// `CUmemLocation`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Location {
    kind: c_uint,
    id: c_int,
}

impl Location {
    /// The device that it is.
    pub(super) fn device(&self, d: &Driver) -> Res<u32> {
        match self.kind {
            1 => Ok(d.primary(self.id)?.device),
            2..=4 => Err(Error::NotSupported), // the host
            _ => Err(Error::InvalidValue),
        }
    }
}

/// `CUmemAccessDesc`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AccessDesc {
    location: Location,
    flags: c_uint,
}

impl AccessDesc {
    /// Device, whether it may load, and whether it may store.
    pub(super) fn check(&self, d: &Driver) -> Res<(u32, bool, bool)> {
        let device = self.location.device(d)?;
        match self.flags {
            0 => Ok((device, false, false)),
            1 => Ok((device, true, false)),
            3 => Ok((device, true, true)),
            _ => Err(Error::InvalidValue),
        }
    }
}

/// `CUmemAllocationProp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AllocationProp {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
    win32: usize,
    flags: [u8; 8],
}

impl AllocationProp {
    /// The device that the memory is to be on.
    fn check(&self, d: &Driver) -> Res<u32> {
        const PINNED: c_uint = 1;
        if self.kind != PINNED {
            return Err(Error::InvalidValue);
        }
        if u64::from(self.handle_types) & !(POSIX_FD | FABRIC) != 0 {
            return Err(Error::NotSupported);
        }
        let device = self.location.device(d)?;
        if u64::from(self.handle_types) & FABRIC != 0 {
            d.may_have_fabric_handles(device)?;
        }
        Ok(device)
    }
}

/// Physical memory, as this process sees it.
pub(super) struct Memory {
    pub object: Object,
    /// Where its bytes are in this process.
    pub home: u64,
    space: Arc<AddressSpace>,
    number: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.space.unmap_at(self.home, self.object.len);
        self.space.release(self.home, self.object.len);
    }
}

/// What a handle is of.
#[derive(Clone)]
pub(super) enum Held {
    Memory(Arc<Memory>),
    Multicast(Arc<Multicast>),
}

impl Held {
    /// The device that memory is on.
    fn owner(&self) -> Option<u32> {
        match self {
            Held::Memory(m) => Some(m.object.owner),
            Held::Multicast(_) => None,
        }
    }

    fn object(&self) -> &Object {
        match self {
            Held::Memory(m) => &m.object,
            Held::Multicast(m) => &m.object,
        }
    }
    fn number(&self) -> u64 {
        match self {
            Held::Memory(m) => m.number,
            Held::Multicast(m) => m.number,
        }
    }
}

/// The physical memory that a process knows: each object once.
pub(super) struct Memories {
    space: Arc<AddressSpace>,
    known: Mutex<HashMap<Id, Weak<Memory>>>,
}

impl Memories {
    /// The memory of an object that was created or opened.
    pub fn adopt(&self, object: Object) -> Res<Arc<Memory>> {
        let mut known = self.known.lock().unwrap();
        if let Some(m) = known.get(&object.id).and_then(Weak::upgrade) {
            return Ok(m);
        }
        known.retain(|_, m| m.strong_count() > 0);
        let home = self.space.reserve(object.len, GRANULARITY).map_err(|_| Error::OutOfMemory)?;
        let (id, number, space) = (object.id, new_handle() as u64, self.space.clone());
        let memory = Arc::new(Memory { object, home, space, number });
        let mapped = self.space.map_at(home, memory.object.len, mapping(&memory.object));
        mapped.map_err(|_| Error::OutOfMemory)?;
        known.insert(id, Arc::downgrade(&memory));
        Ok(memory)
    }

    /// The memory of a name: of this process, or of another one that still has it.
    pub fn open(&self, name: &Name) -> Option<Arc<Memory>> {
        let known = self.known.lock().unwrap().get(&name.id).and_then(Weak::upgrade);
        known.or_else(|| self.adopt(Object::from_name(name)?).ok())
    }
}

/// What makes a region of an object's bytes.
fn mapping(memory: &Object) -> Mapping {
    let backing = Some((memory.fd().clone(), 0));
    Mapping { device: memory.owner, kind: Kind::Device, backing, team: None }
}

/// Handles, ranges and mappings of a process.
pub(super) struct Vmm {
    space: Arc<AddressSpace>,
    pub memories: Arc<Memories>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    handles: HashMap<u64, (Held, u32)>,
    teams: HashMap<Id, Weak<Multicast>>,
    /// Lengths by address.
    reserved: BTreeMap<u64, u64>,
    mapped: BTreeMap<u64, (u64, Held)>,
}

/// What a program may ask about a mapping.
pub(super) struct About {
    pub handle_types: u64,
    pub block: u64,
}

impl Vmm {
    pub fn new(space: Arc<AddressSpace>) -> Vmm {
        let memories = Arc::new(Memories { space: space.clone(), known: Mutex::default() });
        Vmm { space, memories, state: Mutex::default() }
    }

    /// Gives out a handle; one more of the same object has the same number.
    fn hold(&self, held: Held) -> u64 {
        let number = held.number();
        self.state.lock().unwrap().handles.entry(number).or_insert((held, 0)).1 += 1;
        number
    }

    /// Gives out a handle of a team.
    pub fn hold_team(&self, object: Object) -> u64 {
        let team = {
            let mut st = self.state.lock().unwrap();
            st.teams.retain(|_, t| t.strong_count() > 0);
            match st.teams.get(&object.id).and_then(Weak::upgrade) {
                Some(t) => t,
                None => {
                    let id = object.id;
                    let t = Arc::new(Multicast::new(object, self.memories.clone()));
                    st.teams.insert(id, Arc::downgrade(&t));
                    t
                }
            }
        };
        self.hold(Held::Multicast(team))
    }

    fn get(&self, handle: u64) -> Res<Held> {
        let st = self.state.lock().unwrap();
        st.handles.get(&handle).map(|h| h.0.clone()).ok_or(Error::InvalidValue)
    }

    pub fn team(&self, handle: u64) -> Res<Arc<Multicast>> {
        match self.get(handle)? {
            Held::Multicast(t) => Ok(t),
            Held::Memory(_) => Err(Error::InvalidValue),
        }
    }

    pub fn memory(&self, handle: u64) -> Res<Arc<Memory>> {
        match self.get(handle)? {
            Held::Memory(m) => Ok(m),
            Held::Multicast(_) => Err(Error::InvalidValue),
        }
    }

    /// What is mapped around an address, and where.
    pub fn at(&self, addr: u64) -> Option<(u64, Held)> {
        let st = self.state.lock().unwrap();
        let (base, (len, held)) = st.mapped.range(..=addr).next_back()?;
        (addr - base < *len).then(|| (*base, held.clone()))
    }

    pub fn about(&self, addr: u64) -> Option<About> {
        let (_, held) = self.at(addr)?;
        Some(About { handle_types: held.object().types, block: held.number() })
    }

    /// Brings all mapped teams up to date with what other processes bound.
    pub fn refresh(&self) {
        let mapped: Vec<Held> = {
            let st = self.state.lock().unwrap();
            st.mapped.values().map(|(_, held)| held.clone()).collect()
        };
        for held in mapped {
            if let Held::Multicast(team) = held {
                team.refresh();
            }
        }
    }

    fn map(&self, at: u64, len: u64, held: &Held) -> Res<()> {
        let mut st = self.state.lock().unwrap();
        let end = at.checked_add(len).ok_or(Error::InvalidValue)?;
        let range = st.reserved.range(..=at).next_back().ok_or(Error::InvalidValue)?;
        let before = st.mapped.range(..end).next_back();
        if end > range.0 + range.1 || before.is_some_and(|(b, (n, _))| b + n > at) {
            return Err(Error::InvalidValue);
        }
        let mapping = match held {
            Held::Memory(m) => mapping(&m.object),
            Held::Multicast(t) => {
                let team: Option<Arc<dyn Team>> = Some(t.clone());
                Mapping { device: 0, kind: Kind::Multicast, backing: None, team }
            }
        };
        self.space.map_at(at, len, mapping).map_err(|_| Error::OutOfMemory)?;
        st.mapped.insert(at, (len, held.clone()));
        Ok(())
    }

    /// The mappings that a range consists of, if it consists of whole ones.
    fn whole(st: &State, at: u64, len: u64) -> Res<Vec<u64>> {
        let (mut next, mut found) = (at, Vec::new());
        let end = at.checked_add(len).filter(|_| len > 0).ok_or(Error::InvalidValue)?;
        while next < end {
            let (n, _) = st.mapped.get(&next).ok_or(Error::InvalidValue)?;
            found.push(next);
            next += n;
        }
        if next == end { Ok(found) } else { Err(Error::InvalidValue) }
    }

    fn unmap(&self, at: u64, len: u64) -> Res<()> {
        let mut st = self.state.lock().unwrap();
        for base in Self::whole(&st, at, len)? {
            if let Some((n, _)) = st.mapped.remove(&base) {
                self.space.unmap_at(base, n);
            }
        }
        Ok(())
    }

    /// The regions of a range.
    fn regions(&self, at: u64, len: u64) -> Res<Vec<&Region>> {
        let st = self.state.lock().unwrap();
        let bases = Self::whole(&st, at, len)?;
        Ok(bases.iter().filter_map(|b| self.space.find(*b, 1)).collect())
    }

    fn reserve(&self, len: u64, align: u64) -> Res<u64> {
        let fits = |x: u64| x.is_multiple_of(GRANULARITY);
        if len == 0 || !fits(len) || align != 0 && !align.is_power_of_two() {
            return Err(Error::InvalidValue);
        }
        let at = self.space.reserve(len, align.max(GRANULARITY)).map_err(|_| Error::OutOfMemory)?;
        self.state.lock().unwrap().reserved.insert(at, len);
        Ok(at)
    }

    fn free(&self, at: u64, len: u64) -> Res<()> {
        let mut st = self.state.lock().unwrap();
        let in_use = st.mapped.range(at..at.saturating_add(len)).next().is_some();
        if in_use || st.reserved.get(&at) != Some(&len) {
            return Err(Error::InvalidValue);
        }
        st.reserved.remove(&at);
        self.space.release(at, len);
        Ok(())
    }

    fn release(&self, handle: u64) -> Res<()> {
        let mut st = self.state.lock().unwrap();
        let (_, count) = st.handles.get_mut(&handle).ok_or(Error::InvalidValue)?;
        *count -= 1;
        if *count == 0 {
            st.handles.remove(&handle);
        }
        Ok(())
    }
}

unsafe fn export(to: *mut c_void, held: &Held, kind: u64) -> Res<()> {
    let object = held.object();
    if to.is_null() || object.types & kind == 0 {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller passes a place for a descriptor, or for 64 bytes.
    unsafe {
        match kind {
            POSIX_FD => to.cast::<c_int>().write(object.export()?.into_raw_fd()),
            FABRIC => to.cast::<[u8; 64]>().write(object.name().to_bytes(MAGIC)),
            _ => return Err(Error::NotSupported),
        }
    }
    Ok(())
}

unsafe fn import(from: *mut c_void, kind: u64) -> Res<u64> {
    let d = driver()?;
    let object = match kind {
        POSIX_FD => Object::from_fd(from as usize as c_int),
        FABRIC if !from.is_null() => {
            // SAFETY: the caller passes a fabric handle.
            let bytes = unsafe { from.cast::<[u8; 64]>().read() };
            Name::from_bytes(&bytes, MAGIC).and_then(|n| Object::from_name(&n))
        }
        FABRIC => None,
        _ => return Err(Error::NotSupported),
    };
    let object = object.filter(|o| o.types & kind != 0).ok_or(Error::InvalidValue)?;
    match object.what {
        What::Memory if object.owner < d.machine.config().devices => {
            Ok(d.vmm.hold(Held::Memory(d.vmm.memories.adopt(object)?)))
        }
        What::Memory => Err(Error::InvalidDevice),
        What::Multicast => Ok(d.vmm.hold_team(object)),
        What::Allocation => Err(Error::InvalidValue),
    }
}

api! {
    cuMemGetAllocationGranularity(to: *mut usize, prop: *const AllocationProp, option: c_uint) {
        let d = driver()?;
        prop.as_ref().ok_or(Error::InvalidValue)?.check(d)?;
        if option > 1 {
            return Err(Error::InvalidValue);
        }
        put(to, GRANULARITY as usize)
    }
    cuMemCreate(handle: *mut u64, bytes: usize, prop: *const AllocationProp, flags: u64) {
        let d = driver()?;
        d.prohibit_in_capture()?;
        let prop = prop.as_ref().ok_or(Error::InvalidValue)?;
        let device = prop.check(d)?;
        let len = bytes as u64;
        if handle.is_null() || flags != 0 || len == 0 || !len.is_multiple_of(GRANULARITY) {
            return Err(Error::InvalidValue);
        }
        if bytes > TOTAL_MEMORY {
            return Err(Error::OutOfMemory);
        }
        let object = Object::create(What::Memory, len, device, prop.handle_types.into())?;
        put(handle, d.vmm.hold(Held::Memory(d.vmm.memories.adopt(object)?)))
    }
    cuMemRelease(handle: u64) { driver()?.vmm.release(handle) }
    cuMemAddressReserve(at: *mut u64, bytes: usize, align: usize, _wish: u64, flags: u64) {
        let d = driver()?;
        if at.is_null() || flags != 0 {
            return Err(Error::InvalidValue);
        }
        put(at, d.vmm.reserve(bytes as u64, align as u64)?)
    }
    cuMemAddressFree(at: u64, bytes: usize) { driver()?.vmm.free(at, bytes as u64) }
    cuMemMap(at: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        let d = driver()?;
        let (held, len) = (d.vmm.get(handle)?, bytes as u64);
        // Documented: the offset must be zero for now.
        let fits = len > 0 && len.is_multiple_of(GRANULARITY) && at.is_multiple_of(GRANULARITY);
        if !fits || flags != 0 || offset != 0 || len > held.object().len {
            return Err(Error::InvalidValue);
        }
        if let Held::Multicast(team) = &held {
            team.wait_for_all(d.machine.config().watchdog)?;
            team.refresh();
        }
        d.vmm.map(at, len, &held)
    }
    cuMemUnmap(at: u64, bytes: usize) { driver()?.vmm.unmap(at, bytes as u64) }
    cuMemSetAccess(at: u64, bytes: usize, descs: *const AccessDesc, n: usize) {
        let d = driver()?;
        let wanted = slice(descs, n)?.iter().map(|x| x.check(d)).collect::<Res<Vec<_>>>()?;
        let owner = d.vmm.at(at).map(|(_, held)| held.owner());
        if wanted.iter().any(|(device, ..)| owner.flatten().is_some_and(|o| !d.reaches(*device, o))) {
            return Err(Error::InvalidDevice);
        }
        for region in d.vmm.regions(at, bytes as u64)? {
            wanted.iter().for_each(|(device, load, store)| region.allow(*device, *load, *store));
        }
        Ok(())
    }
    cuMemGetAccess(flags: *mut u64, location: *const Location, at: u64) {
        let d = driver()?;
        let device = location.as_ref().ok_or(Error::InvalidValue)?.device(d)?;
        d.vmm.at(at).ok_or(Error::InvalidValue)?;
        let region = d.machine.space().find(at, 1).ok_or(Error::InvalidValue)?;
        let (load, store) = (region.allows(device, false), region.allows(device, true));
        put(flags, u64::from(load) | u64::from(store) << 1)
    }
    cuMemRetainAllocationHandle(handle: *mut u64, at: *mut c_void) {
        let d = driver()?;
        let (_, held) = d.vmm.at(at as u64).ok_or(Error::InvalidValue)?;
        put(handle, d.vmm.hold(held))
    }
    cuMemGetAllocationPropertiesFromHandle(prop: *mut AllocationProp, handle: u64) {
        let memory = driver()?.vmm.memory(handle)?;
        let location = Location { kind: 1, id: memory.object.owner as c_int };
        let handle_types = memory.object.types as c_uint;
        put(prop, AllocationProp { kind: 1, handle_types, location, win32: 0, flags: [0; 8] })
    }
    cuMemExportToShareableHandle(to: *mut c_void, handle: u64, kind: c_uint, flags: u64) {
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        export(to, &driver()?.vmm.get(handle)?, kind.into())
    }
    cuMemImportFromShareableHandle(handle: *mut u64, from: *mut c_void, kind: c_uint) {
        put(handle, import(from, kind.into())?)
    }
}

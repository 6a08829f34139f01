//! `ld`, `st`, `atom`, `red` on all spaces.
//!
//! A lane's access is one unit: all elements of its vector together. In SC mode a full warp whose lanes are consecutive takes a
//! fast path of 16-byte accesses; otherwise each lane is resolved by itself. Loads and stores of tracked mode are in
//! [`super::tracked`].

use std::marker::PhantomData;

use super::convert::Word;
use super::lanes::{lanes, mask_where};
use super::warp::{Inst, LANES, Sem, Trouble, Warp};
use super::{Ctl, Exec, Handler, pick, plain_handler, tracked};
use crate::isa::W;
use crate::mem::access::{load_unit, load16, store_unit, store16};
use crate::mem::rmw;
use crate::mem::space::Kind;
use crate::ptx::{Space, Ty};
use crate::writers::Writer;

/// Generic addresses of shared memory start here: no host address looks like this.
pub const SHARED_WINDOW: u64 = 1 << 56;
/// Generic addresses of local memory start here.
pub const LOCAL_WINDOW: u64 = 2 << 56;
/// Generic addresses of kernel parameters start here.
pub const PARAM_WINDOW: u64 = 3 << 56;
/// Bytes that a window spans.
pub const WINDOW: u64 = 1 << 32;

/// `Inst::aux` of a load whose address is the same constant for all lanes.
pub const UNIFORM: u32 = 1;

/// Where a lane's access leads.
pub enum Spot {
    /// Device or host memory, at this host address.
    Global(*mut u8),
    /// Shared memory of the block: host address, and offset in the block's shared memory.
    Shared(*mut u8, u64),
    /// Memory that only this lane sees, or that is constant.
    Private(*mut u8),
}

impl Spot {
    /// The host address.
    pub fn ptr(&self) -> *mut u8 {
        match *self {
            Spot::Global(p) | Spot::Shared(p, _) | Spot::Private(p) => p,
        }
    }
}

impl Warp {
    /// Lane addresses of a memory instruction.
    ///
    /// # Safety
    /// As for [`Exec::run`].
    #[inline(always)]
    pub unsafe fn addresses(&self, i: &Inst) -> [u64; LANES] {
        // SAFETY: the decoder sets `narrow` from the class of the address register.
        unsafe {
            if i.mem.narrow {
                let a = self.get::<u32>(i.a);
                let mut r = [0; LANES];
                for l in 0..LANES {
                    r[l] = u64::from(a[l].wrapping_add(i.imm as u32));
                }
                r
            } else {
                let a = self.get::<u64>(i.a);
                let mut r = [0; LANES];
                for l in 0..LANES {
                    r[l] = a[l].wrapping_add(i.imm as u64);
                }
                r
            }
        }
    }

    /// Checks one lane's access and says where it leads; counts it if it is global.
    pub fn resolve(
        &mut self,
        space: Space,
        addr: u64,
        n: usize,
        lane: usize,
        store: bool,
    ) -> Result<Spot, Trouble> {
        let align = n.min(16) as u64;
        if addr & (align - 1) != 0 {
            return Err(Trouble::Misaligned(addr, align as u32));
        }
        let illegal = Trouble::Illegal(addr, n as u32);
        let end = |off: u64, len: usize| off.checked_add(n as u64).is_some_and(|e| e <= len as u64);
        // SAFETY: the block outlives its warps and runs on this thread.
        let block = unsafe { &mut *self.block };
        let space = match space {
            Space::Generic if addr & !(WINDOW - 1) == SHARED_WINDOW => Space::Shared,
            Space::Generic if addr & !(WINDOW - 1) == LOCAL_WINDOW => Space::Local,
            Space::Generic if addr & !(WINDOW - 1) == PARAM_WINDOW => Space::Param,
            s => s,
        };
        match space {
            Space::Shared => {
                let off = addr & (WINDOW - 1);
                if !end(off, block.shared.len()) {
                    return Err(illegal);
                }
                Ok(Spot::Shared(block.shared.at(off), off))
            }
            Space::Local => {
                let off = addr & (WINDOW - 1);
                if !end(off, self.local_len as usize) {
                    return Err(illegal);
                }
                // SAFETY: local memory has 32 lanes of `local_len` bytes.
                Ok(Spot::Private(unsafe {
                    self.local.add(lane * self.local_len as usize + off as usize)
                }))
            }
            Space::Param => {
                let off = addr & (WINDOW - 1);
                if store || !end(off, block.params.len()) {
                    return Err(illegal);
                }
                Ok(Spot::Private(block.params.at(off)))
            }
            Space::Global | Space::Generic | Space::Const => {
                // SAFETY: the space outlives all warps.
                let region = unsafe { (*self.space).access(addr, n as u64, self.device, store) }
                    .ok_or(illegal)?;
                if region.kind == Kind::Multicast {
                    return Err(Trouble::Trap(format!(
                        "{addr:#x} is a multicast address: only multimem instructions reach it"
                    )));
                }
                self.counters.access(store, region.target(self.device), region.device, n, 1);
                Ok(Spot::Global(addr as *mut u8))
            }
        }
    }
}

impl Warp {
    /// Remembers who wrote a word that others may wait for.
    #[inline]
    pub fn note_write(&self, i: &Inst, addr: u64) {
        // SAFETY: the block outlives its warps and runs on this thread.
        let block = unsafe { &*self.block };
        block.writers.note(addr, self.writer(i));
    }

    /// Remembers a plain write if somebody has polled there for long.
    #[inline(always)]
    pub fn note_plain(&self, i: &Inst, addr: u64, len: u64) {
        // SAFETY: as above.
        let block = unsafe { &*self.block };
        if block.writers.is_watched(addr, len) {
            block.writers.note_watched(addr, len, self.writer(i));
        }
    }

    fn writer(&self, i: &Inst) -> Writer {
        // SAFETY: as above.
        let block = unsafe { &*self.block };
        Writer { launch: block.launch_id, block: block.index, warp: self.index, line: i.line }
    }
}

/// True if all lanes are active and their units of `n` bytes follow each other.
#[inline(always)]
pub(super) fn consecutive(exec: u32, addr: &[u64; LANES], n: usize) -> bool {
    let mut differ = 0;
    for l in 0..LANES {
        differ |= addr[l] ^ addr[0].wrapping_add((l * n) as u64);
    }
    exec == !0 && differ == 0
}

/// Checks a full warp's consecutive access and counts it.
#[inline(always)]
pub(super) fn whole(w: &mut Warp, addr: u64, n: usize, store: bool) -> bool {
    if addr & (n.min(16) as u64 - 1) != 0 {
        return false;
    }
    // SAFETY: the space outlives all warps.
    let region = unsafe { (*w.space).access(addr, (n * LANES) as u64, w.device, store) };
    let Some(region) = region else {
        return false;
    };
    if region.kind == Kind::Multicast {
        return false;
    }
    let (target, peer) = (region.target(w.device), region.device);
    w.counters.access(store, target, peer, n, LANES as u32);
    true
}

/// The units of all lanes, as they lie in memory.
#[repr(align(64))]
struct Units<const N: usize>([[u8; N]; LANES]);

/// Stores the executing lanes' units.
#[inline(always)]
unsafe fn store_units<const N: usize>(
    w: &mut Warp,
    i: &Inst,
    data: &Units<N>,
) -> Result<(), Trouble> {
    // SAFETY: the caller's promise is that of `Exec::run`; addresses are checked before use.
    unsafe {
        let addr = w.addresses(i);
        if matches!(i.mem.space, Space::Global | Space::Generic)
            && consecutive(w.exec, &addr, N)
            && i.mem.sem == Sem::Weak
            && whole(w, addr[0], N, true)
        {
            let p = addr[0] as *mut u8;
            let q = data.0.as_ptr().cast::<[u8; 16]>();
            w.note_plain(i, addr[0], (N * LANES) as u64);
            for n in 0..N * LANES / 16 {
                store16(p.add(n * 16), *q.add(n));
            }
            return Ok(());
        }
        for l in lanes(w.exec) {
            let spot = w.resolve(i.mem.space, addr[l], N, l, true)?;
            if i.mem.sem != Sem::Weak {
                w.note_write(i, addr[l]);
            } else {
                w.note_plain(i, addr[l], N as u64);
            }
            match spot {
                Spot::Private(p) => p.cast::<[u8; N]>().write_unaligned(data.0[l]),
                spot => store_unit::<N>(spot.ptr(), &data.0[l]),
            }
        }
        Ok(())
    }
}

/// Loads `N` bytes per lane as elements of type `E` (signed if `S`) into registers of type `D`.
pub struct Load<E, D, const N: usize, const S: bool>(PhantomData<(E, D)>);

impl<E: Word, D: Word, const N: usize, const S: bool> Exec for Load<E, D, N, S> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller's promise.
        match unsafe { Self::load(w, i) } {
            Ok(true) => Ctl::Yield,
            Ok(false) => Ctl::Next,
            Err(t) => w.fail(t),
        }
    }
}

impl<E: Word, D: Word, const N: usize, const S: bool> Load<E, D, N, S> {
    /// True if the warp spins.
    #[inline(always)]
    unsafe fn load(w: &mut Warp, i: &Inst) -> Result<bool, Trouble> {
        // SAFETY: the caller's promise is that of `Exec::run`; addresses are checked before use.
        unsafe {
            let addr = w.addresses(i);
            if i.mem.space == Space::Param && i.aux == UNIFORM {
                let spot = w.resolve(Space::Param, addr[0], N, 0, false)?;
                Self::put_all(w, i, &Units([spot.ptr().cast::<[u8; N]>().read_unaligned(); LANES]));
                return Ok(false);
            }
            let first = w.exec.trailing_zeros() as usize;
            let mut polled = [0; N];
            if matches!(i.mem.space, Space::Global | Space::Generic)
                && consecutive(w.exec, &addr, N)
                && whole(w, addr[0], N, false)
            {
                let mut units = Units([[0; N]; LANES]);
                let p = addr[0] as *const u8;
                let q = units.0.as_mut_ptr().cast::<[u8; 16]>();
                for n in 0..N * LANES / 16 {
                    *q.add(n) = load16(p.add(n * 16));
                }
                polled = units.0[0];
                Self::put_all(w, i, &units);
            } else {
                for l in lanes(w.exec) {
                    let unit = match w.resolve(i.mem.space, addr[l], N, l, false)? {
                        Spot::Private(p) => p.cast::<[u8; N]>().read_unaligned(),
                        spot => load_unit::<N>(spot.ptr()),
                    };
                    if l == first {
                        polled = unit;
                    }
                    for v in 0..N / Self::size(i) {
                        w.set_lane(i.v[v], l, Self::element(i, &unit, v));
                    }
                }
            }
            Ok(i.mem.sem != Sem::Weak && w.polls(i, addr[first], &polled) && w.poll.spins & 15 == 0)
        }
    }

    /// Bytes of an element.
    #[inline(always)]
    fn size(i: &Inst) -> usize {
        size_of_element::<E>(i.mem.ty.bytes() as usize)
    }

    /// Element `v` of a lane's bytes.
    #[inline(always)]
    unsafe fn element(i: &Inst, unit: &[u8; N], v: usize) -> D {
        let shift = 64 - 8 * Self::size(i) as u32;
        // SAFETY: the unit has so many elements.
        let x = unsafe {
            let p = unit.as_ptr().add(v * Self::size(i));
            if size_of::<E>() == 2 && Self::size(i) == 1 {
                u64::from(*p)
            } else {
                p.cast::<E>().read_unaligned().bits()
            }
        };
        D::from_bits(if S { ((x << shift) as i64 >> shift) as u64 } else { x })
    }

    /// Writes the executing lanes' registers.
    #[inline(always)]
    unsafe fn put_all(w: &mut Warp, i: &Inst, units: &Units<N>) {
        for v in 0..N / Self::size(i) {
            let mut r = [D::default(); LANES];
            for l in 0..LANES {
                // SAFETY: `v` is below the number of elements.
                r[l] = unsafe { Self::element(i, &units.0[l], v) };
            }
            // SAFETY: `i.v` has as many registers of class D as elements.
            unsafe { w.put(i.v[v], r) };
        }
    }
}

/// Element types of one byte are loaded through 16-bit lanes; all others have their own type.
#[inline(always)]
fn size_of_element<E>(declared: usize) -> usize {
    if size_of::<E>() == 2 { declared } else { size_of::<E>() }
}

/// Stores elements of type `E` from registers of type `D`.
pub struct Store<E, D, const N: usize>(PhantomData<(E, D)>);
impl<E: Word, D: Word, const N: usize> Exec for Store<E, D, N> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        let mut units = Units([[0; N]; LANES]);
        let size = i.mem.ty.bytes() as usize;
        // SAFETY: the caller promises an instruction of this warp; `v` has as many registers of class D as elements.
        unsafe {
            for v in 0..N / size_of_element::<E>(size) {
                let r = w.get::<D>(i.v[v]);
                for l in 0..LANES {
                    let p = units.0[l].as_mut_ptr().add(v * size_of_element::<E>(size));
                    let x = r[l].bits();
                    if size_of::<E>() == 2 && size == 1 {
                        *p = x as u8
                    } else {
                        p.cast::<E>().write_unaligned(E::from_bits(x))
                    }
                }
            }
            match store_units::<N>(w, i, &units) {
                Ok(()) => Ctl::Next,
                Err(t) => w.fail(t),
            }
        }
    }
}

/// One handler per (element type, register class, bytes per lane).
macro_rules! by_bytes {
    ($n:expr, $t:ident, $e:ty, $d:ty $(, $s:expr)?) => {
        match $n {
            1 => pick::<$t<$e, $d, 1 $(, $s)?>>(),
            2 => pick::<$t<$e, $d, 2 $(, $s)?>>(),
            4 => pick::<$t<$e, $d, 4 $(, $s)?>>(),
            8 => pick::<$t<$e, $d, 8 $(, $s)?>>(),
            16 => pick::<$t<$e, $d, 16 $(, $s)?>>(),
            32 => pick::<$t<$e, $d, 32 $(, $s)?>>(),
            _ => return None,
        }
    };
}

/// The handler of a load of `n` elements of type `ty` into registers of class `d`.
pub fn load_handler(ty: Ty, n: usize, d: W, tracked: bool) -> Option<Handler> {
    let run = load_for(ty, n, d)?;
    Some(if tracked { plain_handler::<tracked::Load>() } else { run })
}

fn load_for(ty: Ty, n: usize, d: W) -> Option<Handler> {
    let bytes = ty.bytes() as usize * n;
    Some(match (ty.bytes(), d, ty.is_signed()) {
        (1 | 2, W::H, false) => by_bytes!(bytes, Load, u16, u16, false),
        (1 | 2, W::S, false) => by_bytes!(bytes, Load, u16, u32, false),
        (1 | 2, W::D, false) => by_bytes!(bytes, Load, u16, u64, false),
        (1 | 2, W::H, true) => by_bytes!(bytes, Load, u16, u16, true),
        (1 | 2, W::S, true) => by_bytes!(bytes, Load, u16, u32, true),
        (1 | 2, W::D, true) => by_bytes!(bytes, Load, u16, u64, true),
        (4, W::S, _) => by_bytes!(bytes, Load, u32, u32, false),
        (4, W::D, false) => by_bytes!(bytes, Load, u32, u64, false),
        (4, W::D, true) => by_bytes!(bytes, Load, u32, u64, true),
        (8, W::D, _) => by_bytes!(bytes, Load, u64, u64, false),
        _ => return None,
    })
}

/// The handler of a store of `n` elements of type `ty` from registers of class `d`.
pub fn store_handler(ty: Ty, n: usize, d: W, tracked: bool) -> Option<Handler> {
    let run = store_for(ty, n, d)?;
    Some(if tracked { plain_handler::<tracked::Store>() } else { run })
}

fn store_for(ty: Ty, n: usize, d: W) -> Option<Handler> {
    let bytes = ty.bytes() as usize * n;
    Some(match (ty.bytes(), d) {
        (1 | 2, W::H) => by_bytes!(bytes, Store, u16, u16),
        (1 | 2, W::S) => by_bytes!(bytes, Store, u16, u32),
        (1 | 2, W::D) => by_bytes!(bytes, Store, u16, u64),
        (4, W::S) => by_bytes!(bytes, Store, u32, u32),
        (4, W::D) => by_bytes!(bytes, Store, u32, u64),
        (8, W::D) => by_bytes!(bytes, Store, u64, u64),
        _ => return None,
    })
}

/// `atom` and `red`. Operands `v[n]` (values) and `c` (the comparison of `cas`: then `b` is compared, `c` stored); results to
/// `e` and up to three more registers of `v[4..]`; lanes take their turns in order.
pub struct Atomic<D, const T: bool>(PhantomData<D>);
impl<D: Word, const T: bool> Exec for Atomic<D, T> {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises an instruction of this warp; addresses are checked before use.
        unsafe {
            let addr = w.addresses(i);
            let (ty, op) = (i.mem.ty, i.mem.op);
            let n = ty.bytes() as usize;
            let elements = i.aux as usize;
            let mut same = true;
            for l in lanes(w.exec) {
                for k in 0..elements {
                    let val = w.lane::<D>(i.v[k], l).bits();
                    let cmp = if op == rmw::RmwOp::Cas { w.lane::<D>(i.b, l).bits() } else { 0 };
                    let spot = match w.resolve(i.mem.space, addr[l] + (k * n) as u64, n, l, true) {
                        Ok(s) => s,
                        Err(t) => return w.fail(t),
                    };
                    w.counters.atomics += u64::from(matches!(spot, Spot::Global(_)));
                    w.note_write(i, addr[l]);
                    let old = match spot {
                        Spot::Private(_) => {
                            return w
                                .fail(Trouble::Trap("atomic on local or parameter memory".into()));
                        }
                        _ if T => crate::track::hooks::atomic(w, i, &spot, l, val, cmp, k),
                        spot => rmw::rmw(spot.ptr(), op, ty, val, cmp),
                    };
                    if i.v[4 + k] != super::alu::NONE {
                        w.set_lane(i.v[4 + k], l, D::from_bits(old));
                    }
                    let unchanged = rmw::combine(op, ty, old, val, cmp) == old;
                    same &= unchanged && w.polls(i, addr[l], &old.to_le_bytes());
                }
            }
            if same { Ctl::Yield } else { Ctl::Next }
        }
    }
}

/// The handler of an atomic on registers of class `d`.
pub fn atomic_handler(d: W, tracked: bool) -> Option<Handler> {
    Some(match (d, tracked) {
        (W::H, false) => plain_handler::<Atomic<u16, false>>(),
        (W::S, false) => plain_handler::<Atomic<u32, false>>(),
        (W::D, false) => plain_handler::<Atomic<u64, false>>(),
        (W::H, true) => plain_handler::<Atomic<u16, true>>(),
        (W::S, true) => plain_handler::<Atomic<u32, true>>(),
        (W::D, true) => plain_handler::<Atomic<u64, true>>(),
        _ => return None,
    })
}

/// `isspacep`: `imm` is the window of the space, 0 for global.
pub struct IsSpace;
impl Exec for IsSpace {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller promises a 64-bit register and a predicate.
        unsafe {
            let a = w.get::<u64>(i.a);
            let inside = |x: u64| {
                if i.imm == 0 { x < SHARED_WINDOW } else { x & !(WINDOW - 1) == i.imm as u64 }
            };
            w.put_pred(i.d, mask_where(|l| inside(a[l])));
        }
        Ctl::Next
    }
}

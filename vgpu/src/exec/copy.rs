//! `cp.async.bulk` and `cp.reduce.async.bulk`.
//!
//! A copy is checked when it is issued and done later, in two steps: it reads, it writes. Others run in between, so that a wait
//! that is missing shows. In tracked mode it is a warp of its own, which knows what the issuing lane knows through proxy
//! fences: see [`crate::track::proxy`].

use super::alu::NONE;
use super::control::exec;
use super::lanes::lanes;
use super::ldst::Spot;
use super::sync::Mbar;
use super::warp::{Inst, LANES, Trouble, Warp};
use super::{Ctl, Exec};
use crate::mem::rmw;
use crate::ptx::Space;
use crate::track::hooks;
use crate::track::proxy::Told;

/// The copies that a warp has issued.
#[derive(Default)]
pub struct Copies {
    /// In the order of their issue; those of bulk groups stay until they are waited for.
    all: Vec<Copy>,
    /// How many are not [`Step::Done`].
    pending: usize,
    /// Number of the group that each lane's next copy belongs to.
    open: [u32; LANES],
    /// The model's warps that have no copy now.
    pub free: Vec<u32>,
    /// All warps of the model for copies of this warp.
    pub agents: Vec<u32>,
}

struct Copy {
    inst: Inst,
    lane: usize,
    from: Spot,
    to: Spot,
    bytes: usize,
    /// Where its mbarrier is; otherwise it belongs to a bulk group.
    bar: Option<Spot>,
    group: u32,
    agent: u32,
    step: Step,
    /// Tracked mode: what it had done when it had read.
    read: Option<Told>,
}

enum Step {
    Issued,
    Read(Vec<u8>),
    /// Tracked mode: what it had done when it had written.
    Done(Option<Told>),
}

/// Copies or reduces `c` bytes from `[b]` to `[a]`; space of the destination in `mem.space`, of the source in `aux` (0
/// global, 1 shared); `e` is the address of an mbarrier or NONE; `imm` is 1 for a reduction by `mem.op`.
pub struct Bulk;

impl Exec for Bulk {
    #[inline(always)]
    unsafe fn run(w: &mut Warp, i: &Inst) -> Ctl {
        // SAFETY: the caller's promise.
        match unsafe { issue(w, i) } {
            Ok(()) => Ctl::Next,
            Err(t) => w.fail(t),
        }
    }
}

unsafe fn issue(w: &mut Warp, i: &Inst) -> Result<(), Trouble> {
    for l in lanes(w.exec) {
        // SAFETY: the caller promises an instruction of this warp.
        let (dst, src, bytes) = unsafe {
            (w.address(i.a, l, i.v[0]), w.address(i.b, l, i.v[1]), w.lane::<u32>(i.c, l))
        };
        if (u64::from(bytes) | dst | src) & 15 != 0 {
            return Err(Trouble::Trap(format!(
                "bulk copy of {bytes} bytes from {src:#x} to {dst:#x}: not multiples of 16"
            )));
        }
        let source = if i.aux == 1 { Space::Shared } else { Space::Global };
        let from = w.reach(source, src, bytes, l, false)?;
        let to = w.reach(i.mem.space, dst, bytes, l, true)?;
        let bar = if i.e == NONE {
            None
        } else {
            // SAFETY: as above.
            let addr = unsafe { w.address(i.e, l, i.v[2]) };
            Some(w.resolve(Space::Shared, addr, 8, l, true)?)
        };
        let agent = hooks::issue(w, l).unwrap_or(0);
        w.copies.pending += 1;
        let (group, bytes) = (w.copies.open[l], bytes as usize);
        let (step, read) = (Step::Issued, None);
        let inst = i.clone();
        w.copies.all.push(Copy { inst, lane: l, from, to, bytes, bar, group, agent, step, read });
    }
    Ok(())
}

exec!(
    /// `cp.async.bulk.commit_group`.
    CommitGroup, |w, _i| {
        for l in lanes(w.exec) {
            w.copies.open[l] += 1;
        }
        Ctl::Next
    }
);
exec!(
    /// `cp.async.bulk.wait_group`: all but the last `imm` groups are done, or with `aux` 1 have read.
    WaitGroup, |w, i| {
        for l in lanes(w.exec) {
            w.wait_group(l, i.imm as u32, i.aux == 1);
        }
        Ctl::Next
    }
);

impl Spot {
    /// The spot so many bytes further.
    fn plus(&self, off: usize) -> Spot {
        match *self {
            Spot::Global(p) => Spot::Global(p.wrapping_add(off)),
            Spot::Shared(p, at) => Spot::Shared(p.wrapping_add(off), at + off as u64),
            Spot::Private(p) => Spot::Private(p.wrapping_add(off)),
        }
    }
}

impl Warp {
    /// Checks and counts one side of a copy.
    fn reach(
        &mut self,
        space: Space,
        addr: u64,
        bytes: u32,
        lane: usize,
        store: bool,
    ) -> Result<Spot, Trouble> {
        for off in (16..u64::from(bytes)).step_by(16) {
            self.resolve(space, addr + off, 16, lane, store)?;
        }
        self.resolve(space, addr, 16.min(bytes as usize), lane, store)
    }

    /// One lane's address plus a constant; `v` is 1 for a 32-bit register.
    unsafe fn address(&self, reg: u32, lane: usize, narrow: u32) -> u64 {
        // SAFETY: the caller gives a register of that width.
        unsafe {
            if narrow == 1 { self.lane::<u32>(reg, lane).into() } else { self.lane(reg, lane) }
        }
    }

    /// Copies that are not done yet.
    pub fn copies_pending(&self) -> usize {
        self.copies.pending
    }

    /// Takes the `n`-th copy that is not done a step further.
    pub fn advance_copy(&mut self, n: usize) {
        let mut open = self.copies.all.iter().enumerate();
        let at = open.by_ref().filter(|(_, c)| !matches!(c.step, Step::Done(_))).nth(n);
        if let Some((at, _)) = at {
            self.advance(at);
        }
    }

    fn advance(&mut self, at: usize) {
        let mut copy = self.copies.all.remove(at);
        let own = std::mem::replace(&mut self.agent, copy.agent);
        copy.step = match std::mem::replace(&mut copy.step, Step::Issued) {
            Step::Issued => {
                let data = self.read_side(&copy);
                copy.read = hooks::tell(self);
                Step::Read(data)
            }
            Step::Read(data) => {
                self.write_side(&copy, &data);
                self.copies.pending -= 1;
                self.copies.free.push(copy.agent);
                match &copy.bar {
                    Some(bar) => {
                        self.complete(bar, copy.lane, data.len());
                        Step::Done(None)
                    }
                    None => Step::Done(hooks::tell(self)),
                }
            }
            done => done,
        };
        self.agent = own;
        let waited_for = copy.bar.is_none() && self.is_tracked();
        if waited_for || !matches!(copy.step, Step::Done(_)) {
            self.copies.all.insert(at, copy);
        }
    }

    fn read_side(&mut self, copy: &Copy) -> Vec<u8> {
        let mut data = vec![0; copy.bytes];
        for (n, unit) in data.chunks_mut(16).enumerate() {
            let spot = copy.from.plus(16 * n);
            if self.is_tracked() {
                hooks::load(self, &copy.inst, &spot, copy.lane, unit);
            } else {
                // SAFETY: checked when the copy was issued.
                unit.copy_from_slice(&unsafe { crate::mem::access::load_unit::<16>(spot.ptr()) });
            }
        }
        data
    }

    fn write_side(&mut self, copy: &Copy, data: &[u8]) {
        let (i, l) = (&copy.inst, copy.lane);
        let size = if i.imm == 1 { i.mem.ty.bytes() as usize } else { 16 };
        for (n, unit) in data.chunks(size).enumerate() {
            let spot = copy.to.plus(size * n);
            let word = || {
                let mut b = [0u8; 8];
                b[..size].copy_from_slice(unit);
                u64::from_le_bytes(b)
            };
            if matches!(spot, Spot::Global(_)) {
                self.note_plain(i, spot.ptr() as u64, size as u64);
            }
            // SAFETY: checked when the copy was issued; a unit of a plain copy has 16 bytes.
            unsafe {
                match (i.imm == 1, self.is_tracked()) {
                    (true, true) => drop(hooks::atomic(self, i, &spot, l, word(), 0, 0)),
                    (true, false) => drop(rmw::rmw(spot.ptr(), i.mem.op, i.mem.ty, word(), 0)),
                    (false, true) => hooks::store(self, i, &spot, l, unit),
                    (false, false) => {
                        let unit = unit.as_ptr().cast::<[u8; 16]>();
                        crate::mem::access::store_unit::<16>(spot.ptr(), &*unit);
                    }
                }
            }
        }
    }

    /// The bytes of a copy have come.
    fn complete(&mut self, bar: &Spot, lane: usize, bytes: usize) {
        let p = bar.ptr().cast::<u64>();
        // SAFETY: checked when the copy was issued; the block runs on this thread.
        let turned = unsafe {
            let old = Mbar::unpack(p.read());
            let mut state = old;
            state.transfer(-(bytes as i32));
            p.write(state.pack());
            state.is_turned(old)
        };
        hooks::mbarrier(self, bar, lane, hooks::Mbar::Arrive { turned });
    }

    fn hear(&self, lane: usize, told: &Option<Told>) {
        if let Some(told) = told {
            hooks::hear(self, lane, told);
        }
    }

    fn wait_group(&mut self, lane: usize, but: u32, read_only: bool) {
        let before = self.copies.open[lane].saturating_sub(but);
        let mut at = 0;
        while at < self.copies.all.len() {
            let copy = &self.copies.all[at];
            if copy.bar.is_some() || copy.lane != lane || copy.group >= before {
                at += 1;
                continue;
            }
            match (&copy.step, read_only) {
                (Step::Issued, _) | (Step::Read(_), false) => self.advance(at),
                (Step::Done(told), false) => {
                    self.hear(lane, told);
                    self.copies.all.remove(at);
                }
                (Step::Read(_) | Step::Done(_), true) => {
                    self.hear(lane, &copy.read);
                    at += 1;
                }
            }
        }
    }
}

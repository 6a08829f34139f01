//! A warp: registers, paths, and the loop that runs them.
//!
//! A *path* is a set of lanes with one pc. The current path lives in `pc` and `mask`; the others wait in `paths`. The
//! runnable path with the smallest pc runs, so paths meet again where the code joins, and merge. A path that polls lets
//! the others run (lanes make progress independently, as since sm_70).

use super::block::BlockState;
use super::copy::Copies;
use super::tracked::Late;
use super::{Ctl, Handler};
use crate::mem::counters::Counters;
use crate::mem::space::AddressSpace;

/// Lanes of a warp.
pub const LANES: usize = 32;
/// `Inst::guard` of an instruction without one.
pub const NO_GUARD: u32 = u32::MAX;

/// A decoded instruction: a function and the offsets of its registers.
#[derive(Clone)]
pub struct Inst {
    /// What executes it.
    pub run: Handler,
    /// Destination register, as an offset into the register file.
    pub d: u32,
    /// First source.
    pub a: u32,
    /// Second source.
    pub b: u32,
    /// Third source.
    pub c: u32,
    /// A further register, where the handler says.
    pub e: u32,
    /// Predicate that guards it, or [`NO_GUARD`].
    pub guard: u32,
    /// All ones if the guard is negated.
    pub negate: u32,
    /// Branch target.
    pub target: u32,
    /// Line in the PTX text.
    pub line: u32,
    /// An immediate: address offset, shift, table.
    pub imm: i64,
    /// Elements of a vector operand.
    pub v: [u32; 8],
    /// Memory instructions: what else is to know.
    pub mem: MemInfo,
    /// A small number for the handler.
    pub aux: u32,
}

/// Scope of a strong operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
#[allow(
    missing_docs,
    reason = "each variant is the PTX scope of the same name; a cluster is one block here"
)]
pub enum Scope {
    #[default]
    Cta,
    Gpu,
    Sys,
}

/// Memory order of an operation; volatile is relaxed at system scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[allow(missing_docs, reason = "each variant is the PTX qualifier of the same name")]
pub enum Sem {
    #[default]
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
    Sc,
}

impl Sem {
    /// True if it orders later operations.
    pub fn acquires(self) -> bool {
        matches!(self, Sem::Acquire | Sem::AcqRel | Sem::Sc)
    }
    /// True if it orders earlier operations.
    pub fn releases(self) -> bool {
        matches!(self, Sem::Release | Sem::AcqRel | Sem::Sc)
    }
}

/// What a memory instruction says beside its operands.
#[derive(Clone, Copy, Debug)]
pub struct MemInfo {
    /// State space of the address.
    pub space: crate::ptx::Space,
    /// Memory order.
    pub sem: Sem,
    /// Scope.
    pub scope: Scope,
    /// True if the address register has 32 bits.
    pub narrow: bool,
    /// Element type.
    pub ty: crate::ptx::Ty,
    /// Operation of an atomic.
    pub op: crate::mem::rmw::RmwOp,
}

impl Default for MemInfo {
    fn default() -> Self {
        MemInfo {
            space: crate::ptx::Space::Generic,
            sem: Sem::Weak,
            scope: Scope::Cta,
            narrow: false,
            ty: crate::ptx::Ty::B32,
            op: crate::mem::rmw::RmwOp::Add,
        }
    }
}

/// Why a path does not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It can run.
    No,
    /// It waits for lanes of its warp at a `.sync` instruction.
    Lanes,
    /// It has arrived at barrier n of the block, or at [`WARP_BARRIER`].
    Barrier(u32),
}

/// The barrier among the lanes of a warp.
pub const WARP_BARRIER: u32 = 99;

/// A set of lanes with one pc.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Next instruction.
    pub pc: u32,
    /// Its lanes.
    pub mask: u32,
    /// What it waits for.
    pub wait: Wait,
    /// Set when the barrier that it waited at is complete: the reduction's result.
    pub resumed: Option<u32>,
}

/// What went wrong in a handler; the block adds the place.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// An access outside every allocation.
    Illegal(u64, u32),
    /// A misaligned access.
    Misaligned(u64, u32),
    /// Anything else.
    Trap(String),
}

/// Why a warp stopped running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Its budget is used up.
    Budget,
    /// It polls.
    Yield,
    /// All its paths wait.
    Blocked,
    /// All its lanes have exited.
    Done,
    /// `fault` is set.
    Fault,
}

/// The last poll of a warp: same instruction, address and value as before means that it spins.
#[derive(Clone, Copy, Default, Debug)]
pub struct Poll {
    /// The instruction's address.
    pub inst: usize,
    /// First lane's address.
    pub addr: u64,
    /// First lane's value.
    pub value: [u8; 16],
    /// How often it came back the same.
    pub spins: u32,
    /// Its line.
    pub line: u32,
    /// The warp's instruction count when it polled.
    pub at: u64,
    /// How often a poll was not the same as the one before: the warp goes on.
    pub moves: u64,
}

/// A warp of a running block.
pub struct Warp {
    /// Register file, 64-byte aligned.
    pub regs: *mut u8,
    /// Lanes that execute the current instruction.
    pub exec: u32,
    /// Lanes of the current path; 0 if no path is current.
    pub mask: u32,
    /// The current path's next instruction.
    pub pc: u32,
    /// Paths may meet or overtake at this pc.
    pub next_switch: u32,
    /// Lanes that have not exited.
    pub live: u32,
    /// The other paths.
    pub paths: Vec<Path>,
    /// The current path's barrier result, if it was just resumed.
    pub resumed: Option<u32>,
    /// Why the current path parks.
    pub parking: Wait,
    /// Index in the block.
    pub index: u32,
    /// Local memory: 32 lanes of `local_len` bytes.
    pub local: *mut u8,
    /// Bytes of local memory per lane.
    pub local_len: u32,
    /// The block, which outlives its warps and runs on one thread at a time.
    pub block: *mut BlockState,
    /// The address space of the process.
    pub space: *const AddressSpace,
    /// Device number.
    pub device: u32,
    /// Number of the warp in the memory model of tracked mode.
    pub agent: u32,
    /// What a handler could not do.
    pub fault: Option<Trouble>,
    /// Counts of this warp.
    pub counters: Counters,
    /// The last poll.
    pub poll: Poll,
    /// Loads whose registers have no value yet, in weak mode.
    pub late: Vec<Late>,
    /// Bulk copies that it has issued.
    pub copies: Copies,
    /// Lanes that have arrived at `bar.warp.sync`, and those it waits for.
    pub warp_barrier: (u32, u32),
}

// SAFETY: the raw pointers lead to buffers that the block owns together with the warp; a block moves between threads as a
// whole and runs on one at a time.
unsafe impl Send for Warp {}

impl Warp {
    /// A register as an array of lanes.
    ///
    /// # Safety
    /// `off` must be a register of this kernel wide enough for `T`.
    #[inline(always)]
    pub unsafe fn get<T: Copy>(&self, off: u32) -> [T; LANES] {
        // SAFETY: the decoder lays out registers aligned to 64 bytes and as wide as 32 lanes of their type.
        unsafe { *self.regs.add(off as usize).cast::<[T; LANES]>() }
    }

    /// One lane of a register.
    ///
    /// # Safety
    /// As for [`Warp::get`].
    #[inline(always)]
    pub unsafe fn lane<T: Copy>(&self, off: u32, lane: usize) -> T {
        // SAFETY: as in `get`; `lane` is below 32.
        unsafe { *self.regs.add(off as usize).cast::<T>().add(lane) }
    }

    /// Writes one lane of a register.
    ///
    /// # Safety
    /// As for [`Warp::get`].
    #[inline(always)]
    pub unsafe fn set_lane<T: Copy>(&mut self, off: u32, lane: usize, x: T) {
        // SAFETY: as in `get`; `lane` is below 32.
        unsafe { *self.regs.add(off as usize).cast::<T>().add(lane) = x }
    }

    /// Writes the executing lanes of a register.
    ///
    /// # Safety
    /// As for [`Warp::get`].
    #[inline(always)]
    pub unsafe fn put<T: Copy>(&mut self, off: u32, x: [T; LANES]) {
        // SAFETY: as in `get`.
        let d = unsafe { &mut *self.regs.add(off as usize).cast::<[T; LANES]>() };
        if self.exec == !0 {
            *d = x;
        } else {
            // All lanes are written, so that this is a blend and not 32 branches.
            let mut r = *d;
            for l in 0..LANES {
                r[l] = if self.exec & 1 << l != 0 { x[l] } else { r[l] };
            }
            *d = r;
        }
    }

    /// A predicate as a mask of lanes.
    ///
    /// # Safety
    /// `off` must be a predicate register of this kernel.
    #[inline(always)]
    pub unsafe fn pred(&self, off: u32) -> u32 {
        // SAFETY: as in `get`; a predicate is one aligned u32.
        unsafe { *self.regs.add(off as usize).cast::<u32>() }
    }

    /// Writes the executing lanes of a predicate.
    ///
    /// # Safety
    /// As for [`Warp::pred`].
    #[inline(always)]
    pub unsafe fn put_pred(&mut self, off: u32, x: u32) {
        // SAFETY: as in `pred`.
        let d = unsafe { &mut *self.regs.add(off as usize).cast::<u32>() };
        *d = *d & !self.exec | x & self.exec;
    }

    /// Runs up to `budget` instructions.
    pub fn run(&mut self, code: &[Inst], budget: u32) -> Stop {
        if self.mask == 0 && !self.choose() {
            return if self.live == 0 { Stop::Done } else { Stop::Blocked };
        }
        let mut left = budget;
        while left > 0 {
            if self.pc >= self.next_switch {
                self.reconverge();
            }
            let i = &code[self.pc as usize];
            left -= 1;
            self.counters.instructions += 1;
            self.exec = if i.guard == NO_GUARD {
                self.mask
            } else {
                // SAFETY: the guard is a predicate of this kernel.
                let p = unsafe { self.pred(i.guard) };
                self.mask & (p ^ i.negate)
            };
            if self.exec == 0 {
                self.pc += 1;
                continue;
            }
            if !self.late.is_empty() {
                // SAFETY: the instruction is of this warp's kernel.
                unsafe { self.force_used(self.pc) };
            }
            // SAFETY: `code` was decoded for this warp's kernel.
            match unsafe { (i.run)(self, i) } {
                Ctl::Next => self.pc += 1,
                Ctl::Jump => {
                    if self.mask == 0 && !self.choose() {
                        return if self.live == 0 { Stop::Done } else { Stop::Blocked };
                    }
                }
                Ctl::Yield => {
                    self.pc += 1;
                    if !self.rotate() {
                        return Stop::Yield;
                    }
                }
                Ctl::Park => {
                    self.park();
                    if !self.choose() {
                        return Stop::Blocked;
                    }
                }
                Ctl::Fault => return Stop::Fault,
            }
        }
        // A path that never polls must not keep the others of its warp from running either.
        self.rotate();
        Stop::Budget
    }

    /// Puts the current path aside to wait for `parking`; lanes whose guard was false go on.
    fn park(&mut self) {
        let rest = self.mask & !self.exec;
        // Lanes that already wait for others at this very instruction: together they look again.
        let here =
            |p: &Path| p.pc == self.pc && p.wait == Wait::Lanes && self.parking == Wait::Lanes;
        if let Some(p) = self.paths.iter().position(here).map(|n| &mut self.paths[n]) {
            p.mask |= self.exec;
            p.wait = Wait::No;
        } else {
            self.paths.push(Path {
                pc: self.pc,
                mask: self.exec,
                wait: self.parking,
                resumed: None,
            });
        }
        if rest != 0 {
            self.paths.push(Path { pc: self.pc + 1, mask: rest, wait: Wait::No, resumed: None });
        }
        self.mask = 0;
    }

    /// Makes the runnable path with the smallest pc current.
    fn choose(&mut self) -> bool {
        let best = self
            .paths
            .iter()
            .enumerate()
            .filter(|(_, p)| p.wait == Wait::No)
            .min_by_key(|(_, p)| p.pc);
        let Some((n, _)) = best else { return false };
        self.take(n);
        true
    }

    fn take(&mut self, n: usize) {
        let p = self.paths.swap_remove(n);
        (self.pc, self.mask, self.resumed) = (p.pc, p.mask, p.resumed);
        self.plan_switch();
    }

    /// Notes where the current path may meet another one.
    pub fn plan_switch(&mut self) {
        let pc = self.pc;
        let meets = |p: &&Path| p.wait == Wait::No || p.wait == Wait::Lanes && p.pc >= pc;
        self.next_switch = self.paths.iter().filter(meets).map(|p| p.pc).min().unwrap_or(u32::MAX);
    }

    /// Merges paths at this pc, and lets one that is behind catch up.
    fn reconverge(&mut self) {
        let pc = self.pc;
        if self.resumed.is_none() {
            let mut n = 0;
            while n < self.paths.len() {
                let p = self.paths[n];
                if p.pc == pc && p.resumed.is_none() && !matches!(p.wait, Wait::Barrier(_)) {
                    self.mask |= p.mask;
                    self.paths.swap_remove(n);
                } else {
                    n += 1;
                }
            }
        }
        if self.paths.iter().any(|p| p.wait == Wait::No && p.pc < pc) {
            self.set_aside();
            self.choose();
        } else {
            // Those at this pc with a barrier result to take run after us.
            let pc = self.pc + 1;
            let later = self
                .paths
                .iter()
                .filter(|p| matches!(p.wait, Wait::No | Wait::Lanes))
                .map(|p| p.pc.max(pc));
            self.next_switch = later.min().unwrap_or(u32::MAX);
        }
    }

    fn set_aside(&mut self) {
        self.paths.push(Path {
            pc: self.pc,
            mask: self.mask,
            wait: Wait::No,
            resumed: self.resumed,
        });
        self.mask = 0;
    }

    /// Lets another runnable path run for a while; false if there is none.
    fn rotate(&mut self) -> bool {
        let Some(n) = self.paths.iter().position(|p| p.wait == Wait::No) else {
            return false;
        };
        let p = self.paths.remove(n); // remove, not swap_remove: first come, first served
        let old = Path { pc: self.pc, mask: self.mask, wait: Wait::No, resumed: self.resumed };
        self.paths.push(old);
        (self.pc, self.mask, self.resumed) = (p.pc, p.mask, p.resumed);
        self.next_switch = u32::MAX; // until it branches, yields or the next slice begins
        true
    }

    /// Splits the current path: the executing lanes go to `target`.
    #[inline(always)]
    pub fn branch(&mut self, target: u32) -> Ctl {
        let stay = self.mask & !self.exec;
        if stay != 0 {
            self.paths.push(Path { pc: self.pc + 1, mask: stay, wait: Wait::No, resumed: None });
            self.mask = self.exec;
        }
        self.pc = target;
        if !self.paths.is_empty() {
            self.next_switch = 0;
        }
        Ctl::Jump
    }

    /// Ends the executing lanes.
    pub fn exit(&mut self) -> Ctl {
        self.force_where(|_| true);
        self.live &= !self.exec;
        self.mask &= !self.exec;
        for p in &mut self.paths {
            // Who waited for lanes of the warp looks again at which are left.
            if p.wait == Wait::Lanes {
                p.wait = Wait::No;
            }
        }
        self.finish_warp_barrier();
        if self.mask != 0 {
            self.pc += 1;
        }
        Ctl::Jump
    }

    /// Releases the lanes at `bar.warp.sync` if all that it waits for and that still live are there.
    pub fn finish_warp_barrier(&mut self) -> bool {
        let (arrived, members) = self.warp_barrier;
        if arrived == 0 || members & self.live & !arrived != 0 {
            return false;
        }
        self.warp_barrier = (0, 0);
        crate::track::hooks::warp_barrier(self, arrived);
        for p in self.paths.iter_mut().filter(|p| p.wait == Wait::Barrier(WARP_BARRIER)) {
            (p.wait, p.resumed) = (Wait::No, Some(0));
        }
        self.next_switch = 0;
        true
    }

    /// True in tracked mode.
    pub fn is_tracked(&self) -> bool {
        // SAFETY: the block outlives its warps and runs on this thread.
        unsafe { (*self.block).tracked.is_some() }
    }

    /// Notes a fault; the run loop stops.
    #[cold]
    pub fn fail(&mut self, t: Trouble) -> Ctl {
        self.fault = Some(t);
        Ctl::Fault
    }

    /// True if it has polled the same value many times and done little else since.
    pub fn is_spinning(&self) -> bool {
        self.poll.spins > 64 && self.counters.instructions - self.poll.at < 256
    }

    /// Notes a poll. True if it is the same as the last one: nothing has changed.
    #[inline]
    pub fn polls(&mut self, i: &Inst, addr: u64, bytes: &[u8]) -> bool {
        let mut value = [0; 16];
        let n = bytes.len().min(16);
        value[..n].copy_from_slice(&bytes[..n]);
        let inst = std::ptr::from_ref(i) as usize;
        if self.poll.inst == inst && self.poll.addr == addr && self.poll.value == value {
            self.poll.spins += 1;
            if self.poll.spins == 64 {
                // SAFETY: the block outlives its warps and runs on this thread.
                unsafe { (*self.block).writers.watch(addr) };
            }
            self.poll.at = self.counters.instructions;
            self.counters.polls += 1;
            return true;
        }
        self.poll = Poll {
            inst,
            addr,
            value,
            spins: 0,
            line: i.line,
            at: self.counters.instructions,
            moves: self.poll.moves + 1,
        };
        false
    }
}

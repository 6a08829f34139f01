//! A thread block: its warps, shared memory and barriers. A block runs on one thread at a time.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt::Write as _;
use std::sync::Arc;

use super::warp::{LANES, Stop, Trouble, WARP_BARRIER, Wait, Warp};
use crate::error::{Fault, Place};
use crate::isa::W;
use crate::isa::decode::Kernel;
use crate::isa::special::Special;
use crate::launch::Launch;
use crate::mem::counters::Counters;
use crate::track::clock::Know;
use crate::track::{Party, Tracked};
use crate::writers::Writers;

/// Instructions that a warp runs before the next one gets its turn.
const SLICE: u32 = 1024;

/// Zeroed bytes, aligned to 64.
pub struct Buffer {
    p: *mut u8,
    len: usize,
}

// SAFETY: a buffer is plain bytes that it owns.
unsafe impl Send for Buffer {}
// SAFETY: as above; who writes to it says why it may.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Self {
        // SAFETY: the layout has a size of at least 64.
        let p = unsafe { alloc_zeroed(Self::layout(len)) };
        assert!(!p.is_null(), "out of memory for {len} bytes");
        Buffer { p, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(64), 64).expect("sizes of kernels are checked before")
    }

    /// Address of a byte.
    pub fn at(&self, off: u64) -> *mut u8 {
        debug_assert!(off <= self.len as u64);
        self.p.wrapping_add(off as usize)
    }

    /// Length as asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it was asked for with length 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.p, Self::layout(self.len)) };
    }
}

#[derive(Clone, Copy, Default)]
struct BarrierState {
    lanes: u32,
    /// Lanes it waits for; 0: all that live.
    expected: u32,
    votes: u32,
    kind: u32,
}

/// What the warps of a block share.
pub struct BlockState {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Shared memory.
    pub shared: Buffer,
    /// Kernel parameters.
    pub params: Arc<Buffer>,
    /// Who wrote what others wait for.
    pub writers: Arc<Writers>,
    /// Number of the launch.
    pub launch_id: u64,
    /// Linear index in the grid.
    pub index: u64,
    /// Memory model, in tracked mode.
    pub tracked: Option<Arc<Tracked>>,
    /// Tracked mode: what happened before the launch.
    pub known: Arc<Know>,
    /// Number of this block among all blocks of the process, for addresses of its shared memory in tracked mode.
    pub uid: u64,
    barriers: [BarrierState; 16],
    /// Barriers at which somebody has arrived.
    arrived: u16,
    live: u32,
}

impl BlockState {
    /// Counts the lanes of a warp that arrive at a barrier.
    pub fn arrive(&mut self, id: u32, threads: u32, exec: u32, votes: u32, kind: u32, agent: u32) {
        self.arrived |= 1 << id;
        let b = &mut self.barriers[id as usize];
        b.lanes += exec.count_ones();
        b.votes += votes.count_ones();
        // An arrival never takes back what the waiting ones want to hear.
        b.kind = b.kind.max(if kind == 1 { 0 } else { kind });
        if threads != 0 {
            b.expected = threads;
        }
        if let Some(t) = &self.tracked {
            t.barrier_arrive(self.uid, id, agent, exec);
        }
    }

    /// If barrier `id` is complete, resets it and returns its reduction.
    fn complete(&mut self, id: u32) -> Option<u32> {
        let b = &mut self.barriers[id as usize];
        let want = if b.expected == 0 { self.live } else { b.expected.min(self.live) };
        if b.lanes == 0 || b.lanes < want {
            return None;
        }
        let r = match b.kind {
            3 => u32::from(b.votes == b.lanes),
            4 => u32::from(b.votes != 0),
            _ => b.votes,
        };
        *b = BarrierState::default();
        self.arrived &= !(1 << id);
        Some(r)
    }
}

/// A running block.
pub struct Block {
    state: Box<BlockState>,
    warps: Vec<Warp>,
    /// What it belongs to.
    pub launch: Arc<Launch>,
    /// Linear index in the grid.
    pub index: u64,
    next: usize,
    _regs: Buffer,
    _locals: Buffer,
}

// SAFETY: the warps' pointers lead into `state`, `_regs` and `_locals`, which move together with them (all are heap
// allocations), and into the launch's address space, which is Sync.
unsafe impl Send for Block {}

/// How a block's turn ended.
#[derive(Debug)]
pub enum Turn {
    /// It did something and can go on.
    Busy,
    /// All its warps poll or wait.
    Idle,
    /// All its threads have exited.
    Done,
    /// A thread did something it must not.
    Fault(Fault),
}

impl Block {
    /// Makes block `index` of a launch.
    pub fn new(launch: &Arc<Launch>, index: u64, sm: u32, uid: u64) -> Block {
        let k = &launch.kernel;
        let threads = launch.block.iter().product::<u32>();
        let n = threads.div_ceil(LANES as u32);
        let regs = Buffer::new(k.reg_bytes as usize * n as usize);
        let locals = Buffer::new(k.local_bytes as usize * LANES * n as usize);
        let mut state = Box::new(BlockState {
            kernel: k.clone(),
            shared: Buffer::new((k.shared_bytes + launch.dynamic_shared) as usize),
            params: launch.params.clone(),
            writers: launch.writers.clone(),
            launch_id: launch.id,
            index,
            tracked: launch.tracked.clone(),
            known: launch.known.clone(),
            uid,
            barriers: Default::default(),
            arrived: 0,
            live: threads,
        });
        let block: *mut BlockState = &raw mut *state;
        let warp = |w: u32| {
            let lanes = (threads - w * LANES as u32).min(LANES as u32);
            let live = if lanes == 32 { !0 } else { (1 << lanes) - 1 };
            let agent =
                launch.tracked.as_ref().map_or(0, |t| t.new_warp(launch, uid, index, w, live));
            let warp = Warp {
                regs: regs.at(u64::from(k.reg_bytes) * u64::from(w)),
                exec: live,
                mask: live,
                pc: 0,
                next_switch: u32::MAX,
                live,
                paths: Vec::new(),
                resumed: None,
                parking: Wait::No,
                index: w,
                local: locals.at(k.local_bytes as u64 * LANES as u64 * u64::from(w)),
                local_len: k.local_bytes,
                block,
                space: Arc::as_ptr(&launch.space),
                device: launch.device,
                agent,
                fault: None,
                counters: Counters::default(),
                poll: super::warp::Poll::default(),
                late: Vec::new(),
                copies: super::copy::Copies::default(),
                warp_barrier: (0, 0),
            };
            warp.fill(launch, index, sm);
            warp
        };
        let warps = (0..n).map(warp).collect();
        Block { state, warps, launch: launch.clone(), index, next: 0, _regs: regs, _locals: locals }
    }

    /// Lets each warp run a slice, beginning with the one after the last turn's first.
    pub fn turn(&mut self) -> Turn {
        let mut busy = false;
        let n = self.warps.len();
        self.next = (self.next + 1) % n;
        for k in 0..n {
            let at = (self.next + k) % n;
            let w = &mut self.warps[at];
            let before = w.live;
            if before == 0 {
                continue;
            }
            let moves = w.poll.moves;
            let stop = w.run(&self.launch.kernel.code, SLICE);
            let gone = (before & !w.live).count_ones();
            busy |= stop == Stop::Budget || gone != 0 || w.poll.moves != moves;
            self.state.live -= gone;
            busy |= self.settle_barriers();
            if stop == Stop::Fault {
                return Turn::Fault(self.fault(at));
            }
        }
        if self.state.live == 0 {
            self.finish_copies();
            return Turn::Done;
        }
        // A step of each warp's oldest copy, so that it is late enough for a missing wait to show.
        for w in self.warps.iter_mut().filter(|w| w.copies_pending() > 0) {
            w.advance_copy(0);
            busy = true;
        }
        if busy { Turn::Busy } else { Turn::Idle }
    }

    /// Runs one slice of one warp: the seeded scheduler's step. False if that warp could not run.
    pub fn step(&mut self, warp: usize, budget: u32) -> Turn {
        let before = self.warps[warp].live;
        if before == 0 {
            return Turn::Idle;
        }
        let stop = self.warps[warp].run(&self.launch.kernel.code, budget);
        let gone = (before & !self.warps[warp].live).count_ones();
        self.state.live -= gone;
        let mut moved = self.settle_barriers();
        if self.state.live == 0 {
            self.finish_copies();
        }
        moved |= self.late_copy();
        match stop {
            Stop::Fault => Turn::Fault(self.fault(warp)),
            _ if self.state.live == 0 => Turn::Done,
            Stop::Budget if !self.warps[warp].is_spinning() => Turn::Busy,
            _ if moved || gone != 0 => Turn::Busy,
            _ => Turn::Idle,
        }
    }

    /// Sometimes takes some copy a step further, as the seed decides.
    fn late_copy(&mut self) -> bool {
        let Some(t) = &self.state.tracked else { return false };
        // So that a copy is late by some steps of every warp.
        let rare = 4 + self.warps.len() as u64;
        let pending = self.warps.iter_mut().filter(|w| w.copies_pending() > 0);
        let mut pending: Vec<&mut Warp> = pending.collect();
        if pending.is_empty() || t.random(rare) != 0 {
            return false;
        }
        let w = t.random(pending.len() as u64) as usize;
        let n = t.random(pending[w].copies_pending() as u64) as usize;
        pending[w].advance_copy(n);
        true
    }

    fn finish_copies(&mut self) {
        for w in &mut self.warps {
            while w.copies_pending() > 0 {
                w.advance_copy(0);
            }
        }
    }

    /// Number of warps.
    pub fn warps(&self) -> usize {
        self.warps.len()
    }

    /// Wakes the paths whose barrier is complete.
    fn settle_barriers(&mut self) -> bool {
        if self.state.arrived == 0 {
            return false;
        }
        let mut any = false;
        for id in 0..16 {
            let Some(result) = self.state.complete(id) else {
                continue;
            };
            any = true;
            if let Some(t) = &self.state.tracked {
                let party = |w: &Warp| {
                    let waits = w.paths.iter().filter(|p| p.wait == Wait::Barrier(id));
                    let lanes = waits.fold(0, |m, p| m | p.mask);
                    Party { warp: w.agent, lanes, live: w.live }
                };
                let parties = self.warps.iter().map(party).filter(|p| p.lanes != 0);
                t.barrier_complete(self.state.uid, id, &parties.collect::<Vec<_>>());
            }
            for p in self
                .warps
                .iter_mut()
                .flat_map(|w| &mut w.paths)
                .filter(|p| p.wait == Wait::Barrier(id))
            {
                (p.wait, p.resumed) = (Wait::No, Some(result));
            }
        }
        any
    }

    /// True if every live warp waits at a barrier that nobody can complete any more.
    pub fn is_stuck(&self) -> bool {
        self.warps.iter().all(|w| w.copies_pending() == 0)
            && self
                .warps
                .iter()
                .filter(|w| w.live != 0)
                .all(|w| w.mask == 0 && w.paths.iter().all(|p| p.wait != Wait::No))
    }

    /// True if every live warp waits at a barrier or polls a value that has not changed for a while.
    pub fn is_quiet(&self) -> bool {
        self.warps.iter().filter(|w| w.live != 0).all(|w| w.is_spinning() || w.mask == 0)
    }

    fn place(&self, warp: usize, line: u32) -> Place {
        Place {
            kernel: self.state.kernel.name.clone(),
            device: self.launch.device,
            block: self.index,
            warp: warp as u32,
            line,
        }
    }

    fn fault(&mut self, at: usize) -> Fault {
        let line = self.state.kernel.code[self.warps[at].pc as usize].line;
        let place = self.place(at, line);
        match self.warps[at].fault.take() {
            Some(Trouble::Illegal(address, bytes)) => {
                Fault::IllegalAddress { at: place, address, bytes }
            }
            Some(Trouble::Misaligned(address, bytes)) => {
                Fault::Misaligned { at: place, address, bytes }
            }
            Some(Trouble::Trap(what)) => Fault::Trap { at: place, what },
            None => Fault::Trap { at: place, what: "unknown fault".into() },
        }
    }

    /// What each warp waits for, for the watchdog's report.
    pub fn report(&self, out: &mut String) {
        for (n, w) in self.warps.iter().enumerate().filter(|(_, w)| w.live != 0) {
            if w.poll.spins > 0 {
                let place = self.place(n, w.poll.line);
                let value = u64::from_le_bytes(w.poll.value[..8].try_into().unwrap_or_default());
                let _ = write!(out, "  {place}: polls {:#x}, which holds {value:#x}", w.poll.addr);
                match self.launch.writers.last(w.poll.addr) {
                    Some(who) => out.push_str(&format!("; last written by {who}\n")),
                    None => out.push_str(
                        "; no kernel is known to have written it (plain stores count once it is polled for long)\n",
                    ),
                }
            }
            for p in &w.paths {
                let line = self.state.kernel.code[p.pc as usize].line;
                match p.wait {
                    Wait::Barrier(WARP_BARRIER) => {
                        let _ = writeln!(
                            out,
                            "  {}: lanes {:#010x} wait at bar.warp.sync",
                            self.place(n, line),
                            p.mask
                        );
                    }
                    Wait::Barrier(id) => {
                        let b = self.state.barriers[id as usize];
                        let want = if b.expected == 0 { self.state.live } else { b.expected };
                        let _ = writeln!(
                            out,
                            "  {}: waits at barrier {id}: {} of {want} threads are there",
                            self.place(n, line),
                            b.lanes
                        );
                    }
                    Wait::Lanes => {
                        let _ = writeln!(
                            out,
                            "  {}: lanes {:#010x} wait for others of their warp",
                            self.place(n, line),
                            p.mask
                        );
                    }
                    Wait::No => {}
                }
            }
        }
    }

    /// The counts of all its warps.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for w in &self.warps {
            sum.add(&w.counters);
        }
        sum
    }

    /// Number of this block among all blocks of the process.
    pub fn uid(&self) -> u64 {
        self.state.uid
    }

    /// The model's numbers of its warps and of their copies, in tracked mode.
    pub fn agents(&self) -> impl Iterator<Item = u32> + '_ {
        self.warps.iter().flat_map(|w| w.copies.agents.iter().copied().chain([w.agent]))
    }
}

impl Warp {
    /// Writes constants and special registers into the register file.
    fn fill(&self, launch: &Launch, index: u64, sm: u32) {
        let k = &launch.kernel;
        for &(at, w, bits) in &k.constants {
            self.splat(at, w, bits);
        }
        let [bx, by, _] = launch.block.map(u64::from);
        let [gx, gy, _] = launch.grid.map(u64::from);
        let ctaid = [index % gx, index / gx % gy, index / gx / gy];
        let nwarps = launch.block.iter().product::<u32>().div_ceil(32);
        for &(at, w, special) in &k.specials {
            let uniform = match special {
                Special::Ntid(d) => launch.block[d as usize].into(),
                Special::Ctaid(d) => ctaid[d as usize],
                Special::Nctaid(d) => launch.grid[d as usize].into(),
                Special::WarpId => self.index.into(),
                Special::Nwarpid => nwarps.into(),
                Special::SmId => sm.into(),
                Special::Nsmid => launch.sms.into(),
                Special::GridId => launch.id,
                Special::DynamicShared => launch.dynamic_shared.into(),
                Special::TotalShared => (k.shared_bytes + launch.dynamic_shared).into(),
                Special::Workspace(half) => launch.workspace >> (32 * half) & 0xffff_ffff,
                Special::Constant(c) => c.into(),
                Special::Tid(_) | Special::LaneId | Special::LaneMask(_) => {
                    for l in 0..32u32 {
                        let t = u64::from(self.index * 32 + l);
                        let x = match special {
                            Special::Tid(0) => t % bx,
                            Special::Tid(1) => t / bx % by,
                            Special::Tid(_) => t / bx / by,
                            Special::LaneMask(0) => 1 << l,
                            Special::LaneMask(1) => (2 << l) - 1,
                            Special::LaneMask(2) => (1 << l) - 1,
                            Special::LaneMask(3) => !((1 << l) - 1),
                            Special::LaneMask(_) => !((2 << l) - 1),
                            _ => l.into(),
                        };
                        // SAFETY: a special register of 32 bits of this kernel.
                        unsafe {
                            *self.regs.add(at as usize).cast::<u32>().add(l as usize) = x as u32
                        };
                    }
                    continue;
                }
            };
            self.splat(at, w, uniform);
        }
    }

    fn splat(&self, at: u32, w: W, bits: u64) {
        // SAFETY: the decoder placed a register of this class there.
        unsafe {
            let p = self.regs.add(at as usize);
            match w {
                W::P => *p.cast::<u32>() = bits as u32,
                W::H => *p.cast::<[u16; LANES]>() = [bits as u16; LANES],
                W::S => *p.cast::<[u32; LANES]>() = [bits as u32; LANES],
                W::D => *p.cast::<[u64; LANES]>() = [bits; LANES],
            }
        }
    }
}

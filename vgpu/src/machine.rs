//! Devices, launches, and the threads that run blocks.
//!
//! A launch's blocks become *resident* on a multiprocessor when it has room, as on hardware: so a launch whose blocks wait
//! for a block that does not fit hangs here too, and the watchdog says so. Resident blocks are tasks of a pool of
//! threads; a task runs for a slice, so a block that spins never keeps another from running.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::error::{Fault, LoadError};
use crate::exec::block::{Block, Buffer, Turn};
use crate::isa::decode::Kernel;
use crate::isa::special::Special;
use crate::launch::{Launch, LaunchSpec};
use crate::mem::counters::Counters;
use crate::mem::space::{ARENA, AddressSpace, Kind};
use crate::module::LoadedModule;
use crate::progress::{Padded, Progress};
use crate::remote::Client;
use crate::track::model::Config;
use crate::track::{RaceReport, Tracked};
use crate::writers::Writers;

/// How a machine is built.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Number of devices.
    pub devices: u32,
    /// Multiprocessors per device.
    pub sms: u32,
    /// Worker threads; in tracked mode the waiting thread works instead.
    pub workers: usize,
    /// Weak memory and races; none is SC mode.
    pub track: Option<Config>,
    /// After how long without progress a launch is given up.
    pub watchdog: Duration,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            devices: 1,
            sms: 132,
            workers: std::thread::available_parallelism().map_or(2, usize::from).max(2),
            track: None,
            watchdog: Duration::from_secs(10),
        }
    }
}

/// Limits of a multiprocessor (those of sm_90).
const SM_THREADS: u32 = 2048;
const SM_BLOCKS: u32 = 32;
const SM_SHARED: u32 = 228 * 1024;
/// The most shared memory of one block.
pub const BLOCK_SHARED: u32 = 227 * 1024;
/// What the system keeps of each block's shared memory.
const RESERVED_SHARED: u32 = 1024;

#[derive(Clone, Copy, Default)]
pub(crate) struct Sm {
    threads: u32,
    blocks: u32,
    shared: u32,
}

pub(crate) struct Sched {
    pub(crate) ready: VecDeque<Box<Block>>,
    pub(crate) sms: Vec<Vec<Sm>>,
    pub(crate) places: HashMap<u64, usize>,
    pub(crate) pending: Vec<VecDeque<Arc<Launch>>>,
    pub(crate) running: usize,
    pub(crate) live: usize,
}

/// What workers look at after every turn; written rarely, so kept away from what is written often.
#[derive(Default)]
pub(crate) struct Signals {
    /// Blocks that are ready and have no worker.
    pub(crate) waiting: AtomicUsize,
    /// A worker has found that nothing moves: all put their blocks down.
    pub(crate) hang: AtomicBool,
    /// The machine is dropped.
    pub(crate) stop: AtomicBool,
}

pub(crate) struct Shared {
    pub(crate) config: MachineConfig,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) tracked: Option<Arc<Tracked>>,
    pub(crate) writers: Arc<Writers>,
    pub(crate) sched: Mutex<Sched>,
    pub(crate) wake: Condvar,
    pub(crate) signals: Padded<Signals>,
    pub(crate) progress: Progress,
    pub(crate) ids: AtomicU64,
    pub(crate) uids: AtomicU64,
}

/// The virtual machine: devices, memory and the threads that run them.
pub struct Machine {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
    runner: Mutex<()>,
    /// Where kernels run instead, if tracked mode is to see those of other processes too.
    engine: Option<Client>,
    /// How many races were printed.
    printed: Mutex<usize>,
}

impl Machine {
    /// Builds a machine.
    pub fn new(config: MachineConfig) -> std::io::Result<Machine> {
        Machine::over(config, AddressSpace::new()?, None)
    }

    /// A machine whose kernels an engine runs.
    pub fn with_engine(config: MachineConfig, engine: Client) -> std::io::Result<Machine> {
        let space = AddressSpace::at(engine.base(), ARENA, 0..ARENA)?;
        Machine::over(MachineConfig { track: None, workers: 1, ..config }, space, Some(engine))
    }

    /// A machine over this memory.
    pub(crate) fn over(
        config: MachineConfig,
        space: AddressSpace,
        engine: Option<Client>,
    ) -> std::io::Result<Machine> {
        if !crate::exec::is_supported() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                "vgpu needs a processor with AVX2, FMA and BMI2",
            ));
        }
        let n = config.devices as usize;
        let workers = if config.track.is_some() { 0 } else { config.workers.max(1) };
        let sched = Sched {
            ready: VecDeque::new(),
            sms: vec![vec![Sm::default(); config.sms as usize]; n],
            places: HashMap::new(),
            pending: vec![VecDeque::new(); n],
            running: 0,
            live: 0,
        };
        let space = Arc::new(space);
        let shared = Arc::new(Shared {
            tracked: config.track.map(|c| Arc::new(Tracked::new(c, space.clone()))),
            space,
            writers: Arc::default(),
            sched: Mutex::new(sched),
            wake: Condvar::new(),
            signals: Padded::default(),
            progress: Progress::new(workers),
            ids: AtomicU64::new(0),
            uids: AtomicU64::new(1),
            config,
        });
        let spawn = |n| {
            let s = shared.clone();
            std::thread::Builder::new().name(format!("vgpu-{n}")).spawn(move || s.work(n))
        };
        let threads = (0..workers).map(spawn).collect::<Result<_, _>>()?;
        Ok(Machine { shared, threads, runner: Mutex::new(()), engine, printed: Mutex::default() })
    }

    /// The memory of all devices.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.shared.space
    }

    /// The configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.shared.config
    }

    /// Loads a module for this machine's mode.
    pub fn load(&self, text: &str) -> Result<LoadedModule, LoadError> {
        LoadedModule::parse(text, self.shared.tracked.is_some())
    }

    /// Runs a kernel to its end, here or in the engine.
    pub fn run(&self, spec: &LaunchSpec<'_>) -> Result<Counters, Fault> {
        match &self.engine {
            Some(engine) => engine.run(self.space(), spec),
            None => self.launch(spec).and_then(|launch| self.wait(&launch)),
        }
    }

    /// Gives a launch up: its blocks end, and whoever waits for it is told.
    pub(crate) fn abandon(&self, launch: &Arc<Launch>, why: Fault) {
        let mut sched = self.shared.sched.lock().unwrap();
        let mut st = launch.state();
        if st.ended {
            return;
        }
        st.fault.get_or_insert(why);
        launch.failed.store(true, Ordering::Relaxed);
        let over = st.running == 0;
        drop(st);
        for pending in &mut sched.pending {
            pending.retain(|other| !Arc::ptr_eq(other, launch));
        }
        if over {
            self.shared.end(&mut sched, launch);
        }
    }

    /// The races found so far.
    pub fn races(&self) -> Vec<RaceReport> {
        self.shared.tracked.as_ref().map_or_else(Vec::new, |t| t.races())
    }

    /// Prints the races that were not printed before.
    pub(crate) fn print_races(&self) {
        let all = self.races();
        let mut printed = self.printed.lock().unwrap();
        for race in all.iter().skip(*printed) {
            eprintln!("vgpu: {race}");
        }
        *printed = all.len().max(*printed);
    }

    /// Blocks of this shape that one multiprocessor holds.
    pub fn occupancy(&self, kernel: &Kernel, threads: u32, dynamic_shared: u32) -> u32 {
        let shared = kernel.shared_bytes + dynamic_shared + RESERVED_SHARED;
        let threads = threads.next_multiple_of(32).max(1);
        (SM_THREADS / threads).min(SM_BLOCKS).min(SM_SHARED / shared)
    }

    /// Starts a kernel; its blocks run beside everything else that runs.
    pub fn launch(&self, spec: &LaunchSpec<'_>) -> Result<Arc<Launch>, Fault> {
        let s = &self.shared;
        self.check(spec)?;
        let params = Buffer::new(spec.kernel.param_bytes as usize);
        let n = spec.params.len().min(params.len());
        // SAFETY: both are at least `n` bytes; nobody else knows the buffer yet.
        unsafe { std::ptr::copy_nonoverlapping(spec.params.as_ptr(), params.at(0), n) };
        let id = s.ids.fetch_add(1, Ordering::Relaxed);
        let workspace = self.workspace(spec)?;
        // From here on: what is known now is forgotten when nothing runs, and this launch is not counted yet.
        let mut sched = s.sched.lock().unwrap();
        let launch = Arc::new(Launch {
            id,
            kernel: spec.kernel.clone(),
            grid: spec.grid,
            block: spec.block,
            dynamic_shared: spec.dynamic_shared,
            params: Arc::new(params),
            device: spec.device,
            sms: s.config.sms,
            workspace,
            space: s.space.clone(),
            tracked: s.tracked.clone(),
            writers: s.writers.clone(),
            known: s.tracked.as_ref().map_or_else(Arc::default, |t| t.ended()),
            clock: Mutex::default(),
            failed: AtomicBool::new(false),
            state: Mutex::default(),
            done: Condvar::new(),
        });
        s.writers.names.lock().unwrap().push((spec.kernel.name.clone(), spec.device));
        s.progress.event();
        sched.live += 1;
        sched.pending[spec.device as usize].push_back(launch.clone());
        s.admit(&mut sched);
        Ok(launch)
    }

    /// What cooperative groups of CUDA use to meet across a grid, in zeros: its size and a counter. A launch that is not
    /// cooperative has none, by which a kernel sees that it is not.
    fn workspace(&self, spec: &LaunchSpec<'_>) -> Result<u64, Fault> {
        let asks = spec.kernel.specials.iter().any(|s| matches!(s.2, Special::Workspace(_)));
        if !spec.cooperative || !asks {
            return Ok(0);
        }
        self.shared.space.alloc(spec.device, Kind::Device, 64).map_err(|e| Fault::BadLaunch {
            kernel: spec.kernel.name.clone(),
            what: format!("no memory for the grid's barrier: {e}"),
        })
    }

    /// Whether a launch is possible, without launching.
    pub fn check(&self, spec: &LaunchSpec<'_>) -> Result<(), Fault> {
        let bad = |what: String| Err(Fault::BadLaunch { kernel: spec.kernel.name.clone(), what });
        let product = |d: [u32; 3]| d.iter().map(|&x| u64::from(x)).product::<u64>();
        let threads = product(spec.block);
        if spec.device >= self.shared.config.devices {
            return bad(format!("there is no device {}", spec.device));
        }
        if threads == 0 || threads > u64::from(spec.kernel.max_threads.unwrap_or(1024).min(1024)) {
            return bad(format!("{threads} threads in a block"));
        }
        if product(spec.grid) == 0 {
            return bad("an empty grid".into());
        }
        if spec.kernel.shared_bytes + spec.dynamic_shared > BLOCK_SHARED {
            return bad(format!(
                "{} bytes of shared memory in a block",
                spec.kernel.shared_bytes + spec.dynamic_shared
            ));
        }
        let room = u64::from(self.occupancy(spec.kernel, threads as u32, spec.dynamic_shared))
            * u64::from(self.shared.config.sms);
        if spec.cooperative && product(spec.grid) > room {
            return bad(format!(
                "a cooperative grid of {} blocks where {room} fit",
                product(spec.grid)
            ));
        }
        Ok(())
    }

    /// Waits for a launch; its counters, or what went wrong.
    pub fn wait(&self, launch: &Launch) -> Result<Counters, Fault> {
        if self.shared.tracked.is_some() {
            self.work_until_done(launch);
        }
        let mut st = launch.state();
        while !st.ended {
            st = launch.done.wait(st).unwrap();
        }
        match &st.fault {
            Some(f) => Err(f.clone()),
            None => Ok(st.counters.clone()),
        }
    }
}

impl Machine {
    /// Tracked mode: one of the waiting threads at a time runs everything, in an order that the seed decides. Another
    /// thread's launch may end meanwhile: that thread goes on at once, since the one that works may wait for what it does next.
    fn work_until_done(&self, launch: &Launch) {
        while !launch.is_done() {
            match self.runner.try_lock() {
                Ok(_running) => self.shared.run_seeded(launch),
                Err(_) => {
                    let st = launch.state();
                    if !st.ended {
                        drop(launch.done.wait_timeout(st, Duration::from_millis(1)).unwrap());
                    }
                }
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.signals.0.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sched.lock().unwrap());
        self.shared.wake.notify_all();
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

impl Shared {
    /// Makes blocks resident while there is room.
    fn admit(&self, sched: &mut Sched) {
        for device in 0..sched.pending.len() {
            let mut n = 0;
            while let Some(launch) = sched.pending[device].get(n).cloned() {
                while let Some(sm) = self.room(sched, &launch) {
                    let index = {
                        let mut st = launch.state();
                        if st.next == launch.blocks() || st.fault.is_some() {
                            break;
                        }
                        st.next += 1;
                        st.running += 1;
                        st.next - 1
                    };
                    let uid = self.uids.fetch_add(1, Ordering::Relaxed);
                    let block = Box::new(Block::new(&launch, index, sm as u32, uid));
                    self.occupy(sched, &launch, sm, 1);
                    sched.places.insert(self.key(&launch, index), sm);
                    sched.ready.push_back(block);
                    self.signals.0.waiting.fetch_add(1, Ordering::Relaxed);
                    self.wake.notify_one();
                }
                let st = launch.state();
                if st.next == launch.blocks() || st.fault.is_some() {
                    drop(st);
                    sched.pending[device].remove(n);
                } else {
                    n += 1;
                }
            }
        }
    }

    fn key(&self, launch: &Launch, index: u64) -> u64 {
        launch.id << 40 | index
    }

    fn needs(&self, launch: &Launch) -> Sm {
        let threads = launch.block.iter().product::<u32>().next_multiple_of(32);
        Sm {
            threads,
            blocks: 1,
            shared: launch.kernel.shared_bytes + launch.dynamic_shared + RESERVED_SHARED,
        }
    }

    /// The multiprocessor with most room for a block of this launch.
    fn room(&self, sched: &Sched, launch: &Launch) -> Option<usize> {
        let need = self.needs(launch);
        let fits = |s: &Sm| {
            s.threads + need.threads <= SM_THREADS
                && s.blocks < SM_BLOCKS
                && s.shared + need.shared <= SM_SHARED
        };
        let sms = sched.sms[launch.device as usize].iter().enumerate();
        sms.filter(|(_, s)| fits(s)).min_by_key(|(_, s)| (s.threads, s.blocks)).map(|(n, _)| n)
    }

    fn occupy(&self, sched: &mut Sched, launch: &Launch, sm: usize, sign: i32) {
        let need = self.needs(launch);
        let s = &mut sched.sms[launch.device as usize][sm];
        s.threads = s.threads.wrapping_add_signed(need.threads as i32 * sign);
        s.blocks = s.blocks.wrapping_add_signed(sign);
        s.shared = s.shared.wrapping_add_signed(need.shared as i32 * sign);
    }

    /// A block has ended, with or without a fault.
    pub(crate) fn retire(&self, block: Box<Block>, fault: Option<Fault>) {
        let launch = block.launch.clone();
        let counters = block.counters();
        let mut sched = self.sched.lock().unwrap();
        if let Some(t) = &self.tracked {
            t.block_ended(block.uid(), block.agents(), &launch);
        }
        if let Some(sm) = sched.places.remove(&self.key(&launch, block.index)) {
            self.occupy(&mut sched, &launch, sm, -1);
        }
        let mut st = launch.state();
        st.counters.add(&counters);
        st.running -= 1;
        if st.fault.is_none() && fault.is_some() {
            launch.failed.store(true, Ordering::Relaxed);
            st.fault = fault;
        }
        let over = st.running == 0 && (st.next == launch.blocks() || st.fault.is_some());
        drop(st);
        if over {
            self.end(&mut sched, &launch);
        }
        self.progress.event();
        drop(block);
        self.admit(&mut sched);
    }

    /// The last block of a launch has ended.
    fn end(&self, sched: &mut Sched, launch: &Launch) {
        sched.live -= 1;
        if let Some(t) = &self.tracked {
            t.launch_ended(launch);
            if sched.live == 0 {
                t.quiesce();
            }
        }
        launch.state().ended = true;
        launch.done.notify_all();
    }

    /// A worker thread.
    fn work(&self, worker: usize) {
        let mut mine: Option<Box<Block>> = None;
        let mut idle = 0u32;
        loop {
            let mut block = match mine.take() {
                Some(b) => b,
                None => match self.next_block() {
                    Some(b) => b,
                    None => return,
                },
            };
            let failed = block.launch.failed.load(Ordering::Relaxed);
            match if failed { Turn::Done } else { block.turn() } {
                Turn::Busy => {
                    idle = 0;
                    self.progress.moved(worker);
                }
                Turn::Idle => {
                    idle = idle.wrapping_add(1);
                    if idle & 7 == 7 {
                        // Everything here waits: leave the processor to whom it waits for.
                        std::thread::yield_now();
                    }
                    if block.is_stuck() || idle & 1023 == 1023 && self.is_late() {
                        self.give_up(block);
                        continue;
                    }
                }
                Turn::Done => {
                    self.leave();
                    self.retire(block, None);
                    continue;
                }
                Turn::Fault(f) => {
                    self.leave();
                    self.retire(block, Some(f));
                    continue;
                }
            }
            if self.signals.0.waiting.load(Ordering::Relaxed) > 0
                || self.signals.0.hang.load(Ordering::Relaxed)
                || self.signals.0.stop.load(Ordering::Relaxed)
            {
                let mut sched = self.sched.lock().unwrap();
                sched.ready.push_back(block);
                sched.running -= 1;
                self.signals.0.waiting.fetch_add(1, Ordering::Relaxed);
            } else {
                mine = Some(block);
            }
        }
    }

    fn leave(&self) {
        self.sched.lock().unwrap().running -= 1;
    }

    fn next_block(&self) -> Option<Box<Block>> {
        let mut sched = self.sched.lock().unwrap();
        loop {
            if self.signals.0.stop.load(Ordering::SeqCst) {
                return None;
            }
            if !self.signals.0.hang.load(Ordering::SeqCst)
                && let Some(b) = sched.ready.pop_front()
            {
                self.signals.0.waiting.fetch_sub(1, Ordering::Relaxed);
                sched.running += 1;
                return Some(b);
            }
            sched = self.wake.wait_timeout(sched, Duration::from_millis(50)).unwrap().0;
        }
    }

    fn is_late(&self) -> bool {
        self.progress.quiet_for() > self.config.watchdog
    }

    /// Nothing moves: stops all workers, reports all resident blocks, and fails their launches.
    fn give_up(&self, block: Box<Block>) {
        let mut sched = self.sched.lock().unwrap();
        sched.ready.push_back(block);
        sched.running -= 1;
        self.signals.0.waiting.fetch_add(1, Ordering::Relaxed);
        self.signals.0.hang.store(true, Ordering::SeqCst);
        while sched.running > 0 {
            sched = self.wake.wait_timeout(sched, Duration::from_millis(1)).unwrap().0;
        }
        let blocks: Vec<_> = sched.ready.drain(..).collect();
        self.signals.0.waiting.store(0, Ordering::Relaxed);
        let waits = sched
            .pending
            .iter()
            .flatten()
            .map(|l| (l.kernel.name.clone(), l.blocks() - l.state().next))
            .collect::<Vec<_>>();
        drop(sched);
        let fault = self.hang_fault(&blocks, &waits);
        self.signals.0.hang.store(false, Ordering::SeqCst);
        for b in blocks {
            self.retire(b, Some(fault.clone()));
        }
    }
}

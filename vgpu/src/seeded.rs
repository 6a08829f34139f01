//! Tracked mode's scheduler, and the watchdog's report.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::Fault;
use crate::exec::block::{Block, Turn};
use crate::launch::Launch;
use crate::machine::Shared;

impl Shared {
    pub(crate) fn hang_fault(&self, blocks: &[Box<Block>], pending: &[(String, u64)]) -> Fault {
        let mut report = String::new();
        for b in blocks {
            b.report(&mut report);
        }
        for (name, n) in pending {
            report.push_str(&format!(
                "  kernel `{name}`: {n} blocks are not resident, for lack of room\n"
            ));
        }
        Fault::Hang { seconds: self.progress.quiet_for().as_secs(), report }
    }

    /// Tracked mode: runs warps in the order that the seed decides until the launch has ended.
    pub(crate) fn run_seeded(&self, launch: &Launch) {
        let Some(t) = &self.tracked else { return };
        let mut idle = 0u64;
        let mut quiet: Option<Instant> = None;
        let mut resident: Vec<Box<Block>> = Vec::new();
        loop {
            {
                let mut sched = self.sched.lock().unwrap();
                self.signals.0.waiting.store(0, Ordering::Relaxed);
                resident.extend(sched.ready.drain(..));
                if launch.is_done() || resident.is_empty() {
                    sched.ready.extend(resident.drain(..));
                    return;
                }
            }
            let n = t.random(resident.len() as u64) as usize;
            if resident[n].launch.failed.load(Ordering::Relaxed) {
                self.retire(resident.swap_remove(n), None);
                continue;
            }
            let warp = t.random(resident[n].warps() as u64) as usize;
            let budget = 1 + t.random(48) as u32;
            match resident[n].step(warp, budget) {
                Turn::Busy => (idle, quiet) = (0, None),
                Turn::Idle => idle += 1,
                Turn::Done => {
                    idle = 0;
                    self.retire(resident.swap_remove(n), None);
                }
                Turn::Fault(f) => {
                    idle = 0;
                    self.retire(resident.swap_remove(n), Some(f));
                }
            }
            // Every warp has had its turn many times over and all poll or wait: for another thread's launch, or for ever.
            let warps: usize =
                if idle > 1000 { resident.iter().map(|b| b.warps()).sum() } else { 0 };
            if warps == 0 || idle <= 200 * warps as u64 || !resident.iter().all(|b| b.is_quiet()) {
                continue;
            }
            idle = 0;
            let sched = self.sched.lock().unwrap();
            if quiet.get_or_insert_with(Instant::now).elapsed() < self.config.watchdog {
                drop(self.wake.wait_timeout(sched, Duration::from_millis(1)).unwrap());
                continue;
            }
            drop(sched);
            let fault = self.hang_fault(&resident, &[]);
            for b in resident.drain(..) {
                self.retire(b, Some(fault.clone()));
            }
        }
    }
}

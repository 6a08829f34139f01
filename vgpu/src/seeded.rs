//! Tracked mode's scheduler, and the watchdog's report.

use std::sync::atomic::Ordering;

use crate::error::Fault;
use crate::exec::block::{Block, Turn};
use crate::machine::{Launch, Shared, now_ms};

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
        Fault::Hang {
            seconds: now_ms().saturating_sub(self.progress.load(Ordering::Relaxed)) / 1000,
            report,
        }
    }

    /// Tracked mode: runs warps in the order that the seed decides until the launch has ended, or until all poll or wait
    /// after `turns` turns each: then the kernels fail if this is `final_try`, and else go on at the next call. True if all
    /// poll or wait.
    pub(crate) fn run_seeded(&self, launch: &Launch, turns: u64, final_try: bool) -> bool {
        let Some(t) = &self.tracked else { return false };
        let mut idle = 0u64;
        let mut resident: Vec<Box<Block>> = Vec::new();
        loop {
            {
                let mut sched = self.sched.lock().unwrap();
                self.waiting.store(0, Ordering::Relaxed);
                resident.extend(sched.ready.drain(..));
                if launch.is_done() || resident.is_empty() {
                    sched.ready.extend(resident.drain(..));
                    return false;
                }
            }
            let n = t.random(resident.len() as u64) as usize;
            let warp = t.random(resident[n].warps() as u64) as usize;
            let budget = 1 + t.random(48) as u32;
            match resident[n].step(warp, budget) {
                Turn::Busy => idle = 0,
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
            // Every warp has had its turn many times over and all poll or wait.
            let warps: usize =
                if idle > 1000 { resident.iter().map(|b| b.warps()).sum() } else { 0 };
            if warps > 0 && idle > turns * warps as u64 && resident.iter().all(|b| b.is_quiet()) {
                if !final_try {
                    self.sched.lock().unwrap().ready.extend(resident.drain(..));
                    return true;
                }
                let fault = self.hang_fault(&resident, &[]);
                for b in resident.drain(..) {
                    self.retire(b, Some(fault.clone()));
                }
            }
        }
    }
}

//! A kernel's launch: what is asked for, and what becomes of it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::error::Fault;
use crate::exec::block::Buffer;
use crate::isa::decode::Kernel;
use crate::mem::counters::Counters;
use crate::mem::space::AddressSpace;
use crate::track::Tracked;
use crate::track::clock::Know;
use crate::writers::Writers;

/// What to launch.
pub struct LaunchSpec<'a> {
    /// Kernel.
    pub kernel: &'a Arc<Kernel>,
    /// Device.
    pub device: u32,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Parameter block, laid out as the kernel declares.
    pub params: &'a [u8],
    /// True if all blocks must be resident at once.
    pub cooperative: bool,
}

/// A kernel launch.
pub struct Launch {
    /// Number, from 0.
    pub id: u64,
    /// What runs.
    pub kernel: Arc<Kernel>,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Parameter bytes.
    pub params: Arc<Buffer>,
    /// Device.
    pub device: u32,
    /// Multiprocessors of the device.
    pub sms: u32,
    /// Address of what the blocks of a cooperative launch meet at; 0: none.
    pub workspace: u64,
    /// The process's memory.
    pub space: Arc<AddressSpace>,
    /// Tracked memory.
    pub tracked: Option<Arc<Tracked>>,
    /// Who wrote what others wait for.
    pub writers: Arc<Writers>,
    /// Tracked mode: what happened before the launch.
    pub known: Arc<Know>,
    /// Tracked mode: what its blocks did.
    pub clock: Mutex<Know>,
    /// Set with the first fault: its other blocks need not go on.
    pub(crate) failed: AtomicBool,
    pub(crate) state: Mutex<LaunchState>,
    pub(crate) done: Condvar,
}

#[derive(Default)]
pub(crate) struct LaunchState {
    pub(crate) next: u64,
    pub(crate) running: u64,
    pub(crate) counters: Counters,
    pub(crate) fault: Option<Fault>,
    pub(crate) ended: bool,
}

impl Drop for Launch {
    fn drop(&mut self) {
        if self.workspace != 0 {
            self.space.free(self.workspace);
        }
    }
}

impl Launch {
    pub(crate) fn blocks(&self) -> u64 {
        self.grid.iter().map(|&g| u64::from(g)).product()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, LaunchState> {
        self.state.lock().unwrap()
    }

    /// True when its last block has ended, or it failed.
    pub fn is_done(&self) -> bool {
        self.state().ended
    }
}

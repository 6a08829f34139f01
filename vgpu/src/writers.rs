//! Who last wrote what others wait for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Who last wrote the words that others wait for: strong stores and atomics, in a small table.
pub struct Writers {
    slots: Vec<(AtomicU64, AtomicU64)>,
    pub(crate) names: Mutex<Vec<(String, u32)>>,
}

impl Default for Writers {
    fn default() -> Self {
        let slots = (0..4096).map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect();
        Writers { slots, names: Mutex::default() }
    }
}

impl Writers {
    fn slot(&self, addr: u64) -> &(AtomicU64, AtomicU64) {
        &self.slots[((addr >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize]
    }

    /// Notes a write. Two relaxed stores that may be torn apart: this is a hint for a report.
    pub fn note(&self, addr: u64, launch: u64, block: u64, warp: u32, line: u32) {
        let s = self.slot(addr);
        s.0.store(addr, Ordering::Relaxed);
        let who = launch << 48
            | (block & 0xffff) << 32
            | u64::from(warp & 0x1f) << 27
            | u64::from(line & 0x7ff_ffff);
        s.1.store(who, Ordering::Relaxed);
    }

    /// Who wrote there last, if it is still known.
    pub fn last(&self, addr: u64) -> Option<String> {
        let s = self.slot(addr);
        if s.0.load(Ordering::Relaxed) != addr {
            return None;
        }
        let x = s.1.load(Ordering::Relaxed);
        let names = self.names.lock().unwrap();
        let (name, device) = names.get((x >> 48) as usize)?;
        Some(format!(
            "kernel `{name}` on device {device}, block {}, warp {}, PTX line {}",
            x >> 32 & 0xffff,
            x >> 27 & 0x1f,
            x & 0x7ff_ffff
        ))
    }
}

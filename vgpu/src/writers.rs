//! Who last wrote what others wait for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::progress::Padded;

/// Who last wrote the words that others wait for: strong stores and atomics, in a small table. Plain stores are too many for
/// that: they are noted where a warp has polled for long.
pub struct Writers {
    watched: Padded<Watched>,
    slots: Vec<(AtomicU64, AtomicU64)>,
    pub(crate) names: Mutex<Vec<(String, u32)>>,
}

/// Addresses that warps have polled for long; read at every plain store, written hardly ever.
#[derive(Default)]
struct Watched {
    /// One bit for each (hashed) page of 64 KiB with such an address.
    pages: AtomicU64,
    addresses: [AtomicU64; 32],
    next: AtomicUsize,
}

/// Who writes: launch, block, warp and PTX line.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// Number of the launch.
    pub launch: u64,
    /// Block of the grid.
    pub block: u64,
    /// Warp of the block.
    pub warp: u32,
    /// PTX line.
    pub line: u32,
}

impl Default for Writers {
    fn default() -> Self {
        let slots = (0..4096).map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect();
        Writers { watched: Padded::default(), slots, names: Mutex::default() }
    }
}

impl Writers {
    fn slot(&self, addr: u64) -> &(AtomicU64, AtomicU64) {
        &self.slots[((addr >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize]
    }

    /// Notes a write. Two relaxed stores that may be torn apart: this is a hint for a report.
    pub fn note(&self, addr: u64, writer: Writer) {
        let Writer { launch, block, warp, line } = writer;
        let s = self.slot(addr);
        s.0.store(addr, Ordering::Relaxed);
        let who = launch << 48
            | (block & 0xffff) << 32
            | u64::from(warp & 0x1f) << 27
            | u64::from(line & 0x7ff_ffff);
        s.1.store(who, Ordering::Relaxed);
    }

    fn page(addr: u64) -> u64 {
        1 << ((addr >> 16).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
    }

    /// A warp has polled there for long: from now on plain stores there are noted too.
    #[cold]
    pub fn watch(&self, addr: u64) {
        let Watched { pages, addresses, next } = &self.watched.0;
        if addresses.iter().all(|a| a.load(Ordering::Relaxed) != addr) {
            let n = next.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses[n].store(addr, Ordering::Relaxed);
            pages.fetch_or(Self::page(addr), Ordering::Relaxed);
        }
    }

    /// True if something near these bytes, which span less than a page, may be watched.
    #[inline(always)]
    pub fn is_watched(&self, addr: u64, len: u64) -> bool {
        let pages = self.watched.0.pages.load(Ordering::Relaxed);
        pages != 0 && pages & (Self::page(addr) | Self::page(addr + len - 1)) != 0
    }

    /// Notes a write of any kind if it covers something watched.
    #[cold]
    pub fn note_watched(&self, addr: u64, len: u64, writer: Writer) {
        let watched = self.watched.0.addresses.iter().map(|a| a.load(Ordering::Relaxed));
        for a in watched.filter(|a| a.wrapping_sub(addr) < len) {
            self.note(a, writer);
        }
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

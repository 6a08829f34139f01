//! Weak accesses of whole warps to consecutive bytes: the common case, a granule at a time.

use super::clock::{Know, Thread};
use super::model::Model;
use super::shadow::{Cell, Mode, PAGE, Stamp};

/// Which instruction.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// The warp, all of whose lanes take part.
    pub warp: u32,
    /// Its PTX line.
    pub line: u32,
    /// Log2 of the bytes of each lane, 0 to 5.
    pub shift: u32,
    /// First granule.
    pub granule: u64,
}

impl Whole {
    /// The lanes of granule `n`: who, its first byte in the granule, how many.
    pub fn lanes(self, n: usize) -> impl Iterator<Item = (Thread, usize, usize)> {
        let (first, bytes) = (lane(n, self.shift), 16.min(1usize << self.shift));
        (0..16 / bytes).map(move |k| {
            (Thread { warp: self.warp, lane: (first as usize + k) as u8 }, k * bytes, bytes)
        })
    }
}

/// The first lane of granule `n` of an access.
fn lane(n: usize, shift: u32) -> u32 {
    (n << 4 >> shift) as u32
}

impl Model {
    /// Loads granules whose bytes in host memory are `host`. Returns which of them (bit n) did *not* fit the common case, in which
    /// the newest bytes are seen: their lanes have to load one by one.
    pub fn load_whole(&mut self, i: Whole, host: &[[u8; 16]]) -> u64 {
        self.whole(i, host.len(), |cell, epoch, mode, n, me, know| {
            cell.load(epoch, mode, &host[n], me, know)
        })
    }

    /// Stores granules; see [`Model::load_whole`].
    pub fn store_whole(&mut self, i: Whole, host: &[[u8; 16]], data: &[[u8; 16]]) -> u64 {
        self.whole(i, host.len(), |cell, epoch, mode, n, me, know| {
            cell.store(epoch, mode, &host[n], me, know, data[n])
        })
    }

    #[inline(always)]
    fn whole(
        &mut self,
        i: Whole,
        granules: usize,
        mut f: impl FnMut(&mut Cell, u32, Mode, usize, Stamp, &Know) -> bool,
    ) -> u64 {
        let w = &mut self.warps[i.warp as usize];
        let all = u64::MAX >> (64 - granules);
        let Some(stamp) = Stamp::new(i.warp, w.clock, i.line, i.shift.min(4), 0) else {
            return all;
        };
        w.acted = !0;
        // A lane that knows more goes the long way where that matters.
        let know = w.shared().clone();
        let (mode, epoch, mut slow) = (self.mode(), self.shadow.epoch, 0u64);
        let mut n = 0;
        while n < granules {
            let at = i.granule + n as u64;
            let page = self.shadow.page(at);
            let here = (PAGE - at % PAGE).min((granules - n) as u64) as usize;
            let cells = &mut page[(at % PAGE) as usize..][..here];
            for cell in cells {
                let me = stamp.at_lane(lane(n, i.shift));
                slow |= u64::from(!f(cell, epoch, mode, n, me, &know)) << n;
                n += 1;
            }
        }
        slow
    }
}

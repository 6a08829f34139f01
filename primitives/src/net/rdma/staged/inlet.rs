//! The receiving half: from the rings to the device.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{CREDIT, Head, Ring};
use crate::gpu::CopyQueue;
use crate::net::Region;
use crate::net::copies::{Behind, Copier, Copies};

/// What comes from one peer.
#[derive(Debug)]
pub(in crate::net::rdma) struct Inlet<C = CopyQueue> {
    copies: Copies<Kept, C>,
    lanes: Vec<InLane>,
    /// Semaphores, and the lanes on which they were signalled.
    signals: Behind<(u32, usize)>,
}

/// Memory into which a copy goes.
#[derive(Debug)]
struct Kept {
    number: u32,
    _region: Arc<dyn Region>,
}

/// One lane's ring. Positions count its bytes for ever.
#[derive(Debug)]
struct InLane {
    ring: Ring,
    /// Records that came.
    records: u64,
    /// Where the next one is.
    arrived: u64,
    /// Up to here records have landed.
    freed: u64,
    /// What of that the peer knows.
    told: u64,
    /// Records whose copies are underway: when these have landed, and the ring's position behind.
    under_way: VecDeque<(u64, u64)>,
}

impl<C: Copier> Inlet<C> {
    /// Over a ring for each lane.
    pub(in crate::net::rdma) fn new(copier: C, rings: impl IntoIterator<Item = Ring>) -> Self {
        let lane = |ring| InLane {
            ring,
            records: 0,
            arrived: 0,
            freed: 0,
            told: 0,
            under_way: VecDeque::with_capacity(64),
        };
        let lanes = rings.into_iter().map(lane).collect();
        Self { copies: Copies::new(copier), lanes, signals: Behind::default() }
    }

    /// A record has come on a lane: begins to copy it to where it belongs. The error says what is wrong with it.
    pub(in crate::net::rdma) fn record(
        &mut self,
        lane: usize,
        memory: impl FnOnce(u32) -> Option<Arc<dyn Region>>,
    ) -> Result<(), String> {
        let at = self.lanes.get_mut(lane).ok_or("a record on a lane that has no ring")?;
        let row = Ring::row(at.ring.bytes, at.arrived);
        let free = at.ring.bytes - (at.arrived - at.freed);
        if free < Head::record(1) {
            return Err("a record where no room was left".to_owned());
        }
        let place = at.arrived % at.ring.bytes;
        // SAFETY: the ring belongs to the transport, and a position is never less than a grain, twice a head, before its end. The
        // peer writes there no more, and if it did, these are bytes like any others.
        let head = unsafe { ((at.ring.host + place) as *const [u8; 32]).read() };
        let Head { number, memory: which, bytes, offset } = Head::read(&head);
        let (data, size) = (u64::from(bytes), Head::record(u64::from(bytes)));
        if number != at.records || data == 0 || size > free || Head::BYTES + data > row {
            return Err(format!(
                "record {number} of {bytes} bytes where record {} was expected, of at most {}",
                at.records,
                free.min(row)
            ));
        }
        let region = memory(which).filter(|region| region.is_on_device()).ok_or_else(|| {
            format!("data for memory {which}, which is not registered, or no device's; it was taken back (forget)")
        })?;
        if offset.checked_add(data).is_none_or(|end| end > region.len() as u64) {
            let len = region.len();
            return Err(format!(
                "bytes {offset}..{offset}+{bytes} of memory {which}, which has {len}"
            ));
        }
        let (to, from) = (region.address() as u64 + offset, at.ring.device + place + Head::BYTES);
        let keep = Kept { number: which, _region: region };
        // SAFETY: the range was checked and is kept; the record is not overwritten before `freed` is behind it.
        unsafe { self.copies.copy(to, from, bytes as usize, keep) };
        at.records += 1;
        at.arrived += size;
        at.under_way.push_back((self.copies.begun(), at.arrived));
        Ok(())
    }

    /// A signal has come on a lane. Whether it is kept until what came before has landed; else it may be counted at once.
    pub(in crate::net::rdma) fn holds(&mut self, semaphore: u32, lane: usize) -> bool {
        let copying = self.copies.is_copying();
        if copying {
            self.signals.push(self.copies.begun(), (semaphore, lane));
        }
        copying
    }

    /// Takes note of copies that are done, and calls `count` for the signals behind; whether there were any.
    pub(in crate::net::rdma) fn land(
        &mut self,
        mut count: impl FnMut(u32, usize),
    ) -> Result<bool, String> {
        let any = self.copies.look()?;
        let landed = self.copies.landed();
        for lane in &mut self.lanes {
            while lane.under_way.front().is_some_and(|(copied, _)| *copied <= landed) {
                lane.freed = lane.under_way.pop_front().map_or(lane.freed, |(_, end)| end);
            }
        }
        while let Some((semaphore, lane)) = self.signals.next(landed) {
            count(semaphore, lane);
        }
        Ok(any)
    }

    /// For each lane where that is worth it, up to where its ring is free, which the peer is to be told.
    pub(in crate::net::rdma) fn credits(&mut self) -> impl Iterator<Item = (usize, u64)> {
        self.lanes.iter_mut().enumerate().filter_map(|(i, lane)| {
            let worth = lane.freed - lane.told >= lane.ring.bytes / CREDIT;
            worth.then(|| {
                lane.told = lane.freed;
                (i, lane.freed)
            })
        })
    }

    /// Whether copies are underway, of whose end nothing tells.
    pub(in crate::net::rdma) fn is_copying(&self) -> bool {
        self.copies.is_copying()
    }

    /// Waits for all that is on its way into memory of this number. That takes no longer than copies do.
    pub(in crate::net::rdma) fn finish_into(&mut self, number: u32) {
        if self.copies.uses(|kept| kept.number == number) {
            self.copies.finish();
        }
    }

    /// Waits for all copies.
    pub(in crate::net::rdma) fn finish(&mut self) {
        self.copies.finish();
    }
}

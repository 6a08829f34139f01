//! Moves that read or write packets: tile by tile, packets through a buffer in cache.

use std::ops::Range;

use warpmesh_primitives::failure::Failure;
use warpmesh_primitives::packet::{Flag, LINE_DATA, Line, NotYet};
use warpmesh_primitives::patience::Patience;

use super::executor::{Blocked, Executor, Extent, Job, Stop};
use super::fold::{self, Dest, Source};
use super::packets;
use super::prepare::{Prepared, Step, Target};

/// Elements of a tile: a multiple of 56, so that elements of any size fill whole lines, and few
/// enough that a tile per rank stays in cache.
pub(super) const TILE: usize = 448;

impl Executor {
    /// Whether all packets that a move reads are there.
    pub(super) fn packets_arrived(
        &self,
        prepared: &Prepared,
        step: &Step,
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Stop> {
        let Step::Move { part, to, from, .. } = step else {
            return Ok(());
        };
        let places = &prepared.places[to.start.min(from.start)..to.end.max(from.end)];
        let extent = self.extent(places, prepared, *part, job, round);
        for place in &prepared.places[from.clone()] {
            if let Target::Packets { halves, partial, peer } = *place {
                let size = if partial { job.accumulator } else { job.size };
                let at = halves[(self.epoch % 2) as usize];
                // SAFETY: the slot fits the part, since the window was chosen so.
                let seen = unsafe { packets::arrived(at, extent.count * size, self.flag(job)) };
                seen.map_err(|seen| self.absent(peer, seen))?;
            }
        }
        Ok(())
    }

    fn absent(&self, peer: usize, seen: NotYet) -> Stop {
        match seen {
            NotYet::Absent(flag) => {
                Stop::Blocked(Blocked { peer, expected: self.epoch, seen: Flag::epoch_of(flag) })
            }
            NotYet::OtherCall(_) => Stop::Failed(self.mismatch(peer)),
        }
    }

    /// A move that reads or writes packets: tile by tile, packets through a buffer in cache.
    pub(super) fn move_packets(
        &mut self,
        prepared: &Prepared,
        step: &Step,
        place: usize,
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Failure> {
        let Step::Move { part, to, from, reduce, .. } = step else {
            return Ok(());
        };
        let places = &prepared.places[to.start.min(from.start)..to.end.max(from.end)];
        let extent = self.extent(places, prepared, *part, job, round);
        let mut done = 0;
        loop {
            let tile = Tile { extent, done, count: (extent.count - done).min(TILE), place };
            self.load_tile(prepared, from.clone(), &tile, job)?;
            self.store_tile(prepared, to.clone(), &tile, *reduce, job)?;
            done += tile.count;
            if done >= extent.count {
                break;
            }
        }
        for target in &prepared.places[to.clone()] {
            match *target {
                // Left in this rank's own memory, for anyone.
                Target::Packets { peer, .. } if peer == self.node.rank() => self.node.ring_all(),
                Target::Packets { peer, .. } => self.node.control(peer).ring(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Points `sources` at a tile of every source; packets are waited for and unpacked.
    fn load_tile(
        &mut self,
        prepared: &Prepared,
        from: Range<usize>,
        tile: &Tile,
        job: &Job<'_>,
    ) -> Result<(), Failure> {
        self.sources.clear();
        let mut buffer = 1; // tile 0 is for the result
        for place in &prepared.places[from] {
            let source = match *place {
                Target::Packets { halves, partial, peer } => {
                    let size = if partial { job.accumulator } else { job.size };
                    let at = self.tiles[buffer * TILE..].as_mut_ptr().cast::<u8>();
                    buffer += 1;
                    // SAFETY: the tile's lines lie in the slot.
                    let lines = unsafe { halves[(self.epoch % 2) as usize].add(tile.line(size)) };
                    self.receive(at, lines, tile.count * size, peer, tile.place, job)?;
                    Source { at, partial, scale: self.scale(place, job)? }
                }
                _ => {
                    let (at, partial) = self.address(place, tile.extent, job)?;
                    let size = if partial { job.accumulator } else { job.size };
                    let at = at.wrapping_add(tile.done * size);
                    Source { at, partial, scale: self.scale(place, job)? }
                }
            };
            self.sources.push(source);
        }
        Ok(())
    }

    fn receive(
        &self,
        to: *mut u8,
        from: *const Line,
        bytes: usize,
        peer: usize,
        place: usize,
        job: &Job<'_>,
    ) -> Result<(), Failure> {
        let flag = self.flag(job);
        let mut patience = Patience::default();
        // SAFETY: `to` is a tile's buffer of TILE elements of at most 8 bytes; the lines lie in
        // the slot.
        while let Err(seen) = unsafe { packets::unpack(to, from, bytes, flag) } {
            self.pause(&mut patience, self.absent(peer, seen), place, job)?;
        }
        Ok(())
    }

    /// Combines a tile of all sources and stores it to every destination.
    fn store_tile(
        &mut self,
        prepared: &Prepared,
        to: Range<usize>,
        tile: &Tile,
        reduce: bool,
        job: &Job<'_>,
    ) -> Result<(), Failure> {
        let targets = &prepared.places[to];
        let is_packets = |target: &&Target| matches!(target, Target::Packets { .. });
        self.dests.clear();
        for target in targets.iter().filter(|target| !is_packets(target)) {
            let (at, partial) = self.address(target, tile.extent, job)?;
            let size = if partial { job.accumulator } else { job.size };
            self.dests.push(Dest { at: at.wrapping_add(tile.done * size), partial });
        }
        let result = self.tiles.as_mut_ptr().cast::<u8>();
        let packets_partial = targets.iter().find(is_packets).is_some_and(Target::is_partial);
        // What is to be packed: the source itself if it is only copied, else the first plain
        // destination, else a buffer.
        let packed = if reduce && self.dests.is_empty() {
            self.dests.push(Dest { at: result, partial: packets_partial });
            result.cast_const()
        } else if reduce {
            self.dests[0].at.cast_const()
        } else {
            self.sources[0].at
        };
        if reduce {
            // SAFETY: see `move_plain`; the buffer holds TILE elements of at most 8 bytes.
            unsafe { (job.fold)(&self.dests, &self.sources, tile.count, &job.args, false) };
        } else if !self.dests.is_empty() {
            let size = if self.sources[0].partial { job.accumulator } else { job.size };
            self.copies.clear();
            self.copies.extend(self.dests.iter().map(|dest| dest.at));
            // SAFETY: see `move_plain`.
            unsafe { fold::copy(&self.copies, packed, tile.count * size, false) };
        }
        for target in targets.iter().filter(is_packets) {
            let Target::Packets { halves, partial, .. } = *target else {
                continue;
            };
            let size = if partial { job.accumulator } else { job.size };
            // SAFETY: the tile's lines lie in the slot, whose only writer this rank is; `packed`
            // holds the tile.
            unsafe {
                let lines = halves[(self.epoch % 2) as usize].add(tile.line(size));
                packets::pack(lines, packed, tile.count * size, self.flag(job));
            }
        }
        Ok(())
    }
}

impl Target {
    fn is_partial(&self) -> bool {
        matches!(self, Self::Packets { partial: true, .. } | Self::Scratch { partial: true, .. })
    }
}

/// A tile of a move: elements `done..done + count` of its extent.
struct Tile {
    extent: Extent,
    done: usize,
    count: usize,
    place: usize,
}

impl Tile {
    /// The tile's first line in a slot of elements of `size` bytes.
    fn line(&self, size: usize) -> usize {
        self.done * size / LINE_DATA
    }
}

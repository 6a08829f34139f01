//! A one-sided channel to a peer's memory: put, get, signal, wait, and packets.
//!
//! ```text
//!   rank A                               rank B
//!   channel.put(0, &data)?   ─ stores ─► its memory
//!   channel.signal()         ─ count ──► channel.wait()?
//!                                        channel.read(0, &mut data)?
//! ```
//!
//! Nobody hands out references into shared memory: every access copies, by Relaxed atomic words,
//! so a mistake in the protocol on top (reading before the wait) gives stale data and never
//! undefined behaviour. The collectives' executor, whose protocol is proven, moves data faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::control::SEMAPHORES;
use crate::error::Error;
use crate::failure::{Failure, FailureKind};
use crate::memory::SharedMemory;
use crate::node::Node;
use crate::packet::{Flag, LINE_BYTES, LINE_DATA, Line, NotYet, lines_for};
use crate::patience::WaitingFor;
use crate::semaphore::{SignalCount, WaitCount};

/// A channel between this rank and one peer, over one [`SharedMemory`]. Both ends make one with
/// the same `id`.
#[derive(Debug)]
pub struct MemoryChannel {
    node: Arc<Node>,
    memory: SharedMemory,
    peer: usize,
    id: usize,
    signals: SignalCount,
    waits: WaitCount,
    packets_out: u64,
    packets_in: u64,
}

impl MemoryChannel {
    /// Makes this rank's end. `id` (below 64) tells channels between the same ranks apart; each
    /// id may be in use once per pair, since its semaphores count for ever.
    pub fn new(
        node: &Arc<Node>,
        memory: &SharedMemory,
        peer: usize,
        id: usize,
    ) -> Result<Self, Error> {
        if peer >= node.world() || peer == node.rank() {
            let problem = "must be another rank of the node";
            return Err(Error::Argument { argument: "peer", problem });
        }
        if id >= SEMAPHORES {
            return Err(Error::Argument { argument: "id", problem: "must be below 64" });
        }
        Ok(Self {
            node: node.clone(),
            memory: memory.clone(),
            peer,
            id,
            signals: SignalCount::default(),
            waits: WaitCount::default(),
            packets_out: 0,
            packets_in: 0,
        })
    }

    /// Copies `data` to `offset` bytes into the peer's memory. The peer sees it after the next
    /// [`signal`](Self::signal). Does not block.
    pub fn put(&self, offset: usize, data: &[u8]) -> Result<(), Error> {
        let to = self.memory.range(self.peer, offset, data.len())?;
        store(to, data);
        Ok(())
    }

    /// Copies from `offset` bytes into the peer's memory. Does not block; what it sees is what the
    /// peer stored before its last signal that this end waited for.
    pub fn get(&self, offset: usize, data: &mut [u8]) -> Result<(), Error> {
        let from = self.memory.range(self.peer, offset, data.len())?;
        load(from, data);
        Ok(())
    }

    /// Copies from this rank's own part of the memory, where the peer puts.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), Error> {
        let from = self.memory.range(self.node.rank(), offset, data.len())?;
        load(from, data);
        Ok(())
    }

    /// Copies into this rank's own part of the memory, where the peer gets.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), Error> {
        let to = self.memory.range(self.node.rank(), offset, data.len())?;
        store(to, data);
        Ok(())
    }

    /// Tells the peer that everything put before is there. Does not block.
    pub fn signal(&mut self) {
        self.signals.signal(self.node.me().semaphore(self.id, self.peer));
        self.node.control(self.peer).ring();
    }

    /// Waits for one signal of the peer. Blocks, at most for the node's timeout.
    pub fn wait(&mut self) -> Result<(), Error> {
        let word = self.node.control(self.peer).semaphore(self.id, self.node.rank());
        let on = self.waiting_for(self.waits.expected());
        let waits = &mut self.waits;
        self.node.wait(on, || waits.try_wait(word))?;
        Ok(())
    }

    /// Bytes of shared memory that `len` bytes of data take as packets.
    pub fn packet_bytes(len: usize) -> usize {
        lines_for(len) * LINE_BYTES
    }

    /// Puts `data` as packets at `offset` (a multiple of 64) of the peer's memory: no signal is
    /// needed. Use a range for packets only, and write it again only after the peer has answered
    /// (two ranges in turn, each answer freeing the other, keep both sides busy).
    pub fn put_packets(&mut self, offset: usize, data: &[u8]) -> Result<(), Error> {
        let flag = Flag::new(self.packets_out + 1, 0);
        let lines = self.lines(self.peer, offset, data.len())?;
        for (line, chunk) in lines.iter().zip(data.chunks(LINE_DATA)) {
            let mut words = [0; LINE_DATA / 8];
            bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..chunk.len()].copy_from_slice(chunk);
            line.write(&words[..chunk.len().div_ceil(8)], flag);
        }
        self.packets_out += 1;
        self.node.control(self.peer).ring();
        Ok(())
    }

    /// Waits for the packets that the peer puts at `offset` of this rank's memory. Blocks, at most
    /// for the node's timeout per packet.
    pub fn get_packets(&mut self, offset: usize, data: &mut [u8]) -> Result<(), Error> {
        let epoch = self.packets_in + 1;
        let flag = Flag::new(epoch, 0);
        let on = self.waiting_for(epoch);
        let lines = self.lines(self.node.rank(), offset, data.len())?;
        for (line, chunk) in lines.iter().zip(data.chunks_mut(LINE_DATA)) {
            let mut words = [0; LINE_DATA / 8];
            let words = &mut words[..chunk.len().div_ceil(8)];
            let mut other = false;
            self.node.wait(on, || match line.try_read(flag, words) {
                Err(NotYet::Absent(seen)) => Err(seen),
                Err(NotYet::OtherCall(_)) => {
                    other = true;
                    Ok(())
                }
                Ok(()) => Ok(()),
            })?;
            if other {
                let by = self.node.rank();
                let culprit = Some(self.peer);
                return Err(Failure { kind: FailureKind::Mismatch, by, culprit }.into());
            }
            chunk.copy_from_slice(&bytemuck::cast_slice(words)[..chunk.len()]);
        }
        self.packets_in = epoch;
        Ok(())
    }

    fn waiting_for(&self, expected: u64) -> WaitingFor {
        WaitingFor { peer: self.peer, place: self.id as u32, expected, sequence: 0 }
    }

    fn lines(&self, rank: usize, offset: usize, len: usize) -> Result<&[Line], Error> {
        if !offset.is_multiple_of(LINE_BYTES) {
            return Err(Error::Argument {
                argument: "offset",
                problem: "must be a multiple of 64",
            });
        }
        let at = self.memory.range(rank, offset, Self::packet_bytes(len))?;
        // SAFETY: in range and aligned (mappings are page aligned); a Line is made of atomics, for
        // which every content is valid; the memory lives as long as `self`.
        Ok(unsafe { std::slice::from_raw_parts(at.cast::<Line>(), lines_for(len)) })
    }
}

/// Stores bytes into shared memory by Relaxed atomics: aligned words, bytes at the ends.
fn store(to: *mut u8, data: &[u8]) {
    let head = to.align_offset(8).min(data.len());
    let (first, rest) = data.split_at(head);
    let words = rest.chunks_exact(8);
    let last = words.remainder();
    let bytes = |at: usize, data: &[u8]| {
        for (i, byte) in data.iter().enumerate() {
            // SAFETY: the callers checked the whole range.
            unsafe { AtomicU8::from_ptr(to.add(at + i)) }.store(*byte, Ordering::Relaxed);
        }
    };
    bytes(0, first);
    for (i, word) in words.enumerate() {
        let value = u64::from_ne_bytes(word.try_into().expect("chunks of eight"));
        // SAFETY: as above, and aligned by `head`.
        unsafe { AtomicU64::from_ptr(to.add(head + i * 8).cast()) }.store(value, Ordering::Relaxed);
    }
    bytes(data.len() - last.len(), last);
}

/// Loads bytes from shared memory, as [`store`] stores them.
fn load(from: *mut u8, data: &mut [u8]) {
    let len = data.len();
    let head = from.align_offset(8).min(len);
    let byte = |at: usize| {
        // SAFETY: the callers checked the whole range.
        unsafe { AtomicU8::from_ptr(from.add(at)) }.load(Ordering::Relaxed)
    };
    let (first, rest) = data.split_at_mut(head);
    first.iter_mut().enumerate().for_each(|(i, to)| *to = byte(i));
    let mut words = rest.chunks_exact_mut(8);
    for (i, to) in words.by_ref().enumerate() {
        // SAFETY: as above, and aligned by `head`.
        let word = unsafe { AtomicU64::from_ptr(from.add(head + i * 8).cast()) };
        to.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    let last = words.into_remainder();
    let at = len - last.len();
    last.iter_mut().enumerate().for_each(|(i, to)| *to = byte(at + i));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_exact_at_any_alignment() {
        let mut memory = [0_u8; 64];
        for at in 0..9 {
            for len in 0..40 {
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + at) as u8 | 1).collect();
                memory.fill(0);
                let mut back = vec![0; len];
                store(memory[at..].as_mut_ptr(), &data);
                load(memory[at..].as_mut_ptr(), &mut back);
                assert_eq!(back, data);
                assert!(memory[..at].iter().chain(&memory[at + len..]).all(|byte| *byte == 0));
            }
        }
    }
}

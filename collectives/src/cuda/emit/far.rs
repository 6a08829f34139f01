//! What a kernel does with ranks of other hosts: far.cuh.

use super::{AT_GUARD, GUARD, Word, Words, Writer};
use crate::plan::{Buffer, Instruction};

impl Writer<'_> {
    pub(super) fn guard_far(&mut self) {
        if self.away.is_empty() {
            return;
        }
        let away = self.away.clone();
        let of = [Words::Port, Words::Awaited, Words::Counters];
        let [port, received, counters] = of.map(|what| self.words(what, GUARD, &away));
        let count = away.len();
        let words = "p.word + @, p.word + @, p.word + @";
        self.line(
            format!("w.guard_far<{count}>({words}, p.peer + @, {AT_GUARD});"),
            &[port, received, counters, port],
        );
        let port = self.words(Words::Greeting, 0, &away);
        self.line(format!("w.greet<{count}>(p.word + @, p.peer + @, {AT_GUARD});"), &[port, port]);
    }

    /// Puts to other hosts that follow each other; how many.
    pub(super) fn puts(
        &mut self,
        list: &[Instruction],
        number: usize,
    ) -> Result<usize, &'static str> {
        let part = self.tables.parts.len();
        let mut words = Vec::new();
        let mut wide = None;
        for instruction in list {
            let Instruction::Put { part, to, from, then_signal, .. } = instruction else { break };
            let peer = to.peer(self.rank);
            let slots = [from, to].map(|place| (place.buffer, place.partial));
            if self.is_near(peer) {
                return Err("a port to a rank of the same host");
            }
            if slots.iter().any(|slot| slot.0 != Buffer::Scratch) || slots[0] != slots[1] {
                return Err("a put of something else than slots");
            }
            if *wide.get_or_insert(from.partial) != from.partial {
                break;
            }
            let what = if then_signal.is_some() { Words::Port } else { Words::SilentPort };
            words.extend([
                Word { what: Words::Slot, number: from.index, peer },
                Word { what: Words::Slot, number: to.index, peer },
                Word { what, number: then_signal.unwrap_or(0), peer },
            ]);
            self.tables.parts.push(*part as u32);
        }
        let (first, count) = (self.tables.words.len(), words.len() / 3);
        self.tables.words.extend(words);
        let size = match wide {
            Some(true) => self.dtype.accumulator_size(),
            _ => self.dtype.size(),
        };
        self.line(
            format!("w.put<{count}, {size}>(p.word + @, p.peer + @, p.parts + @, @);"),
            &[first, first, part, number],
        );
        Ok(count)
    }

    pub(super) fn flush(&mut self, number: usize) {
        if let Some(&peer) = self.away.first() {
            let port = self.words(Words::SilentPort, 0, &[peer]);
            self.line("w.flush(p.word + @, p.peer + @, @);".to_owned(), &[port, port, number]);
        }
    }

    pub(super) fn signal_far(&mut self, semaphore: usize, to: &[usize], number: usize) {
        let first = self.words(Words::Port, semaphore, to);
        let text = format!("w.signal_far<{}>(p.word + @, p.peer + @, @);", to.len());
        self.line(text, &[first, first, number]);
    }

    /// Waits for peers; where they are new, for all of these the first time.
    pub(super) fn wait_far(&mut self, semaphore: usize, from: &[usize], number: usize) {
        let (new, known): (Vec<_>, Vec<_>) =
            from.iter().copied().partition(|peer| !self.met.contains(peer));
        self.met.extend(&new);
        for (peers, flag) in [(new, ", true"), (known, "")] {
            if peers.is_empty() {
                continue;
            }
            let of = [Words::Awaited, Words::Counters];
            let [received, counters] = of.map(|what| self.words(what, semaphore, &peers));
            let count = peers.len();
            self.line(
                format!("w.wait_far<{count}{flag}>(p.word + @, p.word + @, p.peer + @, @);"),
                &[received, counters, received, number],
            );
        }
    }
}

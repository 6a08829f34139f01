//! How the thread blocks of a rank meet: barriers and counting semaphores.

use super::MscclppError;
use super::run::{Run, Turn};
use super::semaphores::Use;

impl Run<'_, '_> {
    pub(super) fn barrier(
        &mut self,
        id: usize,
        rank: usize,
        barrier: usize,
    ) -> Result<Turn, MscclppError> {
        let members = self.meetings.barrier(rank, barrier).to_vec();
        if !self.progress[id].arrived {
            self.progress[id].arrived = true;
            *self.progress[id].visits.entry(barrier).or_default() += 1;
            if id != members[0] {
                self.edge(id, rank, barrier, members[0], true)?;
            }
        }
        let visits = |id: usize| self.progress[id].visits.get(&barrier).copied();
        if members.iter().any(|member| visits(*member) < visits(id)) {
            return Ok(Turn::Blocked);
        }
        self.progress[id].arrived = false;
        if id != members[0] {
            self.edge(id, rank, barrier, members[0], false)?;
            return Ok(Turn::Done);
        }
        for signal in [false, true] {
            for member in &members[1..] {
                self.edge(id, rank, barrier, *member, signal)?;
            }
        }
        Ok(Turn::Done)
    }

    /// Signals another thread block of a barrier, or waits for it.
    fn edge(
        &mut self,
        id: usize,
        rank: usize,
        barrier: usize,
        other: usize,
        signal: bool,
    ) -> Result<(), MscclppError> {
        let (from, to) = if signal { (id, other) } else { (other, id) };
        let what = Use::Barrier { id: barrier, from, to };
        let semaphore = self.semaphores.index(rank, rank, what)?;
        match signal {
            true => self.emit_signal(id, semaphore, rank),
            false => self.emit_wait(id, semaphore, rank),
        }
        Ok(())
    }

    pub(super) fn release(
        &mut self,
        id: usize,
        rank: usize,
        semaphore: usize,
    ) -> Result<Turn, MscclppError> {
        let nth = self.progress[id].releases.entry(semaphore).or_default();
        let taker = self.meetings.taker(id, semaphore, *nth);
        *nth += 1;
        if let Some(to) = taker {
            let what = Use::Token { id: semaphore, from: id, to };
            let index = self.semaphores.index(rank, rank, what)?;
            *self.tokens.entry((semaphore, id, to)).or_default() += 1;
            self.emit_signal(id, index, rank);
        }
        Ok(Turn::Done)
    }

    pub(super) fn acquire(
        &mut self,
        id: usize,
        rank: usize,
        semaphore: usize,
    ) -> Result<Turn, MscclppError> {
        let nth = self.progress[id].acquisitions.entry(semaphore).or_default();
        let giver = self.meetings.giver(id, semaphore, *nth);
        if let Some(from) = giver {
            let tokens = self.tokens.entry((semaphore, from, id)).or_default();
            if *tokens == 0 {
                return Ok(Turn::Blocked);
            }
            *tokens -= 1;
            let what = Use::Token { id: semaphore, from, to: id };
            let index = self.semaphores.index(rank, rank, what)?;
            *nth += 1;
            self.emit_wait(id, index, rank);
            return Ok(Turn::Done);
        }
        *nth += 1;
        Ok(Turn::Done)
    }
}

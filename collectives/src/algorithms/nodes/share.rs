//! Several workers that each do what one would do, with a share of every part.

use super::patterns::SEMAPHORES;
use crate::plan::verify::PLAN_SEMAPHORES;
use crate::plan::{Buffer, Instruction, Place};

/// As many workers as there are semaphores for.
pub const MOST_WORKERS: usize = PLAN_SEMAPHORES / SEMAPHORES;

/// What one of the workers has to itself: so many parts, slots and semaphores, behind those of the workers before.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub(super) worker: usize,
    pub(super) parts: usize,
    pub(super) scratch: usize,
    pub(super) packets: usize,
}

impl Share {
    /// The first worker's list, for this worker. What goes to other nodes shares the port.
    pub(super) fn of(&self, list: &[Instruction]) -> Vec<Instruction> {
        list.iter().map(|instruction| self.instruction(instruction.clone())).collect()
    }

    fn instruction(&self, mut instruction: Instruction) -> Instruction {
        match &mut instruction {
            Instruction::Move { part, to, from, .. } => {
                self.part(part);
                to.iter_mut().chain(from).for_each(|place| self.place(place));
            }
            Instruction::Signal { semaphore, .. } | Instruction::Wait { semaphore, .. } => {
                self.semaphore(semaphore);
            }
            Instruction::Put { part, to, from, then_signal, .. } => {
                self.part(part);
                [to, from].into_iter().for_each(|place| self.place(place));
                then_signal.iter_mut().for_each(|semaphore| self.semaphore(semaphore));
            }
            Instruction::Flush { .. } => {}
        }
        instruction
    }

    fn part(&self, part: &mut usize) {
        *part += self.worker * self.parts;
    }

    fn semaphore(&self, semaphore: &mut usize) {
        *semaphore += self.worker * SEMAPHORES;
    }

    fn place(&self, place: &mut Place) {
        place.index += match place.buffer {
            Buffer::Input | Buffer::Output => 0,
            Buffer::Scratch => self.worker * self.scratch,
            Buffer::Packets => self.worker * self.packets,
        };
    }
}

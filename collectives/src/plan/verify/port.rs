//! Ports in the symbolic run: transfers that happen at some time after they were handed over.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::{Instruction, Place, Whose};
use super::run::{Run, Step, join};
use super::{Defect, Site};

impl Run<'_> {
    /// A transfer by a port's proxy, a thread of its own that starts after the worker's past.
    #[allow(clippy::too_many_arguments, reason = "the fields of the instruction")]
    pub(super) fn put(
        &mut self,
        id: usize,
        port: usize,
        part: usize,
        to: &Place,
        from: &Place,
        then_signal: Option<usize>,
        at: &Site,
    ) -> Result<(), Defect> {
        let port = self.port(id, port).expect("ports were counted before the run");
        let (read, written) = self.proxy(port);
        self.tick(id);
        let past = self.threads[id].clock.clone();
        join(&mut self.clocks_of_ports[port], &past);
        self.clocks_of_ports[port][read] += 1;
        self.clocks_of_ports[port][written] += 1;
        // The proxy acts in the worker's name, with its own clock.
        let proxys = self.clocks_of_ports[port].clone();
        let own = std::mem::replace(&mut self.threads[id].clock, proxys);
        let done = self.transfer(id, (read, written), part, to, from, at);
        let proxys = std::mem::replace(&mut self.threads[id].clock, own);
        self.clocks_of_ports[port].clone_from(&proxys);
        done?;
        if let (Some(semaphore), Whose::Rank(peer)) = (then_signal, to.whose) {
            self.signal(written, id, semaphore, peer, Rc::new(proxys), at)?;
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        id: usize,
        (read, written): (usize, usize),
        part: usize,
        to: &Place,
        from: &Place,
        at: &Site,
    ) -> Result<(), Defect> {
        for (source, place) in self.locations(id, from, part) {
            let held = self.load(id, source, &place, part, at)?;
            let time = |thread: usize| (thread, self.threads[id].clock[thread]);
            let (read, written) = (time(read), time(written));
            self.cells.entry(source).or_default().reads.push(read);
            for (destination, _) in self.locations(id, to, part) {
                self.write(id, destination, Some(held), at)?;
                self.cells.entry(destination).or_default().write = Some(written);
            }
        }
        Ok(())
    }

    /// The two times of a port's proxy: of its reading and of its writing.
    fn proxy(&self, port: usize) -> (usize, usize) {
        let first = self.threads.len() + 2 * port;
        (first, first + 1)
    }

    fn port(&self, id: usize, port: usize) -> Option<usize> {
        let thread = &self.threads[id];
        self.ports.get(&(thread.rank, thread.worker, port)).copied()
    }

    /// Waits for a port's proxy to have read the sources. Whether anything has arrived is not known.
    pub(super) fn flush(&mut self, id: usize, port: usize) {
        if let Some(port) = self.port(id, port) {
            let (read, _) = self.proxy(port);
            let time = self.clocks_of_ports[port][read];
            self.threads[id].clock[read] = time;
        }
    }
}

/// Numbers for all workers' ports.
pub(super) fn ports_of(steps: &[Step<'_>]) -> HashMap<(usize, usize, usize), usize> {
    let mut ports = HashMap::new();
    for (plan, ..) in steps {
        for (rank, program) in plan.programs.iter().enumerate() {
            for (worker, list) in program.workers.iter().enumerate() {
                for instruction in list {
                    if let Instruction::Put { port, .. } = instruction {
                        let id = ports.len();
                        ports.entry((rank, worker, *port)).or_insert(id);
                    }
                }
            }
        }
    }
    ports
}

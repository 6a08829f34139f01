//! Loops of calls, and their times on this rank.

use anyhow::Result;

use crate::backend::{Backend, Call, Graph};

/// Calls of one row, each a step further into the buffers, so that caches help as little as they
/// do in an application.
#[derive(Clone, Debug)]
pub struct Calls {
    first: Call,
    next: Call,
    step: usize,
    steps: usize,
    done: usize,
}

impl Calls {
    /// Steps of `step` bytes, starting over after `steps` of them.
    pub fn new(first: Call, step: usize, steps: usize) -> Self {
        Self { first, next: first, step, steps: steps.max(1), done: 0 }
    }

    /// The next one. No division: it would be a good part of the time of a small call.
    #[inline]
    fn next(&mut self) -> Call {
        let call = self.next;
        self.done += 1;
        if self.done == self.steps {
            self.done = 0;
            self.next = self.first;
        } else {
            self.next.input = call.input.wrapping_add(self.step);
            self.next.output = call.output.wrapping_add(self.step);
        }
        call
    }
}

/// How a loop goes.
#[derive(Clone, Copy, Debug)]
pub struct Loop {
    /// Timed iterations.
    pub iters: usize,
    /// Calls in each.
    pub calls: usize,
    /// The `-z` flag.
    pub blocking: u8,
    /// The `-G` flag: 0, or how often the iterations, recorded once, are launched.
    pub graphs: usize,
}

impl Loop {
    /// A single call.
    pub const ONE: Self = Self { iters: 1, calls: 1, blocking: 0, graphs: 0 };
}

/// Runs calls without timing them.
pub fn warm_up(backend: &mut dyn Backend, calls: &mut Calls, count: usize) -> Result<()> {
    for _ in 0..count {
        // SAFETY: `Calls` stays in the buffers of the row; this rank does nothing else meanwhile.
        unsafe { backend.run(&calls.next()) }?;
    }
    backend.finish()
}

/// Seconds per call, back to back.
pub fn back_to_back(backend: &mut dyn Backend, calls: &mut Calls, plan: Loop) -> Result<f64> {
    if plan.graphs > 0 {
        return replayed(backend, calls, plan);
    }
    let pauses = plan.blocking == 3;
    let mut clock = backend.clock(if pauses { 2 * plan.iters + 2 } else { 2 })?;
    backend.barrier()?;
    clock.mark()?;
    for _ in 0..plan.iters {
        iteration(backend, calls, plan)?;
        if pauses {
            clock.mark()?;
            backend.barrier()?;
            clock.mark()?;
        }
    }
    clock.mark()?;
    backend.finish()?;
    let step = if pauses { 2 } else { 1 };
    let seconds: f64 = clock.intervals()?.iter().step_by(step).sum();
    Ok(seconds / (plan.iters * plan.calls) as f64)
}

/// Seconds per call, of iterations that were recorded as a graph. It is launched once before, which
/// brings it to the GPU.
fn replayed(backend: &mut dyn Backend, calls: &mut Calls, plan: Loop) -> Result<f64> {
    let mut graph = recorded(backend, calls, plan)?;
    // SAFETY: `Calls` stays in the buffers of the row; this rank does nothing else meanwhile.
    unsafe { graph.launch() }?;
    let mut clock = backend.clock(2)?;
    backend.barrier()?;
    clock.mark()?;
    for _ in 0..plan.graphs {
        // SAFETY: as above.
        unsafe { graph.launch() }?;
    }
    clock.mark()?;
    backend.finish()?;
    let seconds: f64 = clock.intervals()?.iter().sum();
    Ok(seconds / (plan.graphs * plan.iters * plan.calls) as f64)
}

/// The iterations as a graph.
pub fn recorded(
    backend: &mut dyn Backend,
    calls: &mut Calls,
    plan: Loop,
) -> Result<Box<dyn Graph>> {
    backend.begin_capture()?;
    let done = (0..plan.iters).try_for_each(|_| iteration(backend, calls, plan));
    // Ended also after a failure, which says more than what it makes of the capture.
    let graph = backend.end_capture();
    done.and(graph)
}

/// Seconds per call, and of each iteration by itself, back to back.
pub fn per_iteration(
    backend: &mut dyn Backend,
    calls: &mut Calls,
    plan: Loop,
) -> Result<(f64, Vec<f64>)> {
    let pauses = plan.blocking == 3;
    let mut clock = backend.clock(if pauses { 2 * plan.iters + 1 } else { plan.iters + 1 })?;
    backend.barrier()?;
    clock.mark()?;
    for _ in 0..plan.iters {
        iteration(backend, calls, plan)?;
        clock.mark()?;
        if pauses {
            backend.barrier()?;
            clock.mark()?;
        }
    }
    backend.finish()?;
    let step = if pauses { 2 } else { 1 };
    let intervals = clock.intervals()?;
    let calls = plan.calls as f64;
    let times: Vec<f64> = intervals.iter().step_by(step).map(|seconds| seconds / calls).collect();
    Ok((times.iter().sum::<f64>() / plan.iters as f64, times))
}

fn iteration(backend: &mut dyn Backend, calls: &mut Calls, plan: Loop) -> Result<()> {
    for _ in 0..plan.calls {
        // SAFETY: `Calls` stays in the buffers of the row; this rank does nothing else meanwhile.
        unsafe { backend.run(&calls.next()) }?;
        match plan.blocking {
            1 => backend.barrier()?,
            2 => backend.finish()?,
            _ => {}
        }
    }
    Ok(())
}

/// Each call by itself: when this rank began it (seconds since an arbitrary start that the ranks
/// have in common), and how long it took until the host saw its end.
pub fn one_by_one(
    backend: &mut dyn Backend,
    calls: &mut Calls,
    iters: usize,
    together: bool,
) -> Result<Vec<(f64, f64)>> {
    let mut times = Vec::with_capacity(iters);
    for _ in 0..iters {
        let call = calls.next();
        backend.barrier()?;
        if together {
            wait_for_tick();
        }
        let start = clock();
        // SAFETY: `Calls` stays in the buffers of the row; this rank does nothing else meanwhile.
        unsafe { backend.run(&call) }?;
        backend.finish()?;
        times.push((start, clock() - start));
    }
    Ok(times)
}

/// Ranks leave a barrier one after the other, which is long against a small call; so each waits for
/// the next multiple of this many nanoseconds of the clock that all processes of the host share.
const TICK: u64 = 8_192;

/// Ranks that came out of the barrier on two sides of a tick start this far apart; the call then
/// says nothing.
pub const START_SPREAD: f64 = TICK as f64 / 4e9;

fn wait_for_tick() {
    let start = nanoseconds();
    while nanoseconds() / TICK == start / TICK {
        std::hint::spin_loop();
    }
}

fn clock() -> f64 {
    nanoseconds() as f64 / 1e9
}

fn nanoseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use warpmesh::{DataType, ReduceOp};

    use super::*;
    use crate::layout::Test;

    #[test]
    fn calls_walk_through_the_buffers_and_start_over() {
        let first = Call {
            test: Test::SendRecv,
            dtype: DataType::F32,
            op: ReduceOp::Sum,
            root: 0,
            count: 2,
            input: std::ptr::without_provenance(1000),
            output: std::ptr::without_provenance_mut(5000),
        };
        let mut calls = Calls::new(first, 8, 3);
        let mut at = || {
            let call = calls.next();
            (call.input as usize, call.output as usize)
        };
        let walked = [at(), at(), at(), at()];
        assert_eq!(walked, [(1000, 5000), (1008, 5008), (1016, 5016), (1000, 5000)]);
    }

    #[test]
    fn ticks_are_the_same_for_all_threads() {
        let tick = || {
            wait_for_tick();
            nanoseconds() / TICK
        };
        let ticks: HashSet<u64> = (0..50).map(|_| tick()).collect();
        assert!(ticks.len() > 25, "each wait ends in another tick");
    }
}

//! One rank's share of measuring a row: the same calls on every rank, one combined result.

use std::ops::Range;

use anyhow::{Context, Result};
use warpmesh::DataType;
use warpmesh::bootstrap::Bootstrap;
use warpmesh::primitives::failure::FailureKind;

use super::cli::Cli;
use super::control::Control;
use super::exit::{Exit, Failed};
use super::format;
use super::stats::{Stats, median};
use super::timing::{self, Calls, Loop, START_SPREAD};
use crate::backend::cuda::Device;
use crate::backend::{Backend, Buffer, Call, Kind, Refused};
use crate::layout::{Layout, Op, Place, Test};
use crate::oracle::{Job, Oracle, digest};

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What is called.
    pub test: Test,
    /// The elements' type.
    pub dtype: DataType,
    /// The reduction; ignored by what does not reduce.
    pub op: Op,
    /// The root; ignored by what has none.
    pub root: usize,
    /// Counts and offsets.
    pub layout: Layout,
}

impl Row {
    /// For progress and errors.
    pub fn describe(&self) -> String {
        let size = format::size(self.layout.bytes());
        let op = if self.test.reduces() { self.op.name() } else { "" };
        format!("{} {size} {} {op}", self.test, self.dtype).trim_end().to_owned()
    }
}

/// What all ranks found together.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Seconds per operation.
    pub seconds: f64,
    /// Iterations that were timed.
    pub iters: usize,
    /// Of single iterations, where they were timed.
    pub stats: Option<Stats>,
    /// Wrong elements of all ranks; None if nothing was checked.
    pub wrong: Option<u64>,
}

/// One rank, its libraries and its buffers.
pub struct Bench<'a> {
    cli: &'a Cli,
    control: Control,
    rank: usize,
    world: usize,
    /// Cores that all ranks have together.
    cores: usize,
    backends: Vec<Box<dyn Backend>>,
    send: Buffer,
    recv: Buffer,
    /// What a library turned out to be unable to do in the rows that are under way.
    left_out: Vec<(usize, Place, String)>,
    /// Counts the checks, so that each has other data.
    seed: u64,
}

/// Bytes after each output that nobody may touch.
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;

impl<'a> Bench<'a> {
    /// Allocates the buffers. Every rank calls it.
    pub fn new(
        cli: &'a Cli,
        control: Control,
        cores: usize,
        mut backends: Vec<Box<dyn Backend>>,
        device: Option<&Device>,
    ) -> Result<Self> {
        let bytes = cli.maxbytes + cli.unalign * 8 + GUARD;
        let mut alloc = || -> Result<Buffer> {
            let mut buffer = allocate(cli, &mut backends, device, bytes)
                .with_context(|| format!("{} of memory", format::size(bytes)))?;
            if !buffer.is_on_device() {
                // Pages are mapped at the first touch, which is not to be timed.
                buffer.bytes().fill(0);
            }
            Ok(buffer)
        };
        let (send, recv) = (alloc()?, alloc()?);
        let (rank, world) = (control.rank(), control.world());
        Ok(Self {
            cli,
            control,
            rank,
            world,
            cores,
            backends,
            send,
            recv,
            left_out: vec![],
            seed: 0,
        })
    }

    /// The libraries, by their place in the command line.
    pub fn backends(&self) -> &[Box<dyn Backend>] {
        &self.backends
    }

    /// For what else the ranks agree on.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Why a library leaves a row out, as far as is known before or after the warm-up.
    pub fn refusal(&self, backend: usize, row: &Row, place: Place) -> Option<String> {
        let is_this = |(b, p, _): &&(usize, Place, String)| (*b, *p) == (backend, place);
        if let Some((.., why)) = self.left_out.iter().find(is_this) {
            return Some(why.clone());
        }
        let op = row.op.on(row.dtype, self.rank);
        self.backends[backend].refuses(row.test, row.dtype, op, place)
    }

    /// What a library says about a row.
    pub fn explain(&mut self, backend: usize, row: &Row) -> Option<String> {
        let call = self.call(row, Place::Out);
        self.backends[backend].explain(&call, self.cli.local_register > 0)
    }

    /// Runs the first of several rows of a kind without timing it. What a library refuses to do is
    /// left out from then on.
    pub fn warm_up(&mut self, rows: &[&Row]) -> Result<()> {
        self.left_out.clear();
        for row in rows {
            self.warm_up_in(row, Place::Out)?;
            if row.test.has_in_place() {
                self.warm_up_in(row, Place::In)?;
            }
        }
        Ok(())
    }

    fn warm_up_in(&mut self, row: &Row, place: Place) -> Result<()> {
        let count = self.cli.warmup_iters.max(1);
        for backend in self.takers(row, place) {
            let registered = self.cli.local_register > 0;
            let call = self.call(row, place);
            if let Some(why) = self.backends[backend].substitutes(&call, place, registered) {
                self.left_out.push((backend, place, why));
                continue;
            }
            let mut calls = self.calls(row, place);
            match timing::warm_up(&mut *self.backends[backend], &mut calls, count) {
                Ok(()) => {}
                Err(error) => match error.downcast::<Refused>() {
                    Ok(Refused(why)) => self.left_out.push((backend, place, why)),
                    Err(error) => return Err(failed(error, row)),
                },
            }
        }
        Ok(())
    }

    /// Measures a row with every library, in turns, and checks the results. None for a library
    /// that refuses the row.
    pub fn measure(&mut self, row: &Row, place: Place) -> Result<Vec<Option<Outcome>>> {
        let takers = self.takers(row, place);
        let mut loops = vec![vec![]; self.backends.len()];
        let mut iters = vec![0; self.backends.len()];
        for &backend in &takers {
            self.oracle(row).fill_input(self.rank, self.input(row, place));
            self.push(row, place)?;
            iters[backend] = self.prepare(backend, row, place)?;
        }
        for _ in 0..self.cli.loops() {
            for &backend in &takers {
                loops[backend].push(self.time(backend, row, place, iters[backend])?);
            }
        }
        let mut outcomes = vec![None; self.backends.len()];
        for &backend in &takers {
            let wrong = self.check(backend, row, place)?;
            let outcome = combine(std::mem::take(&mut loops[backend]), iters[backend], wrong);
            outcomes[backend] = Some(outcome);
        }
        Ok(outcomes)
    }

    fn takers(&self, row: &Row, place: Place) -> Vec<usize> {
        let all = 0..self.backends.len();
        all.filter(|&backend| self.refusal(backend, row, place).is_none()).collect()
    }

    /// One call as a start, then a trial where the number of iterations follows from the time.
    fn prepare(&mut self, backend: usize, row: &Row, place: Place) -> Result<usize> {
        let mut calls = self.calls(row, place);
        let wanted = self.cli.iterations();
        let trial = self.plan(wanted);
        let library = &mut *self.backends[backend];
        timing::warm_up(library, &mut calls, 1).map_err(|error| failed(error, row))?;
        if self.cli.min_time == 0.0 {
            return Ok(wanted);
        }
        let seconds =
            timing::back_to_back(library, &mut calls, trial).map_err(|error| failed(error, row))?;
        let slowest = self.control.max(seconds)? * self.cli.agg_iters as f64;
        Ok(((self.cli.min_time / slowest) as usize).clamp(wanted, 1_000_000))
    }

    /// One loop: seconds per operation over all ranks, and of each iteration if asked for.
    fn time(
        &mut self,
        backend: usize,
        row: &Row,
        place: Place,
        iters: usize,
    ) -> Result<(f64, Vec<f64>)> {
        if self.cli.latency {
            return self.latencies(backend, row, place, iters);
        }
        let mut calls = self.calls(row, place);
        let plan = self.plan(iters);
        let library = &mut *self.backends[backend];
        let timed = if self.cli.per_iteration() {
            timing::per_iteration(library, &mut calls, plan)
        } else {
            timing::back_to_back(library, &mut calls, plan).map(|seconds| (seconds, vec![]))
        };
        let (seconds, times) = timed.map_err(|error| failed(error, row))?;
        let all = self.control.gather(&[&[seconds], &times[..]].concat())?;
        let firsts: Vec<f64> = all.iter().map(|of| of[0]).collect();
        let skip = self.cli.per_iter_skip.min(times.len());
        let slowest = |i: usize| all.iter().map(|of| of[1 + i]).fold(f64::MIN, f64::max);
        Ok((average(self.cli.average, &firsts), (skip..times.len()).map(slowest).collect()))
    }

    fn plan(&self, iters: usize) -> Loop {
        let Cli { agg_iters, blocking, cudagraph, .. } = *self.cli;
        Loop { iters, calls: agg_iters, blocking, graphs: cudagraph }
    }

    /// Each operation by itself, over all ranks the slowest.
    fn latencies(
        &mut self,
        backend: usize,
        row: &Row,
        place: Place,
        iters: usize,
    ) -> Result<(f64, Vec<f64>)> {
        let together = self.world <= self.cores && self.world > 1;
        let mut calls = self.calls(row, place);
        let library = &mut *self.backends[backend];
        let times = timing::one_by_one(library, &mut calls, iters, together)
            .map_err(|error| failed(error, row))?;
        let starts: Vec<f64> = times.iter().map(|(start, _)| *start).collect();
        let durations: Vec<f64> = times.iter().map(|(_, duration)| *duration).collect();
        let starts = self.control.gather(&starts)?;
        let durations = self.control.gather(&durations)?;
        let times = slowest_of_each(&starts, &durations, together);
        Ok((median(&times), times))
    }

    /// The first call of a row. Pointers of a rank that has no part in a buffer are valid all the
    /// same.
    fn call(&self, row: &Row, place: Place) -> Call {
        let start = self.cli.unalign * row.layout.element;
        let (send, recv) = match place {
            Place::Out => (self.send.as_ptr(), self.recv.as_ptr()),
            Place::In => {
                let at = |offset: usize| offset * self.rank * row.layout.element;
                let recv = self.recv.as_ptr();
                let (input, output) = (at(row.layout.send_offset), at(row.layout.recv_offset));
                (recv.wrapping_add(input), recv.wrapping_add(output))
            }
        };
        Call {
            test: row.test,
            dtype: row.dtype,
            op: row.op.on(row.dtype, self.rank),
            root: row.root,
            count: row.layout.count,
            input: send.wrapping_add(start),
            output: recv.wrapping_add(start),
        }
    }

    fn calls(&self, row: &Row, place: Place) -> Calls {
        let step = row.layout.bytes();
        let steps = self.cli.maxbytes.checked_div(step).unwrap_or(1);
        Calls::new(self.call(row, place), step, steps)
    }

    fn oracle(&self, row: &Row) -> Oracle {
        let Row { test, dtype, op, root, layout } = *row;
        let job = Job { test, dtype, op, world: self.world, root, count: layout.count };
        Oracle::new(job, self.seed)
    }

    /// Elements of other data, `-c` times: wrong elements over all ranks.
    fn check(&mut self, backend: usize, row: &Row, place: Place) -> Result<Option<u64>> {
        if self.cli.check == 0 {
            return Ok(None);
        }
        for _ in 0..self.cli.check {
            self.seed += 1;
            let wrong = self.check_once(backend, row, place)?;
            let wrong = self.control.sum(wrong as f64)? as u64;
            if wrong > 0 {
                return Ok(Some(wrong));
            }
        }
        self.check_same_bits(backend, row, place).map(Some)
    }

    fn check_once(&mut self, backend: usize, row: &Row, place: Place) -> Result<u64> {
        let (oracle, rank) = (self.oracle(row), self.rank);
        let call = self.call(row, place);
        oracle.spoil_output(rank, self.output(row, place));
        oracle.fill_input(rank, self.input(row, place));
        self.guard(row, place).fill(GUARD_BYTE);
        self.push(row, place)?;
        self.run(backend, row, &call)?;
        self.pull(row, place)?;
        let mut wrong = oracle.wrong(rank, self.output(row, place));
        if place == Place::Out {
            let damaged = oracle.input_damage(rank, self.input(row, place));
            wrong += self.complain(row, damaged, "elements of the send buffer were changed");
        }
        let overrun = self.guard(row, place).iter().filter(|byte| **byte != GUARD_BYTE).count();
        wrong += self.complain(row, overrun as u64, "bytes after the receive buffer were changed");
        Ok(wrong)
    }

    fn complain(&self, row: &Row, count: u64, what: &str) -> u64 {
        if count > 0 {
            eprintln!("warpmesh-perf: rank {}: {}: {count} {what}", self.rank, row.describe());
        }
        count
    }

    /// Sums that depend on the order: how many ranks have other bits than rank 0.
    fn check_same_bits(&mut self, backend: usize, row: &Row, place: Place) -> Result<u64> {
        use warpmesh::plan::Collective::AllReduce;
        let promised = self.backends[backend].promises_same_bits()
            && row.test == Test::Collective(AllReduce)
            && place == Place::Out;
        let (oracle, rank) = (self.oracle(row), self.rank);
        if !promised || !oracle.fill_rough(rank, self.input(row, place)) {
            return Ok(0);
        }
        let call = self.call(row, place);
        self.push(row, place)?;
        self.run(backend, row, &call)?;
        self.pull(row, place)?;
        let mine = format!("{:x}", digest(self.output(row, place)));
        let all = self.control.gather_text(&mine)?;
        let other = u64::from(mine != all[0]);
        self.complain(row, other, "result has other bits than rank 0's");
        Ok(all.iter().filter(|digest| **digest != all[0]).count() as u64)
    }

    /// Runs a call to its end, as it is timed: from a graph, if that is asked for.
    fn run(&mut self, backend: usize, row: &Row, call: &Call) -> Result<()> {
        let backend = &mut *self.backends[backend];
        let done = if self.cli.cudagraph > 0 {
            timing::recorded(backend, &mut Calls::new(*call, 0, 1), Loop::ONE)
                // SAFETY: as below.
                .and_then(|mut graph| unsafe { graph.launch() }.and_then(|()| backend.finish()))
        } else {
            // SAFETY: the call is one of the row's, in this rank's buffers, which nobody else
            // touches.
            unsafe { backend.run(call) }.and_then(|()| backend.finish())
        };
        done.map_err(|error| failed(error, row))
    }

    /// Brings what a row's first call touches to the GPU, if it is there.
    fn push(&mut self, row: &Row, place: Place) -> Result<()> {
        let (send, recv) = self.touched(row, place);
        self.send.push(send)?;
        self.recv.push(recv)
    }

    /// Brings it back.
    fn pull(&mut self, row: &Row, place: Place) -> Result<()> {
        let (send, recv) = self.touched(row, place);
        self.send.pull(send)?;
        self.recv.pull(recv)
    }

    /// The bytes of send and receive buffer that belong to a row's first call, with the guard.
    fn touched(&self, row: &Row, place: Place) -> (Range<usize>, Range<usize>) {
        let Layout { send, recv, element, .. } = row.layout;
        let start = self.cli.unalign * element;
        match place {
            Place::Out => (start..start + send * element, start..start + recv * element + GUARD),
            Place::In => (0..0, start..start + row.layout.bytes() + GUARD),
        }
    }

    /// The send buffer of a row's first call.
    fn input(&mut self, row: &Row, place: Place) -> &mut [u8] {
        let Layout { send, send_offset, element, .. } = row.layout;
        let start = self.cli.unalign * element;
        match place {
            Place::Out => &mut self.send.bytes()[start..][..send * element],
            Place::In => {
                let start = start + send_offset * self.rank * element;
                &mut self.recv.bytes()[start..][..send * element]
            }
        }
    }

    /// The receive buffer of a row's first call.
    fn output(&mut self, row: &Row, place: Place) -> &mut [u8] {
        let Layout { recv, recv_offset, element, .. } = row.layout;
        let offset = if place == Place::In { recv_offset * self.rank } else { 0 };
        let start = (self.cli.unalign + offset) * element;
        &mut self.recv.bytes()[start..][..recv * element]
    }

    /// What follows the part of the receive allocation that a row's first call may touch.
    fn guard(&mut self, row: &Row, place: Place) -> &mut [u8] {
        let Layout { recv, element, .. } = row.layout;
        let used = if place == Place::In { row.layout.bytes() } else { recv * element };
        let start = self.cli.unalign * element + used;
        &mut self.recv.bytes()[start..][..GUARD]
    }
}

/// Memory of the library that can register it, plain memory where none can or none shall. All
/// libraries of a run get the same buffers.
fn allocate(
    cli: &Cli,
    backends: &mut [Box<dyn Backend>],
    device: Option<&Device>,
    bytes: usize,
) -> Result<Buffer> {
    let mut owner = None;
    for (n, backend) in backends.iter_mut().enumerate().filter(|_| cli.local_register > 0) {
        if let Some(buffer) = backend.alloc(bytes)? {
            owner = Some((n, buffer));
            break;
        }
    }
    let (owner, buffer) = match (owner, device) {
        (Some((n, buffer)), _) => (Some(n), buffer),
        (None, Some(device)) => (None, device.plain(bytes)?),
        (None, None) => (None, Buffer::plain(bytes)),
    };
    for (n, backend) in backends.iter_mut().enumerate() {
        // What allocated it knows it, unless that is NCCL, which allocates without a communicator.
        if owner != Some(n) || backend.kind() == Kind::Nccl {
            backend.register(&buffer, cli.local_register)?;
        }
    }
    Ok(buffer)
}

fn failed(error: anyhow::Error, row: &Row) -> anyhow::Error {
    if let Some(exit) = Failed::code_in(&error) {
        return Failed::because(exit, format!("{}: {error:#}", row.describe()));
    }
    let failure = error.downcast_ref::<warpmesh::Error>().and_then(warpmesh::Error::failure);
    let exit = match failure.map(|failure| failure.kind) {
        Some(FailureKind::TimedOut) => Exit::Timeout,
        _ => Exit::Library,
    };
    Failed::because(exit, format!("{}: {error:#}", row.describe()))
}

/// The `-a` flag.
fn average(kind: u8, ranks: &[f64]) -> f64 {
    match kind {
        0 => ranks[0],
        1 => ranks.iter().sum::<f64>() / ranks.len() as f64,
        2 => ranks.iter().copied().fold(f64::MAX, f64::min),
        _ => ranks.iter().copied().fold(f64::MIN, f64::max),
    }
}

fn combine(loops: Vec<(f64, Vec<f64>)>, iters: usize, wrong: Option<u64>) -> Outcome {
    let seconds: Vec<f64> = loops.iter().map(|(seconds, _)| *seconds).collect();
    let times = loops.into_iter().flat_map(|(_, times)| times).collect();
    Outcome { seconds: median(&seconds), iters, stats: Stats::new(times), wrong }
}

/// The slowest rank's time of each operation that all ranks started together; of all operations if
/// most were not, for then the ranks do not run at the same time anyway.
fn slowest_of_each(starts: &[Vec<f64>], durations: &[Vec<f64>], together: bool) -> Vec<f64> {
    let spread = |i: usize| {
        let (least, most) = starts
            .iter()
            .map(|of| of[i])
            .fold((f64::MAX, f64::MIN), |(least, most), at| (least.min(at), most.max(at)));
        most - least
    };
    let slowest = |i: usize| durations.iter().map(|of| of[i]).fold(f64::MIN, f64::max);
    let all = 0..durations[0].len();
    let fair: Vec<usize> = all.clone().filter(|i| spread(*i) < START_SPREAD).collect();
    if together && 2 * fair.len() >= all.len() {
        fair.into_iter().map(slowest).collect()
    } else {
        all.map(slowest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_those_of_the_flag() {
        let of = |kind| average(kind, &[2.0, 1.0, 6.0]);
        assert_eq!([of(0), of(1), of(2), of(3)], [2.0, 3.0, 1.0, 6.0]);
    }

    #[test]
    fn operations_that_were_not_started_together_do_not_count() {
        let starts = [vec![0.0, 1.0, 2.0], vec![0.0, 1.1, 2.0]];
        let durations = [vec![5.0, 50.0, 7.0], vec![6.0, 8.0, 4.0]];
        assert_eq!(slowest_of_each(&starts, &durations, true), [6.0, 7.0]);
        assert_eq!(slowest_of_each(&starts, &durations, false), [6.0, 50.0, 7.0]);
    }

    #[test]
    fn the_median_of_the_loops_is_reported() {
        let loops = vec![(3.0, vec![1.0]), (1.0, vec![]), (2.0, vec![4.0])];
        let outcome = combine(loops, 20, Some(0));
        assert_eq!(outcome.seconds, 2.0);
        assert_eq!(outcome.stats.unwrap().times, [1.0, 4.0]);
    }
}

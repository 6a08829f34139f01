//! The sweep, as every rank goes through it: types, operations, roots, sizes. Rank 0 reports.

use std::time::Duration;

use anyhow::Result;
use warpmesh::bootstrap::Bootstrap;

use super::bench::{Bench, Row};
use super::cli::{Cli, Roots, Where};
use super::control::Control;
use super::cores::Cores;
use super::exit::Exit;
use super::format;
use super::machine::Machine;
use super::report::device::Device;
use super::report::{Library, Report};
use super::watch::Watch;
use crate::backend::Backend;
use crate::backend::cuda::Device as Gpu;
use crate::layout::{Op, Place, Test};

/// Measures everything that the command line asks for. Every rank calls it; `place` says what cores
/// all ranks have.
pub fn run(
    cli: &Cli,
    control: &Control,
    backends: Vec<Box<dyn Backend>>,
    gpu: Option<&Gpu>,
    place: Cores,
) -> Result<Exit> {
    let (rank, world) = (control.rank(), control.world());
    let report = introduce(cli, control, &backends, gpu, place)?;
    let limit = (cli.test_timeout > 0).then(|| Duration::from_secs(cli.test_timeout));
    let bench = Bench::new(cli, control.clone(), place.cores, backends, gpu)?;
    let watch = Watch::start(rank == 0, limit);
    let workers = world.min(place.cores);
    let mut sweep = Sweep { cli, bench, report, watch, rank, world, workers };
    let ended = sweep.cycles();
    let Some(report) = sweep.report.take() else {
        return ended.map(|()| Exit::Success);
    };
    let errors = ended.as_ref().err().map(|error| format!("{error:#}"));
    let exit = report.end(errors.into_iter().collect());
    ended.and(exit)
}

/// Rank 0's report, with what all ranks say of themselves.
fn introduce<'a>(
    cli: &'a Cli,
    control: &Control,
    backends: &[Box<dyn Backend>],
    gpu: Option<&Gpu>,
    place: Cores,
) -> Result<Option<Report<'a>>> {
    let libraries = backends
        .iter()
        .map(|backend| Library { name: backend.kind().to_string(), version: backend.version() });
    let mine = match gpu {
        Some(gpu) => Device::gpu(control.rank(), gpu),
        None => Device::host(control.rank()),
    };
    let mine = serde_json::to_string(&mine)?;
    let devices = control.gather_text(&mine)?;
    let devices = devices.iter().map(|text| serde_json::from_str(text));
    let devices: Vec<Device> = devices.collect::<Result<_, _>>()?;
    let reports = control.rank() == 0;
    reports.then(|| Report::begin(cli, devices, libraries.collect(), place)).transpose()
}

struct Sweep<'a> {
    cli: &'a Cli,
    bench: Bench<'a>,
    /// Rank 0's.
    report: Option<Report<'a>>,
    watch: Watch,
    rank: usize,
    world: usize,
    /// Ranks that can run at the same time.
    workers: usize,
}

impl Sweep<'_> {
    fn cycles(&mut self) -> Result<()> {
        let mut cycle = 0;
        while self.cli.run_cycles == 0 || cycle < self.cli.run_cycles {
            for &test in &self.cli.test.0 {
                self.test(test)?;
            }
            cycle += 1;
        }
        Ok(())
    }

    fn test(&mut self, test: Test) -> Result<()> {
        self.tell(|report| report.begin_test())?;
        for &dtype in &self.cli.datatype.0 {
            for op in self.ops(test) {
                for root in self.roots(test) {
                    let row = |bytes| {
                        let layout = test.layout(bytes, dtype, self.world);
                        Row { test, dtype, op, root, layout }
                    };
                    let rows: Vec<Row> = self.cli.sizes().into_iter().map(row).collect();
                    self.rows(&rows)?;
                }
            }
        }
        let machine = self.machine(test)?;
        let memory = self.memory()?;
        self.tell(|report| report.end_test(test, machine.as_ref(), &memory))
    }

    /// What the host's cores can do, where they do the work.
    fn machine(&self, test: Test) -> Result<Option<Machine>> {
        if self.cli.device == Where::Cuda {
            return Ok(None);
        }
        self.watch.begin(format!("{test}: what the machine can do"));
        let control = self.bench.control();
        let machine = Machine::measure(control, self.rank, self.workers, self.cli.maxbytes)?;
        self.watch.end();
        Ok(Some(machine))
    }

    fn ops(&self, test: Test) -> Vec<Op> {
        if test.reduces() { self.cli.op.0.clone() } else { vec![Op::Sum] }
    }

    fn roots(&self, test: Test) -> Vec<usize> {
        match self.cli.root {
            _ if !test.is_rooted() => vec![0],
            Roots::All => (0..self.world).collect(),
            Roots::One(root) => vec![root],
        }
    }

    /// One size after the other, of one type, operation and root.
    fn rows(&mut self, rows: &[Row]) -> Result<()> {
        let (Some(smallest), Some(largest)) = (rows.first(), rows.last()) else {
            return Ok(());
        };
        self.watch.begin(format!("{}: warming up", largest.describe()));
        self.bench.warm_up(&[largest, smallest])?;
        self.watch.end();
        self.say_refusals(smallest)?;
        for (i, row) in rows.iter().enumerate() {
            self.explain(row)?;
            self.watch.begin(format!("{} (row {} of {})", row.describe(), i + 1, rows.len()));
            let out = self.bench.measure(row, Place::Out)?;
            let in_place = match row.test.has_in_place() {
                true => self.bench.measure(row, Place::In)?,
                false => vec![],
            };
            self.watch.end();
            self.tell(|report| report.row(row, [out, in_place]))?;
        }
        Ok(())
    }

    /// A library that cannot do something is named once, with its reason.
    fn say_refusals(&mut self, row: &Row) -> Result<()> {
        for backend in 0..self.bench.backends().len() {
            let refusal = |place| self.bench.refusal(backend, row, place);
            let Some(why) = refusal(Place::Out).or_else(|| refusal(Place::In)) else {
                continue;
            };
            let name = self.bench.backends()[backend].kind();
            self.tell(|report| report.note(backend, &format!("left out: {name}: {why}")))?;
        }
        Ok(())
    }

    fn explain(&mut self, row: &Row) -> Result<()> {
        for backend in 0..self.bench.backends().len() {
            if !self.cli.explain || self.bench.refusal(backend, row, Place::Out).is_some() {
                continue;
            }
            if let Some(text) = self.bench.explain(backend, row) {
                self.tell(|report| report.note(backend, &text))?;
            }
        }
        Ok(())
    }

    /// The `-M` lines.
    fn memory(&self) -> Result<Vec<String>> {
        let mut lines = vec![];
        if self.cli.memory == 0 {
            return Ok(lines);
        }
        for backend in self.bench.backends() {
            let Some(held) = backend.held_bytes() else {
                continue;
            };
            let most = self.bench.control().max(held as f64)? as usize;
            let held = format::size(most);
            lines.push(format!("Memory held by {:<7} : {held} a rank at most", backend.kind()));
        }
        let most = self.bench.control().max(peak_memory() as f64)? as usize;
        lines.push(format!("{:<22} : {} a process at most", "Peak memory", format::size(most)));
        Ok(lines)
    }

    fn tell(&mut self, what: impl FnOnce(&mut Report<'_>) -> Result<()>) -> Result<()> {
        self.report.as_mut().map_or(Ok(()), what)
    }
}

/// The most physical memory that this process has had at a time, shared pages included.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|text| text.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_memory() {
        assert!(super::peak_memory() > 1 << 16);
    }
}

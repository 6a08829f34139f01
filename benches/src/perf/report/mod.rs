//! What rank 0 prints and writes.

pub mod device;
mod json;
pub mod table;

use std::io::Write;

use anyhow::{Context, Result};

use self::device::Device;
use self::json::Json;
use self::table::Half;
use super::bench::{Outcome, Row};
use super::cli::{Cli, Where};
use super::cores::Cores;
use super::exit::Exit;
use super::format;
use super::machine::Machine;
use crate::backend::cuda;
use crate::layout::Test;

/// What the header says of one library.
#[derive(Clone, Debug)]
pub struct Library {
    /// Its name on the command line.
    pub name: String,
    /// Its name and version.
    pub version: String,
}

/// The report of a run. One table per test and library; that of the first library is printed row
/// by row, the others' follow.
pub struct Report<'a> {
    cli: &'a Cli,
    world: usize,
    tables: Vec<Table>,
    json: Option<Json>,
    floor: Option<f64>,
    place: Cores,
    wrong: u64,
    slow: bool,
    bus: Mean,
}

struct Table {
    library: Library,
    waiting: Vec<String>,
    rows: Vec<(Row, [Option<Half>; 2])>,
    wrong: u64,
    bus: Mean,
}

#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl<'a> Report<'a> {
    /// Prints what comes before the first table, and opens the JSON file.
    pub fn begin(
        cli: &'a Cli,
        devices: Vec<Device>,
        libraries: Vec<Library>,
        place: Cores,
    ) -> Result<Self> {
        let world = devices.len();
        let open = |name: &String| -> Result<Json> {
            let (json, path) = Json::create(name, cli, devices.clone())?;
            print(&[format!("# Writing JSON output to {path}")])?;
            Ok(json)
        };
        let json = cli.output_file.as_ref().map(open).transpose()?;
        let tables = libraries.into_iter().map(Table::new).collect();
        let floor = std::env::var("NCCL_TESTS_MIN_BW").ok().and_then(|text| text.parse().ok());
        let (wrong, slow, bus) = (0, false, Mean::default());
        let report = Self { cli, world, tables, json, floor, place, wrong, slow, bus };
        report.introduce(&devices)?;
        Ok(report)
    }

    fn introduce(&self, devices: &[Device]) -> Result<()> {
        let cli = self.cli;
        let (step, unit) = match cli.stepfactor {
            0 | 1 => (cli.stepbytes, "bytes"),
            factor => (factor, "factor"),
        };
        let tests: Vec<String> = cli.test.0.iter().map(|test| test.program()).collect();
        let mut lines = vec![
            format!("# warpmesh-perf version {}", env!("CARGO_PKG_VERSION")),
            format!("# Collective test starting: {}", tests.join(" ")),
            format!(
                "# nThread {} nGpus {} minBytes {} maxBytes {} step: {step}({unit}) warmup iters: {} \
                 iters: {} agg iters: {} validation: {} graph: {} unalign: {}",
                cli.nthreads,
                cli.ngpus,
                cli.minbytes,
                cli.maxbytes,
                cli.warmup_iters,
                cli.iterations(),
                cli.agg_iters,
                cli.check,
                cli.cudagraph,
                cli.unalign
            ),
        ];
        lines.extend(self.modes());
        lines.extend(where_it_runs(cli, devices));
        lines.extend(["#".to_owned(), "# Using devices".to_owned()]);
        lines.extend(devices.iter().map(Device::line));
        print(&lines)
    }

    /// What is measured, and what differs from the plain table.
    fn modes(&self) -> Vec<String> {
        let cli = self.cli;
        let libraries = self.tables.iter().map(|table| table.library.version.as_str());
        let libraries = libraries.collect::<Vec<_>>().join(" and ");
        let memory = if cli.local_register > 0 { "registered" } else { "not registered" };
        let Cores { cores, bound } = self.place;
        let mut lines = vec![format!(
            "# Measured: {libraries}; memory {memory}; {} ranks, {bound} of them bound to a core, \
             {cores} cores here",
            self.world
        )];
        let blocking = match cli.blocking {
            0 => None,
            1 => Some("wait and barrier after each collective"),
            2 => Some("wait for each collective"),
            _ => Some("barrier after each iteration, not timed"),
        };
        lines.extend(blocking.map(|how| format!("# Blocking Enabled: {how}")));
        if cli.latency {
            let when = if self.world <= cores { "at the same instant" } else { "after a barrier" };
            lines.push(format!(
                "# Latency: all ranks start each operation {when}, the slowest rank counts; time \
                 is the median, i_* are of single operations"
            ));
        }
        if cli.loops() > 1 {
            lines.push(format!("# Rounds: {}, taking turns; the median is reported", cli.loops()));
        }
        lines
    }

    /// Prints the header of a test's table.
    pub fn begin_test(&mut self) -> Result<()> {
        let several = self.tables.len() > 1;
        for (place, table) in self.tables.iter_mut().enumerate() {
            *table = Table::new(table.library.clone());
            let mut lines = table::header(self.cli);
            if several {
                lines.insert(0, format!("#\n# Backend: {}", table.library.version));
            }
            if place == 0 {
                print(&lines)?;
            } else {
                table.waiting.extend(lines);
            }
        }
        Ok(())
    }

    /// A line of explanation in a library's table.
    pub fn note(&mut self, backend: usize, text: &str) -> Result<()> {
        let lines: Vec<String> = text.lines().map(|line| format!("# {line}")).collect();
        self.put(backend, lines)
    }

    /// A row: for each place, what each library's measurement gave.
    pub fn row(&mut self, row: &Row, mut outcomes: [Vec<Option<Outcome>>; 2]) -> Result<()> {
        let now = format::now();
        for backend in 0..self.tables.len() {
            let halves = outcomes.each_mut().map(|place| {
                let outcome = place.get_mut(backend).and_then(Option::take);
                outcome.map(|outcome| Half::new(row, self.world, outcome))
            });
            if halves.iter().any(Option::is_some) {
                self.put(backend, vec![table::line(self.cli, row, &halves, &now)])?;
                let table = &mut self.tables[backend];
                if let Some(json) = &mut self.json {
                    json.row(self.cli, row, &table.library.name, &halves);
                }
                table.add(*row, halves);
            }
        }
        Ok(())
    }

    fn put(&mut self, backend: usize, lines: Vec<String>) -> Result<()> {
        if backend == 0 {
            return print(&lines);
        }
        self.tables[backend].waiting.extend(lines);
        Ok(())
    }

    /// Prints the rest of a test: other libraries' tables, footers, comparisons.
    pub fn end_test(
        &mut self,
        test: Test,
        machine: Option<&Machine>,
        memory: &[String],
    ) -> Result<()> {
        let mut lines = vec![];
        for table in &mut self.tables {
            lines.append(&mut table.waiting);
            let bus = table.bus.value();
            lines.extend(table::footer(test, table.wrong, bus, self.floor));
            self.slow |= self.floor.is_some_and(|floor| bus < 0.9 * floor);
            self.wrong += table.wrong;
            self.bus.add_all(table.bus);
        }
        lines.extend(memory.iter().map(|text| format!("# {text}")));
        lines.extend(machine.map(|machine| self.machine_lines(machine)).unwrap_or_default());
        lines.extend(self.ratios());
        lines.push("#".to_owned());
        print(&lines)
    }

    /// What the machine can do and how much of it was reached: at the largest size, or always.
    fn machine_lines(&self, machine: &Machine) -> Vec<String> {
        let size = format::size(machine.bytes);
        let mut lines = vec![format!(
            "# Machine: copy {:.2} GB/s, f32 add {:.2} GB/s ({} ranks at once, {size} each)",
            machine.copy, machine.add, machine.workers
        )];
        for table in &self.tables {
            let largest = table.rows.iter().map(|(row, _)| row.layout.bytes()).max();
            let wanted = |row: &Row| {
                let bytes = row.layout.bytes();
                bytes > 0 && (self.cli.machine_fraction || Some(bytes) == largest)
            };
            let rows = table.rows.iter().filter(|(row, _)| wanted(row));
            let name = &table.library.name;
            lines.extend(rows.map(|(row, halves)| self.fraction(machine, name, row, halves)));
        }
        lines
    }

    /// A collective has at least to write every rank's output, so copying that much is what it is
    /// held against.
    fn fraction(
        &self,
        machine: &Machine,
        library: &str,
        row: &Row,
        halves: &[Option<Half>; 2],
    ) -> String {
        let places = ["out of place", "in place"].iter().zip(halves);
        let shares = places.filter_map(|(place, half)| {
            let seconds = half.as_ref()?.outcome.seconds;
            Some(format!("{:.2} {place}", machine.fraction(self.written(row), seconds)))
        });
        let shares = shares.collect::<Vec<_>>().join(", ");
        let (bytes, dtype, op) = (row.layout.bytes(), row.dtype, table::op_name(row));
        format!("# Machine fraction of {library} at {bytes} ({dtype} {op}): {shares}")
    }

    /// Bytes of all ranks' outputs.
    fn written(&self, row: &Row) -> f64 {
        let Test::Collective(collective) = row.test else {
            return (self.world * row.layout.bytes()) as f64;
        };
        let blocks = |rank| collective.blocks(self.world, row.root, rank).1;
        let blocks: usize = (0..self.world).map(blocks).sum();
        (blocks * row.layout.count * row.layout.element) as f64
    }

    /// Times of the first library as a share of the others', row by row.
    fn ratios(&self) -> Vec<String> {
        let [first, others @ ..] = &self.tables[..] else {
            return vec![];
        };
        let mut lines = vec![];
        for other in others {
            lines.push(format!(
                "#\n# Time of {} as a share of {}'s (below 1: {} is faster)",
                first.library.name, other.library.name, first.library.name
            ));
            lines.push(format!(
                "# {:>10}  {:>8}  {:>6}  {:>6}  {:>12}  {:>8}",
                "size", "type", "redop", "root", "out_of_place", "in_place"
            ));
            for (row, halves) in &first.rows {
                lines.push(ratio_line(row, halves, other));
            }
        }
        lines
    }

    /// Writes the JSON file. How the run ends, if it got to its end.
    pub fn end(mut self, errors: Vec<String>) -> Result<Exit> {
        if let Some(json) = self.json.take() {
            json.finish(self.wrong, self.bus.value(), self.floor, errors)?;
        }
        Ok(match self.bus.count {
            _ if self.wrong > 0 || self.slow => Exit::Results,
            0 => Exit::NotImplemented,
            _ => Exit::Success,
        })
    }
}

/// The device, how it was chosen, and what its times are.
fn where_it_runs(cli: &Cli, devices: &[Device]) -> Vec<String> {
    let asked = if cli.device_was_chosen { "--device" } else { "--device auto" };
    if cli.device != Where::Cuda {
        let why = if cli.device_was_chosen { "" } else { ": there is no GPU with a CUDA driver" };
        return vec![format!("# Device: host ({asked}{why})")];
    }
    let driver = cuda::driver_version().unwrap_or_else(|_| "?".to_owned());
    let mut lines = vec![format!(
        "# Device: cuda ({asked}), driver for CUDA {driver}; times are of events on the ranks' streams"
    )];
    if cli.cudagraph > 0 {
        let (iters, times) = (cli.iterations() * cli.agg_iters, cli.cudagraph);
        lines
            .push(format!("# Graph: {iters} operations, recorded once and launched {times} times"));
    }
    let same = |a: &Device, b: &Device| (&a.hostname, a.device) == (&b.hostname, b.device);
    let sharing = |device| devices.iter().filter(|other| same(device, other)).count();
    let most = devices.iter().map(sharing).max().unwrap_or(1);
    if most > 1 {
        lines.push(format!("# {most} ranks share a GPU: times and bandwidths say little"));
    }
    lines
}

fn ratio_line(row: &Row, halves: &[Option<Half>; 2], other: &Table) -> String {
    let same = |(theirs, _): &&(Row, _)| {
        theirs.layout == row.layout
            && (theirs.dtype, theirs.op, theirs.root) == (row.dtype, row.op, row.root)
    };
    let theirs = other.rows.iter().find(same).map(|(_, halves)| halves);
    let ratio = |i: usize| {
        let ours = halves[i].as_ref()?.micros;
        let theirs = theirs?[i].as_ref()?.micros;
        Some(format!("{:.2}", ours / theirs))
    };
    let text = |i| ratio(i).unwrap_or_else(|| "N/A".to_owned());
    format!(
        "# {:>10}  {:>8}  {:>6}  {:>6}  {:>12}  {:>8}",
        row.layout.bytes(),
        row.dtype.name(),
        table::op_name(row),
        table::root_number(row),
        text(0),
        text(1)
    )
}

impl Table {
    fn new(library: Library) -> Self {
        let (waiting, rows) = (vec![], vec![]);
        Self { library, waiting, rows, wrong: 0, bus: Mean::default() }
    }

    fn add(&mut self, row: Row, halves: [Option<Half>; 2]) {
        for half in halves.iter().flatten() {
            self.wrong += half.outcome.wrong.unwrap_or(0);
            self.bus.add(half.bus);
        }
        self.rows.push((row, halves));
    }
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn add_all(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    fn value(self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }
}

/// Line by line, so that a pipe sees each row when it is done.
fn print(lines: &[String]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "{line}"))
        .and_then(|()| out.flush())
        .context("writing to standard output")
}

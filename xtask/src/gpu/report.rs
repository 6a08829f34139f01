//! target/gpu-report.md.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::runs::Run;
use super::versions;
use crate::system::{Output, SAID, root};

/// What is known so far.
pub struct Report {
    file: PathBuf,
    found: String,
    gpus: usize,
    vgpu: bool,
    steps: Vec<Step>,
    left_out: Vec<String>,
    /// Tables, as Markdown.
    tables: String,
    /// A line for each measurement beside NCCL.
    summary: Vec<String>,
}

struct Step {
    title: String,
    command: String,
    good: bool,
    seconds: f64,
    /// The last lines of what a failed one said.
    said: String,
}

/// A library's rows: size, out of place and in place.
type Rows = Vec<(u64, [Option<Cell>; 2])>;

/// Time in microseconds, bus bandwidth in GB/s, wrong elements.
#[derive(Clone, Debug, PartialEq)]
struct Cell {
    time: f64,
    bus: f64,
    wrong: String,
}

impl Report {
    pub fn begin(found: &str, gpus: usize, vgpu: bool) -> Result<Self> {
        let name = if vgpu { "target/gpu-report-vgpu.md" } else { "target/gpu-report.md" };
        let report = Self {
            file: root().join(name),
            found: found.to_owned(),
            gpus,
            vgpu,
            steps: vec![],
            left_out: vec![],
            tables: String::new(),
            summary: vec![],
        };
        report.write()?;
        Ok(report)
    }

    /// A step is done.
    pub fn step(&mut self, title: &str, output: &Output) {
        let said = if output.good { String::new() } else { output.last_lines(SAID) };
        self.steps.push(Step {
            title: title.to_owned(),
            command: output.command.clone(),
            good: output.good,
            seconds: output.seconds,
            said,
        });
    }

    /// A measurement is done.
    pub fn measured(&mut self, run: &Run, output: &Output) {
        self.step(&run.title, output);
        if !output.good {
            return;
        }
        let tables = tables(&output.out);
        let _ = writeln!(self.tables, "\n### {}\n\n`{}`\n", run.title, output.command);
        match (&tables[..], self.vgpu) {
            ([ours, theirs], _) => {
                self.tables.push_str(&side_by_side(ours, theirs));
                self.summary.push(format!("| {} | {} |", run.title, means(ours, theirs)));
            }
            ([ours, ..], true) => self.tables.push_str(&unmeasured(ours)),
            ([ours, ..], false) => self.tables.push_str(&alone(ours)),
            ([], _) => self.tables.push_str("no rows\n"),
        }
    }

    /// There was no time for something.
    pub fn left_out(&mut self, what: &str) {
        self.left_out.push(what.to_owned());
    }

    pub fn write(&self) -> Result<()> {
        std::fs::write(&self.file, self.text())
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Says how it went; an error if something failed.
    pub fn end(&self) -> Result<()> {
        self.write()?;
        let bad: Vec<_> = self.steps.iter().filter(|step| !step.good).collect();
        println!("\n{} of {} steps passed", self.steps.len() - bad.len(), self.steps.len());
        for step in &bad {
            println!("  failed: {}", step.title);
        }
        if !self.left_out.is_empty() {
            println!("  left out for time: {}", self.left_out.len());
        }
        println!("report: {}", self.file.display());
        if bad.is_empty() { Ok(()) } else { bail!("{} steps failed", bad.len()) }
    }

    fn text(&self) -> String {
        let mut text = String::from("# warpmesh on GPUs\n\nWritten by `cargo xtask gpu`. ");
        text.push_str(if self.vgpu {
            "On virtual GPUs, beside a stand-in for NCCL: it shows that the steps and the tables work. \
             **Its times are those of interpreters, and say nothing about GPUs or NCCL.**\n"
        } else {
            "Times are microseconds per operation, bandwidths nccl-tests' busbw in GB/s; *ratio* is \
             warpmesh's time divided by NCCL's, below 1 warpmesh is faster.\n"
        });
        if self.gpus == 1 && !self.vgpu {
            text.push_str("\n**There is one GPU, which several ranks share: times say little.**\n");
        }
        let _ = write!(text, "\n{}\n\n```text\n{}```\n", versions(), self.found);
        if !self.summary.is_empty() {
            text.push_str("\n## Ratio to NCCL, geometric means, out of place\n\n");
            text.push_str("| | up to 64 KiB | up to 4 MiB | above |\n|---|--:|--:|--:|\n");
            text.push_str(&(self.summary.join("\n") + "\n"));
        }
        text.push_str("\n## Steps\n\n| step | | s |\n|---|---|--:|\n");
        for Step { title, good, seconds, .. } in &self.steps {
            let verdict = if *good { "passed" } else { "**failed**" };
            let _ = writeln!(text, "| {title} | {verdict} | {seconds:.0} |");
        }
        for Step { title, command, said, .. } in self.steps.iter().filter(|step| !step.good) {
            let _ = writeln!(text, "\n### Failed: {title}\n\n`{command}`\n\n```text\n{said}\n```");
        }
        if !self.left_out.is_empty() {
            text.push_str("\n## Left out for time\n\n");
            self.left_out.iter().for_each(|what| text.push_str(&format!("- {what}\n")));
        }
        text.push_str("\n## Measurements\n");
        text.push_str(&self.tables);
        text
    }
}

/// The tables of a run of warpmesh-perf, one for each library.
fn tables(out: &str) -> Vec<Rows> {
    let mut tables: Vec<Rows> = vec![];
    for line in out.lines() {
        if line.starts_with("# Backend: ") {
            tables.push(vec![]);
        }
        let columns: Vec<&str> = line.split_whitespace().collect();
        let size = columns.first().and_then(|size| size.parse().ok());
        let Some(size) = size.filter(|_| columns.len() == 13) else { continue };
        if tables.is_empty() {
            tables.push(vec![]);
        }
        let cell = |at: usize| {
            let number = |n: usize| columns[n].parse::<f64>().ok();
            let wrong = columns[at + 3].to_owned();
            Some(Cell { time: number(at)?, bus: number(at + 2)?, wrong })
        };
        tables.last_mut().expect("pushed above").push((size, [cell(5), cell(9)]));
    }
    tables
}

fn side_by_side(ours: &Rows, theirs: &Rows) -> String {
    let mut text = String::from(
        "| bytes | warpmesh | busbw | NCCL | busbw | ratio | in place | NCCL | ratio |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (size, [out, inside]) in ours {
        let same = theirs.iter().find(|(other, _)| other == size);
        let [their_out, their_inside] = same.map_or([None, None], |(_, cells)| cells.clone());
        let time =
            |cell: &Option<Cell>| cell.as_ref().map_or("".into(), |c| format!("{:.2}", c.time));
        let bus =
            |cell: &Option<Cell>| cell.as_ref().map_or("".into(), |c| format!("{:.1}", c.bus));
        let ratio = |a: &Option<Cell>, b: &Option<Cell>| {
            let ratio = a.as_ref().zip(b.as_ref()).map(|(a, b)| a.time / b.time);
            ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
        };
        let cells: [String; 9] = [
            size.to_string(),
            time(out),
            bus(out),
            time(&their_out),
            bus(&their_out),
            ratio(out, &their_out),
            time(inside),
            time(&their_inside),
            ratio(inside, &their_inside),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn alone(ours: &Rows) -> String {
    let mut text = String::from(
        "| bytes | out of place | busbw | in place | busbw |\n|--:|--:|--:|--:|--:|\n",
    );
    for (size, cells) in ours {
        let [out, inside] = cells.each_ref().map(|cell| match cell {
            Some(Cell { time, bus, .. }) => format!("{time:.2} | {bus:.1}"),
            None => " | ".to_owned(),
        });
        let _ = writeln!(text, "| {size} | {out} | {inside} |");
    }
    text
}

fn unmeasured(ours: &Rows) -> String {
    let mut text = String::from("| bytes | wrong out of place | in place |\n|--:|--:|--:|\n");
    for (size, cells) in ours {
        let [out, inside] =
            cells.each_ref().map(|cell| cell.as_ref().map_or("", |cell| cell.wrong.as_str()));
        let _ = writeln!(text, "| {size} | {out} | {inside} |");
    }
    text
}

/// Geometric means of the ratios by range of sizes, as cells. Of no bytes, which libraries do not
/// even start for, there is none.
fn means(ours: &Rows, theirs: &Rows) -> String {
    let ranges = [1..=64 << 10, (64 << 10) + 1..=4 << 20, (4 << 20) + 1..=u64::MAX];
    let mean = |range: std::ops::RangeInclusive<u64>| {
        let ratios: Vec<f64> = ours
            .iter()
            .filter(|(size, _)| range.contains(size))
            .filter_map(|(size, [out, _])| {
                let (_, [theirs, _]) = theirs.iter().find(|(other, _)| other == size)?;
                Some((out.as_ref()?.time / theirs.as_ref()?.time).ln())
            })
            .collect();
        if ratios.is_empty() {
            return String::new();
        }
        format!("{:.2}", (ratios.iter().sum::<f64>() / ratios.len() as f64).exp())
    };
    ranges.map(mean).join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: &str = "\
# header
#
# Backend: warpmesh 0.1.0
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
        8192          2048     float     sum      -1    10.00    0.23    0.50       0    30.00    0.27    0.27       0
     8388608       2097152     float     sum      -1    40.00    0.23    0.50       0      N/A     N/A     N/A     N/A
# Out of bounds values : 0 OK
# Backend: NCCL 2.30.7
        8192          2048     float     sum      -1    20.00    0.23    0.25       0    15.00    0.27    0.27       0
     8388608       2097152     float     sum      -1    10.00    0.23    2.00     N/A    15.00    0.27    0.27     N/A
# Out of bounds values : 0 OK
#       8192     float     sum      -1          0.50      2.00
";

    #[test]
    fn tables_of_both_libraries_are_put_side_by_side() {
        let tables = tables(OUT);
        let [ours, theirs] = &tables[..] else { panic!("{tables:?}") };
        let text = side_by_side(ours, theirs);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(rows[0], "| 8192 | 10.00 | 0.5 | 20.00 | 0.2 | 0.50 | 30.00 | 15.00 | 2.00 |");
        assert_eq!(rows[1], "| 8388608 | 40.00 | 0.5 | 10.00 | 2.0 | 4.00 |  | 15.00 |  |");
        assert_eq!(means(ours, theirs), "0.50 |  | 4.00");
    }

    #[test]
    fn calls_of_no_bytes_are_not_in_the_means() {
        let cell = |time| [Some(Cell { time, bus: 0.0, wrong: "0".to_owned() }), None];
        let ours = vec![(0, cell(9.0)), (8, cell(2.0))];
        let theirs = vec![(0, cell(1.0)), (8, cell(1.0))];
        assert_eq!(means(&ours, &theirs), "2.00 |  | ");
    }

    #[test]
    fn a_single_library_has_no_backend_line() {
        let only = OUT.lines().nth(4).unwrap();
        let tables = tables(only);
        assert_eq!(tables.len(), 1);
        assert!(unmeasured(&tables[0]).ends_with("| 8192 | 0 | 0 |\n"));
        assert!(alone(&tables[0]).ends_with("| 8192 | 10.00 | 0.5 | 30.00 | 0.3 |\n"));
    }
}

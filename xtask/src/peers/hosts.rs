//! All-reduce between hosts, over TCP: beside Open MPI and Gloo. Hosts are network namespaces, which
//! warpmesh-perf makes.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{Options, watched};

/// How the report begins.
pub const HEAD: &str = "\
# Between hosts, beside Open MPI and Gloo

Written by `cargo xtask peers --report docs/peers.md`. Hosts are network namespaces of one machine, with
virtual Ethernet (veth) between them; all libraries run in the same processes, in turn at every size. Open MPI
4.1 has `pml ob1` and `btl tcp,vader,self`, so its ranks share memory on a host and use TCP between hosts;
warpmesh does the same; Gloo has TCP for everything, and takes the quicker of its ring and bcube algorithm,
tried at each size. Times in microseconds, bus bandwidth in GB/s; *ratio* is the first library's time divided
by this one's, so below 1 the first is faster. *alone*: all ranks start each all-reduce together, and the
slowest counts; the others follow each other without a pause.
";

/// A title, and warpmesh-perf's arguments.
const RUNS: [(&str, &str); 6] = [
    ("2 hosts of 1 rank, 8 B, alone", "all_reduce -b 8 -e 8 --hosts 1,1 --latency"),
    ("2 hosts of 1 rank, 8 B", "all_reduce -b 8 -e 8 --hosts 1,1"),
    ("2 hosts of 1 rank, 64 KiB to 64 MiB", "all_reduce -b 64K -e 64M -f 4 --hosts 1,1"),
    ("2 hosts of 2 ranks, 8 B, alone", "all_reduce -b 8 -e 8 --hosts 2,2 --latency"),
    ("2 hosts of 2 ranks, 8 B", "all_reduce -b 8 -e 8 --hosts 2,2"),
    ("2 hosts of 2 ranks, 64 KiB to 64 MiB", "all_reduce -b 64K -e 64M -f 4 --hosts 2,2"),
];

/// Measures; what is found, as Markdown.
pub fn run(options: &Options) -> Result<String> {
    let mut text = String::new();
    let mut worst = vec![];
    for (number, (title, line)) in RUNS.iter().enumerate() {
        let line = if options.quick { line.replace("64M", "4M") } else { (*line).to_owned() };
        let mut command = super::perf(&line);
        command.args(["--backend", if options.without_warpmesh { "mpi,gloo" } else { ALL }]);
        let effort = match (options.quick, line.contains("--latency")) {
            (true, _) => "-n 10 -w 5",
            (false, true) => "-n 1000 -w 20 --rounds 5",
            // Large sizes take long enough with few iterations, small ones get more by the time.
            (false, false) => "-n 5 -w 5 --min-time 0.2 --rounds 5",
        };
        command.args(effort.split(' '));
        if let Some(prefix) = &options.json {
            command.arg("-J").arg(format!("{prefix}-hosts-{number}.json"));
        }
        println!("==> {title}");
        let output = watched(&mut command)?;
        super::machine(&mut text, &output);
        let tables = tables(&output);
        ensure!(tables.len() > 1 && !tables[0].rows.is_empty(), "no tables:\n{output}");
        super::heading(&mut text, title, &command);
        text += &side_by_side(&tables);
        worst.push((*title, greatest_ratios(&tables)));
    }
    let summary = summary(&worst);
    println!("{summary}");
    Ok(summary + &text)
}

const ALL: &str = "warpmesh,mpi,gloo";

/// One library's.
#[derive(Debug, PartialEq)]
struct Table {
    library: String,
    rows: Vec<Row>,
}

/// Time and bus bandwidth, out of place and in place.
#[derive(Debug, PartialEq)]
struct Row {
    bytes: String,
    places: [(f64, f64); 2],
}

/// Reads what warpmesh-perf has printed for several libraries.
fn tables(output: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = vec![];
    for line in output.lines() {
        if let Some(library) = line.strip_prefix("# Backend: ") {
            tables.push(Table { library: library.to_owned(), rows: vec![] });
        } else if let (Some(table), Some(row)) = (tables.last_mut(), row(line)) {
            table.rows.push(row);
        }
    }
    tables
}

/// nccl-tests' 13 columns; with single iterations four more on each side.
fn row(line: &str) -> Option<Row> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let second = match columns.len() {
        13 => 9,
        21 => 13,
        _ => return None,
    };
    let number = |at: usize| columns[at].parse::<f64>().ok();
    let place = |at: usize| Some((number(at)?, number(at + 2)?));
    number(0)?;
    Some(Row { bytes: columns[0].to_owned(), places: [place(5)?, place(second)?] })
}

fn side_by_side(tables: &[Table]) -> String {
    let [first, others @ ..] = tables else { return String::new() };
    let mut text = format!("| bytes | place | {} | GB/s |", first.library);
    for other in others {
        let _ = write!(text, " {} | GB/s | ratio |", other.library);
    }
    let columns = 4 + 3 * others.len();
    let _ = writeln!(text, "\n|{}", "--:|".repeat(columns));
    for (at, own) in first.rows.iter().enumerate() {
        for (place, name) in ["out", "in"].iter().enumerate() {
            let (time, bus) = own.places[place];
            let _ = write!(text, "| {} | {name} | {time:.2} | {} |", own.bytes, three(bus));
            for (theirs, bus) in others.iter().filter_map(|o| Some(o.rows.get(at)?.places[place])) {
                let _ = write!(text, " {theirs:.2} | {} | {:.2} |", three(bus), time / theirs);
            }
            text.push('\n');
        }
    }
    text
}

/// A bandwidth: nothing of small messages'.
fn three(bandwidth: f64) -> String {
    if bandwidth < 0.005 { "-".to_owned() } else { format!("{bandwidth:.2}") }
}

/// For each library but the first: its name, and the greatest ratio in the table.
fn greatest_ratios(tables: &[Table]) -> Vec<(String, f64)> {
    let [first, others @ ..] = tables else { return vec![] };
    let greatest = |other: &Table| {
        let places =
            |table: &Table| table.rows.iter().flat_map(|row| row.places).collect::<Vec<_>>();
        let pairs = places(first).into_iter().zip(places(other));
        let ratio = pairs.map(|((own, _), (theirs, _))| own / theirs).fold(0.0, f64::max);
        (other.library.clone(), ratio)
    };
    others.iter().map(greatest).collect()
}

/// The greatest ratio of each run: what a promise about all sizes can rest on.
fn summary(runs: &[(&str, Vec<(String, f64)>)]) -> String {
    let Some((_, libraries)) = runs.first() else { return String::new() };
    let names: Vec<&str> = libraries.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = format!("\n| greatest ratio | {} |\n", names.join(" | "));
    let _ = writeln!(text, "|--|{}", "--:|".repeat(names.len()));
    for (title, ratios) in runs {
        let ratios: Vec<_> = ratios.iter().map(|(_, ratio)| format!("{ratio:.2}")).collect();
        let _ = writeln!(text, "| {title} | {} |", ratios.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
# Measured: one and two
# Backend: one
#       size
     8   2   float   sum   -1   10.0   0.00   0.00   0   12.0   0.00   0.00   0
 65536   9   float   sum   -1   50.0   1.00   1.50   0   40.0   1.00   1.60   0
# Backend: two
     8   2   float   sum   -1   20.0   0.00   0.00   0   10.0   0.00   0.00   0
 65536   9   float   sum   -1   100.0   0.50   0.75   0   160.0   0.3   0.40   0
";

    #[test]
    fn tables_are_put_side_by_side() {
        let tables = tables(OUTPUT);
        let text = side_by_side(&tables);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| bytes | place | one | GB/s | two | GB/s | ratio |");
        assert_eq!(lines[2], "| 8 | out | 10.00 | - | 20.00 | - | 0.50 |");
        assert_eq!(lines[5], "| 65536 | in | 40.00 | 1.60 | 160.00 | 0.40 | 0.25 |");
        assert_eq!(lines.len(), 6);
    }

    #[test]
    fn the_greatest_ratio_counts() {
        let ratios = greatest_ratios(&tables(OUTPUT));
        assert_eq!(ratios, [("two".to_owned(), 1.2)]);
        assert!(summary(&[("a run", ratios)]).contains("| a run | 1.20 |"));
    }

    #[test]
    fn columns_of_single_iterations_are_left_out() {
        let line =
            " 8 2 float sum -1 18.6 0.0 0.1 0 9.4 40.9 40.9 41.7 14.3 0.0 0.2 0 1.0 2.0 3.0 4.0";
        assert_eq!(row(line).unwrap().places, [(18.6, 0.1), (14.3, 0.2)]);
        assert_eq!(row("# 8"), None);
    }
}

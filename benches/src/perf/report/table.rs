//! nccl-tests' table, column by column.

use super::super::bench::{Outcome, Row};
use super::super::cli::Cli;
use super::super::format;
use crate::layout::Test;

/// The lines above the rows.
pub fn header(cli: &Cli) -> Vec<String> {
    let blank = format!("# {:>10}  {:>12}  {:>8}  {:>6}  {:>6}", "", "", "", "", "");
    let places = if cli.per_iteration() {
        let (out, in_place) = ("out-of-place (+ per-iteration)", "in-place (+ per-iteration)");
        format!("{blank}              {out}                                {in_place}")
    } else {
        format!("{blank}           out-of-place                       in-place          ")
    };
    let (label, unit) = if cli.report_timestamps == 1 {
        ("          timestamp", "  %Y-%m-%d %H:%M:%S")
    } else {
        ("", "")
    };
    let first = columns(["size", "count", "type", "redop", "root"]);
    let names =
        group(cli, ["time", "algbw", "busbw", "#wrong"], ["i_min", "i_max", "i_p99", "i_cv%"]);
    let second = columns(["(B)", "(elements)", "", "", ""]);
    let units = group(cli, ["(us)", "(GB/s)", "(GB/s)", ""], ["(us)", "(us)", "(us)", "(%)"]);
    vec![
        "#".to_owned(),
        places,
        format!("{first}{names}{names} {label}"),
        format!("{second}{units}{units} {unit}"),
    ]
}

fn columns([size, count, dtype, op, root]: [&str; 5]) -> String {
    format!("# {size:>10}  {count:>12}  {dtype:>8}  {op:>6}  {root:>6}")
}

fn group(cli: &Cli, times: [&str; 4], each: [&str; 4]) -> String {
    let [time, alg, bus, wrong] = times;
    let mut text = format!("  {time:>7}  {alg:>6}  {bus:>6}  {wrong:>6}");
    if cli.per_iteration() {
        each.iter().for_each(|name| text.push_str(&format!("  {name:>7}")));
    }
    text
}

/// Time, bandwidths and errors of one half of a row.
#[derive(Clone, Debug)]
pub struct Half {
    /// Microseconds.
    pub micros: f64,
    /// GB/s.
    pub alg: f64,
    /// GB/s.
    pub bus: f64,
    /// What was measured.
    pub outcome: Outcome,
}

impl Half {
    /// Gives a measurement its bandwidths.
    pub fn new(row: &Row, world: usize, outcome: Outcome) -> Self {
        let (alg, bus) = row.test.bandwidth(&row.layout, world, outcome.seconds);
        Self { micros: outcome.seconds * 1e6, alg, bus, outcome }
    }
}

/// One line of the table. A half that was not measured is N/A.
pub fn line(cli: &Cli, row: &Row, halves: &[Option<Half>; 2], now: &str) -> String {
    let layout = &row.layout;
    let mut text = format!(
        "{:>12}  {:>12}  {:>8}  {:>6}  {:>6}",
        layout.bytes(),
        layout.count,
        row.dtype.name(),
        op_name(row),
        root_number(row),
    );
    for half in halves {
        text.push_str(&columns_of(cli, half.as_ref()));
    }
    if cli.report_timestamps == 1 {
        text.push_str(&format!("{now:>21}"));
    }
    text
}

/// The redop column.
pub fn op_name(row: &Row) -> &'static str {
    if row.test.reduces() { row.op.name() } else { "none" }
}

/// The root column.
pub fn root_number(row: &Row) -> i64 {
    if row.test.is_rooted() { row.root as i64 } else { -1 }
}

fn columns_of(cli: &Cli, half: Option<&Half>) -> String {
    let missing = || group(cli, ["N/A"; 4], ["N/A"; 4]);
    let Some(half) = half else { return missing() };
    let wrong = match half.outcome.wrong {
        Some(wrong) => format::general(wrong as f64),
        None => "N/A".to_owned(),
    };
    let times = [
        &format::fixed(half.micros, 7),
        &format::fixed(half.alg, 6),
        &format::fixed(half.bus, 6),
        &*wrong,
    ];
    let each = half.outcome.stats.as_ref().map_or_else(Default::default, |stats| {
        let micros = |seconds: f64| format::fixed(seconds * 1e6, 7);
        let variation = format::fixed(stats.variation(), 7);
        [micros(stats.min()), micros(stats.max()), micros(stats.percentile(99)), variation]
    });
    group(cli, times, each.each_ref().map(String::as_str))
}

/// The lines below the rows.
pub fn footer(test: Test, wrong: u64, bus: f64, floor: Option<f64>) -> Vec<String> {
    let verdict = |good: bool| if good { "OK" } else { "FAILED" };
    let bandwidth = floor.map_or("", |floor| verdict(bus >= 0.9 * floor));
    let bus = format::general(bus);
    vec![
        format!("# {:<20} : {wrong} {}", "Out of bounds values", verdict(wrong == 0)),
        format!("# {:<20} : {bus} {bandwidth}", "Avg bus bandwidth"),
        "#".to_owned(),
        format!("# Collective test concluded: {}", test.program()),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use warpmesh::DataType;

    use super::*;
    use crate::layout::Op;
    use crate::perf::stats::Stats;

    fn cli(more: &[&str]) -> Cli {
        Cli::parse_from([&["warpmesh-perf", "all_reduce"], more].concat())
    }

    fn row(bytes: usize) -> Row {
        let test = Test::from_name("all_reduce").unwrap();
        let layout = test.layout(bytes, DataType::F32, 2);
        Row { test, dtype: DataType::F32, op: Op::Sum, root: 0, layout }
    }

    fn half(seconds: f64, stats: Option<Stats>) -> Option<Half> {
        let outcome = Outcome { seconds, iters: 20, stats, wrong: Some(0) };
        Some(Half::new(&row(8192), 2, outcome))
    }

    /// Rows that nccl-tests 2.20.0 printed.
    #[test]
    fn the_table_is_that_of_nccl_tests() {
        let printed = "        8192          2048     float     sum      -1    35.15    0.23    \
                       0.23       0    30.33    0.27    0.27       0";
        let halves = [half(35.15e-6, None), half(30.33e-6, None)];
        assert_eq!(line(&cli(&[]), &row(8192), &halves, ""), printed);
        let header = header(&cli(&[]));
        let printed = [
            "#",
            "#                                                              out-of-place           \
             \u{20}           in-place",
            "#       size         count      type   redop    root     time   algbw   busbw  #wrong \
             \u{20}   time   algbw   busbw  #wrong",
            "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)         \
             \u{20}   (us)  (GB/s)  (GB/s)",
        ];
        let header: Vec<&str> = header.iter().map(|line| line.trim_end()).collect();
        assert_eq!(header, printed);
    }

    #[test]
    fn columns_stay_under_their_names() {
        for flags in [&["-I", "1"][..], &["-I", "1", "-S", "1"], &["-S", "1"], &[]] {
            let cli = cli(flags);
            let stats = || cli.per_iteration().then(|| Stats::new(vec![1e-6, 2e-6]).unwrap());
            let halves = [half(35e-6, stats()), None];
            let now = "2026-01-02 03:04:05";
            let line = line(&cli, &row(8192), &halves, now);
            let header = header(&cli);
            // nccl-tests' timestamps end a column after their name.
            let end = header[2].trim_end().len() + usize::from(cli.report_timestamps);
            assert_eq!(line.trim_end().len(), end, "{flags:?}\n{line}");
            assert!(line.contains("   N/A  "), "{line}");
        }
    }

    #[test]
    fn the_footer_is_that_of_nccl_tests() {
        let test = Test::from_name("all_reduce").unwrap();
        let lines = footer(test, 0, 745.53, None);
        assert_eq!(lines[0], "# Out of bounds values : 0 OK");
        assert_eq!(lines[1], "# Avg bus bandwidth    : 745.53 ");
        let lines = footer(test, 3, 80.0, Some(100.0));
        assert_eq!(lines[0], "# Out of bounds values : 3 FAILED");
        assert_eq!(lines[1], "# Avg bus bandwidth    : 80 FAILED");
    }
}

//! The JSON report: nccl-tests' schema, version 3.
//!
//! Oddities are the schema's: booleans are the strings "true" and "false", roots are padded
//! strings, counts of wrong elements are floats. Additions: `backend` in each result.

use std::fs::File;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;

use super::super::cli::Cli;
use super::super::format;
use super::super::stats::Stats;
use super::device::Device;
use super::table::{self, Half};
use crate::perf::bench::Row;

/// A report on its way to a file.
pub struct Json {
    file: File,
    document: Document,
}

#[derive(Serialize)]
struct Document {
    version: u32,
    start_time: String,
    args: Vec<String>,
    env: Vec<String>,
    nccl_version: u32,
    config: Config,
    results: Vec<Entry>,
    out_of_bounds: OutOfBounds,
    average_bus_bandwidth: Average,
    errors: Vec<String>,
    end_time: String,
}

#[derive(Serialize)]
struct Config {
    nthreads: usize,
    ngpus: usize,
    minimum_bytes: usize,
    maximum_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_factor: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_bytes: Option<usize>,
    warmup_iters: usize,
    iterations: usize,
    aggregated_iterations: usize,
    validation: usize,
    graph: usize,
    blocking_collectives: &'static str,
    per_iter_timing: &'static str,
    per_iter_skip: usize,
    parallel_init: &'static str,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Entry {
    size: usize,
    count: usize,
    #[serde(rename = "type")]
    dtype: &'static str,
    redop: &'static str,
    root: String,
    out_of_place: Option<Timing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_place_per_iter: Option<PerIter>,
    in_place: Option<Timing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_place_per_iter: Option<PerIter>,
    actual_iterations: usize,
    experiment_name: String,
    backend: String,
}

#[derive(Serialize)]
struct Timing {
    time: f64,
    alg_bw: f64,
    bus_bw: f64,
    nwrong: Option<f64>,
}

#[derive(Serialize)]
struct PerIter {
    skipped_iterations: usize,
    min_us: f64,
    max_us: f64,
    avg_us: f64,
    p50_us: f64,
    p95_us: f64,
    p99_us: f64,
    stdev_us: f64,
    cv_pct: f64,
    times_us: Vec<f64>,
}

#[derive(Default, Serialize)]
struct OutOfBounds {
    count: u64,
    okay: &'static str,
}

#[derive(Default, Serialize)]
struct Average {
    bandwidth: f64,
    okay: &'static str,
}

impl Json {
    /// Opens a new file, with a number after the name where that exists already. Says which.
    pub fn create(name: &str, cli: &Cli, devices: Vec<Device>) -> Result<(Self, String)> {
        let mut path = name.to_owned();
        let mut tries = 0;
        let file = loop {
            match File::create_new(&path) {
                Ok(file) => break file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    path = format!("{name}.{tries}");
                    tries += 1;
                }
                Err(error) => return Err(error).context(format!("-J: cannot write {path}")),
            }
        };
        Ok((Self { file, document: Document::new(cli, devices) }, path))
    }

    /// Adds a row of one backend.
    pub fn row(&mut self, cli: &Cli, row: &Row, backend: &str, halves: &[Option<Half>; 2]) {
        let [out, in_place] = halves;
        let iters = halves.iter().flatten().map(|half| half.outcome.iters).max();
        let per_iter = |half: &Option<Half>| {
            let stats = half.as_ref().and_then(|half| half.outcome.stats.as_ref());
            stats.map(|stats| PerIter::new(stats, cli.per_iter_skip))
        };
        self.document.results.push(Entry {
            size: row.layout.bytes(),
            count: row.layout.count,
            dtype: row.dtype.name(),
            redop: table::op_name(row),
            root: format!("{:>6}", table::root_number(row)),
            out_of_place: out.as_ref().map(Timing::new),
            out_of_place_per_iter: per_iter(out),
            in_place: in_place.as_ref().map(Timing::new),
            in_place_per_iter: per_iter(in_place),
            actual_iterations: iters.unwrap_or(0),
            experiment_name: row.test.program(),
            backend: backend.to_owned(),
        });
    }

    /// Writes the file.
    pub fn finish(
        mut self,
        wrong: u64,
        bus: f64,
        floor: Option<f64>,
        errors: Vec<String>,
    ) -> Result<()> {
        self.document.out_of_bounds = OutOfBounds { count: wrong, okay: boolean(wrong == 0) };
        let okay = floor.map_or("unchecked", |floor| boolean(bus >= 0.9 * floor));
        self.document.average_bus_bandwidth = Average { bandwidth: bus, okay };
        self.document.errors = errors;
        self.document.end_time = format::now();
        let mut text = serde_json::to_string(&self.document)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).context("-J: writing the report")
    }
}

impl Document {
    fn new(cli: &Cli, devices: Vec<Device>) -> Self {
        let env = std::env::vars_os().map(|(name, value)| variable(&name, &value));
        Self {
            version: 3,
            start_time: format::now(),
            args: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            env: env.collect(),
            nccl_version: 0,
            config: Config::new(cli, devices),
            results: vec![],
            out_of_bounds: OutOfBounds::default(),
            average_bus_bandwidth: Average::default(),
            errors: vec![],
            end_time: String::new(),
        }
    }
}

/// `NAME=value`, without values that let strangers into a job.
fn variable(name: &std::ffi::OsStr, value: &std::ffi::OsStr) -> String {
    let name = name.to_string_lossy();
    let secret = ["SECRET", "TOKEN", "PASSWORD", "KEY", "UNIQUE_ID"];
    if secret.iter().any(|word| name.to_uppercase().contains(word)) {
        return format!("{name}=(not shown)");
    }
    format!("{name}={}", value.to_string_lossy())
}

impl Config {
    fn new(cli: &Cli, devices: Vec<Device>) -> Self {
        let factor = cli.stepfactor > 1;
        Self {
            nthreads: cli.nthreads,
            ngpus: cli.ngpus,
            minimum_bytes: cli.minbytes,
            maximum_bytes: cli.maxbytes,
            step_factor: factor.then_some(cli.stepfactor),
            step_bytes: (!factor).then_some(cli.stepbytes),
            warmup_iters: cli.warmup_iters,
            iterations: cli.iterations(),
            aggregated_iterations: cli.agg_iters,
            validation: cli.check,
            graph: cli.cudagraph,
            blocking_collectives: boolean(cli.blocking > 0),
            per_iter_timing: boolean(cli.per_iteration()),
            per_iter_skip: cli.per_iter_skip,
            parallel_init: boolean(false),
            devices,
        }
    }
}

impl Timing {
    fn new(half: &Half) -> Self {
        Self {
            time: half.micros,
            alg_bw: half.alg,
            bus_bw: half.bus,
            nwrong: half.outcome.wrong.map(|wrong| wrong as f64),
        }
    }
}

impl PerIter {
    fn new(stats: &Stats, skipped_iterations: usize) -> Self {
        Self {
            skipped_iterations,
            min_us: stats.min() * 1e6,
            max_us: stats.max() * 1e6,
            avg_us: stats.mean() * 1e6,
            p50_us: stats.percentile(50) * 1e6,
            p95_us: stats.percentile(95) * 1e6,
            p99_us: stats.percentile(99) * 1e6,
            stdev_us: stats.deviation() * 1e6,
            cv_pct: stats.variation(),
            times_us: stats.times.iter().map(|seconds| seconds * 1e6).collect(),
        }
    }
}

fn boolean(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use warpmesh::DataType;

    use super::*;
    use crate::layout::{Op, Test};
    use crate::perf::bench::Outcome;

    fn written(path: &str) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn a_report_has_the_schema_and_does_not_overwrite() {
        let cli = Cli::parse_from(["x", "all_reduce", "-f", "2", "-I", "1"]);
        let folder = std::env::temp_dir().join(format!("warpmesh-perf-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let name = folder.join("report.json");
        let create = || Json::create(name.to_str().unwrap(), &cli, vec![]).unwrap();
        let ((_, first), (mut json, second)) = (create(), create());
        assert_eq!(second, format!("{first}.0"));
        let test = Test::from_name("broadcast").unwrap();
        let layout = test.layout(64, DataType::F32, 2);
        let row = Row { test, dtype: DataType::F32, op: Op::Sum, root: 1, layout };
        let stats = Stats::new(vec![1e-6, 3e-6]);
        let outcome = Outcome { seconds: 2e-6, iters: 2, stats, wrong: None };
        json.row(&cli, &row, "warpmesh", &[Some(Half::new(&row, 2, outcome)), None]);
        json.finish(0, 1.5, None, vec![]).unwrap();
        let report = written(&second);
        assert_eq!(report["version"], 3);
        assert_eq!(report["config"]["step_factor"], 2);
        assert!(report["config"].get("step_bytes").is_none());
        let result = &report["results"][0];
        assert_eq!((&result["root"], &result["redop"]), (&"     1".into(), &"none".into()));
        assert_eq!(result["out_of_place"]["time"], 2.0);
        assert!(result["out_of_place"]["nwrong"].is_null() && result["in_place"].is_null());
        assert_eq!(result["out_of_place_per_iter"]["p99_us"], 3.0);
        assert_eq!(report["out_of_bounds"]["okay"], "true");
        assert_eq!(report["average_bus_bandwidth"]["okay"], "unchecked");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn secrets_of_the_environment_stay_there() {
        let shown = |name: &str| variable(name.as_ref(), "abc".as_ref());
        assert_eq!(shown("WARPMESH_UNIQUE_ID"), "WARPMESH_UNIQUE_ID=(not shown)");
        assert_eq!(shown("HOME"), "HOME=abc");
    }
}

//! The transport beside perftest's programs, in turns: these machines are noisy, so the best of several counts.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use warpmesh_primitives::net::rdma::{RdmaOptions, SignalMode};

use super::ensure;
use super::job::{Job, Outcome, Pair};

const ROUNDS: usize = 5;
/// Of 64 KiB each.
const WRITES: u64 = 1000;
const CHUNK: u64 = 64 << 10;
const TRIPS: u64 = 1500;
/// As perftest's queue.
const WINDOW: u64 = 128;

/// What this transport has to reach, of perftest's figure.
const RATE: f64 = 0.9;
const LATENCY: f64 = 1.3;

/// Figures of one kind.
#[derive(Default)]
struct Figures(Vec<f64>);

impl Figures {
    fn highest(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    fn lowest(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

pub fn beside_perftest(job: &mut Job) -> Outcome {
    let (mut rate, mut their_rate) = (Figures::default(), Figures::default());
    let (mut add, mut immediate) = (Figures::default(), Figures::default());
    let mut their_latency = Figures::default();
    for _ in 0..ROUNDS {
        let writes = WRITES.to_string();
        let bandwidth = ["ib_write_bw", "-s", "65536", "-n", &writes];
        perftest(job, &bandwidth, 3, &mut their_rate)?;
        rate.0.push(stream(job)?);
        let trips = TRIPS.to_string();
        perftest(job, &["ib_write_lat", "-s", "8", "-n", &trips], 4, &mut their_latency)?;
        add.0.push(ping_pong(job, SignalMode::FetchAdd)?);
        immediate.0.push(ping_pong(job, SignalMode::Immediate)?);
    }
    if job.rank == 1 {
        return Ok(());
    }
    let (ours, theirs) = (rate.highest(), their_rate.highest());
    println!("best of {ROUNDS} turns, one NIC              warpmesh  perftest   ratio  wanted");
    println!(
        "64 KiB writes, MiB/s                {ours:9.1} {theirs:9.1} {:7.2}  >= {RATE}",
        ours / theirs
    );
    let theirs = their_latency.lowest();
    let row = |name: &str, ours: f64, wanted: &str| {
        println!(
            "8 B and signal, {name:14} µs    {ours:9.1} {theirs:9.1} {:7.2}  {wanted}",
            ours / theirs
        );
    };
    row("fetch-add", add.lowest(), "");
    row("immediate", immediate.lowest(), &format!("<= {LATENCY}"));
    ensure!(ours >= RATE * their_rate.highest(), "64 KiB writes are too slow");
    ensure!(immediate.lowest() <= LATENCY * theirs, "small transfers are too slow");
    Ok(())
}

/// MiB/s of writes, a window of them under way.
fn stream(job: &mut Job) -> Outcome<f64> {
    let options = job.options(1);
    let mut pair = job.pair(options)?;
    job.barrier()?;
    let start = Instant::now();
    if job.rank == 0 {
        for i in 0..WRITES {
            if i >= WINDOW {
                pair.until("room", |transport| {
                    use warpmesh_primitives::net::Transport;
                    transport.sent(1) + WINDOW > i
                })?;
            }
            pair.put((i % 32) * CHUNK, (i % 32) * CHUNK, CHUNK, None)?;
        }
        pair.flush()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    job.barrier()?;
    Ok(WRITES as f64 * CHUNK as f64 / seconds / f64::from(1 << 20))
}

/// Microseconds of half a round trip: the median.
fn ping_pong(job: &mut Job, signals: SignalMode) -> Outcome<f64> {
    let options = job.options(1);
    let mut pair = job.pair(RdmaOptions { signals, ..options })?;
    job.barrier()?;
    let mut trips = Vec::new();
    for trip in 1..=TRIPS {
        let start = Instant::now();
        if job.rank == 0 {
            pair.put(0, 4096, 8, Some(0))?;
            answer(&mut pair, trip)?;
        } else {
            answer(&mut pair, trip)?;
            pair.put(0, 4096, 8, Some(0))?;
        }
        trips.push(start.elapsed());
    }
    pair.flush()?;
    job.barrier()?;
    trips.sort_unstable();
    Ok(trips[trips.len() / 2].as_secs_f64() * 1e6 / 2.0)
}

fn answer(pair: &mut Pair, trip: u64) -> Outcome {
    pair.wait(0, trip)
}

/// Runs a program of perftest between the same NICs; rank 0 takes a column of what it prints.
fn perftest(job: &mut Job, words: &[&str], column: usize, into: &mut Figures) -> Outcome {
    let nic = ["rxe1", "rxe2"][job.rank];
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["-F", "-d", nic, "-x", "1", "-m", "4096"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if job.rank == 1 {
        let server = command.spawn()?;
        job.barrier()?;
        let output = server.wait_with_output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        return job.barrier();
    }
    job.barrier()?;
    std::thread::sleep(Duration::from_millis(500)); // until it listens
    let output = command.arg("127.0.0.1").output()?;
    job.barrier()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut rows =
        rows.filter(|row| row.len() > column && row.iter().all(|x| x.parse::<f64>().is_ok()));
    let figure = rows.next().and_then(|row| row[column].parse().ok());
    into.0.push(figure.ok_or_else(|| {
        format!("{words:?} printed no figures:\n{text}{}", String::from_utf8_lossy(&output.stderr))
    })?);
    Ok(())
}

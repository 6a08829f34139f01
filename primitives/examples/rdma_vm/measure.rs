//! The transport beside perftest's programs, in turns: these machines are noisy, so the best of several counts.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use warpmesh_primitives::net::rdma::{RdmaOptions, SignalMode};

use super::ensure;
use super::job::{Job, Outcome, Pair};

/// Both ranks use one NIC, which talks to itself.
const NIC: &str = "rxe0";
/// Turns at least, and for how long there may be more.
const LEAST: usize = 4;
const TIME: Duration = Duration::from_secs(60);
/// Of 64 KiB each.
const WRITES: u64 = 500;
const CHUNK: u64 = 64 << 10;
const TRIPS: u64 = 300;
/// Trips between looks at the clock, which is slow in a virtual machine. (perftest counts cycles.)
const AT_A_TIME: u64 = 5;
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

/// All figures, in turns.
#[derive(Default)]
struct Table {
    turns: usize,
    rate: Figures,
    their_rate: Figures,
    fetch_add: Figures,
    immediate: Figures,
    their_latency: Figures,
}

/// At least [`LEAST`] turns, and more while a figure is not good enough and there is time: on a machine that others use,
/// a few are always disturbed.
pub fn beside_perftest(job: &mut Job) -> Outcome {
    let mut table = Table::default();
    let start = Instant::now();
    loop {
        table.turn(job)?;
        let done = table.turns >= LEAST && table.is_good() || start.elapsed() > TIME;
        // Rank 0, which has perftest's figures, says whether that was all.
        if job.gather(&[u8::from(done)])?[0] == [1] {
            break;
        }
    }
    if job.rank == 1 {
        return Ok(());
    }
    table.print();
    ensure!(table.is_good(), "too slow beside perftest");
    Ok(())
}

impl Table {
    fn turn(&mut self, job: &mut Job) -> Outcome {
        self.turns += 1;
        let (writes, trips) = (WRITES.to_string(), TRIPS.to_string());
        perftest(job, &["ib_write_bw", "-s", "65536", "-n", &writes], 3, &mut self.their_rate)?;
        self.rate.0.push(stream(job)?);
        perftest(job, &["ib_write_lat", "-s", "8", "-n", &trips], 4, &mut self.their_latency)?;
        self.fetch_add.0.push(ping_pong(job, SignalMode::FetchAdd)?);
        self.immediate.0.push(ping_pong(job, SignalMode::Immediate)?);
        Ok(())
    }

    fn is_good(&self) -> bool {
        self.rate.highest() >= RATE * self.their_rate.highest()
            && self.immediate.lowest() <= LATENCY * self.their_latency.lowest()
    }

    fn print(&self) {
        println!("best of {} turns                warpmesh  perftest  ratio  wanted", self.turns);
        let row = |name: &str, ours: f64, theirs: f64, wanted: &str| {
            println!("{name:30} {ours:9.1} {theirs:9.1} {:6.2}  {wanted}", ours / theirs);
        };
        let wanted = format!(">= {RATE}");
        row("64 KiB writes, MiB/s", self.rate.highest(), self.their_rate.highest(), &wanted);
        let theirs = self.their_latency.lowest();
        let wanted = format!("<= {LATENCY}");
        row("8 B and immediate signal, µs", self.immediate.lowest(), theirs, &wanted);
        row("8 B and fetch-add, µs", self.fetch_add.lowest(), theirs, "");
    }
}

/// MiB/s of writes, a window of them under way.
fn stream(job: &mut Job) -> Outcome<f64> {
    let options = RdmaOptions { devices: vec![NIC.to_owned()], ..job.options(1) };
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
    let options = RdmaOptions { devices: vec![NIC.to_owned()], ..job.options(1) };
    let mut pair = job.pair(RdmaOptions { signals, ..options })?;
    job.barrier()?;
    let mut times = Vec::new();
    for some in 0..TRIPS / AT_A_TIME {
        let start = Instant::now();
        for trip in 1..=AT_A_TIME {
            let trip = some * AT_A_TIME + trip;
            if job.rank == 0 {
                pair.put(0, 4096, 8, Some(0))?;
                answer(&mut pair, trip)?;
            } else {
                answer(&mut pair, trip)?;
                pair.put(0, 4096, 8, Some(0))?;
            }
        }
        times.push(start.elapsed());
    }
    pair.flush()?;
    job.barrier()?;
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6 / AT_A_TIME as f64 / 2.0)
}

fn answer(pair: &mut Pair, trip: u64) -> Outcome {
    pair.wait(0, trip)
}

/// Runs a program of perftest between the same NICs; rank 0 takes a column of what it prints.
fn perftest(job: &mut Job, words: &[&str], column: usize, into: &mut Figures) -> Outcome {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["-F", "-d", NIC, "-x", "1", "-m", "4096"]);
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

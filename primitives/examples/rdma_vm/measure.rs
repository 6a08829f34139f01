//! The transport beside perftest's programs, in turns: these machines are noisy, so the best of several counts.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use warpmesh_primitives::net::rdma::{RdmaOptions, SignalMode};

use super::ensure;
use super::harness::Outcome;
use super::job::Job;

/// Both ranks use one NIC, which talks to itself.
const NIC: &str = "rxe0";
/// Of 64 KiB each.
const WRITES: u64 = 200;
const CHUNK: u64 = 64 << 10;
const TRIPS: u64 = 200;
/// Where perftest's programs listen.
const PORT: u16 = 18515;
/// As perftest's queue.
const WINDOW: u64 = 128;

/// What this transport has to reach.
struct Aim {
    /// Of perftest's figures.
    rate: f64,
    latency: f64,
    /// Turns at least, and for how long there may be more.
    least: usize,
    time: Duration,
}

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

/// Figures of one kind of trips: the quickest, and the median, of each turn.
#[derive(Default)]
struct Trips {
    quickest: Figures,
    typical: Figures,
}

/// All figures, in turns.
#[derive(Default)]
struct Table {
    turns: usize,
    rate: Figures,
    their_rate: Figures,
    fetch_add: Trips,
    immediate: Trips,
    theirs: Trips,
}

/// What is aimed at.
pub fn beside_perftest(job: &mut Job) -> Outcome {
    let time = Duration::from_secs(60);
    measure(job, &Aim { rate: 0.9, latency: 1.3, least: 5, time })
}

/// What no busy machine explains, for among the tests.
pub fn not_far_from_perftest(job: &mut Job) -> Outcome {
    let time = Duration::from_secs(30);
    measure(job, &Aim { rate: 0.4, latency: 4.0, least: 1, time })
}

/// So many turns, and more while a figure is not good enough and there is time: on a machine that others use,
/// a few are always disturbed.
fn measure(job: &mut Job, aim: &Aim) -> Outcome {
    let mut table = Table::default();
    let start = Instant::now();
    loop {
        table.turn(job)?;
        let enough = table.turns >= aim.least && table.is_good(aim);
        let done = enough || start.elapsed() > aim.time;
        // Rank 0, which has perftest's figures, says whether that was all.
        if job.gather(&[u8::from(done)])?[0] == [1] {
            break;
        }
    }
    if job.rank == 1 {
        return Ok(());
    }
    table.print(aim);
    ensure!(table.is_good(aim), "too slow beside perftest");
    Ok(())
}

impl Table {
    fn turn(&mut self, job: &mut Job) -> Outcome {
        self.turns += 1;
        let (writes, trips) = (WRITES.to_string(), TRIPS.to_string());
        let row = perftest(job, &["ib_write_bw", "-s", "65536", "-n", &writes], 5)?;
        row.into_iter().for_each(|row| self.their_rate.0.push(row[3]));
        self.rate.0.push(stream(job)?);
        let row = perftest(job, &["ib_write_lat", "-s", "8", "-n", &trips], 9)?;
        row.into_iter().for_each(|row| self.theirs.push((row[2], row[4])));
        self.fetch_add.push(ping_pong(job, SignalMode::FetchAdd)?);
        self.immediate.push(ping_pong(job, SignalMode::Immediate)?);
        Ok(())
    }

    /// Trips are compared by the quickest, which nobody disturbed: where others use the processors, most of a turn is
    /// waiting for them, for either program.
    fn is_good(&self, aim: &Aim) -> bool {
        let (ours, theirs) = (&self.immediate.quickest, &self.theirs.quickest);
        self.rate.highest() >= aim.rate * self.their_rate.highest()
            && ours.lowest() <= aim.latency * theirs.lowest()
    }

    fn print(&self, aim: &Aim) {
        println!(
            "best of {} turns                    warpmesh  perftest  ratio  wanted",
            self.turns
        );
        let row = |name: &str, ours: f64, theirs: f64, wanted: &str| {
            println!("{name:34} {ours:9.1} {theirs:9.1} {:6.2}  {wanted}", ours / theirs);
        };
        let wanted = format!(">= {}", aim.rate);
        row("64 KiB writes, MiB/s", self.rate.highest(), self.their_rate.highest(), &wanted);
        let wanted = format!("<= {}", aim.latency);
        for (name, ours, wanted) in
            [("immediate", &self.immediate, &wanted[..]), ("fetch-add", &self.fetch_add, "")]
        {
            let (quickest, typical) = (&self.theirs.quickest, &self.theirs.typical);
            let name = |kind| format!("8 B and {name}, µs, {kind}");
            row(&name("quickest"), ours.quickest.lowest(), quickest.lowest(), wanted);
            row(&name("median"), ours.typical.lowest(), typical.lowest(), "");
        }
    }
}

impl Trips {
    fn push(&mut self, (quickest, typical): (f64, f64)) {
        self.quickest.0.push(quickest);
        self.typical.0.push(typical);
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

/// Microseconds of half a round trip: the quickest and the median.
fn ping_pong(job: &mut Job, signals: SignalMode) -> Outcome<(f64, f64)> {
    let options = RdmaOptions { devices: vec![NIC.to_owned()], ..job.options(1) };
    let mut pair = job.pair(RdmaOptions { signals: Some(signals), ..options })?;
    job.barrier()?;
    let mut times = Vec::new();
    for trip in 1..=TRIPS {
        let start = Instant::now();
        if job.rank == 0 {
            pair.put(0, 4096, 8, Some(0))?;
            pair.wait(0, trip)?;
        } else {
            pair.wait(0, trip)?;
            pair.put(0, 4096, 8, Some(0))?;
        }
        times.push(start.elapsed());
    }
    pair.flush()?;
    job.barrier()?;
    times.sort_unstable();
    let half = |time: Duration| time.as_secs_f64() * 1e6 / 2.0;
    Ok((half(times[0]), half(times[times.len() / 2])))
}

/// Waits until perftest's server is there, which listens at its usual port.
fn until_it_listens() -> Outcome {
    let start = Instant::now();
    let listens = || -> Outcome<bool> {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
        let listens = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            let local =
                words.next().is_some_and(|address| address.ends_with(&format!(":{PORT:04X}")));
            local && words.nth(1) == Some("0A")
        };
        Ok(tables.into_iter().flatten().any(|table| table.lines().any(listens)))
    };
    while !listens()? {
        ensure!(start.elapsed() < Duration::from_secs(10), "perftest's server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Runs a program of perftest between the ranks; rank 0 gets the row of so many figures at least that it prints.
fn perftest(job: &mut Job, words: &[&str], columns: usize) -> Outcome<Option<Vec<f64>>> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["-F", "-d", NIC, "-x", "1", "-m", "4096"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if job.rank == 1 {
        let server = command.spawn()?;
        job.barrier()?;
        let output = server.wait_with_output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        job.barrier()?;
        return Ok(None);
    }
    job.barrier()?;
    until_it_listens()?;
    let output = command.arg("127.0.0.1").output()?;
    job.barrier()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures = |line: &str| line.split_whitespace().map(str::parse).collect::<Result<_, _>>();
    let rows = text.lines().filter_map(|line| figures(line).ok());
    let row = rows.into_iter().find(|row: &Vec<f64>| row.len() >= columns);
    row.map(Some).ok_or_else(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("{words:?} printed no figures:\n{text}{error}").into()
    })
}

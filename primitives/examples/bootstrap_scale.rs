//! How the bootstrap over TCP grows with the number of ranks: ranks as threads of a few processes on one machine.
//!
//! ```sh
//! cargo run --release -p warpmesh-primitives --example bootstrap_scale -- --processes 4 --ranks 16,64,256,1024
//! ```
//!
//! Columns: *up* is from when the ranks are told to begin until the last has joined; *gathered* until the last has the
//! result of one all_gather of 64 bytes a rank behind that; *all_gather* and *barrier* are one more of each, the median
//! of 5. The exponent is that of the power of the number of ranks that fits *gathered* best.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use warpmesh_primitives::bootstrap::{Bootstrap, TcpBootstrap, TcpRoot, UniqueId};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const TIMEOUT: Duration = Duration::from_secs(60);
const BYTES: usize = 64;
const ROUNDS: usize = 5;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("worker") => work(&args[1..]),
        _ => measure(&Options::read(&args)?),
    }
}

struct Options {
    processes: usize,
    worlds: Vec<usize>,
}

impl Options {
    fn read(args: &[String]) -> Outcome<Self> {
        let mut options =
            Self { processes: 4, worlds: vec![16, 32, 64, 128, 256, 512, 1024, 2048] };
        for pair in args.chunks(2) {
            match pair {
                [name, value] if name == "--processes" => options.processes = value.parse()?,
                [name, value] if name == "--ranks" => {
                    options.worlds = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                _ => return Err("bootstrap_scale [--processes N] [--ranks N,N,...]".into()),
            }
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Outcome<()> {
    println!(
        "# {} processes, {} cores, {BYTES} bytes a rank, times in ms",
        options.processes,
        cores()
    );
    println!(
        "#{:>7} {:>10} {:>10} {:>12} {:>10}",
        "ranks", "up", "gathered", "all_gather", "barrier"
    );
    let mut points = Vec::new();
    for &world in &options.worlds {
        let row = Job::start(world, options.processes.min(world))?.run()?;
        let [up, gathered, gather, barrier] = row.map(|time| time.as_secs_f64() * 1e3);
        println!("{world:>8} {up:>10.2} {gathered:>10.2} {gather:>12.2} {barrier:>10.2}");
        points.push((world as f64, gathered));
    }
    if points.len() > 1 {
        println!("# gathered grows with ranks ^ {:.2}", exponent(&points));
    }
    Ok(())
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The slope of the line through the logarithms, by least squares.
fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(n, t)| (n.ln(), t.ln())).collect();
    let count = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let covariance: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    covariance / logs.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}

/// The processes of one job. They end with their standard input.
struct Job {
    workers: Vec<Worker>,
}

struct Worker {
    child: Child,
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Job {
    fn start(world: usize, processes: usize) -> Outcome<Self> {
        let edge = |at: usize| (world * at / processes).to_string();
        let start = |at: usize| Worker::start(&[edge(at), edge(at + 1), world.to_string()]);
        Ok(Self { workers: (0..processes).map(start).collect::<Outcome<_>>()? })
    }

    fn run(mut self) -> Outcome<[Duration; 4]> {
        let id = self.workers[0].line()?;
        for worker in &mut self.workers[1..] {
            worker.say(&id)?;
            worker.line()?;
        }
        let begin = Instant::now();
        self.workers.iter_mut().try_for_each(|worker| worker.say("go"))?;
        let mut until = |_| -> Outcome<Duration> {
            self.workers.iter_mut().try_for_each(|worker| worker.line().map(drop))?;
            Ok(begin.elapsed())
        };
        let (up, gathered) = (until("up")?, until("gathered")?);
        let mut medians = [Duration::ZERO; 2];
        for median in &mut medians {
            let micros: u64 = self.workers[0].line()?.parse()?;
            *median = Duration::from_micros(micros);
        }
        Ok([up, gathered, medians[0], medians[1]])
    }
}

impl Worker {
    fn start(args: &[String]) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let tell = child.stdin.take().ok_or("no standard input")?;
        let hear = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Self { child, tell, hear })
    }

    fn say(&mut self, text: &str) -> Outcome<()> {
        Ok(writeln!(self.tell, "{text}")?)
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.hear.read_line(&mut line)? {
            0 => Err("a worker ended: see its message above".into()),
            _ => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ranks `first..end` of `world`.
fn work(args: &[String]) -> Outcome<()> {
    let [first, end, world] = args else { return Err("worker FIRST END WORLD".into()) };
    let (first, end, world): (usize, usize, usize) = (first.parse()?, end.parse()?, world.parse()?);
    let mut lines = std::io::stdin().lines();
    let mut root = None;
    let id = if first == 0 {
        let (bound, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
        root = Some(bound);
        println!("{id}");
        id
    } else {
        lines.next().ok_or("no id")??.parse()?
    };
    let ready = Arc::new(Barrier::new(end - first + 1));
    let (done, outcomes) = mpsc::channel();
    for rank in first..end {
        let (id, root, ready, done) = (id.clone(), root.take(), ready.clone(), done.clone());
        let ranks = move || {
            ready.wait();
            let outcome = be_rank(&id, root, rank, world, &done);
            if let Err(error) = outcome {
                let _ = done.send(Err(error));
            }
        };
        thread::Builder::new().stack_size(256 << 10).spawn(ranks)?;
    }
    if first != 0 {
        println!("ready");
    }
    lines.next().ok_or("no go")??;
    ready.wait();
    report(&outcomes, end - first, first == 0)
}

fn report(outcomes: &mpsc::Receiver<Outcome<u64>>, ranks: usize, root: bool) -> Outcome<()> {
    for step in ["up", "gathered"] {
        for _ in 0..ranks {
            outcomes.recv()??;
        }
        println!("{step}");
    }
    if root {
        for _ in ["all_gather", "barrier"] {
            println!("{}", outcomes.recv()??);
        }
    }
    // Ends the job when the launcher has read all.
    std::io::stdin().lines().for_each(drop);
    Ok(())
}

/// Sends when it is up, when it has gathered, and, as rank 0, the medians of what follows, µs.
fn be_rank(
    id: &UniqueId,
    root: Option<TcpRoot>,
    rank: usize,
    world: usize,
    done: &mpsc::Sender<Outcome<u64>>,
) -> Outcome<()> {
    let mut own = match root {
        Some(root) => TcpBootstrap::root(root, world, TIMEOUT)?,
        None => TcpBootstrap::join(id, rank, world, TIMEOUT)?,
    };
    done.send(Ok(0))?;
    let mine = [rank as u8; BYTES];
    let all = own.all_gather(&mine)?;
    if (0..world).any(|rank| all[rank] != [rank as u8; BYTES]) {
        return Err(format!("rank {rank} has gathered something else").into());
    }
    done.send(Ok(0))?;
    let gather = median(|| own.all_gather(&mine).map(drop))?;
    let barrier = median(|| own.barrier())?;
    if rank == 0 {
        done.send(Ok(gather))?;
        done.send(Ok(barrier))?;
    }
    own.barrier()?;
    Ok(())
}

fn median<E>(mut call: impl FnMut() -> Result<(), E>) -> Result<u64, E> {
    let mut times = [0; ROUNDS];
    for time in &mut times {
        let begin = Instant::now();
        call()?;
        *time = begin.elapsed().as_micros() as u64;
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

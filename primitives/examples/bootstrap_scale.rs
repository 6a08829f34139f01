//! How the bootstrap over TCP grows with the number of ranks: ranks as threads of a few processes on one machine.
//!
//! ```sh
//! cargo run --release -p warpmesh-primitives --example bootstrap_scale -- --processes 4 --ranks 16,256 --bytes 64
//! ```
//!
//! Columns: *up* is from when the ranks are told to begin until the last has joined; *gathered* until the last has the
//! result of one all_gather of 64 (or `--bytes`) bytes a rank behind that; *all_gather* and *barrier* are one more of each, the median
//! of 5; *root CPU* is what rank 0's thread computed and copied until it was up and had gathered. On one machine all ranks
//! share the cores, so times grow at least with the number of ranks, and gathered bytes with its square; the root's time
//! is what would be left if each rank had a machine of its own. The exponents are those of the powers of the number of
//! ranks that fit best.

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
    bytes: usize,
    worlds: Vec<usize>,
}

impl Options {
    fn read(args: &[String]) -> Outcome<Self> {
        let mut options =
            Self { processes: 4, bytes: 64, worlds: vec![16, 32, 64, 128, 256, 512, 1024, 2048] };
        for pair in args.chunks(2) {
            match pair {
                [name, value] if name == "--processes" => options.processes = value.parse()?,
                [name, value] if name == "--bytes" => options.bytes = value.parse()?,
                [name, value] if name == "--ranks" => {
                    options.worlds = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                _ => {
                    return Err(
                        "bootstrap_scale [--processes N] [--ranks N,N,...] [--bytes N]".into()
                    );
                }
            }
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Outcome<()> {
    println!(
        "# {} processes, {} cores, {} bytes a rank, times in ms",
        options.processes,
        cores(),
        options.bytes
    );
    let head = ["ranks", "up", "gathered", "root CPU", "all_gather", "barrier"];
    let head: Vec<String> = head.iter().map(|name| format!("{name:>11}")).collect();
    println!("#{}", head.join(" "));
    let mut points: [Vec<(f64, f64)>; 3] = Default::default();
    for &world in &options.worlds {
        let row = Job::start(world, options)?.run()?;
        let row = row.map(|time| time.as_secs_f64() * 1e3);
        let cells: Vec<String> = row.iter().map(|time| format!("{time:>11.2}")).collect();
        println!(" {world:>11} {}", cells.join(" "));
        for (points, time) in points.iter_mut().zip(row) {
            points.push((world as f64, time));
        }
    }
    if options.worlds.len() > 1 {
        let [up, gathered, root] = points.each_ref().map(|points| exponent(points));
        println!("# up grows with ranks ^ {up:.2}, gathered ^ {gathered:.2}, root CPU ^ {root:.2}");
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
    fn start(world: usize, options: &Options) -> Outcome<Self> {
        let processes = options.processes.clamp(1, world);
        let edge = |at: usize| world * at / processes;
        let start = |at: usize| {
            let args = [edge(at), edge(at + 1), world, options.bytes];
            Worker::start(&args.map(|number| number.to_string()))
        };
        Ok(Self { workers: (0..processes).map(start).collect::<Outcome<_>>()? })
    }

    fn run(mut self) -> Outcome<[Duration; 5]> {
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
        let mut root = [Duration::ZERO; 3];
        for time in &mut root {
            *time = Duration::from_micros(self.workers[0].line()?.parse()?);
        }
        Ok([up, gathered, root[0], root[1], root[2]])
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
    let numbers: Vec<usize> = args.iter().map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let [first, end, world, bytes] = numbers[..] else {
        return Err("worker FIRST END WORLD BYTES".into());
    };
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
            let outcome = be_rank(&id, root, (rank, world, bytes), &done);
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
        for _ in ["root CPU", "all_gather", "barrier"] {
            println!("{}", outcomes.recv()??);
        }
    }
    // Ends the job when the launcher has read all.
    std::io::stdin().lines().for_each(drop);
    Ok(())
}

/// Sends when it is up, when it has gathered, and, as rank 0, its CPU time so far and the medians of
/// what follows, µs.
fn be_rank(
    id: &UniqueId,
    root: Option<TcpRoot>,
    (rank, world, bytes): (usize, usize, usize),
    done: &mpsc::Sender<Outcome<u64>>,
) -> Outcome<()> {
    let mut own = match root {
        Some(root) => TcpBootstrap::root(root, world, TIMEOUT)?,
        None => TcpBootstrap::join(id, rank, world, TIMEOUT)?,
    };
    done.send(Ok(0))?;
    let mine = vec![rank as u8; bytes];
    let all = own.all_gather(&mine)?;
    if (0..world).any(|rank| all[rank] != vec![rank as u8; bytes]) {
        return Err(format!("rank {rank} has gathered something else").into());
    }
    done.send(Ok(0))?;
    let computed = cpu_time()?;
    let gather = median(|| own.all_gather(&mine).map(drop))?;
    let barrier = median(|| own.barrier())?;
    if rank == 0 {
        done.send(Ok(computed))?;
        done.send(Ok(gather))?;
        done.send(Ok(barrier))?;
    }
    own.barrier()?;
    Ok(())
}

/// Of this thread, µs.
fn cpu_time() -> Outcome<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: u64 = stat.split(' ').next().ok_or("no time in schedstat")?.parse()?;
    Ok(nanos / 1000)
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

//! Latency and bandwidth of the TCP transport between two processes of this machine, in the form of the OSU
//! micro-benchmarks: `cargo run --release -p warpmesh-primitives --example net_ping`.

use std::error::Error;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warpmesh_primitives::bootstrap::{Bootstrap, TcpBootstrap, TcpRoot, UniqueId};
use warpmesh_primitives::net::fifo::{Bell, Fifo};
use warpmesh_primitives::net::proxy::{Port, Proxy, ProxyOptions};
use warpmesh_primitives::net::tcp::{TcpOptions, TcpTransport};
use warpmesh_primitives::net::{Region, Span, Transfer, Transport};

const TIMEOUT: Duration = Duration::from_secs(20);
const ID: &str = "WARPMESH_UNIQUE_ID";
const LATENCY: [(u64, u32); 4] =
    [(8, 20_000), (4 << 10, 10_000), (64 << 10, 4_000), (1 << 20, 500)];
const BANDWIDTH: [(u64, u32); 4] =
    [(4 << 10, 20_000), (64 << 10, 8_000), (1 << 20, 1_000), (64 << 20, 24)];
/// Transfers in flight, as osu_bw has them.
const WINDOW: u32 = 64;
const BATCHES: u32 = 50;

#[derive(Debug)]
struct Memory(Vec<std::cell::UnsafeCell<u8>>);

// SAFETY: the bytes are only reached by raw pointers, from one thread of this process.
unsafe impl Sync for Memory {}

// SAFETY: the vector is not touched until it is dropped; `UnsafeCell` allows changes behind it.
unsafe impl Region for Memory {
    fn address(&self) -> *mut u8 {
        self.0.as_ptr().cast::<u8>().cast_mut()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// One end of the line.
struct End {
    transport: TcpTransport,
    peer: usize,
    posted: u64,
    seen: u64,
}

impl End {
    fn send(&mut self, bytes: u64, signal: bool) -> Result<(), Box<dyn Error>> {
        let span = Span::default();
        let transfer = Transfer { from: span, to: span, bytes, signal: signal.then_some(0) };
        self.posted += 1;
        Ok(self.transport.post(self.peer, &transfer)?)
    }

    fn receive(&mut self) -> Result<(), Box<dyn Error>> {
        self.seen += 1;
        while self.transport.signals().seen(0) < self.seen {
            if !self.transport.progress()? {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Box<dyn Error>> {
        while self.transport.sent(self.peer) < self.posted {
            self.transport.progress()?;
        }
        Ok(())
    }

    /// Microseconds one way: the best of many short runs, since others may use the machine.
    fn latency(&mut self, bytes: u64, rounds: u32) -> Result<f64, Box<dyn Error>> {
        let mut best = f64::MAX;
        for _ in 0..BATCHES {
            let begin = Instant::now();
            for _ in 0..rounds / BATCHES {
                if self.peer == 1 {
                    self.send(bytes, true)?;
                    self.receive()?;
                } else {
                    self.receive()?;
                    self.send(bytes, true)?;
                }
            }
            let rounds = f64::from(2 * (rounds / BATCHES));
            best = best.min(begin.elapsed().as_secs_f64() * 1e6 / rounds);
        }
        self.drain()?;
        Ok(best)
    }

    /// Megabytes per second one way: the best window.
    fn bandwidth(&mut self, bytes: u64, rounds: u32) -> Result<f64, Box<dyn Error>> {
        let window = WINDOW.min(rounds / 4);
        let mut best: f64 = 0.0;
        for _ in 0..rounds / window {
            let begin = Instant::now();
            if self.peer == 1 {
                (0..window).try_for_each(|k| self.send(bytes, k + 1 == window))?;
                self.receive()?;
            } else {
                self.receive()?;
                self.send(0, true)?;
            }
            let counted = f64::from(window) * bytes as f64;
            best = best.max(counted / begin.elapsed().as_secs_f64() / 1e6);
        }
        self.drain()?;
        Ok(best)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(id) = std::env::var(ID) {
        return run(TcpBootstrap::join(&id.parse::<UniqueId>()?, 1, 2, TIMEOUT)?);
    }
    let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
    let mut child: Child =
        Command::new(std::env::current_exe()?).env(ID, id.to_string()).spawn()?;
    let outcome = TcpBootstrap::root(root, 2, TIMEOUT).map_err(Into::into).and_then(run);
    if outcome.is_err() {
        child.kill()?;
    }
    child.wait()?;
    outcome
}

fn run(mut bootstrap: TcpBootstrap) -> Result<(), Box<dyn Error>> {
    let peer = 1 - bootstrap.rank();
    let variable = |name| std::env::var(name).ok();
    let options = TcpOptions {
        buffer: variable("NET_PING_BUFFER").and_then(|bytes| bytes.parse().ok()),
        congestion: variable("NET_PING_CONGESTION"),
        ..TcpOptions::default()
    };
    let mut transport = TcpTransport::new(&mut bootstrap, 1, &options)?;
    let memory = Memory((0..64 << 20).map(|_| 1.into()).collect());
    let described = transport.register(0, Arc::new(memory))?;
    transport.connect(&[peer], TIMEOUT)?;
    transport.learn(peer, 0, &bootstrap.all_gather(&described)?[peer])?;
    let mut end = End { transport, peer, posted: 0, seen: 0 };
    for (bytes, rounds) in LATENCY {
        let micros = end.latency(bytes, rounds)?;
        if peer == 1 {
            println!("latency {bytes:>9} bytes  {micros:>9.2} us");
        }
    }
    for (bytes, rounds) in BANDWIDTH {
        let speed = end.bandwidth(bytes, rounds)?;
        if peer == 1 {
            println!("bandwidth {bytes:>9} bytes  {speed:>9.0} MB/s");
        }
    }
    bootstrap.barrier()?;
    if peer == 1 {
        let micros = through_a_proxy(end.transport)?;
        println!("a proxy takes a trigger, and says that it is done  {micros:>6.2} us");
    }
    bootstrap.barrier()?;
    Ok(())
}

/// Microseconds from a push until it is seen that the proxy has carried it out: both ways through the FIFO, and a look
/// at the network.
fn through_a_proxy(transport: TcpTransport) -> Result<f64, Box<dyn Error>> {
    let bell = Bell::new()?;
    let fifo = Fifo::new(64, bell.clone())?;
    let port = Port { peer: 1, ..Port::default() };
    let options = ProxyOptions::default();
    let proxy = Proxy::start(Box::new(transport), vec![port], vec![fifo.clone()], bell, &options)?;
    let channel = proxy.channel(&fifo, 0, 0, TIMEOUT);
    let mut best = f64::MAX;
    for _ in 0..BATCHES {
        let begin = Instant::now();
        (0..1_000).try_for_each(|_| channel.flush())?;
        best = best.min(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}

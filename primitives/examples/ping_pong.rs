//! Two processes, one channel: rank 0 sends a message and waits for it to come back.
//!
//! ```sh
//! cargo run --release -p warpmesh-primitives --example ping_pong
//! ```
//!
//! The process starts its peer itself. Both forms are timed: put and signal, and packets.

use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use warpmesh_primitives::bootstrap::{TcpBootstrap, TcpRoot, UniqueId};
use warpmesh_primitives::channel::MemoryChannel;
use warpmesh_primitives::node::Node;

const TIMEOUT: Duration = Duration::from_secs(10);
const TRIPS: u32 = 20_000;
/// Packets lie behind the plain messages, in two ranges that are used in turn.
const PACKETS: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::var("PING_PONG_ID") {
        Ok(id) => pong(TcpBootstrap::join(&id.parse::<UniqueId>()?, 1, 2, TIMEOUT)?),
        Err(_) => {
            let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0))?;
            let mut peer = Command::new(std::env::current_exe()?)
                .env("PING_PONG_ID", id.to_string())
                .spawn()?;
            ping(TcpBootstrap::root(root, 2, TIMEOUT)?)?;
            Ok(peer.wait().map(drop)?)
        }
    }
}

fn channel(mut bootstrap: TcpBootstrap, peer: usize) -> Result<MemoryChannel, Box<dyn Error>> {
    let node = Node::connect(&mut bootstrap, TIMEOUT)?;
    let memory = node.share(3 * PACKETS, false)?;
    Ok(MemoryChannel::new(&node, &memory, peer, 0)?)
}

fn ping(bootstrap: TcpBootstrap) -> Result<(), Box<dyn Error>> {
    let mut channel = channel(bootstrap, 1)?;
    let message = *b"what goes around comes around...";
    let mut back = [0; 32];
    let start = Instant::now();
    for _ in 0..TRIPS {
        channel.put(0, &message)?;
        channel.signal();
        channel.wait()?;
    }
    channel.read(0, &mut back)?;
    println!("put and signal: {:?} a round trip", start.elapsed() / TRIPS);
    assert_eq!(back, message);

    let start = Instant::now();
    for trip in 0..TRIPS as usize {
        let offset = PACKETS * (1 + trip % 2);
        channel.put_packets(offset, &message)?;
        channel.get_packets(offset, &mut back)?;
    }
    println!("packets:        {:?} a round trip", start.elapsed() / TRIPS);
    assert_eq!(back, message);
    Ok(())
}

fn pong(bootstrap: TcpBootstrap) -> Result<(), Box<dyn Error>> {
    let mut channel = channel(bootstrap, 0)?;
    let mut message = [0; 32];
    for _ in 0..TRIPS {
        channel.wait()?;
        channel.read(0, &mut message)?;
        channel.put(0, &message)?;
        channel.signal();
    }
    for trip in 0..TRIPS as usize {
        let offset = PACKETS * (1 + trip % 2);
        channel.get_packets(offset, &mut message)?;
        channel.put_packets(offset, &message)?;
    }
    Ok(())
}

//! What goes over the cable, as the NICs and interfaces count it.

use std::fmt;
use std::time::Duration;

use warpmesh::primitives::net::rdma::{RdmaOptions, SignalMode};
use warpmesh::{Communicator, ReduceOp};

use super::ensure;
use super::harness::{Outcome, counter};
use super::ranks::Job;

/// 8 MiB of floats, all-reduced once: counters are exact.
const COUNT: usize = 2 << 20;

/// What is all-reduced before that, so that ranks are connected.
const FIRST: usize = COUNT / 8;

/// With two hosts, each has to send 2 (n - 1) / n of the data: its sums of one half, and the result of the other.
const LEAST: u64 = 4 * COUNT as u64;

/// Of the least, what may be sent.
const MOST: f64 = 1.02;

/// The heads of the packets within a write: Ethernet, IPv4, UDP, InfiniBand's base transport header, and its checksum.
/// Those of the first packet of a write (16 bytes more) and of acknowledgements (4) are longer, so that
/// the data that is worked out with it is rather too much than too little.
const HEADS: u64 = 14 + 20 + 8 + 12 + 4;

/// The end of the cable at each host, and its NIC's counter of packets.
const ENDS: [(&str, &str); 2] = [("va", "rxe1"), ("vb", "rxe2")];

/// Counters of a NIC that count when it sends again what was sent.
const AGAIN: [&str; 3] = ["completer_retry_err", "rcvd_rnr_err", "rcvd_seq_err"];

/// Measurements at most, until one is good. What a plan sends too much it sends each time; but where others use the
/// processors a call takes longer, and ranks that wait tell each other that they live.
const TURNS: usize = 4;

/// What one host has sent, by its interface and by its NIC.
#[derive(Clone, Copy)]
struct Sent {
    bytes: u64,
    packets: u64,
    nic_packets: u64,
    again: u64,
}

impl Sent {
    fn read(host: usize) -> Outcome<Self> {
        let (interface, nic) = ENDS[host];
        let of_interface = |name| counter(&format!("/sys/class/net/{interface}/statistics/{name}"));
        let of_nic =
            |name| counter(&format!("/sys/class/infiniband/{nic}/ports/1/hw_counters/{name}"));
        let again = AGAIN.into_iter().map(of_nic).sum::<Outcome<u64>>()?;
        Ok(Self {
            bytes: of_interface("tx_bytes")?,
            packets: of_interface("tx_packets")?,
            nic_packets: of_nic("sent_pkts")?,
            again,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            packets: self.packets - before.packets,
            nic_packets: self.nic_packets - before.nic_packets,
            again: self.again - before.again,
        }
    }

    /// Of the least that has to be sent: with the packets' heads.
    fn raw(&self) -> f64 {
        self.bytes as f64 / LEAST as f64
    }

    /// The same, of data alone.
    fn payload(&self) -> f64 {
        (self.bytes - HEADS * self.packets) as f64 / LEAST as f64
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, packets, nic_packets, again } = self;
        let (raw, payload) = (self.raw(), self.payload());
        write!(
            f,
            "{raw:.4} of the least with heads, {payload:.4} without: {bytes} bytes, {packets} packets \
             ({nic_packets} by the NIC's counter; {again} times sent again)"
        )
    }
}

/// What both hosts send for an all-reduce of registered memory, or of other.
fn sent(job: &mut Job, comm: &mut Communicator, registered: bool) -> Outcome<[Sent; 2]> {
    let mut shared;
    let mut plain;
    let data: &mut [f32] = if registered {
        shared = comm.alloc::<f32>(COUNT)?;
        &mut shared
    } else {
        plain = vec![0.0; COUNT];
        &mut plain
    };
    data.fill(job.rank as f32);
    comm.all_reduce(&mut data[..FIRST], ReduceOp::Sum)?;
    data[..FIRST].fill(job.rank as f32);
    job.barrier()?;
    let before = [Sent::read(0)?, Sent::read(1)?];
    job.barrier()?;
    comm.all_reduce(data, ReduceOp::Sum)?;
    ensure!(data.iter().all(|sum| *sum == 6.0), "a wrong sum");
    job.barrier()?;
    std::thread::sleep(Duration::from_millis(50)); // until the last is acknowledged
    let sent = [Sent::read(0)?.since(before[0]), Sent::read(1)?.since(before[1])];
    job.barrier()?;
    Ok(sent)
}

/// All-reduces with packets of so much data at most; of what `count` says, there may be [`MOST`]. Ways of signals come with the kinds of
/// memory that are reduced by them: registered or not.
fn measure(
    job: &mut Job,
    mtu: u32,
    ways: [(SignalMode, &[bool]); 2],
    count: impl Fn(&Sent) -> f64,
) -> Outcome {
    for (signals, kinds) in ways {
        // NICs that wait long for answers: where others use the processors these come late, and what is sent again counts.
        let options = RdmaOptions { mtu: Some(mtu), timeout: 20, ..job.signals(signals) };
        let mut comm = job.communicator(options)?;
        for &registered in kinds {
            let kind = if registered { "registered" } else { "other" };
            say(job, &format!("MTU {mtu}, {signals:?}, {kind} memory"));
            let all = sent_at_best(job, &mut comm, registered, &count)?;
            for (host, sent) in all.iter().enumerate() {
                let (fits, complete) = (count(sent) <= MOST, sent.payload() >= 1.0);
                ensure!(fits, "host {host} sends too much: {sent}");
                // Less cannot be: the counters would not count what is sent.
                ensure!(complete, "host {host}: not all is counted: {sent}");
                let packets = sent.nic_packets.abs_diff(sent.packets);
                ensure!(packets * 50 <= sent.packets, "host {host}: counters differ: {sent}");
            }
        }
    }
    Ok(())
}

/// The first measurement that is good, or the last.
fn sent_at_best(
    job: &mut Job,
    comm: &mut Communicator,
    registered: bool,
    count: impl Fn(&Sent) -> f64,
) -> Outcome<[Sent; 2]> {
    let mut turn = 1;
    loop {
        let all = sent(job, comm, registered)?;
        for (host, sent) in all.iter().enumerate() {
            say(job, &format!("  host {host}: {sent}"));
        }
        let done = turn == TURNS || all.iter().all(|sent| count(sent) <= MOST);
        // Rank 0 says it for all.
        if job.gather(&[u8::from(done)])?[0] == [1] {
            return Ok(all);
        }
        turn += 1;
    }
}

/// Once for all ranks.
fn say(job: &Job, text: &str) {
    if job.rank == 0 {
        println!("    {text}");
    }
}

/// As networks for RDMA are set up, with packets of 4096 bytes: heads and all.
pub fn all_reduce_moves_no_more_than_it_must(job: &mut Job) -> Outcome {
    let ways = [SignalMode::FetchAdd, SignalMode::Immediate].map(|way| (way, &[true, false][..]));
    measure(job, 4096, ways, Sent::raw)
}

/// With packets of 1024 bytes, as Ethernet's usual MTU has them, the heads alone are 5.7 %: the data counts. Each way of signals and each
/// kind of memory once, since plans know nothing of packets.
pub fn packets_of_1024_bytes_carry_no_more_than_they_must(job: &mut Job) -> Outcome {
    let ways = [(SignalMode::FetchAdd, &[true][..]), (SignalMode::Immediate, &[false][..])];
    measure(job, 1024, ways, Sent::payload)
}

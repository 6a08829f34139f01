//! The transport's side of staging: records that came, copies that landed, credits, and what waits to be sent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::connection::{Connection, words};
use super::super::queue::SendQueue;
use super::super::reach::Registered;
use super::super::wire::Credit;
use super::super::{Peer, RdmaTransport};
use super::{Credits, Inlet, RECORD};
use crate::net::Signals;
use crate::sys::verbs::{Local, Op, Work};

/// How long credits stay away before it is found out whether the peer is there.
const PROBE: Duration = Duration::from_millis(100);

/// What a rank needs to serve a peer, besides that.
struct Service<'a> {
    signals: &'a Signals,
    credits: &'a Credits,
    /// Each NIC's key for these.
    keys: &'a [u32],
}

impl RdmaTransport {
    /// Goes on with all peers that stage; whether anything moved.
    pub(in crate::net::rdma) fn serve_staged(&mut self) -> bool {
        let (mut moved, mut stopped) = (false, Vec::new());
        for number in &self.staged {
            let Some(peer) = self.peers.get_mut(number).filter(|peer| peer.fault.is_none()) else {
                continue;
            };
            let service =
                Service { signals: &self.signals, credits: &self.credits, keys: &self.credit_keys };
            match peer.serve_staged(*number, &service) {
                Ok(any) => moved |= any,
                Err((lane, cause)) => stopped.push((*number, lane, cause)),
            }
        }
        for (number, lane, cause) in stopped {
            self.break_one(number, lane, &cause);
        }
        for at in 0..self.staged.len() {
            let number = self.staged[at];
            if self.peers.get(&number).is_some_and(|peer| peer.connection.is_waiting()) {
                self.put_in_backlog(number);
            }
        }
        moved
    }
}

impl Peer {
    /// Goes on with one peer. The error names the lane.
    fn serve_staged(&mut self, number: usize, own: &Service<'_>) -> Result<bool, (usize, String)> {
        let Some(staging) = &mut self.staging else { return Ok(false) };
        let (lanes, all) = (self.connection.lanes.len(), own.keys.len());
        let mut moved = false;
        if let Some(inlet) = &mut staging.inlet {
            moved |= land(inlet, own.signals, (lanes, all)).map_err(|cause| (0, cause))?;
            for (lane, free) in inlet.credits() {
                let from = own.credits.tell(number, lane, free);
                tell(&mut self.connection, self.credits[lane], lane, (from, own.keys[lane]));
                moved = true;
            }
        }
        let told = |lane| own.credits.told(number, lane);
        let pumped = staging.outlet.pump(&mut self.connection, told);
        moved |= pumped.map_err(|stopped| (stopped.lane, stopped.cause))?;
        if moved || staging.outlet.is_empty() || self.connection.is_busy() {
            staging.waits = None;
        } else if staging.waits.get_or_insert_with(Instant::now).elapsed() >= PROBE {
            // Nothing is under way but credits that have to come, and a NIC notices that a peer has gone only when it sends.
            staging.waits = None;
            for (lane, credit) in self.credits.iter().enumerate() {
                let from = own.credits.again(number, lane);
                tell(&mut self.connection, *credit, lane, (from, own.keys[lane]));
            }
        }
        let failed = |(lane, error)| (lane, format!("posting requests: {error}"));
        self.connection.flush_idle().map_err(failed)?;
        Ok(moved)
    }

    /// Takes immediate data of a connection that stages, if it is a record or a signal behind one; else it is for the caller.
    pub(in crate::net::rdma) fn takes(
        &mut self,
        nic: usize,
        number: u32,
        memories: &BTreeMap<u32, Registered>,
    ) -> Result<bool, String> {
        let inlet = self.staging.as_mut().and_then(|staging| staging.inlet.as_mut());
        let Some(inlet) = inlet else { return Ok(false) };
        if number != RECORD {
            return Ok(inlet.holds(number, nic));
        }
        let region = |number| memories.get(&number).map(|memory| memory.region.clone());
        inlet.record(nic, region).map(|()| true)
    }

    /// Waits for what has come to be where it belongs, and counts the signals behind it: the connection is at its end.
    pub(in crate::net::rdma) fn settle(&mut self, signals: &Signals, nics: usize) {
        let lanes = self.connection.lanes.len();
        if let Some(inlet) = self.staging.as_mut().and_then(|staging| staging.inlet.as_mut()) {
            inlet.finish();
            let _ = land(inlet, signals, (lanes, nics));
        }
    }
}

/// Writes a peer's word of a lane from this rank's.
fn tell(
    connection: &mut Connection<SendQueue>,
    to: Credit,
    lane: usize,
    (address, key): (u64, u32),
) {
    let (local, inline) = (Local { address, bytes: 8, key }, connection.is_inline(8));
    let (op, remote, key) = (Op::Write, to.address, to.key);
    connection.push(
        lane,
        None,
        0,
        Work { id: 0, op, local, remote, key, signalled: false, inline },
    );
}

fn land(
    inlet: &mut Inlet,
    signals: &Signals,
    (lanes, all): (usize, usize),
) -> Result<bool, String> {
    // The copies were seen to be done, so their data is behind this release.
    let count = |semaphore, lane| {
        words(lane, lanes, all).for_each(|word| signals.count(semaphore, word));
    };
    inlet.land(count)
}

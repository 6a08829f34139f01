//! What breaks: requests, queue pairs, ports, peers. Each connection is reported once.

use std::time::Instant;

use super::{IDLE, LOOK, MOST_POLLS, Peer, RECEIVE, RdmaTransport, faults};
use crate::net::NetFault;
use crate::sys::verbs::{Event, Owner, Wc};

impl RdmaTransport {
    /// Takes all that has completed by now, as far as that ends, and then what has failed.
    ///
    /// Whatever a peer has sent before it failed or went counts: its last signals may be among what was not polled yet, on another NIC.
    #[cold]
    pub(super) fn take_all(&mut self) {
        for nic in 0..self.nics.len() {
            let _ = (0..MOST_POLLS).all(|_| self.poll(nic));
        }
        for (nic, number, wc) in std::mem::take(&mut self.failing) {
            if self.peers.get(&number).is_some_and(|peer| peer.fault.is_none()) {
                self.failed(nic, number, &wc);
            }
        }
    }

    fn failed(&mut self, nic: usize, number: usize, wc: &Wc) {
        // Something else may be behind it: an event of the queue pair, or a port that is down.
        self.look();
        self.nics[nic].look_at_port();
        if let Some(peer) = self.peers.get(&number) {
            let receive = (wc.wr_id >> 32) as u32 & RECEIVE != 0;
            let cause = faults::completion(&self.verbs, wc, receive, peer.mtu);
            self.break_one(number, nic, &cause);
        }
    }

    /// A connection is of no use any more. The first cause counts.
    pub(super) fn break_one(&mut self, number: usize, nic: usize, cause: &str) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        if peer.fault.is_some() {
            return;
        }
        let via = &self.nics[nic];
        let down = via.down.map(|since| {
            format!(
                " (the port is down since {:?}: look at its cable, its interface and the switch)",
                since.elapsed()
            )
        });
        let cause = cause.to_owned() + &down.unwrap_or_default();
        let fault = NetFault { peer: number, via: via.via.clone(), cause };
        peer.connection.lanes.iter_mut().for_each(|lane| lane.queue.0.stop());
        peer.settle(&self.signals, self.nics.len());
        let fault = peer.fault.insert(fault).clone();
        self.faults.push_back(fault);
    }

    /// All connections over a NIC are of no use any more.
    pub(super) fn break_all(&mut self, nic: usize, cause: &str) {
        let over = |peer: &Peer| nic < peer.connection.lanes.len();
        let over: Vec<_> =
            self.peers.iter().filter(|(_, peer)| over(peer)).map(|(number, _)| *number).collect();
        over.into_iter().for_each(|number| self.break_one(number, nic, cause));
    }

    /// Looks at the NICs' events now and then, while there is nothing else to do.
    pub(super) fn look_sometimes(&mut self) {
        self.idle += 1;
        if self.idle >= IDLE {
            self.idle = 0;
            if self.looked.elapsed() >= LOOK {
                self.look_for_the_gone();
                self.look();
            }
        }
    }

    fn look_for_the_gone(&mut self) {
        let gone = self.exchange.gone();
        if !gone.is_empty() {
            self.take_all();
        }
        for NetFault { peer, cause, .. } in gone {
            self.break_one(peer, 0, &cause);
        }
    }

    fn look(&mut self) {
        self.looked = Instant::now();
        for nic in 0..self.nics.len() {
            while let Ok(Some(event)) = self.nics[nic].device.event() {
                self.happened(nic, &event);
            }
            let down =
                self.nics[nic].down.filter(|since| since.elapsed() >= self.options.port_grace);
            if down.is_some() {
                self.break_all(nic, "no link");
            }
        }
    }

    fn happened(&mut self, nic: usize, event: &Event) {
        match event.owner {
            Owner::Device => {
                let advice = "look at the kernel's log (dmesg)";
                self.break_all(nic, &format!("the NIC failed: {}; {advice}", event.text));
            }
            Owner::Port { number, up } if number == self.nics[nic].port => {
                self.nics[nic].down = if up { None } else { Some(Instant::now()) };
            }
            Owner::Queue(identity) => {
                let is = |peer: &Peer| peer.has_queue(identity);
                let peer = self.peers.iter().find(|(_, peer)| is(peer)).map(|(number, _)| *number);
                let cause = format!(
                    "{}: the NIC refused what the peer sent; it wrote to memory that was taken back (forget), or is \
                     of another version",
                    event.text
                );
                peer.into_iter().for_each(|number| self.break_one(number, nic, &cause));
            }
            Owner::Port { .. } | Owner::Other => {}
        }
    }
}

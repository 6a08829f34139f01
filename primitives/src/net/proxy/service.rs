//! What the proxy's thread does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_current_timer_slack};

use super::{Left, Port, PortError, ProxyOptions, Request, Shared, Stopped, lock};
use crate::net::fifo::{Bell, Consumer, Fifo, Trigger, What};
use crate::net::{NetError, NetFault, Span, Transfer, Transport};

/// Triggers that are taken from one FIFO before it is the next one's turn, and the network's.
const TURN: usize = 64;
/// Rounds between two looks of a busy proxy for requests and for its end.
const LOOKS: u32 = 256;
/// The longest sleep where all producers ring: it bounds what a mistake would cost.
const LONG_SLICE: Duration = Duration::from_millis(100);
/// A sleep is this part of the time since the last work.
const PART: u32 = 16;
/// The longest sleep while the last transfers leave.
const DRAIN_SLICE: Duration = Duration::from_millis(1);

/// The thread's own.
pub(super) struct Service {
    desk: Desk,
    queues: Vec<Queue>,
    /// By peer: how many transfers the transport will have sent when all that were posted are.
    posted: BTreeMap<usize, u64>,
    /// Peers whose connection broke, and ports that have failed.
    broken: BTreeSet<usize>,
    dead: BTreeSet<u16>,
    bell: Bell,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Request>,
    options: ProxyOptions,
}

/// What requests of others work on.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) transport: Box<dyn Transport>,
    pub(super) ports: Vec<Port>,
}

/// A FIFO, and its triggers that were taken and do not count as done, in order.
struct Queue {
    consumer: Consumer,
    waiting: VecDeque<Waiting>,
}

/// Done when `peer` has sent so many transfers; 0 for nothing to send.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    peer: usize,
    count: u64,
}

/// Time without work.
struct Idle {
    since: Instant,
    /// The transport did not sleep, though there was nothing to do: it cannot say when there will be.
    restless: bool,
}

impl Idle {
    fn new() -> Self {
        Self { since: Instant::now(), restless: false }
    }
}

impl Service {
    pub(super) fn new(
        desk: Desk,
        fifos: Vec<Fifo>,
        bell: Bell,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Request>,
        options: ProxyOptions,
    ) -> Self {
        let queue =
            |fifo| Queue { consumer: Consumer::new(fifo), waiting: VecDeque::with_capacity(TURN) };
        Self {
            desk,
            queues: fifos.into_iter().map(queue).collect(),
            posted: BTreeMap::new(),
            broken: BTreeSet::new(),
            dead: BTreeSet::new(),
            bell,
            shared,
            inbox,
            options,
        }
    }

    pub(super) fn run(mut self) -> Stopped {
        self.settle_in();
        let (mut idle, mut looks) = (Idle::new(), 0u32);
        loop {
            looks = looks.wrapping_add(1);
            let worked = self.work();
            if worked && !looks.is_multiple_of(LOOKS) {
                idle.since = Instant::now();
                continue;
            }
            if self.shared.stop.load(Ordering::Acquire) {
                return self.drain();
            }
            if self.serve_requests() || worked {
                idle = Idle::new();
            } else {
                self.rest(&mut idle);
            }
        }
    }

    fn settle_in(&self) {
        // A sleep of microseconds would otherwise take fifty more.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let Ok(allowed) = sched_getaffinity(None) else { return };
        let mut set = CpuSet::new();
        let known = self.options.cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU);
        known.filter(|&&cpu| allowed.is_set(cpu)).for_each(|&cpu| set.set(cpu));
        if set.count() > 0
            && let Err(errno) = sched_setaffinity(None, &set)
        {
            tracing::warn!("a proxy cannot stay on CPUs {:?}: {errno}", self.options.cpus);
        }
    }

    /// Whether there was anything to do.
    #[inline]
    fn work(&mut self) -> bool {
        let mut worked = false;
        for at in 0..self.queues.len() {
            for _ in 0..TURN {
                let Some(trigger) = self.queues[at].consumer.poll() else {
                    break;
                };
                worked = true;
                let waiting = self.carry_out(&trigger);
                self.queues[at].waiting.push_back(waiting);
            }
        }
        match self.desk.transport.progress() {
            Ok(moved) => worked |= moved,
            Err(fault) => {
                worked = true;
                self.break_ports(&fault);
            }
        }
        self.count_done();
        worked
    }

    #[inline]
    fn carry_out(&mut self, trigger: &Trigger) -> Waiting {
        if !self.dead.is_empty() && self.dead.contains(&trigger.port) {
            return Waiting::default();
        }
        self.post(trigger).unwrap_or_else(|cause| {
            let port = trigger.port;
            let peer = self.desk.ports.get(usize::from(port)).map(|port| port.peer);
            self.fail(PortError { port, peer, trigger: Some(*trigger), cause });
            Waiting::default()
        })
    }

    #[inline]
    fn post(&mut self, trigger: &Trigger) -> Result<Waiting, NetError> {
        let Desk { transport, ports } = &mut self.desk;
        let Some(port) = ports.get(usize::from(trigger.port)) else {
            let what = format!("carry out a trigger of a proxy that has {} ports", ports.len());
            return Err(NetError::System { what, cause: "there is no such port".to_owned() });
        };
        let bytes = if trigger.what.has(What::PUT) { trigger.bytes } else { 0 };
        let signal = trigger.what.has(What::SIGNAL).then_some(port.semaphore);
        if bytes == 0 && signal.is_none() {
            return Ok(Waiting::default());
        }
        let peer = port.peer;
        let at = |span: Span, offset| Span { offset: span.offset.saturating_add(offset), ..span };
        let (from, to) = (at(port.from, trigger.from), at(port.to, trigger.to));
        let count = self.posted.entry(peer).or_insert_with(|| transport.sent(peer));
        transport.post(peer, &Transfer { from, to, bytes, signal })?;
        *count += 1;
        Ok(Waiting { peer, count: *count })
    }

    /// Publishes what has left its source, in each FIFO's order.
    #[inline]
    fn count_done(&mut self) {
        let (transport, broken) = (&self.desk.transport, &self.broken);
        for Queue { consumer, waiting } in &mut self.queues {
            while let Some(&Waiting { peer, count }) = waiting.front() {
                if transport.sent(peer) < count && !broken.contains(&peer) {
                    break;
                }
                waiting.pop_front();
            }
            consumer.publish_done(consumer.polled() - waiting.len() as u64);
        }
    }

    #[cold]
    fn fail(&mut self, error: PortError) {
        self.dead.insert(error.port);
        self.shared.fail(error);
    }

    #[cold]
    fn break_ports(&mut self, fault: &NetFault) {
        self.broken.insert(fault.peer);
        for (number, port) in self.desk.ports.clone().into_iter().enumerate() {
            if port.peer == fault.peer {
                let cause = NetError::Broken(fault.clone());
                let peer = Some(fault.peer);
                self.fail(PortError { port: number as u16, peer, trigger: None, cause });
            }
        }
    }

    /// Whether there were any.
    fn serve_requests(&mut self) -> bool {
        let mut any = false;
        while let Ok(request) = self.inbox.try_recv() {
            request(&mut self.desk);
            any = true;
        }
        any
    }

    /// After a look that found nothing: spins for a while, then sleeps.
    fn rest(&mut self, idle: &mut Idle) {
        let waited = idle.since.elapsed();
        if waited < self.options.spin {
            std::hint::spin_loop();
            return;
        }
        let part = (waited / PART).min(self.options.slice);
        let producers_ring = !self.options.device_producers;
        let longest = if producers_ring { LONG_SLICE } else { part };
        let seen = producers_ring && self.queues.iter().any(|queue| queue.consumer.lie_down());
        if !seen && idle.restless {
            self.bell.wait(part);
        } else if !seen {
            let begin = Instant::now();
            self.desk.transport.doze(longest, Some(self.bell.fd()));
            idle.restless = begin.elapsed() < part / 2;
        }
        self.queues.iter().for_each(|queue| queue.consumer.get_up());
        if self.bell.hush() {
            *idle = Idle::new();
        }
    }

    /// The last work, as long as there is time.
    fn drain(mut self) -> Stopped {
        let until = *lock(&self.shared.until);
        loop {
            let worked = self.work();
            let idle = !worked && self.queues.iter().all(|queue| queue.waiting.is_empty());
            if idle || until.is_some_and(|until| until <= Instant::now()) {
                break;
            }
            if !worked {
                self.desk.transport.doze(DRAIN_SLICE, None);
            }
        }
        Stopped { left: self.left(), transport: self.desk.transport }
    }

    fn left(&self) -> Vec<Left> {
        let mut by_peer = BTreeMap::new();
        for queue in &self.queues {
            for waiting in queue.waiting.iter().filter(|waiting| waiting.count > 0) {
                *by_peer.entry(Some(waiting.peer)).or_insert(0) += 1;
            }
            match queue.consumer.pending() {
                0 => {}
                count => *by_peer.entry(None).or_insert(0) += count,
            }
        }
        by_peer.into_iter().map(|(peer, transfers)| Left { peer, transfers }).collect()
    }
}

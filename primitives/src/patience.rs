//! How a rank waits: bounded, and never at the cost of a core that another rank needs.
//!
//! A wait goes through phases: *spin* (the peer runs on another core and answers within
//! microseconds), *yield* (the peer may need this core), *sleep* (a futex, in slices of at most a
//! millisecond). From the yield phase on it looks around every now and then: has someone posted a
//! failure, has a peer died, do the calls differ, has the timeout passed?
//!
//! **Sleeping.** The waiter sets `sleeping`, looks once more at what it waits for, and only then
//! sleeps on `doorbell`. A signaller stores its signal, then loads `sleeping` and rings if it is
//! set. Without a full fence between these two (it would cost every signal, for the sake of rare
//! sleeps) the load may come before the store is visible, so a wake-up can be missed; the slice
//! bounds what that costs. A rank that waits for one of another host sleeps on its transport instead; every look lets
//! transfers go on.

use std::time::{Duration, Instant};

use crate::control::{Progress, State};
use crate::failure::Failure;
use crate::node::Node;
use crate::sync::{Ordering, fence};

/// How long to stay in each phase.
#[derive(Clone, Copy, Debug)]
pub struct WaitPolicy {
    /// Looks before the first yield.
    pub spins: u32,
    /// Time in the yield phase.
    pub yield_for: Duration,
    /// Longest slice of sleep.
    pub slice: Duration,
    /// Time between looks around.
    pub look_around: Duration,
    /// A wait that takes longer fails.
    pub timeout: Duration,
}

impl WaitPolicy {
    /// For `ranks` ranks on `cores` cores. With fewer cores than ranks a spinning rank keeps the
    /// one that it waits for from running, so it yields at once.
    pub fn for_load(ranks: usize, cores: usize, timeout: Duration) -> Self {
        Self {
            spins: if ranks <= cores { 2_000 } else { 1 },
            yield_for: Duration::from_millis(2),
            slice: Duration::from_millis(1),
            look_around: Duration::from_millis(5),
            timeout,
        }
    }
}

/// Looks at memory in the time of a system call.
const SYSTEM_CALL: u32 = 20;

/// What is waited for, for the progress record.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitingFor {
    /// The peer that has to act.
    pub peer: usize,
    /// The instruction or step that waits.
    pub place: u32,
    /// The count or epoch that is needed.
    pub expected: u64,
    /// The call that this wait belongs to; 0 if it belongs to none.
    pub sequence: u64,
}

/// The state of one wait. Make one, then alternate between a look and [`Patience::pause`].
#[derive(Debug, Default)]
pub struct Patience {
    looks: u32,
    slow: Option<Slow>,
}

#[derive(Debug)]
struct Slow {
    since: Instant,
    looked_around: Instant,
    /// The doorbell's value when `sleeping` was set.
    armed: Option<u32>,
    /// A failure that becomes final if one more look finds nothing.
    doomed: Option<Failure>,
}

impl Patience {
    /// Waits a little after a look that found nothing. Fails when the wait is pointless: someone
    /// posted a failure, a peer is gone or makes another call, or the time is over. `seen` is the
    /// count or epoch that is there.
    #[inline]
    pub fn pause(&mut self, node: &Node, on: WaitingFor, seen: u64) -> Result<(), Failure> {
        let moved = node.progress();
        if self.looks < node.policy().spins {
            // A look at the network is a system call, which takes as long as many looks at memory.
            self.looks += if node.spans_hosts() { SYSTEM_CALL } else { 1 };
            std::hint::spin_loop();
            return Ok(());
        }
        self.pause_slow(node, on, seen, moved)
    }

    #[cold]
    fn pause_slow(
        &mut self,
        node: &Node,
        on: WaitingFor,
        seen: u64,
        moved: bool,
    ) -> Result<(), Failure> {
        let policy = node.policy();
        let first = self.slow.is_none();
        let slow = self.slow.get_or_insert_with(Slow::begin);
        if let Some(failure) = slow.doomed {
            return Err(node.post(failure));
        }
        if first {
            rustix::thread::sched_yield();
            return Ok(());
        }
        // Every few yields only: reading the clock costs a good part of a yield.
        self.looks = self.looks.wrapping_add(1);
        if slow.armed.is_none() && !self.looks.is_multiple_of(8) {
            rustix::thread::sched_yield();
            return Ok(());
        }
        let now = Instant::now();
        let aborted = node.me().abort_word() != 0;
        if aborted || now.duration_since(slow.looked_around) >= policy.look_around {
            slow.looked_around = now;
            slow.doomed = node.look_around(on, seen, now.duration_since(slow.since));
            if slow.doomed.is_some() {
                // What doomed it may have come behind the very signal that is waited for, and be seen before it: a NIC
                // writes news into memory by itself, but signals by immediate data count when they are polled.
                node.drain();
            }
            return Ok(());
        }
        // While transfers move, what is waited for may be among them.
        if !moved {
            slow.rest(node, policy, on.peer, now);
        }
        Ok(())
    }
}

impl Slow {
    fn begin() -> Self {
        let now = Instant::now();
        Self { since: now, looked_around: now, armed: None, doomed: None }
    }

    /// Yields at first; later arms the doorbell, and sleeps the next time.
    fn rest(&mut self, node: &Node, policy: &WaitPolicy, peer: usize, now: Instant) {
        if now.duration_since(self.since) < policy.yield_for {
            rustix::thread::sched_yield();
            return;
        }
        if !node.is_near(peer) {
            node.doze(policy.slice);
            return;
        }
        let me = node.me();
        match self.armed.take() {
            Some(rung) => {
                crate::sys::futex_wait(me.doorbell(), rung, policy.slice);
                me.sleeping().store(0, Ordering::Relaxed);
            }
            None => {
                self.armed = Some(me.doorbell().load(Ordering::Acquire));
                me.sleeping().store(1, Ordering::Relaxed);
                // Orders `sleeping` before the look that follows; the signaller has no such fence.
                fence(Ordering::SeqCst);
            }
        }
    }
}

/// The record of a long wait.
pub(crate) fn waiting(on: WaitingFor, seen: u64) -> Progress {
    Progress {
        state: State::Waiting,
        peer: on.peer,
        place: on.place,
        expected: on.expected,
        seen,
        heartbeat: 0,
    }
}

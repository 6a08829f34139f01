//! What a plan costs: a model good enough to choose by.
//!
//! A plan's work is counted from its programs: how often a rank has to wait for another (phases),
//! how many signals and packets it sends, and how many bytes it moves per byte of a block. A
//! machine's terms say what each costs; they are measured once per machine and kept.
//!
//! ```text
//!   time = rounds * ((phases + signalled) * hop + messages * message)
//!        + bytes * (plain * copy + switched * switch + shared * travel + packed * packet) * ranks per core
//!        + rounds * (trips * trip + posts * post * ranks per core) + bytes * sent * network
//! ```
//!
//! Between hosts, a trip is a wait for a rank of another host, a post what is sent there at once: a put, or a signal alone. Where ranks share
//! cores, a hop is the time until the other rank is scheduled.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::algorithms::Layout;
use crate::plan::{Buffer, Instruction, Place, Program, Whose};

/// What a rank does in one round, per byte of a block's window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Waits that follow one another.
    pub(crate) phases: f64,
    /// Those of them that wait for a signal: the data behind it is a trip of its own, where a
    /// packet brings both at once.
    pub(crate) signalled: f64,
    /// Signals and packet destinations.
    pub(crate) messages: f64,
    /// Bytes loaded and stored in plain memory.
    pub(crate) plain: f64,
    /// Bytes loaded and stored in the memory of all ranks at once, counted for each of them: so many pass through a rank's
    /// link to the switch, since everyone's memory is read for every load of anyone, and written for every store.
    pub(crate) switched: f64,
    /// Those of `plain` in memory that other ranks use, too: they travel between cores.
    pub(crate) shared: f64,
    /// Those of `shared` in the rank's own memory.
    pub(crate) own: f64,
    /// Bytes loaded and stored as packets.
    pub(crate) packed: f64,
    /// Waits for ranks of other hosts that follow one another.
    pub(crate) trips: f64,
    /// Bytes that go to other hosts.
    pub(crate) sent: f64,
    /// Puts to ranks of other hosts, and signals to them that go with no put.
    pub(crate) posts: f64,
}

impl Work {
    /// Counts a rank's program.
    pub(crate) fn of(program: &Program, parts: usize, (rank, world): (usize, usize)) -> Self {
        let mut work = Self::default();
        for worker in &program.workers {
            let (mut waiting, mut phases, mut signals) = (false, 0.0, 0.0);
            for instruction in worker {
                let waits = work.add(instruction, 1.0 / parts as f64, (rank, world));
                if waits && !waiting {
                    let signalled = matches!(instruction, Instruction::Wait { .. });
                    phases += 1.0;
                    signals += if signalled { 1.0 } else { 0.0 };
                }
                // A move that reads packets and sends on is a wait and an answer.
                waiting = waits && !sends(instruction);
            }
            // Workers wait at the same time.
            work.phases = work.phases.max(phases);
            work.signalled = work.signalled.max(signals);
        }
        work
    }

    /// With what goes between hosts. A rank that is alone on its host shares no memory.
    pub(crate) fn between_hosts(
        self,
        program: &Program,
        parts: usize,
        rank: usize,
        layout: &Layout,
    ) -> Self {
        let is_away = |peer: &usize| layout.node_of(*peer) != layout.node_of(rank);
        let mut work = self;
        for worker in &program.workers {
            let (mut waiting, mut trips) = (false, 0.0);
            for instruction in worker {
                let waits = match instruction {
                    Instruction::Wait { from, .. } => from.iter().any(is_away),
                    Instruction::Signal { to, .. } => {
                        work.posts += to.iter().filter(|peer| is_away(peer)).count() as f64;
                        false
                    }
                    Instruction::Put { to: Place { whose: Whose::Rank(peer), .. }, .. }
                        if is_away(peer) =>
                    {
                        work.sent += 1.0 / parts as f64;
                        work.posts += 1.0;
                        false
                    }
                    _ => false,
                };
                trips += if waits && !waiting { 1.0 } else { 0.0 };
                waiting = waits;
            }
            work.trips = work.trips.max(trips);
        }
        if layout.neighbours(rank).is_empty() {
            (work.shared, work.own) = (0.0, 0.0);
        }
        work
    }

    /// Adds an instruction; says whether it waits for a peer.
    fn add(&mut self, instruction: &Instruction, share: f64, who: (usize, usize)) -> bool {
        match instruction {
            Instruction::Move { to, from, .. } => {
                let mut waits = false;
                for place in to.iter().chain(from) {
                    self.add_place(place, share, who);
                }
                self.messages += to.iter().filter(|p| p.buffer == Buffer::Packets).count() as f64;
                waits |= from.iter().any(|place| place.buffer == Buffer::Packets);
                waits
            }
            Instruction::Put { to, from, .. } => {
                self.add_place(to, share, who);
                self.add_place(from, share, who);
                false
            }
            Instruction::Signal { to, .. } => {
                self.messages += to.len() as f64;
                false
            }
            Instruction::Wait { .. } => true,
            Instruction::Flush { .. } => false,
        }
    }

    fn add_place(&mut self, place: &Place, share: f64, (rank, world): (usize, usize)) {
        match (place.buffer, place.whose) {
            // A store to the group leaves a rank once; that it comes to all, these count as loads.
            (Buffer::Packets, _) => self.packed += share,
            (_, Whose::Group) => self.switched += share * world as f64,
            (buffer, _) => {
                self.plain += share;
                if buffer == Buffer::Scratch || !place.is_of(rank) {
                    self.shared += share;
                }
                if buffer == Buffer::Scratch && place.is_of(rank) {
                    self.own += share;
                }
            }
        }
    }

    /// The same between GPUs: a GPU's own memory is its own, and of what it shares only what others do with it travels.
    pub(crate) fn between_gpus(self) -> Self {
        Self { shared: self.shared - self.own, own: 0.0, ..self }
    }

    /// The more expensive of two, term by term: ranks play different parts, the slowest counts.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            phases: self.phases.max(other.phases),
            signalled: self.signalled.max(other.signalled),
            messages: self.messages.max(other.messages),
            plain: self.plain.max(other.plain),
            switched: self.switched.max(other.switched),
            shared: self.shared.max(other.shared),
            own: self.own.max(other.own),
            packed: self.packed.max(other.packed),
            trips: self.trips.max(other.trips),
            sent: self.sent.max(other.sent),
            posts: self.posts.max(other.posts),
        }
    }
}

fn sends(instruction: &Instruction) -> bool {
    match instruction {
        Instruction::Move { to, .. } => to.iter().any(|place| place.buffer == Buffer::Packets),
        Instruction::Signal { .. } | Instruction::Put { .. } => true,
        _ => false,
    }
}

/// What a machine's shared memory takes, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// From a signal to the return of the wait on another core.
    pub hop: f64,
    /// From a signal to the return of the wait when the waiter has to be scheduled first.
    pub switch: f64,
    /// Sending one signal or packet.
    pub message: f64,
    /// Moving a byte (loaded or stored) while it is in cache.
    pub cached: f64,
    /// Moving a byte when it is not.
    pub uncached: f64,
    /// Moving a byte as a packet.
    pub packet: f64,
    /// Moving a byte through a multicast address, for each rank behind it. None: as a byte of shared memory for each, for
    /// there is no switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched: Option<f64>,
    /// What a byte costs on top when another core uses its memory, too: in small blocks.
    pub shared: f64,
    /// The same in large blocks.
    pub shared_far: f64,
    /// From a rank to one of another host and its wait.
    #[serde(default = "typical_trip")]
    pub trip: f64,
    /// Sending a byte to another host.
    #[serde(default = "typical_network")]
    pub network: f64,
    /// Sending something to a rank of another host: what it keeps the sender's core busy.
    #[serde(default = "typical_post")]
    pub post: f64,
}

fn typical_trip() -> f64 {
    Machine::TYPICAL.trip
}

fn typical_post() -> f64 {
    Machine::TYPICAL.post
}

fn typical_network() -> f64 {
    Machine::TYPICAL.network
}

impl Machine {
    /// A common server, for when nothing was measured.
    pub const TYPICAL: Self = Self {
        hop: 120.0,
        switch: 1500.0,
        message: 25.0,
        cached: 0.04,
        uncached: 0.12,
        packet: 0.25,
        switched: None,
        shared: 0.08,
        shared_far: 0.04,
        trip: 8_000.0,
        network: 0.5,
        post: 7_000.0,
    };

    /// Predicted nanoseconds of a call: `work` per round, for blocks of `bytes`, in `rounds`
    /// rounds, with `load` ranks on each core.
    pub(crate) fn predict(&self, work: &Work, bytes: usize, rounds: usize, load: f64) -> f64 {
        let bytes = bytes as f64;
        // The message's size decides, not the plan's traffic: plans for one message are compared
        // on the same footing.
        let plain = if bytes > CACHED_BYTES { self.uncached } else { self.cached };
        let shared = if bytes > NEAR_BYTES { self.shared_far } else { self.shared };
        let switched = self.switched.unwrap_or(plain + shared);
        let moved = work.plain * plain + work.switched * switched + work.shared * shared;
        let hop = if load > 1.0 { self.switch * load } else { self.hop };
        let hops = work.phases * hop + work.signalled * self.hop;
        let waits = hops + work.messages * self.message * load;
        let trips = work.trips * self.trip + work.posts * self.post * load;
        let between = rounds as f64 * trips + bytes * work.sent * self.network;
        rounds as f64 * waits + bytes * (moved + work.packed * self.packet) * load + between
    }
}

/// Larger blocks do not stay in a core's cache.
const CACHED_BYTES: f64 = 1_048_576.0;
/// Larger blocks travel between cores as streams, which the prefetchers follow.
const NEAR_BYTES: f64 = 32_768.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithms::{Algorithm, NODES, NodeAlgorithm, all};
    use crate::plan::Collective;

    fn work(collective: &str, name: &str, world: usize) -> Work {
        let find = |a: &&Algorithm| a.collective.name() == collective && a.name == name;
        let algorithm = all().find(find).unwrap();
        Work::of(&algorithm.program(1, world, 0), (algorithm.parts)(world), (1, world))
    }

    #[test]
    fn phases_are_the_waits_in_sequence() {
        assert_eq!(work("all_reduce", "one_shot_packet", 8).phases, 1.0);
        assert_eq!(work("all_reduce", "two_shot_packet", 8).phases, 2.0);
        assert_eq!(work("all_reduce", "direct", 8).phases, 2.0);
        assert_eq!(work("all_reduce", "ring", 8).phases, 14.0);
    }

    #[test]
    fn bytes_are_what_the_algorithms_promise() {
        // Each rank reads 8 inputs of its eighth and writes 8 outputs.
        assert_eq!(work("all_reduce", "direct", 8).plain, 2.0);
        // Seven packets written, seven read.
        assert_eq!(work("all_reduce", "one_shot_packet", 8).packed, 14.0);
        assert_eq!(work("all_reduce", "two_shot_packet", 8).packed, 28.0 / 8.0);
        // One written for all, seven read.
        assert_eq!(work("all_reduce", "one_shot_multicast", 8).packed, 8.0);
        // An eighth is read from all eight, and written to them.
        let switched = work("all_reduce", "nvls", 8);
        assert_eq!((switched.switched, switched.plain, switched.shared), (2.0, 0.0, 0.0));
    }

    fn between_hosts(name: &str, layout: &Layout, rank: usize) -> Work {
        let all_reduce =
            |a: &&&NodeAlgorithm| a.collective == Collective::AllReduce && a.name == name;
        let algorithm = NODES.iter().find(all_reduce).unwrap();
        let parts = algorithm.shape(layout, 0).parts;
        let program = algorithm.program(rank, layout, 0);
        let work = Work::of(&program, parts, (rank, layout.world()));
        work.between_hosts(&program, parts, rank, layout)
    }

    #[test]
    fn what_goes_between_hosts_is_counted() {
        let (pair, square) = (Layout::new(&[0, 1]), Layout::new(&[0, 0, 1, 1]));
        let counts = |work: Work| (work.trips, work.posts, work.sent);
        assert_eq!(counts(between_hosts("exchange", &pair, 0)), (1.0, 1.0, 1.0));
        assert_eq!(counts(between_hosts("exchange", &square, 1)), (0.0, 0.0, 0.0));
        assert_eq!(counts(between_hosts("rails", &pair, 0)), (2.0, 2.0, 1.0));
        // Two workers, each with its half of every part.
        assert_eq!(counts(between_hosts("rails_direct", &square, 3)), (2.0, 4.0, 0.5));
        assert_eq!(between_hosts("rails", &pair, 0).shared, 0.0);
        assert!(between_hosts("rails", &square, 0).shared > 0.0);
    }

    #[test]
    fn small_messages_go_in_one_shot_and_large_ones_directly() {
        let machine = Machine::TYPICAL;
        let time = |name, bytes| machine.predict(&work("all_reduce", name, 4), bytes, 1, 1.0);
        assert!(time("one_shot_packet", 64) < time("direct", 64));
        assert!(time("direct", 1 << 20) < time("one_shot_packet", 1 << 20));
    }
}

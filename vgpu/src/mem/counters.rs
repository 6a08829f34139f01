//! What a kernel did to memory: exact counts, the cost of an algorithm without a GPU.

/// Where an access went, seen from the device that made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Target {
    /// The device's own memory.
    Own = 0,
    /// Another device's memory.
    Peer = 1,
    /// Host memory that the device sees.
    Host = 2,
    /// A multicast address.
    Multicast = 3,
}

/// Exact counts of one kernel, or of part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Bytes loaded, by [`Target`].
    pub loaded: [u64; 4],
    /// Bytes stored, by [`Target`].
    pub stored: [u64; 4],
    /// Bytes to each peer device, by device: (loaded, stored).
    pub peers: Vec<(u64, u64)>,
    /// Lane accesses by width: 1, 2, 4, 8, 16, 32 bytes.
    pub widths: [u64; 6],
    /// Atomic operations on global memory, lane by lane.
    pub atomics: u64,
    /// Strong loads that a warp repeated and that returned the same value to it.
    pub polls: u64,
    /// Barrier arrivals, counted in threads.
    pub barriers: u64,
    /// Warp instructions executed.
    pub instructions: u64,
}

impl Counters {
    /// Notes accesses of `bytes` bytes each.
    #[inline]
    pub fn access(&mut self, store: bool, target: Target, peer: u32, bytes: usize, lanes: u32) {
        let total = bytes as u64 * u64::from(lanes);
        let side = if store { &mut self.stored } else { &mut self.loaded };
        side[target as usize] += total;
        self.widths[bytes.trailing_zeros().min(5) as usize] += u64::from(lanes);
        if target == Target::Peer {
            self.peer(peer, store, total);
        }
    }

    #[cold]
    fn peer(&mut self, peer: u32, store: bool, total: u64) {
        let peer = peer as usize;
        if self.peers.len() <= peer {
            self.peers.resize(peer + 1, (0, 0));
        }
        if store { self.peers[peer].1 += total } else { self.peers[peer].0 += total }
    }

    /// Adds another part's counts.
    pub fn add(&mut self, other: &Counters) {
        for i in 0..4 {
            self.loaded[i] += other.loaded[i];
            self.stored[i] += other.stored[i];
        }
        for i in 0..6 {
            self.widths[i] += other.widths[i];
        }
        if self.peers.len() < other.peers.len() {
            self.peers.resize(other.peers.len(), (0, 0));
        }
        for (mine, theirs) in self.peers.iter_mut().zip(&other.peers) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
        }
        self.atomics += other.atomics;
        self.polls += other.polls;
        self.barriers += other.barriers;
        self.instructions += other.instructions;
    }
}

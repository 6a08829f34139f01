//! Point-to-point messages between GPUs: the host's side of kernels/device/mail.cuh, which has the protocol.
//!
//! Letters take turns: by how far receiver and sender are apart, then by which of these two's letters it is. Both ends see
//! the same turn, and a kernel has whole turns. So where letters take several kernels, the first unfinished turn of all ranks is
//! in the kernels that run now, at both ends, and goes on. Ranks of different hosts are connected before their first letter.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUfunction, CUstream};
use warpmesh_kernels::cache;
use warpmesh_primitives::gpu::{CudaError, Gpu, PeerMemory};
use warpmesh_primitives::node::Node;

use super::far::{EMPTIED, FILLED, Far};
use super::kernel::{Module, launch};
use crate::error::Error;
use crate::host::{Direction, Letter};

/// `MAIL_CHANNELS`, `MAIL_SLOTS`, `MAIL_LETTERS`, `MAIL_PER_CHANNEL`, `MAIL_HEADER` of mail.cuh.
const CHANNELS: usize = 8;
const SLOTS: usize = 4;
const LETTERS: usize = 60;
const PER_CHANNEL: usize = 32 << 10;
const HEADER: usize = 128;

/// Bytes of all rings of a rank, as far as slots do not get too small.
const BUDGET: usize = 4 << 20;
const LEAST_SLOT: usize = 8 * HEADER;

/// A kernel that carries out letters.
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) source: &'static str,
}

macro_rules! source {
    ($name:literal, $far:literal) => {
        Source {
            name: $name,
            source: concat!(
                "// Carries out the letters of a group.\n",
                "#include \"warpmesh/mail.cuh\"\n",
                "using namespace warpmesh;\n\n",
                "extern \"C\" __global__ void __launch_bounds__(512, 2) ",
                $name,
                "(const __grid_constant__ Mail mail) {\n",
                "  __shared__ Postman<",
                $far,
                ">::Desk desk;\n",
                "  Postman<",
                $far,
                ">(mail, desk).deliver();\n",
                "}\n",
            ),
        }
    };
}

/// For letters within a host; for those of which some go to other hosts, or come from there.
pub(super) const SOURCES: [Source; 2] = [source!("mail", "false"), source!("mail_far", "true")];

/// `Letter` of mail.cuh.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Entry {
    user: u64,
    bytes: u64,
    ring: u64,
    theirs: u64,
    mine: u64,
    done: u64,
    there: u64,
    peer: u32,
    dtype: u16,
    receives: u8,
    lanes: u8,
}

/// `Mail` of mail.cuh.
#[repr(C)]
struct Parameter {
    control: u64,
    timeout: u64,
    /// 0: a letter is of no collective call.
    sequence: u64,
    /// Device address of how other hosts are reached, or 0.
    far: u64,
    /// Device address of this rank's memory for messages.
    memory: u64,
    slot: u32,
    channels: u32,
    lanes: u32,
    unused: u32,
    first: [u8; 64],
    letter: [Entry; LETTERS],
}

const _: () = assert!(size_of::<Entry>() == 64 && size_of::<Parameter>() == 120 + 64 * LETTERS);

/// What a word of a pair of ranks and a channel is, in the order in which they lie in memory.
#[derive(Clone, Copy)]
enum Word {
    /// Written by the sender, in the receiver's memory.
    Filled,
    /// Written by the receiver, in the sender's memory.
    Emptied,
    /// This rank's own counts.
    Sent,
    Received,
}

/// A rank's side of all rings.
pub(crate) struct Mail {
    rank: usize,
    world: usize,
    /// Words, then rings: by sender, channel, slot. Then, if there are other hosts, as many rings of what goes to them: by receiver.
    memory: PeerMemory,
    slot: usize,
    /// Ranks of other hosts that messages have gone to or come from.
    reached: Vec<bool>,
    /// Of [`SOURCES`].
    kernels: [Option<(Module, CUfunction)>; 2],
    parameter: Box<Parameter>,
    /// Of the letters of a group, in the order in which they go; kept, so that no call allocates.
    order: Vec<Turn>,
}

// SAFETY: the function is a handle that the driver accepts from any thread.
unsafe impl Send for Mail {}

/// When a letter has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    /// From its sender to its receiver.
    distance: usize,
    /// Which of the letters from this sender to this receiver it is. Both ends agree on that, and on the distance.
    turn: usize,
    sends: bool,
    /// The letter's number.
    number: usize,
}

/// How many of these fit a kernel, of those at the beginning. What a rank sends and what it receives in one turn stay together.
fn whole_turns(order: &[Turn], most: usize) -> usize {
    let key = |n: usize| (order[n].distance, order[n].turn);
    let is_whole = |n: &usize| *n == order.len() || key(*n) != key(*n - 1);
    (1..=order.len().min(most)).rev().find(is_whole).unwrap_or(0)
}

/// What the kernels of all calls have in common.
pub(crate) struct Terms<'a> {
    /// How other hosts are reached.
    pub(crate) far: Option<&'a Far>,
    /// Device address of the memory by which kernels and host watch each other.
    pub(crate) control: u64,
    /// Nanoseconds.
    pub(crate) timeout: u64,
    /// Thread blocks, at most.
    pub(crate) most_blocks: usize,
}

impl Mail {
    /// Shares the memory. Every rank calls it; blocks until all have.
    pub(crate) fn new(gpu: &Gpu, node: &Arc<Node>) -> Result<Self, Error> {
        let (rank, world) = (node.rank(), node.world());
        let ways = if node.spans_hosts() { 2 } else { 1 };
        let rings = ways * world * CHANNELS * SLOTS;
        let slot = (BUDGET / rings / HEADER * HEADER).max(LEAST_SLOT);
        let memory = gpu.share(node, Self::words_bytes(world) + rings * slot)?;
        let parameter = Box::new(Parameter {
            control: 0,
            timeout: 0,
            sequence: 0,
            far: 0,
            memory: memory.address(rank),
            slot: slot as u32,
            channels: 0,
            lanes: 0,
            unused: 0,
            first: [0; 64],
            letter: [Entry::default(); LETTERS],
        });
        let reached = vec![false; world];
        let (kernels, order) = (Default::default(), Vec::new());
        Ok(Self { rank, world, memory, slot, reached, kernels, parameter, order })
    }

    /// The memory of all ranks' words and rings.
    pub(crate) fn memory(&self) -> &PeerMemory {
        &self.memory
    }

    fn words_bytes(world: usize) -> usize {
        (4 * world * CHANNELS * size_of::<u64>()).next_multiple_of(HEADER)
    }

    /// The word of channel 0, in `owner`'s memory, for its peer `of`.
    fn word(&self, owner: usize, word: Word, of: usize) -> u64 {
        let number = (word as usize * self.world + of) * CHANNELS;
        self.memory.address(owner) + (number * size_of::<u64>()) as u64
    }

    /// Where the ring of channel 0 begins in the memory of the receiver that `sender` fills.
    fn ring(&self, sender: usize) -> u64 {
        (Self::words_bytes(self.world) + sender * CHANNELS * SLOTS * self.slot) as u64
    }

    /// The same in the sender's memory, of what goes to a receiver of another host.
    fn outgoing(&self, receiver: usize) -> u64 {
        self.ring(self.world + receiver)
    }

    fn entry(&self, letter: &Letter, far: Option<&Far>) -> Entry {
        let (me, peer) = (self.rank, letter.peer);
        let own = self.memory.address(me);
        let rest = Entry {
            bytes: letter.bytes as u64,
            peer: peer as u32,
            dtype: letter.dtype.into(),
            ..Entry::default()
        };
        let far = far.filter(|_| !self.memory.is_mapped(peer));
        match (letter.direction, far) {
            (Direction::Send(from), None) => Entry {
                user: from as u64,
                ring: self.memory.address(peer) + self.ring(me),
                theirs: self.word(peer, Word::Filled, me),
                mine: self.word(me, Word::Emptied, peer),
                done: self.word(me, Word::Sent, peer),
                ..rest
            },
            (Direction::Receive(to), None) => Entry {
                user: to as u64,
                ring: own + self.ring(peer),
                theirs: self.word(peer, Word::Emptied, me),
                mine: self.word(me, Word::Filled, peer),
                done: self.word(me, Word::Received, peer),
                receives: 1,
                ..rest
            },
            (Direction::Send(from), Some(far)) => Entry {
                user: from as u64,
                ring: own + self.outgoing(peer),
                there: self.ring(me),
                theirs: far.port(FILLED, peer),
                mine: far.counters(EMPTIED, peer),
                done: self.word(me, Word::Sent, peer),
                lanes: far.lanes(),
                ..rest
            },
            (Direction::Receive(to), Some(far)) => Entry {
                user: to as u64,
                ring: own + self.ring(peer),
                theirs: far.port(EMPTIED, peer),
                mine: far.counters(FILLED, peer),
                done: self.word(me, Word::Received, peer),
                receives: 1,
                lanes: far.lanes(),
                ..rest
            },
        }
    }

    /// Puts letters to other ranks on a stream: kernels that end when all have gone or come. Letters without bytes are
    /// nothing, here and at the peer.
    ///
    /// # Safety
    /// The letters' memory is of this GPU and good for its bytes until the stream has passed; the stream is of `context`.
    pub(crate) unsafe fn deliver(
        &mut self,
        context: &Arc<CudaContext>,
        architecture: u32,
        letters: &[Letter],
        terms: &Terms<'_>,
        stream: CUstream,
    ) -> Result<(), Error> {
        if let Some(far) = terms.far {
            self.reach(letters, far, stream)?;
        }
        self.sort(letters);
        let mut next = 0;
        while next < self.order.len() {
            let taken = self.fill(letters, next, terms);
            let is_far = self.parameter.letter[..taken].iter().any(|letter| letter.lanes > 0);
            if let Some(far) = terms.far.filter(|_| is_far) {
                far.launching();
            }
            let function = self.function(context, architecture, is_far)?;
            let jobs = (self.parameter.lanes * self.parameter.channels) as usize;
            let blocks = jobs.min(terms.most_blocks);
            let parameter = std::ptr::from_mut(&mut *self.parameter);
            // SAFETY: the kernel has this one parameter; the rest is the caller's promise.
            let launched = unsafe { launch(function, parameter.cast(), blocks, stream) };
            launched.map_err(warpmesh_primitives::Error::from)?;
            next += taken;
        }
        Ok(())
    }

    /// Connects to the ranks of other hosts that these letters go to or come from, and that none did before.
    fn reach(&mut self, letters: &[Letter], far: &Far, stream: CUstream) -> Result<(), Error> {
        let is_new = |peer: &usize| !self.memory.is_mapped(*peer) && !self.reached[*peer];
        let with_bytes = letters.iter().filter(|letter| letter.bytes > 0);
        let mut peers: Vec<usize> = with_bytes.map(|letter| letter.peer).filter(is_new).collect();
        peers.sort_unstable();
        peers.dedup();
        if !peers.is_empty() {
            far.reach(&peers, 0, stream)?;
            peers.into_iter().for_each(|peer| self.reached[peer] = true);
        }
        Ok(())
    }

    /// Brings the letters into the order in which both ends take them.
    fn sort(&mut self, letters: &[Letter]) {
        self.order.clear();
        let (rank, world) = (self.rank, self.world);
        for (number, letter) in letters.iter().enumerate() {
            if letter.bytes == 0 || letter.peer == rank {
                continue;
            }
            let (sends, to, from) = match letter.direction {
                Direction::Send(_) => (true, letter.peer, rank),
                Direction::Receive(_) => (false, rank, letter.peer),
            };
            let distance = (to + world - from) % world;
            self.order.push(Turn { distance, turn: 0, sends, number });
        }
        self.order.sort_unstable_by_key(|t| (t.distance, t.sends, t.number));
        for n in 1..self.order.len() {
            let before = self.order[n - 1];
            if (before.distance, before.sends) == (self.order[n].distance, self.order[n].sends) {
                self.order[n].turn = before.turn + 1;
            }
        }
        self.order.sort_unstable_by_key(|t| (t.distance, t.turn));
    }

    /// Fills in the parameter of a kernel for the letters from the `next`-th on; how many it takes.
    fn fill(&mut self, letters: &[Letter], next: usize, terms: &Terms<'_>) -> usize {
        let count = whole_turns(&self.order[next..], LETTERS);
        let taken = &mut self.order[next..next + count];
        // Lanes together.
        taken.sort_unstable_by_key(|t| (t.distance, t.sends, t.turn));
        let (mut lanes, mut largest) = (0, 0);
        let mut lane = None;
        for at in 0..count {
            let Turn { distance, sends, number, .. } = self.order[next + at];
            if lane != Some((distance, sends)) {
                self.parameter.first[lanes] = at as u8;
                lanes += 1;
                lane = Some((distance, sends));
            }
            largest = largest.max(letters[number].bytes);
            self.parameter.letter[at] = self.entry(&letters[number], terms.far);
        }
        self.parameter.first[lanes] = count as u8;
        self.parameter.lanes = lanes as u32;
        self.parameter.channels = largest.div_ceil(PER_CHANNEL).min(CHANNELS) as u32;
        self.parameter.far = terms.far.map_or(0, Far::address);
        self.parameter.control = terms.control;
        self.parameter.timeout = terms.timeout;
        count
    }

    fn function(
        &mut self,
        context: &Arc<CudaContext>,
        architecture: u32,
        is_far: bool,
    ) -> Result<CUfunction, Error> {
        let kept = &mut self.kernels[usize::from(is_far)];
        if let Some((_, function)) = kept {
            return Ok(*function);
        }
        let Source { name, source } = SOURCES[usize::from(is_far)];
        let folder = cache::folder();
        let compiled = cache::kernel(source, name, architecture, folder.as_deref())?;
        let _relaxed = super::call::Relaxed::new();
        let module = Module::load(context, &compiled).map_err(warpmesh_primitives::Error::from)?;
        let function = module.function(name).map_err(warpmesh_primitives::Error::from)?;
        *kept = Some((module, function));
        Ok(function)
    }
}

/// Copies between this rank's letters to itself, in order. Each send has its receive, which is of as many bytes.
///
/// # Safety
/// As [`Mail::deliver`].
pub(crate) unsafe fn deliver_at_home(
    rank: usize,
    letters: &[Letter],
    stream: CUstream,
) -> Result<(), Error> {
    let at_home = || letters.iter().filter(|letter| letter.peer == rank && letter.bytes > 0);
    let from = at_home().filter_map(|letter| match letter.direction {
        Direction::Send(from) => Some((from, letter.bytes)),
        Direction::Receive(_) => None,
    });
    let to = at_home().filter_map(|letter| match letter.direction {
        Direction::Receive(to) => Some(to),
        Direction::Send(_) => None,
    });
    for ((from, bytes), to) in from.zip(to) {
        // SAFETY: the caller's.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to as u64, from as u64, bytes, stream) };
        CudaError::check(code, "cuMemcpyDtoDAsync").map_err(warpmesh_primitives::Error::from)?;
    }
    Ok(())
}

/// Whether each letter of this rank to itself has its other end.
pub(crate) fn is_paired_at_home(rank: usize, letters: &[Letter]) -> bool {
    let of = |sends: bool| {
        let at_home = letters.iter().filter(move |letter| letter.peer == rank && letter.bytes > 0);
        at_home.filter(move |letter| matches!(letter.direction, Direction::Send(_)) == sends)
    };
    let what = |letter: &Letter| (letter.bytes, letter.dtype);
    of(true).map(what).eq(of(false).map(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_have_whole_turns() {
        let turn = |distance, turn, sends| Turn { distance, turn, sends, number: 0 };
        let order = [
            turn(1, 0, true),
            turn(1, 0, false),
            turn(1, 1, true),
            turn(2, 0, true),
            turn(2, 0, false),
        ];
        let taken = |most| whole_turns(&order, most);
        assert_eq!([2, 3, 4, 5, 9].map(taken), [2, 3, 3, 5, 5]);
    }

    #[test]
    fn a_letter_to_oneself_needs_both_ends() {
        let letter = |direction, bytes| Letter { peer: 3, direction, bytes, dtype: 1, done: 0 };
        let send = letter(Direction::Send(std::ptr::null()), 8);
        let receive = |bytes| letter(Direction::Receive(std::ptr::null_mut()), bytes);
        assert!(is_paired_at_home(3, &[send, receive(8)]));
        assert!(!is_paired_at_home(3, &[send, receive(9)]));
        assert!(!is_paired_at_home(3, &[send]));
        assert!(is_paired_at_home(2, &[send]), "another rank's");
        assert!(is_paired_at_home(3, &[receive(0)]), "nothing");
    }
}

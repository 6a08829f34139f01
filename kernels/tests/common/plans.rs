//! All-reduces as plan kernels written by hand, and what the host gives them: memory, tables, calls.
//!
//! - direct: semaphores, then each rank reads its part of everybody's input and writes it to everybody's output.
//! - one_shot: packets of the whole input to everybody, and everybody reduces all of it.
//! - two_shot: packets of each part to its rank, which reduces it and sends packets of the result.
//! - staged: as two_shot, over scratch slots and semaphores.
//! - slots: as one_shot, over scratch slots and one semaphore: what relies on the two halves of scratch.

use std::sync::Arc;

use vgpu::{Fault, Launch};

use super::oracle::Type;
use super::{Bytes, Random, Rig};

pub const ALGORITHMS: [&str; 5] = ["direct", "one_shot", "two_shot", "staged", "slots"];

/// MAX_BLOCKS of wait.cuh.
pub const MAX_BLOCKS: usize = 64;
const CONTROL: usize = 64 + 32 * MAX_BLOCKS;
/// A board, and a table of boards' addresses that has none.
const NOTHING_ANNOUNCED: [u64; 4] = [0; 4];
const NO_BOARDS: [u64; 1] = [0];

/// All algorithms for a type and an operator, as `ALGORITHM_OP`.
pub fn source(ranks: usize, ty: Type, op: &str) -> String {
    let (n, peers, ty) = (ranks, ranks - 1, ty.name());
    let slots = 2 * peers;
    format!(
        r#"
extern "C" __global__ void direct_{op}(const __grid_constant__ P p) {{
  Worker<true> w(p.call);
  u32 round = 0;
  do {{
    w.signal<{peers}>(p.word, 0);
    w.wait<{peers}>(p.word + {peers}, p.peer + {peers}, 0, 1);
    w.move<Move<{ty}, {op}, Repeated<{n}, USER>, Repeated<{n}, USER>>, 1>(p.place, p.place + {n}, p.factor, p.peer + PEERS, p.parts, 2);
    w.signal<{peers}>(p.word, 1);
    w.wait<{peers}>(p.word + {peers}, p.peer + {peers}, 1, 4);
  }} while (w.next(round));
  w.finish();
}}
extern "C" __global__ void one_shot_{op}(const __grid_constant__ P p) {{
  Worker<true> w(p.call);
  u32 round = 0;
  do {{
    w.move<Move<{ty}, Copy, Kinds<USER>, Repeated<{peers}, PACKETS>>, 1>(p.place, p.place + 1, p.factor, p.peer + PEERS, p.parts, 0);
    w.move<Move<{ty}, {op}, Repeated<{n}, OWN>, Kinds<USER>>, 1>(p.place + {n}, p.place + {n} * 2, p.factor, p.peer + PEERS + {n}, p.parts, 1);
  }} while (w.next(round));
  w.finish();
}}
extern "C" __global__ void slots_{op}(const __grid_constant__ P p) {{
  Worker<true> w(p.call);
  u32 round = 0;
  do {{
    w.move<Move<{ty}, Copy, Kinds<USER>, Repeated<{peers}, SLOT>>, 1>(p.place, p.place + 1, p.factor, p.peer + PEERS, p.parts, 0);
    w.signal<{peers}>(p.word, 0);
    w.wait<{peers}>(p.word + {peers}, p.peer + {peers}, 0, 2);
    w.move<Move<{ty}, {op}, Repeated<{n}, OWN_SLOT>, Kinds<USER>>, 1>(p.place + {n}, p.place + {n} * 2, p.factor, p.peer + PEERS + {n}, p.parts, 3);
  }} while (w.next(round));
  w.finish();
}}
extern "C" __global__ void two_shot_{op}(const __grid_constant__ P p) {{
  Worker<true> w(p.call);
  u32 round = 0;
  do {{
    w.move<Move<{ty}, Copy, Kinds<USER>, Kinds<PACKETS>>, {peers}>(p.place, p.place + {peers}, p.factor, p.peer + PEERS, p.parts, 0);
    w.move<Move<{ty}, {op}, Repeated<{n}, OWN>, Kinds<USER{comma_packets}>>, 1>(p.place + {slots}, p.place + {slots} + {n}, p.factor, p.peer + PEERS + {slots}, p.parts + {peers}, 1);
    w.move<Move<{ty}, Copy, Kinds<PACKETS>, Kinds<USER>>, {peers}>(p.place + {slots} + {n} * 2, p.place + {slots} + {n} * 2 + {peers}, p.factor, p.peer + PEERS + {slots} + {n} * 2, p.parts + {n}, 2);
  }} while (w.next(round));
  w.finish();
}}
extern "C" __global__ void staged_{op}(const __grid_constant__ P p) {{
  Worker<true> w(p.call);
  u32 round = 0;
  do {{
    w.move<Move<{ty}, Copy, Kinds<USER>, Kinds<SLOT>>, {peers}>(p.place, p.place + {peers}, p.factor, p.peer + PEERS, p.parts, 0);
    w.signal<{peers}>(p.word, 0);
    w.wait<{peers}>(p.word + {peers}, p.peer + {peers}, 0, 2);
    w.move<Move<{ty}, {op}, Repeated<{n}, OWN_SLOT>, Kinds<USER{comma_slots}>>, 1>(p.place + {slots}, p.place + {slots} + {n}, p.factor, p.peer + PEERS + {slots}, p.parts + {peers}, 3);
    w.signal<{peers}>(p.word, 1);
    w.wait<{peers}>(p.word + {peers}, p.peer + {peers}, 1, 5);
    w.move<Move<{ty}, Copy, Kinds<SLOT>, Kinds<USER>>, {peers}>(p.place + {slots} + {n} * 2, p.place + {slots} + {n} * 2 + {peers}, p.factor, p.peer + PEERS + {slots} + {n} * 2, p.parts + {n}, 6);
  }} while (w.next(round));
  w.finish();
}}
"#,
        comma_packets = ", PACKETS".repeat(peers),
        comma_slots = ", SLOT".repeat(peers),
    )
}

/// What stands before the kernels.
pub fn prelude(ranks: usize, include: &str) -> String {
    format!(
        "#include \"{include}\"\nusing namespace warpmesh;\nconstexpr int PEERS = {};\n\
         struct P : Params<PEERS, {}, {}, 0> {{ u64 factor[{ranks}]; }};\n",
        2 * (ranks - 1),
        2 * ranks,
        places(ranks),
    )
}

fn places(ranks: usize) -> usize {
    6 * ranks
}

/// How an all-reduce is called.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub count: usize,
    /// Elements of a round.
    pub window: usize,
    pub blocks: usize,
    pub threads: u32,
    /// Elements by which the buffers are away from an aligned address.
    pub offset: usize,
    /// Nanoseconds.
    pub timeout: u64,
}

impl Shape {
    pub fn new(count: usize) -> Self {
        Shape {
            count,
            window: count.max(1),
            blocks: 2,
            threads: 64,
            offset: 0,
            timeout: u64::MAX >> 1,
        }
    }

    fn parts(&self, algorithm: &str, ranks: usize) -> usize {
        if matches!(algorithm, "one_shot" | "slots") { 1 } else { ranks }
    }
}

/// A communicator of virtual GPUs: one rank on each device.
pub struct World<'a> {
    pub rig: &'a Rig,
    pub ranks: usize,
    ty: Type,
    scratch: Vec<u64>,
    semaphores: Vec<u64>,
    state: Vec<u64>,
    pub control: Vec<u64>,
    input: Vec<u64>,
    output: Vec<u64>,
    random: Random,
    calls: u64,
}

/// Bytes of a slot of scratch, of a half of all slots, and of the most elements that fit.
const SLOT: usize = 16 << 10;
const BUFFER: usize = 64 << 10;

impl<'a> World<'a> {
    pub fn new(rig: &'a Rig, ranks: usize, ty: Type) -> Self {
        let each =
            |bytes: usize| (0..ranks).map(|r| rig.alloc(r as u32, bytes)).collect::<Vec<_>>();
        World {
            rig,
            ranks,
            ty,
            scratch: each(2 * 2 * ranks * SLOT),
            semaphores: each(ranks * MAX_BLOCKS * 8),
            state: each(MAX_BLOCKS * 16),
            control: each(CONTROL),
            input: each(BUFFER),
            output: each(BUFFER),
            random: Random(ranks as u64),
            calls: 0,
        }
    }

    /// Slot `from` of the n-th kind in the memory of `of`.
    fn slot(&self, of: usize, kind: usize, from: usize) -> u64 {
        self.scratch[of] + ((kind * self.ranks + from) * SLOT) as u64
    }

    /// The word over which `from` signals `to`.
    pub fn word(&self, to: usize, from: usize) -> u64 {
        self.semaphores[to] + (from * MAX_BLOCKS * 8) as u64
    }

    /// Places, parts and peers of the places.
    fn tables(&self, algorithm: &str, rank: usize, shape: &Shape) -> (Vec<u64>, Vec<u32>, Vec<u8>) {
        let n = self.ranks;
        let at = |base: &[u64], r: usize| base[r] + (shape.offset * self.ty.size()) as u64;
        let (input, output) = (|r| at(&self.input, r), |r| at(&self.output, r));
        let others = || (0..n).filter(|&r| r != rank);
        let own = |slot: &dyn Fn(usize) -> u64| {
            (0..n).map(|r| if r == rank { input(rank) } else { slot(r) }).collect()
        };
        let mut groups: Vec<(Vec<u64>, Vec<usize>)> = Vec::new();
        let mut parts = vec![rank as u32];
        match algorithm {
            "direct" => {
                groups.push(((0..n).map(input).collect(), (0..n).collect()));
                groups.push(((0..n).map(output).collect(), (0..n).collect()));
            }
            "one_shot" | "slots" => {
                parts = vec![0];
                groups.push((vec![input(rank)], vec![rank]));
                groups
                    .push((others().map(|p| self.slot(p, 0, rank)).collect(), others().collect()));
                groups.push((own(&|r| self.slot(rank, 0, r)), (0..n).collect()));
                groups.push((vec![output(rank)], vec![rank]));
            }
            _ => {
                let peers: Vec<usize> = others().collect();
                parts = peers
                    .iter()
                    .map(|&p| p as u32)
                    .chain([rank as u32])
                    .chain(peers.iter().map(|&p| p as u32))
                    .collect();
                groups.push((vec![input(rank); n - 1], vec![rank; n - 1]));
                groups.push((others().map(|p| self.slot(p, 0, rank)).collect(), peers.clone()));
                groups.push((own(&|r| self.slot(rank, 0, r)), (0..n).collect()));
                let results = others().map(|p| self.slot(p, 1, rank));
                groups.push((
                    std::iter::once(output(rank)).chain(results).collect(),
                    (0..n).collect(),
                ));
                groups.push((others().map(|p| self.slot(rank, 1, p)).collect(), peers.clone()));
                groups.push((vec![output(rank); n - 1], peers));
            }
        }
        let places = groups.iter().flat_map(|g| g.0.clone()).collect();
        let peers = groups.iter().flat_map(|g| g.1.iter().map(|&p| p as u8)).collect();
        (places, parts, peers)
    }

    /// `Params` of plan.cuh for a rank.
    fn params(&self, algorithm: &str, rank: usize, shape: &Shape, factors: &[u64]) -> Vec<u8> {
        let (mut place, mut parts, mut peers) = self.tables(algorithm, rank, shape);
        place.resize(places(self.ranks), 0);
        parts.resize(2 * self.ranks, 0);
        peers.resize(places(self.ranks), 0);
        let unit = 16 / self.ty.size();
        let part = shape.window.div_ceil(shape.parts(algorithm, self.ranks)).next_multiple_of(unit);
        let slice = part.div_ceil(shape.blocks).next_multiple_of(unit);
        let rounds = shape.count.div_ceil(shape.window).max(1);
        let others = || (0..self.ranks).filter(|&r| r != rank);
        let signalled = others().map(|p| self.word(p, rank));
        let awaited = others().map(|p| self.word(rank, p));
        let half = (2 * self.ranks * SLOT) as u64;
        let mut bytes = Bytes::default()
            .u64s(&[shape.count as u64, shape.window as u64, part as u64, slice as u64])
            .u32s(&[rounds as u32, rank as u32, self.ranks as u32, 0])
            .u64s(&[half, half])
            .u64s(&[self.control[rank], shape.timeout, self.calls])
            .u64s(&[self.state[rank]])
            .u64s(&NOTHING_ANNOUNCED)
            .u64s(&[0, 0, 0, 0])
            .u64s(&place)
            .u64s(&signalled.chain(awaited).collect::<Vec<_>>())
            .u64s(&NO_BOARDS)
            .u32s(&parts);
        bytes.0.extend(others().chain(others()).map(|p| p as u8));
        bytes.0.extend(&peers);
        // Padding of the table of peers, and the table of what is announced: nothing.
        bytes.0.resize((bytes.0.len() + 8 + peers.len()).next_multiple_of(16), 0);
        bytes = bytes.u64s(factors);
        bytes.0.resize(bytes.0.len().next_multiple_of(16), 0);
        bytes.0
    }

    /// Starts a call of some ranks, on inputs that are new; also what each of them should give.
    pub fn start(
        &mut self,
        algorithm: &str,
        op: &str,
        shape: &Shape,
        ranks: &[usize],
    ) -> (Vec<Arc<Launch>>, Vec<u64>) {
        self.calls += 1;
        let (ty, n) = (self.ty, shape.count);
        let inputs: Vec<Vec<u64>> = (0..self.ranks)
            .map(|_| (0..n).map(|_| ty.random(&mut self.random)).collect())
            .collect();
        let factors: Vec<u64> = (0..self.ranks).map(|_| ty.random(&mut self.random)).collect();
        for (r, input) in inputs.iter().enumerate() {
            let bytes = |x: &u64| x.to_le_bytes()[..ty.size()].to_vec();
            let at = (shape.offset * ty.size()) as u64;
            self.rig.write(self.input[r] + at, &input.iter().flat_map(bytes).collect::<Vec<u8>>());
            self.rig.write(self.output[r], &vec![0xA5u8; (n + 2 * shape.offset) * ty.size() + 32]);
        }
        let expected = (0..n)
            .map(|k| ty.reduce(op, &inputs.iter().map(|x| x[k]).collect::<Vec<_>>(), &factors))
            .collect();
        let kernel = format!("{algorithm}_{op}");
        let start = |&r: &usize| {
            let params = self.params(algorithm, r, shape, &factors);
            self.rig.start(&kernel, r as u32, shape.blocks as u32, shape.threads, &params)
        };
        (ranks.iter().map(start).collect(), expected)
    }

    /// One call of all ranks, whose outputs are compared; what differs is the error.
    pub fn run(&mut self, algorithm: &str, op: &str, shape: &Shape) -> Result<(), String> {
        let (launches, expected) =
            self.start(algorithm, op, shape, &(0..self.ranks).collect::<Vec<_>>());
        for launch in &launches {
            self.rig.machine.wait(launch).map_err(|e: Fault| e.to_string())?;
        }
        let (size, n) = (self.ty.size(), shape.count);
        for r in 0..self.ranks {
            let bytes: Vec<u8> = self.rig.read(self.output[r], (n + shape.offset) * size + 16);
            let (before, rest) = bytes.split_at(shape.offset * size);
            let (results, after) = rest.split_at(n * size);
            if before.iter().chain(after).any(|&b| b != 0xA5) {
                return Err(format!(
                    "{algorithm} {op} {shape:?}: rank {r} writes outside its output"
                ));
            }
            for (k, (got, want)) in results.chunks(size).zip(&expected).enumerate() {
                if got != &want.to_le_bytes()[..size] {
                    return Err(format!(
                        "{algorithm} {:?} {op} {shape:?}: rank {r} element {k} is {got:02x?}, not {want:#x}",
                        self.ty
                    ));
                }
            }
            let failed = self.rig.read::<u32>(self.control[r] + 4, 1)[0];
            if failed != 0 {
                return Err(format!("{algorithm} {op} {shape:?}: rank {r} has given up"));
            }
        }
        Ok(())
    }
}

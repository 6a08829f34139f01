//! Tests of results.

use warpmesh::algorithms::NODES;
use warpmesh::plan::Collective;
use warpmesh::primitives::net::rdma::SignalMode;
use warpmesh::{Buffer, Communicator, DataType, RawCall};

use super::cases::{COLLECTIVES, Case, Number, Op, alias, by_type, reduce_op, result, value};
use super::ensure;
use super::harness::{Outcome, lose, lose_no_more};
use super::ranks::{Job, LIMIT, WORLD};

/// Elements repeat after so many: few have to be worked out, and as it is a prime, none that comes to a wrong place is
/// right there.
const PERIOD: usize = 4093;

/// Elements by which inputs and outputs are away from the beginning of their memory.
const OFFSETS: (usize, usize) = (1, 3);

/// 4 MiB of floats.
const LARGE: usize = 1 << 20;

/// Memory for calls of one type: registered and plain, for input and output.
struct Memory<T> {
    registered: [Buffer<T>; 2],
    plain: [Vec<T>; 2],
}

impl<T: Number> Memory<T> {
    /// For blocks of so many elements in all.
    fn new(comm: &mut Communicator, most: usize) -> Outcome<Self> {
        let space = most + OFFSETS.1 + 8;
        let registered = [comm.alloc(space)?, comm.alloc(space)?];
        let plain = [vec![T::of(0); space], vec![T::of(0); space]];
        Ok(Self { registered, plain })
    }
}

/// A call of `count` elements for each block.
fn case(collective: Collective, dtype: DataType, op: Op, count: usize) -> Case {
    Case {
        world: WORLD,
        collective,
        dtype,
        op,
        count,
        root: 2, // not on the first host
        offsets: OFFSETS,
        registered: false,
        symmetric: false,
        in_place: false,
        canonical: false,
        algorithm: None,
    }
}

/// Makes a call, and compares all of its output, and what is beside.
fn check<T: Number>(comm: &mut Communicator, memory: &mut Memory<T>, case: Case) -> Outcome {
    let Case { world, collective, count, root, op, .. } = case;
    let rank = comm.rank();
    let (inputs, outputs) = collective.blocks(world, root, rank);
    let [input, output]: [&mut [T]; 2] = match (case.registered, memory) {
        (true, Memory { registered: [input, output], .. }) => [input, output],
        (false, Memory { plain: [input, output], .. }) => [input, output],
    };
    let place = alias(collective, rank, root, count).filter(|_| case.in_place);
    let (begin_in, begin_out) = match place {
        Some((begin_in, begin_out)) => (OFFSETS.1 + begin_in, OFFSETS.1 + begin_out),
        None => OFFSETS,
    };
    let guard = T::of(3);
    output.fill(guard);
    let from: &mut [T] = if place.is_some() { &mut *output } else { &mut *input };
    for block in 0..inputs {
        let values = |i| T::of(value(op, rank, block, i, world));
        repeat(&mut from[begin_in + block * count..][..count], values);
    }
    let base = from.as_ptr();
    let mut expected = output.to_vec();
    for block in 0..outputs {
        let results = |i| result::<T>(case, rank, block, i);
        repeat(&mut expected[begin_out + block * count..][..count], results);
    }
    let call = RawCall {
        collective,
        dtype: T::DTYPE,
        op: reduce_op::<T>(op, rank),
        root,
        count,
        input: base.wrapping_add(begin_in).cast(),
        output: output.as_mut_ptr().wrapping_add(begin_out).cast(),
    };
    // SAFETY: both memories hold as many elements as the largest call of its blocks from these beginnings on, or the
    // slices above would have panicked; nobody has references to them during the call.
    unsafe { comm.call(&call) }?;
    if bytemuck::cast_slice::<T, u8>(output) == bytemuck::cast_slice::<T, u8>(&expected) {
        return Ok(());
    }
    let wrong = output.iter().zip(&expected).position(|(got, wanted)| got != wanted);
    let at = wrong.unwrap_or(0);
    let (got, wanted) = (output[at], expected[at]);
    Err(format!("element {at} (output from {begin_out}) is {got:?}, not {wanted:?}: {case:?}")
        .into())
}

/// Fills with elements of which only the first are worked out.
fn repeat<T: Copy>(slice: &mut [T], element: impl Fn(usize) -> T) {
    let first: Vec<T> = (0..slice.len().min(PERIOD)).map(element).collect();
    slice.chunks_mut(PERIOD).for_each(|chunk| chunk.copy_from_slice(&first[..chunk.len()]));
}

/// Whether memory is registered, and whether a call is in place.
type Kind = (bool, bool);
const ALL: [Kind; 4] = [(false, false), (false, true), (true, false), (true, true)];
/// Each of the two once.
const BOTH: [Kind; 2] = [(false, false), (true, true)];

/// Calls of these sizes, with memory of these kinds.
fn sizes<T: Number>(
    comm: &mut Communicator,
    case: Case,
    kinds: &[Kind],
    counts: &[usize],
) -> Outcome {
    let most = counts.iter().max().copied().unwrap_or(0);
    let single = matches!(
        case.collective,
        Collective::AllReduce | Collective::Broadcast | Collective::Reduce
    );
    let mut memory = Memory::<T>::new(comm, if single { most } else { most * WORLD })?;
    for &count in counts {
        for &(registered, in_place) in kinds {
            // That has no call in place which users could write.
            let in_place = in_place && case.collective != Collective::AllToAll;
            check(comm, &mut memory, Case { count, registered, in_place, ..case })?;
        }
    }
    Ok(())
}

/// Types and operators of each kind, of each size: half of them for each way of signals, which know nothing of them.
const TYPES: [[(DataType, Op); 4]; 2] = [
    [
        (DataType::F32, Op::Sum),
        (DataType::I8, Op::Max),
        (DataType::F64, Op::Prod),
        (DataType::F16, Op::PreMulSum),
    ],
    [
        (DataType::I64, Op::Sum),
        (DataType::F8E5M2, Op::Sum),
        (DataType::U32, Op::Min),
        (DataType::Bf16, Op::Avg),
    ],
];

/// All-reduce with these types, from one element on.
fn all_reduce(job: &mut Job, signals: SignalMode, types: [(DataType, Op); 4]) -> Outcome {
    let options = job.signals(signals);
    let mut comm = job.communicator(options)?;
    for (dtype, op) in types {
        let case = case(Collective::AllReduce, dtype, op, 0);
        by_type!(dtype, sizes(&mut comm, case, &ALL, &[1, 7, 1001, 65_537]))?;
    }
    let case = case(Collective::AllReduce, DataType::F32, Op::Sum, 0);
    sizes::<f32>(&mut comm, case, &ALL, &[300_007])?;
    // Many rounds: registered memory and other each once, in place and not, since that differs in the first round as in all.
    let mut memory = Memory::<f32>::new(&mut comm, LARGE)?;
    for (registered, in_place) in [(true, true), (false, false)] {
        let case = Case { count: LARGE, registered, in_place, ..case };
        check(&mut comm, &mut memory, case)?;
    }
    Ok(())
}

pub fn all_reduce_by_fetch_add(job: &mut Job) -> Outcome {
    all_reduce(job, SignalMode::FetchAdd, TYPES[0])
}

pub fn all_reduce_by_immediate(job: &mut Job) -> Outcome {
    all_reduce(job, SignalMode::Immediate, TYPES[1])
}

fn collectives(comm: &mut Communicator, kinds: &[Kind], counts: &[usize]) -> Outcome {
    for collective in COLLECTIVES {
        for (dtype, op) in [(DataType::F32, Op::Sum), (DataType::I8, Op::Max)] {
            let case = case(collective, dtype, op, 0);
            by_type!(dtype, sizes(comm, case, kinds, counts))?;
        }
        comm.barrier()?;
    }
    Ok(())
}

pub fn collectives_by_fetch_add(job: &mut Job) -> Outcome {
    let options = job.signals(SignalMode::FetchAdd);
    collectives(&mut job.communicator(options)?, &ALL, &[1, 1001, 50_001])
}

pub fn collectives_by_immediate(job: &mut Job) -> Outcome {
    let options = job.signals(SignalMode::Immediate);
    collectives(&mut job.communicator(options)?, &ALL, &[1, 1001, 50_001])
}

/// Each plan that there is for several hosts, also where the selection would take another.
pub fn every_plan_between_hosts(job: &mut Job) -> Outcome {
    let mut names: Vec<_> = NODES.iter().map(|algorithm| algorithm.name).collect();
    names.sort_unstable();
    names.dedup();
    for (i, name) in names.into_iter().enumerate() {
        let signals = [SignalMode::FetchAdd, SignalMode::Immediate][i % 2];
        let builder = Communicator::builder().timeout(LIMIT).algorithm(name);
        let options = job.signals(signals);
        let mut comm = job.communicator_with(options, builder)?;
        let of_name = NODES.iter().filter(|a| a.name == name);
        for collective in of_name.map(|a| a.collective).filter(|c| *c != Collective::Barrier) {
            let case = case(collective, DataType::Bf16, Op::Sum, 0);
            let registered = name.ends_with("_direct");
            let case = Case { algorithm: Some(name), registered, ..case };
            by_type!(DataType::Bf16, sizes(&mut comm, case, &ALL, &[3, 10_007]))?;
        }
        comm.barrier()?;
    }
    Ok(())
}

/// What rank `from` sends to `to`.
fn letter(from: usize, to: usize, count: usize) -> Vec<u64> {
    (0..count as u64).map(|i| i * 16 + (from * WORLD + to) as u64).collect()
}

/// Letters around both ways, to ranks of this host and of the other, and blocks of different sizes.
fn letters(comm: &mut Communicator, counts: &[usize]) -> Outcome {
    let me = comm.rank();
    for &count in counts {
        let others = (0..WORLD).filter(|peer| *peer != me);
        let letters: Vec<_> = others.clone().map(|peer| (peer, letter(me, peer, count))).collect();
        let mut got: Vec<_> = others.map(|peer| (peer, vec![0; count])).collect();
        comm.group(|group| {
            letters.iter().try_for_each(|(peer, letter)| group.send(letter, *peer))?;
            got.iter_mut().try_for_each(|(peer, letter)| group.recv(letter, *peer))
        })?;
        for (peer, got) in &got {
            ensure!(*got == letter(*peer, me, count), "a letter of {count} from rank {peer}");
        }
    }
    // Rank a sends (a + 1) * (b % 3) * 1000 elements to b: some blocks are empty.
    let count = |a: usize, b: usize| (a + 1) * (b % 3) * 1000;
    let send: Vec<usize> = (0..WORLD).map(|peer| count(me, peer)).collect();
    let receive: Vec<usize> = (0..WORLD).map(|peer| count(peer, me)).collect();
    let input: Vec<u64> = (0..WORLD).flat_map(|peer| letter(me, peer, count(me, peer))).collect();
    let mut output = vec![0; receive.iter().sum()];
    comm.all_to_all_v(&input, &send, &mut output, &receive)?;
    let wanted: Vec<u64> = (0..WORLD).flat_map(|peer| letter(peer, me, count(peer, me))).collect();
    ensure!(output == wanted, "blocks of different sizes");
    Ok(())
}

pub fn letters_and_uneven_blocks(job: &mut Job) -> Outcome {
    for signals in [SignalMode::FetchAdd, SignalMode::Immediate] {
        let options = job.signals(signals);
        letters(&mut job.communicator(options)?, &[1, 1001, 150_001])?;
    }
    Ok(())
}

/// Nobody waits for the others after the last call: what a rank has sent before it leaves arrives, and counts although it
/// has left. (Signals by immediate data count when they are polled, news of ranks that leave at once.)
pub fn ranks_leave_when_they_are_done(job: &mut Job) -> Outcome {
    for round in 0..8 {
        let signals = [SignalMode::Immediate, SignalMode::FetchAdd][usize::from(round % 4 == 3)];
        let options = job.signals(signals);
        let mut comm = job.communicator(options)?;
        let mut word = [job.rank as u64];
        // Its root is done when it has sent, and so is a rank that it is first sent to.
        comm.broadcast(&mut word, round % WORLD)?;
        ensure!(word == [(round % WORLD) as u64], "{word:?} from rank {}", round % WORLD);
        letters(&mut comm, &[1])?;
    }
    Ok(())
}

/// Two packets of a hundred are lost, in both directions.
pub fn loss_of_2_percent(job: &mut Job) -> Outcome {
    if job.rank == 0 {
        lose()?;
    }
    job.barrier()?;
    let result = under_loss(job).and_then(|()| job.barrier());
    // In any case, since other tests come.
    let lost = if job.rank == 0 { lose_no_more() } else { Ok(()) };
    result.and(lost)
}

fn under_loss(job: &mut Job) -> Outcome {
    for signals in [SignalMode::FetchAdd, SignalMode::Immediate] {
        let options = job.lossy(signals);
        let mut comm = job.communicator(options)?;
        let case = case(Collective::AllReduce, DataType::F32, Op::Sum, 0);
        // What is lost knows nothing of places.
        sizes::<f32>(&mut comm, case, &BOTH, &[1, 1001, 300_007])?;
        collectives(&mut comm, &BOTH, &[5003])?;
        letters(&mut comm, &[1, 20_001])?;
    }
    Ok(())
}

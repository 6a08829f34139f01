//! The machine's terms of the cost model: measured once, and kept in the user's cache folder.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use warpmesh_primitives::packet::{Flag, LINE_DATA, Line};

use crate::cost::Machine;
use crate::host::fold;

/// What is kept: terms belong to one kind of machine.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    machine: Machine,
}

/// Measured terms of another version of this file are measured again.
const VERSION: u32 = 4;

/// The terms of this machine: from the cache folder, or measured now (some milliseconds) and
/// written there. Nothing here can fail: without a cache folder it is measured each time.
pub(crate) fn terms() -> Machine {
    // In a thread of its own, on all cores: ranks are often bound to one, and what lies between
    // cores is what counts.
    let measured = std::thread::scope(|scope| scope.spawn(kept_or_measured).join());
    measured.unwrap_or(Machine::TYPICAL)
}

fn kept_or_measured() -> Machine {
    let cores = warpmesh_primitives::host::go_on_any_core();
    let file = file(cores);
    let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
    if let Some(kept) = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok())
        && kept.version == VERSION
        && is_sane(&kept.machine)
    {
        return kept.machine;
    }
    let machine = measure(cores);
    if let Some(file) = file {
        keep(&file, &machine);
    }
    machine
}

fn is_sane(machine: &Machine) -> bool {
    let Machine { hop, switch, message, cached, uncached, packet, shared, shared_far, .. } =
        *machine;
    let Machine { trip, network, post, .. } = *machine;
    [hop, switch, message, cached, uncached, packet, shared, shared_far, trip, network, post]
        .iter()
        .all(|t| t.is_finite() && *t > 0.0)
}

/// One file per processor model and number of cores.
fn file(cores: usize) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).unwrap_or("unknown");
    let model = model.rsplit(':').next().unwrap_or(model).trim();
    let plain: String =
        model.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Some(cache.join("warpmesh").join(format!("machine-{plain}-{cores}.json")))
}

/// Written beside and renamed, so that a reader never sees half a file.
fn keep(file: &std::path::Path, machine: &Machine) {
    let kept = Kept { version: VERSION, machine: *machine };
    let beside = file.with_extension(format!("{}.tmp", std::process::id()));
    let written =
        serde_json::to_vec_pretty(&kept).map_err(std::io::Error::other).and_then(|json| {
            std::fs::create_dir_all(file.parent().unwrap_or(file))?;
            std::fs::write(&beside, json)?;
            std::fs::rename(&beside, file)
        });
    if let Err(error) = written {
        tracing::debug!(%error, file = %file.display(), "the machine's terms were not kept");
    }
}

fn measure(cores: usize) -> Machine {
    let typical = Machine::TYPICAL;
    let switch = hop(true).unwrap_or(typical.switch);
    let hop = if cores > 1 { hop(false).unwrap_or(typical.hop) } else { switch };
    let or = |measured: Option<f64>, typical: f64| match measured {
        Some(measured) if cores > 1 => measured,
        _ => typical,
    };
    let (cached, uncached) = (copying(128 << 10, 40), copying(16 << 20, 2));
    Machine {
        hop,
        switch,
        message: (hop / 5.0).clamp(5.0, 100.0),
        cached,
        uncached: uncached.max(cached),
        packet: or(packet(hop), typical.packet),
        switched: None,
        shared: or(shared(hop, cached, EXCHANGED), typical.shared),
        shared_far: or(shared(hop, cached, FAR), typical.shared_far),
        ..typical
    }
}

/// Nanoseconds from a store to its sight by another thread. On one core each look that fails gives
/// the core away, so it is a switch.
fn hop(one_core: bool) -> Option<f64> {
    let words = [AtomicU64::new(0), AtomicU64::new(0)];
    let trip = rally(
        Start { one_core, together: false },
        |side, turn| words[1 - side].store(turn, Ordering::Release),
        |side, turn| words[side].load(Ordering::Acquire) >= turn,
    );
    trip.map(|both_ways| both_ways / 2.0)
}

/// Bytes that are exchanged to measure what a byte costs: some packets, half a first-level cache.
const EXCHANGED: usize = 64 * LINE_DATA;

/// A block that travels as a stream.
const FAR: usize = 256 << 10;

/// Nanoseconds to load or store a byte as a packet, while the other core does the same.
fn packet(hop: f64) -> Option<f64> {
    let lines = || (0..EXCHANGED / LINE_DATA).map(|_| Line::default()).collect::<Vec<_>>();
    // Two boxes a side, in turn: what came last is read while the next is on its way.
    let boxes = [[lines(), lines()], [lines(), lines()]];
    let data = [7_u64; LINE_DATA / 8];
    let time = rally(
        Start { one_core: false, together: true },
        |side, turn| {
            let to = &boxes[1 - side][turn as usize % 2];
            to.iter().for_each(|line| line.write(&data, Flag::new(turn, 0)));
        },
        |side, turn| {
            let read = |line: &Line| line.try_read(Flag::new(turn, 0), &mut [0; LINE_DATA / 8]);
            boxes[side][turn as usize % 2].iter().rev().all(|line| read(line).is_ok())
        },
    )?;
    Some(((time - hop) / (2 * EXCHANGED) as f64).max(0.001))
}

/// Nanoseconds to load or store a byte of memory that the other core uses, too, beyond those of a
/// byte that it does not.
fn shared(hop: f64, cached: f64, bytes: usize) -> Option<f64> {
    let words = || (0..bytes / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let boxes = [[words(), words()], [words(), words()]];
    let turns = [AtomicU64::new(0), AtomicU64::new(0)];
    let time = rally(
        Start { one_core: false, together: true },
        |side, turn| {
            let to = &boxes[side][turn as usize % 2];
            // Relaxed: the turn's Release store publishes them.
            to.iter().for_each(|word| word.store(turn, Ordering::Relaxed));
            turns[side].store(turn, Ordering::Release);
        },
        |side, turn| {
            turns[1 - side].load(Ordering::Acquire) >= turn && {
                let from = &boxes[1 - side][turn as usize % 2];
                // Relaxed: after the Acquire load of the turn.
                let sum = from.iter().fold(0, |sum: u64, w| sum ^ w.load(Ordering::Relaxed));
                std::hint::black_box(sum);
                true
            }
        },
    )?;
    Some(((time - 2.0 * hop) / (2 * bytes) as f64 - cached).max(0.001))
}

/// How a rally starts: both threads on one core or not, both sending at once or by turns.
#[derive(Clone, Copy)]
struct Start {
    one_core: bool,
    together: bool,
}

/// Lets two threads `send(side, turn)` and wait until `arrived(side, turn)`, and returns the
/// nanoseconds of a turn: the least of many batches, since whatever else runs on the machine makes
/// it only longer. None if it took too long.
fn rally(
    Start { one_core, together }: Start,
    send: impl Fn(usize, u64) + Sync,
    arrived: impl Fn(usize, u64) -> bool + Sync,
) -> Option<f64> {
    let limit = Instant::now() + LIMIT;
    let over = AtomicBool::new(false);
    let wait = |side: usize, turn: u64| {
        let mut looks = 0_u32;
        while !arrived(side, turn) {
            looks += 1;
            if one_core || looks.is_multiple_of(256) {
                std::thread::yield_now();
                // Relaxed: the flag only ends the measurement, it publishes nothing.
                if over.load(Ordering::Relaxed) || Instant::now() > limit {
                    over.store(true, Ordering::Relaxed);
                    return false;
                }
            }
            std::hint::spin_loop();
        }
        true
    };
    let start = |side: usize| {
        warpmesh_primitives::host::stay_on_core(if one_core { 0 } else { side });
        let mut best = None;
        for batch in 0..BATCHES {
            let begin = Instant::now();
            for turn in batch * TRIPS + 1..=(batch + 1) * TRIPS {
                // By turns, side 0 begins and side 1 answers.
                if side == 0 || together {
                    send(side, turn);
                }
                if !wait(side, turn) {
                    return best;
                }
                if side == 1 && !together {
                    send(side, turn);
                }
            }
            let time = begin.elapsed().as_nanos() as f64 / TRIPS as f64;
            best = Some(best.map_or(time, |best: f64| best.min(time)));
            if Instant::now() > limit {
                over.store(true, Ordering::Relaxed);
                break;
            }
        }
        best
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| start(1));
        let first = scope.spawn(|| start(0));
        let _ = other.join();
        first.join().ok().flatten()
    })
}

const BATCHES: u64 = 50;
const TRIPS: u64 = 10;

/// No measurement takes longer.
const LIMIT: Duration = Duration::from_millis(10);

/// Nanoseconds per byte moved (loaded or stored) by a copy of `bytes` bytes.
fn copying(bytes: usize, times: u32) -> f64 {
    let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    let copy = |to: &mut Vec<u8>| {
        // SAFETY: both have `bytes` bytes and are different allocations.
        unsafe { fold::copy(&[to.as_mut_ptr()], from.as_ptr(), bytes, false) };
        std::hint::black_box(to);
    };
    copy(&mut to);
    let best = least(times, || copy(&mut to));
    best / bytes as f64 / 2.0
}

fn least(times: u32, mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_nanos() as f64
    };
    (0..times).map(time).fold(f64::MAX, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_is_quick_and_gives_terms() {
        let start = Instant::now();
        let machine = measure(warpmesh_primitives::host::usable_cores());
        assert!(is_sane(&machine), "{machine:?}");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

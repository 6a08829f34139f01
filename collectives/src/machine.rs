//! The machine's terms of the cost model: measured once, and kept in the user's cache folder.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
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
const VERSION: u32 = 1;

/// The terms of this machine: from the cache folder, or measured now (some milliseconds) and
/// written there. Nothing here can fail: without a cache folder it is measured each time.
pub(crate) fn terms() -> Machine {
    let file = file();
    let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
    if let Some(kept) = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok())
        && kept.version == VERSION
        && is_sane(&kept.machine)
    {
        return kept.machine;
    }
    let machine = measure();
    if let Some(file) = file {
        keep(&file, &machine);
    }
    machine
}

fn is_sane(machine: &Machine) -> bool {
    let Machine {
        hop,
        switch,
        message,
        cached,
        uncached,
        packet,
    } = *machine;
    [hop, switch, message, cached, uncached, packet]
        .iter()
        .all(|t| t.is_finite() && *t > 0.0)
}

/// One file per processor model and number of cores.
fn file() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home)?;
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .unwrap_or("unknown");
    let model = model.rsplit(':').next().unwrap_or(model).trim();
    let plain: String = model
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let cores = warpmesh_primitives::host::usable_cores();
    Some(
        cache
            .join("warpmesh")
            .join(format!("machine-{plain}-{cores}.json")),
    )
}

/// Written beside and renamed, so that a reader never sees half a file.
fn keep(file: &std::path::Path, machine: &Machine) {
    let kept = Kept {
        version: VERSION,
        machine: *machine,
    };
    let beside = file.with_extension(format!("{}.tmp", std::process::id()));
    let written = serde_json::to_vec_pretty(&kept)
        .map_err(std::io::Error::other)
        .and_then(|json| {
            std::fs::create_dir_all(file.parent().unwrap_or(file))?;
            std::fs::write(&beside, json)?;
            std::fs::rename(&beside, file)
        });
    if let Err(error) = written {
        tracing::debug!(%error, file = %file.display(), "the machine's terms were not kept");
    }
}

fn measure() -> Machine {
    let cores = warpmesh_primitives::host::usable_cores();
    let typical = Machine::TYPICAL;
    let hop = if cores > 1 {
        ping_pong(500)
    } else {
        typical.switch
    };
    let (cached, uncached) = (copying(128 << 10, 40), copying(16 << 20, 2));
    Machine {
        hop,
        switch: yielding(200),
        message: (hop / 5.0).clamp(5.0, 100.0),
        cached,
        uncached: uncached.max(cached),
        packet: packing(16 << 10, 100),
    }
}

/// Nanoseconds from a store to its sight on another core: half a round trip, the least of several
/// batches, since everything else makes it only longer.
fn ping_pong(trips: u64) -> f64 {
    let words = [AtomicU64::new(0), AtomicU64::new(0)];
    let limit = Instant::now() + Duration::from_millis(20);
    let answer = |mine: &AtomicU64, theirs: &AtomicU64, value: u64| {
        let mut looks = 0_u32;
        while mine.load(Ordering::Acquire) < value {
            looks += 1;
            // The other thread may not be scheduled yet; the clock bounds a machine that never does.
            if looks.is_multiple_of(1000) {
                std::thread::yield_now();
                if Instant::now() > limit {
                    return false;
                }
            }
            std::hint::spin_loop();
        }
        theirs.store(value, Ordering::Release);
        true
    };
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=4 * trips).all(|value| answer(&words[0], &words[1], value)));
        let mut best = f64::MAX;
        for batch in 0..4 {
            let start = Instant::now();
            for value in batch * trips + 1..=(batch + 1) * trips {
                words[0].store(value, Ordering::Release);
                let mut looks = 0_u32;
                while words[1].load(Ordering::Acquire) < value {
                    looks += 1;
                    if looks.is_multiple_of(1000) && Instant::now() > limit {
                        // Lets the other thread run to its end.
                        words[0].store(u64::MAX, Ordering::Release);
                        return Machine::TYPICAL.hop.min(best);
                    }
                    std::hint::spin_loop();
                }
            }
            best = best.min(start.elapsed().as_nanos() as f64 / trips as f64 / 2.0);
        }
        best
    })
}

/// Nanoseconds to give the core to another thread that wants it: what a wait costs at least when
/// ranks share cores.
fn yielding(times: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        std::thread::yield_now();
    }
    // A yield that finds nobody is a system call; a switch to another process costs about three.
    (start.elapsed().as_nanos() as f64 / f64::from(times) * 3.0).clamp(300.0, 10_000.0)
}

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

/// Nanoseconds per byte moved as packets, within one cache.
fn packing(bytes: usize, times: u32) -> f64 {
    let lines: Vec<Line> = (0..bytes.div_ceil(LINE_DATA))
        .map(|_| Line::default())
        .collect();
    let mut data = [7_u64; LINE_DATA / 8];
    let mut epoch = 0;
    let best = least(times, || {
        epoch += 1;
        let flag = Flag::new(epoch, 0);
        for line in &lines {
            line.write(&data, flag);
        }
        for line in &lines {
            let _ = line.try_read(flag, &mut data);
        }
        std::hint::black_box(&data);
    });
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
        let machine = measure();
        assert!(is_sane(&machine), "{machine:?}");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
}

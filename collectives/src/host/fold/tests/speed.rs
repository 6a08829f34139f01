//! Times, printed on request: `cargo test --release -p warpmesh speed -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

/// Seconds of one call: the best of several batches, since other work only ever adds time.
fn seconds(mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    call();
    let once = start.elapsed().as_secs_f64().max(1e-8);
    let batch = (2e-3 / once).ceil() as usize;
    for _ in 0..30 {
        let start = Instant::now();
        (0..batch).for_each(|_| call());
        best = best.min(start.elapsed().as_secs_f64() / batch as f64);
    }
    best
}

/// What is summed: type, sources, destinations.
const SUMS: [(DataType, usize, usize); 12] = [
    (DataType::F32, 2, 1),
    (DataType::F32, 2, 2),
    (DataType::F32, 2, 8),
    (DataType::F32, 8, 1),
    (DataType::F64, 2, 1),
    (DataType::I32, 2, 1),
    (DataType::I8, 2, 1),
    (DataType::Bf16, 2, 1),
    (DataType::Bf16, 8, 1),
    (DataType::F16, 2, 1),
    (DataType::F8E4M3, 2, 1),
    (DataType::F8E5M2, 2, 1),
];

/// Operands of the same size, and memcpy's time to move a byte of one.
struct Bench {
    level: Level,
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    memcpy: f64,
}

impl Bench {
    fn new(level: Level, bytes: usize) -> Self {
        let buffers = vec![vec![1; bytes + 64]; 16];
        let mut bench = Self {
            level,
            buffers,
            bytes,
            memcpy: f64::NAN,
        };
        let (from, to) = (bench.at(0), bench.at(8));
        // SAFETY: two buffers of as many bytes.
        let time = seconds(|| unsafe { to.copy_from_nonoverlapping(from, bytes) });
        bench.memcpy = time / (2 * bytes) as f64;
        bench.report("memcpy", 2, bytes, time);
        bench
    }

    fn at(&mut self, i: usize) -> *mut u8 {
        let base = self.buffers[i].as_mut_ptr();
        base.wrapping_add(base.align_offset(64))
    }

    fn report(&self, name: &str, operands: usize, elements: usize, time: f64) {
        let moved = (operands * self.bytes) as f64;
        println!(
            "{:?} {:>5} KiB {name:<18} {:>6.1} GB/s {:>7.2} Gelem/s {:>6.2} of memcpy's time",
            self.level,
            self.bytes >> 10,
            moved / time / 1e9,
            elements as f64 / time / 1e9,
            time / moved / self.memcpy,
        );
    }

    fn sum(&mut self, (dtype, n, m): (DataType, usize, usize), in_place: bool, streaming: bool) {
        let from: Vec<Source> = (0..n)
            .map(|i| Source {
                at: self.at(i),
                partial: false,
                scale: 0,
            })
            .collect();
        let first = if in_place { 0 } else { 8 };
        let to: Vec<Dest> = (first..first + m)
            .map(|i| Dest {
                at: self.at(i),
                partial: false,
            })
            .collect();
        let fold = fold_at(self.level, dtype, OpKind::Sum);
        let args = FoldArgs { world: 1 };
        let count = self.bytes / dtype.size();
        // SAFETY: buffers of as many bytes; a destination is a source or none.
        let time = seconds(|| unsafe { fold(&to, &from, count, &args, streaming) });
        let note = if in_place {
            " in place"
        } else {
            streamed(streaming)
        };
        self.report(&format!("{dtype} {n}->{m}{note}"), n + m, count, time);
    }

    fn copies(&mut self, m: usize, streaming: bool) {
        let from = self.at(0);
        let to: Vec<*mut u8> = (8..8 + m).map(|i| self.at(i)).collect();
        let bytes = self.bytes;
        // SAFETY: distinct buffers of as many bytes.
        let time = seconds(|| unsafe { copy(&to, from, bytes, streaming) });
        self.report(
            &format!("copy 1->{m}{}", streamed(streaming)),
            1 + m,
            bytes,
            time,
        );
    }
}

fn streamed(streaming: bool) -> &'static str {
    if streaming { " streamed" } else { "" }
}

#[test]
#[ignore = "prints times, asserts nothing"]
fn speed() {
    for level in Level::here() {
        for bytes in [4 << 10, 256 << 10, 16 << 20] {
            let mut bench = Bench::new(level, bytes);
            for streaming in [false, true] {
                SUMS.into_iter()
                    .for_each(|sum| bench.sum(sum, false, streaming));
                [1, 2, 8]
                    .into_iter()
                    .for_each(|m| bench.copies(m, streaming));
            }
            bench.sum((DataType::F32, 2, 1), true, false);
        }
    }
}

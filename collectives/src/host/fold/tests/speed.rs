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

fn report(name: &str, bytes: usize, moved: usize, elements: usize, memcpy: f64, time: f64) {
    println!(
        "{name:<18} {bytes:>9} B {:>7.1} GB/s {:>7.2} Gelem/s {:>5.2} of memcpy's time a byte",
        moved as f64 / time / 1e9,
        elements as f64 / time / 1e9,
        (time / moved as f64) / memcpy,
    );
}

#[test]
#[ignore = "prints times, asserts nothing"]
fn speed() {
    const MOST: usize = 16 << 20;
    let mut buffers: Vec<Vec<u64>> = (0..17).map(|_| vec![0; MOST / 8 + 8]).collect();
    // As pages of a buffer are: not to share one zero page, and at 64 bytes.
    let at: Vec<*mut u8> = buffers
        .iter_mut()
        .map(|buffer| {
            buffer.fill(0);
            let base = buffer.as_mut_ptr().cast::<u8>();
            base.wrapping_add(base.align_offset(64))
        })
        .collect();
    let sources: Vec<Source> = at[..8]
        .iter()
        .map(|&at| Source { at, partial: false })
        .collect();
    let dests: Vec<Dest> = at[8..]
        .iter()
        .map(|&at| Dest { at, partial: false })
        .collect();
    let args = FoldArgs { scale: 0, world: 1 };
    for level in Level::here() {
        println!("{level:?}");
        for bytes in [4 << 10, 256 << 10, MOST] {
            // SAFETY: two buffers of at least as many bytes.
            let time = seconds(|| unsafe { at[8].copy_from_nonoverlapping(at[0], bytes) });
            let memcpy = time / (2 * bytes) as f64;
            report("memcpy", bytes, 2 * bytes, bytes, memcpy, time);
            for streaming in [false, true] {
                for (dtype, n, m) in [
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
                ] {
                    let fold = fold_at(level, dtype, OpKind::Sum);
                    let count = bytes / dtype.size();
                    // SAFETY: distinct buffers of at least as many bytes.
                    let time = seconds(|| unsafe {
                        fold(&dests[..m], &sources[..n], count, &args, streaming);
                    });
                    let name = format!("{dtype} {n}->{m}{}", if streaming { " nt" } else { "" });
                    report(&name, bytes, (n + m) * bytes, count, memcpy, time);
                }
                for m in [1, 2, 8] {
                    // SAFETY: distinct buffers of at least as many bytes.
                    let time = seconds(|| unsafe { copy(&at[8..8 + m], at[0], bytes, streaming) });
                    let name = format!("copy 1->{m}{}", if streaming { " nt" } else { "" });
                    report(&name, bytes, (1 + m) * bytes, bytes, memcpy, time);
                }
            }
        }
    }
}

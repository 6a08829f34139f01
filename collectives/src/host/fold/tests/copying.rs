//! Copies.

use super::*;

fn check(bytes: usize, dests: usize, shift: usize, skew: usize, streaming: bool) {
    let contents: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 256) as u8).collect();
    let mut source = Buffer::new(&contents, shift);
    let mut targets: Vec<Buffer> =
        (1..=dests).map(|i| Buffer::new(&vec![0; bytes], shift + i * skew)).collect();
    let mut to: Vec<*mut u8> = targets.iter_mut().map(Buffer::at).collect();
    // SAFETY: distinct buffers of as many bytes.
    unsafe { copy(&to, source.at(), bytes, streaming) };
    // One more of them: the source itself.
    to.insert(dests / 2, source.at());
    // SAFETY: the same, and the source.
    unsafe { copy(&to, source.at(), bytes, streaming) };
    assert_eq!(source.bytes(), contents);
    for target in &targets {
        assert_eq!(target.bytes(), contents, "{bytes} bytes, {shift}+{skew}, {streaming}");
    }
}

#[test]
fn all_bytes_arrive_and_no_others_change() {
    for bytes in [0, 1, 2, 63, 64, 65, 127, 1000, 8191, 8192, 8193, 30_000] {
        for dests in [1, 2, 8] {
            for (shift, skew) in [(0, 0), (0, 1), (7, 0), (16, 8), (60, 5)] {
                for streaming in [false, true] {
                    check(bytes, dests, shift, skew, streaming);
                }
            }
        }
    }
}

#[test]
fn a_copy_to_nowhere_or_to_itself_is_none() {
    let mut buffer = Buffer::new(&[1, 2, 3], 0);
    let at = buffer.at();
    // SAFETY: three bytes; a destination may be the source.
    unsafe {
        copy(&[], at, 3, true);
        copy(&[at], at, 3, false);
        copy(&[at], at, 3, true);
    }
    assert_eq!(buffer.bytes(), [1, 2, 3]);
}

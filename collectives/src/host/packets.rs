//! Bytes to packets and back.

use warpmesh_primitives::packet::{Flag, LINE_DATA, Line, NotYet, lines_for};

const WORDS: usize = LINE_DATA / 8;

/// Lines that an operand of `bytes` takes: at least one, so that even an empty part tells its
/// reader that the writer has come.
pub(super) fn lines(bytes: usize) -> usize {
    lines_for(bytes).max(1)
}

/// Writes `bytes` bytes from `from` as packets.
///
/// # Safety
/// `from` is good for reading `bytes` bytes; `to` for [`lines`]`(bytes)` lines, of which this
/// thread is the only writer now.
pub(super) unsafe fn pack(to: *const Line, from: *const u8, bytes: usize, flag: Flag) {
    let whole = bytes / LINE_DATA;
    for i in 0..whole {
        // SAFETY: a whole line's bytes are left of the source; lines are made of atomics.
        unsafe {
            let data = from.add(i * LINE_DATA).cast::<[u64; WORDS]>().read_unaligned();
            (*to.add(i)).write(&data, flag);
        }
    }
    let rest = bytes - whole * LINE_DATA;
    if rest > 0 || whole == 0 {
        let mut data = [0_u64; WORDS];
        // SAFETY: `rest` bytes are left of the source, and fit a line's data.
        unsafe {
            let at = from.add(whole * LINE_DATA);
            std::ptr::copy_nonoverlapping(at, data.as_mut_ptr().cast::<u8>(), rest);
            (*to.add(whole)).write(&data[..rest.div_ceil(8)], flag);
        }
    }
}

/// Reads packets into `to`, if all of them are there.
///
/// Only the last one's flag is looked at: the writer stores them in order, so whoever sees the last
/// flag sees all of them, and a reader that waits does not take the lines away from the writer one
/// by one.
///
/// # Safety
/// `to` is good for writing `bytes` bytes, `from` for [`lines`]`(bytes)` lines, written by one
/// [`pack`].
pub(super) unsafe fn unpack(
    to: *mut u8,
    from: *const Line,
    bytes: usize,
    flag: Flag,
) -> Result<(), NotYet> {
    // SAFETY: the caller's contract.
    unsafe { arrived(from, bytes, flag)? };
    let whole = bytes / LINE_DATA;
    let mut data = [0_u64; WORDS];
    for i in 0..whole {
        // SAFETY: a whole line's bytes are left of the destination; lines are made of atomics.
        unsafe {
            (*from.add(i)).read_after_last(&mut data);
            to.add(i * LINE_DATA).cast::<[u64; WORDS]>().write_unaligned(data);
        }
    }
    let rest = bytes - whole * LINE_DATA;
    if rest > 0 {
        // SAFETY: `rest` bytes are left of the destination.
        unsafe {
            (*from.add(whole)).read_after_last(&mut data[..rest.div_ceil(8)]);
            let at = to.add(whole * LINE_DATA);
            std::ptr::copy_nonoverlapping(data.as_ptr().cast::<u8>(), at, rest);
        }
    }
    Ok(())
}

/// Whether all packets of `bytes` bytes are there: whether the last one is.
///
/// # Safety
/// `from` is good for [`lines`]`(bytes)` lines, written by one [`pack`].
pub(super) unsafe fn arrived(from: *const Line, bytes: usize, flag: Flag) -> Result<(), NotYet> {
    // SAFETY: the caller's contract; lines are made of atomics.
    unsafe { &*from.add(lines(bytes) - 1) }.try_read(flag, &mut [])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_survives_and_nothing_else_is_touched() {
        let packets: Vec<Line> = (0..8).map(|_| Line::default()).collect();
        for bytes in [0, 1, 7, 8, 55, 56, 57, 112, 200] {
            let data: Vec<u8> = (0..bytes).map(|i| i as u8 + 1).collect();
            let flag = Flag::new(bytes as u64 + 1, 5);
            let mut back = vec![0xee_u8; bytes + 8];
            // SAFETY: 8 lines are 448 bytes of data, more than any `bytes`.
            unsafe {
                assert!(arrived(packets.as_ptr(), bytes, flag).is_err());
                pack(packets.as_ptr(), data.as_ptr(), bytes, flag);
                assert!(arrived(packets.as_ptr(), bytes, flag).is_ok());
                unpack(back.as_mut_ptr(), packets.as_ptr(), bytes, flag).unwrap();
            }
            assert_eq!(back[..bytes], data);
            assert!(back[bytes..].iter().all(|byte| *byte == 0xee));
        }
    }
}

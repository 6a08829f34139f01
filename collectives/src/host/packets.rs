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
    for i in 0..lines(bytes) {
        // SAFETY: the caller's contract; lines are made of atomics.
        let line = unsafe { &*to.add(i) };
        let rest = (bytes - (i * LINE_DATA).min(bytes)).min(LINE_DATA);
        let mut data = [0_u64; WORDS];
        // SAFETY: `rest` bytes are left of the source, and at most a line's fit `data`.
        unsafe {
            let at = from.add(i * LINE_DATA);
            std::ptr::copy_nonoverlapping(at, data.as_mut_ptr().cast::<u8>(), rest);
        }
        line.write(&data[..rest.div_ceil(8)], flag);
    }
}

/// Reads packets into `to`, from line `*next` on, which counts up; stops at the first that is not
/// there.
///
/// # Safety
/// `to` is good for writing `bytes` bytes, `from` for [`lines`]`(bytes)` lines.
pub(super) unsafe fn unpack(
    to: *mut u8,
    from: *const Line,
    bytes: usize,
    flag: Flag,
    next: &mut usize,
) -> Result<(), NotYet> {
    while *next < lines(bytes) {
        // SAFETY: the caller's contract; lines are made of atomics.
        let line = unsafe { &*from.add(*next) };
        let done = (*next * LINE_DATA).min(bytes);
        let rest = (bytes - done).min(LINE_DATA);
        let mut data = [0_u64; WORDS];
        line.try_read(flag, &mut data[..rest.div_ceil(8)])?;
        // SAFETY: `rest` bytes are left of the destination.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr().cast::<u8>(), to.add(done), rest) };
        *next += 1;
    }
    Ok(())
}

/// Whether all packets of `bytes` bytes are there.
///
/// # Safety
/// `from` is good for [`lines`]`(bytes)` lines.
pub(super) unsafe fn arrived(from: *const Line, bytes: usize, flag: Flag) -> Result<(), NotYet> {
    // SAFETY: the caller's contract; lines are made of atomics.
    (0..lines(bytes)).try_for_each(|i| unsafe { &*from.add(i) }.try_read(flag, &mut []))
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
                let mut next = 0;
                unpack(back.as_mut_ptr(), packets.as_ptr(), bytes, flag, &mut next).unwrap();
                assert_eq!(next, lines(bytes));
            }
            assert_eq!(back[..bytes], data);
            assert!(back[bytes..].iter().all(|byte| *byte == 0xee));
        }
    }
}

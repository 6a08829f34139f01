//! What goes before the data on a connection: 32 bytes, little endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `wmt1` |
//! | 4..8 | number of the frame on this connection, from 0; wraps |
//! | 8..12 | number of the memory that the data goes into |
//! | 12..16 | semaphore that counts up behind it, or all ones for none |
//! | 16..24 | offset in the memory |
//! | 24..32 | bytes that follow |
//!
//! Magic and number are there to notice a peer that is out of step, before anything is written.

/// Bytes of a header.
pub(super) const HEADER: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"wmt1");
const NO_SIGNAL: u32 = u32::MAX;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) number: u32,
    pub(super) memory: u32,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) signal: Option<u32>,
}

impl Frame {
    #[inline]
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let signal = self.signal.unwrap_or(NO_SIGNAL);
        let words = [MAGIC, self.number, self.memory, signal].map(u32::to_le_bytes);
        bytes[..16].copy_from_slice(words.as_flattened());
        let longs = [self.offset, self.bytes].map(u64::to_le_bytes);
        bytes[16..].copy_from_slice(longs.as_flattened());
        bytes
    }

    /// None for bytes that no peer of this version sends.
    #[inline]
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| u32::from_le_bytes(words[at]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 1)) << 32;
        let signal = (word(3) != NO_SIGNAL).then_some(word(3));
        let frame =
            Self { number: word(1), memory: word(2), offset: long(4), bytes: long(6), signal };
        (word(0) == MAGIC).then_some(frame)
    }
}

/// What ranks tell each other before they connect: magic, version, how many semaphores there are.
pub(super) const HELLO: usize = 16;
const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"wmtcp\0\x01\0");

pub(super) fn hello(semaphores: usize) -> [u8; HELLO] {
    let mut bytes = [0; HELLO];
    let words = [HELLO_MAGIC, semaphores as u64].map(u64::to_le_bytes);
    bytes.copy_from_slice(words.as_flattened());
    bytes
}

/// The peer's semaphores; None for bytes that no peer of this version sends.
pub(super) fn read_hello(bytes: &[u8]) -> Option<u64> {
    let bytes: &[u8; HELLO] = bytes.try_into().ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    (u64::from_le_bytes(words[0]) == HELLO_MAGIC).then(|| u64::from_le_bytes(words[1]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hellos_are_checked() {
        assert_eq!(read_hello(&hello(7)), Some(7));
        assert_eq!(read_hello(&hello(7)[..15]), None);
        assert_eq!(read_hello(&[0; HELLO]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_nothing(bytes in prop::array::uniform32(any::<u8>()), ours: bool) {
            let mut bytes = bytes;
            if ours {
                bytes[..4].copy_from_slice(b"wmt1");
            }
            match Frame::decode(&bytes) {
                Some(frame) => prop_assert_eq!(frame.encode(), bytes),
                None => prop_assert!(!ours && bytes[..4] != *b"wmt1"),
            }
        }
    }
}

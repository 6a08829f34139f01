//! Frames on a non-blocking socket, and waiting with a deadline.
//!
//! A frame is a header of 12 bytes, the kind as `u32` and the body's length as `u64`, little endian, and then
//! the body. The reader knows the longest body that can be right at its place in the protocol and refuses a
//! longer one by its header alone; it takes memory as bytes arrive, not as the header promises.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::MAX_CONTRIBUTION;

const HEADER_BYTES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One rank's contribution, to the root.
    Part = 1,
    /// All contributions, from the root. With an empty body: the job starts.
    All = 2,
    /// A `Fault`, from the root, which ends the conversation.
    Fault = 3,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
}

/// Why a frame did not come.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The peer closed, or the connection broke with this error.
    Closed(Option<io::Error>),
    /// The bytes are no frame, or one that is too long.
    Malformed,
}

/// Reads one frame, as far as bytes are there.
pub(super) struct FrameReader {
    longest: u64,
    header: [u8; HEADER_BYTES],
    have: usize,
    body: Vec<u8>,
}

/// Bytes on their way out, as far as the socket takes them.
pub(crate) struct Outgoing<'a> {
    bytes: &'a [u8],
    sent: usize,
}

/// A moment after which nothing is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

/// The frame of `kind` with `body`.
pub(super) fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    header(&mut bytes, kind, body.len());
    bytes.extend_from_slice(body);
    bytes
}

/// The frame that carries `parts` to every rank: their lengths as `u32`, then their bytes.
pub(super) fn frame_of_all(parts: &[Vec<u8>]) -> Vec<u8> {
    let body = parts.iter().map(|part| 4 + part.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body);
    header(&mut bytes, Kind::All, body);
    for part in parts {
        debug_assert!(part.len() <= MAX_CONTRIBUTION);
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// The longest body that [`frame_of_all`] makes for `world` parts.
pub(super) fn longest_of_all(world: usize) -> u64 {
    world as u64 * (4 + MAX_CONTRIBUTION as u64)
}

/// The parts in a body that [`frame_of_all`] made; `None` for any other bytes.
pub(super) fn parts_of(body: &[u8], world: usize) -> Option<Vec<Vec<u8>>> {
    let (lengths, mut rest) = body.split_at_checked(world.checked_mul(4)?)?;
    let mut parts = Vec::with_capacity(world);
    for length in lengths.as_chunks::<4>().0 {
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_CONTRIBUTION {
            return None;
        }
        let (part, after) = rest.split_at_checked(length)?;
        parts.push(part.to_vec());
        rest = after;
    }
    rest.is_empty().then_some(parts)
}

impl Kind {
    fn decode(word: u32) -> Option<Self> {
        [Self::Part, Self::All, Self::Fault].into_iter().find(|&kind| kind as u32 == word)
    }
}

impl FrameReader {
    /// A reader for one frame with a body of at most `longest` bytes.
    pub(super) fn new(longest: u64) -> Self {
        Self { longest, header: [0; HEADER_BYTES], have: 0, body: Vec::new() }
    }

    /// Whether a byte of the frame has come.
    pub(super) fn started(&self) -> bool {
        self.have > 0
    }

    /// Takes what is there and not a byte of the next frame; `None` as long as some of the frame is missing.
    pub(super) fn read(&mut self, mut from: impl Read) -> Result<Option<Frame>, ReadError> {
        if !fill(&mut from, &mut self.header, &mut self.have).map_err(ReadError::Closed)? {
            return Ok(None);
        }
        let (kind, length) = self.checked_header().ok_or(ReadError::Malformed)?;
        let missing = length - self.body.len() as u64;
        match from.take(missing).read_to_end(&mut self.body) {
            Ok(got) if got as u64 == missing => {
                Ok(Some(Frame { kind, body: std::mem::take(&mut self.body) }))
            }
            Ok(_) => Err(ReadError::Closed(None)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(ReadError::Closed(Some(e))),
        }
    }

    fn checked_header(&self) -> Option<(Kind, u64)> {
        let [k0, k1, k2, k3, length @ ..] = self.header;
        let kind = Kind::decode(u32::from_le_bytes([k0, k1, k2, k3]))?;
        let length = u64::from_le_bytes(length);
        (length <= self.longest).then_some((kind, length))
    }
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, sent: 0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Whether some of the bytes are on their way and some are not.
    pub(super) fn is_torn(&self) -> bool {
        self.sent > 0 && !self.is_done()
    }

    /// Nothing more can be sent.
    pub(super) fn give_up(&mut self) {
        self.bytes = &[];
        self.sent = 0;
    }

    /// Sends what the socket takes now.
    pub(crate) fn write(&mut self, mut to: impl Write) -> io::Result<()> {
        while !self.is_done() {
            match to.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.sent += sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        let now = Instant::now();
        // A timeout that no clock can hold is a wish to wait for ever: a year is as good.
        Self(now.checked_add(timeout).unwrap_or(now + Duration::from_secs(365 * 86_400)))
    }

    /// The time that is left; zero when it has passed.
    pub(crate) fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn passed(&self) -> bool {
        self.left().is_zero()
    }
}

/// Fills `buffer` from `have` on; whether it is full. A close before that is `Err(None)`.
pub(crate) fn fill(
    mut from: impl Read,
    buffer: &mut [u8],
    have: &mut usize,
) -> Result<bool, Option<io::Error>> {
    while *have < buffer.len() {
        match from.read(&mut buffer[*have..]) {
            Ok(0) => return Err(None),
            Ok(got) => *have += got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Some(e)),
        }
    }
    Ok(true)
}

/// Blocks until one of `fds` has something to do, or for `longest`. It may also return early with nothing.
pub(crate) fn wait(fds: &mut [PollFd<'_>], longest: Duration) -> io::Result<()> {
    // An hour fits every timespec; whoever waits longer calls again.
    let longest = Timespec::try_from(longest.min(Duration::from_secs(3600)));
    match poll(fds, longest.ok().as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Waits until `stream` can be read, or written if `write`; `false` when the deadline has passed.
pub(crate) fn wait_for(stream: &TcpStream, write: bool, deadline: Deadline) -> io::Result<bool> {
    if deadline.passed() {
        return Ok(false);
    }
    let flags = if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    wait(&mut [PollFd::new(stream, flags)], deadline.left())?;
    Ok(true)
}

fn header(bytes: &mut Vec<u8>, kind: Kind, body: usize) {
    bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    bytes.extend_from_slice(&(body as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A socket that gives its bytes in pieces, and nothing in between.
    struct Drip<'a>(&'a [u8], usize, bool);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = self.1.min(into.len()).min(self.0.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn read_all(bytes: &[u8], piece: usize, longest: u64) -> Result<Frame, ReadError> {
        let mut drip = Drip(bytes, piece, false);
        let mut reader = FrameReader::new(longest);
        for _ in 0..2 * bytes.len() + 4 {
            if let Some(frame) = reader.read(&mut drip)? {
                return Ok(frame);
            }
        }
        panic!("the reader makes no progress");
    }

    #[test]
    fn a_huge_length_is_refused_by_the_header() {
        for length in [5, 1 << 40, u64::MAX] {
            let mut bytes = vec![1, 0, 0, 0];
            bytes.extend_from_slice(&u64::to_le_bytes(length));
            assert!(matches!(read_all(&bytes, 12, 4), Err(ReadError::Malformed)));
        }
    }

    #[test]
    fn a_promise_takes_no_memory() {
        let mut bytes = frame(Kind::Part, &[7; 100]);
        bytes[4..12].copy_from_slice(&u64::to_le_bytes(1 << 39));
        let mut reader = FrameReader::new(u64::MAX);
        let mut drip = Drip(&bytes, 64, true);
        while !matches!(reader.read(&mut drip), Err(ReadError::Closed(None))) {}
        assert!(reader.body.capacity() < 1 << 16);
    }

    #[test]
    fn a_close_inside_a_frame_is_a_close() {
        let bytes = frame(Kind::All, &[1, 2, 3]);
        for cut in 0..bytes.len() {
            assert!(matches!(read_all(&bytes[..cut], 2, 9), Err(ReadError::Closed(None))), "{cut}");
        }
    }

    #[test]
    fn a_deadline_without_end_does_not_overflow() {
        assert!(!Deadline::after(Duration::MAX).passed());
        assert!(Deadline::after(Duration::ZERO).passed());
    }

    proptest! {
        #[test]
        fn frames_round_trip(body in prop::collection::vec(any::<u8>(), 0..200), piece in 1..50usize) {
            let read = read_all(&frame(Kind::Part, &body), piece, 200).unwrap();
            prop_assert_eq!(read, Frame { kind: Kind::Part, body });
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..200),
                                             ours: bool, piece in 1..50usize) {
            if ours && bytes.len() > 12 {
                bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
                bytes[5..12].fill(0);
            }
            let _ = read_all(&bytes, piece, 100);
        }

        #[test]
        fn parts_round_trip(parts in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..40), 1..9)) {
            let bytes = frame_of_all(&parts);
            let longest = longest_of_all(parts.len());
            let read = read_all(&bytes, 64, longest).unwrap();
            prop_assert_eq!(read.kind, Kind::All);
            prop_assert_eq!(parts_of(&read.body, parts.len()), Some(parts));
        }

        #[test]
        fn any_body_is_parts_or_nothing(mut body in prop::collection::vec(any::<u8>(), 0..200),
                                        world in 0..9usize, small: bool) {
            if small {
                for length in body.as_chunks_mut::<4>().0.iter_mut().take(world) {
                    length[1..].fill(0);
                }
            }
            if let Some(parts) = parts_of(&body, world) {
                prop_assert_eq!(&frame_of_all(&parts)[HEADER_BYTES..], &body[..]);
            }
        }
    }
}

//! Frames on a non-blocking socket, and waiting with a deadline.
//!
//! A frame is a header of three little-endian `u32` and a body: the kind, a rank that the kind says the meaning of
//! (0 where it has none), and the body's length. What is long goes as many frames of at most [`PIECE`] bytes, so that
//! word of a failure never has to wait behind more than that. The reader refuses a longer body by its header alone.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{MAX_CONTRIBUTION, MAX_GATHERED, MAX_WORLD};

const HEADER_BYTES: usize = 12;

/// The most bytes of a contribution or of a result that one frame carries.
pub(crate) const PIECE: usize = 64 << 10;

/// The longest body: a `Fault` that names every rank of the largest job.
const LONGEST_BODY: usize = 4 * (MAX_WORLD + 2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The last piece of the rank's contribution, towards the root.
    Part = 1,
    /// The last piece of all contributions, from the root. With an empty body after the handshakes: the job starts.
    All = 2,
    /// A `Fault`, in any direction, which ends the conversation.
    Fault = 3,
    /// A piece of the rank's contribution; more follow.
    PartPiece = 4,
    /// A piece of all contributions; more follow.
    AllPiece = 5,
    /// From above, in a call: someone on the way to the root has come, perhaps late, and its time counts.
    Here = 6,
    /// From the root to a rank that has registered: a `Place`.
    Place = 7,
    /// Towards the root: the rank is in its place, or, in a call, is there and passes things on.
    Present = 8,
    /// To the root, from one that has registered: the rank that shall be its parent does not answer.
    Stuck = 9,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) rank: usize,
    pub(crate) body: Vec<u8>,
}

/// Why a frame did not come.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The peer closed, or the connection broke with this error.
    Closed(Option<io::Error>),
    /// The bytes are no frame, or one that is too long.
    Malformed,
}

/// Reads frames one by one, as far as bytes are there.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    header: [u8; HEADER_BYTES],
    have: usize,
    body: Vec<u8>,
}

/// Frames on their way out, as far as the socket takes them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

/// A moment after which nothing is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

/// What carries `parts` to every rank: their lengths as `u32`, then their bytes.
pub(crate) fn body_of_all(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
    for part in parts {
        debug_assert!(part.len() <= MAX_CONTRIBUTION);
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// The longest body that [`body_of_all`] makes for `world` parts that may be gathered.
pub(crate) fn longest_of_all(world: usize) -> usize {
    4 * world + MAX_GATHERED
}

/// The parts in a body that [`body_of_all`] made; `None` for any other bytes.
pub(crate) fn parts_of(body: &[u8], world: usize) -> Option<Vec<Vec<u8>>> {
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
    const ALL: [Self; 9] = [
        Self::Part,
        Self::All,
        Self::Fault,
        Self::PartPiece,
        Self::AllPiece,
        Self::Here,
        Self::Place,
        Self::Present,
        Self::Stuck,
    ];

    fn decode(word: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u32 == word)
    }

    fn longest(self) -> usize {
        match self {
            Self::Fault => LONGEST_BODY,
            Self::Here | Self::Present | Self::Stuck => 0,
            _ => PIECE,
        }
    }
}

impl FrameReader {
    /// Takes what is there and not a byte of the next frame; `None` as long as some of the frame is missing.
    pub(crate) fn read(&mut self, mut from: impl Read) -> Result<Option<Frame>, ReadError> {
        if !fill(&mut from, &mut self.header, &mut self.have).map_err(ReadError::Closed)? {
            return Ok(None);
        }
        let (kind, rank, length) = self.checked_header().ok_or(ReadError::Malformed)?;
        let missing = length - self.body.len();
        match from.take(missing as u64).read_to_end(&mut self.body) {
            Ok(got) if got == missing => {
                self.have = 0;
                Ok(Some(Frame { kind, rank, body: std::mem::take(&mut self.body) }))
            }
            Ok(_) => Err(ReadError::Closed(None)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(ReadError::Closed(Some(e))),
        }
    }

    fn checked_header(&self) -> Option<(Kind, usize, usize)> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| self.header[at + i]));
        let kind = Kind::decode(word(0))?;
        let (rank, length) = (word(4) as usize, word(8) as usize);
        (rank < MAX_WORLD && length <= kind.longest()).then_some((kind, rank, length))
    }
}

impl Outbox {
    /// With bytes that are no frame.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), sent: 0 }
    }

    /// Queues a frame.
    pub(crate) fn push(&mut self, kind: Kind, rank: usize, body: &[u8]) {
        debug_assert!(rank < MAX_WORLD && body.len() <= kind.longest());
        // What has gone makes room before the queue grows for ever under a reader that is never quite done.
        if self.sent > PIECE {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        for word in [kind as u32, rank as u32, body.len() as u32] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        self.bytes.extend_from_slice(body);
    }

    /// Queues bytes that are no frame: those of the handshake.
    pub(crate) fn push_raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that the socket has not taken yet.
    pub(crate) fn pending(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Forgets what has not gone: nothing more can be sent.
    pub(crate) fn give_up(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }

    /// Sends what the socket takes now.
    pub(crate) fn write(&mut self, mut to: impl Write) -> io::Result<()> {
        while self.pending() > 0 {
            match to.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.sent += sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.give_up();
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

    /// A socket that takes a few bytes at a time.
    struct Sip<'a>(&'a mut Vec<u8>, usize, bool);

    impl Write for Sip<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = self.1.min(bytes.len());
            self.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(kind: Kind, rank: usize, body: &[u8]) -> Vec<u8> {
        let mut out = Outbox::default();
        out.push(kind, rank, body);
        out.bytes
    }

    fn read_all(bytes: &[u8], piece: usize) -> Result<Frame, ReadError> {
        let mut drip = Drip(bytes, piece, false);
        let mut reader = FrameReader::default();
        for _ in 0..2 * bytes.len() + 4 {
            if let Some(frame) = reader.read(&mut drip)? {
                return Ok(frame);
            }
        }
        panic!("the reader makes no progress");
    }

    #[test]
    fn what_no_frame_has_is_refused_by_the_header() {
        let longer = [(1, 1, PIECE + 1), (3, 0, LONGEST_BODY + 1), (6, 0, 1), (8, 0, 1)];
        let others = [(0, 0, 0), (10, 0, 0), (1, MAX_WORLD, 0), (1, 0, u32::MAX as usize)];
        for (kind, rank, length) in longer.into_iter().chain(others) {
            let words = [kind, rank as u32, length as u32];
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            assert!(matches!(read_all(&bytes, 12), Err(ReadError::Malformed)), "{words:?}");
        }
    }

    #[test]
    fn a_close_inside_a_frame_is_a_close() {
        let bytes = frame(Kind::All, 0, &[1, 2, 3]);
        for cut in 0..bytes.len() {
            assert!(matches!(read_all(&bytes[..cut], 2), Err(ReadError::Closed(None))), "{cut}");
        }
    }

    #[test]
    fn a_deadline_without_end_does_not_overflow() {
        assert!(!Deadline::after(Duration::MAX).passed());
        assert!(Deadline::after(Duration::ZERO).passed());
    }

    #[test]
    fn a_queue_that_is_never_empty_does_not_grow() {
        let (mut out, mut gone) = (Outbox::default(), Vec::new());
        for _ in 0..200 {
            out.push(Kind::PartPiece, 1, &[0; PIECE]);
            let mut sip = Sip(&mut gone, PIECE + 11, true);
            out.write(&mut sip).unwrap();
        }
        assert!(out.pending() > 0 && out.bytes.len() < 4 * PIECE, "{}", out.bytes.len());
    }

    proptest! {
        #[test]
        fn frames_round_trip(bodies in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..200), 1..5), piece in 1..50usize) {
            let (mut out, mut wire) = (Outbox::default(), Vec::new());
            for (rank, body) in bodies.iter().enumerate() {
                out.push(Kind::PartPiece, rank, body);
            }
            while out.pending() > 0 {
                out.write(Sip(&mut wire, piece, true)).unwrap();
            }
            let (mut drip, mut reader) = (Drip(&wire, piece, false), FrameReader::default());
            for (rank, body) in bodies.into_iter().enumerate() {
                let frame = loop {
                    if let Some(frame) = reader.read(&mut drip).unwrap() {
                        break frame;
                    }
                };
                prop_assert_eq!(frame, Frame { kind: Kind::PartPiece, rank, body });
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..200),
                                             ours: bool, piece in 1..50usize) {
            if ours && bytes.len() > 12 {
                bytes[1..4].fill(0);
                bytes[0] %= 11;
                bytes[6..8].fill(0);
                bytes[9..12].fill(0);
            }
            let _ = read_all(&bytes, piece);
        }

        #[test]
        fn parts_round_trip(parts in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..40), 1..9)) {
            let body = body_of_all(&parts);
            prop_assert!(body.len() <= longest_of_all(parts.len()));
            prop_assert_eq!(parts_of(&body, parts.len()), Some(parts));
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
                prop_assert_eq!(&body_of_all(&parts)[..], &body[..]);
            }
        }
    }
}

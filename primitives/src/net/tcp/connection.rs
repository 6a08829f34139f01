//! One peer's connection: what waits to be sent, and what is arriving. Never blocks.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::frame::{Frame, HEADER};
use super::memories::{Memories, Range};
use crate::net::link::Link;
use crate::net::{NetFault, Signals, Span, Transfer};
use crate::sys::{Piece, receive_bytes, receive_pieces, send_bytes, send_pieces};

/// Bytes that are read when a header is expected: small transfers cost one system call, and of a large one no more
/// than this goes through a buffer.
const INBOX: usize = 4096;
/// Frames that are sent by one system call.
const BATCH: usize = 16;
/// Bytes of a frame that is worth a copy.
const SMALL: usize = 512;
/// Bytes that are sent, and received, before it is the next peer's turn.
const TURN: usize = 8 << 20;
/// Bytes that may wait, without a signal behind them, for more to go along.
const GATHER: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) link: Link,
    /// The peer's.
    semaphores: u64,
    queue: VecDeque<Outgoing>,
    /// Bytes in the queue, headers included.
    queued: usize,
    posted: u64,
    sent: u64,
    inbox: Box<[u8; INBOX]>,
    /// What of it is to be read.
    begin: usize,
    end: usize,
    arrival: Option<Arrival>,
    arrived: u32,
}

/// A frame that is not sent yet, or in part.
#[derive(Debug)]
struct Outgoing {
    header: [u8; HEADER],
    source: Option<Range>,
    sent: usize,
}

/// A frame of which data is missing.
#[derive(Debug)]
struct Arrival {
    range: Range,
    have: usize,
    signal: Option<u32>,
}

/// Why a connection cannot go on.
pub(super) type Cause = String;

impl Outgoing {
    fn bytes(&self) -> usize {
        HEADER + self.source.as_ref().map_or(0, |source| source.bytes)
    }

    /// What is left of it: of the header, of the data.
    fn pieces(&self) -> [Piece; 2] {
        let header = &self.header[self.sent.min(HEADER)..];
        let data = match &self.source {
            Some(source) => {
                let at = self.sent.saturating_sub(HEADER);
                Piece::new(source.at(at), source.bytes - at)
            }
            None => Piece::of(&[]),
        };
        [Piece::of(header), data]
    }
}

impl Connection {
    pub(super) fn new(link: Link, semaphores: u64) -> Self {
        Self {
            link,
            semaphores,
            queue: VecDeque::with_capacity(BATCH),
            queued: 0,
            posted: 0,
            sent: 0,
            inbox: Box::new([0; INBOX]),
            begin: 0,
            end: 0,
            arrival: None,
            arrived: 0,
        }
    }

    pub(super) fn semaphores(&self) -> u64 {
        self.semaphores
    }

    /// Transfers that have left their source.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether something waits to be sent.
    pub(super) fn is_sending(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether memory of this number is being read or written.
    pub(super) fn uses(&self, memory: u32) -> bool {
        let reads = |out: &Outgoing| out.source.as_ref().is_some_and(|s| s.memory == memory);
        self.queue.iter().any(reads)
            || self.arrival.as_ref().is_some_and(|arrival| arrival.range.memory == memory)
    }

    /// Takes a transfer whose ranges were checked, and sends it if its peer waits for it, or if much is to be sent.
    pub(super) fn post(&mut self, transfer: &Transfer, source: Option<Range>) -> Result<(), Cause> {
        let Span { memory, offset } = transfer.to;
        let (bytes, signal) = (transfer.bytes, transfer.signal);
        let number = self.posted as u32;
        let header = Frame { number, memory, offset, bytes, signal }.encode();
        let outgoing = Outgoing { header, source, sent: 0 };
        self.posted += 1;
        if signal.is_some() && self.queue.is_empty() && outgoing.bytes() <= SMALL {
            return self.send_small(outgoing);
        }
        // Behind others it would only find the socket full.
        let waiting = self.queued >= GATHER;
        self.queued += outgoing.bytes();
        self.queue.push_back(outgoing);
        let now = signal.is_some() || self.queued >= GATHER;
        if now && !waiting { self.send().map(drop) } else { Ok(()) }
    }

    /// As [`Connection::send`], for one frame alone: copied behind its header, it needs no list of pieces.
    #[inline]
    fn send_small(&mut self, mut outgoing: Outgoing) -> Result<(), Cause> {
        let (mut buffer, bytes) = ([0; SMALL], outgoing.bytes());
        buffer[..HEADER].copy_from_slice(&outgoing.header);
        if let Some(source) = &outgoing.source {
            let to = buffer[HEADER..bytes].as_mut_ptr();
            // SAFETY: the source is good for its bytes, the buffer has room for them, and they are apart.
            unsafe { to.copy_from_nonoverlapping(source.at(0), source.bytes) };
        }
        match send_bytes(self.link.stream(), &buffer[..bytes]) {
            Ok(sent) if sent == bytes => {
                self.sent += 1;
                return Ok(());
            }
            Ok(sent) => outgoing.sent = sent,
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno.to_string()),
        }
        self.queued += bytes - outgoing.sent;
        self.queue.push_back(outgoing);
        Ok(())
    }

    /// Sends what the socket takes; whether that was anything.
    pub(super) fn send(&mut self) -> Result<bool, Cause> {
        let mut turn = 0;
        while !self.queue.is_empty() && turn < TURN {
            let mut pieces = [Piece::of(&[]); 2 * BATCH];
            let mut asked = 0;
            let frames = self.queue.len().min(BATCH);
            for (out, pieces) in self.queue.iter().zip(pieces.chunks_exact_mut(2)) {
                pieces.copy_from_slice(&out.pieces());
                asked += out.bytes() - out.sent;
            }
            // SAFETY: headers lie in the queue, and data in ranges that it keeps alive.
            let sent = unsafe { send_pieces(self.link.stream(), &pieces[..2 * frames]) };
            match sent {
                Ok(sent) => {
                    self.account(sent);
                    turn += sent;
                    if sent < asked {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.to_string()),
            }
        }
        Ok(turn > 0)
    }

    /// Takes `sent` bytes off the queue.
    fn account(&mut self, mut sent: usize) {
        self.queued -= sent;
        while let Some(first) = self.queue.front_mut() {
            let left = first.bytes() - first.sent;
            if sent < left {
                first.sent += sent;
                return;
            }
            sent -= left;
            self.queue.pop_front();
            self.sent += 1;
        }
    }

    /// Receives what is there, into its place, and counts up semaphores; whether anything was.
    pub(super) fn receive(
        &mut self,
        memories: &Memories,
        signals: &Signals,
    ) -> Result<bool, Cause> {
        let mut turn = 0;
        loop {
            self.read_inbox(memories, signals)?;
            if turn >= TURN {
                break;
            }
            match self.fetch() {
                Ok((0, _)) => return Err(self.end_of_stream()),
                Ok((got, asked)) => {
                    turn += got;
                    if got < asked {
                        // The socket is empty: no need to ask again.
                        self.read_inbox(memories, signals)?;
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.to_string()),
            }
        }
        Ok(turn > 0)
    }

    /// One system call: how many bytes came, of how many that would have had room.
    #[inline]
    fn fetch(&mut self) -> Result<(usize, usize), Errno> {
        self.inbox.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let free = &mut self.inbox[self.end..];
        let room = free.len();
        let Some(arrival) = &mut self.arrival else {
            let got = receive_bytes(self.link.stream(), free)?;
            self.end += got;
            return Ok((got, room));
        };
        let inbox = Piece::new(free.as_mut_ptr(), room);
        let missing = arrival.range.bytes - arrival.have;
        let place = Piece::new(arrival.range.at(arrival.have), missing);
        // SAFETY: `missing` bytes of a range that the arrival keeps alive, and the free part of the inbox, which nothing
        // else reaches.
        let got = unsafe { receive_pieces(self.link.stream(), &mut [place, inbox]) }?;
        arrival.have += got.min(missing);
        self.end += got.saturating_sub(missing);
        Ok((got, missing + room))
    }

    /// Takes frames out of the inbox, as far as they are there.
    #[inline]
    fn read_inbox(&mut self, memories: &Memories, signals: &Signals) -> Result<(), Cause> {
        loop {
            if let Some(arrival) = &mut self.arrival {
                let take = (arrival.range.bytes - arrival.have).min(self.end - self.begin);
                let from = self.inbox[self.begin..].as_ptr();
                // SAFETY: `take` bytes of the inbox, and of a range that the arrival keeps alive and that is no part
                // of the inbox.
                unsafe { from.copy_to_nonoverlapping(arrival.range.at(arrival.have), take) };
                arrival.have += take;
                self.begin += take;
                if arrival.have < arrival.range.bytes {
                    return Ok(());
                }
                let signal = arrival.signal;
                self.arrival = None;
                signal.into_iter().for_each(|semaphore| signals.count(semaphore, 0));
            }
            let Some(header) = self.inbox[self.begin..self.end].first_chunk::<HEADER>() else {
                return Ok(());
            };
            let frame = self.checked(header, signals)?;
            self.begin += HEADER;
            self.arrived = self.arrived.wrapping_add(1);
            if frame.bytes == 0 {
                frame.signal.into_iter().for_each(|semaphore| signals.count(semaphore, 0));
                continue;
            }
            let span = Span { memory: frame.memory, offset: frame.offset };
            let range = memories.range("what it sends into", span, frame.bytes);
            let range = range.map_err(|error| error.to_string())?;
            self.arrival = Some(Arrival { range, have: 0, signal: frame.signal });
        }
    }

    fn checked(&self, header: &[u8; HEADER], signals: &Signals) -> Result<Frame, Cause> {
        let frame = Frame::decode(header).ok_or("what it sent is no frame of this protocol")?;
        if frame.number != self.arrived {
            let (number, expected) = (frame.number, self.arrived);
            return Err(format!("frame {number} came where {expected} was expected"));
        }
        match frame.signal {
            Some(signal) if signal as usize >= signals.len() => Err(format!(
                "a signal for semaphore {signal}, of which there are {}",
                signals.len()
            )),
            _ => Ok(frame),
        }
    }

    fn end_of_stream(&self) -> Cause {
        let torn = self.arrival.is_some() || self.begin < self.end;
        if torn { "the peer closed it in the middle of a transfer" } else { "the peer closed it" }
            .to_owned()
    }

    pub(super) fn fault(&self, cause: Cause) -> NetFault {
        self.link.fault(cause)
    }
}

//! One peer's connection: what waits to be sent, and what is arriving. Never blocks.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::frame::{Frame, HEADER};
use super::memories::{Memories, Range};
use super::stage::Stage;
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
    /// Where data of devices goes through, on its way out and in; none if the transport has no GPU.
    stages: Option<Box<Stages>>,
}

/// One for each direction: devices copy in both at a time.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) out: Stage,
    pub(super) in_: Stage,
}

/// A frame that is not sent yet, or in part.
#[derive(Debug)]
struct Outgoing {
    header: [u8; HEADER],
    source: Option<Range>,
    sent: usize,
    /// Of data of a device: where it begins in the stage, and for how much of it copies were queued.
    position: u64,
    staged: usize,
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

    /// What of it can be sent now, of the header and of the data, and how much that is.
    fn pieces(&self, stages: Option<&Stages>) -> ([Piece; 2], usize) {
        let header = &self.header[self.sent.min(HEADER)..];
        let at = self.sent.saturating_sub(HEADER);
        let (data, bytes) = match (&self.source, stages) {
            (Some(source), Some(Stages { out, .. })) if source.is_on_device() => {
                let here = self.position + at as u64;
                let ready =
                    if self.staged > at { out.ready(here).min(self.staged - at) } else { 0 };
                (Piece::new(out.at(here), ready), ready)
            }
            (Some(source), _) => (Piece::new(source.at(at), source.bytes - at), source.bytes - at),
            (None, _) => (Piece::of(&[]), 0),
        };
        ([Piece::of(header), data], header.len() + bytes)
    }

    fn is_on_device(&self) -> bool {
        self.source.as_ref().is_some_and(Range::is_on_device)
    }
}

impl Connection {
    pub(super) fn new(link: Link, semaphores: u64, stages: Option<Box<Stages>>) -> Self {
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
            stages,
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
        let outgoing = Outgoing { header, source, sent: 0, position: 0, staged: 0 };
        self.posted += 1;
        let alone = signal.is_some() && self.queue.is_empty();
        if alone && outgoing.bytes() <= SMALL && !outgoing.is_on_device() {
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
            self.stage()?;
            let mut pieces = [Piece::of(&[]); 2 * BATCH];
            let (mut asked, mut frames) = (0, 0);
            for (out, pieces) in self.queue.iter().zip(pieces.chunks_exact_mut(2)) {
                let (parts, bytes) = out.pieces(self.stages.as_deref());
                pieces.copy_from_slice(&parts);
                asked += bytes;
                frames += 1;
                if bytes < out.bytes() - out.sent {
                    break; // the rest is not in the stage yet, and what follows goes behind it
                }
            }
            if asked == 0 {
                break;
            }
            // SAFETY: headers lie in the queue, and data in ranges that it keeps alive, or in the stage.
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

    /// Begins copies of what will be sent soon and lies on a device, as far as the stage has room.
    #[inline]
    fn stage(&mut self) -> Result<(), Cause> {
        let Some(Stages { out: stage, .. }) = self.stages.as_deref_mut() else {
            return Ok(());
        };
        stage.look()?;
        for out in self.queue.iter_mut().take(BATCH) {
            let Some(source) = out.source.as_ref().filter(|source| source.is_on_device()) else {
                continue;
            };
            while out.staged < source.bytes {
                if out.staged == 0 {
                    out.position = stage.begun();
                }
                match stage.fetch(source, out.staged) {
                    0 => return Ok(()),
                    bytes => out.staged += bytes,
                }
            }
        }
        Ok(())
    }

    /// Takes `sent` bytes off the queue.
    fn account(&mut self, mut sent: usize) {
        self.queued -= sent;
        while let Some(first) = self.queue.front_mut() {
            let left = first.bytes() - first.sent;
            let now = sent.min(left);
            if let Some(stages) = self.stages.as_mut().filter(|_| first.is_on_device()) {
                let data = |sent: usize| sent.saturating_sub(HEADER);
                stages.out.free(data(first.sent + now) - data(first.sent));
            }
            if sent < left {
                first.sent += sent;
                return;
            }
            sent -= left;
            self.queue.pop_front();
            self.sent += 1;
        }
    }

    /// Whether copies are underway, of which no socket tells.
    #[inline]
    pub(super) fn is_copying(&self) -> bool {
        let copying = |stages: &Stages| stages.out.is_copying() || stages.in_.is_copying();
        self.stages.as_deref().is_some_and(copying)
    }

    /// Counts up what waited for copies that are done; whether any were.
    #[inline]
    fn land(&mut self, signals: &Signals) -> Result<bool, Cause> {
        let Some(Stages { in_: stage, .. }) = self.stages.as_deref_mut() else {
            return Ok(false);
        };
        let landed = stage.look()?;
        if landed {
            stage.free_landed();
        }
        while let Some(semaphore) = stage.next_signal() {
            // The copies were seen to be done, so their data is behind this release.
            signals.count(semaphore, 0);
        }
        Ok(landed)
    }

    /// Waits for data that has come to be where it belongs, before the connection goes.
    pub(super) fn settle(&mut self, signals: &Signals) {
        if let Some(stages) = &mut self.stages {
            stages.in_.finish();
            while let Some(semaphore) = stages.in_.next_signal() {
                signals.count(semaphore, 0);
            }
        }
    }

    /// What outlives the connection.
    pub(super) fn take_stages(&mut self) -> Option<Box<Stages>> {
        self.stages.take()
    }

    /// A signal has come, behind all that came before.
    #[inline]
    fn signal(&mut self, semaphore: u32, signals: &Signals) {
        match &mut self.stages {
            Some(stages) if stages.in_.is_copying() => stages.in_.signal_behind(semaphore),
            _ => signals.count(semaphore, 0),
        }
    }

    /// Receives what is there, into its place, and counts up semaphores; whether anything was.
    pub(super) fn receive(
        &mut self,
        memories: &Memories,
        signals: &Signals,
    ) -> Result<bool, Cause> {
        let (landed, mut turn) = (self.land(signals)?, 0);
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
        Ok(landed || turn > 0)
    }

    /// One system call: how many bytes came, of how many that would have had room. AGAIN also if data of a device has to wait for room.
    #[inline]
    fn fetch(&mut self) -> Result<(usize, usize), Errno> {
        self.inbox.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let held = self.end;
        let free = &mut self.inbox[self.end..];
        let Some(arrival) = &mut self.arrival else {
            let room = free.len();
            let got = receive_bytes(self.link.stream(), free)?;
            self.end += got;
            return Ok((got, room));
        };
        let missing = arrival.range.bytes - arrival.have;
        let stage = self.stages.as_mut().filter(|_| arrival.range.is_on_device());
        let (place, here) = match &stage {
            Some(stages) => stages.in_.room(),
            None => (arrival.range.at(arrival.have), missing),
        };
        let here = here.min(missing);
        if here == 0 || held > 0 {
            return Err(Errno::AGAIN); // what is held goes first
        }
        // What comes behind the data may come along only if all of the data has a place.
        let room = if here == missing { free.len() } else { 0 };
        let (place, inbox) = (Piece::new(place, here), Piece::new(free.as_mut_ptr(), room));
        // SAFETY: `here` bytes of a range that the arrival keeps alive, or of the stage that no copy reads, and the free part of
        // the inbox; nothing else reaches these.
        let got = unsafe { receive_pieces(self.link.stream(), &mut [place, inbox]) }?;
        if let Some(stages) = stage {
            stages.in_.store(&arrival.range, arrival.have, got.min(here));
        }
        arrival.have += got.min(here);
        self.end += got.saturating_sub(here);
        Ok((got, here + room))
    }

    /// Takes frames out of the inbox, as far as they are there.
    #[inline]
    fn read_inbox(&mut self, memories: &Memories, signals: &Signals) -> Result<(), Cause> {
        loop {
            if self.arrival.is_some() {
                match self.take_arrived() {
                    Some(signal) => signal.into_iter().for_each(|s| self.signal(s, signals)),
                    None => return Ok(()),
                }
            }
            let Some(header) = self.inbox[self.begin..self.end].first_chunk::<HEADER>() else {
                return Ok(());
            };
            let frame = self.checked(header, signals)?;
            self.begin += HEADER;
            self.arrived = self.arrived.wrapping_add(1);
            if frame.bytes == 0 {
                frame.signal.into_iter().for_each(|semaphore| self.signal(semaphore, signals));
                continue;
            }
            let span = Span { memory: frame.memory, offset: frame.offset };
            let range = memories.range("what it sends into", span, frame.bytes);
            let range = range.map_err(|error| error.to_string())?;
            self.arrival = Some(Arrival { range, have: 0, signal: frame.signal });
        }
    }

    /// Moves what the inbox has of the arrival's data; if that is all, the arrival is over, and its signal is returned.
    #[inline]
    fn take_arrived(&mut self) -> Option<Option<u32>> {
        let arrival = self.arrival.as_mut()?;
        loop {
            let missing = arrival.range.bytes - arrival.have;
            let stage = self.stages.as_mut().filter(|_| arrival.range.is_on_device());
            let (to, room) = match &stage {
                Some(stages) => stages.in_.room(),
                None => (arrival.range.at(arrival.have), missing),
            };
            let take = missing.min(self.end - self.begin).min(room);
            let from = self.inbox[self.begin..].as_ptr();
            // SAFETY: `take` bytes of the inbox, and of a range that the arrival keeps alive and that is no part of the inbox, or
            // of the stage that no copy reads.
            unsafe { from.copy_to_nonoverlapping(to, take) };
            if let Some(stages) = stage {
                stages.in_.store(&arrival.range, arrival.have, take);
            }
            arrival.have += take;
            self.begin += take;
            if take == missing {
                return self.arrival.take().map(|arrival| arrival.signal);
            }
            if take == 0 || self.begin == self.end {
                return None;
            }
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

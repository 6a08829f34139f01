//! What ranks tell each other out of band: two messages, each of a fixed form, in little-endian order.
//!
//! | offer | bytes | | memory | bytes |
//! |---|---|---|---|---|
//! | magic `WMRO` | 4 | | magic `WMRM` | 4 |
//! | version | 2 | | version | 2 |
//! | signal mode: 0 fetch-add, 1 immediate | 1 | | keys n: one for each NIC; 0 where data is staged | 1 |
//! | ends n: one for each NIC | 1 | | address | 8 |
//! | address of the table of semaphores | 8 | | length | 8 |
//! | semaphores, lanes | 4, 4 | | n keys | 4 · n |
//! | n ends: queue 4, packet number 4, key of the table 4, gid 16, its kind 1, MTU 1, lid 2, atomics 1, ring: address 8, bytes 4, key 4; credit: address 8, key 4 | 61 · n | | | |

use super::options::SignalMode;
use super::staged::{GRAIN, LEAST_RING};
use crate::sys::verbs::{GID_TYPE_ROCE_V2, Gid};

/// Of both messages. Ranks of different versions do not talk.
const VERSION: u16 = 2;
const OFFER: [u8; 4] = *b"WMRO";
const MEMORY: [u8; 4] = *b"WMRM";

/// NICs of one rank at most.
pub(super) const MAX_NICS: usize = 16;

/// What a rank's peer needs to connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub mode: SignalMode,
    pub table: Table,
    pub ends: Vec<End>,
}

/// A rank's semaphores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub address: u64,
    pub semaphores: u32,
    pub lanes: u32,
}

/// One end of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub queue: u32,
    pub sequence: u32,
    /// Under which peers reach the table of semaphores through this NIC.
    pub table_key: u32,
    pub gid: Gid,
    pub gid_kind: u8,
    /// The library's number.
    pub mtu: u8,
    pub lid: u16,
    /// Atomics that it answers at a time.
    pub atomics: u8,
    /// Where data for this rank's staged memory goes, on this lane.
    pub ring: Option<RingEnd>,
    /// The word in which the peer tells how much of its ring of this lane is free again.
    pub credit: Credit,
}

/// A ring of a rank that stages, as its peer writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingEnd {
    pub address: u64,
    pub bytes: u32,
    pub key: u32,
}

/// A word of a rank that its peer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit {
    pub address: u64,
    pub key: u32,
}

/// What a rank's peer needs to write its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub address: u64,
    pub bytes: u64,
    /// One for each NIC of the owner; none if what comes for it has to be staged.
    pub keys: Vec<u32>,
}

impl Offer {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mode = u8::from(self.mode == SignalMode::Immediate);
        let mut out = head(OFFER);
        out.extend([mode, self.ends.len() as u8]);
        out.extend(self.table.address.to_le_bytes());
        out.extend(self.table.semaphores.to_le_bytes());
        out.extend(self.table.lanes.to_le_bytes());
        for end in &self.ends {
            for word in [end.queue, end.sequence, end.table_key] {
                out.extend(word.to_le_bytes());
            }
            out.extend(end.gid.raw);
            out.extend([end.gid_kind, end.mtu]);
            out.extend(end.lid.to_le_bytes());
            out.push(end.atomics);
            let ring = end.ring.unwrap_or(RingEnd { address: 0, bytes: 0, key: 0 });
            out.extend(ring.address.to_le_bytes());
            out.extend(ring.bytes.to_le_bytes());
            out.extend(ring.key.to_le_bytes());
            out.extend(end.credit.address.to_le_bytes());
            out.extend(end.credit.key.to_le_bytes());
        }
        out
    }

    /// The error says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::open(bytes, OFFER)?;
        let mode = match reader.byte()? {
            0 => SignalMode::FetchAdd,
            1 => SignalMode::Immediate,
            other => return Err(format!("an unknown way of signalling: {other}")),
        };
        let count = reader.count("NICs", 1)?;
        let (address, semaphores, lanes) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let table = Table { address, semaphores, lanes };
        table.check(count)?;
        let ends = (0..count).map(|_| End::read(&mut reader)).collect::<Result<_, _>>()?;
        reader.close()?;
        Ok(Self { mode, table, ends })
    }
}

impl Table {
    /// The table lies in memory that can be, and has a word for each NIC.
    fn check(&self, nics: usize) -> Result<(), String> {
        let bytes = u64::from(self.semaphores) * u64::from(self.lanes) * 8;
        if self.lanes as usize != nics || self.semaphores == 0 || !self.address.is_multiple_of(8) {
            return Err(format!("a table of semaphores that cannot be: {self:?} for {nics} NICs"));
        }
        match self.address.checked_add(bytes) {
            Some(_) => Ok(()),
            None => Err(format!("a table of semaphores that cannot be: {self:?}")),
        }
    }
}

impl End {
    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let (queue, sequence, table_key) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let gid = Gid { raw: reader.take()? };
        let (gid_kind, mtu) = (reader.byte()?, reader.byte()?);
        let (lid, atomics) = (reader.u16()?, reader.byte()?);
        if !(1..=5).contains(&mtu) || queue >> 24 != 0 || sequence >> 24 != 0 {
            return Err(format!(
                "an MTU, queue or packet number that cannot be: {mtu}, {queue}, {sequence}"
            ));
        }
        if u32::from(gid_kind) > GID_TYPE_ROCE_V2 {
            return Err(format!("an unknown kind of address: {gid_kind}"));
        }
        let ring = RingEnd::read(reader)?;
        let credit = Credit { address: reader.u64()?, key: reader.u32()? };
        if !credit.address.is_multiple_of(8) {
            return Err(format!("a word that cannot be: {credit:?}"));
        }
        Ok(Self { queue, sequence, table_key, gid, gid_kind, mtu, lid, atomics, ring, credit })
    }
}

impl RingEnd {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, String> {
        let ring = Self { address: reader.u64()?, bytes: reader.u32()?, key: reader.u32()? };
        let bytes = u64::from(ring.bytes);
        if bytes == 0 {
            return Ok(None);
        }
        let fits = ring.address.checked_add(bytes).is_some();
        if !fits || bytes < LEAST_RING || !bytes.is_multiple_of(GRAIN) {
            return Err(format!("a ring that cannot be: {ring:?}"));
        }
        Ok(Some(ring))
    }
}

impl Description {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = head(MEMORY);
        out.push(self.keys.len() as u8);
        out.extend(self.address.to_le_bytes());
        out.extend(self.bytes.to_le_bytes());
        self.keys.iter().for_each(|key| out.extend(key.to_le_bytes()));
        out
    }

    /// The error says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::open(bytes, MEMORY)?;
        let count = reader.count("keys", 0)?;
        let (address, bytes) = (reader.u64()?, reader.u64()?);
        if address.checked_add(bytes).is_none() {
            return Err(format!("memory that cannot be: {bytes} bytes at {address:#x}"));
        }
        let keys = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        reader.close()?;
        Ok(Self { address, bytes, keys })
    }
}

fn head(magic: [u8; 4]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(VERSION.to_le_bytes());
    out
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8], magic: [u8; 4]) -> Result<Self, String> {
        let mut reader = Self { rest: bytes };
        let found: [u8; 4] = reader.take()?;
        if found != magic {
            return Err(format!(
                "not a message of the RDMA transport, which begins with {magic:?}: {found:?}"
            ));
        }
        match reader.u16()? {
            VERSION => Ok(reader),
            other => Err(format!(
                "it speaks version {other} of the RDMA transport, this rank version {VERSION}; use one build for all ranks"
            )),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let Some((found, rest)) = self.rest.split_first_chunk() else {
            return Err("a message of the RDMA transport that is too short".to_owned());
        };
        self.rest = rest;
        Ok(*found)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, String> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }

    fn count(&mut self, of: &str, least: usize) -> Result<usize, String> {
        let count = usize::from(self.byte()?);
        if (least..=MAX_NICS).contains(&count) {
            Ok(count)
        } else {
            Err(format!("{count} {of}; there may be {least} to {MAX_NICS}"))
        }
    }

    fn close(self) -> Result<(), String> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(format!("a message of the RDMA transport with {} bytes too many", self.rest.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        let end = |n: u8| End {
            queue: 17 + u32::from(n),
            sequence: 0x00ab_cdef,
            table_key: 99,
            gid: Gid { raw: [n; 16] },
            gid_kind: 2,
            mtu: 3,
            lid: 7,
            atomics: 16,
            ring: (n == 1).then_some(RingEnd { address: 0x10_0000, bytes: 1 << 20, key: 5 }),
            credit: Credit { address: 0x7f00_0000_2008, key: 6 },
        };
        let table = Table { address: 0x7f00_0000_1000, semaphores: 64, lanes: 2 };
        Offer { mode: SignalMode::Immediate, table, ends: vec![end(1), end(2)] }
    }

    #[test]
    fn messages_survive_the_way() {
        assert_eq!(Offer::parse(&offer().to_bytes()), Ok(offer()));
        let memory = Description { address: 4096, bytes: 1 << 40, keys: vec![1, 2, 3] };
        assert_eq!(Description::parse(&memory.to_bytes()), Ok(memory));
        let staged = Description { address: 0, bytes: 1 << 40, keys: vec![] };
        assert_eq!(Description::parse(&staged.to_bytes()), Ok(staged));
    }

    #[test]
    fn messages_of_another_length_are_refused() {
        let bytes = offer().to_bytes();
        for len in 0..bytes.len() {
            assert!(Offer::parse(&bytes[..len]).is_err(), "{len}");
        }
        let long = [bytes, vec![0]].concat();
        assert!(Offer::parse(&long).unwrap_err().contains("too many"));
    }

    #[test]
    fn another_version_says_so() {
        let mut bytes = offer().to_bytes();
        bytes[4] = 9;
        assert!(Offer::parse(&bytes).unwrap_err().contains("version 9"));
        let memory = Description { address: 0, bytes: 1, keys: vec![1] };
        assert!(Offer::parse(&memory.to_bytes()).unwrap_err().contains("not a message"));
    }

    #[test]
    fn any_bytes_are_an_error_or_a_message() {
        // Each byte of a good message changed in turn: never a panic, and what is taken can be.
        let bytes = offer().to_bytes();
        for (at, change) in (0..bytes.len()).flat_map(|at| [1u8, 0x80, 0xff].map(|c| (at, c))) {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            if let Ok(offer) = Offer::parse(&bytes) {
                assert!(offer.ends.iter().all(|end| (1..=5).contains(&end.mtu)));
                assert_eq!(offer.table.lanes as usize, offer.ends.len());
                let rings = offer.ends.iter().filter_map(|end| end.ring);
                assert!(rings.into_iter().all(|ring| u64::from(ring.bytes) >= LEAST_RING));
            }
        }
    }

    #[test]
    fn memory_beyond_the_address_space_is_refused() {
        let memory = Description { address: u64::MAX, bytes: 2, keys: vec![1] };
        assert!(Description::parse(&memory.to_bytes()).unwrap_err().contains("cannot be"));
    }
}

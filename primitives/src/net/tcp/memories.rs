//! Which memory there is, here and at the peers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::net::{NetError, Region, Span};

/// Begins a description of memory.
const MAGIC: [u8; 4] = *b"wmm1";

/// Registered memory, by number.
#[derive(Debug, Default)]
pub(super) struct Memories {
    own: HashMap<u32, Arc<dyn Region>>,
    /// Sizes of what peers have, as far as they told.
    theirs: HashMap<(usize, u32), u64>,
}

/// A range that was checked to lie in its memory, and keeps it alive.
#[derive(Clone, Debug)]
pub(super) struct Range {
    region: Arc<dyn Region>,
    pub(super) memory: u32,
    offset: usize,
    pub(super) bytes: usize,
    on_device: bool,
}

impl Range {
    /// Whether only a device, and its copy engines, reach the bytes.
    #[inline]
    pub(super) fn is_on_device(&self) -> bool {
        self.on_device
    }

    /// The bytes from `at` on, which is at most [`Range::bytes`].
    pub(super) fn at(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.bytes);
        // A device's address is a number for us.
        self.region.address().wrapping_add(self.offset + at)
    }
}

impl Memories {
    /// What peers are told of it.
    pub(super) fn register(
        &mut self,
        number: u32,
        region: Arc<dyn Region>,
    ) -> Result<Vec<u8>, NetError> {
        let size = region.len() as u64;
        if self.own.contains_key(&number) {
            let what = format!("register memory {number}");
            let cause = "the number is in use; forget it first".to_owned();
            return Err(NetError::System { what, cause });
        }
        self.own.insert(number, region);
        Ok([&MAGIC[..], &size.to_le_bytes()].concat())
    }

    pub(super) fn forget(&mut self, number: u32) {
        self.own.remove(&number);
    }

    pub(super) fn learn(
        &mut self,
        peer: usize,
        number: u32,
        description: &[u8],
    ) -> Result<(), NetError> {
        let size = description.strip_prefix(&MAGIC).and_then(|size| size.try_into().ok());
        let what = format!("its description of memory {number} is of another transport or version");
        let size = size.ok_or(NetError::Protocol { peer, what })?;
        self.theirs.insert((peer, number), u64::from_le_bytes(size));
        Ok(())
    }

    /// A range of this rank's own memory.
    #[inline]
    pub(super) fn range(
        &self,
        what: &'static str,
        span: Span,
        bytes: u64,
    ) -> Result<Range, NetError> {
        let Span { memory, offset } = span;
        let region = self.own.get(&memory);
        let size = region.map_or(0, |region| region.len() as u64);
        let refused = NetError::OutOfRange { what, memory, offset, len: bytes, size };
        match region {
            // What fits into memory fits into a usize.
            Some(region) if inside(size, offset, bytes) => Ok(Range {
                region: region.clone(),
                memory,
                offset: offset as usize,
                bytes: bytes as usize,
                on_device: region.is_on_device(),
            }),
            _ => Err(refused),
        }
    }

    /// Whether a range is in a peer's memory, as far as that is known.
    #[inline]
    pub(super) fn check_theirs(&self, peer: usize, to: Span, bytes: u64) -> Result<(), NetError> {
        let Span { memory, offset } = to;
        match self.theirs.get(&(peer, memory)) {
            Some(&size) if !inside(size, offset, bytes) => {
                let what = "the destination";
                Err(NetError::OutOfRange { what, memory, offset, len: bytes, size })
            }
            _ => Ok(()),
        }
    }
}

fn inside(size: u64, offset: u64, bytes: u64) -> bool {
    offset.checked_add(bytes).is_some_and(|end| end <= size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Mapping;

    #[test]
    fn ranges_are_inside_or_refused() {
        let mut memories = Memories::default();
        let page = Arc::new(Mapping::create(4096).unwrap().0);
        let size = page.len() as u64;
        let description = memories.register(3, page.clone()).unwrap();
        assert!(memories.register(3, page).is_err(), "in use");
        memories.learn(1, 3, &description).unwrap();
        assert!(memories.learn(1, 3, b"rdma").is_err());
        for (memory, offset, bytes, good) in [
            (3, 0, size, true),
            (3, size, 0, true),
            (3, 1, size, false),
            (3, u64::MAX, 2, false),
            (3, 0, u64::MAX, false),
            (4, 0, 1, false),
        ] {
            let span = Span { memory, offset };
            assert_eq!(memories.range("x", span, bytes).is_ok(), good, "{span:?} {bytes}");
            let known = good || memory == 4;
            assert_eq!(memories.check_theirs(1, span, bytes).is_ok(), known, "{span:?} {bytes}");
        }
        memories.forget(3);
        assert!(memories.range("x", Span { memory: 3, offset: 0 }, 1).is_err());
    }
}

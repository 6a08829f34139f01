//! The shape of the tree: positions in the order in which ranks came, level by level.
//!
//! ```text
//!   fan-out 2:        0                the root
//!                 1       2
//!               3   4   5   6          position i hangs below (i - 1) / fan-out
//! ```
//!
//! A parent has registered before its children by construction, so nobody waits for a rank that has not come.

use std::net::SocketAddr;
use std::time::Duration;

/// How many children a rank has, at most.
///
/// It bounds a rank's descriptors. With 16, jobs of up to 17 ranks are one level, and 4,369 ranks are three.
pub(super) const FAN_OUT: usize = 16;

/// The tree of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) world: usize,
    pub(super) fan_out: usize,
}

/// Where a rank is in the tree, as the root tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) parent: usize,
    /// Where the parent listens; `None` for the root, to which there is a connection already.
    pub(super) addr: Option<SocketAddr>,
    /// Levels above this rank.
    pub(super) depth: usize,
    /// Levels of the whole tree below the root.
    pub(super) height: usize,
    /// How many children it will have.
    pub(super) children: usize,
}

impl Shape {
    /// Whether all ranks hang below the root: then no rank needs to be told its place.
    pub(super) fn is_star(self) -> bool {
        self.world <= self.fan_out + 1
    }

    /// The position above `position`, which is not the root's.
    pub(super) fn parent(self, position: usize) -> usize {
        (position - 1) / self.fan_out
    }

    /// How many positions are below `position`.
    pub(super) fn children(self, position: usize) -> usize {
        let first = self.fan_out * position + 1;
        self.world.saturating_sub(first).min(self.fan_out)
    }

    /// Levels above `position`.
    pub(super) fn depth(self, mut position: usize) -> usize {
        let mut depth = 0;
        while position > 0 {
            position = self.parent(position);
            depth += 1;
        }
        depth
    }

    /// Levels below the root.
    pub(super) fn height(self) -> usize {
        self.depth(self.world - 1)
    }
}

impl Place {
    /// That of every rank in a star.
    pub(super) fn below_the_root() -> Self {
        Self { parent: 0, addr: None, depth: 1, height: 1, children: 0 }
    }

    /// The body of the frame that tells it; the parent is in its header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [self.depth, self.height, self.children] {
            bytes.extend_from_slice(&(word as u32).to_le_bytes());
        }
        if let Some(addr) = self.addr {
            bytes.extend_from_slice(addr.to_string().as_bytes());
        }
        bytes
    }

    /// The inverse of [`encode`](Self::encode); `None` for bytes that no root sends to a rank of `shape`.
    pub(super) fn decode(parent: usize, body: &[u8], shape: Shape) -> Option<Self> {
        let (words, text) = body.split_at_checked(12)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| words[at + i])) as usize;
        let (depth, height, children) = (word(0), word(4), word(8));
        let addr = match std::str::from_utf8(text).ok()? {
            "" => None,
            text => Some(text.parse::<SocketAddr>().ok()?),
        };
        let possible = parent < shape.world
            && height == shape.height()
            && (1..=height).contains(&depth)
            && children <= shape.fan_out
            && (depth == 1) == (parent == 0)
            && addr.is_none() == (parent == 0);
        possible.then_some(Self { parent, addr, depth, height, children })
    }

    /// How much longer than the root a rank here waits, so that the verdict of those above comes first: in all a
    /// quarter of `timeout`, at most 1 s, of which each level has its share.
    pub(super) fn grace(&self, timeout: Duration) -> Duration {
        share(timeout, self.height) * self.depth as u32
    }
}

/// One level's share of the time that a verdict has from the root to the lowest ranks.
pub(super) fn share(timeout: Duration, height: usize) -> Duration {
    (timeout / 4).min(Duration::from_secs(1)) / height.max(1) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_position_is_its_parents_child_once() {
        for (world, fan_out) in (1..200).flat_map(|world| [1, 2, 3, 16].map(|k| (world, k))) {
            let shape = Shape { world, fan_out };
            let mut children = vec![0; world];
            for position in 1..world {
                let parent = shape.parent(position);
                assert!(parent < position);
                assert_eq!(shape.depth(position), shape.depth(parent) + 1);
                children[parent] += 1;
            }
            let said: Vec<_> = (0..world).map(|position| shape.children(position)).collect();
            assert_eq!(said, children, "world {world}, fan-out {fan_out}");
            assert_eq!(shape.is_star(), shape.height() <= 1);
        }
    }

    #[test]
    fn the_height_grows_with_the_logarithm() {
        let height = |world| Shape { world, fan_out: FAN_OUT }.height();
        assert_eq!([2, 17, 18, 273, 274, 4369, 4370].map(height), [1, 1, 2, 2, 3, 3, 4]);
        assert_eq!(height(crate::bootstrap::MAX_WORLD), 4);
    }

    #[test]
    fn a_place_round_trips_and_what_cannot_be_is_refused() {
        let shape = Shape { world: 40, fan_out: 16 };
        let addr = Some("[fe80::1%3]:99".parse().unwrap());
        let place = Place { parent: 7, addr, depth: 2, height: 2, children: 0 };
        assert_eq!(Place::decode(7, &place.encode(), shape), Some(place.clone()));
        for wrong in [
            Place { addr: None, ..place.clone() },
            Place { depth: 3, ..place.clone() },
            Place { depth: 0, ..place.clone() },
            Place { height: 3, ..place.clone() },
            Place { children: 17, ..place.clone() },
        ] {
            assert_eq!(Place::decode(7, &wrong.encode(), shape), None, "{wrong:?}");
        }
        assert_eq!(Place::decode(40, &place.encode(), shape), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_place_or_nothing(mut body in prop::collection::vec(any::<u8>(), 0..64),
                                            parent in 0..50usize, small: bool, text: bool) {
            if small {
                body.iter_mut().take(12).enumerate().for_each(|(i, b)| {
                    *b = if i % 4 == 0 { *b % 4 } else { 0 };
                });
            }
            if text && body.len() > 12 {
                body.truncate(12);
                body.extend_from_slice(b"10.0.0.1:4321");
            }
            let shape = Shape { world: 40, fan_out: 16 };
            if let Some(place) = Place::decode(parent, &body, shape) {
                let again = Place::decode(parent, &place.encode(), shape);
                prop_assert_eq!(again, Some(place));
            }
        }
    }
}

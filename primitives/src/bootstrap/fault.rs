//! What ended a bootstrap: kept to be returned again, and told to the other ranks.
//!
//! On the wire it is a list of little-endian `u32` words: a code, then its numbers. An operating system's
//! error and a socket address stay on the rank that saw them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::MAX_GATHERED;
use super::error::BootstrapError;

/// Why a bootstrap failed, in a form that can be kept, sent and turned into an error more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Missing { ranks: Vec<usize>, waited: Duration },
    Closed { peer: usize, errno: Option<i32> },
    Malformed { peer: usize },
    Duplicate { rank: usize, addr: Option<SocketAddr> },
    OtherWorld { rank: usize, world: usize, root_world: usize },
    OutOfRange { rank: usize },
    TotalTooLarge { bytes: u64 },
    Descriptors { rank: usize, limit: u64 },
    Os { rank: usize, errno: i32 },
}

impl Fault {
    /// A connection to `peer` that broke with `cause`.
    pub(super) fn closed(peer: usize, cause: Option<&io::Error>) -> Self {
        Self::Closed { peer, errno: cause.and_then(io::Error::raw_os_error) }
    }

    pub(super) fn error(&self, world: usize) -> BootstrapError {
        match *self {
            Self::Missing { ref ranks, waited } => {
                BootstrapError::Missing { missing: ranks.clone(), world, waited }
            }
            Self::Closed { peer, errno } => {
                BootstrapError::PeerClosed { peer, cause: errno.map(io::Error::from_raw_os_error) }
            }
            Self::Malformed { peer } => BootstrapError::Malformed { peer },
            Self::Duplicate { rank, addr } => BootstrapError::DuplicateRank { rank, world, addr },
            Self::OtherWorld { rank, world, root_world } => {
                BootstrapError::WorldMismatch { rank, world, root_world }
            }
            Self::OutOfRange { rank } => BootstrapError::RankOutOfRange { rank, world },
            Self::TotalTooLarge { bytes } => {
                BootstrapError::TotalTooLarge { bytes, max: MAX_GATHERED as u64 }
            }
            Self::Descriptors { rank, limit } => BootstrapError::Descriptors { rank, limit },
            Self::Os { errno, .. } => BootstrapError::Os {
                tried: "waiting for sockets",
                cause: io::Error::from_raw_os_error(errno),
            },
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut words = match *self {
            Self::Missing { waited, .. } => {
                vec![1, u32::try_from(waited.as_millis()).unwrap_or(u32::MAX)]
            }
            // To the others, a rank that cannot wait any more is one that has left.
            Self::Closed { peer, .. } | Self::Os { rank: peer, .. } => vec![2, word(peer)],
            Self::Malformed { peer } => vec![3, word(peer)],
            Self::Duplicate { rank, .. } => vec![4, word(rank)],
            Self::OtherWorld { rank, world, root_world } => {
                vec![5, word(rank), word(world), word(root_world)]
            }
            Self::OutOfRange { rank } => vec![6, word(rank)],
            Self::TotalTooLarge { bytes } => vec![7, bytes as u32, (bytes >> 32) as u32],
            Self::Descriptors { rank, limit } => {
                vec![8, word(rank), limit as u32, (limit >> 32) as u32]
            }
        };
        if let Self::Missing { ranks, .. } = self {
            words.extend(ranks.iter().map(|&rank| word(rank)));
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// The inverse of [`encode`](Self::encode); `None` for bytes that it does not make.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return None;
        }
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Some(match words[..] {
            [1, millis, ref ranks @ ..] if !ranks.is_empty() => Self::Missing {
                ranks: ranks.iter().map(|&rank| rank as usize).collect(),
                waited: Duration::from_millis(millis.into()),
            },
            [2, peer] => Self::Closed { peer: peer as usize, errno: None },
            [3, peer] => Self::Malformed { peer: peer as usize },
            [4, rank] => Self::Duplicate { rank: rank as usize, addr: None },
            [5, rank, world, root_world] => Self::OtherWorld {
                rank: rank as usize,
                world: world as usize,
                root_world: root_world as usize,
            },
            [6, rank] => Self::OutOfRange { rank: rank as usize },
            [7, low, high] => Self::TotalTooLarge { bytes: wide(low, high) },
            [8, rank, low, high] => {
                Self::Descriptors { rank: rank as usize, limit: wide(low, high) }
            }
            _ => return None,
        })
    }
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn faults_round_trip() {
        for fault in [
            Fault::Missing { ranks: vec![3, 9], waited: Duration::from_millis(1500) },
            Fault::Closed { peer: 3, errno: None },
            Fault::Malformed { peer: 4 },
            Fault::Duplicate { rank: 5, addr: None },
            Fault::OtherWorld { rank: 6, world: 7, root_world: 8 },
            Fault::OutOfRange { rank: 9 },
            Fault::TotalTooLarge { bytes: 10 << 40 | 11 },
            Fault::Descriptors { rank: 12, limit: 1024 },
        ] {
            assert_eq!(Fault::decode(&fault.encode()), Some(fault));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_fault_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(fault) = Fault::decode(&bytes) {
                prop_assert_eq!(fault.encode(), bytes);
                prop_assert!(!fault.error(8).to_string().is_empty());
            }
        }
    }
}

//! Why a wait ended without what it waited for.

use std::fmt;

/// The kind of a failure. One word in shared memory carries it to every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// Someone called `abort`.
    Aborted,
    /// A peer did not do its part within the timeout.
    TimedOut,
    /// A peer's process ended.
    PeerDied,
    /// A peer dropped its communicator while others still needed it.
    PeerLeft,
    /// Ranks made different calls.
    Mismatch,
    /// The connection to a peer of another host broke: the network, a NIC, or the peer's end.
    Disconnected,
}

/// A failure, as every rank learns of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub kind: FailureKind,
    /// The rank that noticed it first.
    pub by: usize,
    /// The rank that it is about, where one can be named.
    pub culprit: Option<usize>,
}

const NOBODY: u64 = 0xff_ffff;

impl Failure {
    pub(crate) fn to_word(self) -> u64 {
        let kind = match self.kind {
            FailureKind::Aborted => 1,
            FailureKind::TimedOut => 2,
            FailureKind::PeerDied => 3,
            FailureKind::PeerLeft => 4,
            FailureKind::Mismatch => 5,
            FailureKind::Disconnected => 6,
        };
        let culprit = self.culprit.map_or(NOBODY, |rank| rank as u64 & NOBODY);
        kind << 56 | (self.by as u64 & NOBODY) << 24 | culprit
    }

    pub(crate) fn from_word(word: u64) -> Option<Self> {
        let kind = match word >> 56 {
            0 => return None,
            2 => FailureKind::TimedOut,
            3 => FailureKind::PeerDied,
            4 => FailureKind::PeerLeft,
            5 => FailureKind::Mismatch,
            6 => FailureKind::Disconnected,
            _ => FailureKind::Aborted,
        };
        let culprit = word & NOBODY;
        let culprit = (culprit != NOBODY).then_some(culprit as usize);
        Some(Self { kind, by: (word >> 24 & NOBODY) as usize, culprit })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self.by;
        match (self.kind, self.culprit) {
            (FailureKind::Aborted, _) => write!(f, "rank {by} aborted the communicator"),
            (FailureKind::TimedOut, Some(rank)) => {
                write!(
                    f,
                    "rank {rank} did not do its part within the timeout (noticed by rank {by})"
                )
            }
            (FailureKind::TimedOut, None) => {
                write!(f, "timeout: all ranks wait for each other (noticed by rank {by})")
            }
            (FailureKind::PeerDied, Some(rank)) => {
                write!(f, "rank {rank} died (noticed by rank {by})")
            }
            (FailureKind::PeerLeft, Some(rank)) => {
                write!(f, "rank {rank} left the communicator (noticed by rank {by})")
            }
            (FailureKind::Mismatch, Some(rank)) => {
                write!(f, "ranks {by} and {rank} made different calls")
            }
            (FailureKind::Disconnected, Some(rank)) => {
                write!(f, "the connection between ranks {by} and {rank} broke")
            }
            (kind, None) => write!(f, "{kind:?}, noticed by rank {by}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_its_word() {
        use FailureKind::*;
        for kind in [Aborted, TimedOut, PeerDied, PeerLeft, Mismatch, Disconnected] {
            for culprit in [None, Some(0), Some(70_000)] {
                let failure = Failure { kind, by: 12, culprit };
                assert_eq!(Failure::from_word(failure.to_word()), Some(failure));
            }
        }
        assert_eq!(Failure::from_word(0), None);
    }
}

//! What can go wrong between hosts.

use std::fmt;

/// A connection that broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetFault {
    /// The rank at the other end.
    pub peer: usize,
    /// Through what: a NIC and its port, an interface or a pair of addresses.
    pub via: String,
    /// What happened, in the words of the transport: a completion status, an errno, a violation of the protocol.
    pub cause: String,
}

impl fmt::Display for NetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection to rank {} through {} broke: {}", self.peer, self.via, self.cause)
    }
}

impl std::error::Error for NetFault {}

impl From<NetFault> for NetError {
    fn from(fault: NetFault) -> Self {
        Self::Broken(fault)
    }
}

/// An error of a transport.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The transport is not to be had on this machine.
    #[error("{transport} is not available: {reason}")]
    Unavailable {
        /// Its name.
        transport: &'static str,
        /// Why, and what to do.
        reason: String,
    },

    /// A connection broke.
    #[error("{0}")]
    Broken(NetFault),

    /// Peers that did not connect in time.
    #[error("ranks {missing:?} did not connect within {timeout:?}{hint}")]
    Missing {
        /// Who.
        missing: Vec<usize>,
        /// How long it took.
        timeout: std::time::Duration,
        /// What was seen of them, and what to look at. Empty, or begins with a separator.
        hint: String,
    },

    /// A range that does not lie in its memory, or memory that there is not.
    #[error("{what}: bytes {offset}..{offset}+{len} of memory {memory}, which has {size}")]
    OutOfRange {
        /// Whose.
        what: &'static str,
        /// The memory's number.
        memory: u32,
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes that there are; 0 where the number is unknown.
        size: u64,
    },

    /// A call of the system or a library failed.
    #[error("{what}: {cause}")]
    System {
        /// What was tried, on what.
        what: String,
        /// The answer, and what to do.
        cause: String,
    },

    /// What was waited for did not come.
    #[error("within {timeout:?} there was not: {what}")]
    TimedOut {
        /// What.
        what: String,
        /// How long it took.
        timeout: std::time::Duration,
    },

    /// What a peer sent is not of this protocol or this version.
    #[error("rank {peer}: {what}")]
    Protocol {
        /// The peer.
        peer: usize,
        /// What is wrong.
        what: String,
    },
}

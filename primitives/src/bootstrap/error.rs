//! What can go wrong in a bootstrap.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::env::Launcher;

/// Why ranks could not find each other or exchange their bytes.
///
/// The text says what failed, where, and what to do. An operating system's error is part of the text and
/// kept in a field named `cause`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The timeout passed before these ranks came.
    #[error(
        "{} of {world} did not come within {waited:?}: check that it was started, is not stopped and \
         reaches rank 0, or raise the timeout",
        Ranks(missing)
    )]
    Missing {
        /// The ranks that were waited for, in order. Where a rank got no
        /// verdict of the root's, only the rank that it waited for on the way there.
        missing: Vec<usize>,
        /// The number of ranks of the job.
        world: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// A rank went away.
    #[error(
        "rank {peer} closed its bootstrap connection{}: it ended, failed or was killed; see its own output",
        Because(cause)
    )]
    PeerClosed {
        /// The rank that went away.
        peer: usize,
        /// The operating system's reason, where it was not a plain close seen by this rank.
        cause: Option<io::Error>,
    },
    /// A rank sent what is not a bootstrap message.
    #[error(
        "rank {peer} sent bytes that are no bootstrap message: check that every rank runs the same build \
         and makes the same collective calls"
    )]
    Malformed {
        /// The rank that sent them.
        peer: usize,
    },
    /// Two processes say that they are the same rank.
    #[error(
        "a second process{} says that it is rank {rank}: give every process its own rank in 0..{world}",
        At(addr)
    )]
    DuplicateRank {
        /// The rank that came twice.
        rank: usize,
        /// The number of ranks of the job.
        world: usize,
        /// Where the second one connected from, on the root.
        addr: Option<SocketAddr>,
    },
    /// A rank was started with another number of ranks than the root.
    #[error(
        "rank {rank} was started with world {world}, but rank 0 with world {root_world}: start every rank \
         with the same world"
    )]
    WorldMismatch {
        /// The rank that differs.
        rank: usize,
        /// Its number of ranks.
        world: usize,
        /// The root's number of ranks.
        root_world: usize,
    },
    /// A rank is not below the world size.
    #[error("rank {rank} is out of range for world {world}: ranks are 0 to world - 1")]
    RankOutOfRange {
        /// The rank that was given.
        rank: usize,
        /// The number of ranks.
        world: usize,
    },
    /// The world size is 0 or too large.
    #[error("world {world} is out of range: it has to be 1 to {max}")]
    WorldOutOfRange {
        /// The number of ranks that was given.
        world: usize,
        /// The largest that is accepted.
        max: usize,
    },
    /// Rank 0 tried to join instead of being the root.
    #[error(
        "rank 0 cannot join, it is the root: use TcpBootstrap::root, or TcpBootstrap::from_id_as_root where \
         the unique id was made ahead of time"
    )]
    RootJoins,
    /// A contribution is larger than a bootstrap carries.
    #[error(
        "all_gather of {bytes} bytes a rank: the bootstrap carries at most {max}; send large data through \
         a communicator"
    )]
    TooLarge {
        /// The length that was given, bytes.
        bytes: usize,
        /// The largest that is accepted, bytes.
        max: usize,
    },
    /// All contributions together are larger than a bootstrap carries.
    #[error(
        "all_gather of {bytes} bytes or more over all ranks: the bootstrap carries at most {max} in one call; \
         send large data through a communicator"
    )]
    TotalTooLarge {
        /// What had come when it was too much, bytes.
        bytes: u64,
        /// The largest that is accepted, bytes.
        max: u64,
    },
    /// The process has as many files and sockets open as it may.
    #[error(
        "the process of rank {rank} has reached its limit of {limit} open files: raise it (ulimit -n, \
         LimitNOFILE=), or run fewer ranks in one process"
    )]
    Descriptors {
        /// The rank that needed another one.
        rank: usize,
        /// The limit, which cannot be raised from inside.
        limit: u64,
    },
    /// No connection to the root, or to the rank that the root gave as parent, could be made.
    #[error(
        "rank {rank} could not connect to rank {peer} at {addr} in {attempts} attempts within {waited:?}: \
         {cause}; check that rank {peer} runs, that the address is one this host reaches, and that no firewall \
         is between"
    )]
    Unreachable {
        /// The rank that tried.
        rank: usize,
        /// The rank that listens there.
        peer: usize,
        /// Its address.
        addr: SocketAddr,
        /// How often was tried.
        attempts: u32,
        /// How long was tried.
        waited: Duration,
        /// The last attempt's failure.
        cause: io::Error,
    },
    /// The root, or the parent, does not believe that this rank knows the secret.
    #[error(
        "what listens at {addr} refused rank {rank}: the secrets or the protocol versions differ; give every rank \
         the same unique id (or WARPMESH_SECRET) and the same build"
    )]
    Refused {
        /// The rank that was refused.
        rank: usize,
        /// The address.
        addr: SocketAddr,
    },
    /// What listens at the root's address, or at the parent's, does not know the secret.
    #[error(
        "what listens at {addr} is not a rank of this job: another program has the port; choose another one for \
         rank 0"
    )]
    Impostor {
        /// The address.
        addr: SocketAddr,
    },
    /// The root could not listen.
    #[error(
        "cannot listen at {addr}: {cause}; the address has to be one of rank 0's host, with a free port"
    )]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The operating system's reason.
        cause: io::Error,
    },
    /// The address does not say where other ranks can connect to.
    #[error(
        "{addr} is no address that other ranks can connect to: give an address of rank 0's host (127.0.0.1 \
         where all ranks are on it) and, in a unique id, a port"
    )]
    NotConnectable {
        /// The address.
        addr: SocketAddr,
    },
    /// A call of the operating system failed that does not depend on a peer.
    #[error("bootstrap: {tried} failed: {cause}")]
    Os {
        /// What was tried.
        tried: &'static str,
        /// The operating system's reason.
        cause: io::Error,
    },
    /// Bytes or text that are no unique id.
    #[error(
        "this is no unique id: {expected}; pass on exactly what rank 0's process or the launcher made"
    )]
    InvalidId {
        /// What a unique id would have at the place that is wrong.
        expected: &'static str,
    },
    /// A unique id of another protocol version.
    #[error(
        "the unique id has bootstrap protocol version {found}, this build speaks version {ours}: use the \
         same build on every rank"
    )]
    IdVersion {
        /// The id's version.
        found: u16,
        /// This build's version.
        ours: u16,
    },
    /// An environment variable has a value that cannot be used.
    #[error("environment variable {name}={value:?} cannot be used: it has to be {expected}")]
    MalformedVariable {
        /// The variable.
        name: &'static str,
        /// Its value, cut after 80 characters; a secret is not shown.
        value: String,
        /// What the value has to be.
        expected: &'static str,
    },
    /// One environment variable is set and another that belongs to it is not.
    #[error("environment variable {set} is set but {missing} is not: set both, or neither")]
    MissingVariable {
        /// The variable that is set.
        set: &'static str,
        /// The variable that is missing.
        missing: &'static str,
    },
    /// The launcher says who this process is, but not where rank 0 is.
    #[error(
        "{launcher} gives rank {rank} of {world}, but nothing says where rank 0 is: set \
         WARPMESH_ADDR=host:port to an address of rank 0's host, or WARPMESH_UNIQUE_ID, on every rank"
    )]
    NoRendezvous {
        /// The launcher whose variables were found.
        launcher: Launcher,
        /// This process's rank.
        rank: usize,
        /// The number of ranks.
        world: usize,
    },
    /// The name of rank 0's host has no address.
    #[error(
        "cannot find an address of rank 0's host {host:?}: {cause}; set WARPMESH_ADDR=host:port to a name or \
         address that every rank can resolve"
    )]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's reason.
        cause: io::Error,
    },
}

/// "rank 3", "ranks 3 and 5", or the first 16 and how many more.
struct Ranks<'a>(&'a [usize]);

impl fmt::Display for Ranks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "{}", if self.0.len() == 1 { "rank " } else { "ranks " })?;
        for (at, rank) in shown.iter().enumerate() {
            let last = at + 1 == self.0.len();
            let before = if at == 0 {
                ""
            } else if last {
                " and "
            } else {
                ", "
            };
            write!(f, "{before}{rank}")?;
        }
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

struct Because<'a>(&'a Option<io::Error>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |cause| write!(f, " ({cause})"))
    }
}

struct At<'a>(&'a Option<SocketAddr>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |addr| write!(f, " (at {addr})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_read_well() {
        assert_eq!(Ranks(&[3]).to_string(), "rank 3");
        assert_eq!(Ranks(&[3, 5]).to_string(), "ranks 3 and 5");
        assert_eq!(Ranks(&[1, 3, 5]).to_string(), "ranks 1, 3 and 5");
        let many: Vec<usize> = (0..40).collect();
        assert!(Ranks(&many).to_string().ends_with("14, 15 and 24 more"));
    }

    #[test]
    fn a_closed_connection_names_the_rank() {
        let error = BootstrapError::PeerClosed { peer: 3, cause: None };
        assert!(error.to_string().starts_with("rank 3 closed its bootstrap connection:"));
    }
}

//! Hosts on one machine, `--hosts 2,2`: each a network namespace with a name, an address and a
//! network card of its own, so that what ranks on two of them say to each other goes through the
//! kernel's TCP, and they cannot share memory by mistake.
//!
//! ```text
//!   warpmesh-perf ──────► keeper, process 1 of a PID namespace
//!     waits; passes        ├─ host0: eth0 10.87.0.1 ── ranks 0, 1     (mpirun, with an MPI)
//!     its exit code on     └─ host1: eth0 10.87.0.2 ── ranks 2, 3     (orted, by `agent`)
//! ```
//!
//! Nothing of it has a name or a file that someone would have to remove. When the first process of a
//! PID namespace ends, the kernel kills all others in it, daemons of an MPI included; the keeper dies
//! with the program that the user has started; and a network namespace that no process is in is gone,
//! with its devices.

mod launcher;
mod network;

use std::net::Ipv4Addr;

#[cfg(feature = "mpi")]
pub use self::launcher::open_mpi_arguments;
pub use self::launcher::{agent, inside, is_agent, is_inside, outside};
pub use self::network::{Network, use_network};

/// More would need another network than [`Hosts::address`] has.
const MOST: usize = 200;

/// How many ranks each host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(Vec<usize>);

/// Where a rank runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The host's number.
    pub host: usize,
    /// The rank's number on it.
    pub local_rank: usize,
}

impl Hosts {
    /// Reads `2,2`.
    ///
    /// # Errors
    /// What is wrong with the text, for the command line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse::<usize>().ok().filter(|ranks| *ranks > 0);
        let hosts: Option<Vec<usize>> = text.split(',').map(number).collect();
        match hosts {
            Some(hosts) if hosts.len() <= MOST => Ok(Self(hosts)),
            Some(hosts) => Err(format!("{} hosts; at most {MOST} fit", hosts.len())),
            None => {
                Err("ranks on each host, such as 2,2; hosts are namespaces of this machine. On \
                         machines with names, mpirun, torchrun or srun starts the ranks"
                    .to_owned())
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Ranks on all of them.
    pub fn world(&self) -> usize {
        self.0.iter().sum()
    }

    /// Where each rank runs, by rank: a host's ranks follow each other.
    pub fn seats(&self) -> impl Iterator<Item = Seat> {
        let of_host = |(host, ranks): (usize, &usize)| {
            (0..*ranks).map(move |local_rank| Seat { host, local_rank })
        };
        self.0.iter().enumerate().flat_map(of_host)
    }

    /// A host's address.
    pub fn address(host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 87, 0, host as u8 + 1)
    }

    /// As mpirun's `--host` wants it: addresses, each with its ranks.
    #[cfg(any(test, feature = "mpi"))]
    pub fn for_mpirun(&self) -> String {
        let host = |(host, ranks)| format!("{}:{ranks}", Self::address(host));
        self.0.iter().enumerate().map(host).collect::<Vec<_>>().join(",")
    }
}

/// The network that all hosts are in, as Open MPI and `ip` write it.
pub const NETWORK: &str = "10.87.0.0/24";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_host_follow_each_other() {
        let hosts = Hosts::parse("1,2").unwrap();
        let seat = |host, local_rank| Seat { host, local_rank };
        assert_eq!(hosts.seats().collect::<Vec<_>>(), [seat(0, 0), seat(1, 0), seat(1, 1)]);
        assert_eq!((hosts.count(), hosts.world()), (2, 3));
        assert_eq!(hosts.for_mpirun(), "10.87.0.1:1,10.87.0.2:2");
    }

    #[test]
    fn what_is_no_list_of_numbers_is_told_what_to_do() {
        for text in ["", "2,", "0,1", "node1,node2", "2;2"] {
            let error = Hosts::parse(text).unwrap_err();
            assert!(error.contains("2,2") && error.contains("mpirun"), "{text}: {error}");
        }
        assert!(Hosts::parse(&vec!["1"; MOST + 1].join(",")).unwrap_err().contains("at most"));
    }
}

//! How ranks of one host meet: introductions through the bootstrap, then a socket per pair.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::bootstrap::Bootstrap;
use crate::error::{Error, system};
use crate::host::{self, HostId};
use crate::sys::{recv_with_fd, send_with_fd, wait_readable};

/// What a rank tells all others before they connect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) pid: u32,
    /// Cores that its cgroup grants.
    quota: u32,
    /// Cores that its affinity mask allows.
    mask: Vec<u32>,
    /// Random; names the listener. Anyone on the host can list it.
    name: [u8; 16],
    /// Random; known only to those whom the bootstrap admitted.
    token: [u8; 16],
    /// The machine whose cores it uses.
    machine_id: Vec<u8>,
    /// The machine's name, for reports.
    pub(crate) machine: String,
    host: Vec<u8>,
}

/// Bytes of a machine's name, at most.
const NAME: usize = 64;

impl Introduction {
    /// Opens this rank's listener and describes it.
    pub(crate) fn prepare(rank: usize, host: &HostId) -> Result<(Self, UnixListener), Error> {
        let (mut name, mut token) = ([0; 16], [0; 16]);
        let random = |bytes: &mut [u8]| {
            let failed =
                Error::System { what: "random bytes from the system", errno: Errno::NOSYS };
            getrandom::fill(bytes).map_err(|_| failed)
        };
        random(&mut name)?;
        random(&mut token)?;
        let listener = address(&name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .map_err(io("listen on an abstract socket"))?;
        listener.set_nonblocking(true).map_err(io("listen on an abstract socket"))?;
        tracing::trace!(rank, "listening for local peers");
        let mask = affinity();
        let usable = host::usable_cores() as u32;
        let quota = if (usable as usize) < mask.len() { usable } else { u32::MAX };
        let mut machine = host::name();
        while machine.len() > NAME {
            machine.pop();
        }
        let (pid, host) = (std::process::id(), host.as_bytes().to_vec());
        let mut machine_id = host::machine_id();
        machine_id.truncate(NAME);
        Ok((Self { pid, quota, mask, name, token, machine_id, machine, host }, listener))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.pid.to_le_bytes());
        bytes.extend(self.quota.to_le_bytes());
        bytes.extend((self.mask.len() as u32).to_le_bytes());
        bytes.extend(self.mask.iter().flat_map(|core| core.to_le_bytes()));
        bytes.extend(self.name);
        bytes.extend(self.token);
        for name in [&self.machine_id[..], self.machine.as_bytes()] {
            bytes.push(name.len() as u8);
            bytes.extend(name);
        }
        bytes.extend(&self.host);
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let word = |bytes: &mut &[u8]| {
            let (word, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            Some(u32::from_le_bytes(*word))
        };
        let (pid, quota, cores) = (word(&mut bytes)?, word(&mut bytes)?, word(&mut bytes)?);
        if bytes.len() / 4 < cores as usize {
            return None;
        }
        let mask = (0..cores).map(|_| word(&mut bytes)).collect::<Option<_>>()?;
        let (name, rest) = bytes.split_first_chunk()?;
        let (token, rest) = rest.split_first_chunk()?;
        let name_of = |bytes: &mut &[u8]| {
            let (length, rest) = bytes.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            *bytes = rest;
            Some(name.to_vec())
        };
        let mut rest = rest;
        let (machine_id, machine) = (name_of(&mut rest)?, name_of(&mut rest)?);
        let (machine, host) = (String::from_utf8_lossy(&machine).into_owned(), rest.to_vec());
        Some(Self { pid, quota, mask, name: *name, token: *token, machine_id, machine, host })
    }
}

/// Everyone's introduction, in rank order.
pub(crate) fn exchange(
    bootstrap: &mut dyn Bootstrap,
    mine: &Introduction,
) -> Result<Vec<Introduction>, Error> {
    let read = |(peer, bytes): (usize, &Vec<u8>)| {
        let garbled = Error::Connect { peer, what: "its introduction is garbled" };
        Introduction::decode(bytes).ok_or(garbled)
    };
    bootstrap.all_gather(&mine.encode())?.iter().enumerate().map(read).collect()
}

/// The host of each rank; hosts are numbered by their first ranks.
pub(crate) fn hosts_of(introductions: &[Introduction]) -> Vec<usize> {
    let mut firsts: Vec<&[u8]> = Vec::new();
    let mut hosts = Vec::with_capacity(introductions.len());
    for introduction in introductions {
        let known = firsts.iter().position(|first| *first == introduction.host);
        hosts.push(known.unwrap_or(firsts.len()));
        if known.is_none() {
            firsts.push(&introduction.host);
        }
    }
    hosts
}

/// The ranks that use the cores of a rank's machine, itself among them.
pub(crate) fn machine_of(
    introductions: &[Introduction],
    rank: usize,
) -> impl Iterator<Item = &Introduction> + Clone {
    introductions.iter().filter(move |other| other.machine_id == introductions[rank].machine_id)
}

/// Cores that the ranks of a machine may use together: the union of their masks, within the smallest quota.
pub(crate) fn cores_of<'a>(introductions: impl Iterator<Item = &'a Introduction> + Clone) -> usize {
    let union: BTreeSet<u32> = introductions.clone().flat_map(|i| i.mask.iter().copied()).collect();
    let quota = introductions.map(|i| i.quota).min().unwrap_or(1);
    union.len().min(quota as usize).max(1)
}

/// Connects to all lower ranks of this host and accepts all higher ones; None at the places of this rank and of
/// those elsewhere.
pub(crate) fn connect(
    rank: usize,
    introductions: &[Introduction],
    listener: &UnixListener,
    deadline: Instant,
    timeout: Duration,
) -> Result<Vec<Option<UnixStream>>, Error> {
    let mut links: Vec<Option<UnixStream>> = introductions.iter().map(|_| None).collect();
    let near =
        |peer: &usize| *peer != rank && introductions[*peer].host == introductions[rank].host;
    for peer in (0..rank).filter(near) {
        links[peer] = Some(call_on(rank, peer, &introductions[peer])?);
    }
    let missing = |links: &[Option<UnixStream>]| -> Vec<usize> {
        (0..links.len()).filter(|peer| near(peer) && links[*peer].is_none()).collect()
    };
    while !missing(&links).is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Missing { missing: missing(&links), timeout });
        }
        let Some(stream) = accept(listener, deadline)? else {
            continue;
        };
        // Whoever is not one of us is dropped, and the job goes on.
        match admit(&stream, &introductions[rank].token, left) {
            Some(peer)
                if peer > rank && peer < links.len() && near(&peer) && links[peer].is_none() =>
            {
                links[peer] = Some(stream);
            }
            _ => tracing::warn!(rank, "dropped a stranger's connection to the local socket"),
        }
    }
    Ok(links)
}

/// Sends `fd` to every peer. `kind` says what it is for, so that ranks that do different things
/// notice.
pub(crate) fn send_descriptor(
    links: &[Option<UnixStream>],
    fd: &OwnedFd,
    kind: u32,
) -> Result<(), (usize, Errno)> {
    let connected =
        links.iter().enumerate().filter_map(|(peer, link)| Some((peer, link.as_ref()?)));
    for (peer, link) in connected {
        send_with_fd(link, &kind.to_le_bytes(), fd.as_fd()).map_err(|errno| (peer, errno))?;
    }
    Ok(())
}

/// Receives what a peer sent with [`send_descriptor`]; PROTO if it is of another kind. Waits until
/// `deadline`.
pub(crate) fn receive_descriptor(
    link: &UnixStream,
    kind: u32,
    deadline: Instant,
) -> Result<OwnedFd, Errno> {
    let mut sent = [0; 4];
    let fd = recv_with_fd(link, &mut sent, deadline)?;
    if sent == kind.to_le_bytes() { Ok(fd) } else { Err(Errno::PROTO) }
}

/// What an exchange of descriptors that failed at `peer` means while the ranks connect.
pub(crate) fn exchange_failed((peer, errno): (usize, Errno)) -> Error {
    match errno {
        Errno::TIMEDOUT => Error::Connect { peer, what: "it sent no memory within the timeout" },
        Errno::CONNRESET | Errno::PIPE => Error::Connect { peer, what: "it closed its connection" },
        Errno::PROTO => Error::Connect { peer, what: "it sent something else than memory" },
        errno => Error::System { what: "pass memory to a peer", errno },
    }
}

fn call_on(rank: usize, peer: usize, introduction: &Introduction) -> Result<UnixStream, Error> {
    let refused = |what| Error::Connect { peer, what };
    let stream = address(&introduction.name)
        .and_then(|address| UnixStream::connect_addr(&address))
        .map_err(|_| refused("its local socket is closed; did it end?"))?;
    if !same_user(&stream) {
        return Err(refused("its local socket belongs to another user"));
    }
    let mut hello = [0; 20];
    hello[..4].copy_from_slice(&(rank as u32).to_le_bytes());
    hello[4..].copy_from_slice(&introduction.token);
    (&stream).write_all(&hello).map_err(|_| refused("it closed its connection"))?;
    Ok(stream)
}

/// The rank that connected, if it is of the same user and knows the token. Waits at most `limit`.
fn admit(mut stream: &UnixStream, token: &[u8; 16], limit: Duration) -> Option<usize> {
    // A peer writes its hello at once; a stranger may hold the line for a second, not longer.
    let limit = limit.min(Duration::from_secs(1));
    if !same_user(stream) || stream.set_read_timeout(Some(limit)).is_err() {
        return None;
    }
    let mut hello = [0; 20];
    stream.read_exact(&mut hello).ok()?;
    stream.set_read_timeout(None).ok()?;
    let (rank, shown) = hello.split_first_chunk::<4>()?;
    (shown == token).then_some(u32::from_le_bytes(*rank) as usize)
}

fn accept(listener: &UnixListener, deadline: Instant) -> Result<Option<UnixStream>, Error> {
    match wait_readable(listener.as_fd(), deadline) {
        Err(Errno::TIMEDOUT) => return Ok(None),
        other => other.map_err(system("wait for local peers"))?,
    }
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false).map_err(io("accept a local peer"))?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(io("accept a local peer")(error)),
    }
}

fn same_user(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|credentials| credentials.uid == rustix::process::getuid())
}

fn address(name: &[u8; 16]) -> std::io::Result<SocketAddr> {
    let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    SocketAddr::from_abstract_name(format!("warpmesh-{hex}"))
}

fn affinity() -> Vec<u32> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&core| set.is_set(core))
            .map(|core| core as u32)
            .collect(),
        Err(_) => (0..host::usable_cores() as u32).collect(),
    }
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::System { what, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(mask: &[u32], quota: u32) -> Introduction {
        let (mask, machine) = (mask.to_vec(), "box".to_owned());
        let host = b"here".to_vec();
        let (machine_id, name, token) = (b"id".to_vec(), [1; 16], [2; 16]);
        Introduction { pid: 7, quota, mask, name, token, machine_id, machine, host }
    }

    #[test]
    fn introductions_survive_the_wire_and_garbage_does_not() {
        let original = introduction(&[0, 5], u32::MAX);
        let bytes = original.encode();
        assert_eq!(Introduction::decode(&bytes), Some(original));
        for cut in 0..bytes.len() - 4 {
            assert_eq!(Introduction::decode(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(Introduction::decode(&[0xff; 40]), None);
    }

    #[test]
    fn hosts_are_numbered_by_their_first_ranks() {
        let all = [b"b", b"a", b"b", b"c"].map(|host| {
            let mut one = introduction(&[0], 1);
            one.host = host.to_vec();
            one
        });
        assert_eq!(hosts_of(&all), [0, 1, 0, 2]);
    }

    #[test]
    fn pinned_ranks_count_their_cores_together() {
        let pinned = [introduction(&[0], u32::MAX), introduction(&[1], u32::MAX)];
        assert_eq!(cores_of(pinned.iter()), 2);
        let limited = [introduction(&[0, 1, 2, 3], 2), introduction(&[0, 1, 2, 3], 2)];
        assert_eq!(cores_of(limited.iter()), 2);
    }

    #[test]
    fn a_stranger_without_the_token_is_not_admitted() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[9; 20]).unwrap();
        assert_eq!(admit(&ours, &[2; 16], Duration::from_millis(100)), None);
        let (ours, _silent) = UnixStream::pair().unwrap();
        assert_eq!(admit(&ours, &[2; 16], Duration::from_millis(10)), None);
    }
}

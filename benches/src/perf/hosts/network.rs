//! The hosts' namespaces and the network between them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::system::sethostname;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::{Hosts, NETWORK};

/// The network card of each host.
pub const DEVICE: &str = "eth0";

/// Has a program's libraries use that card: warpmesh, and Gloo.
pub fn use_network(command: &mut Command) {
    command.env("WARPMESH_SOCKET_IFNAME", DEVICE).env("GLOO_SOCKET_IFNAME", DEVICE);
}

/// Who runs the agent reads from here where the hosts are: `address=network:name` for each.
const PLACES: &str = "WARPMESH_PERF_HOSTS";

/// Namespaces of hosts. They live as long as this, or a process in them.
pub struct Network {
    hosts: Vec<Namespaces>,
    /// The switch, where there are more than two hosts.
    _switch: Option<Namespaces>,
}

impl Network {
    /// Makes the hosts and connects them: two by a wire, more by a switch. Leaves the calling thread
    /// on one of them.
    pub fn new(hosts: &Hosts) -> Result<Self> {
        let count = hosts.count();
        let name = |host: usize| Namespaces::new(&format!("host{host}"));
        let switch = (count != 2).then(switch).transpose()?;
        let hosts = (0..count).map(name).collect::<Result<Vec<_>>>()?;
        match &switch {
            None => wire(&hosts[0], &hosts[1], DEVICE)?,
            Some(switch) => plug_in(&hosts, switch)?,
        }
        for (number, host) in hosts.iter().enumerate() {
            host.enter()?;
            let length = NETWORK.split('/').next_back().unwrap_or_default();
            let address = format!("{}/{length}", Hosts::address(number));
            ip(&["addr", "add", &address, "dev", DEVICE])?;
            ip(&["link", "set", DEVICE, "up"])?;
        }
        Ok(Self { hosts, _switch: switch })
    }

    /// Moves the calling thread to a host. Processes that it starts are there, too.
    pub fn enter(&self, host: usize) -> Result<()> {
        self.hosts[host].enter()
    }

    /// Bytes that each host's card has sent. What ranks of one host say to each other is not among
    /// them. Leaves the calling thread on the last host.
    pub fn sent(&self) -> Result<Vec<u64>> {
        let of_host = |host: &Namespaces| {
            host.enter()?;
            let counters = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            sent_by(DEVICE, &counters).with_context(|| format!("no {DEVICE} in {counters}"))
        };
        self.hosts.iter().map(of_host).collect()
    }

    /// For [`enter_by_address`], in a process that this one has started, whatever closes its files:
    /// a variable and its value. Good while this lives.
    pub fn places(&self) -> (&'static str, String) {
        let place = |(number, host): (usize, &Namespaces)| {
            let [network, name] = host.paths();
            format!("{}={network}:{name}", Hosts::address(number))
        };
        (PLACES, self.hosts.iter().enumerate().map(place).collect::<Vec<_>>().join(","))
    }
}

/// Moves the calling thread to the host with this address, of those that the environment names.
pub fn enter_by_address(address: &str) -> Result<()> {
    let places = std::env::var(PLACES).with_context(|| format!("{PLACES} is not set"))?;
    let of_host = |place: &&str| place.split_once('=').is_some_and(|(host, _)| host == address);
    let place = places.split(',').find(of_host);
    let place = place.with_context(|| format!("no host {address} in {PLACES} ({places})"))?;
    let paths = place.split_once('=').and_then(|(_, paths)| paths.split_once(':'));
    let (network, name) = paths.context("a host without paths")?;
    let open = |path| File::open(path).with_context(|| format!("opening {path}"));
    Namespaces { network: open(network)?, name: open(name)? }.enter()
}

/// What a host has of its own.
struct Namespaces {
    network: File,
    name: File,
}

impl Namespaces {
    /// New ones, without devices but the loopback. Leaves the calling thread in them.
    fn new(name: &str) -> Result<Self> {
        let new = UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
        // SAFETY: of this thread only network and host name change, and it has no sockets.
        unsafe { unshare_unsafe(new) }.context("a new network namespace")?;
        sethostname(name.as_bytes()).context("naming a host")?;
        ip(&["link", "set", "lo", "up"])?;
        let open = |kind| File::open(format!("/proc/thread-self/ns/{kind}"));
        Ok(Self { network: open("net")?, name: open("uts")? })
    }

    fn enter(&self) -> Result<()> {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.network.as_fd(), network).context("entering a host")?;
        let name = Some(LinkNameSpaceType::HostNameAndNISDomainName);
        move_into_link_name_space(self.name.as_fd(), name).context("entering a host's name")
    }

    /// Network and name, for other processes.
    fn paths(&self) -> [String; 2] {
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        [path(&self.network), path(&self.name)]
    }
}

/// A host with a bridge and nothing else. Leaves the calling thread there.
fn switch() -> Result<Namespaces> {
    let switch = Namespaces::new("switch")?;
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    Ok(switch)
}

const BRIDGE: &str = "bridge";

/// A wire from each host to the switch.
fn plug_in(hosts: &[Namespaces], switch: &Namespaces) -> Result<()> {
    for (number, host) in hosts.iter().enumerate() {
        let port = format!("port{number}");
        wire(host, switch, &port)?;
        switch.enter()?;
        ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
    }
    Ok(())
}

/// A pair of Ethernet devices: [`DEVICE`] on `host`, `peer` on the other.
fn wire(host: &Namespaces, other: &Namespaces, peer: &str) -> Result<()> {
    host.enter()?;
    let [there, _] = other.paths();
    ip(&["link", "add", DEVICE, "type", "veth", "peer", "name", peer, "netns", &there])
}

/// Bytes, from what /proc says: after the name eight numbers of what was received.
fn sent_by(device: &str, counters: &str) -> Option<u64> {
    let of_device =
        |line: &str| Some(line.trim().strip_prefix(device)?.strip_prefix(':')?.to_owned());
    let numbers = counters.lines().find_map(of_device)?;
    numbers.split_whitespace().nth(8)?.parse().ok()
}

/// Runs iproute2 on the host where the calling thread is.
fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("cannot start ip; --hosts needs iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sent_are_read_from_the_kernels_table() {
        let counters = "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes\n    \
                        lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                        eth0:100 2 0 0 0 0 0 0 500 6 0 0 0 0 0 0\n";
        assert_eq!(sent_by("eth0", counters), Some(500));
        assert_eq!(sent_by("eth", counters), None);
    }
}

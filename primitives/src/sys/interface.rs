//! Addresses of network interfaces.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SIOCGIFADDR` of Linux.
const GET_ADDRESS: Opcode = 0x8915;

/// `struct ifreq` with a `sockaddr` in it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    family: u16,
    port: u16,
    address: [u8; 4],
    rest: [u8; 16],
}

/// The addresses of the interface `name`, those that reach farthest first: IPv4, IPv6, link-local IPv6. Their ports
/// are 0. Empty if it has none, or is not there.
pub(crate) fn interface_addresses(name: &str) -> Vec<SocketAddr> {
    let v4 = v4_of(name).ok().map(|address| SocketAddr::from((address, 0)));
    // Of the thread, not of the process: a thread may be in another network namespace.
    let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let mut v6: Vec<SocketAddr> = table.lines().filter_map(|line| v6_of(line, name)).collect();
    v6.sort_by_key(|address| matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0));
    v4.into_iter().chain(v6).collect()
}

fn v4_of(name: &str) -> Result<Ipv4Addr, Errno> {
    let mut request = Request { name: [0; 16], family: 0, port: 0, address: [0; 4], rest: [0; 16] };
    // The last byte stays 0.
    let room = request.name.get_mut(..name.len().min(16)).filter(|room| room.len() < 16);
    room.ok_or(Errno::NODEV)?.copy_from_slice(name.as_bytes());
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    // SAFETY: this request reads and writes one `ifreq`, 40 bytes, which `Request` is.
    unsafe { ioctl(&socket, Updater::<GET_ADDRESS, Request>::new(&mut request)) }?;
    Ok(Ipv4Addr::from(request.address))
}

/// A line of the table: address, interface's number, prefix, scope, flags, name; numbers in hexadecimal.
fn v6_of(line: &str, name: &str) -> Option<SocketAddr> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [address, interface, _, _, _, of] = words[..] else {
        return None;
    };
    let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
    let interface = u32::from_str_radix(interface, 16).ok()?;
    let scope = if address.is_unicast_link_local() { interface } else { 0 };
    (of == name).then(|| SocketAddrV6::new(address, 0, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_its_address() {
        assert_eq!(interface_addresses("lo")[0], SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        assert_eq!(interface_addresses("there-is-no-such-interface"), []);
        assert_eq!(interface_addresses(""), []);
    }

    #[test]
    fn a_line_of_the_table_is_an_address() {
        let line = "fe800000000000000000000000000007 0a 40 20 80     eth0";
        let SocketAddr::V6(address) = v6_of(line, "eth0").unwrap() else { panic!("IPv6") };
        assert_eq!((address.to_string().as_str(), address.scope_id()), ("[fe80::7%10]:0", 10));
        assert_eq!(v6_of(line, "eth"), None);
        assert_eq!(v6_of("nonsense", "eth0"), None);
    }
}

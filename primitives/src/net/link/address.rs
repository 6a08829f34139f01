//! Where a rank listens for the others, and how it tells them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use crate::net::NetError;
use crate::sys::interface_addresses;

/// The variable that names interfaces.
const INTERFACES: &str = "WARPMESH_SOCKET_IFNAME";
/// The variable that says how long a network may be silent, in seconds.
const SILENCE: &str = "WARPMESH_SOCKET_TIMEOUT";

/// How links are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// The address at which this rank listens and from which it dials. None: see `interfaces`.
    pub address: Option<IpAddr>,
    /// Names of interfaces; the first that has an address is taken. Empty: the one by which the bootstrap reaches the
    /// other ranks, or loopback where it knows none.
    pub interfaces: Vec<String>,
    /// Data that is not acknowledged for so long, or a peer's host that answers nothing for so long, is a broken
    /// connection. So is a peer that takes no data for so long, though its host answers: choose it above the longest
    /// wait. At least 2 seconds, which is what the system's timers can tell.
    pub silence: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { address: None, interfaces: Vec::new(), silence: Duration::from_secs(60) }
    }
}

impl LinkOptions {
    /// What WARPMESH_SOCKET_IFNAME (names of interfaces, separated by commas) and WARPMESH_SOCKET_TIMEOUT (seconds)
    /// say.
    ///
    /// # Errors
    /// A value that is neither.
    pub fn from_env() -> Result<Self, NetError> {
        let mut options = Self::default();
        if let Some(names) = std::env::var_os(INTERFACES) {
            let names = names.into_string().map_err(|_| unusable(INTERFACES, "names"))?;
            let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
            options.interfaces = names.map(str::to_owned).collect();
        }
        if let Some(seconds) = std::env::var_os(SILENCE) {
            let seconds = seconds.to_str().and_then(|seconds| seconds.parse::<u32>().ok());
            let seconds = seconds.filter(|&seconds| seconds > 0);
            let seconds = seconds.ok_or_else(|| unusable(SILENCE, "a whole number of seconds"))?;
            options.silence = Duration::from_secs(seconds.into());
        }
        Ok(options)
    }

    /// Where to listen, with port 0.
    pub(super) fn choose(&self, reached: Option<SocketAddr>) -> Result<SocketAddr, NetError> {
        if let Some(address) = self.address {
            return Ok(SocketAddr::new(address, 0));
        }
        if self.interfaces.is_empty() {
            let mut address = reached.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
            address.set_port(0);
            return Ok(address);
        }
        let found = self.interfaces.iter().flat_map(|name| interface_addresses(name)).next();
        found.ok_or_else(|| NetError::System {
            what: format!("an address of the interfaces {:?}", self.interfaces),
            cause: format!("none of them has one; correct {INTERFACES}, or leave it out"),
        })
    }
}

fn unusable(name: &str, expected: &str) -> NetError {
    NetError::System {
        what: format!("environment variable {name}"),
        cause: format!("it has to be {expected}"),
    }
}

/// Bytes of [`Card::encode`].
const CARD_BYTES: usize = 64;
const MAGIC: [u8; 6] = *b"wmlnk1";

/// What a rank tells all others: where it listens, and 32 random bytes, of which rank 0's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) address: SocketAddr,
    pub(super) nonce: [u8; 32],
}

impl Card {
    /// magic, port, zeros, the address as IPv6, nonce. What a scope's number means differs by host, so it stays here.
    pub(super) fn encode(&self) -> [u8; CARD_BYTES] {
        let v6 = match self.address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut bytes = [0; CARD_BYTES];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6..8].copy_from_slice(&self.address.port().to_le_bytes());
        bytes[16..32].copy_from_slice(&v6.octets());
        bytes[32..].copy_from_slice(&self.nonce);
        bytes
    }

    /// The inverse; None for bytes that no rank of this version sends.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CARD_BYTES] = bytes.try_into().ok()?;
        let (head, rest) = bytes.split_first_chunk::<16>()?;
        let (ip, nonce) = rest.split_first_chunk::<16>()?;
        let port = u16::from_le_bytes([head[6], head[7]]);
        let good = head[..6] == MAGIC && head[8..] == [0; 8] && port != 0;
        let address = SocketAddr::new(Ipv6Addr::from(*ip).to_canonical(), port);
        good.then_some(Self { address, nonce: nonce.try_into().ok()? })
    }
}

/// The address of a peer as it is dialled from `own`: link-local ones are of the same interface.
pub(super) fn seen_from(own: SocketAddr, peer: SocketAddr) -> SocketAddr {
    match (own, peer) {
        (SocketAddr::V6(own), SocketAddr::V6(peer)) if peer.ip().is_unicast_link_local() => {
            SocketAddrV6::new(*peer.ip(), peer.port(), 0, own.scope_id()).into()
        }
        _ => peer,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_chosen_in_order() {
        let reached = "10.1.2.3:999".parse().ok();
        let mut options = LinkOptions::default();
        let chosen = |o: &LinkOptions| o.choose(reached).map(|a| a.to_string());
        assert_eq!(chosen(&options).unwrap(), "10.1.2.3:0");
        assert_eq!(options.choose(None).unwrap().to_string(), "127.0.0.1:0");
        options.interfaces = vec!["no-such".into(), "lo".into()];
        assert_eq!(chosen(&options).unwrap(), "127.0.0.1:0");
        options.interfaces.pop();
        assert!(chosen(&options).unwrap_err().to_string().contains("no-such"));
        options.address = "::1".parse().ok();
        assert_eq!(chosen(&options).unwrap(), "[::1]:0");
    }

    #[test]
    fn cards_survive_the_wire() {
        for address in ["10.1.2.3:77", "[fe80::1]:1", "[2001:db8::9]:65535"] {
            let card = Card { address: address.parse().unwrap(), nonce: [7; 32] };
            assert_eq!(Card::decode(&card.encode()), Some(card));
        }
        let card = Card { address: "1.1.1.1:1".parse().unwrap(), nonce: [0; 32] };
        assert_eq!(Card::decode(&card.encode()[1..]), None);
        assert_eq!(Card::decode(&[0; CARD_BYTES]), None);
    }

    #[test]
    fn a_link_local_peer_is_on_the_own_interface() {
        let own = SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, 3).into();
        let there = seen_from(own, "[fe80::2]:5".parse().unwrap());
        assert_eq!(there.to_string(), "[fe80::2%3]:5");
        let far = "[2001:db8::2]:5".parse().unwrap();
        assert_eq!(seen_from(own, far), far);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_card_or_nothing(bytes in prop::collection::vec(any::<u8>(), 60..68)) {
            let mut bytes = bytes;
            bytes[..6].copy_from_slice(&MAGIC);
            bytes[8..16].fill(0);
            if let Some(card) = Card::decode(&bytes) {
                prop_assert_eq!(Card::decode(&card.encode()), Some(card));
            }
        }
    }
}

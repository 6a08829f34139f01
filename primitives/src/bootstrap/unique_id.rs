//! The name of a job: where its root listens and the secret that its ranks share.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use super::auth::{Secret, VERSION};
use super::error::BootstrapError;

/// What a rank needs to join a job: 128 bytes that any channel may carry.
///
/// The bytes are the text `wm1:<address>:<secret>` in ASCII, followed by zeros: 1 is the protocol version,
/// the address is `10.0.0.1:4321` or `[fe80::1]:4321`, and the secret has 64 hexadecimal digits. So the
/// bytes can be broadcast as the array that NCCL's `ncclUniqueId` is, and the text can be an environment
/// variable.
///
/// Who has it can join the job: `Display` and [`to_bytes`](Self::to_bytes) give the secret away, `Debug`
/// does not.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId {
    addr: SocketAddr,
    secret: Secret,
}

impl UniqueId {
    /// The size of the array form, bytes.
    pub const BYTES: usize = 128;

    /// An id for a root that will listen at `addr`, with a new random secret.
    ///
    /// For a launcher that names the port before rank 0 runs; rank 0 then calls
    /// [`TcpBootstrap::from_id_as_root`](super::TcpBootstrap::from_id_as_root). Where rank 0 itself makes
    /// the id, [`TcpRoot::bind`](super::TcpRoot::bind) cannot lose the port to someone else in between.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::NotConnectable`] for port 0, `0.0.0.0` or `::`.
    pub fn new(addr: SocketAddr) -> Result<Self, BootstrapError> {
        Self::with_secret(addr, Secret::random()?)
    }

    /// An id with a secret that the ranks have in another way. Errors as for [`new`](Self::new).
    pub fn with_secret(addr: SocketAddr, secret: Secret) -> Result<Self, BootstrapError> {
        if addr.port() == 0 || addr.ip().is_unspecified() {
            return Err(BootstrapError::NotConnectable { addr });
        }
        Ok(Self { addr: plain(addr), secret })
    }

    /// Where the root listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The array form: the text, then zeros.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        // The longest text, an IPv6 address with a scope, has 127 bytes.
        for (to, from) in bytes.iter_mut().zip(self.to_string().bytes()) {
            *to = from;
        }
        bytes
    }

    /// Reads the array form.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::InvalidId`] for bytes that are no id, [`BootstrapError::IdVersion`] for an id of
    /// another protocol version.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, BootstrapError> {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let (text, padding) = bytes.split_at(end);
        if padding.iter().any(|&byte| byte != 0) {
            return invalid("only zeros follow the text");
        }
        match std::str::from_utf8(text) {
            Ok(text) => text.parse(),
            Err(_) => invalid("the text is ASCII"),
        }
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl FromStr for UniqueId {
    type Err = BootstrapError;

    fn from_str(text: &str) -> Result<Self, BootstrapError> {
        let Some((version, rest)) = text.strip_prefix("wm").and_then(|rest| rest.split_once(':'))
        else {
            return invalid("it starts with \"wm1:\"");
        };
        match version.parse() {
            Ok(VERSION) => {}
            Ok(found) => {
                return Err(BootstrapError::IdVersion { found, ours: VERSION });
            }
            Err(_) => return invalid("a version number follows \"wm\""),
        }
        let Some((addr, secret)) = rest.rsplit_once(':') else {
            return invalid("a secret follows the address");
        };
        let Ok(addr) = addr.parse() else {
            return invalid("the address is like 10.0.0.1:4321 or [fe80::1]:4321");
        };
        match from_hex(secret) {
            Some(secret) => Self::with_secret(addr, Secret::from_bytes(secret)),
            None => invalid("the secret has 64 hexadecimal digits"),
        }
    }
}

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wm{VERSION}:{}:", self.addr)?;
        self.secret.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UniqueId(wm{VERSION}:{}:..)", self.addr)
    }
}

/// Without the IPv6 flow label, which the text does not carry.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(_) => addr,
        IpAddr::V6(ip) => {
            let scope = if let SocketAddr::V6(v6) = addr { v6.scope_id() } else { 0 };
            SocketAddrV6::new(ip, addr.port(), 0, scope).into()
        }
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

fn invalid(expected: &'static str) -> Result<UniqueId, BootstrapError> {
    Err(BootstrapError::InvalidId { expected })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn id(addr: &str) -> UniqueId {
        UniqueId::with_secret(addr.parse().unwrap(), Secret::from_bytes([0xc5; 32])).unwrap()
    }

    #[test]
    fn the_text_is_as_documented() {
        let text = id("10.0.0.1:4321").to_string();
        assert_eq!(text, format!("wm1:10.0.0.1:4321:{}", "c5".repeat(32)));
    }

    #[test]
    fn debug_keeps_the_secret() {
        assert_eq!(format!("{:?}", id("10.0.0.1:4321")), "UniqueId(wm1:10.0.0.1:4321:..)");
    }

    #[test]
    fn the_longest_id_fits() {
        let long = id("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535");
        assert_eq!(long.to_string().len(), 127);
        assert_eq!(UniqueId::from_bytes(&long.to_bytes()).unwrap(), long);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = id("10.0.0.1:4321").to_string();
        let says = |text: &str, what: &str| {
            let error = text.parse::<UniqueId>().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert!(!error.contains("c5c5"), "the secret is in {error}");
        };
        says("", "starts with");
        says("nccl", "starts with");
        says(&good.replace("wm1", "wm7"), "version 7");
        says(&good.replace("wm1", "wmx"), "version number");
        says(&good.replace("10.0.0.1:4321", "localhost:1"), "address is like");
        says(&good.replace("4321", "70000"), "address is like");
        says(&good.replace("4321", "0"), "10.0.0.1:0");
        says(&good.replace("10.0.0.1", "0.0.0.0"), "0.0.0.0");
        says(&good[..good.len() - 1], "64 hexadecimal");
        says(&good.replace("c5c5c5", "c5+5c5"), "64 hexadecimal");
        let mut bytes = id("10.0.0.1:4321").to_bytes();
        bytes[127] = 1;
        assert!(UniqueId::from_bytes(&bytes).unwrap_err().to_string().contains("only zeros"));
        assert!(UniqueId::from_bytes(&[0xff; 128]).unwrap_err().to_string().contains("ASCII"));
    }

    proptest! {
        #[test]
        fn ids_round_trip(ip: u128, v4: bool, port in 1..=u16::MAX, flow: u32, scope: u32,
                          secret in prop::array::uniform32(any::<u8>())) {
            prop_assume!(ip as u32 != 0);
            let addr = if v4 {
                SocketAddr::from((Ipv4Addr::from(ip as u32), port))
            } else {
                SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into()
            };
            let id = UniqueId::with_secret(addr, Secret::from_bytes(secret)).unwrap();
            prop_assert_eq!(&UniqueId::from_bytes(&id.to_bytes()).unwrap(), &id);
            prop_assert_eq!(&id.to_string().parse::<UniqueId>().unwrap(), &id);
        }

        #[test]
        fn any_bytes_are_an_id_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 128),
                                           keep in 0..128usize, like_an_id: bool) {
            if like_an_id {
                bytes[..keep].copy_from_slice(&id("[fe80::1%3]:99").to_bytes()[..keep]);
            }
            let _ = UniqueId::from_bytes(bytes.as_slice().try_into().unwrap());
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in ".*", tail in ":[0-9a-fé]{60,66}") {
            let _ = text.parse::<UniqueId>();
            let _ = format!("wm1:{text}{tail}").parse::<UniqueId>();
        }
    }
}

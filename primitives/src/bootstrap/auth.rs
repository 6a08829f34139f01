//! The mutual proof of the secret, at the start of every connection.
//!
//! ```text
//!   joining rank                                   host: the root, or the rank that shall be the parent
//!     hello: version, rank, world, port, nonce ──►
//!         ◄──────────────── challenge: a fresh nonce
//!     proof: HMAC(secret, "join", hello, host's rank and nonce) ─►
//!         ◄── verdict: status, HMAC(secret, "root", status, hello, host's rank and nonce)
//! ```
//!
//! HMAC-SHA256 over both nonces: what was recorded of one connection proves nothing on another. Over the
//! role: an answer cannot be reflected. Over version, rank, world and port, which are in the hello: they cannot be
//! changed on the way. Over the host's rank: who has got the port of one that ended is not taken for it. Every message has a fixed size. The joining rank proves first, so the host shows
//! nothing that depends on the secret to someone who only connects.

use std::fmt;
use std::io;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::error::BootstrapError;

/// The version of everything that this module puts on a wire.
pub(crate) const VERSION: u16 = 1;

pub(crate) const HELLO_BYTES: usize = 48;
pub(crate) const PROOF_BYTES: usize = 32;
pub(crate) const REPLY_BYTES: usize = 48;

const MAGIC: [u8; 4] = *b"wmbs";

/// The 32 bytes that the ranks of one job know and nobody else.
///
/// `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// 32 bytes that are used once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nonce([u8; 32]);

/// Who a connection says it comes from, before it is believed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    /// Where this rank listens for children; 0 if it does not.
    pub(crate) port: u16,
    nonce: Nonce,
}

/// Why a hello was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHello {
    NotOurs,
    Version(u16),
}

/// One connection's hello and the host's rank and nonce for it: what both proofs cover.
#[derive(Clone, Copy)]
pub(crate) struct Handshake {
    pub(crate) hello: Hello,
    host: u32,
    challenge: Nonce,
}

/// What the host thinks of a rank that has proved the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    OtherWorld { root_world: u32 },
    OutOfRange,
    Duplicate,
}

/// A message from the host during the handshake.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Challenge(Nonce),
    /// Not yet believed: see [`Handshake::believe`].
    Verdict(Verdict, [u8; PROOF_BYTES]),
    /// Too many half-authenticated connections: come again.
    Busy,
    /// The proof or the version is wrong.
    Refused,
}

impl Secret {
    /// A new secret from the operating system's random numbers.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::Os`] where the system has none to give.
    pub fn random() -> Result<Self, BootstrapError> {
        random().map(Self)
    }

    /// The secret that belongs to `parts`: the same parts give the same secret on every rank.
    ///
    /// It is as hard to guess as the parts are.
    pub fn derive(parts: &[&[u8]]) -> Self {
        let mut mac = keyed(b"warpmesh bootstrap secret v1");
        for part in parts {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Self(mac.finalize().into_bytes().into())
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Nonce {
    pub(crate) fn fresh() -> Result<Self, BootstrapError> {
        random().map(Self)
    }
}

impl Hello {
    pub(crate) fn new(rank: u32, world: u32, port: u16) -> Result<Self, BootstrapError> {
        Ok(Self { rank, world, port, nonce: Nonce::fresh()? })
    }

    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.port.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.rank.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.world.to_le_bytes());
        bytes[16..].copy_from_slice(&self.nonce.0);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, BadHello> {
        let version = u16::from_le_bytes(at(bytes, 4));
        if at(bytes, 0) != MAGIC {
            return Err(BadHello::NotOurs);
        }
        if version != VERSION {
            return Err(BadHello::Version(version));
        }
        Ok(Self {
            rank: u32::from_le_bytes(at(bytes, 8)),
            world: u32::from_le_bytes(at(bytes, 12)),
            port: u16::from_le_bytes(at(bytes, 6)),
            nonce: Nonce(at(bytes, 16)),
        })
    }
}

impl Handshake {
    /// `host` is the rank that listens.
    pub(crate) fn new(hello: Hello, host: u32, challenge: Nonce) -> Self {
        Self { hello, host, challenge }
    }

    /// What the joining rank sends.
    pub(crate) fn proof(&self, secret: &Secret) -> [u8; PROOF_BYTES] {
        self.mac(secret, b"join", &[]).finalize().into_bytes().into()
    }

    /// Whether `proof` is the joining rank's, in constant time.
    pub(crate) fn proves(&self, secret: &Secret, proof: &[u8; PROOF_BYTES]) -> bool {
        self.mac(secret, b"join", &[]).verify_slice(proof).is_ok()
    }

    /// The host's verdict with its own proof.
    pub(crate) fn verdict(&self, secret: &Secret, verdict: Verdict) -> Reply {
        let mac = self.mac(secret, b"root", &verdict.encode());
        Reply::Verdict(verdict, mac.finalize().into_bytes().into())
    }

    /// Whether `proof` shows that the host sent `verdict`, in constant time.
    pub(crate) fn believe(
        &self,
        secret: &Secret,
        verdict: Verdict,
        proof: &[u8; PROOF_BYTES],
    ) -> bool {
        self.mac(secret, b"root", &verdict.encode()).verify_slice(proof).is_ok()
    }

    /// Every part has a fixed size for its role, so none can take over bytes of another.
    fn mac(&self, secret: &Secret, role: &[u8; 4], verdict: &[u8]) -> Hmac<Sha256> {
        let mut mac = keyed(&secret.0);
        let host = self.host.to_le_bytes();
        for part in [&role[..], verdict, &self.hello.encode(), &host, &self.challenge.0] {
            mac.update(part);
        }
        mac
    }
}

impl Verdict {
    fn encode(self) -> [u8; 8] {
        let (status, detail) = match self {
            Self::Accepted => (2, 0),
            Self::OtherWorld { root_world } => (3, root_world),
            Self::OutOfRange => (4, 0),
            Self::Duplicate => (5, 0),
        };
        words(status, detail)
    }

    fn decode(status: u32, detail: u32) -> Option<Self> {
        match (status, detail) {
            (2, 0) => Some(Self::Accepted),
            (3, root_world) => Some(Self::OtherWorld { root_world }),
            (4, 0) => Some(Self::OutOfRange),
            (5, 0) => Some(Self::Duplicate),
            _ => None,
        }
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> [u8; REPLY_BYTES] {
        let (status, tail) = match self {
            Self::Challenge(nonce) => (words(1, 0), nonce.0),
            Self::Verdict(verdict, proof) => (verdict.encode(), *proof),
            Self::Busy => (words(6, 0), [0; 32]),
            Self::Refused => (words(7, 0), [0; 32]),
        };
        let mut bytes = [0; REPLY_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&status);
        bytes[16..].copy_from_slice(&tail);
        bytes
    }

    /// The inverse of [`encode`](Self::encode); `None` for bytes that it does not make.
    pub(crate) fn decode(bytes: &[u8; REPLY_BYTES]) -> Option<Self> {
        if at(bytes, 0) != MAGIC || at(bytes, 4) != VERSION.to_le_bytes() || at(bytes, 6) != [0; 2]
        {
            return None;
        }
        let tail = at(bytes, 16);
        match (u32::from_le_bytes(at(bytes, 8)), u32::from_le_bytes(at(bytes, 12))) {
            (1, 0) => Some(Self::Challenge(Nonce(tail))),
            (6, 0) if tail == [0; 32] => Some(Self::Busy),
            (7, 0) if tail == [0; 32] => Some(Self::Refused),
            (status, detail) => {
                Verdict::decode(status, detail).map(|verdict| Self::Verdict(verdict, tail))
            }
        }
    }
}

fn random() -> Result<[u8; 32], BootstrapError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| BootstrapError::Os {
        tried: "getting random bytes",
        cause: e.raw_os_error().map_or(io::ErrorKind::Other.into(), io::Error::from_raw_os_error),
    })?;
    Ok(bytes)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn words(first: u32, second: u32) -> [u8; 8] {
    (u64::from(first) | u64::from(second) << 32).to_le_bytes()
}

/// `N` bytes of a message of fixed size, at a constant place inside it.
fn at<const N: usize>(bytes: &[u8; 48], from: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[from + i])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handshake(rank: u32, world: u32) -> Handshake {
        Handshake::new(Hello::new(rank, world, 0).unwrap(), 0, Nonce::fresh().unwrap())
    }

    #[test]
    fn a_proof_holds_for_one_handshake_only() {
        let secret = Secret::random().unwrap();
        let first = handshake(1, 4);
        let proof = first.proof(&secret);
        assert!(first.proves(&secret, &proof));
        assert!(!first.proves(&Secret::random().unwrap(), &proof));
        let replayed = Handshake::new(first.hello, 0, Nonce::fresh().unwrap());
        assert!(!replayed.proves(&secret, &proof), "the host's nonce is fresh");
        let other_host = Handshake { host: 7, ..first };
        assert!(!other_host.proves(&secret, &proof), "another rank has got the port");
        let other_port = Handshake { hello: Hello { port: 4321, ..first.hello }, ..first };
        assert!(!other_port.proves(&secret, &proof));
        let other_rank = Handshake { hello: Hello { rank: 2, ..first.hello }, ..first };
        assert!(!other_rank.proves(&secret, &proof));
        let other_world = Handshake { hello: Hello { world: 5, ..first.hello }, ..first };
        assert!(!other_world.proves(&secret, &proof));
    }

    #[test]
    fn a_verdict_is_bound_to_its_status_and_role() {
        let secret = Secret::random().unwrap();
        let shake = handshake(1, 4);
        let Reply::Verdict(verdict, proof) = shake.verdict(&secret, Verdict::Accepted) else {
            panic!("a verdict");
        };
        assert!(shake.believe(&secret, verdict, &proof));
        assert!(!shake.believe(&secret, Verdict::Duplicate, &proof));
        assert!(!shake.believe(&secret, verdict, &shake.proof(&secret)), "reflected");
    }

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::from_bytes([0xab; 32]);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn derived_secrets_keep_their_parts_apart() {
        assert_eq!(Secret::derive(&[b"ab", b"c"]), Secret::derive(&[b"ab", b"c"]));
        assert_ne!(Secret::derive(&[b"ab", b"c"]), Secret::derive(&[b"a", b"bc"]));
    }

    proptest! {
        #[test]
        fn hello_and_reply_decode_anything(bytes in prop::array::uniform32(any::<u8>()),
                                           head in prop::array::uniform16(any::<u8>()),
                                           status in 0..9u8, ours: bool) {
            let mut message = [0; 48];
            message[..16].copy_from_slice(&head);
            message[16..].copy_from_slice(&bytes);
            if ours {
                message[..16].copy_from_slice(&Reply::Busy.encode()[..16]);
                message[8] = status;
            }
            if let Ok(hello) = Hello::decode(&message) {
                prop_assert_eq!(hello.encode(), message);
            }
            if let Some(reply) = Reply::decode(&message) {
                prop_assert_eq!(reply.encode(), message);
            }
        }
    }
}

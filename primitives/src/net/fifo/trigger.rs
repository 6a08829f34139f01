//! What is pushed: the fields of a trigger's two words.

/// Bits of the fields, as `trigger` in port.cuh has them.
pub(super) mod layout {
    pub(in super::super) const BYTES_BITS: u32 = 36;
    pub(in super::super) const OFFSET_BITS: u32 = 36;
    pub(in super::super) const PORT_BITS: u32 = 16;
    pub(in super::super) const WHAT_BITS: u32 = 3;
    pub(in super::super) const PORT_SHIFT: u32 = 36;
    pub(in super::super) const WHAT_SHIFT: u32 = 52;
    pub(in super::super) const FROM_HIGH_SHIFT: u32 = 55;
    pub(in super::super) const TO_HIGH_SHIFT: u32 = 59;
    pub(in super::super) const PARITY_SHIFT: u32 = 63;
    pub(in super::super) const TO_LOW_SHIFT: u32 = 32;

    const _: () = assert!(BYTES_BITS == PORT_SHIFT && PORT_SHIFT + PORT_BITS == WHAT_SHIFT);
    const _: () = assert!(WHAT_SHIFT + WHAT_BITS == FROM_HIGH_SHIFT);
    const _: () = assert!(TO_HIGH_SHIFT == FROM_HIGH_SHIFT + OFFSET_BITS - 32);
    const _: () = assert!(PARITY_SHIFT == TO_HIGH_SHIFT + OFFSET_BITS - 32);
}

/// Offsets and sizes of triggers are below this: 64 GiB.
pub const LIMIT: u64 = 1 << layout::OFFSET_BITS;

/// What to do, in this order; any of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What(pub(super) u8);

impl What {
    /// Data goes to the peer.
    pub const PUT: Self = Self(1);
    /// The peer's semaphore counts up behind it.
    pub const SIGNAL: Self = Self(2);
    /// Somebody waits until this and all before has left its source.
    pub const FLUSH: Self = Self(4);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is asked for.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One request to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// What to do.
    pub what: What,
    /// Which row of the proxy's table of ports.
    pub port: u16,
    /// Offset in the port's destination, bytes, below [`LIMIT`].
    pub to: u64,
    /// Offset in its source, as that.
    pub from: u64,
    /// Bytes, below [`LIMIT`].
    pub bytes: u64,
}

impl Trigger {
    /// Whether its numbers fit.
    #[inline]
    pub fn fits(&self) -> bool {
        (self.to | self.from | self.bytes) < LIMIT
    }

    /// Words 0 and 1; of numbers that do not fit, the low bits.
    #[inline]
    pub(super) fn encode(&self, parity: u64) -> (u64, u64) {
        use layout::*;
        let first = (self.bytes & (LIMIT - 1))
            | u64::from(self.port) << PORT_SHIFT
            | u64::from(self.what.0) << WHAT_SHIFT
            | (self.from >> 32 & 0xF) << FROM_HIGH_SHIFT
            | (self.to >> 32 & 0xF) << TO_HIGH_SHIFT
            | parity << PARITY_SHIFT;
        (first, (self.from & 0xFFFF_FFFF) | self.to << TO_LOW_SHIFT)
    }

    #[inline]
    pub(super) fn decode(first: u64, second: u64) -> Self {
        use layout::*;
        let field = |shift: u32, bits: u32| first >> shift & ((1 << bits) - 1);
        let high = OFFSET_BITS - 32;
        Self {
            what: What(field(WHAT_SHIFT, WHAT_BITS) as u8),
            port: field(PORT_SHIFT, PORT_BITS) as u16,
            to: field(TO_HIGH_SHIFT, high) << 32 | second >> TO_LOW_SHIFT,
            from: field(FROM_HIGH_SHIFT, high) << 32 | (second & 0xFFFF_FFFF),
            bytes: field(0, BYTES_BITS),
        }
    }
}

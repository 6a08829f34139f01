//! Names of PCI functions and what they are.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: domain, bus, device, function. `Display` gives the kernel's form, `0000:3b:00.0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusId {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A PCI class code: base class, sub-class, interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class(pub u32);

/// The vendor id of NVIDIA.
pub(super) const NVIDIA: u16 = 0x10de;

impl BusId {
    /// `device` is below 32, `function` below 8; `None` for what no function can have.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { domain, bus, device, function })
    }
}

impl Class {
    /// An NVSwitch, in NCCL's files and in the kernel's.
    pub const NVSWITCH: Self = Self(0x068000);

    /// A PCI-PCI bridge, which every port of a switch is.
    pub const BRIDGE: Self = Self(0x060400);

    /// Whether it is a display controller, which GPUs are.
    pub fn is_display(self) -> bool {
        self.0 >> 16 == 0x03
    }

    /// Reads `0x030200`; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        hex(text).filter(|&class| class <= 0xff_ffff).map(Self)
    }
}

impl fmt::Display for BusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:06x}", self.0)
    }
}

/// Not a bus id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PCI bus id: it has to be like 0000:3b:00.0")]
pub struct NotABusId;

impl FromStr for BusId {
    type Err = NotABusId;

    /// Reads the kernel's form and those of NVML and CUDA, which have a longer domain and capital letters.
    fn from_str(text: &str) -> Result<Self, NotABusId> {
        let parse = || {
            let (rest, function) = text.split_once('.')?;
            let mut parts = rest.split(':');
            let (domain, bus, device) = (parts.next()?, parts.next()?, parts.next()?);
            let lengths = (1..=8).contains(&domain.len()) && bus.len() == 2 && device.len() == 2;
            if !lengths || function.len() != 1 || parts.next().is_some() {
                return None;
            }
            let number = |digits: &str| digits_of(digits);
            let byte = |digits: &str| u8::try_from(number(digits)?).ok();
            Self::new(number(domain)?, byte(bus)?, byte(device)?, byte(function)?)
        };
        parse().ok_or(NotABusId)
    }
}

/// A hexadecimal number with `0x` in front or without.
pub(super) fn hex(text: &str) -> Option<u32> {
    let text = text.trim();
    digits_of(text.strip_prefix("0x").unwrap_or(text))
}

/// Unlike the standard library, no sign.
fn digits_of(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_forms_of_a_bus_id_are_read() {
        let id: BusId = "0000:3b:00.0".parse().unwrap();
        assert_eq!("00000000:3B:00.0".parse(), Ok(id));
        assert_eq!("10000:e1:1f.7".parse::<BusId>().unwrap().to_string(), "10000:e1:1f.7");
        for wrong in [
            "",
            "3b:00.0",
            "0000:3b:00",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "0000:+b:00.0",
            "0:0:0:0.0",
        ] {
            assert_eq!(wrong.parse::<BusId>(), Err(NotABusId), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn bus_ids_round_trip(domain: u32, bus: u8, device in 0..32u8, function in 0..8u8) {
            let id = BusId::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_a_bus_id_or_an_error(text in "[0-9a-f:.+x]{0,16}") {
            let _ = text.parse::<BusId>();
            let _ = Class::parse(&text);
        }
    }
}

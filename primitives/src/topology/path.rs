//! How far two devices are from each other, in NCCL's classes.

use std::fmt;

use super::pci::{BusId, Class};
use super::{Gpu, Pci, Topology};

/// Switches above a device, at most: deeper is a mistake of the file.
pub(super) const MAX_DEPTH: usize = 32;

/// What the way between two devices goes through, nearest first; the names are NCCL's and nvidia-smi's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathClass {
    /// The same device.
    Loc,
    /// NVLink, directly or through NVSwitches.
    Nvl,
    /// One PCIe switch.
    Pix,
    /// Several PCIe switches.
    Pxb,
    /// The CPU that both hang at.
    Phb,
    /// Two CPUs and what is between them.
    Sys,
}

impl fmt::Display for PathClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loc => "LOC",
            Self::Nvl => "NVL",
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Sys => "SYS",
        })
    }
}

impl Topology {
    /// What the way between two devices goes through; `None` if one of them is not there.
    pub fn path(&self, a: BusId, b: BusId) -> Option<PathClass> {
        let (here, there) = (self.pci(a)?, self.pci(b)?);
        if a == b {
            return Some(PathClass::Loc);
        }
        if let (Some(x), Some(y)) = (self.gpu(a), self.gpu(b))
            && are_linked(x, y)
        {
            return Some(PathClass::Nvl);
        }
        Some(self.pcie_path(here, there))
    }

    /// As [`path`](Self::path), without NVLink.
    pub(super) fn pcie_path(&self, a: &Pci, b: &Pci) -> PathClass {
        let (above_a, above_b) = (self.switches_above(a.bus), self.switches_above(b.bus));
        // Where the two ways up meet.
        let meeting = above_a.iter().position(|switch| above_b.contains(switch));
        match meeting {
            Some(hops) => {
                let other = above_b.iter().position(|switch| *switch == above_a[hops]);
                if hops == 0 && other == Some(0) { PathClass::Pix } else { PathClass::Pxb }
            }
            None if a.numa == b.numa => PathClass::Phb,
            None => PathClass::Sys,
        }
    }

    /// The switches between a device and its CPU, the nearest first.
    pub(super) fn switches_above(&self, bus: BusId) -> Vec<BusId> {
        let up = |bus: &BusId| self.pci(*bus).and_then(|pci| pci.parent);
        // One more than can be, so that a circle shows.
        std::iter::successors(up(&bus), up).take(MAX_DEPTH + 1).collect()
    }
}

/// Whether two GPUs reach each other by NVLink: directly, or each has links to the same switch, or to some, since a
/// machine with NVSwitches has one fabric.
fn are_linked(a: &Gpu, b: &Gpu) -> bool {
    let leads_to = |from: &Gpu, to: &Gpu| from.nvlinks.iter().any(|link| link.target == to.bus);
    let switched = |gpu: &Gpu| gpu.nvlinks.iter().any(|link| link.class == Class::NVSWITCH);
    leads_to(a, b) || leads_to(b, a) || (switched(a) && switched(b))
}

//! Races in words.

use super::clock::Thread;

/// Where an access stands in a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SiteInfo {
    /// Kernel.
    pub kernel: String,
    /// Device.
    pub device: u32,
    /// Block of the grid.
    pub block: u64,
    /// Warp of the block.
    pub warp: u32,
    /// Lane of the warp.
    pub lane: u8,
    /// PTX line.
    pub line: u32,
    /// What stands there.
    pub text: String,
}

/// What raced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Memory of a device or the host.
    Allocation {
        /// First address of the allocation.
        base: u64,
        /// Of the first byte.
        offset: u64,
        /// Whose it is.
        device: u32,
    },
    /// Shared memory of the block, at this offset.
    Shared(u64),
    /// An allocation that has been freed since.
    Freed,
}

/// A race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaceReport {
    /// The earlier access and whether it wrote.
    pub first: (SiteInfo, bool),
    /// The later access and whether it wrote.
    pub second: (SiteInfo, bool),
    /// The first byte that both touched.
    pub at: Bytes,
    /// How many bytes both touched.
    pub bytes: u32,
    /// True if both are strong, but with scopes or sizes that do not fit.
    pub both_strong: bool,
    /// How often these two instructions raced; the rest is about the first time.
    pub count: u64,
}

/// Line `n` of a text, from 1, with single spaces.
fn line_of(text: &str, n: u32) -> String {
    let line = text.lines().nth((n as usize).saturating_sub(1)).unwrap_or("");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl std::fmt::Display for SiteInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SiteInfo { kernel, device, block, warp, lane, line, text } = self;
        write!(
            f,
            "`{kernel}` on device {device}, block {block}, warp {warp}, lane {lane}, PTX line {line}: `{text}`"
        )
    }
}

impl std::fmt::Display for RaceReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "race on {} bytes at ", self.bytes)?;
        match self.at {
            Bytes::Allocation { base, offset, device } => {
                write!(f, "{base:#x} + {offset:#x} (allocation on device {device})")?
            }
            Bytes::Shared(offset) => write!(f, "shared memory + {offset:#x}")?,
            Bytes::Freed => write!(f, "an allocation that is freed by now")?,
        }
        for (place, wrote) in [&self.first, &self.second] {
            write!(f, "\n  {} by {place}", if *wrote { "write" } else { "read " })?;
        }
        let why = if self.both_strong {
            "both are strong, but their scopes or sizes do not fit"
        } else {
            "nothing orders them"
        };
        write!(f, "\n  {why}")?;
        if self.count > 1 {
            write!(f, "; seen {} times", self.count)?;
        }
        Ok(())
    }
}

/// What a warp is called.
#[derive(Clone)]
pub(super) struct Name {
    pub(super) kernel: std::sync::Arc<crate::isa::decode::Kernel>,
    pub(super) device: u32,
    pub(super) block: u64,
    pub(super) warp: u32,
}

impl Name {
    pub(super) fn site(&self, who: Thread, line: u32) -> SiteInfo {
        SiteInfo {
            kernel: self.kernel.name.clone(),
            device: self.device,
            block: self.block,
            warp: self.warp,
            lane: who.lane,
            line,
            text: line_of(&self.kernel.text, line),
        }
    }
}

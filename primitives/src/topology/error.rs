//! What can be wrong with what a machine says about itself.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::pci::BusId;

/// Why there is no topology.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("cannot read the topology file {}: {cause}; check the path and its permissions", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The operating system's reason.
        cause: io::Error,
    },
    /// The file is no topology.
    #[error(
        "{}:{line}: {what}; it has to be a topology file as NCCL writes with NCCL_TOPO_DUMP_FILE",
        file.display()
    )]
    Xml {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u32,
        /// What is wrong there.
        what: String,
    },
}

/// Something that could not be read, or makes no sense, and was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or folder.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl Problem {
    pub(super) fn new(file: &Path, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), what: what.into() }
    }

    /// Text from outside that is not what it has to be; at most 40 characters of it are shown.
    pub(super) fn malformed(file: &Path, text: &str, expected: &str) -> Self {
        let shown: String = text.trim().chars().take(40).collect();
        Self::new(file, format!("{shown:?} is not {expected}"))
    }

    pub(super) fn unknown_gpu(bus: BusId) -> Self {
        let file = PathBuf::from(format!("/sys/bus/pci/devices/{bus}"));
        Self::new(&file, "CUDA has a GPU there that the system does not show")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)
    }
}

//! How ranks hand GPU memory to each other: as files, or by the names that it has on an NVLink fabric.
//!
//! A file descriptor reaches the processes of one host. A fabric handle is 64 bytes, which any process of an NVLink domain can import,
//! also on another host, if its driver is part of the domain (IMEX). Devices say whether they know fabric handles; whether the
//! system lets this process have one is seen when it is tried. So the ranks try it:
//!
//! ```text
//!   every rank                                                           exchange
//!   asks for it? knows the device it? makes trial memory                 what it says, and the memory's name
//!   imports the trial memory of all ranks                                whether it could
//! ```
//!
//! If one of them cannot, all use files, and all know the same reason.

use std::os::fd::OwnedFd;
use std::str::FromStr;

use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUmemAllocationHandleType};

use super::memory::{Physical, granularity};
use super::vote::tell;
use super::{CudaError, Gpu};
use crate::error::Error;
use crate::node::Node;

/// How ranks hand GPU memory to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handles {
    /// As file descriptors, among the processes of a host.
    #[default]
    Files,
    /// By fabric handles, among the processes of an NVLink domain.
    Fabric,
}

/// Why ranks do without fabric handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoFabric {
    /// A rank did not ask for them.
    #[error("rank {rank} does not ask for fabric handles")]
    NotAsked {
        /// The first such rank.
        rank: usize,
    },
    /// A rank's device or driver does not know them.
    #[error("the GPU of rank {rank}, or its driver, has no fabric handles")]
    Unsupported {
        /// The first such rank.
        rank: usize,
    },
    /// A rank's driver knows them, and refuses.
    #[error(
        "the driver of rank {rank} refuses fabric handles with CUDA error {code} (800: the process has no IMEX channel, or the IMEX \
         service does not run)"
    )]
    Refused {
        /// The first such rank.
        rank: usize,
        /// The CUresult.
        code: u32,
    },
}

/// A text that is none of `files` and `fabric`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither 'files' nor 'fabric'")]
pub struct UnknownHandles(pub String);

impl FromStr for Handles {
    type Err = UnknownHandles;

    fn from_str(text: &str) -> Result<Self, UnknownHandles> {
        match text {
            "files" => Ok(Self::Files),
            "fabric" => Ok(Self::Fabric),
            other => Err(UnknownHandles(other.to_owned())),
        }
    }
}

pub(super) const FILE: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
pub(super) const FABRIC: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_FABRIC;

/// `CUmemFabricHandle`.
pub(super) type Name = [u8; 64];

/// What a peer needs to map an allocation.
pub(super) enum Given {
    File(OwnedFd),
    Name(Name),
}

impl Handles {
    /// What allocations are made for. Files always: by these they are registered like other allocators' memory.
    pub(super) fn types(self) -> CUmemAllocationHandleType {
        match self {
            Self::Files => FILE,
            Self::Fabric => CUmemAllocationHandleType(FILE.0 | FABRIC.0),
        }
    }

    /// What this rank gives to peers for an allocation.
    pub(super) fn give(self, physical: &Physical) -> Result<Given, CudaError> {
        match self {
            Self::Files => physical.export().map(Given::File),
            Self::Fabric => physical.name().map(Given::Name),
        }
    }
}

impl Given {
    /// Gives it to every peer of the host and takes theirs: by rank, none for this rank and those elsewhere. Every rank calls it, with the same kind. Blocks until all
    /// have.
    pub(super) fn exchange(&self, node: &Node) -> Result<Vec<Option<Self>>, Error> {
        Ok(match self {
            Self::File(file) => {
                node.exchange(file)?.into_iter().map(|file| file.map(Self::File)).collect()
            }
            Self::Name(name) => {
                let all = tell(node, *name)?.into_iter().enumerate();
                all.map(|(rank, name)| {
                    let is_other = rank != node.rank() && node.is_near(rank);
                    is_other.then_some(Self::Name(name))
                })
                .collect()
            }
        })
    }

    /// The allocation of so many bytes that a peer gave.
    pub(super) fn import(&self, len: usize) -> Result<Physical, CudaError> {
        match self {
            Self::File(file) => Physical::import(file, len),
            Self::Name(name) => Physical::of_name(name, len),
        }
    }
}

/// What a rank says of fabric handles: nothing against them, or why not; and the name of its trial memory.
type Said = [u8; 8 + size_of::<Name>()];

fn says(error: Option<NoFabric>, name: Name) -> Said {
    let (kind, code) = match error {
        None => (0_u32, 0),
        Some(NoFabric::NotAsked { .. }) => (1, 0),
        Some(NoFabric::Unsupported { .. }) => (2, 0),
        Some(NoFabric::Refused { code, .. }) => (3, code),
    };
    let mut said = [0; _];
    said[..4].copy_from_slice(&kind.to_le_bytes());
    said[4..8].copy_from_slice(&code.to_le_bytes());
    said[8..].copy_from_slice(&name);
    said
}

/// The first rank that is against it, and why.
fn against(all: &[Said]) -> Option<NoFabric> {
    let mut numbered = all.iter().enumerate();
    numbered.find_map(|(rank, said)| {
        let word =
            |at: usize| u32::from_le_bytes([said[at], said[at + 1], said[at + 2], said[at + 3]]);
        match word(0) {
            0 => None,
            1 => Some(NoFabric::NotAsked { rank }),
            2 => Some(NoFabric::Unsupported { rank }),
            _ => Some(NoFabric::Refused { rank, code: word(4) }),
        }
    })
}

/// What the driver answered, as a reason.
fn refusal(rank: usize, error: &CudaError) -> NoFabric {
    match error {
        CudaError::Driver { code, .. } => NoFabric::Refused { rank, code: *code },
        _ => NoFabric::Unsupported { rank },
    }
}

impl Gpu {
    /// How this rank hands memory to its peers.
    pub fn handles(&self) -> Handles {
        self.handles
    }

    /// Agrees with all ranks how memory that is shared from now on is handed over: by fabric handles if every rank wants that and every
    /// device and driver has them, else as files, for the reason that is returned. Every rank calls it. Blocks until all have.
    ///
    /// # Errors
    /// A peer is gone.
    pub fn agree_on_handles(
        &mut self,
        node: &Node,
        wanted: Handles,
    ) -> Result<Option<NoFabric>, Error> {
        self.handles = Handles::Files;
        let trial = self.trial(node.rank(), wanted);
        let said = match &trial {
            Ok((_, name)) => says(None, *name),
            Err(why) => says(Some(*why), [0; _]),
        };
        let all = tell(node, said)?;
        if let Some(why) = against(&all) {
            return Ok(Some(why));
        }
        // Nobody is against it, so there is a trial. It lives until all have looked at it, which the second exchange says.
        let len = trial.as_ref().map_or(1, |(memory, _)| memory.len());
        let import = |said: &Said| {
            let mut name = [0; _];
            name.copy_from_slice(&said[8..]);
            Physical::of_name(&name, len).map(drop)
        };
        let imported = all.iter().try_for_each(import);
        let problem = imported.err().map(|error| refusal(node.rank(), &error));
        let why = against(&tell(node, says(problem, [0; _]))?);
        if why.is_none() {
            self.handles = Handles::Fabric;
            self.granularity = len;
        }
        Ok(why)
    }

    /// The smallest allocation that has a name, and the name.
    fn trial(&self, rank: usize, wanted: Handles) -> Result<(Physical, Name), NoFabric> {
        if wanted != Handles::Fabric {
            return Err(NoFabric::NotAsked { rank });
        }
        // Drivers that do not know the attribute do not know the handles either.
        let known =
            self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED);
        if !known.is_ok_and(|known| known != 0) {
            return Err(NoFabric::Unsupported { rank });
        }
        let make = || {
            self.context.bind_to_thread().map_err(CudaError::of("cuCtxSetCurrent"))?;
            let device = self.context.ordinal();
            let len = granularity(device, Handles::Fabric)?.max(self.granularity);
            let memory = Physical::create(device, len, Handles::Fabric)?;
            let name = memory.name()?;
            Ok((memory, name))
        };
        make().map_err(|error| refusal(rank, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rank_that_is_against_it_is_named_with_its_reason() {
        let fine = says(None, [7; _]);
        let refused = says(Some(NoFabric::Refused { rank: 9, code: 800 }), [0; _]);
        let unsupported = says(Some(NoFabric::Unsupported { rank: 9 }), [0; _]);
        assert_eq!(against(&[fine, fine]), None);
        assert_eq!(fine[8..], [7; 64]);
        let why = NoFabric::Refused { rank: 1, code: 800 };
        assert_eq!(against(&[fine, refused, unsupported]), Some(why));
        assert_eq!(against(&[unsupported, refused]), Some(NoFabric::Unsupported { rank: 0 }));
        let not_asked = says(Some(NoFabric::NotAsked { rank: 9 }), [0; _]);
        assert_eq!(against(&[fine, fine, not_asked]), Some(NoFabric::NotAsked { rank: 2 }));
    }

    #[test]
    fn handles_are_chosen_by_name() {
        assert_eq!("fabric".parse(), Ok(Handles::Fabric));
        assert_eq!("files".parse(), Ok(Handles::Files));
        let error = "Fabric".parse::<Handles>().unwrap_err().to_string();
        assert!(error.contains("'Fabric'"), "{error}");
    }
}

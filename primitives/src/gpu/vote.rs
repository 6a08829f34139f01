//! Steps that all ranks take, or none: each tells the others whether it could.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use super::CudaError;
use crate::error::{Error, system};
use crate::node::Node;
use crate::sys::Mapping;

/// The first rank that could not take a step, and why, if it is this one.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) rank: usize,
    pub(super) error: Option<CudaError>,
}

/// What a step gave, if it went well on all ranks. Every rank calls it. Blocks until all have.
pub(super) fn vote<T>(
    node: &Node,
    step: Result<T, CudaError>,
) -> Result<Result<T, Refusal>, Error> {
    let votes = tell(node, [u8::from(step.is_ok())])?;
    Ok(match (votes.iter().position(|vote| *vote != [1]), step) {
        (None, Ok(given)) => Ok(given),
        (rank, step) => Err(Refusal { rank: rank.unwrap_or(node.rank()), error: step.err() }),
    })
}

/// As [`vote`], where a refusal is an error on all ranks: the own one, or one that names a rank that has one.
pub(super) fn agree<T>(
    node: &Node,
    what: &'static str,
    step: Result<T, CudaError>,
) -> Result<T, Error> {
    vote(node, step)?
        .map_err(|Refusal { rank, error }| error.unwrap_or(CudaError::OfPeer { rank, what }).into())
}

/// Tells all ranks some bytes, and is told theirs, by rank.
pub(super) fn tell<const N: usize>(node: &Node, mine: [u8; N]) -> Result<Vec<[u8; N]>, Error> {
    let read = |file: Option<OwnedFd>| {
        let mut theirs = mine;
        if let Some(file) = file {
            let what = "what a peer says";
            File::from(file).read_exact_at(&mut theirs, 0).map_err(|e| errno(what, &e))?;
        }
        Ok(theirs)
    };
    node.exchange(&ballot(&mine)?)?.into_iter().map(read).collect()
}

/// A file with these bytes.
pub(super) fn ballot(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let what = "memfd for what this rank says";
    let (_, file) = Mapping::create(bytes.len().max(1)).map_err(system(what))?;
    let file = File::from(file);
    file.write_all_at(bytes, 0).map_err(|error| errno(what, &error))?;
    Ok(file.into())
}

fn errno(what: &'static str, error: &std::io::Error) -> Error {
    let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
    system(what)(errno)
}

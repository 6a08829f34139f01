//! What can go wrong in a collective.

use warpmesh_kernels::CompileError;
use warpmesh_primitives::bootstrap::BootstrapError;
use warpmesh_primitives::failure::Failure;

use crate::cuda::EmitError;
use crate::plan::verify::Defect;
use crate::plan::{Collective, PlanJsonError, PlanTextError};

/// An error of this library. Nothing was moved when one of the argument errors is returned; after a
/// [`Error::Failed`] the contents of outputs are unspecified and the communicator is of no further
/// use: drop it, and make a new one over the ranks that are left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The layer below could not be set up.
    #[error(transparent)]
    Setup(#[from] warpmesh_primitives::Error),

    /// An argument cannot be.
    #[error("{call}: {argument} {problem}")]
    Argument {
        /// The call.
        call: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What is wrong with it.
        problem: String,
    },

    /// A call that began, and cannot end.
    #[error("{failure}; {report}")]
    Failed {
        /// What happened, as all ranks are told.
        failure: Failure,
        /// What this rank was doing, and what the others were last seen doing.
        report: String,
    },

    /// No plan can do this call.
    #[error("no plan for {collective} over {world} ranks with {condition}")]
    NoPlan {
        /// The collective.
        collective: Collective,
        /// Ranks.
        world: usize,
        /// What rules all of them out.
        condition: String,
    },

    /// A plan from outside is wrong.
    #[error("the plan is wrong: {0}")]
    Plan(Box<Defect>),

    /// A plan's text cannot be read.
    #[error(transparent)]
    PlanText(#[from] PlanTextError),

    /// A plan's JSON cannot be read.
    #[error(transparent)]
    PlanJson(#[from] PlanJsonError),

    /// A plan cannot become a CUDA kernel.
    #[error(transparent)]
    Emit(#[from] EmitError),

    /// A CUDA kernel cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),

    /// Ranks have loaded different plans.
    #[error("rank {peer} loaded another plan than rank {rank}, or none")]
    PlansDiffer {
        /// This rank.
        rank: usize,
        /// One that differs.
        peer: usize,
    },
}

impl From<Defect> for Error {
    fn from(defect: Defect) -> Self {
        Self::Plan(Box::new(defect))
    }
}

impl From<BootstrapError> for Error {
    fn from(error: BootstrapError) -> Self {
        Self::Setup(error.into())
    }
}

impl Error {
    /// The failure, if a call began and could not end.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Failed { failure, .. } => Some(*failure),
            Self::Setup(warpmesh_primitives::Error::Failed(failure)) => Some(*failure),
            _ => None,
        }
    }
}

pub(crate) fn argument(
    call: &'static str,
    argument: &'static str,
    problem: impl Into<String>,
) -> Error {
    Error::Argument { call, argument, problem: problem.into() }
}

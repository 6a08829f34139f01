//! A built-in algorithm of either kind.

use super::{Algorithm, Layout, NodeAlgorithm};
use crate::plan::verify::Claims;
use crate::plan::{Collective, Program, Shape};

/// For ranks of one node, or of several.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BuiltIn {
    Node(&'static Algorithm),
    Nodes(&'static NodeAlgorithm),
}

impl BuiltIn {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node(algorithm) => algorithm.name,
            Self::Nodes(algorithm) => algorithm.name,
        }
    }

    pub(crate) fn collective(self) -> Collective {
        match self {
            Self::Node(algorithm) => algorithm.collective,
            Self::Nodes(algorithm) => algorithm.collective,
        }
    }

    pub(crate) fn claims(self) -> &'static Claims {
        match self {
            Self::Node(algorithm) => &algorithm.claims,
            Self::Nodes(algorithm) => &algorithm.claims,
        }
    }

    pub(crate) fn parts(self, layout: &Layout) -> usize {
        match self {
            Self::Node(algorithm) => (algorithm.parts)(layout.world()),
            Self::Nodes(algorithm) => algorithm.workers * (algorithm.parts)(layout),
        }
    }

    pub(crate) fn shape(self, layout: &Layout, root: usize) -> Shape {
        match self {
            Self::Node(algorithm) => algorithm.shape(layout.world(), root),
            Self::Nodes(algorithm) => algorithm.shape(layout, root),
        }
    }

    pub(crate) fn program(self, rank: usize, layout: &Layout, root: usize) -> Program {
        match self {
            Self::Node(algorithm) => algorithm.program(rank, layout.world(), root),
            Self::Nodes(algorithm) => algorithm.program(rank, layout, root),
        }
    }
}

//! Primitives.

pub mod bootstrap;

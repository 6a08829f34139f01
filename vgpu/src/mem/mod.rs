//! Memory: where addresses lead, how bytes are touched, what is remembered of it.

pub mod access;
pub mod counters;
mod identity;
pub mod region;
pub mod registered;
pub mod rmw;
pub mod space;

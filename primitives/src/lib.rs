//! The layer under the warpmesh collectives: ranks find each other ([`bootstrap`]), share memory
//! ([`node`], [`memory`]), tell each other that data is there ([`semaphore`], [`packet`]) and move
//! it ([`channel`]), with waits that end ([`patience`], [`failure`]). [`topology`] says what the machine is made of.
//!
//! It can be used without any collective: see [`channel::MemoryChannel`] and the `ping_pong`
//! example.

pub mod bootstrap;
pub mod channel;
pub mod control;
mod error;
pub mod failure;
pub mod gpu;
pub mod host;
mod meeting;
pub mod memory;
pub mod net;
pub mod node;
pub mod packet;
pub mod patience;
pub mod semaphore;
mod sync;
mod sys;
pub mod topology;

pub use error::Error;

//! The entry points, all of them.

pub use super::capture::*;
pub use super::context::*;
pub use super::copy::*;
pub use super::device::*;
pub use super::graph::*;
pub use super::ipc::*;
pub use super::launch::*;
pub use super::memory::*;
pub use super::module::*;
pub use super::multicast::*;
pub use super::pointer::*;
pub use super::pool::*;
pub use super::proc_address::*;
pub use super::queue::*;
pub use super::vmm::*;

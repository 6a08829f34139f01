//! Collective communication written as plans.
//!
//! Ranks (processes or threads) form a [`Communicator`] and call collectives on their buffers. Every
//! collective is run by a [plan] that is chosen for the call and the machine; plans are data
//! that the [verifier](plan::verify) proves.
//!
//! ```
//! use warpmesh::{Communicator, ReduceOp};
//!
//! // Two ranks as threads of this process; across processes see `Communicator::from_env`.
//! let ranks = Communicator::builder().local(2)?;
//! let threads = ranks.into_iter().map(|mut comm| {
//!     std::thread::spawn(move || {
//!         let mut data = vec![comm.rank() as f32 + 1.0; 1000];
//!         comm.all_reduce(&mut data, ReduceOp::Sum)?;
//!         assert!(data.iter().all(|x| *x == 3.0));
//!         Ok::<_, warpmesh::Error>(())
//!     })
//! });
//! for thread in threads.collect::<Vec<_>>() {
//!     thread.join().unwrap()?;
//! }
//! # Ok::<_, warpmesh::Error>(())
//! ```
//!
//! # Determinism
//!
//! All ranks end with the same bits. The same inputs on the same communicator give the same bits,
//! run after run. With [`Builder::canonical`] a sum is the left fold in rank order, in f32 for 16-
//! and 8-bit floats, rounded once: independent of algorithm, size and device. (The payload of a NaN
//! is not part of these promises.)

pub mod algorithms;
mod communicator;
mod cost;
mod cuda;
mod dtype;
mod error;
mod host;
mod machine;
mod op;
pub mod plan;
mod stream;

pub use communicator::{
    AbortHandle, Buffer, Builder, Communicator, Group, RawCall, Registration, SharedBytes,
};
pub use cost::Machine;
pub use cuda::{
    CudaBuffer, CudaBytes, CudaCommunicator, CudaGroup, CudaKernel, CudaRegistration, EmitError,
    cuda_kernel, cuda_kernel_on, cuda_mail_kernels,
};
pub use dtype::{DataType, Element, UnknownType};
pub use error::Error;
pub use op::{ReduceOp, Scalar};
pub use stream::{Pending, Stream};
pub use warpmesh_primitives as primitives;
pub use warpmesh_primitives::bootstrap;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

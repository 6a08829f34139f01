//! `warpmesh-perf`, the benchmark of warpmesh's collectives in the manner of nccl-tests, and the
//! [`oracle`] that it checks results with, which tests of other crates can use as well.
//!
//! ```text
//!   main ─► perf::cli ─► perf::run ─┬─► parent: starts the ranks, ends them together (launch),
//!                                   │           on namespaces that it makes (hosts)
//!                                   └─► rank:   sweep ─► timing ─► Backend (warpmesh, MPI, Gloo, NCCL)
//!                                                 ├─► oracle        inputs, expected results
//!                                                 └─► report        table, JSON
//! ```

pub mod backend;
pub mod layout;
pub mod oracle;
pub mod perf;

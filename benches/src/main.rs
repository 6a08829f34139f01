//! warpmesh-perf.
fn main() {}

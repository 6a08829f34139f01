//! `warpmesh-perf`: see `warpmesh-perf --help`.

fn main() -> std::process::ExitCode {
    warpmesh_benches::perf::main()
}

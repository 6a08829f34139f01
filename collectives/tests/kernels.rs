//! Kernels of built-in plans as they are compiled, for the tables of `cargo xtask kernels`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use warpmesh::algorithms::{self, Algorithm};
use warpmesh::{CudaKernel, DataType, RawCall, ReduceOp, cuda_kernel};

const WORLD: usize = 8;

/// Compiles every built-in plan for the architectures in `$WARPMESH_ARCHS` and leaves the code in `$WARPMESH_KERNELS`.
#[test]
#[ignore = "for `cargo xtask kernels`, which says where"]
fn compile_all() {
    let folder = PathBuf::from(std::env::var_os("WARPMESH_KERNELS").expect("WARPMESH_KERNELS"));
    let archs = std::env::var("WARPMESH_ARCHS").expect("WARPMESH_ARCHS");
    for algorithm in algorithms::ALL {
        for (role, rank) in roles(algorithm) {
            let dtype = if algorithm.collective.reduces() { DataType::F16 } else { DataType::U32 };
            let kernel = kernel(algorithm, rank, dtype);
            for arch in archs.split(',') {
                let stem = format!("{}.{}.{role}.{arch}", algorithm.collective, algorithm.name);
                compile(&kernel, arch.parse().expect("an architecture"), &folder.join(stem));
            }
        }
    }
}

fn kernel(algorithm: &Algorithm, rank: usize, dtype: DataType) -> CudaKernel {
    let call = RawCall {
        collective: algorithm.collective,
        dtype,
        op: ReduceOp::Sum,
        root: 0,
        count: 1 << 20,
        input: std::ptr::null(),
        output: std::ptr::null_mut(),
    };
    let kernel = cuda_kernel(&call, (rank, WORLD), true, Some(algorithm.name)).unwrap();
    assert_eq!(kernel.plan, algorithm.name);
    kernel
}

fn compile(kernel: &CudaKernel, arch: u32, file: &Path) {
    let since = Instant::now();
    let compiled = warpmesh_kernels::compile(&kernel.source, &kernel.name, arch).unwrap();
    println!("{} {} ms", file.display(), since.elapsed().as_millis());
    std::fs::write(format!("{}.cubin", file.display()), compiled.cubin).unwrap();
    std::fs::write(format!("{}.cu", file.display()), &kernel.source).unwrap();
}

/// The ranks whose kernels differ.
fn roles(algorithm: &Algorithm) -> Vec<(&'static str, usize)> {
    if algorithm.collective.is_rooted() {
        vec![("root", 0), ("others", 1)]
    } else {
        vec![("all", 0)]
    }
}

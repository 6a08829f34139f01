//! Kernels of built-in plans, compiled for the tables of `cargo xtask kernels`.

use std::path::PathBuf;
use std::time::Instant;

use warpmesh::algorithms::{self, Algorithm};
use warpmesh::{DataType, ReduceOp, cuda_source};

const WORLD: usize = 8;

/// Compiles every built-in plan and leaves the code in `$WARPMESH_KERNELS`.
#[test]
#[ignore = "for `cargo xtask kernels`"]
fn compile_all() {
    let folder = PathBuf::from(std::env::var_os("WARPMESH_KERNELS").expect("WARPMESH_KERNELS"));
    let only = std::env::var("ONLY").unwrap_or_default();
    let archs = std::env::var("ARCHS").unwrap_or("80,90,100".into());
    for algorithm in algorithms::ALL {
        for (role, rank) in roles(algorithm) {
            for dtype in types(algorithm) {
                let (source, name) = match cuda_source(algorithm, rank, WORLD, dtype, ReduceOp::Sum)
                {
                    Ok(x) => x,
                    Err(e) => {
                        println!("{e}");
                        continue;
                    }
                };
                for arch in archs.split(',').map(|a| a.parse().unwrap()) {
                    let stem = format!(
                        "{arch}.{}.{}.{role}.{dtype}",
                        algorithm.collective, algorithm.name
                    );
                    if !stem.contains(&only) {
                        continue;
                    }
                    let since = Instant::now();
                    let compiled = warpmesh_kernels::compile(&source, &name, arch).unwrap();
                    println!("{stem} {:.0} ms", since.elapsed().as_secs_f64() * 1e3);
                    std::fs::write(folder.join(format!("{stem}.cubin")), compiled.cubin).unwrap();
                    std::fs::write(folder.join(format!("{stem}.ptx")), compiled.ptx).unwrap();
                    std::fs::write(folder.join(format!("{stem}.cu")), &source).unwrap();
                }
            }
        }
    }
}

fn roles(algorithm: &Algorithm) -> Vec<(&'static str, usize)> {
    if algorithm.collective.is_rooted() {
        vec![("root", 0), ("others", 1)]
    } else {
        vec![("all", 0)]
    }
}

fn types(algorithm: &Algorithm) -> Vec<DataType> {
    if algorithm.collective.reduces() {
        vec![DataType::F16, DataType::Bf16, DataType::F32]
    } else {
        vec![DataType::F32]
    }
}

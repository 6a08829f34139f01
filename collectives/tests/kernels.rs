//! Kernels of built-in plans as they are compiled and run, for the tables of `cargo xtask kernels`.

mod common;

use std::path::{Path, PathBuf};
use std::time::Instant;

use common::gpu::{self, Memory};
use warpmesh::algorithms::{self, Algorithm, NodeAlgorithm};
use warpmesh::plan::Collective;
use warpmesh::{
    CudaKernel, DataType, RawCall, ReduceOp, cuda_kernel, cuda_kernel_on, cuda_mail_kernels,
};
use warpmesh_kernels::cache;

const WORLD: usize = 8;

/// Compiles every built-in plan for the architectures in `$WARPMESH_ARCHS` and leaves the code in `$WARPMESH_KERNELS`, a folder.
#[test]
#[ignore = "for `cargo xtask kernels`, which says where"]
fn compile_all() {
    let folder = PathBuf::from(std::env::var_os("WARPMESH_KERNELS").expect("WARPMESH_KERNELS"));
    let archs = std::env::var("WARPMESH_ARCHS").expect("WARPMESH_ARCHS");
    let archs: Vec<u32> = archs.split(',').map(|arch| arch.parse().expect("a number")).collect();
    for &arch in &archs {
        for (kernel, role) in cuda_mail_kernels().iter().zip(["all", "hosts"]) {
            compile(kernel, arch, &folder.join(format!("send_receive.letters.{role}.{arch}")));
        }
    }
    for algorithm in algorithms::all() {
        for (role, rank) in roles(algorithm) {
            let Some((kernel, _)) = kernel(algorithm, rank) else { continue };
            // Before sm_90 no switch reduces.
            let switched = kernel.source.contains("SwitchMove");
            for arch in archs.iter().copied().filter(|arch| !switched || *arch >= 90) {
                let stem = format!("{}.{}.{role}.{arch}", algorithm.collective, algorithm.name);
                compile(&kernel, arch, &folder.join(stem));
            }
        }
    }
    for (algorithm, kernel) in between_hosts() {
        for &arch in &archs {
            let stem = format!("{}.{}.hosts.{arch}", algorithm.collective, algorithm.name);
            compile(&kernel, arch, &folder.join(stem));
        }
    }
}

/// Plans for several nodes that GPUs have, and the first rank's kernel: of four on each of two hosts, 16-bit sums.
fn between_hosts() -> impl Iterator<Item = (&'static NodeAlgorithm, CudaKernel)> {
    let data = |a: &&NodeAlgorithm| a.collective != Collective::Barrier;
    algorithms::NODES.iter().copied().filter(data).filter_map(|algorithm| {
        let reduces = algorithm.collective.reduces();
        let dtype = if reduces { DataType::F16 } else { DataType::U32 };
        let call = call_of(algorithm.collective, dtype, SIZE);
        let who = (0, &[0, 0, 0, 0, 1, 1, 1, 1][..]);
        let kernel = cuda_kernel_on(&call, who, false, Some(algorithm.name)).unwrap();
        (kernel.plan == algorithm.name).then_some((algorithm, kernel))
    })
}

/// Calls every built-in plan that has a kernel once for each of two sizes, of all ranks' whole buffer, and says what ran:
/// `cost COLLECTIVE PLAN KERNEL WAITS`. The counts are the virtual GPU's, which keeps them by kernel.
#[test]
#[ignore = "for `cargo xtask kernels`, which counts"]
fn call_all() {
    for algorithm in algorithms::all().filter(|a| a.collective != Collective::Barrier) {
        let kernels = roles(algorithm).into_iter().filter_map(|(_, rank)| kernel(algorithm, rank));
        let kernels: Vec<_> = kernels.collect();
        let Some(&(CudaKernel { ref name, .. }, dtype)) = kernels.first() else { continue };
        let waits = kernels.iter().map(|(kernel, _)| waits(&kernel.source)).max().unwrap();
        println!("cost {} {} {name} {waits}", algorithm.collective, algorithm.name);
        gpu::ranks_with(common::settings().algorithm(algorithm.name), WORLD, |mut rank| {
            let [input, output] = [(); 2].map(|()| Memory::symmetric(&mut rank, 2 * SIZE));
            for size in [SIZE, 2 * SIZE] {
                let mut call = call(algorithm, dtype, size);
                call.input = input.address() as *const u8;
                call.output = output.address() as *mut u8;
                rank.call(&call).unwrap();
                rank.synchronize().unwrap();
            }
        });
    }
}

/// Bytes; as in xtask/src/kernels/costs.rs.
const SIZE: usize = 64 << 10;

/// A call of a plan's collective where all blocks of a buffer together have so many bytes.
fn call(algorithm: &Algorithm, dtype: DataType, size: usize) -> RawCall {
    call_of(algorithm.collective, dtype, size)
}

fn call_of(collective: Collective, dtype: DataType, size: usize) -> RawCall {
    let (inputs, outputs) = collective.blocks(WORLD, 0, 0);
    RawCall {
        collective,
        dtype,
        op: ReduceOp::Sum,
        root: 0,
        count: size / dtype.size() / inputs.max(outputs).max(1),
        input: std::ptr::null(),
        output: std::ptr::null_mut(),
    }
}

/// The kernel of a plan, and its type; none if GPUs do without the plan.
fn kernel(algorithm: &Algorithm, rank: usize) -> Option<(CudaKernel, DataType)> {
    let dtypes = match algorithm.collective.reduces() {
        true => [DataType::F16, DataType::F32],
        false => [DataType::U32; 2],
    };
    dtypes.into_iter().find_map(|dtype| {
        let call = call(algorithm, dtype, SIZE);
        let kernel = cuda_kernel(&call, (rank, WORLD), true, Some(algorithm.name)).unwrap();
        (kernel.plan == algorithm.name).then_some((kernel, dtype))
    })
}

/// How often a kernel waits for other GPUs, one wait after the other: for signals, or for packets among a move's sources.
fn waits(source: &str) -> usize {
    let waits = |line: &&str| {
        let sources = line.split_once("w.move<Move<").and_then(|(_, form)| form.split_once('>'));
        let kinds = sources.map_or("", |(form, _)| form);
        let packets = kinds.split([',', '<', ' ']).any(|word| matches!(word, "PACKETS" | "OWN"));
        packets || line.contains("w.wait<") || line.contains("w.meet<")
    };
    // Of a loop over `s`, which may hold waits, all passes count.
    let (mut passes, mut count) = (1, 0);
    for line in source.lines() {
        if let Some((_, rest)) = line.split_once("s < ") {
            passes = rest.split(';').next().and_then(|n| n.parse().ok()).expect("a loop's passes");
        } else if line.trim() == "}" {
            passes = 1;
        }
        count += passes * usize::from(waits(&line));
    }
    count
}

#[test]
fn waits_are_counted() {
    let find = |name| {
        algorithms::ALL.iter().find(|a| (a.collective, a.name) == (Collective::AllReduce, name))
    };
    let count = |name| waits(&kernel(find(name).unwrap(), 0).unwrap().0.source);
    let names = ["one_shot_packet", "two_shot_packet", "direct", "ring"];
    assert_eq!(names.map(count), [1, 2, 2, 14]);
}

/// Compiles a kernel, takes it out of the cache again, and says how long both took.
fn compile(kernel: &CudaKernel, arch: u32, file: &Path) {
    let cache = file.with_file_name("cache");
    let take = || {
        let since = Instant::now();
        let taken = cache::kernel(&kernel.source, &kernel.name, arch, Some(&cache)).unwrap();
        (taken, since.elapsed().as_secs_f64() * 1e3)
    };
    let ((compiled, cold), (kept, warm)) = (take(), take());
    assert_eq!(compiled, kept);
    println!("{}: {cold:.0} ms, from the cache {warm:.2} ms", file.display());
    std::fs::write(format!("{}.cubin", file.display()), compiled.cubin).unwrap();
}

/// The ranks whose kernels differ.
fn roles(algorithm: &Algorithm) -> Vec<(&'static str, usize)> {
    if algorithm.collective.is_rooted() {
        vec![("root", 0), ("others", 1)]
    } else {
        vec![("all", 0)]
    }
}

//! How ranks hand GPU memory to each other: by fabric handles where all ask for them and have them, else as files. Needs a CUDA driver and
//! NVRTC; `cargo xtask test` runs it on virtual GPUs, some of which are without.

mod common;

use std::time::Duration;

use common::gpu::{self, Memory, Rank, again, is_run_again};
use common::processes::{Ranks, connect, me};
use cudarc::driver::CudaContext;
use warpmesh::plan::Collective;
use warpmesh::primitives::bootstrap::LocalBootstrap;
use warpmesh::primitives::gpu::{Gpu, Handles, NoFabric};
use warpmesh::primitives::node::Node;
use warpmesh::{DataType, RawCall, ReduceOp};

const VARIABLE: &str = "WARPMESH_CUDA_HANDLES";
const WORLD: usize = 3;

/// Runs a test again, on virtual GPUs with these settings.
fn with(test: &str, settings: &[(&'static str, &'static str)]) {
    if gpu::count().is_some_and(|count| count >= WORLD)
        && std::env::var_os("VGPU_DEVICES").is_some()
    {
        again(test, settings.to_vec());
    }
}

/// Sums in memory of every kind that ranks share, by plans with and without the switch, and a message.
fn works(rank: &mut Rank) {
    const COUNT: usize = 3000;
    let (me, world) = (rank.comm.rank(), rank.comm.world());
    for kind in [Memory::symmetric, |rank: &mut Rank, bytes| Memory::new(rank, bytes, true)] {
        let memory = kind(rank, 4 * COUNT);
        let at = memory.address();
        rank.upload(at, &[me as i32 + 1; COUNT]);
        let call = RawCall {
            collective: Collective::AllReduce,
            dtype: DataType::I32,
            op: ReduceOp::Sum,
            root: 0,
            count: COUNT,
            input: at as *const u8,
            output: at as *mut u8,
        };
        rank.call(&call).unwrap();
        rank.synchronize().unwrap();
        let sum = (1..=world as i32).sum::<i32>();
        assert_eq!(rank.download::<i32>(at, COUNT), [sum; COUNT]);
    }
    let stream = rank.stream.clone();
    let mine = stream.clone_htod(&[me as u64; 9]).unwrap();
    let mut theirs = stream.alloc_zeros::<u64>(9).unwrap();
    let (next, before) = ((me + 1) % world, (me + world - 1) % world);
    let letters = rank.comm.group(&stream, |group| {
        group.send::<u64, _>(&mine, next)?;
        group.recv::<u64, _>(&mut theirs, before)
    });
    letters.unwrap();
    rank.synchronize().unwrap();
    assert_eq!(stream.clone_dtoh(&theirs).unwrap(), [before as u64; 9]);
}

#[test]
fn memory_goes_by_fabric_handles_if_that_is_asked_for() {
    const NAME: &str = "memory_goes_by_fabric_handles_if_that_is_asked_for";
    if !is_run_again() {
        return with(NAME, &[(VARIABLE, "fabric")]);
    }
    assert_eq!(agreed(|_| Handles::Fabric), [(Handles::Fabric, None); WORLD]);
    gpu::ranks_with(common::settings(), WORLD, |mut rank| {
        assert_eq!(rank.comm.gpu().handles(), Handles::Fabric);
        works(&mut rank);
        // Files they have too: it can be registered with another communicator.
        let memory = rank.comm.alloc_bytes(1 << 12).unwrap();
        let export = rank.comm.gpu().export(memory.address(), 1 << 12).unwrap();
        assert!(export.file.is_some());
    });
}

#[test]
fn memory_of_other_processes_goes_by_fabric_handles() {
    const NAME: &str = "memory_of_other_processes_goes_by_fabric_handles";
    if me().is_some() {
        let mut rank = gpu::rank(connect(Duration::from_secs(20)));
        assert_eq!(rank.comm.gpu().handles(), Handles::Fabric);
        works(&mut rank);
        println!("REPORT fine");
    } else if is_run_again() {
        let mut ranks = Ranks::start(NAME, WORLD, 0);
        for rank in 0..WORLD {
            assert_eq!(ranks.report(rank, Duration::from_secs(60)), "fine");
        }
    } else {
        with(NAME, &[(VARIABLE, "fabric")]);
    }
}

/// What ranks agree on of which each asks for something, and why not on fabric handles. What they share then can be shared.
fn agreed(asks: impl Fn(usize) -> Handles + Sync) -> Vec<(Handles, Option<NoFabric>)> {
    let bootstraps = LocalBootstrap::create(WORLD, Duration::from_secs(10)).unwrap();
    let agree = &|bootstrap: &mut LocalBootstrap| {
        let node = Node::connect(bootstrap, Duration::from_secs(20)).unwrap();
        let mut gpu = Gpu::new(CudaContext::new(node.rank()).unwrap()).unwrap();
        let why = gpu.agree_on_handles(&node, asks(node.rank())).unwrap();
        let memory = gpu.share_multicast(&node, 100).unwrap();
        // Virtual GPUs have multicast, whose objects are handed over the same way.
        assert!(memory.multicast().is_some() || std::env::var_os("VGPU_DEVICES").is_none());
        (gpu.handles(), why)
    };
    std::thread::scope(|scope| {
        let ranks = bootstraps.into_iter();
        let ranks: Vec<_> =
            ranks.map(|mut bootstrap| scope.spawn(move || agree(&mut bootstrap))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A communicator whose ranks ask for fabric handles and do not get them.
fn goes_by_files() {
    gpu::ranks_with(common::settings(), WORLD, |mut rank| {
        assert_eq!(rank.comm.gpu().handles(), Handles::Files);
        works(&mut rank);
    });
}

#[test]
fn all_use_files_where_one_device_knows_no_fabric_handles() {
    const NAME: &str = "all_use_files_where_one_device_knows_no_fabric_handles";
    if !is_run_again() {
        return with(NAME, &[(VARIABLE, "fabric"), ("VGPU_NO_FABRIC", "1")]);
    }
    goes_by_files();
    let why = NoFabric::Unsupported { rank: 1 };
    assert_eq!(agreed(|_| Handles::Fabric), [(Handles::Files, Some(why)); WORLD]);
}

#[test]
fn all_use_files_where_one_driver_does_not_permit_fabric_handles() {
    const NAME: &str = "all_use_files_where_one_driver_does_not_permit_fabric_handles";
    if !is_run_again() {
        return with(NAME, &[(VARIABLE, "fabric"), ("VGPU_NO_IMEX", "2")]);
    }
    goes_by_files();
    let why = NoFabric::Refused { rank: 2, code: 800 };
    assert_eq!(agreed(|_| Handles::Fabric), [(Handles::Files, Some(why)); WORLD]);
    assert!(why.to_string().contains("rank 2 refuses fabric handles with CUDA error 800"));
}

#[test]
fn all_use_files_where_one_rank_does_not_ask_for_fabric_handles() {
    if gpu::count().is_none_or(|count| count < WORLD) {
        return;
    }
    let one_asks = |rank| if rank == 0 { Handles::Fabric } else { Handles::Files };
    let why = NoFabric::NotAsked { rank: 1 };
    assert_eq!(agreed(one_asks), [(Handles::Files, Some(why)); WORLD]);
}

#[test]
fn another_word_for_handles_is_refused() {
    const NAME: &str = "another_word_for_handles_is_refused";
    if !is_run_again() {
        return with(NAME, &[(VARIABLE, "Fabric")]);
    }
    common::ranks(2, |host| {
        let context = CudaContext::new(host.rank()).unwrap();
        let error = host.on_gpu(context).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("'Fabric' is neither 'files' nor 'fabric'"), "{error}");
    });
}

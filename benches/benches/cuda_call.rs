//! What a call on GPUs costs the host, from entry to return, but for the driver's launch: eight ranks are made, and rank 0
//! calls alone. The driver is the virtual GPU's with launches that do nothing, which the call cannot tell from real ones:
//!
//! ```text
//! cargo build --release -p vgpu
//! export LD_LIBRARY_PATH=$PWD/target/cuda/nvidia/cu13/lib    # NVRTC, by `cargo xtask cuda`
//! target/release/vgpu run --devices 8 --idle -- cargo bench -p warpmesh-benches --bench cuda_call
//! ```

use criterion::{Criterion, criterion_group, criterion_main};
use cudarc::driver::CudaContext;
use warpmesh::plan::Collective;
use warpmesh::{Communicator, CudaBytes, CudaCommunicator, DataType, RawCall, ReduceOp};

criterion_group!(benches, calls);
criterion_main!(benches);

const RANKS: usize = 8;
const BYTES: usize = 32 << 20;

fn calls(c: &mut Criterion) {
    if std::env::var("VGPU_MODE").as_deref() != Ok("idle") {
        println!(
            "NOT RUN: needs a driver whose launches do nothing, see benches/benches/cuda_call.rs"
        );
        return;
    }
    let mut ranks = ranks();
    let (comm, memory) = &mut ranks[0];
    let context = comm.gpu().context().clone();
    context.bind_to_thread().expect("the context is current");
    let stream = context.new_stream().expect("a stream");
    for (name, collective, bytes) in [
        ("all_reduce 8 B", Collective::AllReduce, 8),
        ("all_reduce 8 MiB", Collective::AllReduce, 8 << 20),
        ("all_gather 64 KiB", Collective::AllGather, 8 << 10),
    ] {
        let input = std::ptr::without_provenance_mut::<u8>(memory.address() as usize);
        let call = RawCall {
            collective,
            dtype: DataType::Bf16,
            op: ReduceOp::Sum,
            root: 0,
            count: bytes / 2,
            input,
            output: input.wrapping_add(BYTES / 2),
        };
        // SAFETY: both halves are longer than the blocks; the stream is of the communicator's context.
        let mut run = || unsafe { comm.call(&call, stream.cu_stream()) }.expect("nothing fails");
        run();
        c.bench_function(&format!("cuda call/{name}, {RANKS} ranks"), |b| b.iter(&mut run));
    }
}

/// All ranks with registered memory, each on a GPU.
fn ranks() -> Vec<(CudaCommunicator, CudaBytes)> {
    let hosts = Communicator::builder().local(RANKS).expect("eight ranks");
    let connect = |host: Communicator| {
        let devices = CudaContext::device_count().expect("a driver") as usize;
        let context = CudaContext::new(host.rank() % devices).expect("a GPU");
        let mut comm = host.on_gpu(context).expect("a communicator on GPUs");
        let memory = comm.alloc_bytes(BYTES).expect("GPU memory");
        (comm, memory)
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = hosts.into_iter().map(|host| scope.spawn(|| connect(host))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

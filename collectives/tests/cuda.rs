//! vgpu: collectives on (virtual) GPUs, through the driver API and kernels that NVRTC compiles.

use std::ffi::c_void;
use std::time::Duration;

use cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use warpmesh::plan::Collective;
use warpmesh::{Communicator, DataType, RawCall, ReduceOp};

fn ranks(world: usize, body: impl Fn(Communicator) + Sync) {
    let all = Communicator::builder().timeout(Duration::from_secs(20)).local(world).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.into_iter().map(|c| scope.spawn(|| body(c))).collect();
        for t in threads {
            t.join().unwrap();
        }
    });
}

#[test]
#[ignore = "needs a driver"]
fn all_reduce() {
    for name in ["one_shot_packet", "two_shot_packet", "staged", "one_shot_staged"] {
        let world = 4;
        let all = Communicator::builder()
            .timeout(Duration::from_secs(20))
            .algorithm(name)
            .local(world)
            .unwrap();
        std::thread::scope(|scope| {
            for comm in all {
                scope.spawn(move || {
                    let rank = comm.rank();
                    let ctx = CudaContext::new(rank).unwrap();
                    let stream = ctx.new_stream().unwrap();
                    let mut comm = comm.on_gpu(ctx.clone()).unwrap();
                    for count in [1usize, 7, 1000, 5000] {
                        let input: Vec<f32> =
                            (0..count).map(|k| (k % 50 + rank * 3) as f32).collect();
                        let from = stream.clone_htod(&input).unwrap();
                        let mut to = stream.alloc_zeros::<f32>(count).unwrap();
                        {
                            let (a, _ga) = from.device_ptr(&stream);
                            let (b, _gb) = to.device_ptr_mut(&stream);
                            let call = RawCall {
                                collective: Collective::AllReduce,
                                dtype: DataType::F32,
                                op: ReduceOp::Sum,
                                root: 0,
                                count,
                                input: a as *const u8,
                                output: b as *mut u8,
                            };
                            for _ in 0..3 {
                                unsafe { comm.call(&call, stream.cu_stream()) }.unwrap();
                            }
                            unsafe { comm.synchronize(stream.cu_stream()) }.unwrap();
                        }
                        let got = stream.clone_dtoh(&to).unwrap();
                        for (k, x) in got.iter().enumerate() {
                            let want: usize = (0..world).map(|r| k % 50 + r * 3).sum();
                            assert_eq!(*x, want as f32, "{name} rank {rank} count {count} [{k}]");
                        }
                    }
                });
            }
        });
        println!("{name} ok");
    }
}

#[test]
#[ignore = "needs a driver"]
fn direct() {
    ranks(4, |comm| {
        let (rank, world) = (comm.rank(), comm.world());
        let ctx = CudaContext::new(rank).unwrap();
        let stream = ctx.new_stream().unwrap();
        let mut comm = comm.on_gpu(ctx.clone()).unwrap();
        let bytes = comm.alloc_bytes(1 << 20).unwrap();
        let count = 30_000;
        let input: Vec<f32> = (0..count).map(|k| (k % 50 + rank * 3) as f32).collect();
        // Other offsets on every rank.
        let (a, b) = (bytes.address() + 16 * rank as u64, bytes.address() + (512 << 10));
        let s = stream.cu_stream();
        unsafe {
            cudarc::driver::sys::cuMemcpyHtoD_v2(a, input.as_ptr() as *const c_void, count * 4)
                .result()
                .unwrap();
        }
        let call = RawCall {
            collective: Collective::AllReduce,
            dtype: DataType::F32,
            op: ReduceOp::Sum,
            root: 0,
            count,
            input: a as *const u8,
            output: b as *mut u8,
        };
        unsafe {
            comm.call(&call, s).unwrap();
            comm.synchronize(s).unwrap();
        }
        let mut got = vec![0f32; count];
        unsafe {
            cudarc::driver::sys::cuMemcpyDtoH_v2(got.as_mut_ptr() as *mut c_void, b, count * 4)
                .result()
                .unwrap();
        }
        for (k, x) in got.iter().enumerate() {
            let want: usize = (0..world).map(|r| k % 50 + r * 3).sum();
            assert_eq!(*x, want as f32, "rank {rank} [{k}]");
        }
    });
}

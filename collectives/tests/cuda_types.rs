//! Collectives on cudarc's types. Needs a CUDA driver and NVRTC, as cuda.rs does.

mod common;

use common::gpu::{self, Rank};
use warpmesh::ReduceOp;

const WORLD: usize = 3;
const COUNT: usize = 50;

/// Block `block` of what a rank gives.
fn block(rank: usize, block: usize) -> Vec<f32> {
    (0..COUNT).map(|k| (100 * rank + 10 * block + k % 10) as f32).collect()
}

fn blocks(of: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
    (0..WORLD).flat_map(of).collect()
}

fn sum(b: usize) -> Vec<f32> {
    let add = |k| (0..WORLD).map(|rank| block(rank, b)[k]).sum();
    (0..COUNT).map(add).collect()
}

fn worlds(work: impl Fn(Rank) + Sync) {
    if gpu::count().is_some() {
        gpu::ranks_with(common::settings(), WORLD, work);
    }
}

#[test]
fn slices_of_cudarc_are_buffers() {
    worlds(|Rank { mut comm, stream }| {
        let me = comm.rank();
        let one = stream.clone_htod(&block(me, 0)).unwrap();
        let all = stream.clone_htod(&blocks(|b| block(me, b))).unwrap();
        let mut out = stream.alloc_zeros::<f32>(COUNT).unwrap();
        let mut outs = stream.alloc_zeros::<f32>(WORLD * COUNT).unwrap();

        comm.all_reduce_into(&one, &mut out, ReduceOp::Sum, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), sum(0));
        comm.all_gather(&one, &mut outs, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&outs).unwrap(), blocks(|rank| block(rank, 0)));
        comm.reduce_scatter(&all, &mut out, ReduceOp::Sum, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), sum(me));
        comm.all_to_all(&all, &mut outs, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&outs).unwrap(), blocks(|rank| block(rank, me)));
        comm.scatter(&all, &mut out, 1, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), block(1, me));
        stream.memset_zeros(&mut outs).unwrap();
        comm.gather(&one, &mut outs, 2, &stream).unwrap();
        let gathered =
            if me == 2 { blocks(|rank| block(rank, 0)) } else { vec![0.0; WORLD * COUNT] };
        assert_eq!(stream.clone_dtoh(&outs).unwrap(), gathered);
    });
}

#[test]
fn views_and_registered_buffers_are_reduced_in_place() {
    worlds(|Rank { mut comm, stream }| {
        let me = comm.rank();
        let mut all = comm.alloc_symmetric::<f32>(WORLD * COUNT, &stream).unwrap();
        stream.memcpy_htod(&blocks(|b| block(me, b)), &mut all).unwrap();
        comm.reduce_scatter_in_place(&mut all, ReduceOp::Sum, &stream).unwrap();
        comm.all_gather_in_place(&mut all, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&all).unwrap(), blocks(sum));

        // The middle of a slice; the rest is left alone.
        let mut slice = stream.clone_htod(&blocks(|b| block(me, b))).unwrap();
        let mut view = slice.slice_mut(COUNT..2 * COUNT);
        comm.all_reduce(&mut view, ReduceOp::Sum, &stream).unwrap();
        let rest = |b| if b == 1 { sum(1) } else { block(me, b) };
        assert_eq!(stream.clone_dtoh(&slice).unwrap(), blocks(rest));

        comm.reduce(&mut slice.slice_mut(..COUNT), ReduceOp::Max, 0, &stream).unwrap();
        comm.broadcast(&mut slice.slice_mut(..COUNT), 0, &stream).unwrap();
        assert_eq!(stream.clone_dtoh(&slice.slice(..COUNT)).unwrap(), block(WORLD - 1, 0));
    });
}

#[test]
fn wrong_lengths_are_refused_and_registered_memory_is_given_back() {
    worlds(|Rank { mut comm, stream }| {
        let input = stream.alloc_zeros::<f32>(COUNT).unwrap();
        let mut output = stream.alloc_zeros::<f32>(COUNT + 1).unwrap();
        let error = comm.all_reduce_into(&input, &mut output, ReduceOp::Sum, &stream).unwrap_err();
        assert!(error.to_string().contains("output"), "{error}");
        let error = comm.all_gather_in_place(&mut output.slice_mut(..50), &stream);
        assert!(error.unwrap_err().to_string().contains("not a multiple of 3 ranks"));
        assert!(comm.alloc::<f64>(usize::MAX / 2, &stream).is_err());

        let before = comm.held_bytes();
        for round in 0..4 {
            // Dropped while the call may still be under way.
            let mut buffer = comm.alloc::<f32>(COUNT, &stream).unwrap();
            stream.memcpy_htod(&block(round, 0), &mut buffer).unwrap();
            comm.all_reduce(&mut buffer, ReduceOp::Max, &stream).unwrap();
        }
        stream.synchronize().unwrap();
        let buffer = comm.alloc::<f32>(COUNT, &stream).unwrap();
        assert_eq!(comm.held_bytes() - before, 4 * COUNT);
        drop(buffer);
    });
}

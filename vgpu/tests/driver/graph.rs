//! Stream capture and graphs.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::CUstreamCaptureMode::*;
use cudarc::driver::sys::*;

use crate::host::*;

fn begin(s: CUstream) {
    ok!(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
}

fn end(s: CUstream) -> CUgraph {
    let mut g = null_mut();
    ok!(cuStreamEndCapture(s, &mut g));
    g
}

fn instantiate(g: CUgraph) -> CUgraphExec {
    make!(cuGraphInstantiateWithFlags(g, 0))
}

fn status(s: CUstream) -> u32 {
    let mut x = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    ok!(cuStreamIsCapturing(s, &mut x));
    x as u32
}

/// `event` is recorded on `a`, and `b` waits for it.
fn link(a: CUstream, b: CUstream) {
    let e: CUevent = make!(cuEventCreate(2));
    ok!(cuEventRecord(e, a));
    ok!(cuStreamWaitEvent(b, e, 0));
    ok!(cuEventDestroy_v2(e));
}

fn stream() -> CUstream {
    make!(cuStreamCreate(1))
}

unsafe extern "C" fn count(x: *mut c_void) {
    // SAFETY: the tests pass a counter that outlives the stream's work.
    unsafe { &*x.cast::<AtomicU32>() }.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn vgpu_a_graph_does_again_what_was_captured() {
    on(1, || {
        use_device(0);
        let (s, at) = (stream(), alloc(64));
        let step = kernel("step");
        let counter = AtomicU32::new(0);
        let mut out = 0u32;
        begin(s);
        assert_eq!(status(s), 1);
        let mut value = 5u64;
        ok!(cuMemsetD32Async(at, 2, 1, s));
        assert_eq!(start(step, s, &[at, value]), CUresult::CUDA_SUCCESS);
        value = 1000; // the parameter was taken when it was captured
        ok!(cuMemcpyDtoHAsync_v2((&raw mut out).cast(), at, 4, s));
        ok!(cuLaunchHostFunc(s, Some(count), (&raw const counter).cast_mut().cast()));
        let g = end(s);
        assert_eq!((status(s), word(at), counter.load(Ordering::SeqCst)), (0, 0, 0), "nothing ran");
        let mut n = 0;
        ok!(cuGraphGetNodes(g, null_mut(), &mut n));
        let mut nodes = vec![null_mut(); n + 1];
        n += 1;
        ok!(cuGraphGetNodes(g, nodes.as_mut_ptr(), &mut n));
        assert_eq!((n, nodes[4].is_null()), (4, true));
        let kind = |node| {
            let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            ok!(cuGraphNodeGetType(node, &mut kind));
            kind as u32
        };
        assert_eq!(nodes[..4].iter().map(|n| kind(*n)).collect::<Vec<_>>(), [2, 0, 1, 3]);
        let exec = instantiate(g);
        ok!(cuGraphDestroy(g));
        err!(CUDA_ERROR_INVALID_VALUE, cuGraphDestroy(g));
        ok!(cuGraphUpload(exec, s));
        for k in 1..=3 {
            ok!(cuGraphLaunch(exec, s));
            // Eager work after the graph, in the same stream.
            assert_eq!(start(step, s, &[at, value]), CUresult::CUDA_SUCCESS);
            ok!(cuStreamSynchronize(s));
            // SAFETY: the copy has ended.
            let out = unsafe { (&raw const out).read_volatile() };
            assert_eq!((out, word(at), counter.load(Ordering::SeqCst)), (11, 1033, k));
        }
        ok!(cuGraphExecDestroy(exec));
        err!(CUDA_ERROR_INVALID_VALUE, cuGraphLaunch(exec, s));
    });
}

#[test]
fn vgpu_branches_of_a_graph_run_beside_each_other() {
    on(1, || {
        use_device(0);
        let (a, b, c) = (stream(), stream(), stream());
        let flags = alloc(64);
        let (wait, set) = (kernel("await"), kernel("store"));
        begin(a);
        ok!(cuMemsetD32Async(flags, 0, 16, a));
        link(a, b);
        link(b, c);
        // Each waits for what the other sets after it: they have to be on the device together.
        for (s, mine, theirs) in [(b, flags, flags + 32), (c, flags + 32, flags)] {
            assert_eq!(status(s), 1);
            assert_eq!(start(set, s, &[mine, 1]), CUresult::CUDA_SUCCESS);
            assert_eq!(start(wait, s, &[theirs, 1]), CUresult::CUDA_SUCCESS);
        }
        link(c, b);
        link(b, a);
        assert_eq!(start(set, a, &[flags + 8, 9]), CUresult::CUDA_SUCCESS);
        let exec = instantiate(end(a));
        assert_eq!((status(b), status(c)), (0, 0));
        for _ in 0..10 {
            set_word(flags + 8, 0);
            ok!(cuGraphLaunch(exec, a));
            ok!(cuStreamSynchronize(a));
            assert_eq!(word(flags + 8), 9);
        }
        // A graph in a graph.
        begin(b);
        ok!(cuGraphLaunch(exec, b));
        let outer = instantiate(end(b));
        set_word(flags + 8, 0);
        ok!(cuGraphLaunch(outer, c));
        ok!(cuStreamSynchronize(c));
        assert_eq!(word(flags + 8), 9);
    });
}

#[test]
fn vgpu_a_capture_says_where_it_stands() {
    on(1, || {
        use_device(0);
        let (s, at) = (stream(), alloc(4));
        begin(s);
        ok!(cuMemsetD32Async(at, 1, 1, s));
        let info = || {
            let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
            let (mut id, mut graph, mut n) = (0, null_mut(), 0);
            let mut deps: *const CUgraphNode = std::ptr::null();
            let mut edges = std::ptr::null();
            ok!(cuStreamGetCaptureInfo_v3(
                s,
                &mut status,
                &mut id,
                &mut graph,
                &mut deps,
                &mut edges,
                &mut n
            ));
            let deps: Vec<_> = (0..n)
                // SAFETY: the driver's array has that many elements.
                .map(|k| unsafe { *deps.add(k) })
                .collect();
            (status as u32, id, graph, deps)
        };
        let (active, id, graph, deps) = info();
        assert!(active == 1 && id != 0 && deps.len() == 1);
        ok!(cuMemsetD32Async(at, 2, 1, s));
        let (_, same, _, later) = info();
        assert!(same == id && later.len() == 1 && later != deps);
        err!(CUDA_ERROR_INVALID_VALUE, cuGraphInstantiateWithFlags(&mut null_mut(), graph, 0));
        assert_eq!(end(s), graph);
        assert_eq!(info().0, 0);
    });
}

/// Ends a capture that cannot become a graph.
fn fails(s: CUstream, with: CUresult) {
    let mut g = 1 as CUgraph;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { cuStreamEndCapture(s, &mut g) }, with);
    assert!(g.is_null());
}

#[test]
fn vgpu_what_cannot_be_captured_ends_the_capture() {
    use CUresult::*;
    on(1, || {
        use_device(0);
        let (s, other, blocking) = (stream(), stream(), make!(cuStreamCreate(0)));
        let (at, mut x) = (alloc(64), 0u64);
        let e: CUevent = make!(cuEventCreate(0));
        fails(s, CUDA_ERROR_ILLEGAL_STATE);
        err!(
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            cuStreamBeginCapture_v2(null_mut(), CU_STREAM_CAPTURE_MODE_GLOBAL)
        );
        // Calls that are not allowed.
        begin(s);
        err!(CUDA_ERROR_ILLEGAL_STATE, cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
        err!(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&mut x, 64));
        assert_eq!(status(s), 2);
        err!(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuMemsetD32Async(at, 1, 1, s));
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(s);
        err!(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(s));
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(s);
        err!(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuCtxSynchronize());
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        // An event of the capture has no time, and cannot be waited for outside.
        begin(s);
        ok!(cuEventRecord(e, s));
        err!(CUDA_ERROR_CAPTURED_EVENT, cuEventQuery(e));
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        err!(CUDA_ERROR_CAPTURED_EVENT, cuStreamWaitEvent(other, e, 0));
        // Nor can a capture wait for what is outside.
        ok!(cuEventRecord(e, other));
        begin(s);
        err!(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(s, e, 0));
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        // The default stream would have to wait for a blocking one.
        begin(blocking);
        err!(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, cuMemsetD32Async(at, 1, 1, null_mut()));
        fails(blocking, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(s);
        ok!(cuMemsetD32Async(at, 1, 1, null_mut()));
        end(s);
        // Branches: left behind, ended in the wrong place, brought together from two captures.
        begin(s);
        ok!(cuMemsetD32Async(at, 1, 1, s));
        link(s, other);
        ok!(cuMemsetD32Async(at, 2, 1, other));
        fails(s, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        assert_eq!((status(s), status(other)), (0, 0));
        begin(s);
        link(s, other);
        fails(other, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(s);
        begin(other);
        ok!(cuEventRecord(e, s));
        err!(CUDA_ERROR_STREAM_CAPTURE_MERGE, cuStreamWaitEvent(other, e, 0));
        fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        fails(other, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        ok!(cuMemsetD32Async(at, 1, 1, s));
        ok!(cuCtxSynchronize());
    });
}

#[test]
fn vgpu_capture_modes_are_of_threads() {
    on(1, || {
        use_device(0);
        let s = stream();
        let mut x = 0u64;
        // A relaxed capture, or a relaxed thread, allows what could disturb.
        ok!(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_RELAXED));
        ok!(cuMemAlloc_v2(&mut x, 64));
        end(s);
        begin(s);
        let mut mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
        assert_eq!(mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
        ok!(cuMemAlloc_v2(&mut x, 64));
        ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
        end(s);
        // What another thread does disturbs a global capture, not one of a thread.
        let from_another_thread = || {
            let call = || {
                use_device(0);
                let mut x = 0u64;
                // SAFETY: the pointer is to a local.
                unsafe { cuMemAlloc_v2(&mut x, 64) }
            };
            std::thread::spawn(call).join().unwrap()
        };
        ok!(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        assert_eq!(from_another_thread(), CUresult::CUDA_SUCCESS);
        let address = s as usize;
        let ended = std::thread::spawn(move || {
            use_device(0);
            // SAFETY: the pointer is to a temporary.
            unsafe { cuStreamEndCapture(address as _, &mut null_mut()) }
        });
        assert_eq!(ended.join().unwrap(), CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        fails(s, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(s);
        assert_eq!(from_another_thread(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        fails(s, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    });
}

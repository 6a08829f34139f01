//! Streams, events and host functions.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::*;

use crate::host::*;

unsafe extern "C" fn count(x: *mut c_void) {
    // SAFETY: the tests pass a counter that outlives the stream's work.
    unsafe { &*x.cast::<AtomicU32>() }.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn vgpu_streams_are_asked_and_events_take_times() {
    on(1, || {
        let context = use_device(0);
        let s: CUstream = make!(cuStreamCreateWithPriority(1, -3));
        let (mut owner, mut flags) = (null_mut(), 0);
        ok!(cuStreamGetCtx(s, &mut owner));
        ok!(cuStreamGetFlags(s, &mut flags));
        assert_eq!((owner, flags), (context, 1));
        let gate = alloc(4);
        let (start_, end): (CUevent, CUevent) = (make!(cuEventCreate(0)), make!(cuEventCreate(0)));
        let untimed: CUevent = make!(cuEventCreate(2));
        err!(CUDA_ERROR_NOT_SUPPORTED, cuEventCreate(&mut null_mut(), 6));
        ok!(cuEventRecord(start_, s));
        ok!(cuStreamWaitValue32_v2(s, gate, 5, 0));
        let counter = AtomicU32::new(0);
        ok!(cuLaunchHostFunc(s, Some(count), (&raw const counter).cast_mut().cast()));
        ok!(cuEventRecord(end, s));
        ok!(cuEventRecord(untimed, s));
        err!(CUDA_ERROR_NOT_READY, cuStreamQuery(s));
        err!(CUDA_ERROR_NOT_READY, cuEventQuery(end));
        let mut ms = 0f32;
        err!(CUDA_ERROR_NOT_READY, cuEventElapsedTime_v2(&mut ms, start_, end));
        ok!(cuEventSynchronize(start_));
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(counter.load(Ordering::SeqCst), 0);
        // Another stream opens the gate: 5 or more is waited for.
        let other: CUstream = make!(cuStreamCreate(1));
        ok!(cuStreamWriteValue32_v2(other, gate, 7, 0));
        ok!(cuStreamSynchronize(s));
        assert_eq!(counter.load(Ordering::SeqCst), 1);
        ok!(cuStreamQuery(s));
        ok!(cuEventQuery(end));
        ok!(cuEventElapsedTime_v2(&mut ms, start_, end));
        assert!((5.0..20_000.0).contains(&ms), "{ms}");
        err!(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime_v2(&mut ms, start_, untimed));
        ok!(cuEventDestroy_v2(end));
        err!(CUDA_ERROR_INVALID_HANDLE, cuEventQuery(end));
        err!(CUDA_ERROR_INVALID_VALUE, cuStreamWriteValue32_v2(s, gate + 2, 0, 0));
    });
}

#[test]
fn vgpu_the_default_stream_orders_blocking_ones_only() {
    on(1, || {
        use_device(0);
        let gate = alloc(8);
        let blocking: CUstream = make!(cuStreamCreate(0));
        let free: CUstream = make!(cuStreamCreate(1));
        ok!(cuStreamWaitValue32_v2(free, gate, 1, 0));
        // The default stream does not wait for the free one,
        ok!(cuMemsetD32Async(gate + 4, 3, 1, null_mut()));
        ok!(cuStreamSynchronize(null_mut()));
        // but an event in it comes after what is on blocking streams.
        ok!(cuStreamWaitValue32_v2(blocking, gate, 1, 1));
        let e: CUevent = make!(cuEventCreate(0));
        ok!(cuEventRecord(e, null_mut()));
        std::thread::sleep(std::time::Duration::from_millis(5));
        err!(CUDA_ERROR_NOT_READY, cuEventQuery(e));
        err!(CUDA_ERROR_NOT_READY, cuStreamQuery(null_mut()));
        let third: CUstream = make!(cuStreamCreate(1));
        ok!(cuStreamWriteValue32_v2(third, gate, 1, 0));
        ok!(cuEventSynchronize(e));
        // A destroyed stream still does its work, and the context waits for it.
        ok!(cuStreamWaitValue32_v2(free, gate, 2, 1));
        ok!(cuMemsetD32Async(gate + 4, 4, 1, free));
        ok!(cuStreamDestroy_v2(free));
        ok!(cuStreamWriteValue32_v2(third, gate, 2, 0));
        ok!(cuCtxSynchronize());
        assert_eq!(word(gate + 4), 4);
    });
}

#[test]
fn vgpu_a_value_that_never_comes_is_given_up() {
    let text = run(&[("VGPU_WATCHDOG", "1")], || {
        use_device(0);
        let s: CUstream = make!(cuStreamCreate(1));
        ok!(cuStreamWaitValue64_v2(s, alloc(8), 1, 0));
        err!(CUDA_ERROR_LAUNCH_TIMEOUT, cuStreamSynchronize(s));
    });
    assert!(text.is_none_or(|t| t.contains("a stream waited 1s for a value")));
}

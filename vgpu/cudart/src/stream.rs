//! Streams and events: the driver's, under the same handles.

use std::ffi::{c_float, c_int, c_uint};

use crate::context;
use crate::driver;

api! {
    cudaStreamCreate(stream: *mut usize) {
        context::ensure()?;
        driver::cuStreamCreate(stream, 0)
    }
    cudaStreamCreateWithFlags(stream: *mut usize, flags: c_uint) {
        context::ensure()?;
        driver::cuStreamCreate(stream, flags)
    }
    cudaStreamCreateWithPriority(stream: *mut usize, flags: c_uint, priority: c_int) {
        context::ensure()?;
        driver::cuStreamCreateWithPriority(stream, flags, priority)
    }
    cudaStreamDestroy(stream: usize) {
        context::ensure()?;
        driver::cuStreamDestroy_v2(stream)
    }
    cudaStreamSynchronize(stream: usize) {
        context::ensure()?;
        driver::cuStreamSynchronize(stream)
    }
    cudaStreamQuery(stream: usize) {
        context::ensure()?;
        driver::cuStreamQuery(stream)
    }
    cudaStreamWaitEvent(stream: usize, event: usize, flags: c_uint) {
        context::ensure()?;
        driver::cuStreamWaitEvent(stream, event, flags)
    }
    cudaStreamGetPriority(stream: usize, priority: *mut c_int) {
        context::ensure()?;
        driver::cuStreamGetPriority(stream, priority)
    }
    cudaStreamGetFlags(stream: usize, flags: *mut c_uint) {
        context::ensure()?;
        driver::cuStreamGetFlags(stream, flags)
    }
    cudaStreamGetId(stream: usize, id: *mut u64) {
        context::ensure()?;
        driver::cuStreamGetId(stream, id)
    }
    cudaEventCreate(event: *mut usize) {
        context::ensure()?;
        driver::cuEventCreate(event, 0)
    }
    cudaEventCreateWithFlags(event: *mut usize, flags: c_uint) {
        context::ensure()?;
        driver::cuEventCreate(event, flags)
    }
    cudaEventDestroy(event: usize) {
        context::ensure()?;
        driver::cuEventDestroy_v2(event)
    }
    cudaEventRecord(event: usize, stream: usize) {
        context::ensure()?;
        driver::cuEventRecord(event, stream)
    }
    cudaEventRecordWithFlags(event: usize, stream: usize, flags: c_uint) {
        context::ensure()?;
        driver::cuEventRecordWithFlags(event, stream, flags)
    }
    cudaEventQuery(event: usize) {
        context::ensure()?;
        driver::cuEventQuery(event)
    }
    cudaEventSynchronize(event: usize) {
        context::ensure()?;
        driver::cuEventSynchronize(event)
    }
    cudaEventElapsedTime(ms: *mut c_float, start: usize, end: usize) {
        context::ensure()?;
        driver::cuEventElapsedTime_v2(ms, start, end)
    }
}

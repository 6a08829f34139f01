//! Stream capture and graphs: the driver's, under the same handles.

use std::ffi::{c_uint, c_void};

use crate::context;
use crate::driver;

api! {
    cudaStreamBeginCapture(stream: usize, mode: c_uint) {
        context::ensure()?;
        driver::cuStreamBeginCapture_v2(stream, mode)
    }
    cudaStreamEndCapture(stream: usize, graph: *mut usize) {
        context::ensure()?;
        driver::cuStreamEndCapture(stream, graph)
    }
    cudaStreamIsCapturing(stream: usize, status: *mut c_uint) {
        context::ensure()?;
        driver::cuStreamIsCapturing(stream, status)
    }
    cudaStreamGetCaptureInfo(stream: usize, status: *mut c_uint, id: *mut u64, graph: *mut usize,
        dependencies: *mut *const usize, edges: *mut *const c_void, count: *mut usize) {
        context::ensure()?;
        driver::cuStreamGetCaptureInfo_v3(stream, status, id, graph, dependencies, edges, count)
    }
    cudaThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        context::ensure()?;
        driver::cuThreadExchangeStreamCaptureMode(mode)
    }
    cudaGraphCreate(graph: *mut usize, flags: c_uint) {
        context::ensure()?;
        driver::cuGraphCreate(graph, flags)
    }
    cudaGraphDestroy(graph: usize) { driver::cuGraphDestroy(graph) }
    cudaGraphGetNodes(graph: usize, nodes: *mut usize, count: *mut usize) { driver::cuGraphGetNodes(graph, nodes, count) }
    cudaGraphInstantiate(exec: *mut usize, graph: usize, flags: u64) {
        context::ensure()?;
        driver::cuGraphInstantiateWithFlags(exec, graph, flags)
    }
    cudaGraphInstantiateWithFlags(exec: *mut usize, graph: usize, flags: u64) {
        context::ensure()?;
        driver::cuGraphInstantiateWithFlags(exec, graph, flags)
    }
    cudaGraphExecDestroy(exec: usize) { driver::cuGraphExecDestroy(exec) }
    cudaGraphUpload(exec: usize, stream: usize) {
        context::ensure()?;
        driver::cuGraphUpload(exec, stream)
    }
    cudaGraphLaunch(exec: usize, stream: usize) {
        context::ensure()?;
        driver::cuGraphLaunch(exec, stream)
    }
}

//! Events and graphs of a rank's stream.

use ::warpmesh::primitives::gpu::CudaError;
use anyhow::Result;
use cudarc::driver::sys::{self, CUevent, CUgraphExec};

use super::Device;
use crate::backend::Graph;
use crate::backend::clock::Clock;

/// Events that the GPU reaches in the stream's order.
pub(super) struct StreamClock {
    device: Device,
    /// Made beforehand: making one takes longer than recording it.
    events: Vec<CUevent>,
    recorded: usize,
}

impl StreamClock {
    pub(super) fn new(device: &Device, marks: usize) -> Result<Self> {
        let events = Vec::with_capacity(marks);
        let mut clock = Self { device: device.clone(), events, recorded: 0 };
        for _ in 0..marks {
            clock.add_event()?;
        }
        Ok(clock)
    }

    fn add_event(&mut self) -> Result<()> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is to a local; flags 0 are those of an event with times.
        let code = unsafe { sys::cuEventCreate(&mut event, 0) };
        CudaError::check(code, "cuEventCreate")?;
        self.events.push(event);
        Ok(())
    }
}

impl Clock for StreamClock {
    fn mark(&mut self) -> Result<()> {
        if self.recorded == self.events.len() {
            self.add_event()?;
        }
        // SAFETY: event and stream live, and are of the same context.
        let code = unsafe { sys::cuEventRecord(self.events[self.recorded], self.device.stream()) };
        self.recorded += 1;
        Ok(CudaError::check(code, "cuEventRecord")?)
    }

    fn intervals(&mut self) -> Result<Vec<f64>> {
        if let Some(last) = self.events[..self.recorded].last() {
            // SAFETY: the event lives. It is reached last; the stream's end may be told a little earlier.
            let code = unsafe { sys::cuEventSynchronize(*last) };
            CudaError::check(code, "cuEventSynchronize")?;
        }
        let between = |pair: &[CUevent]| -> Result<f64> {
            let mut milliseconds = 0_f32;
            // SAFETY: both were recorded and reached.
            let code = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, pair[0], pair[1]) };
            CudaError::check(code, "cuEventElapsedTime")?;
            Ok(f64::from(milliseconds) / 1e3)
        };
        self.events[..self.recorded].windows(2).map(between).collect()
    }
}

impl Drop for StreamClock {
    fn drop(&mut self) {
        for event in &self.events {
            // SAFETY: made here, destroyed once; the driver waits with that for a recorded one.
            let _ = unsafe { sys::cuEventDestroy_v2(*event) };
        }
    }
}

pub(super) fn begin_capture(device: &Device) -> Result<()> {
    // Other threads, which may be ranks, go on with theirs.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream lives and is not the default one.
    let code = unsafe { sys::cuStreamBeginCapture_v2(device.stream(), mode) };
    Ok(CudaError::check(code, "cuStreamBeginCapture")?)
}

/// A graph that can be launched.
pub(super) struct Recorded {
    device: Device,
    graph: CUgraphExec,
}

impl Recorded {
    /// Ends the capture.
    pub(super) fn new(device: &Device) -> Result<Self> {
        let mut template = std::ptr::null_mut();
        // SAFETY: the stream lives, the pointer is to a local.
        let code = unsafe { sys::cuStreamEndCapture(device.stream(), &mut template) };
        CudaError::check(code, "cuStreamEndCapture")?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the graph was made just now, the pointer is to a local.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut graph, template, 0) };
        // SAFETY: of no use any more; what was made of it does not need it.
        let _ = unsafe { sys::cuGraphDestroy(template) };
        CudaError::check(made, "cuGraphInstantiate")?;
        Ok(Self { device: device.clone(), graph })
    }
}

impl Graph for Recorded {
    unsafe fn launch(&mut self) -> Result<()> {
        // SAFETY: graph and stream live; what the calls in it need is the caller's promise.
        let code = unsafe { sys::cuGraphLaunch(self.graph, self.device.stream()) };
        Ok(CudaError::check(code, "cuGraphLaunch")?)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once; the driver waits with that for launches under way.
        let _ = unsafe { sys::cuGraphExecDestroy(self.graph) };
    }
}

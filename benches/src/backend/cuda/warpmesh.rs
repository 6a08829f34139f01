//! This library on GPUs.

use ::warpmesh::plan::Collective;
use ::warpmesh::{Communicator, CudaCommunicator, DataType, RawCall, ReduceOp};
use anyhow::{Context, Result};

use super::Device;
use crate::backend::clock::Clock;
use crate::backend::warpmesh::{
    Settings, exchange, in_place_is_claimed, told_apart, unknown_algorithm,
};
use crate::backend::{Backend, Buffer, Call, Graph, Kind};
use crate::layout::{Place, Test};
use crate::perf::Control;

/// A communicator on GPUs as a backend.
pub struct WarpmeshCuda {
    comm: CudaCommunicator,
    device: Device,
    control: Control,
    algorithm: Option<String>,
    /// Two floats for the barrier on the stream.
    meeting: Buffer,
}

impl WarpmeshCuda {
    /// Makes a communicator with the other ranks. Every rank calls it.
    pub fn connect(control: &Control, device: &Device, settings: &Settings) -> Result<Self> {
        let host = settings.builder().connect(control.clone());
        let host: Communicator = host.context("making the communicator")?;
        let comm = host.on_gpu(device.context().clone());
        Ok(Self {
            comm: comm.context("making the communicator on GPUs")?,
            device: device.clone(),
            control: control.clone(),
            algorithm: settings.algorithm.clone(),
            meeting: device.plain(16)?,
        })
    }

    /// None for what is no collective.
    fn raw(call: &Call) -> Option<RawCall> {
        let Test::Collective(collective) = call.test else { return None };
        Some(RawCall {
            collective,
            dtype: call.dtype,
            op: call.op,
            root: call.root,
            count: call.count,
            input: call.input,
            output: call.output,
        })
    }

    fn plan(&self, call: &Call, place: Place, registered: bool) -> Option<&'static str> {
        self.comm.plan(&Self::raw(call)?, registered, place == Place::In)
    }

    /// Puts an all-reduce on the stream, which ends on no rank before it has begun on all.
    fn meet(&mut self) -> Result<()> {
        let input = self.meeting.as_ptr();
        let call = RawCall {
            collective: Collective::AllReduce,
            dtype: DataType::F32,
            op: ReduceOp::Sum,
            root: 0,
            count: 1,
            input,
            output: input.wrapping_add(8),
        };
        // SAFETY: this backend's memory, good for an element at each address.
        unsafe { self.comm.call(&call, self.device.stream()) }.map_err(told_apart)
    }
}

impl Backend for WarpmeshCuda {
    fn kind(&self) -> Kind {
        Kind::Warpmesh
    }

    fn version(&self) -> String {
        format!("warpmesh {}", env!("CARGO_PKG_VERSION"))
    }

    fn refuses(&self, test: Test, _: DataType, _: ReduceOp, _: Place) -> Option<String> {
        unknown_algorithm(self.algorithm.as_deref()?, test)
    }

    fn substitutes(&mut self, call: &Call, place: Place, registered: bool) -> Option<String> {
        let name = self.algorithm.as_deref()?;
        if place == Place::In && !in_place_is_claimed(name, call.test) {
            return Some(format!("'{name}' does not work in place"));
        }
        let chosen = self.plan(call, place, registered)?;
        (chosen != name).then(|| format!("'{name}' cannot do this, '{chosen}' would be taken"))
    }

    fn promises_same_bits(&self) -> bool {
        true
    }

    fn alloc(&mut self, bytes: usize) -> Result<Option<Buffer>> {
        let memory =
            self.comm.alloc_symmetric_bytes(bytes).context("allocating registered GPU memory")?;
        // SAFETY: the memory of this rank's GPU lives as long as `memory`.
        Ok(Some(unsafe { self.device.owned(memory.address(), bytes, memory) }?))
    }

    #[inline]
    unsafe fn run(&mut self, call: &Call) -> Result<()> {
        let stream = self.device.stream();
        // SAFETY: the same contract; the stream is of the communicator's context.
        let queued = unsafe {
            match Self::raw(call) {
                Some(raw) => self.comm.call(&raw, stream),
                None => {
                    let world = self.comm.world();
                    self.comm.group_raw(stream, |group| exchange(group, call, world))
                }
            }
        };
        queued.map_err(told_apart)
    }

    fn finish(&mut self) -> Result<()> {
        // SAFETY: the stream is of the communicator's context.
        Ok(unsafe { self.comm.synchronize(self.device.stream()) }?)
    }

    fn barrier(&mut self) -> Result<()> {
        self.finish()?;
        self.control.gather(&[])?;
        self.meet()
    }

    fn clock(&self, marks: usize) -> Result<Box<dyn Clock>> {
        self.device.clock(marks)
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.device.begin_capture()
    }

    fn end_capture(&mut self) -> Result<Box<dyn Graph>> {
        self.device.end_capture()
    }

    fn explain(&mut self, call: &Call, registered: bool) -> Option<String> {
        let plan = self.plan(call, Place::Out, registered)?;
        let memory = if registered { "registered" } else { "plain" };
        Some(format!("{} of {} elements, {memory} memory: plan {plan}", call.test, call.count))
    }

    fn held_bytes(&self) -> Option<usize> {
        Some(self.comm.held_bytes())
    }
}

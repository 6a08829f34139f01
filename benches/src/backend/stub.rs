//! Stands in for `warpmesh::Communicator` until it is merged: the same calls, over the bootstrap.
#![allow(
    missing_docs,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]

use std::time::Duration;

use warpmesh::plan::Collective;
use warpmesh::{DataType, ReduceOp};
use warpmesh_primitives::bootstrap::{Bootstrap, BootstrapError};

#[derive(Debug)]
pub(super) struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<BootstrapError> for Error {
    fn from(error: BootstrapError) -> Self {
        Self(error.to_string())
    }
}

pub(super) struct RawCall {
    pub collective: Collective,
    pub dtype: DataType,
    pub op: ReduceOp,
    pub root: usize,
    pub count: usize,
    pub input: *const u8,
    pub output: *mut u8,
}

pub(super) struct Builder;

impl Builder {
    pub fn timeout(self, _: Duration) -> Self {
        self
    }
    pub fn canonical(self, _: bool) -> Self {
        self
    }
    pub fn algorithm(self, _: &str) -> Self {
        self
    }
    pub fn connect(self, bootstrap: impl Bootstrap + 'static) -> Result<Communicator, Error> {
        Ok(Communicator {
            bootstrap: Box::new(bootstrap),
        })
    }
}

pub(super) struct Communicator {
    bootstrap: Box<dyn Bootstrap>,
}

pub(super) struct SharedBytes(Vec<u64>, usize);

impl SharedBytes {
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
    pub fn len(&self) -> usize {
        self.1
    }
}

pub(super) struct Group<'a> {
    comm: &'a mut Communicator,
    sent: Vec<u8>,
}

impl Group<'_> {
    pub unsafe fn send_raw(
        &mut self,
        input: *const u8,
        count: usize,
        dtype: DataType,
        _: usize,
    ) -> Result<(), Error> {
        let bytes = count * dtype.size();
        self.sent = unsafe { std::slice::from_raw_parts(input, bytes) }.to_vec();
        Ok(())
    }
    pub unsafe fn recv_raw(
        &mut self,
        output: *mut u8,
        count: usize,
        dtype: DataType,
        peer: usize,
    ) -> Result<(), Error> {
        let all = self.comm.bootstrap.all_gather(&self.sent)?;
        let bytes = count * dtype.size();
        unsafe { std::slice::from_raw_parts_mut(output, bytes) }.copy_from_slice(&all[peer]);
        Ok(())
    }
}

impl Communicator {
    pub fn builder() -> Builder {
        Builder
    }
    pub fn rank(&self) -> usize {
        self.bootstrap.rank()
    }
    pub fn world(&self) -> usize {
        self.bootstrap.world()
    }
    pub fn alloc_bytes(&mut self, len: usize) -> Result<SharedBytes, Error> {
        Ok(SharedBytes(vec![0; len.div_ceil(8)], len))
    }
    pub fn group<'a>(
        &'a mut self,
        calls: impl FnOnce(&mut Group<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        calls(&mut Group {
            comm: self,
            sent: Vec::new(),
        })
    }
    pub fn barrier(&mut self) -> Result<(), Error> {
        Ok(self.bootstrap.barrier()?)
    }
    pub fn explain(
        &self,
        collective: Collective,
        dtype: DataType,
        count: usize,
        _: bool,
    ) -> String {
        format!("{collective} of {count} {dtype}: over the bootstrap")
    }
    pub fn held_bytes(&self) -> usize {
        0
    }

    pub unsafe fn call(&mut self, call: &RawCall) -> Result<(), Error> {
        let (rank, world) = (self.rank(), self.world());
        let (ins, outs) = call.collective.blocks(world, call.root, rank);
        let block = call.count * call.dtype.size();
        let input = unsafe { std::slice::from_raw_parts(call.input, ins * block) };
        let all = self.bootstrap.all_gather(input)?;
        let reduced = |at: usize| -> Vec<u8> {
            let parts: Vec<&[u8]> = all.iter().map(|part| &part[at..][..block]).collect();
            sum(call, &parts)
        };
        let result: Vec<u8> = match call.collective {
            Collective::AllReduce => reduced(0),
            Collective::Reduce if rank == call.root => reduced(0),
            Collective::ReduceScatter => reduced(rank * block),
            Collective::Broadcast => all[call.root].clone(),
            Collective::Scatter => all[call.root][rank * block..][..block].to_vec(),
            Collective::AllGather => all.concat(),
            Collective::Gather if rank == call.root => all.concat(),
            Collective::AllToAll => all
                .iter()
                .flat_map(|part| part[rank * block..][..block].to_vec())
                .collect(),
            _ => vec![],
        };
        assert_eq!(result.len(), outs * block);
        unsafe { std::slice::from_raw_parts_mut(call.output, result.len()) }
            .copy_from_slice(&result);
        Ok(())
    }
}

fn sum(call: &RawCall, parts: &[&[u8]]) -> Vec<u8> {
    assert_eq!(call.dtype, DataType::F32, "the stand-in sums floats only");
    let at = |part: &[u8], i: usize| f32::from_ne_bytes(part[i * 4..][..4].try_into().unwrap());
    let add = |i: usize| parts.iter().map(|part| at(part, i)).sum::<f32>();
    (0..call.count).flat_map(|i| add(i).to_ne_bytes()).collect()
}

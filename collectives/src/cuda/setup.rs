//! How a communicator comes to its GPU.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys;
use warpmesh_primitives::gpu::{CudaError, Gpu, Handles};
use warpmesh_primitives::node::Node;

use super::far::Far;
use super::mail::Mail;
use super::recent::Recent;
use super::regions::{CONTROL_BYTES, MAX_BLOCKS, Regions};
use super::watch::Watch;
use super::windows::Windows;
use super::{CudaCommunicator, choose, driver_error};
use crate::algorithms::Layout;
use crate::communicator::Communicator;
use crate::error::{Error, argument};

/// Bytes of a rank's scratch and packet memory on its GPU.
const SCRATCH: usize = 16 << 20;
const PACKETS: usize = 8 << 20;

/// Kernels have a rank's number in 8 bits.
pub(super) const MAX_RANKS: usize = 255;

/// Bytes by which each rank tries that it can write to each other.
const TRIAL: usize = 64 << 10;

impl Communicator {
    /// Makes a communicator for buffers on the GPU of `context`. A collective call: every rank makes it, each with the GPU that it
    /// works on; several ranks may share one. Blocks until all have. Data is sent between all pairs of a host's GPUs and compared, for
    /// there are machines on which it arrives changed. Ranks of several hosts reach each other by RDMA or TCP.
    ///
    /// # Errors
    /// The driver lacks something, GPUs of the ranks are of different architectures, GPUs do not reach each other, or a peer is gone.
    pub fn on_gpu(mut self, context: Arc<CudaContext>) -> Result<CudaCommunicator, Error> {
        if self.world() > MAX_RANKS {
            let problem =
                format!("are {}; GPUs that reach each other are at most {MAX_RANKS}", self.world());
            return Err(argument("on_gpu", "ranks", problem));
        }
        let wanted = wanted_handles()?;
        let mut gpu = Gpu::new(context)?;
        let most_blocks = agree(&mut self, &gpu)?;
        if let Some(why) = gpu.agree_on_handles(self.node(), wanted)?
            && wanted == Handles::Fabric
        {
            tracing::warn!(%why, "GPU memory is shared as files");
        }
        let regions = Regions::new(&gpu, self.node(), SCRATCH, PACKETS)?;
        try_peers(&mut self, &gpu, &regions)?;
        let mail = Mail::new(&gpu, self.node())?;
        let control = gpu.host_memory(CONTROL_BYTES).map_err(driver_error)?;
        let node: Arc<Node> = self.node().clone();
        let far = Far::new(&mut self, &gpu, (&regions.scratch, mail.memory()))?;
        let layout = Layout::new(node.hosts());
        let proxy = far.as_ref().map(|far| far.proxy().clone());
        let watch = Watch::start(node, control, proxy)
            .map_err(|e| argument("on_gpu", "thread", format!("cannot be started: {e}")))?;
        Ok(CudaCommunicator {
            candidates: choose::candidates(&layout, regions.multicast()),
            far,
            layout,
            host: self,
            gpu,
            regions,
            watch,
            kernels: Vec::new(),
            recent: Recent::default(),
            windows: Windows::default(),
            mail,
            letters: Vec::new(),
            sequence: 0,
            most_blocks,
        })
    }
}

/// How this rank wants to hand GPU memory to its peers: `$WARPMESH_CUDA_HANDLES`, `files` (the default) or `fabric`.
fn wanted_handles() -> Result<Handles, Error> {
    const VARIABLE: &str = "WARPMESH_CUDA_HANDLES";
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(Handles::default()) };
    let text = text.to_string_lossy();
    text.parse().map_err(|problem| argument("on_gpu", VARIABLE, format!("is wrong: {problem}")))
}

/// Compares the GPUs of all ranks; how many thread blocks a kernel may have, so that those of all ranks on a GPU fit at once.
fn agree(host: &mut Communicator, gpu: &Gpu) -> Result<usize, Error> {
    let uuid = gpu.context().uuid();
    let uuid = uuid.map_err(|e| driver_error(CudaError::new("cuDeviceGetUuid", e.0)))?;
    let mut mine = [0; 24];
    mine[..4].copy_from_slice(&gpu.architecture().to_le_bytes());
    mine[4..8].copy_from_slice(&gpu.multiprocessors().to_le_bytes());
    mine[8..].copy_from_slice(&uuid.bytes.map(|byte| byte as u8));
    let all = host.bootstrap_mut().all_gather(&mine)?;
    let mut fewest = usize::MAX;
    for (peer, theirs) in all.iter().enumerate() {
        let word = |at: usize| theirs.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
        let word = |at| word(at).map(u32::from_le_bytes);
        let (Some(architecture), Some(multiprocessors)) = (word(0), word(4)) else {
            return Err(argument("on_gpu", "peer", format!("rank {peer} sent no description")));
        };
        if architecture != gpu.architecture() {
            let problem = format!(
                "of rank {peer} is sm_{architecture}, this rank's is sm_{}",
                gpu.architecture()
            );
            return Err(argument("on_gpu", "GPU", problem));
        }
        let sharing = all.iter().filter(|other| other.get(8..) == theirs.get(8..)).count();
        // Kernels are compiled so that two blocks fit a multiprocessor; one leaves room for others' kernels.
        fewest = fewest.min(multiprocessors as usize / sharing);
    }
    Ok(fewest.clamp(1, MAX_BLOCKS / 2))
}

/// What rank `from` writes to rank `to`.
fn trial(from: usize, to: usize) -> Vec<u8> {
    let mut word = (from as u64) << 32 | (to as u64 + 1);
    let next = || {
        // An xorshift generator: every bit of every lane takes both values.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    std::iter::repeat_with(next).take(TRIAL / 8).flatten().collect()
}

/// Copies data from this rank's GPU to every peer's of this host, and looks what has come.
fn try_peers(host: &mut Communicator, gpu: &Gpu, regions: &Regions) -> Result<(), Error> {
    let (rank, world) = (host.rank(), host.world());
    let at = |owner: usize, from: usize| {
        regions.scratch.address(owner) + (from * TRIAL % (regions.scratch.len() / 2)) as u64
    };
    let own = regions.scratch.address(rank) + regions.scratch.len() as u64 / 2;
    let node = host.node().clone();
    let others = || (0..world).filter(|peer| *peer != rank && node.is_near(*peer));
    let sent = others().try_for_each(|to| {
        upload(own, &trial(rank, to))?;
        // SAFETY: both ranges lie in scratch memory that is mapped here, and no kernel runs yet.
        let code = unsafe { sys::cuMemcpyDtoD_v2(at(to, rank), own, TRIAL) };
        CudaError::check(code, "cuMemcpyDtoD between GPUs")
    });
    let synchronised = gpu.context().synchronize();
    host.bootstrap_mut().barrier()?;
    let mut verdict = vec![u8::from(sent.is_err() || synchronised.is_err())];
    let mut seen = vec![0; TRIAL];
    for from in others() {
        // SAFETY: `seen` is as long as what is copied, which lies in this rank's scratch memory.
        let code = unsafe { sys::cuMemcpyDtoH_v2(seen.as_mut_ptr().cast(), at(rank, from), TRIAL) };
        let same = code == sys::CUresult::CUDA_SUCCESS && seen == trial(from, rank);
        verdict.push(if same { 0 } else { from as u8 + 1 });
    }
    // SAFETY: the same memory, which begins as zeros.
    let _ = unsafe { sys::cuMemsetD8_v2(regions.scratch.address(rank), 0, regions.scratch.len()) };
    let _ = gpu.context().synchronize();
    let all = host.bootstrap_mut().all_gather(&verdict)?;
    sent.map_err(driver_error)?;
    judge(&all)
}

/// What the ranks have found.
fn judge(all: &[Vec<u8>]) -> Result<(), Error> {
    for (rank, verdict) in all.iter().enumerate() {
        let problem = match verdict.as_slice() {
            [0, rest @ ..] => match rest.iter().find(|from| **from != 0) {
                None => continue,
                Some(from) => format!(
                    "of rank {rank} gets wrong data from that of rank {}: peer access is broken, often by an IOMMU or PCIe ACS",
                    from - 1
                ),
            },
            _ => format!("of rank {rank} cannot write to those of its peers"),
        };
        return Err(argument("on_gpu", "GPU", problem));
    }
    Ok(())
}

fn upload(to: u64, data: &[u8]) -> Result<(), CudaError> {
    // SAFETY: the caller's range of device memory is as long as the data.
    let code = unsafe { sys::cuMemcpyHtoD_v2(to, data.as_ptr().cast(), data.len()) };
    CudaError::check(code, "cuMemcpyHtoD")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_data_names_both_ranks() {
        assert!(judge(&[vec![0, 0], vec![0, 0]]).is_ok());
        let text = judge(&[vec![0, 0], vec![0, 1]]).unwrap_err().to_string();
        assert!(text.contains("of rank 1 gets wrong data from that of rank 0"), "{text}");
        let text = judge(&[vec![0, 0], vec![1, 0]]).unwrap_err().to_string();
        assert!(text.contains("of rank 1 cannot write"), "{text}");
        assert_ne!(trial(0, 1), trial(1, 0));
    }
}

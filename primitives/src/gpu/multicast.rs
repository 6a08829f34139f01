//! Multicast memory: one address behind which the memory of all GPUs lies, and an NVSwitch that adds up what is loaded from it
//! and hands on to all what is stored to it.
//!
//! ```text
//!   rank 0                            every other rank
//!   create the object                                            vote
//!   give its file or name             take it                    exchange
//!   add the own GPU                   add the own GPU            vote: all GPUs are in it
//!   bind the own memory, map          bind the own memory, map   vote: all memory is behind it
//! ```
//!
//! Each step ends with a vote, so the ranks take the same number of exchanges and go on together or not at all: a driver that
//! refuses on one of them is no error, the memory is then without multicast on all.

use cudarc::driver::sys::{
    self, CUdevice_attribute_enum as Attribute, CUmulticastGranularity_flags, CUmulticastObjectProp,
};

use super::handles::{Given, Handles};
use super::memory::{Mapped, Physical};
use super::vote::{Refusal, ballot, tell, vote};
use super::{CudaError, Gpu};
use crate::error::Error;
use crate::node::Node;

/// A mapping of the memory of all ranks at one address. Dropped before the memory that is behind it.
#[derive(Debug)]
pub(super) struct Multicast {
    mapped: Mapped,
    _member: Member,
}

impl Multicast {
    /// Puts this rank's memory behind an address, together with that of all ranks. Every rank calls it after
    /// [`granularity`] has given them one. None if a driver refuses.
    pub(super) fn new(
        gpu: &Gpu,
        node: &Node,
        memory: &Physical,
        granularity: usize,
    ) -> Result<Option<Self>, Error> {
        let create = || {
            let object = create(node.world(), memory.len(), gpu.handles)?;
            let given = gpu.handles.give(&object)?;
            Ok((object, given))
        };
        let made = if node.rank() == 0 { create().map(Some) } else { Ok(None) };
        let Some(made) = all_did(node, "creates a multicast object", made)? else {
            return Ok(None);
        };
        let (object, given) = made.unzip();
        // What the others give says nothing: an exchange is one of all with all.
        let given = match (given, gpu.handles) {
            (Some(given), _) => given,
            (None, Handles::Files) => Given::File(ballot(&[])?),
            (None, Handles::Fabric) => Given::Name([0; _]),
        };
        let theirs = given.exchange(node)?.swap_remove(0);
        let object = match (object, theirs) {
            (Some(own), _) => Ok(own),
            (None, Some(theirs)) => theirs.import(memory.len()),
            (None, None) => Err(CudaError::NoDriver),
        };
        let joined = object.and_then(|object| join(gpu, object));
        let Some(object) = all_did(node, "adds its GPU to a multicast object", joined)? else {
            return Ok(None);
        };
        let mapped = Member::bind(gpu, object, memory).and_then(|member| {
            let mapped = Mapped::new(gpu, &member.object, granularity)?;
            Ok(Self { mapped, _member: member })
        });
        all_did(node, "maps multicast memory", mapped)
    }

    pub(super) fn address(&self) -> u64 {
        self.mapped.base()
    }
}

/// The multiple of which multicast memory is made, if the ranks can have any: every rank has a GPU of its own, and every GPU and
/// its driver know multicast. Every rank calls it.
pub(super) fn granularity(gpu: &Gpu, node: &Node) -> Result<Option<usize>, Error> {
    let mine = describe(gpu, node.world()).unwrap_or_else(|error| {
        tracing::debug!(%error, "no multicast memory");
        [0; 24]
    });
    let all = tell(node, mine)?;
    let of = |told: &[u8; 24]| {
        let mut word = [0; 8];
        word.copy_from_slice(&told[..8]);
        u64::from_le_bytes(word) as usize
    };
    let shared = (1..all.len()).any(|n| all[..n].iter().any(|other| other[8..] == all[n][8..]));
    let alone = all.len() < 2;
    if alone || shared || all.iter().any(|told| of(told) == 0) {
        tracing::debug!(shared, alone, "the ranks have no multicast memory");
        return Ok(None);
    }
    Ok(all.iter().map(of).max())
}

/// This GPU's granularity, then which GPU it is.
fn describe(gpu: &Gpu, world: usize) -> Result<[u8; 24], CudaError> {
    let id = gpu.context.uuid().map_err(CudaError::of("cuDeviceGetUuid"))?;
    let mut description = [0; 24];
    let granularity = own_granularity(gpu, world)? as u64;
    description[..8].copy_from_slice(&granularity.to_le_bytes());
    description[8..].copy_from_slice(&id.bytes.map(|byte| byte as u8));
    Ok(description)
}

/// This GPU's; 0 if it knows no multicast.
fn own_granularity(gpu: &Gpu, world: usize) -> Result<usize, CudaError> {
    // Drivers that do not know the attribute lack the functions, too.
    let supported = gpu.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED);
    if !supported.is_ok_and(|supported| supported != 0) {
        return Ok(0);
    }
    let mut granularity = 0;
    // The least, not the recommended one, which may be hundreds of megabytes.
    let option = CUmulticastGranularity_flags::CU_MULTICAST_GRANULARITY_MINIMUM;
    let properties = properties(world, gpu.granularity, gpu.handles);
    // SAFETY: both pointers are to locals.
    let code = unsafe { sys::cuMulticastGetGranularity(&mut granularity, &properties, option) };
    CudaError::check(code, "cuMulticastGetGranularity")?;
    Ok(granularity)
}

fn properties(world: usize, len: usize, handles: Handles) -> CUmulticastObjectProp {
    let handle_types = u64::from(handles.types().0);
    CUmulticastObjectProp {
        numDevices: world as u32,
        size: len,
        handleTypes: handle_types,
        flags: 0,
    }
}

fn create(world: usize, len: usize, handles: Handles) -> Result<Physical, CudaError> {
    let mut handle = 0;
    let properties = properties(world, len, handles);
    // SAFETY: both pointers are to locals.
    let code = unsafe { sys::cuMulticastCreate(&mut handle, &properties) };
    CudaError::check(code, "cuMulticastCreate")?;
    Ok(Physical::of_handle(handle, len))
}

fn join(gpu: &Gpu, object: Physical) -> Result<Physical, CudaError> {
    // SAFETY: the object is alive; the device is the context's.
    let code = unsafe { sys::cuMulticastAddDevice(object.handle(), gpu.context.cu_device()) };
    CudaError::check(code, "cuMulticastAddDevice")?;
    Ok(object)
}

/// A multicast object with this rank's memory behind it.
#[derive(Debug)]
struct Member {
    object: Physical,
    device: sys::CUdevice,
}

impl Member {
    /// All devices are in the object: else this would wait for them, without end.
    fn bind(gpu: &Gpu, object: Physical, memory: &Physical) -> Result<Self, CudaError> {
        // SAFETY: both handles are alive and of this length; the memory is of a device that was added.
        let code = unsafe {
            sys::cuMulticastBindMem(object.handle(), 0, memory.handle(), 0, memory.len(), 0)
        };
        CudaError::check(code, "cuMulticastBindMem")?;
        Ok(Self { object, device: gpu.context.cu_device() })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let (handle, len) = (self.object.handle(), self.object.len());
        // SAFETY: bound in `bind`, unbound once; who drops it has waited for the kernels that use it, and the mapping is gone.
        let _ = unsafe { sys::cuMulticastUnbind(handle, self.device, 0, len) };
    }
}

/// What a step gave, if it went well on all ranks.
fn all_did<T>(
    node: &Node,
    what: &'static str,
    step: Result<T, CudaError>,
) -> Result<Option<T>, Error> {
    Ok(match vote(node, step)? {
        Ok(given) => Some(given),
        Err(Refusal { rank, error }) => {
            let error = error.map(|error| error.to_string());
            tracing::debug!(rank, error, "no multicast memory: a rank that {what} fails");
            None
        }
    })
}

//! A compiled kernel, loaded, with its parameters made ready.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUfunction, CUmodule, CUresult, CUstream};
use warpmesh_kernels::Compiled;
use warpmesh_primitives::gpu::{CudaError, PeerMemory, driver_version};

use super::emit::{Kernel, Operand, THREADS, Tables, Word, Words};
use super::far::Far;
use super::geometry::{Bounds, LINE_BYTES};
use super::params::{Call, Layout};
use super::regions::Regions;
use crate::error::{Error, argument};
use crate::plan::{Buffer, Shape, Whose};

/// A module of the driver's.
pub(crate) struct Module {
    context: Arc<CudaContext>,
    module: CUmodule,
}

// SAFETY: a handle that the driver accepts from any thread.
unsafe impl Send for Module {}

impl Module {
    /// Loads code for the architecture, or where the driver does not take it, PTX.
    pub(crate) fn load(context: &Arc<CudaContext>, compiled: &Compiled) -> Result<Self, CudaError> {
        let ptx = CString::new(compiled.ptx.clone()).unwrap_or_default();
        let mut module = std::ptr::null_mut();
        let mut code = CUresult::CUDA_ERROR_INVALID_IMAGE;
        let images = [compiled.cubin.as_slice(), ptx.to_bytes_with_nul()];
        for image in images.into_iter().filter(|image| image.len() > 1) {
            // SAFETY: an ELF file or text that ends with NUL, alive during the call.
            code = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
            if code == CUresult::CUDA_SUCCESS {
                return Ok(Self { context: context.clone(), module });
            }
        }
        Err(explain_refusal(CudaError::new("cuModuleLoadData", code)))
    }

    pub(crate) fn function(&self, name: &str) -> Result<CUfunction, CudaError> {
        let name = CString::new(name).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name is alive.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr()) };
        CudaError::check(code, "cuModuleGetFunction")?;
        Ok(function)
    }
}

/// What it means that the driver does not take a kernel.
#[cold]
fn explain_refusal(error: CudaError) -> CudaError {
    let codes = [
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
        CUresult::CUDA_ERROR_INVALID_IMAGE,
    ];
    let versions = warpmesh_kernels::nvrtc_version().ok().zip(driver_version().ok());
    match versions {
        Some((nvrtc, driver)) if codes.into_iter().any(|code| error.is(code)) && driver < nvrtc => {
            let what = "its NVRTC compiled the kernel; install that driver, or the NVRTC of this one's CUDA";
            CudaError::DriverTooOld { driver, needed: nvrtc / 1000 * 1000, what }
        }
        _ => error,
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded in `load`, unloaded once; who drops it has waited for its kernels.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// An operand's address, as far as it is known before a call.
#[derive(Clone, Copy, Debug)]
enum Address {
    /// A block of this rank's input or output.
    Input {
        block: usize,
    },
    Output {
        block: usize,
    },
    /// The same of all ranks at once.
    InputOfAll {
        block: usize,
    },
    OutputOfAll {
        block: usize,
    },
    /// A block of a buffer that its rank announces.
    Announced {
        block: usize,
    },
    /// A slot, which does not depend on the call.
    Fixed,
}

/// The memory that kernels are told of, of this host's ranks and of others.
pub(crate) struct Memory<'a> {
    pub(crate) regions: &'a Regions,
    pub(crate) far: Option<&'a Far>,
}

impl Memory<'_> {
    /// What a kernel's table has for a word, where slots have so many bytes.
    fn word(&self, word: &Word, slot: usize) -> u64 {
        match word.what {
            Words::Awaited => self.regions.awaited(word.number, word.peer),
            Words::Signalled => self.regions.signalled(word.number, word.peer),
            Words::Slot => (word.number * slot) as u64,
            // Only plans for several hosts have such words.
            Words::Counters | Words::Port | Words::SilentPort | Words::Greeting => {
                self.far.map_or(0, |far| far.word(word))
            }
        }
    }
}

/// A kernel with the parameter that its next launch gets.
pub(crate) struct Loaded {
    _module: Module,
    function: CUfunction,
    parameter: Vec<u64>,
    layout: Layout,
    addresses: Vec<Address>,
    pub(crate) bounds: Bounds,
    /// Ranks of other hosts that it exchanges with.
    pub(crate) away: Vec<usize>,
}

// SAFETY: a handle that the driver accepts from any thread.
unsafe impl Send for Loaded {}

/// What a call adds to a kernel's parameter.
pub(crate) struct Buffers {
    pub(crate) input: u64,
    pub(crate) output: u64,
    /// The multicast addresses of these on all ranks; 0 if they have none.
    pub(crate) input_of_all: u64,
    pub(crate) output_of_all: u64,
    /// Bytes of a block.
    pub(crate) block: u64,
}

impl Loaded {
    pub(crate) fn new(
        context: &Arc<CudaContext>,
        kernel: &Kernel,
        compiled: &Compiled,
        (shape, partial): (&Shape, bool),
        memory: &Memory<'_>,
        (rank, away): (usize, Vec<usize>),
    ) -> Result<Self, Error> {
        let regions = memory.regions;
        let module = Module::load(context, compiled).map_err(warpmesh_primitives::Error::from)?;
        let function = module.function(&kernel.name).map_err(warpmesh_primitives::Error::from)?;
        let slot = |bytes: usize, slots: usize| {
            (slots > 0).then(|| bytes / 2 / slots / LINE_BYTES * LINE_BYTES)
        };
        let bounds = Bounds {
            parts: shape.parts,
            partial,
            scratch_slot: slot(regions.scratch.len(), shape.scratch),
            packet_slot: slot(regions.packets.len(), shape.packets),
        };
        let layout = Layout::of(&kernel.tables);
        let mut this = Self {
            _module: module,
            function,
            parameter: vec![0; layout.size / 8],
            layout,
            addresses: Vec::new(),
            bounds,
            away,
        };
        this.fill(&kernel.tables, memory, rank)?;
        Ok(this)
    }

    /// Fills in what does not depend on a call.
    fn fill(&mut self, tables: &Tables, memory: &Memory<'_>, rank: usize) -> Result<(), Error> {
        let Layout { places, words, boards, parts, peers, announced, .. } = self.layout;
        let regions = memory.regions;
        for (n, operand) in tables.places.iter().enumerate() {
            let (address, fixed) = self.resolve(operand, regions)?;
            self.addresses.push(address);
            self.word(places, n, fixed);
        }
        for (n, word) in tables.words.iter().enumerate() {
            let slot = self.bounds.scratch_slot.unwrap_or(0);
            self.word(words, n, memory.word(word, slot));
        }
        for (n, peer) in tables.boards.iter().enumerate() {
            self.word(boards, n, regions.board(*peer));
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.parameter);
        for (n, part) in tables.parts.iter().enumerate() {
            bytes[parts + 4 * n..][..4].copy_from_slice(&part.to_le_bytes());
        }
        let words = tables.words.iter().map(|word| word.peer);
        let places = tables.places.iter().map(|operand| operand.place.peer(rank));
        for (to, operand) in bytes[announced..].iter_mut().zip(&tables.places) {
            let how = match (operand.announced, operand.place.buffer) {
                (true, Buffer::Input) => 1,
                (true, Buffer::Output) => 2,
                _ => 0,
            };
            *to = how | operand.meeting << 2;
        }
        for (to, peer) in bytes[peers..].iter_mut().zip(words.chain(places)) {
            *to = peer as u8;
        }
        Ok(())
    }

    fn resolve(&self, operand: &Operand, regions: &Regions) -> Result<(Address, u64), Error> {
        let Operand { place, announced, .. } = operand;
        let block = place.index;
        let slot = |memory: &PeerMemory, bytes: Option<usize>| {
            let base = match place.whose {
                Whose::Rank(owner) => Some(memory.address(owner)),
                Whose::Group => memory.multicast(),
            };
            let problem = "goes through a switch, which these ranks' memory does not";
            let base = base.ok_or_else(|| argument("call", "plan", problem))?;
            Ok((Address::Fixed, base + (block * bytes.unwrap_or(0)) as u64))
        };
        let user = match (place.buffer, place.whose) {
            (Buffer::Scratch, _) => return slot(&regions.scratch, self.bounds.scratch_slot),
            (Buffer::Packets, _) => return slot(&regions.packets, self.bounds.packet_slot),
            (Buffer::Input, Whose::Group) => Address::InputOfAll { block },
            (Buffer::Output, Whose::Group) => Address::OutputOfAll { block },
            _ if *announced => Address::Announced { block },
            (Buffer::Input, _) => Address::Input { block },
            (Buffer::Output, _) => Address::Output { block },
        };
        Ok((user, 0))
    }

    fn word(&mut self, at: usize, n: usize, value: u64) {
        self.parameter[at / 8 + n] = value;
    }

    /// Launches the kernel on a stream.
    ///
    /// # Safety
    /// The buffers are device memory, good for what the plan does with them, until the kernel has ended; the stream is of the
    /// kernel's context.
    pub(crate) unsafe fn launch(
        &mut self,
        call: &Call,
        buffers: &Buffers,
        blocks: usize,
        stream: CUstream,
    ) -> Result<(), CudaError> {
        self.parameter[..size_of::<Call>() / 8]
            .copy_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(call)));
        let places = self.layout.places / 8;
        for (to, address) in self.parameter[places..].iter_mut().zip(&self.addresses) {
            let block = |block: usize| block as u64 * buffers.block;
            *to = match *address {
                Address::Fixed => continue,
                Address::Input { block: n } => buffers.input + block(n),
                Address::Output { block: n } => buffers.output + block(n),
                Address::InputOfAll { block: n } => buffers.input_of_all + block(n),
                Address::OutputOfAll { block: n } => buffers.output_of_all + block(n),
                Address::Announced { block: n } => block(n),
            };
        }
        // SAFETY: the kernel has one parameter of this size; the rest is the caller's promise.
        unsafe { launch(self.function, self.parameter.as_mut_ptr().cast(), blocks, stream) }
    }
}

/// Launches a kernel that has one parameter, which the driver copies.
///
/// # Safety
/// The parameter is what the kernel takes, and what it names is good until the kernel has ended; the stream is of its context.
pub(crate) unsafe fn launch(
    function: CUfunction,
    parameter: *mut c_void,
    blocks: usize,
    stream: CUstream,
) -> Result<(), CudaError> {
    let mut arguments = [parameter];
    // SAFETY: the caller's.
    let code = unsafe {
        sys::cuLaunchKernel(
            function,
            blocks as u32,
            1,
            1,
            THREADS as u32,
            1,
            1,
            0,
            stream,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    };
    CudaError::check(code, "cuLaunchKernel")
}

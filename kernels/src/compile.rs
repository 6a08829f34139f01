//! NVRTC, with the device library at hand.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};

use crate::HEADERS;

/// A kernel's text, compiled for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// PTX text, which any driver that is new enough compiles further.
    pub ptx: Vec<u8>,
    /// Code of the architecture itself, which loads at once.
    pub cubin: Vec<u8>,
}

/// Why a kernel could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// NVRTC is not there.
    #[error(
        "NVRTC, the CUDA run-time compiler, is not found: install libnvrtc.so (the CUDA toolkit, or \
         `pip install nvidia-cuda-nvrtc`) and name its folder in LD_LIBRARY_PATH"
    )]
    NoNvrtc,
    /// NVRTC refuses the text.
    #[error("NVRTC cannot compile '{name}' for sm_{arch}: {code}\n{log}")]
    Refused {
        /// The kernel.
        name: String,
        /// The architecture, 90 for sm_90.
        arch: u32,
        /// NVRTC's code.
        code: String,
        /// What it printed.
        log: String,
    },
}

/// NVRTC's version, as (major, minor).
pub(crate) fn version() -> Result<(i32, i32), CompileError> {
    // SAFETY: looks for the library, nothing more. If it was linked, the program has it.
    #[cfg(not(feature = "dynamic-linking"))]
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::NoNvrtc);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both point to locals.
    let code = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    if code == nvrtcResult::NVRTC_SUCCESS { Ok((major, minor)) } else { Err(CompileError::NoNvrtc) }
}

/// The options for an architecture. No contraction: a product and a sum are rounded one after the other,
/// as on the host.
pub(crate) fn options(arch: u32) -> [String; 3] {
    [format!("--gpu-architecture=sm_{arch}"), "-std=c++17".into(), "-fmad=false".into()]
}

/// Compiles CUDA C++ that may include the device library, for an architecture (90 for sm_90). Takes some
/// hundred milliseconds.
///
/// # Errors
/// NVRTC is not found, or refuses the text.
pub fn compile(source: &str, name: &str, arch: u32) -> Result<Compiled, CompileError> {
    version()?;
    // NVRTC 13 crashes when two threads compile for the first time at once.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = Program::new(source, name).map_err(|code| refused(name, arch, code, ""))?;
    let options = options(arch).map(|option| CString::new(option).expect("options have no NUL"));
    let pointers = options.each_ref().map(|option| option.as_ptr());
    // SAFETY: the program is alive, and the pointers are to strings that are.
    let code =
        unsafe { sys::nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr()) };
    if code != nvrtcResult::NVRTC_SUCCESS {
        return Err(refused(name, arch, code, &program.log()));
    }
    let get = |size: Size, get: Get| {
        program.get(size, get).map_err(|code| refused(name, arch, code, &program.log()))
    };
    let mut ptx = get(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)?;
    ptx.truncate(ptx.iter().position(|byte| *byte == 0).unwrap_or(ptx.len()));
    Ok(Compiled { ptx, cubin: get(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)? })
}

fn refused(name: &str, arch: u32, code: nvrtcResult, log: &str) -> CompileError {
    let (name, log) = (name.to_owned(), log.trim().to_owned());
    CompileError::Refused { name, arch, code: format!("{code:?}"), log }
}

type Size = unsafe fn(nvrtcProgram, *mut usize) -> nvrtcResult;
type Get = unsafe fn(nvrtcProgram, *mut c_char) -> nvrtcResult;

struct Program(nvrtcProgram);

impl Program {
    fn new(source: &str, name: &str) -> Result<Self, nvrtcResult> {
        let text =
            |text: &str| CString::new(text).map_err(|_| nvrtcResult::NVRTC_ERROR_INVALID_INPUT);
        let (source, name) = (text(source)?, text(&format!("{name}.cu"))?);
        let mut texts = Vec::new();
        let mut names = Vec::new();
        for (header, body) in HEADERS {
            // Headers name each other without the folder.
            for name in [format!("warpmesh/{header}"), header.to_owned()] {
                names.push(text(&name)?);
                texts.push(text(body)?);
            }
        }
        let pointers = |all: &[CString]| all.iter().map(|one| one.as_ptr()).collect::<Vec<_>>();
        let (texts, names) = (pointers(&texts), pointers(&names));
        let mut program = null_mut();
        // SAFETY: all pointers are to strings that live until the call returns, which copies them.
        let code = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                texts.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if code == nvrtcResult::NVRTC_SUCCESS { Ok(Self(program)) } else { Err(code) }
    }

    fn get(&self, size: Size, get: Get) -> Result<Vec<u8>, nvrtcResult> {
        let mut len = 0;
        // SAFETY: the program is alive; `len` is a local.
        let code = unsafe { size(self.0, &mut len) };
        if code != nvrtcResult::NVRTC_SUCCESS {
            return Err(code);
        }
        let mut bytes = vec![0_u8; len];
        // SAFETY: there is room for what it said.
        let code = unsafe { get(self.0, bytes.as_mut_ptr().cast()) };
        if code == nvrtcResult::NVRTC_SUCCESS { Ok(bytes) } else { Err(code) }
    }

    fn log(&self) -> String {
        let log = self.get(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog);
        let log = log.unwrap_or_default();
        let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned());
        text.unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, destroyed once.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

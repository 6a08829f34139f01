//! libnccl.so.2, found when the program runs.
//!
//! cudarc's bindings look for `libnccl.so`, which comes with NCCL's development files only, panic at a missing function,
//! and take result codes for a Rust enum, which newer versions have more of. So the few functions are looked up here.

use std::ffi::{CStr, c_char, c_int, c_void};

use anyhow::Result;
use cudarc::driver::sys::CUstream;
use libloading::Library;

use crate::perf::exit::{Exit, Failed};

/// `ncclComm_t`.
pub type Comm = *mut c_void;

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [u8; 128]);

type Send = *const c_void;
type Recv = *mut c_void;

/// Declares the table of functions: those that every NCCL since 2.11 has, and newer ones.
macro_rules! functions {
    (
        always { $($name:ident = $symbol:literal ( $($type:ty),* );)* }
        newer { $($new:ident = $new_symbol:literal ( $($new_type:ty),* );)* }
    ) => {
        /// NCCL's functions.
        pub struct Nccl {
            $(pub $name: unsafe extern "C" fn($($type),*) -> c_int,)*
            $(pub $new: Option<unsafe extern "C" fn($($new_type),*) -> c_int>,)*
            error_string: unsafe extern "C" fn(c_int) -> *const c_char,
            last_error: Option<unsafe extern "C" fn(Comm) -> *const c_char>,
            _library: Library,
        }

        impl Nccl {
            fn from_library(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of nccl.h, and the functions live as long as the library, which is kept
                // beside them.
                unsafe {
                    Ok(Self {
                        $($name: *library.get($symbol)?,)*
                        $($new: library.get($new_symbol).ok().map(|function| *function),)*
                        error_string: *library.get(b"ncclGetErrorString")?,
                        last_error: library.get(b"ncclGetLastError").ok().map(|f| *f),
                        _library: library,
                    })
                }
            }
        }
    };
}

functions! {
    always {
        get_version = b"ncclGetVersion"(*mut c_int);
        unique_id = b"ncclGetUniqueId"(*mut UniqueId);
        init_rank = b"ncclCommInitRank"(*mut Comm, c_int, UniqueId, c_int);
        destroy = b"ncclCommDestroy"(Comm);
        abort = b"ncclCommAbort"(Comm);
        async_error = b"ncclCommGetAsyncError"(Comm, *mut c_int);
        group_start = b"ncclGroupStart"();
        group_end = b"ncclGroupEnd"();
        send = b"ncclSend"(Send, usize, c_int, c_int, Comm, CUstream);
        recv = b"ncclRecv"(Recv, usize, c_int, c_int, Comm, CUstream);
        all_reduce = b"ncclAllReduce"(Send, Recv, usize, c_int, c_int, Comm, CUstream);
        reduce = b"ncclReduce"(Send, Recv, usize, c_int, c_int, c_int, Comm, CUstream);
        reduce_scatter = b"ncclReduceScatter"(Send, Recv, usize, c_int, c_int, Comm, CUstream);
        all_gather = b"ncclAllGather"(Send, Recv, usize, c_int, Comm, CUstream);
        broadcast = b"ncclBroadcast"(Send, Recv, usize, c_int, c_int, Comm, CUstream);
        pre_mul_sum = b"ncclRedOpCreatePreMulSum"(*mut c_int, *mut c_void, c_int, c_int, Comm);
        drop_op = b"ncclRedOpDestroy"(c_int, Comm);
    }
    newer {
        // 2.19
        allocate = b"ncclMemAlloc"(*mut *mut c_void, usize);
        free = b"ncclMemFree"(*mut c_void);
        register = b"ncclCommRegister"(Comm, *mut c_void, usize, *mut *mut c_void);
        deregister = b"ncclCommDeregister"(Comm, *mut c_void);
        // 2.27
        register_window = b"ncclCommWindowRegister"(Comm, *mut c_void, usize, *mut *mut c_void, c_int);
        deregister_window = b"ncclCommWindowDeregister"(Comm, *mut c_void);
        // 2.28
        all_to_all = b"ncclAlltoAll"(Send, Recv, usize, c_int, Comm, CUstream);
        gather = b"ncclGather"(Send, Recv, usize, c_int, c_int, Comm, CUstream);
        scatter = b"ncclScatter"(Send, Recv, usize, c_int, c_int, Comm, CUstream);
    }
}

/// Results that are no errors: done, and on its way.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

const MISSING: &str = "\
--backend nccl: cannot load libnccl.so.2 from the system or LD_LIBRARY_PATH. Install one of
  apt-get install libnccl2                   from NVIDIA's package repository
  pip install --target DIR nvidia-nccl-cu13  (-cu12 for drivers before 580), then
  export LD_LIBRARY_PATH=DIR/nvidia/nccl/lib
The loader says";

const TOO_OLD: &str = "\
--backend nccl: this libnccl.so.2 is older than 2.11; install a newer one, and see that it comes first in
LD_LIBRARY_PATH. The loader says";

impl Nccl {
    /// Looks for the library.
    pub fn load() -> Result<Self> {
        // SAFETY: NCCL's initialisation does nothing but read its environment.
        let library = unsafe { Library::new("libnccl.so.2") };
        let library = library.map_err(|error| {
            let error = anyhow::Error::from(error);
            Failed::because(Exit::NotImplemented, format!("{MISSING}: {error:#}"))
        })?;
        Self::from_library(library).map_err(|error| {
            let error = anyhow::Error::from(error);
            Failed::because(Exit::NotImplemented, format!("{TOO_OLD}: {error:#}"))
        })
    }

    /// Its version, as a number.
    pub fn version(&self) -> Result<c_int> {
        let mut code = 0;
        // SAFETY: the pointer is to a local.
        self.check("ncclGetVersion", unsafe { (self.get_version)(&mut code) }, None)?;
        Ok(code)
    }

    /// An error for a result that is one, with what NCCL says about it.
    pub fn check(&self, what: &str, result: c_int, comm: Option<Comm>) -> Result<()> {
        if result == SUCCESS || result == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: takes any number; gives a constant.
        let name = unsafe { text((self.error_string)(result)) };
        let more = self.last_error.map(|last| {
            // SAFETY: takes null as well; gives text that lives until the next error.
            unsafe { text(last(comm.unwrap_or(std::ptr::null_mut()))) }
        });
        let more = more.filter(|more| !more.is_empty()).map_or(String::new(), |m| format!(": {m}"));
        // Newer versions say so themselves.
        let told = name.contains("NCCL_DEBUG");
        let hint = if told { "" } else { "; set NCCL_DEBUG=WARN to know more" };
        Err(Failed::because(Exit::Library, format!("{what}: {name} ({result}){more}{hint}")))
    }
}

/// # Safety
/// `from` is null, or a text that lives now.
unsafe fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().trim().to_owned()
}

/// As in "2.30.7". Since 2.9 the number is major times 10000, minor times 100, patch.
pub fn version_text(code: c_int) -> String {
    format!("{}.{}.{}", code / 10_000, code % 10_000 / 100, code % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_readable() {
        assert_eq!(
            (version_text(23_007), version_text(21_903)),
            ("2.30.7".into(), "2.19.3".into())
        );
    }

    /// Where there is an NCCL, its functions are found; where there is none, it is said what to install.
    #[test]
    fn a_missing_library_is_told_with_what_to_install() {
        match Nccl::load() {
            Ok(nccl) => assert!(nccl.version().unwrap() >= 21_100),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("libnccl2") && text.contains("nvidia-nccl-cu13"), "{text}");
                assert_eq!(Failed::exit_of(&error), Exit::NotImplemented);
            }
        }
    }

    #[test]
    fn a_library_without_the_functions_is_refused() {
        // SAFETY: the C library is loaded already.
        let other = unsafe { Library::new("libc.so.6") }.unwrap();
        assert!(Nccl::from_library(other).is_err());
    }
}

//! Which host symbol stands for which kernel or variable, and the modules they are loaded into.
//!
//! nvcc gives every kernel a host function and every `__device__` variable a host variable; a program registers their addresses
//! with the names in the PTX before `main`. A program's PTX is loaded when a device first needs something of it.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard};

use crate::context;
use crate::driver;
use crate::error::{Error, Res};
use crate::fatbin::{Images, Malformed, Wrapper};

/// Where a variable lies on a device.
#[derive(Clone, Copy)]
pub struct Variable {
    pub address: u64,
    pub bytes: usize,
}

#[derive(Default)]
struct Registry {
    /// By handle; handles begin at 1.
    binaries: HashMap<usize, Result<Images, Malformed>>,
    last: usize,
    /// By host address.
    kernels: HashMap<usize, Symbol>,
    variables: HashMap<usize, Symbol>,
    /// By handle and device. A failure stays.
    modules: HashMap<(usize, c_int), Res<usize>>,
    functions: HashMap<(usize, c_int), usize>,
}

struct Symbol {
    binary: usize,
    name: CString,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

/// Runs with the registry. The driver never calls back into it.
fn with<T>(f: impl FnOnce(&mut Registry) -> T) -> T {
    let mut registry: MutexGuard<_> = REGISTRY.lock().unwrap_or_else(|e| e.into_inner());
    f(registry.get_or_insert_default())
}

/// The kernel of a host function, on the current device.
pub fn function(host: *const c_void) -> Res<usize> {
    let device = context::ensure()?;
    with(|r| r.function(host as usize, device))
}

/// The variable that a host variable stands for, on the current device.
pub fn variable(host: *const c_void) -> Res<Variable> {
    let device = context::ensure()?;
    with(|r| r.variable(host as usize, device))
}

/// True if a kernel has this host function.
pub fn is_kernel(host: *const c_void) -> bool {
    with(|r| r.kernels.contains_key(&(host as usize)))
}

/// Forgets what was loaded on a device whose context was destroyed.
pub fn forget(device: c_int) {
    with(|r| {
        r.modules.retain(|key, _| key.1 != device);
        r.functions.retain(|key, _| key.1 != device);
    });
}

impl Registry {
    fn function(&mut self, host: usize, device: c_int) -> Res<usize> {
        if let Some(&f) = self.functions.get(&(host, device)) {
            return Ok(f);
        }
        let binary = self.kernels.get(&host).ok_or(Error::INVALID_DEVICE_FUNCTION)?.binary;
        let module = self.module(binary, device)?;
        let mut function = 0;
        // SAFETY: a handle of the driver, a C string, a local.
        unsafe {
            driver::cuModuleGetFunction(&mut function, module, self.kernels[&host].name.as_ptr())
        }
        .map_err(|_| Error::INVALID_DEVICE_FUNCTION)?;
        self.functions.insert((host, device), function);
        Ok(function)
    }

    fn variable(&mut self, host: usize, device: c_int) -> Res<Variable> {
        let binary = self.variables.get(&host).ok_or(Error::INVALID_SYMBOL)?.binary;
        let module = self.module(binary, device)?;
        let mut v = Variable { address: 0, bytes: 0 };
        let name = self.variables[&host].name.as_ptr();
        // SAFETY: a handle of the driver, a C string, two locals.
        unsafe { driver::cuModuleGetGlobal_v2(&mut v.address, &mut v.bytes, module, name) }
            .map_err(|_| Error::INVALID_SYMBOL)?;
        Ok(v)
    }

    fn module(&mut self, binary: usize, device: c_int) -> Res<usize> {
        if let Some(known) = self.modules.get(&(binary, device)) {
            return *known;
        }
        let loaded = self.load(binary, device);
        self.modules.insert((binary, device), loaded);
        loaded
    }

    fn load(&self, binary: usize, device: c_int) -> Res<usize> {
        let images = self.binaries.get(&binary).ok_or(Error::INVALID_KERNEL_IMAGE)?;
        let refused = |e: &Malformed| {
            eprintln!(
                "libcudart (vgpu): the device code of {} is unreadable: {e}",
                self.what(binary)
            );
            Error::INVALID_KERNEL_IMAGE
        };
        let images = images.as_ref().map_err(refused)?;
        let arch = arch(device)?;
        let Some(ptx) = images.best(arch) else {
            self.explain(binary, images, arch);
            return Err(Error::NO_KERNEL_IMAGE_FOR_DEVICE);
        };
        let text = CString::new(ptx.text().map_err(|e| refused(&e))?);
        let text = text.map_err(|_| refused(&Malformed("the PTX has a zero byte inside")))?;
        load_outside_capture(&text)
    }

    /// A name that tells the reader which of several binaries it is.
    fn what(&self, binary: usize) -> String {
        let symbols = self.kernels.values().chain(self.variables.values());
        let name = symbols.filter(|s| s.binary == binary).map(|s| s.name.to_string_lossy()).min();
        name.map_or("a program".into(), |n| format!("the program with {n}"))
    }

    fn explain(&self, binary: usize, images: &Images, arch: u32) {
        let list =
            |archs: Vec<u32>| archs.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let has = match (&images.ptx[..], &images.machine_code[..]) {
            ([], []) => "it has no device code".to_string(),
            ([], code) => format!("it has machine code only, for {}", list(code.to_vec())),
            (ptx, _) => format!("its PTX is for {}", list(ptx.iter().map(|p| p.arch).collect())),
        };
        eprintln!(
            "libcudart (vgpu): {} has no PTX that compute capability {arch} can run: {has}. \
             Compile it without -rdc=true and with -gencode arch=compute_{arch},code=compute_{arch}",
            self.what(binary)
        );
    }
}

/// Loads a module. A stream that captures must not notice: the program did not ask for it, but launched a kernel.
fn load_outside_capture(text: &CStr) -> Res<usize> {
    const RELAXED: c_uint = 2;
    let (mut mode, mut module) = (RELAXED, 0);
    // SAFETY: locals and a C string.
    unsafe {
        let exchanged = driver::cuThreadExchangeStreamCaptureMode(&mut mode).is_ok();
        let loaded = driver::cuModuleLoadData(&mut module, text.as_ptr().cast());
        if exchanged {
            driver::cuThreadExchangeStreamCaptureMode(&mut mode)?;
        }
        loaded?;
    }
    Ok(module)
}

/// Compute capability times ten.
fn arch(device: c_int) -> Res<u32> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes to locals. 75 and 76 are COMPUTE_CAPABILITY_MAJOR and _MINOR.
    unsafe {
        driver::cuDeviceGetAttribute(&mut major, 75, device)?;
        driver::cuDeviceGetAttribute(&mut minor, 76, device)?;
    }
    Ok((major * 10 + minor) as u32)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __cudaRegisterFatBinary(wrapper: *const Wrapper) -> usize {
    // SAFETY: nvcc's generated code passes its own wrapper, a constant of the program.
    let images = unsafe { Images::of(wrapper) };
    with(|r| {
        r.last += 1;
        r.binaries.insert(r.last, images);
        r.last
    })
}

#[unsafe(no_mangle)]
extern "C" fn __cudaRegisterFatBinaryEnd(_binary: usize) {}

#[unsafe(no_mangle)]
extern "C" fn __cudaUnregisterFatBinary(binary: usize) {
    let modules: Vec<usize> = with(|r| {
        let gone: Vec<usize> =
            r.kernels.iter().filter(|k| k.1.binary == binary).map(|k| *k.0).collect();
        r.functions.retain(|key, _| !gone.contains(&key.0));
        r.kernels.retain(|_, s| s.binary != binary);
        r.variables.retain(|_, s| s.binary != binary);
        r.binaries.remove(&binary);
        r.modules.extract_if(|key, _| key.0 == binary).filter_map(|(_, m)| m.ok()).collect()
    });
    for module in modules {
        // SAFETY: takes no pointers. There is nobody to tell of a failure: the program is ending or unloading a library.
        let _ = unsafe { driver::cuModuleUnload(module) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __cudaRegisterFunction(
    binary: usize,
    host: *const c_void,
    _device: *const c_char,
    name: *const c_char,
    _threads: c_int,
    _tid: *const c_void,
    _bid: *const c_void,
    _block: *const c_void,
    _grid: *const c_void,
    _warp: *const c_int,
) {
    // SAFETY: nvcc's generated code passes C strings.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    with(|r| {
        // The same template in two files has one host function: the last one registered wins.
        r.functions.retain(|key, _| key.0 != host as usize);
        r.kernels.insert(host as usize, Symbol { binary, name });
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __cudaRegisterVar(
    binary: usize,
    host: *const c_void,
    _address: *const c_char,
    name: *const c_char,
    _ext: c_int,
    _bytes: usize,
    _constant: c_int,
    _global: c_int,
) {
    // SAFETY: nvcc's generated code passes C strings.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    with(|r| r.variables.insert(host as usize, Symbol { binary, name }));
}

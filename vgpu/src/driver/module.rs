//! Modules, libraries and their functions.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::entry::{api, current, driver, offer, put, slice};
use super::image;
use super::result::{Error, Res};
use super::{Driver, Handles};
use crate::isa::decode::Kernel;
use crate::machine::BLOCK_SHARED;
use crate::module::LoadedModule;

/// Shared memory that a kernel may use without asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// A module in a context.
pub(super) struct Module {
    pub loaded: Arc<LoadedModule>,
    pub device: u32,
}

/// A library: loaded once, for all devices.
pub(super) struct Library {
    loaded: Arc<LoadedModule>,
    /// Handles that were given out: kernels by name, modules by device, functions by both.
    kernels: Mutex<HashMap<String, usize>>,
    modules: Mutex<HashMap<u32, usize>>,
    functions: Mutex<HashMap<(u32, usize), usize>>,
}

impl Library {
    /// Its module on a device.
    fn module(&self, d: &Driver, device: u32) -> usize {
        let new = || d.modules.add(Arc::new(Module { loaded: self.loaded.clone(), device }));
        *self.modules.lock().unwrap().entry(device).or_insert_with(new)
    }
}

/// A kernel of a module on a device (`CUfunction`), or of a library on the current one (`CUkernel`).
pub(super) struct Function {
    pub loaded: Arc<LoadedModule>,
    pub device: Option<u32>,
    pub name: CString,
    pub owner: usize,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES` if it was set, else [`NOT_ASKED`].
    max_dynamic: AtomicU32,
}

const NOT_ASKED: u32 = u32::MAX;

impl Function {
    /// The decoded kernel, on the function's device or on that of the current context.
    pub fn kernel(&self, d: &Driver, current: u32) -> Res<(Arc<Kernel>, u32)> {
        let device = self.device.unwrap_or(current);
        let name = self.name.to_string_lossy();
        let kernel = self.loaded.kernel(d.machine.space(), device, &name).map_err(|e| {
            eprintln!("vgpu: {e}");
            Error::InvalidPtx
        })?;
        Ok((kernel, device))
    }

    /// The most dynamic shared memory that a launch may ask for.
    pub fn dynamic_limit(&self, kernel: &Kernel) -> u32 {
        match self.max_dynamic.load(Ordering::Relaxed) {
            NOT_ASKED => DEFAULT_SHARED.saturating_sub(kernel.shared_bytes),
            asked => asked,
        }
    }
}

/// Where a program wants the compiler's messages (`CUjit_option`).
struct Log {
    text: *mut c_char,
    size: usize,
}

impl Log {
    unsafe fn find(n: c_uint, options: *const c_uint, values: *const *mut c_void) -> Res<Log> {
        const BUFFER: c_uint = 5;
        const SIZE: c_uint = 6;
        // SAFETY: the caller passes `n` options and as many values.
        let (options, values) =
            unsafe { (slice(options, n as usize)?, slice(values, n as usize)?) };
        let value = |which| options.iter().position(|o| *o == which).map(|k| values[k]);
        let text = value(BUFFER).unwrap_or(std::ptr::null_mut()).cast();
        Ok(Log { text, size: value(SIZE).map_or(0, |v| v as usize) })
    }

    unsafe fn write(&self, message: &str) {
        if !self.text.is_null() && self.size > 0 {
            let n = message.len().min(self.size - 1);
            // SAFETY: the caller's buffer has `size` bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(message.as_ptr().cast(), self.text, n);
                self.text.add(n).write(0);
            }
        }
    }
}

/// Whether PTX is of a toolkit with a larger major number than the driver: PTX 8 came with CUDA 12, PTX 9 with CUDA 13.
fn is_newer(ptx: &str, driver: u64) -> bool {
    let version = ptx.lines().find_map(|line| line.trim().strip_prefix(".version "));
    let major = version.and_then(|text| text.split('.').next()?.trim().parse::<u64>().ok());
    major.is_some_and(|major| major >= 8 && major + 4 > driver / 1000)
}

/// An image for a device of this architecture.
unsafe fn load(d: &Driver, arch: u32, image: *const c_void, log: &Log) -> Res<Arc<LoadedModule>> {
    d.prohibit_in_capture()?;
    // SAFETY: the caller's promise is that of the driver API.
    let text = unsafe { image::ptx(image, arch)? };
    if is_newer(&text, d.version) {
        return Err(Error::UnsupportedPtxVersion);
    }
    let loaded = d.machine.load(&text).map_err(|e| {
        eprintln!("vgpu: {e}");
        // SAFETY: as above.
        unsafe { log.write(&e.to_string()) };
        Error::InvalidPtx
    })?;
    Ok(Arc::new(loaded))
}

unsafe fn load_module(module: *mut usize, image: *const c_void, log: &Log) -> Res<()> {
    let (d, c) = current()?;
    // SAFETY: as above.
    unsafe {
        let loaded = load(d, d.arch(c.device), image, log)?;
        put(module, d.modules.add(Arc::new(Module { loaded, device: c.device })))
    }
}

unsafe fn load_library(library: *mut usize, image: *const c_void, log: &Log) -> Res<()> {
    let d = driver()?;
    // SAFETY: as above.
    unsafe {
        // A library is for all devices.
        let arch = d.archs.iter().copied().min().unwrap_or_default();
        let loaded = load(d, arch, image, log)?;
        let (kernels, modules, functions) = Default::default();
        let new = Library { loaded, kernels, modules, functions };
        put(library, d.libraries.add(Arc::new(new)))
    }
}

/// A file's bytes with a zero behind them.
unsafe fn read(name: *const c_char) -> Res<Vec<u8>> {
    if name.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller passes a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let mut bytes = std::fs::read(&*name).map_err(|_| Error::FileNotFound)?;
    bytes.push(0);
    Ok(bytes)
}

unsafe fn text<'a>(name: *const c_char) -> Res<&'a CStr> {
    if name.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller passes a C string.
    Ok(unsafe { CStr::from_ptr(name) })
}

fn function(
    table: &Handles<Function>,
    loaded: &Arc<LoadedModule>,
    device: Option<u32>,
    owner: usize,
    name: &CStr,
) -> Res<usize> {
    let known = loaded.module().functions.get(&*name.to_string_lossy());
    if !known.is_some_and(|f| f.is_kernel) {
        return Err(Error::NotFound);
    }
    let max_dynamic = AtomicU32::new(NOT_ASKED);
    let (loaded, name) = (loaded.clone(), name.to_owned());
    Ok(table.add(Arc::new(Function { loaded, device, name, owner, max_dynamic })))
}

fn attribute(d: &Driver, f: &Function, device: u32, which: c_uint) -> Res<c_int> {
    let (kernel, _) = f.kernel(d, device)?;
    Ok(match which {
        0 => kernel.max_threads.unwrap_or(1024).min(1024) as c_int,
        1 => kernel.shared_bytes as c_int,
        2 => 0,
        3 => kernel.local_bytes as c_int,
        // A kernel's registers cannot be known without ptxas; what every kernel can have is said.
        4 => 32,
        5 | 6 => d.arch(device) as c_int,
        7 => 0,
        8 => f.dynamic_limit(&kernel) as c_int,
        9 => -1,
        10..=15 => 0,
        _ => return Err(Error::InvalidValue),
    })
}

fn set_attribute(d: &Driver, f: &Function, device: u32, which: c_uint, value: c_int) -> Res<()> {
    let (kernel, _) = f.kernel(d, device)?;
    match (which, u32::try_from(value)) {
        (8, Ok(bytes)) if bytes <= BLOCK_SHARED.saturating_sub(kernel.shared_bytes) => {
            f.max_dynamic.store(bytes, Ordering::Relaxed);
            Ok(())
        }
        // Hints.
        (9, _) if (-1..=100).contains(&value) => Ok(()),
        (14, Ok(0 | 1)) | (15, Ok(0..=2)) => Ok(()),
        _ => Err(Error::InvalidValue),
    }
}

unsafe fn global(
    at: *mut u64,
    bytes: *mut usize,
    loaded: &LoadedModule,
    device: u32,
    name: *const c_char,
) -> Res<()> {
    let d = driver()?;
    // SAFETY: the caller's pointers are as the driver API asks.
    unsafe {
        let name = text(name)?.to_string_lossy();
        let (address, size) =
            loaded.global(d.machine.space(), device, &name).ok_or(Error::NotFound)?;
        offer(at, address);
        offer(bytes, size as usize);
    }
    Ok(())
}

api! {
    cuModuleLoadData(module: *mut usize, image: *const c_void) {
        load_module(module, image, &Log { text: std::ptr::null_mut(), size: 0 })
    }
    cuModuleLoadDataEx(module: *mut usize, image: *const c_void, n: c_uint, options: *const c_uint, values: *const *mut c_void) {
        load_module(module, image, &Log::find(n, options, values)?)
    }
    cuModuleLoadFatBinary(module: *mut usize, image: *const c_void) {
        load_module(module, image, &Log { text: std::ptr::null_mut(), size: 0 })
    }
    cuModuleLoad(module: *mut usize, file: *const c_char) {
        let bytes = read(file)?;
        load_module(module, bytes.as_ptr().cast(), &Log { text: std::ptr::null_mut(), size: 0 })
    }
    cuModuleUnload(module: usize) {
        let d = driver()?;
        d.modules.remove(module)?;
        d.functions.retain(|f| f.owner != module);
        Ok(())
    }
    cuModuleGetLoadingMode(mode: *mut c_uint) {
        driver()?;
        put(mode, 2) // lazy: kernels are decoded when they are launched
    }
    cuModuleGetFunction(f: *mut usize, module: usize, name: *const c_char) {
        let (d, _) = current()?;
        let m = d.modules.get(module)?;
        put(f, function(&d.functions, &m.loaded, Some(m.device), module, text(name)?)?)
    }
    cuModuleGetGlobal_v2(at: *mut u64, bytes: *mut usize, module: usize, name: *const c_char) {
        let m = current()?.0.modules.get(module)?;
        global(at, bytes, &m.loaded, m.device, name)
    }
    cuLibraryLoadData(library: *mut usize, code: *const c_void, options: *const c_uint, values: *const *mut c_void, n: c_uint, _library_options: *const c_uint, _library_values: *const *mut c_void, _library_n: c_uint) {
        load_library(library, code, &Log::find(n, options, values)?)
    }
    cuLibraryLoadFromFile(library: *mut usize, file: *const c_char, options: *const c_uint, values: *const *mut c_void, n: c_uint, _library_options: *const c_uint, _library_values: *const *mut c_void, _library_n: c_uint) {
        let bytes = read(file)?;
        load_library(library, bytes.as_ptr().cast(), &Log::find(n, options, values)?)
    }
    cuLibraryUnload(library: usize) {
        let d = driver()?;
        let gone = d.libraries.remove(library)?;
        let modules = gone.modules.lock().unwrap();
        modules.values().for_each(|m| drop(d.modules.remove(*m)));
        d.functions.retain(|f| f.owner != library && !modules.values().any(|m| *m == f.owner));
        Ok(())
    }
    cuLibraryGetKernel(kernel: *mut usize, library: usize, name: *const c_char) {
        let d = driver()?;
        let (lib, name) = (d.libraries.get(library)?, text(name)?);
        let mut known = lib.kernels.lock().unwrap();
        let key = name.to_string_lossy().into_owned();
        if !known.contains_key(&key) {
            known.insert(key.clone(), function(&d.functions, &lib.loaded, None, library, name)?);
        }
        put(kernel, known[&key])
    }
    cuLibraryGetKernelCount(count: *mut c_uint, library: usize) {
        let lib = driver()?.libraries.get(library)?;
        put(count, lib.loaded.module().functions.values().filter(|f| f.is_kernel).count() as c_uint)
    }
    cuLibraryGetModule(module: *mut usize, library: usize) {
        let (d, c) = current()?;
        put(module, d.libraries.get(library)?.module(d, c.device))
    }
    cuLibraryGetGlobal(at: *mut u64, bytes: *mut usize, library: usize, name: *const c_char) {
        let (d, c) = current()?;
        global(at, bytes, &d.libraries.get(library)?.loaded, c.device, name)
    }
    cuKernelGetFunction(f: *mut usize, kernel: usize) {
        let (d, c) = current()?;
        let k = d.functions.get(kernel)?;
        if k.device.is_some() {
            return Err(Error::InvalidHandle);
        }
        let owner = d.libraries.get(k.owner)?;
        let module = owner.module(d, c.device);
        let mut known = owner.functions.lock().unwrap();
        if let Some(old) = known.get(&(c.device, kernel)) {
            return put(f, *old);
        }
        let new = function(&d.functions, &k.loaded, Some(c.device), module, &k.name)?;
        known.insert((c.device, kernel), new);
        put(f, new)
    }
    cuKernelGetLibrary(library: *mut usize, kernel: usize) {
        let k = driver()?.functions.get(kernel)?;
        if k.device.is_some() { Err(Error::InvalidHandle) } else { put(library, k.owner) }
    }
    cuKernelGetName(name: *mut *const c_char, kernel: usize) {
        put(name, driver()?.functions.get(kernel)?.name.as_ptr())
    }
    cuKernelGetAttribute(value: *mut c_int, which: c_uint, kernel: usize, device: c_int) {
        let d = driver()?;
        let device = d.primary(device)?.device;
        put(value, attribute(d, &*d.functions.get(kernel)?, device, which)?)
    }
    cuKernelSetAttribute(which: c_uint, value: c_int, kernel: usize, device: c_int) {
        let d = driver()?;
        let device = d.primary(device)?.device;
        set_attribute(d, &*d.functions.get(kernel)?, device, which, value)
    }
    cuFuncGetAttribute(value: *mut c_int, which: c_uint, f: usize) {
        let (d, c) = current()?;
        put(value, attribute(d, &*d.functions.get(f)?, c.device, which)?)
    }
    cuFuncSetAttribute(f: usize, which: c_uint, value: c_int) {
        let (d, c) = current()?;
        set_attribute(d, &*d.functions.get(f)?, c.device, which, value)
    }
    cuFuncSetCacheConfig(f: usize, config: c_uint) {
        current()?.0.functions.get(f)?;
        if config <= 3 { Ok(()) } else { Err(Error::InvalidValue) }
    }
    cuFuncGetName(name: *mut *const c_char, f: usize) {
        // The name lives as long as the handle.
        put(name, driver()?.functions.get(f)?.name.as_ptr())
    }
    cuFuncGetModule(module: *mut usize, f: usize) {
        let f = driver()?.functions.get(f)?;
        if f.device.is_some() { put(module, f.owner) } else { Err(Error::InvalidHandle) }
    }
    cuFuncGetParamInfo(f: usize, index: usize, offset: *mut usize, size: *mut usize) {
        let (d, c) = current()?;
        let (kernel, _) = d.functions.get(f)?.kernel(d, c.device)?;
        let &(at, bytes) = kernel.params.get(index).ok_or(Error::InvalidValue)?;
        offer(size, bytes as usize);
        put(offset, at as usize)
    }
    cuFuncLoad(f: usize) {
        let (d, c) = current()?;
        d.functions.get(f)?.kernel(d, c.device).map(drop)
    }
}

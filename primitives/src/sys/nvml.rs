//! NVML's six functions that say how GPUs are linked, found when the program runs.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;

use libloading::Library;

/// `nvmlDevice_t`.
#[derive(Clone, Copy)]
pub(crate) struct Device(*mut c_void);

/// Why NVML is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvmlError {
    /// There is no such library.
    #[error("it is not installed")]
    Absent,
    /// It lacks a function.
    #[error("it is not NVML, or an old one: {0}; update the driver")]
    Function(libloading::Error),
    /// It returned an error.
    #[error("{call} returned {code}; see whether nvidia-smi works")]
    Call { call: &'static str, code: c_int },
}

/// `nvmlPciInfo_t`, version 3.
#[derive(Clone, Copy)]
#[repr(C)]
struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_sub_system_id: c_uint,
    bus_id: [c_char; 32],
}

const _: () = assert!(size_of::<PciInfo>() == 68 && std::mem::offset_of!(PciInfo, bus_id) == 36);

type Init = unsafe extern "C" fn() -> c_int;
type ByBusId = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
type LinkState = unsafe extern "C" fn(*mut c_void, c_uint, *mut c_uint) -> c_int;
type LinkEnd = unsafe extern "C" fn(*mut c_void, c_uint, *mut PciInfo) -> c_int;
type Capability = unsafe extern "C" fn(*mut c_void, *mut c_int, *mut c_int) -> c_int;

/// NVML, initialised; shut down when dropped.
pub(crate) struct Nvml {
    shutdown: Init,
    by_bus_id: ByBusId,
    link_state: LinkState,
    link_end: LinkEnd,
    capability: Capability,
    _library: Library,
}

impl Nvml {
    /// Loads and initialises it.
    pub(crate) fn open(library: &Path) -> Result<Self, NvmlError> {
        // SAFETY: NVML's initialisers touch nothing of this process but their own.
        let library = unsafe { Library::new(library) }.map_err(|_| NvmlError::Absent)?;
        // SAFETY: the types are those of nvml.h, and the functions live as long as the library, which is kept beside
        // them.
        let (init, nvml) = unsafe {
            let init: Init = *library.get(b"nvmlInit_v2").map_err(NvmlError::Function)?;
            let nvml = Self {
                shutdown: *library.get(b"nvmlShutdown").map_err(NvmlError::Function)?,
                by_bus_id: *library
                    .get(b"nvmlDeviceGetHandleByPciBusId_v2")
                    .map_err(NvmlError::Function)?,
                link_state: *library
                    .get(b"nvmlDeviceGetNvLinkState")
                    .map_err(NvmlError::Function)?,
                link_end: *library
                    .get(b"nvmlDeviceGetNvLinkRemotePciInfo_v2")
                    .map_err(NvmlError::Function)?,
                capability: *library
                    .get(b"nvmlDeviceGetCudaComputeCapability")
                    .map_err(NvmlError::Function)?,
                _library: library,
            };
            (init, std::mem::ManuallyDrop::new(nvml))
        };
        // SAFETY: it may be called at any time, from any thread.
        match unsafe { init() } {
            0 => Ok(std::mem::ManuallyDrop::into_inner(nvml)),
            // The library stays loaded: what was not initialised is not shut down.
            code => Err(NvmlError::Call { call: "nvmlInit_v2", code }),
        }
    }

    /// The GPU at a PCI bus id.
    pub(crate) fn device(&self, bus: &str) -> Result<Device, NvmlError> {
        let call = "nvmlDeviceGetHandleByPciBusId_v2";
        let bus = CString::new(bus).map_err(|_| NvmlError::Call { call, code: -1 })?;
        let mut device = std::ptr::null_mut();
        // SAFETY: `bus` ends with a zero and both outlive the call.
        match unsafe { (self.by_bus_id)(bus.as_ptr(), &mut device) } {
            0 => Ok(Device(device)),
            code => Err(NvmlError::Call { call, code }),
        }
    }

    /// Major and minor; `None` where it does not say.
    pub(crate) fn compute_capability(&self, device: Device) -> Option<(u32, u32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: `device` came from this library, which is still initialised; the numbers outlive the call.
        let code = unsafe { (self.capability)(device.0, &mut major, &mut minor) };
        let number = |n: c_int| u32::try_from(n).ok().filter(|n| *n < 100);
        if code == 0 { Some((number(major)?, number(minor)?)) } else { None }
    }

    /// The bus id at the other end of an NVLink; `None` where there is no such link, or it is down.
    pub(crate) fn remote_end(&self, device: Device, link: u32) -> Option<String> {
        let mut active = 0;
        // SAFETY: as above.
        let code = unsafe { (self.link_state)(device.0, link, &mut active) };
        if code != 0 || active != 1 {
            return None;
        }
        let mut info: PciInfo = PciInfo {
            bus_id_legacy: [0; 16],
            domain: 0,
            bus: 0,
            device: 0,
            pci_device_id: 0,
            pci_sub_system_id: 0,
            bus_id: [0; 32],
        };
        // SAFETY: as above; the struct is the version 3 that this function fills.
        let code = unsafe { (self.link_end)(device.0, link, &mut info) };
        let text = info.bus_id.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0);
        if code == 0 { String::from_utf8(text.collect()).ok() } else { None }
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: it was initialised once in `open`, and no handle is used after this.
        unsafe { (self.shutdown)() };
    }
}

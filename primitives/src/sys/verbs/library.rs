//! Looking for the library, and its functions.

use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::sync::Arc;

use libloading::{Library, Symbol};

use super::types::{
    AsyncEvent, Context, Cq, Device, DeviceAttr, Gid, GidEntry, Mr, Pd, PortAttr, Qp, QpAttr,
    QpInitAttr,
};

/// Where the library is, instead of where the system's loader finds it.
const OVERRIDE: &str = "WARPMESH_IBVERBS";

/// The library's name in its present ABI, which has been the same since 2005.
const NAME: &str = "libibverbs.so.1";

/// The library is not there, or is not one.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{library} cannot be loaded ({cause}); install libibverbs with the drivers of the NICs (Debian and Ubuntu: \
     libibverbs1 and ibverbs-providers; Fedora and RHEL: libibverbs), or say where it is by {OVERRIDE}"
)]
pub(crate) struct Unavailable {
    /// What was looked for.
    pub library: String,
    /// The loader's answer.
    pub cause: String,
}

/// Declares [`Functions`]: the library's functions under their names without `ibv_`.
macro_rules! functions {
    (always { $($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)* }
     maybe { $($maybe:ident = $maybe_symbol:literal: fn($($maybe_argument:ty),*) -> $maybe_result:ty;)* }) => {
        /// What the library exports. Each is called as its manual page says; Option: younger than the ABI.
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub $maybe: Option<unsafe extern "C" fn($($maybe_argument),*) -> $maybe_result>,)*
        }

        impl Functions {
            /// # Safety
            /// `library` is libibverbs, whose symbols have these types, and outlives what is returned.
            unsafe fn find(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the types are those of the header.
                    $($name: *unsafe { library.get($symbol) }?,)*
                    // SAFETY: as above.
                    $($maybe: unsafe { library.get($maybe_symbol) }.ok().map(|symbol: Symbol<'_, _>| *symbol),)*
                })
            }
        }
    };
}

functions! {
    always {
        get_device_list = "ibv_get_device_list": fn(*mut c_int) -> *mut *mut Device;
        free_device_list = "ibv_free_device_list": fn(*mut *mut Device);
        open_device = "ibv_open_device": fn(*mut Device) -> *mut Context;
        close_device = "ibv_close_device": fn(*mut Context) -> c_int;
        query_device = "ibv_query_device": fn(*mut Context, *mut DeviceAttr) -> c_int;
        query_port = "ibv_query_port": fn(*mut Context, u8, *mut PortAttr) -> c_int;
        query_gid = "ibv_query_gid": fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
        alloc_pd = "ibv_alloc_pd": fn(*mut Context) -> *mut Pd;
        dealloc_pd = "ibv_dealloc_pd": fn(*mut Pd) -> c_int;
        reg_mr = "ibv_reg_mr": fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
        dereg_mr = "ibv_dereg_mr": fn(*mut Mr) -> c_int;
        create_cq = "ibv_create_cq": fn(*mut Context, c_int, *mut c_void, *mut c_void, c_int) -> *mut Cq;
        destroy_cq = "ibv_destroy_cq": fn(*mut Cq) -> c_int;
        create_qp = "ibv_create_qp": fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
        modify_qp = "ibv_modify_qp": fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
        destroy_qp = "ibv_destroy_qp": fn(*mut Qp) -> c_int;
        get_async_event = "ibv_get_async_event": fn(*mut Context, *mut AsyncEvent) -> c_int;
        ack_async_event = "ibv_ack_async_event": fn(*mut AsyncEvent);
        wc_status_str = "ibv_wc_status_str": fn(c_int) -> *const c_char;
        event_type_str = "ibv_event_type_str": fn(c_int) -> *const c_char;
    }
    maybe {
        query_gid_table = "_ibv_query_gid_table": fn(*mut Context, *mut GidEntry, usize, u32, usize) -> isize;
        reg_dmabuf_mr = "ibv_reg_dmabuf_mr": fn(*mut Pd, u64, usize, u64, c_int, c_int) -> *mut Mr;
    }
}

/// The loaded library. Cheap to clone; it stays loaded as long as a clone lives.
#[derive(Clone)]
pub(crate) struct Verbs {
    inner: Arc<Inner>,
}

struct Inner {
    functions: Functions,
    /// Declared behind the functions, which are part of it.
    _library: Library,
}

impl std::fmt::Debug for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verbs")
    }
}

impl Verbs {
    /// Loads the library: `WARPMESH_IBVERBS` if it is set, else what the loader finds.
    pub(crate) fn load() -> Result<Self, Unavailable> {
        Self::load_from(std::env::var_os(OVERRIDE).unwrap_or_else(|| NAME.into()))
    }

    fn load_from(path: OsString) -> Result<Self, Unavailable> {
        let unavailable = |error: libloading::Error| Unavailable {
            library: path.to_string_lossy().into_owned(),
            cause: in_full(&error),
        };
        // SAFETY: libibverbs' initialisers look for drivers and nothing else. A path of the user's own is the user's word.
        let library = unsafe { Library::new(&path) }.map_err(unavailable)?;
        // SAFETY: it has the name, or the user says that it is one; both are kept together.
        let functions = unsafe { Functions::find(&library) }.map_err(unavailable)?;
        Ok(Self { inner: Arc::new(Inner { functions, _library: library }) })
    }

    pub(super) fn call(&self) -> &Functions {
        &self.inner.functions
    }

    /// What a completion's status means, in the library's words.
    pub(crate) fn status(&self, status: c_int) -> String {
        // SAFETY: a constant string for every number, "unknown" for those that it does not know.
        unsafe { text((self.call().wc_status_str)(status)) }
    }

    /// What an event is, in the library's words.
    pub(super) fn event(&self, event: c_int) -> String {
        // SAFETY: as above.
        unsafe { text((self.call().event_type_str)(event)) }
    }
}

/// # Safety
/// A null pointer, or a string that stays as it is during the call.
pub(super) unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: by the contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// An error with its sources: the loader's words are in the last.
fn in_full(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", in_full(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_install() {
        let error = Verbs::load_from("/nowhere/libibverbs.so.1".into()).unwrap_err().to_string();
        assert!(error.contains("/nowhere/libibverbs.so.1") && error.contains("ibverbs-providers"));
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn another_library_is_refused() {
        let error = Verbs::load_from("libc.so.6".into()).unwrap_err().to_string();
        assert!(error.contains("ibv_get_device_list"), "{error}");
    }
}

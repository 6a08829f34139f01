//! NVRTC, as the library uses it: the headers go in by name, and nothing else is on any include path.

use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

use cudarc::nvrtc::sys;

/// Makes the loader know the library by its name: cudarc opens `libnvrtc.so.13`.
fn load() -> Option<()> {
    static LOADED: OnceLock<()> = OnceLock::new();
    let folder = super::toolkit()?.join("lib");
    LOADED.get_or_init(|| {
        for name in ["libnvrtc-builtins.so.13.5", "libnvrtc.so.13"] {
            // SAFETY: NVIDIA's libraries have no constructors that need anything of us.
            let library = unsafe { libloading::Library::new(folder.join(name)) };
            std::mem::forget(library.unwrap_or_else(|e| panic!("{name}: {e}")));
        }
    });
    Some(())
}

/// PTX of a source that includes `warpmesh/...`. `None` without NVRTC.
pub fn compile(source: &str, arch: u32) -> Option<Result<String, String>> {
    compile_with(
        &warpmesh_kernels::HEADERS.map(|(name, text)| (name, text.to_owned())),
        source,
        arch,
    )
}

/// The same with other headers.
pub fn compile_with(
    headers: &[(&str, String)],
    source: &str,
    arch: u32,
) -> Option<Result<String, String>> {
    load()?;
    let text = |s: &str| CString::new(s).unwrap();
    // Each under two names: as users and as the headers themselves include it.
    let both = |(name, _): &(&str, String)| [format!("warpmesh/{name}"), (*name).to_owned()];
    let names: Vec<CString> = headers.iter().flat_map(both).map(|s| text(&s)).collect();
    let texts: Vec<CString> =
        headers.iter().flat_map(|(_, body)| [text(body), text(body)]).collect();
    let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
    let options = [text(&format!("--gpu-architecture=compute_{arch}")), text("--std=c++17")];
    let (source, name) = (text(source), text("test.cu"));
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings live until the program is destroyed, and the counts are those of the arrays.
    unsafe {
        let made = sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            name.as_ptr(),
            names.len() as i32,
            pointers(&texts).as_ptr(),
            pointers(&names).as_ptr(),
        );
        assert_eq!(made, sys::nvrtcResult::NVRTC_SUCCESS);
        let options = pointers(&options);
        let done = sys::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let result = if done == sys::nvrtcResult::NVRTC_SUCCESS {
            Ok(read(program, sys::nvrtcGetPTXSize, sys::nvrtcGetPTX))
        } else {
            Err(read(program, sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog))
        };
        sys::nvrtcDestroyProgram(&mut program);
        Some(result)
    }
}

/// The headers with one text in one of them replaced.
pub fn mutated(file: &str, from: &str, to: &str) -> Vec<(&'static str, String)> {
    let change = |(name, text): (&'static str, &str)| {
        if name != file {
            return (name, text.to_owned());
        }
        assert_eq!(text.matches(from).count(), 1, "{file}: {from}");
        (name, text.replace(from, to))
    };
    warpmesh_kernels::HEADERS.map(change).to_vec()
}

type Size = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
type Text = unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult;

/// # Safety
/// The program is a live one, and the two functions belong together.
unsafe fn read(program: sys::nvrtcProgram, size: Size, text: Text) -> String {
    let mut bytes = 0;
    // SAFETY: the caller's; the buffer has the size that is asked for.
    unsafe {
        size(program, &mut bytes);
        let mut buffer = vec![0u8; bytes + 1];
        text(program, buffer.as_mut_ptr().cast());
        CStr::from_ptr(buffer.as_ptr().cast()).to_string_lossy().into_owned()
    }
}

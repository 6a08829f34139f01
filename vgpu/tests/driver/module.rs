//! Modules and libraries, from text and from what nvcc makes.

use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null_mut;

use cudarc::driver::sys::*;

use crate::host::*;

fn load(image: &[u8]) -> Result<CUmodule, CUresult> {
    let mut m = null_mut();
    // SAFETY: the image is whole, and a text ends with a zero.
    match unsafe { cuModuleLoadData(&mut m, image.as_ptr().cast()) } {
        CUresult::CUDA_SUCCESS => Ok(m),
        e => Err(e),
    }
}

#[test]
fn vgpu_a_library_works_on_every_device() {
    on(2, || {
        use_device(0);
        let text = CString::new(PTX).unwrap();
        let library: CUlibrary = make!(cuLibraryLoadData(
            text.as_ptr().cast(),
            null_mut(),
            null_mut(),
            0,
            null_mut(),
            null_mut(),
            0
        ));
        let kernel: CUkernel = make!(cuLibraryGetKernel(library, c"store".as_ptr()));
        let again: CUkernel = make!(cuLibraryGetKernel(library, c"store".as_ptr()));
        assert_eq!(kernel, again);
        for device in 0..2 {
            use_device(device);
            let at = alloc(4);
            // By its function on this device, and by the kernel as it is.
            let f: CUfunction = make!(cuKernelGetFunction(kernel));
            assert_eq!(start(f, null_mut(), &[at, 4]), CUresult::CUDA_SUCCESS);
            ok!(cuCtxSynchronize());
            assert_eq!(word(at), 4);
            assert_eq!(start(kernel.cast(), null_mut(), &[at, 5]), CUresult::CUDA_SUCCESS);
            ok!(cuCtxSynchronize());
            assert_eq!(word(at), 5);
            let (mut global, mut size) = (0, 0);
            ok!(cuLibraryGetGlobal(&mut global, &mut size, library, c"word".as_ptr()));
            assert_eq!((word(global), size), (77, 4));
        }
        let mut none = null_mut();
        err!(CUDA_ERROR_NOT_FOUND, cuLibraryGetKernel(&mut none, library, c"no".as_ptr()));
        ok!(cuLibraryUnload(library));
        err!(CUDA_ERROR_INVALID_HANDLE, cuLibraryGetKernel(&mut none, library, c"store".as_ptr()));
        assert_eq!(start(kernel.cast(), null_mut(), &[0, 0]), CUresult::CUDA_ERROR_INVALID_HANDLE);
    });
}

#[test]
fn vgpu_wrong_images_say_what_is_wrong() {
    let text = run(&[], || {
        use_device(0);
        assert_eq!(load(b"nonsense\0"), Err(CUresult::CUDA_ERROR_INVALID_IMAGE));
        assert_eq!(load(b"\x7fELF\x02\x01\0"), Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
        let wrong =
            b".version 8.0\n.target sm_90\n.address_size 64\n.entry k() { frob.u32 %r1; }\0";
        let mut log = [0 as c_char; 200];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), 200 as _];
        let mut m = null_mut();
        err!(
            CUDA_ERROR_INVALID_PTX,
            cuModuleLoadDataEx(
                &mut m,
                wrong.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr()
            )
        );
        let log: String = log.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
        assert!(log.contains("line 4") && log.contains("frob.u32"), "{log}");
        err!(CUDA_ERROR_FILE_NOT_FOUND, cuModuleLoad(&mut m, c"/does/not/exist".as_ptr()));
    });
    assert!(text.is_none_or(|t| t.contains("compile with `nvcc --no-compress")));
}

/// Compiles a kernel to a fat binary.
fn fat(nvcc: &Path, folder: &Path, options: &[&str]) -> Vec<u8> {
    let (source, out) = (folder.join("k.cu"), folder.join("k.fatbin"));
    std::fs::write(&source, "extern \"C\" __global__ void one(int* p) { *p = 1; }").unwrap();
    let mut c = Command::new(nvcc);
    c.arg("-fatbin").args(options).arg("-o").arg(&out).arg(&source);
    assert!(c.status().unwrap().success());
    std::fs::read(out).unwrap()
}

#[test]
fn vgpu_fat_binaries_of_nvcc_load_if_they_have_ptx() {
    let nvcc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cuda/nvidia/cu13/bin/nvcc");
    if !nvcc.exists() {
        eprintln!(
            "\n*** NOT RUN: {} is not there; tests/kernels.rs fetches it ***\n",
            nvcc.display()
        );
        assert!(std::env::var_os("CI").is_none(), "a test that cannot run is a failure under CI");
        return;
    }
    on(1, || {
        use_device(0);
        let folder: PathBuf = std::env::temp_dir().join(format!("vgpu-fat-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let ptx = |arch| format!("-gencode=arch=compute_{arch},code=compute_{arch}");
        let plain = fat(&nvcc, &folder, &["--no-compress", &ptx(80), &ptx(90)]);
        let packed = fat(&nvcc, &folder, &[&ptx(90)]);
        let code = fat(&nvcc, &folder, &["--no-compress", "-gencode=arch=compute_90,code=sm_90"]);
        let newer = fat(&nvcc, &folder, &["--no-compress", &ptx(100)]);
        std::fs::remove_dir_all(&folder).unwrap();
        let m = load(&plain).unwrap();
        let f = make!(cuModuleGetFunction(m, c"one".as_ptr()));
        let at = alloc(4);
        assert_eq!(start(f, null_mut(), &[at]), CUresult::CUDA_SUCCESS);
        assert_eq!(word(at), 1);
        ok!(cuModuleUnload(m));
        err!(CUDA_ERROR_INVALID_HANDLE, cuModuleUnload(m));
        assert_eq!(start(f, null_mut(), &[at]), CUresult::CUDA_ERROR_INVALID_HANDLE);
        for wrong in [packed, code, newer] {
            assert_eq!(load(&wrong), Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
        }
    });
}

//! Memory, copies, pointers and pools.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::sys::CUpointer_attribute_enum::*;
use cudarc::driver::sys::*;

use crate::host::*;

fn ask<T: Default>(which: CUpointer_attribute, at: u64) -> T {
    let mut x = T::default();
    ok!(cuPointerGetAttribute((&raw mut x).cast(), which, at));
    x
}

#[test]
fn vgpu_pointers_say_what_they_are() {
    on(2, || {
        use_device(0);
        let context = use_device(1);
        let at = alloc(1000);
        assert_eq!(ask::<u32>(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at + 5), 2);
        assert_eq!(ask::<u32>(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at), 1);
        assert_eq!(ask::<u64>(CU_POINTER_ATTRIBUTE_CONTEXT, at), context as u64);
        assert_eq!(ask::<u64>(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, at + 999), at);
        assert_eq!(ask::<u64>(CU_POINTER_ATTRIBUTE_RANGE_SIZE, at), 1000);
        assert_eq!(ask::<u8>(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, at), 1);
        assert_eq!(ask::<u8>(CU_POINTER_ATTRIBUTE_MAPPED, at), 1);
        assert_eq!(ask::<u32>(CU_POINTER_ATTRIBUTE_ACCESS_FLAGS, at), 3);
        let id = ask::<u64>(CU_POINTER_ATTRIBUTE_BUFFER_ID, at);
        let mut range = (0, 0);
        ok!(cuMemGetAddressRange_v2(&mut range.0, &mut range.1, at + 10));
        assert_eq!(range, (at, 1000));
        ok!(cuMemFree_v2(at));
        err!(CUDA_ERROR_NOT_FOUND, cuMemGetAddressRange_v2(&mut range.0, &mut range.1, at));
        assert_ne!(ask::<u64>(CU_POINTER_ATTRIBUTE_BUFFER_ID, alloc(1000)), id);
        // Memory of the program: an error, or empty answers when several are asked for.
        let (local, mut kind, mut device) = (0u64, 7u32, 7i32);
        let p = &raw const local as u64;
        err!(
            CUDA_ERROR_INVALID_VALUE,
            cuPointerGetAttribute((&raw mut kind).cast(), CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p)
        );
        let mut which = [CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL];
        let mut to: [*mut c_void; 2] = [(&raw mut kind).cast(), (&raw mut device).cast()];
        ok!(cuPointerGetAttributes(2, which.as_mut_ptr(), to.as_mut_ptr(), p));
        assert_eq!((kind, device), (0, -2));
    });
}

#[test]
fn vgpu_host_memory_is_seen_by_devices() {
    on(1, || {
        use_device(0);
        let mut words = vec![0u32; 4096];
        let p: *mut c_void = words.as_mut_ptr().cast();
        let mut at = 0;
        err!(CUDA_ERROR_INVALID_VALUE, cuMemHostGetDevicePointer_v2(&mut at, p, 0));
        ok!(cuMemHostRegister_v2(p, 16384, 0));
        err!(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(p, 4, 0));
        ok!(cuMemHostGetDevicePointer_v2(&mut at, p, 0));
        assert_eq!(ask::<u32>(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at), 1);
        assert_eq!(run_kernel("store", &[at + 4, 3]), CUresult::CUDA_SUCCESS);
        // SAFETY: the vector is alive; the kernel has ended.
        assert_eq!(unsafe { words.as_ptr().add(1).read_volatile() }, 3);
        ok!(cuMemHostUnregister(p));
        err!(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(p));
        let pinned: *mut c_void = make!(cuMemHostAlloc(64, CU_MEMHOSTALLOC_DEVICEMAP));
        let flags: u32 = make!(cuMemHostGetFlags(pinned));
        assert_eq!(flags, CU_MEMHOSTALLOC_DEVICEMAP);
        ok!(cuMemHostGetDevicePointer_v2(&mut at, pinned, 0));
        assert_eq!(run_kernel("store", &[at, 4]), CUresult::CUDA_SUCCESS);
        // SAFETY: pinned memory of 64 bytes.
        assert_eq!(unsafe { pinned.cast::<u32>().read_volatile() }, 4);
        err!(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(pinned as u64));
        ok!(cuMemFreeHost(pinned));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemFreeHost(pinned));
        // The registration is over: the kernel faults.
        assert_eq!(run_kernel("store", &[p as u64, 3]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn vgpu_copies_of_rows_and_their_errors() {
    on(1, || {
        use_device(0);
        let (src, dst) = (alloc(256), alloc(256));
        let data: Vec<u8> = (0..=255).collect();
        ok!(cuMemcpyHtoD_v2(src, data.as_ptr().cast(), 256));
        let mut p = CUDA_MEMCPY2D {
            srcXInBytes: 3,
            srcY: 2,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null_mut(),
            srcDevice: src,
            srcArray: null_mut(),
            srcPitch: 16,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: null_mut(),
            dstDevice: dst,
            dstArray: null_mut(),
            dstPitch: 8,
            WidthInBytes: 5,
            Height: 4,
        };
        ok!(cuMemcpy2DAsync_v2(&p, null_mut()));
        let mut out = [0u8; 32];
        ok!(cuMemcpyDtoH_v2(out.as_mut_ptr().cast(), dst, 32));
        for row in 0..4 {
            for x in 0..8 {
                let want = if x < 5 { (2 + row) * 16 + 3 + x } else { 0 };
                assert_eq!(usize::from(out[row * 8 + x]), want);
            }
        }
        p.srcPitch = 4;
        err!(CUDA_ERROR_INVALID_VALUE, cuMemcpy2DAsync_v2(&p, null_mut()));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoD_v2(dst, src, 257));
        // A pointer of the program where one of a device is asked for.
        let mine = out.as_mut_ptr() as u64;
        err!(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(mine, data.as_ptr().cast(), 8));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoD_v2(dst, mine, 8));
        ok!(cuMemcpy(dst, mine, 8));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemsetD32_v2(dst + 2, 1, 1));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemsetD8_v2(dst, 1, 257));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(dst + 1));
    });
}

#[test]
fn vgpu_stream_ordered_memory() {
    on(2, || {
        use_device(0);
        let s: CUstream = make!(cuStreamCreate(1));
        let at: u64 = make!(cuMemAllocAsync(4096, s));
        ok!(cuMemsetD32Async(at, 6, 1024, s));
        let step = kernel("step");
        assert_eq!(start(step, s, &[at + 8, 1]), CUresult::CUDA_SUCCESS);
        let mut x = 0u32;
        ok!(cuMemcpyDtoHAsync_v2((&raw mut x).cast(), at + 8, 4, s));
        ok!(cuStreamSynchronize(s));
        assert_eq!(x, 19);
        let pool: CUmemoryPool = make!(cuDeviceGetDefaultMemPool(0));
        let used = || {
            let mut n = 0u64;
            let which = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
            ok!(cuMemPoolGetAttribute(pool, which, (&raw mut n).cast()));
            n
        };
        assert_eq!(used(), 4096);
        // Other devices need the pool's leave, and peer access is none.
        let desc = CUmemAccessDesc {
            location: CUmemLocation {
                type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: 1,
            },
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        ok!(cuMemPoolSetAccess(pool, &desc, 1));
        use_device(1);
        let out = alloc(4);
        assert_eq!(run_kernel("load", &[out, at]), CUresult::CUDA_SUCCESS);
        assert_eq!(word(out), 6);
        use_device(0);
        // Loaded now: the module's variable is not to get the address that is freed.
        let store = kernel("store");
        ok!(cuFuncLoad(store));
        ok!(cuMemFreeAsync(at, s));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemFreeAsync(at, s));
        ok!(cuStreamSynchronize(s));
        assert_eq!(used(), 0);
        assert_eq!(start(store, null_mut(), &[at, 1]), CUresult::CUDA_SUCCESS);
        err!(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    });
}

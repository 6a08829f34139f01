//! Launches and occupancy.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::sys::CUfunction_attribute_enum::*;
use cudarc::driver::sys::*;

use crate::host::*;

fn config(blocks: u32, attrs: &mut [CUlaunchAttribute]) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: null_mut(),
        attrs: attrs.as_mut_ptr(),
        numAttrs: attrs.len() as u32,
    }
}

fn attribute(id: CUlaunchAttributeID, value: [u32; 3]) -> CUlaunchAttribute {
    // SAFETY: the union is numbers; the first three words are the values that are set here.
    unsafe {
        let mut a: CUlaunchAttribute = std::mem::zeroed();
        a.id = id;
        (&raw mut a.value).cast::<[u32; 3]>().write(value);
        a
    }
}

#[test]
fn vgpu_launch_attributes_are_honoured_or_refused() {
    run(&[("VGPU_SMS", "2")], || {
        use CUlaunchAttributeID::*;
        use_device(0);
        let at = alloc(4);
        let f = kernel("store");
        let (mut p, mut v) = (at, 8u64);
        let mut params: [*mut c_void; 2] = [(&raw mut p).cast(), (&raw mut v).cast()];
        let mut launch = |blocks, attrs: &mut [CUlaunchAttribute]| {
            let config = config(blocks, attrs);
            // SAFETY: the kernel has these two parameters.
            unsafe { cuLaunchKernelEx(&config, f, params.as_mut_ptr(), null_mut()) }
        };
        let cooperative = || attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, [1, 0, 0]);
        let cluster = |n| attribute(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, [n, 1, 1]);
        assert_eq!(launch(3, &mut [cooperative(), cluster(1)]), CUresult::CUDA_SUCCESS);
        ok!(cuCtxSynchronize());
        assert_eq!(word(at), 8);
        // Two multiprocessors hold 32 blocks each.
        assert_eq!(launch(64, &mut [cooperative()]), CUresult::CUDA_SUCCESS);
        let too_large = CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
        assert_eq!(launch(65, &mut [cooperative()]), too_large);
        assert_eq!(launch(65, &mut []), CUresult::CUDA_SUCCESS);
        assert_eq!(launch(2, &mut [cluster(2)]), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
        let event = attribute(CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT, [0; 3]);
        assert_eq!(launch(1, &mut [event]), CUresult::CUDA_ERROR_NOT_SUPPORTED);
        err!(
            CUDA_ERROR_INVALID_HANDLE,
            cuLaunchKernel(8 as _, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut())
        );
        err!(
            CUDA_ERROR_INVALID_VALUE,
            cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut())
        );
    });
}

#[test]
fn vgpu_parameters_can_come_as_one_buffer() {
    on(1, || {
        use_device(0);
        let at = alloc(4);
        let buffer = [at, 12];
        let mut size = size_of_val(&buffer);
        let mut extra: [*mut c_void; 5] = [
            1 as _, // CU_LAUNCH_PARAM_BUFFER_POINTER
            buffer.as_ptr().cast_mut().cast(),
            2 as _, // CU_LAUNCH_PARAM_BUFFER_SIZE
            (&raw mut size).cast(),
            null_mut(),
        ];
        let f = kernel("store");
        ok!(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), extra.as_mut_ptr()));
        assert_eq!(word(at), 12);
    });
}

#[test]
fn vgpu_much_shared_memory_has_to_be_asked_for() {
    on(1, || {
        use_device(0);
        let f = kernel("big");
        let at = alloc(4);
        let mut p = at;
        let mut params: [*mut c_void; 1] = [(&raw mut p).cast()];
        let mut launch = |shared| {
            let p = params.as_mut_ptr();
            // SAFETY: the kernel has one parameter.
            unsafe { cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, shared, null_mut(), p, null_mut()) }
        };
        assert_eq!(launch(48 << 10), CUresult::CUDA_SUCCESS);
        assert_eq!(launch(100 << 10), CUresult::CUDA_ERROR_INVALID_VALUE);
        let most = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        ok!(cuFuncSetAttribute(f, most, 100 << 10));
        let now: i32 = make!(cuFuncGetAttribute(most, f));
        assert_eq!(now, 100 << 10);
        assert_eq!(launch(100 << 10), CUresult::CUDA_SUCCESS);
        err!(CUDA_ERROR_INVALID_VALUE, cuFuncSetAttribute(f, most, 300 << 10));
        ok!(cuCtxSynchronize());
        // 228 KiB hold two blocks with 100 KiB and what the system keeps.
        let blocks: i32 = make!(cuOccupancyMaxActiveBlocksPerMultiprocessor(f, 64, 100 << 10));
        assert_eq!(blocks, 2);
        let (mut grid, mut block) = (0, 0);
        ok!(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, f, None, 0, 0));
        assert_eq!((grid, block), (2 * 132, 1024));
        ok!(cuOccupancyMaxPotentialBlockSize(&mut grid, &mut block, f, None, 100 << 10, 256));
        assert_eq!((grid, block), (2 * 132, 256));
    });
}

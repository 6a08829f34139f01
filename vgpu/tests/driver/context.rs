//! Contexts, devices and what they let each other do.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::*;

use crate::host::*;

#[test]
fn vgpu_contexts_stack_and_die() {
    on(2, || {
        let primary = use_device(0);
        let own: CUcontext = make!(cuCtxCreate_v4(null_mut(), 0, 1));
        let mut now = null_mut();
        ok!(cuCtxGetCurrent(&mut now));
        assert_eq!(now, own);
        let device: i32 = make!(cuCtxGetDevice());
        assert_eq!(device, 1);
        ok!(cuCtxPushCurrent_v2(primary));
        ok!(cuCtxPopCurrent_v2(&mut now));
        assert_eq!(now, primary);
        ok!(cuCtxSetLimit(CUlimit::CU_LIMIT_STACK_SIZE, 4096));
        let limit: usize = make!(cuCtxGetLimit(CUlimit::CU_LIMIT_STACK_SIZE));
        assert_eq!(limit, 4096);
        err!(CUDA_ERROR_UNSUPPORTED_LIMIT, cuCtxSetLimit(CUlimit::CU_LIMIT_SHMEM_SIZE, 1));
        let stream: CUstream = make!(cuStreamCreate(0));
        ok!(cuCtxDestroy_v2(own));
        ok!(cuCtxGetCurrent(&mut now));
        assert_eq!(now, primary, "what was below is current again");
        err!(CUDA_ERROR_INVALID_CONTEXT, cuCtxPushCurrent_v2(own));
        err!(CUDA_ERROR_INVALID_HANDLE, cuStreamSynchronize(stream));
        err!(CUDA_ERROR_INVALID_CONTEXT, cuCtxDestroy_v2(primary));
        ok!(cuCtxPopCurrent_v2(&mut now));
        err!(CUDA_ERROR_INVALID_CONTEXT, cuCtxPopCurrent_v2(&mut now));
        err!(CUDA_ERROR_INVALID_CONTEXT, cuCtxSynchronize());
    });
}

#[test]
fn vgpu_devices_have_names_of_their_own() {
    on(2, || {
        use_device(0);
        let mut ids = Vec::new();
        for device in 0..2 {
            let mut id = [0u8; 16];
            ok!(cuDeviceGetPCIBusId(id.as_mut_ptr().cast(), 16, device));
            let found: i32 = make!(cuDeviceGetByPCIBusId(id.as_ptr().cast()));
            assert_eq!(found, device);
            let uuid: CUuuid = make!(cuDeviceGetUuid_v2(device));
            ids.push((id, uuid.bytes));
        }
        assert!(ids[0].0 != ids[1].0 && ids[0].1 != ids[1].1);
        err!(CUDA_ERROR_INVALID_VALUE, cuDeviceGetPCIBusId(null_mut(), 16, 0));
        err!(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetPCIBusId(ids[0].0.as_mut_ptr().cast(), 16, 2));
        let wrong = CString::new("0000:77:00.0").unwrap();
        let mut device = 0;
        err!(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetByPCIBusId(&mut device, wrong.as_ptr()));
        let p2p = CUdevice_P2PAttribute_enum::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED;
        let yes: i32 = make!(cuDeviceGetP2PAttribute(p2p, 0, 1));
        assert_eq!(yes, 1);
        err!(CUDA_ERROR_INVALID_DEVICE, cuDeviceGetP2PAttribute(&mut device, p2p, 0, 0));
    });
}

#[test]
fn vgpu_a_peer_has_to_be_let_in() {
    on(2, || {
        let zero = use_device(0);
        let memory = alloc(64);
        set_word(memory, 9);
        let one = use_device(1);
        let out = alloc(4);
        ok!(cuCtxEnablePeerAccess(zero, 0));
        err!(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, cuCtxEnablePeerAccess(zero, 0));
        err!(CUDA_ERROR_INVALID_DEVICE, cuCtxEnablePeerAccess(one, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuCtxEnablePeerAccess(zero, 1));
        assert_eq!(run_kernel("load", &[out, memory]), CUresult::CUDA_SUCCESS);
        assert_eq!(word(out), 9);
        ok!(cuCtxDisablePeerAccess(zero));
        err!(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, cuCtxDisablePeerAccess(zero));
        // A copy needs no peer access, a kernel does.
        ok!(cuMemcpyPeer(out, one, memory, zero, 4));
        assert_eq!(run_kernel("load", &[out, memory]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn vgpu_entry_points_are_found_by_name_and_version() {
    on(1, || {
        use_device(0);
        let find = |name: &str, version| {
            let name = CString::new(name).unwrap();
            let mut f: *mut c_void = null_mut();
            let mut status = CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;
            ok!(cuGetProcAddress_v2(name.as_ptr(), &mut f, version, 0, &mut status));
            (f, status as u32)
        };
        let (f, status) = find("cuMemAlloc", 12000);
        assert_eq!(status, 0);
        // SAFETY: that is the type of cuMemAlloc since CUDA 3.2.
        let f: extern "C" fn(*mut u64, usize) -> u32 = unsafe { std::mem::transmute(f) };
        let mut at = 0;
        assert_eq!(f(&mut at, 64), 0);
        set_word(at, 5);
        assert_eq!(word(at), 5);
        assert_eq!(find("cuGraphicsMapResources", 13000), (null_mut(), 1));
        assert_eq!(find("cuMulticastCreate", 11000), (null_mut(), 2));
        let missing = CString::new("cuGraphicsMapResources").unwrap();
        let mut f = null_mut();
        err!(
            CUDA_ERROR_NOT_FOUND,
            cuGetProcAddress_v2(missing.as_ptr(), &mut f, 13000, 0, null_mut())
        );
    });
}

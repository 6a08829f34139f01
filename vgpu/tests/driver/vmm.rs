//! Virtual memory in one process; `processes.rs` has it between processes.

use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::null_mut;

use cudarc::driver::sys::CUmemAccess_flags::*;
use cudarc::driver::sys::*;

use crate::host::*;

pub const SIZE: usize = 2 << 20;
pub const NONE: CUmemAllocationHandleType = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE;
pub const POSIX: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
pub const FABRIC: CUmemAllocationHandleType = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_FABRIC;

pub fn location(device: i32) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

pub fn properties(device: i32, types: CUmemAllocationHandleType) -> CUmemAllocationProp {
    // SAFETY: numbers and a null pointer; the two enums are set.
    let mut p: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    p.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    p.requestedHandleTypes = types;
    p.location = location(device);
    p
}

/// Physical memory of a device.
pub fn create(device: i32, size: usize, types: CUmemAllocationHandleType) -> u64 {
    make!(cuMemCreate(size, &properties(device, types), 0))
}

pub fn allow(at: u64, size: usize, device: i32, flags: CUmemAccess_flags) {
    ok!(cuMemSetAccess(at, size, &CUmemAccessDesc { location: location(device), flags }, 1));
}

/// Maps memory or a team at a new address, for these devices.
pub fn map(handle: u64, size: usize, devices: &[i32]) -> u64 {
    let at = make!(cuMemAddressReserve(size, 0, 0, 0));
    ok!(cuMemMap(at, size, 0, handle, 0));
    devices.iter().for_each(|d| allow(at, size, *d, CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
    at
}

pub fn unmap(at: u64, size: usize) {
    ok!(cuMemUnmap(at, size));
    ok!(cuMemAddressFree(at, size));
}

#[test]
fn vgpu_mappings_share_their_bytes_and_outlive_the_handle() {
    run(&[("VGPU_MODE", "weak"), ("VGPU_DEVICES", "2")], || {
        use_device(0);
        let prop = properties(0, NONE);
        let granularity: usize = make!(cuMemGetAllocationGranularity(
            &prop,
            CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM
        ));
        assert_eq!(granularity, SIZE);
        let handle = create(0, 2 * SIZE, NONE);
        let (a, b) = (map(handle, 2 * SIZE, &[0]), map(handle, SIZE, &[0]));
        ok!(cuMemRelease(handle));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemRelease(handle));
        assert_eq!(run_kernel("store", &[a + 8, 42]), CUresult::CUDA_SUCCESS);
        let out = alloc(4);
        assert_eq!(run_kernel("load", &[out, b + 8]), CUresult::CUDA_SUCCESS);
        assert_eq!((word(out), word(b + 8)), (42, 42));
        let mut again = 0u64;
        ok!(cuMemRetainAllocationHandle(&mut again, (b + 8) as _));
        let p: CUmemAllocationProp = make!(cuMemGetAllocationPropertiesFromHandle(again));
        assert_eq!((p.location.id, p.requestedHandleTypes), (0, NONE));
        unmap(a, 2 * SIZE);
        unmap(b, SIZE);
        // The handle alone keeps the bytes, too.
        let c = map(again, SIZE, &[0]);
        assert_eq!(word(c + 8), 42);
        ok!(cuMemRelease(again));
        unmap(c, SIZE);
        err!(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoD_v2(c, out, 4));
    });
}

#[test]
fn vgpu_adjacent_mappings_are_one_range_for_copies() {
    on(1, || {
        use_device(0);
        let handles = [0, 1].map(|_| create(0, SIZE, NONE));
        let at: u64 = make!(cuMemAddressReserve(3 * SIZE, 4 * SIZE, 0, 0));
        assert_eq!(at % (4 * SIZE as u64), 0);
        for (k, h) in handles.iter().enumerate() {
            ok!(cuMemMap(at + (k * SIZE) as u64, SIZE, 0, *h, 0));
        }
        allow(at, 2 * SIZE, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        let middle = at + SIZE as u64;
        ok!(cuMemsetD8_v2(middle - 100, 3, 200));
        let mut bytes = [0u8; 200];
        ok!(cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), middle - 100, 200));
        assert_eq!(bytes, [3; 200]);
        // The third part is reserved and not mapped.
        err!(CUDA_ERROR_INVALID_VALUE, cuMemsetD8_v2(at + 2 * SIZE as u64 - 4, 0, 8));
        let size = |which| {
            let mut x = 0u64;
            ok!(cuPointerGetAttribute((&raw mut x).cast(), which, middle + 7));
            x
        };
        assert_eq!(size(CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR), middle);
        assert_eq!(size(CUpointer_attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE), SIZE as u64);
        // Both at once, but not half of one.
        err!(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(at, SIZE + SIZE / 2));
        ok!(cuMemUnmap(at, 2 * SIZE));
        ok!(cuMemAddressFree(at, 3 * SIZE));
    });
}

#[test]
fn vgpu_access_is_per_device() {
    on(2, || {
        use_device(0);
        let at = map(create(0, SIZE, NONE), SIZE, &[]);
        let of = |device| -> u64 { make!(cuMemGetAccess(&location(device), at)) };
        assert_eq!((of(0), of(1)), (0, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemsetD8_v2(at, 0, 8));
        allow(at, SIZE, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        allow(at, SIZE, 1, CU_MEM_ACCESS_FLAGS_PROT_READ);
        assert_eq!((of(0), of(1)), (3, 1));
        set_word(at, 6);
        use_device(1);
        let out = alloc(4);
        assert_eq!(run_kernel("load", &[out, at]), CUresult::CUDA_SUCCESS);
        assert_eq!(word(out), 6);
        // It may load and not store.
        assert_eq!(run_kernel("store", &[at, 1]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        use_device(0);
        assert_eq!(word(at), 6);
        allow(at, SIZE, 0, CU_MEM_ACCESS_FLAGS_PROT_NONE);
        let mut out = 0;
        ok!(cuMemAlloc_v2(&mut out, 4));
        assert_eq!(run_kernel("load", &[out, at]), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn vgpu_wrong_use_of_virtual_memory() {
    on(1, || {
        use_device(0);
        let handle = create(0, SIZE, POSIX);
        let prop = properties(0, NONE);
        let (mut x, mut at) = (0u64, 0u64);
        err!(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&mut x, SIZE / 2, &prop, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&mut x, 0, &prop, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&mut x, SIZE, &prop, 1));
        err!(CUDA_ERROR_INVALID_DEVICE, cuMemCreate(&mut x, SIZE, &properties(1, NONE), 0));
        err!(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&mut x, 1 << 50, &prop, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&mut at, SIZE / 2, 0, 0, 0));
        ok!(cuMemAddressReserve(&mut at, 2 * SIZE, 0, 0, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemMap(at, 2 * SIZE, 0, handle, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemMap(at + 4096, SIZE, 0, handle, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemMap(at, SIZE, SIZE, handle, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemMap(at + 2 * SIZE as u64, SIZE, 0, handle, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemMap(at, SIZE, 0, 1234, 0));
        ok!(cuMemMap(at, SIZE, 0, handle, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemMap(at, SIZE, 0, handle, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(at, 2 * SIZE));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(at));
        // The other half of the range is not mapped.
        let desc =
            CUmemAccessDesc { location: location(0), flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        err!(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(at, 2 * SIZE, &desc, 1));
        // A handle of a kind that was not asked for, and a descriptor that is none of ours.
        let mut bytes = [0u8; 64];
        err!(
            CUDA_ERROR_INVALID_VALUE,
            cuMemExportToShareableHandle(bytes.as_mut_ptr().cast(), handle, FABRIC, 0)
        );
        let posix = POSIX;
        err!(CUDA_ERROR_INVALID_VALUE, cuMemImportFromShareableHandle(&mut x, null_mut(), posix));
        err!(CUDA_ERROR_INVALID_VALUE, cuMemImportFromShareableHandle(&mut x, -1isize as _, posix));
        // One of ours gives the same memory, with a reference of its own.
        let mut fd = -1i32;
        ok!(cuMemExportToShareableHandle((&raw mut fd).cast(), handle, posix, 0));
        // SAFETY: the driver gives the descriptor away.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        ok!(cuMemImportFromShareableHandle(&mut x, fd as isize as _, posix));
        drop(owned);
        allow(at, SIZE, 0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
        set_word(at, 4);
        ok!(cuMemRelease(handle));
        let other = map(x, SIZE, &[0]);
        assert_eq!(word(other), 4);
    });
}

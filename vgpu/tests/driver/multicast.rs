//! Multicast objects in one process; `processes.rs` has them between processes.

use cudarc::driver::sys::*;

use crate::host::*;
use crate::vmm::{FABRIC, NONE, SIZE, create, map, unmap};

/// A team of so many devices.
pub fn team(devices: u32, size: usize, types: CUmemAllocationHandleType) -> u64 {
    let p =
        CUmulticastObjectProp { numDevices: devices, size, handleTypes: types.0.into(), flags: 0 };
    make!(cuMulticastCreate(&p))
}

#[test]
fn vgpu_a_team_reaches_the_memory_of_all_members() {
    team_of_three("sc");
}

#[test]
fn vgpu_a_team_reaches_the_memory_of_all_members_in_weak_mode() {
    team_of_three("weak");
}

fn team_of_three(mode: &str) {
    run(&[("VGPU_DEVICES", "3"), ("VGPU_MODE", mode)], || {
        use_device(0);
        let mc = team(3, 2 * SIZE, NONE);
        (0..3).for_each(|d| ok!(cuMulticastAddDevice(mc, d)));
        let handles = [0, 1, 2].map(|d| create(d, 2 * SIZE, NONE));
        let own: Vec<u64> = handles.iter().map(|h| map(*h, 2 * SIZE, &[0, 1, 2])).collect();
        ok!(cuMulticastBindMem(mc, 0, handles[0], 0, 2 * SIZE, 0));
        ok!(cuMulticastBindMem(mc, 0, handles[1], 0, 2 * SIZE, 0));
        // Device 2 binds by address, and its halves the other way round.
        ok!(cuMulticastBindAddr(mc, 0, own[2] + SIZE as u64, SIZE, 0));
        ok!(cuMulticastBindAddr(mc, SIZE, own[2], SIZE, 0));
        let at = map(mc, 2 * SIZE, &[0, 1, 2]);
        handles.iter().for_each(|h| ok!(cuMemRelease(*h)));
        for device in 0..3 {
            use_device(device);
            assert_eq!(run_kernel("team_store", &[at + 64, 7]), CUresult::CUDA_SUCCESS);
            assert_eq!(word(own[0] + 64), 7);
            assert_eq!(word(own[1] + 64), 7);
            assert_eq!(word(own[2] + SIZE as u64 + 64), 7);
            // Written by its own address, read by the team's.
            assert_eq!(run_kernel("store", &[own[0] + 64, 100]), CUresult::CUDA_SUCCESS);
            let out = alloc(4);
            assert_eq!(run_kernel("team_sum", &[out, at + 64]), CUresult::CUDA_SUCCESS);
            assert_eq!(word(out), 114);
        }
        // Without one member's memory an access is an error. So is a copy.
        err!(CUDA_ERROR_INVALID_VALUE, cuMemsetD8_v2(at, 0, 4));
        ok!(cuMulticastUnbind(mc, 1, 0, 2 * SIZE));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastUnbind(mc, 1, 0, 2 * SIZE));
        assert_eq!(run_kernel("team_store", &[at, 7]), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
}

#[test]
fn vgpu_plain_accesses_to_a_team_fault() {
    on(1, || {
        use_device(0);
        let mc = team(1, SIZE, NONE);
        ok!(cuMulticastAddDevice(mc, 0));
        let memory = create(0, SIZE, NONE);
        ok!(cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
        let at = map(mc, SIZE, &[0]);
        assert_eq!(run_kernel("store", &[at, 7]), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        use_device(0);
    });
}

#[test]
fn vgpu_wrong_use_of_teams() {
    run(&[("VGPU_DEVICES", "3"), ("VGPU_WATCHDOG", "1")], || {
        use_device(0);
        let mut x = 0u64;
        let mut p = CUmulticastObjectProp { numDevices: 2, size: SIZE, handleTypes: 0, flags: 0 };
        let which = CUmulticastGranularity_flags::CU_MULTICAST_GRANULARITY_RECOMMENDED;
        let granularity: usize = make!(cuMulticastGetGranularity(&p, which));
        assert_eq!(granularity, SIZE);
        p.size = 4096;
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastCreate(&mut x, &p));
        p = CUmulticastObjectProp { numDevices: 0, size: SIZE, handleTypes: 0, flags: 0 };
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastCreate(&mut x, &p));
        let mc = team(2, SIZE, FABRIC);
        let memory = create(0, SIZE, FABRIC);
        ok!(cuMulticastAddDevice(mc, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastAddDevice(mc, 0));
        err!(CUDA_ERROR_INVALID_DEVICE, cuMulticastAddDevice(mc, 3));
        // Binding and mapping wait until all devices are there, which is given up here.
        err!(CUDA_ERROR_ILLEGAL_STATE, cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
        let at: u64 = make!(cuMemAddressReserve(SIZE, 0, 0, 0));
        err!(CUDA_ERROR_ILLEGAL_STATE, cuMemMap(at, SIZE, 0, mc, 0));
        ok!(cuMulticastAddDevice(mc, 1));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastAddDevice(mc, 2)); // one too many
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindMem(mc, 4096, memory, 0, SIZE, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindMem(mc, 0, memory, 0, 2 * SIZE, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindMem(memory, 0, memory, 0, SIZE, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindMem(mc, 0, mc, 0, SIZE, 0));
        let private = create(0, SIZE, NONE);
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindMem(mc, 0, private, 0, SIZE, 0));
        let stranger = create(2, SIZE, FABRIC);
        err!(CUDA_ERROR_INVALID_DEVICE, cuMulticastBindMem(mc, 0, stranger, 0, SIZE, 0));
        let ordinary = alloc(SIZE);
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindAddr(mc, 0, ordinary, SIZE, 0));
        ok!(cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
        err!(CUDA_ERROR_INVALID_VALUE, cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0)); // twice
        ok!(cuMemMap(at, SIZE, 0, mc, 0));
        unmap(at, SIZE);
    });
}

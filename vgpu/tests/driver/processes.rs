//! Handles between processes, and what is left when one is killed.

use cudarc::driver::sys::*;

use crate::host::*;
use crate::multicast::team;
use crate::vmm::{FABRIC, POSIX, SIZE, create, map, unmap};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> [u8; 64] {
    assert_eq!(text.len(), 128, "{text}");
    std::array::from_fn(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
}

fn fabric(handle: u64) -> String {
    let mut f = CUmemFabricHandle { data: [0; 64] };
    ok!(cuMemExportToShareableHandle((&raw mut f).cast(), handle, FABRIC, 0));
    hex(&f.data)
}

fn from_fabric(text: &str) -> Result<u64, CUresult> {
    let (mut f, mut handle) = (CUmemFabricHandle { data: unhex(text) }, 0);
    // SAFETY: the pointers are to locals of the right types.
    let r = unsafe { cuMemImportFromShareableHandle(&mut handle, (&raw mut f).cast(), FABRIC) };
    if r == CUresult::CUDA_SUCCESS { Ok(handle) } else { Err(r) }
}

fn posix(handle: u64) -> i32 {
    let mut fd = -1;
    let kind = POSIX;
    ok!(cuMemExportToShareableHandle((&raw mut fd).cast(), handle, kind, 0));
    fd
}

/// Takes a descriptor out of another process, as `pidfd_getfd` or a socket does.
fn from_posix(process: u32, fd: i32) -> u64 {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{process}/fd/{fd}");
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let kind = POSIX;
    make!(cuMemImportFromShareableHandle(file.as_raw_fd() as isize as _, kind))
}

fn ipc(at: u64) -> CUipcMemHandle {
    make!(cuIpcGetMemHandle(at))
}

fn open_ipc(text: &str) -> Result<u64, CUresult> {
    let mut at = 0;
    let handle = CUipcMemHandle { reserved: unhex(text).map(|b| b as _) };
    // SAFETY: the pointer is to a local.
    let r = unsafe { cuIpcOpenMemHandle_v2(&mut at, handle, 1) };
    if r == CUresult::CUDA_SUCCESS { Ok(at) } else { Err(r) }
}

/// Files of this crate's that anybody could still see.
fn left_behind() -> Vec<std::path::PathBuf> {
    let folder = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    folder.map(|f| f.path()).filter(|p| p.to_string_lossy().contains("vgpu")).collect()
}

/// Exports memory of device 0 by every kind of handle, and waits.
fn exporter() {
    use_device(0);
    let both = FABRIC;
    let (one, two) = (create(0, SIZE, both), create(0, SIZE, POSIX));
    let at = [map(one, SIZE, &[0]), map(two, SIZE, &[0]), alloc(100)];
    at.iter().zip([11, 22, 33]).for_each(|(at, x)| set_word(*at, x));
    say(&fabric(one));
    say(&posix(two).to_string());
    say(&hex(&ipc(at[2]).reserved.map(|b| b as u8)));
    assert_eq!(listen(), "free");
    ok!(cuMemFree_v2(at[2]));
    unmap(at[0], SIZE);
    ok!(cuMemRelease(one));
    say("freed");
    listen();
}

#[test]
fn vgpu_memory_outlives_its_exporter() {
    on(2, || {
        if role().is_some() {
            return exporter();
        }
        use_device(1);
        let other = Player::start("exporter");
        let (f, fd, handle) = (other.hear(), other.hear().parse().unwrap(), other.hear());
        let one = from_fabric(&f).unwrap();
        let two = from_posix(other.id(), fd);
        let ordinary = open_ipc(&handle).unwrap();
        assert_eq!(open_ipc(&handle), Ok(ordinary), "opened twice: the same address");
        let at = [map(one, SIZE, &[1]), map(two, SIZE, &[1]), ordinary];
        other.kill();
        let out = alloc(4);
        for (at, x) in at.iter().zip([11, 22, 33]) {
            assert_eq!(run_kernel("load", &[out, *at]), CUresult::CUDA_SUCCESS);
            assert_eq!(word(out), x);
            assert_eq!(run_kernel("store", &[*at, 5]), CUresult::CUDA_SUCCESS);
            assert_eq!(word(*at), 5);
        }
        // Its handles are of no use any more, but one of ours of the same memory is.
        assert_eq!(from_fabric(&f), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
        ok!(cuIpcCloseMemHandle(ordinary));
        ok!(cuIpcCloseMemHandle(ordinary));
        err!(CUDA_ERROR_INVALID_VALUE, cuIpcCloseMemHandle(ordinary));
        assert_eq!(open_ipc(&handle), Err(CUresult::CUDA_ERROR_INVALID_HANDLE));
        assert!(from_fabric(&fabric(one)).is_ok());
        assert_eq!(left_behind(), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn vgpu_handles_of_freed_memory_open_nothing() {
    on(1, || {
        if role().is_some() {
            return exporter();
        }
        use_device(0);
        let mut other = Player::start("exporter");
        let (f, _fd, handle) = (other.hear(), other.hear(), other.hear());
        other.tell("free");
        assert_eq!(other.hear(), "freed");
        assert_eq!(from_fabric(&f), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(open_ipc(&handle), Err(CUresult::CUDA_ERROR_INVALID_HANDLE));
        let garbage = "07".repeat(64);
        assert_eq!(from_fabric(&garbage), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(open_ipc(&garbage), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
        other.finish();
    });
}

/// Imports memory, writes to it and goes on reading it.
fn importer() {
    use_device(0);
    let (one, ordinary) = (listen(), listen());
    let at = [map(from_fabric(&one).unwrap(), SIZE, &[0]), open_ipc(&ordinary).unwrap()];
    at.iter().for_each(|at| set_word(*at, 99));
    let (f, out) = (kernel("load"), alloc(4));
    say("ready");
    loop {
        assert_eq!(start(f, std::ptr::null_mut(), &[out, at[0]]), CUresult::CUDA_SUCCESS);
        ok!(cuCtxSynchronize());
    }
}

#[test]
fn vgpu_a_killed_importer_leaves_the_memory_alone() {
    on(1, || {
        if role().is_some() {
            return importer();
        }
        use_device(0);
        let one = create(0, SIZE, FABRIC);
        let at = [map(one, SIZE, &[0]), alloc(100)];
        let handle = hex(&ipc(at[1]).reserved.map(|b| b as u8));
        for _ in 0..2 {
            at.iter().for_each(|at| set_word(*at, 1));
            let mut other = Player::start("importer");
            other.tell(&fabric(one));
            other.tell(&handle);
            assert_eq!(other.hear(), "ready");
            other.kill();
            for at in at {
                assert_eq!(word(at), 99);
                assert_eq!(run_kernel("store", &[at, 5]), CUresult::CUDA_SUCCESS);
            }
        }
        // A handle of this process is refused.
        assert_eq!(open_ipc(&handle), Err(CUresult::CUDA_ERROR_INVALID_CONTEXT));
        unmap(at[0], SIZE);
        ok!(cuMemFree_v2(at[1]));
        assert_eq!(left_behind(), Vec::<std::path::PathBuf>::new());
    });
}

/// Device 1 of a team of two processes.
fn member() {
    use_device(1);
    let mc = from_fabric(&listen()).unwrap();
    ok!(cuMulticastAddDevice(mc, 1));
    let memory = create(1, SIZE, FABRIC);
    let own = map(memory, SIZE, &[1]);
    ok!(cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
    let at = map(mc, SIZE, &[1]);
    say(&fabric(memory));
    assert_eq!(listen(), "store");
    // Both members have it: a store of each to its own half was seen by the other one.
    assert_eq!(run_kernel("team_store", &[at + 128, 4]), CUresult::CUDA_SUCCESS);
    say(&word(own + 64).to_string());
    listen();
}

#[test]
fn vgpu_a_team_of_two_processes_and_one_of_them_is_killed() {
    on(2, || {
        if role().is_some() {
            return member();
        }
        use_device(0);
        let mc = team(2, SIZE, FABRIC);
        ok!(cuMulticastAddDevice(mc, 0));
        let mut other = Player::start("member");
        other.tell(&fabric(mc));
        let memory = create(0, SIZE, FABRIC);
        let own = map(memory, SIZE, &[0]);
        // Waits until the other process has added its device.
        ok!(cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
        let at = map(mc, SIZE, &[0]);
        let theirs = map(from_fabric(&other.hear()).unwrap(), SIZE, &[0]);
        assert_eq!(run_kernel("team_store", &[at + 64, 3]), CUresult::CUDA_SUCCESS);
        assert_eq!((word(own + 64), word(theirs + 64)), (3, 3));
        other.tell("store");
        assert_eq!(other.hear(), "3");
        assert_eq!((word(own + 128), word(theirs + 128)), (4, 4));
        let out = alloc(4);
        assert_eq!(run_kernel("team_sum", &[out, at + 128]), CUresult::CUDA_SUCCESS);
        assert_eq!(word(out), 8);
        other.kill();
        // This process has the other's memory mapped: it stays good.
        assert_eq!(run_kernel("team_store", &[at, 6]), CUresult::CUDA_SUCCESS);
        assert_eq!((word(own), word(theirs)), (6, 6));
        unmap(theirs, SIZE);
        assert_eq!(run_kernel("team_sum", &[out, at]), CUresult::CUDA_SUCCESS);
        assert_eq!(word(out), 12);
        ok!(cuMulticastUnbind(mc, 1, 0, SIZE));
        assert_eq!(run_kernel("team_sum", &[out, at]), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
}

/// Binds to a team, and is killed before anybody looks.
fn short_lived() {
    use_device(1);
    let mc = from_fabric(&listen()).unwrap();
    ok!(cuMulticastAddDevice(mc, 1));
    let memory = create(1, SIZE, FABRIC);
    ok!(cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
    say("bound");
    listen();
}

#[test]
fn vgpu_memory_that_went_with_its_process_is_named() {
    let text = run(&[("VGPU_DEVICES", "2")], || {
        if role().is_some() {
            return short_lived();
        }
        use_device(0);
        let mc = team(2, SIZE, FABRIC);
        ok!(cuMulticastAddDevice(mc, 0));
        let mut other = Player::start("short_lived");
        other.tell(&fabric(mc));
        assert_eq!(other.hear(), "bound");
        other.kill();
        let memory = create(0, SIZE, FABRIC);
        ok!(cuMulticastBindMem(mc, 0, memory, 0, SIZE, 0));
        let at = map(mc, SIZE, &[0]);
        assert_eq!(run_kernel("team_store", &[at, 6]), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
    let said = |t: String| t.contains("which bound memory of device 1") && t.contains("is gone");
    assert!(text.is_none_or(said));
}

//! vgpu: two processes share a virtual device's memory by IPC handles and play ping-pong in it.

mod common;

use std::ffi::{CString, c_void};
use std::process::{Child, Command, Stdio};

use vgpu::driver::api::*;
use vgpu::driver::ipc::MemHandle;

const ROUNDS: u32 = 2000;

/// Asserts that an entry point succeeds.
macro_rules! ok {
    ($call:expr) => {
        // SAFETY: the pointers are to locals of the right types, the handles came from the driver.
        assert_eq!(unsafe { $call }, 0, "{}", stringify!($call))
    };
}

/// Starts the driver and loads `ping_pong`.
fn start(ptx: &str) -> usize {
    let (mut ctx, mut module, mut function) = (0, 0, 0);
    let (text, name) = (CString::new(ptx).unwrap(), CString::new("ping_pong").unwrap());
    ok!(cuInit(0));
    ok!(cuDevicePrimaryCtxRetain(&mut ctx, 0));
    ok!(cuCtxSetCurrent(ctx));
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}

/// Plays one side on words 0 to 3 of the shared memory: its flag, the other's, the data, the errors.
fn play(function: usize, memory: u64, first: bool) -> u32 {
    let flags = [memory, memory + 64];
    let (mut mine, mut theirs) = (flags[usize::from(first)], flags[usize::from(!first)]);
    let (mut data, mut errors, mut rounds, mut lead) =
        (memory + 128, memory + 192, ROUNDS, u32::from(first));
    let mut params: [*mut c_void; 6] = [
        (&raw mut mine).cast(),
        (&raw mut theirs).cast(),
        (&raw mut data).cast(),
        (&raw mut errors).cast(),
        (&raw mut rounds).cast(),
        (&raw mut lead).cast(),
    ];
    ok!(cuLaunchKernel(
        function,
        1,
        1,
        1,
        1,
        1,
        1,
        0,
        0,
        params.as_mut_ptr(),
        std::ptr::null_mut()
    ));
    ok!(cuCtxSynchronize());
    let mut wrong = u32::MAX;
    ok!(cuMemcpyDtoH_v2((&raw mut wrong).cast(), errors, 4));
    wrong
}

fn child(handle: &MemHandle, how: &str) -> Child {
    let hex: String = handle.bytes.iter().map(|b| format!("{b:02x}")).collect();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "importer", "--ignored"])
        .envs([("HANDLE", hex.as_str()), ("HOW", how)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn vgpu_processes_share_device_memory() {
    let Some(ptx) = common::kernels_ptx() else {
        return;
    };
    let function = start(&ptx);
    let (mut memory, mut handle, mut other) = (0, MemHandle { bytes: [0; 64] }, 0);
    ok!(cuMemAlloc_v2(&mut memory, 256));
    ok!(cuIpcGetMemHandle(&mut handle, memory));
    // SAFETY: as in `ok!`. A handle of this process, and one that is none, are refused.
    unsafe {
        assert_eq!(cuIpcOpenMemHandle_v2(&mut other, handle, 1), 201);
        assert_eq!(cuIpcOpenMemHandle_v2(&mut other, MemHandle { bytes: [7; 64] }, 1), 1);
    }
    let mut importer = child(&handle, "play");
    assert_eq!(play(function, memory, true), 0);
    assert!(importer.wait().unwrap().success());
    // An importer that dies leaves the memory as it is.
    let mut killed = child(&handle, "die");
    assert!(!killed.wait().unwrap().success());
    let mut word = 0u32;
    ok!(cuMemcpyDtoH_v2((&raw mut word).cast(), memory + 128, 4));
    assert_eq!(word, ROUNDS);
    ok!(cuMemFree_v2(memory));
}

#[test]
#[ignore = "started by the test above, with a handle"]
fn importer() {
    let hex = std::env::var("HANDLE").unwrap();
    let bytes = std::array::from_fn(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap());
    let function = start(&common::kernels_ptx().unwrap());
    let mut memory = 0;
    ok!(cuIpcOpenMemHandle_v2(&mut memory, MemHandle { bytes }, 1));
    if std::env::var("HOW").unwrap() == "die" {
        std::process::abort();
    }
    assert_eq!(play(function, memory, false), 0);
    ok!(cuIpcCloseMemHandle(memory));
}

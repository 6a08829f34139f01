//! Starts tests again as processes of their own, and what they do most.

use std::ffi::{CString, c_void};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::time::Duration;

use cudarc::driver::sys::*;

/// Asserts that an entry point succeeds.
macro_rules! ok {
    ($call:expr) => {
        // SAFETY: the pointers are to locals of the right types.
        assert_eq!(unsafe { $call }, CUresult::CUDA_SUCCESS, "{}", stringify!($call))
    };
}

/// Asserts that an entry point fails with an error.
macro_rules! err {
    ($code:ident, $call:expr) => {
        // SAFETY: as in `ok!`; wrong handles are refused.
        assert_eq!(unsafe { $call }, CUresult::$code, "{}", stringify!($call))
    };
}
pub(crate) use {err, ok};

/// A value made by an entry point that writes it through its first pointer.
macro_rules! make {
    ($f:ident($($arg:expr),*)) => {{
        // SAFETY: handles and numbers are good as zero; then as in `ok!`.
        let mut x = unsafe { std::mem::zeroed() };
        ok!($f(&mut x, $($arg),*));
        x
    }};
}
pub(crate) use make;

const INSIDE: &str = "VGPU_TEST_INSIDE";
const ROLE: &str = "VGPU_TEST_ROLE";

/// A folder with the library under both names; removed at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Folder {
        let exe = std::env::current_exe().unwrap();
        let library = exe.parent().unwrap().join("libvgpu.so");
        assert!(library.exists(), "{} was not built", library.display());
        let thread = format!("{:?}", std::thread::current().id());
        let name =
            format!("vgpu-driver-{}-{}", std::process::id(), thread.replace(['(', ')'], "-"));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(&library, folder.join(name)).unwrap();
        }
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// This test again, in another process.
fn again() -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    let name = std::thread::current().name().unwrap().to_string();
    c.args(["--exact", &name, "--nocapture"]).env(INSIDE, "1");
    c
}

/// Runs the body in a process that has the library, with these variables. What it writes comes back.
pub fn run(env: &[(&str, &str)], body: impl FnOnce()) -> Option<String> {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return None;
    }
    let folder = Folder::new();
    let mut c = again();
    c.env("LD_LIBRARY_PATH", &folder.0).env("VGPU_WATCHDOG", "20").envs(env.iter().copied());
    let out = c.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    Some(text.into_owned())
}

/// As [`run`], on so many devices.
pub fn on(devices: u32, body: impl FnOnce()) {
    run(&[("VGPU_DEVICES", &devices.to_string())], body);
}

/// The part that this process plays, if a test started it to play one.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A process that plays a part of the same test. It writes lines that begin with `>`, and reads lines.
pub struct Player {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Player {
    pub fn start(role: &str) -> Player {
        let mut c = again();
        c.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = c.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The first line follows what the test harness writes.
                if let Some((_, said)) = line.split_once('>') {
                    let _ = send.send(said.to_string());
                }
            }
        });
        Player { child, lines }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says next.
    pub fn hear(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(60)).expect("the other process says nothing")
    }

    pub fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Kills it, in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// It ends by itself, and well.
    pub fn finish(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says a line to the process that started this one.
pub fn say(line: &str) {
    println!(">{line}");
}

/// The next line from the process that started this one.
pub fn listen() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_string()
}

/// Makes the device's primary context current.
pub fn use_device(device: i32) -> CUcontext {
    ok!(cuInit(0));
    let c = make!(cuDevicePrimaryCtxRetain(device));
    ok!(cuCtxSetCurrent(c));
    c
}

/// Small kernels; all parameters are 64 bits wide.
pub const PTX: &str = "
.version 8.1
.target sm_90
.address_size 64
.visible .global .align 4 .u32 word = 77;
// *at = value
.visible .entry store(.param .u64 at, .param .u64 value) {
    .reg .b64 %a<3>; .reg .b32 %v;
    ld.param.u64 %a1, [at]; ld.param.u64 %a2, [value]; cvt.u32.u64 %v, %a2;
    st.release.sys.global.u32 [%a1], %v;
    ret;
}
// *to = *from
.visible .entry load(.param .u64 to, .param .u64 from) {
    .reg .b64 %a<3>; .reg .b32 %v;
    ld.param.u64 %a1, [to]; ld.param.u64 %a2, [from];
    ld.acquire.sys.global.u32 %v, [%a2]; st.global.u32 [%a1], %v;
    ret;
}
// *at = *at * 3 + value
.visible .entry step(.param .u64 at, .param .u64 value) {
    .reg .b64 %a<3>; .reg .b32 %v<3>;
    ld.param.u64 %a1, [at]; ld.param.u64 %a2, [value]; cvt.u32.u64 %v1, %a2;
    ld.global.u32 %v2, [%a1]; mad.lo.u32 %v2, %v2, 3, %v1; st.global.u32 [%a1], %v2;
    ret;
}
// waits until *at == value
.visible .entry await(.param .u64 at, .param .u64 value) {
    .reg .b64 %a<3>; .reg .b32 %v<3>; .reg .pred %p;
    ld.param.u64 %a1, [at]; ld.param.u64 %a2, [value]; cvt.u32.u64 %v1, %a2;
AGAIN:
    ld.acquire.sys.global.u32 %v2, [%a1];
    setp.ne.u32 %p, %v2, %v1;
    @%p bra AGAIN;
    ret;
}
// *team = value, for all members
.visible .entry team_store(.param .u64 team, .param .u64 value) {
    .reg .b64 %a<3>; .reg .b32 %v;
    ld.param.u64 %a1, [team]; ld.param.u64 %a2, [value]; cvt.u32.u64 %v, %a2;
    multimem.st.relaxed.sys.global.u32 [%a1], %v;
    ret;
}
// *to = sum of *team over all members
.visible .entry team_sum(.param .u64 to, .param .u64 team) {
    .reg .b64 %a<3>; .reg .b32 %v;
    ld.param.u64 %a1, [to]; ld.param.u64 %a2, [team];
    multimem.ld_reduce.relaxed.sys.global.add.u32 %v, [%a2]; st.global.u32 [%a1], %v;
    ret;
}
// one block that needs much shared memory
.extern .shared .align 16 .b8 much[];
.visible .entry big(.param .u64 at) {
    .reg .b64 %a1;
    ld.param.u64 %a1, [at]; st.global.u32 [%a1], 5;
    ret;
}
";

/// A kernel of [`PTX`] in the current context.
pub fn kernel(name: &str) -> CUfunction {
    let (text, name) = (CString::new(PTX).unwrap(), CString::new(name).unwrap());
    let module = make!(cuModuleLoadData(text.as_ptr().cast()));
    make!(cuModuleGetFunction(module, name.as_ptr()))
}

/// Starts one thread of a kernel.
pub fn start(f: CUfunction, stream: CUstream, params: &[u64]) -> CUresult {
    let mut pointers: Vec<*mut c_void> =
        params.iter().map(|p| std::ptr::from_ref(p).cast_mut().cast()).collect();
    // SAFETY: each pointer is to as many bytes as the kernel's parameter has.
    unsafe { cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, stream, pointers.as_mut_ptr(), null_mut()) }
}

/// Runs one thread of a kernel of [`PTX`] and waits for it.
pub fn run_kernel(name: &str, params: &[u64]) -> CUresult {
    assert_eq!(start(kernel(name), null_mut(), params), CUresult::CUDA_SUCCESS);
    // SAFETY: no pointers.
    unsafe { cuCtxSynchronize() }
}

pub fn word(at: u64) -> u32 {
    let mut x = 0u32;
    ok!(cuMemcpyDtoH_v2((&raw mut x).cast(), at, 4));
    x
}

pub fn set_word(at: u64, x: u32) {
    ok!(cuMemcpyHtoD_v2(at, (&raw const x).cast(), 4));
}

/// Zeroed memory of the current device.
pub fn alloc(bytes: usize) -> u64 {
    make!(cuMemAlloc_v2(bytes))
}

//! vgpu: weak memory and races across processes, whose kernels one engine runs.

mod common;

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vgpu::MachineConfig;
use vgpu::driver::api::*;
use vgpu::driver::ipc::MemHandle;
use vgpu::remote::{Server, VARIABLE};
use vgpu::track::model::Config;

const ROUNDS: u32 = 40;

/// Asserts that an entry point succeeds.
macro_rules! ok {
    ($call:expr) => {
        // SAFETY: the pointers are to locals of the right types, the handles came from the driver.
        assert_eq!(unsafe { $call }, 0, "{}", stringify!($call))
    };
}

/// An engine, and a folder with the kernels that its processes load.
struct Rig {
    folder: PathBuf,
    server: Server,
    _one: MutexGuard<'static, ()>,
}

/// A process has one engine at a time.
static ONE: Mutex<()> = Mutex::new(());

impl Rig {
    fn new(name: &str, ptx: &str, seed: u64) -> Rig {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder =
            std::env::temp_dir().join(format!("vgpu-engine-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("ptx"), ptx).unwrap();
        let config = MachineConfig {
            devices: 2,
            sms: 4,
            track: Some(Config { weak: true, race: true, seed }),
            watchdog: Duration::from_secs(5),
            ..MachineConfig::default()
        };
        let server = Server::start(&folder.join("socket"), config).unwrap();
        Rig { folder, server, _one: one }
    }

    fn process(&self, role: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process", "--ignored", "--nocapture"])
            .env(VARIABLE, self.folder.join("socket"))
            .envs([("VGPU_MODE", "weak"), ("VGPU_RACES", "1"), ("VGPU_DEVICES", "2")])
            .envs([("ROLE", role), ("FOLDER", self.folder.to_str().unwrap())])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Two processes play ping-pong; true if both saw what they should.
    fn play(&self) -> bool {
        let _ = std::fs::remove_file(self.folder.join("handle"));
        let both = [self.process("first"), self.process("second")];
        both.map(|mut child| child.wait().unwrap().success()) == [true; 2]
    }

    fn until(&self, what: &str, reached: impl Fn(&Rig) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !reached(self) {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn vgpu_processes_that_synchronise_are_right_and_race_not() {
    let Some(ptx) = common::kernels_ptx() else { return };
    for seed in 0..3 {
        let rig = Rig::new("right", &ptx, seed);
        assert!(rig.play(), "seed {seed}");
        assert!(rig.server.races().is_empty(), "seed {seed}: {}", rig.server.races()[0]);
        rig.until("members leave", |rig| rig.server.members() == 0);
    }
}

#[test]
fn vgpu_a_race_between_processes_is_found() {
    let Some(ptx) = common::kernels_ptx() else { return };
    let start = ptx.find(".visible .entry ping_pong(").unwrap();
    let mutant = ptx[..start].to_owned() + &ptx[start..].replacen(".release", ".relaxed", 1);
    assert_ne!(mutant, ptx);
    let rig = Rig::new("race", &mutant, 1);
    rig.play();
    let races = rig.server.races();
    let between = |r: &vgpu::track::RaceReport| {
        let (a, b) = (&r.first.0, &r.second.0);
        a.kernel == "ping_pong" && b.kernel == "ping_pong"
    };
    assert!(races.iter().any(between), "{races:?}");
}

#[test]
fn vgpu_a_killed_process_takes_its_kernel_along_and_nothing_else() {
    let Some(ptx) = common::kernels_ptx() else { return };
    let rig = Rig::new("killed", &ptx, 0);
    // Its kernel waits for a second one that does not come.
    let mut alone = rig.process("first");
    rig.until("it gives its handle", |rig| rig.folder.join("handle").exists());
    std::thread::sleep(Duration::from_millis(100));
    alone.kill().unwrap();
    alone.wait().unwrap();
    rig.until("it leaves", |rig| rig.server.members() == 0);
    assert!(rig.play());
}

#[test]
#[ignore = "started by the tests above, with a role"]
fn process() {
    let folder = PathBuf::from(std::env::var("FOLDER").unwrap());
    let first = std::env::var("ROLE").unwrap() == "first";
    let function = start(&folder, u32::from(!first));
    let memory = if first { export(&folder) } else { import(&folder) };
    assert_eq!(play(function, memory, first), 0);
}

/// Starts the driver on a device and loads `ping_pong`.
fn start(folder: &Path, device: u32) -> usize {
    let (mut ctx, mut module, mut function) = (0, 0, 0);
    let text = CString::new(std::fs::read(folder.join("ptx")).unwrap()).unwrap();
    let name = CString::new("ping_pong").unwrap();
    ok!(cuInit(0));
    ok!(cuDevicePrimaryCtxRetain(&mut ctx, device as i32));
    ok!(cuCtxSetCurrent(ctx));
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}

fn export(folder: &Path) -> u64 {
    let (mut memory, mut handle) = (0, MemHandle { bytes: [0; 64] });
    ok!(cuMemAlloc_v2(&mut memory, 256));
    ok!(cuIpcGetMemHandle(&mut handle, memory));
    // Renamed, so that the other one sees all of it.
    std::fs::write(folder.join("writing"), handle.bytes).unwrap();
    std::fs::rename(folder.join("writing"), folder.join("handle")).unwrap();
    memory
}

fn import(folder: &Path) -> u64 {
    let end = Instant::now() + Duration::from_secs(10);
    let bytes = loop {
        match std::fs::read(folder.join("handle")) {
            Ok(bytes) => break bytes,
            Err(_) => assert!(Instant::now() < end, "no handle"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut memory = 0;
    let handle = MemHandle { bytes: bytes.try_into().unwrap() };
    ok!(cuIpcOpenMemHandle_v2(&mut memory, handle, 1));
    memory
}

/// Plays one side in the shared memory; how often it saw something wrong.
fn play(function: usize, memory: u64, first: bool) -> u32 {
    let flags = [memory, memory + 64];
    let (mut mine, mut theirs) = (flags[usize::from(first)], flags[usize::from(!first)]);
    let (mut data, mut errors, mut rounds, mut lead) =
        (memory + 128, memory + 192 + 16 * u64::from(first), ROUNDS, u32::from(first));
    let mut params: [*mut c_void; 6] = [
        (&raw mut mine).cast(),
        (&raw mut theirs).cast(),
        (&raw mut data).cast(),
        (&raw mut errors).cast(),
        (&raw mut rounds).cast(),
        (&raw mut lead).cast(),
    ];
    let params = params.as_mut_ptr();
    ok!(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, params, std::ptr::null_mut()));
    ok!(cuCtxSynchronize());
    let mut wrong = u32::MAX;
    ok!(cuMemcpyDtoH_v2((&raw mut wrong).cast(), errors, 4));
    wrong
}

//! vgpu: CUDA C++ programs, compiled by nvcc with `-cudart shared`, on the libraries of this workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "../../tests/common/toolkit.rs"]
mod toolkit;

/// A folder of its own with the libraries under the names that programs look for; it goes away with the value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("vgpu-cudart-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        for (file, names) in [
            ("libvgpu.so", &["libcuda.so.1"][..]),
            ("libvgpu_cudart.so", &["libcudart.so", "libcudart.so.13"]),
        ] {
            let library = built.join(file);
            assert!(library.exists(), "{} was not built", library.display());
            for name in names {
                std::os::unix::fs::symlink(&library, path.join(name)).unwrap();
            }
        }
        Folder(path)
    }

    /// Compiles a program of tests/programs as a user does, with more arguments for nvcc.
    fn compile(&self, cuda: &Path, name: &str, args: &[&str]) -> PathBuf {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/programs/{name}.cu"));
        let program = self.0.join(name);
        let out = Command::new(cuda.join("bin/nvcc"))
            .args(["-std=c++17", "-cudart", "shared", "-L"])
            .arg(&self.0)
            .args(args)
            .arg("-o")
            .args([&program, &source])
            .output()
            .unwrap();
        assert!(out.status.success(), "nvcc: {}", text(&out));
        program
    }

    /// Runs it on two virtual devices of compute capability 9.0.
    fn run(&self, program: &Path) -> Output {
        self.command(program).output().unwrap()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.arg("120").arg(program).env("LD_LIBRARY_PATH", &self.0);
        command.envs([("VGPU_DEVICES", "2"), ("VGPU_ARCH", "90")]);
        command
    }
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// A program that checks itself and ends by saying so.
fn is_right(name: &str, args: &[&str]) {
    let Some(cuda) = toolkit::toolkit() else {
        return;
    };
    let folder = Folder::new(name);
    let out = folder.run(&folder.compile(&cuda, name, args));
    assert!(
        out.status.success() && text(&out).contains("right\n"),
        "{}: {}",
        out.status,
        text(&out)
    );
}

/// False, loudly, if the driver lacks an entry point; a failure under CI.
fn driver_has(entry: &str) -> bool {
    let library = std::env::current_exe().unwrap().with_file_name("libvgpu.so");
    let out = Command::new("nm").arg("-D").arg(library).output().unwrap();
    let has = text(&out).lines().any(|l| l.ends_with(&format!(" T {entry}")));
    if !has {
        eprintln!("\n*** NOT RUN: the driver has no {entry} ***\n");
        assert!(std::env::var_os("CI").is_none(), "a test that cannot run is a failure under CI");
    }
    has
}

const SM_90: &[&str] = &["-arch=sm_90"];

#[test]
fn vgpu_vectors() {
    is_right("vectors", SM_90);
}

#[test]
fn vgpu_streams_and_events() {
    is_right("streams", SM_90);
}

#[test]
fn vgpu_constant_and_device_variables() {
    is_right("symbols", SM_90);
}

#[test]
fn vgpu_cooperative_launch() {
    is_right("grid", SM_90);
}

#[test]
fn vgpu_two_devices() {
    is_right("peers", SM_90);
}

#[test]
fn vgpu_two_processes() {
    is_right("ipc", SM_90);
}

#[test]
fn vgpu_errors() {
    is_right("errors", SM_90);
}

#[test]
fn vgpu_graphs() {
    if driver_has("cuStreamBeginCapture_v2") {
        is_right("graphs", SM_90);
    }
}

#[test]
fn vgpu_queries() {
    if driver_has("cuPointerGetAttribute") {
        is_right("queries", SM_90);
    }
}

/// In weak mode one thread runs all kernels: it must not take those that others are about to launch for missing.
#[test]
fn vgpu_kernels_of_two_streams_meet_in_every_mode() {
    let Some(cuda) = toolkit::toolkit() else {
        return;
    };
    let folder = Folder::new("rounds");
    let program = folder.compile(&cuda, "rounds", SM_90);
    for mode in ["sc", "weak"] {
        let out = folder.command(&program).env("VGPU_MODE", mode).output().unwrap();
        assert!(text(&out).contains("right\n"), "{mode}: {}", text(&out));
    }
}

/// However nvcc stores the PTX: as it does by default, each compression, none, and next to code for other devices.
#[test]
fn vgpu_all_forms_of_device_code_load() {
    let Some(cuda) = toolkit::toolkit() else {
        return;
    };
    let folder = Folder::new("forms");
    let forms: [&[&str]; 5] = [
        &[],
        &["--compress-mode=speed", "-arch=sm_90"],
        &["--compress-mode=size", "-arch=sm_80"],
        &["--no-compress", "-gencode", "arch=compute_90,code=compute_90"],
        &[
            "-gencode",
            "arch=compute_80,code=[sm_80,compute_80]",
            "-gencode",
            "arch=compute_100,code=compute_100",
        ],
    ];
    for form in forms {
        let out = folder.run(&folder.compile(&cuda, "symbols", form));
        assert!(out.status.success(), "{form:?}: {}", text(&out));
    }
}

/// A program that has no PTX for the device gets the runtime's error, and a line that says how to compile it.
#[test]
fn vgpu_a_program_without_ptx_is_told_so() {
    let Some(cuda) = toolkit::toolkit() else {
        return;
    };
    let folder = Folder::new("no-ptx");
    for (code, has) in [
        ("arch=compute_90,code=sm_90", "machine code only, for 90"),
        ("arch=compute_100,code=compute_100", "its PTX is for 100"),
    ] {
        let out = folder.run(&folder.compile(&cuda, "symbols", &["-gencode", code]));
        let says = text(&out);
        assert!(
            !out.status.success() && says.contains("cudaErrorNoKernelImageForDevice"),
            "{says}"
        );
        assert!(
            says.contains(has) && says.contains("-gencode arch=compute_90,code=compute_90"),
            "{says}"
        );
    }
}

/// The entry points have the version that programs ask for: with another one the loader would warn, or refuse.
#[test]
fn vgpu_symbols_have_the_version_of_cuda_13() {
    let library = std::env::current_exe().unwrap().with_file_name("libvgpu_cudart.so");
    let out = Command::new("readelf").args(["-W", "--dyn-syms", "--dynamic"]).arg(library).output();
    let table = text(&out.unwrap());
    assert!(table.contains("Library soname: [libcudart.so.13]"), "{table}");
    let ours =
        table.lines().filter(|l| l.contains(" FUNC ") && l.contains("cuda") && !l.contains("UND"));
    let (right, wrong): (Vec<_>, Vec<_>) = ours.partition(|l| l.ends_with("@@libcudart.so.13"));
    assert!(wrong.is_empty() && right.len() > 100, "{} right, wrong: {wrong:#?}", right.len());
}

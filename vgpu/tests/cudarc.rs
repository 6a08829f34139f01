//! vgpu: a cudarc program that knows nothing of vgpu, on `libcuda.so.1` made of this crate.
//!
//! cudarc opens the library by name, so the test starts itself again with the library's folder in LD_LIBRARY_PATH.

use std::process::Command;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const PTX: &str = "
.version 8.0
.target sm_90
.address_size 64
.visible .entry saxpy(.param .u64 y, .param .u64 x, .param .f32 a, .param .u32 n) {
    .reg .pred %p; .reg .b32 %r<6>; .reg .f32 %f<5>; .reg .b64 %rd<7>;
    ld.param.u64 %rd1, [y]; ld.param.u64 %rd2, [x]; ld.param.f32 %f1, [a]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p, %r5, %r1;
    @%p bra DONE;
    mul.wide.u32 %rd3, %r5, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd5]; ld.global.f32 %f3, [%rd4]; fma.rn.f32 %f4, %f1, %f2, %f3; st.global.f32 [%rd4], %f4;
DONE:
    ret;
}";

#[test]
fn vgpu_a_cudarc_program_runs_unchanged() {
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libvgpu.so");
    assert!(library.exists(), "{} was not built", library.display());
    let folder = std::env::temp_dir().join(format!("vgpu-cudarc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.join(name)).unwrap();
    }
    let counters = folder.join("counters.jsonl");
    for mode in ["sc", "weak"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "program", "--ignored", "--nocapture"])
            .env("LD_LIBRARY_PATH", &folder)
            .env("VGPU_COUNTERS", &counters)
            .envs([
                ("VGPU_DEVICES", "2"),
                ("VGPU_MODE", mode),
                ("VGPU_RACES", if mode == "weak" { "1" } else { "0" }),
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && text.contains("1 passed"), "{mode}:\n{text}");
        assert!(!text.contains("race on"), "{text}");
        // 2 devices x 3 launches of 1000 floats: 8000 bytes loaded, 4000 stored.
        let lines = std::fs::read_to_string(&counters).unwrap();
        let right = |l: &&str| {
            l.contains("\"kernel\":\"saxpy\"")
                && l.contains("\"loaded\":{\"own\":8000,")
                && l.contains("\"stored\":{\"own\":4000,")
        };
        assert_eq!((lines.lines().count(), lines.lines().filter(right).count()), (6, 6), "{lines}");
        std::fs::remove_file(&counters).unwrap();
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
#[ignore = "started by the test above, with the library in its path"]
fn program() {
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let mut results = Vec::new();
    for device in 0..2 {
        let ctx = CudaContext::new(device).unwrap();
        assert_eq!(ctx.compute_capability().unwrap(), (9, 0));
        let module = ctx.load_module(Ptx::from_src(PTX)).unwrap();
        let saxpy = module.load_function("saxpy").unwrap();
        assert!(module.load_function("nothing").is_err());
        let (one, two) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
        let n = 1000usize;
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let xs = one.clone_htod(&x).unwrap();
        let mut ys = one.alloc_zeros::<f32>(n).unwrap();
        let (a, count) = (2.0f32, n as u32);
        // Two streams on the same data: cudarc orders them by events.
        for stream in [&one, &two, &one] {
            let mut launch = stream.launch_builder(&saxpy);
            launch.arg(&mut ys).arg(&xs).arg(&a).arg(&count);
            // SAFETY: the kernel takes these four and stays below `n`.
            unsafe { launch.launch(LaunchConfig::for_num_elems(count)) }.unwrap();
        }
        results.push(two.clone_dtoh(&ys).unwrap());
        ctx.synchronize().unwrap();
    }
    for r in results {
        assert_eq!(r, (0..1000).map(|i| 6.0 * i as f32).collect::<Vec<_>>());
    }
    // A wrong address is the driver's error, and stays.
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let saxpy = ctx.load_module(Ptx::from_src(PTX)).unwrap().load_function("saxpy").unwrap();
    let xs = stream.alloc_zeros::<f32>(4).unwrap();
    let mut launch = stream.launch_builder(&saxpy);
    let (nowhere, a, n) = (16u64, 1.0f32, 4u32);
    launch.arg(&nowhere).arg(&xs).arg(&a).arg(&n);
    // SAFETY: the virtual device checks addresses; that it does is what is tested.
    unsafe { launch.launch(LaunchConfig::for_num_elems(4)) }.unwrap();
    let error = stream.synchronize().unwrap_err();
    assert!(format!("{error:?}").contains("ILLEGAL_ADDRESS"), "{error:?}");
    std::mem::forget(xs);
}

//! The structures that programs pass lie in memory as NVIDIA's headers of CUDA 13 have them.

#[path = "../../tests/common/toolkit.rs"]
mod toolkit;

#[test]
fn vgpu_structures_have_the_headers_layout() {
    let Some(cuda) = toolkit::toolkit() else {
        return;
    };
    let mut source =
        String::from("#include <cstddef>\n#include <cuda.h>\n#include <cuda_runtime_api.h>\n");
    for (what, ours) in
        [crate::properties::LAYOUT, crate::launch::LAYOUT, crate::memory::LAYOUT].concat()
    {
        source += &format!("static_assert({what} == {ours}, \"{what}\");\n");
    }
    let file = std::env::temp_dir().join(format!("vgpu-layout-{}.cpp", std::process::id()));
    std::fs::write(&file, source).unwrap();
    let mut compiler = std::process::Command::new("g++");
    compiler.args(["-std=c++17", "-fsyntax-only", "-I"]).arg(cuda.join("include")).arg(&file);
    let out = compiler.output().unwrap();
    let _ = std::fs::remove_file(&file);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

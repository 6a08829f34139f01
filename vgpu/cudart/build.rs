//! Gives the library the name and the symbol version that `nvcc -cudart shared` programs import.

fn main() {
    // A version script of our own is no way: rustc passes one without a version node, and the two do not mix. With
    // --default-symver, which of the usual linkers only GNU ld has, the version node is the soname.
    for arg in ["-fuse-ld=bfd", "-Wl,-soname,libcudart.so.13", "-Wl,--default-symver"] {
        println!("cargo:rustc-cdylib-link-arg={arg}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}

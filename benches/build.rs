//! Builds the shim of the gloo backend, where that is asked for.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "gloo")]
    gloo();
}

#[cfg(feature = "gloo")]
fn gloo() {
    let folder = "src/backend/gloo";
    println!("cargo:rerun-if-changed={folder}");
    let mut shim = cc::Build::new();
    // Gloo's sums are templates, so this is where they are compiled: with vectors, as in Gloo's own
    // builds for release. Its headers compare signed with unsigned numbers.
    shim.cpp(true).std("c++17").opt_level(3).file(format!("{folder}/shim.cc"));
    shim.warnings(true).flag("-Wno-sign-compare").flag("-Wno-unused-parameter");
    if let Err(error) = shim.try_compile("warpmesh_gloo") {
        // Cargo shows this as the reason for which the build failed.
        eprintln!(
            "the gloo backend needs Gloo and a C++17 compiler (Debian: apt-get install \
             --no-install-recommends libgloo-dev g++): {error}"
        );
        std::process::exit(1);
    }
    println!("cargo:rustc-link-lib=gloo");
}

//! vgpu: conversions and half arithmetic, bit by bit against NVIDIA's host code in its public headers, compiled with g++.
//!
//! 8- and 16-bit sources exhaustively; f32 sources and pairs over 65536 patterns, half of them near ties.

mod common;

use std::path::Path;
use std::process::Command;

use vgpu::num::*;

/// Runs the C++ side; `None` if the headers cannot be had here.
fn oracle(names: &[&str]) -> Option<Vec<Vec<u32>>> {
    let cuda = common::toolkit()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/header_oracle.cpp");
    let exe = std::env::temp_dir().join(format!("vgpu-oracle-{}", std::process::id()));
    let built = Command::new("g++")
        .args(["-O1", "-std=c++17", "-I"])
        .arg(cuda.join("include"))
        .arg("-o")
        .arg(&exe)
        .arg(&source)
        .status();
    assert!(built.is_ok_and(|s| s.success()), "g++ cannot build {}", source.display());
    let table = |name: &&str| {
        let out = Command::new(&exe).arg(name).output().unwrap();
        assert!(out.status.success(), "the oracle does not know {name}");
        out.stdout.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    };
    let tables = names.iter().map(table).collect();
    let _ = std::fs::remove_file(exe);
    Some(tables)
}

/// The stream of patterns of the C++ side.
struct Patterns(u64);

impl Patterns {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = (self.0 >> 32) as u32;
        if x >> 31 == 1 { x } else { x & !0xfff }
    }
}

/// (its name, source index and three random patterns to result)
type Case = (&'static str, fn(u32, u32, u32, u32) -> u32);

fn hi(x: u32) -> u16 {
    (x >> 16) as u16
}
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}
/// The device's f32 NaN is canonical; a host conversion keeps a payload.
fn is_nan(x: u32) -> bool {
    f(x).is_nan()
}

const CASES: &[Case] = &[
    ("f16_to_f32", |i, _, _, _| f16_to_f32(i as u16).to_bits()),
    ("bf16_to_f32", |i, _, _, _| bf16_to_f32(i as u16).to_bits()),
    ("e4m3_to_f16", |i, _, _, _| E4M3.to_f16(i as u8).into()),
    ("e5m2_to_f16", |i, _, _, _| E5M2.to_f16(i as u8).into()),
    ("f16_to_e4m3", |i, _, _, _| E4M3.from_f64_satfinite(f16_to_f32(i as u16).into()).into()),
    ("f16_to_e5m2", |i, _, _, _| E5M2.from_f64_satfinite(f16_to_f32(i as u16).into()).into()),
    ("f32_to_f16", |_, r, _, _| f32_to_f16(f(r)).into()),
    ("f32_to_f16_rz", |_, r, _, _| f32_to_f16_rz(f(r)).into()),
    ("f32_to_bf16", |_, r, _, _| f32_to_bf16(f(r)).into()),
    ("f32_to_bf16_rz", |_, r, _, _| f32_to_bf16_rz(f(r)).into()),
    ("f32_to_e4m3", |_, r, _, _| E4M3.from_f64_satfinite(f(r).into()).into()),
    ("f32_to_e5m2", |_, r, _, _| E5M2.from_f64_satfinite(f(r).into()).into()),
    ("f16_add", |_, r, q, _| f16_add(hi(r), hi(q)).into()),
    ("f16_mul", |_, r, q, _| f16_mul(hi(r), hi(q)).into()),
    ("f16_min", |_, r, q, _| f16_min(hi(r), hi(q)).into()),
    ("f16_max", |_, r, q, _| f16_max(hi(r), hi(q)).into()),
    ("bf16_add", |_, r, q, _| bf16_add(hi(r), hi(q)).into()),
    ("bf16_mul", |_, r, q, _| bf16_mul(hi(r), hi(q)).into()),
    ("bf16_min", |_, r, q, _| bf16_min(hi(r), hi(q)).into()),
    ("bf16_max", |_, r, q, _| bf16_max(hi(r), hi(q)).into()),
];

#[test]
fn vgpu_numbers_agree_with_nvidias_headers() {
    let names: Vec<&str> = CASES.iter().map(|c| c.0).collect();
    let Some(tables) = oracle(&names) else { return };
    let mut wrong = Vec::new();
    for ((name, ours), theirs) in CASES.iter().zip(&tables) {
        assert_eq!(theirs.len(), 65536);
        let mut patterns = Patterns(1);
        let mut bad = 0;
        for (i, &want) in theirs.iter().enumerate() {
            let (r, q, w) = (patterns.next(), patterns.next(), patterns.next());
            let got = ours(i as u32, r, q, w);
            let both_nan = name.ends_with("to_f32") && is_nan(got) && is_nan(want);
            if got != want && !both_nan {
                bad += 1;
                if bad <= 3 {
                    wrong.push(format!("{name} of {i:#x}, {r:#x} {q:#x} {w:#x}: {got:#x}, the header gives {want:#x}"));
                }
            }
        }
        if bad > 0 {
            wrong.push(format!("{name}: {bad} of 65536 differ"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

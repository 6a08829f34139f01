//! vgpu: every opcode of the field's kernels, with values worked out independently.
//!
//! `data/opcodes.tsv` has a row per case: opcode, operands (`result=sources` by class: h 16, w 32, d 64 bits, p predicate; or a
//! body in braces), inputs, expected result. The values were computed by a script with exact rational arithmetic
//! and numpy's float16, which shares nothing with this crate. Each row runs on 32 lanes, in SC mode and in weak mode.

use std::fmt::Write as _;

use vgpu::mem::space::Kind;
use vgpu::track::model::Config;
use vgpu::{LaunchSpec, Machine, MachineConfig};

const ROWS: &str = include_str!("data/opcodes.tsv");
const OPCODES: &str = include_str!("data/ptx-opcodes.txt");

struct Row {
    opcode: &'static str,
    how: &'static str,
    inputs: Vec<u64>,
    expected: u64,
}

fn hex(s: &str) -> u64 {
    u64::from_str_radix(s.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("bad number {s}"))
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let f: Vec<&str> = line.split('\t').collect();
        Row {
            opcode: f[0],
            how: f[1],
            inputs: f[2].split_whitespace().map(hex).collect(),
            expected: hex(f[3]),
        }
    };
    ROWS.lines().map(row).collect()
}

fn body(row: &Row) -> String {
    if let Some(b) = row.how.strip_prefix('{') {
        return b.strip_suffix('}').unwrap_or(b).to_string();
    }
    let (d, s) = row.how.split_once('=').unwrap();
    let result = if d == "p" { "%op1".to_string() } else { format!("%o{d}") };
    let sources: Vec<String> = s.chars().enumerate().map(|(n, c)| format!("%{c}{n}")).collect();
    format!("{} {result}, {};", row.opcode, sources.join(", "))
}

fn module(rows: &[Row]) -> String {
    let bytes: Vec<String> = (0..64).map(|n: u8| n.to_string()).collect();
    let mut text = format!(
        ".version 8.6\n.target sm_90a\n.address_size 64\n.shared .align 16 .b8 smem[1024];\n.shared .align 8 .b64 mbar;\n\
         .const .align 16 .b8 cbank[64] = {{{}}};\n\
         .func (.param .b64 rv) callee(.param .b32 a, .param .b64 b) {{ .reg .b64 %d<4>; .reg .b32 %w<2>;\n\
         ld.param.u32 %w1, [a]; ld.param.u64 %d1, [b]; cvt.u64.u32 %d2, %w1; add.u64 %d3, %d1, %d2;\n\
         st.param.b64 [rv], %d3; ret; }}\n",
        bytes.join(",")
    );
    for (n, row) in rows.iter().enumerate() {
        let b = body(row);
        let widen = match () {
            () if b.contains("%od") => "",
            () if b.contains("%ow") => "cvt.u64.u32 %od, %ow;",
            () if b.contains("%oh") => "cvt.u64.u16 %od, %oh;",
            () => "selp.u64 %od, 1, 0, %op1;",
        };
        let mut load = String::new();
        for k in 0..row.inputs.len() {
            let _ = write!(
                load,
                "ld.global.u64 %d{k}, [%in+{}]; cvt.u32.u64 %w{k}, %d{k}; cvt.u16.u64 %h{k}, %d{k}; setp.ne.u64 %p{k}, %d{k}, 0; ",
                8 * k
            );
        }
        let _ = write!(
            text,
            ".visible .entry k{n}(.param .u64 p_out, .param .u64 p_g, .param .u64 p_in, .param .u64 p_mc, .param .u64 p_m0,\n\
             .param .u64 p_m1, .param .align 8 .b8 extra[16]) {{\n\
             .local .align 16 .b8 depot[64]; .reg .b64 %d<20>; .reg .b32 %w<10>; .reg .b16 %h<10>; .reg .pred %p<10>;\n\
             .reg .b64 %od, %g, %out, %in, %mc, %m0, %m1, %lane; .reg .b32 %ow; .reg .b16 %oh; .reg .pred %op1, %op2;\n\
             mov.u32 %w0, %laneid; cvt.u64.u32 %lane, %w0;\n\
             ld.param.u64 %out, [p_out]; ld.param.u64 %g, [p_g]; ld.param.u64 %in, [p_in]; ld.param.u64 %mc, [p_mc];\n\
             ld.param.u64 %m0, [p_m0]; ld.param.u64 %m1, [p_m1];\n\
             mad.lo.u64 %out, %lane, 8, %out; shl.b64 %lane, %lane, 8; add.u64 %g, %g, %lane;\n\
             add.u64 %mc, %mc, %lane; add.u64 %m0, %m0, %lane; add.u64 %m1, %m1, %lane;\n\
             {load}\n{b}\n{widen}\nst.global.u64 [%out], %od; ret; }}\n"
        );
    }
    text
}

/// Runs all rows; the failures.
fn run(track: Option<Config>) -> Vec<String> {
    let machine =
        Machine::new(MachineConfig { devices: 2, track, ..MachineConfig::default() }).unwrap();
    let space = machine.space();
    let rows = rows();
    let loaded = machine.load(&module(&rows)).unwrap_or_else(|e| panic!("{e}"));
    let [out, input] = [256, 64].map(|n| space.alloc(0, Kind::Device, n).unwrap());
    let [g, m0, m1] = [0, 0, 1].map(|d| space.alloc(d, Kind::Device, 8192).unwrap());
    let mc = space.multicast(0, vec![m0, m1], 8192).unwrap();
    let pattern: Vec<u8> = (0..8192).map(|n| n as u8).collect();
    let mut failures = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let mut params: Vec<u8> =
            [out, g, input, mc, m0, m1].iter().flat_map(|x| x.to_le_bytes()).collect();
        params.extend(0..16u8);
        // SAFETY: live allocations of at least these sizes, and no kernel runs.
        unsafe {
            for at in [g, m0, m1] {
                std::ptr::copy_nonoverlapping(pattern.as_ptr(), at as *mut u8, 8192);
            }
            std::ptr::copy_nonoverlapping(row.inputs.as_ptr(), input as *mut u64, row.inputs.len());
            std::ptr::write_bytes(out as *mut u8, 0xee, 256);
        }
        let kernel = loaded
            .kernel(space, 0, &format!("k{n}"))
            .unwrap_or_else(|e| panic!("{} {}: {e}", row.opcode, body(row)));
        let spec = LaunchSpec {
            kernel: &kernel,
            device: 0,
            grid: [1, 1, 1],
            block: [32, 1, 1],
            dynamic_shared: 0,
            params: &params,
            cooperative: false,
        };
        let done = machine.launch(&spec).and_then(|l| machine.wait(&l));
        // SAFETY: as above.
        let got: Vec<u64> = (0..32).map(|l| unsafe { (out as *const u64).add(l).read() }).collect();
        if done.is_err() || got.iter().any(|&x| x != row.expected) {
            failures.push(format!(
                "{} ({}) of {:x?}: {:x} expected, {:x?} found, {:?}",
                row.opcode,
                row.how,
                row.inputs,
                row.expected,
                got[0],
                done.err()
            ));
        }
    }
    failures
}

#[test]
fn vgpu_every_opcode_has_a_row() {
    let have: std::collections::HashSet<_> =
        ROWS.lines().filter_map(|l| l.split('\t').next()).collect();
    let missing: Vec<_> = OPCODES.lines().filter(|o| !o.is_empty() && !have.contains(o)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
    assert!(OPCODES.lines().count() > 300);
}

#[test]
fn vgpu_opcodes_give_the_expected_values() {
    let f = run(None);
    assert!(f.is_empty(), "{} rows fail:\n{}", f.len(), f.join("\n"));
}

#[test]
fn vgpu_opcodes_give_the_expected_values_in_weak_mode() {
    let f = run(Some(Config { weak: true, race: true, seed: 7 }));
    assert!(f.is_empty(), "{} rows fail:\n{}", f.len(), f.join("\n"));
}

//! Random programs give the same results with and without shared slots.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::isa::decode::{Kernel, Symbols, decode_with};
use crate::mem::space::Kind;
use crate::ptx;
use crate::track::model::Config;
use crate::{LaunchSpec, Machine, MachineConfig};

/// Registers of each class that programs choose from.
const REGS: u64 = 6;
const THREADS: u32 = 64;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27) % n
    }
}

/// Writes a structured program: arithmetic, guards, divergent branches and loops, device functions and jump tables.
struct Writer {
    random: Random,
    text: String,
    labels: u32,
}

impl Writer {
    fn reg(&mut self) -> String {
        match self.random.below(2) {
            0 => format!("%t{}", self.random.below(3)),
            _ => format!("%r{}", self.random.below(REGS)),
        }
    }

    fn pred(&mut self) -> String {
        format!("%p{}", self.random.below(4))
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("L{}", self.labels)
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "  {line}");
    }

    fn simple(&mut self) {
        let guard = match self.random.below(4) {
            0 => format!("@{} ", self.pred()),
            1 => format!("@!{} ", self.pred()),
            _ => String::new(),
        };
        let (d, a, b) = (self.reg(), self.reg(), self.reg());
        let (p, n, h) = (self.pred(), self.random.below(99), self.random.below(3));
        let line = match self.random.below(11) {
            0 => format!("mov.u32 {d}, {n};"),
            1 => format!("add.u32 {d}, {a}, {b};"),
            2 => format!("mad.lo.u32 {d}, {a}, {b}, {n};"),
            3 => format!("add.u32 {d}, %tid.x, {a};"),
            4 => format!("setp.lt.u32 {p}|%p{h}, {a}, {b};"),
            5 => format!("selp.u32 {d}, {a}, {b}, {p};"),
            6 => format!("mov.b64 %d{h}, {{{a}, {b}}};"),
            7 => format!("mov.b64 {{{d}, _}}, %d{h};"),
            8 => format!("cvt.u16.u32 %h{h}, {a};"),
            9 => format!("cvt.u32.u16 {d}, %h{h};"),
            _ => format!("mad.lo.u32 %acc, %acc, 31, {a};"),
        };
        self.line(&format!("{guard}{line}"));
    }

    /// Statements with registers of their own, some of which are read, or written under a guard, before anything else.
    fn statements(&mut self, n: u64, depth: u32) {
        self.line("{ .reg .b32 %t<3>;");
        for _ in 0..n {
            match if depth == 0 { 9 } else { self.random.below(12) } {
                0 => self.branch(depth),
                1 => self.repeat(depth),
                2 => self.table(depth),
                3 => self.exchange(),
                _ => self.simple(),
            }
        }
        self.line("}");
    }

    /// Both sides of a branch on which lanes disagree.
    fn branch(&mut self, depth: u32) {
        let (p, other, join, n) = (self.pred(), self.label(), self.label(), self.random.below(31));
        self.line(&format!("setp.gt.u32 {p}, %tid.x, {n};"));
        self.line(&format!("@{p} bra {other};"));
        self.statements(3, depth - 1);
        self.line(&format!("bra {join};"));
        self.line(&format!("{other}:"));
        self.statements(3, depth - 1);
        self.line(&format!("{join}:"));
    }

    /// A loop that lanes leave one after the other.
    fn repeat(&mut self, depth: u32) {
        let again = self.label();
        self.line(&format!("and.b32 %n{depth}, %tid.x, 3;"));
        self.line(&format!("{again}:"));
        self.statements(4, depth - 1);
        self.line(&format!("setp.ne.u32 %q{depth}, %n{depth}, 0;"));
        self.line(&format!("sub.u32 %n{depth}, %n{depth}, 1;"));
        self.line(&format!("@%q{depth} bra {again};"));
    }

    fn table(&mut self, depth: u32) {
        let (table, a, b, join) = (self.label(), self.label(), self.label(), self.label());
        self.line(&format!("{table}: .branchtargets {a}, {b};"));
        self.line("and.b32 %i, %tid.x, 1;");
        self.line(&format!("brx.idx %i, {table};"));
        for here in [a, b] {
            self.line(&format!("{here}:"));
            self.statements(2, depth - 1);
            self.line(&format!("bra {join};"));
        }
        self.line(&format!("{join}:"));
    }

    /// What all lanes of a warp do together; inside a branch it is for those that are there.
    fn exchange(&mut self) {
        let (d, a, p) = (self.reg(), self.reg(), self.pred());
        self.line("activemask.b32 %i;");
        self.line(&format!("vote.sync.ballot.b32 {d}, {p}, %i;"));
        self.line(&format!("match.any.sync.b32 {d}, {a}, %i;"));
    }
}

fn program(seed: u64) -> String {
    let mut w = Writer { random: Random(seed), text: String::new(), labels: 0 };
    w.statements(40, 3);
    format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 out) {{
  .reg .pred %p<4>, %q<4>;\n  .reg .b16 %h<3>;\n  .reg .b32 %r<{REGS}>, %n<4>, %acc, %i;\n  .reg .b64 %d<3>, %at;
{}  ld.param.u64 %at, [out];\n  mad.wide.u32 %at, %tid.x, 4, %at;\n  st.global.u32 [%at], %acc;\n  ret;\n}}\n",
        w.text
    )
}

fn decode(text: &str, share: bool) -> Arc<Kernel> {
    let module = ptx::parse_module(text, &mut |_, _| Ok(())).unwrap();
    decode_with(&module, "k", &Arc::new(Symbols::new()), false, share)
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// What the program leaves, with the paths of warps taking turns as the seed says.
fn run(kernel: &Arc<Kernel>, seed: u64) -> Vec<u32> {
    let track = Some(Config { seed, ..Config::default() });
    let machine = Machine::new(MachineConfig { track, ..MachineConfig::default() }).unwrap();
    let out = machine.space().alloc(0, Kind::Device, u64::from(THREADS) * 4).unwrap();
    let spec = LaunchSpec {
        kernel,
        device: 0,
        grid: [1; 3],
        block: [THREADS, 1, 1],
        dynamic_shared: 0,
        params: &out.to_le_bytes(),
        cooperative: false,
    };
    machine.wait(&machine.launch(&spec).unwrap()).unwrap();
    // SAFETY: allocated above, and no kernel runs any more.
    (0..THREADS as usize).map(|n| unsafe { *(out as *const u32).add(n) }).collect()
}

#[test]
fn vgpu_sharing_slots_changes_no_result() {
    let mut smaller = 0;
    for seed in 0..150 {
        let text = program(seed);
        let (alone, shared) = (decode(&text, false), decode(&text, true));
        smaller += u32::from(shared.reg_bytes < alone.reg_bytes);
        for turns in 0..3 {
            assert_eq!(run(&alone, turns), run(&shared, turns), "seed {seed}\n{text}");
        }
    }
    assert!(smaller > 100, "sharing saved something in only {smaller} programs");
}

#[test]
fn vgpu_large_kernels_decode_fast_into_few_slots() {
    let mut text = String::from(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 out) {\n  .reg .b32 %r<10001>;\n  .reg .pred %p<1001>;\n  mov.u32 %r0, 1;\n",
    );
    for n in 0..10_000 {
        let _ = writeln!(text, "  add.u32 %r{}, %r{n}, %tid.x;", n + 1);
        if n % 10 == 9 {
            let p = n / 10;
            let _ = writeln!(text, "  setp.eq.u32 %p{p}, %r{n}, 0;\n  @%p{p} bra L{p};\nL{p}:");
        }
    }
    text += "  ret;\n}\n";
    let start = std::time::Instant::now();
    let kernel = decode(&text, true);
    let took = start.elapsed();
    assert!(kernel.reg_bytes < 4096, "{} bytes", kernel.reg_bytes);
    assert!(took < std::time::Duration::from_millis(500), "{took:?}");
    eprintln!("{} instructions in {took:?}", kernel.code.len());
}

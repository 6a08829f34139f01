//! vgpu: PTX that is cut off or damaged is refused or runs, but never panics the front end or keeps it for ever.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::kernels_ptx;
use vgpu::LoadedModule;
use vgpu::mem::space::AddressSpace;

const MUTANTS: u64 = 3000;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ z >> 27) % n.max(1) as u64) as usize
    }
}

/// Words that a damaged text may have anywhere.
const PIECES: [&str; 28] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    ";",
    ",",
    ":",
    "::",
    "@",
    "!",
    "|",
    "+",
    "-",
    "_",
    "\"",
    "/*",
    " 0x",
    " 99999999999999999999",
    " 4294967295",
    " -1",
    " .reg",
    " .param",
    " %r1",
    "\u{e9}",
];

/// Where the n-th character of a text begins.
fn boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

fn damage(text: &str, r: &mut Random) -> String {
    let mut s = text.to_string();
    for _ in 0..1 + r.below(4) {
        let at = boundary(&s, r.below(s.len() + 1));
        let end = boundary(&s, (at + r.below(12)).min(s.len()));
        let from = boundary(&s, r.below(s.len() + 1));
        let until = boundary(&s, (from + r.below(30)).min(s.len()));
        let piece = s[from..until].to_string();
        match r.below(6) {
            0 => s.truncate(at),
            1 => s.replace_range(at..end, ""),
            2 => s.insert_str(at, PIECES[r.below(PIECES.len())]),
            3 => s.replace_range(at..end, PIECES[r.below(PIECES.len())]),
            4 => s.insert_str(at, &piece),
            _ => s.replace_range(at..end, &piece),
        }
    }
    s
}

/// One function of the text, with the lines before the first: shorter, so that damage is denser.
fn functions(ptx: &str) -> Vec<String> {
    let (head, rest) = ptx.split_at(ptx.find(".visible .entry").unwrap());
    let starts = rest.match_indices(".visible .entry").map(|x| x.0);
    let ends = rest.match_indices(".visible .entry").map(|x| x.0).skip(1).chain([rest.len()]);
    starts.zip(ends).map(|(a, b)| format!("{head}{}", &rest[a..b])).collect()
}

/// Loads the text and decodes all kernels; true if all of it was accepted.
fn load(text: &str, space: &Arc<AddressSpace>) -> bool {
    let Ok(module) = LoadedModule::parse(text, true) else { return false };
    let kernels: Vec<String> = module.module().functions.keys().cloned().collect();
    kernels.iter().all(|k| module.kernel(space, 0, k).is_ok())
}

#[test]
fn vgpu_damaged_ptx_is_refused_without_a_panic() {
    let Some(ptx) = kernels_ptx() else { return };
    let texts = functions(&ptx);
    let mut random = Random(1);
    let (mut accepted, mut failures) = (0, Vec::new());
    let mut space = Arc::new(AddressSpace::new().unwrap());
    for n in 0..MUTANTS {
        if n % 100 == 0 {
            space = Arc::new(AddressSpace::new().unwrap()); // modules' variables are never freed
        }
        let text = damage(&texts[random.below(texts.len())], &mut random);
        let start = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| load(&text, &space))) {
            Ok(whole) => accepted += u64::from(whole),
            Err(_) => failures.push(format!("mutant {n} panics:\n{text}")),
        }
        assert!(start.elapsed() < Duration::from_secs(5), "mutant {n}: {:?}", start.elapsed());
    }
    assert!(failures.is_empty(), "{} panics, the first:\n{}", failures.len(), failures[0]);
    println!("{accepted} of {MUTANTS} were accepted");
    assert!(accepted > 0 && accepted < MUTANTS, "{accepted} of {MUTANTS} were accepted");
}

#[test]
fn vgpu_absurd_sizes_and_nesting_are_errors() {
    let body = |inside: &str| {
        format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {{ {inside} ret; }}\n"
        )
    };
    let deep = |c: &str| c.repeat(100_000);
    let device = |name: &str, inside: String| format!(".func {name}() {{ {inside} ret; }}\n");
    // Ten functions, each of which calls the next ten times.
    let tower: String =
        (0..10).map(|n| device(&format!("f{n}"), format!("call f{};", n + 1).repeat(10))).collect();
    let texts = [
        body(".reg .b32 %r<4294967295>;"),
        body(".reg .b32 %r<-1>;"),
        body(".shared .b8 s[18446744073709551615];"),
        body(".shared .align 2147483648 .b8 s[1];"),
        body(".shared .align 3 .b8 s[1];"),
        body(".local .b8 l[4294967296];"),
        body(&".local .b8 l[16000000];".repeat(300)),
        body(".local .b64 l[4294967296][4294967296];"),
        body(&format!("mov.b32 r, {};", deep("{"))),
        body(&format!("mov.b32 {};", deep("a|"))),
        body("").replace("k()", "k(.param .b8 p[4294967295], .param .b8 q[2])"),
        body("").replace("k()", "k(.param .align 4294967295 .b8 p[1])"),
        body("").replace(".visible", &format!(".global .b32 g = {};\n.visible", deep("{"))),
        body("").replace(".visible", ".global .b32 g[99999999999999];\n.visible"),
        body("call f0;")
            .replace(".visible", &format!("{tower}{}.visible", device("f10", String::new()))),
    ];
    for text in texts {
        let space = Arc::new(AddressSpace::new().unwrap());
        assert!(!load(&text, &space), "accepted: {:.300}", text);
    }
    let space = Arc::new(AddressSpace::new().unwrap());
    assert!(load(&body("").replace(".visible", ".global .b128 g = 1;\n.visible"), &space));
}

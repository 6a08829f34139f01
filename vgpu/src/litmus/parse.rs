//! The notation: a name, initial values, a table of threads, a question.

use std::collections::HashMap;

use super::condition::{Condition, Parser, Term};
use crate::exec::warp::{Scope, Sem};

/// What is wrong with a test.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: `{near}`")]
pub struct LitmusError {
    /// What was expected.
    pub what: String,
    /// The text at the place.
    pub near: String,
}

pub(super) fn bad<T>(what: impl Into<String>, near: impl AsRef<str>) -> Result<T, LitmusError> {
    let near = near.as_ref().trim().chars().take(60).collect();
    Err(LitmusError { what: what.into(), near })
}

/// A register or a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// `r1`.
    Reg(String),
    /// A number.
    Int(u64),
    /// A location: its address as a value, or its contents as an operand of a load.
    Loc(String),
}

/// An instruction of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in the notation")]
pub enum Instr {
    Load {
        sem: Sem,
        scope: Scope,
        d: String,
        from: Operand,
    },
    Store {
        sem: Sem,
        scope: Scope,
        to: Operand,
        value: Operand,
    },
    /// `d` is none for `red`; `cmp` is there for `cas` alone.
    Atomic {
        sem: Sem,
        scope: Scope,
        op: String,
        d: Option<String>,
        at: Operand,
        cmp: Option<Operand>,
        value: Operand,
    },
    Fence {
        sem: Sem,
        scope: Scope,
    },
    /// A proxy fence: nothing to order, since all proxies are treated as the generic one.
    Nop,
    Barrier {
        waits: bool,
        id: Operand,
        quorum: Option<Operand>,
    },
    Compute {
        op: String,
        d: String,
        a: Operand,
        b: Operand,
    },
    Branch {
        op: String,
        a: Operand,
        b: Operand,
        to: usize,
    },
    Jump {
        to: usize,
    },
}

/// A thread: where it runs and what.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// `P0`'s number.
    pub id: u32,
    /// Block.
    pub cta: u64,
    /// Device.
    pub gpu: u32,
    /// Its program.
    pub code: Vec<Instr>,
}

/// What the test asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Can the state be reached?
    Exists,
    /// Is it never reached?
    NotExists,
    /// Is it reached always?
    Forall,
}

/// A test.
#[derive(Clone, Debug)]
pub struct Test {
    /// Its name.
    pub name: String,
    /// Initial values of locations; a location that is not named is 0.
    pub memory: Vec<(String, Operand)>,
    /// Initial values of registers.
    pub registers: Vec<(u32, String, Operand)>,
    /// Other names of a location.
    pub aliases: HashMap<String, String>,
    /// Whether it tells proxies (surfaces, textures, constants, aliases) apart; the model takes all for the generic one, so its
    /// states are not those that the test is about.
    pub proxies: bool,
    /// The threads.
    pub threads: Vec<Thread>,
    /// Only final states that satisfy this count.
    pub filter: Option<Condition>,
    /// What is asked.
    pub question: Question,
    /// Of which state.
    pub condition: Condition,
}

/// Reads a test.
pub fn parse(text: &str) -> Result<Test, LitmusError> {
    let text = strip_comments(text);
    let Some((head, rest)) = text.split_once('{') else {
        return bad("no initial state in braces", &text);
    };
    let mut words = head.split_whitespace();
    if !words.next().is_some_and(|w| w.eq_ignore_ascii_case("ptx")) {
        return bad("a PTX test begins with `PTX`", head);
    }
    let name = words.next().unwrap_or("").to_string();
    let Some((init, rest)) = rest.split_once('}') else {
        return bad("the initial state has no end", rest);
    };
    let (rows, asked) = split_program(rest);
    let mut test = Test {
        name,
        memory: Vec::new(),
        registers: Vec::new(),
        aliases: HashMap::new(),
        proxies: ["fence.proxy", "sust.", "suld.", "tld.", "cold.", "suatom.", "sured."]
            .iter()
            .any(|word| rest.contains(word)),
        threads: Vec::new(),
        filter: None,
        question: Question::Exists,
        condition: Condition::Compare(Term::Int(0), "==".into(), Term::Int(0)),
    };
    initial(init, &mut test)?;
    test.proxies |= !test.aliases.is_empty();
    program(&rows, &mut test)?;
    question(asked, &mut test)?;
    Ok(test)
}

/// Removes `(* *)` and `//` comments and the quoted description; a quote may hold braces.
fn strip_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = match c {
            '"' => rest[1..].find('"').map(|n| n + 2),
            '(' if rest.starts_with("(*") => rest.find("*)").map(|n| n + 2),
            '/' if rest.starts_with("//") => Some(rest.find('\n').unwrap_or(rest.len())),
            _ => None,
        };
        match skip {
            Some(n) => rest = &rest[n..],
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

const ASKING: [&str; 7] = ["exists", "~", "forall", "not", "locations", "filter", "final"];

/// The rows of the table, and what follows it.
fn split_program(text: &str) -> (Vec<&str>, &str) {
    let mut rows = Vec::new();
    let mut rest = text;
    loop {
        let trimmed = rest.trim_start();
        if ASKING.iter().any(|k| trimmed.starts_with(k)) || trimmed.is_empty() {
            return (rows, trimmed);
        }
        match trimmed.split_once(';') {
            Some((row, after)) => {
                if !row.trim().is_empty() {
                    rows.push(row);
                }
                rest = after;
            }
            None => return (rows, trimmed),
        }
    }
}

pub(super) fn number(s: &str) -> Option<u64> {
    let s = s.trim();
    let (minus, digits) = s.strip_prefix('-').map_or((false, s), |d| (true, d));
    let n = match digits.strip_prefix("0x") {
        Some(h) => u64::from_str_radix(h, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if minus { n.wrapping_neg() } else { n })
}

fn is_register(s: &str) -> bool {
    s.strip_prefix('r').is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn is_name(s: &str) -> bool {
    s.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && s.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn operand(s: &str) -> Result<Operand, LitmusError> {
    let s = s.trim().trim_start_matches('&').trim_start_matches('[').trim_end_matches(']').trim();
    match () {
        () if is_register(s) => Ok(Operand::Reg(s.into())),
        () if number(s).is_some() => Ok(Operand::Int(number(s).unwrap_or(0))),
        () if is_name(s) => Ok(Operand::Loc(s.into())),
        () => bad("neither register, number nor location", s),
    }
}

pub(super) fn thread_id(s: &str) -> Option<u32> {
    let s = s.trim();
    s.strip_prefix('P').unwrap_or(s).parse().ok()
}

fn initial(text: &str, test: &mut Test) -> Result<(), LitmusError> {
    for item in text.split(';').map(str::trim).filter(|i| !i.is_empty()) {
        // `x @ texture aliases y`, `x aliases y`
        if let Some((new, old)) = item.split_once("aliases") {
            let new = new.split('@').next().unwrap_or("").trim();
            test.aliases.insert(new.into(), old.trim().into());
            continue;
        }
        let Some((left, right)) = item.split_once('=') else {
            return bad("`=` expected", item);
        };
        let value = operand(right)?;
        // A type may stand before the name: `uint64_t x = 0`.
        let left = left.trim().trim_start_matches('[').trim_end_matches(']');
        match left.split_once(':') {
            Some((t, r)) => match thread_id(t) {
                Some(t) => test.registers.push((t, r.trim().into(), value)),
                None => return bad("a thread expected", item),
            },
            None => test.memory.push((left.split_whitespace().last().unwrap_or("").into(), value)),
        }
    }
    Ok(())
}

fn program(rows: &[&str], test: &mut Test) -> Result<(), LitmusError> {
    let Some((head, rows)) = rows.split_first() else {
        return bad("no threads", "");
    };
    for cell in head.split('|') {
        let (name, place) = cell.split_once('@').unwrap_or((cell, ""));
        let Some(id) = thread_id(name) else {
            return bad("a thread such as `P0@cta 0,gpu 0` expected", cell);
        };
        let mut t = Thread { id, ..Thread::default() };
        for part in place.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            match part.split_whitespace().collect::<Vec<_>>()[..] {
                ["cta", n] => t.cta = n.parse().or_else(|_| bad("a number expected", part))?,
                ["gpu", n] => t.gpu = n.parse().or_else(|_| bad("a number expected", part))?,
                // A cluster is one block here, as in the rest of vgpu.
                ["cluster" | "sys", _] => {}
                _ => return bad("`cta n` or `gpu n` expected", part),
            }
        }
        test.threads.push(t);
    }
    let n = test.threads.len();
    let mut cells: Vec<Vec<&str>> = vec![Vec::new(); n];
    for row in rows {
        let parts: Vec<&str> = row.split('|').map(str::trim).collect();
        if parts.len() > n {
            return bad("more columns than threads", row);
        }
        for (column, part) in cells.iter_mut().zip(parts) {
            column.push(part);
        }
    }
    for (thread, column) in test.threads.iter_mut().zip(cells) {
        thread.code = thread_code(&column)?;
    }
    Ok(())
}

fn thread_code(column: &[&str]) -> Result<Vec<Instr>, LitmusError> {
    let mut labels = HashMap::new();
    let mut lines = Vec::new();
    for cell in column {
        let mut cell = *cell;
        while let Some((label, rest)) = cell.split_once(':') {
            labels.insert(label.trim(), lines.len());
            cell = rest.trim();
        }
        if !cell.is_empty() {
            lines.push(cell);
        }
    }
    lines.iter().map(|l| instruction(l, &labels)).collect()
}

fn scope(parts: &[&str]) -> Scope {
    let named = parts.iter().find_map(|p| match *p {
        "cta" | "cluster" => Some(Scope::Cta),
        "gpu" | "gl" => Some(Scope::Gpu),
        "sys" => Some(Scope::Sys),
        _ => None,
    });
    named.unwrap_or(if parts.contains(&"volatile") { Scope::Sys } else { Scope::Gpu })
}

fn sem(parts: &[&str]) -> Option<Sem> {
    parts.iter().find_map(|p| match *p {
        "weak" => Some(Sem::Weak),
        "relaxed" | "volatile" => Some(Sem::Relaxed),
        "acquire" => Some(Sem::Acquire),
        "release" => Some(Sem::Release),
        "acq_rel" => Some(Sem::AcqRel),
        "sc" => Some(Sem::Sc),
        _ => None,
    })
}

const MODIFIERS: &str = " weak relaxed volatile acquire release acq_rel sc cta cluster gpu gl sys global shared generic u32 s32 b32 u64 s64 b64 aligned ";

fn instruction(text: &str, labels: &HashMap<&str, usize>) -> Result<Instr, LitmusError> {
    let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let parts: Vec<&str> = opcode.split('.').collect();
    let args: Vec<&str> = rest.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
    let arg =
        |n: usize| args.get(n).copied().map_or_else(|| bad("an operand is missing", text), operand);
    let reg = |n: usize| match arg(n)? {
        Operand::Reg(r) => Ok(r),
        _ => bad("a register expected", text),
    };
    let label = |n: usize| match args.get(n).and_then(|l| labels.get(l)) {
        Some(at) => Ok(*at),
        None => bad("no such label", text),
    };
    let order = sem(&parts);
    let scope = scope(&parts);
    let unknown = parts[1..].iter().find(|p| !MODIFIERS.contains(&format!(" {p} ")));
    match parts[0] {
        "ld" | "tld" | "suld" | "cold" | "sust" | "st" if unknown.is_some() => {
            bad("unknown modifier", text)
        }
        "ld" | "tld" | "suld" | "cold" => match (reg(0)?, arg(1)?) {
            // `ld r0, 1` sets a register.
            (d, a @ Operand::Int(_)) => {
                Ok(Instr::Compute { op: "add".into(), d, a, b: Operand::Int(0) })
            }
            (d, from) => Ok(Instr::Load { sem: order.unwrap_or(Sem::Weak), scope, d, from }),
        },
        "st" | "sust" => {
            Ok(Instr::Store { sem: order.unwrap_or(Sem::Weak), scope, to: arg(0)?, value: arg(1)? })
        }
        "atom" | "suatom" | "red" | "sured" => {
            let Some(op) = unknown else {
                return bad("no operation", text);
            };
            let returns = parts[0].ends_with("atom");
            let at = usize::from(returns);
            let d = if returns { Some(reg(0)?) } else { None };
            let cas = *op == "cas";
            let cmp = if cas { Some(arg(at + 1)?) } else { None };
            let value = arg(at + 1 + usize::from(cas))?;
            Ok(Instr::Atomic {
                sem: order.unwrap_or(Sem::Relaxed),
                scope,
                op: (*op).into(),
                d,
                at: arg(at)?,
                cmp,
                value,
            })
        }
        "fence" if parts.contains(&"proxy") => Ok(Instr::Nop),
        "fence" if unknown.is_none() => {
            Ok(Instr::Fence { sem: order.unwrap_or(Sem::AcqRel), scope })
        }
        "membar" => Ok(Instr::Fence { sem: Sem::Sc, scope }),
        "bar" | "barrier" => {
            // `bar.cta.sync instance, barrier, threads`; with one operand it is the barrier.
            let id = if args.len() > 1 { arg(1)? } else { arg(0)? };
            let quorum = if args.len() > 2 { Some(arg(2)?) } else { None };
            Ok(Instr::Barrier { waits: !parts.contains(&"arrive"), id, quorum })
        }
        "beq" | "bne" | "blt" | "ble" | "bgt" | "bge" => {
            Ok(Instr::Branch { op: parts[0].into(), a: arg(0)?, b: arg(1)?, to: label(2)? })
        }
        "goto" | "bra" => Ok(Instr::Jump { to: label(0)? }),
        "mov" => {
            Ok(Instr::Compute { op: "add".into(), d: reg(0)?, a: arg(1)?, b: Operand::Int(0) })
        }
        "add" | "sub" | "mul" | "div" | "and" | "or" | "xor" => {
            Ok(Instr::Compute { op: parts[0].into(), d: reg(0)?, a: arg(1)?, b: arg(2)? })
        }
        _ => bad("unknown instruction", text),
    }
}

fn question(text: &str, test: &mut Test) -> Result<(), LitmusError> {
    let mut rest = text.trim();
    if let Some(r) = rest.strip_prefix("locations") {
        rest = r.split_once(']').map_or("", |x| x.1).trim();
    }
    if let Some(r) = rest.strip_prefix("filter") {
        let mut p = Parser { text: r };
        test.filter = Some(p.or()?);
        rest = p.text.trim().trim_start_matches(';').trim();
    }
    let negative = rest.strip_prefix('~').or_else(|| rest.strip_prefix("not")).map(str::trim);
    (test.question, rest) = match negative.unwrap_or(rest) {
        r if r.starts_with("exists") && negative.is_some() => (Question::NotExists, &r[6..]),
        r if r.starts_with("exists") => (Question::Exists, &r[6..]),
        r if r.starts_with("final") => {
            (Question::Exists, r[5..].split("with").next().unwrap_or(""))
        }
        r if r.starts_with("forall") && negative.is_none() => (Question::Forall, &r[6..]),
        r => return bad("`exists`, `~exists` or `forall` expected", r),
    };
    let mut p = Parser { text: rest };
    test.condition = p.or()?;
    if !p.text.trim().trim_start_matches(';').trim().is_empty() {
        return bad("unexpected text after the condition", p.text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_conditions_aliases_and_odd_spacing() {
        let t = parse(
            "PTX name\n\"what { it } is\"\n{\nx = 3; P0:r1=x;\ny @ texture aliases x;}\n P0@cta 1, gpu 2 | P1@cta 0,gpu 0 ;\n\
             LC00: ld.relaxed.sys r2, [x] | ;\n beq r2, r1, LC00 | fence.proxy.alias ;\n\
             atom.acq_rel.gpu.cas r3, x, 0, 1 | bar.cta.arrive 1, 2, 3;\n\
             ~ exists (P0:r2 == 0x3 /\\ (0:r1 != 1 \\/ [x] = -1))",
        )
        .unwrap();
        assert_eq!((t.threads[0].cta, t.threads[0].gpu, t.threads[0].code.len()), (1, 2, 3));
        assert_eq!(
            t.threads[0].code[1],
            Instr::Branch {
                op: "beq".into(),
                a: Operand::Reg("r2".into()),
                b: Operand::Reg("r1".into()),
                to: 0
            }
        );
        assert_eq!(t.question, Question::NotExists);
        assert!(t.aliases["y"] == "x" && t.proxies);
        let quorum = Some(Operand::Int(3));
        assert_eq!(
            t.threads[1].code[1],
            Instr::Barrier { waits: false, id: Operand::Int(2), quorum }
        );
        assert!(parse("PTX n {x=0;} P0@cta 0,gpu 0; frobnicate x; exists (x == 1)").is_err());
        assert!(parse("PTX n {x=0;} P0@cta 0,gpu 0; st.wek x, 1; exists (x == 1)").is_err());
    }
}

//! What a compiled kernel is made of, read off `nvdisasm`'s listing.

use std::collections::HashMap;

/// Figures of one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Instructions, the padding at the end included.
    pub instructions: usize,
    pub registers: usize,
    /// Bytes of stack.
    pub stack: usize,
    /// Loads and stores of thread-local memory: spills among them.
    pub local: usize,
    /// Loads and stores that find out at run time which memory they mean.
    pub generic: usize,
    /// Loads and stores of global memory by 128 bits, and by less.
    pub wide: (usize, usize),
    pub narrow: (usize, usize),
    /// The most loads of 128 bits of a thread that are under way at once.
    pub in_flight: usize,
    /// Instructions of the longest innermost loop that moves data.
    pub move_loop: usize,
    /// Instructions for each polled word of the worst poll loop, in tenths.
    pub poll: usize,
    /// Innermost loops with local or generic accesses.
    pub bad_loops: usize,
}

/// An instruction: where it stands, its name, its operands.
struct Line<'a> {
    name: &'a str,
    operands: &'a str,
    /// Under an always-true predicate.
    always: bool,
}

/// Reads the listing of a cubin with one kernel.
pub fn read(listing: &str) -> Figures {
    let (lines, labels) = instructions(listing);
    let mut figures = Figures {
        instructions: lines.len(),
        registers: attribute(listing, "EIATTR_REGCOUNT"),
        stack: attribute(listing, "EIATTR_FRAME_SIZE"),
        ..Figures::default()
    };
    for line in &lines {
        let count = if line.is_wide() { &mut figures.wide } else { &mut figures.narrow };
        match line.kind() {
            Kind::Load => count.0 += 1,
            Kind::Store => count.1 += 1,
            Kind::Local => figures.local += 1,
            Kind::Generic => figures.generic += 1,
            Kind::Other => {}
        }
    }
    let loops = loops(&lines, &labels);
    for body in loops.iter().map(|range| &lines[range.clone()]) {
        figures.in_flight = figures.in_flight.max(in_flight(body));
    }
    for range in innermost(&loops) {
        let body = &lines[range.clone()];
        let polled = body.iter().filter(|line| line.polls()).count();
        let bad = |line: &Line| matches!(line.kind(), Kind::Local | Kind::Generic);
        figures.bad_loops += usize::from(body.iter().any(bad));
        if polled > 0 {
            figures.poll = figures.poll.max((body.len() * 10).div_ceil(polled));
        } else if body.iter().any(|line| line.kind() == Kind::Load) {
            figures.move_loop = figures.move_loop.max(body.len());
        }
    }
    figures
}

#[derive(PartialEq, Eq)]
enum Kind {
    Load,
    Store,
    Local,
    Generic,
    Other,
}

impl Line<'_> {
    fn kind(&self) -> Kind {
        match self.name.split('.').next().unwrap_or_default() {
            // (LDGMC loads from the switch.)
            "LDG" | "LDGMC" => Kind::Load,
            "STG" => Kind::Store,
            "LDL" | "STL" => Kind::Local,
            "LD" | "ST" | "ATOM" | "RED" => Kind::Generic,
            _ => Kind::Other,
        }
    }

    /// Whether it moves 16 bytes, or more; the switch's instructions name elements and how many.
    fn is_wide(&self) -> bool {
        let of_switch = ["F16x8", "F32x4"].iter().any(|form| self.name.contains(form));
        self.name.contains(".128") || self.name.contains(".256") || of_switch
    }

    /// Looks at a word that somebody else writes.
    fn polls(&self) -> bool {
        self.name.starts_with("LDG.") && self.name.contains(".STRONG.SYS")
    }
}

/// The instructions, and which of them labels stand in front of.
fn instructions(listing: &str) -> (Vec<Line<'_>>, HashMap<&str, usize>) {
    let (mut lines, mut labels) = (Vec::new(), HashMap::new());
    let text = listing.split("//--------------------- ").filter(|part| part.starts_with(".text."));
    for line in text.flat_map(str::lines).map(str::trim) {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, lines.len());
        } else if let Some((_, code)) = line.strip_prefix("/*").and_then(|l| l.split_once("*/")) {
            let code = code.trim().trim_end_matches(';').trim_end();
            let (always, code) = match code.strip_prefix('@').and_then(|c| c.split_once(' ')) {
                Some((_, code)) => (false, code.trim_start()),
                None => (true, code),
            };
            let (name, operands) = code.split_once(' ').unwrap_or((code, ""));
            lines.push(Line { name, operands, always });
        }
    }
    (lines, labels)
}

/// The largest second word of an attribute of the functions.
fn attribute(listing: &str, name: &str) -> usize {
    let entries = listing.split("//----- nvinfo : ").filter(|entry| entry.starts_with(name));
    let value = |entry: &str| {
        let word = entry.lines().filter_map(|line| line.split_once(".word")).nth(1)?;
        usize::from_str_radix(word.1.trim().trim_start_matches("0x"), 16).ok()
    };
    entries.filter_map(value).max().unwrap_or(0)
}

type Range = std::ops::Range<usize>;

/// From a label to the last branch back to it.
fn loops(lines: &[Line<'_>], labels: &HashMap<&str, usize>) -> Vec<Range> {
    let mut ends: HashMap<usize, usize> = HashMap::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.name.starts_with("BRA")) {
        let label = line.operands.split_once("`(").and_then(|(_, l)| l.split_once(')'));
        let to = label.and_then(|(label, _)| labels.get(label));
        // (The last instruction jumps to itself: padding.)
        if let Some(&to) = to.filter(|to| **to < at) {
            ends.entry(to).and_modify(|end| *end = (*end).max(at + 1)).or_insert(at + 1);
        }
    }
    let mut loops: Vec<Range> = ends.into_iter().map(|(from, to)| from..to).collect();
    loops.sort_by_key(|range| (range.start, range.end));
    loops
}

fn innermost(loops: &[Range]) -> impl Iterator<Item = &Range> {
    let holds = |outer: &Range, inner: &Range| {
        outer != inner && outer.start <= inner.start && inner.end <= outer.end
    };
    loops.iter().filter(move |outer| !loops.iter().any(|inner| holds(outer, inner)))
}

/// The most loads of 128 bits that have been issued before the first of them is needed. A thread's instructions start in
/// order, so all behind one that needs a load's result wait for it.
fn in_flight(body: &[Line<'_>]) -> usize {
    let (mut under_way, mut most) = (Vec::new(), 0);
    for line in body {
        // What a load writes is not what it needs: a unit's two forms, under opposite predicates, share registers.
        let needed = match line.kind() {
            Kind::Load => line.operands.split_once(',').map_or("", |(_, address)| address),
            _ => line.operands,
        };
        let needs = |first: &usize| (*first..first + 4).any(|r| reads(needed, r));
        if let Some(last) = under_way.iter().rposition(needs) {
            under_way.drain(..=last);
        }
        if line.kind() == Kind::Load && line.is_wide() {
            under_way.extend(register(line.operands));
            most = most.max(under_way.len());
        } else if line.always && matches!(line.name, "EXIT" | "RET.REL.NODEC") {
            under_way.clear();
        }
    }
    most
}

/// The number of a register that operands begin with.
fn register(operands: &str) -> Option<usize> {
    let digits = operands.strip_prefix('R')?;
    digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
}

/// Whether a register is among the operands.
fn reads(operands: &str, number: usize) -> bool {
    operands.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| register(word) == Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "
//--------------------- .nv.info --
\t//----- nvinfo : EIATTR_REGCOUNT
\t.align\t\t4
        /*0004*/ \t.word\tindex@(k)
        /*0008*/ \t.word\t0x00000028
\t//----- nvinfo : EIATTR_FRAME_SIZE
        /*0014*/ \t.word\tindex@(k)
        /*0018*/ \t.word\t0x00000010
//--------------------- .text.k --
.text.k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.64.STRONG.SYS R10, desc[UR10][R4.64] ;
        /*0020*/                   ISETP.GE.U32.AND P0, PT, R10, R51, PT ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/              @!P0 LDG.E.128 R4, desc[UR10][R44.64] ;
        /*0050*/               @P0 LDG.E.U16 R4, desc[UR10][R44.64] ;
        /*0060*/                   LDG.E.128 R8, desc[UR10][R44.64+0x10] ;
        /*0070*/                   FADD R5, R6, R40 ;
        /*0080*/                   LDG.E.128 R12, desc[UR10][R44.64+0x20] ;
        /*0090*/                   STG.E.128 desc[UR10][R60.64], R4 ;
        /*00a0*/                   STL [R1], R4 ;
        /*00b0*/                   ST.E [R2.64], R4 ;
        /*00c0*/               @P0 BRA `(.L_x_2) ;
        /*00d0*/                   EXIT ;
.L_x_3:
        /*00e0*/                   BRA `(.L_x_3);
";

    #[test]
    fn loads_from_the_switch_are_wide_and_no_polls() {
        let listing = LISTING.replace("LDG.E.64.STRONG.SYS", "LDGMC.E.F32ADD.F16x8.RN.STRONG.SYS");
        let figures = read(&listing);
        assert_eq!((figures.wide, figures.narrow, figures.poll), ((4, 1), (1, 0), 0));
    }

    #[test]
    fn a_listing_is_counted() {
        let figures = read(LISTING);
        let expected = Figures {
            instructions: 15,
            registers: 40,
            stack: 16,
            local: 1,
            generic: 1,
            wide: (3, 1),
            narrow: (2, 0),
            // The third load is behind an instruction that needs the first.
            in_flight: 2,
            move_loop: 9,
            poll: 30,
            bad_loops: 1,
        };
        assert_eq!(figures, expected);
    }
}

//! The lines of a kernel's body. Lines that repeat with numbers that go on by equal steps become a loop.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

/// Lines of a loop's body, at most.
const LONGEST: usize = 8;

/// A line of CUDA C++, with `@` where its numbers stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    text: String,
    numbers: Vec<usize>,
}

impl Line {
    pub(super) fn new(text: String, numbers: &[usize]) -> Self {
        debug_assert_eq!(text.matches('@').count(), numbers.len(), "{text}");
        Self { text, numbers: numbers.to_vec() }
    }

    /// With its numbers, each going on by a step in every pass of a loop over `s`.
    fn write(&self, to: &mut String, indent: &str, steps: &[usize]) {
        let mut numbers = self.numbers.iter().zip(steps.iter().chain(std::iter::repeat(&0)));
        to.push_str(indent);
        for part in self.text.split_inclusive('@') {
            to.push_str(part.trim_end_matches('@'));
            if let (true, Some((number, step))) = (part.ends_with('@'), numbers.next()) {
                let written = match step {
                    0 => write!(to, "{number}"),
                    1 => write!(to, "{number} + s"),
                    step => write!(to, "{number} + {step} * s"),
                };
                written.expect("writing to a string");
            }
        }
        to.push('\n');
    }
}

/// What `count` passes over `period` lines from the first on have in common.
struct Loop {
    period: usize,
    count: usize,
    /// For each line, by how much each number goes on.
    steps: Vec<Vec<usize>>,
}

/// The text of a body, indented by four.
pub(super) fn text(lines: &[Line]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < lines.len() {
        let found = (1..=LONGEST).filter_map(|period| repeated(&lines[at..], period));
        // The loop that leaves the fewest lines; of equal ones the shorter body.
        let saved = |found: &Loop| found.period * (found.count - 1);
        match found.reduce(|best, other| if saved(&other) > saved(&best) { other } else { best }) {
            Some(Loop { period, count, steps }) => {
                writeln!(text, "#pragma unroll 1\n    for (u32 s = 0; s < {count}; ++s) {{")
                    .expect("writing to a string");
                for (line, steps) in lines[at..at + period].iter().zip(&steps) {
                    line.write(&mut text, "      ", steps);
                }
                text.push_str("    }\n");
                at += period * count;
            }
            None => {
                lines[at].write(&mut text, "    ", &[]);
                at += 1;
            }
        }
    }
    text
}

/// The loop over so many lines from the first on, if it is worth one: it goes over a move, and saves two lines or more.
fn repeated(lines: &[Line], period: usize) -> Option<Loop> {
    let (first, rest) = lines.split_at_checked(period)?;
    let second = rest.get(..period)?;
    let steps = |(a, b): (&Line, &Line)| {
        let step = |(x, y): (&usize, &usize)| y.checked_sub(*x);
        (a.text == b.text).then(|| a.numbers.iter().zip(&b.numbers).map(step).collect())?
    };
    let steps: Vec<Vec<usize>> = first.iter().zip(second).map(steps).collect::<Option<_>>()?;
    let goes_on = |pass: usize, lines: &[Line]| {
        lines.iter().zip(first).zip(&steps).all(|((line, first), steps)| {
            let numbers = first.numbers.iter().zip(steps).map(|(n, step)| n + pass * step);
            line.text == first.text && numbers.eq(line.numbers.iter().copied())
        })
    };
    let passes = lines.chunks_exact(period).enumerate();
    let count = passes.take_while(|(pass, lines)| goes_on(*pass, lines)).count();
    let moves = first.iter().any(|line| line.text.contains("w.move"));
    (moves && period * (count - 1) >= 2).then_some(Loop { period, count, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, numbers: &[usize]) -> Line {
        Line::new(text.to_owned(), numbers)
    }

    #[test]
    fn equal_steps_are_a_loop_and_others_are_not() {
        let step = |n: usize| {
            [line("w.move<A>(@, @);", &[3 * n + 1, n]), line("w.signal(@, @);", &[7, n + 2])]
        };
        let lines = [vec![line("begin(@);", &[5])], step(0).into(), step(1).into(), step(2).into()];
        let lines = [lines.concat(), vec![line("w.move<B>(@, @);", &[10, 3])]].concat();
        let expected = "    begin(5);\n#pragma unroll 1\n    for (u32 s = 0; s < 3; ++s) {\n      \
                        w.move<A>(1 + 3 * s, 0 + s);\n      w.signal(7, 2 + s);\n    }\n    \
                        w.move<B>(10, 3);\n";
        assert_eq!(text(&lines), expected);
        // A number that goes back, a step of another size, and what moves nothing.
        for (x, y, z) in [(5, 4, 3), (1, 2, 4)] {
            let lines = [x, y, z].map(|n| line("w.move(@);", &[n]));
            assert!(!text(&lines[..]).contains("s < 3"), "{}", text(&lines));
        }
        assert!(!text(&[1, 2, 3].map(|n| line("w.wait(@);", &[n]))).contains("for"));
    }
}

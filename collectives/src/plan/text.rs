//! The text form of plans, for people: reading, comparing, writing by hand.
//!
//! ```text
//! warpmesh plan 1
//! name two_ranks
//! collective all_reduce
//! world 2
//! parts 1
//! packets 2
//!
//! rank 0
//!   copy 0: r1.packets[0] = in[0]                 # part 0, to rank 1
//!   reduce 0: out[0] = in[0], packets[1]<1        # the packet that rank 1 wrote
//! rank 1
//!   copy 0: r0.packets[1] = in[0]
//!   reduce 0: out[0] = packets[0]<0, in[0]
//! ```
//!
//! Places are `in`, `out`, `scratch` and `packets` with a block or slot; `r3.` in front means rank
//! 3's, `all.` the group's, nothing this rank's; `*` behind means a partial sum. The other
//! instructions are `signal S: ranks`, `wait S: ranks`, `put PORT PART: to = from then S` and
//! `flush PORT`; `worker W` starts a list of its own.

use std::fmt::Write as _;

use super::{Buffer, Collective, Instruction, Place, Plan, Program, Shape, Whose};

const MAGIC: &str = "warpmesh plan 1";

/// What is wrong with a plan's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PlanTextError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

impl Plan {
    /// The text form. [`Plan::from_text`] reads it back to the same plan.
    pub fn to_text(&self) -> String {
        let Shape { name, collective, world, root, parts, scratch, packets } = &self.shape;
        let mut text = format!("{MAGIC}\nname {name}\ncollective {collective}\nworld {world}\n");
        for (key, value, absent) in [
            ("root", root, 0),
            ("parts", parts, 1),
            ("scratch", scratch, 0),
            ("packets", packets, 0),
        ] {
            if *value != absent {
                let _ = writeln!(text, "{key} {value}");
            }
        }
        for (rank, program) in self.programs.iter().enumerate() {
            let _ = writeln!(text, "\nrank {rank}");
            for (worker, list) in program.workers.iter().enumerate() {
                if program.workers.len() > 1 {
                    let _ = writeln!(text, " worker {worker}");
                }
                for instruction in list {
                    let _ = writeln!(text, "  {}", instruction_text(rank, instruction));
                }
            }
        }
        text
    }

    /// Reads the text form. The result is well-formed, not proven: see [`super::verify::verify`].
    pub fn from_text(text: &str) -> Result<Self, PlanTextError> {
        let mut reader = Reader::default();
        let mut last = 0;
        for (i, line) in text.lines().enumerate() {
            last = i + 1;
            let line = line.split('#').next().unwrap_or("").trim();
            let located = |problem| PlanTextError { line: i + 1, problem };
            if !line.is_empty() {
                reader.line(line).map_err(located)?;
            }
        }
        reader.finish().map_err(|problem| PlanTextError { line: last, problem })
    }
}

/// An instruction of `rank`'s program, as in the text form.
pub(crate) fn instruction_text(rank: usize, instruction: &Instruction) -> String {
    let places = |places: &[Place]| {
        places.iter().map(|place| place_text(rank, place)).collect::<Vec<_>>().join(", ")
    };
    let ranks = |ranks: &[usize]| ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    match instruction {
        Instruction::Move { part, to, from, reduce } => {
            let verb = if *reduce { "reduce" } else { "copy" };
            format!("{verb} {part}: {} = {}", places(to), places(from))
        }
        Instruction::Signal { semaphore, to } => format!("signal {semaphore}: {}", ranks(to)),
        Instruction::Wait { semaphore, from } => format!("wait {semaphore}: {}", ranks(from)),
        Instruction::Put { port, part, to, from, then_signal } => {
            let (to, from) = (place_text(rank, to), place_text(rank, from));
            let then = then_signal.map(|s| format!(" then {s}")).unwrap_or_default();
            format!("put {port} {part}: {to} = {from}{then}")
        }
        Instruction::Flush { port } => format!("flush {port}"),
    }
}

/// A place as in the text form of `rank`'s program.
pub(crate) fn place_text(rank: usize, place: &Place) -> String {
    let mut text = match place.whose {
        Whose::Group => "all.".to_owned(),
        Whose::Rank(owner) if owner == rank => String::new(),
        Whose::Rank(owner) => format!("r{owner}."),
    };
    let _ = write!(text, "{}[{}]", place.buffer.name(), place.index);
    if place.partial {
        text.push('*');
    }
    if let Some(writer) = place.writer {
        let _ = write!(text, "<{writer}");
    }
    text
}

impl Buffer {
    const ALL: [Self; 4] = [Self::Input, Self::Output, Self::Scratch, Self::Packets];

    /// Its name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "in",
            Self::Output => "out",
            Self::Scratch => "scratch",
            Self::Packets => "packets",
        }
    }
}

#[derive(Default)]
struct Reader {
    begun: bool,
    name: Option<String>,
    collective: Option<Collective>,
    world: Option<usize>,
    root: usize,
    parts: Option<usize>,
    scratch: usize,
    packets: usize,
    programs: Vec<Program>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if !self.begun {
            self.begun = true;
            let other = || format!("a plan begins with '{MAGIC}'");
            return if line == MAGIC { Ok(()) } else { Err(other()) };
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "rank" => self.rank(rest),
            "worker" => self.worker(rest),
            _ if self.programs.is_empty() => self.header(word, rest),
            _ => {
                let instruction = parse_instruction(self.programs.len() - 1, word, rest)?;
                let program = self.programs.last_mut().ok_or("an instruction before 'rank 0'")?;
                program.workers.last_mut().ok_or("no worker")?.push(instruction);
                Ok(())
            }
        }
    }

    fn header(&mut self, word: &str, rest: &str) -> Result<(), String> {
        match word {
            "name" => self.name = Some(rest.to_owned()),
            "collective" => {
                let collective = Collective::from_name(rest);
                self.collective = Some(collective.ok_or(format!("no collective '{rest}'"))?);
            }
            "world" => self.world = Some(number(rest)?),
            "root" => self.root = number(rest)?,
            "parts" => self.parts = Some(number(rest)?),
            "scratch" => self.scratch = number(rest)?,
            "packets" => self.packets = number(rest)?,
            _ => return Err(format!("unknown word '{word}' before the first rank")),
        }
        Ok(())
    }

    fn rank(&mut self, rest: &str) -> Result<(), String> {
        let (rank, expected) = (number(rest)?, self.programs.len());
        if rank != expected {
            return Err(format!("rank {rank} where rank {expected} is next"));
        }
        self.programs.push(Program { workers: vec![Vec::new()] });
        Ok(())
    }

    fn worker(&mut self, rest: &str) -> Result<(), String> {
        let worker = number(rest)?;
        let workers = &mut self.programs.last_mut().ok_or("a worker before 'rank 0'")?.workers;
        let fresh = workers.len() == 1 && workers[0].is_empty();
        match worker {
            0 if fresh => {}
            _ if worker == workers.len() => workers.push(Vec::new()),
            _ => {
                return Err(format!("worker {worker} where worker {} is next", workers.len()));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Plan, String> {
        let missing = |what: &str| format!("'{what}' is missing");
        let shape = Shape {
            name: self.name.ok_or_else(|| missing("name"))?,
            collective: self.collective.ok_or_else(|| missing("collective"))?,
            world: self.world.ok_or_else(|| missing("world"))?,
            root: self.root,
            parts: self.parts.unwrap_or(1),
            scratch: self.scratch,
            packets: self.packets,
        };
        if self.programs.len() != shape.world {
            return Err(format!("{} ranks of {} are there", self.programs.len(), shape.world));
        }
        Ok(Plan { shape, programs: self.programs })
    }
}

fn parse_instruction(rank: usize, word: &str, rest: &str) -> Result<Instruction, String> {
    if word == "flush" {
        return Ok(Instruction::Flush { port: number(rest)? });
    }
    let (head, tail) = rest.split_once(':').ok_or(format!("'{word}' needs a ':'"))?;
    let ranks = || tail.split_whitespace().map(number).collect::<Result<Vec<_>, _>>();
    match word {
        "copy" | "reduce" => {
            let (to, from) = tail.split_once('=').ok_or("a move needs a '='")?;
            let (to, from) = (parse_places(rank, to)?, parse_places(rank, from)?);
            Ok(Instruction::Move { part: number(head)?, to, from, reduce: word == "reduce" })
        }
        "signal" => Ok(Instruction::Signal { semaphore: number(head)?, to: ranks()? }),
        "wait" => Ok(Instruction::Wait { semaphore: number(head)?, from: ranks()? }),
        "put" => {
            let (port, part) = head.split_once(' ').ok_or("put takes a port and a part")?;
            let (to, from) = tail.split_once('=').ok_or("a put needs a '='")?;
            let (from, then_signal) = match from.split_once(" then ") {
                Some((from, semaphore)) => (from, Some(number(semaphore)?)),
                None => (from, None),
            };
            let (to, from) = (parse_place(rank, to)?, parse_place(rank, from)?);
            let (port, part) = (number(port)?, number(part)?);
            Ok(Instruction::Put { port, part, to, from, then_signal })
        }
        _ => Err(format!("unknown instruction '{word}'")),
    }
}

fn parse_places(rank: usize, text: &str) -> Result<Vec<Place>, String> {
    text.split(',').map(|place| parse_place(rank, place)).collect()
}

fn parse_place(rank: usize, text: &str) -> Result<Place, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is not a place such as in[0], r2.scratch[1]* or packets[3]<1");
    let (owner, local) = text.split_once('.').map_or((None, text), |(o, l)| (Some(o), l));
    let whose = match owner {
        None => Whose::Rank(rank),
        Some("all") => Whose::Group,
        Some(owner) => Whose::Rank(number(owner.strip_prefix('r').ok_or_else(wrong)?)?),
    };
    let (name, rest) = local.split_once('[').ok_or_else(wrong)?;
    let (index, rest) = rest.split_once(']').ok_or_else(wrong)?;
    let buffer = Buffer::ALL.into_iter().find(|b| b.name() == name).ok_or_else(wrong)?;
    let (partial, rest) = rest.strip_prefix('*').map_or((false, rest), |rest| (true, rest));
    let writer = match rest.strip_prefix('<') {
        Some(writer) => Some(number(writer)?),
        None if rest.is_empty() => None,
        None => return Err(wrong()),
    };
    Ok(Place { whose, buffer, index: number(index)?, partial, writer })
}

fn number(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| format!("'{}' is not a number", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_built_in_plan_survives_its_text() {
        for algorithm in crate::algorithms::all() {
            let plan = algorithm.plan(4, 0);
            assert_eq!(Plan::from_text(&plan.to_text()), Ok(plan));
        }
    }

    #[test]
    fn puts_groups_and_workers_survive_too() {
        let text = "warpmesh plan 1\nname x\ncollective all_reduce\nworld 1\nroot 0\n\nrank 0\n \
                    worker 0\n  put 2 0: r1.out[0] = in[0] then 3\n  flush 2\n worker 1\n  \
                    reduce 0: all.out[0] = all.in[0]\n  wait 1: 2 3\n";
        let plan = Plan::from_text(text).unwrap();
        assert_eq!(plan.programs[0].workers.len(), 2);
        assert_eq!(Plan::from_text(&plan.to_text()), Ok(plan));
    }

    #[test]
    fn errors_name_the_line() {
        let text = "warpmesh plan 1\nname x\ncollective all_reduce\nworld 1\nrank 0\n  copy 0: out = in[0]";
        let error = Plan::from_text(text).unwrap_err();
        assert_eq!(error.line, 6);
        assert!(error.problem.contains("'out'"), "{error}");
        assert_eq!(Plan::from_text("hello").unwrap_err().line, 1);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = Plan::from_text(&text);
            let _ = Plan::from_text(&format!("{MAGIC}\n{text}"));
        }

        #[test]
        fn no_mutation_of_a_plan_panics(at in 0_usize..4000, with in "[ -~\n]{0,4}") {
            let mut text = crate::algorithms::ALL[4].plan(3, 0).to_text();
            let at = at % text.len();
            text.replace_range(at..at + 1, &with);
            if let Ok(plan) = Plan::from_text(&text) {
                let _ = crate::plan::verify::verify(&plan);
            }
        }
    }
}

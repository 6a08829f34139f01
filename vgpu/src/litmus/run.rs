//! Runs a test on the memory model, once per seed.

use std::collections::{BTreeMap, HashMap};

use super::condition::{Condition, Term};
use super::parse::{Instr, Operand, Question, Test, Thread};
use crate::exec::warp::{Scope, Sem};
use crate::track::clock::Thread as Agent;
use crate::track::model::{Access, Config, Model, Position};

/// What many runs of a test showed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Runs that ended in a final state.
    pub runs: u64,
    /// Runs that hung or went on for too long.
    pub unfinished: u64,
    /// Runs that ended in the state that matters: the condition, or for `forall` its opposite.
    pub seen: u64,
    /// The first seed that showed it.
    pub first_seed: Option<u64>,
}

impl Outcome {
    /// Whether the test's statement is true of what was seen.
    pub fn holds(&self, q: Question) -> bool {
        match q {
            Question::Exists => self.seen > 0,
            Question::NotExists | Question::Forall => self.seen == 0,
        }
    }
}

/// Instructions after which a run is given up.
const STEPS: u32 = 600;

/// Runs a test with seeds `0..seeds`.
pub fn run(test: &Test, seeds: u64) -> Outcome {
    let mut out = Outcome::default();
    for seed in 0..seeds {
        let mut r = Run::new(test, seed);
        if !r.finish() {
            out.unfinished += 1;
            continue;
        }
        out.runs += 1;
        if test.filter.as_ref().is_some_and(|f| !r.holds(f)) {
            continue;
        }
        if r.holds(&test.condition) != (test.question == Question::Forall) {
            out.seen += 1;
            out.first_seed.get_or_insert(seed);
        }
    }
    out
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Known(u64),
    Deferred(u64),
}

struct State<'a> {
    thread: &'a Thread,
    agent: Agent,
    pc: usize,
    regs: HashMap<&'a str, Value>,
    /// Waits at a barrier: its number and threads.
    waits: Option<(u64, Option<u64>)>,
}

struct Run<'a> {
    test: &'a Test,
    model: Model,
    threads: Vec<State<'a>>,
    places: BTreeMap<&'a str, u64>,
    initial: HashMap<u64, u64>,
    /// Arrivals at barriers, by block and number: which threads.
    arrivals: HashMap<(u64, u32, u64), Vec<usize>>,
    /// Complete phases of barriers.
    completed: HashMap<(u64, u32, u64), u32>,
}

/// The model's threads: those of a block are lanes of one warp, or each has a warp to itself. The verdicts are the same, since the
/// model orders nothing between lanes of a warp.
fn agents(test: &Test, model: &mut Model, together: bool) -> Vec<Agent> {
    let mut blocks: BTreeMap<(u64, u32), Agent> = BTreeMap::new();
    let warp = |cta, gpu, lanes, model: &mut Model| {
        model.warp(Position { cta, gpu, lanes, kernel: 0 }, &Default::default())
    };
    let mut place = |t: &Thread| {
        let block = (t.cta, t.gpu);
        let next = blocks.get(&block).filter(|a| together && a.lane < 31);
        let agent = match next {
            Some(a) => Agent { warp: a.warp, lane: a.lane + 1 },
            None => {
                Agent { warp: warp(t.cta, t.gpu, if together { !0 } else { 1 }, model), lane: 0 }
            }
        };
        blocks.insert(block, agent);
        agent
    };
    test.threads.iter().map(&mut place).collect()
}

impl<'a> Run<'a> {
    fn new(test: &'a Test, seed: u64) -> Self {
        let mut model = Model::new(Config { weak: true, race: false, seed });
        let agents = agents(test, &mut model, seed % 2 == 1);
        let thread =
            |(thread, agent)| State { thread, agent, pc: 0, regs: HashMap::new(), waits: None };
        let threads = test.threads.iter().zip(agents).map(thread).collect();
        let mut run = Run {
            test,
            model,
            threads,
            places: BTreeMap::new(),
            initial: HashMap::new(),
            arrivals: HashMap::new(),
            completed: HashMap::new(),
        };
        for (name, value) in &test.memory {
            let (at, value) = (run.place(name), run.constant(value));
            run.initial.insert(at, value);
        }
        for (t, name, value) in &test.registers {
            let value = Value::Known(run.constant(value));
            if let Some(s) = run.threads.iter_mut().find(|s| s.thread.id == *t) {
                s.regs.insert(name, value);
            }
        }
        run
    }

    fn constant(&mut self, o: &'a Operand) -> u64 {
        match o {
            Operand::Int(i) => *i,
            Operand::Loc(l) => self.place(l),
            Operand::Reg(_) => 0,
        }
    }

    /// The address of a location: each has a granule of its own.
    fn place(&mut self, name: &'a str) -> u64 {
        let name = self.test.aliases.get(name).map_or(name, String::as_str);
        let next = (self.places.len() as u64 + 1) * 16;
        *self.places.entry(name).or_insert(next)
    }

    fn bytes(&self, at: u64) -> [u8; 16] {
        let mut b = [0; 16];
        b[..8].copy_from_slice(&self.initial.get(&at).copied().unwrap_or(0).to_le_bytes());
        b
    }

    /// Runs all threads to their ends; false if that does not happen.
    fn finish(&mut self) -> bool {
        for _ in 0..STEPS {
            let ready: Vec<usize> = (0..self.threads.len()).filter(|&t| self.can_run(t)).collect();
            if ready.is_empty() {
                if self.threads.iter().all(|t| t.pc >= t.thread.code.len()) {
                    return true;
                }
                if !self.release_late() {
                    return false;
                }
                continue;
            }
            if self.model.random(16) == 0 {
                self.model.nudge();
            }
            let t = ready[self.model.random(ready.len() as u64) as usize];
            // Sometimes a thread runs far ahead: that is where the rare states are.
            let burst = if self.model.random(3) == 0 { 6 } else { 1 };
            for _ in 0..burst {
                if self.can_run(t) {
                    self.step(t);
                }
            }
        }
        false
    }

    fn can_run(&self, t: usize) -> bool {
        let s = &self.threads[t];
        s.pc < s.thread.code.len() && s.waits.is_none()
    }

    fn value(&mut self, t: usize, o: &'a Operand) -> u64 {
        let Operand::Reg(r) = o else {
            return self.constant(o);
        };
        match self.threads[t].regs.get(r.as_str()).copied() {
            None => 0,
            Some(Value::Known(v)) => v,
            Some(Value::Deferred(ticket)) => {
                let v = word(&self.model.force(ticket));
                self.threads[t].regs.insert(r, Value::Known(v));
                v
            }
        }
    }

    fn set(&mut self, t: usize, r: &'a str, result: Result<[u8; 16], u64>) {
        // A deferred result that is overwritten must still be performed in its place.
        if let Some(Value::Deferred(ticket)) = self.threads[t].regs.get(r).copied() {
            self.model.force(ticket);
        }
        let v = match result {
            Ok(b) => Value::Known(word(&b)),
            Err(ticket) => Value::Deferred(ticket),
        };
        self.threads[t].regs.insert(r, v);
    }

    fn access(&self, at: u64, sem: Sem, scope: Scope) -> Access {
        Access { granule: at / 16, mask: 0xff, element: 8, sem, scope, line: 0, slot: 0 }
    }

    /// The address that an operand names.
    fn target(&mut self, t: usize, o: &'a Operand) -> u64 {
        self.value(t, o)
    }

    fn step(&mut self, t: usize) {
        let thread = self.threads[t].thread;
        let agent = self.threads[t].agent;
        let mut next = self.threads[t].pc + 1;
        match &thread.code[self.threads[t].pc] {
            Instr::Nop => {}
            Instr::Load { sem, scope, d, from } => {
                let at = self.target(t, from);
                let (a, initial) = (self.access(at, *sem, *scope), self.bytes(at));
                let r = self.model.load(agent, a, &initial, true);
                self.set(t, d, r);
            }
            Instr::Store { sem, scope, to, value } => {
                let (at, v) = (self.target(t, to), self.value(t, value));
                let (a, initial) = (self.access(at, *sem, *scope), self.bytes(at));
                let mut data = [0; 16];
                data[..8].copy_from_slice(&v.to_le_bytes());
                self.model.store(agent, a, data, &initial);
            }
            Instr::Atomic { sem, scope, op, d, at, cmp, value } => {
                let (at, v) = (self.target(t, at), self.value(t, value));
                let cmp = cmp.as_ref().map(|c| self.value(t, c));
                let (a, initial) = (self.access(at, *sem, *scope), self.bytes(at));
                let op = op.clone();
                let update = move |old: &[u8; 16]| {
                    let mut new = *old;
                    new[..8].copy_from_slice(&atomic(&op, word(old), v, cmp).to_le_bytes());
                    new
                };
                let r = self.model.atomic(agent, a, &initial, true, Box::new(update));
                // A `red` has no register; if it was deferred, the model performs it in time.
                if let Some(d) = d {
                    self.set(t, d, r);
                }
            }
            Instr::Fence { sem, scope } => self.model.fence(agent.warp, agent.bit(), *sem, *scope),
            Instr::Compute { op, d, a, b } => {
                let (a, b) = (self.value(t, a), self.value(t, b));
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&atomic(op, a, b, None).to_le_bytes());
                self.set(t, d, Ok(bytes));
            }
            Instr::Branch { op, a, b, to } => {
                let (a, b) = (self.value(t, a) as i64, self.value(t, b) as i64);
                let taken = match op.as_str() {
                    "beq" => a == b,
                    "bne" => a != b,
                    "blt" => a < b,
                    "ble" => a <= b,
                    "bgt" => a > b,
                    _ => a >= b,
                };
                if taken {
                    next = *to;
                }
            }
            Instr::Jump { to } => next = *to,
            Instr::Barrier { waits, id, quorum } => {
                let id = self.value(t, id);
                let quorum = quorum.as_ref().map(|q| self.value(t, q));
                self.arrive(t, id, quorum, *waits);
                if *waits {
                    self.settle(t, id, quorum);
                    return;
                }
            }
        }
        self.threads[t].pc = next;
        self.settle_all();
    }

    fn key(&self, t: usize, id: u64) -> (u64, u32, u64) {
        (self.threads[t].thread.cta, self.threads[t].thread.gpu, id)
    }

    /// The model's name for a phase of a barrier; phases count from 0.
    fn phase_of(&self, t: usize, id: u64, back: u32) -> (u64, u32) {
        let phase = self.completed.get(&self.key(t, id)).copied().unwrap_or(0) - back;
        let place = self.threads[t].thread.cta << 32 | u64::from(self.threads[t].thread.gpu);
        (place << 8 | u64::from(phase), id as u32)
    }

    fn arrive(&mut self, t: usize, id: u64, quorum: Option<u64>, waits: bool) {
        let (key, barrier, agent) =
            (self.key(t, id), self.phase_of(t, id, 0), self.threads[t].agent);
        self.model.arrive(barrier, agent.warp, agent.bit());
        self.arrivals.entry(key).or_default().push(t);
        if waits {
            self.threads[t].waits = Some((id, quorum));
        }
    }

    /// Looks at every barrier at which somebody waits.
    fn settle_all(&mut self) {
        for t in 0..self.threads.len() {
            if let Some((id, quorum)) = self.threads[t].waits {
                self.settle(t, id, quorum);
            }
        }
    }

    /// Lets the threads at a barrier go if all are there.
    fn settle(&mut self, t: usize, id: u64, quorum: Option<u64>) {
        let key = self.key(t, id);
        let there = self.arrivals.get(&key).cloned().unwrap_or_default();
        let complete = match quorum {
            Some(q) => there.len() as u64 >= q,
            // Without a number: every thread of the block that may still come here.
            None => (0..self.threads.len())
                .all(|o| there.contains(&o) || self.key(o, id) != key || !self.may_reach(o, id)),
        };
        if !complete {
            return;
        }
        self.arrivals.remove(&key);
        let waiting: Vec<usize> = there
            .into_iter()
            .filter(|&o| matches!(self.threads[o].waits, Some((i, _)) if i == id))
            .collect();
        let phase = self.phase_of(t, id, 0);
        self.model.turn(phase);
        for &o in &waiting {
            self.model.pass(phase, self.threads[o].agent);
        }
        *self.completed.entry(key).or_default() += 1;
        for o in waiting {
            self.threads[o].waits = None;
            self.threads[o].pc += 1;
        }
    }

    /// True if a thread has a barrier instruction before it that may be about `id`.
    fn may_reach(&self, t: usize, id: u64) -> bool {
        let s = &self.threads[t];
        let mut seen = vec![false; s.thread.code.len()];
        let mut todo = vec![s.pc];
        while let Some(pc) = todo.pop() {
            if pc >= seen.len() || std::mem::replace(&mut seen[pc], true) {
                continue;
            }
            match &s.thread.code[pc] {
                Instr::Barrier { id: Operand::Int(i), .. } if *i != id => todo.push(pc + 1),
                // It waits here with a number that is known by now.
                Instr::Barrier { .. } if pc == s.pc && s.waits.is_some_and(|(i, _)| i != id) => {
                    todo.push(pc + 1)
                }
                Instr::Barrier { id: o, .. } => match o {
                    // A register that nobody has to read yet may hold anything.
                    Operand::Reg(r) if pc == s.pc => match s.regs.get(r.as_str()) {
                        Some(Value::Known(v)) if *v != id => todo.push(pc + 1),
                        None if id != 0 => todo.push(pc + 1),
                        _ => return true,
                    },
                    _ => return true,
                },
                Instr::Jump { to } => todo.push(*to),
                Instr::Branch { to, .. } => todo.extend([*to, pc + 1]),
                _ => todo.push(pc + 1),
            }
        }
        false
    }

    /// Nobody can run. Who waits for a number of threads at a barrier that was complete before came too late for it; the formal
    /// model counts such a thread as one of those that passed, so it knows what they knew.
    fn release_late(&mut self) -> bool {
        let late = (0..self.threads.len()).find(|&t| {
            matches!(self.threads[t].waits, Some((id, Some(_))) if self.completed.contains_key(&self.key(t, id)))
        });
        let Some(t) = late else { return false };
        if let Some((id, _)) = self.threads[t].waits.take() {
            self.model.pass(self.phase_of(t, id, 1), self.threads[t].agent);
            let key = self.key(t, id);
            if let Some(a) = self.arrivals.get_mut(&key) {
                a.retain(|&o| o != t);
            }
        }
        self.threads[t].pc += 1;
        true
    }

    fn holds(&mut self, c: &'a Condition) -> bool {
        match c {
            Condition::And(a, b) => self.holds(a) && self.holds(b),
            Condition::Or(a, b) => self.holds(a) || self.holds(b),
            Condition::Not(a) => !self.holds(a),
            Condition::Compare(a, op, b) => {
                let (a, b) = (self.term(a) as i64, self.term(b) as i64);
                match op.as_str() {
                    "==" => a == b,
                    "!=" => a != b,
                    "<" => a < b,
                    "<=" => a <= b,
                    ">" => a > b,
                    _ => a >= b,
                }
            }
        }
    }

    fn term(&mut self, t: &'a Term) -> u64 {
        match t {
            Term::Int(i) => *i,
            Term::Loc(l) => {
                let at = self.place(l);
                self.model.perform_all();
                word(&self.model.newest(at / 16).unwrap_or_else(|| self.bytes(at)))
            }
            Term::Reg(id, r) => match self.threads.iter().position(|s| s.thread.id == *id) {
                Some(s) => match self.threads[s].regs.get(r.as_str()).copied() {
                    None => 0,
                    Some(Value::Known(v)) => v,
                    Some(Value::Deferred(ticket)) => {
                        let v = word(&self.model.force(ticket));
                        self.threads[s].regs.insert(r, Value::Known(v));
                        v
                    }
                },
                None => 0,
            },
        }
    }
}

fn word(b: &[u8; 16]) -> u64 {
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

fn atomic(op: &str, old: u64, v: u64, cmp: Option<u64>) -> u64 {
    match op {
        "add" | "plus" => old.wrapping_add(v),
        "sub" | "minus" => old.wrapping_sub(v),
        "mul" => old.wrapping_mul(v),
        "div" => old.checked_div(v).unwrap_or(0),
        "and" => old & v,
        "or" => old | v,
        "xor" => old ^ v,
        "min" => old.min(v),
        "max" => old.max(v),
        "inc" => {
            if old >= v {
                0
            } else {
                old + 1
            }
        }
        "dec" => {
            if old == 0 || old > v {
                v
            } else {
                old - 1
            }
        }
        "cas" => {
            if Some(old) == cmp {
                v
            } else {
                old
            }
        }
        _ => v, // exch
    }
}

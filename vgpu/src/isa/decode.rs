//! A function body becomes a list of [`Inst`].
//!
//! Every register, immediate, special register and address constant is a *virtual* register while the body is read; at the
//! end each gets its place in the register file. Fields of an instruction that name registers carry [`VREG`].

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::lower;
use super::operand::{Opnd, operands};
use super::select::{Form, form};
use super::slots::{self, Flow, Note};
use super::spec::{Spec, W};
use super::special::Special;
use crate::error::LoadError;
use crate::exec::alu::NONE;
use crate::exec::control::{Bra, Exit};
use crate::exec::plain_handler;
use crate::exec::warp::{Inst, MemInfo, NO_GUARD};
use crate::ptx::{Function, Lexer, Module, Space, Tok, Ty, variables};

/// Marks a field as a virtual register.
pub const VREG: u32 = 1 << 31;

/// Limits that no real kernel comes near, so that sums of what a kernel needs stay below 2^32.
const MOST_REGISTERS: i64 = 1 << 22;
/// Bytes of a variable in shared or local memory (CUDA allows 512 KiB of local memory in all).
const MOST_BYTES: u64 = 1 << 24;
/// Calls that are inlined into a kernel.
const MOST_CALLS: u32 = 1 << 16;

/// Stands for the start of dynamic shared memory while a body is decoded.
pub const DYNAMIC_SHARED: u64 = 1 << 40;

/// Addresses of a module's variables on a device.
pub type Symbols = HashMap<String, (Space, u64)>;

/// A kernel, ready to run.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its instructions.
    pub code: Vec<Inst>,
    /// Tracked mode, for late loads: the registers that each instruction reads or writes, as offsets.
    pub uses: Vec<SmallVec<[u32; 6]>>,
    /// Bytes of a warp's register file.
    pub reg_bytes: u32,
    /// Constants: where, class, bits.
    pub constants: Vec<(u32, W, u64)>,
    /// Special registers: where, class, which.
    pub specials: Vec<(u32, W, Special)>,
    /// Bytes of parameters.
    pub param_bytes: u32,
    /// Offset and size of each parameter.
    pub params: Vec<(u32, u32)>,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of local memory per lane.
    pub local_bytes: u32,
    /// The most threads of a block, if the kernel says so.
    pub max_threads: Option<u32>,
    /// Targets of `brx.idx`.
    pub tables: Vec<Vec<u32>>,
    /// True if its memory handlers are those of tracked mode.
    pub tracked: bool,
    /// The module's text, for reports.
    pub text: Arc<str>,
    /// Where the module's variables are.
    pub variables: Arc<Symbols>,
}

/// What a name in a body stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named {
    /// A register.
    Reg(u32, W),
    /// `%r<100>`: register n is the base plus n.
    Family(u32, W, u32),
    /// A variable or parameter at an address of a space.
    Var(Space, u64),
}

/// The state of decoding.
pub(super) struct Decoder<'a> {
    pub module: &'a Module,
    pub symbols: &'a Arc<Symbols>,
    pub tracked: bool,
    pub classes: Vec<W>,
    pub constants: HashMap<(W, u64), u32>,
    pub specials: HashMap<(Special, W), u32>,
    /// Constants that are offsets into dynamic shared memory, which begins where the static one ends.
    pub dynamic: HashMap<(W, u64), u32>,
    pub scopes: Vec<HashMap<&'a str, Named>>,
    labels: Vec<HashMap<&'a str, u32>>,
    /// Labels of the inlined function, to be found when its body ends: instruction, label, scope path.
    fixups: Vec<(usize, &'a str, u32)>,
    table_fixups: Vec<(usize, Vec<&'a str>, u32)>,
    pub tables: Vec<Vec<u32>>,
    table_names: HashMap<&'a str, usize>,
    pub code: Vec<Inst>,
    notes: Vec<Note>,
    pub shared: u64,
    pub local: u64,
    /// Inlined calls around this one: branches that `ret` leaves behind; none in the kernel itself.
    pub returns: Option<Vec<usize>>,
    depth: u32,
    /// Calls inlined so far.
    calls: u32,
    pub line: u32,
    /// Registers that the instruction at hand writes.
    pub written: SmallVec<[u32; 4]>,
    share: bool,
}

/// Decodes a kernel of a module whose variables are at the given addresses.
pub fn decode_kernel(
    module: &Module,
    name: &str,
    symbols: &Arc<Symbols>,
    tracked: bool,
) -> Result<Arc<Kernel>, LoadError> {
    decode_with(module, name, symbols, tracked, true)
}

/// The same; without `share` each virtual register has a place of its own, for tests.
pub(crate) fn decode_with(
    module: &Module,
    name: &str,
    symbols: &Arc<Symbols>,
    tracked: bool,
    share: bool,
) -> Result<Arc<Kernel>, LoadError> {
    let f = module.functions.get(name).filter(|f| f.is_kernel && f.body.is_some());
    let f = f.ok_or_else(|| LoadError::NoSuchKernel { name: name.into() })?;
    let mut d = Decoder {
        module,
        symbols,
        tracked,
        classes: Vec::new(),
        constants: HashMap::new(),
        specials: HashMap::new(),
        dynamic: HashMap::new(),
        scopes: vec![HashMap::new()],
        labels: Vec::new(),
        fixups: Vec::new(),
        table_fixups: Vec::new(),
        tables: Vec::new(),
        table_names: HashMap::new(),
        code: Vec::new(),
        notes: Vec::new(),
        shared: 0,
        local: 0,
        returns: None,
        depth: 0,
        calls: 0,
        line: f.line,
        written: SmallVec::new(),
        share,
    };
    for v in module.variables.iter().filter(|v| v.space == Space::Shared && v.size > 0) {
        let at = d.place_shared(v.size, v.align);
        d.scopes[0].insert(&v.name, Named::Var(Space::Shared, at));
    }
    for p in &f.params {
        d.scopes[0].insert(&p.name, Named::Var(Space::Param, p.offset.into()));
    }
    d.body(f)?;
    d.jump(Inst { run: plain_handler::<Exit>(), ..d.blank() }, Flow::End);
    if d.shared.max(d.local) > MOST_BYTES {
        return Err(d.error("more shared or local memory than there is"));
    }
    Ok(Arc::new(d.finish(f)))
}

impl<'a> Decoder<'a> {
    /// An instruction without operands on the current line.
    pub fn blank(&self) -> Inst {
        Inst {
            run: plain_handler::<Exit>(),
            d: NONE,
            a: NONE,
            b: NONE,
            c: NONE,
            e: NONE,
            guard: NO_GUARD,
            negate: 0,
            target: 0,
            line: self.line,
            imm: 0,
            v: [NONE; 8],
            mem: MemInfo::default(),
            aux: 0,
        }
    }

    /// Adds an instruction.
    pub fn emit(&mut self, i: Inst) {
        self.jump(i, Flow::Next);
    }

    /// Adds an instruction after which control may go elsewhere.
    pub(super) fn jump(&mut self, i: Inst, flow: Flow) {
        self.code.push(i);
        self.notes.push(Note { writes: std::mem::take(&mut self.written), flow });
    }

    pub(super) fn error(&self, what: impl Into<String>) -> LoadError {
        LoadError::syntax(self.line, what)
    }

    fn place_shared(&mut self, size: u64, align: u32) -> u64 {
        self.shared = self.shared.next_multiple_of(u64::from(align.max(1)));
        self.shared += size;
        self.shared - size
    }

    /// Reserves local memory.
    pub fn place_local(&mut self, size: u64, align: u32) -> u64 {
        self.local = self.local.next_multiple_of(u64::from(align.max(8)));
        self.local += size;
        self.local - size
    }

    /// A fresh virtual register.
    pub fn fresh(&mut self, w: W) -> u32 {
        self.classes.push(w);
        self.classes.len() as u32 - 1
    }

    /// Decodes a body in a scope of its own: registers, labels and the place to return to.
    fn body(&mut self, f: &'a Function) -> Result<(), LoadError> {
        let Some(range) = f.body.clone() else {
            return Err(
                self.error(format!("call of `{}`, which this module only declares", f.name))
            );
        };
        let mut lx = Lexer::new(&self.module.text[..range.end], range.start, f.line);
        self.labels.push(HashMap::new());
        let (fixups, tables) =
            (std::mem::take(&mut self.fixups), std::mem::take(&mut self.table_fixups));
        let base = self.scopes.len();
        self.scopes.push(HashMap::new());
        loop {
            self.line = lx.line();
            match lx.next_tok()? {
                Tok::End => break,
                Tok::Punct(b'{') => self.scopes.push(HashMap::new()),
                Tok::Punct(b'}') if self.scopes.len() > base + 1 => {
                    self.scopes.pop();
                }
                Tok::Punct(b';') => {}
                Tok::Punct(b'@') => {
                    let negate = if lx.accept(b'!')? { !0 } else { 0 };
                    let name = lx.word()?;
                    let opcode = lx.word()?;
                    self.statement(&mut lx, opcode, Some((name, negate)))?;
                }
                Tok::Word(w) => self.word(&mut lx, w)?,
                t => return Err(self.error(format!("unexpected {t:?}"))),
            }
        }
        self.scopes.truncate(base);
        let labels = self.labels.pop().unwrap_or_default();
        let find = |name: &str, line| {
            labels
                .get(name)
                .copied()
                .ok_or_else(|| LoadError::syntax(line, format!("no label `{name}`")))
        };
        for (at, name, line) in std::mem::replace(&mut self.fixups, fixups) {
            self.code[at].target = find(name, line)?;
        }
        for (table, names, line) in std::mem::replace(&mut self.table_fixups, tables) {
            self.tables[table] =
                names.into_iter().map(|n| find(n, line)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    fn word(&mut self, lx: &mut Lexer<'a>, w: &'a str) -> Result<(), LoadError> {
        match w {
            ".reg" => self.registers(lx),
            ".loc" | ".file" | ".pragma" => {
                let line = self.line;
                while lx.line() == line && !matches!(lx.peek()?, Tok::End) {
                    if lx.next_tok()? == Tok::Punct(b';') {
                        break;
                    }
                }
                Ok(())
            }
            _ if w.starts_with('.') => {
                let space =
                    Space::parse(&w[1..]).ok_or_else(|| self.error(format!("unexpected `{w}`")))?;
                self.declare(lx, space)
            }
            _ if lx.accept(b':')? => {
                if lx.peek()? == Tok::Word(".branchtargets") {
                    lx.next_tok()?;
                    let names = operands(lx)?;
                    let names = names
                        .iter()
                        .filter_map(|o| if let Opnd::Name(n) = o { Some(*n) } else { None })
                        .collect();
                    self.table_names.insert(w, self.tables.len());
                    self.table_fixups.push((self.tables.len(), names, self.line));
                    self.tables.push(Vec::new());
                } else {
                    let here = self.code.len() as u32;
                    if let Some(labels) = self.labels.last_mut() {
                        labels.insert(w, here);
                    }
                }
                Ok(())
            }
            _ => self.statement(lx, w, None),
        }
    }

    fn registers(&mut self, lx: &mut Lexer<'a>) -> Result<(), LoadError> {
        let ty = lx.word()?.trim_start_matches('.');
        let class = Ty::parse(ty)
            .and_then(W::of)
            .ok_or_else(|| self.error(format!("register type `{ty}`")))?;
        loop {
            let name = lx.word()?;
            let first = self.classes.len() as u32;
            let named = if lx.accept(b'<')? {
                let n = lx.int()?;
                if n < 0 || self.classes.len() as i64 + n > MOST_REGISTERS {
                    return Err(self.error(format!("{n} registers")));
                }
                let n = n as u32;
                lx.expect(b'>')?;
                self.classes.extend(std::iter::repeat_n(class, n as usize));
                Named::Family(first, class, n)
            } else {
                self.fresh(class);
                Named::Reg(first, class)
            };
            self.define(name, named);
            if !lx.accept(b',')? {
                return lx.expect(b';');
            }
        }
    }

    fn define(&mut self, name: &'a str, named: Named) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, named);
        }
    }

    fn declare(&mut self, lx: &mut Lexer<'a>, space: Space) -> Result<(), LoadError> {
        let text = &*self.module.text;
        for v in variables(lx, space)? {
            if v.size.saturating_add(v.align.into()) > MOST_BYTES {
                return Err(self.error(format!("`{}` is too large", v.name)));
            }
            let named = match space {
                Space::Shared => Named::Var(Space::Shared, self.place_shared(v.size, v.align)),
                // Parameters of a call live in local memory until the callee has read them.
                Space::Local | Space::Param => {
                    Named::Var(Space::Local, self.place_local(v.size, v.align))
                }
                _ => return Err(self.error("a variable of this space inside a function")),
            };
            // Names live as long as the text; `variables` hands out copies.
            let at = text.find(v.name.as_str()).ok_or_else(|| self.error("lost a name"))?;
            self.define(&text[at..at + v.name.len()], named);
        }
        Ok(())
    }

    fn statement(
        &mut self,
        lx: &mut Lexer<'a>,
        opcode: &'a str,
        guard: Option<(&'a str, u32)>,
    ) -> Result<(), LoadError> {
        let ops = operands(lx)?;
        let spec = Spec::parse(opcode);
        let f = form(&spec).map_err(|why| LoadError::UnknownInstruction {
            line: self.line,
            opcode: opcode.into(),
            why,
        })?;
        let Some((name, negate)) = guard else {
            return lower::lower(self, &spec, f, &ops);
        };
        let Some((reg, W::P)) = self.register(name) else {
            return Err(self.error(format!("`{name}` is no predicate")));
        };
        let guard = reg | VREG;
        let first = self.code.len();
        if matches!(f, Form::Call) {
            // The callee's instructions have guards of their own: jump over all of them.
            let skip = Inst { run: plain_handler::<Bra>(), guard, negate: !negate, ..self.blank() };
            self.jump(skip, Flow::Jump);
            lower::lower(self, &spec, f, &ops)?;
            self.code[first].target = self.code.len() as u32;
            return Ok(());
        }
        lower::lower(self, &spec, f, &ops)?;
        for i in &mut self.code[first..] {
            (i.guard, i.negate) = (guard, negate);
        }
        Ok(())
    }

    /// What a name stands for.
    pub fn lookup(&self, name: &str) -> Option<Named> {
        for scope in self.scopes.iter().rev() {
            if let Some(n) = scope.get(name) {
                return Some(*n);
            }
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            if stem.len() < name.len()
                && let Some(Named::Family(base, w, n)) = scope.get(stem)
                && let Ok(k) = name[stem.len()..].parse::<u32>()
                && k < *n
            {
                return Some(Named::Reg(base + k, *w));
            }
        }
        let &(space, at) = self.symbols.get(name)?;
        Some(Named::Var(space, at))
    }

    /// The register of that name, special registers included.
    pub fn register(&mut self, name: &str) -> Option<(u32, W)> {
        match self.lookup(name) {
            Some(Named::Reg(r, w)) => return Some((r, w)),
            Some(_) => return None,
            None => {}
        }
        match name {
            "WARP_SZ" => return Some((self.constant(W::S, 32), W::S)),
            _ if !name.starts_with('%') => return None,
            _ => {}
        }
        let (s, w) = Special::parse(name)?;
        let known = self.specials.get(&(s, w)).copied();
        let r = known.unwrap_or_else(|| {
            let r = self.fresh(w);
            self.specials.insert((s, w), r);
            r
        });
        Some((r, w))
    }

    /// A register that holds a constant in all lanes.
    pub fn constant(&mut self, w: W, bits: u64) -> u32 {
        if let Some(r) = self.constants.get(&(w, bits)) {
            return *r;
        }
        let r = self.fresh(w);
        self.constants.insert((w, bits), r);
        r
    }

    /// A register that holds an address: `at` of a variable, plus an offset.
    pub fn address_constant(&mut self, w: W, at: u64, offset: u64) -> u32 {
        if at != DYNAMIC_SHARED {
            return self.constant(w, at.wrapping_add(offset));
        }
        if let Some(r) = self.dynamic.get(&(w, offset)) {
            return *r;
        }
        let r = self.fresh(w);
        self.dynamic.insert((w, offset), r);
        r
    }

    /// Emits a branch to a label.
    pub fn branch_to(&mut self, label: &'a str) {
        self.fixups.push((self.code.len(), label, self.line));
        self.jump(Inst { run: plain_handler::<Bra>(), ..self.blank() }, Flow::Jump);
    }

    /// The number of a `.branchtargets` table.
    pub fn table(&self, name: &str) -> Option<usize> {
        self.table_names.get(name).copied()
    }

    /// Puts the body of a device function here. `bind` names its parameters and results.
    pub fn inline(
        &mut self,
        f: &'a Function,
        bind: HashMap<&'a str, Named>,
    ) -> Result<(), LoadError> {
        self.calls += 1;
        if self.depth >= 16 || self.calls > MOST_CALLS {
            return Err(self.error(format!(
                "calls of `{}` are too many or nest too deep: recursion is not supported",
                f.name
            )));
        }
        self.depth += 1;
        let line = self.line;
        let outer = self.returns.replace(Vec::new());
        // The callee sees the module's names and its parameters, not the caller's registers.
        let seen = vec![self.scopes[0].clone(), bind];
        let scopes = std::mem::replace(&mut self.scopes, seen);
        let done = self.body(f);
        self.scopes = scopes;
        let end = self.code.len() as u32;
        for at in std::mem::replace(&mut self.returns, outer).unwrap_or_default() {
            self.code[at].target = end;
        }
        self.depth -= 1;
        self.line = line;
        done
    }

    /// Gives every virtual register its place and renames the fields.
    fn finish(mut self, f: &Function) -> Kernel {
        let fixed =
            self.constants.values().chain(self.specials.values()).chain(self.dynamic.values());
        let (place, reg_bytes) = slots::assign(
            &self.code,
            &self.notes,
            &self.tables,
            &self.classes,
            fixed.copied(),
            self.share,
        );
        let uses = if self.tracked { slots::uses(&self.code, &place) } else { Vec::new() };
        slots::rename(&mut self.code, &place);
        let dynamic_base = self.shared.next_multiple_of(16);
        let fixed = self.constants.iter().map(|(&(w, bits), &r)| (place[r as usize], w, bits));
        let dynamic = self
            .dynamic
            .iter()
            .map(|(&(w, off), &r)| (place[r as usize], w, dynamic_base.wrapping_add(off)));
        Kernel {
            constants: fixed.chain(dynamic).collect(),
            name: f.name.clone(),
            code: self.code,
            uses,
            reg_bytes,
            specials: self.specials.iter().map(|(&(s, w), &r)| (place[r as usize], w, s)).collect(),
            param_bytes: f.params.iter().map(|p| p.offset + p.size).max().unwrap_or(0),
            params: f.params.iter().map(|p| (p.offset, p.size)).collect(),
            shared_bytes: dynamic_base as u32,
            local_bytes: self.local as u32,
            max_threads: f.max_threads,
            tables: self.tables,
            tracked: self.tracked,
            text: self.module.text.clone(),
            variables: self.symbols.clone(),
        }
    }
}

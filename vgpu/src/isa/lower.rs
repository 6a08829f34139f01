//! Operands meet handlers.

use super::decode::{DYNAMIC_SHARED, Decoder, Named, VREG};
use super::operand::Opnd;
use super::select::Form;
use super::slots::Flow;
use super::spec::{Spec, W};
use crate::error::LoadError;
use crate::exec::alu::{self, NONE};
use crate::exec::control::{ActiveMask, Brx, Clock, Exit, Nanosleep, Nop, Trap};
use crate::exec::convert;
use crate::exec::copy::{CommitGroup, WaitGroup};
use crate::exec::ldst;
use crate::exec::sync::{
    Barrier, Elect, Fence, Match, Move, Pack, PredLogic, PredMove, ProxyFence, Redux, Select,
    Shuffle, Unpack, Vote, WarpBarrier,
};
use crate::exec::warp::Inst;
use crate::exec::{Handler, pick, plain_handler};
use crate::ptx::{Space, Ty};

type Res<T> = Result<T, LoadError>;

/// Emits the instructions of one statement.
pub(super) fn lower<'a>(
    d: &mut Decoder<'a>,
    spec: &Spec<'a>,
    form: Form,
    ops: &[Opnd<'a>],
) -> Res<()> {
    match form {
        Form::Alu(sel) => {
            let mut i = Inst { run: sel.run, d: d.dest(ops, 0, sel.d)?, ..d.blank() };
            d.sources(&mut i, ops, 1, &sel.s)?;
            d.emit(i);
        }
        Form::Setp(sel, combine) => d.setp(sel, combine, ops)?,
        Form::Cvt => d.cvt(spec, ops)?,
        Form::Mov(ty) => d.mov(ty, ops)?,
        Form::Selp(w) => d.selp(w, ops)?,
        Form::PredLogic(op) => {
            let (a, na) = d.predicate(ops, 1)?;
            let (b, nb) = d.predicate(ops, 2)?;
            let imm = i64::from(na) | i64::from(nb) << 1;
            let i = Inst {
                run: plain_handler::<PredLogic>(),
                d: d.dest(ops, 0, W::P)?,
                a,
                b,
                imm,
                aux: op,
                ..d.blank()
            };
            d.emit(i);
        }
        Form::PredNot => {
            let (a, na) = d.predicate(ops, 1)?;
            let i = Inst {
                run: plain_handler::<PredMove>(),
                d: d.dest(ops, 0, W::P)?,
                a,
                imm: i64::from(!na),
                ..d.blank()
            };
            d.emit(i);
        }
        Form::Cvta(delta) => d.cvta(delta, ops)?,
        Form::IsSpace(window) => {
            let a = d.source(ops, 1, W::D)?;
            let i = Inst {
                run: pick::<ldst::IsSpace>(),
                d: d.dest(ops, 0, W::P)?,
                a,
                imm: window as i64,
                ..d.blank()
            };
            d.emit(i);
        }
        Form::Load(info, n) => d.load(info, n, ops)?,
        Form::Store(info, n) => d.store(info, n, ops)?,
        Form::Atomic(info, n, returns) => d.atomic(info, n, returns, ops)?,
        Form::Bra => match ops {
            [Opnd::Name(label)] => d.branch_to(label),
            _ => return Err(d.error("bra needs a label")),
        },
        Form::Brx => {
            let a = d.source(ops, 0, W::S)?;
            let table = match ops.get(1) {
                Some(Opnd::Name(n)) => d.table(n),
                _ => None,
            };
            let aux =
                table.ok_or_else(|| d.error("brx.idx needs a table of targets above it"))? as u32;
            let i = Inst { run: plain_handler::<Brx>(), a, aux, ..d.blank() };
            d.jump(i, Flow::Table(aux));
        }
        Form::Call => d.call(ops)?,
        Form::Ret => d.ret(),
        Form::Exit => d.end(plain_handler::<Exit>()),
        Form::Trap => d.end(plain_handler::<Trap>()),
        Form::Nop => d.plain(plain_handler::<Nop>()),
        Form::ProxyFence => d.plain(plain_handler::<ProxyFence>()),
        Form::CommitGroup => d.plain(plain_handler::<CommitGroup>()),
        Form::WaitGroup(read_only) => {
            let [Opnd::Int(n)] = ops else {
                return Err(d.error("wait_group needs the number of groups that may be open"));
            };
            let run = plain_handler::<WaitGroup>();
            d.emit(Inst { run, imm: *n as i64, aux: read_only.into(), ..d.blank() });
        }
        Form::Nanosleep => d.plain(plain_handler::<Nanosleep>()),
        Form::Fence(mem) => {
            let i = Inst { run: plain_handler::<Fence>(), mem, ..d.blank() };
            d.emit(i);
        }
        Form::Mbar(op) => d.mbarrier(op, ops)?,
        Form::Bulk(info, from_shared, has_bar, reduces) => {
            d.bulk(info, from_shared, has_bar, reduces, ops)?
        }
        Form::Multimem(info, kind, n) => d.multimem(info, kind, n, ops)?,
        other => d.exchange(other, ops)?,
    }
    Ok(())
}

impl<'a> Decoder<'a> {
    pub(super) fn plain(&mut self, run: Handler) {
        self.emit(Inst { run, ..self.blank() });
    }

    /// An instruction after which the thread is no more.
    pub(super) fn end(&mut self, run: Handler) {
        self.jump(Inst { run, ..self.blank() }, Flow::End);
    }

    pub(super) fn op<'o>(&self, ops: &'o [Opnd<'a>], n: usize) -> Res<&'o Opnd<'a>> {
        ops.get(n).ok_or_else(|| self.error(format!("operand {} is missing", n + 1)))
    }

    /// Notes that the instruction at hand writes a register, and marks it.
    pub(super) fn write(&mut self, r: u32) -> u32 {
        self.written.push(r);
        r | VREG
    }

    /// A register with its class, of any class.
    pub(super) fn any(&mut self, o: &Opnd<'a>) -> Res<(u32, W)> {
        let known = if let Opnd::Name(n) = o { self.register(n) } else { None };
        known.ok_or_else(|| self.error(format!("{o:?} is no register")))
    }

    pub(super) fn dest(&mut self, ops: &[Opnd<'a>], n: usize, want: W) -> Res<u32> {
        let o = self.op(ops, n)?;
        if *o == Opnd::Sink {
            let r = self.fresh(want);
            return Ok(self.write(r));
        }
        let (r, w) = self.any(o)?;
        if w != want {
            return Err(self.error(format!("destination {o:?} has the wrong width")));
        }
        Ok(self.write(r))
    }

    pub(super) fn source(&mut self, ops: &[Opnd<'a>], n: usize, want: W) -> Res<u32> {
        let o = self.op(ops, n)?;
        self.value(o, want)
    }

    /// A source operand: register, immediate or address constant.
    pub(super) fn value(&mut self, o: &Opnd<'a>, want: W) -> Res<u32> {
        let bits = match *o {
            Opnd::Int(i) => i,
            Opnd::F32(f) if want == W::D => f64::from(f32::from_bits(f)).to_bits(),
            Opnd::F32(f) => f.into(),
            Opnd::F64(f) if want == W::S => (f64::from_bits(f) as f32).to_bits().into(),
            Opnd::F64(f) => f,
            Opnd::Name(n) => match self.register(n) {
                Some((r, w)) if w == want => return Ok(r | VREG),
                Some(_) => return Err(self.error(format!("`{n}` has the wrong width"))),
                None => {
                    let at = self.variable(n)?.1;
                    return Ok(self.address_constant(want, at, 0) | VREG);
                }
            },
            Opnd::Mem(n, off) => {
                let at = self.variable(n)?.1;
                return Ok(self.address_constant(want, at, off as u64) | VREG);
            }
            _ => return Err(self.error(format!("{o:?} cannot be a source here"))),
        };
        let bits = match want {
            W::P => {
                return Ok(self.constant(W::P, if bits != 0 { u32::MAX.into() } else { 0 }) | VREG);
            }
            W::H => bits & 0xffff,
            W::S => bits & 0xffff_ffff,
            W::D => bits,
        };
        Ok(self.constant(want, bits) | VREG)
    }

    pub(super) fn variable(&mut self, name: &str) -> Res<(Space, u64)> {
        match self.lookup(name) {
            Some(Named::Var(Space::Shared, at)) => Ok((Space::Shared, at)),
            Some(Named::Var(s, at)) => Ok((s, at)),
            // Dynamic shared memory lies after the static one; its end is known when the body is.
            _ if self
                .module
                .variables
                .iter()
                .any(|v| v.name == name && v.space == Space::Shared) =>
            {
                Ok((Space::Shared, DYNAMIC_SHARED))
            }
            _ => Err(self.error(format!("unknown name `{name}`"))),
        }
    }

    fn sources(&mut self, i: &mut Inst, ops: &[Opnd<'a>], first: usize, classes: &[W]) -> Res<()> {
        let mut regs = [NONE; 4];
        for (n, w) in classes.iter().enumerate() {
            regs[n] = self.source(ops, first + n, *w)?;
        }
        [i.a, i.b, i.c, i.e] = regs;
        if ops.len() > first + classes.len() {
            return Err(self.error("too many operands"));
        }
        Ok(())
    }

    /// A predicate and whether it is negated.
    fn predicate(&mut self, ops: &[Opnd<'a>], n: usize) -> Res<(u32, bool)> {
        match self.op(ops, n)?.clone() {
            Opnd::Not(name) => Ok((self.value(&Opnd::Name(name), W::P)?, true)),
            o => Ok((self.value(&o, W::P)?, false)),
        }
    }

    fn setp(&mut self, sel: alu::Sel, combine: u32, ops: &[Opnd<'a>]) -> Res<()> {
        let mut i = Inst { run: sel.run, aux: combine, ..self.blank() };
        match self.op(ops, 0)?.clone() {
            Opnd::Pair(p, q) => {
                i.d = self.dest(&[*p], 0, W::P)?;
                i.e = self.dest(&[*q], 0, W::P)?;
            }
            o => i.d = self.dest(&[o], 0, W::P)?,
        }
        i.a = self.source(ops, 1, sel.s[0])?;
        i.b = self.source(ops, 2, sel.s[0])?;
        if combine != 0 {
            let (c, negate) = self.predicate(ops, 3)?;
            i.c = c;
            i.aux |= u32::from(negate) << 2;
        }
        self.emit(i);
        Ok(())
    }

    fn cvt(&mut self, spec: &Spec<'_>, ops: &[Opnd<'a>]) -> Res<()> {
        let (d, wd) = self.any(self.op(ops, 0)?)?;
        let d = self.write(d);
        let ws = match self.op(ops, 1)?.clone() {
            Opnd::Name(n) => self.register(n).map(|(_, w)| w),
            _ => None,
        };
        let found = convert::select(spec, Some(wd), ws).map_err(|e| self.error(e))?;
        let c = found.ok_or_else(|| self.error("no such conversion"))?;
        if c.sel.d != wd {
            return Err(self.error("destination has the wrong width"));
        }
        let mut i = Inst { run: c.sel.run, d, imm: c.imm, aux: c.aux, ..self.blank() };
        self.sources(&mut i, ops, 1, &c.sel.s)?;
        self.emit(i);
        Ok(())
    }

    fn mov(&mut self, ty: Ty, ops: &[Opnd<'a>]) -> Res<()> {
        let Some(w) = W::of(ty) else {
            return Err(self.error("mov of this type"));
        };
        match (self.op(ops, 0)?.clone(), self.op(ops, 1)?.clone()) {
            (Opnd::Vec(parts), src) => {
                let classes: Vec<W> =
                    parts.iter().filter_map(|p| self.any(p).ok().map(|x| x.1)).collect();
                let part =
                    classes.first().copied().ok_or_else(|| self.error("nothing to unpack to"))?;
                let run = match (part, w, parts.len()) {
                    (W::H, W::S, 2) => plain_handler::<Unpack<u16, u32>>(),
                    (W::H, W::D, 4) => plain_handler::<Unpack<u16, u64>>(),
                    (W::S, W::D, 2) => plain_handler::<Unpack<u32, u64>>(),
                    _ => return Err(self.error("these parts do not make up the whole")),
                };
                let mut i = Inst { run, ..self.blank() };
                for (n, p) in parts.iter().enumerate() {
                    i.v[n] = if *p == Opnd::Sink { NONE } else { self.dest(&parts, n, part)? };
                }
                i.a = self.value(&src, w)?;
                self.emit(i);
            }
            (_, Opnd::Vec(parts)) => {
                let part = match (w, parts.len()) {
                    (W::S, 2) => W::H,
                    (W::D, 4) => W::H,
                    (W::D, 2) => W::S,
                    _ => return Err(self.error("these parts do not make up the whole")),
                };
                let run = match (part, w) {
                    (W::H, W::S) => plain_handler::<Pack<u16, u32>>(),
                    (W::H, _) => plain_handler::<Pack<u16, u64>>(),
                    _ => plain_handler::<Pack<u32, u64>>(),
                };
                let mut i = Inst { run, d: self.dest(ops, 0, w)?, ..self.blank() };
                for (n, p) in parts.iter().enumerate() {
                    i.v[n] = self.value(p, part)?;
                }
                self.emit(i);
            }
            (
                _,
                Opnd::Name(
                    clock @ ("%clock" | "%clock_hi" | "%clock64" | "%globaltimer"
                    | "%globaltimer_lo"),
                ),
            ) => {
                let narrow = w == W::S;
                let _ = clock;
                let i = Inst {
                    run: plain_handler::<Clock>(),
                    d: self.dest(ops, 0, w)?,
                    aux: u32::from(!narrow),
                    ..self.blank()
                };
                self.emit(i);
            }
            (_, src) => {
                let run = match w {
                    W::P => plain_handler::<PredMove>(),
                    W::H => pick::<Move<u16>>(),
                    W::S => pick::<Move<u32>>(),
                    W::D => pick::<Move<u64>>(),
                };
                let a = self.value(&src, w)?;
                let i = Inst { run, d: self.dest(ops, 0, w)?, a, ..self.blank() };
                self.emit(i);
            }
        }
        Ok(())
    }

    fn selp(&mut self, w: W, ops: &[Opnd<'a>]) -> Res<()> {
        let run = match w {
            W::H => pick::<Select<u16>>(),
            W::S => pick::<Select<u32>>(),
            _ => pick::<Select<u64>>(),
        };
        let (a, b) = (self.source(ops, 1, w)?, self.source(ops, 2, w)?);
        let (c, negate) = self.predicate(ops, 3)?;
        let i =
            Inst { run, d: self.dest(ops, 0, w)?, a, b, c, imm: i64::from(negate), ..self.blank() };
        self.emit(i);
        Ok(())
    }

    fn cvta(&mut self, delta: i64, ops: &[Opnd<'a>]) -> Res<()> {
        let a = self.source(ops, 1, W::D)?;
        let d = self.dest(ops, 0, W::D)?;
        if delta == 0 {
            let i = Inst { run: pick::<Move<u64>>(), d, a, ..self.blank() };
            self.emit(i);
            return Ok(());
        }
        let sel =
            alu::select(&Spec { base: "add", mods: vec![], tys: vec![Ty::U64] }).ok().flatten();
        let sel = sel.ok_or_else(|| self.error("no 64-bit addition"))?;
        let b = self.constant(W::D, delta as u64) | VREG;
        let i = Inst { run: sel.run, d, a, b, ..self.blank() };
        self.emit(i);
        Ok(())
    }

    /// Barriers and warp-wide exchange.
    fn exchange(&mut self, form: Form, ops: &[Opnd<'a>]) -> Res<()> {
        let mut i = self.blank();
        match form {
            Form::Bar(kind) => {
                i.run = plain_handler::<Barrier>();
                i.aux = kind;
                let mut at = 0;
                if kind >= 2 {
                    i.d = self.dest(ops, 0, if kind == 2 { W::S } else { W::P })?;
                    at = 1;
                    let (c, negate) = self.predicate(ops, ops.len() - 1)?;
                    (i.c, i.imm) = (c, i64::from(negate));
                }
                i.a = self.source(ops, at, W::S)?;
                if ops.len() > at + 1 + usize::from(kind >= 2) {
                    i.b = self.source(ops, at + 1, W::S)?;
                }
            }
            Form::WarpBar => {
                i.run = plain_handler::<WarpBarrier>();
                i.a = self.source(ops, 0, W::S)?;
            }
            Form::Shuffle(mode) => {
                i.run = pick::<Shuffle>();
                i.aux = mode;
                self.dest_pair(&mut i, ops)?;
                (i.a, i.b) = (self.source(ops, 1, W::S)?, self.source(ops, 2, W::S)?);
                (i.c, i.v[0]) = (self.source(ops, 3, W::S)?, self.source(ops, 4, W::S)?);
            }
            Form::Vote(mode) => {
                i.run = plain_handler::<Vote>();
                i.aux = mode;
                i.d = self.dest(ops, 0, if mode == 3 { W::S } else { W::P })?;
                let (a, negate) = self.predicate(ops, 1)?;
                (i.a, i.imm) = (a, i64::from(negate));
                i.b = self.source(ops, 2, W::S)?;
            }
            Form::Match(mode, w) => {
                i.run = if w == W::D {
                    plain_handler::<Match<u64>>()
                } else {
                    plain_handler::<Match<u32>>()
                };
                i.aux = mode;
                self.dest_pair(&mut i, ops)?;
                (i.a, i.b) = (self.source(ops, 1, w)?, self.source(ops, 2, W::S)?);
            }
            Form::Redux(info) => {
                i.run = plain_handler::<Redux>();
                i.mem = info;
                i.d = self.dest(ops, 0, W::S)?;
                (i.a, i.b) = (self.source(ops, 1, W::S)?, self.source(ops, 2, W::S)?);
            }
            Form::Elect => {
                i.run = plain_handler::<Elect>();
                self.dest_pair(&mut i, ops)?;
                i.a = self.source(ops, 1, W::S)?;
            }
            _ => {
                i.run = plain_handler::<ActiveMask>();
                i.d = self.dest(ops, 0, W::S)?;
            }
        }
        self.emit(i);
        Ok(())
    }

    /// `d` or `d|p`.
    fn dest_pair(&mut self, i: &mut Inst, ops: &[Opnd<'a>]) -> Res<()> {
        match self.op(ops, 0)?.clone() {
            Opnd::Pair(d, p) => {
                i.d = if *d == Opnd::Sink { NONE } else { self.dest(&[*d], 0, W::S)? };
                i.e = self.dest(&[*p], 0, W::P)?;
            }
            o => i.d = self.dest(&[o], 0, W::S)?,
        }
        Ok(())
    }
}

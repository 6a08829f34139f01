//! Operands of memory instructions.

use super::decode::{Decoder, VREG};
use super::operand::Opnd;
use super::spec::{Spec, W};
use crate::error::LoadError;
use crate::exec::alu::{self, NONE};
use crate::exec::copy::Bulk;
use crate::exec::ldst::{self, UNIFORM};
use crate::exec::multimem::{Kind, Multimem};
use crate::exec::plain_handler;
use crate::exec::sync::{MbarOp, Mbarrier};
use crate::exec::warp::{Inst, LANES, MemInfo};
use crate::ptx::{Space, Ty};

type Res<T> = Result<T, LoadError>;

impl<'a> Decoder<'a> {
    /// An address operand: register (or constant), offset, width, and the space if the operand itself decides it.
    fn address(&mut self, o: &Opnd<'a>, i: &mut Inst, info: MemInfo) -> Res<bool> {
        i.mem = info;
        let (base, offset) = match *o {
            Opnd::Mem(n, off) => (n, off),
            Opnd::MemInt(at) => {
                i.a = self.constant(W::D, at) | VREG;
                return Ok(true);
            }
            _ => return Err(self.error(format!("{o:?} is no address"))),
        };
        if let Some((r, w)) = self.register(base) {
            if !matches!(w, W::S | W::D) {
                return Err(self.error(format!("`{base}` is too narrow for an address")));
            }
            i.a = r | VREG;
            (i.imm, i.mem.narrow) = (offset, w == W::S);
            return Ok(false);
        }
        let (space, at) = self.variable(base)?;
        // `ld.param` of an inlined function's parameter reads the caller's local memory.
        if info.space == Space::Param || space != Space::Global && info.space == Space::Generic {
            i.mem.space = space;
        }
        i.a = self.address_constant(W::D, at, offset as u64) | VREG;
        Ok(true)
    }

    pub(super) fn elements<'o>(&self, o: &'o Opnd<'a>, n: usize) -> Res<Vec<&'o Opnd<'a>>> {
        let parts: Vec<_> = match o {
            Opnd::Vec(v) => v.iter().collect(),
            o => vec![o],
        };
        if parts.len() != n {
            return Err(self.error(format!("{n} elements expected, found {}", parts.len())));
        }
        Ok(parts)
    }

    pub(super) fn load(&mut self, info: MemInfo, n: usize, ops: &[Opnd<'a>]) -> Res<()> {
        let mut i = self.blank();
        let fixed = self.address(self.op(ops, 1)?, &mut i, info)?;
        if fixed && i.mem.space == Space::Param {
            i.aux = UNIFORM;
        }
        let parts = self.elements(&ops[0], n)?;
        let mut class = None;
        for p in parts.iter().filter(|p| ***p != Opnd::Sink) {
            class = Some(self.any(p)?.1);
        }
        let class = class.ok_or_else(|| self.error("a load without destination"))?;
        for (k, p) in parts.into_iter().enumerate() {
            i.v[k] = self.dest(std::slice::from_ref(p), 0, class)?;
        }
        (i.b, i.c) = (n as u32, class.bytes() / LANES as u32);
        i.run = ldst::load_handler(info.ty, n, class, self.tracked)
            .ok_or_else(|| self.error("destination has the wrong width"))?;
        self.emit(i);
        Ok(())
    }

    pub(super) fn store(&mut self, info: MemInfo, n: usize, ops: &[Opnd<'a>]) -> Res<()> {
        let mut i = self.blank();
        self.address(self.op(ops, 0)?, &mut i, info)?;
        let parts = self.elements(self.op(ops, 1)?, n)?;
        let mut class = W::of(info.ty);
        for p in &parts {
            if let Opnd::Name(name) = p
                && let Some((_, w)) = self.register(name)
            {
                class = Some(w);
            }
        }
        let class = class.ok_or_else(|| self.error("a store of this type"))?;
        for (k, p) in parts.into_iter().enumerate() {
            i.v[k] = self.value(p, class)?;
        }
        (i.b, i.c) = (n as u32, class.bytes() / LANES as u32);
        i.run = ldst::store_handler(info.ty, n, class, self.tracked)
            .ok_or_else(|| self.error("source has the wrong width"))?;
        self.emit(i);
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        info: MemInfo,
        n: usize,
        returns: bool,
        ops: &[Opnd<'a>],
    ) -> Res<()> {
        let at = usize::from(returns);
        let mut i = self.blank();
        self.address(self.op(ops, at)?, &mut i, info)?;
        i.mem.op = info.op;
        let class = W::of(info.ty).ok_or_else(|| self.error("an atomic on this type"))?;
        let mut value = self.op(ops, at + 1)?;
        if info.op == crate::mem::rmw::RmwOp::Cas {
            i.b = self.value(value, class)?;
            value = self.op(ops, at + 2)?;
        }
        for (k, p) in self.elements(value, n)?.into_iter().enumerate() {
            i.v[k] = self.value(p, class)?;
        }
        if returns {
            for (k, p) in self.elements(&ops[0], n)?.into_iter().enumerate() {
                i.v[4 + k] = if *p == Opnd::Sink {
                    NONE
                } else {
                    self.dest(std::slice::from_ref(p), 0, class)?
                };
            }
        }
        i.aux = n as u32;
        i.run = ldst::atomic_handler(class, self.tracked)
            .ok_or_else(|| self.error("an atomic on this type"))?;
        self.emit(i);
        Ok(())
    }

    pub(super) fn mbarrier(&mut self, op: MbarOp, ops: &[Opnd<'a>]) -> Res<()> {
        let mut i = Inst { aux: op as u32, ..self.blank() };
        let info = MemInfo { space: Space::Shared, ty: Ty::B64, ..MemInfo::default() };
        let mut at = 0;
        match op {
            MbarOp::Wait | MbarOp::WaitParity => {
                i.e = self.dest(ops, 0, W::P)?;
                at = 1;
            }
            // The state that an arrival returns may be left out.
            MbarOp::Arrive | MbarOp::ArriveDrop | MbarOp::ArriveExpectTx
                if !matches!(self.op(ops, 0)?, Opnd::Mem(..) | Opnd::MemInt(_)) =>
            {
                i.d = if ops[0] == Opnd::Sink { NONE } else { self.dest(ops, 0, W::D)? };
                at = 1;
            }
            MbarOp::PendingCount => {
                // Takes a state, no address; read like an address so that one handler serves all.
                i.d = self.dest(ops, 0, W::S)?;
                i.b = self.source(ops, 1, W::D)?;
                i.run = plain_handler::<crate::exec::sync::PendingCount>();
                self.emit(i);
                return Ok(());
            }
            _ => {}
        }
        self.address(self.op(ops, at)?, &mut i, info)?;
        if ops.len() > at + 1 {
            i.b = self.source(ops, at + 1, if op == MbarOp::Wait { W::D } else { W::S })?;
        }
        i.run = plain_handler::<Mbarrier>();
        self.emit(i);
        Ok(())
    }

    pub(super) fn bulk(
        &mut self,
        info: MemInfo,
        from_shared: bool,
        has_bar: bool,
        reduces: bool,
        ops: &[Opnd<'a>],
    ) -> Res<()> {
        let mut i = Inst { aux: u32::from(from_shared), ..self.blank() };
        i.run = plain_handler::<Bulk>();
        let mut regs = [NONE; 3];
        let mut narrow = [0; 3];
        for (k, n) in [0, 1, 3].into_iter().enumerate().take(if has_bar { 3 } else { 2 }) {
            let mut probe = self.blank();
            self.address(self.op(ops, n)?, &mut probe, info)?;
            regs[k] = self.with_offset(probe.a, probe.mem.narrow, probe.imm)?;
            narrow[k] = u32::from(probe.mem.narrow);
        }
        [i.a, i.b, i.e] = regs;
        i.v[..3].copy_from_slice(&narrow);
        i.c = self.source(ops, 2, W::S)?;
        (i.mem, i.imm) = (info, i64::from(reduces));
        self.emit(i);
        Ok(())
    }

    /// A register that holds another one plus an offset.
    fn with_offset(&mut self, reg: u32, narrow: bool, offset: i64) -> Res<u32> {
        if offset == 0 {
            return Ok(reg);
        }
        let (ty, w) = if narrow { (Ty::U32, W::S) } else { (Ty::U64, W::D) };
        let sel = alu::select(&Spec { base: "add", mods: vec![], tys: vec![ty] }).ok().flatten();
        let sel = sel.ok_or_else(|| self.error("no addition"))?;
        let bits = if narrow { u64::from(offset as u32) } else { offset as u64 };
        let b = self.constant(w, bits) | VREG;
        let d = self.fresh(w);
        let d = self.write(d);
        let i = Inst { run: sel.run, d, a: reg, b, ..self.blank() };
        self.emit(i);
        Ok(d)
    }

    pub(super) fn multimem(
        &mut self,
        info: MemInfo,
        kind: Kind,
        n: usize,
        ops: &[Opnd<'a>],
    ) -> Res<()> {
        let at = usize::from(kind == Kind::LdReduce);
        let mut i = self.blank();
        self.address(self.op(ops, at)?, &mut i, info)?;
        let class = W::of(info.ty).ok_or_else(|| self.error("multimem on this type"))?;
        for (k, p) in self.elements(self.op(ops, 1 - at)?, n)?.into_iter().enumerate() {
            i.v[k] = if kind == Kind::LdReduce {
                self.dest(std::slice::from_ref(p), 0, class)?
            } else {
                self.value(p, class)?
            };
        }
        (i.aux, i.c) = (kind as u32, n as u32);
        i.run = if self.tracked {
            plain_handler::<Multimem<true>>()
        } else {
            plain_handler::<Multimem<false>>()
        };
        self.emit(i);
        Ok(())
    }
}

//! Calls: the callee's body comes where the call is.

use std::collections::HashMap;

use super::decode::{Decoder, Named, VREG};
use super::operand::Opnd;
use super::slots::Flow;
use super::spec::W;
use crate::error::LoadError;
use crate::exec::control::{AssertFail, Exit};
use crate::exec::ldst;
use crate::exec::plain_handler;
use crate::exec::warp::{Inst, MemInfo};
use crate::ptx::{Space, Ty};

type Res<T> = Result<T, LoadError>;

impl<'a> Decoder<'a> {
    pub(super) fn ret(&mut self) {
        if self.returns.is_none() {
            return self.end(plain_handler::<Exit>());
        }
        let at = self.code.len();
        let i = Inst { run: plain_handler::<crate::exec::control::Bra>(), ..self.blank() };
        self.jump(i, Flow::Jump);
        if let Some(r) = &mut self.returns {
            r.push(at);
        }
    }

    /// `call (results), name, (arguments)`: the callee's body comes here.
    pub(super) fn call(&mut self, ops: &[Opnd<'a>]) -> Res<()> {
        let (results, rest) = match ops {
            [Opnd::List(r), rest @ ..] => (r.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (name, arguments) = match rest {
            [Opnd::Name(n)] => (*n, &[][..]),
            [Opnd::Name(n), Opnd::List(a), ..] => (*n, a.as_slice()),
            _ => return Err(self.error("an indirect call, which is not supported")),
        };
        let mut places = Vec::new();
        for o in results.iter().chain(arguments) {
            match o {
                Opnd::Name(n) => places
                    .push(self.lookup(n).ok_or_else(|| self.error(format!("unknown name `{n}`")))?),
                _ => return Err(self.error("an argument that is no variable")),
            }
        }
        if name == "__assertfail" {
            return self.assert_fail(&places);
        }
        let module = self.module;
        let f = module
            .functions
            .get(name)
            .ok_or_else(|| self.error(format!("unknown function `{name}`")))?;
        if f.returns.len() != results.len() || f.params.len() != arguments.len() {
            return Err(self.error(format!("`{name}` takes other arguments")));
        }
        let names = f.returns.iter().chain(&f.params).map(|p| p.name.as_str());
        let bind: HashMap<&'a str, Named> = names.zip(places).collect();
        self.inline(f, bind)
    }

    fn assert_fail(&mut self, places: &[Named]) -> Res<()> {
        let mut i = Inst { run: plain_handler::<AssertFail>(), ..self.blank() };
        for (k, place) in places.iter().take(4).enumerate() {
            let Named::Var(Space::Local, at) = *place else {
                return Err(self.error("an argument that is no variable"));
            };
            let (ty, w) = if k == 2 { (Ty::U32, W::S) } else { (Ty::U64, W::D) };
            let r = self.fresh(w);
            let mem = MemInfo { space: Space::Local, ty, ..MemInfo::default() };
            let run =
                ldst::load_handler(ty, 1, w, false).ok_or_else(|| self.error("no such load"))?;
            let mut load = Inst { run, mem, a: self.constant(W::D, at) | VREG, ..self.blank() };
            load.v[0] = self.write(r);
            self.emit(load);
            i.v[k] = r | VREG;
        }
        self.emit(i);
        Ok(())
    }
}

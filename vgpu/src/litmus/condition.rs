//! Conditions on a final state.

use super::parse::{LitmusError, bad, is_name, number, thread_id};

/// A condition on the final state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the usual connectives")]
pub enum Condition {
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    Not(Box<Condition>),
    Compare(Term, String, Term),
}

/// A side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "a register of a thread, a location, a number")]
pub enum Term {
    Reg(u32, String),
    Loc(String),
    Int(u64),
}

/// A condition, by recursive descent: `\/` binds weaker than `/\`.
pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
}

impl Parser<'_> {
    fn accept(&mut self, what: &str) -> bool {
        match self.text.trim_start().strip_prefix(what) {
            Some(rest) => {
                self.text = rest;
                true
            }
            None => false,
        }
    }

    pub(super) fn or(&mut self) -> Result<Condition, LitmusError> {
        let mut c = self.and()?;
        while self.accept("\\/") {
            c = Condition::Or(Box::new(c), Box::new(self.and()?));
        }
        Ok(c)
    }

    fn and(&mut self) -> Result<Condition, LitmusError> {
        let mut c = self.one()?;
        while self.accept("/\\") {
            c = Condition::And(Box::new(c), Box::new(self.one()?));
        }
        Ok(c)
    }

    fn one(&mut self) -> Result<Condition, LitmusError> {
        if self.accept("~") || self.accept("not ") {
            return Ok(Condition::Not(Box::new(self.one()?)));
        }
        if self.accept("(") {
            let c = self.or()?;
            return if self.accept(")") { Ok(c) } else { bad("`)` expected", self.text) };
        }
        let a = self.term()?;
        let op = ["==", "!=", "<=", ">=", "=", "<", ">"].into_iter().find(|o| self.accept(o));
        let Some(op) = op else {
            return bad("a comparison expected", self.text);
        };
        Ok(Condition::Compare(a, if op == "=" { "==".into() } else { op.into() }, self.term()?))
    }

    fn word(&mut self) -> String {
        let t = self.text.trim_start();
        let end = t
            .char_indices()
            .skip(1)
            .find(|(_, c)| !c.is_alphanumeric() && *c != '_')
            .map_or(t.len(), |(n, _)| n);
        self.text = &t[end..];
        t[..end].to_string()
    }

    fn term(&mut self) -> Result<Term, LitmusError> {
        let bracket = self.accept("[");
        let w = self.word();
        let named = || {
            if is_name(&w) { Ok(Term::Loc(w.clone())) } else { bad("a location expected", &w) }
        };
        if bracket {
            return if self.accept("]") { named() } else { bad("`]` expected", self.text) };
        }
        if self.accept(":") {
            let Some(t) = thread_id(&w) else {
                return bad("a thread expected", &w);
            };
            return Ok(Term::Reg(t, self.word()));
        }
        match number(&w) {
            Some(n) => Ok(Term::Int(n)),
            None => named(),
        }
    }
}

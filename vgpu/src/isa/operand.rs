//! Operands as they are written.

use crate::error::LoadError;
use crate::ptx::{Lexer, Tok};

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Opnd<'a> {
    /// A register, variable, label, function or special register.
    Name(&'a str),
    /// `!p`.
    Not(&'a str),
    /// `p|q`.
    Pair(Box<Opnd<'a>>, Box<Opnd<'a>>),
    /// An integer; its sign is in the bits.
    Int(u64),
    /// A 32-bit float's bits.
    F32(u32),
    /// A 64-bit float's bits.
    F64(u64),
    /// `[base + offset]`.
    Mem(&'a str, i64),
    /// `[number]`.
    MemInt(u64),
    /// `{a, b}`.
    Vec(Vec<Opnd<'a>>),
    /// `(a, b)` of a call.
    List(Vec<Opnd<'a>>),
    /// `_`.
    Sink,
}

/// Reads the operands up to the semicolon.
pub fn operands<'a>(lx: &mut Lexer<'a>) -> Result<Vec<Opnd<'a>>, LoadError> {
    let mut all = Vec::new();
    while !lx.accept(b';')? {
        all.push(operand(lx, 0)?);
        if !lx.accept(b',')? {
            lx.expect(b';')?;
            break;
        }
    }
    Ok(all)
}

fn list<'a>(lx: &mut Lexer<'a>, end: u8, depth: u32) -> Result<Vec<Opnd<'a>>, LoadError> {
    let mut all = Vec::new();
    while !lx.accept(end)? {
        all.push(operand(lx, depth)?);
        lx.accept(b',')?;
    }
    Ok(all)
}

fn operand<'a>(lx: &mut Lexer<'a>, depth: u32) -> Result<Opnd<'a>, LoadError> {
    let line = lx.line();
    // `(`, `{` and `|` nest twice at most in PTX.
    if depth > 8 {
        return Err(LoadError::syntax(line, "an operand that nests too deep"));
    }
    let one = match lx.next_tok()? {
        Tok::Word("_") => Opnd::Sink,
        Tok::Word(w) => {
            // `symbol + 8` as a value.
            if lx.accept(b'+')? { Opnd::Mem(w, lx.int()?) } else { Opnd::Name(w) }
        }
        Tok::Int(i) => Opnd::Int(i),
        Tok::F32(f) => Opnd::F32(f),
        Tok::F64(f) => Opnd::F64(f),
        Tok::Punct(b'-') => match lx.next_tok()? {
            Tok::Int(i) => Opnd::Int(i.wrapping_neg()),
            Tok::F32(f) => Opnd::F32(f ^ 0x8000_0000),
            Tok::F64(f) => Opnd::F64(f ^ 1 << 63),
            t => return Err(LoadError::syntax(line, format!("`-` before {t:?}"))),
        },
        Tok::Punct(b'!') => Opnd::Not(lx.word()?),
        Tok::Punct(b'{') => Opnd::Vec(list(lx, b'}', depth + 1)?),
        Tok::Punct(b'(') => Opnd::List(list(lx, b')', depth + 1)?),
        Tok::Punct(b'[') => memory(lx)?,
        t => {
            return Err(LoadError::syntax(line, format!("unexpected {t:?} as an operand")));
        }
    };
    if lx.accept(b'|')? {
        return Ok(Opnd::Pair(Box::new(one), Box::new(operand(lx, depth + 1)?)));
    }
    Ok(one)
}

fn memory<'a>(lx: &mut Lexer<'a>) -> Result<Opnd<'a>, LoadError> {
    let line = lx.line();
    let m = match lx.next_tok()? {
        Tok::Word(base) => {
            let signed = lx.accept(b'+')? || lx.peek()? == Tok::Punct(b'-');
            let offset = if signed { lx.int()? } else { 0 };
            Opnd::Mem(base, offset)
        }
        Tok::Int(i) => Opnd::MemInt(i),
        t => {
            return Err(LoadError::syntax(line, format!("unexpected {t:?} as an address")));
        }
    };
    lx.expect(b']')?;
    Ok(m)
}

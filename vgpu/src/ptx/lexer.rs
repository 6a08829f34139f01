//! Tokens of PTX, borrowed from the text.

use crate::error::LoadError;

/// One token.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tok<'a> {
    /// An identifier, opcode, directive or register, with its dots: `ld.global.u32`, `.reg`, `%tid.x`, `$L__BB0_1`.
    Word(&'a str),
    /// An integer; a leading minus is a token of its own.
    Int(u64),
    /// `0f` and eight digits.
    F32(u32),
    /// `0d` and sixteen digits, or a decimal number with a point.
    F64(u64),
    /// A string's inside.
    Str(&'a str),
    /// Any other character.
    Punct(u8),
    /// The end of the text.
    End,
}

/// Walks over a text; a copy is a bookmark.
#[derive(Clone, Copy)]
pub struct Lexer<'a> {
    text: &'a str,
    pos: usize,
    line: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.' | b':')
}

impl<'a> Lexer<'a> {
    /// Starts at a byte offset that is on the given line.
    pub fn new(text: &'a str, pos: usize, line: u32) -> Self {
        Lexer { text, pos, line }
    }

    /// Line of the next token.
    pub fn line(&mut self) -> u32 {
        self.skip_space();
        self.line
    }

    /// Byte offset of the next token.
    pub fn pos(&mut self) -> usize {
        self.skip_space();
        self.pos
    }

    fn skip_space(&mut self) {
        let b = self.text.as_bytes();
        while let Some(&c) = b.get(self.pos) {
            match c {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' | 0 => {}
                b'/' if b.get(self.pos + 1) == Some(&b'/') => {
                    self.pos += b[self.pos..]
                        .iter()
                        .position(|&c| c == b'\n')
                        .unwrap_or(b.len() - self.pos);
                    continue;
                }
                b'/' if b.get(self.pos + 1) == Some(&b'*') => {
                    let rest = &self.text[self.pos + 2..];
                    let len = rest.find("*/").map_or(rest.len(), |n| n + 2);
                    self.line +=
                        rest.as_bytes()[..len].iter().filter(|&&c| c == b'\n').count() as u32;
                    self.pos += len + 2;
                    continue;
                }
                _ => return,
            }
            self.pos += 1;
        }
    }

    /// The next token, left in place.
    pub fn peek(&self) -> Result<Tok<'a>, LoadError> {
        let mut copy = *self;
        copy.next_tok()
    }

    /// Takes the next token.
    pub fn next_tok(&mut self) -> Result<Tok<'a>, LoadError> {
        self.skip_space();
        let b = self.text.as_bytes();
        let Some(&c) = b.get(self.pos) else {
            return Ok(Tok::End);
        };
        if c.is_ascii_digit() {
            return self.number();
        }
        let start = self.pos;
        if c == b'"' {
            let len = self.text[start + 1..]
                .find('"')
                .ok_or_else(|| LoadError::syntax(self.line, "string without end"))?;
            self.pos += len + 2;
            return Ok(Tok::Str(&self.text[start + 1..start + 1 + len]));
        }
        if !is_word(c) || c == b':' {
            self.pos += 1;
            return Ok(Tok::Punct(c));
        }
        while self.pos < b.len() && is_word(b[self.pos]) {
            // One colon ends a label; two belong to a modifier such as `shared::cta`.
            if b[self.pos] == b':' {
                if b.get(self.pos + 1) != Some(&b':') {
                    break;
                }
                self.pos += 1;
            }
            self.pos += 1;
        }
        Ok(Tok::Word(&self.text[start..self.pos]))
    }

    fn number(&mut self) -> Result<Tok<'a>, LoadError> {
        let b = self.text.as_bytes();
        let start = self.pos;
        while self.pos < b.len() && (b[self.pos].is_ascii_alphanumeric() || b[self.pos] == b'.') {
            self.pos += 1;
        }
        let s = &self.text[start..self.pos];
        let bad = || LoadError::syntax(self.line, format!("bad number `{s}`"));
        let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).map_err(|_| bad());
        let lower = s.as_bytes().get(1).map(u8::to_ascii_lowercase);
        if b[start] == b'0' {
            match lower {
                Some(b'f') => return Ok(Tok::F32(radix(&s[2..], 16)? as u32)),
                Some(b'd') => return Ok(Tok::F64(radix(&s[2..], 16)?)),
                Some(b'x') => return Ok(Tok::Int(radix(s[2..].trim_end_matches(['U', 'u']), 16)?)),
                Some(b'b') => return Ok(Tok::Int(radix(s[2..].trim_end_matches(['U', 'u']), 2)?)),
                _ => {}
            }
        }
        if s.contains('.') {
            return s.parse::<f64>().map(|x| Tok::F64(x.to_bits())).map_err(|_| bad());
        }
        let s = s.trim_end_matches(['U', 'u']);
        if s.len() > 1 && s.starts_with('0') { radix(&s[1..], 8) } else { radix(s, 10) }
            .map(Tok::Int)
    }

    /// Takes the given character or fails.
    pub fn expect(&mut self, c: u8) -> Result<(), LoadError> {
        let line = self.line();
        match self.next_tok()? {
            Tok::Punct(p) if p == c => Ok(()),
            t => Err(LoadError::syntax(line, format!("expected `{}`, found {t:?}", c as char))),
        }
    }

    /// Takes the given character if it is next.
    pub fn accept(&mut self, c: u8) -> Result<bool, LoadError> {
        // What is asked for is never part of another token, so the token need not be read.
        self.skip_space();
        let here = self.text.as_bytes().get(self.pos) == Some(&c);
        self.pos += usize::from(here);
        Ok(here)
    }

    /// Takes a word or fails.
    pub fn word(&mut self) -> Result<&'a str, LoadError> {
        let line = self.line();
        match self.next_tok()? {
            Tok::Word(w) => Ok(w),
            t => Err(LoadError::syntax(line, format!("expected a name, found {t:?}"))),
        }
    }

    /// Takes an integer, with an optional minus, or fails.
    pub fn int(&mut self) -> Result<i64, LoadError> {
        let line = self.line();
        let minus = self.accept(b'-')?;
        match self.next_tok()? {
            Tok::Int(i) if minus => Ok((i as i64).wrapping_neg()),
            Tok::Int(i) => Ok(i as i64),
            t => Err(LoadError::syntax(line, format!("expected an integer, found {t:?}"))),
        }
    }
}

//! A module's top level: versions, variables and functions.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::lexer::{Lexer, Tok};
use super::types::{Space, Ty};
use crate::error::LoadError;

/// A parameter of a function, or what it returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name in the text.
    pub name: String,
    /// Offset in the parameter block.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Register width class for `.reg` parameters, none for `.param` ones.
    pub reg: Option<Ty>,
}

/// A variable: `.global`, `.const`, `.shared` or `.local`.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Name in the text.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// Alignment in bytes.
    pub align: u32,
    /// Size in bytes; 0 for `.extern .shared x[]`.
    pub size: u64,
    /// First bytes; the rest is zero.
    pub init: Vec<u8>,
    /// Places in `init` that hold addresses of other variables: (offset, name, addend).
    pub relocations: Vec<(u64, String, i64)>,
}

/// A kernel or a device function; its body is a range of the text.
#[derive(Clone, Debug)]
pub struct Function {
    /// Name in the text.
    pub name: String,
    /// True for `.entry`.
    pub is_kernel: bool,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// What a device function returns.
    pub returns: Vec<Param>,
    /// Bytes of the text between the braces; none for a declaration.
    pub body: Option<Range<usize>>,
    /// Line where the body starts.
    pub line: u32,
    /// `.maxntid` or `.reqntid`: the most threads of a block.
    pub max_threads: Option<u32>,
}

/// A parsed module.
#[derive(Debug)]
pub struct Module {
    /// The text it was made from.
    pub text: Arc<str>,
    /// `.target`: 90 for `sm_90a`.
    pub target: u32,
    /// Variables at module level.
    pub variables: Vec<Variable>,
    /// Functions by name.
    pub functions: HashMap<String, Function>,
}

/// Most bytes of a variable.
const MOST_BYTES: u64 = 1 << 40;
/// Most bytes of a function's parameters (CUDA allows kernels 32764).
const MOST_PARAMETERS: u64 = 1 << 20;
/// How deep braces of an initializer may nest.
const MOST_NESTED: u32 = 16;

/// Parses the top level and finds the ends of the bodies. `check` sees each opcode of each body, with its line.
pub fn parse_module(
    text: &str,
    check: &mut dyn FnMut(&str, u32) -> Result<(), LoadError>,
) -> Result<Module, LoadError> {
    let text: Arc<str> = text.trim_end_matches('\0').into();
    let mut module =
        Module { target: 0, variables: Vec::new(), functions: HashMap::new(), text: text.clone() };
    let mut lx = Lexer::new(&text, 0, 1);
    loop {
        let line = lx.line();
        match lx.next_tok()? {
            Tok::End => break,
            Tok::Word(".version") => {
                lx.next_tok()?;
            }
            Tok::Word(".target") => {
                let name = lx.word()?;
                let digits: String = name.chars().filter(char::is_ascii_digit).collect();
                module.target = digits
                    .parse()
                    .map_err(|_| LoadError::syntax(line, format!("target `{name}`")))?;
                while lx.accept(b',')? {
                    lx.word()?;
                }
            }
            Tok::Word(".address_size") => {
                if lx.int()? != 64 {
                    return Err(LoadError::syntax(line, "only .address_size 64 is supported"));
                }
            }
            Tok::Word(".visible" | ".extern" | ".weak" | ".common") | Tok::Punct(b';') => {}
            Tok::Word(".entry") => function(&mut lx, &mut module, true, check)?,
            Tok::Word(".func") => function(&mut lx, &mut module, false, check)?,
            Tok::Word(".file" | ".loc" | ".pragma" | ".alias") => skip_line(&mut lx, line)?,
            Tok::Word(".section") => skip_section(&mut lx)?,
            Tok::Word(w) => {
                let space = w.strip_prefix('.').and_then(Space::parse);
                let space =
                    space.ok_or_else(|| LoadError::syntax(line, format!("unexpected `{w}`")))?;
                module.variables.extend(variables(&mut lx, space)?);
            }
            t => return Err(LoadError::syntax(line, format!("unexpected {t:?}"))),
        }
    }
    Ok(module)
}

/// Skips a directive that ends with its line (`.file`, `.loc`) or with a semicolon.
fn skip_line(lx: &mut Lexer<'_>, line: u32) -> Result<(), LoadError> {
    while lx.line() == line {
        if matches!(lx.next_tok()?, Tok::Punct(b';') | Tok::End) {
            break;
        }
    }
    Ok(())
}

fn skip_section(lx: &mut Lexer<'_>) -> Result<(), LoadError> {
    while lx.next_tok()? != Tok::Punct(b'{') {}
    while !matches!(lx.next_tok()?, Tok::Punct(b'}') | Tok::End) {}
    Ok(())
}

/// Parses the rest of a variable declaration, after its space, up to the semicolon.
pub fn variables(lx: &mut Lexer<'_>, space: Space) -> Result<Vec<Variable>, LoadError> {
    let mut align = None;
    let mut lanes = 1;
    let ty = loop {
        let line = lx.line();
        match lx.word()? {
            ".align" => align = Some(lx.int()? as u32),
            ".v2" => lanes = 2,
            ".v4" => lanes = 4,
            ".attribute" => skip_parens(lx)?,
            ".managed" => {}
            w => match w.strip_prefix('.').and_then(Ty::parse) {
                Some(ty) => break ty,
                None => {
                    return Err(LoadError::syntax(
                        line,
                        format!("unexpected `{w}` in a declaration"),
                    ));
                }
            },
        }
    };
    let element = ty.bytes() * lanes;
    let mut all = Vec::new();
    loop {
        let line = lx.line();
        let name = lx.word()?.to_string();
        let mut count = 1u64;
        let mut open = false;
        while lx.accept(b'[')? {
            if lx.accept(b']')? {
                open = true;
                continue;
            }
            count = count.saturating_mul(lx.int()? as u64);
            lx.expect(b']')?;
        }
        let bytes = count.saturating_mul(element.into());
        let align = align.unwrap_or(element).max(1);
        if bytes > MOST_BYTES || !align.is_power_of_two() || u64::from(align) > MOST_BYTES {
            return Err(LoadError::syntax(line, format!("size or alignment of `{name}`")));
        }
        let mut v = Variable {
            name,
            space,
            align,
            size: if open { 0 } else { bytes },
            init: Vec::new(),
            relocations: Vec::new(),
        };
        if lx.accept(b'=')? {
            initializer(lx, ty.bytes() as usize, &mut v, 0)?;
            v.size = v.size.max(v.init.len() as u64);
        }
        all.push(v);
        if !lx.accept(b',')? {
            break;
        }
    }
    lx.expect(b';')?;
    Ok(all)
}

fn initializer(
    lx: &mut Lexer<'_>,
    width: usize,
    v: &mut Variable,
    depth: u32,
) -> Result<(), LoadError> {
    if depth < MOST_NESTED && lx.accept(b'{')? {
        while !lx.accept(b'}')? {
            initializer(lx, width, v, depth + 1)?;
            lx.accept(b',')?;
        }
        return Ok(());
    }
    let line = lx.line();
    let minus = lx.accept(b'-')?;
    let bits = match lx.next_tok()? {
        Tok::Int(i) if minus => i.wrapping_neg(),
        Tok::Int(i) => i,
        Tok::F32(f) => u64::from(f),
        Tok::F64(f) if width == 8 => f,
        Tok::F64(f) => u64::from((f64::from_bits(f) as f32).to_bits()),
        Tok::Word("generic") => {
            lx.expect(b'(')?;
            let name = lx.word()?;
            let addend = if lx.accept(b'+')? { lx.int()? } else { 0 };
            lx.expect(b')')?;
            v.relocations.push((v.init.len() as u64, name.to_string(), addend));
            0
        }
        Tok::Word(name) => {
            v.relocations.push((v.init.len() as u64, name.to_string(), 0));
            0
        }
        t => return Err(LoadError::syntax(line, format!("bad initializer {t:?}"))),
    };
    v.init.extend_from_slice(&u128::from(bits).to_le_bytes()[..width]);
    Ok(())
}

fn skip_parens(lx: &mut Lexer<'_>) -> Result<(), LoadError> {
    lx.expect(b'(')?;
    while !matches!(lx.next_tok()?, Tok::Punct(b')') | Tok::End) {}
    Ok(())
}

fn params(lx: &mut Lexer<'_>) -> Result<Vec<Param>, LoadError> {
    let mut all = Vec::new();
    let mut offset = 0u32;
    lx.expect(b'(')?;
    while !lx.accept(b')')? {
        let mut is_reg = false;
        let mut align = None;
        let mut ty = None;
        let name = loop {
            match lx.word()? {
                ".reg" => is_reg = true,
                ".param" | ".ptr" | ".global" | ".shared" | ".const" | ".local" | ".generic" => {}
                ".align" => {
                    let n = lx.int()? as u32;
                    // After the type, `.ptr .align n` speaks of what the pointer points to.
                    if ty.is_none() {
                        align = Some(n);
                    }
                }
                w => match w.strip_prefix('.').and_then(Ty::parse) {
                    Some(t) => ty = Some(t),
                    None => break w.to_string(),
                },
            }
        };
        let line = lx.line();
        let ty =
            ty.ok_or_else(|| LoadError::syntax(line, format!("parameter `{name}` has no type")))?;
        let mut size = u64::from(ty.bytes());
        if lx.accept(b'[')? {
            size = size.saturating_mul(lx.int()? as u64);
            lx.expect(b']')?;
        }
        let align = align.unwrap_or(ty.bytes()).max(1);
        if size > MOST_PARAMETERS || !align.is_power_of_two() || u64::from(align) > MOST_PARAMETERS
        {
            return Err(LoadError::syntax(line, format!("size or alignment of `{name}`")));
        }
        offset = offset.next_multiple_of(align);
        all.push(Param { name, offset, size: size as u32, reg: is_reg.then_some(ty) });
        offset += size as u32;
        if u64::from(offset) > MOST_PARAMETERS {
            return Err(LoadError::syntax(line, "too many bytes of parameters"));
        }
        lx.accept(b',')?;
    }
    Ok(all)
}

fn function(
    lx: &mut Lexer<'_>,
    module: &mut Module,
    is_kernel: bool,
    check: &mut dyn FnMut(&str, u32) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let returns = if lx.peek()? == Tok::Punct(b'(') { params(lx)? } else { Vec::new() };
    let name = lx.word()?.to_string();
    let params = if lx.peek()? == Tok::Punct(b'(') { params(lx)? } else { Vec::new() };
    let mut f = Function {
        name,
        is_kernel,
        params,
        returns,
        body: None,
        line: lx.line(),
        max_threads: None,
    };
    loop {
        let line = lx.line();
        match lx.next_tok()? {
            Tok::Punct(b';') => break,
            Tok::Punct(b'{') => {
                f.line = lx.line(); // of the first token, where decoding begins
                f.body = Some(scan_body(lx, check)?);
                break;
            }
            Tok::Word(".maxntid" | ".reqntid") => {
                let mut n = lx.int()?;
                while lx.accept(b',')? {
                    n = n.saturating_mul(lx.int()?);
                }
                f.max_threads = Some(n.clamp(0, u32::MAX.into()) as u32);
            }
            Tok::Word(".noreturn" | ".explicitcluster") => {}
            Tok::Word(
                ".minnctapersm" | ".maxnreg" | ".maxclusterrank" | ".pragma" | ".reqnctapercluster",
            ) => {
                lx.next_tok()?;
                while lx.accept(b',')? {
                    lx.next_tok()?;
                }
            }
            t => {
                return Err(LoadError::syntax(
                    line,
                    format!("unexpected {t:?} before the body of `{}`", f.name),
                ));
            }
        }
    }
    // A declaration never hides a definition.
    if f.body.is_some() || !module.functions.contains_key(&f.name) {
        module.functions.insert(f.name.clone(), f);
    }
    Ok(())
}

/// Walks over a body, statement by statement, shows each opcode to `check`, and returns where the body lies.
fn scan_body(
    lx: &mut Lexer<'_>,
    check: &mut dyn FnMut(&str, u32) -> Result<(), LoadError>,
) -> Result<Range<usize>, LoadError> {
    let start = lx.pos();
    let mut depth = 1;
    loop {
        let (line, pos) = (lx.line(), lx.pos());
        match lx.next_tok()? {
            Tok::Punct(b'{') => depth += 1,
            Tok::Punct(b'}') => {
                depth -= 1;
                if depth == 0 {
                    return Ok(start..pos);
                }
            }
            Tok::Punct(b'@') => {
                lx.accept(b'!')?;
                lx.word()?;
            }
            Tok::Word(".loc" | ".file") => skip_line(lx, line)?,
            Tok::Word(w) if w.starts_with('.') => skip_statement(lx)?,
            Tok::Word(w) => {
                if !lx.accept(b':')? {
                    check(w, line)?;
                    skip_statement(lx)?;
                }
            }
            Tok::Punct(b';') => {}
            t => {
                return Err(LoadError::syntax(
                    line,
                    format!("unexpected {t:?} in a function body"),
                ));
            }
        }
    }
}

fn skip_statement(lx: &mut Lexer<'_>) -> Result<(), LoadError> {
    loop {
        let line = lx.line();
        match lx.next_tok()? {
            Tok::Punct(b';') => return Ok(()),
            Tok::End => return Err(LoadError::syntax(line, "function body without end")),
            _ => {}
        }
    }
}

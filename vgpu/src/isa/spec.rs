//! An opcode taken apart: base, modifiers, types.

use crate::ptx::{Space, Ty};

/// Width class of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum W {
    /// A predicate: one mask.
    P,
    /// 32 lanes of 16 bits (8-bit types too).
    H,
    /// 32 lanes of 32 bits.
    S,
    /// 32 lanes of 64 bits.
    D,
}

impl W {
    /// The class that holds a type; none for 128 bits.
    pub fn of(ty: Ty) -> Option<W> {
        Some(match ty.bytes() {
            0 => W::P,
            1 | 2 => W::H,
            4 => W::S,
            8 => W::D,
            _ => return None,
        })
    }

    /// Bytes of such a register in the register file.
    pub fn bytes(self) -> u32 {
        match self {
            W::P => 4,
            W::H => 64,
            W::S => 128,
            W::D => 256,
        }
    }
}

/// An opcode such as `ld.relaxed.sys.global.v2.u64`.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// `ld`.
    pub base: &'a str,
    /// `relaxed`, `sys`, `global`, `v2`, in order.
    pub mods: Vec<&'a str>,
    /// `U64`, in order.
    pub tys: Vec<Ty>,
}

/// Cache hints and the like, which change nothing that a program can see.
fn is_hint(m: &str) -> bool {
    m.starts_with("L1::")
        || m.starts_with("L2::")
        || matches!(m, "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "aligned")
}

impl<'a> Spec<'a> {
    /// Splits an opcode at its dots.
    pub fn parse(opcode: &'a str) -> Spec<'a> {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or("");
        let mut spec = Spec { base, mods: Vec::new(), tys: Vec::new() };
        for p in parts {
            match Ty::parse(p) {
                Some(t) => spec.tys.push(t),
                None if is_hint(p) => {}
                None => spec.mods.push(p),
            }
        }
        spec
    }

    /// True if the modifier is there.
    pub fn has(&self, m: &str) -> bool {
        self.mods.contains(&m)
    }

    /// The n-th type, if it is there.
    pub fn ty(&self, n: usize) -> Option<Ty> {
        self.tys.get(n).copied()
    }

    /// An error unless every modifier is one of these (separated by spaces).
    pub fn only(&self, allowed: &str) -> Result<(), String> {
        match self.mods.iter().find(|m| !allowed.split(' ').any(|a| a == **m)) {
            Some(m) => Err(format!("modifier `.{m}` is not supported here")),
            None => Ok(()),
        }
    }

    /// The state space; generic if none is named.
    pub fn space(&self) -> Space {
        self.mods.iter().find_map(|m| Space::parse(m)).unwrap_or(Space::Generic)
    }

    /// Elements of a vector access.
    pub fn vector(&self) -> usize {
        if self.has("v8") {
            8
        } else if self.has("v4") {
            4
        } else if self.has("v2") {
            2
        } else {
            1
        }
    }
}

//! The opcode table: what an opcode means, before its operands are known.
//!
//! [`form`] is used twice: when a module is loaded, to refuse what the virtual GPU does not have, and when a kernel is decoded.

use super::spec::{Spec, W};
use crate::exec::alu::{self, Sel};
use crate::exec::compare;
use crate::exec::convert;
use crate::exec::ldst;
use crate::exec::multimem::Kind;
use crate::exec::sync::MbarOp;
use crate::exec::warp::{MemInfo, Scope, Sem};
use crate::mem::rmw::RmwOp;
use crate::ptx::{Space, Ty};

/// What an opcode means.
pub enum Form {
    /// Registers in, register out.
    Alu(Sel),
    /// `cvt`: the registers decide the handler.
    Cvt,
    /// `mov`.
    Mov(Ty),
    /// `selp`.
    Selp(W),
    /// `setp`, with its combination (0 none, 1 and, 2 or, 3 xor).
    Setp(Sel, u32),
    /// `and`, `or`, `xor` of predicates.
    PredLogic(u32),
    /// `not.pred`.
    PredNot,
    /// `cvta`: to or from the window at this address.
    Cvta(i64),
    /// `isspacep`: the window (0: global).
    IsSpace(u64),
    /// `ld` of n elements.
    Load(MemInfo, usize),
    /// `st` of n elements.
    Store(MemInfo, usize),
    /// `atom` (true: returns the old value) or `red`, of n elements.
    Atomic(MemInfo, usize, bool),
    /// `bra`.
    Bra,
    /// `brx.idx`.
    Brx,
    /// `call`.
    Call,
    /// `ret`.
    Ret,
    /// `exit`.
    Exit,
    /// `trap`.
    Trap,
    /// A block barrier: what to do with it.
    Bar(u32),
    /// `bar.warp.sync`.
    WarpBar,
    /// `fence`, `membar`.
    Fence(MemInfo),
    /// Operands are read and dropped.
    Nop,
    /// `shfl`.
    Shuffle(u32),
    /// `vote`.
    Vote(u32),
    /// `match`.
    Match(u32, W),
    /// `redux`.
    Redux(MemInfo),
    /// `activemask`.
    ActiveMask,
    /// `elect`.
    Elect,
    /// `nanosleep`.
    Nanosleep,
    /// `mbarrier`.
    Mbar(MbarOp),
    /// `fence.proxy.async`.
    ProxyFence,
    /// `cp.async.bulk.commit_group`.
    CommitGroup,
    /// `cp.async.bulk.wait_group`, or (true) its `.read`.
    WaitGroup(bool),
    /// A bulk copy: destination space in the info, source shared, has an mbarrier, reduces.
    Bulk(MemInfo, bool, bool, bool),
    /// `multimem` on n elements.
    Multimem(MemInfo, Kind, usize),
}

/// Reads order, scope, space and type off an opcode.
fn mem_info(s: &Spec<'_>, ty: Ty) -> MemInfo {
    let sem = if s.has("acquire") {
        Sem::Acquire
    } else if s.has("release") {
        Sem::Release
    } else if s.has("acq_rel") {
        Sem::AcqRel
    } else if s.has("sc") {
        Sem::Sc
    } else if s.has("relaxed") || s.has("volatile") || s.has("mmio") {
        Sem::Relaxed
    } else {
        Sem::Weak
    };
    let scope = if s.has("sys") || s.has("volatile") || s.has("mmio") {
        Scope::Sys
    } else if s.has("gpu") {
        Scope::Gpu
    } else {
        Scope::Cta
    };
    MemInfo { space: s.space(), sem, scope, narrow: false, ty, op: RmwOp::Add }
}

const SPACES: &str =
    "global shared shared::cta shared::cluster local param param::entry param::func const";
const ORDERS: &str = "weak relaxed acquire release acq_rel sc volatile mmio cta cluster gpu sys";

/// The meaning of an opcode, or why there is none.
pub fn form(s: &Spec<'_>) -> Result<Form, String> {
    let unknown = || "no such instruction, or not for this type".to_string();
    let ty = s.ty(0);
    Ok(match s.base {
        "mov" => {
            s.only("")?;
            let ty = ty.ok_or_else(unknown)?;
            W::of(ty).ok_or_else(unknown)?;
            Form::Mov(ty)
        }
        "selp" => {
            s.only("")?;
            Form::Selp(ty.and_then(W::of).filter(|w| *w != W::P).ok_or_else(unknown)?)
        }
        "and" | "or" | "xor" if ty == Some(Ty::Pred) => Form::PredLogic(
            ["and", "or", "xor"].iter().position(|b| *b == s.base).unwrap_or(0) as u32,
        ),
        "not" if ty == Some(Ty::Pred) => Form::PredNot,
        "setp" => {
            let combine = s
                .mods
                .iter()
                .skip(1)
                .find_map(|m| compare::COMBINE.iter().position(|c| c == m))
                .unwrap_or(0);
            Form::Setp(alu::select(s)?.ok_or_else(unknown)?, combine as u32)
        }
        "cvt" => {
            convert::select(s, None, None)?.ok_or_else(unknown)?;
            Form::Cvt
        }
        "cvta" => {
            s.only(&format!("to {SPACES}"))?;
            if ty != Some(Ty::U64) {
                return Err("only .u64".into());
            }
            let window = window(s.space()) as i64;
            Form::Cvta(if s.has("to") { -window } else { window })
        }
        "isspacep" => {
            s.only(SPACES)?;
            Form::IsSpace(window(s.space()))
        }
        "ld" | "ldu" => {
            s.only(&format!("{SPACES} {ORDERS} v2 v4 v8"))?;
            let ty = ty.ok_or_else(unknown)?;
            let info = mem_info(s, ty);
            let d = W::of(ty).filter(|w| *w != W::P).ok_or_else(unknown)?;
            ldst::load_handler(ty, s.vector(), d, false).ok_or_else(unknown)?;
            Form::Load(info, s.vector())
        }
        "st" => {
            s.only(&format!("{SPACES} {ORDERS} v2 v4 v8"))?;
            let ty = ty.ok_or_else(unknown)?;
            let d = W::of(ty).filter(|w| *w != W::P).ok_or_else(unknown)?;
            ldst::store_handler(ty, s.vector(), d, false).ok_or_else(unknown)?;
            Form::Store(mem_info(s, ty), s.vector())
        }
        "atom" | "red" => atomic(s, ty.ok_or_else(unknown)?)?,
        "bra" => {
            s.only("uni")?;
            Form::Bra
        }
        "brx" => Form::Brx,
        "call" => {
            s.only("uni")?;
            Form::Call
        }
        "ret" => {
            s.only("uni")?;
            Form::Ret
        }
        "exit" => Form::Exit,
        "trap" => Form::Trap,
        "bar" | "barrier" => barrier(s)?,
        "fence" | "membar" => fence(s)?,
        "nanosleep" => Form::Nanosleep,
        "brkpt" | "pmevent" | "prefetch" | "prefetchu" | "discard" | "applypriority"
        | "griddepcontrol" | "setmaxnreg" => Form::Nop,
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => exchange(s)?,
        "mbarrier" => mbarrier(s)?,
        "cp" => bulk(s)?,
        "multimem" => multimem(s)?,
        _ => Form::Alu(alu::select(s)?.ok_or_else(unknown)?),
    })
}

fn window(s: Space) -> u64 {
    match s {
        Space::Shared => ldst::SHARED_WINDOW,
        Space::Local => ldst::LOCAL_WINDOW,
        Space::Param => ldst::PARAM_WINDOW,
        _ => 0,
    }
}

fn atomic(s: &Spec<'_>, ty: Ty) -> Result<Form, String> {
    s.only(&format!("{SPACES} {ORDERS} v2 v4 v8 noftz add min max inc dec and or xor exch cas"))?;
    let op = s.mods.iter().find_map(|m| RmwOp::parse(m)).ok_or("no operation")?;
    if !op.takes(ty) {
        return Err("the operation does not take this type".into());
    }
    let mut info = mem_info(s, ty);
    info.op = op;
    // Without an order an atomic is relaxed, without a scope it is of the device.
    if info.sem == Sem::Weak {
        info.sem = Sem::Relaxed;
    }
    if !s.mods.iter().any(|m| matches!(*m, "cta" | "cluster" | "gpu" | "sys")) {
        info.scope = Scope::Gpu;
    }
    if s.vector() > 4 || s.vector() > 1 && op == RmwOp::Cas {
        return Err("vector of this length".into());
    }
    Ok(Form::Atomic(info, s.vector(), s.base == "atom"))
}

fn barrier(s: &Spec<'_>) -> Result<Form, String> {
    s.only("cta sync arrive red warp popc and or")?;
    if s.has("warp") {
        return Ok(Form::WarpBar);
    }
    Ok(Form::Bar(match () {
        () if s.has("sync") => 0,
        () if s.has("arrive") => 1,
        () if s.has("popc") => 2,
        () if s.has("and") => 3,
        () if s.has("or") => 4,
        () => return Err("needs .sync, .arrive or .red".into()),
    }))
}

fn fence(s: &Spec<'_>) -> Result<Form, String> {
    if s.has("proxy") || s.has("mbarrier_init") {
        s.only("proxy async alias generic tensormap::generic mbarrier_init acquire release sync_restrict::shared::cta cluster cta gpu sys global shared::cta shared::cluster async::generic async.global sync_restrict::shared::cluster")?;
        return Ok(if s.has("async") { Form::ProxyFence } else { Form::Nop });
    }
    s.only("sc acq_rel acquire release cta cluster gpu sys gl sync_restrict::shared::cta")?;
    let mut info = mem_info(s, Ty::B32);
    if s.base == "membar" {
        info.sem = Sem::Sc;
        if s.has("gl") {
            info.scope = Scope::Gpu;
        }
    } else if info.sem == Sem::Weak {
        info.sem = Sem::AcqRel;
    }
    Ok(Form::Fence(info))
}

fn exchange(s: &Spec<'_>) -> Result<Form, String> {
    let mode = |all: &[&str]| {
        all.iter().position(|m| s.has(m)).map(|n| n as u32).ok_or("no such mode".to_string())
    };
    if !s.has("sync") && s.base != "activemask" {
        return Err("only the .sync form exists since sm_70".into());
    }
    Ok(match s.base {
        "shfl" => {
            s.only("sync up down bfly idx")?;
            Form::Shuffle(mode(&["up", "down", "bfly", "idx"])?)
        }
        "vote" => {
            s.only("sync all any uni ballot")?;
            Form::Vote(mode(&["all", "any", "uni", "ballot"])?)
        }
        "match" => {
            s.only("sync any all")?;
            Form::Match(mode(&["any", "all"])?, s.ty(0).and_then(W::of).ok_or("no such type")?)
        }
        "redux" => {
            s.only("sync add min max and or xor")?;
            let op = s.mods.iter().find_map(|m| RmwOp::parse(m)).ok_or("no operation")?;
            let ty = s
                .ty(0)
                .filter(|t| op.takes(*t) && t.bytes() == 4 && *t != Ty::F32)
                .ok_or("no such type")?;
            Form::Redux(MemInfo { op, ty, ..MemInfo::default() })
        }
        "elect" => Form::Elect,
        _ => Form::ActiveMask,
    })
}

fn mbarrier(s: &Spec<'_>) -> Result<Form, String> {
    s.only("init inval arrive arrive_drop expect_tx complete_tx test_wait try_wait parity pending_count shared shared::cta acquire release relaxed cta cluster noComplete")?;
    let wait = s.has("test_wait") || s.has("try_wait");
    Ok(Form::Mbar(match () {
        () if s.has("init") => MbarOp::Init,
        () if s.has("inval") => MbarOp::Inval,
        () if s.has("arrive") && s.has("expect_tx") => MbarOp::ArriveExpectTx,
        () if s.has("arrive") => MbarOp::Arrive,
        () if s.has("arrive_drop") && !s.has("expect_tx") => MbarOp::ArriveDrop,
        () if s.has("expect_tx") => MbarOp::ExpectTx,
        () if s.has("complete_tx") => MbarOp::CompleteTx,
        () if wait && s.has("parity") => MbarOp::WaitParity,
        () if wait => MbarOp::Wait,
        () if s.has("pending_count") => MbarOp::PendingCount,
        () => return Err("no such operation".into()),
    }))
}

fn bulk(s: &Spec<'_>) -> Result<Form, String> {
    if !s.has("bulk") {
        return Err("only the bulk form is supported".into());
    }
    s.only("async bulk commit_group wait_group read reduce global shared::cta shared::cluster bulk_group mbarrier::complete_tx::bytes add min max and or xor inc dec noftz")?;
    if s.has("commit_group") {
        return Ok(Form::CommitGroup);
    }
    if s.has("wait_group") {
        return Ok(Form::WaitGroup(s.has("read")));
    }
    let spaces: Vec<Space> = s.mods.iter().filter_map(|m| Space::parse(m)).collect();
    let [dst, src] = spaces[..] else {
        return Err("needs two state spaces".into());
    };
    if dst == src && dst == Space::Global {
        return Err("one side is shared memory".into());
    }
    let mut info = MemInfo { space: dst, ..MemInfo::default() };
    let reduces = s.has("reduce");
    if reduces {
        info.op = s.mods.iter().find_map(|m| RmwOp::parse(m)).ok_or("no operation")?;
        info.ty =
            s.ty(0).filter(|t| info.op.takes(*t)).ok_or("the operation does not take this type")?;
        (info.sem, info.scope) = (Sem::Relaxed, Scope::Gpu);
    }
    Ok(Form::Bulk(info, src == Space::Shared, s.has("mbarrier::complete_tx::bytes"), reduces))
}

fn multimem(s: &Spec<'_>) -> Result<Form, String> {
    s.only("ld_reduce st red weak relaxed acquire release cta cluster gpu sys global v2 v4 v8 add min max and or xor acc::f32 acc::f16")?;
    let ty = s.ty(0).ok_or("no type")?;
    let mut info = mem_info(s, ty);
    let kind = match () {
        () if s.has("ld_reduce") => Kind::LdReduce,
        () if s.has("st") => Kind::St,
        () if s.has("red") => Kind::Red,
        () => return Err("needs .ld_reduce, .st or .red".into()),
    };
    let n = s.vector();
    let bytes = ty.bytes() as usize * n;
    if !matches!(ty.bytes(), 2 | 4 | 8) || bytes > 16 || kind == Kind::Red && n > 1 {
        return Err("no such type or vector".into());
    }
    if kind != Kind::St {
        info.op = s.mods.iter().find_map(|m| RmwOp::parse(m)).ok_or("no operation")?;
        if !info.op.takes(ty) {
            return Err("the operation does not take this type".into());
        }
    }
    Ok(Form::Multimem(info, kind, n))
}

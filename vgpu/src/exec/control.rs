//! Control flow: branches, exit, trap, and what a thread can ask about its warp.

use super::warp::{Inst, Trouble, Warp};
use super::{Ctl, Exec};
use crate::mem::space::Kind;

macro_rules! exec {
    ($(#[$doc:meta])* $name:ident, |$w:ident, $i:ident| $body:expr) => {
        $(#[$doc])*
        pub struct $name;
        impl Exec for $name {
            #[inline(always)]
            unsafe fn run($w: &mut Warp, $i: &Inst) -> Ctl {
                // SAFETY: the caller promises an instruction decoded for this warp, as `Exec::run` asks.
                #[allow(unused_unsafe, reason = "some bodies only touch the warp's safe parts")]
                unsafe { $body }
            }
        }
    };
}
pub(crate) use exec;

exec!(
    /// `bra`.
    Bra, |w, i| w.branch(i.target)
);
exec!(
    /// `brx.idx`: jumps through a table of targets.
    Brx, |w, i| {
        // Lanes may differ: the first lane's target goes now, the others come back here.
        let index: u32 = w.lane(i.a, w.exec.trailing_zeros() as usize);
        let same = (0..32).filter(|&l| w.exec >> l & 1 == 1 && w.lane::<u32>(i.a, l) == index);
        let same = same.fold(0, |m, l| m | 1 << l);
        let kernel = &(*w.block).kernel;
        let table = &kernel.tables[i.aux as usize];
        let Some(&target) = table.get(index as usize) else {
            return w.fail(Trouble::Trap(format!("brx.idx index {index} is outside its table")));
        };
        let others = w.exec & !same;
        if others != 0 {
            w.paths.push(super::warp::Path { pc: w.pc, mask: others, wait: super::warp::Wait::No, resumed: None });
            w.mask &= !others;
            w.exec = same;
        }
        w.branch(target)
    }
);
exec!(
    /// `ret` of a kernel and `exit`.
    Exit, |w, _i| w.exit()
);
exec!(
    /// `trap`.
    Trap, |w, _i| w.fail(Trouble::Trap("trap".into()))
);
exec!(
    /// A failed assertion; its message, file, line and function are in `v` as addresses of strings.
    AssertFail, |w, i| {
        let lane = w.exec.trailing_zeros() as usize;
        let text = |off: u32| w.c_string(w.lane::<u64>(off, lane));
        let line: u32 = w.lane(i.v[2], lane);
        let what = format!("{}:{line}: {}: assertion `{}` failed", text(i.v[1]), text(i.v[3]), text(i.v[0]));
        w.fail(Trouble::Trap(what))
    }
);
exec!(
    /// `nanosleep`: others run first.
    Nanosleep, |_w, _i| Ctl::Yield
);
exec!(
    /// Nothing to do here: `membar` in one thread, `prefetch`, `pragma`, `setmaxnreg`.
    Nop, |_w, _i| Ctl::Next
);
exec!(
    /// `activemask`.
    ActiveMask, |w, i| {
        w.put(i.d, [w.exec; 32]);
        Ctl::Next
    }
);
exec!(
    /// Reads `%clock` (`aux` 0), `%clock64` or `%globaltimer`: nanoseconds, or instructions in tracked mode.
    Clock, |w, i| {
        let now = if (*w.block).tracked.is_some() {
            w.counters.instructions // the same seed is the same run
        } else {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |d| d.as_nanos() as u64)
        };
        if i.aux == 0 { w.put(i.d, [now as u32; 32]) } else { w.put(i.d, [now; 32]) }
        Ctl::Next
    }
);

impl Warp {
    /// A NUL-terminated string in device memory, for messages.
    fn c_string(&self, mut addr: u64) -> String {
        let mut bytes = Vec::new();
        // SAFETY: the space outlives the warp; `find` says that the byte is mapped.
        unsafe {
            while bytes.len() < 200
                && (*self.space).find(addr, 1).is_some_and(|r| r.kind != Kind::Multicast)
            {
                match *(addr as *const u8) {
                    0 => break,
                    c => bytes.push(c),
                }
                addr += 1;
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

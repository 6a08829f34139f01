//! vgpu: loads of kernels that are performed late.

mod common;

use common::{Params, Rig};
use vgpu::MachineConfig;
use vgpu::track::model::Config;

const SEEDS: u64 = 400;

/// Two blocks: each loads its word, then stores to the other's. `between` comes between load and store, `stored` is what is stored.
fn kernel(between: &str, stored: &str) -> String {
    let fill = "add.u32 %r3, %r3, 1; ".repeat(24);
    format!(
        ".version 8.0\n.target sm_90\n.address_size 64
.visible .entry lb(.param .u64 x, .param .u64 y, .param .u64 out) {{
  .reg .b64 %d<4>; .reg .b32 %r<5>; .reg .pred %p;
  ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; ld.param.u64 %d3, [out];
  mov.u32 %r1, %ctaid.x; setp.eq.u32 %p, %r1, 0;
  @!%p mov.b64 %d0, %d1; @!%p mov.b64 %d1, %d2; @!%p mov.b64 %d2, %d0;
  mad.wide.u32 %d3, %r1, 4, %d3; mov.u32 %r4, 1;
  ld.relaxed.sys.global.u32 %r2, [%d1];
  {between}
  st.relaxed.sys.global.u32 [%d2], {stored};
  {fill}
  st.global.u32 [%d3], %r2;
  ret;
}}"
    )
}

/// In how many seeds both loads saw what is stored after the other; `outcomes` gets all pairs that were seen.
fn both(ptx: &str, outcomes: &mut Vec<[u32; 2]>) -> usize {
    let seen = |seed| {
        let track = Some(Config { weak: true, race: true, seed });
        let rig = Rig::new(ptx, MachineConfig { devices: 1, sms: 4, track, ..Default::default() });
        let words = [rig.alloc::<u32>(0, 1), rig.alloc::<u32>(0, 1), rig.alloc::<u32>(0, 2)];
        rig.run("lb", 0, 2, 1, 0, &Params::new().all(&words)).unwrap();
        assert!(rig.machine.races().is_empty());
        let out = rig.read::<u32>(words[2], 2);
        [out[0], out[1]]
    };
    outcomes.extend((0..SEEDS).map(seen));
    outcomes.iter().filter(|o| **o == [1, 1]).count()
}

#[test]
fn vgpu_a_relaxed_load_may_see_what_its_threads_later_store_caused() {
    let mut outcomes = Vec::new();
    let n = both(&kernel("", "%r4"), &mut outcomes);
    assert!(n > 0, "load buffering in none of {SEEDS} seeds");
    for weaker in [[0, 0], [0, 1], [1, 0]] {
        assert!(outcomes.contains(&weaker), "{weaker:?} in none of {SEEDS} seeds");
    }
}

#[test]
fn vgpu_a_fence_keeps_a_load_before_the_store() {
    assert_eq!(both(&kernel("fence.acq_rel.sys;", "%r4"), &mut Vec::new()), 0);
}

#[test]
fn vgpu_a_dependency_keeps_a_load_before_the_store() {
    // The data of the store, or a branch before it, depends on the load; nothing comes out of thin air.
    assert_eq!(both(&kernel("mul.lo.u32 %r4, %r2, 1;", "%r4"), &mut Vec::new()), 0);
    let branch = "setp.gt.u32 %p, %r2, 7; @%p bra SKIP; SKIP:";
    assert_eq!(both(&kernel(branch, "%r4"), &mut Vec::new()), 0);
}

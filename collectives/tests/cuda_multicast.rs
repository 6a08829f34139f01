//! Plans that go through a switch that reduces and multiplies, on GPUs that have one. `cargo xtask test` runs it on virtual GPUs.
//!
//! To keep the number of kernels small, types and operators are dealt out among plans and numbers of ranks.

mod common;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::cases::{Case, Op};
use common::gpu::{self, Memory, Rank, again, check_with, is_run_again};
use common::processes::{Ranks, connect_with, me};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED;
use half::bf16;
use warpmesh::plan::Collective::{self, AllGather, AllReduce, ReduceScatter};
use warpmesh::primitives::failure::FailureKind;
use warpmesh::{DataType, RawCall, ReduceOp};

/// A plan, and whether its buffers have to be at the same place on all ranks.
type Plan = (Collective, &'static str, bool);

const PLANS: [Plan; 8] = [
    (AllReduce, "one_shot_multicast", false),
    (AllReduce, "nvls", true),
    (AllReduce, "nvls_staged", false),
    (AllGather, "packet_multicast", false),
    (AllGather, "nvls", true),
    (AllGather, "nvls_staged", false),
    (ReduceScatter, "nvls", true),
    (ReduceScatter, "nvls_staged", false),
];

const OPS: [Op; 6] = [Op::Sum, Op::Avg, Op::Min, Op::Max, Op::Prod, Op::PreMulSum];

/// Whether the switch has a reduction. What it does not have goes by another plan.
fn switch_reduces(dtype: DataType, op: Op) -> bool {
    use DataType::*;
    let integer = [I32, U32, I64, U64].contains(&dtype);
    match op {
        Op::Sum => integer || [F16, Bf16, F32, F64].contains(&dtype),
        Op::Avg => integer || [F32, F64].contains(&dtype),
        Op::Min | Op::Max => integer,
        Op::Prod | Op::PreMulSum => false,
    }
}

fn types_and_operators() -> impl Iterator<Item = (DataType, Op)> {
    DataType::ALL.into_iter().flat_map(|dtype| OPS.map(|op| (dtype, op)))
}

/// Whether there are so many GPUs with multicast. If not, it is said loudly, and is a failure if WARPMESH_NEEDS_GPU is set.
fn devices(world: usize) -> bool {
    let Some(count) = gpu::count() else { return false };
    let has_multicast = |device: usize| {
        let context = CudaContext::new(device).unwrap();
        context.attribute(CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED).is_ok_and(|has| has != 0)
    };
    if count >= world && (0..world).all(has_multicast) {
        return true;
    }
    eprintln!("\n*** NOT RUN: {world} GPUs with multicast are needed ***\n");
    assert!(std::env::var_os("WARPMESH_NEEDS_GPU").is_none(), "more GPUs are needed");
    false
}

fn case((collective, name, symmetric): Plan, world: usize, count: usize) -> Case {
    Case {
        world,
        collective,
        dtype: DataType::F16,
        op: Op::Sum,
        count,
        root: 0,
        offsets: (0, 0),
        registered: symmetric,
        symmetric,
        in_place: false,
        canonical: false,
        algorithm: Some(name),
    }
}

/// Runs cases of one plan, and sees that they take it.
fn check_plan(cases: &[Case]) {
    check_with(cases, |rank, case, call| {
        assert_eq!(rank.comm.plan_of(call).unwrap(), case.algorithm.unwrap(), "{case:?}");
    });
}

/// One call of a case of f32, on buffers at the beginning of their memory.
fn call(case: Case, (input, output): (&Memory, &Memory)) -> RawCall {
    let (input, output) = (input.address() as *const u8, output.address() as *mut u8);
    let Case { collective, count, .. } = case;
    let (dtype, op) = (DataType::F32, ReduceOp::Sum);
    RawCall { collective, dtype, op, root: 0, count, input, output }
}

fn buffers(rank: &mut Rank, case: Case) -> (Memory, Memory) {
    let bytes = case.world * case.count * size_of::<f64>();
    (Memory::of_case(rank, bytes, case), Memory::of_case(rank, bytes, case))
}

#[test]
fn every_number_of_ranks_and_count() {
    const SUMS: [DataType; 4] = [DataType::F16, DataType::F32, DataType::Bf16, DataType::I64];
    for (n, world) in [2, 3, 4, 8].into_iter().enumerate() {
        if !devices(world) {
            continue;
        }
        for (k, plan) in PLANS.into_iter().enumerate() {
            let new = |count| Case { dtype: SUMS[(n + k) % 4], ..case(plan, world, count) };
            check_plan(&[
                new(1),
                new(65),
                new(2049),
                // In place, and at addresses that are no multiple of what the switch takes.
                Case { in_place: true, ..new(1025) },
                Case { offsets: (1, 1), ..new(1025) },
                Case { offsets: (8, 1), ..new(333) },
                Case { offsets: (3, 3), in_place: true, ..new(77) },
            ]);
        }
    }
}

#[test]
fn every_type_and_operator() {
    if !devices(2) {
        return;
    }
    let run = |plan, (dtype, op), count| {
        let new = |count| Case { dtype, op, ..case(plan, 2, count) };
        check_plan(&[new(7), new(count), Case { offsets: (1, 0), ..new(count) }]);
    };
    let reducing = [PLANS[1], PLANS[2], PLANS[6], PLANS[7]];
    let switched = types_and_operators().filter(|(dtype, op)| switch_reduces(*dtype, *op));
    for (n, both) in switched.enumerate() {
        run(reducing[n % 4], both, 500);
    }
    // Packets carry any type; who gets them reduces.
    let types = [DataType::F8E4M3, DataType::Bf16, DataType::U32, DataType::F64];
    for (n, dtype) in types.into_iter().enumerate() {
        run(PLANS[0], (dtype, OPS[n + 1]), 300);
        run(PLANS[3], (dtype, Op::Sum), 300);
    }
    run(PLANS[4], (DataType::U8, Op::Sum), 500);
    run(PLANS[5], (DataType::I8, Op::Sum), 500);
}

#[test]
fn several_rounds() {
    if !devices(2) {
        return;
    }
    // Just over what scratch memory takes at once, or packets. (Symmetric memory has no rounds.)
    const MORE: usize = 77;
    for (plan, bytes) in [(PLANS[0], 2 << 20), (PLANS[2], 8 << 20), (PLANS[7], 4 << 20)] {
        let new = |count| Case { dtype: DataType::F64, ..case(plan, 2, count) };
        check_plan(&[new(bytes / size_of::<f64>() + MORE), new(1)]);
    }
}

/// What the cost model takes for messages of all sizes, one call after the other.
#[test]
fn plans_follow_each_other() {
    if !devices(4) {
        return;
    }
    let taken = Mutex::new(Vec::new());
    let new = |collective, count| {
        let case = case((collective, "", true), 4, count);
        Case { dtype: DataType::F32, algorithm: None, ..case }
    };
    let counts = [(AllReduce, 9), (AllReduce, 200_000), (AllGather, 5), (ReduceScatter, 50_000)];
    let cases = counts.map(|(collective, count)| new(collective, count));
    let again = cases.map(|case| Case { count: case.count + 2, ..case });
    check_with(&[cases, again].concat(), |rank, _, call| {
        taken.lock().unwrap().push(rank.comm.plan_of(call).unwrap());
    });
    for plan in ["one_shot_multicast", "nvls", "packet_multicast"] {
        assert!(taken.lock().unwrap().contains(&plan), "{plan} of {taken:?}");
    }
}

/// Sums whose bits depend on the order: every rank has those that one rank, or the switch for it, made.
#[test]
fn all_ranks_have_the_same_bits() {
    if !devices(4) {
        return;
    }
    const COUNT: usize = 3001;
    // Numbers of all magnitudes, without Inf and NaN.
    let number = |rank: usize, k: usize| {
        let hash = (k as u32 + 77 * rank as u32).wrapping_mul(0x9E37_79B1);
        f32::from_bits(hash & 0x8FFF_FFFF | 0x3800_0000)
    };
    for (plan, dtype) in [(PLANS[1], DataType::F32), (PLANS[2], DataType::Bf16)] {
        let builder = common::settings().algorithm(plan.1);
        let outputs = gpu::ranks_with(builder, 4, |mut rank| {
            let me = rank.comm.rank();
            let case = case(plan, 4, COUNT);
            let (from, to) = buffers(&mut rank, case);
            let numbers = (0..COUNT).map(|k| number(me, k));
            match dtype {
                DataType::F32 => rank.upload(from.address(), &numbers.collect::<Vec<_>>()),
                _ => {
                    let numbers: Vec<_> = numbers.map(bf16::from_f32).collect();
                    rank.upload(from.address(), &numbers);
                }
            }
            rank.call(&RawCall { dtype, ..call(case, (&from, &to)) }).unwrap();
            rank.synchronize().unwrap();
            rank.download::<u8>(to.address(), COUNT * dtype.size())
        });
        assert!(outputs[1..].iter().all(|other| *other == outputs[0]), "{plan:?}");
    }
}

#[test]
fn what_the_switch_cannot_do_goes_by_another_plan() {
    if !devices(2) {
        return;
    }
    gpu::ranks_with(common::settings().algorithm("nvls"), 2, |mut rank| {
        let case = case(PLANS[1], 2, 64);
        let (a, b) = buffers(&mut rank, case);
        let takes = |call: &RawCall| rank.comm.plan_of(call).unwrap();
        for (dtype, op) in types_and_operators().filter(|(_, op)| *op != Op::PreMulSum) {
            let reduce = common::cases::reduce_op::<f32>(op, 0);
            let nvls = takes(&RawCall { dtype, op: reduce, ..call(case, (&a, &b)) }) == "nvls";
            assert_eq!(nvls, switch_reduces(dtype, op), "{dtype} {op:?}");
        }
        // Memory that is not symmetric.
        let mut others = [true, false].map(|registered| Memory::new(&mut rank, 4096, registered));
        let [c, d] = others.each_mut();
        for ends in [(&a, &*c), (c, &b), (&a, d), (d, &b), (c, c), (d, d)] {
            assert_ne!(rank.comm.plan_of(&call(case, ends)).unwrap(), "nvls");
        }
    });
}

/// Sums of the switch have an order that nobody knows; packets are added up in rank order.
#[test]
fn the_canonical_mode_has_no_sums_of_the_switch() {
    if !devices(3) {
        return;
    }
    for (wanted, name) in [("nvls", None), ("one_shot_multicast", Some("one_shot_multicast"))] {
        let builder = common::settings().canonical(true).algorithm(wanted);
        gpu::ranks_with(builder, 3, |mut rank| {
            for collective in [AllReduce, ReduceScatter] {
                let case = case((collective, wanted, true), 3, 2000);
                let (from, to) = buffers(&mut rank, case);
                let plan = rank.comm.plan_of(&call(case, (&from, &to))).unwrap();
                assert!(!plan.starts_with("nvls"), "{plan}");
                assert!(collective != AllReduce || name.is_none_or(|name| name == plan), "{plan}");
            }
        });
    }
}

#[test]
fn a_broken_promise_is_an_error_that_names_the_rank() {
    if !devices(3) {
        return;
    }
    gpu::ranks_with(common::settings().algorithm("nvls"), 3, |mut rank| {
        let me = rank.comm.rank();
        let case = case(PLANS[1], 3, 1000);
        let (from, to) = buffers(&mut rank, case);
        let mut call = call(case, (&from, &to));
        call.output = call.output.wrapping_add(16 * usize::from(me == 2));
        assert_eq!(rank.comm.plan_of(&call).unwrap(), "nvls");
        let error = rank.call(&call).and_then(|()| rank.synchronize()).unwrap_err();
        let failure = error.failure().unwrap();
        assert_eq!(failure.kind, FailureKind::Mismatch, "{error}");
        assert!([Some(failure.by), failure.culprit].contains(&Some(2)), "{error}");
        let text = error.to_string();
        assert!(text.contains("output at byte 16 of symmetric memory"), "{text}");
        // No wrong sum instead.
        assert!(rank.download::<f32>(to.address(), 1000).iter().all(|x| *x == 0.0));
    });
}

#[test]
fn ranks_that_share_a_gpu_have_no_multicast_and_need_none() {
    if devices(2) {
        has_no_multicast(|comm| {
            let device = comm.rank() % 2;
            gpu::rank_on(comm, device)
        });
    }
}

/// A world of three ranks without multicast, that nobody waits for in vain.
fn has_no_multicast(rank: impl Fn(warpmesh::Communicator) -> Rank + Sync) {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let since = Instant::now();
    common::ranks_with(common::settings().timeout(TIMEOUT), 3, |comm| {
        let mut rank = rank(comm);
        for (collective, ..) in PLANS {
            let case = case((collective, "", true), 3, 1000);
            let (from, to) = buffers(&mut rank, case);
            let plan = rank.comm.plan_of(&call(case, (&from, &to))).unwrap();
            assert!(!PLANS.iter().any(|(_, name, _)| *name == plan), "{plan}");
        }
        let case = case((AllReduce, "", true), 3, 1000);
        let (from, to) = buffers(&mut rank, case);
        rank.upload(from.address(), &[1_f32; 1000]);
        rank.call(&call(case, (&from, &to))).unwrap();
        rank.synchronize().unwrap();
        assert!(rank.download::<f32>(to.address(), 1000).iter().all(|x| *x == 3.0));
    });
    assert!(since.elapsed() < TIMEOUT / 2, "{:?}", since.elapsed());
}

/// Does something several times: memory that one of them does not let go of is an open file of the virtual driver's.
fn leaves_no_files(work: impl Fn()) {
    const TIMES: usize = 4;
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // What is opened once.
    work();
    let before = files();
    (0..TIMES).for_each(|_| work());
    // Fewer than one each: a connection of a thread that has just ended may be there at one count and not at the other.
    assert!(files() < before + TIMES, "{before} files before, {} after", files());
}

/// As [`devices`], of virtual GPUs.
fn virtual_devices(world: usize) -> bool {
    let virtual_ones = std::env::var_os("VGPU_DEVICES").is_some();
    if !virtual_ones {
        eprintln!("\n*** NOT RUN: virtual GPUs are needed ***\n");
    }
    virtual_ones && devices(world)
}

#[test]
fn without_multicast_on_one_rank_all_do_without_and_nothing_is_left() {
    if is_run_again() {
        leaves_no_files(|| has_no_multicast(gpu::rank));
    } else if virtual_devices(3) {
        for setting in [
            ("VGPU_ARCH", "80"),
            ("VGPU_REFUSE", "cuMulticastGetGranularity@1"),
            ("VGPU_REFUSE", "cuMulticastCreate@0"),
            ("VGPU_REFUSE", "cuMulticastAddDevice@1"),
            ("VGPU_REFUSE", "cuMulticastBindMem@2"),
        ] {
            again(
                "without_multicast_on_one_rank_all_do_without_and_nothing_is_left",
                Some(setting),
            );
        }
    }
}

#[test]
fn multicast_memory_is_let_go() {
    if is_run_again() {
        leaves_no_files(|| {
            gpu::ranks_with(common::settings().algorithm("nvls"), 3, |mut rank| {
                drop(buffers(&mut rank, case(PLANS[1], 3, 1000)));
            });
        });
    } else if virtual_devices(3) {
        again("multicast_memory_is_let_go", None);
    }
}

/// Bytes that a rank of a world of four loads from the switch and stores to it, for blocks of `bytes`.
fn through_the_switch((collective, name, _): Plan, bytes: u64) -> (u64, u64) {
    match (collective, name) {
        (_, "one_shot_multicast" | "packet_multicast") => (0, 2 * bytes),
        (AllReduce, _) => (bytes / 4, bytes / 4),
        (AllGather, _) => (0, bytes),
        _ => (bytes, 0),
    }
}

/// Is removed also when the test fails.
struct TemporaryFile(std::path::PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What makes these plans fast: a rank moves each byte once, wherever its peers are.
#[test]
fn bytes_go_through_the_switch_once() {
    const COUNT: usize = 32 << 10;
    if is_run_again() {
        for plan in PLANS {
            check_plan(&[Case { dtype: DataType::F32, ..case(plan, 4, COUNT) }]);
        }
        return;
    }
    if !virtual_devices(4) {
        return;
    }
    let file = std::env::temp_dir().join(format!("warpmesh-counters-{}", std::process::id()));
    let file = TemporaryFile(file);
    again("bytes_go_through_the_switch_once", Some(("VGPU_COUNTERS", file.0.to_str().unwrap())));
    let text = std::fs::read_to_string(&file.0).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for plan in PLANS {
        let kernel = format!("{}_{}_4_", plan.0, plan.1);
        let of_plan =
            |line: &&serde_json::Value| line["kernel"].as_str().unwrap().starts_with(&kernel);
        let launches: Vec<_> = lines.iter().filter(of_plan).collect();
        // Three calls of each rank.
        assert_eq!(launches.len(), 12, "{kernel}");
        for line in launches {
            let counted = |which: &str, whose: &str| line[which][whose].as_u64().unwrap();
            let switched = (counted("loaded", "multicast"), counted("stored", "multicast"));
            assert_eq!(switched, through_the_switch(plan, (COUNT * 4) as u64), "{kernel}");
            // Signals, and where buffers are.
            let beside = counted("loaded", "peer") + counted("stored", "peer");
            assert!(beside < COUNT as u64 / 4, "{kernel}: {beside} bytes over other ways");
        }
    }
}

#[test]
fn processes_have_multicast() {
    const NAME: &str = "processes_have_multicast";
    if me().is_some() {
        let mut rank = gpu::rank(connect_with(common::settings().algorithm("nvls")));
        let case = case(PLANS[1], 3, 5000);
        let (from, to) = buffers(&mut rank, case);
        let call = call(case, (&from, &to));
        let plan = rank.comm.plan_of(&call).unwrap();
        for round in 0..3 {
            rank.upload(from.address(), &[1.0 + round as f32; 5000]);
            rank.call(&call).unwrap();
            rank.synchronize().unwrap();
            let seen = rank.download::<f32>(to.address(), 5000);
            assert!(seen.iter().all(|x| *x == 3.0 * (1.0 + round as f32)), "round {round}");
        }
        println!("REPORT {plan}");
    } else if devices(3) {
        let mut ranks = Ranks::start(NAME, 3, 0);
        for rank in 0..3 {
            assert_eq!(ranks.report(rank, Duration::from_secs(60)), "nvls");
        }
    }
}

use super::*;
use crate::algorithms;

fn kernel_for(name: &str, collective: &str, rank: usize, op: OpKind) -> Kernel {
    let find = |a: &&algorithms::Algorithm| a.name == name && a.collective.name() == collective;
    let algorithm = algorithms::all().find(find).unwrap();
    let (shape, program) = (algorithm.shape(4, 0), algorithm.program(rank, 4, 0));
    let announces = Shape::reaches_user_memory(&program, rank);
    let who = (rank, &Layout::new(&[0; 4]));
    emit(&shape, &program, &algorithm.claims, announces, who, DataType::F16, op).unwrap()
}

fn kernel(name: &str, collective: &str, rank: usize) -> Kernel {
    kernel_for(name, collective, rank, OpKind::Sum)
}

fn syncs(kernel: &Kernel) -> usize {
    kernel.source.lines().filter(|line| line.contains("w.sync")).count()
}

#[test]
fn ranks_of_a_plan_share_a_kernel() {
    for algorithm in algorithms::all().filter(|a| !a.collective.is_rooted()) {
        let of = |rank| {
            let (shape, program) = (algorithm.shape(4, 0), algorithm.program(rank, 4, 0));
            let who = (rank, &Layout::new(&[0; 4]));
            emit(&shape, &program, &algorithm.claims, true, who, DataType::F32, OpKind::Sum)
                .map(|k| k.source)
        };
        for rank in 1..4 {
            assert_eq!(of(0), of(rank), "{} {}", algorithm.collective, algorithm.name);
        }
    }
}

#[test]
fn a_two_shot_sends_all_parts_at_once_then_reduces_then_collects() {
    let kernel = kernel("two_shot_packet", "all_reduce", 1);
    let body: Vec<_> = kernel.source.lines().filter(|line| line.contains("w.move")).collect();
    assert_eq!(body.len(), 3, "{}", kernel.source);
    assert!(body[0].contains("Move<Half, Copy, Kinds<USER>, Kinds<PACKETS>>, 3>"));
    assert!(body[1].contains("Repeated<4, OWN>, Kinds<PACKETS, PACKETS, PACKETS, USER>>, 1>"));
    assert!(body[2].contains("Move<Half, Copy, Kinds<PACKETS>, Kinds<USER>>, 3>"));
    assert_eq!(kernel.tables.parts, [2, 3, 0, 1, 2, 3, 0]);
}

/// In place the sum goes where the contribution is sent from, by other threads.
#[test]
fn a_block_waits_before_it_writes_what_other_threads_may_still_read() {
    let source = kernel("one_shot_packet", "all_reduce", 0).source;
    let of_body = |line: &&str| line.contains("w.move") || line.contains("w.sync");
    let lines: Vec<_> = source.lines().filter(of_body).map(|line| &line.trim()[..6]).collect();
    assert_eq!(lines, ["w.move", "w.sync", "w.move"], "{source}");
}

#[test]
fn in_place_nothing_is_overwritten_that_another_thread_still_sends() {
    let syncs = |name, collective| syncs(&kernel(name, collective, 1));
    // Sent, then overwritten by the result.
    assert_eq!(syncs("one_shot_packet", "all_reduce"), 1);
    assert_eq!(syncs("one_shot_multicast", "all_reduce"), 1);
    assert_eq!(syncs("packet", "all_to_all"), 1);
    // Other parts, or a wait between.
    assert_eq!(syncs("direct", "all_reduce"), 0);
    assert_eq!(syncs("staged", "all_reduce"), 0);
    assert_eq!(syncs("packet", "reduce_scatter"), 0);
}

#[test]
fn what_one_thread_has_learned_others_use_after_a_barrier() {
    // Moved before anything is signalled.
    let kernel = kernel_for("staged", "all_reduce", 1, OpKind::PreMulSum);
    let lines: Vec<_> = kernel.source.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.starts_with("w.announce")).unwrap();
    assert_eq!(lines[at + 1..at + 3], ["w.learn(p, learned);", "w.sync();"]);
    assert!(lines[at + 3].starts_with("w.move"));
    assert!(kernel.source.contains("w.meet<3, 1, false>"), "{}", kernel.source);
    // A meeting's barrier is enough.
    let kernel = kernel_for("direct", "all_reduce", 1, OpKind::PreMulSum);
    assert!(syncs(&kernel) == 0 && !kernel.source.contains("w.learn"), "{}", kernel.source);
}

#[test]
fn what_goes_through_the_switch_has_the_group_s_address_and_everyone_s() {
    let kernel = kernel("nvls", "all_reduce", 1);
    let text = "w.move<SwitchMove<Half, Sum, Group<USER, 4>, Group<USER, 4>, SHARED>, 1>(learned.at + 0, learned.at + 5,";
    assert!(kernel.source.contains(text), "{}", kernel.source);
    assert!(kernel.source.contains("multicast.cuh"));
    let whose: Vec<_> = kernel.tables.places.iter().map(|operand| operand.place.whose).collect();
    let ranks = (0..4).map(Whose::Rank);
    let one: Vec<_> = std::iter::once(Whose::Group).chain(ranks).collect();
    assert_eq!(whose, [one.clone(), one].concat());
    // Peers say where theirs are, the host knows where the group's is.
    let announced = |operand: &Operand| operand.announced == (operand.place.whose != Whose::Group);
    assert!(kernel.tables.places.iter().all(announced));
}

#[test]
fn what_the_switch_does_not_have_has_no_kernel() {
    let algorithm = algorithms::MULTICAST.iter().find(|a| a.name == "nvls").unwrap();
    let (shape, program) = (algorithm.shape(4, 0), algorithm.program(0, 4, 0));
    let who = (0, &Layout::new(&[0; 4]));
    let emitted = |dtype, op| emit(&shape, &program, &algorithm.claims, true, who, dtype, op);
    for (dtype, op) in [
        (DataType::F32, OpKind::Prod),
        (DataType::F32, OpKind::PreMulSum),
        (DataType::F16, OpKind::Avg),
        (DataType::F16, OpKind::Max),
        (DataType::I8, OpKind::Sum),
        (DataType::F8E4M3, OpKind::Sum),
    ] {
        let error = emitted(dtype, op).unwrap_err().to_string();
        assert!(error.contains("the switch does not have"), "{dtype} {op:?}: {error}");
    }
    assert!(emitted(DataType::F32, OpKind::Avg).is_ok());
}

#[test]
fn a_barrier_is_one_signal_and_one_wait() {
    let kernel = kernel("direct", "all_reduce", 2);
    assert!(kernel.source.contains("w.signal<3>(p.word + 3, 0);"), "{}", kernel.source);
    assert!(
        kernel.source.contains("w.meet<3, 1, true>(p, learned, 6, 0, 1);"),
        "{}",
        kernel.source
    );
    assert!(kernel.source.contains("w.wait<3>(p.word + 12, p.peer + 12, 0, 4);"));
    assert!(kernel.source.contains("Sum, Repeated<4, USER>, Repeated<4, USER>, SHARED>"));
}

/// The kernel of the first of four ranks on two hosts.
fn between_hosts(name: &str, dtype: DataType) -> Kernel {
    let find = |a: &&&algorithms::NodeAlgorithm| {
        (a.collective, a.name) == (crate::plan::Collective::AllReduce, name)
    };
    let algorithm = algorithms::NODES.iter().find(find).unwrap();
    let layout = Layout::new(&[0, 0, 1, 1]);
    let (shape, program) = (algorithm.shape(&layout, 0), algorithm.program(0, &layout, 0));
    emit(&shape, &program, &algorithm.claims, false, (0, &layout), dtype, OpKind::Sum).unwrap()
}

#[test]
fn what_goes_to_other_hosts_goes_by_ports() {
    let Kernel { source, tables, .. } = between_hosts("rails", DataType::F16);
    assert!(source.contains("FarWorker<true, 512> w(p.call);"), "{source}");
    // Ranks of this host are signalled, those of the other put to; unfinished sums have four bytes.
    for text in [
        "w.guard<1>",
        "w.guard_far<1>",
        "w.greet<1>",
        "w.put<1, 4>",
        "w.wait_far<1, true>",
        "PARTIAL",
    ] {
        assert!(source.contains(text), "{text}: {source}");
    }
    assert_eq!(source.matches("w.flush(").count(), 1, "{source}");
    let far = |word: &&Word| matches!(word.what, Words::Port | Words::Counters | Words::Greeting);
    assert!(tables.words.iter().filter(far).all(|word| word.peer == 2), "{:?}", tables.words);
    let near = |word: &&Word| word.what == Words::Signalled;
    assert!(tables.words.iter().filter(near).all(|word| word.peer == 1), "{:?}", tables.words);
}

#[test]
fn sums_that_are_elements_travel_as_such() {
    let source = between_hosts("rails", DataType::F32).source;
    assert!(source.contains("w.put<1, 4>") && !source.contains("PARTIAL"), "{source}");
}

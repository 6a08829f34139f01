//! Plans in the format, written for this: every operation at work, every refusal by name.

mod fuzz;
mod refused;

use super::*;
use crate::plan::verify::{Claims, verify_sequence};
use crate::plan::{Buffer, Instruction, Whose};

macro_rules! fixtures {
    ($($name:literal),* $(,)?) => {
        /// All fixtures, by name.
        const FIXTURES: &[(&str, &str)] = &[$((
            $name,
            include_str!(concat!("../../../tests/plans/", $name, ".json")),
        )),*];
    };
}

fixtures!(
    "allgather_get_4",
    "allgather_packets_3",
    "allgather_port_3",
    "allgather_port_flush_4",
    "allgather_put_4",
    "allgather_switch_4",
    "allgather_switch_packets_4",
    "allreduce_one_shot_2",
    "allreduce_one_shot_4",
    "allreduce_pipeline_2",
    "allreduce_pipeline_credit_2",
    "allreduce_scratch_3",
    "allreduce_semaphores_3",
    "allreduce_simple_2",
    "allreduce_simple_4",
    "allreduce_steps_3",
    "allreduce_switch_4",
    "allreduce_two_nodes_4",
    "allreduce_two_nodes_8",
    "allreduce_two_shot_2",
    "allreduce_two_shot_4",
    "alltoall_put_3",
    "reducescatter_two_nodes_4",
);

fn text(name: &str) -> &'static str {
    let found = FIXTURES.iter().find(|(fixture, _)| *fixture == name);
    found.unwrap_or_else(|| panic!("no fixture {name}")).1
}

fn plan(name: &str) -> Plan {
    Plan::from_mscclpp(text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The fixture with its JSON changed.
fn changed(name: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut json = serde_json::from_str(text(name)).unwrap();
    change(&mut json);
    json.to_string()
}

/// A thread block's operations.
fn ops(
    json: &mut serde_json::Value,
    rank: usize,
    threadblock: usize,
) -> &mut Vec<serde_json::Value> {
    let threadblock = &mut json["gpus"][rank]["threadblocks"][threadblock];
    threadblock["ops"].as_array_mut().unwrap()
}

fn instructions(plan: &Plan, rank: usize) -> impl Iterator<Item = &Instruction> {
    plan.programs[rank].workers.iter().flatten()
}

fn texts(plan: &Plan, rank: usize, worker: usize) -> Vec<String> {
    let list = plan.programs[rank].workers[worker].iter();
    list.map(|i| crate::plan::text::instruction_text(rank, i)).collect()
}

#[test]
fn every_fixture_is_proven_with_these_claims() {
    let all = Claims::ALL;
    // What others have put into a rank's scratch memory does not say who it is of.
    let put = Claims { contributors: false, ..all };
    let expected = [
        ("allgather_get_4", all),
        ("allgather_packets_3", all.without_synchronising()),
        ("allgather_port_3", all),
        ("allgather_port_flush_4", all),
        ("allgather_put_4", all.without_synchronising()),
        ("allgather_switch_4", all),
        ("allgather_switch_packets_4", all.without_synchronising()),
        ("allreduce_one_shot_2", all),
        ("allreduce_one_shot_4", all),
        ("allreduce_pipeline_2", all.without_canonical().without_synchronising()),
        ("allreduce_pipeline_credit_2", all.without_canonical().without_synchronising()),
        ("allreduce_scratch_3", put.without_canonical()),
        ("allreduce_semaphores_3", put),
        ("allreduce_simple_2", all),
        ("allreduce_simple_4", all),
        ("allreduce_steps_3", all.without_canonical()),
        ("allreduce_switch_4", all.without_canonical()),
        ("allreduce_two_nodes_4", all.without_canonical().without_synchronising()),
        ("allreduce_two_nodes_8", all.without_canonical().without_synchronising()),
        ("allreduce_two_shot_2", all.without_synchronising()),
        ("allreduce_two_shot_4", all.without_synchronising()),
        ("alltoall_put_3", all.without_in_place()),
        ("reducescatter_two_nodes_4", all.without_canonical()),
    ];
    assert_eq!(expected.len(), FIXTURES.len());
    for (name, claims) in expected {
        let plan = plan(name);
        let proof = verify(&plan).unwrap_or_else(|e| panic!("{name}: {e}\n{}", plan.to_text()));
        assert_eq!(proof.claims, claims, "{name}");
        assert_eq!(Plan::from_text(&plan.to_text()).unwrap(), plan, "{name}");
        assert_eq!(Plan::from_mscclpp(text(name)).unwrap(), plan, "{name}: read twice");
    }
}

#[test]
fn any_plan_can_follow_them_and_they_any() {
    for (name, text) in FIXTURES {
        let plan = Plan::from_mscclpp(text).unwrap();
        if plan.shape.world > 4 {
            continue;
        }
        for algorithm in crate::algorithms::all() {
            let other = algorithm.plan(plan.shape.world, 0);
            let sequence = [(&plan, 2), (&other, 1), (&plan, 1), (&other, 2), (&plan, 3)];
            verify_sequence(&sequence)
                .unwrap_or_else(|error| panic!("{name} with {:?}: {error}", other.shape));
        }
    }
}

#[test]
fn every_operation_that_the_format_names_runs_or_is_refused() {
    let refused = ["glre", "start"];
    let names = [
        "nop",
        "barrier",
        "put",
        "pws",
        "pwsf",
        "get",
        "copy",
        "signal",
        "rlxsignal",
        "wait",
        "rlxwait",
        "flush",
        "re",
        "res",
        "rre",
        "rres",
        "ppkt",
        "rppkt",
        "cpkt",
        "upkt",
        "repkt",
        "respkt",
        "recpkt",
        "recspkt",
        "glres",
        "gstore",
        "gstorepkt",
        "pipeline",
        "sem_acquire",
        "sem_release",
        "glre",
        "start",
    ];
    for name in names {
        let quoted = format!("\"name\": \"{name}\"");
        let runs = FIXTURES.iter().any(|(_, text)| text.contains(&quoted));
        assert_ne!(runs, refused.contains(&name), "{name}");
    }
}

#[test]
fn a_one_shot_plan_sums_in_the_order_of_the_ranks() {
    let plan = plan("allreduce_one_shot_4");
    for rank in 0..4 {
        let list = texts(&plan, rank, 0);
        let sums = list.iter().filter(|text| text.starts_with("reduce"));
        let sources: Vec<_> = sums.map(|sum| sum.split_once(" = ").unwrap().1).collect();
        let source = |from: usize| match from == rank {
            true => "in[0]".to_owned(),
            false => format!("packets[{}]<{from}", slot_of(&plan, rank, from)),
        };
        let expected: Vec<_> = (0..4).map(source).collect();
        assert_eq!(sources, [expected.join(", ")]);
    }
}

/// The packet slot that a rank reads what another wrote from.
fn slot_of(plan: &Plan, rank: usize, writer: usize) -> usize {
    let moves = instructions(plan, rank).filter_map(|instruction| match instruction {
        Instruction::Move { from, .. } => Some(from),
        _ => None,
    });
    let mut places = moves.flatten().filter(|place| place.writer == Some(writer));
    places.next().unwrap().index
}

#[test]
fn packets_that_nobody_reads_are_not_written() {
    // recspkt also keeps its sum as packets, which no operation of these plans reads.
    let plan = plan("allreduce_two_shot_2");
    assert_eq!(texts(&plan, 0, 1), ["reduce 0: out[0], r1.packets[1] = in[0], packets[0]<1"]);
}

#[test]
fn unfinished_sums_stay_out_of_users_buffers() {
    let plan = plan("allreduce_steps_3");
    let list = texts(&plan, 0, 0);
    let sums: Vec<_> = list.iter().filter(|text| text.starts_with("reduce")).collect();
    assert_eq!(
        sums,
        ["reduce 0: scratch[0]* = out[0], r1.in[0]", "reduce 0: out[0] = scratch[0]*, r2.in[0]"]
    );
}

#[test]
fn a_barrier_gathers_and_releases() {
    let plan = plan("allreduce_simple_2");
    let first = texts(&plan, 1, 0);
    // The channel's signal and wait; the barrier's wait joins the latter.
    assert_eq!(&first[..3], ["signal 0: 0", "wait 0: 0 1", "signal 1: 1"]);
    let other = texts(&plan, 1, 1);
    assert_eq!(&other[..2], ["signal 0: 1", "wait 1: 1"]);
}

#[test]
fn the_signal_after_a_put_is_the_puts() {
    let plan = plan("allgather_port_3");
    assert_eq!(
        texts(&plan, 0, 0)[1..],
        [
            "signal 0: 1 2",
            "wait 0: 1 2",
            "put 0 0: r1.out[0] = in[0] then 55",
            "put 1 0: r2.out[0] = in[0] then 55",
            "flush 0",
            "flush 1",
            "wait 55: 1 2",
        ]
    );
}

#[test]
fn a_plan_that_does_not_flush_is_flushed_at_its_end() {
    let json = changed("allgather_port_flush_4", |json| {
        for rank in 0..4 {
            ops(json, rank, 0).retain(|op| op["name"] != "flush");
        }
    });
    let plan = Plan::from_mscclpp(&json).unwrap();
    let list = texts(&plan, 0, 0);
    assert_eq!(list[list.len() - 3..], ["flush 0", "flush 1", "flush 2"]);
    assert!(verify(&plan).is_ok());
}

#[test]
fn packets_over_a_port_are_waited_for_by_who_reads_them() {
    let plan = plan("allreduce_two_nodes_4");
    // Two thread blocks read the halves of what one sends: each waits for its own.
    assert!(texts(&plan, 0, 1).contains(&"wait 55: 2".to_owned()));
    assert!(texts(&plan, 0, 2).contains(&"wait 54: 2".to_owned()));
    let puts = instructions(&plan, 2).filter_map(|instruction| match instruction {
        Instruction::Put { then_signal, .. } => *then_signal,
        _ => None,
    });
    assert_eq!(puts.collect::<Vec<_>>(), [55, 54]);
}

#[test]
fn packets_that_arrive_in_another_order_than_they_are_read_in_are_waited_for() {
    // One thread block reads everything, the later packets first.
    let json = changed("allreduce_two_nodes_4", |json| {
        for rank in 0..4 {
            let later = std::mem::take(ops(json, rank, 2));
            let first = std::mem::take(ops(json, rank, 1));
            let at = first.iter().position(|op| op["name"] == "respkt").unwrap();
            let (before, after) = first.split_at(at);
            let (before2, after2) = later.split_at(at);
            *ops(json, rank, 1) = [before, before2, after2, after].concat();
            let refs = json["gpus"][rank]["threadblocks"][2]["remote_buffer_refs"].clone();
            json["gpus"][rank]["threadblocks"][1]["remote_buffer_refs"] = refs;
        }
    });
    let plan = Plan::from_mscclpp(&json).unwrap();
    let waits = texts(&plan, 0, 1).into_iter().filter(|text| text.starts_with("wait"));
    assert_eq!(waits.collect::<Vec<_>>(), ["wait 55: 2", "wait 55: 2"]);
    assert!(verify(&plan).is_ok());
}

#[test]
fn a_switch_group_of_all_ranks_is_the_group() {
    for name in ["allreduce_switch_4", "allgather_switch_4", "allgather_switch_packets_4"] {
        let plan = plan(name);
        let group = instructions(&plan, 0).any(|instruction| match instruction {
            Instruction::Move { to, .. } => to.iter().any(|place| place.whose == Whose::Group),
            _ => false,
        });
        assert!(group, "{name}");
    }
}

#[test]
fn packet_and_plain_slots_are_apart() {
    let plan = plan("allreduce_two_nodes_4");
    assert!(plan.shape.scratch > 0 && plan.shape.packets > 0);
    let plan = self::plan("allreduce_one_shot_4");
    assert_eq!((plan.shape.scratch, plan.shape.packets), (0, 3));
    let scratch = instructions(&plan, 0).any(|instruction| match instruction {
        Instruction::Move { to, .. } => to.iter().any(|place| place.buffer == Buffer::Scratch),
        _ => false,
    });
    assert!(!scratch);
}

#[test]
fn in_place_what_stays_where_it_is_is_copied_out_of_place() {
    let plan = plan("allgather_put_4");
    assert_eq!(texts(&plan, 2, 0)[..2], ["copy 0: out[2] = in[0]", "copy 1: out[2] = in[0]"]);
}

#[test]
fn a_range_of_chunks_is_a_move_for_each() {
    let plan = plan("allgather_put_4");
    let list = texts(&plan, 0, 1);
    assert_eq!(list[2..4], ["copy 0: r2.out[0] = in[0]", "copy 1: r2.out[0] = in[0]"]);
}

/// A fixture of four ranks without the signals and waits before its first transfer.
fn without_entry(name: &str) -> String {
    changed(name, |json| {
        for rank in 0..4 {
            let blocks = json["gpus"][rank]["threadblocks"].as_array().map_or(0, Vec::len);
            for block in 0..blocks {
                let list = ops(json, rank, block);
                let is_sync = |op: &serde_json::Value| {
                    let name = op["name"].as_str().unwrap();
                    name.ends_with("signal") || name.ends_with("wait") || name == "nop"
                };
                list.drain(..list.iter().position(|op| !is_sync(op)).unwrap());
            }
        }
    })
}

fn proven(json: &str) -> Plan {
    let plan = Plan::from_mscclpp(json).unwrap();
    verify(&plan).unwrap_or_else(|defect| panic!("{defect}\n{}", plan.to_text()));
    plan
}

#[test]
fn a_plan_that_needs_no_barrier_gets_none() {
    let plan = proven(text("allgather_put_4"));
    let sync = ["signal 0: 1", "wait 0: 1"];
    let put = ["copy 0: r1.out[0] = in[0]", "copy 1: r1.out[0] = in[0]"];
    assert_eq!(texts(&plan, 0, 0)[2..], [sync, put, sync].concat());
}

#[test]
fn who_is_read_from_waits_for_his_readers() {
    let plan = proven(text("allgather_get_4"));
    let list = texts(&plan, 0, 0);
    assert_eq!(list[..2], ["signal 0: 1 2 3", "wait 0: 1 2 3"], "the plan's own");
    assert_eq!(list[list.len() - 2..], ["signal 1: 1 2 3", "wait 1: 1 2 3"], "added");
    assert_eq!(list.len(), 8);
}

#[test]
fn who_is_written_to_is_waited_for() {
    let plan = proven(&without_entry("allgather_put_4"));
    let list = texts(&plan, 0, 0);
    assert_eq!(list[..4], ["signal 1: 1 2 3", "wait 1: 1 2 3", "signal 2: 0", "signal 3: 0"]);
    assert_eq!(list[list.len() - 2..], ["signal 0: 1", "wait 0: 1"], "the plan's own");
    assert_eq!(texts(&plan, 0, 1)[0], "wait 2: 0");
    assert_eq!(texts(&plan, 0, 2)[0], "wait 3: 0");
}

#[test]
fn a_plan_without_any_signal_gets_a_barrier_at_both_ends() {
    let plan = proven(&without_entry("allgather_get_4"));
    let list = texts(&plan, 0, 0);
    let barrier = ["signal 0: 1 2 3", "wait 0: 1 2 3"];
    assert_eq!(
        (&list[..2], &list[list.len() - 2..]),
        (&barrier.map(String::from)[..], &barrier.map(String::from)[..])
    );
    assert_eq!(list.len(), 8);
}

#[test]
fn a_plan_that_is_wrong_is_read_and_not_proven() {
    let json = changed("allreduce_one_shot_2", |json| {
        ops(json, 0, 0)[1]["src_buff"].as_array_mut().unwrap().pop();
    });
    let plan = Plan::from_mscclpp(&json).unwrap();
    assert!(matches!(verify(&plan), Err(Defect::WrongResult { rank: 0, .. })));
}

#[test]
fn several_thread_blocks_take_turns_at_a_semaphore() {
    let plan = plan("allreduce_semaphores_3");
    // Thread block 0 waits for one token of each of the others, and gives one to each.
    assert_eq!(texts(&plan, 0, 0)[..2], ["wait 0: 0", "wait 1: 0"]);
    assert_eq!(texts(&plan, 0, 1)[2], "signal 0: 0");
    assert_eq!(texts(&plan, 0, 2)[2], "signal 1: 0");
}

#[test]
fn an_initial_token_is_given_back_at_the_end() {
    let plan = plan("allreduce_pipeline_credit_2");
    let list = texts(&plan, 0, 0);
    assert!(!list[0].starts_with("wait"));
    assert_eq!(list.last().unwrap(), "wait 2: 0");
}

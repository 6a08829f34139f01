//! What is refused, by name and place.

use serde_json::{Value, json};

use super::*;

fn error(json: &str) -> MscclppError {
    match Plan::from_mscclpp(json) {
        Err(error) => error,
        Ok(plan) => panic!("was read:\n{}", plan.to_text()),
    }
}

/// Asserts that an operation is refused, by its name and place, for this reason.
#[track_caller]
fn assert_refused(
    json: &str,
    (rank, threadblock, op): (usize, usize, usize),
    name: &str,
    why: &str,
) {
    let error = error(json);
    let MscclppError::Operation { at, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((at.rank, at.threadblock, at.op), (rank, threadblock, op), "{error}");
    assert_eq!(at.name, name, "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("rank {rank}, thread block {threadblock}, op {op}")), "{text}");
    assert!(text.contains(&format!("({name})")) && text.contains(why), "{text}");
}

/// A fixture with an operation of one rank's thread block 0 changed.
fn with_op(fixture: &str, index: usize, change: impl FnOnce(&mut Value)) -> String {
    changed(fixture, |json| change(&mut ops(json, 1, 0)[index]))
}

#[test]
fn names_that_do_not_run() {
    for (name, why) in [
        ("glre", "no executable form"),
        ("start", "not executable"),
        ("tpkt", "no operation of the format"),
        ("", "no operation of the format"),
    ] {
        let json = with_op("allgather_get_4", 2, |op| op["name"] = name.into());
        assert_refused(&json, (1, 0, 2), name, why);
    }
}

#[test]
fn pipelines_do_not_nest() {
    let json = with_op("allreduce_pipeline_2", 0, |op| op["ops"][1] = json!({"name": "pipeline"}));
    assert_refused(&json, (1, 0, 0), "pipeline", "op 0.1");
}

#[test]
fn a_switch_group_must_be_all_ranks() {
    for fixture in ["allreduce_switch_4", "allgather_switch_4"] {
        let (index, name) = if fixture.contains("reduce") { (2, "glres") } else { (2, "gstore") };
        for ranks in [json!([0, 1, 2]), json!([0, 1, 2, 2]), json!([0, 1, 2, 4]), json!([])] {
            let json = changed(fixture, |json| {
                let channels = json["gpus"][1]["channels"].as_array_mut().unwrap();
                let switch = channels.iter_mut().find(|c| c["channel_type"] == "switch");
                switch.unwrap()["rank_groups"][0]["ranks"] = ranks;
            });
            assert_refused(&json, (1, 0, index), name, "not a buffer of all ranks");
        }
    }
}

#[test]
fn a_port_only_puts() {
    for (name, index) in [("get", 3), ("rre", 3)] {
        let json = with_op("allgather_get_4", index, |op| {
            op["name"] = name.into();
            op["channel_type"] = "port".into();
            if name == "rre" {
                let own = json!({"type": "i", "index": 0, "size": 1});
                op["src_buff"].as_array_mut().unwrap().insert(0, own);
            }
        });
        assert_refused(&json, (1, 0, index), name, "a port channel only puts");
    }
    for name in ["pws", "pwsf"] {
        let json = with_op("allgather_put_4", 3, |op| op["name"] = name.into());
        assert_refused(&json, (1, 0, 3), name, "port channel");
    }
    let json = with_op("allgather_get_4", 0, |op| op["name"] = "flush".into());
    assert_refused(&json, (1, 0, 0), "flush", "only port channels");
}

/// A fixture, an operation of it, a change to that, its name then, and a word of the reason.
type Case = (&'static str, usize, fn(&mut Value), &'static str, &'static str);

#[test]
fn operands_must_be_where_the_operation_has_them() {
    let cases: [Case; 12] = [
        (
            "allgather_get_4",
            3,
            |op| op["src_buff"][0]["buffer_id"] = Value::Null,
            "get",
            "buffer_id",
        ),
        (
            "allgather_get_4",
            3,
            |op| op["src_buff"][0]["buffer_id"] = 9.into(),
            "get",
            "no remote buffer",
        ),
        ("allgather_get_4", 3, |op| op["dst_buff"][0]["index"] = 4.into(), "get", "no chunk 4"),
        ("allgather_get_4", 3, |op| op["dst_buff"][0]["size"] = 2.into(), "get", "chunks"),
        ("allgather_get_4", 3, |op| op["dst_buff"] = json!([]), "get", "1 sources for 0"),
        ("allgather_get_4", 2, |op| op["src_buff"][0]["type"] = Value::Null, "copy", "'type'"),
        ("allgather_get_4", 0, |op| op["channel_ids"][1] = 8.into(), "signal", "no channel"),
        ("allgather_get_4", 0, |op| op["channel_type"] = Value::Null, "signal", "neither"),
        (
            "allreduce_switch_4",
            2,
            |op| op["src_buff"][0] = json!({"type": "i", "index": 0, "size": 1}),
            "glres",
            "switch_channel_id",
        ),
        ("allreduce_one_shot_4", 0, |op| op["name"] = "rppkt".into(), "rppkt", "one source"),
        (
            "allreduce_one_shot_4",
            1,
            |op| op["src_buff"][1]["type"] = "i".into(),
            "repkt",
            "scratch memory only",
        ),
        ("allreduce_one_shot_4", 1, |op| op["dst_buff"] = json!([]), "repkt", "missing"),
    ];
    for (fixture, index, change, name, why) in cases {
        assert_refused(&with_op(fixture, index, change), (1, 0, index), name, why);
    }
}

#[test]
fn a_chunk_keeps_its_place_in_its_block() {
    let json = changed("allreduce_scratch_3", |json| {
        let copy = json!({"name": "copy", "src_buff": [{"type": "i", "index": 0, "size": 1}],
                          "dst_buff": [{"type": "o", "index": 1, "size": 1}]});
        ops(json, 1, 0).insert(0, copy);
    });
    assert_refused(&json, (1, 0, 0), "copy", "another place within its block");
}

#[test]
fn a_port_leads_where_its_put_goes() {
    let json = with_op("allgather_port_3", 3, |op| op["channel_ids"] = json!([1, 0]));
    assert_refused(&json, (1, 0, 3), "pwsf", "leads to rank");
}

#[test]
fn two_reductions_are_not_one_plan() {
    let json = with_op("allreduce_one_shot_2", 1, |op| op["reduce_op"] = "min".into());
    assert_refused(&json, (1, 0, 1), "repkt", "the plan before by sum");
    let json = with_op("allreduce_one_shot_2", 1, |op| op["reduce_op"] = "avg".into());
    assert_refused(&json, (1, 0, 1), "repkt", "'avg'");
}

#[test]
fn a_channel_is_signalled_and_waited_for_by_one_thread_block() {
    for (name, op) in [("two thread blocks signal", "signal"), ("two thread blocks wait", "wait")] {
        let json = changed("allreduce_simple_2", |json| {
            let channels = json["gpus"][1]["threadblocks"][0]["channels"].clone();
            json["gpus"][1]["threadblocks"][1]["channels"] = channels;
            let extra = json!({"name": op, "channel_ids": [0], "channel_type": "memory"});
            ops(json, 1, 1).push(extra);
        });
        assert_refused(&json, (1, 1, 4), op, name);
    }
}

#[test]
fn a_barrier_is_of_the_thread_blocks_that_come() {
    let json = with_op("allreduce_simple_2", 2, |op| op["num_threadblocks"] = 3.into());
    assert_refused(&json, (1, 0, 2), "barrier", "is of 3 thread blocks, but 2 come");
    let json = changed("allreduce_simple_2", |json| {
        ops(json, 1, 1).pop();
    });
    assert_refused(&json, (1, 0, 2), "barrier", "unequally often");
    let json = with_op("allreduce_simple_2", 2, |op| op["barrier_id"] = Value::Null);
    assert_refused(&json, (1, 0, 2), "barrier", "barrier_id");
}

#[test]
fn a_semaphore_must_not_drift() {
    let json = changed("allreduce_semaphores_3", |json| {
        ops(json, 1, 0).remove(0);
    });
    let text = error(&json).to_string();
    assert!(text.contains("rank 1") && text.contains("sem_release"), "{text}");
    assert!(text.contains("released 2 times and acquired 1 times"), "{text}");
    let json = with_op("allreduce_semaphores_3", 0, |op| op["semaphore_ids"] = json!([7]));
    assert_refused(&json, (1, 0, 0), "sem_acquire", "no semaphore 7");
}

#[test]
fn who_waits_for_ever_is_named() {
    let json = changed("allgather_get_4", |json| {
        ops(json, 2, 0).remove(0);
    });
    assert_refused(&json, (0, 0, 1), "wait", "nobody can go on");
    let json = changed("allreduce_one_shot_2", |json| {
        ops(json, 0, 0).remove(0);
    });
    assert_refused(&json, (1, 0, 1), "repkt", "nobody can go on");
}

#[test]
fn packets_of_one_transfer_have_one_reader() {
    let json = changed("allreduce_two_nodes_4", |json| {
        // Thread block 2 reads thread block 1's half as well.
        let first = ops(json, 0, 1).iter().find(|op| op["name"] == "respkt").unwrap().clone();
        ops(json, 0, 2).push(first);
    });
    assert_refused(&json, (0, 2, 4), "respkt", "two thread blocks read packets");
}

#[test]
fn headers_that_cannot_be() {
    let header =
        |change: fn(&mut Value)| error(&changed("allreduce_one_shot_2", change)).to_string();
    assert!(header(|json| json["collective"] = "sendrecv".into()).contains("'sendrecv'"));
    assert!(header(|json| json["gpus"] = json!([])).contains("no ranks"));
    assert!(header(|json| json["gpus"][1]["id"] = 0.into()).contains("rank 1: "));
    assert!(header(|json| json["gpus"][1]["input_chunks"] = 2.into()).contains("rank 1: 2 input"));
    assert!(header(|json| json["gpus"][0]["input_chunks"] = 0.into()).contains("rank 0: 0 input"));
    assert!(
        header(|json| json["gpus"][1]["threadblocks"][0]["id"] = 1.into())
            .contains("rank 1: thread block 0")
    );
    assert!(
        header(|json| json["gpus"][0]["scratch_chunks"] = 1_000_000.into())
            .contains("scratch chunks")
    );
    assert!(header(|json| json["gpus"][0]["channels"] = 1.into()).contains("line"));
    assert!(error("[]").to_string().contains("line 1"));
}

#[test]
fn what_is_too_large_is_refused_before_it_is_made() {
    let large =
        |change: fn(&mut Value)| error(&with_op("allreduce_two_shot_2", 0, change)).to_string();
    assert!(large(|op| op["src_buff"][0]["size"] = u64::MAX.into()).contains("operands"));
    assert!(large(|op| op["src_buff"][0]["index"] = u64::MAX.into()).contains("ppkt"));
    let share = |op: &mut Value| op["tbg_info"] = json!({"tb_id": 0, "tbg_size": u64::MAX});
    assert!(large(share).contains("thread blocks of a group"));
    assert!(large(|op| op["tbg_info"] = json!({"tb_id": 3, "tbg_size": 3})).contains("tb_id"));
    assert!(large(|op| op["tbg_info"] = json!({"tb_id": 0, "tbg_size": 0})).contains("tb_id"));
    let primes = changed("allreduce_two_shot_2", |json| {
        for (rank, size) in [(0, 251), (1, 257), (0, 263)] {
            let mut op = ops(json, rank, 0)[0].clone();
            op["tbg_info"] = json!({"tb_id": 0, "tbg_size": size});
            ops(json, rank, 0).push(op);
        }
    });
    assert!(error(&primes).to_string().contains("shares of a chunk"));
    let many = changed("allreduce_simple_4", |json| {
        // 60 barriers of their own between two thread blocks.
        for id in 1..60 {
            for block in 0..2 {
                let op = json!({"name": "barrier", "barrier_id": id, "num_threadblocks": 2});
                ops(json, 1, block).push(op);
            }
        }
    });
    assert!(error(&many).to_string().contains("semaphores between two ranks"));
}

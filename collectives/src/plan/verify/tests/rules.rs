//! The verifier's rules one by one, each on a small plan that keeps it and one that does not.

use crate::plan::Plan;
use crate::plan::verify::{Claims, Defect, verify, verify_sequence};

/// A plan in the text form: what stands before the first rank, without the magic and the name,
/// and the ranks.
fn plan(header: &str, ranks: &str) -> Plan {
    let header = header.replace(", ", "\n");
    let text = format!("warpmesh plan 1\nname test\n{header}\n{}", ranks.replace(';', "\n"));
    Plan::from_text(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn claims(header: &str, ranks: &str) -> Claims {
    let plan = plan(header, ranks);
    let proof = verify(&plan).unwrap_or_else(|defect| panic!("{defect}\n{}", plan.to_text()));
    proof.claims
}

fn defect(header: &str, ranks: &str) -> Defect {
    let plan = plan(header, ranks);
    match verify(&plan) {
        Err(defect) => defect,
        Ok(proof) => panic!("proven: {:?}\n{}", proof.claims, plan.to_text()),
    }
}

#[track_caller]
fn assert_race(defect: &Defect, rank: usize, instruction: Option<usize>, place: &str) {
    let Defect::Race { at, place: found, .. } = defect else {
        panic!("not a race: {defect}");
    };
    assert_eq!((at.rank, at.instruction), (rank, instruction), "{defect}");
    assert!(found.contains(place), "{defect}");
}

#[track_caller]
fn assert_instruction(defect: &Defect, rank: usize, index: usize, what: &str) {
    let Defect::Instruction { at, problem } = defect else {
        panic!("not an instruction's defect: {defect}");
    };
    assert_eq!((at.rank, at.instruction), (rank, Some(index)), "{defect}");
    assert!(problem.contains(what), "{defect}");
}

const GATHER: &str = "collective all_gather, world 2";
const REDUCE: &str = "collective all_reduce, world 2";

/// Worker 1 puts what worker 0 has staged, and says when it has.
fn two_workers(handed: bool, taken: bool) -> String {
    let rank = |me: usize, peer: usize| {
        let when = |used: bool, text: &str| match used {
            true => format!("{text}: {me};"),
            false => String::new(),
        };
        format!(
            "rank {me}; worker 0; copy 0: scratch[0] = in[0]; {} copy 0: out[{me}] = in[0]; {} \
             worker 1; {} copy 0: r{peer}.packets[0] = scratch[0]; {} \
             copy 0: out[{peer}] = packets[0]<{peer};",
            when(handed, "signal 0"),
            when(taken, "wait 1"),
            when(handed, "wait 0"),
            when(taken, "signal 1"),
        )
    };
    rank(0, 1) + &rank(1, 0)
}

#[test]
fn workers_of_a_rank_are_ordered_by_semaphores_only() {
    let header = "collective all_gather, world 2, scratch 1, packets 1";
    assert!(claims(header, &two_workers(true, true)).same_bits);
    // In the order of the simulation it is right all the same.
    assert_race(&defect(header, &two_workers(false, true)), 0, Some(0), "r0.scratch[0]");
    // Nothing keeps worker 0 from being two rounds ahead, in the same half of scratch memory.
    assert_race(&defect(header, &two_workers(true, false)), 0, Some(1), "r0.scratch[0]");
}

#[test]
fn a_semaphore_has_one_signalling_and_one_waiting_worker() {
    let two_signal = "rank 0; copy 0: out[0] = in[0]; wait 0: 1; wait 0: 1; wait 1: 1; \
                      copy 0: out[1] = r1.in[0]; signal 2: 1; \
                      rank 1; worker 0; signal 0: 0; copy 0: out[1] = in[0]; \
                      worker 1; signal 0: 0; signal 1: 0; wait 2: 0; copy 0: out[0] = r0.in[0];";
    assert_instruction(&defect(GATHER, two_signal), 1, 0, "two signalling workers");
    let two_wait = "rank 0; signal 0: 1; signal 0: 1; \
                    rank 1; worker 0; wait 0: 0; worker 1; wait 0: 0;";
    let header = "collective barrier, world 2";
    assert_instruction(&defect(header, two_wait), 1, 0, "two waiting workers");
}

#[test]
fn plans_may_give_a_semaphore_to_other_workers() {
    let one = plan(
        "collective barrier, world 2",
        "rank 0; signal 0: 1; wait 0: 1; \
                    rank 1; signal 0: 0; wait 0: 0;",
    );
    let two = plan(
        "collective barrier, world 2",
        "rank 0; worker 0; worker 1; signal 0: 1; \
                    wait 0: 1; rank 1; worker 0; worker 1; signal 0: 0; wait 0: 0;",
    );
    verify_sequence(&[(&one, 2), (&two, 2), (&one, 1)]).unwrap();
}

#[test]
fn a_sequence_is_of_one_world() {
    let two = plan("collective barrier, world 2", "rank 0; rank 1;");
    let one = plan("collective barrier, world 1", "rank 0;");
    let mixed = verify_sequence(&[(&two, 1), (&one, 1)]);
    assert!(matches!(mixed, Err(Defect::Shape { what: "world", value: 1, .. })));
    verify_sequence(&[]).unwrap();
}

/// Both ranks put their input to the other's output, over a port.
fn puts(enter: bool, put: &str, after: &str) -> String {
    let rank = |me: usize, peer: usize| {
        let enter =
            if enter { format!("signal 7: {peer}; wait 7: {peer};") } else { String::new() };
        let put = put.replace("ME", &me.to_string()).replace("PEER", &peer.to_string());
        let after = after.replace("PEER", &peer.to_string());
        format!("rank {me}; {enter} copy 0: out[{me}] = in[0]; {put}; {after};")
    };
    rank(0, 1) + &rank(1, 0)
}

const PUT: &str = "put 0 0: rPEER.out[ME] = in[0]";
const PUT_THEN: &str = "put 0 0: rPEER.out[ME] = in[0] then 0";

#[test]
fn the_signal_of_a_put_says_that_it_has_arrived() {
    let good = puts(true, PUT_THEN, "flush 0; wait 0: PEER");
    assert_eq!(claims(GATHER, &good), Claims::ALL);
    // Two puts by one port arrive in order: one signal is for both.
    let twice = format!("{PUT}; {PUT_THEN}");
    assert_eq!(claims(GATHER, &puts(true, &twice, "flush 0; wait 0: PEER")), Claims::ALL);
}

#[test]
fn another_signal_does_not_say_that_a_put_has_arrived() {
    let plain = puts(true, PUT, "signal 0: PEER; wait 0: PEER; flush 0");
    assert_race(&defect(GATHER, &plain), 0, None, "r0.out[1]");
}

#[test]
fn a_flush_does_not_say_that_a_put_has_arrived() {
    let flushed = puts(true, PUT, "flush 0; signal 0: PEER; wait 0: PEER");
    assert_race(&defect(GATHER, &flushed), 0, None, "r0.out[1]");
}

#[test]
fn without_a_flush_the_source_of_a_put_is_not_free() {
    // The application writes its next input while the proxy may still read.
    let unflushed = puts(true, PUT_THEN, "wait 0: PEER");
    assert_race(&defect(GATHER, &unflushed), 0, None, "r0.in[0]");
    let header = "collective all_gather, world 2, scratch 1";
    let staged = "copy 0: scratch[0] = in[0]; put 0 0: rPEER.out[ME] = scratch[0] then 0";
    let reused = format!("{staged}; copy 0: scratch[0] = in[0]");
    let free = format!("{staged}; flush 0; copy 0: scratch[0] = in[0]");
    assert_race(
        &defect(header, &puts(true, &reused, "flush 0; wait 0: PEER")),
        1,
        Some(5),
        "r1.scratch[0]",
    );
    assert!(claims(header, &puts(true, &free, "wait 0: PEER")).same_bits);
}

#[test]
fn a_flush_is_of_one_port() {
    let other = puts(true, PUT_THEN, "flush 1; wait 0: PEER");
    assert_race(&defect(GATHER, &other), 0, None, "r0.in[0]");
}

#[test]
fn a_put_needs_its_destination_to_have_come() {
    let unannounced = puts(false, PUT_THEN, "flush 0; wait 0: PEER");
    assert!(matches!(defect(GATHER, &unannounced), Defect::Race { .. }));
}

#[test]
fn a_put_keeps_the_form_of_what_it_moves() {
    let header = "collective all_reduce, world 2, scratch 2";
    let ranks =
        "rank 0; reduce 0: scratch[0]* = in[0]; put 0 0: r1.scratch[1] = scratch[0]*; rank 1;";
    assert_instruction(&defect(header, ranks), 0, 1, "a put does not change");
}

#[test]
fn no_signal_overtakes_that_of_a_put_of_the_call_before() {
    let by_port = plan(GATHER, &puts(true, PUT_THEN, "flush 0; wait 0: PEER"));
    let by_hand = plan(
        "collective barrier, world 2",
        "rank 0; signal 0: 1; wait 0: 1; rank 1; signal 0: 0; wait 0: 0;",
    );
    verify_sequence(&[(&by_port, 3), (&by_port, 1)]).unwrap();
    let Err(overtaken) = verify_sequence(&[(&by_port, 1), (&by_hand, 1)]) else {
        panic!("rank 0 signals while its put's signal may be under way");
    };
    assert_instruction(&overtaken, 0, 0, "may still be under way");
    // An answer shows that the put's signal has come.
    let ranks = puts(true, PUT_THEN, "flush 0; wait 0: PEER; signal 7: PEER; wait 7: PEER");
    let answered = plan(GATHER, &ranks);
    verify_sequence(&[(&answered, 1), (&by_hand, 1)]).unwrap();
}

/// Part r is reduced by rank r in the switch.
fn switched(enter: &str, leave: &str) -> String {
    let rank = |me: usize, peer: usize| {
        let signals = |text: &str| text.replace("PEER", &peer.to_string());
        let (enter, leave) = (signals(enter), signals(leave));
        format!("rank {me}; {enter} reduce {me}: all.out[0] = all.in[0]; {leave}")
    };
    rank(0, 1) + &rank(1, 0)
}

#[test]
fn the_group_reaches_all_ranks() {
    let header = "collective all_reduce, world 2, parts 2";
    let (enter, leave) = ("signal 0: PEER; wait 0: PEER;", "signal 1: PEER; wait 1: PEER;");
    assert_eq!(claims(header, &switched(enter, leave)), Claims::ALL.without_canonical());
    assert_race(&defect(header, &switched("", leave)), 0, Some(0), "r1.in[0]");
    let open = defect(header, &switched(enter, ""));
    // Rank 1 has left, and rank 0 has not yet written its part.
    assert!(matches!(open, Defect::WrongResult { rank: 1, .. }), "{open}");
}

#[test]
fn two_loads_from_the_group_need_not_give_the_same_bits() {
    // Everyone reduces everything itself, in the switch, which adds in an order of its own.
    let rank =
        "signal 0: PEER; wait 0: PEER; reduce 0: out[0] = all.in[0]; signal 0: PEER; wait 0: PEER;";
    let ranks =
        format!("rank 0; {} rank 1; {}", rank.replace("PEER", "1"), rank.replace("PEER", "0"));
    let found = claims("collective all_reduce, world 2", &ranks);
    assert!(!found.same_bits && !found.canonical && found.finishes_once, "{found:?}");
}

#[test]
fn packets_for_the_group_need_not_be_read_by_all_of_it() {
    let header = "collective all_gather, world 2, packets 2";
    let ranks = "rank 0; copy 0: all.packets[0] = in[0]; copy 0: out[0] = in[0]; \
                 copy 0: out[1] = packets[1]<1; \
                 rank 1; copy 0: all.packets[1] = in[0]; copy 0: out[1] = in[0]; \
                 copy 0: out[0] = packets[0]<0;";
    assert!(claims(header, ranks).same_bits);
    // One that was sent to a rank is.
    let to_each = ranks.replace("all.packets[0]", "packets[0], r1.packets[0]");
    let unread = defect(header, &to_each);
    let Defect::UnreadPacket { at, place } = &unread else {
        panic!("{unread}");
    };
    assert_eq!((at.rank, at.instruction, place.as_str()), (0, Some(0), "packets[0]"));
}

#[test]
fn a_packet_is_by_the_writer_that_its_reader_names() {
    let header = "collective broadcast, world 3, packets 1";
    let ranks = |writer: usize| {
        format!(
            "rank 0; copy 0: r1.packets[0], r2.packets[0] = in[0]; copy 0: out[0] = in[0]; \
             rank 1; copy 0: out[0] = packets[0]<{writer}; \
             rank 2; copy 0: out[0] = packets[0]<0;"
        )
    };
    assert!(claims(header, &ranks(0)).same_bits);
    assert_instruction(&defect(header, &ranks(2)), 1, 0, "is written by rank 0");
}

#[test]
fn a_packet_slot_is_written_once_in_a_round() {
    // The second packet has the first one's flag. Everything is in order: only the flag is not.
    let header = "collective all_to_all, world 2, packets 1";
    let rank = |me: usize, peer: usize| {
        format!(
            "rank {me}; copy 0: out[{me}] = in[{me}]; copy 0: r{peer}.packets[0] = in[{peer}]; \
             copy 0: out[{peer}] = packets[0]<{peer}; signal 0: {peer}; wait 0: {peer}; \
             copy 0: r{peer}.packets[0] = in[{peer}]; copy 0: out[{peer}] = packets[0]<{peer};"
        )
    };
    let twice = defect(header, &(rank(0, 1) + &rank(1, 0)));
    let Defect::Instruction { at, problem } = &twice else {
        panic!("{twice}");
    };
    assert_eq!(at.instruction, Some(5));
    assert!(problem.contains("written twice"), "{twice}");
}

#[test]
fn in_place_a_part_is_not_read_after_it_was_written() {
    // Everyone reduces everything out of everyone's input, into its output: right out of place.
    let ranks = "rank 0; signal 0: 1; wait 0: 1; reduce 0: out[0] = in[0], r1.in[0]; signal 0: 1; wait 0: 1; \
                 rank 1; signal 0: 0; wait 0: 0; reduce 0: out[0] = r0.in[0], in[0]; signal 0: 0; wait 0: 0;";
    assert_eq!(claims(REDUCE, ranks), Claims::ALL.without_in_place());
}

#[test]
fn what_is_claimed_holds_in_place_too() {
    // Rank 1's own contribution is finished in its output first. In place, that is what rank 0
    // then reads as its input: rounded once more, in another form than out of place.
    let ranks = "rank 0; wait 0: 1; reduce 0: out[0], r1.out[0] = in[0], r1.in[0]; signal 0: 1; wait 0: 1; \
                 rank 1; reduce 0: out[0] = in[0]; signal 0: 0; wait 0: 0; signal 0: 0;";
    let found = claims(REDUCE, ranks);
    assert!(found.in_place);
    assert!(!found.finishes_once && !found.canonical, "{found:?}");
}

#[test]
fn in_place_a_copy_onto_itself_is_nothing() {
    let ranks = "rank 0; copy 0: out[0] = in[0]; copy 0: r1.packets[0] = in[0]; \
                 copy 0: out[1] = packets[0]<1; \
                 rank 1; copy 0: out[1] = in[0]; copy 0: r0.packets[0] = in[0]; \
                 copy 0: out[0] = packets[0]<0;";
    assert_eq!(claims("collective all_gather, world 2, packets 1", ranks), Claims::ALL);
}

#[test]
fn a_sum_takes_no_more_contributions_than_there_are() {
    let ranks = "rank 0; reduce 0: out[0] = in[0], in[0], in[0]; rank 1;";
    assert_instruction(&defect(REDUCE, ranks), 0, 0, "3 contributions");
}

#[test]
fn sums_of_sums_stay_small() {
    // Doubled 60 times, this would be 2^60 contributions.
    let double = "reduce 0: scratch[0] = scratch[0], scratch[0];".repeat(60);
    let ranks = format!(
        "rank 0; reduce 0: scratch[0] = in[0]; {double} copy 0: out[0] = scratch[0]; rank 1;"
    );
    let header = "collective all_reduce, world 2, scratch 1";
    assert_instruction(&defect(header, &ranks), 0, 2, "4 contributions");
    // Finished over and over, it is a deep expression of one.
    let again = "reduce 0: scratch[0] = scratch[0];".repeat(100_000);
    let ranks = format!(
        "rank 0; reduce 0: scratch[0] = in[0]; {again} copy 0: out[0] = scratch[0]; rank 1;"
    );
    let Defect::Instruction { problem, .. } = defect(header, &ranks) else {
        panic!("too deep");
    };
    assert!(problem.contains("too deep"), "{problem}");
}

#[test]
fn there_are_not_more_workers_than_can_be_verified() {
    let workers: String = (0..1000).map(|worker| format!("worker {worker};")).collect();
    let ranks: String = (0..9).map(|rank| format!("rank {rank}; {workers}")).collect();
    let many = defect("collective barrier, world 9", &ranks);
    assert!(matches!(many, Defect::Shape { value: 9000, .. }), "{many}");
}

#[test]
fn a_claim_that_does_not_hold_is_not_covered() {
    let lesser = [
        Claims { same_bits: false, ..Claims::ALL },
        Claims::ALL.without_canonical(),
        Claims { finishes_once: false, ..Claims::ALL },
        Claims::ALL.without_synchronising(),
        Claims::ALL.without_in_place(),
    ];
    for found in lesser {
        assert!(Claims::ALL.cover(&found) && !found.cover(&Claims::ALL), "{found:?}");
    }
    for algorithm in crate::algorithms::all() {
        let found = verify(&algorithm.plan(4, 0)).unwrap().claims;
        assert_eq!(found.cover(&Claims::ALL), found == Claims::ALL);
        assert_eq!(found, algorithm.claims, "{}", algorithm.name);
    }
}

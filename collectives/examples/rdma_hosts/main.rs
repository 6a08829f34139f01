//! Tests of collectives by RDMA, on the virtual machine of `cargo xtask rdma-vm`, whose NICs `rxe1` and `rxe2` are a
//! cable's ends: `rdma_hosts`, or `rdma_hosts TEST` for one of them; `rdma_hosts gpus` for those of GPUs.
//!
//! Each test is run by four processes of this program, two on each of two hosts that share only the cable (and, as they are
//! one machine, loopback, over which they meet): ranks 0 and 1 have `rxe1`, 2 and 3 have `rxe2`. Results are compared bit by bit with
//! those that the host's tests expect (`tests/common/cases.rs`), which know nothing of plans.

#[path = "../../tests/common/cases.rs"]
#[allow(dead_code, reason = "the host's tests use the rest")]
mod cases;
mod data;
mod faults;
mod gpus;
#[path = "../../../primitives/examples/rdma_vm/harness.rs"]
mod harness;
mod ranks;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use harness::{Outcome, Test, exit_code, run_all};
use ranks::Job;

const TESTS: &[Test<Job>] = crate::tests! {
    data::all_reduce_by_fetch_add,
    data::all_reduce_by_immediate,
    data::collectives_by_fetch_add,
    data::collectives_by_immediate,
    data::every_plan_between_hosts,
    data::letters_and_uneven_blocks,
    data::ranks_leave_when_they_are_done,
    data::loss_of_2_percent,
    wire::all_reduce_moves_no_more_than_it_must,
    wire::packets_of_1024_bytes_carry_no_more_than_they_must,
    faults::a_killed_rank_is_named,
    faults::a_rank_that_leaves_is_named,
    faults::a_cable_that_is_cut_in_flight_is_named,
    faults::a_nic_that_goes_down_in_a_call_is_named,
    faults::a_rank_that_does_not_come_to_a_call_is_named,
    faults::a_rank_that_never_joins_is_named,
    faults::a_nic_that_there_is_not_is_named,
};

/// A test's time.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let good = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--test", name] => rank(name),
        ["gpus"] => gpus::run(),
        ["kernels", folder] => match gpus::compile(folder.as_ref()) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("{error}");
                false
            }
        },
        [] => run_all("rdma-hosts", TESTS, LIMIT),
        [name] => match TESTS.iter().find(|(other, _)| *other == name) {
            Some(test) => run_all("rdma-hosts", &[*test], LIMIT),
            None => {
                eprintln!("there is no test {name}");
                false
            }
        },
        _ => {
            eprintln!("usage: rdma_hosts [TEST | gpus | kernels FOLDER]");
            false
        }
    };
    exit_code(good)
}

/// One rank of a test.
fn rank(name: &str) -> bool {
    let test = TESTS.iter().find(|(other, _)| *other == name);
    let run = || -> Outcome {
        let (_, test) = test.ok_or("there is no such test")?;
        let mut job = Job::start(name)?;
        test(&mut job)?;
        job.finish()
    };
    let result = run();
    if let Err(error) = &result {
        println!("    rank {}: {error}", ranks::number());
    }
    result.is_ok()
}

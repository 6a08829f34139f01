//! The RDMA transport's tests, for a machine whose NICs `rxe1` to `rxe4` are two cables' ends and whose network may be
//! broken: the virtual machine of `cargo xtask rdma-vm`, which starts this as `rdma_vm`, with virtual GPUs as `rdma_vm gpu`, or as
//! `rdma_vm measure`. On the machine that has the compilers, `rdma_vm ptx FILE` writes the kernels that it needs there, and
//! `rdma_vm layouts FOLDER` compares the library's structures with libibverbs' header.
//!
//! Each test is run by two processes of this program: rank 0, which starts rank 1. A test that does not end is ended.

mod data;
#[path = "../../tests/common/gpu.rs"]
mod device;
mod faults;
mod gpu;
mod harness;
mod job;
#[path = "../../src/sys/verbs/layout.rs"]
mod layout;
mod measure;
mod memory;
mod ports;
#[path = "../../src/sys/verbs/types.rs"]
#[allow(dead_code, missing_docs, reason = "the library uses the rest")]
mod types;

use std::process::ExitCode;
use std::time::Duration;

use harness::{Outcome, Test, exit_code, run_all};
use job::Job;

const TESTS: &[Test<Job>] = crate::tests! {
    data::sizes_by_fetch_add,
    data::sizes_by_immediate,
    data::many_in_flight_by_fetch_add,
    data::many_in_flight_by_immediate,
    data::stripes_by_fetch_add,
    data::stripes_by_immediate,
    data::two_nics_and_one_by_fetch_add,
    data::two_nics_and_one_by_immediate,
    data::what_comes_before_the_peer_has_said_that_it_is_ready_counts,
    data::what_comes_just_before_the_news_that_the_peer_has_gone_counts,
    data::loss_of_2_percent,
    data::mtus_that_differ,
    faults::a_killed_peer_is_named,
    faults::memory_that_was_forgotten_is_refused,
    faults::a_wrong_key_is_refused,
    faults::ranges_are_checked,
    faults::forgetting_a_source_breaks_the_connection,
    faults::a_port_that_goes_down_is_named,
    faults::a_port_that_is_back_in_time_breaks_nothing,
    faults::options_that_cannot_be_say_what_could,
    faults::the_limit_of_locked_memory_is_named,
    faults::memory_with_a_dma_buf_that_the_nic_does_not_know,
    faults::a_peer_that_does_not_connect_is_named,
    faults::a_peer_that_talks_nonsense_is_named,
};

const GPU: &[Test<Job>] = crate::tests! {
    gpu::staged_sizes_in_both_directions,
    gpu::direct_sizes_in_both_directions,
    gpu::staged_at_one_end_and_two_nics_to_one,
    gpu::staged_over_two_nics,
    gpu::staged_many_in_flight,
    gpu::staged_with_loss_of_2_percent,
    gpu::a_gpu_before_sm_90_is_staged,
    gpu::a_peer_that_is_killed_amid_staged_data_is_named,
    gpu::staged_memory_that_was_forgotten_is_refused,
    gpu::ways_that_cannot_be_are_refused,
    ports::kernels_put_and_wait_staged,
    ports::kernels_put_and_wait_directly,
    ports::kernels_of_sm_80_put_and_wait,
};

const MEASURE: Test<Job> = ("beside_perftest", measure::beside_perftest);
/// Shorter, and with more room for what else a machine does: for among the tests.
const LOOK: Test<Job> = ("not_far_from_perftest", measure::not_far_from_perftest);

/// A test's time, and a measurement's.
const LIMIT: Duration = Duration::from_secs(40);
const LONG: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let good = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--test", name] => rank(name),
        ["gpu"] => run_all("rdma-gpu", GPU, LIMIT),
        ["gpu", name] => match GPU.iter().find(|(other, _)| *other == name) {
            Some(test) => run_all("rdma-gpu", &[*test], LIMIT),
            None => false,
        },
        ["ptx", file] => ports::compile(file).inspect_err(|error| eprintln!("{error}")).is_ok(),
        ["layouts", include] => layout::compare(Some(include.to_owned()))
            .inspect_err(|error| eprintln!("{error}"))
            .is_ok(),
        ["measure"] => run_all("rdma", &[MEASURE], LONG),
        [] => run_all("rdma", TESTS, LIMIT) & run_all("rdma", &[LOOK], LIMIT),
        _ => {
            eprintln!("usage: rdma_vm [measure | gpu [TEST] | ptx FILE | layouts FOLDER]");
            false
        }
    };
    exit_code(good)
}

/// One rank of a test.
fn rank(name: &str) -> bool {
    let test = TESTS.iter().chain(GPU).chain([&MEASURE, &LOOK]).find(|(other, _)| *other == name);
    let run = || -> Outcome {
        let (_, test) = test.ok_or("there is no such test")?;
        let mut job = Job::start(name)?;
        test(&mut job)?;
        job.finish()
    };
    let result = run();
    if let Err(error) = &result {
        let rank = usize::from(std::env::var_os("RDMA_VM_ID").is_some());
        println!("    rank {rank}: {error}");
    }
    result.is_ok()
}

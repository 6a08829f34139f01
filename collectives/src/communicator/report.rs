//! What an error says: what this rank was doing, and what the others were last seen doing.

use warpmesh_primitives::control::{Progress, State};
use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::node::{AT_REACH, AT_SHARE, Node};

use super::call::Board;
use crate::cuda::emit::AT_GUARD;
use crate::host::{AT_OTHER, AT_RECEIVE, AT_SEND};

/// Ranks that are described besides the two concerned.
const OTHERS: usize = 6;

pub(super) fn report(node: &Node, failure: Failure) -> String {
    // For a mismatch, the call that differs; else everyone's newest.
    let latest = node.known(failure.by.min(node.world() - 1)).latest_call();
    let sequence = match failure.kind {
        FailureKind::Mismatch => latest.map_or(0, |call| call.sequence),
        _ => 0,
    };
    let mut ranks = vec![node.rank()];
    ranks.extend([failure.by].into_iter().chain(failure.culprit));
    if failure.kind != FailureKind::Mismatch {
        ranks.extend((0..node.world()).take(OTHERS));
    }
    let mut seen = Vec::new();
    ranks.retain(|rank| {
        let new = *rank < node.world() && !seen.contains(rank);
        seen.push(*rank);
        new
    });
    let broken = (0..node.world()).filter_map(|peer| node.fault(peer)).map(ToString::to_string);
    let broken = broken.chain(through(node, failure));
    let lines: Vec<_> =
        broken.chain(ranks.iter().map(|rank| describe(node, *rank, sequence))).collect();
    lines.join("; ")
}

/// Which way a connection took that another rank has seen break, as it has told: a NIC, or a pair of addresses.
fn through(node: &Node, failure: Failure) -> Option<String> {
    let Failure { by, culprit: Some(culprit), .. } = failure else { return None };
    let elsewhere = by != node.rank() && by < node.world();
    let via = elsewhere.then(|| node.known(by).via()).filter(|via| !via.is_empty())?;
    Some(format!("rank {by}'s connection to rank {culprit} went through {via}"))
}

fn describe(node: &Node, rank: usize, sequence: u64) -> String {
    let control = node.known(rank);
    let call = control.call(sequence).filter(|call| call.sequence > 0);
    let call = call.or_else(|| control.latest_call());
    let progress = control.progress();
    let who = if rank == node.rank() { "this rank".to_owned() } else { format!("rank {rank}") };
    let what = match call {
        None if !node.is_near(rank) => "no word of it yet".to_owned(),
        None => "no collective yet".to_owned(),
        Some(call) => {
            let done = control.finished_call() >= call.sequence;
            let state = if done { "done with" } else { "in" };
            format!("{state} call {} {}", call.sequence, Board::read(&call))
        }
    };
    if !node.is_near(rank) {
        let (pid, machine) = (node.pid(rank), node.machine(rank));
        return format!("{who} (pid {pid} on {machine}): {what}{}", waiting(&progress));
    }
    let stopped = if process_stopped(node.pid(rank)) { ", its process is stopped" } else { "" };
    format!("{who} (pid {}): {what}{}{stopped}", node.pid(rank), waiting(&progress))
}

fn waiting(progress: &Progress) -> String {
    let Progress { peer, place, expected, seen, state, .. } = progress;
    match (*place, *state) {
        (AT_OTHER, State::Working | State::Left) => {
            format!(", receives {expected} bytes from rank {peer}, which sends {seen}")
        }
        (_, State::Working) => String::new(),
        (_, State::Left) => ", left".to_owned(),
        (AT_SEND, _) => format!(", sends to rank {peer}, which does not receive"),
        (AT_RECEIVE, _) => format!(", receives from rank {peer}, which does not send"),
        (AT_REACH, _) => format!(", waits for rank {peer} to connect"),
        (AT_SHARE, _) => format!(", waits for rank {peer} to share memory"),
        (u32::MAX, _) => format!(", waits for rank {peer} to finish epoch {expected} (at {seen})"),
        (AT_GUARD, _) => format!(", waits for rank {peer} to come to its next call"),
        (step, _) => {
            format!(", waits for rank {peer} at step {step} (needs {expected}, has {seen})")
        }
    }
}

/// Whether a process of this machine is stopped by a signal or a debugger.
fn process_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

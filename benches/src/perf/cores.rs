//! Cores: how many there are, and keeping a rank on one.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use anyhow::Result;

use super::cli::Bind;
use super::control::Control;

/// The cores that this thread may run on, by number.
pub fn usable() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return vec![];
    };
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// How many ranks can run at the same time: the cores of this process, less by a cgroup's quota.
/// What counts is the first call, before any rank is bound to a core of these.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The cores that all ranks have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// Ranks that can run at the same time.
    pub cores: usize,
    /// Ranks that this program keeps on one core each.
    pub bound: usize,
}

/// Adds up the ranks' cores: a launcher may have given each its own. Every rank calls it, with the
/// cores that it had before it was bound.
pub fn of_all(control: &Control, usable: &[usize], bound: bool) -> Result<Cores> {
    let quota = if count() < usable.len() { count() } else { usize::MAX };
    let mine: Vec<String> = usable.iter().map(usize::to_string).collect();
    let texts = control.gather_text(&mine.join(" "))?;
    let all: BTreeSet<&str> = texts.iter().flat_map(|text| text.split_whitespace()).collect();
    let bound = control.sum(f64::from(u8::from(bound)))? as usize;
    Ok(Cores { cores: all.len().min(quota).max(1), bound })
}

/// Whether ranks are bound. Sharing a core is bad luck for a rank that is bound to it, so with more
/// ranks than cores nobody is, unless asked for; and another launcher may have bound them already.
pub fn decide(asked: Option<Bind>, world: usize, started_here: bool) -> Bind {
    let fitting = if world <= count() && started_here { Bind::Core } else { Bind::None };
    asked.unwrap_or(fitting)
}

/// Keeps this thread on a core: the `index`th of those that it may use, round robin. Says which.
pub fn bind(index: usize) -> Option<usize> {
    let cores = usable();
    let core = *cores.get(index % cores.len().max(1))?;
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).ok().map(|()| core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_has_one_core() {
        std::thread::spawn(|| {
            let core = bind(1).unwrap();
            assert_eq!(usable(), [core]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn cores_of_all_ranks_are_added_up() {
        use std::time::Duration;

        use warpmesh::bootstrap::LocalBootstrap;
        let ranks = LocalBootstrap::create(2, Duration::from_secs(10)).unwrap();
        let ask = |(rank, bootstrap): (usize, LocalBootstrap)| {
            let control = Control::new(bootstrap);
            of_all(&control, &[rank + 5], rank == 0).unwrap()
        };
        std::thread::scope(|scope| {
            let spawn = |rank| scope.spawn(move || ask(rank));
            let ranks: Vec<_> = ranks.into_iter().enumerate().map(spawn).collect();
            for rank in ranks {
                assert_eq!(rank.join().unwrap(), Cores { cores: 2, bound: 1 });
            }
        });
    }

    #[test]
    fn ranks_are_bound_only_where_each_has_a_core() {
        assert_eq!(decide(None, 1, true), Bind::Core);
        assert_eq!(decide(None, 1, false), Bind::None);
        assert_eq!(decide(None, 1_000_000, true), Bind::None);
        assert_eq!(decide(Some(Bind::Core), 1_000_000, false), Bind::Core);
    }
}

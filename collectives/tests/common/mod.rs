//! What the tests share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod cases;
pub mod gpu;
pub mod processes;

use std::time::Duration;

use warpmesh::{Builder, Communicator};

/// Runs `work` as every rank of a world of threads and returns what each returned.
pub fn ranks<R: Send>(world: usize, work: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    ranks_with(settings(), world, work)
}

/// As [`ranks`], with other settings.
pub fn ranks_with<R: Send>(
    builder: Builder,
    world: usize,
    work: impl Fn(Communicator) -> R + Sync,
) -> Vec<R> {
    let communicators = builder.local(world).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            communicators.into_iter().map(|comm| scope.spawn(move || work(comm))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// A bounded wait, so that a test that would hang fails.
pub fn settings() -> Builder {
    Communicator::builder().timeout(Duration::from_secs(20))
}

//! What the tests share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod cases;
pub mod gpu;
pub mod processes;

use std::time::Duration;

use warpmesh::bootstrap::LocalBootstrap;
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

/// As [`ranks_with`], as if ranks with different numbers were on different hosts: they reach each other by TCP over
/// loopback.
pub fn ranks_on_hosts<R: Send>(
    builder: &Builder,
    hosts: &[usize],
    work: impl Fn(Communicator) -> R + Sync,
) -> Vec<R> {
    let bootstraps = LocalBootstrap::create(hosts.len(), Duration::from_secs(20)).unwrap();
    std::thread::scope(|scope| {
        let work = &work;
        let start = |(bootstrap, host): (LocalBootstrap, &usize)| {
            let builder = builder.clone().host_mark(&format!("host {host}"));
            scope.spawn(move || work(builder.connect(bootstrap).unwrap()))
        };
        let threads: Vec<_> = bootstraps.into_iter().zip(hosts).map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Runs `work` on ranks of the hosts of each layout in turn.
pub fn on_each<const N: usize>(layouts: &[[usize; N]], work: impl Fn(Communicator) + Sync) {
    for hosts in layouts {
        ranks_on_hosts(&settings(), hosts, &work);
    }
}

/// A bounded wait, so that a test that would hang fails.
pub fn settings() -> Builder {
    Communicator::builder().timeout(Duration::from_secs(20))
}

//! A bootstrap for ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::auth::Secret;
use super::error::BootstrapError;
use super::fault::Fault;
use super::wire::Deadline;
use super::{Bootstrap, MAX_GATHERED, check_contribution, check_world};

/// One rank of a job whose ranks are threads of this process.
///
/// Dropping one tells the others: their current or next call names it as the rank that closed its
/// connection.
#[derive(Debug)]
pub struct LocalBootstrap {
    rank: usize,
    timeout: Duration,
    room: Arc<Room>,
}

impl LocalBootstrap {
    /// One bootstrap for each of `world` ranks, in rank order. Each collective call waits at most
    /// `timeout`. Does not block.
    ///
    /// # Errors
    ///
    /// [`BootstrapError::WorldOutOfRange`] for 0 or more than [`MAX_WORLD`](super::MAX_WORLD) ranks,
    /// [`BootstrapError::Os`] where the system has no random bytes for a secret.
    pub fn create(world: usize, timeout: Duration) -> Result<Vec<Self>, BootstrapError> {
        check_world(world)?;
        let state = State { parts: vec![None; world], ..State::default() };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let room = Arc::new(Room { state, changed, secret: Secret::random()? });
        Ok((0..world).map(|rank| Self { rank, timeout, room: Arc::clone(&room) }).collect())
    }
}

/// Where the ranks meet.
#[derive(Debug)]
struct Room {
    state: Mutex<State>,
    changed: Condvar,
    secret: Secret,
}

#[derive(Debug, Default)]
struct State {
    /// What came for the round that is under way, by rank.
    parts: Vec<Option<Vec<u8>>>,
    /// Rounds that are complete.
    rounds: u64,
    /// Of the last complete round. It stays until every rank has come again, so until each has read it.
    all: Arc<Vec<Vec<u8>>>,
    fault: Option<Fault>,
}

impl Bootstrap for LocalBootstrap {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.room.lock().parts.len()
    }

    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, BootstrapError> {
        check_contribution(mine)?;
        let world = self.world();
        let all = self.room.gather(self.rank, mine, self.timeout).map_err(|f| f.error(world))?;
        Ok(all.to_vec())
    }

    fn secret(&self) -> Option<Secret> {
        Some(self.room.secret.clone())
    }
}

impl Drop for LocalBootstrap {
    fn drop(&mut self) {
        self.room.lock().fault.get_or_insert(Fault::closed(self.rank, None));
        self.room.changed.notify_all();
    }
}

impl Room {
    fn gather(
        &self,
        rank: usize,
        mine: &[u8],
        timeout: Duration,
    ) -> Result<Arc<Vec<Vec<u8>>>, Fault> {
        let mut state = self.lock();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        let round = state.rounds;
        state.parts[rank] = Some(mine.to_vec());
        let bytes: usize = state.parts.iter().flatten().map(Vec::len).sum();
        if bytes > MAX_GATHERED {
            state.fault = Some(Fault::TotalTooLarge { bytes: bytes as u64 });
            self.changed.notify_all();
        } else if state.parts.iter().all(Option::is_some) {
            state.all = Arc::new(state.parts.iter_mut().flat_map(Option::take).collect());
            state.rounds += 1;
            self.changed.notify_all();
        }
        self.wait(state, round, timeout)
    }

    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        round: u64,
        timeout: Duration,
    ) -> Result<Arc<Vec<Vec<u8>>>, Fault> {
        let deadline = Deadline::after(timeout);
        loop {
            // First: a rank may have left after this round was complete.
            if state.rounds != round {
                return Ok(Arc::clone(&state.all));
            }
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            if deadline.passed() {
                state.fault = Some(Fault::Missing { ranks: state.missing(), waited: timeout });
                self.changed.notify_all();
            }
            let woken = self.changed.wait_timeout(state, deadline.left());
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// No invariant spans a panic of another rank's thread, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn missing(&self) -> Vec<usize> {
        (0..self.parts.len()).filter(|&rank| self.parts[rank].is_none()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    fn ranks(world: usize, timeout: Duration) -> Vec<LocalBootstrap> {
        LocalBootstrap::create(world, timeout).unwrap()
    }

    #[test]
    fn many_rounds_give_everyone_everything() {
        let work = |mut own: LocalBootstrap| {
            for round in 0..200u8 {
                let mine = vec![round; own.rank() * usize::from(round % 3)];
                let all = own.all_gather(&mine).unwrap();
                let lengths: Vec<usize> = all.iter().map(Vec::len).collect();
                assert_eq!(lengths, (0..5).map(|r| r * usize::from(round % 3)).collect::<Vec<_>>());
                assert!(all.iter().flatten().all(|&byte| byte == round));
                own.barrier().unwrap();
            }
        };
        thread::scope(|s| {
            for own in ranks(5, Duration::from_secs(20)) {
                s.spawn(move || work(own));
            }
        });
    }

    #[test]
    fn world_one_is_alone() {
        let mut own = ranks(1, SOON).remove(0);
        assert_eq!(own.all_gather(b"x").unwrap(), [b"x"]);
        own.barrier().unwrap();
    }

    #[test]
    fn a_missing_rank_is_named_to_all() {
        let mut all = ranks(4, SOON);
        let _late = all.remove(2);
        let begin = Instant::now();
        thread::scope(|s| {
            for mut own in all {
                s.spawn(move || {
                    let first = own.barrier().unwrap_err();
                    let BootstrapError::Missing { missing, world: 4, .. } = &first else {
                        panic!("{first}");
                    };
                    // A rank that has named the missing one may be gone before another one looks.
                    assert_eq!(missing, &[2]);
                    assert_eq!(own.barrier().unwrap_err().to_string(), first.to_string());
                });
            }
        });
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_dropped_rank_is_named_at_once() {
        let mut all = ranks(3, Duration::from_secs(60));
        drop(all.remove(1));
        for own in &mut all {
            let error = own.barrier().unwrap_err();
            assert!(matches!(error, BootstrapError::PeerClosed { peer: 1, .. }), "{error}");
        }
    }

    #[test]
    fn the_last_round_survives_those_who_leave() {
        for _ in 0..200 {
            thread::scope(|s| {
                for mut own in ranks(3, Duration::from_secs(20)) {
                    s.spawn(move || own.all_gather(b"bye").unwrap());
                }
            });
        }
    }

    #[test]
    fn what_no_rank_would_accept_is_refused() {
        assert!(LocalBootstrap::create(0, SOON).is_err());
        assert!(LocalBootstrap::create(usize::MAX, SOON).is_err());
        let mut own = ranks(1, SOON).remove(0);
        let big = vec![0; crate::bootstrap::MAX_CONTRIBUTION + 1];
        assert!(matches!(own.all_gather(&big), Err(BootstrapError::TooLarge { .. })));
        own.barrier().unwrap();
    }
}

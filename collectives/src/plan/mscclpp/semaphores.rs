//! Who signals whom by which of our semaphores.
//!
//! Ours count for one signalling and one waiting worker each, so every use gets an index of its own
//! between its two ranks, from 0 up. Signals that a port's proxy gives, when its data has arrived,
//! count from the other end down: a plan that follows uses the low ones, and no signal of a worker
//! can then overtake a proxy's on the same semaphore.
//!
//! The format's barriers and counting semaphores live within a rank; here they are signals from a
//! rank to itself. A barrier gathers at its first thread block and is released from there. For a
//! counting semaphore, the i-th token that is released goes to the i-th acquisition after the
//! initial value's; where several thread blocks release or acquire, in turns. Each acquisition
//! then waits for a certain token, where the format would take any: a stronger wait.

use std::collections::{BTreeMap, HashMap};

use super::super::verify::PLAN_SEMAPHORES;
use super::decode::{Action, Block};
use super::{MscclppError, bounded};

/// What a semaphore is used for. Thread blocks are counted over the whole plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Use {
    /// The n-th channel of a type.
    Channel { port: bool, ordinal: usize },
    /// The proxy of the n-th port channel.
    Arrival { ordinal: usize },
    /// The same, where the data is packets that one thread block sends and one reads.
    PacketArrival { ordinal: usize, sender: usize, reader: usize },
    /// A barrier's edge.
    Barrier { id: usize, from: usize, to: usize },
    /// A counting semaphore's tokens.
    Token { id: usize, from: usize, to: usize },
}

/// The indices that are in use between two ranks.
#[derive(Debug, Default)]
struct Pair {
    low: HashMap<Use, usize>,
    high: HashMap<Use, usize>,
}

#[derive(Debug, Default)]
pub(super) struct Semaphores {
    pairs: HashMap<(usize, usize), Pair>,
}

impl Semaphores {
    /// The index of a use between two ranks.
    pub(super) fn index(
        &mut self,
        from: usize,
        to: usize,
        what: Use,
    ) -> Result<usize, MscclppError> {
        let pair = self.pairs.entry((from, to)).or_default();
        let all = pair.low.len() + pair.high.len();
        let proxy = matches!(what, Use::Arrival { .. } | Use::PacketArrival { .. });
        let list = if proxy { &mut pair.high } else { &mut pair.low };
        let next = list.len();
        let index = *list.entry(what).or_insert(next);
        if index == next {
            bounded("semaphores between two ranks", all + 1, PLAN_SEMAPHORES)?;
        }
        Ok(if proxy { PLAN_SEMAPHORES - 1 - index } else { index })
    }

    /// The first index that no worker uses between any two different ranks, if there is one.
    pub(super) fn unused_between_ranks(&self) -> Option<usize> {
        let pairs = || self.pairs.iter().filter(|((from, to), _)| from != to);
        let first = pairs().map(|(_, pair)| pair.low.len()).max().unwrap_or(0);
        let high = pairs().map(|(_, pair)| pair.high.len()).max().unwrap_or(0);
        (first + high < PLAN_SEMAPHORES).then_some(first)
    }

    /// The first of `count` indices that are unused from a rank to itself, if there are so many.
    pub(super) fn unused_within(&self, rank: usize, count: usize) -> Option<usize> {
        let first = self.pairs.get(&(rank, rank)).map_or(0, |p| p.low.len());
        (first + count <= PLAN_SEMAPHORES).then_some(first)
    }
}

/// The thread blocks that take part in each barrier, and who passes tokens to whom.
#[derive(Debug)]
pub(super) struct Meetings {
    /// By rank and barrier id.
    barriers: HashMap<(usize, usize), Vec<usize>>,
    /// By thread block and semaphore: for each of its releases, who acquires the token.
    releases: HashMap<(usize, usize), Vec<usize>>,
    /// By thread block and semaphore: for each of its acquisitions, who released the token; None
    /// if it is one that was there from the start.
    acquisitions: HashMap<(usize, usize), Vec<Option<usize>>>,
    /// Tokens that are left over, which stand for the next run's initial ones: semaphore, from, to.
    pub(super) left: Vec<(usize, usize, usize)>,
}

impl Meetings {
    /// `initial` has the initial values of all ranks' semaphores.
    pub(super) fn new(blocks: &[Block<'_>], initial: &[Vec<usize>]) -> Result<Self, MscclppError> {
        let mut meetings = Self {
            barriers: barriers(blocks)?,
            releases: HashMap::new(),
            acquisitions: HashMap::new(),
            left: Vec::new(),
        };
        let tokens = |of: fn(&Action) -> Option<usize>| {
            let mut tokens: BTreeMap<(usize, usize), BTreeMap<usize, usize>> = BTreeMap::new();
            for (id, block) in blocks.iter().enumerate() {
                for semaphore in block.actions.iter().filter_map(|(_, action)| of(action)) {
                    let counts = tokens.entry((block.rank, semaphore)).or_default();
                    *counts.entry(id).or_default() += 1;
                }
            }
            tokens
        };
        let mut released = tokens(|action| match action {
            Action::Release(id) => Some(*id),
            _ => None,
        });
        let acquired = tokens(|action| match action {
            Action::Acquire(id) => Some(*id),
            _ => None,
        });
        for ((rank, id), takers) in acquired {
            let givers = released.remove(&(rank, id)).unwrap_or_default();
            meetings.pass(rank, id, initial[rank][id], &in_turns(givers), &in_turns(takers))?;
        }
        match released.into_iter().next() {
            Some(((rank, id), givers)) => Err(unbalanced(rank, id, in_turns(givers).len(), 0)),
            None => Ok(meetings),
        }
    }

    fn pass(
        &mut self,
        rank: usize,
        id: usize,
        initial: usize,
        givers: &[usize],
        takers: &[usize],
    ) -> Result<(), MscclppError> {
        if givers.len() != takers.len() {
            return Err(unbalanced(rank, id, givers.len(), takers.len()));
        }
        let free = initial.min(takers.len());
        for (i, taker) in takers.iter().enumerate() {
            let giver = i.checked_sub(free).map(|i| givers[i]);
            let list = self.acquisitions.entry((*taker, id)).or_default();
            list.push(giver);
        }
        // The last tokens, as many as were free at first, go to those who had the free ones.
        for (i, giver) in givers.iter().enumerate() {
            let taker = takers[(i + free) % takers.len()];
            self.releases.entry((*giver, id)).or_default().push(taker);
            if i + free >= takers.len() {
                self.left.push((id, *giver, taker));
            }
        }
        Ok(())
    }

    /// The thread blocks that meet at a rank's barrier.
    pub(super) fn barrier(&self, rank: usize, id: usize) -> &[usize] {
        self.barriers.get(&(rank, id)).map_or(&[], Vec::as_slice)
    }

    /// Who gets the token of a thread block's n-th release.
    pub(super) fn taker(&self, block: usize, id: usize, nth: usize) -> Option<usize> {
        self.releases.get(&(block, id))?.get(nth).copied()
    }

    /// Who released the token of a thread block's n-th acquisition; None for an initial one.
    pub(super) fn giver(&self, block: usize, id: usize, nth: usize) -> Option<usize> {
        *self.acquisitions.get(&(block, id))?.get(nth)?
    }
}

/// One of each in turn, as long as they have any left.
fn in_turns(mut counts: BTreeMap<usize, usize>) -> Vec<usize> {
    let mut turns = Vec::new();
    while !counts.is_empty() {
        counts.retain(|who, left| {
            turns.push(*who);
            *left -= 1;
            *left > 0
        });
    }
    turns
}

fn unbalanced(rank: usize, id: usize, released: usize, acquired: usize) -> MscclppError {
    let problem = format!(
        "sem_release and sem_acquire: semaphore {id} is released {released} times and acquired \
         {acquired} times, so it would drift from run to run"
    );
    MscclppError::Rank { rank, problem }
}

/// Who takes part in each barrier; all must come equally often, and as many as the plan says.
fn barriers(blocks: &[Block<'_>]) -> Result<HashMap<(usize, usize), Vec<usize>>, MscclppError> {
    let mut visits: BTreeMap<(usize, usize), BTreeMap<usize, usize>> = BTreeMap::new();
    for (id, block) in blocks.iter().enumerate() {
        for (_, action) in &block.actions {
            if let Action::Barrier { id: barrier, .. } = action {
                let visits = visits.entry((block.rank, *barrier)).or_default();
                *visits.entry(id).or_default() += 1;
            }
        }
    }
    for block in blocks {
        for (at, action) in &block.actions {
            let Action::Barrier { id, of } = action else {
                continue;
            };
            let visits = &visits[&(block.rank, *id)];
            if visits.len() != *of {
                return Err(at.wrong(format!(
                    "barrier {id} is of {of} thread blocks, but {} come to it",
                    visits.len()
                )));
            }
            let mut counts = visits.values();
            let first = counts.next();
            if counts.any(|count| Some(count) != first) {
                return Err(at.wrong(format!("thread blocks come to barrier {id} unequally often")));
            }
        }
    }
    let members = |visits: BTreeMap<usize, usize>| visits.into_keys().collect();
    Ok(visits.into_iter().map(|(barrier, visits)| (barrier, members(visits))).collect())
}

//! A rank's place in the tree with its connections.

use std::net::SocketAddr;
use std::time::Duration;

use super::door::Door;
use super::link::{Link, failed_wait, spread};
use super::shape::share;
use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{Deadline, Kind, wait};

/// The connections of one rank: at most one up and the fan-out down.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) rank: usize,
    pub(super) world: usize,
    /// `None` at the root.
    pub(super) parent: Option<Link>,
    pub(super) children: Vec<Link>,
    /// Levels below the root.
    pub(super) height: usize,
    /// How much longer than the root this rank waits.
    pub(super) grace: Duration,
    /// At the root: the rank above each rank.
    pub(super) parents: Vec<usize>,
}

/// Which links are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ears {
    pub(super) parent: bool,
    pub(super) children: bool,
}

impl Ears {
    pub(super) const ALL: Self = Self { parent: true, children: true };
}

impl Tree {
    /// A rank without connections so far.
    pub(super) fn new(rank: usize, world: usize, height: usize) -> Self {
        Self {
            rank,
            world,
            parent: None,
            children: Vec::new(),
            height,
            grace: Duration::ZERO,
            parents: Vec::new(),
        }
    }

    pub(super) fn links_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.parent.iter_mut().chain(&mut self.children)
    }

    /// Where this rank goes out to others.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let link = self.parent.iter().chain(&self.children).next()?;
        link.stream().local_addr().ok()
    }

    /// The parent's rank; this rank's own at the root.
    pub(super) fn parent_rank(&self) -> usize {
        self.parent.as_ref().map_or(self.rank, |parent| parent.peer)
    }

    /// Queues an empty frame for all children.
    pub(super) fn tell_children(&mut self, kind: Kind) {
        self.children.iter_mut().for_each(|child| child.out.push(kind, 0, &[]));
    }

    /// Sends what the sockets take now.
    pub(super) fn flush(&mut self) {
        for link in self.links_mut() {
            link.flush();
        }
    }

    /// Waits, at most `longest`, until a link that is listened to has something, one takes more of what is queued,
    /// or somebody is at the door. Which ones is noted in them.
    pub(super) fn wait(
        &mut self,
        ears: Ears,
        mut door: Option<&mut Door<'_>>,
        longest: Duration,
    ) -> Result<(), Fault> {
        let mut fds = door.as_deref().map(Door::interests).unwrap_or_default();
        let at_door = fds.len();
        let parent = self.parent.iter().map(|link| link.interest(ears.parent));
        let children = self.children.iter().map(|link| link.interest(ears.children));
        let asked: Vec<_> = parent.chain(children).collect();
        let polled: Vec<bool> = asked.iter().map(Option::is_some).collect();
        fds.extend(asked.into_iter().flatten());
        let longest = door.as_deref().map_or(longest, |door| longest.min(door.patience()));
        wait(&mut fds, longest).map_err(|e| failed_wait(self.rank, &e))?;
        let woken: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (strangers, links) = woken.split_at(at_door);
        if let Some(door) = &mut door {
            door.note(strangers);
        }
        let mut links = links.iter();
        for (link, polled) in self.links_mut().zip(polled) {
            link.ready = polled && links.next() == Some(&true);
        }
        Ok(())
    }

    /// Sends all that is queued, at most for `timeout`.
    pub(super) fn settle(&mut self, timeout: Duration) -> Result<(), Fault> {
        let deadline = Deadline::after(timeout);
        loop {
            self.flush();
            let slow = self.links_mut().filter(|link| link.out.pending() > 0).map(|link| link.peer);
            let ranks: Vec<usize> = slow.collect();
            if ranks.is_empty() {
                return self.links_mut().find_map(Link::obituary).map_or(Ok(()), Err);
            }
            if deadline.passed() {
                return Err(Fault::Missing { ranks, waited: timeout });
            }
            self.wait(Ears { parent: false, children: false }, None, deadline.left())?;
        }
    }

    /// Tells everyone around why it is over. They tell the others.
    pub(super) fn spread(&mut self, fault: &Fault, timeout: Duration) {
        let patience = Deadline::after(share(timeout, self.height) / 2);
        spread(self.links_mut().collect(), fault, patience);
    }
}

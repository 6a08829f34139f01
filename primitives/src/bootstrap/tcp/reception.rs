//! The root at the start: it knows every rank, gives each its place, and waits until all are there.
//!
//! ```text
//!   rank r                       root                        parent p, registered before
//!     ├── handshake, own port ────►│
//!     │◄── place: p, its address ──┤
//!     ├── handshake ───────────────┼────────────────────────────►│
//!     │                            │◄─────── r has joined ───────┤
//!     │         closes r's first connection                      │
//! ```
//!
//! A rank keeps its first connection until it is in its place, so its death in between is noticed, and so is the
//! cause if it does not get there. Those connections have a number: behind it, ranks wait to be let in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::door::{Door, Proved, TICK};
use super::link::{Link, spread};
use super::shape::{Place, Shape, share};
use super::tree::{Ears, Tree};
use crate::bootstrap::auth::{Secret, Verdict};
use crate::bootstrap::fault::Fault;
use crate::bootstrap::wire::{Deadline, Kind};

/// Ranks on the way from the root to their place, at most.
const MAX_UNDER_WAY: usize = 256;

pub(super) struct Reception<'a> {
    door: Door<'a>,
    secret: &'a Secret,
    shape: Shape,
    tree: Tree,
    /// Which rank is at which position, and where it listens.
    order: Vec<(usize, SocketAddr)>,
    state: Vec<State>,
    /// By rank: those that have a place and are not in it yet.
    under_way: BTreeMap<usize, Traveller>,
    looked: Instant,
    /// Ranks that are not in their place.
    missing: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    UnderWay,
    In,
}

struct Traveller {
    link: Link,
    /// The parent, where that does not answer.
    stuck: Option<usize>,
}

impl<'a> Reception<'a> {
    pub(super) fn new(door: Door<'a>, secret: &'a Secret, own: SocketAddr, shape: Shape) -> Self {
        let mut tree = Tree::new(0, shape.world, shape.height());
        tree.parents = vec![0; shape.world];
        let mut state = vec![State::Unknown; shape.world];
        state[0] = State::In;
        Self {
            door,
            secret,
            shape,
            tree,
            order: vec![(0, own)],
            state,
            under_way: BTreeMap::new(),
            looked: Instant::now(),
            missing: shape.world - 1,
        }
    }

    /// The root's place in the tree once all ranks are in theirs, and have been told. A fault is told to those that
    /// have come.
    pub(super) fn admit_all(mut self, timeout: Duration) -> Result<Tree, Fault> {
        let mut outcome = self.run(timeout);
        if outcome.is_ok() {
            self.tree.tell_children(Kind::All);
            outcome = self.tree.settle(timeout);
        }
        if let Err(fault) = outcome {
            self.tell_all(&fault, timeout);
            return Err(fault);
        }
        Ok(self.tree)
    }

    fn run(&mut self, timeout: Duration) -> Result<(), Fault> {
        let deadline = Deadline::after(timeout);
        while self.missing > 0 {
            if deadline.passed() {
                return Err(self.verdict(timeout));
            }
            self.tree.flush();
            self.door.full = self.under_way.len() >= MAX_UNDER_WAY;
            let tick = if self.under_way.is_empty() { Duration::MAX } else { TICK };
            self.tree.wait(Ears::ALL, Some(&mut self.door), deadline.left().min(tick))?;
            self.hear_children()?;
            for proved in self.door.hear() {
                self.judge(proved)?;
            }
            self.look_after_travellers()?;
        }
        Ok(())
    }

    /// Who is to blame that not all are there.
    fn verdict(&self, waited: Duration) -> Fault {
        let unknown = (0..self.state.len()).filter(|&rank| self.state[rank] == State::Unknown);
        // Who waits for a rank that is not in its own place yet has no fault of its own.
        let parents = &self.tree.parents;
        let highest = |rank: &&usize| self.state[parents[**rank]] == State::In;
        let blamed = |rank: &usize| self.under_way[rank].stuck.unwrap_or(*rank);
        let under_way = self.under_way.keys().filter(highest).map(blamed);
        let mut ranks: Vec<usize> = unknown.chain(under_way).collect();
        ranks.sort_unstable();
        ranks.dedup();
        match self.door.exhausted() {
            Some(limit) => Fault::Descriptors { rank: 0, limit },
            None => Fault::Missing { ranks, waited },
        }
    }

    fn hear_children(&mut self) -> Result<(), Fault> {
        for at in 0..self.tree.children.len() {
            while self.tree.children[at].ready {
                let child = &mut self.tree.children[at];
                let peer = child.peer;
                match child.read()? {
                    None => break,
                    Some(frame) if frame.kind == Kind::Present => self.joined(frame.rank, peer)?,
                    Some(_) => return Err(Fault::Malformed { peer }),
                }
            }
        }
        Ok(())
    }

    fn joined(&mut self, rank: usize, peer: usize) -> Result<(), Fault> {
        if self.state.get(rank) != Some(&State::UnderWay) {
            return Err(Fault::Malformed { peer });
        }
        self.state[rank] = State::In;
        self.under_way.remove(&rank);
        self.missing -= 1;
        Ok(())
    }

    /// Takes in, or says why not, a rank that has proved the secret.
    fn judge(&mut self, proved: Proved) -> Result<(), Fault> {
        let (verdict, fault) = self.opinion(&proved);
        let (hello, addr) = (proved.hello, proved.addr);
        let stream = proved.answer(self.secret, verdict);
        if let Some(fault) = fault {
            return Err(fault);
        }
        let rank = hello.rank as usize;
        self.settle_in(Link::new(rank, stream), SocketAddr::new(addr.ip(), hello.port));
        Ok(())
    }

    fn opinion(&self, proved: &Proved) -> (Verdict, Option<Fault>) {
        let (hello, addr) = (proved.hello, proved.addr);
        let (root_world, rank) = (self.shape.world, hello.rank as usize);
        if hello.world as usize != root_world {
            let world = hello.world as usize;
            let verdict = Verdict::OtherWorld { root_world: root_world as u32 };
            (verdict, Some(Fault::OtherWorld { rank, world, root_world }))
        } else if rank >= root_world {
            (Verdict::OutOfRange, Some(Fault::OutOfRange { rank }))
        } else if self.state[rank] != State::Unknown {
            (Verdict::Duplicate, Some(Fault::Duplicate { rank, addr: Some(addr) }))
        } else {
            (Verdict::Accepted, None)
        }
    }

    /// Gives the next position to a rank.
    fn settle_in(&mut self, mut link: Link, addr: SocketAddr) {
        let (rank, position) = (link.peer, self.order.len());
        self.order.push((rank, addr));
        let (parent, parents_addr) = self.order[self.shape.parent(position)];
        self.tree.parents[rank] = parent;
        let place = Place {
            parent,
            addr: (parent != 0).then_some(parents_addr),
            depth: self.shape.depth(position),
            height: self.shape.height(),
            children: self.shape.children(position),
        };
        if !self.shape.is_star() {
            link.out.push(Kind::Place, parent, &place.encode());
            link.flush();
        }
        if parent == 0 {
            self.state[rank] = State::In;
            self.missing -= 1;
            self.tree.children.push(link);
        } else {
            self.state[rank] = State::UnderWay;
            self.under_way.insert(rank, Traveller { link, stuck: None });
        }
    }

    /// At every tick: who has died on the way, and who does not get further.
    fn look_after_travellers(&mut self) -> Result<(), Fault> {
        if self.looked.elapsed() < TICK {
            return Ok(());
        }
        self.looked = Instant::now();
        for (&rank, traveller) in &mut self.under_way {
            traveller.link.flush();
            match traveller.link.read()? {
                None => {}
                Some(frame) if frame.kind == Kind::Stuck => traveller.stuck = Some(frame.rank),
                Some(_) => return Err(Fault::Malformed { peer: rank }),
            }
        }
        Ok(())
    }

    fn tell_all(&mut self, fault: &Fault, timeout: Duration) {
        let patience = Deadline::after(share(timeout, self.shape.height()) / 2);
        let travellers = self.under_way.values_mut().map(|traveller| &mut traveller.link);
        spread(self.tree.links_mut().chain(travellers).collect(), fault, patience);
    }
}

//! A rank that is not the root, from its first knock until all are there.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::door::{Door, Proved};
use super::knock::{Knock, Watch};
use super::link::Link;
use super::shape::{Place, Shape, share};
use super::tree::{Ears, Tree};
use crate::bootstrap::auth::{Secret, Verdict};
use crate::bootstrap::error::BootstrapError;
use crate::bootstrap::fault::Fault;
use crate::bootstrap::unique_id::UniqueId;
use crate::bootstrap::wire::{Deadline, Kind, wait_for};

/// Takes rank `rank`'s place in the tree of job `id` and waits until all ranks have taken theirs.
pub(super) fn join(
    id: &UniqueId,
    rank: usize,
    shape: Shape,
    timeout: Duration,
) -> Result<Tree, BootstrapError> {
    let branch = Registered::at_root(id, rank, shape, timeout)?.climb()?;
    branch.until_start().map_err(|fault| fault.error(shape.world))
}

/// A rank that the root knows, and has given a place.
pub(super) struct Registered<'a> {
    pub(super) place: Place,
    knock: Knock<'a>,
    root: Link,
    listener: Option<TcpListener>,
    secret: &'a Secret,
    tree: Tree,
    timeout: Duration,
}

impl<'a> Registered<'a> {
    pub(super) fn at_root(
        id: &'a UniqueId,
        rank: usize,
        shape: Shape,
        timeout: Duration,
    ) -> Result<Self, BootstrapError> {
        let mut knock = Knock::new(id.secret(), id.addr(), (rank, shape.world), timeout);
        knock.listens = !shape.is_star();
        let (stream, listener) = knock.until_in(None)?;
        let mut root = Link::new(0, stream);
        let place = if shape.is_star() {
            Place::below_the_root()
        } else {
            place(&mut root, shape, timeout).map_err(|fault| fault.error(shape.world))?
        };
        // Who has no children needs no door; nobody has been told where it is.
        let listener = listener.filter(|_| place.children > 0);
        let mut tree = Tree::new(rank, shape.world, place.height);
        tree.grace = place.grace(timeout);
        Ok(Self { place, knock, root, listener, secret: id.secret(), tree, timeout })
    }

    /// Gets in at the parent's door, while the root is listened to.
    pub(super) fn climb(self) -> Result<Branch<'a>, BootstrapError> {
        let Self { place, knock, mut root, listener, secret, mut tree, timeout } = self;
        let mut first = None;
        if let Some(addr) = place.addr {
            // The root alone knows who is missing, so its verdict has to have the time to come first.
            let deadline = Deadline::after(timeout.saturating_add(tree.grace));
            let knock = knock.at_parent(place.parent, in_own_scope(addr, &root), deadline);
            let late = Instant::now() + (timeout / 4).min(Duration::from_secs(1));
            let watch = Watch { root: &mut root, complain: Some(late) };
            let (stream, _) = knock.until_in(Some(watch))?;
            tree.parent = Some(Link::new(place.parent, stream));
            first = Some(root);
        } else {
            tree.parent = Some(root);
        }
        Ok(Branch { secret, tree, first, listener, expected: place.children, timeout })
    }
}

/// What the root says about where this rank belongs.
fn place(root: &mut Link, shape: Shape, timeout: Duration) -> Result<Place, Fault> {
    let deadline = Deadline::after(timeout);
    loop {
        if let Some(frame) = root.read()? {
            let place = Place::decode(frame.rank, &frame.body, shape);
            return match place.filter(|_| frame.kind == Kind::Place) {
                Some(place) => Ok(place),
                None => Err(Fault::Malformed { peer: 0 }),
            };
        }
        let waited = wait_for(root.stream(), false, deadline);
        if !waited.map_err(|e| Fault::closed(0, Some(&e)))? {
            return Err(Fault::Missing { ranks: vec![0], waited: timeout });
        }
    }
}

/// A link-local IPv6 address has the number of an interface of the host that saw it; here it is another one.
fn in_own_scope(addr: SocketAddr, root: &Link) -> SocketAddr {
    match (addr, root.stream().local_addr()) {
        (SocketAddr::V6(mut addr), Ok(SocketAddr::V6(own))) => {
            addr.set_scope_id(own.scope_id());
            addr.into()
        }
        _ => addr,
    }
}

/// A rank in its place, before the start.
pub(super) struct Branch<'a> {
    secret: &'a Secret,
    tree: Tree,
    /// The first connection to the root, until that closes it.
    first: Option<Link>,
    /// Where children come.
    listener: Option<TcpListener>,
    /// Children that will come.
    expected: usize,
    timeout: Duration,
}

impl Branch<'_> {
    pub(super) fn until_start(mut self) -> Result<Tree, Fault> {
        let timeout = self.timeout;
        let listener = self.listener.take();
        let started = self.run(listener.as_ref()).and_then(|()| {
            self.tree.tell_children(Kind::All);
            self.tree.settle(timeout)
        });
        if let Err(fault) = started {
            self.tree.spread(&fault, timeout);
            return Err(fault);
        }
        Ok(self.tree)
    }

    fn run(&mut self, listener: Option<&TcpListener>) -> Result<(), Fault> {
        let open = |listener| Door::open(listener, self.secret, self.tree.rank);
        let mut door = listener.map(open);
        let deadline = Deadline::after(self.timeout.saturating_add(self.tree.grace));
        // The first connection is not waited for: its end means nothing, and word of a failure comes by the parent.
        let tick = share(self.timeout, self.tree.height);
        loop {
            self.tree.flush();
            if deadline.passed() {
                let ranks = vec![self.tree.parent_rank()];
                return Err(Fault::Missing { ranks, waited: self.timeout });
            }
            self.tree.wait(Ears::ALL, door.as_mut(), deadline.left().min(tick))?;
            self.hear_root()?;
            self.hear_children()?;
            if self.hear_parent()? {
                return Ok(());
            }
            for proved in door.as_mut().map(Door::hear).unwrap_or_default() {
                self.judge(proved);
            }
            if self.tree.children.len() == self.expected {
                door = None;
            }
        }
    }

    fn hear_root(&mut self) -> Result<(), Fault> {
        match self.first.as_mut().map(Link::read) {
            None | Some(Ok(None)) => Ok(()),
            Some(Ok(Some(_))) => Err(Fault::Malformed { peer: 0 }),
            Some(Err(Fault::Closed { peer: 0, .. })) => {
                self.first = None;
                Ok(())
            }
            Some(Err(fault)) => Err(fault),
        }
    }

    /// Whether the job starts.
    fn hear_parent(&mut self) -> Result<bool, Fault> {
        let Some(parent) = self.tree.parent.as_mut().filter(|link| link.ready) else {
            return Ok(false);
        };
        let malformed = Fault::Malformed { peer: parent.peer };
        match parent.read()? {
            None => Ok(false),
            Some(frame) if frame.kind == Kind::All && frame.body.is_empty() => {
                let all = self.tree.children.len() == self.expected;
                if all { Ok(true) } else { Err(malformed) }
            }
            Some(_) => Err(malformed),
        }
    }

    fn hear_children(&mut self) -> Result<(), Fault> {
        let Tree { children, parent, .. } = &mut self.tree;
        for child in children.iter_mut().filter(|child| child.ready) {
            while let Some(frame) = child.read()? {
                match (frame.kind, &mut *parent) {
                    (Kind::Present, Some(parent)) => {
                        parent.out.push(Kind::Present, frame.rank, &[])
                    }
                    _ => return Err(Fault::Malformed { peer: child.peer }),
                }
            }
        }
        Ok(())
    }

    /// Takes in a child. The root has checked who it is; who does not belong here is sent away, and the root
    /// finds out whose fault that was.
    fn judge(&mut self, proved: Proved) {
        let (rank, world) = (proved.hello.rank as usize, self.tree.world);
        let known = rank == self.tree.rank || rank == self.tree.parent_rank();
        let verdict = if proved.hello.world as usize != world {
            Verdict::OtherWorld { root_world: world as u32 }
        } else if rank >= world || self.tree.children.len() == self.expected {
            Verdict::OutOfRange
        } else if known || self.tree.children.iter().any(|child| child.peer == rank) {
            Verdict::Duplicate
        } else {
            Verdict::Accepted
        };
        let addr = proved.addr;
        let stream = proved.answer(self.secret, verdict);
        if verdict != Verdict::Accepted {
            tracing::warn!(
                "rank {} has no child {rank}, as {addr} says: {verdict:?}",
                self.tree.rank
            );
            return;
        }
        self.tree.children.push(Link::new(rank, stream));
        if let Some(parent) = &mut self.tree.parent {
            parent.out.push(Kind::Present, rank, &[]);
        }
    }
}

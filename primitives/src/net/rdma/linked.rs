//! Queue pairs are agreed upon over [`Links`], which also tell of a peer's end.

use std::time::{Duration, Instant};

use super::Exchange;
use crate::net::link::Links;
use crate::net::{NetError, NetFault};

/// Between looks for a message.
const PAUSE: Duration = Duration::from_micros(200);
/// A message that is there is read at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The way between ranks that [`RdmaTransport`](super::RdmaTransport) needs, over authenticated connections by TCP.
#[derive(Debug)]
pub struct LinkExchange {
    links: Links,
    /// Peers that were reached, and are not known to have gone.
    watched: Vec<usize>,
}

impl LinkExchange {
    /// Over links that nobody else uses.
    pub fn new(links: Links) -> Self {
        Self { links, watched: Vec::new() }
    }

    fn left(deadline: Instant) -> Duration {
        deadline.saturating_duration_since(Instant::now())
    }

    fn missing(peer: usize) -> NetError {
        let hint = "; look at whether they run, and at what they say".to_owned();
        NetError::Missing { missing: vec![peer], timeout: Duration::ZERO, hint }
    }
}

impl Exchange for LinkExchange {
    fn reach(&mut self, peers: &[usize], deadline: Instant) -> Result<(), NetError> {
        let reached = self.links.connect(peers, Self::left(deadline));
        let new = |peer: &&usize| self.links.link(**peer).is_some() && !self.watched.contains(peer);
        let new: Vec<usize> = peers.iter().filter(new).copied().collect();
        self.watched.extend(new);
        reached
    }

    fn give(&mut self, peer: usize, message: &[u8], deadline: Instant) -> Result<(), NetError> {
        let link = self.links.link(peer).ok_or_else(|| Self::missing(peer))?;
        link.give(message, Self::left(deadline))
    }

    fn take(&mut self, peer: usize, deadline: Instant) -> Result<Vec<u8>, NetError> {
        let link = self.links.link(peer).ok_or_else(|| Self::missing(peer))?;
        while !link.holds_message() {
            if Self::left(deadline).is_zero() {
                return Err(Self::missing(peer));
            }
            std::thread::sleep(PAUSE);
        }
        link.take(AT_ONCE)
    }

    fn gone(&mut self) -> Vec<NetFault> {
        let mut gone = Vec::new();
        self.watched.retain(|&peer| match self.links.link(peer) {
            Some(link) if link.closed() => {
                let via = link.via();
                gone.push(link.fault(format!("the peer is gone: its connection {via} closed")));
                false
            }
            _ => true,
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::LocalBootstrap;
    use crate::net::link::LinkOptions;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn messages_are_taken_in_order_and_the_end_of_a_peer_is_told_once() {
        let deadline = Instant::now() + SOON;
        let ranks = LocalBootstrap::create(3, SOON).unwrap();
        std::thread::scope(|scope| {
            for mut rank in ranks {
                scope.spawn(move || {
                    use crate::bootstrap::Bootstrap;
                    let me = rank.rank();
                    let links = Links::new(&mut rank, &LinkOptions::default()).unwrap();
                    let mut exchange = LinkExchange::new(links);
                    let peers: Vec<usize> = (0..3).filter(|peer| *peer != me).collect();
                    exchange.reach(&peers, deadline).unwrap();
                    // All is given before anything is taken: no order of ranks blocks.
                    for word in [b"one", b"two"] {
                        peers.iter().for_each(|&p| exchange.give(p, word, deadline).unwrap());
                    }
                    for word in [b"one", b"two"] {
                        for &peer in &peers {
                            assert_eq!(exchange.take(peer, deadline).unwrap(), word);
                        }
                    }
                    assert!(exchange.gone().is_empty());
                    rank.barrier().unwrap();
                    if me == 2 {
                        return;
                    }
                    let mut gone = Vec::new();
                    while gone.is_empty() && Instant::now() < deadline {
                        gone = exchange.gone();
                    }
                    // Whoever saw this first may have gone, too.
                    assert!(gone.iter().any(|fault| fault.peer == 2), "{gone:?}");
                    rank.barrier().unwrap_err();
                    assert!(exchange.take(2, deadline).is_err());
                });
            }
        });
    }
}

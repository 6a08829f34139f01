use std::io::{Read, Write};
use std::thread;

use super::*;
use crate::bootstrap::LocalBootstrap;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// Runs every rank on a thread; what they return, in rank order.
fn ranks<T: Send>(world: usize, work: impl Fn(Links) -> T + Sync) -> Vec<T> {
    thread::scope(|s| {
        let one = |mut bootstrap: LocalBootstrap| {
            let work = &work;
            s.spawn(move || work(Links::new(&mut bootstrap, &LinkOptions::default()).unwrap()))
        };
        let all: Vec<_> =
            LocalBootstrap::create(world, LONG).unwrap().into_iter().map(one).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn others(links: &Links) -> Vec<usize> {
    (0..links.world()).filter(|&peer| peer != links.rank()).collect()
}

/// Waits until a stranger's connection is closed; what was said before.
fn hears_close(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => panic!("not closed: {e}"),
        _ => said,
    }
}

#[test]
fn all_ranks_link_and_exchange() {
    ranks(5, |mut links| {
        let peers = others(&links);
        links.connect(&peers, LONG).unwrap();
        for &peer in peers.iter().rev() {
            let mine = vec![links.rank() as u8; 1000 * peer];
            let theirs = links.exchange(peer, &mine, LONG).unwrap();
            assert_eq!(theirs, vec![peer as u8; 1000 * links.rank()]);
            assert!(!links.link(peer).unwrap().closed());
        }
        links.connect(&peers, SHORT).unwrap();
        // Nobody leaves before all have looked.
        peers.iter().for_each(|&peer| assert_eq!(links.exchange(peer, b"", LONG).unwrap(), b""));
    });
}

#[test]
fn a_rank_that_comes_early_is_kept() {
    ranks(3, |mut links| match links.rank() {
        // Rank 2 is let in while rank 1 is waited for.
        0 => {
            links.connect(&[1], LONG).unwrap();
            while links.link(2).is_none() {
                let _ = links.connect(&[2], LONG);
            }
            assert_eq!(links.exchange(2, b"a", LONG).unwrap(), b"c");
        }
        1 => {
            thread::sleep(SHORT);
            links.connect(&[0], LONG).unwrap();
        }
        _ => {
            links.connect(&[0], LONG).unwrap();
            assert_eq!(links.exchange(0, b"c", LONG).unwrap(), b"a");
        }
    });
}

#[test]
fn strangers_are_dropped_and_delay_nobody() {
    ranks(2, |mut links| {
        if links.rank() == 0 {
            let address = links.address();
            let begin = Instant::now();
            let strangers = thread::spawn(move || {
                let stranger = |bytes: &[u8]| {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.write_all(bytes).unwrap();
                    stream
                };
                let silent: Vec<_> = (0..100).map(|_| stranger(b"wm")).collect();
                let http = hears_close(stranger(&[b'G'; 300]));
                let mut hello =
                    *b"wmbs\x01\0\0\0\x01\0\0\0\x02\0\0\0................................";
                let mut liar = stranger(&hello);
                liar.read_exact(&mut [0; 48]).unwrap();
                liar.write_all(&[7; 32]).unwrap();
                let refused = hears_close(liar);
                hello[4] = 9;
                let other_version = hears_close(stranger(&hello));
                drop(silent);
                (http, refused, other_version)
            });
            // As long as rank 1 is not there, they have the door for themselves.
            let alone = links.connect(&[1], SHORT).unwrap_err().to_string();
            assert!(
                alone.contains("rank 1 did not dial") && alone.contains("strangers"),
                "{alone}"
            );
            while !strangers.is_finished() {
                let _ = links.connect(&[1], Duration::from_millis(50));
            }
            let (http, refused, other_version) = strangers.join().unwrap();
            assert_eq!((http, other_version), (Vec::new(), Vec::new()));
            assert_eq!(refused[8], 7, "refused");
            links.connect(&[1], LONG).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        } else {
            thread::sleep(SHORT * 2);
            links.connect(&[0], LONG).unwrap();
        }
        let peer = 1 - links.rank();
        assert_eq!(links.exchange(peer, &[peer as u8], LONG).unwrap(), [links.rank() as u8]);
    });
}

#[test]
fn another_secret_is_refused_on_both_sides() {
    ranks(2, |mut links| {
        links.identity.secret = Secret::random().unwrap();
        let error = links.connect(&[1 - links.rank()], SHORT * 2).unwrap_err().to_string();
        let expected = ["does not know the secret", "refused the secret"][links.rank()];
        assert!(error.contains(expected), "{error}");
    });
}

#[test]
fn a_connection_led_to_another_rank_is_refused() {
    ranks(3, |mut links| {
        if links.rank() == 2 {
            // As somebody on the way would do it.
            links.addresses[0] = links.addresses[1];
            let error = links.connect(&[0], SHORT * 2).unwrap_err().to_string();
            assert!(error.contains("refused the secret"), "{error}");
        } else {
            let _ = links.connect(&[2], SHORT * 2);
            assert!(links.link(2).is_none());
        }
    });
}

#[test]
fn who_is_missing_is_named_with_what_was_seen() {
    ranks(3, |mut links| {
        if links.rank() != 1 {
            if links.rank() == 2 {
                // Its host answers, but there is no such door.
                links.addresses[0].set_port(1);
            }
            let error =
                links.connect(&[0, 2].map(|r| if r == links.rank() { 1 } else { r }), SHORT);
            let error = error.unwrap_err();
            let NetError::Missing { missing, hint, .. } = &error else { panic!("{error}") };
            assert_eq!(missing.len(), 2);
            if links.rank() == 2 {
                assert!(hint.contains("rank 0") && hint.contains("refused"), "{hint}");
                assert!(hint.contains("rank 1") && hint.contains("has not looked"), "{hint}");
            } else {
                assert!(hint.contains("rank 2 did not dial"), "{hint}");
            }
        } else {
            // Its door stays open, but nobody looks.
            thread::sleep(SHORT * 2);
        }
    });
}

#[test]
fn messages_that_lie_break_the_link() {
    for (message, expected) in [
        (&b"wmx1\xff\xff\xff\xff"[..], "no message"),
        (b"wmx2\x01\0\0\0.", "no message"),
        (b"wmx1\x05\0\0\0abc", "closed"),
        (b"wm", "closed"),
    ] {
        ranks(2, |mut links| {
            links.connect(&[1 - links.rank()], LONG).unwrap();
            if links.rank() == 0 {
                links.link(1).unwrap().stream().write_all_now(message);
            } else {
                let error = links.exchange(0, b"", LONG).unwrap_err();
                let NetError::Broken(fault) = &error else { panic!("{error}") };
                // A close with bytes that nobody read is a reset.
                let reset = expected == "closed" && fault.cause.contains("reset");
                assert!(fault.peer == 0 && (reset || fault.cause.contains(expected)), "{error}");
            }
        });
    }
}

trait Now {
    fn write_all_now(self, bytes: &[u8]);
}

impl Now for &TcpStream {
    fn write_all_now(mut self, bytes: &[u8]) {
        self.write_all(bytes).unwrap();
    }
}

#[test]
fn a_peer_that_left_is_noticed_and_linked_again() {
    ranks(2, |mut links| {
        let peer = 1 - links.rank();
        links.connect(&[peer], LONG).unwrap();
        if links.rank() == 1 {
            links.places[0] = Place::Empty;
        } else {
            let begin = Instant::now();
            while !links.link(1).unwrap().closed() {
                assert!(begin.elapsed() < LONG);
            }
        }
        links.connect(&[peer], LONG).unwrap();
        assert_eq!(links.exchange(peer, b"again", LONG).unwrap(), b"again");
        assert!(links.connect(&[links.rank()], SHORT).is_err(), "with itself");
        assert!(links.connect(&[7], SHORT).is_err(), "there is no such rank");
        drop(links.take(peer).unwrap());
        assert!(links.take(peer).is_none() && links.connect(&[peer], SHORT).is_err());
    });
}

#[test]
fn silence_in_an_exchange_ends() {
    ranks(2, |mut links| {
        links.connect(&[1 - links.rank()], LONG).unwrap();
        if links.rank() == 0 {
            let error = links.exchange(1, &[0; 100], SHORT).unwrap_err();
            assert!(error.to_string().contains("no message within"), "{error}");
            let long = vec![0; MAX_EXCHANGE + 1];
            assert!(matches!(links.exchange(1, &long, SHORT), Err(NetError::Protocol { .. })));
        } else {
            thread::sleep(SHORT * 2);
        }
    });
}

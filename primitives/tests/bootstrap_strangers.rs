//! Who must not get into a job, and must not keep others out: strangers, replays, wrong secrets, torn frames.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};
use warpmesh_primitives::bootstrap::{
    Bootstrap, BootstrapError, MAX_CONTRIBUTION, Secret, TcpBootstrap, TcpRoot, UniqueId,
};

const LONG: Duration = Duration::from_secs(30);
/// The messages of a joining rank: hello and proof.
const HANDSHAKE_UP: usize = 48 + 32;
/// The messages of the root: challenge and verdict.
const HANDSHAKE_DOWN: usize = 48 + 48;
/// The root's message that all ranks have come.
const START: usize = 12;
/// A rank's part in a barrier.
const PART: usize = 12;

#[test]
fn garbage_and_http_are_dropped_unanswered_and_logged() {
    let http = b"GET / HTTP/1.1\r\nHost: rank-zero\r\nUser-Agent: scanner\r\nAccept: */*\r\n\r\n";
    let mut addresses = Vec::new();
    let (_, log) = job_after(|addr| {
        for bytes in [&[0xa5; 4096][..], http] {
            let stream = stranger(addr, bytes);
            addresses.push(stream.local_addr().unwrap());
            assert_eq!(hears_close(stream), b"");
        }
        Vec::new()
    });
    for addr in addresses {
        let dropped = format!("from {addr}: what it sent is no bootstrap hello");
        assert!(log.contains(&dropped), "{log}");
    }
}

#[test]
fn silence_and_half_a_hello_delay_nobody() {
    let hello = hello(1);
    let (took, log) = job_after(|addr| {
        let silent = stranger(addr, b"");
        let half = stranger(addr, &hello[..30]);
        let whole = stranger(addr, &hello);
        let gone = stranger(addr, &hello[..9]);
        gone.shutdown(Shutdown::Both).unwrap();
        vec![silent, half, whole]
    });
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(log.contains("it closed before it had proved the secret"), "{log}");
    assert!(log.contains("when the last rank joined"), "{log}");
}

#[test]
fn another_protocol_version_is_told_so() {
    let (_, log) = job_after(|addr| {
        let said = hears_close(stranger(addr, &hello(9)));
        assert_eq!((said.len(), said[8]), (48, 7), "refused");
        Vec::new()
    });
    assert!(log.contains("protocol version 9"), "{log}");
}

#[test]
fn silent_strangers_are_dropped_after_their_time() {
    let begin = Instant::now();
    let (_, log) = job_after(|addr| {
        assert_eq!(hears_close(stranger(addr, b"wmbs")), b"");
        Vec::new()
    });
    assert!(begin.elapsed() >= Duration::from_secs(5));
    assert!(log.contains("did not prove the secret within 5 s"), "{log}");
}

#[test]
fn two_hundred_connections_delay_nobody_for_long() {
    let (took, log) = job_after(|addr| (0..200).map(|_| stranger(addr, b"wm")).collect());
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(log.contains("64 newer connections"), "{log}");
}

#[test]
fn a_wrong_secret_is_refused_and_the_job_goes_on() {
    let (_, log) = job_after(|addr| {
        let wrong = UniqueId::with_secret(addr, Secret::random().unwrap()).unwrap();
        let begin = Instant::now();
        let error = TcpBootstrap::join(&wrong, 1, 3, LONG).unwrap_err();
        assert!(matches!(error, BootstrapError::Refused { rank: 1, .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5), "at once");
        Vec::new()
    });
    assert!(log.contains("it does not know the secret"), "{log}");
}

#[test]
fn a_replay_is_refused_and_the_job_goes_on() {
    // An address of its own: another test cannot be given the port when it is free for a moment.
    let (root, id) = TcpRoot::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let relay = Relay::start(id.addr(), None, None);
    let join = relay.join(&id, 2);
    TcpBootstrap::root(root, 2, LONG).unwrap().barrier().unwrap();
    join.join().unwrap().unwrap();
    let recorded = relay.recorded.join().unwrap();
    assert!(recorded.len() > HANDSHAKE_UP && recorded.starts_with(b"wmbs"));

    // The same secret and address, and even the same rank and world: only the root's nonce is new.
    thread::scope(|s| {
        let root = s.spawn(|| TcpBootstrap::from_id_as_root(&id, 2, LONG)?.barrier());
        let said = hears_close(stranger_to_be(id.addr(), &recorded));
        assert!(said.len() <= HANDSHAKE_DOWN, "{said:?}");
        assert!(said.len() < 57 || said[56] == 7, "challenged, then refused: {said:?}");
        TcpBootstrap::join(&id, 1, 2, LONG).unwrap().barrier().unwrap();
        root.join().unwrap().unwrap();
    });
}

#[test]
fn a_root_that_does_not_know_the_secret_is_not_believed() {
    let mut challenge = [7; 48];
    challenge[..16].copy_from_slice(b"wmbs\x01\0\0\0\x01\0\0\0\0\0\0\0");
    let mut accepted = challenge;
    accepted[8] = 2;
    let ssh = [&b"SSH-2.0-OpenSSH_9.6\r\n"[..], &[0; 75]].concat();
    for said in [[challenge, accepted].concat(), [challenge, challenge].concat(), ssh] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = UniqueId::new(listener.local_addr().unwrap()).unwrap();
        let fake = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(&said).unwrap();
            hears_close(stream)
        });
        let error = TcpBootstrap::join(&id, 1, 2, LONG).unwrap_err();
        assert!(matches!(error, BootstrapError::Impostor { .. }), "{error}");
        fake.join().unwrap();
    }
}

#[test]
fn frames_that_no_rank_sends_are_refused_at_the_root() {
    let too_long = header(1, MAX_CONTRIBUTION as u64 + 1);
    for frame in [header(1, u64::MAX), too_long, header(2, 0), header(9, 0)] {
        let (root, id) = bind();
        let relay = Relay::start(id.addr(), Some((HANDSHAKE_UP, Deed::Insert(frame))), None);
        let join = relay.join(&id, 2);
        let at_root = TcpBootstrap::root(root, 2, LONG).and_then(|mut root| root.barrier());
        // The rank may say it out of turn, too: before all have come, or while it waits for the root.
        for error in [at_root.unwrap_err(), join.join().unwrap().unwrap_err()] {
            assert!(matches!(error, BootstrapError::Malformed { peer: 1 }), "{error}");
        }
    }
}

#[test]
fn frames_that_no_root_sends_are_refused_by_the_ranks() {
    let no_parts = [header(2, 12), vec![0xff; 12]].concat();
    let no_fault = [header(3, 4), vec![99, 0, 0, 0]].concat();
    for frame in [header(2, 1 << 50), header(1, 0), header(7, 1), no_parts, no_fault] {
        let (root, id) = bind();
        let insert = Some((HANDSHAKE_DOWN + START, Deed::Insert(frame)));
        let relay = Relay::start(id.addr(), None, insert);
        let join = relay.join(&id, 2);
        let root = TcpBootstrap::root(root, 2, LONG).unwrap();
        let error = join.join().unwrap().unwrap_err();
        assert!(matches!(error, BootstrapError::Malformed { peer: 0 }), "{error}");
        drop(root);
    }
}

#[test]
fn a_rank_that_takes_no_result_is_named_and_the_others_have_theirs() {
    let short = Duration::from_millis(500);
    let (root, id) = bind();
    let stall = Some((HANDSHAKE_DOWN + START, Deed::Stall(short * 4)));
    let relay = Relay::start(id.addr(), None, stall);
    let stalled = relay.join(&id, 3);
    thread::scope(|s| {
        let good = s.spawn(|| {
            let mut own = TcpBootstrap::join(&id, 2, 3, short * 4)?;
            assert_eq!(own.barrier().map(|()| own.world())?, 3);
            own.barrier()
        });
        let mut root = TcpBootstrap::root(root, 3, short).unwrap();
        // Far more than the sockets on the way hold.
        let at_root = root.all_gather(&vec![0; MAX_CONTRIBUTION]).unwrap_err();
        for error in [at_root, good.join().unwrap().unwrap_err()] {
            let named =
                matches!(&error, BootstrapError::Missing { missing, .. } if missing == &[1]);
            assert!(named, "{error}");
        }
    });
    let error = stalled.join().unwrap().unwrap_err();
    assert!(matches!(error, BootstrapError::PeerClosed { peer: 0, .. }), "{error}");
}

#[test]
fn a_rank_that_dies_after_its_part_is_named_while_another_is_awaited() {
    let (root, id) = bind();
    let close = Some((HANDSHAKE_UP + PART, Deed::Close));
    let dying = Relay::start(id.addr(), close, None).join(&id, 3);
    thread::scope(|s| {
        let begin = Instant::now();
        let busy = s.spawn(|| TcpBootstrap::join(&id, 2, 3, LONG));
        let mut root = TcpBootstrap::root(root, 3, LONG).unwrap();
        let _busy = busy.join().unwrap().unwrap();
        for error in [root.barrier().unwrap_err(), dying.join().unwrap().unwrap_err()] {
            assert!(matches!(error, BootstrapError::PeerClosed { peer: 1, .. }), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
    });
}

/// Lets the root of a job of 3 listen, `strangers` do as they like, and then the ranks come: they have to
/// succeed. Returns how long that took from when the ranks came, and what was logged.
fn job_after(strangers: impl FnOnce(SocketAddr) -> Vec<TcpStream>) -> (Duration, String) {
    let (root, id) = bind();
    let log = Log::default();
    let took = thread::scope(|s| {
        let (id, heard) = (&id, log.clone());
        let root = s.spawn(move || {
            tracing::subscriber::with_default(heard, || {
                TcpBootstrap::root(root, 3, LONG)?.all_gather(&[0])
            })
        });
        let open = strangers(id.addr());
        let begin = Instant::now();
        let joins = [1, 2].map(|rank| {
            s.spawn(move || TcpBootstrap::join(id, rank, 3, LONG)?.all_gather(&[rank as u8]))
        });
        for rank in joins.into_iter().chain([root]) {
            assert_eq!(rank.join().unwrap().unwrap(), [[0], [1], [2]]);
        }
        drop(open);
        begin.elapsed()
    });
    (took, log.text())
}

fn bind() -> (TcpRoot, UniqueId) {
    TcpRoot::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// A stranger who sends `bytes` and stays.
fn stranger(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// A stranger as soon as somebody listens.
fn stranger_to_be(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let begin = Instant::now();
    while TcpListener::bind(addr).is_ok() {
        assert!(begin.elapsed() < LONG, "nobody listens at {addr}");
        thread::sleep(Duration::from_millis(2));
    }
    stranger(addr, bytes)
}

/// Waits until the root closes the connection; what it said before.
fn hears_close(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        // A reset is a close too.
        Err(e) if e.kind() != io::ErrorKind::ConnectionReset => panic!("not closed: {e}"),
        _ => said,
    }
}

fn hello(version: u8) -> [u8; 48] {
    let mut hello = *b"wmbs.\0\0\0\x01\0\0\0\x03\0\0\0................................";
    hello[4] = version;
    hello
}

fn header(kind: u32, length: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat()
}

/// Someone between rank 1 and the root, who listens in and does something after so many bytes.
struct Relay {
    addr: SocketAddr,
    /// What the rank sent.
    recorded: JoinHandle<Vec<u8>>,
}

enum Deed {
    Insert(Vec<u8>),
    Close,
    Stall(Duration),
}

impl Relay {
    fn start(root: SocketAddr, up: Option<(usize, Deed)>, down: Option<(usize, Deed)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let recorded = thread::spawn(move || {
            let rank = listener.accept().unwrap().0;
            let root = TcpStream::connect(root).unwrap();
            let (from, to) = (root.try_clone().unwrap(), rank.try_clone().unwrap());
            thread::spawn(move || pass(from, to, down));
            pass(rank, root, up)
        });
        Self { addr, recorded }
    }

    /// Rank 1 joins through this and calls a barrier.
    fn join(&self, id: &UniqueId, world: usize) -> JoinHandle<Result<(), BootstrapError>> {
        let text = id.to_string().replace(&id.addr().to_string(), &self.addr.to_string());
        let id: UniqueId = text.parse().unwrap();
        thread::spawn(move || TcpBootstrap::join(&id, 1, world, LONG)?.barrier())
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut deed: Option<(usize, Deed)>) -> Vec<u8> {
    let mut passed = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let room = deed.as_ref().map_or(buffer.len(), |(after, _)| after - passed.len());
        if room == 0 {
            match deed.take() {
                Some((_, Deed::Insert(frame))) => drop(to.write_all(&frame)),
                Some((_, Deed::Stall(time))) => thread::sleep(time),
                Some((_, Deed::Close)) => break,
                None => {}
            }
            continue;
        }
        let Ok(got @ 1..) = from.read(&mut buffer[..room.min(4096)]) else {
            break;
        };
        passed.extend_from_slice(&buffer[..got]);
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    passed
}

/// Keeps the text of warnings.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl Visit for &Log {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        *self.0.lock().unwrap() += &format!("{value:?}\n");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut &*self);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

//! Hosts and the wire between them, on one machine: network namespaces of threads, with a tunnel device in each, and
//! between the devices this process, which delays packets, loses some, or cuts the wire.
//!
//! Why not veth and netem: many kernels are built without netem, and a namespace with a name has to be deleted. These
//! namespaces have no names and no files: the kernel takes them, their devices and addresses back when the last thread
//! and socket in them has gone, however the process ends. Processes that a thread starts are in its namespace.
//!
//! Needs root, /dev/net/tun and `ip` of iproute2.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The name of the device, in each namespace.
pub const DEVICE: &str = "wire";
const LARGEST_PACKET: usize = 65_536;

/// What the wire does to packets, in both directions. Relaxed: each is right by itself, some packet later.
#[derive(Debug, Default)]
pub struct Weather {
    delay_micros: AtomicU64,
    /// Packets lost of 1000.
    loss: AtomicU64,
    cut: AtomicBool,
    over: AtomicBool,
    passed: AtomicU64,
    lost: AtomicU64,
}

impl Weather {
    /// One way.
    pub fn delay(&self, time: Duration) {
        self.delay_micros.store(time.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn lose(&self, of_thousand: u64) {
        self.loss.store(of_thousand, Ordering::Relaxed);
    }

    /// From now on nothing passes.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub fn mend(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }

    /// Packets that passed, and that were lost.
    pub fn count(&self) -> (u64, u64) {
        (self.passed.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }
}

/// Two hosts and the wire between them.
pub struct Wire {
    hosts: [Host; 2],
    pub weather: Arc<Weather>,
    relays: Vec<JoinHandle<()>>,
}

/// A network namespace.
#[derive(Debug)]
pub struct Host {
    namespace: OwnedFd,
    device: File,
}

impl Wire {
    /// Two hosts with these addresses, of one network.
    ///
    /// # Panics
    /// If this process may not, or the system cannot: it says what is missing.
    pub fn new(addresses: [IpAddr; 2]) -> Self {
        let hosts = addresses.map(Host::new);
        let weather = Arc::new(Weather::default());
        let relays = [(0, 1), (1, 0)].map(|(from, to)| {
            let weather = weather.clone();
            let open = |host: &Host| host.device.try_clone().unwrap();
            let (from, to) = (open(&hosts[from]), open(&hosts[to]));
            std::thread::spawn(move || relay(from, to, &weather))
        });
        Self { hosts, weather, relays: relays.into() }
    }

    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number]
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.weather.over.store(true, Ordering::Relaxed);
        self.relays.drain(..).for_each(|relay| drop(relay.join()));
    }
}

impl Host {
    fn new(address: IpAddr) -> Self {
        // A thread of its own, for it stays in the namespace.
        std::thread::spawn(move || {
            // SAFETY: of this thread only the network changes, in which it has no sockets yet.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .unwrap_or_else(|errno| panic!("a network namespace ({errno}): run as root"));
            let device = tunnel();
            let length = if address.is_ipv4() { 24 } else { 64 };
            let (address, nodad) = (format!("{address}/{length}"), ["nodad"]);
            ip(&["link", "set", "lo", "up"]);
            ip(&["link", "set", DEVICE, "up"]);
            let nodad = if length == 64 { &nodad[..] } else { &[] };
            ip(&[&["addr", "add", &address, "dev", DEVICE], nodad].concat());
            let namespace = File::open("/proc/thread-self/ns/net").unwrap().into();
            Self { namespace, device }
        })
        .join()
        .unwrap()
    }

    /// Moves the calling thread to this host, for good. Processes that it starts are there, too.
    pub fn enter(&self) {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.namespace.as_fd(), kind).unwrap();
    }
}

/// Runs iproute2 in the calling thread's namespace.
fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("ip ({error}): install iproute2"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {said}");
}

/// `struct ifreq` with flags in it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// `TUNSETIFF` of Linux.
const SET_INTERFACE: Opcode = 0x4004_54ca;
/// Bare IP packets, one by one: `IFF_TUN | IFF_NO_PI`.
const FLAGS: u16 = 0x1001;

/// A tunnel device in the calling thread's namespace: what it is sent is read from the file, and what is written there it
/// receives.
fn tunnel() -> File {
    let open = File::options().read(true).write(true).open("/dev/net/tun");
    let file = open.unwrap_or_else(|error| panic!("/dev/net/tun ({error}): the kernel needs TUN"));
    let mut request = Request { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    request.name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    // SAFETY: this request reads and writes one `ifreq`, 40 bytes, which `Request` is.
    unsafe { ioctl(&file, Updater::<SET_INTERFACE, Request>::new(&mut request)) }
        .unwrap_or_else(|errno| panic!("a tunnel device ({errno}): run as root"));
    rustix::io::ioctl_fionbio(&file, true).unwrap();
    file
}

/// One direction.
fn relay(mut from: File, mut to: File, weather: &Weather) {
    let mut packet = vec![0; LARGEST_PACKET];
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    // The same packets of the same run are lost; xorshift.
    let mut chance = 0x9e37_79b9_7f4a_7c15u64;
    while !weather.over.load(Ordering::Relaxed) {
        let due = under_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let longest = due.unwrap_or(Duration::from_millis(5)).min(Duration::from_millis(5));
        let mut fds = [PollFd::new(&from, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec::try_from(longest).unwrap()));
        while let Ok(bytes) = from.read(&mut packet) {
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            let lost = chance % 1000 < weather.loss.load(Ordering::Relaxed);
            if lost || weather.cut.load(Ordering::Relaxed) {
                weather.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let delay = Duration::from_micros(weather.delay_micros.load(Ordering::Relaxed));
            under_way.push_back((Instant::now() + delay, packet[..bytes].to_vec()));
            if under_way.len() >= 64 {
                break;
            }
        }
        while under_way.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let Some((_, packet)) = under_way.pop_front() else { break };
            // A device that is full, or gone, loses it.
            let passed = !weather.cut.load(Ordering::Relaxed) && to.write(&packet).is_ok();
            let count = if passed { &weather.passed } else { &weather.lost };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs one rank on each host; what they return.
pub fn on_hosts<B: Send, T: Send>(
    wire: &Wire,
    bootstraps: Vec<B>,
    work: impl Fn(B) -> T + Sync,
) -> Vec<T> {
    let bootstraps = Mutex::new(bootstraps.into_iter().map(Some).collect::<Vec<_>>());
    std::thread::scope(|s| {
        let rank = |number: usize| {
            let (bootstraps, work) = (&bootstraps, &work);
            s.spawn(move || {
                wire.host(number).enter();
                let own = bootstraps.lock().unwrap()[number].take().unwrap();
                work(own)
            })
        };
        [0, 1].map(rank).into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

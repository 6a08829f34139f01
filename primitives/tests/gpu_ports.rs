//! Ports of kernels: FIFO, proxy, transport, and back to a kernel that waits.

#[path = "common/gpu.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    BOTH, Device, LONG, Via, connect, count, process, process_via, processes, ranks, share,
};
use cudarc::driver::{CudaModule, DeviceRepr, LaunchConfig, PushKernelArg};
use warpmesh_primitives::bootstrap::Bootstrap;
use warpmesh_primitives::gpu::DeviceMemory;
use warpmesh_primitives::net::fifo::Bell;
use warpmesh_primitives::net::proxy::device::LAYOUT;
use warpmesh_primitives::net::proxy::{
    DevicePort, DevicePorts, Port, PortHandle, Proxy, ProxyOptions,
};
use warpmesh_primitives::net::{NetError, Span};

const KERNELS: &str = include_str!("common/ports.cu");

/// A rank with kernels. Memory 0 is the device's: the first part is sent from, the others are sent into.
struct Rank<B> {
    bootstrap: B,
    device: Device,
    module: Arc<CudaModule>,
    memory: Arc<DeviceMemory>,
    results: Arc<DeviceMemory>,
    part: usize,
    // Before the memory that kernels' ports are made of.
    proxy: Option<Proxy>,
    ports: DevicePorts,
}

impl<B: Bootstrap> Rank<B> {
    /// With one part of `part` bytes to send from and two to send into, and a FIFO of `size`.
    fn new(via: Via, mut bootstrap: B, part: usize, size: usize) -> Self {
        let device = Device::new(bootstrap.rank());
        let module = device.module(KERNELS);
        let (memory, results) = (device.memory(3 * part), device.memory(64));
        let mut transport = connect(via, &device, &mut bootstrap);
        let region = Arc::new(device.gpu.region_of(&memory).unwrap());
        share(&mut *transport, &mut bootstrap, 0, region);
        let bell = Bell::new().unwrap();
        let ports = DevicePorts::new(&device.gpu, size, 8, bell.clone()).unwrap();
        let options = ProxyOptions { device_producers: true, ..ProxyOptions::default() };
        let fifos = vec![ports.fifo().clone()];
        let proxy = Some(Proxy::start(transport, vec![], fifos, bell, &options).unwrap());
        Self { bootstrap, device, module, memory, results, part, proxy, ports }
    }

    fn rank(&self) -> usize {
        self.bootstrap.rank()
    }

    /// The n-th port to the other rank: both have opened as many.
    fn open(&mut self, n: u32, timeout: Duration) -> DevicePort {
        let to = Span { memory: 0, offset: self.part as u64 };
        let port = Port { peer: 1 - self.rank(), from: Span::default(), to, semaphore: n };
        let proxy = self.proxy.as_ref().unwrap();
        let number = proxy.add_port(port, LONG).unwrap();
        self.ports.open(proxy, number, n, timeout).unwrap()
    }

    fn source(&self) -> u64 {
        self.memory.address()
    }

    fn target(&self) -> u64 {
        self.memory.address() + self.part as u64
    }

    fn launch<T: DeviceRepr>(&self, kernel: &str, blocks: u32, threads: u32, args: &T) {
        let function = self.module.load_function(kernel).unwrap();
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: 0,
        };
        self.ports.fifo().bell().ring();
        let mut launch = self.device.stream.launch_builder(&function);
        // SAFETY: `T` is the kernel's parameter struct, and what it points to lives until the stream is synchronized.
        unsafe { launch.arg(args).launch(config) }.unwrap();
    }

    /// Waits for the kernel; the words of its results.
    fn results(&self) -> Vec<u32> {
        self.device.stream.synchronize().unwrap();
        let bytes = self.device.download(self.results.address(), 64);
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn exchange(&mut self, port: &DevicePort, (words, rounds, first): (u32, u32, u32)) {
        let args = Exchange {
            port: port.handle(),
            source: self.source(),
            target: self.target(),
            errors: self.results.address(),
            words,
            rounds,
            rank: self.rank() as u32,
            first,
        };
        self.launch("exchange", 1, 64, &args);
        let results = self.results();
        port.check().unwrap();
        assert_eq!(results[..2], [0, 0], "failed calls, wrong words");
        // The halves of another launch lie elsewhere, so the peer must have read those of this one.
        self.bootstrap.barrier().unwrap();
    }
}

macro_rules! parameters {
    ($(struct $name:ident { $($field:ident: $type:ty,)+ })+) => {$(
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct $name { $($field: $type,)+ }
        // SAFETY: numbers, in the layout of the kernel's struct of this name.
        unsafe impl DeviceRepr for $name {}
    )+};
}
parameters! {
    struct Exchange {
        port: PortHandle, source: u64, target: u64, errors: u64, words: u32, rounds: u32, rank: u32, first: u32,
    }
    struct PingPong { port: PortHandle, source: u64, target: u64, errors: u64, rounds: u32, rank: u32, }
    struct Many { ports: u64, source: u64, target: u64, errors: u64, rounds: u32, rank: u32, }
    struct Bad { bad: PortHandle, good: PortHandle, results: u64, beyond: u64, is_bad: u32, }
    struct Wait { port: PortHandle, results: u64, rounds: u32, }
}

#[test]
fn the_structs_of_the_host_are_those_of_the_device() {
    let Some(_) = count() else { return };
    let mut source = "#include \"warpmesh/port.cuh\"\nusing namespace warpmesh;\n".to_owned();
    for (of, member, bytes) in LAYOUT {
        source += &match member {
            "" => format!("static_assert(sizeof({of}) == {bytes}, \"{of}\");\n"),
            _ => format!(
                "static_assert(__builtin_offsetof({of}, {member}) == {bytes}, \"{of}::{member}\");\n"
            ),
        };
    }
    source += "extern \"C\" __global__ void nothing() {}\n";
    Device::new(0).module(&source);
}

#[test]
fn puts_signals_and_flushes_between_kernels() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let words = 300_001; // more than a stage holds
            let mut own = Rank::new(via, bootstrap, 4 * words as usize * 2, 16);
            let port = own.open(0, LONG);
            own.bootstrap.barrier().unwrap();
            // Several launches, whose counts go on.
            own.exchange(&port, (words, 3, 0));
            own.exchange(&port, (1, 9, 3));
            own.exchange(&port, (5_003, 6, 12));
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn kernels_play_ping_pong() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let mut own = Rank::new(via, bootstrap, 4096, 4);
            let port = own.open(0, LONG);
            own.bootstrap.barrier().unwrap();
            let (source, target) = (own.source(), own.target());
            let (errors, rank) = (own.results.address(), own.rank() as u32);
            let port_handle = port.handle();
            let args = PingPong { port: port_handle, source, target, errors, rounds: 200, rank };
            own.launch("ping_pong", 1, 1, &args);
            assert_eq!(own.results()[0], 0, "{via:?}");
            port.check().unwrap();
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn many_ports_share_a_small_fifo() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let (ports, rounds) = (8u32, 60u32);
            let mut own = Rank::new(via, bootstrap, 4 * 8 * 60, 4);
            let all: Vec<_> = (0..ports).map(|n| own.open(n, LONG)).collect();
            let handles: Vec<_> = all.iter().map(DevicePort::handle).collect();
            let table = own.device.memory(size_of_val(&handles[..]));
            own.device.upload(table.address(), bytemuck::cast_slice(&handles));
            own.bootstrap.barrier().unwrap();
            let (source, target) = (own.source(), own.target());
            let (errors, rank) = (own.results.address(), own.rank() as u32);
            let args = Many { ports: table.address(), source, target, errors, rounds, rank };
            own.launch("many", ports, 32, &args);
            assert_eq!(own.results()[0], 0, "{via:?}");
            all.iter().for_each(|port| port.check().unwrap());
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn a_bad_transfer_ends_its_port_alone_and_the_kernel_is_told() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let mut own = Rank::new(via, bootstrap, 4096, 16);
            let me = own.rank();
            // The one side is told by its own proxy, the other has to wait.
            let patience = if me == 0 { LONG } else { Duration::from_millis(300) };
            let (bad, good) = (own.open(0, patience), own.open(1, LONG));
            own.bootstrap.barrier().unwrap();
            let args = Bad {
                bad: bad.handle(),
                good: good.handle(),
                results: own.results.address(),
                beyond: 3 * 4096 - 7,
                is_bad: u32::from(me == 0),
            };
            let begin = Instant::now();
            own.launch("bad_transfer", 1, 1, &args);
            let results = own.results();
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(10), "{took:?}");
            let pushed = [u32::from(me == 0), 0, 0];
            assert_eq!(results[..3], pushed, "{via:?} {me}: put, flush, wait of the bad port");
            assert_eq!(results[3..7], [1; 4], "{via:?} {me}: signals of it, and the good port");
            good.check().unwrap();
            let error = bad.check().unwrap_err();
            assert_eq!(error.peer, Some(1 - me), "{error}");
            let text = error.to_string();
            let expected = ["port 0 to rank 1: the source: bytes 12281..12281+8", "300ms"][me];
            assert!(
                text.contains(expected) && text.contains(&format!("rank {}", 1 - me)),
                "{text}"
            );
            if me == 1 {
                let expected = "1 from rank 0, at place 13 of a kernel, but 0";
                assert!(text.contains(expected), "{text}");
            }
            own.bootstrap.barrier().unwrap();
        });
    }
}

#[test]
fn a_peer_that_leaves_ends_the_kernel_that_waits_for_it() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let mut own = Rank::new(via, bootstrap, 4096, 16);
            let port = own.open(0, LONG);
            own.bootstrap.barrier().unwrap();
            if own.rank() == 1 {
                std::thread::sleep(Duration::from_millis(100));
                drop(own.proxy.take());
                // The proxy's own kernels would be told so.
                assert!(port.check().unwrap_err().to_string().contains("the proxy has ended"));
                own.bootstrap.barrier().unwrap();
                return;
            }
            wait_in_vain(&own, &port, 1);
            own.bootstrap.barrier().unwrap();
        });
    }
}

/// A kernel whose wait number `rounds` ends since the peer is gone, soon.
fn wait_in_vain<B: Bootstrap>(own: &Rank<B>, port: &DevicePort, rounds: u32) {
    let begin = Instant::now();
    own.launch("wait", 1, 1, &Wait { port: port.handle(), results: own.results.address(), rounds });
    let results = own.results();
    assert!(begin.elapsed() < LONG / 3, "{:?}", begin.elapsed());
    assert_eq!(results[1..3], [0, rounds - 1]);
    let error = port.check().unwrap_err();
    assert_eq!(error.peer, Some(1), "{error}");
    let NetError::Broken(fault) = &error.cause else { panic!("{error}") };
    assert_eq!(fault.peer, 1, "{error}");
}

#[test]
fn ranks_are_processes() {
    if let Some(bootstrap) = process(2) {
        let via = process_via();
        let mut own = Rank::new(via, bootstrap, 80_000, 16);
        let port = own.open(0, LONG);
        own.bootstrap.barrier().unwrap();
        own.exchange(&port, (9_001, 6, 0));
        own.exchange(&port, (77, 9, 6));
        own.bootstrap.barrier().unwrap();
        return;
    }
    let Some(_) = count() else { return };
    assert_eq!(processes("ranks_are_processes", 2, Via::Tcp), [true; 2]);
    assert_eq!(processes("ranks_are_processes", 2, Via::Copy), [true; 2]);
}

#[test]
fn a_process_that_is_killed_ends_the_kernel_that_waits_for_it() {
    const NAME: &str = "a_process_that_is_killed_ends_the_kernel_that_waits_for_it";
    if let Some(bootstrap) = process(2) {
        let via = process_via();
        let mut own = Rank::new(via, bootstrap, 4096, 16);
        let port = own.open(0, LONG);
        own.bootstrap.barrier().unwrap();
        if own.rank() == 0 {
            return wait_in_vain(&own, &port, 3);
        }
        let (results, rounds) = (own.results.address(), 2);
        own.launch("wait", 1, 1, &Wait { port: port.handle(), results, rounds });
        assert_eq!(own.results()[..3], [1, 1, 2]);
        std::thread::sleep(Duration::from_millis(50));
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
    }
    let Some(_) = count() else { return };
    assert_eq!(processes(NAME, 2, Via::Tcp), [true, false]);
    assert_eq!(processes(NAME, 2, Via::Copy), [true, false]);
}

#[test]
fn an_idle_proxy_of_kernels_uses_under_a_hundredth_of_a_core() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let mut own = Rank::new(via, bootstrap, 4096, 16);
            let port = own.open(0, LONG);
            own.bootstrap.barrier().unwrap();
            own.exchange(&port, (64, 3, 0));
            let thread = || rustix::thread::gettid().as_raw_nonzero().get();
            let proxy = own.proxy.as_ref().unwrap();
            let thread = proxy.with_transport(LONG, move |_| thread()).unwrap();
            // Past the time in which its sleeps grow.
            std::thread::sleep(Duration::from_millis(300));
            // The best of some: interrupts of others' work are charged to whoever runs.
            let share = (0..4).map(|_| {
                let (begin, before) = (Instant::now(), cpu_time(thread));
                std::thread::sleep(Duration::from_millis(500));
                (cpu_time(thread) - before).as_secs_f64() / begin.elapsed().as_secs_f64()
            });
            let share = share.fold(f64::MAX, f64::min);
            println!("an idle proxy of kernels, {via:?}: {:.3} % of a core", 100.0 * share);
            assert!(share < 0.01, "{via:?}: {share}");
            own.bootstrap.barrier().unwrap();
        });
    }
}

/// For how long a thread of this process has had a CPU.
fn cpu_time(thread: i32) -> Duration {
    let table = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    Duration::from_nanos(table.split(' ').next().unwrap().parse().unwrap())
}

/// One block a FIFO: that the proxy, a thread of the host, orders what several blocks push, the virtual GPU's memory model does not
/// know. `kernels/tests/port.rs` has several, with a proxy that is a kernel.
#[test]
fn ports_in_weak_memory() {
    let Some(_) = count() else { return };
    for via in BOTH {
        ranks(2, |bootstrap| {
            let mut own = Rank::new(via, bootstrap, 4096, 4);
            let port = own.open(0, LONG);
            own.bootstrap.barrier().unwrap();
            own.exchange(&port, (130, 4, 0));
            own.exchange(&port, (37, 5, 4));
            own.bootstrap.barrier().unwrap();
        });
    }
}

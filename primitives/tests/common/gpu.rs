//! Ranks on GPUs: transports over device memory, and kernels with ports.
#![allow(dead_code, reason = "each test uses its part")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaModule, CudaStream, sys};
use warpmesh_primitives::bootstrap::{Bootstrap, LocalBootstrap, TcpBootstrap, TcpRoot, UniqueId};
use warpmesh_primitives::gpu::{DeviceMemory, Gpu};
use warpmesh_primitives::net::Transport;
use warpmesh_primitives::net::copy::CopyTransport;
use warpmesh_primitives::net::tcp::{TcpOptions, TcpTransport};
use warpmesh_primitives::node::Node;

pub const LONG: Duration = Duration::from_secs(30);
/// Semaphores of a rank.
pub const SEMAPHORES: usize = 16;

/// The number of GPUs. `None`: there is no driver, which is said loudly, and is a failure if WARPMESH_NEEDS_GPU is set.
pub fn count() -> Option<usize> {
    if Gpu::driver_is_there() {
        return Some(CudaContext::device_count().unwrap() as usize).filter(|count| *count > 0);
    }
    eprintln!("\n*** NOT RUN: no CUDA driver; `vgpu run -- cargo test` has a virtual one ***\n");
    assert!(std::env::var_os("WARPMESH_NEEDS_GPU").is_none(), "a GPU is needed");
    None
}

/// What moves the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Tcp,
    Copy,
}

pub const BOTH: [Via; 2] = [Via::Tcp, Via::Copy];

/// A rank's GPU, with a stream for kernels.
pub struct Device {
    pub gpu: Gpu,
    pub stream: Arc<CudaStream>,
}

impl Device {
    /// Of rank r the r-th, or as many as there are.
    pub fn new(rank: usize) -> Self {
        let context = CudaContext::new(rank % count().unwrap()).unwrap();
        let stream = context.new_stream().unwrap();
        Self { gpu: Gpu::new(context).unwrap(), stream }
    }

    pub fn module(&self, source: &str) -> Arc<CudaModule> {
        let arch = self.gpu.architecture();
        let compiled = warpmesh_kernels::cache::kernel(source, "ports", arch, None).unwrap();
        let text = String::from_utf8(compiled.ptx).unwrap();
        self.gpu.context().load_module(cudarc::nvrtc::Ptx::from_src(text)).unwrap()
    }

    pub fn memory(&self, bytes: usize) -> Arc<DeviceMemory> {
        Arc::new(self.gpu.device_memory(bytes).unwrap())
    }

    pub fn upload(&self, to: u64, bytes: &[u8]) {
        let (from, stream) = (bytes.as_ptr().cast(), self.stream.cu_stream());
        self.gpu.context().bind_to_thread().unwrap();
        // SAFETY: the tests' memory is as long as what is copied there.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes.len(), stream) };
        code.result().unwrap();
        self.stream.synchronize().unwrap();
    }

    pub fn download(&self, from: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        let (to, stream) = (data.as_mut_ptr().cast(), self.stream.cu_stream());
        self.gpu.context().bind_to_thread().unwrap();
        // SAFETY: as above.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) }.result().unwrap();
        self.stream.synchronize().unwrap();
        data
    }
}

/// A rank's transport, connected to all others.
pub fn connect(via: Via, device: &Device, bootstrap: &mut dyn Bootstrap) -> Box<dyn Transport> {
    let (rank, world) = (bootstrap.rank(), bootstrap.world());
    let mut transport: Box<dyn Transport> = match via {
        Via::Tcp => {
            let options = TcpOptions::default();
            let tcp = TcpTransport::on_gpu(bootstrap, &device.gpu, SEMAPHORES, &options);
            Box::new(tcp.unwrap())
        }
        Via::Copy => {
            let node = Node::connect(bootstrap, LONG).unwrap();
            let copy = CopyTransport::new(bootstrap, &node, &device.gpu, SEMAPHORES, LONG);
            Box::new(copy.unwrap())
        }
    };
    let peers: Vec<usize> = (0..world).filter(|&peer| peer != rank).collect();
    transport.connect(&peers, LONG).unwrap();
    transport
}

/// Registers memory under a number and learns of all peers' of that number.
pub fn share(
    transport: &mut dyn Transport,
    bootstrap: &mut dyn Bootstrap,
    number: u32,
    region: Arc<dyn warpmesh_primitives::net::Region>,
) {
    let described = transport.register(number, region).unwrap();
    for (peer, described) in bootstrap.all_gather(&described).unwrap().iter().enumerate() {
        if peer != bootstrap.rank() {
            transport.learn(peer, number, described).unwrap();
        }
    }
}

/// Runs every rank on a thread; what they return, in rank order.
pub fn ranks<T: Send>(world: usize, work: impl Fn(LocalBootstrap) -> T + Sync) -> Vec<T> {
    thread::scope(|s| {
        let all = LocalBootstrap::create(world, LONG).unwrap().into_iter();
        let all: Vec<_> = all.map(|own| s.spawn(|| work(own))).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

const RANK: &str = "GPU_TEST_RANK";
const ID: &str = "GPU_TEST_ID";

const COPY: &str = "GPU_TEST_COPY";

/// Runs test `name` of this binary as processes, each of which finds its bootstrap by [`process`]; whether each ended well.
pub fn processes(name: &str, world: usize, via: Via) -> Vec<bool> {
    let (root, id) = TcpRoot::bind(([127, 0, 0, 1], 0)).unwrap();
    // Rank 0 binds the address again; the port was free a moment ago.
    drop(root);
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
        if via == Via::Copy {
            command.env(COPY, "1");
        }
        command.env(RANK, rank.to_string()).env(ID, id.to_string()).spawn().unwrap()
    };
    let mut all: Vec<Child> = (0..world).map(start).collect();
    let begin = Instant::now();
    while all.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        if begin.elapsed() > 3 * LONG {
            all.iter_mut().for_each(|child| child.kill().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    }
    all.iter_mut().map(|child| child.wait().unwrap().success()).collect()
}

/// This process's bootstrap, if it is one of a test's ranks.
pub fn process(world: usize) -> Option<TcpBootstrap> {
    let rank: usize = std::env::var(RANK).ok()?.parse().ok()?;
    let id: UniqueId = std::env::var(ID).unwrap().parse().unwrap();
    Some(match rank {
        0 => TcpBootstrap::from_id_as_root(&id, world, LONG).unwrap(),
        _ => TcpBootstrap::join(&id, rank, world, LONG).unwrap(),
    })
}

/// What such a process is to use.
pub fn process_via() -> Via {
    if std::env::var_os(COPY).is_some() { Via::Copy } else { Via::Tcp }
}

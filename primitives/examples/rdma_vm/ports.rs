//! Kernels with ports, which put, signal, flush and wait by RDMA. Their PTX is compiled before: the virtual machine has no compiler.

use std::sync::Arc;

use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
use warpmesh_primitives::net::fifo::Bell;
use warpmesh_primitives::net::proxy::device::PortHandle;
use warpmesh_primitives::net::proxy::{DevicePort, DevicePorts, Port, Proxy, ProxyOptions};
use warpmesh_primitives::net::rdma::{GpuMemory, RdmaOptions, RdmaTransport};
use warpmesh_primitives::net::{Span, Transport};

use super::device::{Device, LONG};
use super::ensure;
use super::harness::Outcome;
use super::job::{Job, LIMIT, SEMAPHORES};

/// The kernels of `tests/gpu_ports.rs`.
const KERNELS: &str = include_str!("../../tests/common/ports.cu");
/// Where the virtual machine has them, as PTX.
const PTX: &str = "/t/ports.ptx";
/// Of the oldest GPU here.
const ARCHITECTURE: u32 = 80;

/// Writes the kernels' PTX to a file, on a machine with the compiler.
pub fn compile(file: &str) -> Outcome {
    let compiled = warpmesh_kernels::cache::kernel(KERNELS, "ports", ARCHITECTURE, None)?;
    Ok(std::fs::write(file, compiled.ptx)?)
}

/// `Exchange` of the kernels.
#[derive(Clone, Copy)]
#[repr(C)]
struct Exchange {
    port: PortHandle,
    source: u64,
    target: u64,
    errors: u64,
    words: u32,
    rounds: u32,
    rank: u32,
    first: u32,
}

// SAFETY: numbers, in the layout of the kernel's struct of this name.
unsafe impl DeviceRepr for Exchange {}

/// Rounds in which kernels of both ranks put all their words and wait for the peer's, in several ways; words of the peer that are not there
/// behind its signal are counted.
fn exchange(job: &mut Job, device: Device, gpu_memory: GpuMemory) -> Outcome {
    let options = RdmaOptions { gpu_memory, ..job.options(1) };
    let way = job.exchange()?;
    let mut transport =
        RdmaTransport::on_gpu(&device.gpu, (job.rank, 2), SEMAPHORES, options, way)?;
    let part = 80_000_u64;
    let (memory, results) = (device.memory(3 * part as usize), device.memory(64));
    let region = Arc::new(device.gpu.region_of(&memory)?);
    let all = job.gather(&transport.register(0, region)?)?;
    transport.learn(job.peer, 0, &all[job.peer])?;
    transport.connect(&[job.peer], LIMIT)?;
    let bell = Bell::new()?;
    let mut ports = DevicePorts::new(&device.gpu, 16, 8, bell.clone())?;
    let options = ProxyOptions { device_producers: true, ..ProxyOptions::default() };
    let proxy =
        Proxy::start(Box::new(transport), vec![], vec![ports.fifo().clone()], bell, &options)?;
    let to = Span { memory: 0, offset: part };
    let port = Port { peer: job.peer, from: Span::default(), to, semaphore: 3 };
    let port: DevicePort = ports.open(&proxy, proxy.add_port(port, LONG)?, 3, LONG)?;
    let text = std::fs::read_to_string(PTX)?;
    let module = device.gpu.context().load_module(cudarc::nvrtc::Ptx::from_src(text))?;
    let function = module.load_function("exchange")?;
    job.barrier()?;
    for (words, rounds, first) in [(9001, 6, 0), (77, 9, 6)] {
        let (source, errors) = (memory.address(), results.address());
        let (target, rank) = (source + part, job.rank as u32);
        let port = port.handle();
        let args = Exchange { port, source, target, errors, words, rounds, rank, first };
        let config =
            LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
        ports.fifo().bell().ring();
        let mut launch = device.stream.launch_builder(&function);
        // SAFETY: the kernel's parameter struct, and what it points to lives until the stream is synchronized.
        unsafe { launch.arg(&args).launch(config) }?;
        device.stream.synchronize()?;
        let found = device.download(results.address(), 8);
        ensure!(found == [0; 8], "failed calls, wrong words: {found:?}; {:?}", port_says(&proxy));
        // The halves of the next launch lie elsewhere, so the peer must have read those of this one.
        job.barrier()?;
    }
    port.check()?;
    job.barrier()
}

fn port_says(proxy: &Proxy) -> Option<String> {
    proxy.error(0).map(|error| error.to_string())
}

pub fn kernels_put_and_wait_staged(job: &mut Job) -> Outcome {
    let device = Device::new(job.rank);
    exchange(job, device, GpuMemory::Staged)
}

pub fn kernels_put_and_wait_directly(job: &mut Job) -> Outcome {
    let device = Device::new(job.rank);
    exchange(job, device, GpuMemory::Peermem)
}

/// What is sent to kernels of sm_80 is staged, so they see it behind its signal.
pub fn kernels_of_sm_80_put_and_wait(job: &mut Job) -> Outcome {
    exchange(job, Device::new(2), GpuMemory::Auto)
}

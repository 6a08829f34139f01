//! Speeds of the interpreter itself: `cargo run --release -p vgpu --example speed KERNELS.ptx`, where the file is made by
//! `nvcc -ptx -arch=sm_90 -std=c++17 vgpu/tests/kernels/kernels.cu`. Nothing printed here is a time of a GPU.

use std::time::Instant;

use vgpu::mem::space::Kind;
use vgpu::track::model::Config;
use vgpu::{LaunchSpec, Machine, MachineConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: speed KERNELS.ptx [ping-pong]")?;
    let text = std::fs::read_to_string(path)?;
    if std::env::args().nth(2).as_deref() == Some("ping-pong") {
        return (0..9).try_for_each(|_| ping_pong_of_two(&text));
    }
    for (name, track, size) in [
        ("SC, 1 MB", None, 1 << 20),
        ("SC, 64 MB", None, 64 << 20),
        ("weak + race", Some(Config { weak: true, race: true, seed: 1 }), 4 << 20),
    ] {
        println!("{name}:");
        measure(
            &text,
            MachineConfig { devices: 2, workers: 1, track, ..MachineConfig::default() },
            size,
        )?;
    }
    println!("SC, two workers:");
    ping_pong_of_two(&text)
}

fn ping_pong_of_two(text: &str) -> Res {
    ping_pong(text, MachineConfig { devices: 2, workers: 2, ..MachineConfig::default() })
}

type Res = Result<(), Box<dyn std::error::Error>>;

fn best(n: u32, mut f: impl FnMut() -> Res) -> Result<f64, Box<dyn std::error::Error>> {
    let mut best = f64::MAX;
    for _ in 0..n {
        let t = Instant::now();
        f()?;
        best = best.min(t.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn measure(text: &str, config: MachineConfig, size: u64) -> Res {
    let machine = Machine::new(config)?;
    let module = machine.load(text)?;
    let space = machine.space();
    let mut buffers = Vec::new();
    for _ in 0..3 {
        buffers.push(space.alloc(0, Kind::Device, size)?);
    }
    let run = |name: &str, grid: u32, block: u32, params: &[u64]| -> Res {
        let kernel = module.kernel(space, 0, name)?;
        let params: Vec<u8> = params.iter().flat_map(|x| x.to_le_bytes()).collect();
        let spec = LaunchSpec {
            kernel: &kernel,
            device: 0,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: 0,
            params: &params,
            cooperative: false,
        };
        machine.wait(&*machine.launch(&spec)?)?;
        Ok(())
    };
    let n = size / 16;
    let copy = best(5, || run("copy16", 8, 256, &[buffers[0], buffers[1], n]))?;
    let add = best(5, || run("add4", 8, 256, &[buffers[0], buffers[1], buffers[2], n]))?;
    let empty = best(10, || run("empty", 64, 512, &[]))?;
    let mb = size as f64 / 1e6;
    println!(
        "  16-byte copy of {mb:.0} MB: {:.3} GB/s; f32 add: {:.3} GB/s of output; 64 x 512 empty threads: {:.2} ms",
        mb / copy / 1e3,
        mb / add / 1e3,
        empty * 1e3
    );
    Ok(())
}

fn ping_pong(text: &str, config: MachineConfig) -> Res {
    let machine = Machine::new(config)?;
    let module = machine.load(text)?;
    let space = machine.space();
    let flags = [space.alloc(0, Kind::Device, 4)?, space.alloc(1, Kind::Device, 4)?];
    let (data, errors) = (space.alloc(0, Kind::Device, 4)?, space.alloc(1, Kind::Device, 4)?);
    let rounds = 200_000u32;
    let t = Instant::now();
    let mut launches = Vec::new();
    for d in 0..2usize {
        let kernel = module.kernel(space, d as u32, "ping_pong")?;
        let mut params: Vec<u8> =
            [flags[d], flags[1 - d], data, errors].iter().flat_map(|x| x.to_le_bytes()).collect();
        params.extend(rounds.to_le_bytes());
        params.extend(u32::from(d == 0).to_le_bytes());
        let spec = LaunchSpec {
            kernel: &kernel,
            device: d as u32,
            grid: [1, 1, 1],
            block: [1, 1, 1],
            dynamic_shared: 0,
            params: &params,
            cooperative: false,
        };
        launches.push(machine.launch(&spec)?);
    }
    for l in &launches {
        machine.wait(l)?;
    }
    println!(
        "  ping-pong: {:.0} ns a round trip",
        t.elapsed().as_secs_f64() / f64::from(rounds) * 1e9
    );
    Ok(())
}

//! `cargo xtask`: what developers and CI run.

mod candle;
mod cuda;
mod gpu;
mod kernels;
mod nccl;
mod peers;
mod rdma_vm;
mod standins;
mod steps;
mod system;
mod tables;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask COMMAND

  test          installs what the tests need, runs every layer, fails if one could not run
  lint          rustfmt and clippy only
  loom          the model checks of the shared words only
  peers [ARGS]  measures warpmesh beside Open MPI, and between hosts beside Gloo, too, in one run, and prints the
                ratio per size; ARGS go to the comparison (see `cargo xtask peers --help`)
  cuda          fetches NVIDIA's compilers (nvcc, NVRTC, ptxas) from PyPI into target/cuda
  gpu [ARGS]    on a machine with GPUs: tests the CUDA device, measures it against NCCL, and writes
                target/gpu-report.md (see `cargo xtask gpu --help`)
  nccl          tests the benchmark's NCCL backend on virtual GPUs, against a stand-in for NCCL
  candle        builds the example with candle's tensors, and runs it on the host and on virtual GPUs
  rdma-vm       boots a virtual machine with soft-RoCE NICs and runs the tests of RDMA in it: of the
                transport, and of collectives between hosts (see `cargo xtask rdma-vm --help`)
  bootstrap [ARGS]  measures how long 16 to 2,048 ranks on this machine take to find each other
                and to gather, and how that grows (ARGS: --ranks N,N --processes N --bytes N)
  vgpu          runs the virtual GPU's litmus tests and mutations and writes docs/vgpu-tables.md
  kernels       writes docs/cuda-kernels.md and docs/cuda-costs.md: what kernels are made of and what they move;
                with --check it only compares
  help          this text
";

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_else(|| "help".to_owned());
    let rest: Vec<String> = args.collect();
    match command.as_str() {
        "test" => steps::test(),
        "lint" => steps::lint(),
        "loom" => steps::loom(),
        "peers" => peers::run(&rest),
        "cuda" => cuda::ensure(),
        "gpu" => gpu::run(&rest),
        "nccl" => nccl::test(),
        "candle" => candle::test(),
        "rdma-vm" => rdma_vm::run(&rest),
        "bootstrap" => steps::bootstrap(&rest),
        "vgpu" => tables::write(),
        "kernels" => kernels::run(&rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("unknown command '{other}'\n\n{HELP}"),
    }
}

//! `--show-cuda`: the kernel that a GPU would run.

use anyhow::Result;
use warpmesh::{RawCall, cuda_kernel};

use super::cli::{Cli, Roots};
use super::exit::{Exit, Failed};
use crate::layout::{Op, Test};

/// Prints the kernels of rank 0 for each test, type and operation, at the first size.
pub fn cuda(cli: &Cli) -> Result<Exit> {
    for &test in &cli.test.0 {
        let ops = if test.reduces() { &cli.op.0[..] } else { &[Op::Sum] };
        for &dtype in &cli.datatype.0 {
            for &op in ops {
                let layout = test.layout(cli.minbytes, dtype, cli.world());
                let Test::Collective(collective) = test else {
                    let text = format!("--show-cuda: {test} has no kernel");
                    return Err(Failed::because(Exit::NotImplemented, text));
                };
                let root = if let Roots::One(root) = cli.root { root } else { 0 };
                let call = RawCall {
                    collective,
                    dtype,
                    op: op.on(dtype, 0),
                    root: if test.is_rooted() { root } else { 0 },
                    count: layout.count,
                    input: std::ptr::null(),
                    output: std::ptr::null_mut(),
                };
                show(cli, &call)?;
            }
        }
    }
    Ok(Exit::Success)
}

fn show(cli: &Cli, call: &RawCall) -> Result<()> {
    let (world, registered) = (cli.world(), cli.local_register > 0);
    let kernel = cuda_kernel(call, (0, world), registered, cli.algorithm.as_deref());
    let kernel =
        kernel.map_err(|error| Failed::because(Exit::NotImplemented, error.to_string()))?;
    let memory = if registered { "registered" } else { "plain" };
    println!(
        "// {} of {} x {}, {}, rank 0 of {world}, {memory} memory, out of place",
        call.collective,
        call.count,
        call.dtype,
        call.op.name()
    );
    println!("// plan: {}", kernel.plan);
    println!("// kernel: {}", kernel.name);
    println!("{}", kernel.source.trim_end());
    Ok(())
}

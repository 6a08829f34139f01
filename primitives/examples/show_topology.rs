//! Prints what this machine is made of, and which NIC serves which GPU.
//!
//! ```sh
//! cargo run -p warpmesh-primitives --example show_topology              # this machine
//! cargo run -p warpmesh-primitives --example show_topology -- --xml     # as a file for NCCL_TOPO_FILE
//! cargo run -p warpmesh-primitives --example show_topology -- topo.xml  # completed by a file of NCCL's
//! ```

use std::error::Error;

use warpmesh_primitives::topology::{Sources, Topology};

fn main() -> Result<(), Box<dyn Error>> {
    let mut sources = Sources::default();
    let mut as_xml = false;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--xml" => as_xml = true,
            "--help" | "-h" => return Err("show_topology [--xml] [FILE]".into()),
            file => sources.xml = Some(file.into()),
        }
    }
    let topology = Topology::discover(&sources)?;
    if as_xml {
        print!("{}", topology.to_xml());
    } else {
        print!("{topology}");
    }
    Ok(())
}

//! What a machine is made of, as far as it matters for moving data: NUMA nodes, PCIe switches, GPUs, NVLinks, NICs.
//!
//! ```text
//!        NUMA node 0 ─────────── SYS ─────────── NUMA node 1      (CPUs with their memory)
//!         │        │                                  │
//!         │        └─ PHB ─┐                          │
//!      switch           switch                     switch          (PCIe)
//!      │    │             │
//!     GPU  NIC           GPU     a GPU and the NIC beside it: PIX. Through several switches: PXB. Through
//!      └──── NVL ─────────┘      the CPU: PHB. To another node's: SYS. By NVLink: NVL.
//! ```
//!
//! [`Topology::discover`] reads sysfs, and NVML where it is; [`Topology::read_xml`] reads the files that NCCL takes as
//! `NCCL_TOPO_FILE`, which clouds ship for their virtual machines, and [`Topology::to_xml`] writes one.
//!
//! Everything comes from outside: what is malformed is left out and listed in [`Topology::problems`] with its file, or
//! is an error with file and line. As in NCCL, of a PCIe switch only the upstream port is kept, and root ports are not.

#![forbid(unsafe_code)]

mod cpus;
mod error;
mod nvlink;
mod path;
mod pci;
mod serve;
mod show;
mod sysfs;
mod xml;

use std::path::{Path, PathBuf};

pub use self::cpus::CpuSet;
pub use self::error::{Problem, TopologyError};
pub use self::path::PathClass;
pub use self::pci::{BusId, Class};
pub use self::serve::Place;

/// A machine. Lists are in the order of their ids; nothing in them refers to what is not there, but NVLinks may lead to
/// switches and GPUs that this machine or container does not show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// NUMA nodes. Where the system does not tell them there is one, with the id -1.
    pub numa: Vec<NumaNode>,
    /// PCIe switches, and the functions that are GPUs or NICs.
    pub pci: Vec<Pci>,
    /// GPUs.
    pub gpus: Vec<Gpu>,
    /// Ports of NICs.
    pub nets: Vec<Net>,
    /// What could not be read, or makes no sense, and was left out.
    pub problems: Vec<Problem>,
}

/// CPUs that share memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NumaNode {
    /// As the system numbers them; -1 where it does not.
    pub id: i32,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// How far other nodes are, by their id, in the firmware's units: 10 is here.
    pub distances: Vec<(i32, u32)>,
    /// As NCCL writes it: `x86_64`, `arm64`, `ppc64`.
    pub arch: String,
    /// As CPUID says it: `GenuineIntel`, `AuthenticAMD`. Empty where unknown.
    pub vendor: String,
    /// CPU family, where known.
    pub family: Option<u32>,
    /// CPU model, where known.
    pub model: Option<u32>,
    /// Which host it is, in files of several. Empty where unknown.
    pub host: String,
}

/// A PCIe switch (its upstream port), or a function that is a GPU or a NIC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pci {
    /// Where it is.
    pub bus: BusId,
    /// The switch above it; `None` right below the CPU.
    pub parent: Option<BusId>,
    /// The NUMA node that it hangs at, which is in [`Topology::numa`].
    pub numa: i32,
    /// What it is.
    pub class: Class,
    /// Vendor, device, and the subsystem's.
    pub ids: [u16; 4],
    /// As the kernel says it, for instance `16.0 GT/s PCIe`. Empty where unknown.
    pub link_speed: String,
    /// Lanes; 0 where unknown.
    pub link_width: u32,
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gpu {
    /// Its function, which is in [`Topology::pci`].
    pub bus: BusId,
    /// CUDA's ordinal, where the caller gave it. Otherwise the order of the bus ids, as `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    pub dev: u32,
    /// The rank that uses it, where the file says it.
    pub rank: Option<u32>,
    /// Compute capability, 90 for 9.0, where known.
    pub sm: Option<u32>,
    /// Whether NICs reach its memory, where the file says it.
    pub gdr: Option<bool>,
    /// Where its NVLinks lead.
    pub nvlinks: Vec<NvLink>,
}

/// The NVLinks of a GPU that lead to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvLink {
    /// The GPU or switch at the other end.
    pub target: BusId,
    /// How many.
    pub count: u32,
    /// What the other end is.
    pub class: Class,
}

/// A port of a NIC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Net {
    /// `mlx5_0` for RDMA, `eth0` otherwise.
    pub name: String,
    /// Its number, in the order of this list.
    pub dev: u32,
    /// Its function, which is in [`Topology::pci`]; `None` for one that hangs at a CPU in some other way.
    pub bus: Option<BusId>,
    /// The NUMA node that it hangs at.
    pub numa: i32,
    /// Whether verbs work on it.
    pub rdma: bool,
    /// The RDMA port, from 1; 0 for Ethernet.
    pub port: u32,
    /// Mbit/s; 0 where unknown.
    pub speed: u32,
    /// The RDMA node's GUID; 0 where there is none.
    pub guid: u64,
    /// Whether the link is up.
    pub up: bool,
    /// Whether it reaches GPU memory, where the file says it.
    pub gdr: Option<bool>,
}

/// Where to look. The default is this machine, with NVML if there is one.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The folder in which `sys` and `proc` are.
    pub root: PathBuf,
    /// CUDA's devices, by ordinal. They say which number a GPU has, and which GPUs count: empty for all that sysfs shows.
    pub cuda: Vec<BusId>,
    /// NVML's library; `None` to leave NVLinks out.
    pub nvml: Option<PathBuf>,
    /// A file of NCCL's, which is believed before sysfs.
    pub xml: Option<PathBuf>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            cuda: Vec::new(),
            nvml: Some(PathBuf::from("libnvidia-ml.so.1")),
            xml: None,
        }
    }
}

impl Topology {
    /// What `sources` show. What cannot be read is left out, and listed in [`problems`](Self::problems). Blocks as long
    /// as reading some hundred small files takes; NVML can take a second.
    ///
    /// # Errors
    ///
    /// Those of [`read_xml`](Self::read_xml), if a file was asked for.
    pub fn discover(sources: &Sources) -> Result<Self, TopologyError> {
        let mut found = sysfs::read(&sources.root);
        if let Some(file) = &sources.xml {
            let mut told = Self::read_xml(file)?;
            told.complete(found);
            found = told;
        }
        found.number_gpus(&sources.cuda);
        if let Some(library) = &sources.nvml {
            nvlink::complete(&mut found, &sources.root, library);
        }
        Ok(found)
    }

    /// This machine without its NVLinks; first of all what the file of NCCL's says that `WARPMESH_TOPO_FILE` names, if it does.
    ///
    /// # Errors
    ///
    /// Those of [`read_xml`](Self::read_xml).
    pub fn of_this_machine() -> Result<Self, TopologyError> {
        let xml = std::env::var_os("WARPMESH_TOPO_FILE").map(PathBuf::from);
        Self::discover(&Sources { nvml: None, xml, ..Sources::default() })
    }

    /// Reads a topology file of NCCL's, at most 16 MiB.
    ///
    /// # Errors
    ///
    /// [`TopologyError::Read`] for a file that cannot be read, [`TopologyError::Xml`] with file and line for one that is
    /// no such topology.
    pub fn read_xml(file: &Path) -> Result<Self, TopologyError> {
        xml::read_file(file)
    }

    /// Reads the text of such a file; `name` is for errors. As [`read_xml`](Self::read_xml).
    pub fn from_xml(name: &Path, text: &str) -> Result<Self, TopologyError> {
        xml::parse(name, text)
    }

    /// This topology as such a file. What NCCL's files do not say is lost: problems, and whether links are up.
    pub fn to_xml(&self) -> String {
        xml::write(self)
    }

    /// A NUMA node by its id.
    pub fn numa_node(&self, id: i32) -> Option<&NumaNode> {
        self.numa.iter().find(|node| node.id == id)
    }

    /// A function or switch.
    pub fn pci(&self, bus: BusId) -> Option<&Pci> {
        self.pci.binary_search_by_key(&bus, |pci| pci.bus).ok().map(|at| &self.pci[at])
    }

    /// A GPU by its function.
    pub fn gpu(&self, bus: BusId) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.bus == bus)
    }

    /// The CPUs near a device, for instance for the thread that works for it. Empty where nothing is known.
    pub fn cpus_near(&self, bus: BusId) -> CpuSet {
        let node = self.pci(bus).and_then(|pci| self.numa_node(pci.numa));
        node.map(|node| node.cpus.clone()).unwrap_or_default()
    }

    /// Adds what `other` knows and this does not.
    fn complete(&mut self, other: Self) {
        for node in other.numa {
            if self.numa_node(node.id).is_none() {
                self.numa.push(node);
            }
        }
        for pci in other.pci {
            if self.pci(pci.bus).is_none() {
                self.insert(pci);
            }
        }
        for gpu in other.gpus {
            if self.gpu(gpu.bus).is_none() {
                self.gpus.push(gpu);
            }
        }
        for net in other.nets {
            if !self.nets.iter().any(|known| known.name == net.name && known.port == net.port) {
                self.nets.push(net);
            }
        }
        self.problems.extend(other.problems);
        self.tidy();
    }

    fn insert(&mut self, pci: Pci) {
        match self.pci.binary_search_by_key(&pci.bus, |known| known.bus) {
            Ok(at) => self.pci[at] = pci,
            Err(at) => self.pci.insert(at, pci),
        }
    }

    /// Puts the lists in order, numbers nets, and takes out what refers to nothing or twice to the same.
    fn tidy(&mut self) {
        self.numa.sort_by_key(|node| node.id);
        self.numa.dedup_by_key(|node| node.id);
        let known: Vec<BusId> = self.pci.iter().map(|pci| pci.bus).collect();
        let is_known = |bus: &BusId| known.binary_search(bus).is_ok();
        for pci in &mut self.pci {
            // A parent with a higher id than all below it could close a circle; a switch never has one.
            pci.parent = pci.parent.filter(|parent| is_known(parent) && *parent != pci.bus);
        }
        self.cut_circles();
        self.gpus.sort_by_key(|gpu| gpu.bus);
        self.gpus.dedup_by_key(|gpu| gpu.bus);
        self.gpus.retain(|gpu| is_known(&gpu.bus));
        self.nets.sort_by(|a, b| (a.bus, &a.name, a.port).cmp(&(b.bus, &b.name, b.port)));
        self.nets.retain(|net| net.bus.is_none_or(|bus| is_known(&bus)));
        for (dev, net) in self.nets.iter_mut().enumerate() {
            net.dev = dev as u32;
        }
    }

    /// No device is above itself, whatever the file says.
    fn cut_circles(&mut self) {
        for at in 0..self.pci.len() {
            let chain = self.switches_above(self.pci[at].bus);
            if chain.len() > path::MAX_DEPTH {
                self.pci[at].parent = None;
            }
        }
    }

    /// Gives GPUs CUDA's ordinals, and forgets those that CUDA does not show.
    fn number_gpus(&mut self, cuda: &[BusId]) {
        for (dev, &bus) in cuda.iter().enumerate() {
            match self.gpus.iter_mut().find(|gpu| gpu.bus == bus) {
                Some(gpu) => gpu.dev = dev as u32,
                None => self.problems.push(Problem::unknown_gpu(bus)),
            }
        }
        if cuda.is_empty() {
            return;
        }
        self.gpus.retain(|gpu| cuda.contains(&gpu.bus));
    }
}

#[cfg(test)]
mod tests;

//! What the kernel says: `/sys`, and `/proc/cpuinfo` for the CPU's name.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::cpus::CpuSet;
use super::error::Problem;
use super::pci::{BusId, Class, NVIDIA, hex};
use super::{Gpu, Net, NumaNode, Pci, Topology};

/// Files here are small; what is larger is none of them.
const MAX_FILE: u64 = 64 << 10;

/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 16 << 10;

/// `ARPHRD_ETHER` and `ARPHRD_INFINIBAND`.
const LINK_TYPES: [&str; 2] = ["1", "32"];

/// Reads what is there below `root`.
pub(super) fn read(root: &Path) -> Topology {
    let mut reader = Reader { root, topology: Topology::default() };
    reader.numa_nodes();
    reader.gpus();
    reader.rdma();
    reader.ethernet();
    reader.topology.tidy();
    reader.topology
}

/// The class of a function, wherever it is asked for; `None` if the kernel does not show it.
pub(super) fn class_of(root: &Path, bus: BusId) -> Option<Class> {
    let file = root.join(format!("sys/bus/pci/devices/{bus}/class"));
    Class::parse(&text(&file)?)
}

struct Reader<'a> {
    root: &'a Path,
    topology: Topology,
}

impl Reader<'_> {
    fn numa_nodes(&mut self) {
        let folder = self.root.join("sys/devices/system/node");
        for (name, path) in entries(&folder) {
            let number = name.strip_prefix("node").and_then(|n| n.parse().ok());
            if let Some(id) = number.filter(|id| (0..1 << 20).contains(id)) {
                let node = self.numa_node(id, &path);
                self.topology.numa.push(node);
            }
        }
        if self.topology.numa.is_empty() {
            let online = self.root.join("sys/devices/system/cpu/online");
            let cpus = self.parsed(&online, "a list of CPUs", CpuSet::from_list);
            let node = NumaNode { id: -1, cpus: cpus.unwrap_or_default(), ..self.cpu_model() };
            self.topology.numa.push(node);
        }
        self.topology.numa.sort_by_key(|node| node.id);
        self.distances(&folder);
    }

    fn numa_node(&mut self, id: i32, path: &Path) -> NumaNode {
        let list = self.parsed(&path.join("cpulist"), "a list of CPUs", CpuSet::from_list);
        NumaNode { id, cpus: list.unwrap_or_default(), ..self.cpu_model() }
    }

    /// The n-th number of a node's line is the distance to the n-th node that is online.
    fn distances(&mut self, folder: &Path) {
        let ids: Vec<i32> = self.topology.numa.iter().map(|node| node.id).collect();
        for at in 0..ids.len() {
            let file = folder.join(format!("node{}/distance", ids[at]));
            let numbers = |text: &str| -> Option<Vec<u32>> {
                text.split_whitespace().map(|word| word.parse().ok()).collect()
            };
            let Some(line) = self.parsed(&file, "a line of distances", numbers) else { continue };
            if line.len() == ids.len() {
                self.topology.numa[at].distances = ids.iter().copied().zip(line).collect();
            } else {
                self.note(&file, format!("{} distances for {} nodes", line.len(), ids.len()));
            }
        }
    }

    fn cpu_model(&self) -> NumaNode {
        let info = text(&self.root.join("proc/cpuinfo")).unwrap_or_default();
        let field = |name: &str| {
            let line =
                info.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        NumaNode {
            arch: arch(std::env::consts::ARCH).to_owned(),
            vendor: field("vendor_id").unwrap_or_default(),
            family: field("cpu family").and_then(|n| n.parse().ok()),
            model: field("model").and_then(|n| n.parse().ok()),
            ..NumaNode::default()
        }
    }

    fn gpus(&mut self) {
        let folder = self.root.join("sys/bus/pci/devices");
        for (name, path) in entries(&folder) {
            let Ok(bus) = name.parse::<BusId>() else {
                self.note(&path, "not named like a PCI function".to_owned());
                continue;
            };
            let class = self.parsed(&path.join("class"), "a PCI class", Class::parse);
            let vendor = self.parsed(&path.join("vendor"), "a vendor id", id);
            if class.is_some_and(Class::is_display) && vendor == Some(NVIDIA) {
                self.function(&path);
                let dev = self.topology.gpus.len() as u32;
                self.topology.gpus.push(Gpu { bus, dev, ..Gpu::default() });
            }
        }
    }

    fn rdma(&mut self) {
        for (name, path) in entries(&self.root.join("sys/class/infiniband")) {
            let bus = self.function(&path);
            for (port, path) in entries(&path.join("ports")) {
                let Ok(port) = port.parse() else { continue };
                let net = self.rdma_port(&name, port, &path);
                self.add_net(net, bus);
            }
        }
    }

    fn rdma_port(&mut self, name: &str, port: u32, path: &Path) -> Net {
        let device = self.root.join("sys/class/infiniband").join(name);
        let guid = self.parsed(&device.join("node_guid"), "a GUID", guid);
        let speed = self.parsed(&path.join("rate"), "a rate in Gb/s", rate);
        let state = text(&path.join("state")).unwrap_or_default();
        Net {
            name: name.to_owned(),
            rdma: true,
            port,
            speed: speed.unwrap_or(0),
            guid: guid.unwrap_or(0),
            up: state.contains("ACTIVE"),
            ..Net::default()
        }
    }

    /// Interfaces of real devices that have no verbs: those of RDMA NICs are the same ports once more.
    fn ethernet(&mut self) {
        for (name, path) in entries(&self.root.join("sys/class/net")) {
            let kind = text(&path.join("type")).unwrap_or_default();
            if !LINK_TYPES.contains(&kind.as_str()) || chain(&path).is_empty() {
                continue;
            }
            let bus = self.function(&path);
            if self.topology.nets.iter().any(|net| net.rdma && net.bus == bus) {
                continue;
            }
            let up = text(&path.join("operstate")).is_some_and(|state| state != "down");
            // A link that is down, and a virtual one, has no speed: -1, or the file cannot be read.
            let speed = text(&path.join("speed")).and_then(|speed| speed.parse::<i64>().ok());
            let speed = speed.and_then(|speed| u32::try_from(speed).ok()).unwrap_or(0);
            self.add_net(Net { name, speed, up, ..Net::default() }, bus);
        }
    }

    fn add_net(&mut self, net: Net, bus: Option<BusId>) {
        let pci = bus.and_then(|bus| self.topology.pci(bus));
        let numa = pci.map_or_else(|| self.first_node(), |pci| pci.numa);
        self.topology.nets.push(Net { bus, numa, ..net });
    }

    /// Adds the function behind a link in sysfs, with the switches above it.
    fn function(&mut self, link: &Path) -> Option<BusId> {
        let chain = chain(link);
        let (&bus, above) = chain.split_last()?;
        // Two steps up from a function, or from a switch's upstream port, is the next switch's upstream port: between
        // them is a downstream port. What is left at the top is the root port.
        let switches: Vec<BusId> = above.iter().rev().skip(1).step_by(2).copied().collect();
        let numa = self.numa_of(&chain);
        let mut below = bus;
        for parent in switches.into_iter().map(Some).chain([None]) {
            if self.topology.pci(below).is_none() {
                let pci = self.describe(below, parent, numa);
                self.topology.insert(pci);
            }
            below = parent.unwrap_or(below);
        }
        Some(bus)
    }

    fn describe(&mut self, bus: BusId, parent: Option<BusId>, numa: i32) -> Pci {
        let path = self.root.join(format!("sys/bus/pci/devices/{bus}"));
        let mut number = |name: &str| self.parsed(&path.join(name), "a PCI id", id).unwrap_or(0);
        let ids = ["vendor", "device", "subsystem_vendor", "subsystem_device"].map(&mut number);
        let class = self.parsed(&path.join("class"), "a PCI class", Class::parse);
        let width = text(&path.join("max_link_width")).and_then(|width| width.parse().ok());
        // 255 is what the kernel says where a device has no link.
        let link_width = width.filter(|width| (1..=64).contains(width)).unwrap_or(0);
        let speed = text(&path.join("max_link_speed")).unwrap_or_default();
        let link_speed = if link_width == 0 { String::new() } else { plain(&speed) };
        Pci { bus, parent, numa, class: class.unwrap_or_default(), ids, link_speed, link_width }
    }

    /// The nearest answer from the device upwards.
    fn numa_of(&mut self, chain: &[BusId]) -> i32 {
        for bus in chain.iter().rev() {
            let file = self.root.join(format!("sys/bus/pci/devices/{bus}/numa_node"));
            let said = text(&file).and_then(|node| node.parse::<i32>().ok());
            if let Some(id) = said.filter(|id| self.topology.numa_node(*id).is_some()) {
                return id;
            }
            if let Some(id) = said.filter(|id| *id >= 0) {
                self.note(&file, format!("there is no NUMA node {id}"));
            }
        }
        self.first_node()
    }

    /// Where nothing is known there is one node, or the first is as good as any.
    fn first_node(&self) -> i32 {
        self.topology.numa.first().map_or(-1, |node| node.id)
    }

    /// A file's content; one that is not there, or cannot be read, is nothing to complain about.
    fn parsed<T>(
        &mut self,
        file: &Path,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = text(file)?;
        let value = parse(&text);
        if value.is_none() {
            self.topology.problems.push(Problem::malformed(file, &text, expected));
        }
        value
    }

    fn note(&mut self, file: &Path, what: String) {
        self.topology.problems.push(Problem::new(file, what));
    }
}

/// A small file's text, without space around it.
fn text(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(file).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A folder's entries in the order of their names; none if it is not there.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(found) = fs::read_dir(folder) else { return Vec::new() };
    let named = found.take(MAX_ENTRIES).filter_map(|entry| {
        let entry = entry.ok()?;
        Some((entry.file_name().into_string().ok()?, entry.path()))
    });
    named.collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// The PCI functions on a device's path, from the root port to the device: those in what a link in sysfs points to.
fn chain(link: &Path) -> Vec<BusId> {
    let Ok(target) = fs::read_link(link) else { return Vec::new() };
    target.iter().filter_map(|part| part.to_str()?.parse().ok()).collect()
}

fn id(text: &str) -> Option<u16> {
    hex(text).and_then(|id| u16::try_from(id).ok())
}

/// `b8ce:f603:00d2:0a1e`.
fn guid(text: &str) -> Option<u64> {
    let digits: String = text.split(':').collect();
    let right = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    right.then(|| u64::from_str_radix(&digits, 16).ok()).flatten()
}

/// `400 Gb/sec (4X NDR)`, in Mbit/s.
fn rate(text: &str) -> Option<u32> {
    let (number, rest) = text.split_once(' ')?;
    let gigabits: f64 = number.parse().ok()?;
    let right = rest.starts_with("Gb/sec") && (0.0..1e6).contains(&gigabits);
    right.then_some((gigabits * 1000.0) as u32)
}

/// What goes into files and reports as it is: no control characters, not long.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

/// The name that NCCL has for an architecture.
fn arch(rust: &str) -> &str {
    match rust {
        "aarch64" => "arm64",
        "powerpc64" => "ppc64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(rate("400 Gb/sec (4X NDR)"), Some(400_000));
        assert_eq!(rate("2.5 Gb/sec (1X SDR)"), Some(2500));
        assert_eq!(guid("b8ce:f603:00d2:0a1e"), Some(0xb8ce_f603_00d2_0a1e));
        assert_eq!(
            (rate("fast"), rate("NaN Gb/sec"), guid("b8ce"), id("0x12345")),
            (None, None, None, None)
        );
    }
}

//! NCCL's topology files.
//!
//! ```xml
//! <system version="1">
//!   <cpu numaid="0" affinity="0000ffff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="143">
//!     <pci busid="0000:17:00.0" class="0x060400" ...>                      a switch
//!       <pci busid="0000:19:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16">
//!         <gpu dev="0" sm="90" rank="0" gdr="1">
//!           <nvlink target="0000:09:00.0" count="4" tclass="0x068000"/>
//!         </gpu>
//!       </pci>
//!       <pci busid="0000:18:00.0" class="0x020700" ...>
//!         <nic><net name="mlx5_0" dev="0" speed="400000" port="1" guid="0x..." gdr="1"/></nic>
//!       </pci>
//!     </pci>
//!   </cpu>
//! </system>
//! ```
//!
//! Elements and attributes that this does not know are passed over, as NCCL does.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

use super::cpus::CpuSet;
use super::error::TopologyError;
use super::path::MAX_DEPTH;
use super::pci::{BusId, Class, hex};
use super::{Gpu, Net, NumaNode, NvLink, Pci, Topology};

/// The largest file that is read, bytes.
const MAX_FILE: u64 = 16 << 20;

/// The most elements and attributes of one.
const MAX_NODES: u32 = 1 << 20;

pub(super) fn read_file(file: &Path) -> Result<Topology, TopologyError> {
    let failed = |cause| TopologyError::Read { file: file.to_owned(), cause };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    parse(file, &text)
}

pub(super) fn parse(name: &Path, text: &str) -> Result<Topology, TopologyError> {
    let error = |line: u32, what: String| TopologyError::Xml { file: name.to_owned(), line, what };
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)
        .map_err(|e| error(e.pos().row, format!("not well-formed XML: {e}")))?;
    let mut loader = Loader { topology: Topology::default() };
    let loaded = loader.system(document.root_element());
    loaded.map_err(|Wrong { at, what }| error(document.text_pos_at(at).row, what))?;
    let mut topology = loader.topology;
    topology.tidy();
    Ok(topology)
}

/// What is wrong, and the byte where.
struct Wrong {
    at: usize,
    what: String,
}

struct Loader {
    topology: Topology,
}

impl Loader {
    fn system(&mut self, system: Node<'_, '_>) -> Result<(), Wrong> {
        if !system.has_tag_name("system") {
            return Err(wrong(system, "the outermost element is not <system>"));
        }
        if system.attribute("version") != Some("1") {
            return Err(wrong(system, "<system> does not have version=\"1\""));
        }
        children(system, "cpu").try_for_each(|cpu| self.cpu(cpu))
    }

    fn cpu(&mut self, cpu: Node<'_, '_>) -> Result<(), Wrong> {
        let text = |name| cpu.attribute(name).map(plain).unwrap_or_default();
        let id = required(cpu, "numaid", "a number", |text| text.parse().ok())?;
        if self.topology.numa_node(id).is_some() {
            let what = "there is a second <cpu> with numaid";
            return Err(wrong(cpu, format!("{what} {id}: files of several hosts are not read")));
        }
        let cpus = optional(cpu, "affinity", "a CPU mask", CpuSet::from_mask)?;
        self.topology.numa.push(NumaNode {
            id,
            cpus: cpus.unwrap_or_default(),
            distances: Vec::new(),
            arch: text("arch"),
            vendor: text("vendor"),
            family: number(cpu, "familyid")?,
            model: number(cpu, "modelid")?,
            host: text("host_hash"),
        });
        children(cpu, "nic").try_for_each(|nic| self.nic(nic, None, id))?;
        children(cpu, "pci").try_for_each(|pci| self.pci(pci, None, id, 1))
    }

    fn pci(
        &mut self,
        node: Node<'_, '_>,
        parent: Option<BusId>,
        numa: i32,
        depth: usize,
    ) -> Result<(), Wrong> {
        if depth > MAX_DEPTH {
            return Err(wrong(node, format!("<pci> is nested more than {MAX_DEPTH} deep")));
        }
        let bus = required(node, "busid", "a PCI bus id", |text| text.parse().ok())?;
        if self.topology.pci(bus).is_some() {
            return Err(wrong(node, format!("there is a second <pci> with busid {bus}")));
        }
        let id = |name| optional(node, name, "a PCI id", |text| u16::try_from(hex(text)?).ok());
        let ids = [id("vendor")?, id("device")?, id("subsystem_vendor")?, id("subsystem_device")?];
        let class = optional(node, "class", "a PCI class", Class::parse)?;
        self.topology.insert(Pci {
            bus,
            parent,
            numa,
            class: class.unwrap_or_default(),
            ids: ids.map(Option::unwrap_or_default),
            link_speed: node.attribute("link_speed").map(plain).unwrap_or_default(),
            link_width: number(node, "link_width")?.unwrap_or(0),
        });
        children(node, "gpu").try_for_each(|gpu| self.gpu(gpu, bus))?;
        children(node, "nic").try_for_each(|nic| self.nic(nic, Some(bus), numa))?;
        children(node, "pci").try_for_each(|pci| self.pci(pci, Some(bus), numa, depth + 1))
    }

    fn gpu(&mut self, node: Node<'_, '_>, bus: BusId) -> Result<(), Wrong> {
        let nvlinks: Result<Vec<NvLink>, Wrong> = children(node, "nvlink").map(nvlink).collect();
        // NCCL has -1 for what it does not know.
        self.topology.gpus.push(Gpu {
            bus,
            dev: known(node, "dev")?.unwrap_or(self.topology.gpus.len() as u32),
            rank: known(node, "rank")?,
            sm: known(node, "sm")?,
            gdr: flag(node, "gdr")?,
            nvlinks: nvlinks?,
        });
        Ok(())
    }

    fn nic(&mut self, nic: Node<'_, '_>, bus: Option<BusId>, numa: i32) -> Result<(), Wrong> {
        for net in children(nic, "net") {
            let named = |text: &str| Some(plain(text)).filter(|name| !name.is_empty());
            let name = required(net, "name", "a name", named)?;
            let guid = optional(net, "guid", "a number", |text| {
                let digits = text.strip_prefix("0x");
                digits.map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
            })?;
            let guid = guid.unwrap_or(0);
            let port = known(net, "port")?.unwrap_or(0);
            self.topology.nets.push(Net {
                name,
                dev: 0,
                bus,
                numa,
                rdma: guid != 0 || port != 0,
                port,
                speed: known(net, "speed")?.unwrap_or(0),
                guid,
                up: true,
                gdr: flag(net, "gdr")?,
            });
        }
        Ok(())
    }
}

fn nvlink(node: Node<'_, '_>) -> Result<NvLink, Wrong> {
    Ok(NvLink {
        target: required(node, "target", "a PCI bus id", |text| text.parse().ok())?,
        count: required(node, "count", "a number", |text| text.parse().ok())?,
        class: optional(node, "tclass", "a PCI class", Class::parse)?.unwrap_or(Class::NVSWITCH),
    })
}

fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

fn optional<T>(
    node: Node<'_, '_>,
    name: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Wrong> {
    let Some(text) = node.attribute(name) else { return Ok(None) };
    match parse(text.trim()) {
        Some(value) => Ok(Some(value)),
        None => {
            let (tag, text) = (node.tag_name().name(), plain(text));
            Err(wrong(node, format!("<{tag} {name}={text:?}> is not {expected}")))
        }
    }
}

fn required<T>(
    node: Node<'_, '_>,
    name: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, Wrong> {
    let missing = || wrong(node, format!("<{}> has no {name}", node.tag_name().name()));
    optional(node, name, expected, parse)?.ok_or_else(missing)
}

fn number(node: Node<'_, '_>, name: &str) -> Result<Option<u32>, Wrong> {
    optional(node, name, "a number", |text| text.parse().ok())
}

/// A number, or -1, which means that it is not known.
fn known(node: Node<'_, '_>, name: &str) -> Result<Option<u32>, Wrong> {
    let signed = optional(node, name, "a number", |text| {
        text.parse::<i64>().ok().filter(|n| (-1..=i64::from(u32::MAX)).contains(n))
    })?;
    Ok(signed.and_then(|n| u32::try_from(n).ok()))
}

fn flag(node: Node<'_, '_>, name: &str) -> Result<Option<bool>, Wrong> {
    Ok(known(node, name)?.map(|flag| flag != 0))
}

fn wrong(node: Node<'_, '_>, what: impl Into<String>) -> Wrong {
    Wrong { at: node.range().start, what: what.into() }
}

/// Text from outside that goes on into other files and reports.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

pub(super) fn write(topology: &Topology) -> String {
    let mut out = Writer { topology, text: String::new() };
    out.line(0, "<system version=\"1\">");
    for node in &topology.numa {
        out.cpu(node);
    }
    out.line(0, "</system>");
    out.text
}

struct Writer<'a> {
    topology: &'a Topology,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.text, "{:1$}{text}", "", 2 * depth);
    }

    fn cpu(&mut self, node: &NumaNode) {
        let mut tag = Tag::new("cpu");
        tag.text("host_hash", &node.host);
        tag.set("numaid", node.id);
        if !node.cpus.is_empty() {
            tag.set("affinity", node.cpus.to_mask());
        }
        tag.text("arch", &node.arch);
        tag.text("vendor", &node.vendor);
        tag.known("familyid", node.family);
        tag.known("modelid", node.model);
        self.line(1, &tag.open());
        let loose =
            self.topology.nets.iter().filter(|net| net.bus.is_none() && net.numa == node.id);
        self.nic(loose.collect(), 2);
        let topology = self.topology;
        let top = topology.pci.iter().filter(|pci| pci.parent.is_none() && pci.numa == node.id);
        top.for_each(|pci| self.pci(pci, 2));
        self.line(1, "</cpu>");
    }

    fn pci(&mut self, pci: &Pci, depth: usize) {
        let mut tag = Tag::new("pci");
        tag.set("busid", pci.bus);
        tag.set("class", pci.class);
        for (name, id) in
            ["vendor", "device", "subsystem_vendor", "subsystem_device"].iter().zip(pci.ids)
        {
            tag.set(name, format!("0x{id:04x}"));
        }
        tag.set("link_speed", escape(&pci.link_speed));
        tag.set("link_width", pci.link_width);
        self.line(depth, &tag.open());
        let topology = self.topology;
        if let Some(gpu) = topology.gpu(pci.bus) {
            self.gpu(gpu, depth + 1);
        }
        let nets = topology.nets.iter().filter(|net| net.bus == Some(pci.bus));
        self.nic(nets.collect(), depth + 1);
        let below = topology.pci.iter().filter(|below| below.parent == Some(pci.bus));
        below.for_each(|below| self.pci(below, depth + 1));
        self.line(depth, "</pci>");
    }

    fn gpu(&mut self, gpu: &Gpu, depth: usize) {
        let mut tag = Tag::new("gpu");
        tag.set("dev", gpu.dev);
        tag.known("sm", gpu.sm);
        tag.known("rank", gpu.rank);
        tag.known("gdr", gpu.gdr.map(u8::from));
        if gpu.nvlinks.is_empty() {
            return self.line(depth, &tag.close());
        }
        self.line(depth, &tag.open());
        for link in &gpu.nvlinks {
            let mut tag = Tag::new("nvlink");
            tag.set("target", link.target);
            tag.set("count", link.count);
            tag.set("tclass", link.class);
            self.line(depth + 1, &tag.close());
        }
        self.line(depth, "</gpu>");
    }

    fn nic(&mut self, nets: Vec<&Net>, depth: usize) {
        if nets.is_empty() {
            return;
        }
        self.line(depth, "<nic>");
        for net in nets {
            let mut tag = Tag::new("net");
            tag.text("name", &net.name);
            tag.set("dev", net.dev);
            tag.set("speed", net.speed);
            tag.set("port", net.port);
            tag.set("guid", format!("0x{:x}", net.guid));
            tag.known("gdr", net.gdr.map(u8::from));
            self.line(depth + 1, &tag.close());
        }
        self.line(depth, "</nic>");
    }
}

/// An element's tag while it is written.
struct Tag(String);

impl Tag {
    fn new(name: &str) -> Self {
        Self(format!("<{name}"))
    }

    fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = write!(self.0, " {name}=\"{value}\"");
    }

    fn known(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.set(name, escape(value));
        }
    }

    fn open(self) -> String {
        self.0 + ">"
    }

    fn close(self) -> String {
        self.0 + "/>"
    }
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

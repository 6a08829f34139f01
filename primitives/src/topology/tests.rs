//! Whole machines, from files that say what sysfs and NCCL would.

mod machine;

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use self::machine::Machine;
use super::*;

fn bus(text: &str) -> BusId {
    text.parse().unwrap()
}

fn discover(machine: &Machine) -> Topology {
    let sources = Sources { root: machine.root.clone(), nvml: None, ..Sources::default() };
    Topology::discover(&sources).unwrap()
}

fn again(topology: &Topology) -> Topology {
    Topology::from_xml(Path::new("again.xml"), &topology.to_xml()).unwrap()
}

/// The names of the NICs of all GPUs, in the order of their numbers.
fn served(topology: &Topology) -> Vec<String> {
    let places: Vec<Place> = topology.gpus.iter().map(|gpu| Place::Device(gpu.bus)).collect();
    let nets = topology.serve(&places);
    nets.into_iter().map(|net| topology.nets[net.unwrap()].name.clone()).collect()
}

#[test]
fn a_dgx_is_seen_as_it_is() {
    let machine = Machine::like_a_dgx_h100();
    let topology = discover(&machine);
    assert_eq!(topology.problems, []);
    assert_eq!((topology.gpus.len(), topology.nets.len(), topology.numa.len()), (8, 9, 2));
    let rails: Vec<String> = (0..8).map(|at| format!("mlx5_{at}")).collect();
    assert_eq!(served(&topology), rails);
    let (first, beside, other) = (bus("0000:14:00.0"), bus("0000:13:00.0"), bus("0000:28:00.0"));
    assert_eq!(topology.path(first, first), Some(PathClass::Loc));
    assert_eq!(topology.path(first, beside), Some(PathClass::Pix));
    assert_eq!(topology.path(first, other), Some(PathClass::Phb));
    assert_eq!(topology.path(first, topology.gpus[7].bus), Some(PathClass::Sys));
    assert_eq!(topology.path(first, bus("0000:03:00.0")), None, "the board's display is no GPU");
    assert_eq!(topology.cpus_near(first).to_string(), "0-55,112-167");
    assert_eq!(topology.cpus_near(topology.gpus[7].bus).to_string(), "56-111,168-223");
    let node = &topology.numa[1];
    assert_eq!((&node.vendor[..], node.family, node.model), ("GenuineIntel", Some(6), Some(143)));
    assert_eq!(node.distances, [(0, 21), (1, 10)]);
    let nic = &topology.nets[0];
    assert_eq!((nic.speed, nic.port, nic.guid, nic.up), (400_000, 1, 0xb8ce_f603_00d2_0a1e, true));
    let gpu = topology.pci(first).unwrap();
    assert_eq!(
        (gpu.parent, &gpu.link_speed[..], gpu.link_width),
        (Some(bus("0000:11:00.0")), "32.0 GT/s PCIe", 16)
    );
}

#[test]
fn two_sockets_serve_their_own_gpus() {
    let topology = discover(&Machine::two_sockets());
    assert_eq!(served(&topology), ["mlx5_0", "mlx5_0", "mlx5_1", "mlx5_1"]);
    let paths = |a: &str, b: &str| topology.path(bus(a), bus(b)).unwrap();
    assert_eq!(paths("0000:01:00.0", "0000:09:00.0"), PathClass::Phb);
    assert_eq!(paths("0000:01:00.0", "0000:19:00.0"), PathClass::Sys);
    let places = [Place::Numa(1), Place::Anywhere, Place::Anywhere, Place::Numa(0), Place::Numa(7)];
    assert_eq!(topology.serve(&places), [Some(1), Some(0), Some(1), Some(0), Some(0)]);
}

#[test]
fn equally_near_nics_are_handed_out_in_turn() {
    let machine = Machine::two_sockets();
    machine.rdma("mlx5_2", "0000:00:06.0/0000:0a:00.0", 0);
    let topology = discover(&machine);
    assert_eq!(served(&topology), ["mlx5_0", "mlx5_2", "mlx5_1", "mlx5_1"]);
    let near = topology.nearest_nets(Place::Device(bus("0000:01:00.0")));
    assert_eq!(near, [0, 1]);
    // Two GPUs and two NICs behind one switch.
    let machine = Machine::new();
    machine.node(0, "0-3", "10");
    for (slot, port) in [("03:00.0", 0), ("04:00.0", 1)] {
        machine.gpu(&format!("0000:00:01.0/0000:01:00.0/0000:02:0{port}.0/0000:{slot}"), 0);
    }
    for (name, slot, port) in [("mlx5_0", "05:00.0", 2), ("mlx5_1", "06:00.0", 3)] {
        let chain = format!("0000:00:01.0/0000:01:00.0/0000:02:0{port}.0/0000:{slot}");
        machine.rdma(name, &chain, 0);
    }
    assert_eq!(served(&discover(&machine)), ["mlx5_0", "mlx5_1"]);
}

#[test]
fn near_nics_are_shared_out_among_ranks() {
    let shared = |machine: &Machine, devices: &[&str]| -> Vec<Vec<String>> {
        let topology = discover(machine);
        let devices: Vec<BusId> = devices.iter().map(|text| bus(text)).collect();
        let names = |nets: Vec<usize>| nets.into_iter().map(|at| topology.nets[at].name.clone());
        (0..devices.len()).map(|me| names(topology.share(&devices, me)).collect()).collect()
    };
    // Each GPU of a DGX has the NIC beside it.
    let dgx = Machine::like_a_dgx_h100();
    assert_eq!(shared(&dgx, &["0000:14:00.0"; 2]), [["mlx5_0"], ["mlx5_0"]]);
    // Two NICs are nearest to the GPUs of the first socket: all of its ranks together have both, whatever they are.
    let machine = Machine::two_sockets();
    machine.rdma("mlx5_2", "0000:00:06.0/0000:0a:00.0", 0);
    let (first, second, other) = ("0000:01:00.0", "0000:02:00.0", "0000:13:00.0");
    assert_eq!(shared(&machine, &[first, other]), [vec!["mlx5_0", "mlx5_2"], vec!["mlx5_1"]]);
    assert_eq!(shared(&machine, &[first, second]), [["mlx5_0"], ["mlx5_2"]]);
    let three = [["mlx5_0"], ["mlx5_2"], ["mlx5_0"]];
    assert_eq!(shared(&machine, &[first, second, first]), three);
    // None is nearer than another, or nothing is known.
    let equal = Machine::new();
    equal.node(0, "0-3", "10");
    equal.gpu("0000:00:01.0/0000:01:00.0", 0);
    equal.rdma("mlx5_0", "0000:00:02.0/0000:02:00.0", 0);
    equal.rdma("mlx5_1", "0000:00:03.0/0000:03:00.0", 0);
    assert_eq!(shared(&equal, &[first]), [[""; 0]]);
    assert_eq!(shared(&machine, &["0000:77:00.0"]), [[""; 0]]);
}

#[test]
fn deeper_switches_are_farther() {
    let machine = Machine::new();
    machine.node(0, "0-3", "10");
    let upper = "0000:00:01.0/0000:01:00.0";
    let lower = format!("{upper}/0000:02:00.0/0000:03:00.0");
    machine.gpu(&format!("{lower}/0000:04:00.0/0000:05:00.0"), 0);
    machine.rdma("near", &format!("{lower}/0000:04:01.0/0000:06:00.0"), 0);
    machine.rdma("far", &format!("{upper}/0000:02:01.0/0000:07:00.0"), 0);
    let topology = discover(&machine);
    let gpu = bus("0000:05:00.0");
    assert_eq!(topology.path(gpu, bus("0000:06:00.0")), Some(PathClass::Pix));
    assert_eq!(topology.path(gpu, bus("0000:07:00.0")), Some(PathClass::Pxb));
    assert_eq!(topology.path(bus("0000:07:00.0"), gpu), Some(PathClass::Pxb));
    assert_eq!(served(&topology), ["near"]);
}

#[test]
fn a_link_that_is_down_serves_nobody_while_another_is_up() {
    let machine = Machine::two_sockets();
    let state = "sys/devices/pci0000:00/0000:00:05.0/0000:09:00.0/infiniband/mlx5_0/ports/1/state";
    machine.write(state, "1: DOWN\n");
    assert_eq!(served(&discover(&machine)), ["mlx5_1"; 4]);
}

#[test]
fn an_rdma_nics_interface_is_not_a_nic_once_more() {
    let machine = Machine::two_sockets();
    machine.ethernet("ib0", "0000:00:05.0/0000:09:00.0", 0);
    machine.ethernet("eth0", "0000:00:07.0", 0);
    machine.write("sys/class/net/lo/type", "772\n");
    let names: Vec<String> = discover(&machine).nets.into_iter().map(|net| net.name).collect();
    assert_eq!(names, ["eth0", "mlx5_0", "mlx5_1"]);
}

#[test]
fn cuda_says_which_gpus_count_and_how_they_are_numbered() {
    let machine = Machine::two_sockets();
    let cuda = vec![bus("0000:13:00.0"), bus("0000:01:00.0"), bus("0000:77:00.0")];
    let sources = Sources { root: machine.root.clone(), nvml: None, cuda, xml: None };
    let topology = Topology::discover(&sources).unwrap();
    let gpus: Vec<_> = topology.gpus.iter().map(|gpu| (gpu.bus.to_string(), gpu.dev)).collect();
    assert_eq!(gpus, [("0000:01:00.0".to_owned(), 1), ("0000:13:00.0".to_owned(), 0)]);
    assert!(topology.problems[0].to_string().contains("0000:77:00.0: CUDA has a GPU"));
}

#[test]
fn nothing_is_no_mistake() {
    let machine = Machine::new();
    let topology = discover(&machine);
    let numa: Vec<i32> = topology.numa.iter().map(|node| node.id).collect();
    assert_eq!((numa, &topology.pci[..], &topology.problems[..]), (vec![-1], &[][..], &[][..]));
    assert_eq!(topology.serve(&[Place::Anywhere, Place::Numa(0)]), [None, None]);
    assert!(topology.cpus_near(bus("0000:01:00.0")).is_empty());
    assert_eq!(again(&topology).to_xml(), topology.to_xml());
    let nowhere = Sources { root: PathBuf::from("/nowhere/at/all"), ..Sources::default() };
    assert_eq!(Topology::discover(&nowhere).unwrap().gpus, []);
}

#[test]
fn this_machine_can_be_read() {
    let topology = Topology::discover(&Sources::default()).unwrap();
    assert!(!topology.numa.is_empty());
    assert!(topology.numa.iter().any(|node| !node.cpus.is_empty()), "{topology}");
    assert_eq!(again(&topology).to_xml(), topology.to_xml());
    assert!(topology.to_string().contains("NUMA node"));
}

#[test]
fn nonsense_in_sysfs_is_named_and_left_out() {
    let machine = Machine::two_sockets();
    let gpu = "sys/devices/pci0000:00/0000:00:00.0/0000:01:00.0";
    machine.write(&format!("{gpu}/class"), "display\n");
    machine.write("sys/devices/system/node/node1/cpulist", "0-");
    machine.write("sys/devices/system/node/node0/distance", "10\n");
    machine.write("sys/devices/pci0000:00/0000:00:01.0/0000:02:00.0/numa_node", "9\n");
    machine.link("sys/bus/pci/devices/garbage", "nowhere");
    let topology = discover(&machine);
    assert_eq!(topology.gpus.len(), 3);
    let problems: Vec<String> = topology.problems.iter().map(Problem::to_string).collect();
    for said in [
        "0000:01:00.0/class: \"display\" is not a PCI class",
        "node1/cpulist: \"0-\" is not a list of CPUs",
        "node0/distance: 1 distances for 2 nodes",
        "numa_node: there is no NUMA node 9",
        "garbage: not named like a PCI function",
    ] {
        assert!(problems.iter().any(|problem| problem.ends_with(said)), "{said}: {problems:?}");
    }
}

#[test]
fn xml_keeps_what_it_can_say() {
    for machine in [Machine::like_a_dgx_h100(), Machine::two_sockets()] {
        let mut topology = discover(&machine);
        topology.gpus[0].nvlinks =
            vec![NvLink { target: bus("0000:04:00.0"), count: 4, class: Class::NVSWITCH }];
        topology.gpus[0].sm = Some(90);
        topology.gpus[1].rank = Some(1);
        topology.gpus[1].gdr = Some(true);
        let back = again(&topology);
        assert_eq!(back.to_xml(), topology.to_xml());
        assert_eq!(
            (&back.pci, &back.gpus, &back.nets),
            (&topology.pci, &topology.gpus, &topology.nets)
        );
        assert_eq!(served(&back), served(&topology));
    }
}

/// As a cloud ships it for its virtual machines: switches that the guest does not see, attributes in another order, things
/// that this does not know.
const CLOUD: &str = r#"<?xml version="1.0"?>
<!-- a virtual machine with <two> GPUs -->
<system version="1" name="cloud">
  <cpu numaid="0" affinity="ffff" arch="x86_64" vendor="AuthenticAMD" familyid="143" modelid="49">
    <pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">
      <pci busid="0001:00:00.0" class="0x030200" link_speed="16 GT/s" link_width="16">
        <gpu dev="0" sm="80" rank="-1" future="yes"><c2c bw="1"/><nvlink target="0002:00:00.0" count="12" tclass="0x030200"/></gpu>
      </pci>
      <pci busid="0101:00:00.0" class="0x020700" link_speed="16 GT/s" link_width="16">
        <nic><net name="mlx5_ib0" dev="0" speed="200000" port="1" guid="0x1234" gdr="-1"/></nic>
      </pci>
    </pci>
    <pci busid="0002:00:00.0" class="0x030200"/>
    <nic><net name="eth0" dev="1" speed="-1"/></nic>
  </cpu>
</system>"#;

#[test]
fn a_clouds_file_is_read_and_completes_sysfs() {
    let told = Topology::from_xml(Path::new("cloud.xml"), CLOUD).unwrap();
    assert_eq!(told.path(bus("0001:00:00.0"), bus("0101:00:00.0")), Some(PathClass::Pix));
    assert_eq!((told.gpus[0].rank, told.gpus[0].sm, told.nets.len()), (None, Some(80), 2));
    assert_eq!((told.nets[0].bus, told.nets[0].rdma), (None, false));

    let machine = Machine::new();
    machine.node(0, "0-15", "10");
    machine.gpu("0001:00:00.0", 0);
    machine.gpu("0002:00:00.0", 0);
    machine.write("cloud.xml", CLOUD);
    let xml = Some(machine.root.join("cloud.xml"));
    let sources = Sources { root: machine.root.clone(), nvml: None, xml, ..Sources::default() };
    let topology = Topology::discover(&sources).unwrap();
    let switch = topology.pci(bus("0001:00:00.0")).unwrap().parent;
    assert_eq!(switch, Some(bus("ffff:ff:01.0")), "the file is believed");
    assert_eq!(topology.path(bus("0001:00:00.0"), bus("0002:00:00.0")), Some(PathClass::Nvl));
    assert_eq!(topology.gpus.len(), 2, "the second GPU is only in sysfs");
}

#[test]
fn what_is_wrong_in_xml_is_said_with_its_line() {
    let says = |from: &str, to: &str, what: &str| {
        assert!(CLOUD.contains(from), "{from}");
        let text = CLOUD.replacen(from, to, 1);
        let error = Topology::from_xml(Path::new("cloud.xml"), &text).unwrap_err().to_string();
        assert!(error.starts_with("cloud.xml:") && error.contains(what), "{error}");
    };
    says("version=\"1\" name", "version=\"2\" name", ":3: <system> does not have version=\"1\"");
    says("<system", "<systems", "not well-formed");
    says("</system>", "", "not well-formed");
    says("numaid=\"0\"", "", ":4: <cpu> has no numaid");
    says("affinity=\"ffff\"", "affinity=\"many\"", ":4: <cpu affinity=\"many\"> is not a CPU mask");
    says("0001:00:00.0", "0001:00", ":6: <pci busid=\"0001:00\"> is not a PCI bus id");
    says("0101:00:00.0", "0001:00:00.0", ":9: there is a second <pci> with busid 0001:00:00.0");
    says("count=\"12\"", "count=\"-12\"", ":7: <nvlink count=\"-12\"> is not a number");
    says("name=\"mlx5_ib0\"", "name=\"\"", ":10: <net name=\"\"> is not a name");
    says("speed=\"200000\"", "speed=\"fast\"", ":10: <net speed=\"fast\"> is not a number");
    let deep = "<pci busid=\"0:00:00.0\">".repeat(100_000) + &"</pci>".repeat(100_000);
    let cpu = format!("<system version=\"1\"><cpu numaid=\"0\">{deep}</cpu></system>");
    let error = Topology::from_xml(Path::new("deep.xml"), &cpu).unwrap_err().to_string();
    assert!(error.starts_with("deep.xml:1: there is a second"), "{error}");
    let absent = Topology::read_xml(Path::new("/no/such/file")).unwrap_err().to_string();
    assert!(absent.contains("/no/such/file"), "{absent}");
}

#[test]
fn a_file_without_cpus_says_nothing_and_is_completed() {
    let empty = "<system version=\"1\"><other/></system>";
    let told = Topology::from_xml(Path::new("empty.xml"), empty).unwrap();
    assert_eq!(told, Topology::default());
    assert!(told.to_string().contains("nothing is known"));
    let machine = Machine::two_sockets();
    machine.write("empty.xml", empty);
    let xml = Some(machine.root.join("empty.xml"));
    let sources = Sources { root: machine.root.clone(), nvml: None, xml, ..Sources::default() };
    assert_eq!(Topology::discover(&sources).unwrap(), discover(&machine));
}

#[test]
fn a_circle_of_switches_is_cut() {
    let mut topology = discover(&Machine::two_sockets());
    let (a, b) = (topology.pci[0].bus, topology.pci[1].bus);
    topology.pci[0].parent = Some(b);
    topology.pci[1].parent = Some(a);
    topology.tidy();
    assert!(topology.pci[0].parent.is_none() || topology.pci[1].parent.is_none());
    assert!(!topology.to_string().is_empty() && !topology.to_xml().is_empty());
}

/// A library with NVML's functions: six links a GPU, to two switches and one that is down.
const FAKE_NVML: &str = r#"
#include <stdio.h>
#include <string.h>
typedef struct { char legacy[16]; unsigned domain, bus, device, id, sub; char busId[32]; } Pci;
static int users;
int nvmlInit_v2(void) { return users++ ? 999 : 0; }
int nvmlShutdown(void) { users--; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    if (strcmp(bus, "0000:02:00.0") == 0) return 6;
    *device = (void *)bus; return users == 1 ? 0 : 1;
}
int nvmlDeviceGetNvLinkState(void *d, unsigned link, unsigned *on) {
    if (link > 6) return 2;
    *on = link != 6; return 0;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *d, unsigned link, Pci *pci) {
    memset(pci, 0xff, sizeof *pci);
    snprintf(pci->busId, 32, link < 4 ? "00000000:C4:00.0" : "00000000:C5:00.0"); return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
"#;

#[test]
fn nvml_says_how_gpus_are_linked() {
    let machine = Machine::two_sockets();
    machine.write("nvml.c", FAKE_NVML);
    let (source, library) = (machine.root.join("nvml.c"), machine.root.join("libfake.so"));
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    assert!(built.expect("a C compiler").success());
    let sources =
        Sources { root: machine.root.clone(), nvml: Some(library.clone()), ..Sources::default() };
    let topology = Topology::discover(&sources).unwrap();
    let gpu = topology.gpu(bus("0000:01:00.0")).unwrap();
    let link = |target, count| NvLink { target: bus(target), count, class: Class::NVSWITCH };
    assert_eq!(gpu.nvlinks, [link("0000:c4:00.0", 4), link("0000:c5:00.0", 2)]);
    assert_eq!(gpu.sm, Some(90));
    assert_eq!(topology.path(gpu.bus, bus("0000:13:00.0")), Some(PathClass::Nvl));
    assert_eq!(topology.path(gpu.bus, bus("0000:02:00.0")), Some(PathClass::Phb));
    assert!(topology.problems[0].what.contains("does not know the GPU at 0000:02:00.0"));
    assert_eq!(again(&topology).gpus, topology.gpus);

    // A library that is something else.
    let libc = Sources { nvml: Some(PathBuf::from("libc.so.6")), ..sources };
    let topology = Topology::discover(&libc).unwrap();
    assert!(topology.problems[0].what.contains("not NVML"), "{:?}", topology.problems);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_sysfs_are_a_partial_machine(edits in prop::collection::vec(
        (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 1..8)) {
        let machine = Machine::two_sockets();
        let files = machine.files();
        for (at, bytes, remove) in edits {
            let file = at.get(&files);
            let edit = if remove { std::fs::remove_file(file) } else { std::fs::write(file, &bytes) };
            // One that another edit has removed already.
            let _ = edit;
        }
        let topology = discover(&machine);
        prop_assert!(topology.gpus.len() <= 4 && topology.nets.len() <= 2);
        prop_assert_eq!(again(&topology).to_xml(), topology.to_xml());
        prop_assert!(!topology.to_string().is_empty());
        let places: Vec<Place> = topology.gpus.iter().map(|gpu| Place::Device(gpu.bus)).collect();
        prop_assert_eq!(topology.serve(&places).len(), places.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_edit_of_a_file_is_a_topology_or_an_error(edits in prop::collection::vec(
        (any::<prop::sample::Index>(), 0..12usize, "[ -~\n]{0,6}"), 1..5)) {
        let mut text = CLOUD.to_owned();
        for (at, gone, new) in edits {
            let from = at.index(text.len());
            let to = (from + gone).min(text.len());
            text.replace_range(from..to, &new);
        }
        match Topology::from_xml(Path::new("f.xml"), &text) {
            Ok(topology) => {
                prop_assert_eq!(again(&topology).to_xml(), topology.to_xml());
                prop_assert!(!topology.to_string().is_empty());
            }
            Err(error) => prop_assert!(error.to_string().starts_with("f.xml:"), "{}", error),
        }
    }
}

//! Machines made of files: what sysfs would say about them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder with `sys` and `proc`; gone when dropped.
pub(super) struct Machine {
    pub(super) root: PathBuf,
}

impl Machine {
    pub(super) fn new() -> Self {
        // Only its being another one each time counts.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("warpmesh-topology-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).unwrap();
        Self { root }
    }

    pub(super) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let file = self.root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    pub(super) fn link(&self, link: &str, target: &str) {
        let link = self.root.join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
    }

    pub(super) fn node(&self, id: u32, cpus: &str, distance: &str) {
        self.write(&format!("sys/devices/system/node/node{id}/cpulist"), format!("{cpus}\n"));
        self.write(&format!("sys/devices/system/node/node{id}/distance"), format!("{distance}\n"));
    }

    /// A function at the end of `chain`, which is written `0000:15:01.0/0000:16:00.0`, and all above it.
    pub(super) fn function(&self, chain: &str, class: &str, vendor: &str, numa: i32) {
        let buses: Vec<&str> = chain.split('/').collect();
        for (at, bus) in buses.iter().enumerate() {
            let (class, vendor) =
                if at + 1 == buses.len() { (class, vendor) } else { ("0x060400", "0x1000") };
            let folder = format!("sys/devices/pci0000:00/{}", buses[..=at].join("/"));
            if self.root.join(&folder).join("class").exists() {
                continue;
            }
            self.write(&format!("{folder}/class"), format!("{class}\n"));
            self.write(&format!("{folder}/vendor"), format!("{vendor}\n"));
            self.write(&format!("{folder}/device"), "0x2330\n");
            self.write(&format!("{folder}/numa_node"), format!("{numa}\n"));
            self.write(&format!("{folder}/max_link_speed"), "32.0 GT/s PCIe\n");
            self.write(&format!("{folder}/max_link_width"), "16\n");
            let up = "../../../devices/pci0000:00";
            self.link(
                &format!("sys/bus/pci/devices/{bus}"),
                &format!("{up}/{}", buses[..=at].join("/")),
            );
        }
    }

    pub(super) fn gpu(&self, chain: &str, numa: i32) {
        self.function(chain, "0x030200", "0x10de", numa);
    }

    pub(super) fn rdma(&self, name: &str, chain: &str, numa: i32) {
        self.function(chain, "0x020700", "0x15b3", numa);
        let folder = format!("sys/devices/pci0000:00/{chain}/infiniband/{name}");
        self.write(&format!("{folder}/node_guid"), "b8ce:f603:00d2:0a1e\n");
        self.write(&format!("{folder}/ports/1/rate"), "400 Gb/sec (4X NDR)\n");
        self.write(&format!("{folder}/ports/1/state"), "4: ACTIVE\n");
        self.link(
            &format!("sys/class/infiniband/{name}"),
            &format!("../../devices/pci0000:00/{chain}/infiniband/{name}"),
        );
    }

    pub(super) fn ethernet(&self, name: &str, chain: &str, numa: i32) {
        self.function(chain, "0x020000", "0x8086", numa);
        let folder = format!("sys/devices/pci0000:00/{chain}/net/{name}");
        self.write(&format!("{folder}/type"), "1\n");
        self.write(&format!("{folder}/speed"), "25000\n");
        self.write(&format!("{folder}/operstate"), "up\n");
        self.link(
            &format!("sys/class/net/{name}"),
            &format!("../../devices/pci0000:00/{chain}/net/{name}"),
        );
    }

    /// Eight GPUs, each behind a switch of its own with a NIC, four a socket; NVSwitches; an Ethernet card for files; the
    /// display of the board's controller.
    pub(super) fn like_a_dgx_h100() -> Self {
        let machine = Self::new();
        machine.node(0, "0-55,112-167", "10 21");
        machine.node(1, "56-111,168-223", "21 10");
        machine.write(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n",
        );
        for at in 0..8u32 {
            let (numa, base) = (at as i32 / 4, 0x10 + 0x14 * at);
            let bus = |n: u32| format!("0000:{:02x}", base + n);
            let switch = format!("{}:01.0/{}:00.0", bus(0), bus(1));
            machine.gpu(&format!("{switch}/{}:00.0/{}:00.0", bus(2), bus(4)), numa);
            machine.rdma(
                &format!("mlx5_{at}"),
                &format!("{switch}/{}:01.0/{}:00.0", bus(2), bus(3)),
                numa,
            );
        }
        for at in 0..4 {
            machine.function(
                &format!("0000:01:0{at}.0/0000:0{}:00.0", at + 4),
                "0x068000",
                "0x10de",
                0,
            );
        }
        machine.ethernet("ens6f0", "0000:c0:01.0/0000:c1:00.0", 1);
        machine.function("0000:02:00.0/0000:03:00.0", "0x030000", "0x1a03", 0);
        machine
    }

    /// Two sockets, four GPUs and two NICs, all right below root ports.
    pub(super) fn two_sockets() -> Self {
        let machine = Self::new();
        machine.node(0, "0-15", "10 32");
        machine.node(1, "16-31", "32 10");
        for at in 0..4 {
            let numa = at / 2;
            machine.gpu(&format!("0000:{numa}0:0{at}.0/0000:{numa}{}:00.0", at + 1), numa);
        }
        machine.rdma("mlx5_0", "0000:00:05.0/0000:09:00.0", 0);
        machine.rdma("mlx5_1", "0000:10:05.0/0000:19:00.0", 1);
        machine
    }

    /// All files of it, in order.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        fn below(folder: &Path, files: &mut Vec<PathBuf>) {
            let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap()).collect();
            entries.sort_by_key(|entry| entry.path());
            for entry in entries {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    below(&entry.path(), files);
                } else if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
        let mut files = Vec::new();
        below(&self.root, &mut files);
        files
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

//! A topology for people.

use std::fmt;

use super::path::PathClass;
use super::serve::Place;
use super::{BusId, Class, Topology};

impl fmt::Display for Topology {
    /// The tree, which NIC serves which GPU, the classes of the ways between GPUs and NICs, and what could not be read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.numa.is_empty() {
            writeln!(f, "nothing is known: no CPU, no device")?;
        }
        for node in &self.numa {
            let model = if node.vendor.is_empty() { &node.arch } else { &node.vendor };
            writeln!(f, "NUMA node {}: CPUs {} ({model})", node.id, node.cpus)?;
            let top = |pci: &&super::Pci| pci.parent.is_none() && pci.numa == node.id;
            for pci in self.pci.iter().filter(top) {
                self.show_device(f, pci.bus, 1)?;
            }
            for net in self.nets.iter().filter(|net| net.bus.is_none() && net.numa == node.id) {
                writeln!(f, "  {}", self.name_net(net.dev as usize))?;
            }
        }
        self.show_service(f)?;
        self.show_matrix(f)?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "not read: {problem}"))
    }
}

impl Topology {
    fn show_device(&self, f: &mut fmt::Formatter<'_>, bus: BusId, depth: usize) -> fmt::Result {
        let Some(pci) = self.pci(bus) else { return Ok(()) };
        let gpu = self.gpu(bus).map(|gpu| format!("GPU {}", gpu.dev));
        let nets = self.nets.iter().filter(|net| net.bus == Some(bus));
        let names: Vec<String> =
            gpu.into_iter().chain(nets.map(|net| self.name_net(net.dev as usize))).collect();
        let what = if names.is_empty() && pci.class == Class::BRIDGE {
            "switch".to_owned()
        } else {
            names.join(", ")
        };
        write!(f, "{:1$}{bus} {what}", "", depth * 2)?;
        if pci.link_width > 0 {
            write!(f, " [{} x{}]", pci.link_speed, pci.link_width)?;
        }
        writeln!(f)?;
        let below = self.pci.iter().filter(|pci| pci.parent == Some(bus));
        below.map(|pci| pci.bus).try_for_each(|bus| self.show_device(f, bus, depth + 1))
    }

    fn name_net(&self, at: usize) -> String {
        let net = &self.nets[at];
        let port = if net.port > 1 { format!(":{}", net.port) } else { String::new() };
        let speed = match net.speed {
            0 => "speed unknown".to_owned(),
            speed => format!("{} Gb/s", f64::from(speed) / 1e3),
        };
        let state = if net.up { "" } else { ", down" };
        format!("NIC {}{port} ({speed}{state})", net.name)
    }

    fn show_service(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gpus: Vec<_> = self.gpus.iter().collect();
        gpus.sort_by_key(|gpu| gpu.dev);
        let places: Vec<Place> = gpus.iter().map(|gpu| Place::Device(gpu.bus)).collect();
        for (gpu, net) in gpus.iter().zip(self.serve(&places)) {
            let cpus = self.cpus_near(gpu.bus);
            match net {
                Some(net) => writeln!(f, "GPU {}: {}, CPUs {cpus}", gpu.dev, self.name_net(net))?,
                None => writeln!(f, "GPU {}: no NIC, CPUs {cpus}", gpu.dev)?,
            }
        }
        Ok(())
    }

    fn show_matrix(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gpus = self.gpus.iter().map(|gpu| (format!("GPU{}", gpu.dev), gpu.bus));
        let nets = self.nets.iter().filter_map(|net| Some((net.name.clone(), net.bus?)));
        let all: Vec<(String, BusId)> = gpus.chain(nets).collect();
        if self.gpus.is_empty() || all.len() < 2 {
            return Ok(());
        }
        let width = all.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(4) + 1;
        write!(f, "{:width$}", "")?;
        all.iter().try_for_each(|(name, _)| write!(f, "{name:>width$}"))?;
        for (name, a) in &all {
            write!(f, "\n{name:width$}")?;
            for (_, b) in &all {
                let class = self.path(*a, *b).unwrap_or(PathClass::Sys);
                write!(f, "{class:>width$}")?;
            }
        }
        writeln!(f)
    }
}

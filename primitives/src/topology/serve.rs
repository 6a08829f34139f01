//! Which NIC serves whom.

use super::path::PathClass;
use super::pci::BusId;
use super::{Net, Topology};

/// Where something is that a NIC shall serve, for instance a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a GPU, or any other device.
    Device(BusId),
    /// At a NUMA node.
    Numa(i32),
    /// Anywhere.
    Anywhere,
}

/// How good a NIC is for a place: smaller is better.
type Cost = (bool, PathClass, u32);

impl Topology {
    /// The NIC of each of `places`, as an index of [`nets`](Self::nets); `None` where there is none at all.
    ///
    /// It is the one with the nearest PCIe path, then NUMA node, of those whose link is up, if any is. Equally near ones
    /// are handed out in turn, so that the k-th place of a switch or node has the k-th NIC there: on machines that are
    /// built alike, places of the same number have NICs of the same number, which is what fabrics call a rail. RDMA goes
    /// before Ethernet: if a NIC has verbs, others are not considered.
    pub fn serve(&self, places: &[Place]) -> Vec<Option<usize>> {
        let mut turns: Vec<(Vec<usize>, usize)> = Vec::new();
        let mut next = |nearest: Vec<usize>| {
            let at = turns.iter().position(|(nets, _)| *nets == nearest).unwrap_or_else(|| {
                turns.push((nearest.clone(), 0));
                turns.len() - 1
            });
            let turn = turns[at].1;
            turns[at].1 += 1;
            nearest.get(turn % nearest.len().max(1)).copied()
        };
        places.iter().map(|place| next(self.nearest_nets(*place))).collect()
    }

    /// The NICs of device `me` of `devices`, which ranks of this machine work on, as indices of [`nets`](Self::nets): of those
    /// with verbs whose link is up, the nearest. Devices to which the same are nearest share them out in turn, as
    /// [`serve`](Self::serve) does; where they are fewer than these, each has several. Empty if no NIC is nearer than another, or
    /// the device is not known.
    pub fn share(&self, devices: &[BusId], me: usize) -> Vec<usize> {
        let good = |at: &usize| self.nets[*at].rdma && self.nets[*at].up;
        let all = (0..self.nets.len()).filter(good).count();
        let near = |device: BusId| match self.pci(device) {
            None => Vec::new(),
            Some(_) => self.nearest_nets(Place::Device(device)).into_iter().filter(good).collect(),
        };
        let mine = near(devices[me]);
        if mine.len() == all {
            return Vec::new();
        }
        let with_me: Vec<usize> =
            (0..devices.len()).filter(|at| near(devices[*at]) == mine).collect();
        let turn = with_me.iter().position(|at| *at == me).unwrap_or(0);
        let turns = with_me.len().min(mine.len()).max(1);
        mine.into_iter().skip(turn % turns).step_by(turns).collect()
    }

    /// All NICs that are as near to `place` as any, as indices of [`nets`](Self::nets), in their order.
    pub fn nearest_nets(&self, place: Place) -> Vec<usize> {
        let rdma = self.nets.iter().any(|net| net.rdma && net.up);
        let usable = (0..self.nets.len()).filter(|&at| !rdma || self.nets[at].rdma);
        let costs: Vec<(Cost, usize)> =
            usable.map(|at| (self.cost(place, &self.nets[at]), at)).collect();
        let Some(best) = costs.iter().map(|(cost, _)| *cost).min() else {
            return Vec::new();
        };
        costs.into_iter().filter(|(cost, _)| *cost == best).map(|(_, at)| at).collect()
    }

    fn cost(&self, place: Place, net: &Net) -> Cost {
        let device = match place {
            Place::Device(bus) => self.pci(bus),
            _ => None,
        };
        let numa = match place {
            Place::Numa(numa) => Some(numa),
            _ => device.map(|pci| pci.numa),
        };
        let class = match (device, net.bus.and_then(|bus| self.pci(bus))) {
            (Some(a), Some(b)) if a.bus == b.bus => PathClass::Loc,
            (Some(a), Some(b)) => self.pcie_path(a, b),
            _ if numa.is_none_or(|numa| numa == net.numa) => PathClass::Phb,
            _ => PathClass::Sys,
        };
        let distance = numa.map_or(0, |numa| self.distance(numa, net.numa));
        (!net.up, class, distance)
    }

    /// Between two NUMA nodes; where the firmware says nothing, all others are equally far.
    fn distance(&self, from: i32, to: i32) -> u32 {
        let known = self.numa_node(from).and_then(|node| {
            node.distances.iter().find(|(other, _)| *other == to).map(|(_, distance)| *distance)
        });
        known.unwrap_or(if from == to { 10 } else { 20 })
    }
}

//! NVLinks and compute capabilities, from NVML where there is one.

use std::path::Path;

use super::pci::{BusId, Class};
use super::{NvLink, Problem, Topology, sysfs};
use crate::sys::nvml::{Nvml, NvmlError};

/// As many as any GPU has so far.
const MAX_LINKS: u32 = 18;

/// Adds what NVML says. Where it is not installed nothing is added, and that is no problem.
pub(super) fn complete(topology: &mut Topology, root: &Path, library: &Path) {
    if topology.gpus.is_empty() {
        return;
    }
    let nvml = match Nvml::open(library) {
        Ok(nvml) => nvml,
        Err(NvmlError::Absent) => return,
        Err(error) => {
            topology.problems.push(Problem::new(library, error.to_string()));
            return;
        }
    };
    for at in 0..topology.gpus.len() {
        let gpu = &mut topology.gpus[at];
        let Ok(device) = nvml.device(&gpu.bus.to_string()) else {
            let what = format!("it does not know the GPU at {}", gpu.bus);
            topology.problems.push(Problem::new(library, what));
            continue;
        };
        gpu.sm = gpu.sm.or_else(|| nvml.compute_capability(device).map(|(a, b)| a * 10 + b));
        // What a file said is believed.
        if gpu.nvlinks.is_empty() {
            let ends = (0..MAX_LINKS).filter_map(|link| nvml.remote_end(device, link));
            gpu.nvlinks = links(ends.filter_map(|bus| bus.parse().ok()), root);
        }
    }
}

/// Links that lead to the same place, counted.
fn links(ends: impl Iterator<Item = BusId>, root: &Path) -> Vec<NvLink> {
    let mut links: Vec<NvLink> = Vec::new();
    for target in ends {
        match links.iter_mut().find(|link| link.target == target) {
            Some(link) => link.count += 1,
            None => {
                // Virtual machines do not show their switches.
                let class = sysfs::class_of(root, target).unwrap_or(Class::NVSWITCH);
                links.push(NvLink { target, count: 1, class });
            }
        }
    }
    links.sort_by_key(|link| link.target);
    links
}

//! The lines that say where the ranks run.

use serde::{Deserialize, Serialize};

use crate::backend::cuda::Device as Gpu;

/// One rank's device, as nccl-tests reports it. On the host device that is the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The rank.
    pub rank: usize,
    /// Its communicator, where several run side by side; always 0.
    pub group: usize,
    /// Its process.
    pub pid: u32,
    /// Its host.
    pub hostname: String,
    /// The device's number.
    pub device: usize,
    /// Where nccl-tests has the PCI address.
    pub device_hex: String,
    /// The device's name.
    pub device_info: String,
}

impl Device {
    /// The host that this process runs on.
    pub fn host(rank: usize) -> Self {
        Self {
            rank,
            group: 0,
            pid: std::process::id(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            device: 0,
            device_hex: "host".to_owned(),
            device_info: cpu_name(),
        }
    }

    /// A rank's GPU.
    pub fn gpu(rank: usize, gpu: &Gpu) -> Self {
        let (device_hex, device_info) = (gpu.pci_address(), gpu.name());
        Self { device: gpu.ordinal(), device_hex, device_info, ..Self::host(rank) }
    }

    /// The line in the header.
    pub fn line(&self) -> String {
        format!(
            "#  Rank {:>2} Group {:>2} Pid {:>6} on {:>10} device {:>2} [{}] {}",
            self.rank,
            self.group,
            self.pid,
            self.hostname,
            self.device,
            self.device_hex,
            self.device_info
        )
    }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("CPU", |(_, name)| name.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_that_of_nccl_tests() {
        let device = Device { hostname: "node1".into(), pid: 12, ..Device::host(3) };
        let start = "#  Rank  3 Group  0 Pid     12 on      node1 device  0 [host] ";
        assert!(device.line().starts_with(start), "{}", device.line());
    }
}

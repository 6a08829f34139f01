//! What this process may use of the machine.

use std::fmt;

/// Identifies the kernel and network namespace that a process lives in. Two ranks with the same
/// value can pass each other memory; others cannot.
#[derive(Clone, PartialEq, Eq)]
pub struct HostId(Vec<u8>);

impl HostId {
    /// Reads the boot id and the network namespace (abstract sockets do not cross it). Where /proc
    /// is missing the host's name stands in.
    pub fn current() -> Self {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id")
            .unwrap_or_else(|_| rustix::system::uname().nodename().to_bytes().to_vec());
        let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
        let mut id = boot.trim_ascii().to_vec();
        id.extend_from_slice(namespace.as_os_str().as_encoded_bytes());
        Self(id)
    }

    /// As sent to peers.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Cores that this process may run on: its affinity mask and its cgroup's quota, at least 1.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine's name, for reports.
pub fn name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

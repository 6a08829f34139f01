//! What this process may use of the machine.

use std::fmt;

/// Identifies the kernel and network namespace that a thread lives in. Two ranks with the same
/// value can pass each other memory; others cannot.
#[derive(Clone, PartialEq, Eq)]
pub struct HostId(Vec<u8>);

impl HostId {
    /// Reads the boot id and the network namespace (abstract sockets do not cross it). Where /proc
    /// is missing the host's name stands in. `WARPMESH_HOST_ID` comes on top: ranks with different values of it
    /// do not share memory, wherever they run.
    pub fn current() -> Self {
        Self::marked(&std::env::var("WARPMESH_HOST_ID").unwrap_or_default())
    }

    /// As [`HostId::current`], with `mark` in place of the variable.
    pub fn marked(mark: &str) -> Self {
        let namespace = std::fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
        let mut id = machine_id();
        id.extend_from_slice(namespace.as_os_str().as_encoded_bytes());
        id.extend_from_slice(mark.as_bytes());
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

/// Identifies the machine, or virtual machine, that runs this process: its cores are shared by the processes that see the
/// same, also where namespaces make hosts of them.
pub(crate) fn machine_id() -> Vec<u8> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_bytes().to_vec());
    boot.trim_ascii().to_vec()
}

/// Cores that this process may run on: its affinity mask and its cgroup's quota, at least 1.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets the calling thread run on every core that the system grants, also where the process was
/// bound to one; returns how many there are.
pub fn go_on_any_core() -> usize {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| all.set(core));
    let _ = sched_setaffinity(None, &all);
    usable_cores()
}

/// Keeps the calling thread on one of the cores that it may use, counted from 0; without effect if
/// there is none of that number.
pub fn stay_on_core(number: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    if let Some(core) = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).nth(number) {
        let mut one = CpuSet::new();
        one.set(core);
        let _ = sched_setaffinity(None, &one);
    }
}

/// Random bytes from the system; from the time and the process id should it have none.
pub fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = now.map_or(0, |now| now.as_nanos() as u64);
        bytes[..8].copy_from_slice(&nanos.to_le_bytes());
        bytes[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    }
    bytes
}

/// The machine's name, for reports.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

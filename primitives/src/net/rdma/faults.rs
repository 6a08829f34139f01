//! What is said when something breaks, and what to look at.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::net::NetError;
use crate::sys::verbs::{
    Verbs, WC_LOC_PROT_ERR, WC_REM_ACCESS_ERR, WC_REM_OP_ERR, WC_RETRY_EXC_ERR,
    WC_RNR_RETRY_EXC_ERR, WC_WR_FLUSH_ERR, Wc,
};

pub(super) fn unavailable(reason: String) -> NetError {
    NetError::Unavailable { transport: "rdma", reason }
}

/// A completion that failed: of a receive that waited for a signal, or of a request.
pub(super) fn completion(verbs: &Verbs, wc: &Wc, receive: bool, mtu: u32) -> String {
    let status = verbs.status(wc.status);
    let advice = if receive { of_receive() } else { of_request(wc, mtu) };
    format!("{status} (status {}, vendor {:#x}); {advice}", wc.status, wc.vendor_err)
}

fn of_receive() -> String {
    "this rank's NIC refuses what the peer sent: to memory that was taken back (forget), or by another version; or the \
     NIC failed, then the kernel's log (dmesg) tells it"
        .to_owned()
}

fn of_request(wc: &Wc, mtu: u32) -> String {
    match wc.status {
        WC_RETRY_EXC_ERR => format!(
            "the peer's NIC does not answer: its process has ended, its port or a switch is down, or packets of {mtu} bytes \
             do not come through (compare the MTU of ports and switches; RoCE wants priority flow control or ECN)"
        ),
        WC_RNR_RETRY_EXC_ERR => "the peer takes no signals: it has stopped calling progress".to_owned(),
        WC_REM_ACCESS_ERR | WC_REM_OP_ERR => "the peer's NIC refuses the address: the peer has taken back the memory \
             (forget), or registered it anew without this rank learning it"
            .to_owned(),
        WC_LOC_PROT_ERR => "this rank's NIC refuses the source: the memory was taken back (forget) before its transfers \
             were sent, or it was unmapped"
            .to_owned(),
        WC_WR_FLUSH_ERR => "the queue pair had stopped; the peer's report may tell why".to_owned(),
        _ => "look at the kernel's log (dmesg) and the port's counters \
             (/sys/class/infiniband/*/ports/*/hw_counters)"
            .to_owned(),
    }
}

/// Memory that a NIC would not take.
pub(super) fn refused(via: &str, memory: &str, bytes: usize, error: &io::Error) -> NetError {
    let cause = locked(error).unwrap_or_else(|| match error.raw_os_error() {
        Some(errno) if errno == Errno::FAULT.raw_os_error() => format!(
            "{error}: it is not mapped, or is memory of a device that the kernel cannot give to NICs (for NVIDIA's GPUs: \
             load nvidia-peermem, or a driver with dma-buf)"
        ),
        _ => error.to_string(),
    });
    NetError::System { what: format!("{via}: registering {memory}, {bytes} bytes"), cause }
}

/// What to say if the system refuses because of the limit on locked memory, which it tells by ENOMEM.
pub(super) fn locked(error: &io::Error) -> Option<String> {
    if error.raw_os_error() != Some(Errno::NOMEM.raw_os_error()) {
        return None;
    }
    let limit = match getrlimit(Resource::Memlock).current {
        Some(bytes) => format!("{} KiB", bytes >> 10),
        None => "unlimited, so the memory itself, or the NIC's, is at its end".to_owned(),
    };
    Some(format!(
        "{error}: memory of NICs is locked, and this process may lock so much: {limit} (RLIMIT_MEMLOCK, `ulimit -l`). \
         Raise it: LimitMEMLOCK=infinity in a systemd unit, --ulimit memlock=-1 for docker, memlock in \
         /etc/security/limits.conf"
    ))
}

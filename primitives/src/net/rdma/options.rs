//! What users may set.

use std::time::Duration;

use crate::net::NetError;

/// How peers are told that data is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalMode {
    /// By an atomic addition of the NIC to the semaphore: the receiving rank has nothing to do. Needs NICs with
    /// atomics; a NIC without them makes it [`SignalMode::Immediate`] for the connections over it.
    FetchAdd,
    /// By a number that comes with the data: one request less for each signal, but the receiving rank counts only when
    /// it calls [`Transport::progress`](crate::net::Transport::progress).
    Immediate,
}

/// How transfers reach memory of a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuMemory {
    /// By the first of the others that works, for each memory.
    #[default]
    Auto,
    /// The NIC, by a dma-buf of the GPU's driver.
    DmaBuf,
    /// The NIC, by the memory's address: `nvidia-peermem` is loaded.
    Peermem,
    /// Through pinned memory of the host, by the GPU's copy engines.
    Staged,
}

impl GpuMemory {
    const ALL: [(Self, &str); 4] = [
        (Self::Auto, "auto"),
        (Self::DmaBuf, "dma-buf"),
        (Self::Peermem, "peermem"),
        (Self::Staged, "staged"),
    ];

    /// Its name, as in `WARPMESH_IB_GPU_MEMORY`.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == name).map(|(this, _)| *this)
    }
}

/// The options of an [`RdmaTransport`](super::RdmaTransport). Ranks may differ in all of them; where both ends of a
/// connection count (signals, MTU), the lesser wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaOptions {
    /// The NICs: `mlx5_0`, or `mlx5_0:2` for its second port. In the order of the rails: the first of one rank talks to
    /// the first of every other. Empty: see `near`. `WARPMESH_IB_DEVICES`, with commas.
    pub devices: Vec<String>,
    /// Of the NICs whose first port is up, those to be taken if there are any of them; else all are.
    pub near: Vec<String>,
    /// Which of a port's addresses is used, as in `/sys/class/infiniband/*/ports/*/gids`. None: the best of RoCE v2 on
    /// IPv4, RoCE v2 on IPv6, others. `WARPMESH_IB_GID_INDEX`.
    pub gid_index: Option<u8>,
    /// The traffic class of packets (DSCP in its upper six bits). `WARPMESH_IB_TRAFFIC_CLASS`, 0.
    pub traffic_class: u8,
    /// The service level of packets, 0 to 15. `WARPMESH_IB_SERVICE_LEVEL`, 0.
    pub service_level: u8,
    /// Bytes of a packet's data at most: 256, 512, 1024, 2048 or 4096. None: what the ports of both ends can.
    /// `WARPMESH_IB_MTU`.
    pub mtu: Option<u32>,
    /// How long a NIC waits for an answer: 4.096 µs · 2^timeout, 1 to 31. `WARPMESH_IB_TIMEOUT`, 18: 1.1 s. Together with
    /// the retries it is how long it takes until a peer that does not answer is an error.
    pub timeout: u8,
    /// How often it tries again, 0 to 7. `WARPMESH_IB_RETRIES`, 6: soft-RoCE takes 7 for "for ever", and would never tell
    /// that a peer has gone.
    pub retries: u8,
    /// `WARPMESH_IB_SIGNALS`: `fetch-add` or `immediate`. None: fetch-add for what kernels of a GPU wait for, immediate data for ranks on
    /// processors, which look at the NIC while they wait.
    pub signals: Option<SignalMode>,
    /// Requests of a queue pair that the NIC holds at a time, at least 8; more wait in memory. Fewer if the NIC cannot
    /// have as many for all ranks. `WARPMESH_IB_DEPTH`, 256.
    pub depth: u32,
    /// Transfers of at least so many bytes are cut over all NICs. `WARPMESH_IB_STRIPE`, 64 KiB.
    pub stripe: u64,
    /// How long a port may be down before its connections count as broken; the NIC's retries bridge a shorter time.
    /// `WARPMESH_IB_PORT_GRACE_MS`, 2 s.
    pub port_grace: Duration,
    /// How NICs get at memory of a GPU. What is not `auto` is for tests, and to find out what is wrong: memory that cannot be reached like
    /// this is an error. `WARPMESH_IB_GPU_MEMORY`: `auto`, `dma-buf`, `peermem` or `staged`.
    pub gpu_memory: GpuMemory,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            near: Vec::new(),
            gid_index: None,
            traffic_class: 0,
            service_level: 0,
            mtu: None,
            timeout: 18,
            retries: 6,
            signals: None,
            depth: 256,
            stripe: 64 << 10,
            port_grace: Duration::from_secs(2),
            gpu_memory: GpuMemory::Auto,
        }
    }
}

impl RdmaOptions {
    /// The defaults, changed by the environment's variables `WARPMESH_IB_*`.
    ///
    /// # Errors
    /// Names a variable that cannot be understood, and what it may be.
    pub fn from_env() -> Result<Self, NetError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, NetError> {
        let mut options = Self::default();
        let number = |name: &str, low: u64, high: u64| -> Result<Option<u64>, NetError> {
            let Some(text) = get(name) else { return Ok(None) };
            let value = text.trim().parse().ok().filter(|value| (low..=high).contains(value));
            value
                .map(Some)
                .ok_or_else(|| wrong(name, &text, &format!("a number in {low}..={high}")))
        };
        if let Some(list) = get("WARPMESH_IB_DEVICES") {
            let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
            options.devices = names.map(str::to_owned).collect();
        }
        options.gid_index = number("WARPMESH_IB_GID_INDEX", 0, 255)?.map(|index| index as u8);
        set(&mut options.traffic_class, number("WARPMESH_IB_TRAFFIC_CLASS", 0, 255)?);
        set(&mut options.service_level, number("WARPMESH_IB_SERVICE_LEVEL", 0, 15)?);
        options.mtu = number("WARPMESH_IB_MTU", 256, 4096)?.map(|mtu| mtu as u32);
        set(&mut options.timeout, number("WARPMESH_IB_TIMEOUT", 1, 31)?);
        set(&mut options.retries, number("WARPMESH_IB_RETRIES", 0, 7)?);
        set(&mut options.depth, number("WARPMESH_IB_DEPTH", 8, 1 << 16)?);
        set(&mut options.stripe, number("WARPMESH_IB_STRIPE", 1, 1 << 40)?);
        let grace = number("WARPMESH_IB_PORT_GRACE_MS", 0, 1 << 32)?;
        options.port_grace = grace.map_or(options.port_grace, Duration::from_millis);
        if let Some(text) = get("WARPMESH_IB_SIGNALS") {
            options.signals = Some(match text.trim() {
                "fetch-add" => SignalMode::FetchAdd,
                "immediate" => SignalMode::Immediate,
                _ => return Err(wrong("WARPMESH_IB_SIGNALS", &text, "fetch-add or immediate")),
            });
        }
        if let Some(text) = get("WARPMESH_IB_GPU_MEMORY") {
            let named = GpuMemory::from_name(text.trim());
            let right = "auto, dma-buf, peermem or staged";
            options.gpu_memory =
                named.ok_or_else(|| wrong("WARPMESH_IB_GPU_MEMORY", &text, right))?;
        }
        options.check().map(|()| options)
    }

    /// What cannot be, however it was set.
    pub(super) fn check(&self) -> Result<(), NetError> {
        let bad = |name, value: &dyn std::fmt::Debug, right| {
            Err(wrong(name, &format!("{value:?}"), right))
        };
        if self.mtu.is_some_and(|mtu| code_of_mtu(mtu).is_none()) {
            return bad("the RDMA option mtu", &self.mtu, "256, 512, 1024, 2048 or 4096");
        }
        if !(1..=31).contains(&self.timeout) {
            return bad("the RDMA option timeout", &self.timeout, "a number in 1..=31");
        }
        if self.retries > 7 {
            return bad("the RDMA option retries", &self.retries, "a number in 0..=7");
        }
        if self.service_level > 15 {
            return bad("the RDMA option service_level", &self.service_level, "a number in 0..=15");
        }
        if !(8..=1 << 16).contains(&self.depth) {
            return bad("the RDMA option depth", &self.depth, "a number in 8..=65536");
        }
        if self.stripe == 0 {
            return bad("the RDMA option stripe", &self.stripe, "at least 1");
        }
        Ok(())
    }
}

fn set<T: TryFrom<u64>>(option: &mut T, value: Option<u64>) {
    if let Some(value) = value.and_then(|value| T::try_from(value).ok()) {
        *option = value;
    }
}

fn wrong(name: &str, value: &str, right: &str) -> NetError {
    NetError::System {
        what: format!("{name} is '{value}'"),
        cause: format!("it has to be {right}"),
    }
}

/// The library's number of an MTU.
pub(super) fn code_of_mtu(bytes: u32) -> Option<u8> {
    [256, 512, 1024, 2048, 4096].iter().position(|mtu| *mtu == bytes).map(|code| code as u8 + 1)
}

/// The MTU that the library's number stands for.
pub(super) fn mtu_of_code(code: u8) -> u32 {
    128 << code.clamp(1, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<RdmaOptions, NetError> {
        RdmaOptions::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(from(&[]).unwrap(), RdmaOptions::default());
    }

    #[test]
    fn variables_change_it() {
        let options = from(&[
            ("WARPMESH_IB_DEVICES", "mlx5_0, mlx5_1:2,"),
            ("WARPMESH_IB_MTU", "2048"),
            ("WARPMESH_IB_SIGNALS", "immediate"),
            ("WARPMESH_IB_TIMEOUT", "14"),
            ("WARPMESH_IB_GID_INDEX", "3"),
            ("WARPMESH_IB_GPU_MEMORY", "staged"),
        ])
        .unwrap();
        assert_eq!(options.devices, ["mlx5_0", "mlx5_1:2"]);
        assert_eq!((options.mtu, options.timeout, options.gid_index), (Some(2048), 14, Some(3)));
        assert_eq!(options.signals, Some(SignalMode::Immediate));
        assert_eq!(options.gpu_memory, GpuMemory::Staged);
        assert!(GpuMemory::ALL.iter().all(|(memory, name)| memory.name() == *name));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (name, value) in [
            ("WARPMESH_IB_MTU", "1500"),
            ("WARPMESH_IB_TIMEOUT", "0"),
            ("WARPMESH_IB_RETRIES", "8"),
            ("WARPMESH_IB_SIGNALS", "loud"),
            ("WARPMESH_IB_DEPTH", "many"),
            ("WARPMESH_IB_GPU_MEMORY", "near"),
        ] {
            let error = from(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(value) && error.contains("it has to be"), "{error}");
        }
    }

    #[test]
    fn mtus_have_numbers() {
        for code in 1..=5 {
            assert_eq!(code_of_mtu(mtu_of_code(code)), Some(code));
        }
        assert_eq!(code_of_mtu(9000), None);
    }
}

//! A NIC's port, as a transport uses it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::faults::{locked, refused, unavailable};
use super::options::{RdmaOptions, code_of_mtu, mtu_of_code};
use super::staged::Credits;
use crate::net::{NetError, Region, Signals};
use crate::sys::Mapping;
use crate::sys::verbs::{
    ATOMIC_NONE, Completions, Domain, GID_TYPE_IB, GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2, Gid,
    GidEntry, LINK_LAYER_ETHERNET, Local, Opened, PORT_ACTIVE, PortAttr, QueuePair, QueueSizes,
    RegisteredMemory, Verbs,
};

/// Bytes that a request carries in itself, if the NIC can: from what all present ones can to what none can.
const INLINE: [u32; 4] = [220, 60, 28, 0];

/// How a NIC is told of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    DmaBuf,
    /// For a GPU's, `nvidia-peermem` has to be loaded.
    Address,
}

#[derive(Debug)]
pub(super) struct Nic {
    // Declared in the order in which they are to go.
    table: RegisteredMemory,
    credits: RegisteredMemory,
    sink: RegisteredMemory,
    sink_page: Mapping,
    pub(super) completions: Completions,
    pub(super) domain: Arc<Domain>,
    pub(super) device: Arc<Opened>,
    /// How it is called in reports: `mlx5_0 port 1`.
    pub(super) via: String,
    pub(super) port: u8,
    pub(super) gid: Gid,
    pub(super) gid_index: u8,
    pub(super) gid_kind: u8,
    /// Whether packets carry addresses.
    pub(super) global: bool,
    pub(super) lid: u16,
    /// The library's number.
    pub(super) mtu: u8,
    /// Atomics at a time; 0 if it has none.
    pub(super) atomics: u8,
    pub(super) longest: u32,
    /// Sends and receives of a queue pair.
    pub(super) sizes: QueueSizes,
    /// Since when the port is down.
    pub(super) down: Option<Instant>,
}

/// The ports that the options name, or the first ports of the near NICs that are up, or all.
pub(super) fn ports(verbs: &Verbs, options: &RdmaOptions) -> Result<Vec<(String, u8)>, NetError> {
    if !options.devices.is_empty() {
        return options.devices.iter().map(|name| port_of(name)).collect();
    }
    let names =
        verbs.devices().map_err(|error| unavailable(format!("the list of NICs: {error}")))?;
    let up = |name: &String| {
        let port = verbs.open(name).and_then(|device| device.port(1));
        port.is_ok_and(|port| port.state == PORT_ACTIVE)
    };
    let up: Vec<&String> = names.iter().filter(|name| up(name)).collect();
    let near: Vec<&String> =
        up.iter().copied().filter(|name| options.near.contains(name)).collect();
    let taken = if near.is_empty() { up } else { near };
    if !taken.is_empty() {
        return Ok(taken.into_iter().map(|name| (name.clone(), 1)).collect());
    }
    let seen = if names.is_empty() { "none".to_owned() } else { format!("{names:?}, all down") };
    Err(unavailable(format!(
        "no NIC whose port is up (found: {seen}); look at `ibv_devinfo`, and whether /dev/infiniband is there (in a \
         container it has to be passed in)"
    )))
}

/// `mlx5_0` or `mlx5_0:2`.
fn port_of(name: &str) -> Result<(String, u8), NetError> {
    let Some((device, port)) = name.split_once(':') else { return Ok((name.to_owned(), 1)) };
    match port.parse() {
        Ok(port) if port > 0 => Ok((device.to_owned(), port)),
        _ => Err(NetError::System {
            what: format!("the RDMA device '{name}'"),
            cause: "what stands behind the colon is no port: write mlx5_0 or mlx5_0:1".to_owned(),
        }),
    }
}

impl Nic {
    /// Opens a port, for connections to `peers` ranks, which write `signals` and `credits`.
    pub(super) fn open(
        verbs: &Verbs,
        (name, port): (&str, u8),
        options: &RdmaOptions,
        (signals, credits): (&Signals, &Credits),
        peers: usize,
    ) -> Result<Self, NetError> {
        let via = format!("{name} port {port}");
        let failed = |what: &str| {
            let what = format!("{via}: {what}");
            move |error: io::Error| NetError::System { what, cause: error.to_string() }
        };
        let device = Arc::new(verbs.open(name).map_err(|error| not_opened(verbs, name, &error))?);
        let state = device.port(port).map_err(failed("the state of the port"))?;
        let limits = device.limits().map_err(failed("the device's limits"))?;
        if state.state != PORT_ACTIVE {
            return Err(unavailable(format!("{via} is down; look at its cable and its interface")));
        }
        let ethernet = state.link_layer == LINK_LAYER_ETHERNET;
        let gid = choose_gid(&device, port, &state, options.gid_index, &via)?;
        let mtu = mtu(&state, options, &via)?;
        let domain = Arc::new(Domain::new(&device).map_err(failed("a protection domain"))?);
        let (sizes, entries) = queue_sizes(options.depth, peers, limits.max_cqe, limits.max_qp_wr)
            .ok_or_else(|| NetError::System {
                what: format!("{via}: queues for {peers} peers"),
                cause: format!(
                    "it has room for {} completions; spread ranks over more NICs",
                    limits.max_cqe
                ),
            })?;
        let completions =
            Completions::new(&device, entries).map_err(failed("a completion queue"))?;
        let (sink_page, _) = Mapping::create(8).map_err(|e| failed("a page")(e.into()))?;
        // SAFETY: the page is ours and is declared behind what is registered here.
        let sink = unsafe { domain.register(sink_page.base(), sink_page.len(), false) };
        let sink = sink.map_err(|error| refused(&via, "a page of its own", 4096, &error))?;
        let (address, bytes) = signals.memory();
        let has_atomics = limits.atomic_cap != ATOMIC_NONE && limits.max_qp_rd_atom > 0;
        // SAFETY: the transport keeps the signals longer than its NICs, and they are read as atomics only.
        let table = unsafe { domain.register(address, bytes, has_atomics) };
        let table = table.map_err(|error| refused(&via, "the semaphores", bytes, &error))?;
        let (address, bytes) = credits.memory();
        // SAFETY: as above.
        let credits = unsafe { domain.register(address, bytes, false) };
        let credits =
            credits.map_err(|error| refused(&via, "words of flow control", bytes, &error))?;
        let atomics = if has_atomics { limits.max_qp_rd_atom.clamp(1, 16) as u8 } else { 0 };
        Ok(Self {
            table,
            credits,
            sink,
            sink_page,
            completions,
            domain,
            device,
            via,
            port,
            gid: gid.gid,
            gid_index: gid.gid_index as u8,
            gid_kind: gid.gid_type as u8,
            global: ethernet || options.gid_index.is_some(),
            lid: state.lid,
            mtu,
            atomics,
            longest: state.max_msg_sz.clamp(1 << 12, 1 << 30),
            sizes,
            down: None,
        })
    }

    /// The key by which peers reach the semaphores.
    pub(super) fn table_key(&self) -> u32 {
        self.table.remote_key()
    }

    /// The words of flow control, for peers and for requests of this rank.
    pub(super) fn credit_keys(&self) -> (u32, u32) {
        (self.credits.remote_key(), self.credits.local_key())
    }

    /// Where fetch-add leaves what nobody reads.
    pub(super) fn sink(&self) -> Local {
        let address = self.sink_page.base() as u64;
        Local { address, bytes: 8, key: self.sink.local_key() }
    }

    /// Notices that the port is down, if its event has not come yet.
    pub(super) fn look_at_port(&mut self) {
        let state = self.device.port(self.port);
        if state.is_ok_and(|port| port.state != PORT_ACTIVE) {
            self.down.get_or_insert_with(Instant::now);
        }
    }

    /// A queue pair that takes receives.
    pub(super) fn queue_pair(&self) -> Result<QueuePair, NetError> {
        let failed = |error: &io::Error| NetError::System {
            what: format!("{}: a queue pair", self.via),
            cause: locked(error).unwrap_or_else(|| error.to_string()),
        };
        let mut last = io::Error::other("no size was tried");
        for inline in INLINE {
            let sizes = QueueSizes { inline, ..self.sizes };
            match QueuePair::new(&self.domain, &self.completions, sizes) {
                Ok(mut queue) => {
                    queue.initialise(self.port).map_err(|error| failed(&error))?;
                    return Ok(queue);
                }
                Err(error) => last = error,
            }
        }
        Err(failed(&last))
    }

    /// Registers memory of a region in this way.
    pub(super) fn register(
        &self,
        region: &dyn Region,
        way: Way,
    ) -> Result<RegisteredMemory, NetError> {
        let (address, bytes) = (region.address(), region.len());
        let dma_buf = (way == Way::DmaBuf).then(|| region.dma_buf());
        let (what, registered) = match dma_buf {
            Some(Some(dma_buf)) => {
                // SAFETY: by `Region`'s contract; the caller keeps the region longer.
                let made = unsafe { self.domain.register_dma_buf(dma_buf, address, bytes) };
                ("device memory as a dma-buf", made)
            }
            Some(None) => {
                let what = format!("{}: registering device memory as a dma-buf", self.via);
                let cause = "the GPU's driver gives none".to_owned();
                return Err(NetError::System { what, cause });
            }
            None => {
                // SAFETY: as above.
                let made = unsafe { self.domain.register(address, bytes, false) };
                ("memory by its address", made)
            }
        };
        registered.map_err(|error| refused(&self.via, what, bytes, &error))
    }
}

fn not_opened(verbs: &Verbs, name: &str, error: &io::Error) -> NetError {
    if error.kind() != io::ErrorKind::NotFound {
        return unavailable(format!("opening {name}: {error}"));
    }
    let there = verbs.devices().unwrap_or_default();
    unavailable(format!("there is no NIC {name}; there are {there:?}"))
}

/// How large the queues of a pair and the completion queue are: as many as wanted, if the NIC can have that for all peers.
/// None if it cannot even have one request for each.
fn queue_sizes(
    depth: u32,
    peers: usize,
    max_cqe: i32,
    max_qp_wr: i32,
) -> Option<(QueueSizes, usize)> {
    let (max_cqe, max_qp_wr) = (max_cqe.max(0) as usize, max_qp_wr.max(0) as usize);
    // Each request that is under way may leave a completion: sends, and twice as many receives.
    let share = (max_cqe / peers.max(1) / 3).min(max_qp_wr / 2);
    let sends = (depth as usize).min(share);
    let sizes = QueueSizes { sends: sends as u32, receives: 2 * sends as u32, inline: 0 };
    (sends > 0).then_some((sizes, 3 * sends * peers.max(1)))
}

/// The library's number of the MTU to offer.
fn mtu(state: &PortAttr, options: &RdmaOptions, via: &str) -> Result<u8, NetError> {
    let active = u8::try_from(state.active_mtu).unwrap_or(1).clamp(1, 5);
    let Some(wanted) = options.mtu else { return Ok(active) };
    match code_of_mtu(wanted) {
        Some(code) if code <= active => Ok(code),
        _ => Err(NetError::System {
            what: format!("{via}: an MTU of {wanted}"),
            cause: format!(
                "the port has {}; raise the MTU of its interface (RDMA needs some 60 bytes more than its own), or lower \
                 WARPMESH_IB_MTU",
                mtu_of_code(active)
            ),
        }),
    }
}

fn choose_gid(
    device: &Opened,
    port: u8,
    state: &PortAttr,
    index: Option<u8>,
    via: &str,
) -> Result<GidEntry, NetError> {
    let gids = device.gids(port, usize::try_from(state.gid_tbl_len).unwrap_or(0));
    let ethernet = state.link_layer == LINK_LAYER_ETHERNET;
    if let Some(index) = index {
        let found = gids.iter().find(|entry| entry.gid_index == u32::from(index));
        return found.copied().ok_or_else(|| NetError::System {
            what: format!("{via}: GID {index}"),
            cause: format!(
                "there is none; there are {:?}. Change WARPMESH_IB_GID_INDEX",
                gids.iter().map(|entry| entry.gid_index).collect::<Vec<_>>()
            ),
        });
    }
    match best_gid(&gids) {
        Some(gid) => Ok(gid),
        // Packets inside of a subnet of InfiniBand carry none.
        None if !ethernet => Ok(GidEntry { gid_type: GID_TYPE_IB, ..GidEntry::default() }),
        None => Err(unavailable(format!(
            "{via} has no GID, since its interface has no address; give it one (`ip addr add`), then look at `ibv_devinfo -v`"
        ))),
    }
}

/// RoCE v2 on IPv4 before v2 on a global IPv6 address, before v2 on a local one, before others; then the first.
fn best_gid(gids: &[GidEntry]) -> Option<GidEntry> {
    let rank = |entry: &&GidEntry| {
        let raw = &entry.gid.raw;
        let version = match entry.gid_type {
            GID_TYPE_ROCE_V2 => 0,
            GID_TYPE_IB => 1,
            GID_TYPE_ROCE_V1 => 2,
            _ => 3,
        };
        let mapped = raw[..10] == [0; 10] && raw[10..12] == [0xff; 2];
        let local = raw[0] == 0xfe && raw[1] & 0xc0 == 0x80;
        (version, !mapped, local, entry.gid_index)
    };
    let index_fits = |entry: &&GidEntry| entry.gid_index <= 255;
    gids.iter().filter(index_fits).min_by_key(rank).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u32, kind: u32, raw: [u8; 16]) -> GidEntry {
        let gid = Gid { raw };
        GidEntry { gid, gid_index: index, gid_type: kind, port_num: 1, ndev_ifindex: 0 }
    }

    #[test]
    fn roce_2_on_ipv4_is_preferred() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let global = [0x20, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let (v1, v2) = (GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2);
        let all = [gid(0, v1, mapped), gid(1, v2, local), gid(2, v2, global), gid(3, v2, mapped)];
        let best = |gids: &[GidEntry]| best_gid(gids).map(|entry| entry.gid_index);
        assert_eq!(best(&all), Some(3));
        assert_eq!(best(&all[..3]), Some(2));
        assert_eq!(best(&all[..2]), Some(1));
        assert_eq!(best(&all[..1]), Some(0));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn queues_fit_the_nic() {
        let (sizes, entries) = queue_sizes(256, 10, 1 << 22, 1 << 15).unwrap();
        assert_eq!((sizes.sends, sizes.receives, entries), (256, 512, 7680));
        let (sizes, entries) = queue_sizes(256, 1000, 30_000, 1 << 15).unwrap();
        assert_eq!((sizes.sends, sizes.receives, entries), (10, 20, 30_000));
        assert!(queue_sizes(256, 1000, 2999, 1 << 15).is_none());
    }

    #[test]
    fn ports_are_named() {
        assert_eq!(port_of("mlx5_0").unwrap(), ("mlx5_0".to_owned(), 1));
        assert_eq!(port_of("mlx5_0:2").unwrap(), ("mlx5_0".to_owned(), 2));
        assert!(port_of("mlx5_0:x").unwrap_err().to_string().contains("mlx5_0:x"));
    }
}

//! The library's objects. Each keeps what it was made of, so that the order of destruction is right.

use std::ffi::c_int;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::library::{Verbs, text};
use super::types as raw;
use super::work::Scratch;

pub(crate) use super::types::GidEntry;

/// A device that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    verbs: Verbs,
    context: NonNull<raw::Context>,
}

// SAFETY: the library's objects may be used by any thread, and by several at once where a shared reference suffices.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// What happened to a device, outside of completions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// What it is about.
    pub owner: Owner,
    /// The library's words.
    pub text: String,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The device is of no use any more.
    Device,
    /// A port is down, or is back.
    Port { number: u8, up: bool },
    /// A queue pair is of no use any more; [`QueuePair::identity`].
    Queue(usize),
    /// Nothing that matters here.
    Other,
}

impl Verbs {
    /// The names of this machine's devices. None if the kernel knows no RDMA.
    pub(crate) fn devices(&self) -> io::Result<Vec<String>> {
        let list = DeviceList::get(self)?;
        // SAFETY: devices of a list that lives, with names that end in it.
        Ok(list.iter().map(|device| unsafe { text((*device).name.as_ptr()) }).collect())
    }

    /// Opens a device by its name.
    pub(crate) fn open(&self, name: &str) -> io::Result<Opened> {
        let list = DeviceList::get(self)?;
        // SAFETY: as above.
        let mut named =
            list.iter().filter(|device| unsafe { text((**device).name.as_ptr()) == name });
        let device = named.next().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: a device of a list that lives.
        let context = owned(unsafe { (self.call().open_device)(device) })?;
        Ok(Opened { verbs: self.clone(), context })
    }
}

struct DeviceList<'a> {
    verbs: &'a Verbs,
    list: *mut *mut raw::Device,
    len: usize,
}

impl<'a> DeviceList<'a> {
    fn get(verbs: &'a Verbs) -> io::Result<Self> {
        let mut len = 0;
        // SAFETY: the list is freed on drop.
        let list = unsafe { (verbs.call().get_device_list)(&raw mut len) };
        if list.is_null() {
            let error = io::Error::last_os_error();
            let none = error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error());
            return if none { Ok(Self { verbs, list, len: 0 }) } else { Err(error) };
        }
        Ok(Self { verbs, list, len: usize::try_from(len).unwrap_or(0) })
    }

    fn iter(&self) -> impl Iterator<Item = *mut raw::Device> {
        // SAFETY: the list has so many entries.
        (0..self.len).map(|i| unsafe { *self.list.add(i) })
    }
}

impl Drop for DeviceList<'_> {
    fn drop(&mut self) {
        if !self.list.is_null() {
            // SAFETY: ours, and freed once.
            unsafe { (self.verbs.call().free_device_list)(self.list) };
        }
    }
}

impl Opened {
    fn raw(&self) -> *mut raw::Context {
        self.context.as_ptr()
    }

    /// The device's limits.
    pub(crate) fn limits(&self) -> io::Result<raw::DeviceAttr> {
        let mut limits = std::mem::MaybeUninit::<raw::DeviceAttr>::zeroed();
        // SAFETY: the context lives; the library fills the structure.
        answer(unsafe { (self.verbs.call().query_device)(self.raw(), limits.as_mut_ptr()) })?;
        // SAFETY: numbers, for which zeros are as good as what the library wrote.
        Ok(unsafe { limits.assume_init() })
    }

    /// The state of a port.
    pub(crate) fn port(&self, port: u8) -> io::Result<raw::PortAttr> {
        let mut state = raw::PortAttr::default();
        // SAFETY: the context lives; the library fills all but the youngest field.
        answer(unsafe { (self.verbs.call().query_port)(self.raw(), port, &raw mut state) })?;
        Ok(state)
    }

    /// The addresses of a port. A library before 2020 does not tell their kind: all are taken for RoCE v2 then.
    pub(crate) fn gids(&self, port: u8, length: usize) -> Vec<GidEntry> {
        match self.verbs.call().query_gid_table {
            Some(_) => self.gid_table(port),
            None => (0..length).filter_map(|index| self.plain_gid(port, index as u32)).collect(),
        }
    }

    fn gid_table(&self, port: u8) -> Vec<GidEntry> {
        let mut table = vec![GidEntry::default(); 512];
        let Some(query) = self.verbs.call().query_gid_table else { return Vec::new() };
        // SAFETY: the context lives, and the table has room for so many entries of this size.
        let found =
            unsafe { query(self.raw(), table.as_mut_ptr(), table.len(), 0, size_of::<GidEntry>()) };
        table.truncate(usize::try_from(found).unwrap_or(0));
        table.retain(|entry| entry.port_num == u32::from(port));
        table
    }

    fn plain_gid(&self, port: u8, index: u32) -> Option<GidEntry> {
        let mut gid = raw::Gid::default();
        // SAFETY: the context lives; the library fills the address.
        let found = unsafe {
            (self.verbs.call().query_gid)(self.raw(), port, index as c_int, &raw mut gid)
        };
        let (port_num, gid_type) = (u32::from(port), raw::GID_TYPE_ROCE_V2);
        let entry = GidEntry { gid, gid_index: index, port_num, gid_type, ndev_ifindex: 0 };
        (found == 0 && gid.raw != [0; 16]).then_some(entry)
    }

    /// The next event, if there is one. Does not block.
    pub(crate) fn event(&self) -> io::Result<Option<Event>> {
        // SAFETY: the descriptor is the context's, which lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.event_fd()) };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1)) {
            return Ok(None);
        }
        let element = raw::EventElement { qp: std::ptr::null_mut() };
        let mut event = raw::AsyncEvent { element, event_type: 0 };
        // SAFETY: the context lives; there is an event, so this returns at once.
        answer(unsafe { (self.verbs.call().get_async_event)(self.raw(), &raw mut event) })?;
        let found = Event { owner: owner(&event), text: self.verbs.event(event.event_type) };
        // SAFETY: got above, acknowledged once; nobody destroys the queue pair in between.
        unsafe { (self.verbs.call().ack_async_event)(&raw mut event) };
        Ok(Some(found))
    }

    fn event_fd(&self) -> RawFd {
        // SAFETY: a field that does not change.
        unsafe { (*self.raw()).async_fd }
    }
}

fn owner(event: &raw::AsyncEvent) -> Owner {
    match event.event_type {
        raw::EVENT_DEVICE_FATAL | raw::EVENT_CQ_ERR => Owner::Device,
        kind @ (raw::EVENT_PORT_ACTIVE | raw::EVENT_PORT_ERR) => {
            // SAFETY: these events are about a port.
            let number = unsafe { event.element.port_num };
            let number = u8::try_from(number).unwrap_or(0);
            Owner::Port { number, up: kind == raw::EVENT_PORT_ACTIVE }
        }
        raw::EVENT_QP_FATAL | raw::EVENT_QP_REQ_ERR | raw::EVENT_QP_ACCESS_ERR => {
            // SAFETY: these events are about a queue pair; the pointer is only compared.
            Owner::Queue(unsafe { event.element.qp } as usize)
        }
        _ => Owner::Other,
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: ours; whatever was made of it has kept it alive.
        unsafe { (self.verbs.call().close_device)(self.raw()) };
    }
}

/// A protection domain: what is made of it belongs together.
#[derive(Debug)]
pub(crate) struct Domain {
    device: Arc<Opened>,
    raw: NonNull<raw::Pd>,
}

// SAFETY: as for `Opened`.
unsafe impl Send for Domain {}
// SAFETY: as for `Opened`.
unsafe impl Sync for Domain {}

impl Domain {
    pub(crate) fn new(device: &Arc<Opened>) -> io::Result<Self> {
        // SAFETY: the context lives.
        let raw = owned(unsafe { (device.verbs.call().alloc_pd)(device.raw()) })?;
        Ok(Self { device: Arc::clone(device), raw })
    }

    /// Registers memory, for writes of peers, and for their atomics if `atomics`.
    ///
    /// # Safety
    /// The bytes may be written by peers until what is returned is dropped, and stay mapped until then.
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        address: *mut u8,
        bytes: usize,
        atomics: bool,
    ) -> io::Result<RegisteredMemory> {
        let atomics = if atomics { raw::ACCESS_REMOTE_ATOMIC } else { 0 };
        let access = raw::ACCESS_LOCAL_WRITE | raw::ACCESS_REMOTE_WRITE | atomics;
        let register = self.device.verbs.call().reg_mr;
        // SAFETY: by the contract; the library refuses what is not mapped.
        let raw = owned(unsafe { register(self.raw.as_ptr(), address.cast(), bytes, access) })?;
        Ok(RegisteredMemory { domain: Arc::clone(self), raw })
    }

    /// Registers memory of a device by its dma-buf, in which it begins at `offset`. An error of the kind `Unsupported`
    /// if the library, the kernel or the NIC's driver cannot.
    ///
    /// # Safety
    /// As for [`Domain::register`].
    pub(crate) unsafe fn register_dma_buf(
        self: &Arc<Self>,
        (fd, offset): (BorrowedFd<'_>, u64),
        address: *mut u8,
        bytes: usize,
    ) -> io::Result<RegisteredMemory> {
        use std::os::fd::AsRawFd;
        let access = raw::ACCESS_LOCAL_WRITE | raw::ACCESS_REMOTE_WRITE;
        let register = self.device.verbs.call().reg_dmabuf_mr.ok_or(io::ErrorKind::Unsupported)?;
        let (pd, at) = (self.raw.as_ptr(), address as u64);
        // SAFETY: by the contract; peers name bytes by the address in this process.
        let raw = unsafe { register(pd, offset, bytes, at, fd.as_raw_fd(), access) };
        Ok(RegisteredMemory { domain: Arc::clone(self), raw: owned(raw)? })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: ours; whatever was made of it has kept it alive.
        unsafe { (self.device.verbs.call().dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// Memory that the NIC knows.
#[derive(Debug)]
pub(crate) struct RegisteredMemory {
    domain: Arc<Domain>,
    raw: NonNull<raw::Mr>,
}

// SAFETY: as for `Opened`.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as for `Opened`.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// The key for requests of this rank.
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: a field that does not change.
        unsafe { self.raw.as_ref().lkey }
    }

    /// The key for requests of peers.
    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.raw.as_ref().rkey }
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        // SAFETY: ours, once.
        unsafe { (self.domain.device.verbs.call().dereg_mr)(self.raw.as_ptr()) };
    }
}

/// A queue of completions.
#[derive(Debug)]
pub(crate) struct Completions {
    device: Arc<Opened>,
    raw: Arc<CompletionQueue>,
}

/// The library's queue, which the queue pairs on it keep alive.
#[derive(Debug)]
struct CompletionQueue {
    device: Arc<Opened>,
    raw: NonNull<raw::Cq>,
}

// SAFETY: as for `Opened`.
unsafe impl Send for CompletionQueue {}
// SAFETY: as for `Opened`.
unsafe impl Sync for CompletionQueue {}

impl Completions {
    /// A queue for at least so many.
    pub(crate) fn new(device: &Arc<Opened>, entries: usize) -> io::Result<Self> {
        let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
        let (no_context, no_channel) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context lives.
        let raw = unsafe {
            (device.verbs.call().create_cq)(device.raw(), entries, no_context, no_channel, 0)
        };
        let raw = CompletionQueue { device: Arc::clone(device), raw: owned(raw)? };
        Ok(Self { device: Arc::clone(device), raw: Arc::new(raw) })
    }

    pub(super) fn raw(&self) -> *mut raw::Cq {
        self.raw.raw.as_ptr()
    }

    pub(super) fn operations(&self) -> &raw::ContextOps {
        // SAFETY: filled when the device was opened, and constant from then on.
        unsafe { &(*self.device.raw()).ops }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: ours; queue pairs on it have kept it alive.
        unsafe { (self.device.verbs.call().destroy_cq)(self.raw.as_ptr()) };
    }
}

/// How many requests a queue pair takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueSizes {
    pub sends: u32,
    pub receives: u32,
    /// Bytes of a request that are copied when it is posted.
    pub inline: u32,
}

/// A reliable connection's end.
#[derive(Debug)]
pub(crate) struct QueuePair {
    domain: Arc<Domain>,
    _completions: Arc<CompletionQueue>,
    raw: NonNull<raw::Qp>,
    sizes: QueueSizes,
    pub(super) scratch: Scratch,
}

// SAFETY: as for `Opened`.
unsafe impl Send for QueuePair {}

/// Where a connection goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub port: u8,
    pub gid: raw::Gid,
    pub gid_index: u8,
    /// Whether packets carry addresses (RoCE), or local identifiers only (InfiniBand inside of a subnet).
    pub global: bool,
    pub lid: u16,
    pub traffic_class: u8,
    pub service_level: u8,
}

/// What a connection needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect {
    pub route: Route,
    pub queue: u32,
    /// The library's number of the size, 1 for 256 bytes to 5 for 4096.
    pub mtu: u8,
    /// Numbers of the first packets, of this side and of the peer's.
    pub sequence: u32,
    pub peer_sequence: u32,
    /// Reads and atomics at the same time, which this side asks for and answers.
    pub atomics: u8,
    pub peer_atomics: u8,
    pub timeout: u8,
    pub retries: u8,
}

impl QueuePair {
    /// A queue pair, whose memory is that of `domain`.
    pub(crate) fn new(
        domain: &Arc<Domain>,
        completions: &Completions,
        sizes: QueueSizes,
    ) -> io::Result<Self> {
        let QueueSizes { sends, receives, inline } = sizes;
        let mut wanted = raw::QpInitAttr {
            qp_context: std::ptr::null_mut(),
            send_cq: completions.raw(),
            recv_cq: completions.raw(),
            srq: std::ptr::null_mut(),
            cap: raw::QpCap {
                max_send_wr: sends,
                max_recv_wr: receives,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: inline,
            },
            qp_type: raw::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: domain and queue live, and are kept.
        let raw = owned(unsafe {
            (domain.device.verbs.call().create_qp)(domain.raw.as_ptr(), &raw mut wanted)
        })?;
        let scratch = Scratch::default();
        let _completions = Arc::clone(&completions.raw);
        Ok(Self { domain: Arc::clone(domain), _completions, raw, sizes, scratch })
    }

    /// What was asked for; there may be room for more.
    pub(crate) fn sizes(&self) -> QueueSizes {
        self.sizes
    }

    /// Its number, which the peer must know.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: a field that does not change.
        unsafe { self.raw.as_ref().qp_num }
    }

    /// What [`Owner::Queue`] says in events about it.
    pub(crate) fn identity(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    pub(super) fn raw(&self) -> *mut raw::Qp {
        self.raw.as_ptr()
    }

    pub(super) fn operations(&self) -> &raw::ContextOps {
        // SAFETY: as in `Completions`.
        unsafe { &(*self.domain.device.raw()).ops }
    }

    /// Reset to initialised: it takes receives from now on.
    pub(crate) fn initialise(&mut self, port: u8) -> io::Result<()> {
        let access = raw::ACCESS_REMOTE_WRITE | raw::ACCESS_REMOTE_ATOMIC;
        let mut wanted = raw::QpAttr {
            qp_state: raw::QPS_INIT,
            port_num: port,
            qp_access_flags: access as u32,
            ..raw::QpAttr::default()
        };
        let mask = raw::QP_STATE | raw::QP_PKEY_INDEX | raw::QP_PORT | raw::QP_ACCESS_FLAGS;
        self.modify(&mut wanted, mask)
    }

    /// Initialised to ready: first it answers the peer, then it may send.
    pub(crate) fn connect(&mut self, to: &Connect) -> io::Result<()> {
        let mut answers = raw::QpAttr {
            qp_state: raw::QPS_RTR,
            path_mtu: c_int::from(to.mtu),
            dest_qp_num: to.queue,
            rq_psn: to.peer_sequence,
            max_dest_rd_atomic: to.peer_atomics,
            min_rnr_timer: 12, // 640 µs until a sender that found no receive tries again
            ah_attr: path(&to.route),
            ..raw::QpAttr::default()
        };
        let mask = raw::QP_STATE | raw::QP_AV | raw::QP_PATH_MTU | raw::QP_DEST_QPN;
        let mask = mask | raw::QP_RQ_PSN | raw::QP_MAX_DEST_RD_ATOMIC | raw::QP_MIN_RNR_TIMER;
        self.modify(&mut answers, mask)?;
        let mut sends = raw::QpAttr {
            qp_state: raw::QPS_RTS,
            timeout: to.timeout,
            retry_cnt: to.retries,
            rnr_retry: 7, // for ever: a peer that computes posts no receives, and is not broken
            sq_psn: to.sequence,
            max_rd_atomic: to.atomics,
            ..raw::QpAttr::default()
        };
        let mask = raw::QP_STATE | raw::QP_TIMEOUT | raw::QP_RETRY_CNT | raw::QP_RNR_RETRY;
        self.modify(&mut sends, mask | raw::QP_SQ_PSN | raw::QP_MAX_QP_RD_ATOMIC)
    }

    /// Nothing goes any more; what is under way ends with an error.
    pub(crate) fn stop(&mut self) {
        let mut wanted = raw::QpAttr { qp_state: raw::QPS_ERR, ..raw::QpAttr::default() };
        // A queue pair that refuses this is broken already.
        let _ = self.modify(&mut wanted, raw::QP_STATE);
    }

    fn modify(&mut self, wanted: &mut raw::QpAttr, mask: c_int) -> io::Result<()> {
        // SAFETY: the queue pair lives; the library checks what it is asked for.
        answer(unsafe { (self.domain.device.verbs.call().modify_qp)(self.raw(), wanted, mask) })
    }
}

fn path(route: &Route) -> raw::AhAttr {
    let grh = raw::GlobalRoute {
        dgid: route.gid,
        flow_label: 0,
        sgid_index: route.gid_index,
        hop_limit: 64,
        traffic_class: route.traffic_class,
    };
    raw::AhAttr {
        grh: if route.global { grh } else { raw::GlobalRoute::default() },
        dlid: route.lid,
        sl: route.service_level,
        is_global: u8::from(route.global),
        port_num: route.port,
        ..raw::AhAttr::default()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: ours, once; its events are acknowledged when they are read.
        unsafe { (self.domain.device.verbs.call().destroy_qp)(self.raw()) };
    }
}

/// Functions that make something return null and leave an errno.
fn owned<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// Other functions return an errno, or -1 and leave one.
fn answer(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        errno => Err(io::Error::from_raw_os_error(errno.abs())),
    }
}

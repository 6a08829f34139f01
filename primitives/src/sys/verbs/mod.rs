//! libibverbs: a thin layer over the library, which is looked for at run time.
//!
//! - `types.rs`: what the header declares. `layout.rs` compares it with the header.
//! - `library.rs`: the functions that the library exports.
//! - `objects.rs`: devices, protection domains, memory, queues; each owns what it was made of and is destroyed on drop.
//! - `work.rs`: the data path, which goes through the driver's functions in `ibv_context.ops` as the header's inlines do.

#[cfg(test)]
mod layout;
mod library;
mod objects;
mod types;
mod work;

pub(crate) use library::Verbs;
pub(crate) use objects::{
    Completions, Connect, Domain, Event, GidEntry, Opened, Owner, QueuePair, QueueSizes,
    RegisteredMemory, Route,
};
pub(crate) use types::{
    ATOMIC_NONE, GID_TYPE_IB, GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2, Gid, LINK_LAYER_ETHERNET,
    PORT_ACTIVE, PortAttr, WC_LOC_PROT_ERR, WC_RECV_RDMA_WITH_IMM, WC_REM_ACCESS_ERR,
    WC_REM_OP_ERR, WC_RETRY_EXC_ERR, WC_RNR_RETRY_EXC_ERR, WC_SUCCESS, WC_WR_FLUSH_ERR, Wc,
};
pub(crate) use work::{Local, Op, Work};

//! Whether `types.rs` says what the library's header says.
//!
//! `cargo xtask rdma-vm` has this checked, by `examples/rdma_vm`, with a header of the Debian package libibverbs-dev: a C compiler checks
//! each size, offset and number.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::process::Command;

use super::types::*;

/// Assertions on a structure: its name in C, its type here, and fields as they are called in C and here.
macro_rules! layout {
    ($out:ident, $c:literal, $rust:ty $(, $c_field:literal = $($field:ident).+)* $(,)?) => {
        writeln!($out, "_Static_assert(sizeof({}) == {}, \"{}\");", $c, size_of::<$rust>(), $c).unwrap();
        $(writeln!(
            $out,
            "_Static_assert(offsetof({}, {}) == {}, \"{}.{}\");",
            $c, $c_field, offset_of!($rust, $($field).+), $c, $c_field
        ).unwrap();)*
    };
}

/// As [`layout`], for fields that have the same name on both sides.
macro_rules! same {
    ($out:ident, $c:literal, $rust:ty, $($field:ident)*) => {
        layout!($out, $c, $rust);
        $(writeln!(
            $out,
            "_Static_assert(offsetof({}, {f}) == {} && sizeof((({}*)0)->{f}) == {}, \"{}.{f}\");",
            $c, offset_of!($rust, $field), $c, field_size(|value: &$rust| &raw const value.$field), $c,
            f = stringify!($field)
        ).unwrap();)*
    };
}

macro_rules! numbers {
    ($out:ident, $($c:ident = $rust:expr,)*) => {
        $(writeln!($out, "_Static_assert({} == {}, \"{}\");", stringify!($c), $rust, stringify!($c)).unwrap();)*
    };
}

/// The size of what a field's pointer points to.
fn field_size<T, F>(_: impl Fn(&T) -> *const F) -> usize {
    size_of::<F>()
}

fn assertions() -> String {
    let mut out = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
    devices(&mut out);
    queues(&mut out);
    requests(&mut out);
    constants(&mut out);
    out
}

fn devices(out: &mut String) {
    same!(out, "union ibv_gid", Gid, raw);
    same!(out, "struct ibv_gid_entry", GidEntry, gid gid_index port_num gid_type ndev_ifindex);
    layout!(out, "struct ibv_device", Device, "_ops" = ops);
    same!(out, "struct ibv_device", Device, node_type transport_type name dev_name dev_path ibdev_path);
    layout!(out, "pthread_mutex_t", Mutex);
    layout!(out, "pthread_cond_t", Condition);
    same!(out, "struct ibv_context_ops", ContextOps, poll_cq post_send post_recv);
    same!(out, "struct ibv_context", Context, device ops cmd_fd async_fd num_comp_vectors mutex abi_compat);
    same!(out, "struct ibv_device_attr", DeviceAttr,
        fw_ver node_guid sys_image_guid max_mr_size page_size_cap vendor_id vendor_part_id hw_ver max_qp max_qp_wr
        device_cap_flags max_sge max_sge_rd max_cq max_cqe max_mr max_pd max_qp_rd_atom max_ee_rd_atom max_res_rd_atom
        max_qp_init_rd_atom max_ee_init_rd_atom atomic_cap max_ee max_rdd max_mw max_raw_ipv6_qp max_raw_ethy_qp
        max_mcast_grp max_mcast_qp_attach max_total_mcast_qp_attach max_ah max_fmr max_map_per_fmr max_srq max_srq_wr
        max_srq_sge max_pkeys local_ca_ack_delay phys_port_cnt);
    same!(out, "struct ibv_port_attr", PortAttr,
        state max_mtu active_mtu gid_tbl_len port_cap_flags max_msg_sz bad_pkey_cntr qkey_viol_cntr pkey_tbl_len lid
        sm_lid lmc max_vl_num sm_sl subnet_timeout init_type_reply active_width active_speed phys_state link_layer flags
        port_cap_flags2);
    same!(out, "struct ibv_async_event", AsyncEvent, element event_type);
    layout!(
        out,
        "struct ibv_async_event",
        AsyncEvent,
        "element.qp" = element,
        "element.port_num" = element
    );
}

fn queues(out: &mut String) {
    same!(out, "struct ibv_pd", Pd, context handle);
    same!(out, "struct ibv_mr", Mr, context pd addr length handle lkey rkey);
    same!(out, "struct ibv_global_route", GlobalRoute, dgid flow_label sgid_index hop_limit traffic_class);
    same!(out, "struct ibv_ah_attr", AhAttr, grh dlid sl src_path_bits static_rate is_global port_num);
    same!(out, "struct ibv_qp_cap", QpCap, max_send_wr max_recv_wr max_send_sge max_recv_sge max_inline_data);
    same!(out, "struct ibv_qp_init_attr", QpInitAttr, qp_context send_cq recv_cq srq cap qp_type sq_sig_all);
    same!(out, "struct ibv_qp_attr", QpAttr,
        qp_state cur_qp_state path_mtu path_mig_state qkey rq_psn sq_psn dest_qp_num qp_access_flags cap ah_attr
        alt_ah_attr pkey_index alt_pkey_index en_sqd_async_notify sq_draining max_rd_atomic max_dest_rd_atomic
        min_rnr_timer port_num timeout retry_cnt rnr_retry alt_port_num alt_timeout rate_limit);
    same!(out, "struct ibv_cq", Cq,
        context channel cq_context handle cqe mutex cond comp_events_completed async_events_completed);
    same!(out, "struct ibv_qp", Qp,
        context qp_context pd send_cq recv_cq srq handle qp_num state qp_type mutex cond events_completed);
}

fn requests(out: &mut String) {
    same!(out, "struct ibv_sge", Sge, addr length lkey);
    same!(out, "struct ibv_send_wr", SendWr, wr_id next sg_list num_sge opcode send_flags imm_data);
    layout!(
        out,
        "struct ibv_send_wr",
        SendWr,
        "wr" = remote,
        "qp_type" = qp_type,
        "bind_mw" = rest,
        "wr.rdma.remote_addr" = remote,
        "wr.atomic.remote_addr" = remote
    );
    let remote = offset_of!(SendWr, remote);
    for (c, offset) in [
        ("wr.rdma.rkey", offset_of!(RemoteRdma, rkey)),
        ("wr.atomic.compare_add", offset_of!(RemoteAtomic, compare_add)),
        ("wr.atomic.swap", offset_of!(RemoteAtomic, swap)),
        ("wr.atomic.rkey", offset_of!(RemoteAtomic, rkey)),
    ] {
        let at = remote + offset;
        writeln!(out, "_Static_assert(offsetof(struct ibv_send_wr, {c}) == {at}, \"{c}\");")
            .unwrap();
    }
    same!(out, "struct ibv_recv_wr", RecvWr, wr_id next sg_list num_sge);
    same!(out, "struct ibv_wc", Wc,
        wr_id status opcode vendor_err byte_len imm_data qp_num src_qp wc_flags pkey_index slid sl dlid_path_bits);
}

fn constants(out: &mut String) {
    numbers! { out,
        IBV_GID_TYPE_IB = GID_TYPE_IB, IBV_GID_TYPE_ROCE_V1 = GID_TYPE_ROCE_V1, IBV_GID_TYPE_ROCE_V2 = GID_TYPE_ROCE_V2,
        IBV_ATOMIC_NONE = ATOMIC_NONE, IBV_PORT_ACTIVE = PORT_ACTIVE, IBV_LINK_LAYER_ETHERNET = LINK_LAYER_ETHERNET,
        IBV_EVENT_CQ_ERR = EVENT_CQ_ERR, IBV_EVENT_QP_FATAL = EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR = EVENT_QP_REQ_ERR,
        IBV_EVENT_QP_ACCESS_ERR = EVENT_QP_ACCESS_ERR, IBV_EVENT_DEVICE_FATAL = EVENT_DEVICE_FATAL,
        IBV_EVENT_PORT_ACTIVE = EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR = EVENT_PORT_ERR,
        IBV_WC_SUCCESS = WC_SUCCESS, IBV_WC_LOC_PROT_ERR = WC_LOC_PROT_ERR, IBV_WC_WR_FLUSH_ERR = WC_WR_FLUSH_ERR,
        IBV_WC_REM_ACCESS_ERR = WC_REM_ACCESS_ERR, IBV_WC_REM_OP_ERR = WC_REM_OP_ERR,
        IBV_WC_RETRY_EXC_ERR = WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR = WC_RNR_RETRY_EXC_ERR,
        IBV_WC_RECV_RDMA_WITH_IMM = WC_RECV_RDMA_WITH_IMM,
        IBV_ACCESS_LOCAL_WRITE = ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE = ACCESS_REMOTE_WRITE,
        IBV_ACCESS_REMOTE_ATOMIC = ACCESS_REMOTE_ATOMIC, IBV_QPT_RC = QPT_RC,
        IBV_QPS_INIT = QPS_INIT, IBV_QPS_RTR = QPS_RTR, IBV_QPS_RTS = QPS_RTS, IBV_QPS_ERR = QPS_ERR,
        IBV_QP_STATE = QP_STATE, IBV_QP_ACCESS_FLAGS = QP_ACCESS_FLAGS, IBV_QP_PKEY_INDEX = QP_PKEY_INDEX,
        IBV_QP_PORT = QP_PORT, IBV_QP_AV = QP_AV, IBV_QP_PATH_MTU = QP_PATH_MTU, IBV_QP_TIMEOUT = QP_TIMEOUT,
        IBV_QP_RETRY_CNT = QP_RETRY_CNT, IBV_QP_RNR_RETRY = QP_RNR_RETRY, IBV_QP_RQ_PSN = QP_RQ_PSN,
        IBV_QP_MAX_QP_RD_ATOMIC = QP_MAX_QP_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER = QP_MIN_RNR_TIMER,
        IBV_QP_SQ_PSN = QP_SQ_PSN, IBV_QP_MAX_DEST_RD_ATOMIC = QP_MAX_DEST_RD_ATOMIC, IBV_QP_DEST_QPN = QP_DEST_QPN,
        IBV_WR_RDMA_WRITE = WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM = WR_RDMA_WRITE_WITH_IMM,
        IBV_WR_ATOMIC_FETCH_AND_ADD = WR_ATOMIC_FETCH_AND_ADD, IBV_SEND_SIGNALED = SEND_SIGNALED,
        IBV_SEND_INLINE = SEND_INLINE, IBV_MTU_256 = 1, IBV_MTU_4096 = 5,
    }
}

/// Lets a C compiler check all that, with libibverbs' header in the folder, or where compilers look. The error is what it says.
pub(crate) fn compare(include: Option<String>) -> Result<(), String> {
    let dir = std::env::temp_dir().join(format!("warpmesh-verbs-{}", std::process::id()));
    let source = dir.join("layout.c");
    let written =
        std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&source, assertions()));
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-fsyntax-only"]).args(include.map(|dir| format!("-I{dir}")));
    let output = written.and_then(|()| compiler.arg(&source).output());
    let _ = std::fs::remove_dir_all(&dir);
    let output = output.map_err(|error| format!("a C compiler, cc: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "needs libibverbs' header where compilers look; cargo xtask rdma-vm has one of its own"]
fn structures_are_those_of_the_header() {
    compare(None).unwrap();
}

#[test]
fn the_assertions_are_about_all_that_is_used() {
    let text = assertions();
    assert!(text.lines().count() > 200, "{}", text.lines().count());
    assert!(text.contains("_Static_assert(sizeof(struct ibv_send_wr) == 128"), "{text}");
}

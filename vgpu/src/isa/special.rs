//! Special registers.

use super::spec::W;

/// Special registers that a warp fills in when it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Special {
    /// `%tid`, dimension 0 to 2.
    Tid(u8),
    /// `%ntid`.
    Ntid(u8),
    /// `%ctaid`.
    Ctaid(u8),
    /// `%nctaid`.
    Nctaid(u8),
    /// `%laneid`.
    LaneId,
    /// `%warpid`.
    WarpId,
    /// `%nwarpid`.
    Nwarpid,
    /// `%smid`.
    SmId,
    /// `%nsmid`.
    Nsmid,
    /// `%gridid`.
    GridId,
    /// `%lanemask_eq`, `_le`, `_lt`, `_ge`, `_gt`.
    LaneMask(u8),
    /// `%dynamic_smem_size`.
    DynamicShared,
    /// `%total_smem_size`.
    TotalShared,
    /// `%envreg2` and `%envreg1`: the low and the high half of the address of a cooperative launch's workspace.
    Workspace(u8),
    /// A register that is always zero or one: `%is_explicit_cluster`, `%cluster_nctarank` and the like.
    Constant(u32),
}

impl Special {
    /// Reads a name such as `%tid.x`; the class is that of its register.
    pub(super) fn parse(name: &str) -> Option<(Special, W)> {
        let (base, dim) = match name.rsplit_once('.') {
            Some((b, "x")) => (b, 0),
            Some((b, "y")) => (b, 1),
            Some((b, "z")) => (b, 2),
            _ => (name, 0),
        };
        Some((
            match base {
                "%tid" => Special::Tid(dim),
                "%ntid" => Special::Ntid(dim),
                "%ctaid" => Special::Ctaid(dim),
                "%nctaid" => Special::Nctaid(dim),
                "%laneid" => Special::LaneId,
                "%warpid" => Special::WarpId,
                "%nwarpid" => Special::Nwarpid,
                "%smid" => Special::SmId,
                "%nsmid" => Special::Nsmid,
                "%gridid" => return Some((Special::GridId, W::D)),
                "%lanemask_eq" => Special::LaneMask(0),
                "%lanemask_le" => Special::LaneMask(1),
                "%lanemask_lt" => Special::LaneMask(2),
                "%lanemask_ge" => Special::LaneMask(3),
                "%lanemask_gt" => Special::LaneMask(4),
                "%dynamic_smem_size" => Special::DynamicShared,
                "%total_smem_size" => Special::TotalShared,
                "%envreg2" => Special::Workspace(0),
                "%envreg1" => Special::Workspace(1),
                // A cluster is one block.
                "%cluster_ctaid" | "%cluster_ctarank" | "%is_explicit_cluster" => {
                    Special::Constant(0)
                }
                "%cluster_nctaid" | "%cluster_nctarank" => Special::Constant(1),
                "%clusterid" => Special::Ctaid(dim),
                "%nclusterid" => Special::Nctaid(dim),
                _ => return None,
            },
            W::S,
        ))
    }
}

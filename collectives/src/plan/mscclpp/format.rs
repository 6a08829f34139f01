//! The format as it is written: fields of the JSON, unchecked.
//!
//! Fields that change nothing in what a plan computes (thread counts, message sizes, alignment) are
//! not read, and fields that are not known are passed over, as the format's own executor does.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(super) struct Document {
    pub(super) name: String,
    pub(super) collective: String,
    #[serde(default)]
    pub(super) inplace: bool,
    pub(super) gpus: Vec<Gpu>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Gpu {
    pub(super) id: usize,
    pub(super) input_chunks: usize,
    pub(super) output_chunks: usize,
    #[serde(default)]
    pub(super) scratch_chunks: usize,
    #[serde(default)]
    pub(super) threadblocks: Vec<Threadblock>,
    #[serde(default)]
    pub(super) channels: Vec<Channel>,
    #[serde(default)]
    pub(super) remote_buffers: Vec<RemoteBuffer>,
    #[serde(default)]
    pub(super) semaphores: Vec<Semaphore>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChannelType {
    Memory,
    Port,
    Switch,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub(super) enum BufferType {
    #[serde(rename = "i")]
    Input,
    #[serde(rename = "o")]
    Output,
    #[serde(rename = "s")]
    Scratch,
}

#[derive(Debug, Deserialize)]
pub(super) struct Channel {
    pub(super) channel_type: ChannelType,
    /// Of memory and port channels: one channel for each entry.
    #[serde(default)]
    pub(super) connected_to: Vec<usize>,
    /// Of switch channels.
    pub(super) buffer_type: Option<BufferType>,
    /// Of switch channels: one channel for each entry.
    #[serde(default)]
    pub(super) rank_groups: Vec<RankGroup>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RankGroup {
    pub(super) ranks: Vec<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoteBuffer {
    pub(super) rank: usize,
    #[serde(rename = "type")]
    pub(super) buffer: BufferType,
}

#[derive(Debug, Deserialize)]
pub(super) struct Semaphore {
    pub(super) init_value: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Threadblock {
    pub(super) id: usize,
    #[serde(default)]
    pub(super) ops: Vec<Op>,
    #[serde(default)]
    pub(super) channels: Vec<ChannelRefs>,
    #[serde(default)]
    pub(super) remote_buffer_refs: Vec<BufferRefs>,
}

/// Which of the rank's channels a thread block uses; operations count in this list.
#[derive(Debug, Deserialize)]
pub(super) struct ChannelRefs {
    pub(super) channel_type: ChannelType,
    #[serde(default)]
    pub(super) channel_ids: Vec<usize>,
}

/// Which of the rank's remote buffers a thread block uses; operations count in this list.
#[derive(Debug, Deserialize)]
pub(super) struct BufferRefs {
    pub(super) access_channel_type: ChannelType,
    #[serde(default)]
    pub(super) remote_buffer_ids: Vec<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Op {
    pub(super) name: String,
    #[serde(default)]
    pub(super) src_buff: Vec<Chunks>,
    #[serde(default)]
    pub(super) dst_buff: Vec<Chunks>,
    #[serde(default)]
    pub(super) channel_ids: Vec<usize>,
    pub(super) channel_type: Option<ChannelType>,
    pub(super) tbg_info: Option<GroupShare>,
    pub(super) reduce_op: Option<String>,
    pub(super) barrier_id: Option<usize>,
    pub(super) num_threadblocks: Option<usize>,
    #[serde(default)]
    pub(super) semaphore_ids: Vec<usize>,
    /// The body of a pipeline.
    #[serde(default)]
    pub(super) ops: Vec<Op>,
}

/// A range of chunks: local (`type`), of a remote buffer, or of a switch channel's group.
#[derive(Debug, Deserialize)]
pub(super) struct Chunks {
    #[serde(rename = "type")]
    pub(super) buffer: Option<BufferType>,
    pub(super) buffer_id: Option<usize>,
    pub(super) switch_channel_id: Option<usize>,
    pub(super) index: usize,
    pub(super) size: usize,
}

/// A thread block's share of an operation that a group of thread blocks does together.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct GroupShare {
    pub(super) tb_id: usize,
    pub(super) tbg_size: usize,
}

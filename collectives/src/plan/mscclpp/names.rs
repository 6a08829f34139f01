//! What the numbers in operations mean: channels, remote buffers and switch groups.
//!
//! An operation's number counts in its thread block's list, whose numbers count in its rank's list.
//! The n-th channel of a type from rank a to rank b and the n-th from b to a are the two ends of
//! one, so (type, peer, n) names a channel on both sides.

use std::collections::HashMap;

use super::format::{BufferType, ChannelType, Gpu, Threadblock};

/// A channel as its two ends agree on it: the `ordinal`-th of its type between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Channel {
    pub(super) port: bool,
    pub(super) peer: usize,
    pub(super) ordinal: usize,
}

/// A rank's lists.
#[derive(Debug)]
pub(super) struct RankNames {
    memory: Vec<Channel>,
    port: Vec<Channel>,
    /// The buffer of each switch channel, or how many of the ranks its group has.
    switches: Vec<Result<BufferType, usize>>,
    buffers: Vec<(usize, BufferType)>,
}

impl RankNames {
    pub(super) fn new(gpu: &Gpu, world: usize) -> Self {
        let mut names = Self {
            memory: Vec::new(),
            port: Vec::new(),
            switches: Vec::new(),
            buffers: gpu.remote_buffers.iter().map(|b| (b.rank, b.buffer)).collect(),
        };
        let mut counts = HashMap::new();
        for channel in &gpu.channels {
            let (port, list) = match channel.channel_type {
                ChannelType::Memory => (false, &mut names.memory),
                ChannelType::Port => (true, &mut names.port),
                ChannelType::Switch => {
                    for group in &channel.rank_groups {
                        let all = is_all(&group.ranks, world);
                        let buffer = channel.buffer_type.filter(|_| all);
                        names.switches.push(buffer.ok_or(group.ranks.len()));
                    }
                    continue;
                }
                ChannelType::None => continue,
            };
            for &peer in &channel.connected_to {
                let count: &mut usize = counts.entry((port, peer)).or_default();
                let ordinal = *count;
                *count += 1;
                list.push(Channel { port, peer, ordinal });
            }
        }
        names
    }
}

fn is_all(ranks: &[usize], world: usize) -> bool {
    let mut seen = vec![false; world];
    for &rank in ranks {
        match seen.get_mut(rank) {
            Some(seen) if !*seen => *seen = true,
            _ => return false,
        }
    }
    ranks.len() == world
}

/// A thread block's lists, and its rank's.
#[derive(Debug)]
pub(super) struct BlockNames<'a> {
    rank: &'a RankNames,
    memory: Vec<usize>,
    port: Vec<usize>,
    switch: Vec<usize>,
    memory_buffers: Vec<usize>,
    port_buffers: Vec<usize>,
}

impl<'a> BlockNames<'a> {
    pub(super) fn new(rank: &'a RankNames, threadblock: &Threadblock) -> Self {
        let channels = |kind| {
            let refs = threadblock.channels.iter();
            let refs = refs.filter(|refs| refs.channel_type == kind);
            refs.flat_map(|refs| refs.channel_ids.iter().copied()).collect()
        };
        let buffers = |kind| {
            let refs = threadblock.remote_buffer_refs.iter();
            let refs = refs.filter(|refs| refs.access_channel_type == kind);
            refs.flat_map(|refs| refs.remote_buffer_ids.iter().copied()).collect()
        };
        Self {
            rank,
            memory: channels(ChannelType::Memory),
            port: channels(ChannelType::Port),
            switch: channels(ChannelType::Switch),
            memory_buffers: buffers(ChannelType::Memory),
            port_buffers: buffers(ChannelType::Port),
        }
    }

    pub(super) fn channel(&self, port: bool, id: usize) -> Result<Channel, String> {
        let (of_block, of_rank) = match port {
            true => (&self.port, &self.rank.port),
            false => (&self.memory, &self.rank.memory),
        };
        let id = entry("channel of the thread block", of_block, id)?;
        entry("channel of the rank", of_rank, id)
    }

    /// A remote buffer's rank and kind.
    pub(super) fn buffer(&self, port: bool, id: usize) -> Result<(usize, BufferType), String> {
        let of_block = match port {
            true => &self.port_buffers,
            false => &self.memory_buffers,
        };
        let id = entry("remote buffer of the thread block", of_block, id)?;
        entry("remote buffer of the rank", &self.rank.buffers, id)
    }

    /// The buffer of a switch channel over all ranks.
    pub(super) fn switch(&self, id: usize) -> Result<BufferType, String> {
        let id = entry("switch channel of the thread block", &self.switch, id)?;
        let group = entry("switch channel of the rank", &self.rank.switches, id)?;
        group.map_err(|size| {
            format!("the switch channel is not a buffer of all ranks: its group lists {size}")
        })
    }
}

fn entry<T: Copy>(what: &str, list: &[T], id: usize) -> Result<T, String> {
    let missing = || format!("there is no {what} {id}, only {}", list.len());
    list.get(id).copied().ok_or_else(missing)
}

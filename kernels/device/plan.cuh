// A compiled plan's kernel: the state that its instructions share.
//
// The grid has as many blocks on every rank. Block b runs the whole program on slice b of every part, with semaphores of its own, so
// blocks of one rank never wait for each other, and block b of a rank only ever waits for blocks b of others.
//
//   block of a buffer   |           window of round k            |
//   parts               |    part 0     |    part 1     | ...
//   slices              | b0 | b1 | b2  | b0 | b1 | b2  |
#pragma once

#include "move.cuh"
#include "semaphore.cuh"

namespace warpmesh {

// Device memory of one communicator and rank.
struct State {
  // By block: epochs that it has finished. A block reads and writes its own alone; kernels of a communicator follow each other.
  u64 epoch[MAX_BLOCKS];
};

// A kernel's only parameter: what is the same for all plans, then tables whose sizes are the plan's. Everything that depends
// on the rank is in the tables, so ranks with the same structure run the same kernel.
struct Call {
  u64 count;          // elements of a block
  u64 window;         // elements of a block that a round covers
  u64 part;           // elements of a part of the window
  u64 slice;          // elements of a block's slice of a part
  u32 rounds;
  u32 rank;
  u32 world;
  u32 reserved;
  u64 half_scratch;   // bytes to the second half
  u64 half_packets;
  u64 sequence;       // the call's number
  u64 timeout;        // nanoseconds
  State* state;
  Control* control;
};
static_assert(sizeof(Call) == 96, "as in kernels/src/params.rs");

template <int PEERS, int PARTS, int PLACES, int FACTORS>
struct Params {
  Call call;
  u64 place[PLACES ? PLACES : 1];     // addresses of operands
  u64 factor[FACTORS ? FACTORS : 1];  // PreMulSum's factor of each source
  u64 semaphore[PEERS ? PEERS : 1];   // addresses of the words of each signalled or awaited peer, for block 0
  u32 parts[PARTS ? PARTS : 1];       // part of each move
  u8 peer[PLACES + PEERS + 8];        // for reports: the peer of each semaphore, then of each place
};

// Between the words of two blocks.
constexpr u64 SEMAPHORE_STRIDE = sizeof(u64);

struct Worker {
  const Call& call;
  Patience patience;
  u64 epoch;
  u64 begin;  // first element of the round
  u64 limit;  // elements of the round
  bool failed;

  WARPMESH_DEVICE explicit Worker(const Call& call)
      : call(call),
        patience{call.control, call.timeout, call.sequence},
        epoch(call.state->epoch[blockIdx.x]),
        begin(0),
        limit(least(call.count, call.window)),
        failed(false) {}

  // On to the next round; false after the last.
  WARPMESH_DEVICE bool next(u32& round) {
    ++epoch;
    begin += call.window;
    limit = least(call.count - least(begin, call.count), call.window);
    return ++round < call.rounds && !failed;
  }

  // All blocks' words are kept in step, also of blocks that this launch does not have.
  WARPMESH_DEVICE void finish() {
    __syncthreads();
    for (u32 b = blockIdx.x + threadIdx.x * gridDim.x; b < MAX_BLOCKS; b += blockDim.x * gridDim.x) {
      call.state->epoch[b] = epoch;
    }
  }

  // The value of the n-th signal of this epoch over a semaphore.
  WARPMESH_DEVICE u64 value(u32 nth) const { return (epoch + 1) << 8 | nth; }

  // Signals COUNT peers: everything that this block wrote before is visible to whoever waits for it.
  template <int COUNT>
  WARPMESH_DEVICE void signal(const u64* words, u32 nth) {
    __syncthreads();
    if (threadIdx.x < COUNT) word(words[threadIdx.x]).signal(value(nth));
  }

  // Waits for COUNT peers.
  template <int COUNT>
  WARPMESH_DEVICE void wait(const u64* words, const u8* peers, u32 nth, u32 place) {
    if (threadIdx.x < COUNT && !failed) {
      failed = !word(words[threadIdx.x]).wait(value(nth), patience, peers[threadIdx.x], place);
    }
    failed = __syncthreads_or(failed);
  }

  // GROUP moves of the same form that do not depend on each other, the warps dealt out among them.
  template <class M, int GROUP>
  WARPMESH_DEVICE void move(const u64* from, const u64* to, const u64* factor, const u8* peers, const u32* parts, u32 place) {
    if (failed) return;
    MoveContext c{patience, (epoch & 1) * call.half_scratch, (epoch & 1) * call.half_packets, flag_of(epoch), call.rank,
                  call.world, place};
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if constexpr (GROUP == 1) {
      failed |= !M::slice(Operands{from, to, factor, peers}, extent(parts[0]), c, warp, warps);
    } else {
      // Warps are dealt out in turn: move g has warps g, g + GROUP, ..., or where there are too few, a warp has several moves.
      for (u32 g = warp % GROUP; g < GROUP; g += warps) {
        Operands ops{from + g * M::SOURCES, to + g * M::DESTINATIONS, factor + g * M::SOURCES, peers + g * M::SOURCES};
        const u32 shared = warps > g ? (warps - g + GROUP - 1) / GROUP : 1;
        failed |= !M::slice(ops, extent(parts[g]), c, warp / GROUP, shared);
      }
    }
  }

 private:
  WARPMESH_DEVICE Semaphore word(u64 at) const {
    return Semaphore{reinterpret_cast<u64*>(at + blockIdx.x * SEMAPHORE_STRIDE)};
  }

  // This block's slice of a part.
  WARPMESH_DEVICE Extent extent(u32 part) const {
    const u64 start = blockIdx.x * call.slice, end = least(start + call.slice, call.part);
    const u64 first = part * call.part + start, last = least(part * call.part + end, limit);
    return {begin + first, start, first < last ? static_cast<u32>(last - first) : 0};
  }
};

}  // namespace warpmesh

// A compiled plan's kernel: the state that its instructions share.
//
// The grid has as many blocks on every rank. Block b runs the whole program on slice b of every part, with semaphores of its own, so
// blocks of one rank never wait for each other, and block b of a rank only ever waits for blocks b of others.
//
//   block of a buffer   |           window of round k            |
//   parts               |    part 0     |    part 1     | ...
//   slices              | b0 | b1 | b2  | b0 | b1 | b2  |
#ifndef WARPMESH_PLAN_CUH
#define WARPMESH_PLAN_CUH

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
  u64 window;         // elements of a block that a round covers: less than 2^32
  u64 part;           // elements of a part of the window
  u64 slice;          // elements of a thread block's slice of a part
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

// Its state is small, so that moves have the registers: what can be computed from the round is.
struct Worker {
  const Call& call;
  u64 before;   // epochs of this block before the call
  u32 rounds;   // that are done
  bool failed;  // of this thread, until the next signal, wait or round makes it the block's

  WARPMESH_DEVICE explicit Worker(const Call& call)
      : call(call), before(load(&call.state->epoch[blockIdx.x])), rounds(0), failed(false) {}

  // On to the next round, when all threads are done with this one; false after the last.
  WARPMESH_DEVICE bool next(u32& round) {
    failed = __syncthreads_or(failed);
    rounds = ++round;
    return round < call.rounds && !failed;
  }

  // All blocks' words are kept in step, also of blocks that this launch does not have.
  WARPMESH_DEVICE void finish() const {
    for (u32 b = blockIdx.x + threadIdx.x * gridDim.x; b < MAX_BLOCKS; b += blockDim.x * gridDim.x) {
      store(&call.state->epoch[b], before + rounds);
    }
  }

  // Signals COUNT peers: everything that this block wrote before is visible to whoever waits for it. If the block has given up, they
  // are not told that it is done.
  template <int COUNT>
  WARPMESH_DEVICE void signal(const u64* words, u32 nth) {
    failed = __syncthreads_or(failed);
    if (threadIdx.x < COUNT && !failed) word(words[threadIdx.x]).signal(value(nth));
  }

  // Waits for COUNT peers.
  template <int COUNT>
  WARPMESH_DEVICE void wait(const u64* words, const u8* peers, u32 nth, u32 place) {
    if (threadIdx.x < COUNT && !failed) {
      failed = !word(words[threadIdx.x]).wait(value(nth), patience(), peers[threadIdx.x], place);
    }
    failed = __syncthreads_or(failed);
  }

  // GROUP moves of the same form that do not depend on each other, the warps dealt out among them.
  template <class M, int GROUP>
  WARPMESH_DEVICE void move(const u64* from, const u64* to, const u64* factor, const u8* peers, const u32* parts, u32 place) {
    if (failed) return;
    const u64 epoch = before + rounds;
    const bool odd = static_cast<u32>(epoch) & 1;
    const MoveContext c{patience(), odd ? call.half_scratch : 0, odd ? call.half_packets : 0, flag_of(epoch), call.rank,
                        call.world, place};
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if constexpr (GROUP == 1) {
      failed = !M::slice(Operands{from, to, factor, peers}, extent(parts[0]), c, warp, warps);
    } else {
      // Warps are dealt out in turn: move g has warps g, g + GROUP, ..., or where there are too few, a warp has several moves.
      for (u32 g = warp % GROUP; g < GROUP; g += warps) {
        const Operands ops{from + g * M::SOURCES, to + g * M::DESTINATIONS, factor + g * M::SOURCES, peers + g * M::SOURCES};
        const u32 shared = warps > g ? (warps - g + GROUP - 1) / GROUP : 1;
        failed |= !M::slice(ops, extent(parts[g]), c, warp / GROUP, shared);
      }
    }
  }

 private:
  // The value of the n-th signal of this epoch over a semaphore.
  WARPMESH_DEVICE u64 value(u32 nth) const { return (before + rounds + 1) << 8 | nth; }

  WARPMESH_DEVICE Patience patience() const { return {call.control, call.timeout, call.sequence}; }

  WARPMESH_DEVICE Semaphore word(u64 at) const {
    return Semaphore{reinterpret_cast<u64*>(at + blockIdx.x * SEMAPHORE_STRIDE)};
  }

  // This block's slice of a part, in this round. Within a window 32 bits are enough.
  WARPMESH_DEVICE Extent extent(u32 part) const {
    const u64 begin = static_cast<u64>(rounds) * static_cast<u32>(call.window);
    const u32 limit = static_cast<u32>(least(call.count - begin, call.window));
    const u32 slice = static_cast<u32>(call.slice), start = slice * blockIdx.x;
    const u32 length = rest(static_cast<u32>(call.part), start, slice);
    const u32 first = part * static_cast<u32>(call.part) + start;
    return {begin + first, start, rest(limit, first, length)};
  }

  // How many of `most` elements there are from `first` on, where there are `all`.
  static WARPMESH_DEVICE u32 rest(u32 all, u32 first, u32 most) { return least(all - least(first, all), most); }
};

}  // namespace warpmesh

#endif  // WARPMESH_PLAN_CUH

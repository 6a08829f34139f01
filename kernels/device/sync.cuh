// Barriers inside a block and of a grid.
#ifndef WARPMESH_SYNC_CUH
#define WARPMESH_SYNC_CUH

#include "wait.cuh"

namespace warpmesh {

// Threads of a block that work on one thing: all of it, or some warps of it (see `named`).
struct Team {
  u32 thread;   // number of this one
  u32 threads;  // how many
  u32 barrier;  // the hardware barrier that they meet at, 0 to 15

  static WARPMESH_DEVICE Team block() { return {threadIdx.x, blockDim.x, 0}; }

  // Warps `first` to `first + warps - 1` with a barrier of their own, from 1 to 15.
  static WARPMESH_DEVICE Team named(u32 barrier, u32 first, u32 warps) { return {threadIdx.x - first * 32, warps * 32, barrier}; }

  // All of them come here before one goes on, and see what the others wrote.
  WARPMESH_DEVICE void sync() const { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

  WARPMESH_DEVICE u32 warp() const { return thread / 32; }
  WARPMESH_DEVICE u32 warps() const { return threads / 32; }
};

// A barrier of all blocks of a grid, over one word of device memory that begins with zero:
//
//   | generation 32 | blocks that have come 32 |
//
// The last one to come goes on to the next generation. So grids of any size may use the word one after the other, and nothing is ever
// reset. All blocks have to be resident at once: a cooperative launch, or a grid that is known to fit.
struct GridBarrier {
  u64* word;

  // By all threads of the block. False if given up, which then all threads know. What any block wrote before is visible to all after.
  WARPMESH_DEVICE bool sync(const Patience& patience, u32 place) const {
    __syncthreads();
    bool failed = false;
    if (threadIdx.x == 0) {
      const u64 before = count_acq_rel_gpu(word);
      const u64 generation = before >> 32;
      if (static_cast<u32>(before) + 1 == gridDim.x) {
        // Relaxed: the addition was a release of the same word, and what its thread stores there next goes on with that.
        store_relaxed_gpu(word, (generation + 1) << 32);
      } else {
        u64 seen = 0;
        failed = !persist(
            patience, [&] { return (seen = load_acquire_gpu(word)) >> 32 != generation; },
            [&] { return WaitingFor{~0u, place, (generation + 1) << 32, seen}; });
      }
    }
    return !__syncthreads_or(failed);
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_SYNC_CUH

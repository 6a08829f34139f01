// What a rank tells each peer at the start of an epoch whose plan reaches into peers' buffers: where its buffers are, and what
// it calls. Written before the epoch's first signal, read after the wait for it.
//
//   shared word                 writer                              reader                   published by
//   board[half][peer][block]    block `block` of rank `peer`        block `block` here       that block's next signal (release)
//
// Two halves, by the epoch's parity: what was written in an epoch is read before its writer begins the next but one (the guard).
#ifndef WARPMESH_BOARD_CUH
#define WARPMESH_BOARD_CUH

#include "order.cuh"

namespace warpmesh {

// Above where a buffer lies in a window stands the window's number, which is the same on all ranks.
constexpr int WINDOW_SHIFT = 48;

struct alignas(16) Board {
  u64 input;   // which window it lies in, and where
  u64 output;
  u64 factor;  // PreMulSum: what its contributions are multiplied by
  u64 digest;  // of all that has to be equal on all ranks

  WARPMESH_DEVICE void write(u64 at) const {
    const u32 words[8] = {low(input), high(input), low(output), high(output), low(factor), high(factor), low(digest), high(digest)};
    store<16>(at, words);
    store<16>(at + 16, words + 4);
  }

  static WARPMESH_DEVICE Board read(u64 at) {
    u32 words[8];
    load<16>(at, words);
    load<16>(at + 16, words + 4);
    return {both(words[0], words[1]), both(words[2], words[3]), both(words[4], words[5]), both(words[6], words[7])};
  }

  static WARPMESH_DEVICE u64 digest_at(u64 at) { return load(reinterpret_cast<const u64*>(at + 24)); }

 private:
  static WARPMESH_DEVICE u32 low(u64 x) { return static_cast<u32>(x); }
  static WARPMESH_DEVICE u32 high(u64 x) { return static_cast<u32>(x >> 32); }
  static WARPMESH_DEVICE u64 both(u32 x, u32 y) { return x | static_cast<u64>(y) << 32; }
};
static_assert(sizeof(Board) == 32, "as in collectives/src/cuda/params.rs");

}  // namespace warpmesh

#endif  // WARPMESH_BOARD_CUH

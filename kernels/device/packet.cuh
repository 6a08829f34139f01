// Packets: data that carries its own signal. A line has data and a flag in one atomic store, so that who reads the flag of this
// epoch has the data too: no fence, no semaphore, one trip.
//
//   Line (LL16):  16 bytes = two halves of 8, each | data 4 | flag 4 |. Each half is atomic by itself and has its own flag, so it
//                 does not matter how the two are ordered.
//   Line8 (LL8):  one such half.
//   Line128:      128 bytes, | data 120 | flag 8 |, by 8 lanes of a warp. NOT covered by the PTX memory model: see there.
//
// A flag is never 0, which is what memory begins with, and is another for 2^32 - 1 epochs. The memory holds packets alone: no
// data that looks like a flag.
#ifndef WARPMESH_PACKET_CUH
#define WARPMESH_PACKET_CUH

#include "wait.cuh"

namespace warpmesh {

// Bytes of data in a line, and of the line.
constexpr int LINE_DATA = 8;
constexpr int LINE_BYTES = 16;

// The flag of an epoch: from 1 to 2^32 - 1, and around. Two epochs that share a half of the memory are two apart.
WARPMESH_DEVICE u32 flag_of(u64 epoch) {
  // 2^32 is 1 modulo 2^32 - 1, so the halves are added, and what carries is added too.
  const u32 sum = static_cast<u32>(epoch) + static_cast<u32>(epoch >> 32);
  const u32 folded = sum + (sum < static_cast<u32>(epoch) ? 1 : 0);
  return (folded == 0xFFFFFFFFu ? 0 : folded) + 1;
}

struct Line {
  // 8 bytes of data at once; the flag in both halves.
  static WARPMESH_DEVICE void write(u64 at, const u32* data, u32 flag) {
    store_relaxed_sys(reinterpret_cast<Quad*>(at), {data[0], flag, data[1], flag});
  }

  // What is there, whether it has arrived or not.
  static WARPMESH_DEVICE Quad read(u64 at) { return load_relaxed_sys(reinterpret_cast<const Quad*>(at)); }

  // 0 if both halves of what was read are of this epoch. For many lines at once: one instruction a half.
  static WARPMESH_DEVICE u32 differs(const Quad& line, u32 flag) { return (line.y ^ flag) | (line.w ^ flag); }

  static WARPMESH_DEVICE bool is_of(const Quad& line, u32 flag) { return differs(line, flag) == 0; }
};

struct Line8 {
  static WARPMESH_DEVICE void write(u64 at, u32 data, u32 flag) { store_relaxed_sys(reinterpret_cast<Pair*>(at), {data, flag}); }

  static WARPMESH_DEVICE Pair read(u64 at) { return load_relaxed_sys(reinterpret_cast<const Pair*>(at)); }

  static WARPMESH_DEVICE bool is_of(const Pair& line, u32 flag) { return line.y == flag; }
};

// 15/16 of the bytes are data. Lanes 8k to 8k + 7 hold a line, 16 bytes each; in the last one's upper half is the flag.
//
// It is right only if the 128 bytes that 8 lanes store in one instruction become visible as one, and are loaded as one. GPUs with
// NVLink do that as far as is known (other libraries rely on it), but the PTX model promises it for 8 bytes of one thread only. So
// nothing uses it by default, until a machine's hardware has been checked.
struct Line128 {
  static constexpr int LANES = 8, DATA = 120, BYTES = 128;

  // Where a lane's data lies in the line's 120 bytes: 16 bytes at 16 * (lane % 8), of which the last lane has 8.
  static WARPMESH_DEVICE bool is_last() { return threadIdx.x % LANES == LANES - 1; }

  // By all lanes of the line together. `data` is the lane's: four words, two of the last lane.
  static WARPMESH_DEVICE void write(u64 at, const u32* data, u32 flag) {
    const bool last = is_last();
    store_relaxed_sys(reinterpret_cast<Quad*>(at) + threadIdx.x % LANES,
                      {data[0], data[1], last ? flag : data[2], last ? flag : data[3]});
  }

  // By all lanes of the warp together: the lane's part of the line, and whether the line has arrived.
  static WARPMESH_DEVICE bool read(u64 at, Quad& part, u32 flag) {
    part = load_relaxed_sys(reinterpret_cast<const Quad*>(at) + threadIdx.x % LANES);
    const bool arrived = part.z == flag && part.w == flag;
    return __shfl_sync(~0u, arrived, threadIdx.x % 32 | (LANES - 1));
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_PACKET_CUH

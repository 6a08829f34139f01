// Packets: data that carries its own signal. A line has data and a flag in one atomic store, so that who reads the flag of this
// epoch has the data too: no fence, no semaphore, one trip.
//
//   Line (LL16): 16 bytes = two halves of 8, each | data 4 | flag 4 |. Each half is atomic by itself and has its own flag, so it
//   does not matter how the two are ordered.
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

  // Whether both halves of what was read are of this epoch.
  static WARPMESH_DEVICE bool is_of(const Quad& line, u32 flag) { return line.y == flag && line.w == flag; }
};

}  // namespace warpmesh

#endif  // WARPMESH_PACKET_CUH

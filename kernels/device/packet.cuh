// Packets: data that carries its own signal. A line has data and a flag in one atomic store, so that who reads the flag of this
// epoch has the data too: no fence, no semaphore, one trip.
//
//   Line (LL16): 16 bytes = two halves of 8, each | data 4 | flag 4 |. Each half is atomic by itself and has its own flag, so it
//   does not matter how the two are ordered.
//
// A flag is never 0, which is what memory begins with, and is another for 2^32 - 1 epochs. The memory holds packets alone: no
// data that looks like a flag.
#pragma once

#include "wait.cuh"

namespace warpmesh {

// Bytes of data in a line, and of the line.
constexpr int LINE_DATA = 8;
constexpr int LINE_BYTES = 16;

// The flag of an epoch: from 1 to 2^32 - 1, and around. Two epochs that share a half of the memory are two apart.
WARPMESH_DEVICE u32 flag_of(u64 epoch) { return static_cast<u32>(epoch % 0xFFFFFFFFu) + 1; }

struct Line {
  // 8 bytes of data at once; the flag in both halves.
  static WARPMESH_DEVICE void write(Quad* at, u32 first, u32 second, u32 flag) {
    u64 high = static_cast<u64>(flag) << 32;
    store_relaxed_sys(at, high | first, high | second);
  }

  // True if both halves are of this epoch.
  static WARPMESH_DEVICE bool read(const Quad* at, u32& first, u32& second, u32 flag) {
    u64 low, high;
    load_relaxed_sys(at, low, high);
    first = static_cast<u32>(low);
    second = static_cast<u32>(high);
    return static_cast<u32>(low >> 32) == flag && static_cast<u32>(high >> 32) == flag;
  }
};

}  // namespace warpmesh

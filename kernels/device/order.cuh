// Every access to memory that other blocks, GPUs or the host see, as one function that names what it is: order, scope, width.
// All inline PTX on global memory is in this file.
//
// A release makes what this thread wrote or knows of visible to whoever acquires it; bar.sync in front of it takes in what the
// other threads of the block wrote. Relaxed accesses order nothing: where one is used, its caller says what makes it enough.
#pragma once

#include "base.cuh"

namespace warpmesh {

// 16 bytes, in registers.
struct alignas(16) Quad {
  u32 x, y, z, w;
};

// 8 bytes, in registers.
struct alignas(8) Pair {
  u32 x, y;
};

WARPMESH_DEVICE u64 load_acquire_sys(const u64* at) {
  u64 value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE u64 load_relaxed_sys(const u64* at) {
  u64 value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE u32 load_relaxed_sys(const u32* at) {
  u32 value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE u32 load_acquire_gpu(const u32* at) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE void store_release_sys(u64* at, u64 value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(global(at)), "l"(value) : "memory");
}

WARPMESH_DEVICE void store_relaxed_sys(u64* at, u64 value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(global(at)), "l"(value) : "memory");
}

WARPMESH_DEVICE void store_relaxed_sys(u32* at, u32 value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(global(at)), "r"(value) : "memory");
}

// Two words that travel together: 8 bytes are single-copy atomic.
WARPMESH_DEVICE Pair load_relaxed_sys(const Pair* at) {
  u64 both = load_relaxed_sys(reinterpret_cast<const u64*>(at));
  return {static_cast<u32>(both), static_cast<u32>(both >> 32)};
}

WARPMESH_DEVICE void store_relaxed_sys(Pair* at, Pair value) {
  store_relaxed_sys(reinterpret_cast<u64*>(at), value.x | static_cast<u64>(value.y) << 32);
}

// Two halves of 8 bytes, each single-copy atomic; nothing is said of their order.
WARPMESH_DEVICE void load_relaxed_sys(const Quad* at, u64& low, u64& high) {
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(global(at)) : "memory");
}

WARPMESH_DEVICE void store_relaxed_sys(Quad* at, u64 low, u64 high) {
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(global(at)), "l"(low), "l"(high) : "memory");
}

// Adds one, after all that was written before.
WARPMESH_DEVICE u32 count_acq_rel_gpu(u32* at) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(global(at)) : "memory");
  return before;
}

WARPMESH_DEVICE void fence_acq_rel_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// Data: plain accesses of 16 bytes. Signals and waits order them.
WARPMESH_DEVICE Quad load(const Quad* at) {
  Quad v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global(at))
               : "memory");
  return v;
}

WARPMESH_DEVICE void store(Quad* at, Quad v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global(at)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Data: plain accesses of one element.
template <class T>
WARPMESH_DEVICE T load_element(u64 at) {
  if constexpr (sizeof(T) == 8) {
    u64 x;
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
    return x;
  } else if constexpr (sizeof(T) == 4) {
    u32 x;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");
    return x;
  } else if constexpr (sizeof(T) == 2) {
    u16 x;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(x) : "l"(at) : "memory");
    return x;
  } else {
    u16 x;
    asm volatile("ld.global.u8 %0, [%1];" : "=h"(x) : "l"(at) : "memory");
    return static_cast<u8>(x);
  }
}

template <class T>
WARPMESH_DEVICE void store_element(u64 at, T value) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("st.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
  } else if constexpr (sizeof(T) == 2) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(at), "h"(value) : "memory");
  } else {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(at), "h"(static_cast<u16>(value)) : "memory");
  }
}

// Nanoseconds of the device's clock.
WARPMESH_DEVICE u64 now() {
  u64 time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

}  // namespace warpmesh

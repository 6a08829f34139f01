// Every access to memory that other blocks, GPUs or the host see, as one function that names what it is: order, scope, width.
// All inline PTX on global memory is in this file.
//
// A release makes what this thread wrote or knows of visible to whoever acquires it; bar.sync in front of it takes in what the
// other threads of the block wrote. Relaxed accesses order nothing: where one is used, its caller says what makes it enough.
#ifndef WARPMESH_ORDER_CUH
#define WARPMESH_ORDER_CUH

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

// Behind a poll by relaxed loads, of which the last one showed what was awaited: makes it an acquire, so that the loop need not acquire each
// time. (Before sm_90 such a fence would be a full one, and the word is loaded once more: it only grows, by releases.)
WARPMESH_DEVICE void acquire_polled_sys(const u64* at) {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.acquire.sys;" ::: "memory");
#else
  load_acquire_sys(at);
#endif
}

WARPMESH_DEVICE u32 load_relaxed_sys(const u32* at) {
  u32 value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE void store_release_sys(u64* at, u64 value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(global(at)), "l"(value) : "memory");
}

WARPMESH_DEVICE void store_release_sys(u32* at, u32 value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(global(at)), "r"(value) : "memory");
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
WARPMESH_DEVICE Quad load_relaxed_sys(const Quad* at) {
  u64 low, high;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(global(at)) : "memory");
  return {static_cast<u32>(low), static_cast<u32>(low >> 32), static_cast<u32>(high), static_cast<u32>(high >> 32)};
}

WARPMESH_DEVICE void store_relaxed_sys(Quad* at, Quad value) {
  const u64 low = value.x | static_cast<u64>(value.y) << 32, high = value.z | static_cast<u64>(value.w) << 32;
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(global(at)), "l"(low), "l"(high) : "memory");
}

// Adds one, after all that was written before; what others did before their additions is visible afterwards.
WARPMESH_DEVICE u64 count_acq_rel_gpu(u64* at) {
  u64 before;
  asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(global(at)) : "memory");
  return before;
}

// Takes a number; orders nothing.
WARPMESH_DEVICE u64 count_relaxed_gpu(u64* at) {
  u64 before;
  asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(global(at)) : "memory");
  return before;
}

WARPMESH_DEVICE u64 load_acquire_gpu(const u64* at) {
  u64 value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE void store_relaxed_gpu(u64* at, u64 value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(global(at)), "l"(value) : "memory");
}

WARPMESH_DEVICE void store_release_gpu(u64* at, u64 value) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(global(at)), "l"(value) : "memory");
}

// Data: plain accesses, which signals and waits order. BYTES is 8 or 16.
template <int BYTES>
WARPMESH_DEVICE void load(u64 at, u32* word) {
  if constexpr (BYTES == 16) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(at)
                 : "memory");
  } else {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(at) : "memory");
  }
}

template <int BYTES>
WARPMESH_DEVICE void store(u64 at, const u32* word) {
  if constexpr (BYTES == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
  } else {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(word[0]), "r"(word[1]) : "memory");
  }
}

// One element of SIZE bytes; of fewer than 4, in the word's low bits, the others being 0.
template <int SIZE>
WARPMESH_DEVICE void load_element(u64 at, u32* word) {
  if constexpr (SIZE == 8) {
    load<8>(at, word);
  } else if constexpr (SIZE == 4) {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(word[0]) : "l"(at) : "memory");
  } else if constexpr (SIZE == 2) {
    asm volatile("ld.global.u16 %0, [%1];" : "=r"(word[0]) : "l"(at) : "memory");
  } else {
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(word[0]) : "l"(at) : "memory");
  }
}

template <int SIZE>
WARPMESH_DEVICE void store_element(u64 at, const u32* word) {
  if constexpr (SIZE == 8) {
    store<8>(at, word);
  } else if constexpr (SIZE == 4) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(at), "r"(word[0]) : "memory");
  } else if constexpr (SIZE == 2) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(at), "r"(word[0]) : "memory");
  } else {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(at), "r"(word[0]) : "memory");
  }
}

// Data of one thread's own: a word of 8 bytes.
WARPMESH_DEVICE u64 load(const u64* at) {
  u64 value;
  asm volatile("ld.global.u64 %0, [%1];" : "=l"(value) : "l"(global(at)) : "memory");
  return value;
}

WARPMESH_DEVICE void store(u64* at, u64 value) {
  asm volatile("st.global.u64 [%0], %1;" ::"l"(global(at)), "l"(value) : "memory");
}

// Nanoseconds of the device's clock.
WARPMESH_DEVICE u64 now() {
  u64 time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

}  // namespace warpmesh

#endif  // WARPMESH_ORDER_CUH

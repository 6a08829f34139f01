// The multicast address of a group of GPUs behind an NVSwitch: a load from it is a reduction inside the switch, a store to it goes to
// all members. sm_90 and later.
//
// The switch adds in an order that nobody knows, so this is no part of the canonical mode. 16-bit floats are accumulated in f32.
#ifndef WARPMESH_SWITCH_CUH
#define WARPMESH_SWITCH_CUH

#include "element.cuh"
#include "sync.cuh"

namespace warpmesh {

// What the switch can do with a type: BYTES at a time, by load_reduce and reduce. Types without a specialization: nothing.
//
// Left out: the least and the greatest of 16-bit floats, for the ISA does not say what becomes of NaN, which has to win; 8-bit
// floats (sm_100), which the switch adds in f16: all sums here are accumulated in f32.
template <class T, class Op>
struct Multimem {
  static constexpr bool EXISTS = false;
};

#if __CUDA_ARCH__ >= 900

// The same bytes have two addresses, the group's and their owner's, and accesses through the one are ordered with accesses through
// the other only if this stands between them on the way: after the access and before the release that publishes it, or after the
// acquire and before the access. So whoever uses the group's address has this before its first use and after its last.
WARPMESH_DEVICE void fence_alias() { asm volatile("fence.proxy.alias;" ::: "memory"); }

// 16 bytes to all members. Bits: that they travel as floats changes nothing.
WARPMESH_DEVICE void store_to_all(u64 at, const u32* word) {
  asm volatile("multimem.st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(bits<float>(word[0])),
               "f"(bits<float>(word[1])), "f"(bits<float>(word[2])), "f"(bits<float>(word[3]))
               : "memory");
}

// 8 bytes to all members, at each single-copy atomic (as the vector above, of four times 4 bytes, is not).
WARPMESH_DEVICE void store_to_all(u64 at, u64 word) {
  asm volatile("multimem.st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
}

// Four words at a time.
#define WARPMESH_MULTIMEM4(T, OP, LOAD, REDUCE)                                                                             \
  template <>                                                                                                              \
  struct Multimem<T, OP> {                                                                                                 \
    static constexpr bool EXISTS = true;                                                                                   \
    static constexpr int BYTES = 16;                                                                                       \
    static WARPMESH_DEVICE void load_reduce(u64 at, u32* word) {                                                           \
      asm volatile("multimem.ld_reduce.relaxed.sys.global." LOAD " {%0, %1, %2, %3}, [%4];"                                \
                   : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])                                            \
                   : "l"(at)                                                                                               \
                   : "memory");                                                                                            \
    }                                                                                                                      \
    static WARPMESH_DEVICE void reduce(u64 at, const u32* word) {                                                          \
      asm volatile("multimem.red.relaxed.sys.global." REDUCE " [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(word[0]),           \
                   "r"(word[1]), "r"(word[2]), "r"(word[3])                                                                \
                   : "memory");                                                                                            \
    }                                                                                                                      \
  };
WARPMESH_MULTIMEM4(Half, Sum, "add.acc::f32.v4.f16x2", "add.v4.f16x2")
WARPMESH_MULTIMEM4(Bfloat16, Sum, "add.acc::f32.v4.bf16x2", "add.v4.bf16x2")
WARPMESH_MULTIMEM4(Float, Sum, "add.v4.f32", "add.v4.f32")
#undef WARPMESH_MULTIMEM4

namespace detail {
WARPMESH_DEVICE void to_words(u32 x, u32* word) { word[0] = x; }
WARPMESH_DEVICE void from_words(const u32* word, u32& x) { x = word[0]; }
WARPMESH_DEVICE void from_words(const u32* word, u64& x) { x = word[0] | static_cast<u64>(word[1]) << 32; }
WARPMESH_DEVICE void from_words(const u32* word, double& x) { x = bits<double>(word[0] | static_cast<u64>(word[1]) << 32); }
template <class W>
WARPMESH_DEVICE void to_words(W x, u32* word) {
  word[0] = static_cast<u32>(bits<u64>(x));
  word[1] = static_cast<u32>(bits<u64>(x) >> 32);
}
}  // namespace detail

// One element at a time.
#define WARPMESH_MULTIMEM1(T, OP, TYPE, WORD, LETTER)                                                                       \
  template <>                                                                                                              \
  struct Multimem<T, OP> {                                                                                                 \
    static constexpr bool EXISTS = true;                                                                                   \
    static constexpr int BYTES = sizeof(WORD);                                                                             \
    static WARPMESH_DEVICE void load_reduce(u64 at, u32* word) {                                                           \
      WORD x;                                                                                                              \
      asm volatile("multimem.ld_reduce.relaxed.sys.global." TYPE " %0, [%1];" : "=" LETTER(x) : "l"(at) : "memory");       \
      detail::to_words(x, word);                                                                                           \
    }                                                                                                                      \
    static WARPMESH_DEVICE void reduce(u64 at, const u32* word) {                                                          \
      WORD x;                                                                                                              \
      detail::from_words(word, x);                                                                                         \
      asm volatile("multimem.red.relaxed.sys.global." TYPE " [%0], %1;" ::"l"(at), LETTER(x) : "memory");                  \
    }                                                                                                                      \
  };
WARPMESH_MULTIMEM1(Int32, Sum, "add.s32", u32, "r")
WARPMESH_MULTIMEM1(Int32, Min, "min.s32", u32, "r")
WARPMESH_MULTIMEM1(Int32, Max, "max.s32", u32, "r")
WARPMESH_MULTIMEM1(Uint32, Sum, "add.u32", u32, "r")
WARPMESH_MULTIMEM1(Uint32, Min, "min.u32", u32, "r")
WARPMESH_MULTIMEM1(Uint32, Max, "max.u32", u32, "r")
WARPMESH_MULTIMEM1(Int64, Sum, "add.u64", u64, "l")
WARPMESH_MULTIMEM1(Int64, Min, "min.s64", u64, "l")
WARPMESH_MULTIMEM1(Int64, Max, "max.s64", u64, "l")
WARPMESH_MULTIMEM1(Uint64, Sum, "add.u64", u64, "l")
WARPMESH_MULTIMEM1(Uint64, Min, "min.u64", u64, "l")
WARPMESH_MULTIMEM1(Uint64, Max, "max.u64", u64, "l")
WARPMESH_MULTIMEM1(Double, Sum, "add.f64", double, "d")
#undef WARPMESH_MULTIMEM1

struct SwitchChannel {
  u64 group;           // the multicast address
  u64 group_counter;   // multicast address of a u64 that all members have, zero in the beginning
  u64* counter;        // this rank's own copy of it
  u64* passed;         // how many barriers this rank has passed; device memory that nobody else touches
  u32 members;
  Patience patience;

  // The members' elements at an offset, reduced: T's BYTES, in words. Orders nothing; the barrier does.
  template <class T, class Op>
  WARPMESH_DEVICE void load_reduce(u64 offset, u32* word) const {
    Multimem<T, Op>::load_reduce(group + offset, word);
  }

  // 16 bytes to all members.
  WARPMESH_DEVICE void store(u64 offset, const u32* word) const { store_to_all(group + offset, word); }

  // Adds (or takes the lesser, greater) to the elements of all members.
  template <class T, class Op>
  WARPMESH_DEVICE void reduce(u64 offset, const u32* word) const {
    Multimem<T, Op>::reduce(group + offset, word);
  }

  // All members come here before one goes on; what they did before, also through the switch, is visible to all. By all threads of a
  // block. False if given up, which then all threads know.
  WARPMESH_DEVICE bool barrier(u32 place) const {
    fence_alias();
    __syncthreads();
    bool failed = false;
    if (threadIdx.x == 0) {
      const u64 round = load(passed) + 1;
      warpmesh::store(passed, round);
      asm volatile("multimem.red.release.sys.global.add.u64 [%0], 1;" ::"l"(group_counter) : "memory");
      fence_alias();
      u64 seen = 0;
      failed = !persist(
          patience, [&] { return (seen = load_acquire_sys(counter)) >= round * members; },
          [&] { return WaitingFor{~0u, place, round * members, seen}; });
    }
    failed = __syncthreads_or(failed);
    fence_alias();
    return !failed;
  }
};

#endif  // __CUDA_ARCH__ >= 900

}  // namespace warpmesh

#endif  // WARPMESH_SWITCH_CUH

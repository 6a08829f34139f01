// Types and small helpers that every header here uses. No header of the CUDA toolkit is needed: NVRTC alone compiles this.
#ifndef WARPMESH_BASE_CUH
#define WARPMESH_BASE_CUH

namespace warpmesh {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i32 = int;
using i64 = long long;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "sizes that the host side counts on");

#define WARPMESH_DEVICE __device__ __forceinline__

// The .global address of a pointer: accesses through it need no look at the address's space.
WARPMESH_DEVICE u64 global(const void* p) { return __cvta_generic_to_global(p); }

// The bits of one type as another of the same size.
template <class To, class From>
WARPMESH_DEVICE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same size");
  union {
    From from;
    To to;
  } both = {from};
  return both.to;
}

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

// The same number, of which the compiler knows nothing more: what is computed with it stays where it is written.
WARPMESH_DEVICE u64 opaque(u64 x) {
  asm("" : "+l"(x));
  return x;
}

WARPMESH_DEVICE u32 opaque(u32 x) {
  asm("" : "+r"(x));
  return x;
}

template <class T>
WARPMESH_DEVICE T least(T a, T b) {
  return b < a ? b : a;
}

}  // namespace warpmesh

#endif  // WARPMESH_BASE_CUH

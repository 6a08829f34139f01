// The twelve element types: how elements in 32-bit words become numbers of their accumulation type, and back.
//
// The rules are the host device's, bit for bit (collectives/src/host/fold): f16, bf16 and the 8-bit floats are accumulated in
// f32 and rounded once, to nearest even; 8-bit floats saturate; arithmetic that gives NaN gives the type's one quiet NaN.
#pragma once

#include "base.cuh"

namespace warpmesh {

// What an element type says of itself:
//   Bits    its unsigned integer         Acc      what it is accumulated in
//   EXACT   elements are accumulators    NAN_BITS the one NaN that results have (0: none)
struct Half {
  using Bits = u16;
  using Acc = float;
  static constexpr bool EXACT = false;
  static constexpr u32 NAN_BITS = 0x7E00;
  static WARPMESH_DEVICE float widen(Bits x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
  }
  static WARPMESH_DEVICE Bits narrow(float x) {
    Bits near;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(near) : "f"(x));
    return near;
  }
};

struct Bfloat16 {
  using Bits = u16;
  using Acc = float;
  static constexpr bool EXACT = false;
  static constexpr u32 NAN_BITS = 0x7FC0;
  static WARPMESH_DEVICE float widen(Bits x) { return bits<float>(static_cast<u32>(x) << 16); }
  static WARPMESH_DEVICE Bits narrow(float x) {
    Bits near;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(near) : "f"(x));
    return near;
  }
};

// The nearest 8-bit float with FRACTION bits of fraction to a number that is not NaN; MOST is the largest magnitude.
template <int FRACTION, int BIAS, u32 MOST>
WARPMESH_DEVICE u8 narrow8(float x) {
  u32 magnitude = bits<u32>(x) & 0x7FFFFFFF, sign = bits<u32>(x) >> 24 & 0x80;
  constexpr int DROP = 23 - FRACTION;
  u32 rounded = (magnitude + ((1u << (DROP - 1)) - 1) + (magnitude >> DROP & 1)) >> DROP;
  u32 normal = rounded - ((127 - BIAS) << FRACTION);
  // Adding a number whose last bit is worth what a subnormal's is makes the addition round there.
  const float unit = bits<float>(static_cast<u32>(127 + 1 - BIAS - FRACTION + 23) << 23);
  u32 subnormal = bits<u32>(__fadd_rn(bits<float>(magnitude), unit)) - bits<u32>(unit);
  u32 near = magnitude < static_cast<u32>(128 - BIAS) << 23 ? subnormal : normal;
  return static_cast<u8>(least(near, MOST) | sign);
}

struct E4M3 {
  using Bits = u8;
  using Acc = float;
  static constexpr bool EXACT = false;
  static constexpr u32 NAN_BITS = 0x7F;
  static WARPMESH_DEVICE float widen(Bits x) {
#if __CUDA_ARCH__ >= 890
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<u16>(x)));
    return Half::widen(static_cast<u16>(halves));
#else
    u32 magnitude = x & 0x7F;
    float number = magnitude >= 8 ? bits<float>((magnitude << 20) + (120u << 23)) : magnitude * (1.0f / 512);
    float wide = magnitude == 0x7F ? bits<float>(0x7FC00000u) : number;
    return bits<float>(bits<u32>(wide) | static_cast<u32>(x & 0x80) << 24);
#endif
  }
  static WARPMESH_DEVICE Bits narrow(float x) {
#if __CUDA_ARCH__ >= 890
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return static_cast<u8>(pair);
#else
    return narrow8<3, 7, 0x7E>(x);
#endif
  }
};

struct E5M2 {
  using Bits = u8;
  using Acc = float;
  static constexpr bool EXACT = false;
  static constexpr u32 NAN_BITS = 0x7E;
  // The upper half of a half.
  static WARPMESH_DEVICE float widen(Bits x) { return Half::widen(static_cast<u16>(x << 8)); }
  static WARPMESH_DEVICE Bits narrow(float x) {
#if __CUDA_ARCH__ >= 890
    u16 pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return static_cast<u8>(pair);
#else
    return narrow8<2, 15, 0x7B>(x);
#endif
  }
};

// Types that are accumulated as they are.
template <class A, class B, u64 NOT_A_NUMBER>
struct Exact {
  using Bits = B;
  using Acc = A;
  static constexpr bool EXACT = true;
  static constexpr u64 NAN_BITS = NOT_A_NUMBER;
  static WARPMESH_DEVICE A widen(B x) { return bits<A>(x); }
  static WARPMESH_DEVICE B narrow(A x) { return bits<B>(x); }
};
using Float = Exact<float, u32, 0x7FC00000u>;
using Double = Exact<double, u64, 0x7FF8000000000000ull>;
using Int8 = Exact<i8, u8, 0>;
using Uint8 = Exact<u8, u8, 0>;
using Int32 = Exact<i32, u32, 0>;
using Uint32 = Exact<u32, u32, 0>;
using Int64 = Exact<i64, u64, 0>;
using Uint64 = Exact<u64, u64, 0>;

// Arithmetic, rounded after every step: a multiplication and an addition are never contracted.
WARPMESH_DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
WARPMESH_DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
WARPMESH_DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
WARPMESH_DEVICE double times(double a, double b) { return __dmul_rn(a, b); }
WARPMESH_DEVICE float over(float a, u32 b) { return __fdiv_rn(a, static_cast<float>(b)); }
WARPMESH_DEVICE double over(double a, u32 b) { return __ddiv_rn(a, static_cast<double>(b)); }
// Integers wrap: the sum and the product are those of unsigned numbers.
template <class A>
WARPMESH_DEVICE A plus(A a, A b) {
  return static_cast<A>(static_cast<u64>(a) + static_cast<u64>(b));
}
template <class A>
WARPMESH_DEVICE A times(A a, A b) {
  return static_cast<A>(static_cast<u64>(a) * static_cast<u64>(b));
}
template <class A>
WARPMESH_DEVICE A over(A a, u32 b) {
  return static_cast<A>(a / static_cast<A>(b));
}
template <>
WARPMESH_DEVICE i8 over(i8 a, u32 b) {
  return static_cast<i8>(static_cast<i32>(a) / static_cast<i32>(b));
}
template <>
WARPMESH_DEVICE i32 over(i32 a, u32 b) {
  return static_cast<i32>(static_cast<i64>(a) / static_cast<i64>(b));
}
template <>
WARPMESH_DEVICE u8 over(u8 a, u32 b) {
  return static_cast<u8>(static_cast<u32>(a) / b);
}

// IEEE 754-2019 minimum and maximum: NaN wins, -0 is less than +0.
WARPMESH_DEVICE float lesser(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
WARPMESH_DEVICE float greater(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
// There is no min.NaN.f64.
WARPMESH_DEVICE double lesser(double a, double b) {
  double equal = bits<double>(bits<u64>(a) | bits<u64>(b));
  double number = a == b ? equal : a < b ? a : b;
  return a != a || b != b ? bits<double>(Double::NAN_BITS) : number;
}
WARPMESH_DEVICE double greater(double a, double b) {
  double equal = bits<double>(bits<u64>(a) & bits<u64>(b));
  double number = a == b ? equal : a > b ? a : b;
  return a != a || b != b ? bits<double>(Double::NAN_BITS) : number;
}
template <class A>
WARPMESH_DEVICE A lesser(A a, A b) {
  return b < a ? b : a;
}
template <class A>
WARPMESH_DEVICE A greater(A a, A b) {
  return b > a ? b : a;
}

// The operators. SCALED: contributions are multiplied by their rank's factor; AVERAGED: the result is divided by the ranks.
struct Sum {
  static constexpr bool SCALED = false, AVERAGED = false;
  template <class A>
  static WARPMESH_DEVICE A combine(A a, A b) {
    return plus(a, b);
  }
};
struct Avg : Sum {
  static constexpr bool AVERAGED = true;
};
struct PreMulSum : Sum {
  static constexpr bool SCALED = true;
};
struct Prod {
  static constexpr bool SCALED = false, AVERAGED = false;
  template <class A>
  static WARPMESH_DEVICE A combine(A a, A b) {
    return times(a, b);
  }
};
struct Min {
  static constexpr bool SCALED = false, AVERAGED = false;
  template <class A>
  static WARPMESH_DEVICE A combine(A a, A b) {
    return lesser(a, b);
  }
};
struct Max {
  static constexpr bool SCALED = false, AVERAGED = false;
  template <class A>
  static WARPMESH_DEVICE A combine(A a, A b) {
    return greater(a, b);
  }
};

WARPMESH_DEVICE bool is_nan(float x) { return x != x; }
WARPMESH_DEVICE bool is_nan(double x) { return x != x; }
template <class A>
WARPMESH_DEVICE bool is_nan(A) {
  return false;
}

// An element out of an accumulator, with the one NaN.
template <class T>
WARPMESH_DEVICE typename T::Bits finish(typename T::Acc x) {
  typename T::Bits near = T::narrow(x);
  return is_nan(x) ? static_cast<typename T::Bits>(T::NAN_BITS) : near;
}

// Elements that fill BYTES bytes, in words of 32 bits.
template <int BYTES>
struct Words {
  u32 word[BYTES / 4];
};

// Element k of words.
template <class T, int BYTES>
WARPMESH_DEVICE typename T::Bits element(const Words<BYTES>& words, int k) {
  constexpr int SIZE = sizeof(typename T::Bits);
  if constexpr (SIZE == 8) {
    return words.word[2 * k] | static_cast<u64>(words.word[2 * k + 1]) << 32;
  } else {
    constexpr int EACH = 4 / SIZE;
    return static_cast<typename T::Bits>(words.word[k / EACH] >> (k % EACH * SIZE * 8));
  }
}

// Puts element k, into words that were zero there.
template <class T, int BYTES>
WARPMESH_DEVICE void put(Words<BYTES>& words, int k, typename T::Bits x) {
  constexpr int SIZE = sizeof(x);
  if constexpr (SIZE == 8) {
    words.word[2 * k] = static_cast<u32>(x);
    words.word[2 * k + 1] = static_cast<u32>(x >> 32);
  } else {
    constexpr int EACH = 4 / SIZE;
    words.word[k / EACH] |= static_cast<u32>(x) << (k % EACH * SIZE * 8);
  }
}

}  // namespace warpmesh

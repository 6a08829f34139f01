// The twelve element types: how elements in 32-bit words become numbers of their accumulation type, and back.
//
// The rules are the host device's, bit for bit (collectives/src/host/fold): f16, bf16 and the 8-bit floats are accumulated in
// f32 and rounded once, to nearest even; 8-bit floats saturate; arithmetic that gives NaN gives the type's one quiet NaN.
#ifndef WARPMESH_ELEMENT_CUH
#define WARPMESH_ELEMENT_CUH

#include "base.cuh"

namespace warpmesh {

namespace detail {

// Two floats of 16 bits whose NaNs are positive: every NaN becomes the one whose bits are ONE.
template <u32 ONE>
WARPMESH_DEVICE u32 quiet(u32 pair) {
  u32 least;
#if __CUDA_ARCH__ >= 900
  // As signed integers, positive NaNs are the greatest numbers.
  asm("min.s16x2 %0, %1, %2;" : "=r"(least) : "r"(pair), "r"(ONE << 16 | ONE));
#else
  // The conversion's NaN is 0x7FFF: the only magnitude that a 1 carries into the sign's place.
  const u32 nan = ((pair & 0x7FFF7FFF) + 0x00010001) >> 15 & 0x00010001;
  least = pair - nan * (0x7FFF - ONE);
#endif
  return least;
}

// The nearest 8-bit floats with FRACTION bits of fraction; MOST is the largest magnitude, ONE the NaN.
template <int FRACTION, int BIAS, u32 MOST, u32 ONE>
WARPMESH_DEVICE u32 narrow8(const float* in) {
  constexpr int DROP = 23 - FRACTION;
  u32 cell = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const u32 magnitude = bits<u32>(in[k]) & 0x7FFFFFFF, sign = bits<u32>(in[k]) >> 24 & 0x80;
    const u32 rounded = (magnitude + ((1u << (DROP - 1)) - 1) + (magnitude >> DROP & 1)) >> DROP;
    const u32 normal = rounded - ((127 - BIAS) << FRACTION);
    // Adding a number whose last bit is worth what a subnormal's is makes the addition round there.
    const float unit = bits<float>(static_cast<u32>(127 + 1 - BIAS - FRACTION + 23) << 23);
    const u32 subnormal = bits<u32>(__fadd_rn(bits<float>(magnitude), unit)) - bits<u32>(unit);
    const u32 near = magnitude < static_cast<u32>(128 - BIAS) << 23 ? subnormal : normal;
    const u32 number = least(near, MOST) | sign;
    cell |= (magnitude > 0x7F800000 ? ONE : number) << 8 * k;
  }
  return cell;
}

}  // namespace detail

// What an element type says of itself:
//   Bits   its unsigned integer
//   Acc    what it is accumulated in
//   CELL   elements that fill whole words of 32 bits: they are converted together
//   widen  the accumulators of a cell
//   narrow the nearest elements of a cell of results of arithmetic, of which every NaN is positive (the GPU's own NaN is 0x7FFFFFFF)
struct Half {
  using Bits = u16;
  using Acc = float;
  static constexpr int CELL = 2;
  static WARPMESH_DEVICE float widen(u16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
  }
  static WARPMESH_DEVICE void widen(const u32* cell, float* out) {
    out[0] = widen(static_cast<u16>(cell[0]));
    out[1] = widen(static_cast<u16>(cell[0] >> 16));
  }
  static WARPMESH_DEVICE void narrow(const float* in, u32* cell) {
    u32 near;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(near) : "f"(in[1]), "f"(in[0]));
    cell[0] = detail::quiet<0x7E00>(near);
  }
};

struct Bfloat16 {
  using Bits = u16;
  using Acc = float;
  static constexpr int CELL = 2;
  static WARPMESH_DEVICE void widen(const u32* cell, float* out) {
    out[0] = bits<float>(cell[0] << 16);
    out[1] = bits<float>(cell[0] & 0xFFFF0000u);
  }
  static WARPMESH_DEVICE void narrow(const float* in, u32* cell) {
    u32 near;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(near) : "f"(in[1]), "f"(in[0]));
    cell[0] = detail::quiet<0x7FC0>(near);
  }
};

struct E4M3 {
  using Bits = u8;
  using Acc = float;
  static constexpr int CELL = 4;
  static WARPMESH_DEVICE void widen(const u32* cell, float* out) {
#if __CUDA_ARCH__ >= 890
    u32 low, high;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(low) : "h"(static_cast<u16>(cell[0])));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(high) : "h"(static_cast<u16>(cell[0] >> 16)));
    Half::widen(&low, out);
    Half::widen(&high, out + 2);
#else
#pragma unroll
    for (int k = 0; k < CELL; ++k) {
      const u32 x = cell[0] >> 8 * k & 0xFF, magnitude = x & 0x7F;
      const float number = magnitude >= 8 ? bits<float>((magnitude << 20) + (120u << 23)) : magnitude * (1.0f / 512);
      const float wide = magnitude == 0x7F ? bits<float>(0x7FC00000u) : number;
      out[k] = bits<float>(bits<u32>(wide) | (x & 0x80) << 24);
    }
#endif
  }
  static WARPMESH_DEVICE void narrow(const float* in, u32* cell) {
#if __CUDA_ARCH__ >= 890
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(in[1]), "f"(in[0]));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(in[3]), "f"(in[2]));
    cell[0] = low | static_cast<u32>(high) << 16;
#else
    cell[0] = detail::narrow8<3, 7, 0x7E, 0x7F>(in);
#endif
  }
};

struct E5M2 {
  using Bits = u8;
  using Acc = float;
  static constexpr int CELL = 4;
  // The upper half of a half.
  static WARPMESH_DEVICE void widen(const u32* cell, float* out) {
    const u32 even = cell[0] << 8 & 0xFF00FF00, odd = cell[0] & 0xFF00FF00;
    out[0] = Half::widen(static_cast<u16>(even));
    out[1] = Half::widen(static_cast<u16>(odd));
    out[2] = Half::widen(static_cast<u16>(even >> 16));
    out[3] = Half::widen(static_cast<u16>(odd >> 16));
  }
  static WARPMESH_DEVICE void narrow(const float* in, u32* cell) {
#if __CUDA_ARCH__ >= 890
    u16 low, high;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(low) : "f"(in[1]), "f"(in[0]));
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(high) : "f"(in[3]), "f"(in[2]));
    const u32 near = low | static_cast<u32>(high) << 16;
    // Numbers end at 0x7B, and the conversion's NaN is 0x7F: the only magnitude that a 1 carries into the sign's place. 0x7E it is.
    cell[0] = near ^ (((near & 0x7F7F7F7F) + 0x01010101) >> 7 & 0x01010101);
#else
    cell[0] = detail::narrow8<2, 15, 0x7B, 0x7E>(in);
#endif
  }
};

// Types that are accumulated as they are.
struct Float {
  using Bits = u32;
  using Acc = float;
  static constexpr int CELL = 1;
  static WARPMESH_DEVICE void widen(const u32* cell, float* out) { out[0] = bits<float>(cell[0]); }
  // As signed integers, positive NaNs are the greatest numbers.
  static WARPMESH_DEVICE void narrow(const float* in, u32* cell) {
    cell[0] = static_cast<u32>(least(bits<i32>(in[0]), 0x7FC00000));
  }
};

struct Double {
  using Bits = u64;
  using Acc = double;
  static constexpr int CELL = 1;
  static WARPMESH_DEVICE void widen(const u32* cell, double* out) {
    out[0] = bits<double>(cell[0] | static_cast<u64>(cell[1]) << 32);
  }
  static WARPMESH_DEVICE void narrow(const double* in, u32* cell) {
    const u64 near = in[0] == in[0] ? bits<u64>(in[0]) : 0x7FF8000000000000ull;
    cell[0] = static_cast<u32>(near);
    cell[1] = static_cast<u32>(near >> 32);
  }
};

template <class A, class B>
struct Integer {
  using Bits = B;
  using Acc = A;
  static constexpr int CELL = sizeof(A) < 4 ? 4 / sizeof(A) : 1;
  static WARPMESH_DEVICE void widen(const u32* cell, A* out) {
    if constexpr (sizeof(A) == 8) {
      out[0] = static_cast<A>(cell[0] | static_cast<u64>(cell[1]) << 32);
    } else {
#pragma unroll
      for (int k = 0; k < CELL; ++k) out[k] = static_cast<A>(cell[0] >> (8 * sizeof(A) * k) % 32);
    }
  }
  static WARPMESH_DEVICE void narrow(const A* in, u32* cell) {
    if constexpr (sizeof(A) == 8) {
      cell[0] = static_cast<u32>(in[0]);
      cell[1] = static_cast<u32>(static_cast<u64>(in[0]) >> 32);
    } else {
      cell[0] = 0;
#pragma unroll
      for (int k = 0; k < CELL; ++k) cell[0] |= static_cast<u32>(static_cast<B>(in[k])) << 8 * sizeof(A) * k;
    }
  }
};
using Int8 = Integer<i8, u8>;
using Uint8 = Integer<u8, u8>;
using Int32 = Integer<i32, u32>;
using Uint32 = Integer<u32, u32>;
using Int64 = Integer<i64, u64>;
using Uint64 = Integer<u64, u64>;

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
// Towards zero; a world has less than 2^31 ranks.
template <class A>
WARPMESH_DEVICE A over(A a, u32 b) {
  if constexpr (static_cast<A>(-1) > 0) {
    return static_cast<A>(a / b);
  } else {
    return static_cast<A>(a / static_cast<i32>(b));
  }
}

// IEEE 754-2019 minimum and maximum: NaN wins, -0 is less than +0 (as the instructions have it that NaN loses).
WARPMESH_DEVICE float lesser(float a, float b) {
  float number;
  asm("min.f32 %0, %1, %2;" : "=f"(number) : "f"(a), "f"(b));
  return a != a || b != b ? bits<float>(0x7FFFFFFFu) : number;
}
WARPMESH_DEVICE float greater(float a, float b) {
  float number;
  asm("max.f32 %0, %1, %2;" : "=f"(number) : "f"(a), "f"(b));
  return a != a || b != b ? bits<float>(0x7FFFFFFFu) : number;
}
WARPMESH_DEVICE double lesser(double a, double b) {
  const double equal = bits<double>(bits<u64>(a) | bits<u64>(b));
  const double number = a == b ? equal : a < b ? a : b;
  return a != a ? a : b != b ? b : number;
}
WARPMESH_DEVICE double greater(double a, double b) {
  const double equal = bits<double>(bits<u64>(a) & bits<u64>(b));
  const double number = a == b ? equal : a > b ? a : b;
  return a != a ? a : b != b ? b : number;
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

}  // namespace warpmesh

#endif  // WARPMESH_ELEMENT_CUH

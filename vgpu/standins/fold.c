#include "fold.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// A float type narrower than f32: bits of the exponent and of the stored mantissa; whether it has infinities.
struct narrow {
  int exponent, mantissa;
  bool has_infinity;
};

static bool narrow_of(ncclDataType_t dtype, struct narrow* is) {
  switch (dtype) {
    case ncclFloat16: *is = (struct narrow){5, 10, true}; return true;
    case ncclBfloat16: *is = (struct narrow){8, 7, true}; return true;
    case ncclFloat8e4m3: *is = (struct narrow){4, 3, false}; return true;
    case ncclFloat8e5m2: *is = (struct narrow){5, 2, true}; return true;
    default: return false;
  }
}

size_t size_of(ncclDataType_t dtype) {
  static const size_t sizes[ncclNumTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return sizes[dtype];
}

static bool is_float(ncclDataType_t dtype) {
  struct narrow ignored;
  return dtype == ncclFloat32 || dtype == ncclFloat64 || narrow_of(dtype, &ignored);
}

static double decode(struct narrow is, uint32_t bits) {
  uint32_t mantissa = bits & ((1u << is.mantissa) - 1);
  int exponent = bits >> is.mantissa & ((1 << is.exponent) - 1), bias = (1 << (is.exponent - 1)) - 1;
  double sign = bits >> (is.exponent + is.mantissa) & 1 ? -1 : 1;
  if (exponent == (1 << is.exponent) - 1 && is.has_infinity) return mantissa ? NAN : sign * INFINITY;
  if (exponent == (1 << is.exponent) - 1 && mantissa == (1u << is.mantissa) - 1) return NAN;
  if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - is.mantissa);
  return sign * ldexp(mantissa + (1u << is.mantissa), exponent - bias - is.mantissa);
}

// To the nearest, ties to even.
static uint32_t encode(struct narrow is, double x) {
  int bias = (1 << (is.exponent - 1)) - 1;
  uint32_t sign = (uint32_t)(signbit(x) != 0) << (is.exponent + is.mantissa);
  uint32_t nan = (1u << (is.exponent + is.mantissa)) - 1;
  uint32_t infinity = is.has_infinity ? ((1u << is.exponent) - 1) << is.mantissa : nan;
  if (isnan(x)) return nan;
  if (isinf(x)) return sign | infinity;
  int exponent;
  frexp(x, &exponent);
  int least = x == 0 || exponent < 2 - bias ? 2 - bias : exponent;
  // In units of the last place; a carry out of the mantissa is one to the exponent, as it should be.
  double units = nearbyint(ldexp(fabs(x), is.mantissa + 1 - least));
  uint32_t bits = (uint32_t)units + ((uint32_t)(least - 2 + bias) << is.mantissa);
  return sign | (bits < infinity ? bits : infinity);
}

static double load_float(ncclDataType_t dtype, const char* at) {
  struct narrow is;
  if (narrow_of(dtype, &is)) {
    uint16_t bits = 0;
    memcpy(&bits, at, size_of(dtype));
    return decode(is, bits);
  }
  float single;
  double wide;
  memcpy(&single, at, sizeof single);
  if (dtype == ncclFloat32) return single;
  memcpy(&wide, at, sizeof wide);
  return wide;
}

static void store_float(ncclDataType_t dtype, char* at, double x) {
  struct narrow is;
  if (narrow_of(dtype, &is)) {
    uint16_t bits = encode(is, x);
    memcpy(at, &bits, size_of(dtype));
  } else if (dtype == ncclFloat32) {
    float single = x;
    memcpy(at, &single, sizeof single);
  } else {
    memcpy(at, &x, sizeof x);
  }
}

static bool is_signed(ncclDataType_t dtype) { return dtype == ncclInt8 || dtype == ncclInt32 || dtype == ncclInt64; }

// Extended to 64 bits, as the type says.
static uint64_t load_int(ncclDataType_t dtype, const char* at) {
  uint64_t bits = 0;
  size_t size = size_of(dtype);
  memcpy(&bits, at, size);
  int unused = 64 - 8 * size;
  return is_signed(dtype) ? (uint64_t)((int64_t)(bits << unused) >> unused) : bits;
}

static void store_int(ncclDataType_t dtype, char* at, uint64_t bits) { memcpy(at, &bits, size_of(dtype)); }

static double fold_floats(ncclRedOp_t op, double a, double b) {
  switch ((int)op) {
    case ncclProd: return a * b;
    case ncclMax: return fmax(a, b);
    case ncclMin: return fmin(a, b);
    default: return a + b;
  }
}

static uint64_t fold_ints(bool has_sign, ncclRedOp_t op, uint64_t a, uint64_t b) {
  bool less = has_sign ? (int64_t)a < (int64_t)b : a < b;
  switch ((int)op) {
    case ncclProd: return a * b;
    case ncclMax: return less ? b : a;
    case ncclMin: return less ? a : b;
    default: return a + b;
  }
}

void fold(ncclDataType_t dtype, ncclRedOp_t op, char* into, const char* from, size_t count) {
  size_t size = size_of(dtype);
  for (; count > 0; count--, into += size, from += size) {
    if (is_float(dtype)) {
      store_float(dtype, into, fold_floats(op, load_float(dtype, into), load_float(dtype, from)));
    } else {
      store_int(dtype, into, fold_ints(is_signed(dtype), op, load_int(dtype, into), load_int(dtype, from)));
    }
  }
}

void scale(ncclDataType_t dtype, char* data, const void* scalar, size_t count) {
  size_t size = size_of(dtype);
  for (; count > 0; count--, data += size) fold(dtype, ncclProd, data, scalar, 1);
}

void average_before(ncclDataType_t dtype, char* data, size_t count, int n) {
  if (!is_float(dtype)) return;
  char part[8];
  store_float(dtype, part, 1.0 / n);
  scale(dtype, data, part, count);
}

void average_after(ncclDataType_t dtype, char* data, size_t count, int n) {
  if (is_float(dtype)) return;
  size_t size = size_of(dtype);
  for (; count > 0; count--, data += size) {
    uint64_t sum = load_int(dtype, data);
    store_int(dtype, data, is_signed(dtype) ? (uint64_t)((int64_t)sum / n) : sum / (uint64_t)n);
  }
}

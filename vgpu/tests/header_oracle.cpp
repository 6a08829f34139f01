// NVIDIA's host implementation of the conversions and of half arithmetic, as a table for the tests.
// Argument: what to print. Reads nothing; writes raw little-endian results to stdout.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

template <class T> static uint32_t bits(T x) {
  uint32_t b = 0;
  memcpy(&b, &x, sizeof x);
  return b;
}
static __half h(uint32_t b) { return __half(__half_raw{(unsigned short)b}); }
static __nv_bfloat16 b16(uint32_t b) { return __nv_bfloat16(__nv_bfloat16_raw{(unsigned short)b}); }
static float f32(uint32_t b) {
  float f;
  memcpy(&f, &b, 4);
  return f;
}
// The same stream of 32-bit patterns as in the test: exponents and mantissas of all kinds.
static uint32_t next(uint64_t& s) {
  s = s * 6364136223846793005ull + 1442695040888963407ull;
  uint32_t x = s >> 32;
  return x & (1u << 31) ? x : x & ~0xfffu;  // half of them near ties
}

int main(int argc, char** argv) {
  std::vector<uint32_t> out;
  auto put = [&](uint32_t x) { out.push_back(x); };
  const char* what = argc > 1 ? argv[1] : "";
  auto is = [&](const char* s) { return !strcmp(what, s); };
  uint64_t seed = 1;
  for (uint32_t i = 0; i < 65536; i++) {
    uint32_t r = next(seed), q = next(seed), w = next(seed);
    if (is("f16_to_f32")) put(bits(__half2float(h(i))));
    if (is("bf16_to_f32")) put(bits(__bfloat162float(b16(i))));
    if (is("e4m3_to_f16")) put(__nv_cvt_fp8_to_halfraw(i & 255, __NV_E4M3).x);
    if (is("e5m2_to_f16")) put(__nv_cvt_fp8_to_halfraw(i & 255, __NV_E5M2).x);
    if (is("f16_to_e4m3")) put(__nv_cvt_halfraw_to_fp8(__half_raw{(unsigned short)i}, __NV_SATFINITE, __NV_E4M3));
    if (is("f16_to_e5m2")) put(__nv_cvt_halfraw_to_fp8(__half_raw{(unsigned short)i}, __NV_SATFINITE, __NV_E5M2));
    if (is("f32_to_f16")) put(bits(__float2half_rn(f32(r))));
    if (is("f32_to_f16_rz")) put(bits(__float2half_rz(f32(r))));
    if (is("f32_to_bf16")) put(bits(__float2bfloat16_rn(f32(r))));
    if (is("f32_to_bf16_rz")) put(bits(__float2bfloat16_rz(f32(r))));
    if (is("f32_to_e4m3")) put(__nv_cvt_float_to_fp8(f32(r), __NV_SATFINITE, __NV_E4M3));
    if (is("f32_to_e5m2")) put(__nv_cvt_float_to_fp8(f32(r), __NV_SATFINITE, __NV_E5M2));
    if (is("f16_add")) put(bits(__hadd(h(r >> 16), h(q >> 16))));
    if (is("f16_mul")) put(bits(__hmul(h(r >> 16), h(q >> 16))));
    if (is("f16_min")) put(bits(__hmin(h(r >> 16), h(q >> 16))));
    if (is("f16_max")) put(bits(__hmax(h(r >> 16), h(q >> 16))));
    if (is("bf16_add")) put(bits(__hadd(b16(r >> 16), b16(q >> 16))));
    if (is("bf16_mul")) put(bits(__hmul(b16(r >> 16), b16(q >> 16))));
    if (is("bf16_min")) put(bits(__hmin(b16(r >> 16), b16(q >> 16))));
    if (is("bf16_max")) put(bits(__hmax(b16(r >> 16), b16(q >> 16))));
  }
  fwrite(out.data(), 4, out.size(), stdout);
  return out.empty();
}

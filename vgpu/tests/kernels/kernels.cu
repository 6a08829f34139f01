// Kernels of the tests, compiled by the real nvcc. Each says what it shows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

namespace {

__device__ __forceinline__ void store_release_sys(uint32_t* p, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire_sys(uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

}  // namespace

// 16-byte copy in a grid-stride loop.
extern "C" __global__ void copy16(uint4* to, const uint4* from, uint64_t n) {
  for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) to[i] = from[i];
}

// f32 add of two inputs, four at a time.
extern "C" __global__ void add4(float4* to, const float4* a, const float4* b, uint64_t n) {
  for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
    float4 x = a[i], y = b[i];
    to[i] = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
  }
}

extern "C" __global__ void empty() {}

// Block sum through shuffles and shared memory, then an atomic.
extern "C" __global__ void block_sum(const uint32_t* in, uint32_t n, uint32_t* out) {
  __shared__ uint32_t part[32];
  uint32_t sum = 0;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
  for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffff, sum, d);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
    for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffff, sum, d);
    if (threadIdx.x == 0) atomicAdd(out, sum);
  }
}

// Every block writes, all meet at a grid barrier, every block checks what the next one wrote.
extern "C" __global__ void grid_barrier(uint32_t* data, uint32_t* counter, uint32_t* errors, uint32_t rounds) {
  for (uint32_t r = 1; r <= rounds; r++) {
    data[blockIdx.x * blockDim.x + threadIdx.x] = r * 1000 + blockIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t old;
      asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;" : "=r"(old) : "l"(counter) : "memory");
      uint32_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      } while (seen < 2 * r * gridDim.x - gridDim.x);
    }
    __syncthreads();
    uint32_t next = (blockIdx.x + 1) % gridDim.x;
    if (data[next * blockDim.x + threadIdx.x] != r * 1000 + next) atomicAdd(errors, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t old;
      asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;" : "=r"(old) : "l"(counter) : "memory");
      uint32_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      } while (seen < 2 * r * gridDim.x);
    }
    __syncthreads();
  }
}

// Two devices count up a flag in turns; plain data travels with it.
extern "C" __global__ void ping_pong(uint32_t* mine, uint32_t* theirs, uint32_t* data, uint32_t* errors, uint32_t rounds, uint32_t first) {
  for (uint32_t r = 1; r <= rounds; r++) {
    if (first) {
      data[0] = r;
      store_release_sys(theirs, r);
    }
    while (load_acquire_sys(mine) != r) {
    }
    if (!first) {
      if (data[0] != r) *errors += 1;
      store_release_sys(theirs, r);
    }
  }
}

// The same with the release left out: wrong by the model.
extern "C" __global__ void ping_pong_relaxed(uint32_t* mine, uint32_t* theirs, uint32_t* data, uint32_t* errors, uint32_t rounds, uint32_t first) {
  for (uint32_t r = 1; r <= rounds; r++) {
    if (first) {
      data[0] = r;
      asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(theirs), "r"(r) : "memory");
    }
    while (load_acquire_sys(mine) != r) {
    }
    if (!first) {
      if (data[0] != r) *errors += 1;
      store_release_sys(theirs, r);
    }
  }
}

struct Peers {
  float* input[8];
  uint32_t* flags[8];
};

// Barrier between devices: flag [rank][block] of every peer.
__device__ void device_barrier(const Peers& p, uint32_t rank, uint32_t ranks, uint32_t epoch) {
  __syncthreads();
  if (threadIdx.x < ranks) {
    store_release_sys(p.flags[threadIdx.x] + blockIdx.x * 8 + rank, epoch);
    while (load_acquire_sys(p.flags[rank] + blockIdx.x * 8 + threadIdx.x) < epoch) {
    }
  }
  __syncthreads();
}

__device__ float input_of(uint32_t i, uint32_t rank) { return float(i % 13 + rank); }

// One-shot all-reduce: everybody reads everybody. The input is written before and reused after, so both barriers count.
extern "C" __global__ void one_shot(const __grid_constant__ Peers p, float* out, uint32_t n, uint32_t rank, uint32_t ranks, uint32_t epoch) {
  uint32_t first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  for (uint32_t i = first; i < n / 4; i += step)
    for (uint32_t k = 0; k < 4; k++) p.input[rank][4 * i + k] = input_of(4 * i + k, rank);
  device_barrier(p, rank, ranks, epoch);
  // Backwards: a thread reads what another one of its block wrote.
  for (uint32_t i = n / 4 - 1 - first; i < n / 4; i -= step) {
    float4 sum = make_float4(0, 0, 0, 0);
    for (uint32_t r = 0; r < ranks; r++) {
      float4 x = reinterpret_cast<const float4*>(p.input[r])[i];
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    reinterpret_cast<float4*>(out)[i] = sum;
  }
  device_barrier(p, rank, ranks, epoch + 1);
  for (uint32_t i = first; i < n; i += step) p.input[rank][i] = -1;
}

// Two-shot all-reduce in place: everybody reduces a slice and writes it to all.
extern "C" __global__ void two_shot(const __grid_constant__ Peers p, float* out, uint32_t n, uint32_t rank, uint32_t ranks, uint32_t epoch) {
  uint32_t slice = n / ranks, me = threadIdx.x, back = blockDim.x - 1 - threadIdx.x;
  for (uint32_t i = me; i < n; i += blockDim.x) p.input[rank][i] = input_of(i, rank);
  device_barrier(p, rank, ranks, epoch);
  for (uint32_t i = rank * slice + back; i < (rank + 1) * slice; i += blockDim.x) {
    float sum = 0;
    for (uint32_t r = 0; r < ranks; r++) sum += p.input[r][i];
    for (uint32_t r = 0; r < ranks; r++) p.input[r][i] = sum;
  }
  device_barrier(p, rank, ranks, epoch + 1);
  for (uint32_t i = me; i < n; i += blockDim.x) out[i] = p.input[rank][i];
}

// LL packets of 16 bytes: two words of data, each with its flag, in one access.
extern "C" __global__ void ll_exchange(uint4* theirs, uint4* mine, const uint2* in, uint2* out, uint32_t n, uint32_t flag) {
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    uint2 x = in[i];
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(theirs + i), "r"(x.x), "r"(flag), "r"(x.y), "r"(flag) : "memory");
    uint4 v;
    do {
      asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(mine + i) : "memory");
    } while (v.y != flag || v.w != flag);
    out[i] = make_uint2(x.x + v.x, x.y + v.z);
  }
}

// All-reduce in the switch: loads from and stores to the multicast address.
extern "C" __global__ void nvls(float* multicast, float* out, uint32_t n, uint32_t rank, uint32_t ranks, const __grid_constant__ Peers p, uint32_t epoch) {
  uint32_t slice = n / 4 / ranks, me = threadIdx.x, back = blockDim.x - 1 - threadIdx.x;
  for (uint32_t i = me; i < n; i += blockDim.x) p.input[rank][i] = input_of(i, rank);
  device_barrier(p, rank, ranks, epoch);
  for (uint32_t i = rank * slice + back; i < (rank + 1) * slice; i += blockDim.x) {
    float a, b, c, d;
    float* at = multicast + 4 * i;
    asm volatile("multimem.ld_reduce.relaxed.sys.global.add.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(a), "=f"(b), "=f"(c), "=f"(d) : "l"(at) : "memory");
    asm volatile("multimem.st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
  }
  device_barrier(p, rank, ranks, epoch + 1);
  for (uint32_t i = me; i < n; i += blockDim.x) out[i] = p.input[rank][i];
}

// Copy through shared memory by the bulk engine.
extern "C" __global__ void bulk_copy(char* to, const char* from, uint32_t bytes) {
  extern __shared__ __align__(128) char buffer[];
  __shared__ __align__(8) uint64_t bar;
  uint32_t b = (uint32_t)__cvta_generic_to_shared(&bar), s = (uint32_t)__cvta_generic_to_shared(buffer);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(b) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  uint32_t phase = 0;
  for (uint32_t at = blockIdx.x * 1024; at < bytes; at += gridDim.x * 1024, phase ^= 1) {
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" ::"r"(b) : "memory");
      asm volatile("cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];" ::"r"(s), "l"(from + at), "r"(b) : "memory");
    }
    asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra W; }" ::"r"(b), "r"(phase) : "memory");
    buffer[threadIdx.x] ^= 1;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 1024;" ::"l"(to + at), "r"(s) : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    __syncthreads();
  }
}

// Lanes of one warp wait for each other: makes progress since sm_70.
extern "C" __global__ void lane_hand_over(uint32_t* turn, uint32_t* out) {
  uint32_t me = threadIdx.x;
  while (*(volatile uint32_t*)turn != me) {
  }
  out[me] = me * me;
  *(volatile uint32_t*)turn = me + 1;
}

// One warp sends to another, both through lane 0: only __syncwarp orders it with the other lanes.
extern "C" __global__ void warp_relay(uint32_t* data, uint32_t* flag, uint32_t* errors, uint32_t rounds) {
  uint32_t lane = threadIdx.x;
#pragma unroll 1
  for (uint32_t r = 1; r <= rounds; r++) {
    if (blockIdx.x == 0) {
      data[31 - lane] = 100 * r + lane;
      __syncwarp();
      if (lane == 0) {
        store_release_sys(flag, 2 * r - 1);
        while (load_acquire_sys(flag) != 2 * r) {
        }
      }
      __syncwarp();
    } else {
      if (lane == 0) {
        while (load_acquire_sys(flag) != 2 * r - 1) {
        }
      }
      __syncwarp();
      if (data[lane] != 100 * r + 31 - lane) atomicAdd(errors, 1);
      __syncwarp();
      if (lane == 0) store_release_sys(flag, 2 * r);
    }
  }
}

// A wait that nobody ends, for the watchdog.
extern "C" __global__ void waits_for_ever(uint32_t* flag) {
  if (blockIdx.x == 1) store_release_sys(flag, 7);
  while (load_acquire_sys(flag) != 9) {
  }
}

// Half and bf16 sums through their vector types.
extern "C" __global__ void half_sums(__half2* h, __nv_bfloat162* b, uint32_t n) {
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    h[i] = __hadd2(h[i], __hfma2(h[i], h[i], h[i]));
    b[i] = __hadd2(b[i], __hmax2(b[i], __float2bfloat162_rn(0.5f)));
  }
}

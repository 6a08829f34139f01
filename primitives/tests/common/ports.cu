// Kernels of the tests of ports. What they have found out they write to `errors`, a word for each thing.
#include "warpmesh/port.cuh"
using namespace warpmesh;

struct Exchange {
  PortChannel port;
  u32* source;
  u32* target;  // two halves, for even and odd rounds
  u32* errors;
  u32 words, rounds, rank, first;
};

__device__ u32 value(u32 rank, u32 round, u32 k) { return (rank + 1) * 0x01000193u ^ round * 0x9E3779B9u ^ k * 0x85EBCA6Bu; }

// Rounds in which both put all their words and wait for the peer's, in three ways. Behind a flush the source is anybody's.
extern "C" __global__ void exchange(const __grid_constant__ Exchange e) {
  const u64 bytes = 4ull * e.words;
  for (u32 n = 0; n < e.rounds; ++n) {
    const u32 round = e.first + n;
    const u64 to = round % 2 * bytes;
    bool fine = true;
    for (u32 k = threadIdx.x; k < e.words; k += blockDim.x) e.source[k] = value(e.rank, round, k);
    __syncthreads();
    if (threadIdx.x == 0) {
      if (round % 3 == 0) {
        fine &= e.port.put_with_signal(to, 0, bytes, 1);
      } else if (round % 3 == 1) {
        const u64 part = e.words / 2 * 4;
        fine &= e.port.put(to, 0, part, 2);
        fine &= e.port.put_with_signal(to + part, part, bytes - part, 3);
      } else {
        fine &= e.port.put(to, 0, bytes, 4);
        fine &= e.port.signal(5);
      }
      fine &= e.port.flush(6);
    }
    __syncthreads();
    for (u32 k = threadIdx.x; k < e.words; k += blockDim.x) e.source[k] = 0xDEADBEEF;
    if (threadIdx.x == 0) fine &= e.port.wait(7);
    __syncthreads();
    const u32* const here = e.target + round % 2 * e.words;
    for (u32 k = threadIdx.x; k < e.words; k += blockDim.x) {
      if (here[k] != value(1 - e.rank, round, k)) atomicAdd(e.errors + 1, 1);
    }
    if (!fine) atomicAdd(e.errors, 1);
    __syncthreads();
  }
}

// One side puts and waits for the answer, the other answers: of a word that each counts up.
struct PingPong {
  PortChannel port;
  u32* source;
  u32* target;
  u32* errors;
  u32 rounds, rank;
};

extern "C" __global__ void ping_pong(const __grid_constant__ PingPong p) {
  bool fine = true;
  for (u32 round = 1; round <= p.rounds; ++round) {
    if (p.rank == 1) fine &= p.port.wait(1) && *p.target == 2 * round;
    *p.source = 2 * round + p.rank;
    fine &= p.port.put_with_signal(0, 0, 4, 2);
    if (p.rank == 0) fine &= p.port.wait(3) && *p.target == 2 * round + 1;
    // The word is written again.
    fine &= p.port.flush(4);
  }
  *p.errors = !fine;
}

// Each block has a port of its own; all of them go through one FIFO.
struct Many {
  const PortChannel* ports;
  u32* source;
  u32* target;
  u32* errors;
  u32 rounds, rank;
};

extern "C" __global__ void many(const __grid_constant__ Many m) {
  const PortChannel& port = m.ports[blockIdx.x];
  u32* const source = m.source + blockIdx.x * m.rounds;
  const u32* const target = m.target + blockIdx.x * m.rounds;
  if (threadIdx.x != 0) return;
  bool fine = true;
  // All at once, and then the waits: many more triggers than the ring holds.
  for (u32 k = 0; k < m.rounds; ++k) {
    source[k] = value(m.rank, blockIdx.x, k);
    const u64 at = 4ull * (blockIdx.x * m.rounds + k);
    fine &= port.put_with_signal(at, at, 4, k);
  }
  for (u32 k = 0; k < m.rounds; ++k) fine &= port.wait(k) && target[k] == value(1 - m.rank, blockIdx.x, k);
  fine &= port.flush(0);
  if (!fine) atomicAdd(m.errors, 1);
}

// A port whose transfer cannot be, and another one: 1 for what went well.
struct Bad {
  PortChannel bad, good;
  u32* results;
  u64 beyond;
  u32 is_bad;
};

extern "C" __global__ void bad_transfer(const __grid_constant__ Bad b) {
  if (b.is_bad) {
    b.results[0] = b.bad.put_with_signal(0, b.beyond, 8, 11);
    b.results[1] = b.bad.flush(12);
  }
  b.results[2] = b.bad.wait(13);
  // More than the ring holds, through the port that has failed: each takes a place in it, so the other goes on.
  bool pushed = true;
  for (u32 k = 0; k < 40; ++k) pushed &= b.bad.signal(14);
  b.results[3] = pushed;
  b.results[4] = b.good.put_with_signal(0, 0, 8, 15);
  b.results[5] = b.good.flush(16);
  b.results[6] = b.good.wait(17);
}

// Waits, without anything that comes.
struct Wait {
  PortChannel port;
  u32* results;
  u32 rounds;
};

extern "C" __global__ void wait(const __grid_constant__ Wait w) {
  for (u32 round = 0; round < w.rounds; ++round) {
    w.results[0] = w.port.signal(20);
    w.results[1] = w.port.wait(21);
    w.results[2] += w.results[1];
  }
}

// What gloo.rs calls. Structures and constants are the same there; both sides assert their layout.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum WmGlooType : uint32_t {
  kI8 = 0,
  kU8 = 1,
  kI32 = 2,
  kU32 = 3,
  kI64 = 4,
  kU64 = 5,
  kF32 = 6,
  kF64 = 7,
};

enum WmGlooOp : uint32_t { kSum = 0, kProd = 1, kMin = 2, kMax = 3 };

enum WmGlooCollective : uint32_t { kAllReduce = 0, kAllGather = 1, kBroadcast = 2 };

// How an all-reduce goes: Gloo's own names.
enum WmGlooAlgorithm : uint32_t { kRing = 1, kBcube = 2 };

struct WmGlooCall {
  const void* input;  // null: in place
  void* output;
  uint64_t count;  // elements of a block
  uint32_t collective;
  uint32_t type;
  uint32_t op;
  uint32_t algorithm;
  uint32_t root;
  uint32_t reserved;
};

static_assert(sizeof(WmGlooCall) == 48 && offsetof(WmGlooCall, count) == 16 &&
                  offsetof(WmGlooCall, collective) == 24 && offsetof(WmGlooCall, root) == 40,
              "as in gloo.rs");

struct WmGloo;

// All return 0, or -1 and say why in `error`, which has room for `capacity` bytes, a zero included.

// One rank, listening at an interface's address, or if `interface` is null, at that of `host`. Its waits end
// after `seconds`.
int wm_gloo_open(int rank, int world, const char* interface, const char* host, double seconds,
                 WmGloo** gloo, char* error, size_t capacity);

// Bytes of an address, and where this rank waits for each other one: `world` addresses, its own being zero.
size_t wm_gloo_address_bytes(const WmGloo* gloo);
int wm_gloo_addresses(const WmGloo* gloo, uint8_t* addresses, char* error, size_t capacity);

// Connects to all others. `addresses` are those of all ranks, by rank. Every rank calls it.
int wm_gloo_connect(WmGloo* gloo, const uint8_t* addresses, char* error, size_t capacity);

// Runs a collective to its end. Every rank calls it.
int wm_gloo_run(WmGloo* gloo, const WmGlooCall* call, char* error, size_t capacity);
int wm_gloo_barrier(WmGloo* gloo, char* error, size_t capacity);

// Good for null.
void wm_gloo_close(WmGloo* gloo);
}

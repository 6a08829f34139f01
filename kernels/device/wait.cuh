// Waits that end: each is bounded by a time and by the host's abort word, and says what it waits for when it takes long.
#pragma once

#include "order.cuh"

namespace warpmesh {

// The most thread blocks that one rank's kernel has.
constexpr int MAX_BLOCKS = 64;

// What a block that waits for long tells the host. Written by the one thread that noticed, relaxed: each word is right by itself,
// and `sequence` is written last.
struct Record {
  u64 sequence;  // the call's number
  u64 expected;  // what the word has to reach
  u64 seen;      // what it held
  u32 peer;      // whose signal or packet it is
  u32 place;     // number of the instruction in the plan
};
static_assert(sizeof(Record) == 32, "as in primitives/src/gpu.rs");

// Host memory that the device sees, one per communicator and rank.
struct alignas(8) Control {
  u32 abort;   // the host writes 1: every wait ends. Read relaxed: it orders nothing.
  u32 failed;  // a device thread writes 1: a wait has ended without what it waited for.
  u64 reserved[7];
  Record record[MAX_BLOCKS];
};
static_assert(sizeof(Control) == 64 + 32 * MAX_BLOCKS, "as in primitives/src/gpu.rs");

// Bounds of a wait.
struct Patience {
  Control* control;
  u64 timeout;   // nanoseconds
  u64 sequence;  // the call's number
};

// What a wait says of itself when it takes long.
struct WaitingFor {
  u32 peer;
  u32 place;
  u64 expected;
  u64 seen;
};

namespace detail {

// Between two looks at the clock and at the host's memory, which is far away.
constexpr int POLLS = 256;
// From when on a wait is worth a word to the host, in nanoseconds.
constexpr u64 LONG = 1000000;
constexpr u64 GIVEN_UP = ~0ull;

// When the wait began, or GIVEN_UP. Not inlined, and all by value: the poll loop stays a few instructions without a stack.
static __device__ __noinline__ u64 look_around(Control* control, u64 timeout, u64 sequence, u64 since, u32 peer, u32 place,
                                               u64 expected, u64 seen) {
  const u64 time = now();
  if (since == 0) since = time;
  const bool late = time - since > timeout;
  if (time - since > LONG) {
    Record* record = &control->record[blockIdx.x];
    store_relaxed_sys(&record->expected, expected);
    store_relaxed_sys(&record->seen, seen);
    store_relaxed_sys(&record->peer, peer);
    store_relaxed_sys(&record->place, place);
    store_relaxed_sys(&record->sequence, sequence);
  }
  if (late) store_relaxed_sys(&control->failed, 1);
  // `abort` and `failed` at once: what one thread waits for in vain, others need not wait for.
  const bool over = late || load_relaxed_sys(reinterpret_cast<const u64*>(&control->abort)) != 0;
  return over ? GIVEN_UP : since;
}

}  // namespace detail

// Polls until `reached()` says that a word is there, but no longer than until it is time to look around.
template <class Reached>
WARPMESH_DEVICE bool poll(Reached reached) {
#pragma unroll 1
  for (int polls = 0; polls < detail::POLLS; ++polls) {
    if (reached()) return true;
  }
  return false;
}

// Repeats `attempt()`, which polls, until it succeeds; `what()` is for the host. False if given up.
template <class Attempt, class What>
WARPMESH_DEVICE bool persist(const Patience& patience, Attempt attempt, What what) {
  u64 since = 0;
  while (!attempt()) {
    const WaitingFor w = what();
    since = detail::look_around(patience.control, patience.timeout, patience.sequence, since, w.peer, w.place, w.expected, w.seen);
    if (since == detail::GIVEN_UP) return false;
  }
  return true;
}

}  // namespace warpmesh

// Waits that end: each is bounded by a time and by the host's abort word, and says what it waits for when it takes long.
#ifndef WARPMESH_WAIT_CUH
#define WARPMESH_WAIT_CUH

#include "order.cuh"

namespace warpmesh {

// The most thread blocks that one rank's kernel has.
constexpr int MAX_BLOCKS = 64;

// What a block that waits for long tells the host. Its threads write it, relaxed: each word is right by itself, and peer and place
// are of the same wait. `sequence` is written last.
struct alignas(8) Record {
  u64 sequence;  // the call's number, above 16 bits that differ whenever the record is written
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
// Times are counted in units of 2^20 nanoseconds, in 32 bits.
constexpr int TICK = 20;
constexpr u32 GIVEN_UP = ~0u;

// When the wait began (0: now), or GIVEN_UP. Not inlined, and with few arguments, all by value: so the poll loop stays a few
// instructions, and neither side needs a stack.
static __device__ __noinline__ u32 look_around(Control* control, u64 sequence, u64 timeout, u32 since, u32 peer, u32 place,
                                               u64 expected, u64 seen) {
  const u32 time = static_cast<u32>(now() >> TICK);
  if (since == 0) since = time;
  const u32 waited = time - since;
  if (waited > 0) {
    Record* record = &control->record[blockIdx.x % MAX_BLOCKS];
    store_relaxed_sys(&record->expected, expected);
    store_relaxed_sys(&record->seen, seen);
    store_relaxed_sys(reinterpret_cast<Pair*>(&record->peer), {peer, place});
    store_relaxed_sys(&record->sequence, sequence << 16 | (time & 0xFFFFu));
  }
  const bool late = waited > timeout >> TICK;
  if (late) store_relaxed_sys(&control->failed, 1);
  // `abort` and `failed` at once: what one thread waits for in vain, others need not wait for.
  const bool over = late || load_relaxed_sys(reinterpret_cast<const u64*>(&control->abort)) != 0;
  return over ? GIVEN_UP : since;
}

}  // namespace detail

// Looks around for a wait that takes long; true if it is given up.
//
// Patience lies in the kernel's parameters, or in global memory. It is read when it is needed, at an address that is not known before:
// else registers would hold it all the time.
WARPMESH_DEVICE bool is_in_vain(const Patience& patience, u32& since, const WaitingFor& w) {
  const Patience& p = (&patience)[opaque(0u)];
  since = detail::look_around(p.control, p.sequence, p.timeout, since, w.peer, w.place, w.expected, w.seen);
  return since == detail::GIVEN_UP;
}

// Looks until `reached(look())`; `what(seen)` is for the host. False if given up. The loop is the code of a look UNROLL times, and a count.
template <int UNROLL, class Look, class Reached, class What>
WARPMESH_DEVICE bool persist(const Patience& patience, Look look, Reached reached, What what) {
  u32 since = 0;
  for (;;) {
    decltype(look()) seen = 0;
#pragma unroll 1
    for (int polls = 0; polls < detail::POLLS; polls += UNROLL) {
#pragma unroll
      for (int k = 0; k < UNROLL; ++k) {
        seen = look();
        if (reached(seen)) goto looked;
      }
    }
  looked:
    // Opaque, so that all ways out of the loop lead here and what was seen is judged once more: else each way would have to keep a
    // predicate that says which it is, or to leave the region that the call below begins.
    seen = opaque(seen);
    if (reached(seen)) return true;
    if (is_in_vain(patience, since, what(seen))) return false;
  }
}

// Looks until `arrived()`, which says of many words at once whether all are there.
template <class Arrived, class What>
WARPMESH_DEVICE bool persist(const Patience& patience, Arrived arrived, What what) {
  u32 since = 0;
  do {
    u32 done = 0;
#pragma unroll 1
    for (int polls = 0; polls < detail::POLLS && !done; ++polls) done = arrived();
    // Opaque, so that there is one way out of the loop, as above.
    if (opaque(done)) return true;
  } while (!is_in_vain(patience, since, what()));
  return false;
}

}  // namespace warpmesh

#endif  // WARPMESH_WAIT_CUH

// A compiled plan's kernel on a rank with peers on other hosts: what it puts to them goes through the proxy, and what they signal is
// counted in memory of the host.
//
//   block b                                       proxy               the peer's host      the peer's block b
//   moves to a slot; bar                          ─►
//   thread 0: trigger (slot, port of s and b) ──► transfer ══════════► slot, then count ──► wait: one more than it has had
//
// A semaphore to a rank of another host has a port and a counter for each block, so block b of a rank waits for block b of others
// here, too.
//
//   word                     written by                       read by                       order
//   counter of s, peer, b    the transport, behind the data   block b, waiting for s        behind the data / acquire
//   received, of the same    block b: the thread that waits   it, in the next launch too    plain: of one thread at a time. It is where
//                                                                                           a near peer's semaphore would be
//   said, by half            block 0, when a call begins      the transport                 as a put's source, by the trigger
//   heard, by half, peer     the transport, from `said`       block 0, after its first      by the signal that it waited for. Halves
//                                                             wait of a call for the peer   alternate as slots do
//   Far                      the host, before any launch      all blocks                    plain
#ifndef WARPMESH_FAR_CUH
#define WARPMESH_FAR_CUH

#include "plan.cuh"
#include "port.cuh"

namespace warpmesh {

// How a rank's kernels reach other hosts: in device memory.
struct Far {
  Fifo fifo;
  u32 lanes;  // words of a counter
  u32 reserved;
  u64* said;   // host memory: the digest of this rank's call, in two halves
  u64* heard;  // behind it: those of all ranks
};
static_assert(sizeof(Far) == 72, "as in collectives/src/cuda/far.rs");

// A word of it.
constexpr int FAR_LANES = 6, FAR_SAID = 7, FAR_HEARD = 8;
WARPMESH_DEVICE u64 word_of_far(const Far* far, int n) { return load(reinterpret_cast<const u64*>(far) + n); }

// In registers, one load for each word.
WARPMESH_DEVICE Fifo fifo_of_far(const Far* far) {
  const auto address = [&](int n) { return reinterpret_cast<u64*>(word_of_far(far, n)); };
  return {address(0), address(1), address(2), address(3), address(4), static_cast<u32>(word_of_far(far, 5)), 0};
}

// A port's word: its number, and whether nothing is signalled behind a put.
constexpr u64 SILENT = 1ull << 32;

template <bool SYNCHRONISED, u32 THREADS = 0>
struct FarWorker : Worker<SYNCHRONISED, THREADS> {
  using Base = Worker<SYNCHRONISED, THREADS>;
  using Base::call, Base::epoch, Base::failed;

  WARPMESH_DEVICE explicit FarWorker(const Call& call) : Base(call) {}

  // Before anything of this epoch is put to a rank of another host, whose half of slots is used again: this host is past the epoch before
  // the last, for `guard` came before, and so are theirs. Nobody else touches their memory.
  template <int COUNT>
  WARPMESH_DEVICE void guard_far(const u64* ports, const u64* received, const u64* counters, const u8* peers, u32 place) {
    if (Base::open() == 0) return;
    signal_far<COUNT>(ports, peers, place);
    wait_far<COUNT>(received, counters, peers, place);
  }

  // Tells COUNT peers what this rank calls, before anything else of the call: they compare it when they have waited for this rank.
  template <int COUNT>
  WARPMESH_DEVICE void greet(const u64* ports, const u8* peers, u32 place) {
    if (blockIdx.x != 0 || Base::rounds > 0) return;
    if (threadIdx.x == 0 && !failed) {
      const Fifo fifo = load_fifo();
      const u64 odd = epoch & 1, to = sizeof(u64) * (2 + odd * call.world + call.rank);
      store_relaxed_sys(reinterpret_cast<u64*>(word_of_far(call.far, FAR_SAID)) + odd, call.mine.digest);
#pragma unroll 1
      for (int n = 0; n < COUNT && !failed; ++n) push(fifo, ports[n], trigger::PUT, to, odd * sizeof(u64), sizeof(u64), peers[n], place);
    }
  }

  // Puts COUNT parts of slots, each with a signal or without, in this order. `words`: for each where the slot begins, here and at the
  // peer, and the port. SIZE: bytes of an element there.
  template <int COUNT, int SIZE>
  WARPMESH_DEVICE void put(const u64* words, const u8* peers, const u32* parts, u32 place) {
    failed = __syncthreads_or(failed);
    if (threadIdx.x == 0) {
      const Fifo fifo = load_fifo();
#pragma unroll 1
      for (int n = 0; n < COUNT && !failed; ++n) {
        const Extent extent = Base::extent(parts[n]);
        const u64 at = (static_cast<u32>(epoch) & 1 ? call.half_scratch : 0) + static_cast<u64>(extent.slot) * SIZE;
        const u64 bytes = static_cast<u64>(extent.count) * SIZE, port = words[3 * n + 2];
        const u32 what = (bytes > 0 ? trigger::PUT : 0) | (port & SILENT ? 0 : trigger::SIGNAL);
        if (what != 0) push(fifo, port, what, words[3 * n + 1] + at, words[3 * n] + at, bytes, peers[3 * n], place);
      }
    }
  }

  // Signals COUNT peers, after all that was put to them over the same port.
  template <int COUNT>
  WARPMESH_DEVICE void signal_far(const u64* ports, const u8* peers, u32 place) {
    failed = __syncthreads_or(failed);
    if (threadIdx.x < COUNT && !failed) push(load_fifo(), ports[threadIdx.x], trigger::SIGNAL, 0, 0, 0, peers[threadIdx.x], place);
  }

  // Waits for one more signal of each of COUNT peers. GREETS: for the first time in this call.
  template <int COUNT, bool GREETS = false>
  WARPMESH_DEVICE void wait_far(const u64* received, const u64* counters, const u8* peers, u32 place) {
    if (threadIdx.x < COUNT && !failed) {
      const u32 lanes = static_cast<u32>(word_of_far(call.far, FAR_LANES));
      u64* const counter = reinterpret_cast<u64*>(counters[threadIdx.x]) + blockIdx.x * lanes;
      u64* const count = Base::word(received[threadIdx.x]).word;
      failed = !PortChannel::wait_counted(counter, lanes, count, call.patience, peers[threadIdx.x], place);
      if (GREETS && blockIdx.x == 0 && Base::rounds == 0 && !failed) compare(peers[threadIdx.x]);
    }
    failed = __syncthreads_or(failed);
  }

  // Until all that this block has put has left its slots.
  WARPMESH_DEVICE void flush(const u64* port, const u8* peer, u32 place) {
    if (threadIdx.x == 0 && !failed) {
      const Fifo fifo = load_fifo();
      const u64 ticket = push(fifo, *port, trigger::FLUSH, 0, 0, 0, *peer, place);
      failed |= ticket == Fifo::FAILED || !fifo.wait_done(ticket, call.patience, *peer, place);
    }
    failed = __syncthreads_or(failed);
  }

 private:
  WARPMESH_DEVICE Fifo load_fifo() const { return fifo_of_far(call.far); }

  // What a peer calls, which this thread has waited for.
  WARPMESH_DEVICE void compare(u32 peer) {
    const u64* const heard = reinterpret_cast<const u64*>(word_of_far(call.far, FAR_HEARD)) + (epoch & 1) * call.world + peer;
    if (load_relaxed_sys(heard) == call.mine.digest) return;
    store_relaxed_sys(&call.patience.control->failed, MISMATCH + peer);
    failed = 1;
  }

  // This block's port follows those of the blocks before.
  WARPMESH_DEVICE u64 push(const Fifo& fifo, u64 port, u32 what, u64 to, u64 from, u64 bytes, u32 peer, u32 place) {
    const u64 ticket = fifo.push(static_cast<u32>(port) + blockIdx.x, what, to, from, bytes, call.patience, peer, place);
    failed |= ticket == Fifo::FAILED;
    return ticket;
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_FAR_CUH

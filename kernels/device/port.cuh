// The way to the proxy: a ring in host memory into which kernels push transfers, and a thread of the host that carries them out with
// copy engines, RDMA or TCP.
//
// A trigger is 16 bytes in two words. Word 0 is stored last, with release, and its parity tells the laps of the ring apart: so the
// host polls it (acquire), then reads word 1, and neither side ever clears an entry.
//
//   word 0   | parity 1 | to, high 4 | from, high 4 | what 3 | port 16 | bytes 36 |
//   word 1   | to, low 32            | from, low 32                              |
//
// Sizes and offsets have 36 bits: 64 GiB. A port names a source memory, a destination memory and a semaphore in a table of the
// host's, so there may be 65536 such combinations, of any number of memories. What comes from the peer is told by a semaphore, whose
// words the transport counts up behind the data. The host's side is primitives/src/net/fifo and proxy; it fills these structs.
//
//   word             written by                            read by                     order
//   ring, word 1     the thread that has the number        the proxy, after word 0     relaxed; by word 0, and back by tail
//   ring, word 0     the same thread                       the proxy                   release / acquire: with what the thread knows of the source
//   head             pushing threads                       they                        relaxed: a number only; tail orders the entry
//   tail             the proxy                             threads that need room      release / acquire: the proxy has read the entry
//   tail_cache       a thread that has read tail           threads that need room      release / acquire, of the GPU: what it knew from tail
//   done             the proxy                             threads that flush          release / acquire: sources may be written again
//   awaited          the transport, or a NIC or a copy     the thread that waits       behind the data / acquire: all data before the signal
//                    engine
//   received         the thread that waits                 it, in this kernel or the   plain: of one thread at a time
//                    next
//   control->abort   the proxy, before done                waiting threads             relaxed; in a flush by done
#ifndef WARPMESH_PORT_CUH
#define WARPMESH_PORT_CUH

#include "semaphore.cuh"

namespace warpmesh {

namespace trigger {
constexpr u32 BYTES_BITS = 36, OFFSET_BITS = 36, PORT_BITS = 16, WHAT_BITS = 3;
constexpr u32 PORT_SHIFT = 36, WHAT_SHIFT = 52, FROM_HIGH_SHIFT = 55, TO_HIGH_SHIFT = 59, PARITY_SHIFT = 63;
constexpr u32 TO_LOW_SHIFT = 32;
// What to do, in this order; any of them together.
constexpr u32 PUT = 1, SIGNAL = 2, FLUSH = 4;
static_assert(BYTES_BITS == PORT_SHIFT && PORT_SHIFT + PORT_BITS == WHAT_SHIFT && WHAT_SHIFT + WHAT_BITS == FROM_HIGH_SHIFT,
              "the fields of word 0 lie side by side");
static_assert(TO_HIGH_SHIFT == FROM_HIGH_SHIFT + OFFSET_BITS - 32 && PARITY_SHIFT == TO_HIGH_SHIFT + OFFSET_BITS - 32, "to the end");
}  // namespace trigger

// A ring that all blocks of a rank share; the device's side of it.
struct Fifo {
  u64* ring;        // host memory: `size` triggers of two words, zero in the beginning
  u64* head;        // device memory: triggers that have been pushed, or are about to be
  u64* tail;        // host memory: triggers that the host has read; it writes them with release
  u64* tail_cache;  // device memory: what a thread saw there last
  u64* done;        // host memory: triggers that are carried out, so that their sources may be written again
  u32 size;         // a power of two
  u32 reserved;

  static constexpr u64 FAILED = ~0ull;

  // Pushes a trigger of a port, for a peer; its number, or FAILED.
  WARPMESH_DEVICE u64 push(u32 port, u32 what, u64 to, u64 from, u64 bytes, const Patience& patience, u32 peer, u32 place) const {
    if ((to | from | bytes) >> trigger::OFFSET_BITS != 0) return FAILED;
    const u64 ticket = count_relaxed_gpu(head);
    if (!has_room(ticket, patience, peer, place)) return FAILED;
    // The first lap's parity is 1, for the ring begins with zero.
    const u64 parity = (ticket / size & 1) ^ 1;
    const u64 first = bytes | static_cast<u64>(port) << trigger::PORT_SHIFT | static_cast<u64>(what) << trigger::WHAT_SHIFT |
                      (from >> 32) << trigger::FROM_HIGH_SHIFT | (to >> 32) << trigger::TO_HIGH_SHIFT |
                      parity << trigger::PARITY_SHIFT;
    u64* const entry = ring + 2 * (ticket & (size - 1));
    store_relaxed_sys(entry + 1, static_cast<u32>(from) | to << trigger::TO_LOW_SHIFT);
    // After word 1, and after what this thread knows of the source's data.
    store_release_sys(entry, first);
    return ticket;
  }

  // Until a trigger and all before it are carried out, or dropped; false if given up.
  WARPMESH_DEVICE bool wait_done(u64 ticket, const Patience& patience, u32 peer, u32 place) const {
    u64 seen = 0;
    return persist(
        patience, [&] { return (seen = load_acquire_sys(done)) > ticket; },
        [&] { return WaitingFor{peer, place, ticket + 1, seen}; });
  }

 private:
  // The longest wait for room after it was given up, in nanoseconds.
  static constexpr u64 GRACE = 1ull << 30;

  // Until the entry of a trigger has been read by the host in the lap before. The host is far away, so first what others saw.
  WARPMESH_DEVICE bool has_room(u64 ticket, const Patience& patience, u32 peer, u32 place) const {
    const u64 needed = ticket < size ? 0 : ticket - size + 1;
    if (load_acquire_gpu(tail_cache) >= needed) return true;
    u64 seen = 0;
    bool reached = persist(
        patience, [&] { return (seen = load_acquire_sys(tail)) >= needed; },
        [&] { return WaitingFor{peer, place, needed, seen}; });
    // A port that has failed does not wait, but this thread has taken a number, and all of the ring, ports that are well among them,
    // would wait behind an entry that stays empty. The proxy goes on, so there will be room.
    const u64 since = now();
    while (!reached && now() - since < least(GRACE, patience.timeout)) reached = (seen = load_acquire_sys(tail)) >= needed;
    if (reached) store_release_gpu(tail_cache, seen);
    return reached;
  }
};

struct PortChannel {
  Fifo fifo;
  u32 port;
  u32 peer;
  Patience patience;  // its control is of this port alone: the host sets `abort` when the port has failed
  u64* awaited;       // words that the peer's signals count up, one for each lane
  u64* received;      // how often this rank has waited; device memory that nobody else touches
  u32 lanes;
  u32 reserved;

  // Each of these is for one thread, after a barrier if others have written the source. False if given up, or if an offset or size
  // has more than 36 bits. What a port that has failed is given is dropped: `flush` and `wait` tell, and the host says why.

  WARPMESH_DEVICE bool put(u64 to, u64 from, u64 bytes, u32 place) const { return push(trigger::PUT, to, from, bytes, place) != FAILED; }

  // The peer's semaphore counts up after the data has arrived, and after all transfers of this port before.
  WARPMESH_DEVICE bool put_with_signal(u64 to, u64 from, u64 bytes, u32 place) const {
    return push(trigger::PUT | trigger::SIGNAL, to, from, bytes, place) != FAILED;
  }

  WARPMESH_DEVICE bool signal(u32 place) const { return push(trigger::SIGNAL, 0, 0, 0, place) != FAILED; }

  // Until all transfers that this thread has pushed before have left their sources. False also if the port has failed: then some may
  // have been dropped.
  WARPMESH_DEVICE bool flush(u32 place) const {
    const u64 ticket = push(trigger::FLUSH, 0, 0, 0, place);
    // The proxy counts what it drops as done, after it has set `abort`.
    return ticket != FAILED && fifo.wait_done(ticket, patience, peer, place) && load_relaxed_sys(&patience.control->abort) == 0;
  }

  // Until the peer's port has signalled once more than this rank has waited: then all data that it sent before is there. For one
  // thread at a time; a barrier hands it to others.
  WARPMESH_DEVICE bool wait(u32 place) const {
    return wait_counted(awaited, lanes, received, patience, peer, place);
  }

  // The same, for words that stand alone.
  static WARPMESH_DEVICE bool wait_counted(u64* awaited, u32 lanes, u64* received, const Patience& patience, u32 peer, u32 place) {
    const u64 value = load(received) + 1;
    // Lanes are in no order with each other, so all have to be there.
    for (u32 lane = 0; lane < lanes; ++lane) {
      if (!Semaphore{awaited + lane}.wait(value, patience, peer, place)) return false;
    }
    store(received, value);
    return true;
  }

 private:
  static constexpr u64 FAILED = Fifo::FAILED;

  WARPMESH_DEVICE u64 push(u32 what, u64 to, u64 from, u64 bytes, u32 place) const {
    return fifo.push(port, what, to, from, bytes, patience, peer, place);
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_PORT_CUH

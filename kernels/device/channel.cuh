// A channel between two GPUs that see each other's memory: copies in both directions, packets, and signals.
//
// One block (or Team) uses a channel at a time. Its counters lie in device memory, so they go on from kernel to kernel, and in a
// graph that is replayed.
#ifndef WARPMESH_CHANNEL_CUH
#define WARPMESH_CHANNEL_CUH

#include "move.cuh"
#include "semaphore.cuh"
#include "sync.cuh"

namespace warpmesh {

struct MemoryChannel {
  u64 mine, theirs;     // addresses of this rank's memory and of the peer's
  u64* signalled;       // word in the peer's memory, on which it waits
  u64* awaited;         // word in this rank's memory, which the peer signals
  u64* sent;            // how often this rank has signalled; device memory that nobody else touches
  u64* received;        // how often it has waited
  Patience patience;
  u32 peer;

  // Copies `count` elements of T to the peer's memory. Offsets are in bytes, multiples of an element; 16 bytes at a time go if
  // both addresses allow it. Ordered by a signal that follows.
  template <class T>
  WARPMESH_DEVICE void put(u64 to, u64 from, u32 count, const Team& team) const {
    copy<T, USER, USER>(mine + from, theirs + to, count, 0, team);
  }

  // Copies `count` elements of T from the peer's memory; after a wait.
  template <class T>
  WARPMESH_DEVICE void get(u64 to, u64 from, u32 count, const Team& team) const {
    copy<T, USER, USER>(theirs + from, mine + to, count, 0, team);
  }

  // What the team wrote before is visible to whoever waits for it.
  WARPMESH_DEVICE void signal(const Team& team) const {
    team.sync();
    if (team.thread == 0) {
      const u64 value = load(sent) + 1;
      store(sent, value);
      Semaphore{signalled}.signal(value);
    }
  }

  template <class T>
  WARPMESH_DEVICE void put_with_signal(u64 to, u64 from, u32 count, const Team& team) const {
    put<T>(to, from, count, team);
    signal(team);
  }

  // Until the peer has signalled once more than this rank has waited. False if given up, in the thread that waited: number 0.
  WARPMESH_DEVICE bool wait(const Team& team, u32 place) const {
    bool reached = true;
    if (team.thread == 0) {
      const u64 value = load(received) + 1;
      store(received, value);
      reached = Semaphore{awaited}.wait(value, patience, peer, place);
    }
    team.sync();
    return reached;
  }

  // Sends elements as packets, two bytes for one. The epoch gives the flag: another one each time that the memory is used, and
  // memory is used again only when its last packets are known to be read.
  template <class T>
  WARPMESH_DEVICE void put_packets(u64 to, u64 from, u32 count, u64 epoch, const Team& team) const {
    copy<T, USER, PACKETS>(mine + from, theirs + to, count, flag_of(epoch), team);
  }

  // Reads packets that the peer has put into this rank's memory, when they come. False if given up, in threads that waited.
  template <class T>
  WARPMESH_DEVICE bool get_packets(u64 to, u64 from, u32 count, u64 epoch, u32 place, const Team& team) const {
    return copy<T, PACKETS, USER>(mine + from, mine + to, count, flag_of(epoch), team, place);
  }

 private:
  template <class T, Kind FROM, Kind TO>
  WARPMESH_DEVICE bool copy(u64 from, u64 to, u32 count, u32 flag, const Team& team, u32 place = 0) const {
    const u64 factor = 0;
    const u8 who = static_cast<u8>(peer);
    const MoveContext context{patience, 0, 0, flag, 0, 1, place};
    using M = Move<T, Copy, Kinds<FROM>, Kinds<TO>>;
    return M::slice(Operands{&from, &to, &factor, &who}, Extent{0, 0, count}, context, team.warp(), team.warps());
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_CHANNEL_CUH

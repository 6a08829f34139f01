// A word that one thread writes and another waits for: "everything that I did up to here".
//
//   signaller                                 waiter
//   writes data
//   bar.sync (takes in the block's writes)
//   st.release.sys word = value  ──────────►  ld.relaxed.sys word >= value, then fence.acquire.sys
//                                             (before sm_90: ld.acquire.sys once more)
//                                             bar.sync (hands it to the block)
//                                             reads data
//
// Values only grow: (epoch, n-th signal of the epoch). So nothing is ever reset, and a kernel that is replayed from a graph goes
// on where the last call ended. The word lies in the waiter's memory: polling stays on its own GPU.
#ifndef WARPMESH_SEMAPHORE_CUH
#define WARPMESH_SEMAPHORE_CUH

#include "wait.cuh"

namespace warpmesh {

struct Semaphore {
  u64* word;

  // After all that this thread wrote or knows of.
  WARPMESH_DEVICE void signal(u64 value) const { store_release_sys(word, value); }

  // Orders nothing: for when something else has.
  WARPMESH_DEVICE void signal_relaxed(u64 value) const { store_relaxed_sys(word, value); }

  // Until the value is reached. False if given up.
  WARPMESH_DEVICE bool wait(u64 value, const Patience& patience, u32 peer, u32 place) const {
    const bool reached = persist<4>(
        patience, [&] { return load_relaxed_sys(word); }, [&](u64 seen) { return seen >= value; },
        [&](u64 seen) { return WaitingFor{peer, place, value, seen}; });
    acquire_polled_sys(word);
    return reached;
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_SEMAPHORE_CUH

// The Move instruction through a switch: a load from everybody's memory at once is a reduction, a store to it goes to all. sm_90.
//
// What the switch takes goes through it, in units of 16 bytes. The rest (the last elements of a slice, or everything if a buffer's
// address is no multiple of 16) goes over the addresses that peers have mapped, element by element, as move.cuh does it: the group's
// address and each rank's begin with the allocation, so if one is aligned, all are. So every count and address is right, and nothing but
// the call's own elements is touched.
#ifndef WARPMESH_MULTICAST_CUH
#define WARPMESH_MULTICAST_CUH

#include "move.cuh"
#include "switch.cuh"

namespace warpmesh {

// Operands of a move through the switch: of this rank alone, or of all RANKS. In the tables of addresses, the latter is the group's
// address followed by that of each rank; for packets the group's alone.
template <Kind K>
struct Own {
  static constexpr Kind KIND = K;
  static constexpr int ENTRIES = 1;
  static constexpr bool ALL = false;
  using Each = Kinds<K>;
};
template <Kind K, int RANKS>
struct Group {
  static constexpr Kind KIND = K;
  static constexpr int ENTRIES = K == PACKETS ? 1 : 1 + RANKS;
  static constexpr bool ALL = true;
  using Each = Repeated<RANKS, K>;
};

#if __CUDA_ARCH__ >= 900

namespace detail {
// What the switch does for an operator; the rest is done here.
template <class Op>
struct InSwitch {
  using Type = Op;
};
template <>
struct InSwitch<Avg> {
  using Type = Sum;
};
}  // namespace detail

// A move of a type by an operator (or Copy): one source, one destination, one of which is the group's.
template <class T, class Op, class From, class To, Tables TABLES = CONSTANT>
struct SwitchMove {
  using Switch = Multimem<T, typename detail::InSwitch<Op>::Type>;
  static constexpr int SOURCES = From::ENTRIES, DESTINATIONS = To::ENTRIES;
  static constexpr int SIZE = sizeof(typename T::Bits);
  static constexpr bool PACKETED = To::KIND == PACKETS;
  static_assert(From::ALL != is_same<Op, Copy>, "what is loaded from the group is reduced, and nothing else is");
  static_assert(From::KIND != PACKETS && (!PACKETED || (To::ALL && !From::ALL)), "packets are only sent through the switch");

  // A slice, by all warps of the block or by some of them: `warp` of `warps`.
  static WARPMESH_DEVICE bool slice(const Operands& ops, const Extent& extent, const MoveContext& c, u32 warp, u32 warps) {
    const u32 thread = warp * 32 + threadIdx.x % 32, threads = warps * 32;
    fence_alias();
    if constexpr (PACKETED) {
      send(ops, extent, c, thread, threads);
    } else {
      const u32 there = through(ops, extent, c, thread, threads);
      const Extent rest{extent.user + there, extent.slot + there, extent.count - there};
      if (rest.count > 0) beside(ops, rest, c, warp, warps);
    }
    fence_alias();
    return true;
  }

 private:
  static constexpr int UNIT = 16, UNROLL = 4;

  // Where a slice of an operand begins.
  template <class Operand>
  static WARPMESH_DEVICE u64 begin(u64 address, const Extent& extent, const MoveContext& c) {
    return address + (Operand::KIND == USER ? extent.user * SIZE : c.half_scratch + static_cast<u64>(extent.slot) * SIZE);
  }

  // Moves all whole units; how many elements that are. All loads of a batch are issued before the first is used.
  static WARPMESH_DEVICE u32 through(const Operands& ops, const Extent& extent, const MoveContext& c, u32 thread, u32 threads) {
    const u64 from = begin<From>(ops.from[0], extent, c), to = begin<To>(ops.to[0], extent, c);
    if ((from | to) % UNIT != 0) return 0;
    const u32 units = extent.count / (UNIT / SIZE);
#pragma unroll 1
    for (u32 first = thread; first < units; first += threads * UNROLL) {
      u32 word[UNROLL][UNIT / 4];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const u32 unit = first + u * threads;
        if (unit < units) read(from + static_cast<u64>(unit) * UNIT, word[u]);
      }
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const u32 unit = first + u * threads;
        if (unit < units) write(to + static_cast<u64>(unit) * UNIT, word[u], c);
      }
    }
    return units * (UNIT / SIZE);
  }

  static WARPMESH_DEVICE void read(u64 at, u32* word) {
    if constexpr (From::ALL) {
#pragma unroll
      for (int k = 0; k < UNIT; k += Switch::BYTES) Switch::load_reduce(at + k, word + k / 4);
    } else {
      load<UNIT>(at, word);
    }
  }

  static WARPMESH_DEVICE void write(u64 at, u32* word, const MoveContext& c) {
    if constexpr (is_same<Op, Avg>) average(word, c.world);
    if constexpr (To::ALL) {
      store_to_all(at, word);
    } else {
      store<UNIT>(at, word);
    }
  }

  static WARPMESH_DEVICE void average(u32* word, u32 world) {
    constexpr int WORDS = T::CELL * SIZE / 4;
    static_assert(T::CELL == 1, "a sum that the switch has rounded is not divided: that would round it twice");
#pragma unroll
    for (int w = 0; w < UNIT / 4; w += WORDS) {
      typename T::Acc sum[1];
      T::widen(word + w, sum);
      sum[0] = over(sum[0], world);
      T::narrow(sum, word + w);
    }
  }

  // What the switch does not take: less than a unit, or what is not aligned.
  static WARPMESH_DEVICE void beside(const Operands& ops, const Extent& rest, const MoveContext& c, u32 warp, u32 warps) {
    const Operands each{ops.from + From::ALL, ops.to + To::ALL, ops.factor + From::ALL, ops.peer + From::ALL};
    Move<T, Op, typename From::Each, typename To::Each, TABLES>::elements(each, rest, c, warp, warps);
  }

  // Sends the slice's elements as packets, the same to all.
  static WARPMESH_DEVICE void send(const Operands& ops, const Extent& extent, const MoveContext& c, u32 thread, u32 threads) {
    constexpr u32 EACH = LINE_DATA / SIZE;
    const u64 from = begin<From>(ops.from[0], extent, c);
    const u64 to = ops.to[0] + c.half_packets + static_cast<u64>(extent.slot) * (SIZE * LINE_BYTES / LINE_DATA);
    const u32 whole = from % LINE_DATA == 0 ? extent.count / EACH : 0, lines = (extent.count + EACH - 1) / EACH;
    // One line at a time: several would not be under way together, for each store is before the next load.
#pragma unroll 1
    for (u32 n = thread; n < lines; n += threads) {
      u32 data[2];
      const u64 at = from + static_cast<u64>(n) * LINE_DATA;
      if (n < whole) {
        load<LINE_DATA>(at, data);
      } else {
        const u64 some = detail::load_some<SIZE>(at, least(extent.count - n * EACH, EACH) * SIZE);
        data[0] = static_cast<u32>(some);
        data[1] = static_cast<u32>(some >> 32);
      }
      const u64 line = to + static_cast<u64>(n) * LINE_BYTES;
      store_to_all(line, data[0] | static_cast<u64>(c.flag) << 32);
      store_to_all(line + 8, data[1] | static_cast<u64>(c.flag) << 32);
    }
  }
};

#endif  // __CUDA_ARCH__ >= 900

}  // namespace warpmesh

#endif  // WARPMESH_MULTICAST_CUH

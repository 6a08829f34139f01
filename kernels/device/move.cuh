// The Move instruction: for each element, load it from every source, combine in the order listed, store it to every destination.
// Copy, put, get, broadcast, reduce, packet send and packet receive are all this one template.
//
// Work is cut into units (16 bytes, or 8 where packets are involved), units into tasks of a warp. All loads of a task are issued
// before the first is used. A unit that is not whole, or not aligned, goes element by element.
#pragma once

#include "element.cuh"
#include "packet.cuh"

namespace warpmesh {

// What an operand is.
enum Kind : int {
  USER,     // a user's buffer
  SLOT,     // a scratch slot
  PACKETS,  // a packet slot
  OWN,      // packets of a rank, or this rank's input where the rank is this one: which of them is known at run time
};

template <Kind... K>
struct Kinds {
  static constexpr int N = sizeof...(K);
  static_assert(N <= 32, "more operands go in several moves");
  // Two bits each: after unrolling, a constant.
  static constexpr u64 CODE = [] {
    u64 code = 0, n = 0;
    ((code |= static_cast<u64>(K) << 2 * n++), ...);
    return code;
  }();
  static WARPMESH_DEVICE constexpr Kind at(int n) { return static_cast<Kind>(CODE >> 2 * n & 3); }
  static WARPMESH_DEVICE constexpr bool has(Kind kind) { return ((K == kind) || ...); }
};

namespace detail {
template <int N, Kind K, Kind... Rest>
struct Repeat : Repeat<N - 1, K, K, Rest...> {};
template <Kind K, Kind... Rest>
struct Repeat<0, K, Rest...> {
  using Type = Kinds<Rest...>;
};
}  // namespace detail
template <int N, Kind K>
using Repeated = typename detail::Repeat<N, K>::Type;

// Copies bits; no arithmetic.
struct Copy {};

// The part of a block that a thread block moves, in elements.
struct Extent {
  u64 user;   // from the block's first element
  u64 slot;   // from the slot's first element
  u32 count;  // how many
};

// What all moves of a round have in common.
struct MoveContext {
  Patience patience;
  u64 half_scratch, half_packets;  // bytes to this epoch's half
  u32 flag;
  u32 own;    // this rank
  u32 world;  // what Avg divides by
  u32 place;  // number of the instruction
};

// Addresses and tables of a move's operands.
struct Operands {
  const u64* from;    // the sources' first elements, of the block or of the slot
  const u64* to;      // the destinations'
  const u64* factor;  // PreMulSum: the bits of each source's factor
  const u8* peer;     // who writes each source, if it is packets
};

// A move of a type by an operator (or Copy).
template <class T, class Op, class From, class To>
struct Move {
  using Bits = typename T::Bits;
  using Acc = typename T::Acc;
  static constexpr int SOURCES = From::N, DESTINATIONS = To::N;
  static constexpr bool AWAITS = From::has(PACKETS) || From::has(OWN);
  static constexpr bool PACKETED = AWAITS || To::has(PACKETS);
  static constexpr bool COPIES = From::N == 1 && !__is_same(Op, PreMulSum) && !__is_same(Op, Avg);
  static constexpr int BYTES = PACKETED ? LINE_DATA : 16;
  static constexpr int EACH = BYTES / sizeof(Bits);
  // So that 8 loads of a thread are in flight; of a single source's packets 4.
  static constexpr int LOADS = PACKETED ? 4 : 8;
  static constexpr int WIDEST = PACKETED && To::N > From::N ? To::N : From::N;
  static constexpr int UNROLL = WIDEST < LOADS ? LOADS / WIDEST : 1;
  using Unit = Words<BYTES>;

  // A slice, by all warps of the block or by some of them: `warp` of `warps`. False if a packet did not come.
  static WARPMESH_DEVICE bool slice(const Operands& ops, const Extent& extent, const MoveContext& c, u32 warp, u32 warps) {
    const bool aligned = is_aligned(ops);
    const u32 lane = threadIdx.x % 32, step = warps * 32;
    if constexpr (PACKETED) {
      const u32 units = (extent.count + EACH - 1) / EACH;
      for (u32 first = warp * 32 * UNROLL + lane; first < units; first += step * UNROLL) {
        int missing = 0;
        auto attempt = [&] { return lines(ops, extent, c, first, units, aligned, missing); };
        auto what = [&] { return WaitingFor{ops.peer[missing], c.place, c.flag, 0}; };
        if (!persist(c.patience, attempt, what)) return false;
      }
    } else {
      // Whole units, then what is left over, which is everything if the operands are not aligned.
      const u32 units = aligned ? extent.count / EACH : 0;
      for (u32 first = warp * 32 * UNROLL + lane; first < units; first += step * UNROLL) {
        quads(ops, extent, c, first, units);
      }
#pragma unroll 1
      for (u32 k = units * EACH + warp * 32 + lane; k < extent.count; k += step) one(ops, extent, c, k);
    }
    return true;
  }

 private:
  // Whether all operands in users' buffers allow accesses of whole units. (Slots do.)
  static WARPMESH_DEVICE bool is_aligned(const Operands& ops) {
    u64 low = 0;
#pragma unroll
    for (int s = 0; s < From::N; ++s) low |= From::at(s) == USER || From::at(s) == OWN ? ops.from[s] : 0;
#pragma unroll
    for (int d = 0; d < To::N; ++d) low |= To::at(d) == USER ? ops.to[d] : 0;
    return low % BYTES == 0;
  }

  // Where the slice begins in a user's buffer or in a slot.
  static WARPMESH_DEVICE u64 plain(Kind kind, u64 base, const Extent& extent, const MoveContext& c) {
    return base + (kind == USER ? extent.user * sizeof(Bits) : c.half_scratch + extent.slot * sizeof(Bits));
  }

  // Line `unit` of the slice in a packet slot.
  static WARPMESH_DEVICE Quad* line(u64 base, const Extent& extent, const MoveContext& c, u32 unit) {
    return reinterpret_cast<Quad*>(base + c.half_packets + (extent.slot * sizeof(Bits) / LINE_DATA + unit) * LINE_BYTES);
  }

  // Element k of a slice, alone.
  static WARPMESH_DEVICE void one(const Operands& ops, const Extent& extent, const MoveContext& c, u32 k) {
    Bits in[From::N];
#pragma unroll
    for (int s = 0; s < From::N; ++s) {
      in[s] = load_element<Bits>(plain(From::at(s), ops.from[s], extent, c) + k * sizeof(Bits));
    }
    const Bits out = combined(in, ops, c);
#pragma unroll
    for (int d = 0; d < To::N; ++d) store_element(plain(To::at(d), ops.to[d], extent, c) + k * sizeof(Bits), out);
  }

  // Units `first`, `first + 32`, ... of 16 bytes: all loads, then the rest.
  static WARPMESH_DEVICE void quads(const Operands& ops, const Extent& extent, const MoveContext& c, u32 first, u32 units) {
    Unit in[UNROLL][From::N];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 unit = first + u * 32;
#pragma unroll
      for (int s = 0; s < From::N; ++s) {
        if (unit < units) in[u][s] = load_quad(plain(From::at(s), ops.from[s], extent, c) + static_cast<u64>(unit) * BYTES);
      }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 unit = first + u * 32;
      if (unit >= units) break;
      const Unit out = combined(in[u], ops, c);
#pragma unroll
      for (int d = 0; d < To::N; ++d) {
        store_quad(plain(To::at(d), ops.to[d], extent, c) + static_cast<u64>(unit) * BYTES, out);
      }
    }
  }

  // Units of 8 bytes, where packets are involved. Loads are repeated until all flags are this epoch's; false if that takes long.
  static WARPMESH_DEVICE bool lines(const Operands& ops, const Extent& extent, const MoveContext& c, u32 first, u32 units,
                                    bool aligned, int& missing) {
    Unit in[UNROLL][From::N], mine[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 unit = first + u * 32;
      if (unit >= units) break;
      if constexpr (From::has(OWN)) {
        mine[u] = load_pair(plain(USER, ops.from[c.own], extent, c), unit, extent.count, aligned);
      }
#pragma unroll
      for (int s = 0; s < From::N; ++s) {
        if (From::at(s) == PACKETS || From::at(s) == OWN) continue;
        const u64 at = plain(From::at(s), ops.from[s], extent, c);
        in[u][s] = load_pair(at, unit, extent.count, aligned || From::at(s) == SLOT);
      }
    }
    if constexpr (AWAITS) {
      auto arrived = [&] {
        bool all = true;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const u32 unit = first + u * 32;
#pragma unroll
          for (int s = 0; s < From::N; ++s) {
            if (From::at(s) != PACKETS && From::at(s) != OWN) continue;
            if (unit >= units || (From::at(s) == OWN && s == c.own)) continue;
            if (!Line::read(line(ops.from[s], extent, c, unit), in[u][s].word[0], in[u][s].word[1], c.flag)) {
              all = false, missing = s;
            }
          }
        }
        return all;
      };
      if (!poll(arrived)) return false;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const u32 unit = first + u * 32;
      if (unit >= units) break;
      if constexpr (From::has(OWN)) {
#pragma unroll
        for (int s = 0; s < From::N; ++s) {
          // Selects, not a store to in[own], for which the array would have to lie in memory.
          const bool own = From::at(s) == OWN && s == c.own;
          in[u][s].word[0] = own ? mine[u].word[0] : in[u][s].word[0];
          in[u][s].word[1] = own ? mine[u].word[1] : in[u][s].word[1];
        }
      }
      const Unit out = combined(in[u], ops, c);
#pragma unroll
      for (int d = 0; d < To::N; ++d) {
        if (To::at(d) == PACKETS) {
          Line::write(line(ops.to[d], extent, c, unit), out.word[0], out.word[1], c.flag);
        } else {
          store_pair(plain(To::at(d), ops.to[d], extent, c), unit, extent.count, aligned || To::at(d) == SLOT, out);
        }
      }
    }
    return true;
  }

  static WARPMESH_DEVICE Unit load_quad(u64 at) {
    const Quad q = load(reinterpret_cast<const Quad*>(at));
    return {q.x, q.y, q.z, q.w};
  }

  static WARPMESH_DEVICE void store_quad(u64 at, const Unit& unit) {
    store(reinterpret_cast<Quad*>(at), {unit.word[0], unit.word[1], unit.word[2], unit.word[3]});
  }

  // 8 bytes of a slice of `count` elements, of which the last ones may not be there.
  static WARPMESH_DEVICE Unit load_pair(u64 at, u32 unit, u32 count, bool aligned) {
    u64 both = 0;
    if (aligned && (unit + 1) * EACH <= count) {
      both = load_element<u64>(at + static_cast<u64>(unit) * BYTES);
    } else {
#pragma unroll 1
      for (u32 k = unit * EACH, shift = 0; k < least(count, (unit + 1) * EACH); ++k, shift += 8 * sizeof(Bits)) {
        both |= static_cast<u64>(load_element<Bits>(at + static_cast<u64>(k) * sizeof(Bits))) << shift;
      }
    }
    return {static_cast<u32>(both), static_cast<u32>(both >> 32)};
  }

  static WARPMESH_DEVICE void store_pair(u64 at, u32 unit, u32 count, bool aligned, const Unit& from) {
    u64 both = from.word[0] | static_cast<u64>(from.word[1]) << 32;
    if (aligned && (unit + 1) * EACH <= count) {
      store_element(at + static_cast<u64>(unit) * BYTES, both);
    } else {
#pragma unroll 1
      for (u32 k = unit * EACH; k < least(count, (unit + 1) * EACH); ++k) {
        store_element(at + static_cast<u64>(k) * sizeof(Bits), static_cast<Bits>(both));
        both >>= sizeof(Bits) == 8 ? 0 : 8 * sizeof(Bits);
      }
    }
  }

  // The sources of an element, combined in order and finished.
  static WARPMESH_DEVICE Bits combined(const Bits (&in)[From::N], const Operands& ops, const MoveContext& c) {
    if constexpr (COPIES) {
      return in[0];
    } else {
      Acc sum = contribution(in[0], ops, 0);
#pragma unroll
      for (int s = 1; s < From::N; ++s) sum = Op::combine(sum, contribution(in[s], ops, s));
      if constexpr (Op::AVERAGED) sum = over(sum, c.world);
      return finish<T>(sum);
    }
  }

  static WARPMESH_DEVICE Unit combined(const Unit (&in)[From::N], const Operands& ops, const MoveContext& c) {
    if constexpr (COPIES) {
      return in[0];
    } else {
      Unit out = {};
#pragma unroll
      for (int k = 0; k < EACH; ++k) {
        Bits each[From::N];
#pragma unroll
        for (int s = 0; s < From::N; ++s) each[s] = element<T>(in[s], k);
        put<T>(out, k, combined(each, ops, c));
      }
      return out;
    }
  }

  static WARPMESH_DEVICE Acc contribution(Bits x, const Operands& ops, int source) {
    Acc wide = T::widen(x);
    if constexpr (Op::SCALED) wide = times(wide, T::widen(static_cast<Bits>(ops.factor[source])));
    return wide;
  }
};

}  // namespace warpmesh

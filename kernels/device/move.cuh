// The Move instruction: for each element, load it from every source, combine in the order listed, store it to every destination.
// Copy, put, get, broadcast, reduce, packet send and packet receive are all this one template.
//
// Work is cut into units (16 bytes, or 8 where packets are involved), units into tasks of a warp. All loads of a task are issued
// before the first is used. A unit that is not whole, or not aligned, goes element by element.
#ifndef WARPMESH_MOVE_CUH
#define WARPMESH_MOVE_CUH

#include "element.cuh"
#include "packet.cuh"

namespace warpmesh {

// What an operand is.
enum Kind : int {
  USER,      // a user's buffer
  SLOT,      // a scratch slot
  PACKETS,   // a packet slot
  OWN,       // a source: packets of a rank, or this rank's input where the rank is this one; which of them is known at run time
  OWN_SLOT,  // the same with a scratch slot
};

template <Kind... K>
struct Kinds {
  static constexpr int N = sizeof...(K);
  static_assert(N <= 32, "more operands go in several moves");
  // Four bits each: after unrolling, a constant.
  static WARPMESH_DEVICE constexpr u64 code(int first) {
    u64 code = 0;
    int n = 0;
    ((code |= n >= first && n < first + 16 ? static_cast<u64>(K) << 4 * (n - first) : 0, ++n), ...);
    return code;
  }
  static WARPMESH_DEVICE constexpr Kind at(int n) {
    return static_cast<Kind>((n < 16 ? code(0) >> 4 * n : code(16) >> 4 * (n - 16)) & 15);
  }
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
  u32 slot;   // from the slot's first element
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
  static_assert(!From::has(OWN) || is_same<From, Repeated<From::N, OWN>>, "all sources, or none");
  static constexpr bool COPIES = From::N == 1 && !is_same<Op, PreMulSum> && !is_same<Op, Avg>;
  static constexpr int SIZE = sizeof(Bits);
  static constexpr int BYTES = PACKETED ? LINE_DATA : 16;
  static constexpr int EACH = BYTES / SIZE;
  // So that at least 4 loads of a thread are in flight.
  static constexpr int WIDEST = PACKETED && To::N > From::N ? To::N : From::N;
  static constexpr int UNROLL = (4 + WIDEST - 1) / WIDEST;

  // A slice, by all warps of the block or by some of them: `warp` of `warps`. False if a packet did not come.
  static WARPMESH_DEVICE bool slice(const Operands& ops, const Extent& extent, const MoveContext& c, u32 warp, u32 warps) {
    return Move(ops, c, extent).all(warp * 32 * UNROLL + threadIdx.x % 32, warps * 32 * UNROLL);
  }

 private:
  WARPMESH_DEVICE Move(const Operands& ops, const MoveContext& c, const Extent& extent)
      : ops(ops),
        c(c),
        user(extent.user * SIZE),
        slot(c.half_scratch + static_cast<u64>(extent.slot) * SIZE),
        lines(c.half_packets + static_cast<u64>(extent.slot) * (SIZE * LINE_BYTES / LINE_DATA)),
        count(extent.count) {}

  const Operands& ops;
  const MoveContext& c;
  u64 user, slot, lines;  // bytes from an operand's address to the slice, by what the operand is
  u32 count;              // elements of the slice

  struct Unit {
    u32 word[BYTES / 4];
  };

  // What a thread handles at a time: a whole unit, or a single element (or, with packets, the elements of a unit one by one).
  struct Task {
    u64 offset;  // bytes from the slice's first
    bool is, whole;
  };

  WARPMESH_DEVICE bool all(u32 first, u32 step) const {
    const bool aligned = is_aligned();
    const u32 whole = aligned ? count / EACH : 0;
    const u32 tasks = PACKETED ? (count + EACH - 1) / EACH : count - whole * (EACH - 1);
#pragma unroll 1
    for (; first < tasks; first += step) {
      if constexpr (AWAITS) {
        if (!awaited(first, tasks, whole)) return false;
      } else {
        Unit in[UNROLL][From::N];
        load_all(in, first, tasks, whole);
        finish_all(in, first, tasks, whole);
      }
    }
    return true;
  }

  // Whether all operands that need not be aligned allow accesses of whole units.
  WARPMESH_DEVICE bool is_aligned() const {
    u32 low = static_cast<u32>(user) | static_cast<u32>(slot);
    if constexpr (From::has(OWN)) low |= static_cast<u32>(ops.from[c.own]);
#pragma unroll
    for (int s = 0; s < From::N; ++s) {
      if (From::at(s) != PACKETS && From::at(s) != OWN) low |= static_cast<u32>(ops.from[s]);
    }
#pragma unroll
    for (int d = 0; d < To::N; ++d) {
      if (To::at(d) != PACKETS) low |= static_cast<u32>(ops.to[d]);
    }
    return low % BYTES == 0;
  }

  // The u-th of the tasks from `first` on. If there is none, its offset is the last one's.
  WARPMESH_DEVICE Task task(u32 first, int u, u32 tasks, u32 whole) const {
    const u32 k = u == 0 ? first : least(first + u * 32, tasks - 1);
    const bool is_whole = k < whole;
    const u64 offset = PACKETED || is_whole ? static_cast<u64>(k) * BYTES
                                            : static_cast<u64>(k) * SIZE + static_cast<u64>(whole) * (BYTES - SIZE);
    return {offset, u == 0 || first + u * 32 < tasks, is_whole};
  }

  // Where a task finds its elements of a source.
  WARPMESH_DEVICE u64 source(int s, const Task& t) const {
    if (From::at(s) == OWN_SLOT) {
      // Opaque, because else the sums of all addresses would be made before the loop, and take up registers in it.
      const u64 in_user = opaque(user + t.offset), in_slot = opaque(slot + t.offset);
      return ops.from[s] + (s == static_cast<int>(c.own) ? in_user : in_slot);
    }
    return ops.from[s] + (From::at(s) == USER ? user + t.offset : slot + t.offset);
  }

  WARPMESH_DEVICE u64 destination(int d, const Task& t) const {
    return ops.to[d] + (To::at(d) == USER ? user + t.offset : slot + t.offset);
  }

  WARPMESH_DEVICE u64 line(u64 base, u64 offset) const { return base + (lines + offset * (LINE_BYTES / LINE_DATA)); }

  // Issues the loads of all sources that are no packets.
  WARPMESH_DEVICE void load_all(Unit (&in)[UNROLL][From::N], u32 first, u32 tasks, u32 whole) const {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const Task t = task(first, u, tasks, whole);
      if (!t.is) break;
#pragma unroll
      for (int s = 0; s < From::N; ++s) {
        if (From::at(s) != PACKETS && From::at(s) != OWN) read(source(s, t), t, in[u][s]);
      }
    }
  }

  // Combines what is loaded and stores it everywhere.
  WARPMESH_DEVICE void finish_all(const Unit (&in)[UNROLL][From::N], u32 first, u32 tasks, u32 whole) const {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const Task t = task(first, u, tasks, whole);
      if (!t.is) break;
      const Unit out = combined(in[u]);
#pragma unroll
      for (int d = 0; d < To::N; ++d) {
        if (To::at(d) == PACKETS) {
          Line::write(line(ops.to[d], t.offset), out.word, c.flag);
        } else {
          write(destination(d, t), t, out);
        }
      }
    }
  }

  WARPMESH_DEVICE void read(u64 at, const Task& t, Unit& unit) const {
    if constexpr (!PACKETED || EACH == 1) {
      load<BYTES, SIZE>(at, t.whole, unit.word);
    } else if (t.whole) {
      load<BYTES, SIZE>(at, true, unit.word);
    } else {
      unit = {};
      const u32 elements = there(t);
#pragma unroll
      for (u32 k = 0; k < EACH; ++k) {
        u32 word[2];
        if (k < elements) {
          load<BYTES, SIZE>(at + k * SIZE, false, word);
          unit.word[k * SIZE / 4] |= word[0] << 8 * (k * SIZE % 4);
        }
      }
    }
  }

  WARPMESH_DEVICE void write(u64 at, const Task& t, const Unit& unit) const {
    if constexpr (!PACKETED || EACH == 1) {
      store<BYTES, SIZE>(at, t.whole, unit.word);
    } else if (t.whole) {
      store<BYTES, SIZE>(at, true, unit.word);
    } else {
      const u32 elements = there(t);
#pragma unroll
      for (u32 k = 0; k < EACH; ++k) {
        const u32 word[2] = {unit.word[k * SIZE / 4] >> 8 * (k * SIZE % 4), 0};
        if (k < elements) store<BYTES, SIZE>(at + k * SIZE, false, word);
      }
    }
  }

  // Elements of a unit of 8 bytes that is not whole.
  WARPMESH_DEVICE u32 there(const Task& t) const { return least<u32>(count - static_cast<u32>(t.offset / SIZE), EACH); }

  // A batch with packets among its sources. Data and flags are loaded together, again and again, until all flags are this epoch's.
  // (A task that is not there looks at the last one's packets, which is cheaper than not to look.)
  WARPMESH_DEVICE bool awaited(u32 first, u32 tasks, u32 whole) const {
    Quad got[UNROLL][From::N];
    auto arrived = [&] {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const u64 offset = task(first, u, tasks, whole).offset;
#pragma unroll
        for (int n = 0; n < From::N; ++n) {
          if (awaits(n)) got[u][n] = Line::read(line(ops.from[number(n)], offset));
        }
      }
      bool all = true;
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int n = 0; n < From::N; ++n) all &= !awaits(n) || Line::is_of(got[u][n], c.flag);
      }
      return all;
    };
    auto what = [&] { return WaitingFor{ops.peer[missing(got)], c.place, c.flag, 0}; };
    if (!persist(c.patience, arrived, what)) return false;
    // Only now: registers are short in the loop, and what this rank has sent before is still in its cache.
    Unit in[UNROLL][From::N];
    load_all(in, first, tasks, whole);
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) arrange(got[u], in[u], task(first, u, tasks, whole));
    finish_all(in, first, tasks, whole);
    return true;
  }

  // Packets are awaited from the sources that are packets; where these are all but the own one, the n-th of the others.
  static WARPMESH_DEVICE bool awaits(int n) { return From::has(OWN) ? n < From::N - 1 : From::at(n) == PACKETS; }
  WARPMESH_DEVICE int number(int n) const { return From::has(OWN) && n >= static_cast<int>(c.own) ? n + 1 : n; }

  // Puts the packets' data where their sources stand.
  WARPMESH_DEVICE void arrange(const Quad (&got)[From::N], Unit (&in)[From::N], const Task& t) const {
    if constexpr (From::has(OWN)) {
      Unit mine;
      if (t.is) read(ops.from[c.own] + user + t.offset, t, mine);
      // Selects, not a store to in[own], for which the array would have to lie in memory.
      const int own = static_cast<int>(c.own);
#pragma unroll
      for (int s = 0; s < From::N; ++s) {
        const Quad below = got[s < From::N - 1 ? s : From::N - 2], above = got[s > 0 ? s - 1 : 0];
        in[s].word[0] = s < own ? below.x : s == own ? mine.word[0] : above.x;
        in[s].word[1] = s < own ? below.z : s == own ? mine.word[1] : above.z;
      }
    } else {
#pragma unroll
      for (int s = 0; s < From::N; ++s) {
        if (From::at(s) == PACKETS) in[s] = {got[s].x, got[s].z};
      }
    }
  }

  // A source whose packets are not there.
  WARPMESH_DEVICE int missing(const Quad (&got)[UNROLL][From::N]) const {
    int missing = 0;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
      for (int n = 0; n < From::N; ++n) missing = !awaits(n) || Line::is_of(got[u][n], c.flag) ? missing : n;
    }
    return number(missing);
  }

  // The sources of a unit, combined in order and rounded once.
  WARPMESH_DEVICE Unit combined(const Unit (&in)[From::N]) const {
    if constexpr (COPIES) {
      return in[0];
    } else {
      constexpr int CELL = T::CELL, WORDS = CELL * SIZE / 4;
      Unit out;
#pragma unroll
      for (int w = 0; w < BYTES / 4; w += WORDS) {
        Acc sum[CELL];
        contribution(in[0], w, 0, sum);
#pragma unroll
        for (int s = 1; s < From::N; ++s) {
          Acc next[CELL];
          contribution(in[s], w, s, next);
#pragma unroll
          for (int k = 0; k < CELL; ++k) sum[k] = Op::combine(sum[k], next[k]);
        }
        if constexpr (Op::AVERAGED) {
#pragma unroll
          for (int k = 0; k < CELL; ++k) sum[k] = over(sum[k], c.world);
        }
        T::narrow(sum, &out.word[w]);
      }
      return out;
    }
  }

  WARPMESH_DEVICE void contribution(const Unit& in, int w, int s, Acc* wide) const {
    T::widen(&in.word[w], wide);
    if constexpr (Op::SCALED) {
      const u32 bits[2] = {static_cast<u32>(ops.factor[s]), static_cast<u32>(ops.factor[s] >> 32)};
      Acc factor[T::CELL];
      T::widen(bits, factor);
#pragma unroll
      for (int k = 0; k < T::CELL; ++k) wide[k] = times(wide[k], factor[0]);
    }
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_MOVE_CUH

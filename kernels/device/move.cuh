// The Move instruction: for each element, load it from every source, combine in the order listed, store it to every destination.
// Copy, put, get, broadcast, reduce, packet send and packet receive are all this one template.
//
// Work is cut into units: 16 bytes, or 8 where packets are involved. A thread issues the loads of up to 8 sources, or of several units of
// fewer, before it uses the first. What is no whole unit, or not aligned, goes element by element.
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
  PARTIAL,   // a scratch slot of unfinished sums: in the type in which elements are accumulated
};

template <Kind... K>
struct Kinds {
  static constexpr int N = sizeof...(K);
  // Four bits each: after unrolling, a constant.
  static WARPMESH_DEVICE constexpr u64 code(int first) {
    u64 code = 0;
    int n = 0;
    ((code |= n >= first && n < first + 16 ? static_cast<u64>(K) << 4 * (n - first) : 0, ++n), ...);
    return code;
  }
  static WARPMESH_DEVICE constexpr Kind at(int n) {
    if constexpr (N <= 32) return static_cast<Kind>((n < 16 ? code(0) >> 4 * n : code(16) >> 4 * (n - 16)) & 15);
    // The same for many, which the compiler takes longer to see.
    Kind found = USER;
    int k = 0;
    ((found = k++ == n ? K : found), ...);
    return found;
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
  const Patience& patience;
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

namespace detail {

// Up to 8 bytes, in elements of SIZE bytes one by one: what is not whole or not aligned. Not inlined: it is rare.
template <int SIZE>
static __device__ __noinline__ u64 load_some(u64 at, u32 bytes) {
  u64 all = 0;
#pragma unroll 1
  for (u32 k = 0; k < bytes; k += SIZE) {
    u32 word[2] = {0, 0};
    load_element<SIZE>(at + k, word);
    all |= (word[0] | static_cast<u64>(word[1]) << 32) << 8 * k;
  }
  return all;
}

template <int SIZE>
static __device__ __noinline__ void store_some(u64 at, u32 bytes, u64 all) {
#pragma unroll 1
  for (u32 k = 0; k < bytes; k += SIZE) {
    const u64 rest = all >> 8 * k;
    const u32 word[2] = {static_cast<u32>(rest), static_cast<u32>(rest >> 32)};
    store_element<SIZE>(at + k, word);
  }
}

// The e-th value of an array of them in words.
template <class A>
WARPMESH_DEVICE A get_bits(const u32* word, int e) {
  if constexpr (sizeof(A) == 8) {
    return bits<A>(word[2 * e] | static_cast<u64>(word[2 * e + 1]) << 32);
  } else if constexpr (sizeof(A) == 4) {
    return bits<A>(word[e]);
  } else {
    return static_cast<A>(word[e * sizeof(A) / 4] >> 8 * sizeof(A) * (e % (4 / sizeof(A))));
  }
}

// Sets it, each after those before.
template <class A>
WARPMESH_DEVICE void set_bits(u32* word, int e, A value) {
  if constexpr (sizeof(A) == 8) {
    word[2 * e] = static_cast<u32>(bits<u64>(value));
    word[2 * e + 1] = static_cast<u32>(bits<u64>(value) >> 32);
  } else if constexpr (sizeof(A) == 4) {
    word[e] = bits<u32>(value);
  } else {
    const int place = e % (4 / sizeof(A));
    const u32 shifted = (static_cast<u32>(value) & ((1u << 8 * sizeof(A)) - 1)) << 8 * sizeof(A) * place;
    u32& of = word[e * sizeof(A) / 4];
    of = place == 0 ? shifted : of | shifted;
  }
}

}  // namespace detail

// Where the tables of operands are: in the kernel's parameters, or in shared memory.
enum Tables : int { CONSTANT, SHARED };

// A move of a type by an operator (or Copy).
template <class T, class Op, class From, class To, Tables TABLES = CONSTANT>
struct Move {
  using Bits = typename T::Bits;
  using Acc = typename T::Acc;
  static constexpr int SOURCES = From::N, DESTINATIONS = To::N;
  static constexpr bool AWAITS = From::has(PACKETS) || From::has(OWN);
  static constexpr bool PACKETED = AWAITS || To::has(PACKETS);
  static_assert(!From::has(OWN) || is_same<From, Repeated<From::N, OWN>>, "all sources, or none");
  // Results are finished, or go on as they are to one place.
  static constexpr bool FINISHES = !To::has(PARTIAL);
  static_assert(FINISHES || To::N == 1, "an unfinished sum has one destination");
  static constexpr bool SUMS = From::has(PARTIAL) || !FINISHES;
  static_assert(!SUMS || !is_same<Op, Copy>, "a copy moves elements");
  static constexpr bool COPIES = From::N == 1 && !is_same<Op, PreMulSum> && !is_same<Op, Avg> && !SUMS;
  static constexpr int SIZE = sizeof(Bits);
  static constexpr int BYTES = PACKETED ? LINE_DATA : 16;
  static constexpr int EACH = BYTES / SIZE;
  // At least 4 loads of a thread are in flight, and at most BATCH: registers are short.
  static constexpr int WIDEST = PACKETED && To::N > From::N ? To::N : From::N;
  static constexpr int UNROLL = (4 + WIDEST - 1) / WIDEST;
  static constexpr int BATCH = From::N < 8 ? From::N : 8;

  // A slice, by all warps of the block or by some of them: `warp` of `warps`. False if a packet did not come.
  static WARPMESH_DEVICE bool slice(const Operands& ops, const Extent& extent, const MoveContext& c, u32 warp, u32 warps) {
    const Move move(ops, c, extent);
    if constexpr (AWAITS) return move.receive(warp, warps);
    move.all(warp, warps);
    return true;
  }

  // The same, element by element, of what is known to be no whole unit or not aligned: the other ways are no part of the kernel then.
  static WARPMESH_DEVICE void elements(const Operands& ops, const Extent& extent, const MoveContext& c, u32 warp, u32 warps) {
    static_assert(!PACKETED, "packets carry whole units");
    const Move move(ops, c, extent);
    move.elements(0, warp * 32 + threadIdx.x % 32, warps * 32);
  }

 private:
  WARPMESH_DEVICE Move(const Operands& ops, const MoveContext& c, const Extent& extent)
      : ops(ops),
        c(c),
        user(extent.user * SIZE),
        slot(c.half_scratch + static_cast<u64>(extent.slot) * SIZE),
        sums(c.half_scratch + static_cast<u64>(extent.slot) * sizeof(Acc)),
        lines(c.half_packets + static_cast<u64>(extent.slot) * (SIZE * LINE_BYTES / LINE_DATA)),
        count(extent.count) {}

  const Operands& ops;
  const MoveContext& c;
  u64 user, slot, sums, lines;  // bytes from an operand's address to the slice, by what the operand is
  u32 count;                    // elements of the slice

  struct Unit {
    u32 word[BYTES / 4];
  };

  // The sums of a unit's elements; of a copy, its bits.
  struct Sums {
    Acc of[COPIES ? 1 : EACH];
    Unit copy;
  };

  // Where a thread is: the k-th unit of the slice or the k-th element, and bytes from operands' addresses to it.
  struct At {
    u32 k;
    u64 user, slot;
    u32 table;
  };
  // Opaque, because else the sums of all addresses would be made before the loop, and take up registers in it. So would the addresses
  // from shared memory, were it known where in the tables they are: at their beginnings.
  WARPMESH_DEVICE At at(u32 k, int size) const {
    const u64 bytes = static_cast<u64>(k) * size;
    return {k, opaque(user + bytes), opaque(slot + bytes), TABLES == SHARED ? opaque(0u) * 2 : 0};
  }

  // First whole units, UNROLL of them at a time; then what is left of these, 32 x UNROLL being too many; then elements.
  WARPMESH_DEVICE void all(u32 warp, u32 warps) const {
    const u32 whole = aligned_units(), units = PACKETED ? (count + EACH - 1) / EACH : whole;
    const u32 batched = UNROLL == 1 ? 0 : whole / (32 * UNROLL) * (32 * UNROLL), thread = warp * 32 + threadIdx.x % 32;
    if constexpr (UNROLL > 1) {
#pragma unroll 1
      for (u32 k = warp * 32 * UNROLL + threadIdx.x % 32; k < batched; k += warps * 32 * UNROLL) move<UNROLL>(k, true);
    }
#pragma unroll 1
    for (u32 k = batched + thread; k < units; k += warps * 32) move<1>(k, !PACKETED || k < whole);
    if constexpr (!PACKETED) elements(whole * EACH, thread, warps * 32);
  }

  // From the first-th on.
  WARPMESH_DEVICE void elements(u32 first, u32 thread, u32 threads) const {
#pragma unroll 1
    for (u32 k = first + thread; k < count; k += threads) element(k);
  }

  // The units that can be accessed whole: none if addresses are not aligned.
  WARPMESH_DEVICE u32 aligned_units() const {
    u32 low = static_cast<u32>(user) | static_cast<u32>(slot);
    if constexpr (From::has(OWN)) low |= static_cast<u32>(ops.from[c.own]);
#pragma unroll
    for (int s = 0; s < From::N; ++s) {
      if (From::at(s) != PACKETS && From::at(s) != OWN && From::at(s) != PARTIAL) low |= static_cast<u32>(ops.from[s]);
    }
#pragma unroll
    for (int d = 0; d < To::N; ++d) {
      if (To::at(d) != PACKETS && To::at(d) != PARTIAL) low |= static_cast<u32>(ops.to[d]);
    }
    return low % BYTES == 0 ? count / EACH : 0;
  }

  WARPMESH_DEVICE u64 source(int s, const At& at) const {
    const u64 base = ops.from[at.table + s];
    if (From::at(s) == OWN_SLOT) return base + (s == static_cast<int>(c.own) ? at.user : at.slot);
    return base + (From::at(s) == USER ? at.user : at.slot);
  }

  // Of the k-th element of a slot of unfinished sums. Slots hold whole units, and are aligned.
  WARPMESH_DEVICE u64 sum_at(u64 base, u32 k) const { return base + (sums + static_cast<u64>(k) * sizeof(Acc)); }

  WARPMESH_DEVICE u64 line(u64 base, u32 k) const { return base + (lines + static_cast<u64>(k) * LINE_BYTES); }

  // COUNT units, 32 apart.
  template <int COUNT>
  WARPMESH_DEVICE void move(u32 k, bool whole) const {
    const At here = at(k, BYTES);
    Sums sum[COUNT];
#pragma unroll
    for (int first = 0; first < From::N; first += BATCH) {
      Unit in[COUNT][BATCH];
      u64 from[BATCH];
#pragma unroll
      for (int s = first; s < From::N && s < first + BATCH; ++s) from[s - first] = source(s, here);
#pragma unroll
      for (int u = 0; u < COUNT; ++u) {
#pragma unroll
        for (int s = first; s < From::N && s < first + BATCH; ++s) {
          if (From::at(s) != PARTIAL) in[u][s - first] = read(from[s - first] + u * 32 * BYTES, k, whole);
        }
      }
#pragma unroll
      for (int u = 0; u < COUNT; ++u) {
#pragma unroll
        for (int s = first; s < From::N && s < first + BATCH; ++s) add(sum[u], in[u][s - first], s, here, u);
      }
    }
#pragma unroll
    for (int u = 0; u < COUNT; ++u) deliver(sum[u], here, u, whole);
  }

  // A unit at an address: the k-th of the slice.
  WARPMESH_DEVICE Unit read(u64 at, u32 k, bool whole) const {
    Unit unit;
    if (!PACKETED || whole) {
      load<BYTES>(at, unit.word);
    } else {
      const u64 some = detail::load_some<SIZE>(at, there(k));
      unit.word[0] = static_cast<u32>(some);
      unit.word[1] = static_cast<u32>(some >> 32);
    }
    return unit;
  }

  // A unit's sums, finished or as they are: the u-th after `here`.
  WARPMESH_DEVICE void deliver(Sums& sum, const At& here, int u, bool whole) const {
    if constexpr (FINISHES) {
      write(finished(sum), here, u, whole);
    } else {
      u32 word[SUM_WORDS];
#pragma unroll
      for (int e = 0; e < EACH; ++e) detail::set_bits(word, e, sum.of[e]);
#pragma unroll
      for (int w = 0; w < SUM_WORDS; w += SUM_BYTES / 4) store<SUM_BYTES>(sum_at(ops.to[here.table], first_of(here, u)) + 4 * w, word + w);
    }
  }

  // The first element of the u-th unit after `here`.
  static WARPMESH_DEVICE u32 first_of(const At& here, int u) { return (here.k + u * 32) * EACH; }

  // Stores a unit everywhere: the u-th after `here`, 32 apart.
  WARPMESH_DEVICE void write(const Unit& unit, const At& here, int u, bool whole) const {
#pragma unroll
    for (int d = 0; d < To::N; ++d) {
      const u64 base = ops.to[here.table + d], to = base + (To::at(d) == USER ? here.user : here.slot) + u * 32 * BYTES;
      if (To::at(d) == PACKETS) {
        Line::write(line(base, here.k + u * 32), unit.word, c.flag);
      } else if (!PACKETED || whole) {
        store<BYTES>(to, unit.word);
      } else {
        detail::store_some<SIZE>(to, there(here.k + u * 32), unit.word[0] | static_cast<u64>(unit.word[1]) << 32);
      }
    }
  }

  // Bytes of the k-th unit that are there.
  WARPMESH_DEVICE u32 there(u32 k) const { return least<u32>((count - k * EACH) * SIZE, BYTES); }

  // An element alone.
  WARPMESH_DEVICE void element(u32 k) const {
    const At here = at(k, SIZE);
    Acc sum[T::CELL];
    u32 cell[SIZE == 8 ? 2 : 1];
#pragma unroll
    for (int first = 0; first < From::N; first += BATCH) {
      u32 in[BATCH][SIZE == 8 ? 2 : 1];
#pragma unroll
      for (int s = first; s < From::N && s < first + BATCH; ++s) {
        if (From::at(s) != PARTIAL) load_element<SIZE>(source(s, here), in[s - first]);
      }
      if constexpr (COPIES) {
        cell[0] = in[0][0];
        if constexpr (SIZE == 8) cell[1] = in[0][1];
      } else {
#pragma unroll
        for (int s = first; s < From::N && s < first + BATCH; ++s) {
          if (From::at(s) == PARTIAL) {
            u32 word[sizeof(Acc) == 8 ? 2 : 1];
            load_element<sizeof(Acc)>(sum_at(ops.from[here.table + s], k), word);
            const Acc more = detail::get_bits<Acc>(word, 0);
#pragma unroll
            for (int e = 0; e < T::CELL; ++e) sum[e] = s == 0 ? more : Op::combine(sum[e], more);
          } else {
            add_cell(sum, in[s - first], s);
          }
        }
      }
    }
    if constexpr (!FINISHES) {
      u32 word[sizeof(Acc) == 8 ? 2 : 1] = {};
      detail::set_bits(word, 0, sum[0]);
      store_element<sizeof(Acc)>(sum_at(ops.to[here.table], k), word);
      return;
    }
    if constexpr (!COPIES) finish_cell(sum, cell);
#pragma unroll
    for (int d = 0; d < To::N; ++d) store_element<SIZE>(ops.to[here.table + d] + (To::at(d) == USER ? here.user : here.slot), cell);
  }

  // Units with packets among their sources, UNROLL at a time; false if they do not come. (A unit that is not there looks at the last
  // one's packets, which is cheaper than not to look.)
  WARPMESH_DEVICE bool receive(u32 warp, u32 warps) const {
    const bool aligned = aligned_units() > 0;
    const u32 units = (count + EACH - 1) / EACH;
#pragma unroll 1
    for (u32 k = warp * 32 * UNROLL + threadIdx.x % 32; k < units; k += warps * 32 * UNROLL) {
      Sums sum[UNROLL];
#pragma unroll
      for (int first = 0; first < From::N; first += BATCH) {
        const int end = first + BATCH < From::N ? first + BATCH : From::N;
        Quad got[UNROLL][BATCH];
        if (!arrive(got, first, end - SKIPS_OWN, k, units)) return false;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const u32 n = u == 0 ? k : k + u * 32;
          if (u > 0 && n >= units) break;
          const At here = at(n, BYTES);
          take(sum[u], got[u], first, end, here, aligned && n < count / EACH);
          if (end == From::N) deliver(sum[u], here, 0, aligned && n < count / EACH);
        }
      }
    }
    return true;
  }

  // Waits for the packets of sources `first` to `end - 1`. Data and flags are loaded together, again and again, until all flags are this
  // epoch's.
  WARPMESH_DEVICE bool arrive(Quad (&got)[UNROLL][BATCH], int first, int end, u32 k, u32 units) const {
    auto arrived = [&] {
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        // Opaque: else the addresses of many sources' lines would take up registers around the loop.
        const u32 n = UNROLL == 1 ? opaque(k) : u == 0 ? k : least(k + u * 32, units - 1);
#pragma unroll
        for (int s = first; s < end; ++s) {
          if (awaits(s)) got[u][s - first] = Line::read(line(ops.from[sender(s)], n));
        }
      }
      u32 differs = 0;
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int s = first; s < end; ++s) differs |= awaits(s) ? Line::differs(got[u][s - first], c.flag) : 0;
      }
      return differs == 0;
    };
    auto what = [&] {
      int missing = sender(first);
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int s = first; s < end; ++s) missing = awaits(s) && !Line::is_of(got[u][s - first], c.flag) ? sender(s) : missing;
      }
      return WaitingFor{ops.peer[missing], c.place, c.flag, 0};
    };
    return persist(c.patience, arrived, what);
  }

  static WARPMESH_DEVICE constexpr bool awaits(int s) { return From::at(s) == PACKETS || From::at(s) == OWN; }

  // Where the sources are all ranks' contributions, there are no packets of the own one. One batch: the others are numbered without it.
  // Several: a neighbour's packets are looked at instead of its own, so that each batch has its sources' numbers.
  static constexpr bool SKIPS_OWN = From::has(OWN) && From::N <= BATCH;
  WARPMESH_DEVICE int sender(int n) const {
    const int own = static_cast<int>(c.own);
    if (SKIPS_OWN) return n >= own ? n + 1 : n;
    return From::has(OWN) && n == own ? ((n ^ 1) < From::N ? n ^ 1 : n - 1) : n;
  }

  // Adds sources `first` to `end - 1` to a unit's sums: packets that have arrived, and what is no packet.
  WARPMESH_DEVICE void take(Sums& sum, const Quad (&got)[BATCH], int first, int end, const At& here, bool whole) const {
    Unit mine;
    // Only now: registers are short while packets are awaited, and what this rank has sent before is still in its cache.
    if constexpr (From::has(OWN)) mine = read(ops.from[c.own] + here.user, here.k, whole);
    const int own = static_cast<int>(c.own);
#pragma unroll
    for (int s = first; s < end; ++s) {
      Unit in;
      if (From::at(s) == OWN) {
        // Selects, not an index: else the array would have to lie in memory.
        const int n = s - first;
        const Quad above = got[SKIPS_OWN && n > 0 ? n - 1 : n], below = got[SKIPS_OWN && s == From::N - 1 ? n - 1 : n];
        in = {s < own ? below.x : s == own ? mine.word[0] : above.x, s < own ? below.z : s == own ? mine.word[1] : above.z};
      } else if (From::at(s) == PACKETS) {
        in = {got[s - first].x, got[s - first].z};
      } else if (From::at(s) != PARTIAL) {
        in = read(source(s, here), here.k, whole);
      }
      add(sum, in, s, here, 0);
    }
  }

  // Elements that are converted together, and the words that they fill (or a part of one).
  static constexpr int CELL = T::CELL, WORDS = SIZE == 8 ? 2 : 1;

  // The sums of a unit's elements, and what they are loaded by.
  static constexpr int SUM_WORDS = EACH * sizeof(Acc) / 4, SUM_BYTES = SUM_WORDS % 4 == 0 ? 16 : 8;

  // Adds a source's contribution, in the sources' order: `in`, or the u-th unit after `here` of unfinished sums, which have no factor.
  WARPMESH_DEVICE void add(Sums& sum, const Unit& in, int s, const At& here, int u) const {
    if constexpr (COPIES) {
      sum.copy = in;
    } else if (From::at(s) == PARTIAL) {
      u32 word[SUM_WORDS];
#pragma unroll
      for (int w = 0; w < SUM_WORDS; w += SUM_BYTES / 4) load<SUM_BYTES>(sum_at(ops.from[here.table + s], first_of(here, u)) + 4 * w, word + w);
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const Acc more = detail::get_bits<Acc>(word, e);
        sum.of[e] = s == 0 ? more : Op::combine(sum.of[e], more);
      }
    } else {
#pragma unroll
      for (int w = 0; w < BYTES / 4; w += WORDS) add_cell(&sum.of[w / WORDS * CELL], &in.word[w], s);
    }
  }

  WARPMESH_DEVICE void add_cell(Acc* sum, const u32* in, int s) const {
    Acc wide[CELL];
    T::widen(in, wide);
    if constexpr (Op::SCALED) {
      const u32 bits[2] = {static_cast<u32>(ops.factor[s]), static_cast<u32>(ops.factor[s] >> 32)};
      Acc factor[CELL];
      T::widen(bits, factor);
#pragma unroll
      for (int k = 0; k < CELL; ++k) wide[k] = times(wide[k], factor[0]);
    }
#pragma unroll
    for (int k = 0; k < CELL; ++k) sum[k] = s == 0 ? wide[k] : Op::combine(sum[k], wide[k]);
  }

  // The result, rounded once.
  WARPMESH_DEVICE Unit finished(Sums& sum) const {
    if constexpr (COPIES) {
      return sum.copy;
    } else {
      Unit out;
#pragma unroll
      for (int w = 0; w < BYTES / 4; w += WORDS) finish_cell(&sum.of[w / WORDS * CELL], &out.word[w]);
      return out;
    }
  }

  WARPMESH_DEVICE void finish_cell(Acc* sum, u32* out) const {
    if constexpr (Op::AVERAGED) {
#pragma unroll
      for (int k = 0; k < CELL; ++k) sum[k] = over(sum[k], c.world);
    }
    T::narrow(sum, out);
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_MOVE_CUH

// A compiled plan's kernel: the state that its instructions share.
//
// The grid has as many blocks on every rank. Block b runs the whole program on slice b of every part, with semaphores of its own, so
// blocks of one rank never wait for each other, and block b of a rank only ever waits for blocks b of others.
//
//   block of a buffer   |           window of round k            |
//   parts               |    part 0     |    part 1     | ...
//   slices              | b0 | b1 | b2  | b0 | b1 | b2  |
#ifndef WARPMESH_PLAN_CUH
#define WARPMESH_PLAN_CUH

#include "board.cuh"
#include "move.cuh"
#include "semaphore.cuh"

namespace warpmesh {

// Device memory of one communicator and rank. A block reads and writes its own entry alone; kernels of a communicator follow each
// other.
struct State {
  struct Block {
    u64 epoch;  // epochs that it has finished
    u64 open;   // blocks of the last launch, if its plan did not show that all ranks had begun its last epoch; else 0
  } block[MAX_BLOCKS];
};

// A kernel's only parameter: what is the same for all plans, then tables whose sizes are the plan's. Everything that depends
// on the rank is in the tables, so ranks with the same structure run the same kernel.
struct Call {
  u64 count;          // elements of a block
  u64 window;         // elements of a block that a round covers: less than 2^32
  u64 part;           // elements of a part of the window
  u64 slice;          // elements of a thread block's slice of a part
  u32 rounds;
  u32 rank;
  u32 world;
  u32 reserved;
  u64 half_scratch;   // bytes to the second half
  u64 half_packets;
  Patience patience;
  State* state;
  Board mine;         // what this rank tells its peers
  u64 boards;         // what peers tell this rank: by half, peer, block
  u64 half_boards;    // bytes to the second half
  const u64* windows; // where memory that was registered begins here: by its number, rank
  const struct Far* far; // ranks of other hosts, if there are any: far.cuh
};
static_assert(sizeof(Call) == 160, "as in collectives/src/cuda/params.rs");

// Operands of plans that announce: how their addresses are found, in the lowest two bits of a byte. Above these stands with which of the
// plan's meetings they are, from 1; 0: at once, nobody has to be met.
enum Announced : u8 {
  NOT,     // the address is in the table
  INPUT,   // the peer tells where its input begins, the table has how far from there the block lies
  OUTPUT,  // the same for its output
};

template <int WORDS, int PARTS, int PLACES, int BOARDS>
struct Params {
  static constexpr int PLACE_COUNT = PLACES, WORD_COUNT = WORDS;
  Call call;
  u64 place[PLACES ? PLACES : 1];    // addresses of operands
  u64 word[WORDS ? WORDS : 1];       // semaphores of each signalled or awaited peer, for block 0; and what far.cuh needs
  u64 board[BOARDS ? BOARDS : 1];    // addresses of this rank's board at each peer, for block 0 of the first half
  u32 parts[PARTS ? PARTS : 1];      // part of each move
  u8 peer[PLACES + WORDS + 8];       // the peer of each word, then of each place
  u8 announced[PLACES ? PLACES : 1];
};

// What a block has learned of its peers: addresses of all operands, and the factors of their ranks. In shared memory.
template <int PLACES>
struct alignas(16) Learned {
  u64 at[PLACES ? PLACES : 1];
  u64 factor[PLACES ? PLACES : 1];
};

// Between the words of two blocks.
constexpr u64 SEMAPHORE_STRIDE = sizeof(u64);

// `Control::failed` of a rank whose peer makes another call: this plus the peer.
constexpr u32 MISMATCH = 1u << 16;

// SYNCHRONISED: whoever has finished an epoch of this plan knows that all ranks have begun it.
//
// THREADS: of a block, if that is known when it is compiled.
//
// Its state is small, so that moves have the registers: what can be computed from the round is.
template <bool SYNCHRONISED, u32 THREADS = 0>
struct Worker {
  const Call& call;
  u64 epoch;   // of this round, over all calls of this block
  u32 rounds;  // that are done
  u32 failed;  // of this thread, until the next signal, wait or round makes it the block's

  WARPMESH_DEVICE explicit Worker(const Call& call)
      : call(call), epoch(load(&call.state->block[blockIdx.x].epoch)), rounds(0), failed(0) {}

  // On to the next round, when all threads are done with this one; false after the last.
  WARPMESH_DEVICE bool next(u32& round) {
    failed = __syncthreads_or(failed);
    rounds = ++round;
    ++epoch;
    return round < call.rounds && !failed;
  }

  // Before anything of this epoch is written to a peer: all have finished the epoch before the last, whose half is used again. After
  // a plan that synchronises that is known, else each block of a peer says when it begins. The launch before had slices of its own, so
  // what this block writes may be what any of its blocks still reads: all of them are waited for. Later rounds have the same slices.
  template <int COUNT>
  WARPMESH_DEVICE void guard(const u64* words, const u8* peers, u32 place) {
    const u32 first = rounds > 0 ? blockIdx.x : 0, blocks = open();
#pragma unroll 1
    for (u32 n = threadIdx.x; n < COUNT * blocks && !failed; n += threads()) {
      failed = !word(words[n % COUNT], first + n / COUNT).wait(begun(epoch), call.patience, peers[n % COUNT], place);
    }
    failed = __syncthreads_or(failed);
  }

  // Tells COUNT peers that this epoch is begun, and so the one before is finished.
  template <int COUNT>
  WARPMESH_DEVICE void begin(const u64* words) {
    if (threadIdx.x < COUNT && !failed) word(words[threadIdx.x]).signal(begun(epoch + 1));
  }

  // All blocks' words are kept in step, also of blocks that this launch does not have.
  WARPMESH_DEVICE void finish() const {
#pragma unroll 1
    for (u32 b = blockIdx.x + threadIdx.x * gridDim.x; b < MAX_BLOCKS; b += threads() * gridDim.x) {
      store(&call.state->block[b].epoch, epoch);
      store(&call.state->block[b].open, SYNCHRONISED ? 0 : gridDim.x);
    }
  }

  // Tells COUNT peers where this rank's buffers are: the next signal to a peer publishes it.
  template <int COUNT, class P>
  WARPMESH_DEVICE void announce(const P& p) const {
    if (threadIdx.x < COUNT) call.mine.write(p.board[threadIdx.x] + half_boards() + blockIdx.x * sizeof(Board));
  }

  // Where operands are that nobody has to be met for: for all threads after the next barrier, of a signal, a wait or `sync`. Only if there
  // are moves before the first meeting, which else does it too.
  template <class P>
  WARPMESH_DEVICE void learn(const P& p, Learned<P::PLACE_COUNT>& learned) const {
#pragma unroll 1
    for (u32 n = threadIdx.x; n < P::PLACE_COUNT; n += threads()) {
      if (p.announced[n] < 4) learn(p, learned, n, call.mine);
    }
  }

  // Waits for COUNT peers, and takes in what they announced. MEETING: the number of this wait among those that do so, from 1. ALL: and
  // what is known without them.
  template <int COUNT, int MEETING, bool ALL, class P>
  WARPMESH_DEVICE void meet(const P& p, Learned<P::PLACE_COUNT>& learned, int first, u32 nth, u32 place) {
    if (threadIdx.x < COUNT && !failed) {
      const u32 peer = p.peer[first + threadIdx.x];
      failed = !word(p.word[first + threadIdx.x]).wait(value(nth), call.patience, peer, place);
      if (!failed && Board::digest_at(board(peer)) != call.mine.digest) {
        store_relaxed_sys(&call.patience.control->failed, MISMATCH + peer);
        failed = 1;
      }
    }
    failed = __syncthreads_or(failed);
#pragma unroll 1
    for (u32 n = threadIdx.x; n < P::PLACE_COUNT && !failed; n += threads()) {
      const u32 how = p.announced[n], meeting = how >> 2;
      if (ALL ? meeting > MEETING : meeting != MEETING) continue;
      learn(p, learned, n, ALL && how < 4 ? call.mine : Board::read(board(p.peer[P::WORD_COUNT + n])));
    }
    __syncthreads();
  }

  // Signals COUNT peers: everything that this block wrote before is visible to whoever waits for it. If the block has given up, they
  // are not told that it is done.
  template <int COUNT>
  WARPMESH_DEVICE void signal(const u64* words, u32 nth) {
    failed = __syncthreads_or(failed);
    if (threadIdx.x < COUNT && !failed) word(words[threadIdx.x]).signal(value(nth));
  }

  // Waits for COUNT peers.
  template <int COUNT>
  WARPMESH_DEVICE void wait(const u64* words, const u8* peers, u32 nth, u32 place) {
    if (threadIdx.x < COUNT && !failed) {
      failed = !word(words[threadIdx.x]).wait(value(nth), call.patience, peers[threadIdx.x], place);
    }
    failed = __syncthreads_or(failed);
  }

  // Between moves of which the later one touches what other threads have moved, or uses what they have learned: they are done.
  WARPMESH_DEVICE void sync() { failed = __syncthreads_or(failed); }

  // GROUP moves of the same form that do not depend on each other, the warps dealt out among them.
  template <class M, int GROUP>
  WARPMESH_DEVICE void move(const u64* from, const u64* to, const u64* factor, const u8* peers, const u32* parts, u32 place) {
    if (failed) return;
    const bool odd = static_cast<u32>(epoch) & 1;
    const MoveContext c{call.patience, odd ? call.half_scratch : 0, odd ? call.half_packets : 0, flag_of(epoch), call.rank,
                        call.world, place};
    // Opaque: computed here, and not kept in registers from the kernel's beginning.
    const u32 warp = opaque(threadIdx.x) / 32, warps = threads() / 32;
    if constexpr (GROUP == 1) {
      failed = !M::slice(Operands{from, to, factor, peers}, extent(parts[0]), c, warp, warps);
    } else {
      // Warps are dealt out in turn: move g has warps g, g + GROUP, ..., or where there are too few, a warp has several moves.
#pragma unroll 1
      for (u32 g = warp % GROUP; g < GROUP; g += warps) {
        const Operands ops{from + g * M::SOURCES, to + g * M::DESTINATIONS, factor + g * M::SOURCES, peers + g * M::SOURCES};
        const u32 shared = warps > g ? (warps - g + GROUP - 1) / GROUP : 1;
        failed |= !M::slice(ops, extent(parts[g]), c, warp / GROUP, shared);
      }
    }
  }

 protected:
  // How many blocks of each peer have to say that they have begun the last epoch; 0 if that is known.
  WARPMESH_DEVICE u32 open() const {
    return rounds > 0 ? !SYNCHRONISED : static_cast<u32>(load(&call.state->block[blockIdx.x].open));
  }

  WARPMESH_DEVICE Semaphore word(u64 at) const { return word(at, blockIdx.x); }

  static WARPMESH_DEVICE Semaphore word(u64 at, u32 block) { return Semaphore{reinterpret_cast<u64*>(at + block * SEMAPHORE_STRIDE)}; }

  // This block's slice of a part, in this round. Within a window 32 bits are enough.
  WARPMESH_DEVICE Extent extent(u32 part) const {
    const u64 begin = static_cast<u64>(rounds) * static_cast<u32>(call.window);
    const u32 limit = static_cast<u32>(least(call.count - begin, call.window));
    const u32 slice = static_cast<u32>(call.slice), start = slice * blockIdx.x;
    const u32 length = rest(static_cast<u32>(call.part), start, slice);
    const u32 first = part * static_cast<u32>(call.part) + start;
    return {begin + first, start, rest(limit, first, length)};
  }

 private:
  static WARPMESH_DEVICE u32 threads() { return THREADS ? THREADS : blockDim.x; }

  template <class P>
  WARPMESH_DEVICE void learn(const P& p, Learned<P::PLACE_COUNT>& learned, u32 n, const Board& board) const {
    const u32 how = p.announced[n] & 3;
    u64 begin = 0;
    if (how != NOT) {
      const u64 at = how == INPUT ? board.input : board.output;
      const u64 window = load(&call.windows[(at >> WINDOW_SHIFT) * call.world + p.peer[P::WORD_COUNT + n]]);
      begin = window + (at & ((1ull << WINDOW_SHIFT) - 1));
    }
    learned.at[n] = begin + p.place[n];
    learned.factor[n] = board.factor;
  }

  WARPMESH_DEVICE u64 half_boards() const { return epoch & 1 ? call.half_boards : 0; }

  // What a peer announced to this block.
  WARPMESH_DEVICE u64 board(u32 peer) const {
    return call.boards + half_boards() + (peer * MAX_BLOCKS + blockIdx.x) * sizeof(Board);
  }

  // The guard's word of a rank that has begun an epoch, which are counted from 1 here.
  static WARPMESH_DEVICE u64 begun(u64 epoch) { return epoch << 8; }

  // The value of the n-th signal of this epoch over a semaphore.
  WARPMESH_DEVICE u64 value(u32 nth) const { return (epoch + 1) << 8 | nth; }

  // How many of `most` elements there are from `first` on, where there are `all`.
  static WARPMESH_DEVICE u32 rest(u32 all, u32 first, u32 most) { return least(all - least(first, all), most); }
};

}  // namespace warpmesh

#endif  // WARPMESH_PLAN_CUH

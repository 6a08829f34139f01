// Point-to-point messages between GPUs: the letters of a group, all under way together.
//
// Every ordered pair of ranks has MAIL_CHANNELS rings of slots in the receiver's memory. The sender fills a slot and counts up `filled`
// there; the receiver empties it and counts up `emptied` in the sender's memory, which gives the slot back. A message is cut into
// slices, one for each channel that it takes; a slice goes through its ring slot by slot. Letters to one peer (or from it) follow each
// other; all others go on whenever they can, so no order of sends and receives deadlocks, however few blocks there are.
//
//   shared word              writer                      reader                          order
//   filled[peer][channel]    the sender's thread 0       the receiver's thread 0         as a semaphore; publishes the slot's data
//   emptied[peer][channel]   the receiver's thread 0     the sender's thread 0           as a semaphore; the slot has been read
//   slot                     the sender's block          the receiver's block            plain, by these two
//   done[way][peer][channel] thread 0 of whoever has     the same, in the next kernel    plain: kernels of a communicator follow
//                            the ring in this kernel                                     each other
//
// Counts are of slots, and only grow: a kernel that a graph replays goes on where the last one ended.
//
// To a rank of another host a message goes by the proxy (port.cuh). The sender fills a slot of a ring of its own, `outgoing`, and puts it
// into the receiver's ring; what would be a store into the peer's memory is a signal, counted in memory of the waiting rank's host:
//
//   shared word              writer                      reader                          order
//   outgoing slot            the sender's block          the transport, as a put's       by the trigger; `emptied` gives it back, for then
//                                                        source                          the put is over
//   slot                     the transport               the receiver's block            behind the data / acquire
//   filled, emptied          the transport, behind the   thread 0 of whoever waits       the least of all lanes counts
//                            data
#ifndef WARPMESH_MAIL_CUH
#define WARPMESH_MAIL_CUH

#include "far.cuh"
#include "move.cuh"
#include "plan.cuh"
#include "semaphore.cuh"

namespace warpmesh {

constexpr u32 MAIL_CHANNELS = 8, MAIL_SLOTS = 4, MAIL_LETTERS = 60;
// Bytes of a message for each channel: below, another channel costs more than it brings.
constexpr u32 MAIL_PER_CHANNEL = 32 << 10;
// In front of a slot's data: what the message is, for its first slot of each channel.
constexpr u32 MAIL_HEADER = 128;
// What a record names as its place; as in collectives/src/host/mail.rs.
constexpr u32 AT_SEND = ~0u - 1, AT_RECEIVE = ~0u - 2, AT_OTHER = ~0u - 5;

// A message to send or to receive. All addresses but `user` are those of channel 0.
struct Letter {
  u64 user;    // the caller's buffer
  u64 bytes;   // of the message, at least 1
  u64 ring;    // the slots; to another host, those of `outgoing`
  u64 theirs;  // the word that this rank counts up; of another host, the port that does
  u64* mine;   // the word that the peer counts up; from another host, its lanes
  u64* done;   // slots that this rank has filled or emptied so far
  u64 there;   // to another host: where the ring begins in the peer's memory for messages
  u32 peer;
  u16 dtype;   // the type's code; both sides must agree
  u8 receives;
  u8 lanes;    // of the words that a rank of another host counts up; 0 for one of this host
};
static_assert(sizeof(Letter) == 64, "as in collectives/src/cuda/mail.rs");

// The kernel's only parameter.
struct Mail {
  Patience patience;
  const Far* far;  // if there are other hosts
  u64 memory;      // this rank's memory for messages, of which puts say offsets
  u32 slot;        // bytes of a slot, its header included: a multiple of MAIL_HEADER
  u32 channels;    // that the largest message takes
  u32 lanes;       // peers and ways
  u32 unused;
  u8 first[64];    // each lane's first letter; behind the last lane's how many letters there are
  Letter letter[MAIL_LETTERS];
};
static_assert(sizeof(Mail) == 120 + 64 * MAIL_LETTERS, "as in collectives/src/cuda/mail.rs");

// Channels that a message takes: both sides compute the same.
WARPMESH_DEVICE u32 mail_channels(u64 bytes) {
  return static_cast<u32>(least<u64>((bytes + MAIL_PER_CHANNEL - 1) / MAIL_PER_CHANNEL, MAIL_CHANNELS));
}

// All letters of a kernel: a block has the jobs blockIdx.x, blockIdx.x + gridDim.x, ...; a job is one channel of one lane. FAR: some go to
// other hosts, or come from there.
template <bool FAR>
class Postman {
 public:
  // What a job has still to do.
  struct Job {
    u64 at, end;  // bytes of the message: the next one, and behind the channel's slice
    u64 count;    // slots that were done before the next one
    u32 letter;   // which one is under way
    u32 last;     // behind the lane's last one
    bool begins;  // whether the next slot is the slice's first
  };
  static constexpr u32 MOST = (MAIL_LETTERS * MAIL_CHANNELS);

  // What the threads of a block share.
  struct Desk {
    Job job[MOST];
    u32 next;
  };

  WARPMESH_DEVICE Postman(const Mail& mail, Desk& desk)
      : mail(mail), desk(desk), all(mail.lanes * mail.channels), jobs(all > blockIdx.x ? (all - blockIdx.x - 1) / gridDim.x + 1 : 0) {}

  // Until all is done, or given up.
  WARPMESH_DEVICE void deliver() {
    for (u32 n = threadIdx.x; n < jobs; n += blockDim.x) begin(n);
    __syncthreads();
    for (u32 n = 0;;) {
      if (threadIdx.x == 0) desk.next = find(n);
      __syncthreads();
      n = desk.next;
      if (n >= jobs) return;
      move(n);
      __syncthreads();
      if (threadIdx.x == 0) advance(n);
    }
  }

 private:
  static constexpr u32 NONE = ~0u;

  const Mail& mail;
  Desk& desk;
  const u32 all, jobs;
  // Of thread 0: a trigger could not be pushed, for this rank's calls have failed.
  bool failed = false;

  WARPMESH_DEVICE u32 number(u32 n) const { return blockIdx.x + n * gridDim.x; }
  WARPMESH_DEVICE u32 channel(u32 n) const { return number(n) / mail.lanes; }

  WARPMESH_DEVICE void begin(u32 n) {
    Job& job = desk.job[n];
    const u32 lane = number(n) % mail.lanes;
    job.letter = mail.first[lane];
    job.last = mail.first[lane + 1];
    job.count = load(mail.letter[job.letter].done + channel(n));
    open(n);
  }

  // The slice of the letter that is under way, or of the first after it that takes this channel.
  WARPMESH_DEVICE void open(u32 n) {
    Job& job = desk.job[n];
    for (; job.letter < job.last; ++job.letter) {
      const u64 bytes = mail.letter[job.letter].bytes, used = mail_channels(bytes);
      const u64 each = ((bytes + used - 1) / used + MAIL_HEADER - 1) / MAIL_HEADER * MAIL_HEADER;
      job.at = least(each * channel(n), bytes);
      job.end = least(job.at + each, bytes);
      job.begins = true;
      if (job.at < job.end) return;
    }
  }

  WARPMESH_DEVICE bool is_done(u32 n) const { return desk.job[n].letter == desk.job[n].last; }

  // The value of its word by which a job's next slot is free, or filled.
  WARPMESH_DEVICE u64 needed(u32 n) const {
    const u64 next = desk.job[n].count + 1;
    if (letter(n).receives) return next;
    return next > MAIL_SLOTS ? next - MAIL_SLOTS : 0;
  }

  WARPMESH_DEVICE const Letter& letter(u32 n) const { return mail.letter[desk.job[n].letter]; }

  WARPMESH_DEVICE bool is_far(const Letter& l) const { return FAR && l.lanes > 0; }

  // Lanes of the word that the peer counts up.
  WARPMESH_DEVICE u32 lanes(const Letter& l) const { return is_far(l) ? l.lanes : 1; }
  WARPMESH_DEVICE u64* mine(u32 n) const { return letter(n).mine + channel(n) * lanes(letter(n)); }

  // How often the peer has counted up, not yet acquired.
  WARPMESH_DEVICE u64 counted(u32 n) const {
    u64 least_of_all = load_relaxed_sys(mine(n));
    if constexpr (FAR) {
      for (u32 lane = 1; lane < lanes(letter(n)); ++lane) least_of_all = least(least_of_all, load_relaxed_sys(mine(n) + lane));
    }
    return least_of_all;
  }

  // A job that can go on, from the n-th on. By thread 0.
  WARPMESH_DEVICE u32 find(u32 n) {
    u32 found = NONE, open = NONE;
    u64 seen = 0;
    const bool reached = persist(
        mail.patience,
        [&] {
          open = NONE;
          for (u32 k = 0; k < jobs; ++k) {
            const u32 at = n + k < jobs ? n + k : n + k - jobs;
            if (is_done(at)) continue;
            open = at;
            seen = counted(at);
            if (seen >= needed(at)) {
              found = at;
              return true;
            }
          }
          return open == NONE;
        },
        [&] {
          return WaitingFor{letter(open).peer, letter(open).receives ? AT_RECEIVE : AT_SEND, needed(open), seen};
        });
    if (!reached || found == NONE || failed) return NONE;
    for (u32 lane = 0; lane < lanes(letter(found)); ++lane) acquire_polled_sys(mine(found) + lane);
    return agrees(found) ? found : NONE;
  }

  // Bytes from a ring's begin to a job's slot.
  WARPMESH_DEVICE u64 offset(u32 n) const {
    return (channel(n) * MAIL_SLOTS + desk.job[n].count % MAIL_SLOTS) * static_cast<u64>(mail.slot);
  }
  WARPMESH_DEVICE u64 slot(u32 n) const { return letter(n).ring + offset(n); }

  // Of the message, in a job's slot.
  WARPMESH_DEVICE u32 filling(u32 n) const {
    return static_cast<u32>(least<u64>(desk.job[n].end - desk.job[n].at, mail.slot - MAIL_HEADER));
  }

  // Writes what the message is into its first slot, or looks whether it is what this rank receives.
  WARPMESH_DEVICE bool agrees(u32 n) const {
    const Letter& l = letter(n);
    if (!desk.job[n].begins) return true;
    u64* const header = reinterpret_cast<u64*>(slot(n));
    if (!l.receives) {
      store(header, l.bytes);
      store(header + 1, l.dtype);
      return true;
    }
    const u64 theirs = load(header);
    if (theirs == l.bytes && load(header + 1) == l.dtype) return true;
    Control* const control = mail.patience.control;
    Record* const record = &control->record[blockIdx.x % MAX_BLOCKS];
    store_relaxed_sys(&record->expected, l.bytes);
    store_relaxed_sys(&record->seen, theirs);
    store_relaxed_sys(reinterpret_cast<Pair*>(&record->peer), {l.peer, AT_OTHER});
    // Behind the record: who acquires it finds that.
    store_release_sys(&control->failed, MISMATCH + l.peer);
    return false;
  }

  // A slot's worth, by all threads.
  WARPMESH_DEVICE void move(u32 n) const {
    const Letter& l = letter(n);
    const u32 bytes = filling(n);
    const u64 user = l.user + desk.job[n].at, at = slot(n) + MAIL_HEADER;
    const u64 from = l.receives ? at : user, to = l.receives ? user : at;
    // Slots are aligned, so the caller's address decides; a slot's worth but the last is a multiple of 128 bytes.
    if ((user | bytes) % 4 == 0) {
      copy<Uint32>(from, to, bytes / 4);
    } else {
      copy<Uint8>(from, to, bytes);
    }
  }

  template <class T>
  WARPMESH_DEVICE void copy(u64 from, u64 to, u32 count) const {
    const u64 factor = 0;
    const u8 peer = 0;
    const MoveContext context{mail.patience, 0, 0, 0, 0, 1, 0};
    Move<T, Copy, Kinds<USER>, Kinds<USER>>::slice(Operands{&from, &to, &factor, &peer}, Extent{0, 0, count}, context,
                                                   threadIdx.x / 32, blockDim.x / 32);
  }

  // A job's slot is filled or emptied: says so, and goes on. By thread 0, after the block's barrier.
  WARPMESH_DEVICE void advance(u32 n) {
    Job& job = desk.job[n];
    const Letter& l = letter(n);
    if (is_far(l)) failed |= !push(n);
    ++job.count;
    job.begins = false;
    if (!is_far(l)) Semaphore{reinterpret_cast<u64*>(l.theirs) + channel(n)}.signal(job.count);
    store(l.done + channel(n), job.count);
    job.at += filling(n);
    if (job.at < job.end) return;
    ++job.letter;
    open(n);
  }

  // Puts a job's slot into the peer's ring, or gives the peer's back; the peer's word counts up behind that.
  WARPMESH_DEVICE bool push(u32 n) const {
    const Letter& l = letter(n);
    const u32 port = static_cast<u32>(l.theirs) + channel(n);
    const Fifo fifo = fifo_of_far(mail.far);
    const u64 to = l.there + offset(n), from = slot(n) - mail.memory, bytes = MAIL_HEADER + filling(n);
    const u64 ticket = l.receives ? fifo.push(port, trigger::SIGNAL, 0, 0, 0, mail.patience, l.peer, AT_RECEIVE)
                                  : fifo.push(port, trigger::PUT | trigger::SIGNAL, to, from, bytes, mail.patience, l.peer, AT_SEND);
    return ticket != Fifo::FAILED;
  }
};

}  // namespace warpmesh

#endif  // WARPMESH_MAIL_CUH

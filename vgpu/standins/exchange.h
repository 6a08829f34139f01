// How ranks of the stand-in for NCCL pass each other bytes: through a file in memory that rank 0 made and that the unique
// id names. A pair of ranks has a channel in each direction, which holds one message: the sender fills it when it is
// empty, the receiver empties it when it is full. A send ends when its message is taken, as NCCL's does, so a program that
// forgets to group sends with receives hangs. Everything else is made of that.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_RANKS 16

// What the two ends of a message must agree on.
struct subject {
  int kind, dtype, op, root;
  uint64_t count;
};

struct channel {
  _Atomic uint64_t sent;   // written by the sender, behind the message; read by the receiver
  _Atomic uint64_t taken;  // written by the receiver, when the message is copied; read by the sender
  struct subject subject;  // of the message that is under way
};

struct shared {
  _Atomic int joined;
  int devices[MAX_RANKS];
  struct channel channels[MAX_RANKS][MAX_RANKS];  // from, to
};

// One message of a call, as one of its ends sees it.
struct letter {
  int peer;
  bool is_send, is_done;
  uint64_t number;  // of a message that is sent and not yet taken, else 0
  struct subject subject;
  size_t bytes;
  void* image;  // on the host
};

struct meeting {
  int rank, world, file;
  struct shared* shared;
  _Atomic bool aborted;
};

// Makes the file. A descriptor of this process, or -1.
int meeting_make(void);

// Joins the ranks that meet at descriptor `file` of process `pid`, and waits for all. False if that is not possible.
bool meeting_join(struct meeting* meeting, int pid, int file, int rank, int world, int device);

void meeting_leave(struct meeting* meeting);

enum outcome { EXCHANGED, DISAGREED, ABORTED, BROKEN };

// Sends and receives all letters, whichever can go on first; those between the same ranks in their order.
enum outcome meeting_exchange(struct meeting* meeting, struct letter* letters, int n);

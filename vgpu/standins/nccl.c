// A stand-in for libnccl.so.2 on virtual GPUs, for tests of programs that use NCCL. It is compiled against NVIDIA's
// nccl.h, so signatures and numbers are NCCL's. It is as simple as can be: a call puts a function on the stream, which sends
// what each rank needs of this one's buffer through a file in memory, takes what others sent, and folds that in rank order.
// Nothing else of NCCL is here: no kernels, no topology, no overlap. It reads and writes device memory as only vgpu
// permits, where a device address is one of the host. Not there: groups of several communicators, split, non-blocking
// communicators, scalars in device memory.
//
// STANDIN_VERSION, when it is compiled, is the version that it claims; functions that came later are left out. Environment variables,
// for tests of what programs do about errors:
//   STANDIN_NCCL_FAIL=ncclAllReduce:2  that function returns that result; on one rank only with STANDIN_NCCL_RANK=1
//   STANDIN_NCCL_ASYNC=6               ncclCommGetAsyncError tells of it once something is under way
//   STANDIN_NCCL_HANG=1                what is on the stream does not end before ncclCommAbort
#include <cuda.h>
#include <nccl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "exchange.h"
#include "fold.h"

#ifndef STANDIN_VERSION
#define STANDIN_VERSION NCCL_VERSION_CODE
#endif

enum kind { ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, ALL_TO_ALL, GATHER, SCATTER, LETTERS };

#define MAX_OPS 64
#define MAX_LETTERS (2 * MAX_RANKS + 64)

struct ncclComm {
  struct meeting meeting;
  int device, major;
  _Atomic int async;  // ncclResult_t, told by ncclCommGetAsyncError
  struct {
    bool is_used;
    ncclDataType_t dtype;
    char scalar[8];
  } ops[MAX_OPS];
  struct call* calls;  // all of them: graphs may run one again
};

// A block of a buffer and the peer that it goes to or comes from.
struct part {
  int peer;
  bool is_send;
  size_t count;
  ncclDataType_t dtype;
  char* at;
};

struct call {
  struct ncclComm* comm;
  struct subject subject;
  int dynamic;  // index of the operation with a scalar, or -1
  char scalar[8];
  char* output;
  int n;
  struct part parts[MAX_LETTERS];
  struct call* next;
};

static _Thread_local char last_error[256];

static ncclResult_t fails(ncclResult_t result, const char* format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return result;
}

static ncclResult_t check_driver(CUresult code, const char* what) {
  return code == CUDA_SUCCESS ? ncclSuccess : fails(ncclUnhandledCudaError, "%s: %d", what, code);
}

#define TRY(expression)                          \
  do {                                           \
    ncclResult_t result_ = (expression);         \
    if (result_ != ncclSuccess) return result_;  \
  } while (0)

static _Thread_local int this_rank;  // whose thread this is, once it asked for a communicator

// What STANDIN_NCCL_FAIL says about a function.
static ncclResult_t injected(const char* function) {
  const char *wish = getenv("STANDIN_NCCL_FAIL"), *rank = getenv("STANDIN_NCCL_RANK");
  size_t length = strlen(function);
  if (rank != NULL && atoi(rank) != this_rank) return ncclSuccess;
  if (wish == NULL || strncmp(wish, function, length) != 0 || wish[length] != ':') return ncclSuccess;
  return fails(atoi(wish + length + 1), "%s was asked to fail", function);
}

#define BEGIN TRY(injected(__func__))

// ---- What runs on the stream ------------------------------------------------------------------------------------------------

static bool folds(const struct call* call) { return call->subject.kind <= REDUCE_SCATTER; }

static void before_sending(const struct call* call, struct letter* letter) {
  ncclDataType_t dtype = call->subject.dtype;
  if (!folds(call)) return;
  if (call->dynamic >= 0) scale(dtype, letter->image, call->scalar, letter->subject.count);
  if (call->subject.op == ncclAvg) average_before(dtype, letter->image, letter->subject.count, call->comm->meeting.world);
}

// Letters are those of `call->parts`, in this order, and have arrived: those from rank 0 first.
static void deliver(const struct call* call, struct letter* letters) {
  ncclDataType_t dtype = call->subject.dtype;
  char* sum = NULL;
  for (int i = 0; i < call->n; i++) {
    if (letters[i].is_send) continue;
    if (!folds(call)) {
      memcpy(call->parts[i].at, letters[i].image, letters[i].bytes);
    } else if (sum == NULL) {
      sum = letters[i].image;
    } else {
      fold(dtype, call->subject.op, sum, letters[i].image, call->subject.count);
    }
  }
  if (sum == NULL) return;
  if (call->subject.op == ncclAvg) average_after(dtype, sum, call->subject.count, call->comm->meeting.world);
  memcpy(call->output, sum, call->subject.count * size_of(dtype));
}

static void CUDA_CB run(void* data) {
  const struct call* call = data;
  struct ncclComm* comm = call->comm;
  while (getenv("STANDIN_NCCL_HANG") && !atomic_load(&comm->meeting.aborted)) usleep(1000);
  struct letter letters[MAX_LETTERS];
  for (int i = 0; i < call->n; i++) {
    const struct part* part = &call->parts[i];
    struct subject subject = call->subject;
    subject.count = part->count, subject.dtype = part->dtype;
    size_t bytes = part->count * size_of(part->dtype);
    letters[i] = (struct letter){part->peer, part->is_send, false, 0, subject, bytes, malloc(bytes)};
    if (!part->is_send) continue;
    memcpy(letters[i].image, part->at, bytes);
    before_sending(call, &letters[i]);
  }
  enum outcome outcome = meeting_exchange(&comm->meeting, letters, call->n);
  if (outcome == EXCHANGED) deliver(call, letters);
  if (outcome == DISAGREED) atomic_store(&comm->async, ncclInvalidUsage);
  if (outcome == BROKEN) atomic_store(&comm->async, ncclSystemError);
  for (int i = 0; i < call->n; i++) free(letters[i].image);
}

// ---- Calls ------------------------------------------------------------------------------------------------------------------

static struct call* new_call(struct ncclComm* comm, struct subject subject) {
  struct call* call = calloc(1, sizeof *call);
  *call = (struct call){.comm = comm, .subject = subject, .dynamic = -1, .next = comm->calls};
  comm->calls = call;
  return call;
}

static ncclResult_t enqueue(struct call* call, cudaStream_t stream) {
  const char* async = getenv("STANDIN_NCCL_ASYNC");
  if (async != NULL) atomic_store(&call->comm->async, atoi(async));
  return check_driver(cuLaunchHostFunc((CUstream)stream, run, call), "cuLaunchHostFunc");
}

// Memory of the communicator's GPU that begins at or before `at`, and does not end before `bytes` from there.
static ncclResult_t check_buffer(const struct ncclComm* comm, const char* name, const void* at, size_t bytes) {
  CUdeviceptr begin = 0, address = (CUdeviceptr)at;
  size_t size = 0;
  int device = -1;
  if (bytes == 0) return ncclSuccess;
  if (cuMemGetAddressRange(&begin, &size, address) != CUDA_SUCCESS) {
    return fails(ncclInvalidArgument, "%s %p is not memory of a GPU", name, at);
  }
  if (address + bytes > begin + size) {
    return fails(ncclInvalidArgument, "%s %p has not %zu bytes", name, at, bytes);
  }
  cuPointerGetAttribute(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address);
  if (device == comm->device) return ncclSuccess;
  return fails(ncclInvalidArgument, "%s %p is memory of GPU %d, not %d", name, at, device, comm->device);
}

static ncclResult_t check_call(const struct ncclComm* comm, ncclDataType_t dtype, int root) {
  if (comm == NULL) return fails(ncclInvalidArgument, "comm is NULL");
  int types = STANDIN_VERSION >= NCCL_VERSION(2, 24, 0) ? ncclNumTypes : ncclFloat8e4m3;
  if (dtype < 0 || (int)dtype >= types) return fails(ncclInvalidArgument, "type %d", dtype);
  if (dtype >= ncclFloat8e4m3 && comm->major < 9) {
    return fails(ncclInvalidArgument, "FP8 reduction support begins with sm90 capable devices.");
  }
  if (root < 0 || root >= comm->meeting.world) return fails(ncclInvalidArgument, "root or peer %d", root);
  return ncclSuccess;
}

// The operation's place among those with a scalar, or -1.
static ncclResult_t check_op(const struct ncclComm* comm, ncclDataType_t dtype, ncclRedOp_t op, int* dynamic) {
  *dynamic = -1;
  if (op >= 0 && op < ncclNumOps) return ncclSuccess;
  int at = (int)op - ncclNumOps;
  if (at < 0 || at >= MAX_OPS || !comm->ops[at].is_used) return fails(ncclInvalidArgument, "operation %d", op);
  if (comm->ops[at].dtype != dtype) return fails(ncclInvalidArgument, "the scalar has another type");
  *dynamic = at;
  return ncclSuccess;
}

static void add(struct call* call, int peer, bool is_send, const void* buffer, int block) {
  size_t count = call->subject.count;
  ncclDataType_t dtype = call->subject.dtype;
  char* at = (char*)buffer + block * count * size_of(dtype);
  call->parts[call->n++] = (struct part){peer, is_send, count, dtype, at};
}

// Who sends which block to whom: `count` elements each.
static void arrange(struct call* call, const void* send, void* recv) {
  int me = call->comm->meeting.rank, world = call->comm->meeting.world, root = call->subject.root;
  enum kind kind = call->subject.kind;
  bool from_all = kind != BROADCAST && kind != SCATTER, to_all = kind != REDUCE && kind != GATHER;
  bool many_out = kind == REDUCE_SCATTER || kind == ALL_TO_ALL || kind == SCATTER;
  bool many_in = kind == ALL_GATHER || kind == ALL_TO_ALL || kind == GATHER;
  for (int peer = 0; peer < world; peer++) {
    if ((from_all || me == root) && (to_all || peer == root)) add(call, peer, true, send, many_out ? peer : 0);
  }
  for (int peer = 0; peer < world; peer++) {
    if ((to_all || me == root) && (from_all || peer == root)) add(call, peer, false, recv, many_in ? peer : 0);
  }
}

static ncclResult_t check_parts(const struct call* call) {
  for (int i = 0; i < call->n; i++) {
    const struct part* part = &call->parts[i];
    const char* name = part->is_send ? "sendbuff" : "recvbuff";
    TRY(check_buffer(call->comm, name, part->at, part->count * size_of(part->dtype)));
  }
  return ncclSuccess;
}

static ncclResult_t collective(struct ncclComm* comm, struct subject subject, const void* send, void* recv,
                               cudaStream_t stream) {
  int dynamic;
  TRY(check_call(comm, subject.dtype, subject.root));
  TRY(check_op(comm, subject.dtype, subject.op, &dynamic));
  if (subject.count == 0) return ncclSuccess;
  if (dynamic >= 0) subject.op = ncclSum;
  struct call* call = new_call(comm, subject);
  call->dynamic = dynamic;
  if (dynamic >= 0) memcpy(call->scalar, comm->ops[dynamic].scalar, sizeof call->scalar);
  call->output = recv;
  arrange(call, send, recv);
  TRY(check_parts(call));
  return enqueue(call, stream);
}

ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){ALL_REDUCE, datatype, op, 0, count}, sendbuff, recvbuff, stream);
}

ncclResult_t ncclReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){REDUCE, datatype, op, root, count}, sendbuff, recvbuff, stream);
}

ncclResult_t ncclReduceScatter(const void* sendbuff, void* recvbuff, size_t recvcount, ncclDataType_t datatype,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){REDUCE_SCATTER, datatype, op, 0, recvcount}, sendbuff, recvbuff, stream);
}

ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, size_t sendcount, ncclDataType_t datatype,
                           ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){ALL_GATHER, datatype, 0, 0, sendcount}, sendbuff, recvbuff, stream);
}

ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){BROADCAST, datatype, 0, root, count}, sendbuff, recvbuff, stream);
}

#if STANDIN_VERSION >= NCCL_VERSION(2, 28, 0)
ncclResult_t ncclAlltoAll(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, ncclComm_t comm,
                          cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){ALL_TO_ALL, datatype, 0, 0, count}, sendbuff, recvbuff, stream);
}

ncclResult_t ncclGather(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, int root,
                        ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){GATHER, datatype, 0, root, count}, sendbuff, recvbuff, stream);
}

ncclResult_t ncclScatter(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, int root,
                         ncclComm_t comm, cudaStream_t stream) {
  BEGIN;
  return collective(comm, (struct subject){SCATTER, datatype, 0, root, count}, sendbuff, recvbuff, stream);
}
#endif

// ---- Groups -----------------------------------------------------------------------------------------------------------------

// Of this thread. Sends and receives of a group are one call; collectives go at once, for they do not wait here.
static _Thread_local struct {
  int depth;
  struct call* letters;
  cudaStream_t stream;
} group;

ncclResult_t ncclGroupStart(void) {
  BEGIN;
  group.depth++;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
  if (group.depth == 0) return fails(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth > 0 || group.letters == NULL) return injected(__func__);
  struct call* call = group.letters;
  group.letters = NULL;
  BEGIN;
  TRY(check_parts(call));
  return enqueue(call, group.stream);
}

static ncclResult_t letter(struct part part, ncclComm_t comm, cudaStream_t stream) {
  TRY(check_call(comm, part.dtype, part.peer));
  TRY(ncclGroupStart());
  if (group.letters == NULL) group.letters = new_call(comm, (struct subject){.kind = LETTERS});
  group.stream = stream;
  ncclResult_t result = ncclSuccess;
  if (group.letters->comm != comm || group.letters->n == MAX_LETTERS) {
    result = fails(ncclInvalidUsage, "the stand-in has no groups of several communicators or so many letters");
  } else {
    group.letters->parts[group.letters->n++] = part;
  }
  TRY(ncclGroupEnd());
  return result;
}

ncclResult_t ncclSend(const void* sendbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  BEGIN;
  return letter((struct part){peer, true, count, datatype, (char*)sendbuff}, comm, stream);
}

ncclResult_t ncclRecv(void* recvbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  BEGIN;
  return letter((struct part){peer, false, count, datatype, recvbuff}, comm, stream);
}

// ---- Operations with a scalar -----------------------------------------------------------------------------------------------

#if STANDIN_VERSION >= NCCL_VERSION(2, 11, 0)
ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void* scalar, ncclDataType_t datatype,
                                      ncclScalarResidence_t residence, ncclComm_t comm) {
  BEGIN;
  TRY(check_call(comm, datatype, 0));
  if (residence != ncclScalarHostImmediate) return fails(ncclInvalidUsage, "scalars on the host only");
  for (int i = 0; i < MAX_OPS; i++) {
    if (comm->ops[i].is_used) continue;
    comm->ops[i].is_used = true;
    comm->ops[i].dtype = datatype;
    memcpy(comm->ops[i].scalar, scalar, size_of(datatype));
    *op = ncclNumOps + i;
    return ncclSuccess;
  }
  return fails(ncclInternalError, "too many operations");
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm) {
  BEGIN;
  int dynamic = (int)op - ncclNumOps;
  if (comm == NULL || dynamic < 0 || dynamic >= MAX_OPS || !comm->ops[dynamic].is_used) {
    return fails(ncclInvalidArgument, "operation %d", op);
  }
  comm->ops[dynamic].is_used = false;
  return ncclSuccess;
}
#endif

// ---- Communicators ----------------------------------------------------------------------------------------------------------

struct address {
  int pid, file;
};

ncclResult_t ncclGetUniqueId(ncclUniqueId* uniqueId) {
  BEGIN;
  struct address address = {getpid(), meeting_make()};
  if (address.file < 0) return fails(ncclSystemError, "memfd_create");
  memset(uniqueId, 0, sizeof *uniqueId);
  memcpy(uniqueId, &address, sizeof address);
  return ncclSuccess;
}

// NCCL gives a GPU to one rank, unless it is told that this is what is meant.
static ncclResult_t check_devices(const struct meeting* meeting) {
  const char* shares = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  bool may = shares != NULL && strcmp(shares, "1") == 0 && STANDIN_VERSION >= NCCL_VERSION(2, 30, 0);
  for (int peer = 0; peer < meeting->world; peer++) {
    if (peer != meeting->rank && meeting->shared->devices[peer] == meeting->shared->devices[meeting->rank] && !may) {
      return fails(ncclInvalidUsage, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d",
                   meeting->rank, peer, meeting->shared->devices[peer]);
    }
  }
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId commId, int rank) {
  this_rank = rank;
  BEGIN;
  struct address address;
  memcpy(&address, &commId, sizeof address);
  if (nranks < 1 || nranks > MAX_RANKS || rank < 0 || rank >= nranks) {
    return fails(ncclInvalidArgument, "rank %d of %d", rank, nranks);
  }
  CUdevice device;
  TRY(check_driver(cuCtxGetDevice(&device), "cuCtxGetDevice"));
  struct ncclComm* made = calloc(1, sizeof *made);
  made->device = device;
  cuDeviceGetAttribute(&made->major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
  if (!meeting_join(&made->meeting, address.pid, address.file, rank, nranks, device)) {
    free(made);
    return fails(ncclSystemError, "no communicator has this id");
  }
  *comm = made;
  return check_devices(&made->meeting);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  BEGIN;
  TRY(check_driver(cuCtxSynchronize(), "cuCtxSynchronize"));
  meeting_leave(&comm->meeting);
  for (struct call* call = comm->calls; call != NULL;) {
    struct call* next = call->next;
    free(call);
    call = next;
  }
  free(comm);
  return ncclSuccess;
}

// The communicator is not freed: what is on streams still looks at it.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  atomic_store(&comm->meeting.aborted, true);
  return injected(__func__);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* asyncError) {
  BEGIN;
  *asyncError = atomic_load(&comm->async);
  return ncclSuccess;
}

// ---- Memory -----------------------------------------------------------------------------------------------------------------

#if STANDIN_VERSION >= NCCL_VERSION(2, 19, 0)
ncclResult_t ncclMemAlloc(void** ptr, size_t size) {
  BEGIN;
  CUdeviceptr address = 0;
  TRY(check_driver(cuMemAlloc(&address, size), "cuMemAlloc"));
  *ptr = (void*)address;
  return ncclSuccess;
}

ncclResult_t ncclMemFree(void* ptr) {
  BEGIN;
  return check_driver(cuMemFree((CUdeviceptr)ptr), "cuMemFree");
}

// What registration is: a note of the range, so that a handle can be told from anything else.
struct range {
  uint64_t mark;
  void* begin;
};
#define RANGE_MARK 0x52616e67654d6172u

static ncclResult_t note(const struct ncclComm* comm, void* buff, size_t size, struct range** made) {
  if (comm == NULL) return fails(ncclInvalidArgument, "comm is NULL");
  TRY(check_buffer(comm, "the registered buffer", buff, size));
  *made = malloc(sizeof **made);
  **made = (struct range){RANGE_MARK, buff};
  return ncclSuccess;
}

static ncclResult_t forget(struct range* range) {
  if (range == NULL || range->mark != RANGE_MARK) return fails(ncclInvalidArgument, "nothing is registered so");
  range->mark = 0;
  free(range);
  return ncclSuccess;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void* buff, size_t size, void** handle) {
  BEGIN;
  return note(comm, buff, size, (struct range**)handle);
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void* handle) {
  BEGIN;
  (void)comm;
  return forget(handle);
}
#endif

#if STANDIN_VERSION >= NCCL_VERSION(2, 27, 0)
ncclResult_t ncclCommWindowRegister(ncclComm_t comm, void* buff, size_t size, ncclWindow_t* win, int winFlags) {
  BEGIN;
  if (winFlags != NCCL_WIN_DEFAULT && winFlags != NCCL_WIN_COLL_SYMMETRIC) {
    return fails(ncclInvalidArgument, "window flags %d", winFlags);
  }
  if ((uintptr_t)buff % NCCL_WIN_REQUIRED_ALIGNMENT != 0) {
    return fails(ncclInvalidArgument, "a window begins at a multiple of %d", NCCL_WIN_REQUIRED_ALIGNMENT);
  }
  return note(comm, buff, size, (struct range**)win);
}

ncclResult_t ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t win) {
  BEGIN;
  (void)comm;
  return forget((struct range*)win);
}
#endif

// ---- Versions and errors ----------------------------------------------------------------------------------------------------

ncclResult_t ncclGetVersion(int* version) {
  *version = STANDIN_VERSION;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError: return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}

#if STANDIN_VERSION >= NCCL_VERSION(2, 13, 0)
const char* ncclGetLastError(ncclComm_t comm) {
  (void)comm;
  return last_error;
}
#endif

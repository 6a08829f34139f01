// Stand-ins for libcublas, libcublasLt and libcurand on virtual GPUs, for programs that make handles of these libraries
// without calling anything else, as candle does for each of its devices. A program that calls more does not link.
// These libraries' headers are not here; the functions take and give what NVIDIA's documentation says.
#include <stddef.h>
#include <stdlib.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, CURAND_NOT_INITIALIZED = 101, CURAND_ALLOCATION_FAILED = 102 };

// What a handle points to: the stream that was set, which nothing uses.
struct handle {
  void* stream;
};

static int make(struct handle** handle, int failure) {
  *handle = calloc(1, sizeof **handle);
  return *handle == NULL ? failure : SUCCESS;
}

static int set_stream(struct handle* handle, void* stream, int failure) {
  if (handle == NULL) return failure;
  handle->stream = stream;
  return SUCCESS;
}

static int drop(struct handle* handle, int failure) {
  if (handle == NULL) return failure;
  free(handle);
  return SUCCESS;
}

int cublasCreate_v2(struct handle** handle) { return make(handle, ALLOC_FAILED); }

int cublasSetStream_v2(struct handle* handle, void* stream) { return set_stream(handle, stream, NOT_INITIALIZED); }

int cublasDestroy_v2(struct handle* handle) { return drop(handle, NOT_INITIALIZED); }

int curandCreateGenerator(struct handle** generator, int kind) {
  (void)kind;
  return make(generator, CURAND_ALLOCATION_FAILED);
}

int curandSetStream(struct handle* generator, void* stream) {
  return set_stream(generator, stream, CURAND_NOT_INITIALIZED);
}

int curandSetPseudoRandomGeneratorSeed(struct handle* generator, unsigned long long seed) {
  (void)seed;
  return generator == NULL ? CURAND_NOT_INITIALIZED : SUCCESS;
}

int curandDestroyGenerator(struct handle* generator) { return drop(generator, CURAND_NOT_INITIALIZED); }

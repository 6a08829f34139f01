// Vectors: templates, several files' worth of kernels, dynamic shared memory, memset, all kinds of copies, strides.
#include <cuda_runtime.h>
#include <vector>
#include "check.h"

template <typename T>
__global__ void add(const T* a, const T* b, T* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}

// Sums a block's elements in dynamic shared memory.
__global__ void blockSum(const int* in, int* out) {
  extern __shared__ int part[];
  part[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

template <typename T>
static void addition() {
  const int n = 1000;
  std::vector<T> a(n), b(n), c(n);
  for (int i = 0; i < n; i++) a[i] = (T)i, b[i] = (T)(3 * i);
  T *da, *db, *dc;
  OK(cudaMalloc(&da, n * sizeof(T)));
  OK(cudaMalloc(&db, n * sizeof(T)));
  OK(cudaMalloc(&dc, n * sizeof(T)));
  OK(cudaMemcpy(da, a.data(), n * sizeof(T), cudaMemcpyHostToDevice));
  OK(cudaMemcpy(db, b.data(), n * sizeof(T), cudaMemcpyDefault));
  add<<<(n + 127) / 128, 128>>>(da, db, dc, n);
  OK(cudaGetLastError());
  OK(cudaMemcpy(c.data(), dc, n * sizeof(T), cudaMemcpyDeviceToHost));
  for (int i = 0; i < n; i++) EQUAL(c[i], (T)(4 * i));
  OK(cudaFree(da));
  OK(cudaFree(db));
  OK(cudaFree(dc));
}

static void sharedMemory() {
  int *in, *out, host[4];
  OK(cudaMalloc(&in, 256 * sizeof(int)));
  OK(cudaMalloc(&out, 4 * sizeof(int)));
  std::vector<int> ones(256);
  for (int i = 0; i < 256; i++) ones[i] = i;
  OK(cudaMemcpy(in, ones.data(), 256 * sizeof(int), cudaMemcpyHostToDevice));
  blockSum<<<4, 64, 64 * sizeof(int)>>>(in, out);
  OK(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
  for (int i = 0; i < 4; i++) EQUAL(host[i], 64 * 64 * i + 63 * 32);
  int blocks = 0;
  OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, blockSum, 1024, 0));
  EQUAL(blocks, 2);
  OK(cudaFree(in));
  OK(cudaFree(out));
}

static void strides() {
  const size_t width = 10, height = 3;
  unsigned char *device, host[height][16], back[height][width];
  size_t pitch;
  OK(cudaMallocPitch(&device, &pitch, width, height));
  if (pitch < width) exit(2);
  for (size_t y = 0; y < height; y++)
    for (size_t x = 0; x < 16; x++) host[y][x] = 16 * y + x;
  OK(cudaMemset2D(device, pitch, 0xff, width, height));
  OK(cudaMemcpy2D(device, pitch, host, 16, width - 1, height, cudaMemcpyHostToDevice));
  OK(cudaMemcpy2DAsync(back, width, device, pitch, width, height, cudaMemcpyDeviceToHost, 0));
  OK(cudaStreamSynchronize(0));
  for (size_t y = 0; y < height; y++)
    for (size_t x = 0; x < width; x++) EQUAL(back[y][x], x == width - 1 ? 0xff : 16 * y + x);
  FAILS(cudaErrorInvalidValue, cudaMemcpy2D(device, pitch, host, 8, 9, height, cudaMemcpyHostToDevice));
  OK(cudaFree(device));
}

static void hostMemory() {
  int *pinned, *device, plain[64], other[64];
  OK(cudaMallocHost(&pinned, sizeof plain));
  OK(cudaMalloc(&device, sizeof plain));
  for (int i = 0; i < 64; i++) pinned[i] = i, plain[i] = 0;
  add<<<1, 64>>>(pinned, pinned, device, 64);  // the device sees pinned memory
  OK(cudaMemcpy(plain, device, sizeof plain, cudaMemcpyDeviceToHost));
  OK(cudaMemcpy(other, plain, sizeof plain, cudaMemcpyHostToHost));
  for (int i = 0; i < 64; i++) EQUAL(other[i], 2 * i);
  OK(cudaMemset(device, 1, sizeof plain));
  OK(cudaMemcpy(plain, device, sizeof plain, cudaMemcpyDefault));
  EQUAL(plain[63], 0x01010101);
  OK(cudaFreeHost(pinned));
  OK(cudaFree(device));
}

int main() {
  void* none = &none;
  OK(cudaMalloc(&none, 0));
  if (none) return 2;
  OK(cudaFree(none));
  OK(cudaFreeHost(none));
  addition<float>();
  addition<double>();
  addition<long long>();
  sharedMemory();
  strides();
  hostMemory();
  printf("right\n");
}

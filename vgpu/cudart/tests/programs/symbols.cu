// Variables: __constant__ and __device__, with an initial value, as an array, one set per device.
#include <cuda_runtime.h>
#include "check.h"

__constant__ int scale = 7;
__device__ int table[4] = {1, 2, 3, 4};
__device__ unsigned long long counter;

__global__ void use(int* out) {
  out[threadIdx.x] = scale * table[threadIdx.x];
  atomicAdd(&counter, 1ull);
}

static int host_only;

static void expect(int* out, int a, int b, int c, int d) {
  int host[4];
  use<<<1, 4>>>(out);
  OK(cudaGetLastError());
  OK(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
  EQUAL(host[0], a);
  EQUAL(host[1], b);
  EQUAL(host[2], c);
  EQUAL(host[3], d);
}

int main() {
  int *first, *second, two = 2, pair[2] = {30, 40};
  OK(cudaMalloc(&first, 16));
  expect(first, 7, 14, 21, 28);
  OK(cudaMemcpyToSymbol(scale, &two, sizeof two));
  OK(cudaMemcpyToSymbolAsync(table, pair, sizeof pair, 2 * sizeof(int), cudaMemcpyHostToDevice, 0));
  expect(first, 2, 4, 60, 80);

  // The other device has its own.
  OK(cudaSetDevice(1));
  OK(cudaMalloc(&second, 16));
  expect(second, 7, 14, 21, 28);
  unsigned long long count = 0;
  OK(cudaMemcpyFromSymbol(&count, counter, sizeof count));
  EQUAL(count, 4);
  OK(cudaSetDevice(0));
  OK(cudaMemcpyFromSymbol(&count, counter, sizeof count));
  EQUAL(count, 8);

  size_t bytes;
  void* address;
  OK(cudaGetSymbolSize(&bytes, table));
  EQUAL(bytes, 16);
  OK(cudaGetSymbolAddress(&address, table));
  int last = 0;
  OK(cudaMemcpy(&last, (int*)address + 3, sizeof last, cudaMemcpyDeviceToHost));
  EQUAL(last, 40);
  FAILS(cudaErrorInvalidValue, cudaMemcpyToSymbol(table, pair, sizeof pair, 12));
  FAILS(cudaErrorInvalidSymbol, cudaGetSymbolAddress(&address, (const void*)&host_only));
  FAILS(cudaErrorInvalidMemcpyDirection, cudaMemcpyToSymbol(table, pair, 4, 0, cudaMemcpyDeviceToHost));
  printf("right\n");
}

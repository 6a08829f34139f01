// Attributes of pointers and functions, entry points of the driver, memory in stream order.
#include <cuda.h>
#include <cuda_runtime.h>
#include "check.h"

__global__ void big(int* x) {
  extern __shared__ int s[];
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  x[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}

int main() {
  int *device, *pinned, plain = 0, last = 0;
  OK(cudaSetDevice(1));
  OK(cudaMalloc(&device, 1024));
  OK(cudaMallocHost(&pinned, 1024));
  cudaPointerAttributes a;
  OK(cudaPointerGetAttributes(&a, device + 3));
  EQUAL(a.type, cudaMemoryTypeDevice);
  EQUAL(a.device, 1);
  if (a.devicePointer != device + 3) return 2;
  OK(cudaPointerGetAttributes(&a, pinned));
  EQUAL(a.type, cudaMemoryTypeHost);
  if (a.hostPointer != pinned) return 3;
  OK(cudaPointerGetAttributes(&a, &plain));
  EQUAL(a.type, cudaMemoryTypeUnregistered);
  int* mapped;
  OK(cudaHostGetDevicePointer(&mapped, pinned, 0));

  cudaFuncAttributes f;
  OK(cudaFuncGetAttributes(&f, big));
  if (f.maxThreadsPerBlock < 64 || f.sharedSizeBytes != 0) return 4;
  OK(cudaFuncSetAttribute(big, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024));
  big<<<1, 64, 100 * 1024>>>(device);
  OK(cudaMemcpy(&last, device + 63, sizeof last, cudaMemcpyDeviceToHost));
  EQUAL(last, 0);
  int grid = 0, block = 0;
  OK(cudaOccupancyMaxPotentialBlockSize(&grid, &block, big, 0, 0));
  if (block < 32 || grid < 1) return 5;

  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute cooperative;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.gridDim = 1, config.blockDim = 64, config.dynamicSmemBytes = 256;
  config.attrs = &cooperative, config.numAttrs = 1;
  OK(cudaLaunchKernelEx(&config, big, device));
  OK(cudaMemcpy(&last, device, sizeof last, cudaMemcpyDeviceToHost));
  EQUAL(last, 63);

  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  OK(cudaGetDriverEntryPointByVersion("cuDeviceGetCount", &entry, 12000, cudaEnableDefault, &found));
  EQUAL(found, cudaDriverEntryPointSuccess);
  int count = 0;
  if (((CUresult(*)(int*))entry)(&count) != CUDA_SUCCESS) return 6;
  EQUAL(count, 2);

  int* pooled;
  OK(cudaMallocAsync(&pooled, 1024, 0));
  OK(cudaMemsetAsync(pooled, 0, 1024, 0));
  OK(cudaFreeAsync(pooled, 0));
  OK(cudaDeviceSynchronize());
  printf("right\n");
}

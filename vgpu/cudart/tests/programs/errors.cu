// Errors: of launches, of kernels, the last error of each thread, names.
#include <cuda_runtime.h>
#include <cstring>
#include <thread>
#include "check.h"

__global__ void store(int* x) { *x = 1; }
__host__ void notAKernel() {}

int main() {
  int* x;
  OK(cudaMalloc(&x, sizeof(int)));
  OK(cudaGetLastError());

  store<<<1, 2048>>>(x);
  if (cudaPeekAtLastError() != cudaErrorInvalidConfiguration) return 2;
  std::thread([] { OK(cudaPeekAtLastError()); }).join();  // another thread has none
  if (cudaGetLastError() != cudaErrorInvalidConfiguration) return 3;
  OK(cudaGetLastError());  // asking took it away
  store<<<0, 1>>>(x);
  FAILS(cudaErrorInvalidConfiguration, cudaPeekAtLastError());
  store<<<dim3(1, 70000, 1), 1>>>(x);
  FAILS(cudaErrorInvalidConfiguration, cudaPeekAtLastError());
  void* args[] = {&x};
  FAILS(cudaErrorInvalidDeviceFunction, cudaLaunchKernel((void*)notAKernel, dim3(1), dim3(1), args, 0, 0));
  FAILS(cudaErrorInvalidMemcpyDirection, cudaMemcpy(x, x, 4, (cudaMemcpyKind)9));
  FAILS(cudaErrorInvalidValue, cudaMalloc((void**)0, 16));
  FAILS(cudaErrorInvalidValue, cudaFree((int*)0x1000));
  if (strcmp(cudaGetErrorName(cudaErrorNoKernelImageForDevice), "cudaErrorNoKernelImageForDevice")) return 4;
  if (strcmp(cudaGetErrorName((cudaError_t)12345), "unrecognized error code")) return 5;
  if (strlen(cudaGetErrorString(cudaErrorIllegalAddress)) < 5) return 6;
  int driver = 0, runtime = 0;
  OK(cudaDriverGetVersion(&driver));
  OK(cudaRuntimeGetVersion(&runtime));
  if (driver < runtime || runtime / 1000 != 13) return 7;

  // A wrong address is an error of the context, and stays.
  store<<<1, 1>>>((int*)16);
  OK(cudaGetLastError());  // the launch itself was fine
  if (cudaDeviceSynchronize() != cudaErrorIllegalAddress) return 8;
  if (cudaGetLastError() != cudaErrorIllegalAddress) return 9;
  if (cudaMemset(x, 0, 4) != cudaErrorIllegalAddress) return 10;
  printf("right\n");
}

// Streams and events: order within a stream, across streams by events, time, host memory that a kernel waits on.
#include <cuda_runtime.h>
#include "check.h"

// Adds after all threads of the launch waited for the flag, so that whoever does not wait for it comes first.
__global__ void addWhen(volatile int* flag, int* x, int value) {
  while (*flag == 0) {
  }
  *x = *x * 10 + value;
}

__global__ void append(int* x, int value) { *x = *x * 10 + value; }

int main() {
  int *flag, *x, host = 0;
  OK(cudaHostAlloc(&flag, sizeof(int), cudaHostAllocMapped));
  OK(cudaMalloc(&x, sizeof(int)));
  *flag = 0;
  cudaStream_t a, b;
  cudaEvent_t done, begin, end;
  OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
  OK(cudaStreamCreateWithPriority(&b, cudaStreamNonBlocking, 0));
  OK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));

  OK(cudaMemsetAsync(x, 0, sizeof(int), a));
  OK(cudaEventRecord(begin, a));
  addWhen<<<1, 1, 0, a>>>(flag, x, 1);
  OK(cudaEventRecord(done, a));
  OK(cudaStreamWaitEvent(b, done, 0));
  append<<<1, 1, 0, b>>>(x, 2);
  FAILS(cudaErrorNotReady, cudaEventQuery(done));
  FAILS(cudaErrorNotReady, cudaStreamQuery(b));
  *flag = 1;
  OK(cudaEventSynchronize(done));
  OK(cudaEventQuery(done));
  OK(cudaStreamSynchronize(b));
  OK(cudaStreamQuery(b));
  append<<<1, 1, 0, a>>>(x, 3);
  OK(cudaEventRecord(end, a));
  OK(cudaMemcpyAsync(&host, x, sizeof(int), cudaMemcpyDeviceToHost, a));
  OK(cudaStreamSynchronize(a));
  EQUAL(host, 123);
  float ms = -1;
  OK(cudaEventElapsedTime(&ms, begin, end));
  if (!(ms >= 0 && ms < 60000)) return 2;
  FAILS(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, begin, (cudaEvent_t)0x777770));

  OK(cudaEventDestroy(done));
  OK(cudaStreamDestroy(a));
  OK(cudaStreamDestroy(b));
  FAILS(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(a));
  printf("right\n");
}
